"""Visual prompt tuning: learned tokens among the patches of CLIP's image tower (Jia et al. 2022, arXiv 2203.12119).

The tokens stand between the class token and the patches. Shallow ones enter before the norm that precedes the first
block, as DISEF has them; deep ones are replaced by others before each further block. All else is frozen: the class
weights are the features of the captions, as in zero-shot CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from dreamset.classifiers import clip_head
from dreamset.classifiers.clip_head import save_more
from dreamset.core.errors import InputError
from dreamset.core.strict import Range
from dreamset.params.model import ClipRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model
    from dreamset.weights.pretrained import Pretrained

__all__ = ["Row", "build", "load", "save", "save_more"]

PROMPTS: Final = "prompts.safetensors"
# How others use it: hooks put the tokens into a stock image tower; the rest is as with any CLIP's matrix.
PROGRAM: Final = (
    clip_head.PROGRAM
    + """

prompts = load_file("prompts.safetensors")["prompts"]  # (blocks, tokens, width); of the first block alone if shallow


def put(tokens, skip):
    def hook(module, inputs):
        x = inputs[0]
        x = torch.cat([x[:, :1], tokens.expand(x.shape[0], -1, -1), x[:, 1 + skip :]], 1)
        return (x, *inputs[1:])

    return hook


model.visual.ln_pre.register_forward_pre_hook(put(prompts[0], 0))
for block, tokens in zip(model.visual.transformer.resblocks[1:], prompts[1:]):
    block.register_forward_pre_hook(put(tokens, len(tokens)))
"""
)


@dataclass(frozen=True)
class Row(ClipRow):
    """``train.vpt`` of a model's row.

    Attributes:
        depth: whether the tokens enter once, or others before each block.
        tokens: learned tokens, of each block where they are deep.
    """

    program: ClassVar[str | None] = PROGRAM

    depth: Literal["shallow", "deep"]
    tokens: Annotated[int, Range(low=1, high=1000)]


def network(base: Pretrained, captions: Sequence[str], tokens: int, blocks: int | None) -> Clip:
    """Return a pretrained CLIP with random tokens in its image tower.

    Args:
        base: the pretrained weights.
        captions: of the classes, by label.
        tokens: learned tokens of a block.
        blocks: the number of blocks that have some, from the first on; None: all.

    Raises:
        InputError: the image tower is no vision transformer of open_clip that is read at its class token.
    """
    import math

    import torch
    from open_clip.transformer import VisionTransformer
    from torch import Tensor, nn

    from dreamset.classifiers.clip import Clip

    class PromptedClip(Clip):
        """CLIP whose image tower also sees learned tokens."""

        captions_learn = False
        prompts: nn.Parameter

        def __init__(self) -> None:
            super().__init__(base.create(), base.tokenizer()(list(captions)), base)
            visual = self.model.visual
            if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool is not None:
                raise InputError(
                    f"{base.name}: its image tower is no vision transformer that is read at its class token, and vpt "
                    "puts tokens behind that; choose such a clip, as ViT-B-16, or another classifier."
                )
            steps = list(visual.transformer.resblocks)[:blocks]
            width, patch = visual.class_embedding.shape[0], math.prod(visual.patch_size)
            bound = math.sqrt(6 / (3 * patch + width))
            self.prompts = nn.Parameter(torch.empty(len(steps), tokens, width).uniform_(-bound, bound))
            # By hooks, so that the tower's own code and names stay those of a stock open_clip.
            for index, module in enumerate((visual.ln_pre, *steps[1:])):
                module.register_forward_pre_hook(self._put(index))

        def _put(self, index: int) -> Any:
            skip = tokens if index else 0

            def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
                x: Tensor = inputs[0]
                among = self.prompts[index].to(x.dtype).expand(x.shape[0], -1, -1)
                return torch.cat([x[:, :1], among, x[:, 1 + skip :]], 1), *inputs[1:]

            return hook

        def train(self, mode: bool = True) -> PromptedClip:
            """Set the mode; both towers stay frozen, and nothing is dropped in them."""
            super().train(mode)
            self.model.eval()
            return self

    return PromptedClip()


def build(row: Row, model: Model, split: Split, root: Path) -> Clip:
    """Return the CLIP that a model's row names, with random tokens in its image tower.

    Raises:
        InputError: as ``network``.
    """
    from dreamset.weights import pretrained

    captions = [split.prompt(label) for label in range(len(split.classes))]
    blocks = {"shallow": 1, "deep": None}[row.depth]
    classifier = network(pretrained.find(root, model.clip), captions, row.tokens, blocks)
    classifier.label_smoothing = row.label_smoothing
    if "gradient_checkpointing" in model.memory:
        classifier.model.visual.set_grad_checkpointing()
    return classifier


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Write the CLIP as a stock open_clip folder and the tokens, ``prompts`` (blocks, tokens, width)."""
    from safetensors.torch import save_file

    from dreamset.classifiers import clip

    facts = clip.save(classifier, folder)
    learned: Any = classifier.prompts
    save_file({"prompts": learned.detach().cpu().contiguous()}, folder / PROMPTS)
    return facts | {"visual_prompts": PROMPTS}


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote."""
    from dreamset.weights import pretrained, tensors

    base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
    file = folder / record["visual_prompts"]
    read = tensors.read(file, tensors.AGAIN)
    blocks, tokens, _ = read["prompts"].shape
    classifier = network(base, record["prompts"], tokens, blocks)
    tensors.fit(classifier, read, file, tensors.AGAIN, strict=False)
    return classifier
