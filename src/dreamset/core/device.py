"""Where tensors live, whether they fit, and what it is called."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Of glibc's malloc.h; the second is as large as glibc takes it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


def keep_memory() -> None:
    """Let the process keep the memory of tensors that are gone, up to 1 GiB, for those to come; glibc alone.

    Otherwise the C library gives a large tensor back to the system as soon as it is gone, and every operation pays
    for pages that are mapped and cleared anew.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both: glibc adapts neither any more once one is set, and trimming alone is slower than its own ways.
        mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        mallopt(_TRIM_THRESHOLD, 1024 * _MIB)


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


def name(device: torch.device | None = None) -> str:
    """What computes: the GPU, or the CPU with its number of threads; None: what ``pick`` picks."""
    import torch

    device = device or pick()
    return _model(device) if device.type == "cuda" else f"{_model(device)}, {torch.get_num_threads()} threads"


def machine() -> dict[str, Any]:
    """What decides the last bits of a result beside its code: the processor's name, and its number of threads."""
    import torch

    return {"device": _model(pick()), "threads": torch.get_num_threads()}


def _model(device: torch.device) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else _cpu()


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
