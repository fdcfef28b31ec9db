"""The HTML page: one file that needs no network, no script and no font."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dreamset import __version__
from dreamset.data.runs import REAL, ZERO_SHOT
from dreamset.metrics.verdict import TOGETHER, scored_images
from dreamset.report import charts, gallery, quality, tables
from dreamset.report.charts import Bar
from dreamset.report.figures import interval, percent
from dreamset.report.markup import fill
from dreamset.report.seeds import over_seeds
from dreamset.report.studies import studies
from dreamset.report.verdict import Verdict, seeds

if TYPE_CHECKING:
    from markupsafe import Markup

    from dreamset.core.sheet import Block
    from dreamset.metrics.verdict import Gain
    from dreamset.report.evidence import Evidence, Score

_COLOURS: Final = 6
_LEVELS: Final = {"real": "real", "real_strong": "zero"}
_ADDED: Final = {"both_strong": "added to the real shots, all strongly augmented", "both": "added to the real shots"}
_MOST_HEAT: Final = 30  # classes of a confusion matrix that a page can hold


def page(evidence: Evidence, verdict: Verdict, blocks: list[Block]) -> str:
    """The whole document."""
    colours = {name: f"c{index % _COLOURS}" for index, name in enumerate(evidence.params.active)}
    sections = [
        _expected(evidence),
        _gains(evidence, verdict, colours),
        gallery.by_class(evidence, blocks),
        _accuracy_chart(evidence, colours),
        _scales(evidence, colours),
        over_seeds(evidence, colours),
        tables.accuracies(evidence),
        quality.qualities(evidence),
        quality.correlations(evidence),
        gallery.adaptation(evidence, colours),
        studies(evidence, colours),
        gallery.duplicates(evidence),
        _confusion(evidence, verdict),
        tables.costs(evidence),
        tables.facts(evidence),
        _again(evidence),
    ]
    return fill(
        "page.page",
        source=tables.short_source(evidence),
        shots=evidence.split.shots_in_words,
        seed=evidence.params.seed,
        verdict=verdict,
        cards=_cards(evidence, verdict, colours),
        sections=[section for section in sections if section],
        version=__version__,
    )


def _expected(evidence: Evidence) -> Markup | None:
    """What was said before anything was drawn."""
    sentences = evidence.expected.get("sentences")
    return fill("page.expected", sentences=sentences) if sentences else None


def _cards(evidence: Evidence, verdict: Verdict, colours: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """The headline's numbers: how accurate each kind of training images makes the declared classifier.

    Each is a style, what was trained on, the accuracy, and its interval or its standard deviation over the seeds.
    """
    runs = [
        *((REAL, kind, tables.trained_on(REAL, kind), "real") for kind in evidence.real_kinds),
        *(
            (recipe, kind, tables.trained_on(recipe, kind), colours[recipe])
            for kind in reversed(evidence.together(verdict.classifier))
            for recipe in (verdict.plain, verdict.recipe)
            if recipe
        ),
        *((name, "synthetic", f"{name} alone", colours[name]) for name in (verdict.plain, verdict.recipe) if name),
    ]
    sweep = evidence.table.sweep
    means = sweep.means(evidence.split.shots, verdict.classifier) if sweep and verdict.seeds else {}
    cards = []
    for arm, kind, words, colour in runs:
        score = evidence.score(arm, kind, verdict.classifier)
        if score is None:
            continue
        accuracy, spread = percent(score.accuracy), interval(score.low, score.high)
        if verdict.seeds:
            mean, deviation = means.get((score.arm, kind), (None, None))
            accuracy, spread = percent(mean), "" if deviation is None else f"± {100 * deviation:.1f} over the seeds"
        cards.append((colour + tables.STYLES.get(kind, ""), words, accuracy, spread))
    return cards


def _gains(evidence: Evidence, verdict: Verdict, colours: dict[str, str]) -> Markup | None:
    """Each recipe and classifier: over the best run on real shots alone, and over the recipes it is compared with."""
    groups = []
    for recipe in evidence.params.active:
        gains: list[tuple[Gain | None, str]] = []
        for classifier in evidence.classifiers:
            for kind in evidence.together(classifier):
                over = evidence.over_real(recipe, classifier, kind)
                alone = tables.trained_on(REAL, over.minus.split("/")[1] if over else "")
                gains.append((over, f"{_ADDED[kind]}, over {alone}"))
        for other in evidence.others(recipe):
            for kind, question in (
                *((kind, f"{added}, over {other}") for kind, added in _ADDED.items()),
                ("synthetic", f"alone, over {other} alone"),
            ):
                gains += [
                    (evidence.gain((recipe, kind), (other, kind), name), question) for name in evidence.classifiers
                ]
        bars = [
            charts.gain_bar(gain, question, colours[recipe] + tables.STYLES.get(gain.of.split("/")[1], ""))
            for gain, question in gains
            if gain
        ]
        if bars:
            groups.append((recipe, bars))
    if not groups:
        return None
    ends = [end for _, bars in groups for bar in bars for end in (bar.low, bar.high)]
    span = min(ends), max(ends)
    return fill(
        "page.gains",
        title=f"Did it help? Seed {evidence.params.seed} alone" if verdict.seeds else "Did it help?",
        confidence=evidence.confidence,
        resamples=evidence.evaluation["bootstrap"],
        reach=seeds(evidence),
        groups=[
            (recipe, colours[recipe], charts.intervals(bars, "", {"zero": 0.0}, f"Gains of {recipe}", span))
            for recipe, bars in groups
        ],
    )


def _accuracy_chart(evidence: Evidence, colours: dict[str, str]) -> Markup:
    """One panel per classifier, all runs on one axis; the real shots' accuracy as a line."""
    panels = []
    for classifier in evidence.classifiers:
        rows: list[tuple[Score | None, str, str]] = [
            (evidence.score(ZERO_SHOT, "none", "clip_zeroshot"), "zero-shot CLIP", "zero"),
        ]
        rows += [
            (evidence.score(REAL, kind, classifier), tables.trained_on(REAL, kind), "real")
            for kind in evidence.real_kinds
        ]
        rows += [
            (
                evidence.score(recipe, kind, classifier),
                tables.trained_on(recipe, kind) if kind in TOGETHER else recipe,
                colours[recipe] + tables.STYLES.get(kind, ""),
            )
            for recipe in evidence.params.active
            for kind in ("synthetic", *reversed(evidence.together(classifier)))
        ]
        bars = [
            Bar(words, 100 * score.low, 100 * score.accuracy, 100 * score.high, percent(score.accuracy), style)
            for score, words, style in rows
            if score
        ]
        if bars:
            real = [score.accuracy for score, _, style in rows if score and style == "real"]
            marks = {"level": 100 * max(real)} if real else {}
            panels.append((classifier, charts.intervals(bars, "%", marks, f"Accuracy of {classifier}")))
    return fill(
        "page.accuracy_chart", confidence=evidence.confidence, legend=charts.legend(charts.KINDS), panels=panels
    )


def _scales(evidence: Evidence, colours: dict[str, str]) -> Markup | None:
    """CAS by the size of the synthetic set, with the real shots' accuracy as level lines."""
    rows = [row for row in evidence.evaluation.get("scales", ()) if row["run"] in (*colours, *_LEVELS)]
    if not rows:
        return None
    styles = colours | _LEVELS
    runs = list(dict.fromkeys(row["run"] for row in rows))
    lines = []
    for run in runs:
        sizes = {row["scale"]: row for row in rows if row["run"] == run}
        values = {scale: 100 * row["accuracy"] for scale, row in sizes.items()}
        ends = {scale: (100 * row["low"], 100 * row["high"]) for scale, row in sizes.items()}
        lines.append(charts.Line(styles[run], values, ends))
    key = [(styles[run], tables.trained_on(REAL, run) if run in _LEVELS else run) for run in runs]
    return fill(
        "page.scales",
        classifier=rows[0]["classifier"],
        confidence=evidence.confidence,
        legend=charts.legend(key),
        chart=charts.steps(lines, "%", "times the shots", "accuracy", "CAS by size of the set"),
    )


def _confusion(evidence: Evidence, verdict: Verdict) -> Markup | None:
    guesses, classes = evidence.guesses, evidence.split.classes
    if not guesses or len(classes) > _MOST_HEAT:
        return None
    together = evidence.together(verdict.classifier)
    alone = "real_strong" if "both_strong" in together else "real"
    runs = ((REAL, alone), *((verdict.recipe, kind) for kind in (*together[:1], "synthetic")))
    predicted = [(arm, kind, guesses["predicted"].get(f"{arm}/{kind}/{verdict.classifier}")) for arm, kind in runs]
    maps = [
        charts.confusion(guesses["labels"], labels, classes, tables.trained_on(arm, kind))
        for arm, kind, labels in predicted
        if labels is not None
    ]
    scored = scored_images(evidence.evaluation).capitalize()
    return fill("page.confusion", scored=scored, classifier=verdict.classifier, maps=maps) if maps else None


def _again(evidence: Evidence) -> Markup:
    params = evidence.params
    settings = f"-S model={params.model} -S {_shots(params.shots)} -S seed={params.seed}"
    return fill(
        "page.again",
        experiment=f"dvc exp run {settings} -S 'active=[{','.join(params.active)}]'",
        runs=tables.details(evidence),
        differences=tables.differences(evidence),
    )


def _shots(shots: int | str | dict[str, int]) -> str:
    """``shots`` as an argument of the shell that sets it."""
    if not isinstance(shots, dict):
        return f"shots={shots}"
    # The grammar of -S has no quotes for keys: other names can be given in params.yaml alone.
    if not all(re.fullmatch(r"[A-Za-z0-9_ -]+", name) for name in shots):
        return "shots={as in params.yaml}"
    return f"'shots={{{','.join(f'{name}:{count}' for name, count in shots.items())}}}'"
