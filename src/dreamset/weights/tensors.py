"""Files of weights in safetensors, checked before anything is computed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.formats import is_pointer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

# The end of a sentence about the weights of a classifier.
AGAIN: Final = "copy its whole folder again, or run `dreamset train` and `dreamset deliver` again"
_SHOWN: Final = 200  # characters of a library's reason


def check(file: Path, remedy: str) -> None:
    """Fail on a file that cannot hold weights; only its header is read.

    Args:
        file: a safetensors file.
        remedy: what to do, as the end of the sentence.

    Raises:
        InputError: the file is missing, is a pointer of Git LFS, or is not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as opened:
            start = opened.read(64)
        if is_pointer(start):
            raise InputError(
                f"{file}: is a pointer of Git LFS instead of the weights; run `git lfs pull` where it comes from, "
                f"or {remedy}."
            )
        with safe_open(file, "np"):
            pass
    except FileNotFoundError as error:
        raise InputError(f"{file}: is missing; {remedy}.") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); {remedy}.") from error
    except SafetensorError as error:
        raise InputError(f"{file}: is no whole file of weights ({_short(error)}); {remedy}.") from error


def read(file: Path, remedy: str) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU.

    Raises:
        InputError: as ``check``, or a tensor holds NaN or infinite values.
    """
    from safetensors.torch import load_file

    check(file, remedy)
    tensors: dict[str, Tensor] = load_file(file)
    finite(tensors, file, remedy)
    return tensors


def finite(tensors: Mapping[str, Tensor], file: Path, remedy: str) -> None:
    """Fail on weights that are no numbers, for every result of them would be none.

    Raises:
        InputError: a tensor holds NaN or infinite values.
    """
    bad = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
    if bad is not None:
        raise InputError(f"{file}: {bad} holds NaN or infinite weights; {remedy}.")


def fill(network: nn.Module, file: Path, remedy: str) -> None:
    """Give a network the weights of a file.

    Raises:
        InputError: as ``read``, or the weights are those of another network.
    """
    fit(network, read(file, remedy), file, remedy)


def fit(
    network: nn.Module, tensors: Mapping[str, Tensor], file: Path, remedy: str, *, strict: bool = True
) -> tuple[list[str], list[str]]:
    """Give a network tensors of a file; return the names that are missing and those that are too many.

    Raises:
        InputError: shapes differ, or, with ``strict``, names.
    """
    try:
        facts = network.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        raise InputError(f"{file}: does not fit what stands beside it ({_short(error)}); {remedy}.") from error
    return facts.missing_keys, facts.unexpected_keys


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:_SHOWN]
