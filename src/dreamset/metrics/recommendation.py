"""Which images and which classifier to take, from the cells of a table over seeds.

The rule is chosen by the test images of the table, so its own figure is too favourable. What it is worth is measured
seed by seed instead: the other seeds choose, and the seed that was left out scores the choice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dreamset.core.errors import InputError
from dreamset.data.runs import REAL, ZERO_SHOT, Kind, Run
from dreamset.metrics.scored import groups_of, right
from dreamset.metrics.statistics import crossed, indicative
from dreamset.metrics.verdict import points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Cell = Mapping[str, Any]

Answer = Literal["take", "perhaps", "leave"]
FEWEST: Final = 3  # seeds: two that choose, and one that scores
_SECONDS: Final = ("seconds_adapt", "seconds_tune", "seconds_generate", "seconds_train")


@dataclass(frozen=True)
class Option:
    """A run that every seed has.

    Attributes:
        run: its arm, images and classifier.
        accuracy: mean over the seeds, as a share of the test images.
        seconds: mean of adapting, tuning, drawing and training one classifier.
        images: number of synthetic images; None without any.
    """

    run: Run
    accuracy: float
    seconds: float
    images: int | None = None

    @property
    def synthetic(self) -> bool:
        """Whether it learns from synthetic images."""
        return self.run.arm not in (REAL, ZERO_SHOT)


@dataclass(frozen=True)
class Recommendation:
    """The answer at one number of shots.

    Attributes:
        answer: ``take`` the synthetic images; ``perhaps``: they look better, also where they were not chosen, and may
            be luck; or ``leave`` them.
        best: what to train: with synthetic images where the answer is ``take`` or ``perhaps``.
        real: the best without synthetic images.
        options: all runs that were compared, the cheapest first.
        seeds: number of seeds.
        gain: mean gain over the best real run of what the other seeds choose, as a share of the test images; 0 in a
            seed where they choose no synthetic images.
        low: lower end of its interval over seeds and groups of test images.
        high: upper end.
        chosen: in how many seeds the others choose ``best``.
        left_out: runs that some of the seeds lack, or whose seconds are unknown.
        budget: most seconds of what was taken with synthetic images; None: any.
    """

    answer: Answer
    best: Option
    real: Option
    options: tuple[Option, ...]
    seeds: int
    gain: float
    low: float
    high: float
    chosen: int
    left_out: tuple[Run, ...] = ()
    budget: float | None = None

    @property
    def front(self) -> tuple[Option, ...]:
        """The options that no cheaper one equals in accuracy, the cheapest first."""
        best, front = -1.0, []
        for option in self.options:
            if option.accuracy > best:
                front.append(option)
                best = option.accuracy
        return tuple(front)

    @property
    def record(self) -> dict[str, Any]:
        """The fields as JSON holds them, runs as text."""

        def plain(option: Option) -> dict[str, Any]:
            return {"run": str(option.run), "accuracy": round(option.accuracy, 6), "seconds": round(option.seconds, 1)}

        return asdict(self) | {
            "best": plain(self.best),
            "real": plain(self.real),
            "options": [plain(option) for option in self.options],
            "front": [str(option.run) for option in self.front],
            "left_out": [str(run) for run in self.left_out],
        }


def sentences(found: Recommendation, shots: object, scope: str | None, confidence: float) -> list[str]:
    """Return the answer in words: what to train, how sure that is, and what it costs.

    Args:
        found: the recommendation.
        shots: number of images per class.
        scope: whose adapter draws the images, in words; None: nothing is adapted.
        confidence: of the interval, 0..1.
    """
    best, real = found.best, found.real
    ends = f"{points(found.low)} to {points(found.high)}, {100 * confidence:g}% interval"
    same = f"in {found.chosen} of {found.seeds} seeds the other seeds choose {_named(best.run).rstrip(',')}"
    per_class = _per_class(shots)
    lacking = ", ".join(map(_named, found.left_out))
    missing = f" Not compared, for some seeds lack them or their seconds: {lacking}." if lacking else ""
    if not best.synthetic:
        with_them = [one for one in found.options if one.synthetic and _within(one, found.budget)]
        most = max(with_them, key=lambda option: option.accuracy, default=None)
        limit = "" if found.budget is None else f" within {found.budget:.0f} s"
        # Where they choose no synthetic images anywhere, there is no gain to tell.
        gained = found.chosen < found.seeds and found.low < found.high
        other = f". What they choose gains {points(found.gain)} points on the seed left out ({ends})" if gained else ""
        return [
            f"Leave synthetic images, {per_class}: of all classifiers, "
            f"{_alone(best.run, best.accuracy, (most.run, most.accuracy) if most else None, limit)}.",
            f"{same[:1].upper()}{same[1:]}{other}.",
            f"It takes {best.seconds:.0f} s.{missing}",
        ]
    opening = "Take" if found.answer == "take" else "Perhaps"
    drawn = "".join([f", {scope}" if scope else "", f", {best.images} images" if best.images else ""]).lstrip(", ")
    sure = "so these seeds show it" if found.answer == "take" else "so real images alone may be as good"
    return [
        f"{opening} synthetic images, {per_class}: {_named(best.run)} gets {100 * best.accuracy:.1f}%, and "
        f"{_named(real.run)} {100 * real.accuracy:.1f}%{f' ({drawn})' if drawn else ''}.",
        f"What the other seeds choose gains {points(found.gain)} points on the seed left out ({ends}), {sure}; {same}.",
        f"It takes {best.seconds:.0f} s, and {real.seconds:.0f} s without synthetic images.{missing}",
    ]


def as_well(found: Mapping[str, Any], shots: object, seeds: int) -> str:
    """Return what a recommendation to leave synthetic images says to whoever was told that some of them help.

    Args:
        found: the recommendation as ``Recommendation.record`` and JSON hold it.
        shots: number of images per class.
        seeds: number of seeds.
    """
    options = [(Run.parse(one["run"]), one["accuracy"]) for one in found["options"]]
    with_them = [option for option in options if option[0].arm not in (REAL, ZERO_SHOT)]
    most = max(with_them, key=lambda option: option[1], default=None)
    said = _alone(Run.parse(found["best"]["run"]), found["best"]["accuracy"], most)
    place = f"over {seeds} seeds {_per_class(shots)}"
    return f"It may do as well without synthetic images: {place}, of all classifiers, {said}."


def _alone(best: Run, accuracy: float, most: tuple[Run, float] | None, limit: str = "") -> str:
    """Return in words that nothing with synthetic images is shown to be better; ``most`` is the best of these."""
    tried = f" ({_named(most[0])} gets {100 * most[1]:.1f}%)" if most else ""
    nothing = f"nothing with synthetic images{limit} is shown to be better"
    return f"{_named(best)} gets {100 * accuracy:.1f}%, and {nothing}{tried}"


def _within(option: Option, budget: float | None) -> bool:
    """Return whether an option may be taken; what learns from real images alone always may."""
    return not option.synthetic or budget is None or option.seconds <= budget


def _per_class(shots: object) -> str:
    return f"at {shots} image{'' if str(shots) == '1' else 's'} per class"


def _named(run: Run) -> str:
    """Return a run in words."""
    if run.arm == ZERO_SHOT:
        return f"{run.classifier} without any training"
    images = {(1, 1): f"real images and {run.arm}", (1, 0): "real images alone", (0, 1): f"{run.arm} alone"}
    strongly = ", strongly augmented," if run.kind.strong else ""
    return f"{run.classifier} of {images[run.kind.real, run.kind.synthetic]}{strongly}"


def recommend(cells: Sequence[Cell], confidence: float, resamples: int, budget: float | None = None) -> Recommendation:
    """Return what to train at the number of shots of some cells.

    Without synthetic images the run of the highest mean accuracy is taken. With them it is that of the highest mean
    within the budget, where it is better than the former by more than one standard error of the difference by seed.

    Args:
        cells: records of a table, all of one number of shots.
        confidence: of the interval, 0..1.
        resamples: as for ``crossed``.
        budget: most seconds of a run; None: any. What learns from real images alone is always within it.

    Raises:
        InputError: there are too few seeds, or no real or no synthetic run, or cells of other images.
    """
    cells = sorted(cells, key=lambda cell: cell["seed"])
    if len(cells) < FEWEST:
        raise InputError(
            f"results/table: {len(cells)} seed{' is' if len(cells) == 1 else 's are'} too few to say what is best; it "
            f"takes a table of {FEWEST} or more, and better ten."
        )
    if len({(cell.get("labels"), str(cell.get("groups"))) for cell in cells}) > 1:
        raise InputError("results/table: its seeds were scored on different images, which cannot be compared.")
    groups = groups_of(cells[0])
    if groups is not None and groups.max() < 1:
        groups = None
    options, left_out = _options(cells)
    accuracy = np.array([[right(cell, option.run).mean() for cell in cells] for option in options])
    usable = [index for index, option in enumerate(options) if _within(option, budget)]
    if not any(not option.synthetic for option in options) or not any(option.synthetic for option in options):
        least = min(cells, key=lambda cell: len(cell["right"]))
        raise InputError(
            "results/table: holds no runs with and without synthetic images in the same seeds; seed "
            f"{least['seed']} has the fewest runs: run `dreamset table` for it with the recipes of the others, or "
            "remove its record."
        )
    best, real = _pick(accuracy, options, usable)
    rows, choices = [], []
    for index, cell in enumerate(cells):
        others = np.delete(accuracy, index, axis=1)
        picked, alone = _pick(others, options, usable)
        choices.append(picked)
        rows.append(right(cell, options[picked].run) - right(cell, options[alone].run))
    interval = crossed(np.stack(rows), resamples, confidence, groups)
    answer: Answer = "leave"
    # Half of the interval's half: about a standard error, and more where there are few seeds or groups.
    if options[best].synthetic and interval.estimate > (interval.high - interval.low) / 4:
        answer = "take" if interval.low > 0 and not indicative(len(cells)) else "perhaps"
    ordered = tuple(sorted(options, key=lambda option: (option.seconds, -option.accuracy)))
    taken = real if answer == "leave" else best
    return Recommendation(
        answer,
        options[taken],
        options[real],
        ordered,
        len(cells),
        round(interval.estimate, 6),
        round(interval.low, 6),
        round(interval.high, 6),
        choices.count(taken),
        left_out,
        budget,
    )


def _options(cells: Sequence[Cell]) -> tuple[list[Option], tuple[Run, ...]]:
    """Return the runs that every cell has, and the others; those of ``train.scales`` are curves and nothing to take."""
    found: dict[Run, list[dict[str, Any]]] = {}
    for cell in cells:
        for row in cell["rows"]:
            run = Run(row["recipe"], Kind.parse(row["train_on"]), row["classifier"])
            if str(run) in cell["right"] and run.kind.whole and not run.kind.more:
                found.setdefault(run, []).append(row)
    options = []
    for run, rows in found.items():
        # A classifier that is never trained has no seconds; what was trained and has none is of an unknown cost.
        seconds = [[row[name] for name in _SECONDS if row.get(name) is not None] for row in rows]
        known = all(each and np.isfinite(each).all() for each in seconds)
        if len(rows) < len(cells) or not known:
            continue
        images = [row["images"] for row in rows if row.get("images")]
        options.append(
            Option(
                run,
                float(np.mean([row["accuracy"] for row in rows])),
                float(np.mean([sum(each) for each in seconds])),
                round(float(np.mean(images))) if len(images) == len(rows) else None,
            )
        )
    taken = {option.run for option in options}
    return options, tuple(run for run in found if run not in taken)


def _pick(accuracy: NDArray[np.float64], options: Sequence[Option], usable: Sequence[int]) -> tuple[int, int]:
    """Return the index of what to train, and that of the best without synthetic images.

    Args:
        accuracy: (options, seeds).
        options: the runs.
        usable: indices of those within the budget.
    """
    means = accuracy.mean(1)
    real = max((i for i, option in enumerate(options) if not option.synthetic), key=lambda i: means[i])
    others = [i for i in usable if options[i].synthetic]
    if not others:
        return real, real
    best = max(others, key=lambda i: means[i])
    gains = accuracy[best] - accuracy[real]
    error = float(gains.std(ddof=1)) / len(gains) ** 0.5
    return (best if gains.mean() > error + 1e-9 else real), real
