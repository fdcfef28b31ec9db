"""Where tensors live, and whether they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick() -> torch.device:
    """The first CUDA device, else Apple's, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def out_of_memory(error: Exception) -> bool:
    """Whether an error is a lack of memory, on whatever device: the CPU's allocator has no class of its own for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
