"""Sections of the page that are read: what was run, the accuracies, the costs, the table over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.metrics.verdict import TOGETHER, basis, points, scored_images
from dreamset.params.recipe import adapter_words, scales_words
from dreamset.report.evidence import REAL, ZERO_SHOT
from dreamset.report.gallery import section
from dreamset.report.markup import Html, interval, join, number, p_value, percent, point_interval, row, table, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreamset.params.recipe import Recipe
    from dreamset.report.evidence import Evidence, Score

_MARKS: Final = {"helps": "▲", "hurts": "▼", "unclear": "≈"}
_KINDS: Final = {
    "synthetic": "synthetic only",
    "both": "real + synthetic",
    "both_strong": "real + synthetic, strongly augmented",
}
STYLES: Final = {"synthetic": " hollow", "both_strong": " strong"}  # of a run's marks in a chart
_REAL_KINDS: Final = {
    "real": "real shots alone",
    "real_strong": "real shots alone, strongly augmented",
    "real_more": "real shots and selection images alone",
}
_RULES: Final = {
    "fixed": "none: the settings as they stand, and the last step",
    "holdout": "a part of the shots, which nothing learns from",
    "cv": "folds of the shots, in each of which the whole method is repeated",
    "extra": "labels beyond the shots",
    "coop": "labels beyond the shots, as many but at most 4 per class",
}
# Of a run's record: where it is there, a column of the table of details.
_MEASURES: Final = {
    "top5": ("top 5", True),
    "balanced_accuracy": ("balanced", True),
    "macro_f1": ("macro F1", True),
    "auroc": ("AUROC", True),
    "accuracy_untouched": ("without images touched", True),
    "nll": ("NLL", False),
    "nll_scaled": ("NLL, scaled", False),
    "ece": ("ECE", False),
    "ece_scaled": ("ECE, scaled", False),
    "temperature": ("temperature", False),
}
_ZERO_SHOT_CLASSIFIER: Final = "clip_zeroshot"


def trained_on(arm: str, kind: str) -> str:
    """What a run learned from, in words."""
    if arm == REAL:
        return _REAL_KINDS.get(kind, f"real shots alone ({kind})")
    scale = kind.partition("_x")[2]
    if scale:
        return f"{arm} alone, {scale} × the shots"
    return {"both": f"real + {arm}", "both_strong": f"real + {arm}, strongly augmented"}.get(kind, f"{arm} alone")


def facts(evidence: Evidence) -> Html:
    """What was run, as a list of terms."""
    params, split, base = evidence.params, evidence.split, evidence.params.base
    classes = len(split.classes)
    real = f"{split.shots_told} per class, {len(split.train)} in all"
    pairs: list[tuple[str, object]] = [
        ("Source", short_source(evidence)),
        ("Classes", join(f"{classes}: ", _names(split.classes))),
        ("Real shots", real),
        ("Selection", _selection(evidence)),
        ("Test", _protocol(evidence)),
        ("Seed", params.seed),
        ("Generator", f"{params.model}, {base.resolution} px, licence {base.licence}"),
        ("Caption", join("“", tag("bdi", split.template), "”")),
        ("Classifiers", ", ".join(evidence.classifiers)),
        *((name, _recipe(evidence, name)) for name in params.active),
    ]
    return section("setup", "What was run", tag("dl", [(tag("dt", term), tag("dd", told)) for term, told in pairs]))


def _selection(evidence: Evidence) -> str:
    """What chooses, and how many labels that takes."""
    split, rule = evidence.split, evidence.evaluation.get("selection")
    labels = len(split.selection) / len(split.classes)
    if rule is None:
        return (
            f"{labels:g} further labels per class choose the training step" if labels else "none: the last step is kept"
        )
    told = f"{rule}: {_RULES.get(str(rule).partition(':')[0], 'as told in params.yaml')}"
    return f"{told}; {labels:g} labels per class select, {len(split.train) / len(split.classes):g} train"


def _protocol(evidence: Evidence) -> str:
    """Which images everything was scored on."""
    count, evaluation = number(evidence.evaluation["test_images"]), evidence.evaluation
    groups = f", of {number(evaluation['groups'])} groups" if evaluation.get("groups") else ""
    learned = "all of them"
    if len(evidence.split.train) < evidence.evaluation["test_images"]:
        learned = f"{number(len(evidence.split.train))} of them, for the others select"
    if evaluation.get("protocol") != "cv":
        return f"{count} real images{groups} that no other stage opens"
    return (
        f"no test images: {evaluation.get('folds')} folds of the {count} labelled ones{groups}. In each fold all that "
        "learns is done again without the images held out, on which it is then scored; the delivered classifiers learn "
        f"from {learned}, and the folds’ accuracy is what is expected of those"
    )


def accuracies(evidence: Evidence) -> Html:
    """Recipes and what was trained on, by classifier; baselines first; marks where synthetic images help or not."""
    classifiers = evidence.classifiers
    head = [
        "Trained on",
        *(tag("th", name, scope="col", class_="number") for name in classifiers),
        *(tag("th", name, scope="col", class_="number") for name in ("FID", "KID", "near-duplicates")),
    ]
    baselines = []
    common = next((found.record.get("majority") for found in evidence.scores.values()), None)
    wide = [(evidence.score(ZERO_SHOT, "none", _ZERO_SHOT_CLASSIFIER), "nothing: zero-shot CLIP")]
    wide += [
        (found, f"{trained_on(REAL, found.train_on)}: {found.classifier}")
        for found in evidence.scores.values()
        if found.arm == REAL and found.classifier not in classifiers
    ]
    if common is not None:
        told = tag("td", percent(common), colspan=len(classifiers))
        baselines.append(row("nothing: the commonest class always", told, *[tag("td", "")] * 3))
    for found, name in wide:
        if found:
            told = tag("td", _accuracy(found), colspan=len(classifiers))
            baselines.append(row(name, told, *[tag("td", "")] * 3))
    for kind in evidence.real_kinds:
        cells = [_cell(evidence, REAL, kind, name) for name in classifiers]
        if any(evidence.score(REAL, kind, name) for name in classifiers):
            baselines.append(row(trained_on(REAL, kind), *cells, *[tag("td", "")] * 3))
    bodies = [tag("tbody", baselines)]
    for recipe in evidence.params.active:
        kinds = [kind for kind in _KINDS if any(evidence.score(recipe, kind, name) for name in classifiers)]
        distances = _distances(evidence.evaluation["sets"].get(recipe, {}), len(kinds))
        top = tag("tr", tag("th", recipe, colspan=4 + len(classifiers), scope="rowgroup"))
        lines = [
            row(
                _KINDS[kind],
                *(_cell(evidence, recipe, kind, name) for name in classifiers),
                *(distances if kind == kinds[0] else ()),
            )
            for kind in kinds
        ]
        bodies.append(tag("tbody", top, lines))
    return section(
        "accuracy",
        "Every accuracy",
        table(head, bodies, _caption(evidence), "accuracies"),
        _not_helping(evidence),
    )


def costs(evidence: Evidence) -> Html:
    """Seconds and images of every recipe and stage, adapting and tuning of what it starts from included."""
    names = ["adapters", "steps", "adapt, s", "trials", "tune, s", "images", "redrawn", "generate, s", "images/s"]
    names += ["train, s", "total, s"]
    head = ["Recipe", *(tag("th", name, scope="col", class_="number") for name in names)]
    rows = []
    for arm in (REAL, *evidence.params.active):
        lineage, drawn = evidence.params.lineage(arm), evidence.record("generate", arm)
        adapted = [evidence.record("adapt", name) for name in lineage]
        studies = [evidence.studies[name] for name in lineage if name in evidence.studies]
        tuned_for = _total(study["seconds"] for study in studies)
        adapted_for = _total(record.get("seconds") for record in adapted)
        trained = _total(run["seconds"] for run in evidence.record("train", arm).get("runs", ()))
        seconds = (adapted_for, tuned_for, drawn.get("seconds"), trained)
        shown = [
            number(_total(record.get("adapters") for record in adapted)),
            number(_total(record.get("steps") for record in adapted)),
            number(adapted_for, 1),
            number(_total(len(study["trials"]) for study in studies)),
            number(tuned_for, 1),
            number(drawn.get("images")),
            number(drawn.get("redrawn")),
            number(drawn.get("seconds"), 1),
            number(drawn.get("images_per_s"), 1),
            number(trained, 1),
            number(_total(seconds) or 0, 1),
        ]
        name = "real shots only" if arm == REAL else arm
        rows.append(row(name, *(tag("td", value, class_="number") for value in shown)))
    note = "Seconds of work on the machine that ran the stages, without start-up; training is of all classifiers."
    if evidence.studies:
        note += " Tuning is all trials of a study, those of all workers added up."
    if evidence.params.after:
        note += " What starts from another recipe’s result is shown with the adapting and tuning of that one, too."
    return section("costs", "What it cost", table(head, rows, note))


def _total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def details(evidence: Evidence) -> Html:
    """Every run and every difference with what the big tables leave out, folded away."""
    records = [score.record for score in evidence.scores.values()]
    given = {key: told for key, told in _MEASURES.items() if any(record.get(key) is not None for record in records)}
    names = ["accuracy", "interval", *(name for name, _ in given.values())]
    names += ["steps", "kept step", "s", "most often confused"]
    rows = []
    for score in evidence.scores.values():
        record = score.record
        confused = [
            join(tag("bdi", pair["actual"]), " → ", tag("bdi", pair["predicted"]), f" ×{pair['count']}")
            for pair in record.get("most_confused", ())
        ]
        numbers = [percent(score.accuracy), interval(score.low, score.high)]
        numbers += [
            percent(record.get(key)) if share else number(record.get(key), 3) for key, (_, share) in given.items()
        ]
        numbers += [number(record.get("steps")), number(record.get("chosen_step")), number(record.get("seconds"), 1)]
        separated = [part for pair in confused for part in (Html(", "), pair)][1:]
        cells = [tag("td", value, class_="number") for value in numbers]
        rows.append(row(score.key.replace("/", " · "), *cells, tag("td", separated, class_="names")))
    runs = tag("details", tag("summary", "Every run in numbers"), table(["Run", *names], rows))
    return join(runs, _differences(evidence))


def _differences(evidence: Evidence) -> Html:
    """Every paired difference; McNemar's exact test beside the interval, where it was made."""
    found = [row for row in evidence.evaluation["differences"] if (row["of"], row["minus"]) in evidence.gains]
    tested = any(line.get("mcnemar_p") is not None for line in found)
    names = ["over", "points", "interval", *(["only first right", "only second right", "McNemar p"] if tested else [])]
    rows = []
    for line in found:
        numbers = [points(line["difference"]), point_interval(line["low"], line["high"])]
        if tested:
            numbers += [number(line.get("gained")), number(line.get("lost")), p_value(line.get("mcnemar_p"))]
        cells = [tag("td", value, class_="number") for value in numbers]
        rows.append(row(line["of"].replace("/", " · "), line["minus"].replace("/", " · "), *cells))
    return tag("details", tag("summary", "Every difference in numbers"), table(["Run", *names], rows))


def _caption(evidence: Evidence) -> Html:
    scored = scored_images(evidence.evaluation)
    n = {found.get("n") for found in evidence.evaluation["sets"].values()} - {None}
    told = f"n = {', '.join(number(value) for value in sorted(n))} images on each side" if n else ""
    small = any(found.get("warning") for found in evidence.evaluation["sets"].values())
    known = dict.fromkeys(f"a {s.classifier}" for s in evidence.scores.values() if s.record.get("measure") == "CAS")
    scratch = " or ".join(known).capitalize()
    features = next((found.get("features") for found in evidence.evaluation["sets"].values()), None)
    subset = next((found.get("kid_subset") for found in evidence.evaluation["sets"].values()), None)
    return join(
        f"Accuracy on {basis(evidence.evaluation).rstrip(',')}, {evidence.confidence} intervals. ",
        tag("b", "▲"), " gains over the best run on real shots alone, ",
        tag("b", "▼"), " loses, ",
        tag("b", "≈"), " the paired interval holds zero. ",
        f"FID and KID against the {scored} in the features of the {features}" if features else None,
        f", {told}" if features and told else None,
        f", KID in subsets of {subset}" if features and subset else None,
        ("; FID is biased upwards at such n." if small else ".") if features else None,
        f" {scratch} trained on synthetic images alone is CAS." if scratch else None,
    )  # fmt: skip


def _cell(evidence: Evidence, arm: str, kind: str, classifier: str) -> Html:
    score = evidence.score(arm, kind, classifier)
    if score is None:
        return tag("td", "–", class_="number")
    gain = evidence.over_real(arm, classifier, kind) if kind in TOGETHER else None
    mark = tag("b", _MARKS[gain.outcome], " ", class_="mark") if gain else None
    return tag("td", mark, _accuracy(score), class_=f"number {gain.outcome if gain else ''}".strip())


def _accuracy(score: Score) -> Html:
    return join(percent(score.accuracy), " ", tag("small", interval(score.low, score.high)))


def _distances(found: dict[str, Any], rows: int) -> list[Html]:
    near = found.get("near_duplicates", {})
    fid, kid = found.get("fid"), found.get("kid")
    spread = f" ± {found['kid_sd']:.4f}" if found.get("kid_sd") else ""
    shown = [
        number(fid, 1),
        "–" if kid is None else join(f"{kid:.4f}".replace("-", "−"), tag("small", spread)),
        "–" if "count" not in near else join(number(near["count"]), tag("small", f" {percent(near.get('share'))}")),
    ]
    return [tag("td", value, class_="number", rowspan=rows) for value in shown]


def _not_helping(evidence: Evidence) -> Html:
    """Every comparison whose interval does not lie above zero."""
    lines = []
    weak = [gain for gain in evidence.gains.values() if gain.outcome != "helps"]
    for gain in sorted(weak, key=lambda gain: (gain.outcome != "hurts", gain.difference)):
        (arm, kind, classifier), (other, theirs, _) = gain.of.split("/"), gain.minus.split("/")
        against = trained_on(REAL, theirs) if other == REAL else f"{other}’s images in their place"
        what = f"{classifier}, {trained_on(arm, kind)}"
        ends = f" points ({point_interval(gain.low, gain.high)})"
        lines.append(
            tag("li", f"{what} over {against}: ", tag("b", points(gain.difference)), ends, class_=gain.outcome)
        )
    if not lines:
        return tag("p", "Every comparison that was made shows a gain.")
    title = f"Where it does not help: {len(lines)} of {len(evidence.gains)} comparisons"
    return tag("div", tag("h3", title), tag("ul", lines, class_="plain"))


def _recipe(evidence: Evidence, name: str) -> Html:
    params = evidence.params  # with what studies chose
    row: Recipe = params.recipes[name]
    if not row.draws:
        return join(f"nothing drawn: the nearest images of the base’s source; {evidence.params.per_class} per class")
    sampler = params.sampler(name)
    how = ", ".join(part for part in (adapter_words(row), scales_words(row)) if part) or "the generator as it is"
    drawn = f"{sampler.scheduler}, {sampler.steps} steps, guidance {sampler.guidance:.3g}"
    if name in evidence.studies and evidence.studies[name]["best"]:
        drawn += f" ({', '.join(evidence.studies[name]['searched'])} chosen by a study)"
    return join(f"{how}; {drawn}; {evidence.params.per_class} images per class; prompt: {row.prompt}")


def _names(classes: Sequence[str]) -> Html:
    shown = [part for name in classes[:20] for part in (Html(", "), tag("bdi", name, class_="clip", title=name))][1:]
    return join(shown, f" and {len(classes) - 20} more" if len(classes) > 20 else None)


def short_source(evidence: Evidence) -> str:
    """The source without the folders above it, which say more of a machine than of the data."""
    kind, colon, path = evidence.split.source.partition(":")
    return f"{kind}{colon}{path.rstrip('/').rpartition('/')[2]}"
