"""What the record of a table's cell says of single test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dreamset.data.runs import Run


def right(cell: Mapping[str, Any], run: Run) -> NDArray[np.float64]:
    """Return (images,) float64: 1 where the run was right, else 0."""
    packed = np.frombuffer(bytes.fromhex(cell["right"][str(run)]), np.uint8)
    return np.unpackbits(packed, count=cell["images"]).astype(np.float64)


def groups_of(cell: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Return the group numbers (images,) of the test images; None where each image is a group."""
    return None if cell.get("groups") is None else np.array(cell["groups"], np.int64)
