"""Seeds that depend only on the purpose of the random numbers."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_for(*parts: str | int) -> int:
    """Return a 63-bit seed from strings and integers; equal parts give equal seeds on every machine."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_seed(seed: int, class_name: str, index: int, attempt: int = 0) -> int:
    """Return the seed of the starting noise of image ``index`` of a class.

    The recipe is no part of it, so recipes are compared on common noise. The batch is none either, so batch size,
    order, sharding and resumption change no image. ``attempt`` counts the redraws of a degenerate image.
    """
    parts: tuple[str | int, ...] = ("image", seed, class_name, index)
    return seed_for(*parts) if attempt == 0 else seed_for(*parts, attempt)


@lru_cache(maxsize=4096)
def order(purpose: str, seed: int, class_name: str, turn: int, count: int) -> tuple[int, ...]:
    """Return the order in which ``count`` things take part in a round; each round has another."""
    return tuple(sorted(range(count), key=lambda item: seed_for(purpose, seed, class_name, turn, item)))


def generator(*parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by ``seed_for``."""
    import torch

    return torch.Generator().manual_seed(seed_for(*parts))
