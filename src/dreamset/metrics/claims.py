"""The claims of ``dreamset table`` over several seeds, and the verdict that counts: over these seeds, or over one.

A table counts only if this run and the table have the same settings, code and pretrained weights.
"""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from dreamset.core.code import code_digest
from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.data.runs import REAL, ZERO_SHOT, Kind, Run
from dreamset.metrics import fixed, recommendation, verdict
from dreamset.metrics.gains import Gain, over_real
from dreamset.metrics.statistics import indicative
from dreamset.weights.fingerprint import TABLE, inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.metrics.fixed import Asked, Round
    from dreamset.params import Params

_Row = TypeVar("_Row")

RECOMMENDATIONS: Final = "recommendations.json"  # in the folder of a table

_ALONE: Final = (REAL, ZERO_SHOT)  # arms without synthetic images
_SIGN_FLIP: Final = "the sign-flip test over seeds"
_EXPLORED: Final = f"{_SIGN_FLIP}, adjusted for all differences of the table,"
_ADJUSTED: Final = f"{_SIGN_FLIP}, after Holm over the claims that were fixed with it,"


@dataclass(frozen=True)
class Claim:
    """A difference over several seeds, at one number of shots; p-values where they were computed."""

    shots: int
    seeds: int
    gain: Gain
    p: float | None
    p_adjusted: float | None  # within its family: the verdict asks it
    family: str = ""  # the round that the claim was fixed in; empty: exploratory
    asked: Asked = "gain"
    groups: int | None = None  # of the test images; None: each image is one
    accuracies: tuple[float, float] | None = None  # means of the two runs over these seeds; older tables lack them

    @property
    def primary(self) -> bool:
        """Whether the claim was fixed before its test scores existed."""
        return bool(self.family)

    @property
    def difference(self) -> tuple[int, Run, Run]:
        """The number of shots, and the two runs that are compared."""
        return self.shots, self.gain.of, self.gain.minus

    def side(self, level: float) -> Literal["helps", "hurts", "unclear"]:
        """Return the side of zero that it is shown on: by interval and adjusted test, or without one by the interval.

        Args:
            level: of the test.
        """
        return replace(self.gain, p=self.p_adjusted).shown(level)

    def holds(self, smallest_gain: float, level: float = 0.05) -> bool:
        """Whether a fixed claim holds: by its interval and by its test, after the adjustment for its family.

        Args:
            smallest_gain: a loss below it is none.
            level: of the test.
        """
        least = -smallest_gain if self.asked == "no_loss" else 0.0
        return self.gain.low > least and self.p_adjusted is not None and self.p_adjusted <= level

    def outcome(self, smallest_gain: float, level: float) -> Literal["holds", "helps", "hurts", "not shown"]:
        """The finding in a word: of a fixed claim whether it holds, and of another difference its side of zero.

        Interval and test have to agree, the test after the adjustment for its family.

        Args:
            smallest_gain: a loss below it is none.
            level: of the test.
        """
        if self.primary:
            return "holds" if self.holds(smallest_gain, level) else "not shown"
        side = self.side(level)
        return "not shown" if side == "unclear" or self.p_adjusted is None else side


@dataclass(frozen=True)
class Mean:
    """The mean accuracy of a run over its seeds, at one number of shots; the standard deviation where there is one."""

    shots: int
    run: Run
    accuracy: float
    sd: float | None
    seeds: int


@dataclass(frozen=True)
class Sweep:
    """The tables of ``dreamset table``; the correlations are rows of text."""

    claims: list[Claim]
    means: list[Mean]
    correlations: list[dict[str, str]]
    cost: dict[str, Any]
    rounds: list[Round] = field(default_factory=list)  # all, whether their cells are finished or not
    recommendations: dict[str, Any] = field(default_factory=dict)  # by number of shots, as JSON holds them

    @property
    def explored(self) -> list[Claim]:
        """The exploratory claims, which are of all seeds."""
        return [claim for claim in self.claims if not claim.primary]

    @property
    def seeds(self) -> int:
        """The fewest seeds that an exploratory claim rests on, or a fixed one where there is no other."""
        return min((claim.seeds for claim in self.explored or self.claims), default=0)

    @property
    def spoken_seeds(self) -> str:
        """The numbers of seeds that these claims rest on, such as ``6`` or ``3 to 10``."""
        counts = sorted({claim.seeds for claim in self.explored or self.claims})
        return f"{counts[0]} to {counts[-1]}" if counts[1:] else str(self.seeds)

    @property
    def gains(self) -> list[Claim]:
        """The exploratory claims, each replaced by what was fixed last of a gain by the same difference."""
        fixed = {
            claim.difference: claim
            for one in self.rounds
            for claim in self.claims
            if (claim.family, claim.asked) == (one.name, "gain")
        }
        return [fixed.get(claim.difference, claim) for claim in self.explored]

    def at(self, shots: object, family: str = "") -> dict[tuple[Run, Run], Claim]:
        """Return the claims of a gain in a family at this number of shots, by the two runs compared."""
        own = [claim for claim in self.claims if (claim.shots, claim.family) == (shots, family)]
        return {(claim.gain.of, claim.gain.minus): claim for claim in own if claim.asked == "gain"}

    def deciding(self, params: Params, shots: object) -> dict[tuple[Run, Run], Claim]:
        """Return the claims that a verdict asks: of the last finished round on its recipe and classifier, or explored.

        A round counts where it claims a gain over real images alone at this number of shots.
        """
        for one in reversed(self.rounds):
            found = self.at(shots, one.name)
            if over_real((claim.gain for claim in found.values()), params.primary_recipe, params.primary_classifier):
                return found
        return self.at(shots)

    def advised(self, shots: object, delivered: Run | None = None) -> list[str]:
        """Return what the table recommends at this number of shots: the answer, and sentences on why; none without.

        Args:
            shots: images per class.
            delivered: the classifier that the reader was told to take, if any. Where one of the two learned from
                synthetic images and the other did not, the answer opens with what that means.
        """
        found = self.recommendations.get(str(shots))
        if found is None:
            return []
        first, *others = found["sentences"]
        seeds = found.get("seeds", self.seeds)
        words = f"Over {seeds} seeds: {first[:1].lower()}{first[1:]}"
        alone = Run.parse(found["best"]["run"]).arm in _ALONE
        if delivered is not None and (delivered.arm in _ALONE) != alone:
            words = recommendation.as_well(found, shots, seeds) if alone else f"Synthetic images may do better. {words}"
        return [words, *others]

    def means_at(self, shots: object) -> dict[Run, Mean]:
        """Return the means at this number of shots, by run."""
        return {mean.run: mean for mean in self.means if mean.shots == shots}


Other = Literal["settings", "code", "weights"]


@dataclass(frozen=True)
class Table:
    """The table over seeds in ``results/table``: its ``sweep`` if it counts, else the reason why it does not.

    Without a table both ``sweep`` and ``other`` are None.

    Attributes:
        sweep: the numbers of the arms that were asked for, and all claims that were fixed.
        other: the first thing in which table and run differ.
        names: the sections of the parameters that differ, where ``other`` is ``settings``.
        command: the commands that make the table current, joined by ``&&``.
    """

    sweep: Sweep | None = None
    other: Other | None = None
    names: tuple[str, ...] = ()
    command: str = ""

    @property
    def warning(self) -> str | None:
        """A sentence on a table that does not count; None without a table, or where it counts."""
        if self.other is None:
            return None
        which = f" ({', '.join(self.names)})" if self.names else ""
        remedy = "makes it current"
        if self.other == "code":
            remedy = "takes it over where the present code gives the same results (docs/statistics.md)"
        return (
            f"The table over seeds in `results/table` was made with other {self.other}{which}, so its figures do not "
            f"count for the verdict. `{self.command}` {remedy}."
        )


@dataclass(frozen=True)
class Settled:
    """The verdict that counts.

    Attributes:
        verdict: its record, as ``evaluate`` writes one; None where nothing was trained on real and synthetic images
            together.
        seeds: the number of seeds that it rests on: 1, or six and more of the table.
        gains: the differences over these seeds, by the two runs compared; empty where it rests on one seed.
        basis: a sentence on the seeds that it rests on.
        here: the record of the verdict on the evaluation alone.
        fixed: what was fixed beforehand, and when, where the verdict rests on that.
        accuracies: the means of its two runs over these seeds, where the table says them.
    """

    verdict: dict[str, Any] | None
    seeds: int
    gains: dict[tuple[Run, Run], Gain]
    basis: str
    here: dict[str, Any] | None
    fixed: str | None = None
    accuracies: dict[Run, float] = field(default_factory=dict)


def settle(params: Params, table: Table, split: Split, evaluation: dict[str, Any]) -> Settled:
    """Return the verdict over the seeds of the table, or of the evaluation where the table has fewer than six.

    Fewer do not show how much seeds differ. Claims that were fixed beforehand come before the exploratory ones, and
    each has to pass with the adjusted p of its family.

    Args:
        params: gives the primary recipe and classifier, and the smallest gain of interest.
        table: as ``read`` returns it.
        split: of the run that the verdict is for.
        evaluation: of that run.
    """
    here = verdict.of_evaluation(params, evaluation)
    claims = table.sweep.deciding(params, split.shots) if table.sweep else {}
    best = over_real((claim.gain for claim in claims.values()), params.primary_recipe, params.primary_classifier)
    # A recipe that was added later may have fewer seeds than the table.
    seeds = claims[best.of, best.minus].seeds if best else 0
    if not indicative(seeds):
        over = f"{verdict.basis(evaluation).rstrip(',')}, in the mean of {seeds} seeds,"
        gains = {pair: replace(claim.gain, p=claim.p_adjusted) for pair, claim in claims.items()}
        test = _ADJUSTED if best and claims[best.of, best.minus].primary else _EXPLORED
        pooled = verdict.judge(params, gains.values(), float(evaluation["confidence"]), over, test=test)
        if pooled is not None:
            basis = f"It rests on {seeds} seeds, of which this classifier is of seed {split.seed}."
            words = {one.name: one.words for one in (table.sweep.rounds if table.sweep else ())}
            decided = claims[Run.parse(pooled.record["of"]), Run.parse(pooled.record["minus"])]
            accuracies = dict(zip(decided.difference[1:], decided.accuracies or (), strict=False))
            return Settled(pooled.record, seeds, gains, basis, here, words.get(decided.family), accuracies)
    basis = f"It rests on one seed, {split.seed}."
    return Settled(here, 1, {}, f"{basis} {table.warning}" if table.warning else basis, here)


def hashes(params: Params, root: Path) -> dict[str, str]:
    """Return the hashes of the code and of the pretrained weights that decide the cells of a table."""
    return {"code": code_digest(*TABLE), "weights": inputs(None, root, params.base)}


def _taken(advice: dict[str, Any]) -> set[str]:
    """Return the recipes that a recommendation says to take."""
    return {Run.parse(advice["best"]["run"]).arm} - {*_ALONE}


def _about(advice: dict[str, Any]) -> set[str]:
    """Return the recipes that a recommendation names: those to take, or else the best of what it leaves."""
    if taken := _taken(advice):
        return taken
    every = [(one["accuracy"], Run.parse(one["run"]).arm) for one in advice["options"]]
    tried = [one for one in every if one[1] not in _ALONE]
    return {max(tried)[1]} if tried else set()


def _recorded(params: Params, recipe: str) -> object:
    """Return the row of a recipe as a table's setting holds it."""
    return json.loads(json.dumps(params.setting([recipe])["recipes"][recipe]))


def _told(advice: dict[str, Any], idle: set[str]) -> dict[str, Any]:
    """Return a recommendation that says of its recipes that they are not active, where that is so."""
    names = sorted(_taken(advice) & idle)
    if not names:
        return advice
    first, *others = advice["sentences"]
    more = f"`{'`, `'.join(names)}` {'is' if len(names) == 1 else 'are'} not active here"
    return advice | {"sentences": [f"{first} {more}: add {'it' if len(names) == 1 else 'them'} to `active`.", *others]}


def read(params: Params, workspace: Workspace, arms: Collection[str]) -> Table:
    """Return the table over seeds, with the claims and means of ``arms`` alone, and what it recommends of all recipes.

    Raises:
        InputError: a file of the table is not whole.
    """
    folder = workspace.results / "table"
    path = folder / "claims.csv"
    if not path.is_file():
        return Table()
    commands = _commands(folder)
    setting = _optional(folder / "setting.json")
    code, weights = setting.pop("code", None), setting.pop("weights", None)
    setting.pop("made", None)  # one hash of both, in older tables
    # The hash of the source's images, which only prepare and evaluate may read.
    setting.pop("data", None)
    rows = setting.get("recipes", {})
    recipes = {name: row for name, row in rows.items() if name in arms}
    setting["recipes"] = recipes
    # Through JSON, which turns tuples into lists.
    current = json.loads(json.dumps(params.setting(recipes.keys() & params.recipes.keys())))
    if setting != current:
        # An empty record does not tell which of them differ.
        differ = [name for name in current if setting.get(name) != current[name]] if "model" in setting else []
        return Table(other="settings", names=tuple(differ), command=" && ".join(commands))
    if code != code_digest(*TABLE):
        return Table(other="code", command=" && ".join(f"{command} --recheck" for command in commands))
    # The weights come last, because their hash reads all of them.
    if weights != inputs(None, workspace.root, params.base):
        return Table(other="weights", command=" && ".join(commands))
    # Of fixed claims all are told, as they were adjusted together; they are about the rows that the table is of.
    every = [(claim, {claim.gain.of.arm, claim.gain.minus.arm} <= set(arms)) for claim in read_claims(path)]
    claims = [claim for claim, known in every if known or claim.primary]
    means = [mean for mean in _rows(folder / "summary.csv", _mean) if mean.run.arm in arms]
    if not any(known for _, known in every):
        return Table()
    cost = _optional(folder / "cost.json")
    # What is not active may be the better choice, if its row is still the one that the table is of.
    idle = {name for name in rows.keys() & params.recipes.keys() - {*arms} if _recorded(params, name) == rows[name]}
    advice = {
        shots: _told(one, idle)
        for shots, one in _optional(folder / RECOMMENDATIONS).items()
        if _about(one) <= {*arms} | idle
    }
    return Table(Sweep(claims, means, read_csv(folder / "correlations.csv"), cost, fixed.read(folder), advice))


def read_claims(path: Path) -> list[Claim]:
    """Return the claims of a ``claims.csv``.

    Raises:
        InputError: the file is not whole, or is of something else.
    """
    return _rows(path, _claim)


def _rows(path: Path, parse: Callable[[dict[str, str]], _Row]) -> list[_Row]:
    """Return the parsed rows of a file of the table.

    Raises:
        InputError: the file is not whole, or is of something else.
    """
    try:
        return [parse(row) for row in read_csv(path)]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: is not a table over seeds ({error}); run `dreamset table` again.") from error


def _claim(row: dict[str, str]) -> Claim:
    return Claim(
        shots=int(row["shots"]),
        seeds=int(row["seeds"]),
        gain=Gain.read(row),
        p=_number(row, "p"),
        p_adjusted=_number(row, "p_adjusted"),
        family=row.get("family", ""),
        asked="no_loss" if row.get("asked") == "no_loss" else "gain",
        groups=int(row["groups"]) if row.get("groups") else None,
        accuracies=(float(row["accuracy_of"]), float(row["accuracy_minus"])) if row.get("accuracy_of") else None,
    )


def _mean(row: dict[str, str]) -> Mean:
    run = Run(row["recipe"], Kind.parse(row["train_on"]), row["classifier"])
    return Mean(int(row["shots"]), run, float(row["accuracy"]), _number(row, "sd"), int(row["seeds"]))


def _number(row: dict[str, str], name: str) -> float | None:
    return float(row[name]) if row.get(name) else None


def _commands(folder: Path) -> list[str]:
    """Return the commands that make the table in ``folder`` again, and no cell beyond: for each span of seeds one."""
    seeds: dict[int, set[int]] = {}
    for row in read_csv(folder / "cells.csv"):
        seeds.setdefault(int(row["shots"]), set()).add(int(row["seed"]))
    spans: dict[tuple[int, int], list[int]] = {}
    for shots, own in sorted(seeds.items()):
        for first in sorted(seed for seed in own if seed - 1 not in own):
            last = next(seed for seed in itertools.count(first) if seed + 1 not in own)
            spans.setdefault((first, last), []).append(shots)
    return [
        f"dreamset table --shots {' '.join(map(str, shots))} --seeds {first}-{last}"
        for (first, last), shots in spans.items()
    ] or ["dreamset table --shots K --seeds A-B"]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV; an empty list where the file is missing.

    Raises:
        InputError: the file is not whole.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not whole CSV ({error}); make it again.") from error


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path, "dreamset table")) if path.is_file() else {}
