"""A linear probe: logistic regression on the unit features of CLIP's frozen image tower (Radford et al. 2021).

It knows nothing of captions: weights start from zero. Trained as the other classifiers are, on augmented images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.classifiers import clip
from dreamset.weights import pretrained

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.data.splits import Split
    from dreamset.params.model import Model
    from dreamset.weights.pretrained import Pretrained

HEAD: Final = "head.safetensors"


class LinearProbe(clip.Clip):
    """CLIP's frozen image tower with a linear layer on its unit features, scaled as CLIP scales its cosines.

    Args:
        model: an open_clip model.
        tokens: (classes, context) int64, the tokenized captions in label order; of use for their number alone.
        base: the pretrained weights that it stands on.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, base: Pretrained) -> None:
        super().__init__(model, tokens, base)
        with torch.inference_mode():
            width = clip.encode_captions(self.model, tokens[:1]).shape[1]
        self.probe = nn.Linear(width, len(tokens))
        nn.init.zeros_(self.probe.weight)
        nn.init.zeros_(self.probe.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of (n, 3, size, size) images in 0..1."""
        with torch.no_grad():
            features = F.normalize(self.model.encode_image((images - self.shift) / self.scale).float(), dim=-1)
            features = self.model.logit_scale.exp() * features
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.probe(features)
        return logits


def _read(base: Pretrained, prompts: Sequence[str]) -> LinearProbe:
    return LinearProbe(base.create(), base.tokenizer()(list(prompts)), base)


def build(model: Model, split: Split, root: Path) -> LinearProbe:
    """The pretrained CLIP with a head that knows nothing."""
    prompts = [split.prompt(label) for label in range(len(split.classes))]
    return _read(pretrained.find(root, model.clip), prompts)


def save(classifier: LinearProbe, folder: Path) -> dict[str, Any]:
    """The CLIP as a stock open_clip folder; beside it the head's ``weight`` (classes, d) and ``bias`` (classes,)."""
    from safetensors.torch import save_file

    facts = clip.save(classifier, folder)
    save_file({name: value.cpu().contiguous() for name, value in classifier.probe.state_dict().items()}, folder / HEAD)
    return facts | {"head": HEAD}


def load(folder: Path, record: dict[str, Any]) -> LinearProbe:
    """A classifier as ``save`` wrote it."""
    from safetensors.torch import load_file

    base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
    classifier = _read(base, record["prompts"])
    classifier.probe.load_state_dict(load_file(folder / record["head"]))
    return classifier
