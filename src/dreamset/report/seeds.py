"""The section of the page on several seeds, from ``dreamset table``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from dreamset.data.runs import BOTH, BOTH_STRONG, REAL, REAL_ONLY, SYNTHETIC, ZERO_SHOT, Run
from dreamset.metrics.gains import TOGETHER, over_real
from dreamset.metrics.statistics import ENOUGH_SEEDS, indicative
from dreamset.metrics.verdict import points
from dreamset.report import charts
from dreamset.report.figures import number, p_value, percent, point_interval, spaced
from dreamset.report.markup import Table, aside, fill
from dreamset.report.planes import Plane, ranged, rounded, stairs
from dreamset.report.tables import STYLES, trained_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreamset.metrics.claims import Claim, Sweep
    from dreamset.metrics.gains import Gain
    from dreamset.report.evidence import Evidence

_HEAD: Final = ("Difference", "shots", "points", "interval", "p", "adjusted p", "outcome")


def over_seeds(evidence: Evidence, colours: dict[str, str]) -> Markup | None:
    """Return differences with intervals over seeds and test images, and mean accuracies, by number of shots."""
    sweep = evidence.table.sweep
    if sweep is None:
        return None
    gains = sweep.gains
    ordered = sorted(gains, key=lambda claim: _order(claim, list(colours)))
    ends = [100 * end for claim in ordered for end in (claim.gain.low, claim.gain.high)]
    charted = []
    for shots in sorted({claim.shots for claim in ordered}):
        bars = [_bar(claim, colours, evidence.level) for claim in ordered if claim.shots == shots]
        title = f"{shots} shot{'' if shots == 1 else 's'} per class"
        chart = charts.intervals(bars, "", {"zero": 0.0}, f"Gains at {shots} shots", (min(ends), max(ends)))
        # The page opens those of its own number of shots.
        charted.append((title, shots == evidence.split.shots, chart))
    legend, panels = _by_shots(evidence, sweep, colours)
    others = sorted(sweep.explored, key=lambda claim: claim.shots)
    additions = list(_additions(gains))
    rule = evidence.params.evaluate.smallest_gain, evidence.level
    few = [claim for claim in sweep.explored or sweep.claims if indicative(claim.seeds)]
    return fill(
        "seeds.over_seeds",
        sweep=sweep,
        few=_few(few, sweep) if few else "",
        apart=any(claim.primary for claim in ordered),
        tested=any(claim.p_adjusted is not None for claim in ordered),
        confidence=evidence.confidence,
        units=_units(sweep),
        hours=f"{sweep.cost['seconds'] / 3600:.1f}" if sweep.cost else "",
        cells=number(sweep.cost.get("cells")),
        machines=sweep.cost.get("machines"),
        advice=_advice(evidence, sweep, colours),
        rounds=_rounds(sweep, evidence.level),
        waiting=_waiting(sweep),
        legend=legend,
        panels=panels,
        charted=charted,
        means=_means(sweep),
        others=_claims(others, *rule) if any(claim.p is not None for claim in others) else None,
        weak=[(words, claim.gain) for words, claim in additions if claim.side(evidence.level) != "helps"],
        additions=len(additions),
    )


def _few(few: list[Claim], sweep: Sweep) -> str:
    """Return in words which differences are of so few seeds that they are indicative."""
    if len(few) == len(sweep.explored or sweep.claims):
        return f"With {sweep.spoken_seeds} seeds this is indicative."
    return f"What is of fewer than {ENOUGH_SEEDS} seeds is indicative."


def _units(sweep: Sweep) -> str:
    """Return what the intervals are over, beside seeds."""
    groups = sorted({claim.groups for claim in sweep.claims if claim.groups})
    if not groups:
        return "test images"
    return f"{groups[0]}{f' to {groups[-1]}' if len(groups) > 1 else ''} groups of test images"


def _by_shots(evidence: Evidence, sweep: Sweep, colours: dict[str, str]) -> tuple[Markup, list[tuple[str, Markup]]]:
    """Return a legend, and a chart per classifier of mean accuracies by number of shots, if there are two numbers."""
    means = {shots: sweep.means_at(shots) for shots in sorted({mean.shots for mean in sweep.means})}
    if len(means) < 2:
        return Markup(), []
    real = [(REAL, kind, "real" if kind == REAL_ONLY else "zero") for kind in evidence.real_kinds]
    kinds = real + [
        (arm, kind, colours[arm] + STYLES.get(kind, ""))
        for arm in evidence.params.active
        for kind in (SYNTHETIC, BOTH, BOTH_STRONG)
    ]
    panels = []
    for classifier in evidence.classifiers:
        lines = []
        for arm, kind, style in kinds:
            run = Run(arm, kind, classifier)
            values = {shots: 100 * at[run].accuracy for shots, at in means.items() if run in at}
            lines += [charts.Line(style, values)] if values else []
        if lines:
            title = f"Accuracy of {classifier} by number of shots"
            panels.append((classifier, charts.steps(lines, "%", "shots per class", "accuracy", title)))
    key = [(style, trained_on(REAL, kind)) for _, kind, style in real]
    key += [(colours[recipe], recipe) for recipe in evidence.params.active]
    return charts.legend([*key, *charts.KINDS]), panels


def _advice(evidence: Evidence, sweep: Sweep, colours: dict[str, str]) -> tuple[list[str], Markup] | None:
    """Return what the table recommends at the page's number of shots, and cost against accuracy of every run."""
    found = sweep.recommendations.get(str(evidence.split.shots))
    if found is None:
        return None
    # A second stands for less, so that what needs no training has a place on the axis.
    every = [(max(one["seconds"], 1.0), 100 * one["accuracy"], Run.parse(one["run"])) for one in found["options"]]
    spots = [spot for spot in every if spot[2].arm in (REAL, ZERO_SHOT, *colours)]
    seconds = [spot[0] for spot in spots]
    plane = Plane(
        ranged("seconds", min(seconds) / 1.2, max(seconds) * 1.2, log=True),
        rounded("accuracy", [spot[1] for spot in spots], "%"),
    )
    by_run = {str(run): (x, y) for x, y, run in spots}
    front = plane.line(stairs([by_run[run] for run in found["front"] if run in by_run]), "stairs")
    dots = [
        plane.dot(
            x,
            y,
            f"{spaced(run)}: {y:.1f}%, {x:.0f} s",
            f"{colours.get(run.arm, 'real')}{STYLES.get(run.kind, '')}",
            radius=6 if str(run) == found["best"]["run"] else 3.5,
        )
        for x, y, run in spots
    ]
    title = "Accuracy against seconds of making images and training, with the front"
    return found["sentences"], plane.drawn(title, "plane", front, *dots)


def _rounds(sweep: Sweep, level: float) -> list[tuple[Table, str, int]]:
    """Return the fixed claims of finished cells by round: their table, what was fixed and when, and how many hold."""
    tables = []
    for one in sweep.rounds:
        own = sorted((claim for claim in sweep.claims if claim.family == one.name), key=lambda claim: claim.shots)
        if own:
            hold = sum(claim.holds(one.smallest_gain, level) for claim in own)
            tables.append((_claims(own, one.smallest_gain, level), one.words, hold))
    return tables


def _waiting(sweep: Sweep) -> list[str]:
    """Return what is claimed in the other rounds, and why it is not primary."""
    told: dict[str, str] = dict(sweep.cost.get("waiting", {}))
    finished = {claim.family for claim in sweep.claims}
    for one in sweep.rounds:
        if one.name not in finished:
            told[one.name] = f"{one.words} {told.get(one.name, 'Its cells are not in the table.')}"
    return list(told.values())


def _claims(claims: list[Claim], smallest_gain: float, level: float) -> Table:
    """Return a table of claims with their tests."""
    rows = []
    for claim in claims:
        gain = claim.gain
        words = Markup("{} <em>{}</em>").format(_compared(gain), gain.of.classifier)
        shots = f"{claim.shots}, no loss" if claim.asked == "no_loss" else claim.shots
        row = [words, shots, points(gain.difference), point_interval(gain)]
        rows.append([*row, p_value(claim.p), p_value(claim.p_adjusted), claim.outcome(smallest_gain, level)])
    return Table(_HEAD, rows, columns={"outcome": "text"})


def _additions(every: list[Claim]) -> Iterable[tuple[str, Claim]]:
    """Yield the gains of images beside the real ones over the best run on the real ones alone, in words."""
    claims = {claim.difference: claim for claim in every}
    for shots in sorted({claim.shots for claim in every}):
        gains = [claim.gain for claim in every if claim.shots == shots]
        for recipe, classifier in dict.fromkeys((gain.of.arm, gain.of.classifier) for gain in gains):
            gain = over_real(gains, recipe, classifier)
            if gain:
                yield f"{shots} shots, {_compared(gain)}, {classifier}", claims[shots, gain.of, gain.minus]


def _compared(gain: Gain) -> str:
    """Return the two runs of a difference in words, without the classifier."""
    of, minus = gain.of, gain.minus
    return f"{trained_on(of.arm, of.kind)}, over {trained_on(minus.arm, minus.kind)}"


def _order(claim: Claim, recipes: list[str]) -> tuple[bool, bool, int]:
    """Return a sort key: synthetic images alone first, then gains of adaptation, then gains over the real shots."""
    gain = claim.gain
    return gain.of.kind in TOGETHER, gain.minus.arm == REAL, recipes.index(gain.of.arm)


def _bar(claim: Claim, colours: dict[str, str], level: float) -> charts.Bar:
    gain = claim.gain
    style = f"{colours[gain.of.arm]}{STYLES.get(gain.of.kind, '')}"
    return charts.gain_bar(gain, _compared(gain), style, claim.side(level))


def _means(sweep: Sweep) -> Table:
    """Return means and standard deviations over seeds: a row per run, a column per number of shots."""
    cells: dict[Run, dict[int, str]] = {}
    for mean in sweep.means:
        spread = "" if mean.sd is None else f"± {100 * mean.sd:.1f}"
        cells.setdefault(mean.run, {})[mean.shots] = aside(percent(mean.accuracy), spread)
    shots = sorted({mean.shots for mean in sweep.means})
    rows = [[spaced(run), *(row.get(count, "–") for count in shots)] for run, row in cells.items()]
    return Table(["Run", *(f"{count} shots" for count in shots)], rows)
