"""Class vectors in place of text (arXiv 2405.02698): a linear map from one-hot classes to what the U-Net attends to.

It stands where the text encoder stood. Its file can be used without this package: ``contexts`` of it, (classes + 1,
length, width), hold a row per class and, last, the unconditional one. A stock pipeline takes them as they are:

    contexts = load_file("class_encoder.safetensors")["contexts"]
    pipeline(prompt_embeds=contexts[[3]], negative_prompt_embeds=contexts[[-1]], guidance_scale=2.0)

From some 500 classes on the weights are the smaller file, and stand in it instead: with ``one_hot`` (n, classes),
``((one_hot @ hidden.weight.T + hidden.bias) @ out.weight.T).view(n, -1, width)`` gives the rows.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dreamset.core.errors import InputError
from dreamset.core.seeds import seed_for
from dreamset.data.splits import class_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dreamset.generator.base_model import BaseModel

WEIGHTS: Final = "class_encoder.safetensors"
HIDDEN: Final = 500  # units between the two layers, as in the paper


class ClassEncoder(nn.Module):
    """One-hot class -> Linear(500) -> Linear(length x width, no bias), with nothing between: purely linear.

    Args:
        classes: the null class included, where there is one.
        length: vectors per class that the U-Net attends to.
        width: of the U-Net's cross-attention.
    """

    def __init__(self, classes: int, length: int, width: int) -> None:
        super().__init__()
        self.classes, self.shape = classes, (length, width)
        self.hidden = nn.Linear(classes, HIDDEN)
        self.out = nn.Linear(HIDDEN, length * width, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n, classes) class vectors as (n, length, width) contexts."""
        contexts: torch.Tensor = self.out(self.hidden(vectors))
        return contexts.view(len(vectors), *self.shape)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Contexts of classes by index; the one past the last class is the all-zero vector."""
        one_hot = nn.functional.one_hot(index, self.classes + 1)[:, : self.classes]
        return self.forward(one_hot.to(self.hidden.weight.dtype))


@dataclass(frozen=True)
class ClassContexts:
    """What a base is told instead of text: ``rows`` (n,) int64 -> (n, length, width) of ``classes`` and one more."""

    classes: int
    rows: Callable[[torch.Tensor], torch.Tensor]

    def encode(self, prompts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Contexts (n, length, width) of prompts as ``splits.class_vector`` says them; "" is the unconditional.

        Raises:
            InputError: a prompt that is none of these.
        """
        known = {class_vector(label, self.classes): label for label in range(self.classes)} | {"": self.classes}
        for prompt in prompts:
            if prompt not in known:
                raise InputError(f"{prompt!r}: a class encoder knows class vectors only; set prompt: class_vector.")
        return self.rows(torch.tensor([known[prompt] for prompt in prompts], device=device))


@dataclass(frozen=True)
class ClassVectors:
    """A class encoder to train: of ``classes`` classes, with ``length`` vectors each.

    The unconditional context is that of the all-zero class vector, or of a null class that is learned as one more.
    """

    classes: int
    length: int
    unconditional: Literal["zero", "learned"]


@dataclass
class Encoder:
    """A class encoder under training, in the place of the base's text encoder."""

    base: BaseModel
    encoder: ClassEncoder
    learns_conditions: bool = True

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        """Trainable tensors by name, float32; there is one encoder, whatever ``name`` it is given."""
        return dict(self.encoder.named_parameters())

    @torch.no_grad()
    def save(self, name: str, folder: Path) -> None:
        """Write the contexts of every class, or the weights where those are fewer numbers."""
        assert self.base.class_contexts is not None
        classes = self.base.class_contexts.classes
        length, width = self.encoder.shape
        # Sizes, and not the tensors: this is asked for every epoch that is kept.
        weights = sum(parameter.numel() for parameter in self.encoder.parameters())
        if (classes + 1) * length * width <= weights:
            device = self.encoder.out.weight.device
            tensors = {"contexts": self.encoder.rows(torch.arange(classes + 1, device=device))}
        else:
            tensors = {key: value.detach() for key, value in self.encoder.named_parameters()}
        write(folder / WEIGHTS, tensors, classes)

    def detach(self) -> None:
        """Give the base its text encoder back."""
        self.base.class_contexts = None


def write(file: Path, tensors: Mapping[str, torch.Tensor], classes: int | None) -> None:
    """A safetensors file of tensors that says how many classes it knows; None: it knows of no classes."""
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(whole, file, None if classes is None else {"classes": str(classes)})


def attach(base: BaseModel, row: ClassVectors, seeds: Mapping[str, int]) -> Encoder:
    """Put a fresh class encoder, float32, in the place of the base's text encoder.

    Args:
        base: the frozen model.
        row: how many classes, and what the unconditional context is.
        seeds: by the only adapter's name, the seed of its initial weights.

    Raises:
        InputError: the base is also told pooled text.
    """
    check(base)
    (seed,) = seeds.values()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("class encoder", seed))
        encoder = ClassEncoder(row.classes + (row.unconditional == "learned"), row.length, width_of(base))
    encoder.to(base.device)
    if base.device.type != "meta":  # where memory is counted, and weights have no values
        _start(encoder, base)
    base.class_contexts = ClassContexts(row.classes, encoder.rows)
    return Encoder(base, encoder)


@torch.no_grad()
def _start(encoder: ClassEncoder, base: BaseModel) -> None:
    """Scale a fresh encoder to the spread of the text encoder's outputs, which the U-Net's attention is used to.

    From the Glorot weights of the paper's code, whose outputs are a hundred times smaller, the first steps go into
    growing: on the bundled base the loss was 0.087 after 300 steps instead of 0.080. To start all classes near the
    empty text is worse: they are then told apart less well (CAS 90 instead of 94.5 % at 16 shots).
    """
    text = base.encode([""]).hidden.float()
    encoder.out.weight.mul_(text.std() / encoder.rows(torch.arange(encoder.classes + 1, device=base.device)).std())


def width_of(base: BaseModel) -> int:
    """Width of what the U-Net attends to."""
    return int(base.unet.config.cross_attention_dim)


def check(base: BaseModel) -> None:
    """Refuse a base for which class vectors say too little.

    Raises:
        InputError: it has two text encoders.
    """
    if len(base.encoders) > 1:
        raise InputError(
            "class vectors cannot stand for the text of Stable Diffusion XL, whose U-Net is told pooled text too; name "
            "a Stable Diffusion 1 or 2 in models.*.generator, or set prompt: template."
        )


def read(file: Path, base: BaseModel) -> ClassContexts:
    """The contexts of a class encoder's file, or of a U-Net's that was trained with them, for this base.

    Raises:
        InputError: the file is damaged, or was trained for another base.
    """
    again = "run `dreamset adapt` again"
    check(base)
    width = width_of(base)
    try:
        state = {key: value for key, value in load_file(file).items() if not key.startswith("unet.")}
        with safe_open(file, "pt") as opened:
            classes = int(opened.metadata()["classes"])
        table = state.get("contexts")
        if table is None:
            with torch.device("meta"):
                encoder = ClassEncoder(len(state["hidden.weight"][0]), len(state["out.weight"]) // width, width)
            encoder.load_state_dict(state, assign=True)
            encoder.to(base.device).requires_grad_(False)
            return ClassContexts(classes, lambda index: encoder.rows(index).to(base.dtype))
    except Exception as error:  # safetensors raises bare Exception subclasses of its own
        raise InputError(f"{file}: holds no whole class encoder ({error}); {again}.") from error
    if table.ndim != 3 or len(table) != classes + 1 or table.shape[2] != width:
        raise InputError(f"{file}: contexts of shape {tuple(table.shape)} do not fit the base; {again}.")
    if not table.isfinite().all():
        raise InputError(f"{file}: holds NaN or infinite contexts; adapt with a lower learning rate.")
    kept = table.to(base.device, base.dtype)
    return ClassContexts(classes, lambda index: kept.index_select(0, index))


@contextlib.contextmanager
def installed(base: BaseModel, file: Path) -> Iterator[None]:
    """The base with class vectors in the place of text, as ``read`` finds them; text again afterwards."""
    base.class_contexts = read(file, base)
    try:
        yield
    finally:
        base.class_contexts = None
