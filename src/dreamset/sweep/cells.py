"""``dreamset table``: every stage over shots and seeds, and what can be said over all of them.

Each (shots, seed) is a cell under ``.dreamset/table``: the same stage functions in another workspace, sharing
shards. A finished cell leaves a record in ``results/table/cells`` and is not run again while its parameters, the
base and the code are the same; one that lacks a recipe runs that recipe alone. Where the code alone has changed, cells
may be taken over when some of them, run again, come out the same (``recheck``).
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from dreamset import evaluate, generate, prepare, sources, train, tune
from dreamset.core import audit, device, locks
from dreamset.core.code import code_digest
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import atomic_write, digest, read_json, sha256_file, write_json
from dreamset.core.progress import bar
from dreamset.core.workspace import Workspace
from dreamset.data.runs import REAL
from dreamset.drawing import pools
from dreamset.metrics import claims
from dreamset.params import Params
from dreamset.sources import few_shot
from dreamset.sweep import crossval, table
from dreamset.weights.fingerprint import CELL, inputs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BUNDLED: Final = "digits"  # the source that is part of an installed package


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (shots, seed) with its resolved parameters, its folder, and the file of its record.

    ``data`` is the digest of the source's content, None where that is part of the program.
    """

    params: Params
    workspace: Workspace
    record: Path
    threads: int
    data: str | None

    @property
    def made(self) -> dict[str, str]:
        """Hashes of what a finished cell was made with, but for the recipes: parameters, images and base; code."""
        settings = [self.params.shots, self.params.seed, self.params.setting(()), self.data, _few_shot(self.params)]
        return {"settings": inputs(settings, self.workspace.root, self.params.base), "code": code_digest(*CELL)}

    @property
    def recipes(self) -> dict[str, str]:
        """Hashes of the active recipes' rows, and of what they search, by name."""
        return _rows(self.params, self.workspace, self.params.active)

    @property
    def recorded(self) -> dict[str, Any]:
        """The record of the cell as these parameters and this code make it; empty where there is none."""
        found = self.last
        return found if self.made.items() <= found.items() else {}

    @property
    def last(self) -> dict[str, Any]:
        """The record of the cell, whatever made it; empty where there is none."""
        return dict(read_json(self.record, "dreamset table")) if self.record.is_file() else {}

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        known: dict[str, str] = self.recorded.get("recipes", {})
        return self.recipes.items() <= known.items()

    def complete(self) -> Cell:
        """The cell with those recipes, too, that it has been run with before and that are as they were."""
        known = self.recorded.get("recipes", {})
        names = [name for name in self.params.recipes if name in self.params.active or name in known]
        rows = self.of(tuple(names)).recipes
        return self.of(tuple(n for n in names if n in self.params.active or rows[n] == known[n]))

    def of(self, active: tuple[str, ...]) -> Cell:
        """The cell with these recipes."""
        return dataclasses.replace(self, params=dataclasses.replace(self.params, active=active))


def run(
    params: Params, workspace: Workspace, shots: list[int], seeds: list[int], jobs: int, *, recheck: bool = False
) -> str:
    """Run what is not finished, then write ``results/table/`` from every finished cell of this setting.

    Args:
        params: all parameters.
        workspace: the project's.
        shots: numbers of images per class.
        seeds: of each.
        jobs: cells at once.
        recheck: of the cells that differ in the code alone, run one again for each number of shots, and take over the
            others where it comes out the same.

    Returns:
        A few lines of what came out, with the time that it took.

    Raises:
        InputError: before any work, where seeds would be scored each on images of its own.
        StoppedError: a cell that was run again came out otherwise.
    """
    started = time.monotonic()
    folder = workspace.results / "table"
    source = None if params.prepare.source == _BUNDLED else sources.read(params.prepare)
    data = None if source is None else _digest(source)
    cells = [_cell(params, workspace, k, seed, jobs, data) for k in shots for seed in seeds]
    if params.evaluate.protocol == "cv" or (params.evaluate.protocol is None and source and source.test is None):
        _check_seeds(params, workspace, cells)
    taken = _recheck(cells, jobs) if recheck else ""
    todo = [cell for cell in cells if not cell.finished]
    _run_all(todo, jobs)
    now = time.monotonic() - started
    paths = sorted((folder / "cells").glob("*.json"))
    records = [found for path in paths if (found := _usable(params, workspace, path, data))]
    written = table.write(params, folder, records, {"data": data} | claims.made(params, workspace.root))
    lines = [
        f"{row['shots']:>3} shots  {row['classifier']:9}  {row['of']} - {row['minus']}: {row['difference']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}], p {row['p']:.3g}, Holm {row['p_holm']:.3g}"
        f"{' (primary)' if row['primary'] == 'true' else ''}{' (indicative)' if row['indicative'] == 'true' else ''}"
        for row in written
    ]
    work = sum(found["seconds"] for found in records)
    aside = f"; {len(paths) - len(records)} of another setting or code left out" if len(paths) > len(records) else ""
    told = [
        *([taken] if taken else []),
        f"{len(todo)} of {len(cells)} cells run now, in {_spoken(now)}; {folder}",
        f"{len(records)} cells in the table, {_spoken(work)} of work one after another{aside}",
    ]
    machines = table.machines(records)
    return "\n".join([*told, *([machines] if machines else []), *lines])


def _run_all(cells: list[Cell], jobs: int) -> None:
    """Cells, ``jobs`` at once."""
    if jobs == 1:
        for cell in bar(cells, what="table", unit="cell"):
            run_cell(cell)
        return
    # A fresh interpreter each: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=device.keep_memory) as pool:
        for _ in bar(pool.imap_unordered(run_cell, cells), total=len(cells), what="table", unit="cell"):
            pass
        # Left to end by themselves: killed, they would be said to have leaked their libraries' semaphores.
        pool.close()
        pool.join()


def _recheck(cells: list[Cell], jobs: int) -> str:
    """Take over cells of other code, where those that are run again come out the same; how many, in words."""
    older: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        last, made = cell.last, cell.made
        if last.get("settings") == made["settings"] and last["code"] != made["code"]:
            whole = cell.of(tuple(name for name in cell.params.recipes if name in last["recipes"]))
            same = tuple(name for name, row in whole.recipes.items() if row == last["recipes"][name])
            # With as many threads: another number changes last bits.
            own = dataclasses.replace(cell.of(same), threads=last["threads"])
            if same:
                older.setdefault((cell.params.shots, same, last["code"]), []).append(own)
    before = [group[0].last for group in older.values()]
    _run_all([group[0] for group in older.values()], jobs)
    taken, other = 0, []
    for (first, *others), last in zip(older.values(), before, strict=True):
        now = first.last
        if _measured(now) != _measured(table.only(last, first.params.active)):
            on = "" if now["device"] == last["device"] else f", here on {now['device']} and then on {last['device']}"
            other.append(f"{first.record.stem}{on}")
            continue
        # What it took is what the work took, and not what finding its shards took.
        _write(first.record, now | {"seconds": last["seconds"]})
        for cell in others:
            _take_over(cell, first.record.stem)
            taken += 1
    if other:
        raise StoppedError(
            f"table: comes out otherwise with this code: {'; '.join(other)}. Run the table without --recheck to "
            "measure the others again; or, where those were run on another processor, whose last digits differ, see "
            "docs/statistics.md."
        )
    return f"{taken} cells of other code taken over, for {len(older)} came out the same with this code"


def _measured(record: dict[str, Any]) -> Any:
    """What came out of a cell, without what it took."""
    rows = [{key: value for key, value in row.items() if not key.startswith("seconds_")} for row in record["rows"]]
    return [rows, *(record[name] for name in ("images", "labels", "right", "differences", "quality"))]


def _take_over(cell: Cell, judged_by: str) -> None:
    """A record of other code becomes one of this code, and so does what the cell has left to go on from."""
    last, made = cell.last, cell.made
    path = cell.workspace.cell / "cell.json"
    progress = dict(read_json(path, "dreamset table")) if path.is_file() else {}
    if progress.get("made") == {name: last[name] for name in made}:
        write_json(path, progress | {"made": made})
    facts = made | {"rechecked": {"code": last["code"], "by": judged_by}}
    _write(cell.record, table.only(last, cell.params.active) | facts)


def _write(path: Path, record: dict[str, Any]) -> None:
    """A cell's record, on one line: nobody reads it, and there are many."""
    atomic_write(path, json.dumps(record, ensure_ascii=False) + "\n")


def run_cell(cell: Cell) -> None:
    """Every stage of one cell, in the order of the graph; arms that it has finished are not trained again."""
    import torch

    torch.set_num_threads(cell.threads)
    cell = cell.complete()
    params, workspace = cell.params, cell.workspace
    # Before the work: what changes while it goes on is not what it was made with.
    made, recipes = cell.made, cell.recipes
    # By its place: an experiment may run cells of the same shots and seed beside the project's own table.
    place = workspace.cell.relative_to(workspace.root).as_posix()
    with locks.turn(workspace.locks, place.replace(".dreamset/", "").replace("/", "_")):
        if cell.finished:
            return  # by another run, while this one waited for it
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
        _write(cell.record, made | facts | table.record(evaluation, guesses))


def folder_of(workspace: Workspace, shots: int, seed: int) -> Path:
    """Where a cell works."""
    return workspace.cell / ".dreamset/table" / f"shots{shots:03d}_seed{seed}"


def _check_seeds(params: Params, workspace: Workspace, cells: list[Cell]) -> None:
    """Refuse two seeds at one number of shots, finished ones of this setting among them, under cross-validation."""
    wanted = {(cell.params.shots, cell.params.seed) for cell in cells}
    for path in sorted((workspace.results / "table/cells").glob("*.json")):
        found = _usable(params, workspace, path, cells[0].data)
        if found and found["shots"] in {shots for shots, _ in wanted}:
            wanted.add((found["shots"], found["seed"]))
    seeds = Counter(shots for shots, _ in wanted)
    several = [shots for shots, count in seeds.items() if count > 1]
    if several:
        raise InputError(
            f"table: {seeds[several[0]]} seeds at {several[0]} shots would be cross-validated, each scored on shots of "
            "its own, which cannot be paired; give one seed, a source with test images, or evaluate.protocol: test."
        )


def _digest(source: sources.Source) -> str:
    """Hash of every image of a source, of its names and labels, and of what could not be used."""
    rows = [
        None
        if images is None
        else [[image.name, image.label, image.group, image.sha256 or image.pixels_sha256] for image in images]
        for images in (source.train, source.selection, source.test)
    ]
    return digest([source.classes, source.names, rows, source.rejected])


def _few_shot(params: Params) -> str | None:
    """Hash of the file of shots, where one is named and there."""
    if params.prepare.few_shot is None:
        return None
    path = few_shot.file_of(params.prepare.few_shot, params.shots, params.seed)
    return sha256_file(path) if path.is_file() else None


def _rows(params: Params, workspace: Workspace, names: Iterable[str]) -> dict[str, str]:
    """Hashes of recipes, by name: of what their images depend on and, of those that are found, of what is searched."""
    return {
        name: digest(
            [
                params.making(name),
                pools.searched(params, workspace) if not params.recipes[name].draws else None,
            ]
        )
        for name in names
    }


def _cell(params: Params, workspace: Workspace, shots: int, seed: int, jobs: int, data: str | None) -> Cell:
    own = dataclasses.replace(params, shots=shots, seed=seed)
    folder = folder_of(workspace, shots, seed)
    record = workspace.results / "table/cells" / f"{folder.name}.json"
    return Cell(own, Workspace(workspace.root, folder), record, max(1, (os.cpu_count() or 1) // jobs), data)


def _usable(params: Params, workspace: Workspace, path: Path, data: str | None) -> dict[str, Any]:
    """What is of this setting in a record; empty where nothing is."""
    found = read_json(path, "dreamset table")
    cell = _cell(params, workspace, found["shots"], found["seed"], 1, data)
    if not cell.recorded:
        return {}
    rows = _rows(params, workspace, found["recipes"].keys() & params.recipes.keys())
    return table.only(found, (name for name, row in found["recipes"].items() if rows.get(name) == row))


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
