"""Claims that are fixed before the test scores that they are about exist.

A round of claims is one file, ``results/table/fixed/NAME.json``. It says which recipe and classifier are to beat which
others, at which numbers of shots, on which seeds, and when that was written. A cell of ``dreamset table`` records the
rounds that were there before it was scored. A claim is primary only where every cell of its round records the round.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.files import digest, write_json
from dreamset.data.runs import REAL, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

FOLDER: Final = "fixed"  # beside the cells of a table
Asked = Literal["gain", "no_loss"]


@dataclass(frozen=True)
class Round:
    """Claims that were fixed together; their tests are one family.

    Attributes:
        name: of the file.
        time: when it was written, UTC, ISO 8601.
        recipe: whose images are to help.
        classifier: that learns from them.
        pairs: the two runs of each claim; the first one is to be better.
        gain: numbers of shots at which each pair claims a gain: a difference above zero.
        no_loss: numbers of shots at which each pair claims no loss: a difference above -``smallest_gain``.
        seeds: that the claims are over.
        smallest_gain: the smallest difference of interest, as a share of the test images.
        settings: hash of all that each cell depends on but code and recipes, by ``SHOTS/SEED``: parameters, images of
            the source, shots and pretrained weights.
        rows: hashes of the recipes that are compared, by name.
    """

    name: str
    time: str
    recipe: str
    classifier: str
    pairs: tuple[tuple[Run, Run], ...]
    gain: tuple[int, ...]
    no_loss: tuple[int, ...]
    seeds: tuple[int, ...]
    smallest_gain: float
    settings: Mapping[str, str]
    rows: Mapping[str, str]

    @property
    def shots(self) -> tuple[int, ...]:
        """All numbers of shots."""
        return tuple(sorted({*self.gain, *self.no_loss}))

    @property
    def tests(self) -> int:
        """The number of claims."""
        return len(self.pairs) * (len(self.gain) + len(self.no_loss))

    @property
    def record(self) -> dict[str, Any]:
        """The content of its file, runs as text."""
        return asdict(self) | {"pairs": [[str(of), str(minus)] for of, minus in self.pairs]}

    @property
    def key(self) -> str:
        """A hash of all that it says, which cells record."""
        return digest(self.record)

    @property
    def words(self) -> str:
        """What is claimed, and when that was fixed."""
        arms = list(dict.fromkeys(minus.arm for _, minus in self.pairs))
        others = ["real images alone" if arm == REAL else f"real images and {arm}" for arm in arms]
        at = [f"a gain at {_and(self.gain)} shots"] if self.gain else []
        if self.no_loss:
            at.append(f"no loss of {100 * self.smallest_gain:.1f} points at {_and(self.no_loss)} shots")
        return (
            f"{self.name}, fixed on {self.time[:10]} at {self.time[11:16]} UTC: {self.classifier} of real images and "
            f"{self.recipe}, over that of {_and(others)}: {' and '.join(at)}, over seeds "
            f"{min(self.seeds)} to {max(self.seeds)}."
        )

    def holds(self, shots: int, seed: int) -> bool:
        """Whether the claims are about this cell."""
        return shots in self.shots and seed in self.seeds

    def asked(self, shots: int) -> tuple[Asked, ...]:
        """Return what is claimed at this number of shots."""
        both: tuple[tuple[Asked, tuple[int, ...]], ...] = (("gain", self.gain), ("no_loss", self.no_loss))
        return tuple(what for what, numbers in both if shots in numbers)

    def waits(self, rows: Mapping[str, str], cells: Iterable[Mapping[str, Any]]) -> str | None:
        """Return a sentence on why none of the claims is primary, or not yet; None where all are.

        Args:
            rows: hashes of the present recipes, as in ``rows``.
            cells: records of the present table, each with ``shots``, ``seed``, ``settings``, ``code``, ``first_code``,
                ``claims`` and ``right``.
        """
        if dict(rows) != dict(self.rows):
            return f"{self.name}: the rows of its recipes have changed since, so none of its claims is primary."
        runs = {str(run) for pair in self.pairs for run in pair}
        every = [(shots, seed) for shots in self.shots for seed in self.seeds]
        own = {(cell["shots"], cell["seed"]): cell for cell in cells if self.key in cell.get("claims", ())}
        told = {
            "are unfinished, or were scored before it": [
                at for at in every if at not in own or not runs <= own[at]["right"].keys()
            ],
            "are of other settings, images or weights": [
                at for at in every if at in own and own[at]["settings"] != self.settings[f"{at[0]}/{at[1]}"]
            ],
            "were scored again by other code": [
                at for at in every if at in own and own[at].get("first_code") != own[at]["code"]
            ],
        }
        for why, missing in told.items():
            if missing:
                return (
                    f"{self.name}: {len(missing)} of its {len(every)} cells, such as {missing[0][0]} shots, seed "
                    f"{missing[0][1]}, {why}, so none of its claims is primary."
                )
        return None


def _and(parts: Sequence[object]) -> str:
    """Return the parts as a sentence lists them."""
    *first, last = map(str, parts)
    return f"{', '.join(first)} and {last}" if first else last


def now() -> str:
    """Return the present time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(table: Path) -> list[Round]:
    """Return the rounds beside a table, by the time that they were fixed at.

    Raises:
        InputError: a file is not whole, or has another name than its round.
    """
    rounds = []
    for path in sorted((table / FOLDER).glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found["pairs"] = tuple((Run.parse(of), Run.parse(minus)) for of, minus in found["pairs"])
            found |= {name: tuple(map(int, found[name])) for name in ("gain", "no_loss", "seeds")}
            one = Round(**found)
            datetime.datetime.fromisoformat(one.time)
            whole = one.name == path.stem and one.seeds and one.shots and one.pairs
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is no round of claims ({error}); take the file from git again, or remove it."
            ) from error
        if not whole:
            raise InputError(f"{path}: has another name than its round, or claims nothing; take it from git again.")
        rounds.append(one)
    return sorted(rounds, key=lambda one: (one.time, one.name))


def write(table: Path, fixed: Round, scored: Sequence[Path]) -> Path:
    """Write a round beside a table, and return its file.

    Args:
        table: folder of the table.
        fixed: the round.
        scored: files with test scores of its cells.

    Raises:
        InputError: there are such files; a round of that name is there, or one about the same cells; or the name is no
            name of a file.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", fixed.name):
        raise InputError(f"{fixed.name!r}: is no name for a round; take letters, digits, '.', '_' and '-'.")
    if scored:
        more = f" and {len(scored) - 1} more files" if len(scored) > 1 else ""
        raise InputError(
            f"{scored[0]}{more}: holds test scores of these seeds, and claims are fixed before there are any; take "
            "--seeds that nobody has scored."
        )
    path = table / FOLDER / f"{fixed.name}.json"
    for one in read(table):
        if one.name == fixed.name:
            raise InputError(f"{path}: is there already, and fixed claims do not change; give this round another name.")
        both = [(shots, seed) for shots in fixed.shots for seed in fixed.seeds if one.holds(shots, seed)]
        if both:
            raise InputError(
                f"--seeds: {one.name} has claims about seed {both[0][1]} at {both[0][0]} shots already, so these would "
                "be further tests on the same scores; take seeds of no round."
            )
    write_json(path, fixed.record)
    return path
