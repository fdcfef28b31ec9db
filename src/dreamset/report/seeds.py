"""Section of the page on what several seeds say together, out of ``dreamset table``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamset.report import charts
from dreamset.report.charts import Bar
from dreamset.report.evidence import ENOUGH_SEEDS, REAL, REAL_ARMS
from dreamset.report.gallery import section
from dreamset.report.markup import Html, join, percent, point_interval, points, row, table, tag

if TYPE_CHECKING:
    from dreamset.report.evidence import Claim, Evidence


def over_seeds(evidence: Evidence, colours: dict[str, str]) -> Html | None:
    """Differences with intervals over seeds and test images, and the mean accuracies, by number of shots."""
    sweep = evidence.sweep
    if sweep is None:
        return None
    ordered = sorted(sweep.claims, key=lambda claim: _order(claim, list(colours)))
    ends = [100 * end for claim in sweep.claims for end in (claim.gain.low, claim.gain.high)]
    charted = [
        tag(
            "article",
            tag("h3", f"{shots} shot{'' if shots == 1 else 's'} per class"),
            charts.intervals(
                [_bar(claim, colours) for claim in ordered if claim.shots == shots],
                "",
                {"zero": 0.0},
                f"Gains at {shots} shots",
                (min(ends), max(ends)),
            ),
        )
        for shots in sorted({claim.shots for claim in sweep.claims})
    ]
    few = "" if sweep.seeds >= ENOUGH_SEEDS else f" With {sweep.seeds} seeds this is indicative."
    note = (
        f"Every seed redraws shots, adapters, images and initial weights. Mean differences over {sweep.seeds} seeds in "
        f"percentage points, paired by seed and test image, with {evidence.confidence} intervals that resample both; "
        f"a pale row’s interval holds zero.{few}"
    )
    return section("seeds", "Over several seeds", tag("p", note), charted, _summary(evidence))


def compared(of: str, minus: str) -> str:
    """A difference between two runs in words, without the classifier."""
    (arm, kind, _), (other, against, _) = of.split("/"), minus.split("/")
    if other == REAL:
        return f"real + {arm}, over {'real alone' if against == REAL else REAL_ARMS[against]}"
    return f"real + {arm}, over real + {other}" if kind == "both" else f"{arm} alone, over {other} alone"


def _order(claim: Claim, recipes: list[str]) -> tuple[bool, bool, int]:
    """Synthetic images alone first, then what adaptation adds, then the gain over the real shots."""
    gain = claim.gain
    return "/both/" in gain.of, gain.minus.startswith(f"{REAL}/"), recipes.index(gain.of.split("/")[0])


def _bar(claim: Claim, colours: dict[str, str]) -> Bar:
    gain = claim.gain
    arm, kind, classifier = gain.of.split("/")
    style = f"{colours[arm]} {gain.outcome}{' hollow' if kind == 'synthetic' else ''}"
    value = join(tag("b", points(gain.difference)), " ", tag("small", point_interval(gain.low, gain.high)))
    label = join(tag("span", compared(gain.of, gain.minus)), " ", tag("em", classifier))
    return Bar(label, 100 * gain.low, 100 * gain.difference, 100 * gain.high, value, style)


def _summary(evidence: Evidence) -> Html | None:
    """Mean and standard deviation over seeds: a row per run, a column per number of shots."""
    assert evidence.sweep is not None
    cells: dict[tuple[str, str, str], dict[str, Html]] = {}
    for line in evidence.sweep.summary:
        spread = f" ± {100 * float(line['sd']):.1f}" if line.get("sd") else ""
        key = (line["recipe"], line["train_on"], line["classifier"])
        cells.setdefault(key, {})[line["shots"]] = join(percent(float(line["accuracy"])), tag("small", spread))
    if not cells:
        return None
    shots = sorted({line["shots"] for line in evidence.sweep.summary}, key=int)
    head = ["Run", *(tag("th", f"{count} shots", scope="col", class_="number") for count in shots)]
    rows = [
        row(" · ".join(key), *(tag("td", found.get(count, "–"), class_="number") for count in shots))
        for key, found in cells.items()
    ]
    return tag("details", tag("summary", "Mean accuracies over the seeds"), table(head, rows, "Mean ± sd over seeds."))
