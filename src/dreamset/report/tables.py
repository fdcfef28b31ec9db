"""Sections of the page that are read: what was run, the accuracies, the costs, the table over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.report.evidence import REAL, REAL_ARMS, ZERO_SHOT
from dreamset.report.gallery import section
from dreamset.report.markup import (
    Html,
    interval,
    join,
    number,
    percent,
    point_interval,
    points,
    row,
    table,
    tag,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.params import Recipe
    from dreamset.report.evidence import Evidence, Score

_MARKS: Final = {"helps": "▲", "hurts": "▼", "unclear": "≈"}
_KINDS: Final = {"synthetic": "synthetic only", "both": "real + synthetic"}
_ZERO_SHOT_CLASSIFIER: Final = "clip_zeroshot"


def facts(evidence: Evidence) -> Html:
    """What was run, as a list of terms."""
    params, split, base = evidence.params, evidence.split, evidence.params.base
    classes = len(split.classes)
    real = f"{split.shots} per class, {len(split.train)} in all"
    choosing = "fixed: nothing is chosen, the last step is kept"
    if params.selection == "cv":
        choosing = "cv: folds of the shots choose step and configuration"
    elif params.sets_apart:
        choosing = f"{params.selection}: {len(split.selection) / classes:g} labels per class choose step, configuration"
    pairs: list[tuple[str, object]] = [
        ("Source", short_source(evidence)),
        ("Classes", join(f"{classes}: ", _names(split.classes))),
        ("Real shots", real),
        ("Selection", choosing),
        ("Test", f"{number(evidence.evaluation['test_images'])} real images that no other stage opens"),
        ("Seed", params.seed),
        ("Generator", f"{params.model}, {base.resolution} px, licence {base.licence}"),
        ("Caption", join("“", tag("bdi", split.template), "”")),
        ("Classifiers", ", ".join(evidence.classifiers)),
        *((name, _recipe(evidence, name)) for name in params.active),
    ]
    return section("setup", "What was run", tag("dl", [(tag("dt", term), tag("dd", told)) for term, told in pairs]))


def accuracies(evidence: Evidence) -> Html:
    """Recipes and what was trained on, by classifier; baselines first; marks where synthetic images help or not."""
    classifiers = evidence.classifiers
    head = [
        "Trained on",
        *(tag("th", name, scope="col", class_="number") for name in classifiers),
        *(tag("th", name, scope="col", class_="number") for name in ("FID", "KID", "near-duplicates")),
    ]
    zero = evidence.score(ZERO_SHOT, "none", _ZERO_SHOT_CLASSIFIER)
    baselines = []
    if zero:
        wide = tag("td", _accuracy(zero), colspan=len(classifiers))
        baselines.append(row("nothing: zero-shot CLIP", wide, *[tag("td", "")] * 3))
    cells = [_cell(evidence, REAL, "real", name) for name in classifiers]
    baselines.append(row("real shots only", *cells, *[tag("td", "")] * 3))
    bodies = [tag("tbody", baselines)]
    for recipe in evidence.params.active:
        distances = _distances(evidence.evaluation["sets"].get(recipe, {}))
        top = tag("tr", tag("th", recipe, colspan=4 + len(classifiers), scope="rowgroup"))
        lines = [
            row(told, *(_cell(evidence, recipe, kind, name) for name in classifiers), *(distances if first else ()))
            for first, (kind, told) in zip((True, False), _KINDS.items(), strict=True)
        ]
        bodies.append(tag("tbody", top, lines))
    return section(
        "accuracy",
        "Every accuracy",
        table(head, bodies, _caption(evidence), "accuracies"),
        _not_helping(evidence),
    )


def costs(evidence: Evidence) -> Html:
    """Seconds and images of every recipe and stage."""
    names = ("adapters", "steps", "adapt, s", "images", "redrawn", "generate, s", "images/s", "train, s", "total, s")
    head = ["Recipe", *(tag("th", name, scope="col", class_="number") for name in names)]
    rows = []
    for arm in (REAL, *evidence.params.active):
        adapt, drawn = evidence.record("adapt", arm), evidence.record("generate", arm)
        training = [run["seconds"] for run in evidence.record("train", arm).get("runs", ())]
        trained = sum(training) if training else None
        seconds = [adapt.get("seconds"), drawn.get("seconds"), trained]
        shown = [
            number(adapt.get("adapters")),
            number(adapt.get("steps")),
            number(seconds[0], 1),
            number(drawn.get("images")),
            number(drawn.get("redrawn")),
            number(seconds[1], 1),
            number(drawn.get("images_per_s"), 1),
            number(trained, 1),
            number(sum(value for value in seconds if value is not None), 1),
        ]
        name = "real shots only" if arm == REAL else arm
        rows.append(row(name, *(tag("td", value, class_="number") for value in shown)))
    note = "Seconds of work on the machine that ran the stages, without start-up; training is of all classifiers."
    return section("costs", "What it cost", table(head, rows, note))


def details(evidence: Evidence) -> Html:
    """Every run with what the big table leaves out, folded away."""
    top = any(score.record.get("top5") is not None for score in evidence.scores.values())
    names = ["accuracy", "interval", *(["top 5"] if top else []), "steps", "kept step", "s", "most often confused"]
    rows = []
    for score in evidence.scores.values():
        record = score.record
        confused = [
            join(tag("bdi", pair["actual"]), " → ", tag("bdi", pair["predicted"]), f" ×{pair['count']}")
            for pair in record.get("most_confused", ())
        ]
        numbers = [percent(score.accuracy), interval(score.low, score.high)]
        numbers += [percent(record.get("top5"))] if top else []
        numbers += [number(record.get("steps")), number(record.get("chosen_step")), number(record.get("seconds"), 1)]
        separated = [part for pair in confused for part in (Html(", "), pair)][1:]
        cells = [tag("td", value, class_="number") for value in numbers]
        rows.append(row(score.key.replace("/", " · "), *cells, tag("td", separated, class_="names")))
    return tag("details", tag("summary", "Every run in numbers"), table(["Run", *names], rows))


def _caption(evidence: Evidence) -> Html:
    n = {found.get("n") for found in evidence.evaluation["sets"].values()} - {None}
    told = f"n = {', '.join(number(value) for value in sorted(n))} images on each side" if n else ""
    features = next((found.get("features") for found in evidence.evaluation["sets"].values()), None)
    subset = next((found.get("kid_subset") for found in evidence.evaluation["sets"].values()), None)
    return join(
        f"Accuracy on {number(evidence.evaluation['test_images'])} test images, {evidence.confidence} intervals. ",
        tag("b", "▲"), " gains over the real shots alone, ",
        tag("b", "▼"), " loses, ",
        tag("b", "≈"), " the paired interval holds zero. ",
        f"FID and KID against the test images in the features of the {features}" if features else None,
        f", {told}" if features and told else None,
        f", KID in subsets of {subset}" if features and subset else None,
        "; FID is biased upwards at such n." if features else None,
        " A resnet20 trained on synthetic images alone is CAS."
        if "resnet20" in evidence.classifiers else None,
    )  # fmt: skip


def _cell(evidence: Evidence, arm: str, kind: str, classifier: str) -> Html:
    score = evidence.score(arm, kind, classifier)
    if score is None:
        return tag("td", "–", class_="number")
    gain = evidence.gain((arm, kind), (REAL, "real"), classifier)
    mark = tag("b", _MARKS[gain.outcome], " ", class_="mark") if gain else None
    return tag("td", mark, _accuracy(score), class_=f"number {gain.outcome if gain else ''}".strip())


def _accuracy(score: Score) -> Html:
    return join(percent(score.accuracy), " ", tag("small", interval(score.low, score.high)))


def _distances(found: dict[str, Any]) -> list[Html]:
    near = found.get("near_duplicates", {})
    fid, kid = found.get("fid"), found.get("kid")
    spread = f" ± {found['kid_sd']:.4f}" if found.get("kid_sd") else ""
    shown = [
        number(fid, 1),
        "–" if kid is None else join(f"{kid:.4f}".replace("-", "−"), tag("small", spread)),
        "–" if "count" not in near else join(number(near["count"]), tag("small", f" {percent(near.get('share'))}")),
    ]
    return [tag("td", value, class_="number", rowspan=2) for value in shown]


def _not_helping(evidence: Evidence) -> Html:
    """Every comparison whose interval does not lie above zero."""
    lines = []
    weak = [gain for gain in evidence.gains.values() if gain.outcome != "helps"]
    for gain in sorted(weak, key=lambda gain: (gain.outcome != "hurts", gain.difference)):
        (arm, kind, classifier), (other, real, _) = gain.of.split("/"), gain.minus.split("/")
        against = REAL_ARMS[real] if other == REAL else f"{other}’s images in their place"
        what = f"{classifier}, {'real shots + ' if kind == 'both' else ''}{arm}{'' if kind == 'both' else ' alone'}"
        ends = f" points ({point_interval(gain.low, gain.high)})"
        lines.append(
            tag("li", f"{what} over {against}: ", tag("b", points(gain.difference)), ends, class_=gain.outcome)
        )
    if not lines:
        return tag("p", "Every comparison that was made shows a gain.")
    title = f"Where it does not help: {len(lines)} of {len(evidence.gains)} comparisons"
    return tag("div", tag("h3", title), tag("ul", lines, class_="plain"))


def _recipe(evidence: Evidence, name: str) -> Html:
    found: Recipe = evidence.params.recipes[name]
    sampler = evidence.params.sampler(name)
    how = "the generator as it is"
    if found.adapter == "lora":
        lora = found.lora()
        where = " and ".join(part for part, on in (("U-Net", lora.unet), ("text encoder", lora.text_encoder)) if on)
        many = "one adapter" if found.scope == "dataset" else "one adapter per class"
        how = f"{many}, LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on the attention of the {where}"
    drawn = f"{sampler.scheduler}, {sampler.steps} steps, guidance {sampler.guidance:g}"
    return join(f"{how}; {drawn}; {evidence.params.per_class} images per class; prompt: {found.prompt}")


def _names(classes: Sequence[str]) -> Html:
    shown = [part for name in classes[:20] for part in (Html(", "), tag("bdi", name, class_="clip", title=name))][1:]
    return join(shown, f" and {len(classes) - 20} more" if len(classes) > 20 else None)


def short_source(evidence: Evidence) -> str:
    """The source without the folders above it, which say more of a machine than of the data."""
    kind, colon, path = evidence.split.source.partition(":")
    return f"{kind}{colon}{path.rstrip('/').rpartition('/')[2]}"
