"""A linear layer on the unit features of CLIP's frozen image tower: how it is built, saved, read and used by others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.classifiers.clip import Clip
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


def network(
    base: Pretrained,
    prompts: Sequence[str],
    *,
    zero_shot: bool = False,
    soft_labels: tuple[float, float] | None = None,
    label_smoothing: float = 0.0,
) -> Clip:
    """Return a pretrained CLIP with a linear head.

    Args:
        base: the pretrained weights.
        prompts: the caption of each class, by label.
        zero_shot: whether the head starts from the captions' unit features, and so answers as the CLIP; else it starts
            from zero, and only the number of captions matters.
        soft_labels: share and temperature of soft labels, which that CLIP gives; see ``dreamset.classifiers``.
        label_smoothing: of the training loss, 0..1.
    """
    import torch
    from torch import Tensor, nn

    from dreamset.classifiers.clip import Clip, encode_captions

    class LinearHead(Clip):
        """CLIP's frozen image tower with a linear layer on its unit features, scaled as CLIP scales its cosines."""

        texts: Tensor

        def __init__(self) -> None:
            super().__init__(base.create(), base.tokenizer()(list(prompts)), base)
            self.label_smoothing, self.soft_labels = label_smoothing, soft_labels
            with torch.no_grad():
                texts = encode_captions(self.model, self.tokens if zero_shot else self.tokens[:1])
            self.register_buffer("texts", texts, persistent=False)
            self.probe = nn.Linear(texts.shape[1], len(self.tokens))
            nn.init.zeros_(self.probe.weight)
            nn.init.zeros_(self.probe.bias)
            if zero_shot:
                self.probe.weight.data.copy_(texts)

        def train(self, mode: bool = True) -> LinearHead:
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

        def _scaled(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                scaled: Tensor = self.model.logit_scale.exp() * self.features(images)
            return scaled

        def forward(self, images: Tensor) -> Tensor:
            """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
            features = self._scaled(images)
            with torch.autocast(images.device.type, enabled=False):
                logits: Tensor = self.probe(features)
            return logits

        def with_teacher(self, images: Tensor) -> tuple[Tensor, Tensor]:
            """Return the logits of the head and of the zero-shot CLIP, which share the image features."""
            features = self._scaled(images)
            with torch.autocast(images.device.type, enabled=False):
                return self.probe(features), features @ self.texts.T

    return LinearHead()


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
