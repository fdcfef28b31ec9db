"""``dreamset report``: ``results/contact_sheet.png`` and the page ``results/report.html``, out of the other results.

It reads what the stages measured, the shots and the synthetic images; the test manifest stays closed.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from dreamset.files import atomic_write
from dreamset.report import evidence as results
from dreamset.report.page import page
from dreamset.report.pictures import blocks, contact_sheet
from dreamset.report.verdict import verdict
from dreamset.splits import spoken

if TYPE_CHECKING:
    from dreamset.params import Params
    from dreamset.workspace import Workspace


def run(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Write the page and the contact sheet of the active recipes.

    Raises:
        InputError: a result or a picture is missing or not whole.
    """
    evidence = results.load(params, workspace)
    shown = evidence.params.report.show_real
    sources = [block for block in blocks(evidence) if shown or block.name != results.REAL]
    told = verdict(evidence)
    document = page(evidence, told, sources).encode()
    sheet = io.BytesIO()
    contact_sheet(sources, [spoken(name) for name in evidence.split.classes]).save(sheet, "PNG", optimize=True)
    atomic_write(workspace.results / "contact_sheet.png", sheet.getvalue())
    atomic_write(workspace.results / "report.html", document)
    return {"recipes": len(params.active), "bytes": len(document), "verdict": told.title}
