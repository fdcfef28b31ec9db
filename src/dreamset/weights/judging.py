"""The network that scores images: a row's judge, or its CLIP where the judge's weights have not been fetched.

Only this module decides. Numbers by different networks cannot be compared, so every record names the network, and the
sentence of ``stand_in`` goes wherever a person reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.weights import hub, pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params.model import Model


def find(root: Path, row: Model) -> Path | pretrained.Pretrained:
    """Return the folder of a row's judge, or its CLIP where the judge is a repository that is not on this machine.

    Raises:
        InputError: neither is on this machine.
    """
    if hub.repository(row.judge) is None:
        return root / row.judge
    try:
        return hub.locate(root, row.judge, "judge")
    except InputError as missing:
        try:
            return pretrained.find(root, row.clip)
        except InputError:
            raise missing from None


def stand_in(root: Path, row: Model) -> str | None:
    """Return a sentence if CLIP stands in for the judge of a row; None if the judge is here."""
    found = find(root, row)
    if not isinstance(found, pretrained.Pretrained):
        return None
    return (
        f"scored by CLIP's image features ({row.clip}), for the judge {row.judge} is not on this machine; FID, KID and "
        "near-duplicates compare with no other run's. `dreamset fetch` where there is a network brings the judge; then "
        "`dvc repro -fs expect evaluate` and `dvc repro` score by it"
    )


def identity(root: Path, row: Model) -> dict[str, Any]:
    """Return name, commit and sha256 of the network that scores, and of CLIP also the judge it ``stands_in_for``."""
    if isinstance(find(root, row), pretrained.Pretrained):
        return pretrained.identity(root, row.clip) | {"stands_in_for": row.judge}
    return hub.identity(root, row.judge, "judge")
