"""Section of the page on what several seeds say together, out of ``dreamset table``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.metrics.statistics import indicative
from dreamset.metrics.verdict import TOGETHER, over_real, points
from dreamset.report import charts
from dreamset.report.charts import Bar
from dreamset.report.evidence import REAL
from dreamset.report.gallery import section
from dreamset.report.markup import Html, join, number, p_value, percent, point_interval, row, table, tag
from dreamset.report.tables import STYLES, trained_on

if TYPE_CHECKING:
    from dreamset.metrics.claims import Claim
    from dreamset.report.evidence import Evidence

_HEAD: Final = ("Difference", "shots", "points", "interval", "p", "Holm p", "outcome")


def over_seeds(evidence: Evidence, colours: dict[str, str]) -> Html | None:
    """Differences with intervals over seeds and test images, and the mean accuracies, by number of shots."""
    sweep = evidence.sweep
    if sweep is None:
        return None
    ordered = sorted(sweep.claims, key=lambda claim: _order(claim, list(colours)))
    ends = [100 * end for claim in sweep.claims for end in (claim.gain.low, claim.gain.high)]
    charted = []
    for shots in sorted({claim.shots for claim in sweep.claims}):
        bars = [_bar(claim, colours) for claim in ordered if claim.shots == shots]
        title = f"{shots} shot{'' if shots == 1 else 's'} per class"
        chart = charts.intervals(bars, "", {"zero": 0.0}, f"Gains at {shots} shots", (min(ends), max(ends)))
        # Those of the page's own number of shots are in sight.
        here = "open" if shots == evidence.split.shots else None
        charted.append(tag("details", tag("summary", title), chart, open=here))
    few = f" With {sweep.seeds} seeds this is indicative." if indicative(sweep.seeds) else ""
    work = _work(sweep.cost)
    note = (
        f"Every seed redraws shots, adapters, images and initial weights. Mean differences over {sweep.seeds} seeds in "
        f"percentage points, paired by seed and test image, with {evidence.confidence} BCa intervals that resample "
        f"both; a pale row’s interval holds zero.{few}{work}"
    )
    return section(
        "seeds",
        "Over several seeds",
        tag("p", note),
        _primary(evidence),
        _by_shots(evidence, colours),
        charted,
        _summary(evidence),
        _numbers(ordered),
        _not_helping(evidence),
    )


def _by_shots(evidence: Evidence, colours: dict[str, str]) -> Html | None:
    """Mean accuracies by number of shots, a panel per classifier; None of one number alone."""
    assert evidence.sweep is not None
    shots = sorted({int(line["shots"]) for line in evidence.sweep.summary})
    if len(shots) < 2:
        return None
    real = [(REAL, kind, "real" if kind == "real" else "zero") for kind in evidence.real_kinds]
    kinds = real + [
        (arm, kind, colours[arm] + STYLES.get(kind, ""))
        for arm in evidence.params.active
        for kind in ("synthetic", "both", "both_strong")
    ]
    panels = []
    for classifier in evidence.classifiers:
        means = {k: evidence.sweep.means(k, classifier) for k in shots}
        lines = []
        for arm, kind, style in kinds:
            known = {k: 100 * found[arm, kind][0] for k, found in means.items() if (arm, kind) in found}
            lines += [charts.Line(style, known)] if known else []
        if lines:
            title = f"Accuracy of {classifier} by number of shots"
            chart = charts.steps(lines, "%", "shots per class", "accuracy", title)
            panels.append(tag("article", tag("h3", classifier), chart))
    key = [(style, trained_on(REAL, kind)) for _, kind, style in real]
    key += [(colours[name], name) for name in evidence.params.active]
    key += [("hollow", "synthetic images alone"), ("full", "with the real shots")]
    key += [("strong", "with the real shots, all strongly augmented")]
    return tag("div", charts.legend(key), tag("div", panels, class_="panels"))


def _work(cost: dict[str, Any]) -> str:
    """What the table cost, where that was recorded."""
    if not cost:
        return ""
    return f" {number(cost['cells'])} cells took {cost['seconds'] / 3600:.1f} hours, one after another."


def _primary(evidence: Evidence) -> Html | None:
    """The claims that were fixed beforehand, with their tests."""
    assert evidence.sweep is not None
    params = evidence.params
    run = params.primary_recipe, params.primary_classifier
    # The table may have been written for another choice than the page's.
    found = [
        c for c in evidence.sweep.claims if c.primary and (c.gain.of.split("/")[0], c.gain.of.split("/")[2]) == run
    ]
    if not found:
        return None
    caption = (
        "Fixed before they were measured, for the primary recipe and classifier. p: sign-flip test over seeds; "
        "Holm: adjusted within these claims. Everything else in this section is exploratory, and a family of its own."
    )
    return table(_HEAD, [_line(claim) for claim in found], caption)


def _numbers(claims: list[Claim]) -> Html | None:
    """Every claim with its tests, folded away."""
    if not any(claim.p is not None for claim in claims):
        return None
    shown = sorted((claim for claim in claims if not claim.primary), key=lambda claim: claim.shots)
    caption = "Exploratory: Holm over all of these together."
    return tag("details", tag("summary", "Every other difference"), table(_HEAD, [_line(c) for c in shown], caption))


def _line(claim: Claim) -> Html:
    gain = claim.gain
    numbers = [points(gain.difference), point_interval(gain.low, gain.high), p_value(claim.p), p_value(claim.p_holm)]
    told = join(compared(gain.of, gain.minus), " ", tag("em", gain.of.rpartition("/")[2]))
    cells = [tag("td", value, class_="number") for value in numbers]
    return row(tag("th", told, scope="row"), tag("td", claim.shots, class_="number"), *cells, gain.outcome)


def _not_helping(evidence: Evidence) -> Html | None:
    """Where images beside the real ones do not help over the seeds, against the best run on the real ones alone."""
    assert evidence.sweep is not None
    cells = []
    for shots in sorted({claim.shots for claim in evidence.sweep.claims}):
        gains = [claim.gain for claim in evidence.sweep.claims if claim.shots == shots]
        wanted = dict.fromkeys((gain.of.split("/")[0], gain.of.split("/")[2]) for gain in gains)
        found = [over_real(gains, recipe, classifier) for recipe, classifier in wanted]
        cells += [(shots, gain) for gain in found if gain]
    weak = [(shots, gain) for shots, gain in cells if gain.outcome != "helps"]
    if not cells:
        return None
    lines = [
        tag(
            "li",
            f"{shots} shots, {compared(gain.of, gain.minus)}, {gain.of.rpartition('/')[2]}: ",
            tag("b", points(gain.difference)),
            f" ({point_interval(gain.low, gain.high)})",
            class_=gain.outcome,
        )
        for shots, gain in weak
    ]
    title = f"Where it does not help over the real images: {len(weak)} of {len(cells)} cells"
    return tag("details", tag("summary", title), tag("ul", lines, class_="plain"))


def compared(of: str, minus: str) -> str:
    """A difference between two runs in words, without the classifier."""
    (arm, kind, _), (other, theirs, _) = of.split("/"), minus.split("/")
    return f"{trained_on(arm, kind)}, over {trained_on(other, theirs)}"


def _order(claim: Claim, recipes: list[str]) -> tuple[bool, bool, int]:
    """Synthetic images alone first, then what adaptation adds, then the gain over the real shots."""
    gain = claim.gain
    return gain.of.split("/")[1] in TOGETHER, gain.minus.startswith(f"{REAL}/"), recipes.index(gain.of.split("/")[0])


def _bar(claim: Claim, colours: dict[str, str]) -> Bar:
    gain = claim.gain
    arm, kind, classifier = gain.of.split("/")
    style = f"{colours[arm]} {gain.outcome}{STYLES.get(kind, '')}"
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
