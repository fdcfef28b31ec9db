"""The judge: a network that scores images, and draws, filters and chooses none.

It shares no weights, random numbers or architecture with the networks that make or filter images, so that its features
are a fair basis for FID and KID. The bundled judge is a small convolutional classifier of glyphs. For a full-size base
it is DINOv2 (Oquab et al. 2023), which has seen neither captions nor test labels. Where a row names it, it is Inception
v3 (Szegedy et al. 2016), the network of the first FIDs (Heusel et al. 2017).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.weights import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FEATURES: Final = 64
WEIGHTS, CONFIG = "judge.safetensors", "config.json"
_DINOV2: Final = ("dinov2", "dinov2_with_registers")
_INCEPTION: Final = "inception_v3"
_HEADS: Final = ("fc.", "AuxLogits.")  # of Inception, which only classify
_REMEDY: Final = "fetch or copy it again, or correct judge in its row"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which DINOv2 uses to normalise


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outward)
        self.second = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outward)
        same = inward == outward and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inward, outward, 1, stride, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.first_norm(self.first(images)))
        out: torch.Tensor = torch.relu(self.second_norm(self.second(inner)) + self.shortcut(images))
        return out


class Judge(nn.Module):
    """A residual network for 16-pixel pictures.

    Attributes:
        class_names: the classes in the order of the logits; characters of one shape share a name.
        size: side of the input, pixels.
    """

    size: Final = 16

    def __init__(self, class_names: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.width = width
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.Sequential(
            _Block(width, width, 1),
            _Block(width, FEATURES, 2),
            _Block(FEATURES, FEATURES, 1),
            _Block(FEATURES, FEATURES, 2),
        )
        # Position matters for a glyph, so the last 4x4 map is flattened instead of averaged.
        self.embed = nn.Linear(FEATURES * 16, FEATURES)
        self.classify = nn.Linear(FEATURES, len(self.class_names))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The features before the last layer, (n, 64), of float images (n, 3, 16, 16) in -1..1."""
        maps = self.blocks(torch.relu(self.stem(images)))
        out: torch.Tensor = torch.tanh(self.embed(maps.flatten(1)))
        return out

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The class scores, (n, classes), of float images (n, 3, 16, 16) in -1..1."""
        out: torch.Tensor = self.classify(self.features(images))
        return out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The same as :meth:`logits`."""
        return self.logits(images)


def save_judge(judge: Judge, folder: Path) -> None:
    """Write the judge's weights and configuration into an existing folder."""
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    config: dict[str, Any] = {"class_names": judge.class_names, "width": judge.width}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_judge(folder: Path) -> Judge:
    """Load the judge in ``folder`` (``models/base/judge``), on the CPU, in evaluation mode and frozen."""
    config = read_json(folder / CONFIG, "dreamset fetch")
    if not isinstance(config, dict) or config.keys() != {"class_names", "width"}:
        raise InputError(f"{folder / CONFIG}: is not that of {WEIGHTS} beside it; {_REMEDY}.")
    judge = Judge(**config)
    tensors.fill(judge, folder / WEIGHTS, _REMEDY)
    return judge.eval().requires_grad_(False)


class _Normalised(nn.Module):
    """A network whose input images are normalised by a mean and a deviation.

    Args:
        network: takes the normalised images.
        mean: mean of each channel, for images in 0..1.
        deviation: standard deviation of each channel, for images in 0..1.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(deviation)[:, None, None], persistent=False)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise float images (n, 3, h, w) in -1..1."""
        return ((images + 1) / 2 - self.shift) / self.scale


class Dinov2(_Normalised):
    """DINOv2 from transformers, a ``Dinov2Model``, at its usual 224 pixels."""

    size: Final = 224

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The class token after the last normalisation, (n, width), of float images (n, 3, 224, 224) in -1..1."""
        out: torch.Tensor = self.network(pixel_values=self.normalised(images)).pooler_output
        return out


class Inception(_Normalised):
    """Inception v3 from torchvision, at its 299 pixels.

    The weights are timm's, trained on ImageNet. FIDs in the literature use another conversion of them, whose pools
    differ at the edges. So FIDs from this network are comparable with each other, but not with the literature's.
    """

    size: Final = 299

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last pool, (n, 2048), of float images (n, 3, 299, 299) in -1..1."""
        out: torch.Tensor = self.network(self.normalised(images))
        return out


class Clip(_Normalised):
    """The image tower of a CLIP, an ``open_clip`` model, where the judge is not on this machine."""

    def __init__(self, network: Any) -> None:
        side = network.visual.image_size
        facts = network.visual.preprocess_cfg
        super().__init__(network, facts["mean"], facts["std"])
        self.size = int(side if isinstance(side, int) else side[0])

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The image's features, (n, width), of float images (n, 3, size, size) in -1..1; they are not normalised."""
        network: Any = self.network
        out: torch.Tensor = network.encode_image(self.normalised(images))
        return out


Network = Judge | Dinov2 | Inception | Clip


def load_network(folder: Path) -> Network:
    """Load the judge of a model's row, of any of the three kinds; on the CPU, in evaluation mode and frozen.

    Raises:
        InputError: the folder holds neither the bundled judge nor DINOv2 nor Inception v3 in safetensors.
    """
    if (folder / WEIGHTS).is_file():
        return load_judge(folder)
    config: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG, "dreamset fetch")
    if config.get("architecture") == _INCEPTION:
        return _load_inception(folder, config)
    if config.get("model_type") not in _DINOV2:
        raise InputError(
            f"{folder}: holds neither {WEIGHTS} nor a DINOv2 (model_type in {CONFIG}) nor timm's {_INCEPTION} "
            f"(architecture in {CONFIG}); correct judge in its row."
        )
    if not any(folder.glob("model*.safetensors")):
        call = f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}-safe')"
        raise InputError(
            f"{folder}: holds no safetensors weights, and a pickled file can run any code when it is opened; if you "
            f'trust it, convert it with `python -c "from transformers import AutoModel as M; {call}"` and name the new '
            "folder."
        )
    from transformers import AutoModel

    for file in sorted(folder.glob("model*.safetensors")):
        tensors.check(file, _REMEDY)
    try:
        network, facts = AutoModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: its weights do not fit its {CONFIG} ({reason}); {_REMEDY}.") from error
    if facts["missing_keys"]:
        raise InputError(f"{folder}: lacks the weights {', '.join(sorted(facts['missing_keys'])[:3])}; fetch it again.")
    tensors.finite(network.state_dict(), folder, _REMEDY)
    return Dinov2(network, _MEAN, _DEVIATION).eval().requires_grad_(False)


def _load_inception(folder: Path, config: dict[str, Any]) -> Inception:
    from torchvision.models import inception_v3

    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{folder}: lacks model.safetensors; fetch it again.")
    network = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    # Only features are needed, so the classifying head is left out, and the auxiliary head, which only helps training.
    network.fc = nn.Identity()
    weights = {name: value for name, value in tensors.read(path, _REMEDY).items() if not name.startswith(_HEADS)}
    missing, unexpected = tensors.fit(network, weights, path, _REMEDY, strict=False)
    # Files leave out the number of batches seen, which matters only in training.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        odd = f"lacks the weights {', '.join(missing[:3])}" if missing else f"holds {unexpected[0]}, unknown"
        raise InputError(f"{path}: {odd}; fetch it again.")
    normal = config.get("pretrained_cfg", {})
    mean, deviation = normal.get("mean", _MEAN), normal.get("std", _DEVIATION)
    return Inception(network, mean, deviation).eval().requires_grad_(False)
