"""One hash of all that finished work was made with: work is done again when it differs, and not otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.core.code import code_digest
from dreamset.core.files import digest, sha256_file
from dreamset.weights import hub, judging, pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params.model import Model

# The modules that compute the numbers of a table's cell; a fold's adapting, drawing and training are in the last.
CELL: Final = ("dreamset.prepare", "dreamset.evaluate", "dreamset.sweep.crossval")
# And the module that computes the table's claims from the cells.
TABLE: Final = (*CELL, "dreamset.sweep.table")

_LOOK: Final = "models/base/params.yaml"  # how the bundled base's glyphs vary


def fingerprint(settings: Any, root: Path, row: Model, *makers: str) -> str:
    """Hash of ``inputs``, and of the code that the modules ``makers`` run."""
    return digest([inputs(settings, root, row), code_digest(*makers)])


def inputs(settings: Any, root: Path, row: Model) -> str:
    """Hash of settings, of the pretrained weights of a model's row, and of the look of its glyphs.

    Args:
        settings: all else that the work depends on, as JSON has it.
        root: the folder that relative paths of the row start from.
        row: the model's row, which names the weights.
    """
    weights = [
        hub.identity(root, row.generator, "generator", row.variant),
        pretrained.identity(root, row.clip),
        judging.identity(root, row),
    ]
    look = root / _LOOK
    glyphs = sha256_file(look) if row.retrieval == "glyphs" and look.is_file() else None
    return digest([settings, weights, glyphs])
