"""The HTML page: one file without network, scripts or fonts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.data.runs import BOTH, BOTH_STRONG, REAL, REAL_ONLY, REAL_STRONG, SYNTHETIC, Kind, Run, beside
from dreamset.metrics.gains import TOGETHER
from dreamset.metrics.verdict import points, scored_images
from dreamset.report import charts, gallery, quality, simple, tables
from dreamset.report.charts import Bar
from dreamset.report.figures import interval, percent
from dreamset.report.glossary import defined
from dreamset.report.headline import Headline, seeds
from dreamset.report.markup import Table, fill
from dreamset.report.seeds import over_seeds
from dreamset.report.studies import studies

if TYPE_CHECKING:
    from markupsafe import Markup

    from dreamset.core.sheet import Block
    from dreamset.metrics.gains import Gain
    from dreamset.report.evidence import Evidence

_COLOURS: Final = 6
_LEVELS: Final = {str(REAL_ONLY): "real", str(REAL_STRONG): "zero"}  # a style by the run's name in `scales`
_ADDED: Final = {BOTH_STRONG: "added to the real shots, all strongly augmented", BOTH: "added to the real shots"}
_MOST_HEAT: Final = 30  # classes of a confusion matrix on the page, at most


def page(evidence: Evidence, verdict: Headline, blocks: list[Block]) -> str:
    """Return the whole document."""
    colours = {name: f"c{index % _COLOURS}" for index, name in enumerate(evidence.params.active)}
    sections = [
        _warned(evidence),
        gallery.by_class(evidence, blocks),
        gallery.mistakes(evidence, verdict),
        _gains(evidence, verdict, colours),
        simple.candidates(evidence),
        over_seeds(evidence, colours),
        _accuracy_chart(evidence, colours),
    ]
    details = [
        _expected(evidence),
        tables.accuracies(evidence),
        _scales(evidence, colours),
        _distilled(evidence),
        quality.qualities(evidence),
        quality.filtered(evidence),
        quality.by_attribute(evidence),
        quality.correlations(evidence),
        gallery.adaptation(evidence, colours),
        studies(evidence, colours),
        gallery.duplicates(evidence),
        _confusion(evidence, verdict),
        tables.costs(evidence),
        tables.facts(evidence),
        _again(evidence),
    ]
    document = fill(
        "page.page",
        source=tables.short_source(evidence).rpartition(":")[2],
        classes=len(evidence.split.classes),
        shots=evidence.split.shots_in_words,
        seed=evidence.params.seed,
        verdict=verdict,
        opening=gallery.opening(evidence, blocks, verdict.recipe),
        cards=_cards(evidence, verdict, colours),
        sections=[section for section in sections if section],
        details=[section for section in details if section],
        version=__version__,
    )
    return defined(document)


def _warned(evidence: Evidence) -> Markup | None:
    """Return the section with what ``prepare`` warned of; None where it warned of nothing."""
    warnings = evidence.prepared.get("warnings") or []
    if warnings and not evidence.params.report.show_real:
        # They name files of shots.
        warnings = [f"There are {len(warnings)}; `results/prepare.json` has them."]
    return fill("page.warned", warnings=warnings) if warnings else None


def _expected(evidence: Evidence) -> Markup | None:
    """Return the section on what ``expect`` said before anything was drawn; None without a record of it."""
    sentences = evidence.expected.get("sentences")
    return fill("page.expected", sentences=sentences) if sentences else None


def _cards(evidence: Evidence, verdict: Headline, colours: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Return the accuracies of the primary classifier: on the real images alone, and with each active recipe's images.

    Each is a style, the training images, the accuracy, and small print.
    """
    classifier, sweep = verdict.classifier, evidence.table.sweep
    means = sweep.means_at(evidence.split.shots) if sweep and verdict.seeds else {}

    def accuracy(run: Run) -> float | None:
        if verdict.seeds:
            return means[run].accuracy if run in means else None
        return evidence.scores[run].accuracy if run in evidence.scores else None

    def small(run: Run) -> str:
        mean, score = means.get(run), evidence.scores.get(run)
        if verdict.seeds and mean is None:
            # One seed beside means over seeds would be taken for one of them.
            return (
                f"not in the table over seeds; {percent(score.accuracy)} with seed {evidence.params.seed}"
                if score
                else ""
            )
        if verdict.seeds:
            return f"± {100 * mean.sd:.1f} over {mean.seeds} seeds" if mean and mean.sd is not None else ""
        return interval(score.low, score.high) if score else ""

    alone = [Run(REAL, kind, classifier) for kind in evidence.real_kinds]
    best = max(alone, key=lambda run: accuracy(run) or 0.0, default=None)
    cards = [] if best is None else [("real", "real images alone", percent(accuracy(best)), small(best))]
    for recipe in evidence.params.active:
        kinds = [kind for kind in TOGETHER if Run(recipe, kind, classifier) in evidence.scores]
        if kinds:
            run = Run(recipe, kinds[0], classifier)
            apart = accuracy(Run(recipe, SYNTHETIC, classifier))
            less = [small(run), "" if apart is None else f"{percent(apart)} on synthetic alone"]
            style = colours[recipe] + (" primary" if recipe == verdict.recipe else "")
            cards.append((style, f"real + {recipe}", percent(accuracy(run)), "\n".join(filter(None, less))))
    return cards


def _gains(evidence: Evidence, verdict: Headline, colours: dict[str, str]) -> Markup | None:
    """Return a chart per recipe of its gains over the best run on real shots alone, and over other recipes."""
    groups = []
    for recipe in evidence.params.active:
        gains: list[tuple[Gain, str]] = []
        for classifier in evidence.classifiers:
            for kind in evidence.together(classifier):
                over = evidence.over_real(recipe, classifier, kind)
                if over:
                    gains.append((over, f"{_ADDED[kind]}, over {tables.trained_on(REAL, over.minus.kind)}"))
        for other in evidence.others(recipe):
            for kind, question in (
                *((kind, f"{added}, over {other}") for kind, added in _ADDED.items()),
                (SYNTHETIC, f"alone, over {other} alone"),
            ):
                pairs = [(Run(recipe, kind, name), Run(other, kind, name)) for name in evidence.classifiers]
                gains += [(evidence.gains[pair], question) for pair in pairs if pair in evidence.gains]
        bars = [
            charts.gain_bar(gain, question, colours[recipe] + tables.STYLES.get(gain.of.kind, ""))
            for gain, question in gains
        ]
        if bars:
            groups.append((recipe, bars))
    if not groups:
        return None
    first = [
        charts.gain_bar(gain, f"with the images of {recipe}", colours[recipe] + tables.STYLES.get(gain.of.kind, ""))
        for recipe in evidence.params.active
        for kind in evidence.together(verdict.classifier)[:1]
        if (gain := evidence.over_real(recipe, verdict.classifier, kind))
    ]
    ends = [end for _, bars in groups for bar in bars for end in (bar.low, bar.high)]
    span = min(ends), max(ends)
    return fill(
        "page.gains",
        title=f"Did it help? Seed {evidence.params.seed} alone" if verdict.seeds else "Did it help?",
        confidence=evidence.confidence,
        resamples=evidence.evaluation["bootstrap"],
        reach=seeds(evidence),
        first=charts.intervals(first, "", {"zero": 0.0}, "Gains over the real images alone") if first else "",
        groups=[
            (recipe, colours[recipe], charts.intervals(bars, "", {"zero": 0.0}, f"Gains of {recipe}", span))
            for recipe, bars in groups
        ],
    )


def _accuracy_chart(evidence: Evidence, colours: dict[str, str]) -> Markup:
    """Return a chart per classifier of all its runs; a line marks the best accuracy of the real shots alone."""
    panels = []
    for classifier in evidence.classifiers:
        runs = [(tables.ZERO_SHOT_RUN, "zero-shot CLIP", "zero")]
        runs += [(Run(REAL, kind, classifier), tables.trained_on(REAL, kind), "real") for kind in evidence.real_kinds]
        runs += [
            (
                Run(recipe, kind, classifier),
                tables.trained_on(recipe, kind) if kind in TOGETHER else recipe,
                colours[recipe] + tables.STYLES.get(kind, ""),
            )
            for recipe in evidence.params.active
            for kind in (SYNTHETIC, *reversed(evidence.together(classifier)))
        ]
        rows = [(evidence.scores[run], words, style) for run, words, style in runs if run in evidence.scores]
        bars = [
            Bar(words, 100 * score.low, 100 * score.accuracy, 100 * score.high, percent(score.accuracy), style)
            for score, words, style in rows
        ]
        if bars:
            real = [score.accuracy for score, _, style in rows if style == "real"]
            marks = {"level": 100 * max(real)} if real else {}
            panels.append((classifier, charts.intervals(bars, "%", marks, f"Accuracy of {classifier}")))
    return fill(
        "page.accuracy_chart", confidence=evidence.confidence, legend=charts.legend(charts.KINDS), panels=panels
    )


def _scales(evidence: Evidence, colours: dict[str, str]) -> Markup | None:
    """Return charts of accuracy by the size of the synthetic set, alone and beside the shots.

    The accuracies of the real shots are level lines.
    """
    every = evidence.evaluation.get("scales", ())
    charted = []
    for styles, title in (
        (colours, "Synthetic images alone: CAS"),
        ({beside(name): style for name, style in colours.items()}, "Synthetic images beside the shots"),
    ):
        rows = [row for row in every if row["run"] in (*styles, *_LEVELS)]
        if any(row["run"] in styles for row in rows):
            charted.append((title, *_by_size(rows, styles | _LEVELS, title)))
    if not charted:
        return None
    return fill("page.scales", classifier=every[0]["classifier"], confidence=evidence.confidence, charted=charted)


def _by_size(rows: list[dict[str, Any]], styles: dict[str, str], title: str) -> tuple[Markup, Markup]:
    """Return the legend and the chart of some curves over the size of the set."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    lines = []
    for run in runs:
        sizes = {row["scale"]: row for row in rows if row["run"] == run}
        values = {scale: 100 * row["accuracy"] for scale, row in sizes.items()}
        ends = {scale: (100 * row["low"], 100 * row["high"]) for scale, row in sizes.items()}
        lines.append(charts.Line(styles[run], values, ends))
    key = [(styles[run], tables.trained_on(REAL, Kind.parse(run)) if run in _LEVELS else run) for run in runs]
    return charts.legend(key), charts.steps(lines, "%", "times the shots", "accuracy", title)


def _distilled(evidence: Evidence) -> Markup | None:
    """Return the scores of dataset distillation; None where they were not asked for."""
    rows = evidence.evaluation.get("distillation", ())
    if not rows:
        return None
    head = ("images of", "recovery", "over random", "label-robust score")
    lines: list[list[object]] = []
    for row in rows:
        ends = [f"{points(middle)} ({points(low)} to {points(high)})" for middle, low, high in (row["hlr"], row["ior"])]
        lines.append([row["arm"], *ends, points(row["lrs"])])
    return fill(
        "page.distilled",
        classifier=rows[0]["classifier"],
        scores=Table(head, lines),
        confidence=evidence.confidence,
    )


def _confusion(evidence: Evidence, verdict: Headline) -> Markup | None:
    """Return confusion matrices of the primary classifier; None where there are too many classes."""
    guesses, classes = evidence.guesses, evidence.split.classes
    if not guesses or len(classes) > _MOST_HEAT:
        return None
    together = evidence.together(verdict.classifier)
    alone = REAL_STRONG if BOTH_STRONG in together else REAL_ONLY
    runs = [
        Run(arm, kind, verdict.classifier)
        for arm, kind in ((REAL, alone), *((verdict.recipe, kind) for kind in (*together[:1], SYNTHETIC)))
    ]
    predicted = guesses["predicted"]
    maps = [
        charts.confusion(guesses["labels"], predicted[str(run)], classes, tables.trained_on(run.arm, run.kind))
        for run in runs
        if str(run) in predicted
    ]
    scored = scored_images(evidence.evaluation).capitalize()
    return fill("page.confusion", scored=scored, classifier=verdict.classifier, maps=maps) if maps else None


def _again(evidence: Evidence) -> Markup:
    """Return the section with the commands that repeat the run, and with every number."""
    params = evidence.params
    settings = f"-S model={params.model} -S {_shots(params.shots)} -S seed={params.seed}"
    return fill(
        "page.again",
        experiment=f"dvc exp run {settings} -S 'active=[{','.join(params.active)}]'",
        runs=tables.details(evidence),
        differences=tables.differences(evidence),
    )


def _shots(shots: int | str | dict[str, int]) -> str:
    """Return the shell argument that sets ``shots``."""
    if not isinstance(shots, dict):
        return f"shots={shots}"
    # The grammar of -S has no quotes for keys, and takes some for numbers; only params.yaml can give other names.
    if not all(re.fullmatch(r"(?!(?:true|false|null|inf|nan)$)[A-Za-z_][\w -]*", name, re.A | re.I) for name in shots):
        return "shots={as in params.yaml}"
    return f"'shots={{{','.join(f'{name}:{count}' for name, count in shots.items())}}}'"
