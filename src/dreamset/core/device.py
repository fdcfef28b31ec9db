"""The device that computes: its choice, its name, and its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Options of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


def keep_memory() -> None:
    """Let the process reuse the memory of freed tensors, up to 1 GiB; only glibc can.

    Otherwise the C library returns each large tensor to the system at once, and every operation pays for mapping and
    clearing new pages.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Set both: once one is set, glibc adapts neither, and the trim threshold alone is slower than its defaults.
        # 32 MiB is the most that glibc accepts for the second.
        mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        mallopt(_TRIM_THRESHOLD, 1024 * _MIB)


def threads() -> tuple[int, int]:
    """Return the numbers of threads that torch and BLAS compute with here."""
    import threadpoolctl
    import torch

    count = torch.get_num_threads()
    return count, max(
        (pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"), default=count
    )


def use_threads(count: int, blas: int | None = None) -> None:
    """Let everything that computes on a CPU here use ``count`` threads: torch and BLAS, loaded already or later."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    if "numpy" in sys.modules:
        import threadpoolctl

        threadpoolctl.threadpool_limits(blas or count, user_api="blas")


def gpus() -> list[str]:
    """Return the CUDA devices that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` gives them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if len(named) >= count > 0 and named[0] else [str(index) for index in range(count)]


def pick() -> torch.device:
    """Return the first CUDA device, else Apple's, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means a lack of memory, on any device; the CPU's allocator has no error class for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def name(device: torch.device | None = None) -> str:
    """Return the name of a GPU, or of the CPU with its number of threads; None stands for the device of ``pick``."""
    import torch

    device = device or pick()
    return _model(device) if device.type == "cuda" else f"{_model(device)}, {torch.get_num_threads()} threads"


def machine() -> dict[str, Any]:
    """Return the processor's name and the number of threads; beside the code, they decide the last bits of a result."""
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
