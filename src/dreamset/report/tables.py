"""Sections of the page that are tables: the settings, the accuracies, the costs, every run and difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from dreamset.core.arithmetic import total
from dreamset.data.runs import (
    BOTH,
    BOTH_STRONG,
    REAL,
    REAL_FEW,
    REAL_MORE,
    REAL_ONLY,
    REAL_STRONG,
    SYNTHETIC,
    UNTRAINED,
    ZERO_SHOT,
    Kind,
    Run,
)
from dreamset.metrics.gains import TOGETHER
from dreamset.metrics.verdict import basis, points, scored_images
from dreamset.params.knob_words import adapter_words, scales_words
from dreamset.report.figures import MINUS, interval, number, p_value, percent, point_interval, spaced
from dreamset.report.markup import Table, aside, counted, fill, joined, name

if TYPE_CHECKING:
    from dreamset.metrics.gains import Gain
    from dreamset.report.evidence import Evidence, Score

_MARKS: Final = {"helps": "▲", "hurts": "▼", "unclear": "≈"}
_KINDS: Final = {
    SYNTHETIC: "synthetic only",
    BOTH: "real + synthetic",
    BOTH_STRONG: "real + synthetic, strongly augmented",
}
STYLES: Final = {SYNTHETIC: " hollow", BOTH_STRONG: " strong"}  # classes of a run's marks in a chart
_REAL_KINDS: Final = {
    REAL_ONLY: "real shots alone",
    REAL_STRONG: "real shots alone, strongly augmented",
    REAL_MORE: "real shots and selection images alone",
    REAL_FEW: "as many real shots as synthetic images",
}
_RULES: Final = {
    "fixed": "none: the settings as they stand, and the last step",
    "holdout": "a part of the shots, which nothing learns from",
    "cv": "folds of the shots, in each of which the whole method is repeated",
    "extra": "labels beyond the shots",
    "coop": "labels beyond the shots, as many but at most 4 per class",
}
# Fields of a run's record, with their column in the table of details and whether they are shares.
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
ZERO_SHOT_RUN: Final = Run(ZERO_SHOT, UNTRAINED, "clip_zeroshot")


def trained_on(arm: str, kind: Kind) -> str:
    """Return the training images of a run, in words."""
    if arm == REAL:
        return _REAL_KINDS.get(kind, f"real shots alone ({kind})")
    if kind.scale is not None and kind.real:
        return f"real + {arm}, {kind.scale} × the shots, strongly augmented"
    if kind.scale is not None:
        return f"{arm} alone, {kind.scale} × the shots"
    return {BOTH: f"real + {arm}", BOTH_STRONG: f"real + {arm}, strongly augmented"}.get(kind, f"{arm} alone")


def facts(evidence: Evidence) -> Markup:
    """Return the settings of the run, as a list of terms."""
    params, split, base = evidence.params, evidence.split, evidence.params.base
    classes = joined(", ", [Markup('<bdi class="clip" title="{0}">{0}</bdi>').format(c) for c in split.classes[:20]])
    more = f" and {len(split.classes) - 20} more" if len(split.classes) > 20 else ""
    pairs: list[tuple[str, object]] = [
        ("Source", short_source(evidence)),
        ("Classes", joined("", [f"{len(split.classes)}: ", classes, more])),
        ("Real shots", f"{split.shots_in_words} per class, {len(split.train)} in all"),
        ("Selection", _selection(evidence)),
        ("Test", _protocol(evidence)),
        ("Seed", params.seed),
        ("Generator", f"{params.model}, {base.resolution} px, licence {base.licence}"),
        ("Caption", joined("", ["“", name(split.template), "”"])),
        ("Classifiers", ", ".join(evidence.classifiers)),
        *((recipe, _recipe(evidence, recipe)) for recipe in params.active),
    ]
    return fill("tables.facts", pairs=pairs)


def _selection(evidence: Evidence) -> str:
    """Return a phrase on what chooses step and configuration, and on the labels that this takes."""
    split, rule = evidence.split, evidence.evaluation.get("selection")
    labels = len(split.selection) / len(split.classes)
    if rule is None:
        return (
            f"{labels:g} further labels per class choose the training step" if labels else "none: the last step is kept"
        )
    words = _RULES.get(str(rule).partition(":")[0], "as params.yaml says")
    return f"{rule}: {words}; {labels:g} labels per class select, {len(split.train) / len(split.classes):g} train"


def _protocol(evidence: Evidence) -> str:
    """Return a phrase on the images that scored all runs."""
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


def accuracies(evidence: Evidence) -> Markup:
    """Return the table of accuracies: a row per kind of training images, baselines first, a column per classifier."""
    classifiers, sets = evidence.classifiers, evidence.evaluation["sets"]
    common = next((score.record.get("majority") for score in evidence.scores.values()), None)
    # Baselines of other classifiers take one cell over all columns.
    wide = [("nothing: the commonest class always", percent(common))] if common is not None else []
    zero = evidence.scores.get(ZERO_SHOT_RUN)
    wide += [("nothing: zero-shot CLIP", _accuracy(zero))] if zero else []
    wide += [
        (f"{trained_on(REAL, run.kind)}: {run.classifier}", _accuracy(score))
        for run, score in evidence.scores.items()
        if run.arm == REAL and run.classifier not in classifiers
    ]
    measured = {(run.arm, run.kind) for run in evidence.scores if run.classifier in classifiers}
    real = [
        (trained_on(REAL, kind), [_cell(evidence, Run(REAL, kind, name)) for name in classifiers])
        for kind in evidence.real_kinds
        if (REAL, kind) in measured
    ]
    recipes = []
    for recipe in evidence.params.active:
        rows = [
            (words, [_cell(evidence, Run(recipe, kind, name)) for name in classifiers])
            for kind, words in _KINDS.items()
            if (recipe, kind) in measured
        ]
        recipes.append((recipe, rows, _distances(sets.get(recipe, {}))))
    return fill(
        "tables.accuracies",
        classifiers=classifiers,
        wide=wide,
        real=real,
        recipes=recipes,
        accuracy=f"Accuracy on {basis(evidence.evaluation).rstrip(',')}, {evidence.confidence} intervals.",
        distances=_distances_of(evidence),
        weak=_not_helping(evidence),
        gains=len(evidence.gains),
    )


def _cell(evidence: Evidence, run: Run) -> tuple[str, str, str]:
    """Return an accuracy, its mark, and its outcome against the best run on the real images alone."""
    score = evidence.scores.get(run)
    if score is None:
        return "–", "", ""
    gain = evidence.over_real(run.arm, run.classifier, run.kind) if run.kind in TOGETHER else None
    side = gain.shown(evidence.level) if gain else None
    return (_accuracy(score), _MARKS[side], side) if side else (_accuracy(score), "", "")


def _accuracy(score: Score) -> str:
    return aside(percent(score.accuracy), interval(score.low, score.high))


def _distances(measured: dict[str, Any]) -> list[str]:
    """Return FID, KID and near-duplicates of a synthetic dataset, as cells."""
    kid = measured.get("kid")
    spread = f"± {measured['kid_sd']:.4f}" if measured.get("kid_sd") else ""
    return [
        number(measured.get("fid"), 1),
        "–" if kid is None else aside(f"{kid:.4f}".replace("-", MINUS), spread),
        counted(measured.get("near_duplicates", {})),
    ]


def _distances_of(evidence: Evidence) -> str:
    """Return sentences on how FID and KID are measured, and on which accuracies are CAS."""
    sets = evidence.evaluation["sets"].values()
    one: dict[str, Any] = next(iter(sets), {})
    sentences = []
    if one.get("features"):
        words = f"FID and KID against the {scored_images(evidence.evaluation)} in the features of the {one['features']}"
        sizes = sorted({measured.get("n") for measured in sets} - {None})
        words += f", n = {', '.join(map(number, sizes))} images on each side" if sizes else ""
        words += f", KID in subsets of {one['kid_subset']}" if one.get("kid_subset") else ""
        small = any(measured.get("warning") for measured in sets)
        sentences.append(f"{words}{'; FID is biased upwards at such n' if small else ''}.")
    sentences += [f"{warning[0].upper()}{warning[1:]}." for warning in evidence.evaluation.get("warnings", ())]
    known = dict.fromkeys(f"a {s.run.classifier}" for s in evidence.scores.values() if s.record.get("measure") == "CAS")
    if known:
        sentences.append(f"{' or '.join(known).capitalize()} trained on synthetic images alone is CAS.")
    return " ".join(sentences)


def _not_helping(evidence: Evidence) -> list[tuple[str, Gain]]:
    """Return every comparison whose interval or test shows no gain, in words."""
    lines = []
    weak = [gain for gain in evidence.gains.values() if gain.shown(evidence.level) != "helps"]
    for gain in sorted(weak, key=lambda gain: (gain.outcome != "hurts", gain.difference)):
        of, minus = gain.of, gain.minus
        against = trained_on(REAL, minus.kind) if minus.arm == REAL else f"{minus.arm}’s images in their place"
        lines.append((f"{of.classifier}, {trained_on(of.arm, of.kind)} over {against}", gain))
    return lines


def costs(evidence: Evidence) -> Markup:
    """Return seconds and images by recipe and stage; they include adapting and tuning the recipes it starts from."""
    rows: dict[str, dict[str, str]] = {}
    for arm in (REAL, *evidence.params.active):
        lineage, drawn = evidence.params.lineage(arm), evidence.record("generate", arm)
        adapted = [evidence.record("adapt", recipe) for recipe in lineage]
        studies = [evidence.studies[recipe] for recipe in lineage if recipe in evidence.studies]
        tuned_for = total(study["seconds"] for study in studies)
        adapted_for = total(record.get("seconds") for record in adapted)
        trained = total(run["seconds"] for run in evidence.record("train", arm).get("runs", ()))
        drawing = [] if arm == REAL else [adapted_for, drawn.get("seconds")]
        rows["real shots only" if arm == REAL else arm] = {
            "adapters": number(total(record.get("adapters") for record in adapted)),
            "steps": number(total(record.get("steps") for record in adapted)),
            "adapt, s": number(adapted_for, 1),
            "trials": number(total(len(study["trials"]) for study in studies)),
            "tune, s": number(tuned_for, 1),
            "images": number(drawn.get("images")),
            "redrawn": number(drawn.get("redrawn")),
            "generate, s": number(drawn.get("seconds"), 1),
            "images/s": number(drawn.get("images_per_s"), 1),
            "train, s": number(trained, 1),
            "total, s": number(total([trained, *drawing, *([tuned_for] if studies else [])]), 1),
        }
    table = Table(["Recipe", *next(iter(rows.values()))], [[arm, *row.values()] for arm, row in rows.items()])
    return fill("tables.costs", table=table, studies=bool(evidence.studies), after=bool(evidence.params.after))


def details(evidence: Evidence) -> Table:
    """Return every run with the numbers that the big tables leave out."""
    records = [score.record for score in evidence.scores.values()]
    given = {key: column for key, column in _MEASURES.items() if any(record.get(key) is not None for record in records)}
    head = ["Run", "accuracy", "interval", *(title for title, _ in given.values()), "steps", "kept step", "s"]
    rows = []
    for score in evidence.scores.values():
        record = score.record
        confused = [
            Markup("{} → {} ×{}").format(name(pair["actual"]), name(pair["predicted"]), pair["count"])
            for pair in record.get("most_confused", ())
        ]
        row = [spaced(score.run), percent(score.accuracy), interval(score.low, score.high)]
        row += [percent(record.get(key)) if share else number(record.get(key), 3) for key, (_, share) in given.items()]
        row += [number(record.get("steps")), number(record.get("chosen_step")), number(record.get("seconds"), 1)]
        rows.append([*row, joined(", ", confused)])
    return Table([*head, "most often confused"], rows, columns={"most often confused": "names"})


def differences(evidence: Evidence) -> Table:
    """Return every paired difference, with McNemar's exact test where there is one."""
    records = {(record["of"], record["minus"]): record for record in evidence.evaluation["differences"]}
    tested = any(gain.p is not None for gain in evidence.gains.values())
    head = ["Run", "over", "points", "interval", *(["only first right", "only second right", "McNemar p"] * tested)]
    rows = []
    for gain in evidence.gains.values():
        row = [spaced(gain.of), spaced(gain.minus), points(gain.difference), point_interval(gain)]
        if tested:
            record = records[str(gain.of), str(gain.minus)]
            row += [number(record.get("gained")), number(record.get("lost")), p_value(gain.p)]
        rows.append(row)
    return Table(head, rows, columns={"over": "text"})


def _recipe(evidence: Evidence, name: str) -> str:
    """Return a phrase on how a recipe makes its images."""
    params = evidence.params
    row = params.recipes[name]
    if not row.draws:
        return f"nothing drawn: the nearest images of the base’s source; {params.of(name).per_class} per class"
    sampler = params.sampler(name)
    how = ", ".join(part for part in (adapter_words(row), scales_words(row)) if part) or "the generator as it is"
    drawn = "by the student, " if sampler.student else ""
    drawn += f"{sampler.scheduler}, {sampler.steps} steps, guidance {sampler.guidance:.3g}"
    study = evidence.studies.get(name)
    if study and study["best"]:
        did = "kept" if study["best"] == (study.get("default") or {}).get("values") else "chosen"
        drawn += f" ({', '.join(study['searched'])} {did} by a study)"
    made = evidence.record("generate", name)
    each = made.get("per_class", params.of(name).per_class)
    fit = f", as many as fit into {made['budget']['budget_s']:g} s" if "budget" in made else ""
    copied = f" ({row.copies} copies of each drawn one)" if row.copies else ""
    return f"{how}; {drawn}; {each} images per class{copied}{fit}; prompt: {row.prompt}"


def short_source(evidence: Evidence) -> str:
    """Return the source; of an absolute path only the last part, for the rest describes a machine and not the data."""
    kind, colon, path = evidence.split.source.partition(":")
    return f"{kind}{colon}{path.rstrip('/').rpartition('/')[2] if path.startswith('/') else path}"
