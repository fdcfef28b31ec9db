"""What finished work was made with, as one hash: work is done again when it differs, and not otherwise."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import classifiers
from dreamset.core.files import digest, sha256_file
from dreamset.weights import hub

if TYPE_CHECKING:
    from dreamset.params.model import Model

_LOOK: Final = "models/base/params.yaml"  # how the bundled base's glyphs are varied

# Folders and files of the package that change no number of any stage.
_ASIDE: Final = frozenset(
    {
        "__main__.py",
        "audit.py",
        # The bundled base's own making; glyphs are retrieved with the rest of it.
        "base/__main__.py",
        "base/captions.py",
        "base/card.py",
        "base/clip.py",
        "base/diffusion.py",
        "base/judging.py",
        "base/measures.py",
        "base/score.py",
        "base/tokenizer.py",
        "base/training.py",
        "cards.py",
        "claims.py",
        "cli.py",
        "deliver.py",
        "expect.py",
        "export.py",
        "licences.py",
        # Made of the records, which they do not change.
        "metrics/statistics.py",
        "plan.py",
        "predict.py",
        "progress.py",
        "report",
        "review",
        # Made of a study's trials, which they do not change.
        "study/analysis.py",
        "study/artifacts.py",
        "study/importance.py",
        "sweep.py",
        "table.py",
        "track",
        "verbs.py",
        "verdict.py",
    }
)


def fingerprint(settings: Any, root: Path, row: Model, aside: frozenset[str] = frozenset()) -> str:
    """Hash of ``inputs`` and of ``code``."""
    return digest([inputs(settings, root, row), code(aside)])


def inputs(settings: Any, root: Path, row: Model) -> str:
    """Hash of settings, of the pretrained weights of a model's row, and of the look of its glyphs.

    Args:
        settings: whatever else the work depends on, as JSON has it.
        root: what relative paths of the row start from.
        row: whose weights are used.
    """
    weights = [
        hub.identity(root, row.generator, "generator", row.variant),
        classifiers.identity(root, row.clip),
        hub.identity(root, row.judge, "judge"),
    ]
    look = root / _LOOK
    glyphs = sha256_file(look) if row.retrieval == "glyphs" and look.is_file() else None
    return digest([settings, weights, glyphs])


def code(aside: frozenset[str] = frozenset()) -> str:
    """Hash of the source files that make numbers.

    Args:
        aside: further folders and files of the package that do not matter to this work.
    """
    return digest(_code(_ASIDE | aside))


@functools.cache
def _code(aside: frozenset[str]) -> dict[str, str]:
    package = Path(__file__).parent
    files = [path.relative_to(package) for path in sorted(package.rglob("*.py"))]
    used = [path for path in files if path.parts[0] not in aside and path.as_posix() not in aside]
    return {path.as_posix(): sha256_file(package / path) for path in used}
