"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_for(*parts: str | int) -> int:
    """A 63-bit seed from a tuple of strings and integers: the same for equal tuples on every machine."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_seed(seed: int, class_name: str, index: int, attempt: int = 0) -> int:
    """Seed of the starting noise of image ``index`` of a class.

    The recipe is not in it, so recipes are compared on common noise; nor is the batch, so size, order,
    sharding and resumption do not change it. ``attempt`` counts the redraws of a degenerate image.
    """
    parts: tuple[str | int, ...] = ("image", seed, class_name, index)
    return seed_for(*parts) if attempt == 0 else seed_for(*parts, attempt)


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded by ``seed_for``."""
    import torch

    return torch.Generator().manual_seed(seed_for(*parts))
