"""A linear probe: logistic regression on the unit features of CLIP's frozen image tower (Radford et al. 2021).

It uses no captions: its weights start from zero. Like the other classifiers, it is trained on augmented images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from dreamset.params.model import ClassifierRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
    from dreamset.data.splits import Split
    from dreamset.params.model import Model
    from dreamset.weights.pretrained import Pretrained

HEAD: Final = "head.safetensors"
# How others use it: `logits` takes the result of `read`. The card of a delivered classifier prints both.
PROGRAM: Final = """
import open_clip

model = open_clip.create_model("local-dir:.").eval()
head = load_file("head.safetensors")
mean, std = (torch.tensor(record["preprocessing"][key])[:, None, None] for key in ("mean", "std"))


def logits(images):
    features = F.normalize(model.encode_image((images - mean) / std), dim=-1)
    return F.linear(model.logit_scale.exp() * features, head["weight"], head["bias"])
"""


@dataclass(frozen=True)
class Row(ClassifierRow):
    """``train.linear_probe`` of a model's row."""

    program: ClassVar[str | None] = PROGRAM
    later: ClassVar[bool] = False


def network(base: Pretrained, prompts: Sequence[str]) -> Clip:
    """Return a pretrained CLIP with a linear head of zeros."""
    import torch
    from torch import Tensor, nn

    from dreamset.classifiers.clip import Clip, encode_captions

    class LinearProbe(Clip):
        """CLIP's frozen image tower with a linear layer on its unit features, scaled as CLIP scales its cosines."""

        def __init__(self) -> None:
            # Only the number of captions matters.
            super().__init__(base.create(), base.tokenizer()(list(prompts)), base)
            with torch.inference_mode():
                width = encode_captions(self.model, self.tokens[:1]).shape[1]
            self.probe = nn.Linear(width, len(self.tokens))
            nn.init.zeros_(self.probe.weight)
            nn.init.zeros_(self.probe.bias)

        def train(self, mode: bool = True) -> LinearProbe:
            """Set the mode of the head; the tower stays frozen, and so do the running statistics of its layers."""
            super().train(mode)
            self.model.eval()
            return self

        def last(self) -> nn.Module:
            """Return what turns features of length one into logits."""
            weight, bias = self.model.logit_scale.exp() * self.probe.weight, self.probe.bias
            layer = nn.Linear(weight.shape[1], len(weight))
            layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
            return layer

        def forward(self, images: Tensor) -> Tensor:
            """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
            with torch.no_grad():
                features = self.model.logit_scale.exp() * self.features(images)
            with torch.autocast(images.device.type, enabled=False):
                logits: Tensor = self.probe(features)
            return logits

    return LinearProbe()


def build(row: Row, model: Model, split: Split, root: Path) -> Clip:
    """Return the CLIP that a model's row names, with a linear head of zeros."""
    from dreamset.weights import pretrained

    prompts = [split.prompt(label) for label in range(len(split.classes))]
    return network(pretrained.find(root, model.clip), prompts)


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Write the CLIP as a stock open_clip folder and the head's ``weight`` (classes, d) and ``bias`` (classes,)."""
    from safetensors.torch import save_file

    from dreamset.classifiers import clip

    facts = clip.save(classifier, folder)
    head = classifier.get_submodule("probe").state_dict()
    save_file({name: value.cpu().contiguous() for name, value in head.items()}, folder / HEAD)
    return facts | {"head": HEAD}


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote."""
    from dreamset.weights import pretrained, tensors

    base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
    classifier = network(base, record["prompts"])
    tensors.fill(classifier.get_submodule("probe"), folder / record["head"], tensors.AGAIN)
    return classifier
