"""Claims that are fixed before the test scores that they are about exist.

A round of claims is one file, ``results/table/fixed/NAME.json``. It says which recipe and classifier are to beat which
others, at which numbers of shots, on which seeds, and when that was written. A cell of ``dreamset table`` records the
rounds that were there before it was scored. A claim is primary only where every cell of its round records the round.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json, write_json
from dreamset.data.runs import REAL, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

FOLDER: Final = "fixed"  # beside the cells of a table
AGAIN: Final = "dreamset claims fix"
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
        setting: hash of the parameters of the cells, recipes aside.
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
    setting: str
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
        others = ["real images alone" if m.arm == REAL else f"real images and {m.arm}" for _, m in self.pairs]
        at = [f"a gain at {_and(self.gain)} shots"] if self.gain else []
        if self.no_loss:
            at.append(f"no loss of {100 * self.smallest_gain:.1f} points at {_and(self.no_loss)} shots")
        return (
            f"{self.name}, fixed on {self.time[:10]} at {self.time[11:16]} UTC: {self.classifier} of real images and "
            f"{self.recipe}, over that of {_and(others)}, all strongly augmented: {' and '.join(at)}, over seeds "
            f"{min(self.seeds)} to {max(self.seeds)}."
        )

    def holds(self, shots: int, seed: int) -> bool:
        """Whether the claims are about this cell."""
        return shots in self.shots and seed in self.seeds

    def asked(self, shots: int) -> tuple[Asked, ...]:
        """Return what is claimed at this number of shots."""
        both: tuple[tuple[Asked, tuple[int, ...]], ...] = (("gain", self.gain), ("no_loss", self.no_loss))
        return tuple(what for what, numbers in both if shots in numbers)

    def waits(self, setting: str, rows: Mapping[str, str], cells: Iterable[Mapping[str, Any]]) -> str | None:
        """Return a sentence on why none of the claims is primary, or not yet; None where all are.

        Args:
            setting: hash of the present parameters, as in ``setting``.
            rows: of the present recipes, as in ``rows``.
            cells: records of the present table, each with ``shots``, ``seed``, ``claims`` and ``right``.
        """
        if (setting, dict(rows)) != (self.setting, dict(self.rows)):
            return f"{self.name}: its claims were fixed for other settings or rows, so none of them is primary here."
        runs = {str(run) for pair in self.pairs for run in pair}
        known = {
            (cell["shots"], cell["seed"])
            for cell in cells
            if self.key in cell.get("claims", ()) and runs <= cell["right"].keys()
        }
        every = [(shots, seed) for shots in self.shots for seed in self.seeds]
        missing = [cell for cell in every if cell not in known]
        if not missing:
            return None
        return (
            f"{self.name}: {len(missing)} of its {len(every)} cells, such as {missing[0][0]} shots, seed "
            f"{missing[0][1]}, are unfinished or do not record it, so none of its claims is primary yet."
        )


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
        InputError: a file is not whole.
    """
    rounds = []
    for path in sorted((table / FOLDER).glob("*.json")):
        found = read_json(path, AGAIN)
        try:
            found["pairs"] = tuple((Run.parse(of), Run.parse(minus)) for of, minus in found["pairs"])
            found |= {name: tuple(found[name]) for name in ("gain", "no_loss", "seeds")}
            rounds.append(Round(**found))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is no round of claims ({error}); take it from git again, or remove it."
            ) from error
    return sorted(rounds, key=lambda one: (one.time, one.name))


def write(table: Path, fixed: Round, scored: Sequence[Path]) -> Path:
    """Write a round beside a table, and return its file.

    Args:
        table: folder of the table.
        fixed: the round.
        scored: files with test scores of its cells.

    Raises:
        InputError: there are such files, or there is a round of that name.
    """
    if scored:
        more = f" and {len(scored) - 1} more" if len(scored) > 1 else ""
        raise InputError(
            f"{scored[0]}{more}: holds test scores of these seeds, so that claims on them can be fixed beforehand no "
            "more; take --seeds that nobody has scored."
        )
    path = table / FOLDER / f"{fixed.name}.json"
    if path.exists():
        raise InputError(f"{path}: is there already, and fixed claims do not change; give this round another name.")
    write_json(path, fixed.record)
    return path
