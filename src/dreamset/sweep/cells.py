"""``dreamset table``: run every stage over shots and seeds, and write the table over all of them.

Each (shots, seed) is a cell under ``.dreamset/table``: the same stage functions run in another workspace, and cells
share shards. A finished cell leaves a record in ``results/table/cells``. It is not run again while its parameters, the
base and the code stay the same; a cell that lacks a recipe runs that recipe alone. Where only the code has changed,
cells can be taken over if some of them give the same results when they are run again (``recheck``).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

from dreamset import compute, evaluate, generate, prepare, sources, train, tune
from dreamset.core import audit, device, locks
from dreamset.core.code import code_digest
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import atomic_write, digest, read_json, sha256_file, write_json
from dreamset.core.workspace import Workspace
from dreamset.data import primary
from dreamset.data.asking import files_digest
from dreamset.data.runs import REAL
from dreamset.drawing import pools
from dreamset.metrics import claims, fixed
from dreamset.params import Params
from dreamset.report import markdown
from dreamset.sources import few_shot
from dreamset.sweep import crossval, recommending, table
from dreamset.weights.fingerprint import CELL, inputs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dreamset.params.sections import Compute

_BUNDLED: Final = "digits"  # the source that is part of an installed package


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (shots, seed).

    Attributes:
        params: its parameters.
        workspace: its folder.
        record: the file of its record.
        threads: how many threads it computes with.
        data: digest of the source's content; None where the source is part of the program.
        rounds: hashes of the rounds of fixed claims about it.
    """

    params: Params
    workspace: Workspace
    record: Path
    threads: int
    data: str | None
    rounds: tuple[str, ...] = ()

    @property
    def made(self) -> dict[str, str]:
        """Return hashes of all that a finished cell depends on, recipes aside: one of the settings, one of the code."""
        params = self.params
        settings: list[Any] = [params.shots, params.seed, params.setting(()), self.data, _few_shot(params)]
        # No part of the setting, for they change no other run; a cell without them has to be run, though.
        settings += [params.train.simple] if params.train.simple else []
        settings += [list(params.train.scaled)] if params.scales and params.train.scaled != ("synthetic",) else []
        settings += ["distillation"] if params.train.distillation else []
        return {"settings": inputs(settings, self.workspace.root, self.params.base), "code": code_digest(*CELL)}

    @property
    def recipes(self) -> dict[str, str]:
        """Return hashes of the active recipes' rows, and of the images they search, by name."""
        return rows_hashes(self.params, self.workspace, self.params.active)

    @property
    def recorded(self) -> dict[str, Any]:
        """Return the record of the cell by these parameters and this code; an empty one where there is none."""
        record = self.last
        return record if self.made.items() <= record.items() else {}

    @property
    def last(self) -> dict[str, Any]:
        """Return the record of the cell by any parameters and code; an empty one where there is none."""
        return read_record(self.record) if self.record.is_file() else {}

    @property
    def before(self) -> Path:
        """Return the file that keeps its record by other code while it runs again for ``recheck``."""
        return self.workspace.cell / "before.json"

    @property
    def finished(self) -> bool:
        """Return whether nothing is left to do."""
        known: dict[str, str] = self.recorded.get("recipes", {})
        return self.recipes.items() <= known.items()

    def complete(self) -> Cell:
        """Return the cell with the active recipes and those of its record that are unchanged."""
        known = self.recorded.get("recipes", {})
        names = [name for name in self.params.recipes if name in self.params.active or name in known]
        rows = self.of(tuple(names)).recipes
        return self.of(tuple(n for n in names if n in self.params.active or rows[n] == known[n]))

    def of(self, active: tuple[str, ...]) -> Cell:
        """Return the cell with these recipes."""
        return dataclasses.replace(self, params=dataclasses.replace(self.params, active=active))


def run(
    params: Params, workspace: Workspace, shots: list[int], seeds: list[int], jobs: int | None, *, recheck: bool = False
) -> str:
    """Run the unfinished cells, then write ``results/table/`` from every finished cell of this setting.

    Args:
        params: all parameters.
        workspace: the project's workspace.
        shots: numbers of images per class.
        seeds: the seeds at each number of shots.
        jobs: number of cells that run at once; None: ``compute.workers``.
        recheck: whether to run again one cell for each number of shots, of those that differ in the code alone, and to
            take over the others if its results are the same.

    Returns:
        A few lines with the results and the time they took.

    Raises:
        InputError: each seed would be scored on other images, or ``primary: auto`` has nothing from ``expect``; raised
            before any work.
        StoppedError: a cell that was run again gave other results.
    """
    started = time.monotonic()
    # One recipe for all cells, so that its claims are one family; the project's shots decide it.
    params = primary.settle(params, workspace)
    rounds = fixed.read(workspace.results / "table")
    if jobs is not None:
        params = dataclasses.replace(params, compute=dataclasses.replace(params.compute, workers=jobs))
    folder = workspace.results / "table"
    planned = plan(params, workspace, shots, seeds)
    data = planned[0].data
    cells = [
        dataclasses.replace(cell, rounds=tuple(one.key for one in rounds if one.holds(*at)))
        for cell, at in zip(planned, itertools.product(shots, seeds), strict=True)
    ]
    taken = ""
    if recheck:
        taken = _recheck(cells, params.compute)
    else:
        for cell in cells:
            cell.before.unlink(missing_ok=True)  # every cell is measured by this code, so nothing is left to judge
    todo = [cell for cell in cells if not cell.finished]
    _run_all(todo, params.compute)
    now = time.monotonic() - started
    paths = sorted((folder / "cells").glob("*.json"))
    records = [record for path in paths if (record := usable(params, workspace, path, data))]
    waiting = {}
    for one in rounds:
        rows = rows_hashes(params, workspace, one.rows.keys() & params.recipes.keys())
        if words := one.waits(rows, records):
            waiting[one.name] = words
    finished = [one for one in rounds if one.name not in waiting]
    made_with = {"data": data} | claims.hashes(params, workspace.root)
    keys = {one.key for one in rounds}
    if gone := {key for record in records for key in record.get("claims", ()) if key not in keys}:
        waiting["gone"] = (
            f"Cells record {len(gone)} of the rounds of fixed claims that are no more, or not the same, in "
            f"{(folder / fixed.FOLDER).relative_to(workspace.root)}; take the files from git again."
        )
    means, compared = table.write(params, folder, records, made_with, finished, waiting)
    atomic_write(folder / "README.md", markdown.over_seeds(params, means, compared, rounds, waiting))
    lines = [
        f"{row['shots']:>3} shots  {row['classifier']:9}  {row['of']} - {row['minus']}: {row['difference']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}], p {row['p']:.3g}, adjusted {row['p_adjusted']:.3g}"
        f"{' (' + row['family'] + ')' if row['family'] else ''}{' (indicative)' if row['indicative'] == 'true' else ''}"
        for row in compared
    ]
    lines += waiting.values()
    lines += [line for told in recommending.write(params, folder, records).values() for line in told]
    work = sum(record["seconds"] for record in records)
    aside = f"; {len(paths) - len(records)} of another setting or code left out" if len(paths) > len(records) else ""
    head = [
        *([taken] if taken else []),
        f"{len(todo)} of {len(cells)} cells run now, in {_spoken(now)}; {folder}",
        f"{len(records)} cells in the table, {_spoken(work)} of work one after another{aside}",
    ]
    machines = table.machines(records)
    return "\n".join([*head, *([machines] if machines else []), *lines])


def _run_all(cells: list[Cell], wanted: Compute) -> None:
    """Run the cells, in as many processes as are wanted."""
    if cells:
        compute.each(wanted, cells[0].workspace.root, run_cell, cells, what="table")


def _recheck(cells: list[Cell], wanted: Compute) -> str:
    """Take over cells of other code, where those that are run again give the same results.

    Returns:
        A sentence that says how many.

    Raises:
        StoppedError: a cell that was run again gave other results.
    """
    older: dict[tuple[Any, ...], list[tuple[Cell, dict[str, Any]]]] = {}
    changed: set[str] = set()
    # One that ran again and was not judged, because something stopped this before, is the first of its group.
    for cell in sorted(cells, key=lambda cell: not cell.before.is_file()):
        last, made = cell.last, cell.made
        if cell.before.is_file() and made.items() <= last.items():
            last = read_record(cell.before)
        if last.get("settings") == made["settings"] and last["code"] != made["code"]:
            whole = cell.of(tuple(name for name in cell.params.recipes if name in last["recipes"]))
            same = tuple(name for name, row in whole.recipes.items() if row == last["recipes"][name])
            changed |= whole.recipes.keys() - set(same)
            # It runs with as many threads as before, for another number changes the last bits.
            again = dataclasses.replace(cell.of(same), threads=last["threads"])
            if same:
                older.setdefault((cell.params.shots, same, last["code"]), []).append((again, last))
    for first, last in (group[0] for group in older.values()):
        _write(first.before, last)
    _run_all([group[0][0] for group in older.values()], wanted)
    taken, other = 0, []
    for (first, last), *others in older.values():
        now = first.last
        if _measured(now) != _measured(table.only(last, first.params.active)):
            on = "" if now["device"] == last["device"] else f", here on {now['device']} and then on {last['device']}"
            other.append(f"{first.record.stem}{on}")
            first.before.unlink()
            continue
        # Its time is that of the work, and not that of reusing its shards.
        _write(first.record, now | {"seconds": last["seconds"]} | _same_first(last, now["code"]))
        first.before.unlink()
        for cell, _ in others:
            _take_over(cell, first.record.stem)
            taken += 1
    if other:
        raise StoppedError(
            f"table: this code gives other results for {'; '.join(other)}; run the table without --recheck to measure "
            "the other cells again or, where they ran on another processor, whose last digits differ, see "
            "docs/statistics.md."
        )
    sentence = f"{taken} cells of other code taken over, for {len(older)} gave the same results with this code"
    if changed:
        sentence += f"; without {', '.join(sorted(changed))}, whose rows or searched images have changed"
    return sentence


def _measured(record: dict[str, Any]) -> Any:
    """Return the results of a cell, without the time that it took."""
    rows = [{key: value for key, value in row.items() if not key.startswith("seconds_")} for row in record["rows"]]
    return [rows, *(record[name] for name in ("images", "labels", "right", "differences", "quality"))]


def _take_over(cell: Cell, judged_by: str) -> None:
    """Turn a cell's record of other code into one of this code, and its record of unfinished work, too.

    Args:
        cell: the cell.
        judged_by: name of the cell that was run again.
    """
    last, made = cell.last, cell.made
    path = cell.workspace.cell / "cell.json"
    progress = dict(read_json(path, "dreamset table")) if path.is_file() else {}
    if progress.get("made") == {name: last[name] for name in made}:
        write_json(path, progress | {"made": made})
    facts = made | {"rechecked": {"code": last["code"], "by": judged_by}} | _same_first(last, made["code"])
    _write(cell.record, table.only(last, cell.params.active) | facts)


def _same_first(last: dict[str, Any], code: str) -> dict[str, Any]:
    """Return the code of the first scores, of a cell whose scores are the same by new code."""
    first = last.get("first_code")
    return {"first_code": code if first == last["code"] else first}


def _write(path: Path, record: dict[str, Any]) -> None:
    """Write a cell's record on one line, for nobody reads it, and there are many."""
    atomic_write(path, json.dumps(record, ensure_ascii=False) + "\n")


def run_cell(cell: Cell) -> None:
    """Run every stage of one cell, in the order of the graph; finished arms are not trained again."""
    device.use_threads(cell.threads)
    workspace = cell.workspace
    # Named by its folder: an experiment may run cells of the same shots and seed beside the project's table.
    place = workspace.cell.relative_to(workspace.root).as_posix()
    with locks.turn(workspace.locks, place.replace(".dreamset/", "").replace("/", "_")):
        if cell.finished:
            return  # another run finished it while this one waited
        cell = cell.complete()
        # Hashed before the work, which does not depend on later changes.
        params, made, recipes = cell.params, cell.made, cell.recipes
        path = workspace.cell / "cell.json"
        progress = dict(read_json(path, "dreamset table")) if path.is_file() else {}
        if progress.get("made") != made:
            shutil.rmtree(workspace.results, ignore_errors=True)
            progress = {"made": made, "arms": {}, "seconds": 0.0}
        for arm, row in ((REAL, ""), *recipes.items()):
            if progress["arms"].get(arm) == row:
                continue
            started = time.monotonic()
            if arm == REAL:
                prepare.run(params, workspace)
            with audit.closed(workspace):
                if arm != REAL:
                    tune.adapt_and_tune(params, workspace, arm)
                    generate.run(params, workspace, arm)
                train.run(params, workspace, arm)
            progress["arms"][arm] = row
            progress["seconds"] += time.monotonic() - started
            write_json(path, progress)
        started = time.monotonic()
        evaluation = evaluate.run(params, workspace, crossval.run)
        guesses = read_json(workspace.plots("evaluate") / "predictions.json", "dreamset table")
        seconds = round(progress["seconds"] + time.monotonic() - started, 1)
        facts = {"recipes": recipes, "seconds": seconds, "threads": cell.threads, "device": device.name()}
        # A round counts where it was there before the first scores of this cell, and these are of the present code.
        last = cell.last if cell.record.is_file() else {"claims": cell.rounds, "code": made["code"]}
        facts |= {"claims": [key for key in cell.rounds if key in last.get("claims", ())]}
        facts |= {"first_code": last.get("first_code", last.get("code"))}
        _write(cell.record, made | facts | table.record(evaluation, guesses))


def plan(params: Params, workspace: Workspace, shots: list[int], seeds: list[int]) -> list[Cell]:
    """Return the cells of some numbers of shots and seeds.

    Raises:
        InputError: each seed would be scored on other images.
    """
    source, data = source_of(params)
    cells = [cell_of(params, workspace, k, seed, data) for k in shots for seed in seeds]
    if params.evaluate.protocol == "cv" or (params.evaluate.protocol is None and source and source.test is None):
        _check_seeds(params, workspace, cells)
    return cells


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a cell.

    Raises:
        InputError: it is not whole.
    """
    record = read_json(path, "dreamset table")
    if not isinstance(record, dict) or not {"shots", "seed", "images", "rows", "right"} <= record.keys():
        raise InputError(f"{path}: is no record of a cell; remove it, and `dreamset table` makes it again.")
    return record


def records(params: Params, workspace: Workspace) -> list[dict[str, Any]]:
    """Return the records of the present settings: those by the present code, or else the most by the same code.

    Raises:
        InputError: one is not whole, or all are of other settings.
    """
    paths = sorted((workspace.results / "table/cells").glob("*.json"))
    data = source_of(params)[1] if paths else None
    by_code: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in paths:
        if record := usable(params, workspace, path, data, any_code=True):
            by_code[record["code"]].append(record)
    if paths and not by_code:
        raise InputError(
            f"{workspace.results / 'table'}: its cells are of other settings, images or weights than this project has "
            "now; take these back, or run `dreamset table` again."
        )
    present = by_code.get(code_digest(*CELL), [])
    return present or max(by_code.values(), key=len, default=[])


def folder_of(workspace: Workspace, shots: int, seed: int) -> Path:
    """Return the folder that a cell works in."""
    return workspace.cell / ".dreamset/table" / f"shots{shots:03d}_seed{seed}"


def _check_seeds(params: Params, workspace: Workspace, cells: list[Cell]) -> None:
    """Refuse two seeds at one number of shots under cross-validation; finished cells of this setting count.

    Raises:
        InputError: there are two.
    """
    wanted = {(cell.params.shots, cell.params.seed) for cell in cells}
    for path in sorted((workspace.results / "table/cells").glob("*.json")):
        record = usable(params, workspace, path, cells[0].data)
        if record and record["shots"] in {shots for shots, _ in wanted}:
            wanted.add((record["shots"], record["seed"]))
    seeds = Counter(shots for shots, _ in wanted)
    several = [shots for shots, count in seeds.items() if count > 1]
    if several:
        raise InputError(
            f"table: {seeds[several[0]]} seeds at {several[0]} shots would be cross-validated, each scored on other "
            "shots, which cannot be paired; give one seed, a source with test images, or evaluate.protocol: test."
        )


def source_of(params: Params) -> tuple[sources.Source | None, str | None]:
    """Return the source and a hash of its content; None of both where it is part of the program."""
    if params.prepare.source == _BUNDLED:
        return None, None
    source = sources.read(params.prepare)
    return source, _digest(source)


def _digest(source: sources.Source) -> str:
    """Return a hash of every image of a source, of the names and labels, and of the files that could not be used."""
    rows = [
        None
        if images is None
        else [[image.name, image.label, image.group, image.sha256 or image.pixels_sha256] for image in images]
        for images in (source.train, source.selection, source.test)
    ]
    return digest([source.classes, source.names, rows, source.rejected])


def _few_shot(params: Params) -> str | None:
    """Return the hash of the file of shots; None where no file is named or it is missing."""
    if params.prepare.few_shot is None:
        return None
    path = few_shot.file_of(params.prepare.few_shot, params.shots, params.seed)
    return sha256_file(path) if path.is_file() else None


def rows_hashes(params: Params, workspace: Workspace, names: Iterable[str]) -> dict[str, str]:
    """Return hashes of recipes by name: of all that their images depend on, for retrieval with the images searched."""
    return {
        name: digest(
            [
                params.making(name),
                pools.searched(params, workspace) if not params.recipes[name].draws else None,
                *files_digest(params, workspace.root, name),
            ]
        )
        for name in names
    }


def cell_of(params: Params, workspace: Workspace, shots: int, seed: int, data: str | None) -> Cell:
    """Return a cell; ``data`` as ``Cell`` has it."""
    resolved = dataclasses.replace(params, shots=shots, seed=seed)
    folder = folder_of(workspace, shots, seed)
    record = workspace.results / "table/cells" / f"{folder.name}.json"
    # One thread, whatever the number of cells at once, for another number changes the last bits.
    return Cell(resolved, Workspace(workspace.root, folder), record, params.compute.threads or 1, data)


def usable(
    params: Params, workspace: Workspace, path: Path, data: str | None, *, any_code: bool = False
) -> dict[str, Any]:
    """Return the part of a record that is of this setting, and of this code or any; an empty one where there is none.

    Args:
        params: all parameters.
        workspace: the project's workspace.
        path: of the record.
        data: as ``Cell`` has it.
        any_code: whether other code may have made it.
    """
    record = read_record(path)
    made = cell_of(params, workspace, record["shots"], record["seed"], data).made
    if any(record.get(name) != value for name, value in made.items() if not (any_code and name == "code")):
        return {}
    rows = rows_hashes(params, workspace, record["recipes"].keys() & params.recipes.keys())
    return table.only(record, (name for name, row in record["recipes"].items() if rows.get(name) == row))


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
