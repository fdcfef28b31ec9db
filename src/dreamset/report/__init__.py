"""``dreamset report``: the page ``results/report.html`` and the contact sheet ``results/contact_sheet.png``.

With more than ``MOST_CLASSES`` classes, further contact sheets stand in ``results/pages/``. The stage reads the results
of the other stages, the shots and the synthetic images, and never the test manifest.
"""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, Any

from dreamset.core.files import atomic_write
from dreamset.core.sheet import contact_sheet
from dreamset.data import primary
from dreamset.data.splits import spoken
from dreamset.report import evidence as results
from dreamset.report.headline import headline
from dreamset.report.page import page
from dreamset.report.pictures import PAGES, blocks, further, sources_of

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.sheet import Block
    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Write the page and the contact sheet of the active recipes.

    Raises:
        InputError: a result or a picture is missing or not whole.
    """
    evidence = results.load(primary.settle(params, workspace), workspace)
    sources = sources_of(evidence)
    first = blocks(evidence, sources)
    outcome = headline(evidence)
    # UTF-8 cannot encode the names of damaged files.
    document = page(evidence, outcome, first).encode("utf-8", "replace")
    names = [spoken(name) for name in evidence.split.classes]
    _write_sheet(workspace.results / "contact_sheet.png", first, names)
    shutil.rmtree(workspace.results / PAGES, ignore_errors=True)
    # One sheet at a time, so that thousands of classes need no more memory than the first ones.
    for start, name in further(len(names)):
        _write_sheet(workspace.results / name, blocks(evidence, sources, start), names[start:])
    atomic_write(workspace.results / "report.html", document)
    warnings = [warning] if (warning := evidence.table.warning) else []
    return {"recipes": len(params.active), "bytes": len(document), "verdict": outcome.title, "warnings": warnings}


def _write_sheet(path: Path, sources: list[Block], names: list[str]) -> None:
    sheet = io.BytesIO()
    contact_sheet(sources, names).save(sheet, "PNG", optimize=True)
    atomic_write(path, sheet.getvalue())
