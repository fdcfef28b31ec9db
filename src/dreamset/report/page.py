"""The HTML page: one file that needs no network, no script and no font."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from dreamset import __version__
from dreamset.metrics.verdict import points, scored_images
from dreamset.report import charts, gallery, quality, tables
from dreamset.report.charts import Bar
from dreamset.report.evidence import REAL, ZERO_SHOT
from dreamset.report.gallery import section
from dreamset.report.markup import Html, interval, join, percent, point_interval, tag
from dreamset.report.seeds import over_seeds
from dreamset.report.studies import studies
from dreamset.report.verdict import Verdict, seeds

if TYPE_CHECKING:
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
        _reproduce(evidence),
    ]
    style = Html(files("dreamset.report").joinpath("style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{tables.short_source(evidence)}, {evidence.split.shots_told} shots: {verdict.title}"),
        tag("style", style),
    )
    body = tag("body", tag("main", _hero(evidence, verdict, colours), sections), _foot())
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _hero(evidence: Evidence, verdict: Verdict, colours: dict[str, str]) -> Html:
    split = evidence.split
    kicker = f"{tables.short_source(evidence)} · {split.shots_told} shots per class · seed {evidence.params.seed}"
    return tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", f"{verdict.title}.", class_=verdict.outcome),
        tag("p", verdict.lede, class_="lede"),
        _steps(evidence, verdict, colours),
        [tag("p", told) for told in verdict.also],
        tag("div", [tag("p", _code(told)) for told in verdict.caveat], class_="caveat"),
    )


def _expected(evidence: Evidence) -> Html | None:
    """What was said before anything was drawn."""
    sentences = evidence.expected.get("sentences") or ()
    if not sentences:
        return None
    return section("expected", "What was to be expected", [tag("p", str(told)) for told in sentences])


def _steps(evidence: Evidence, verdict: Verdict, colours: dict[str, str]) -> Html:
    """The headline's numbers: what each kind of training images reaches with the declared classifier."""
    wanted = [
        *((REAL, kind, tables.trained_on(REAL, kind), "real") for kind in evidence.real_kinds),
        *(
            (recipe, kind, tables.trained_on(recipe, kind), colours[recipe])
            for kind in reversed(evidence.together(verdict.classifier))
            for recipe in (verdict.plain, verdict.recipe)
            if recipe
        ),
        (verdict.plain, "synthetic", f"{verdict.plain} alone", colours.get(verdict.plain or "")),
        (verdict.recipe, "synthetic", f"{verdict.recipe} alone", colours[verdict.recipe]),
    ]
    means = evidence.sweep.means(evidence.split.shots, verdict.classifier) if evidence.sweep and verdict.seeds else {}
    cards = []
    for arm, kind, told, colour in wanted:
        score = evidence.score(arm, kind, verdict.classifier) if arm else None
        if score is None:
            continue
        name = join(tag("i", class_=f"key {colour}{tables.STYLES.get(kind, '')}"), told)
        accuracy, spread = percent(score.accuracy), interval(score.low, score.high)
        if verdict.seeds:
            mean, deviation = means.get((score.arm, kind), (None, None))
            accuracy, spread = percent(mean), "" if deviation is None else f"± {100 * deviation:.1f} over the seeds"
        cards.append(tag("li", tag("span", name), tag("b", accuracy), tag("small", spread)))
    return tag("ol", cards, class_="steps", aria_label=f"Accuracy of {verdict.classifier}")


def _gains(evidence: Evidence, verdict: Verdict, colours: dict[str, str]) -> Html | None:
    """Each recipe and classifier: over the best run on real shots alone, and over the recipes it is compared with."""
    groups = []
    for recipe in evidence.params.active:
        found: list[tuple[Gain | None, str, str]] = []
        for classifier in evidence.classifiers:
            for kind in evidence.together(classifier):
                over = evidence.over_real(recipe, classifier, kind)
                alone = tables.trained_on(REAL, over.minus.split("/")[1] if over else "")
                found.append((over, f"{_ADDED[kind]}, over {alone}", classifier))
        for other in evidence.others(recipe):
            for kind, question in (
                *((kind, f"{added}, over {other}") for kind, added in _ADDED.items()),
                ("synthetic", f"alone, over {other} alone"),
            ):
                found += [
                    (evidence.gain((recipe, kind), (other, kind), name), question, name)
                    for name in evidence.classifiers
                ]
        bars = []
        for gain, question, classifier in found:
            if gain is None:
                continue
            label = join(tag("span", question), " ", tag("em", classifier))
            value = join(tag("b", points(gain.difference)), " ", tag("small", point_interval(gain.low, gain.high)))
            style = f"{colours[recipe]} {gain.outcome}{tables.STYLES.get(gain.of.split('/')[1], '')}"
            bars.append(Bar(label, 100 * gain.low, 100 * gain.difference, 100 * gain.high, value, style))
        if bars:
            groups.append((recipe, bars))
    if not groups:
        return None
    ends = [end for _, bars in groups for bar in bars for end in (bar.low, bar.high)]
    drawn = [
        tag(
            "article",
            tag("h3", tag("i", class_=f"key {colours[recipe]}"), recipe),
            charts.intervals(bars, "", {"zero": 0.0}, f"Gains of {recipe}", (min(ends), max(ends))),
        )
        for recipe, bars in groups
    ]
    note = (
        f"Percentage points of accuracy, paired on the same images, with {evidence.confidence} intervals from "
        f"{evidence.evaluation['bootstrap']} bootstrap resamples. Right of the line is better; a pale row’s interval "
        f"holds zero. {seeds(evidence)}"
    )
    title = f"Did it help? Seed {evidence.params.seed} alone" if verdict.seeds else "Did it help?"
    return section("gains", title, tag("p", note), drawn)


def _accuracy_chart(evidence: Evidence, colours: dict[str, str]) -> Html:
    """One panel per classifier, all runs on one axis; the real shots' accuracy as a line."""
    drawn = []
    for classifier in evidence.classifiers:
        rows: list[tuple[Score | None, str, str]] = [
            (evidence.score(ZERO_SHOT, "none", "clip_zeroshot"), "zero-shot CLIP", "zero"),
        ]
        rows += [
            (evidence.score(REAL, kind, classifier), tables.trained_on(REAL, kind), "real")
            for kind in evidence.real_kinds
        ]
        for recipe in evidence.params.active:
            rows.append((evidence.score(recipe, "synthetic", classifier), recipe, f"{colours[recipe]} hollow"))
            rows += [
                (
                    evidence.score(recipe, kind, classifier),
                    tables.trained_on(recipe, kind),
                    colours[recipe] + tables.STYLES.get(kind, ""),
                )
                for kind in reversed(evidence.together(classifier))
            ]
        bars = [
            Bar(told, 100 * found.low, 100 * found.accuracy, 100 * found.high, percent(found.accuracy), kind)
            for found, told, kind in rows
            if found
        ]
        if not bars:
            continue
        real = [found.accuracy for found, _, kind in rows if found and kind == "real"]
        marks = {"level": 100 * max(real)} if real else {}
        chart = charts.intervals(bars, "%", marks, f"Accuracy of {classifier}")
        drawn.append(tag("article", tag("h3", classifier), chart))
    key = charts.legend(
        [
            ("hollow", "synthetic images alone"),
            ("full", "with the real shots"),
            ("strong", "with the real shots, all strongly augmented"),
        ]
    )
    note = f"Accuracy with {evidence.confidence} intervals; the line is the best that the real shots reach alone."
    return section("chart", "How far each kind of image gets", tag("p", note), key, tag("div", drawn, class_="panels"))


def _scales(evidence: Evidence, colours: dict[str, str]) -> Html | None:
    """CAS by the size of the synthetic set, with the real shots' accuracy as level lines."""
    found = [line for line in evidence.evaluation.get("scales", ()) if line["run"] in (*colours, *_LEVELS)]
    if not found:
        return None
    styles, classifier = colours | _LEVELS, found[0]["classifier"]
    runs = list(dict.fromkeys(line["run"] for line in found))
    lines = []
    for run in runs:
        own = {line["scale"]: line for line in found if line["run"] == run}
        values = {scale: 100 * line["accuracy"] for scale, line in own.items()}
        ends = {scale: (100 * line["low"], 100 * line["high"]) for scale, line in own.items()}
        lines.append(charts.Line(styles[run], values, ends))
    chart = charts.steps(lines, "%", "times the shots", "accuracy", "CAS by size of the set")
    key = [(styles[run], tables.trained_on(REAL, run) if run in _LEVELS else run) for run in runs]
    note = (
        f"Accuracy of {classifier} trained on synthetic images alone: on the first so many times as many of each class "
        "as there are shots, in equally many optimizer steps. Larger sets hold the smaller ones. "
        f"{evidence.confidence} intervals over the images scored."
    )
    return section("scales", "How many images it takes", tag("p", note), charts.legend(key), chart)


def _confusion(evidence: Evidence, verdict: Verdict) -> Html | None:
    guesses, classes = evidence.guesses, evidence.split.classes
    if not guesses or len(classes) > _MOST_HEAT:
        return None
    together = evidence.together(verdict.classifier)
    alone = "real_strong" if "both_strong" in together else "real"
    wanted = [
        (f"{arm}/{kind}/{verdict.classifier}", tables.trained_on(arm, kind))
        for arm, kind in ((REAL, alone), *((verdict.recipe, kind) for kind in (*together[:1], "synthetic")))
    ]
    maps = [
        charts.confusion(guesses["labels"], guesses["predicted"][key], classes, told)
        for key, told in wanted
        if key in guesses["predicted"]
    ]
    if not maps:
        return None
    scored = scored_images(evidence.evaluation).capitalize()
    note = f"{scored}, as {verdict.classifier} reads them: a row is the true class, a column what was read."
    return section("confusion", "What is taken for what", tag("p", note), tag("div", maps, class_="panels"))


def _reproduce(evidence: Evidence) -> Html:
    params = evidence.params
    active = ",".join(params.active)
    commands = [
        ("this page and all that it rests on", "dvc repro"),
        (
            "the same settings from any state of params.yaml",
            f"dvc exp run -S model={params.model} -S {_shots(params.shots)} -S seed={params.seed} "
            f"-S 'active=[{active}]'",
        ),
        ("more images per class; only the new ones are drawn", "dvc exp run -S generate.per_class=200"),
        ("compare experiments", "dvc exp show"),
    ]
    code = join([join(tag("span", f"# {told}"), f"\n{command}\n") for told, command in commands])
    takeaway = tag(
        "p",
        "To take away: the images in ",
        tag("code", "data/synthetic/"),
        " open with torchvision’s ImageFolder and Hugging Face’s imagefolder, recipe by recipe; the classifier that "
        "the verdict chose, with its card, is ",
        tag("code", "models/classifier/"),
        ", and ",
        tag("code", "dreamset predict photos --out predictions.csv"),
        " labels new files with it.",
    )
    return section("again", "Do it again", tag("pre", tag("code", code)), takeaway, tables.details(evidence))


def _shots(shots: int | str | dict[str, int]) -> str:
    """``shots`` as an argument of the shell that sets it."""
    if not isinstance(shots, dict):
        return f"shots={shots}"
    # The grammar of -S has no quotes for keys: other names can be given in params.yaml alone.
    if not all(re.fullmatch(r"[A-Za-z0-9_ -]+", name) for name in shots):
        return "shots={as in params.yaml}"
    return f"'shots={{{','.join(f'{name}:{count}' for name, count in shots.items())}}}'"


def _code(sentence: str) -> Html:
    """Text with `code` in backquotes."""
    return join([tag("code", part) if index % 2 else part for index, part in enumerate(sentence.split("`"))])


def _foot() -> Html:
    told = "Choices are made without the test images; the one stage that opens them is `dreamset evaluate`."
    return tag("footer", tag("p", _code(f"dreamset {__version__}. {told}")))
