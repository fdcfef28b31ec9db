"""The conditions of the U-Net: the rows that cross-attention reads, and class vectors in place of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dreamset.core.errors import InputError
from dreamset.data.splits import class_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Condition:
    """The conditions of the U-Net, one row per image.

    ``hidden`` (n, length, width) goes to cross-attention. Stable Diffusion XL adds ``pooled`` (n, width of the second
    encoder) to the time embedding (Podell et al. 2023, section 2.2); it is None for the other models.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Condition:
        """Return a condition with ``change`` applied to each tensor."""
        return Condition(change(self.hidden), None if self.pooled is None else change(self.pooled))

    def rows(self, index: Sequence[int]) -> Condition:
        """Return rows by index; an index that occurs twice repeats its row."""
        # Not x[index]: threads would sum its gradient in no fixed order.
        return self.each(lambda x: x.index_select(0, torch.tensor(list(index), device=x.device)))

    def expand(self, count: int) -> Condition:
        """Return the only row repeated ``count`` times."""
        return self.each(lambda x: x.expand(count, *x.shape[1:]))

    def split(self) -> list[Condition]:
        """Return one condition per row."""
        return [self.rows([row]) for row in range(len(self))]


def cat(parts: Sequence[Condition]) -> Condition:
    """Concatenate the rows of ``parts``."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Condition(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


def interleave(one: Condition, other: Condition) -> Condition:
    """Alternate the rows: row 0 of ``one``, row 0 of ``other``, row 1 of ``one``, and so on."""
    both = cat([one, other])
    return both.rows([row for pair in range(len(one)) for row in (pair, pair + len(one))])


@dataclass(frozen=True)
class ClassContexts:
    """The contexts that replace text: ``rows`` maps (n,) int64 to (n, length, width).

    The indices are those of the ``classes`` classes and one more for the unconditional context.
    """

    classes: int
    rows: Callable[[torch.Tensor], torch.Tensor]

    def encode(self, prompts: Sequence[str], device: torch.device) -> torch.Tensor:
        """The contexts (n, length, width) of prompts from ``splits.class_vector``; "" is the unconditional one.

        Raises:
            InputError: a prompt is neither a class vector nor empty.
        """
        index = {class_vector(label, self.classes): label for label in range(self.classes)} | {"": self.classes}
        for prompt in prompts:
            if prompt not in index:
                raise InputError(f"{prompt!r}: a class encoder knows only class vectors; set prompt: class_vector.")
        return self.rows(torch.tensor([index[prompt] for prompt in prompts], device=device))
