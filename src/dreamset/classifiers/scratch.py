"""How a small network that was trained from scratch is kept: its weights, and the facts that ``load`` needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

WEIGHTS: Final = "model.safetensors"
TRANSFORM: Final = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": "bicubic"}  # beside the size of its input


def save(classifier: nn.Module, folder: Path) -> dict[str, Any]:
    """Write the weights as safetensors, and return the facts that ``load`` needs beside them."""
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    transform = {"size": classifier.size, **TRANSFORM}
    facts = {"weights": WEIGHTS, "width": classifier.width, "transform": transform}
    return facts | {"base": None, "base_commit": None, "base_sha256": None}


def load(network: Callable[[int, int, int, float], nn.Module], folder: Path, record: dict[str, Any]) -> nn.Module:
    """Return the network that ``save`` wrote; ``network`` makes one of so many classes, channels and pixels."""
    from dreamset.weights import tensors

    classifier = network(len(record["classes"]), record["width"], record["transform"]["size"], 0.0)
    tensors.fill(classifier, folder / WEIGHTS, tensors.AGAIN)
    return classifier
