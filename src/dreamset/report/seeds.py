"""Section of the page on what several seeds say together, out of ``dreamset table``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from dreamset.data.runs import REAL
from dreamset.metrics.statistics import indicative
from dreamset.metrics.verdict import TOGETHER, over_real, points
from dreamset.report import charts
from dreamset.report.figures import number, p_value, percent, point_interval
from dreamset.report.markup import Table, aside, fill
from dreamset.report.tables import STYLES, trained_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreamset.metrics.claims import Claim, Sweep
    from dreamset.metrics.verdict import Gain
    from dreamset.report.evidence import Evidence

_HEAD: Final = ("Difference", "shots", "points", "interval", "p", "Holm p", "outcome")


def over_seeds(evidence: Evidence, colours: dict[str, str]) -> Markup | None:
    """Differences with intervals over seeds and test images, and the mean accuracies, by number of shots."""
    sweep = evidence.table.sweep
    if sweep is None:
        return None
    ordered = sorted(sweep.claims, key=lambda claim: _order(claim, list(colours)))
    ends = [100 * end for claim in sweep.claims for end in (claim.gain.low, claim.gain.high)]
    charted = []
    for shots in sorted({claim.shots for claim in sweep.claims}):
        bars = [_bar(claim.gain, colours) for claim in ordered if claim.shots == shots]
        title = f"{shots} shot{'' if shots == 1 else 's'} per class"
        chart = charts.intervals(bars, "", {"zero": 0.0}, f"Gains at {shots} shots", (min(ends), max(ends)))
        # Those of the page's own number of shots are in sight.
        charted.append((title, shots == evidence.split.shots, chart))
    legend, panels = _by_shots(evidence, sweep, colours)
    others = sorted((claim for claim in sweep.claims if not claim.primary), key=lambda claim: claim.shots)
    additions = list(_additions(sweep))
    return fill(
        "seeds.over_seeds",
        sweep=sweep,
        few=indicative(sweep.seeds),
        confidence=evidence.confidence,
        hours=f"{sweep.cost['seconds'] / 3600:.1f}" if sweep.cost else "",
        cells=number(sweep.cost.get("cells")),
        machines=sweep.cost.get("machines"),
        primary=_claims(_primary(evidence, sweep)),
        legend=legend,
        panels=panels,
        charted=charted,
        means=_means(sweep),
        others=_claims(others) if any(claim.p is not None for claim in sweep.claims) else None,
        weak=[(words, gain) for words, gain in additions if gain.outcome != "helps"],
        additions=len(additions),
    )


def _by_shots(evidence: Evidence, sweep: Sweep, colours: dict[str, str]) -> tuple[Markup, list[tuple[str, Markup]]]:
    """A legend, and a chart of mean accuracies by number of shots for each classifier; none of one number alone."""
    shots = sorted({int(line["shots"]) for line in sweep.summary})
    if len(shots) < 2:
        return Markup(), []
    real = [(REAL, kind, "real" if kind == "real" else "zero") for kind in evidence.real_kinds]
    kinds = real + [
        (arm, kind, colours[arm] + STYLES.get(kind, ""))
        for arm in evidence.params.active
        for kind in ("synthetic", "both", "both_strong")
    ]
    panels = []
    for classifier in evidence.classifiers:
        means = {k: sweep.means(k, classifier) for k in shots}
        lines = []
        for arm, kind, style in kinds:
            known = {k: 100 * row[arm, kind][0] for k, row in means.items() if (arm, kind) in row}
            lines += [charts.Line(style, known)] if known else []
        if lines:
            title = f"Accuracy of {classifier} by number of shots"
            panels.append((classifier, charts.steps(lines, "%", "shots per class", "accuracy", title)))
    key = [(style, trained_on(REAL, kind)) for _, kind, style in real]
    key += [(colours[recipe], recipe) for recipe in evidence.params.active]
    return charts.legend([*key, *charts.KINDS]), panels


def _primary(evidence: Evidence, sweep: Sweep) -> list[Claim]:
    """The claims that were fixed beforehand, where they are of the page's choice: the table may be of another one."""
    params = evidence.params
    run = params.primary_recipe, params.primary_classifier
    return [c for c in sweep.claims if c.primary and (c.gain.of.split("/")[0], c.gain.of.split("/")[2]) == run]


def _claims(claims: list[Claim]) -> Table:
    """Claims with their tests."""
    rows = []
    for claim in claims:
        gain = claim.gain
        words = Markup("{} <em>{}</em>").format(compared(gain), gain.of.split("/")[2])
        row = [words, claim.shots, points(gain.difference), point_interval(gain)]
        rows.append([*row, p_value(claim.p), p_value(claim.p_holm), gain.outcome])
    return Table(_HEAD, rows, columns={"outcome": "text"})


def _additions(sweep: Sweep) -> Iterable[tuple[str, Gain]]:
    """What images beside the real ones add over the seeds, against the best run on the real ones alone."""
    for shots in sorted({claim.shots for claim in sweep.claims}):
        gains = [claim.gain for claim in sweep.claims if claim.shots == shots]
        wanted = dict.fromkeys((gain.of.split("/")[0], gain.of.split("/")[2]) for gain in gains)
        for recipe, classifier in wanted:
            gain = over_real(gains, recipe, classifier)
            if gain:
                yield f"{shots} shots, {compared(gain)}, {classifier}", gain


def compared(gain: Gain) -> str:
    """A difference between two runs in words, without the classifier."""
    (arm, kind, _), (other, theirs, _) = gain.of.split("/"), gain.minus.split("/")
    return f"{trained_on(arm, kind)}, over {trained_on(other, theirs)}"


def _order(claim: Claim, recipes: list[str]) -> tuple[bool, bool, int]:
    """Synthetic images alone first, then what adaptation adds, then the gain over the real shots."""
    gain = claim.gain
    return gain.of.split("/")[1] in TOGETHER, gain.minus.startswith(f"{REAL}/"), recipes.index(gain.of.split("/")[0])


def _bar(gain: Gain, colours: dict[str, str]) -> charts.Bar:
    arm, kind, _ = gain.of.split("/")
    return charts.gain_bar(gain, compared(gain), f"{colours[arm]}{STYLES.get(kind, '')}")


def _means(sweep: Sweep) -> Table:
    """Mean and standard deviation over seeds: a row per run, a column per number of shots."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in sweep.summary:
        spread = f"± {100 * float(line['sd']):.1f}" if line.get("sd") else ""
        key = (line["recipe"], line["train_on"], line["classifier"])
        cells.setdefault(key, {})[line["shots"]] = aside(percent(float(line["accuracy"])), spread)
    shots = sorted({line["shots"] for line in sweep.summary}, key=int)
    rows = [[" · ".join(key), *(row.get(count, "–") for count in shots)] for key, row in cells.items()]
    return Table(["Run", *(f"{count} shots" for count in shots)], rows)
