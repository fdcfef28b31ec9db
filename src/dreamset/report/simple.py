"""The section on what is delivered: every candidate by cross-validation on the shots, the simple ones among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dreamset.data.runs import Run
from dreamset.metrics import best
from dreamset.metrics.gains import Gain
from dreamset.report.figures import interval, number, percent
from dreamset.report.markup import Table, aside, fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from dreamset.report.evidence import Evidence

_HEAD: Final = ("Classifier", "by folds of the shots", "loss there", "measured", "to train, s")


def sentence(evidence: Evidence) -> str | None:
    """Return in plain words which classifier is delivered, and against what; None where nothing was compared."""
    return best.sentence(evidence.delivered)


def candidates(evidence: Evidence) -> Markup | None:
    """Return the section with the candidates, best first; None where ``deliver`` compared none."""
    rows = sorted(evidence.delivered.get("candidates") or (), key=lambda row: row["nll_folds"])
    if not rows:
        return None
    table = Table(
        _HEAD,
        [
            [
                best.words(Run.parse(row["run"])),
                percent(row["accuracy_folds"]),
                number(row["nll_folds"], 3),
                aside(percent(row["accuracy"]), interval(row["low"], row["high"])),
                number(row["seconds"], 1),
            ]
            for row in rows
        ],
        chosen=next(index for index, row in enumerate(rows) if row["delivered"]),
    )
    over = evidence.evaluation.get("over_simple")
    return fill(
        "tables.candidates",
        table=table,
        sentence=sentence(evidence),
        rule=evidence.delivered["chosen_by"],
        shots=evidence.delivered["shots"],
        over=[(_compared(over), Gain.read(over, over["mcnemar_p"]))] if over else [],
    )


def _compared(over: dict[str, str]) -> str:
    of, minus = (best.words(Run.parse(over[name])) for name in ("of", "minus"))
    return f"{of}, over {minus}"
