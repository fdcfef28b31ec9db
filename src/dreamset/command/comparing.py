"""``dreamset compare``: runs beside each other, with what differs in their parameters.

Runs come from three places: this project's own records of what was evaluated here, the commits that changed
``results/metrics.json``, and DVC's experiments. Git is asked directly, for DVC takes seconds to say the same.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json, write_json
from dreamset.core.strict import join, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace

NOW: Final = "now"
_HEAD, _COLUMN, _BESIDE = 22, 14, 4  # characters of the first column and of a run, and runs in 80 of them
_COMMITS: Final = 20  # that are looked at
_ASIDE: Final = ("compute", "report", "track")  # sections that change no number
_NONE: Final = "–"
_REFS: Final = "refs/exps"


@dataclass(frozen=True)
class Run:
    """A finished run: ``when`` in seconds since 1970, ``metrics`` as results/metrics.json, ``params`` by dotted key."""

    name: str
    when: float
    metrics: dict[str, Any]
    params: dict[str, Any]

    @property
    def content(self) -> str:
        """What makes it another run than others: all but its time."""
        numbers = {key: value for key, value in self.metrics.items() if key != "seconds"}
        return digest([numbers, self.params])


def keep(workspace: Workspace, params: Path) -> None:
    """Record the run that was just evaluated, with the parameters that it used."""
    run = Run("", time.time(), read_json(_metrics(workspace), "dreamset evaluate"), _used(read_yaml(params)))
    record = {"when": run.when, "metrics": run.metrics, "params": run.params}
    write_json(workspace.runs / f"{run.content[:12]}.json", record)


def find(workspace: Workspace, params: Path) -> list[Run]:
    """Return all runs, that of the workspace first and then the newest first; equal ones once."""
    found = sorted((*_recorded(workspace), *_committed(workspace.root), *_experiments(workspace.root)), key=_newest)
    metrics = _metrics(workspace)
    if metrics.is_file():
        numbers = read_json(metrics, "dreamset evaluate")
        # The file of parameters may have been changed since; the record of the same results has those that were used.
        same = [run.params for run in found if run.metrics == numbers]
        found.insert(0, Run(NOW, metrics.stat().st_mtime, numbers, same[0] if same else _used(read_yaml(params))))
    by_content: dict[str, Run] = {}
    for run in found:
        if "verdict" in run.metrics:  # results of older versions had other metrics
            by_content.setdefault(run.content, run)
    return list(by_content.values())


def chosen(runs: Sequence[Run], names: Sequence[str], last: int) -> list[Run]:
    """Return the runs of these names, or the first ``last`` where there are none.

    Raises:
        InputError: no run has such a name, or there is no run at all.
    """
    if not runs:
        raise InputError("compare: there is no finished run here yet; run `dvc repro` first.")
    if not names:
        return list(runs[:last])
    by_name = {run.name: run for run in reversed(runs)}
    for name in names:
        if name not in by_name:
            raise InputError(f"compare: no run {name!r}; there are {', '.join(run.name for run in runs)}.")
    return [by_name[name] for name in names]


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the lines of a table of at most 80 columns; more than four runs stand below each other."""
    keys = sorted({key for run in runs for key in run.params})
    differing = [key for key in keys if len({_text(run.params.get(key)) for run in runs}) > 1]
    for start in range(0, len(runs), _BESIDE):
        block = runs[start : start + _BESIDE]
        if start:
            yield ""
        yield _line("", [run.name for run in block])
        yield _line("when", [time.strftime("%d %b %H:%M", time.localtime(run.when)) for run in block])
        for what, value in _ROWS.items():
            yield _line(what, [value(run.metrics) for run in block])
        for key in differing:
            shown = [_text(run.params[key]) if key in run.params else _NONE for run in block]
            if len(key) < _HEAD:
                yield _line(key, shown)
            else:
                yield key
                yield _line("", shown)
    if len(runs) > 1 and not differing:
        yield "The parameters are the same."


def _metrics(workspace: Workspace) -> Path:
    return workspace.results / "metrics.json"


def _newest(run: Run) -> float:
    return -run.when


def _recorded(workspace: Workspace) -> Iterator[Run]:
    for path in sorted(workspace.runs.glob("*.json")):
        record = read_json(path, "dreamset evaluate")
        yield Run(path.stem[:7], record["when"], record["metrics"], record["params"])


def _committed(root: Path) -> Iterator[Run]:
    listed = _git(root, "log", f"-{_COMMITS}", "--format=%H %ct", "--", "results/metrics.json")
    for line in listed.splitlines():
        commit, when = line.split()
        yield from _at(root, commit, commit[:7], float(when))


def _experiments(root: Path) -> Iterator[Run]:
    """Yield DVC's experiments: ``refs/exps/<two digits>/<the commit they began at>/<name>``."""
    listed = _git(root, "for-each-ref", _REFS, "--format=%(objectname) %(committerdate:unix) %(refname)")
    for line in listed.splitlines():
        commit, when, ref = line.split(" ", 2)
        if ref.count("/") == 4:
            yield from _at(root, commit, ref.rpartition("/")[2], float(when))


def _at(root: Path, commit: str, name: str, when: float) -> Iterator[Run]:
    """Yield the run of a commit, if it holds one."""
    metrics, params = (_git(root, "show", f"{commit}:./{file}") for file in ("results/metrics.json", "params.yaml"))
    try:
        if metrics and params:
            yield Run(name, when, json.loads(metrics), _used(yaml.safe_load(params)))
    except (ValueError, yaml.YAMLError):  # a commit may hold anything
        return


def _git(root: Path, *words: str) -> str:
    """Return what git says; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _used(raw: Any) -> dict[str, Any]:
    """Return the parameters that a run used, by dotted key: of one model, and of the active recipes."""
    if not isinstance(raw, dict):
        return {}
    base = (raw.get("models") or {}).get(raw.get("model"))
    active = [*(raw.get("active") or ()), *(raw.get("after") or ())]
    rows = {name: row for name, row in (raw.get("recipes") or {}).items() if name in active}
    others = {key: value for key, value in raw.items() if key not in ("models", "recipes", *_ASIDE)}
    return dict(_flat(others | {"models": {"*": base}, "recipes": rows}, ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, join(key, name))
    else:
        yield key, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")


def _line(head: str, values: Sequence[str]) -> str:
    return f"{head:<{_HEAD}}{''.join(_cut(value).rjust(_COLUMN) for value in values)}".rstrip()


def _cut(value: str) -> str:
    return value if len(value) < _COLUMN else f"{value[: _COLUMN - 2]}…"


def _percent(share: float | None, *, sign: bool = False) -> str:
    return _NONE if share is None else f"{100 * share:{'+' if sign else ''}.1f}"


def _accuracy(name: str) -> Any:
    return lambda metrics: _percent((metrics.get("accuracy") or {}).get(name))


_ROWS: Final[dict[str, Any]] = {
    "recipe": lambda metrics: metrics.get("recipe", _NONE),
    "classifier": lambda metrics: metrics.get("classifier", _NONE),
    "verdict": lambda metrics: str(metrics["verdict"].get("outcome", _NONE)).replace("_", " "),
    "gain, points": lambda metrics: _percent(metrics["verdict"].get("gain"), sign=True),
    "  from": lambda metrics: _percent(metrics["verdict"].get("low"), sign=True),
    "  to": lambda metrics: _percent(metrics["verdict"].get("high"), sign=True),
    "real, %": _accuracy("real_strong"),
    "real + synthetic, %": _accuracy("both_strong"),
    "synthetic (CAS), %": lambda metrics: _percent(metrics.get("cas")),
    "seconds": lambda metrics: f"{metrics['seconds']:.0f}" if metrics.get("seconds") is not None else _NONE,
}
