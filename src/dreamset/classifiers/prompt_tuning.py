"""Context optimization: learned vectors in the place of a caption's words (Zhou et al. 2022, CoOp, arXiv 2109.01134).

A class's caption is the learned vectors, then its name. Both towers stay frozen. Logits are CLIP's scaled cosines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from dreamset.classifiers.clip_head import PROGRAM, save_more
from dreamset.core.errors import InputError
from dreamset.core.strict import Range
from dreamset.params.model import ClipRow, Optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model
    from dreamset.weights.pretrained import Pretrained

__all__ = ["Row", "build", "load", "save", "save_more"]

CONTEXT: Final = "context.safetensors"
_STD: Final = 0.02  # of the vectors that training starts from


@dataclass(frozen=True)
class Row(ClipRow):
    """``train.prompt_tuning`` of a model's row.

    Attributes:
        tokens: learned vectors before the name of a class.
        scope: whether all classes share them, or each has its own.
    """

    program: ClassVar[str | None] = PROGRAM
    optimizer: ClassVar[Optimizer] = "sgd"

    tokens: Annotated[int, Range(low=1, high=1000)]
    scope: Literal["unified", "class_specific"]


def network(base: Pretrained, names: Sequence[str], shape: Sequence[int]) -> Clip:
    """Return a pretrained CLIP with random context vectors.

    Args:
        base: the pretrained weights.
        names: the classes as a caption says them, by label.
        shape: of the vectors: tokens and width of the text tower, or classes before both; a width of 0: the tower's.

    Raises:
        InputError: vectors and name are longer than the text tower's context, or the tower is none of open_clip's own.
    """
    import torch
    from torch import Tensor, nn

    from dreamset.classifiers.clip import Clip, encode_captions, ends

    class ContextClip(Clip):
        """CLIP whose captions begin with learned vectors."""

        def __init__(self) -> None:
            super().__init__(base.create(), base.tokenizer()(list(names)), base)
            tower: Any = getattr(self.model, "text", self.model)
            last = ends(tower, self.tokens)
            if last is None:
                raise InputError(
                    f"{base.name}: its text tower is not read at the end of a causal text, so it takes no learned "
                    "vectors; choose another clip, or another classifier."
                )
            longest = names[int(last.argmax())]
            room = tower.positional_embedding.shape[0] - int(last.max()) - 1
            if shape[-2] > room:
                mend = f"give {room} at most" if room > 0 else "give it a shorter name"
                raise InputError(
                    f"prompt_tuning.tokens: {shape[-2]} vectors and the class {longest!r} are longer than the captions "
                    f"of {base.name}; {mend}."
                )
            self.names = tuple(names)
            self.context = nn.Parameter(torch.empty(*shape[:-1], tower.positional_embedding.shape[1]))
            nn.init.normal_(self.context, std=_STD)

        def train(self, mode: bool = True) -> ContextClip:
            """Set the mode of the captions; both towers stay frozen, and so do the statistics of their layers."""
            super().train(mode)
            self.model.eval()
            return self

        def _encoded(self) -> Tensor:
            return encode_captions(self.model, self.tokens, self.context)

    return ContextClip()


def build(row: Row, model: Model, split: Split, root: Path) -> Clip:
    """Return the CLIP that a model's row names, with random vectors before the names of the classes.

    Raises:
        InputError: as ``network``.
    """
    from dreamset.classifiers import lora_attention
    from dreamset.weights import pretrained

    names = [split.prompt(label, "label") for label in range(len(split.classes))]
    own = {"unified": (), "class_specific": (len(names),)}[row.scope]
    classifier = network(pretrained.find(root, model.clip), names, (*own, row.tokens, 0))
    classifier.label_smoothing = row.label_smoothing
    if "gradient_checkpointing" in model.memory:
        lora_attention.checkpoint_text(classifier.model)
    return classifier


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Write the CLIP as a stock open_clip folder and the vectors, ``context`` (tokens, d) or (classes, tokens, d)."""
    from safetensors.torch import save_file

    from dreamset.classifiers import clip

    facts = clip.save(classifier, folder)
    context: Any = classifier.context
    save_file({"context": context.detach().cpu().contiguous()}, folder / CONTEXT)
    return facts | {"context": CONTEXT, "names": classifier.names}


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote."""
    from dreamset.weights import pretrained, tensors

    base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
    file = folder / record["context"]
    read = tensors.read(file, tensors.AGAIN)
    classifier = network(base, record["names"], read["context"].shape)
    tensors.fit(classifier, read, file, tensors.AGAIN, strict=False)
    return classifier
