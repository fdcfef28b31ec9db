"""Simple classifiers: scikit-learn fits them to features of the shots in seconds, and no image is drawn.

There is one for each pair of a method and of features: ``logistic_clip`` is logistic regression on CLIP's image
features. A better one than these has to be shown, so every run has them. Pixels are those of the files: squares of the
median shortest side of the shots, at most ``LARGEST``. CLIP's features are of its image tower, the judge's of the
network that scores; both are of length one. Where CLIP stands in for the judge, both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.params.values import FEATURES, METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from dreamset.data.splits import Split
    from dreamset.params.model import Model

HEAD: Final = "head.safetensors"
LARGEST: Final = 64  # px, both sides: the most that a classifier of pixels sees
_TRANSFORM: Final = {"mean": [0.0] * 3, "std": [1.0] * 3, "resize": "bicubic"}
# How others get the features; `read` gives the images.
_FEATURES: Final = {
    "pixels": """

def features(images):
    return images.flatten(1)
""",
    "clip": """
import open_clip

model = open_clip.create_model("local-dir:.").eval()
mean, std = (torch.tensor(record["preprocessing"][key])[:, None, None] for key in ("mean", "std"))


def features(images):
    return F.normalize(model.encode_image((images - mean) / std), dim=-1)
""",
}


@dataclass(frozen=True)
class Simple:
    """A simple classifier, with the functions that the file of any other classifier has.

    It is fitted by ``simple_fit`` and not trained, so it has no settings in ``params.yaml``.
    """

    method: str
    features: str

    @property
    def name(self) -> str:
        """Its name in every record."""
        return f"{self.method}_{self.features}"

    def program(self, record: Mapping[str, Any]) -> str:
        """Return the code with which others use it; ``record`` is that of the saved classifier."""
        from dreamset.classifiers import simple_judge
        from dreamset.classifiers.simple_network import PROGRAMS

        weights = f'\nweights = load_file("{HEAD}")\n'
        logits = f"\n\ndef logits(images):\n    x = features(images){PROGRAMS[self.method]}"
        if "judge" in record:
            return weights + simple_judge.PROGRAMS[record["judge"]["kind"]] + logits
        return weights + _FEATURES["pixels" if self.features == "pixels" else "clip"] + logits

    def save(self, classifier: nn.Module, folder: Path) -> dict[str, Any]:
        """Write the arrays, and the network of the features beside them; return the facts that ``load`` needs."""
        from safetensors.torch import save_file

        from dreamset.classifiers import clip, simple_judge

        arrays = classifier.get_submodule("answer").state_dict()
        save_file({name: value.cpu().contiguous() for name, value in arrays.items()}, folder / HEAD)
        if isinstance(classifier, clip.Clip):
            return clip.save(classifier, folder) | {"head": HEAD}
        if isinstance(classifier, simple_judge.JudgeFeatures):
            return simple_judge.save(classifier, folder) | {"head": HEAD}
        transform = {"size": classifier.size, **_TRANSFORM}
        return {"head": HEAD, "transform": transform, "base": None, "base_commit": None, "base_sha256": None}

    def load(self, folder: Path, record: dict[str, Any]) -> nn.Module:
        """Return the classifier that ``save`` wrote.

        Raises:
            InputError: its file is not whole, or is of another number of classes.
        """
        from dreamset.classifiers import simple_judge, simple_network
        from dreamset.core.errors import InputError
        from dreamset.weights import pretrained, tensors

        file = folder / record["head"]
        head = simple_network.HEADS[self.method](**tensors.read(file, tensors.AGAIN))
        if head.classes != len(record["classes"]):
            raise InputError(f"{file}: is of {head.classes} classes, unlike its record; {tensors.AGAIN}.")
        if self.features == "pixels":
            return simple_network.Pixels(record["transform"]["size"], head)
        if "judge" in record:
            return simple_judge.load(folder, record, head)
        base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
        return simple_network.ClipFeatures(base, record["prompts"], head)


BY_NAME: Final = {each.name: each for f in FEATURES for m in METHODS if (each := Simple(m, f))}


def size_of(split: Split) -> int:
    """Return the side that a classifier of pixels sees: the median shortest side of the shots, ``LARGEST`` at most."""
    return min(split.native or LARGEST, LARGEST)


def network(features: str, model: Model, split: Split, root: Path) -> nn.Module:
    """Return what gives the features of images, without a head."""
    from dreamset.classifiers import simple_judge, simple_network
    from dreamset.weights import judge, judging, pretrained

    if features == "pixels":
        return simple_network.Pixels(size_of(split))
    found = judging.find(root, model) if features == "judge" else pretrained.find(root, model.clip)
    if isinstance(found, pretrained.Pretrained):
        prompts = [split.prompt(label) for label in range(len(split.classes))]
        return simple_network.ClipFeatures(found, prompts)
    network = judge.load_network(found)
    assert not isinstance(network, judge.Clip)  # no folder of a judge holds one
    return simple_judge.JudgeFeatures(network, judging.identity(root, model))
