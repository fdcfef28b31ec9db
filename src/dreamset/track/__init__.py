"""Tracking with MLflow: one run per pipeline, recipe, classifier, study. No failure of it can fail a stage.

A stage writes a record into the spool (``.dreamset/track``) at its end. A separate process sends the records, so it
can be killed when a server does not answer. Records that the server has not taken wait in the spool. The process of the
last stage starts with the stage, and imports mlflow meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dreamset.core.addresses import without_password
from dreamset.core.files import digest
from dreamset.params import to_dict
from dreamset.track import local, spool, studies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

# Importing mlflow costs seconds, so a short stage leaves its record to a later one; the last one sends what is left.
_LAST: Final = "report"
_WORTH_SENDING_S: Final = 120.0
# What a whole flush may take beyond the time limit of one call, and more for each run and each byte.
_PATIENCE_S: Final = 60.0
_PER_RUN_S: Final = 0.2
_BYTES_PER_S: Final = 5e6
_LONGEST: Final = 400  # characters of a server's reason
_EXCEPTION: Final = re.compile(r"^[\w.]*(?:Error|Exception): ")


Sender: TypeAlias = "subprocess.Popen[str] | str"  # the process, or why there is none


@dataclass(frozen=True)
class Flushed:
    """Numbers of spooled records: taken by the server, still waiting, set aside as unusable."""

    sent: int = 0
    waiting: int = 0
    set_aside: int = 0

    def __str__(self) -> str:
        return f"sent {self.sent}, waiting {self.waiting}, set aside {self.set_aside}"


def pipeline(workspace: Workspace, params: Params) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return what a run of the whole pipeline is known by: its tree, its parameters, and the tags of its commit."""
    commit, everything = _commit(workspace.root), _everything(params)
    return digest([everything, commit])[:16], everything, {"git_commit": commit, "mlflow.source.git.commit": commit}


def record(
    workspace: Workspace,
    params: Params,
    stage: str,
    tree: str,
    runs: Sequence[spool.Run],
    files: Mapping[str, Mapping[str, Path]] | None = None,
) -> None:
    """Spool runs without contacting any server; do nothing where ``track.uri`` is null.

    Args:
        workspace: where the spool is.
        params: the resolved parameters.
        stage: ``adapt``, ``generate`` and so on.
        tree: what the runs are nested in at the top: the same runs of the same tree go on, and are not doubled.
        runs: each after the one that it is nested in.
        files: by key of a run, files and folders by the names that MLflow gives them. They are copied, since DVC may
            delete a stage's outputs before they are sent.
    """
    if params.track.uri is None or not runs:
        return
    name = uuid.uuid4().hex
    try:
        missing = spool.write(
            workspace.spool, spool.Record(name, stage, tree, max(run.ended for run in runs), list(runs)), files or {}
        )
    except OSError as error:
        warn(f"{stage} is not tracked: {workspace.spool} cannot be written ({error.strerror or error}).")
    else:
        for path in missing:
            warn(f"{stage} is tracked without {path}: there is no such file.")


@contextmanager
def sender(workspace: Workspace, params: Params, stage: str) -> Iterator[Sender | None]:
    """Give the last stage the process that sends at its end; it ends with the stage, whatever becomes of that."""
    process = _sender(workspace, params) if stage == _LAST and params.track.uri is not None else None
    try:
        yield process
    finally:
        if isinstance(process, subprocess.Popen):
            with process:
                process.kill()


def finish(workspace: Workspace, params: Params, stage: str, started: float, process: Sender | None = None) -> None:
    """Send at the end of a stage that was long enough, and of the last one, from its ``process``."""
    if stage == _LAST or time.time() - started > _WORTH_SENDING_S:
        flush(workspace, params, process)


def study(
    workspace: Workspace, params: Params, recipe: str, results: Mapping[str, Any], artifacts: Iterable[Path] = ()
) -> None:
    """Spool the study of a recipe as one run with a nested run per trial, for the next ``flush``.

    A study that went on, or that several workers recorded, stays one run. Where ``track.uri`` is null, or the recipe
    has no study, nothing is spooled.

    Args:
        workspace: where the spool and the pictures of the trials are.
        params: the resolved parameters.
        recipe: the recipe of the study.
        results: the content of ``results/tune/<recipe>.json``.
        artifacts: files or folders of the study, which are copied.
    """
    if params.track.uri is None or not results.get("trials"):
        return
    tree, runs = studies.build(results, read_by(params, "tune", recipe), _commit(workspace.root))
    files: dict[str, dict[str, Path]] = {studies.STUDY: spool.named(artifacts)}
    for trial in results["trials"]:
        # Another machine's worker keeps its pictures.
        if trial.get("samples") and (workspace.artifacts / trial["samples"]).is_file():
            files[studies.key(trial["number"])] = {"samples.png": workspace.artifacts / trial["samples"]}
    record(workspace, params, "study", tree, runs, files)


def flush(workspace: Workspace, params: Params, process: Sender | None = None) -> Flushed:
    """Send every spooled record to ``track.uri`` in bounded time, from a new process where none is given.

    Warn of records that have to wait.
    """
    uri, folder = params.track.uri, workspace.spool
    if uri is None or not spool.records(folder):
        return Flushed()
    job = {"spool": str(folder.absolute()), "uri": uri, "experiment": params.track.experiment}
    limit = round(params.track.timeout_s + _PATIENCE_S + _needed(folder), 1)
    output, reason = _from(process or _sender(workspace, params), job, limit)
    events = Counter(output.splitlines())
    for line in events:
        if line.startswith(local.SAYS):
            warn(line.removeprefix(local.SAYS))
    result = Flushed(events["sent"], len(spool.records(folder)), events["broken"])
    if result.set_aside:
        warn(f"{_counted(result.set_aside)} could not be used and went to {folder / spool.BROKEN}.")
    if result.waiting and reason:
        warn(
            f"tracking at {without_password(uri)} failed ({without_password(reason)}); {_counted(result.waiting)} "
            f"kept in {os.path.relpath(folder, workspace.root)} for the next run or `dreamset track`."
        )
    return result


def _needed(folder: Path) -> float:
    """Return the seconds that a slow server may need for all records; each run takes some calls."""
    sizes = [spool.size(path) for path in spool.records(folder)]
    return sum(runs for runs, _ in sizes) * _PER_RUN_S + sum(count for _, count in sizes) / _BYTES_PER_S


def _sender(workspace: Workspace, params: Params) -> Sender:
    """Start a process that can be killed and waits for its job; return why not, where it cannot be started."""
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "dreamset.track.send"],
            cwd=workspace.root,  # sqlite:///mlflow.db then means the project's
            env={**os.environ, **_environment(params.track.timeout_s)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return f"no process to send from: {error.strerror or error}"


def _from(process: Sender, job: dict[str, str], limit: float) -> tuple[str, str]:
    """Have a process do its job within so many seconds; return its output, and why it failed (empty: it did not)."""
    if isinstance(process, str):
        return "", process
    with process:
        try:
            output, chatter = process.communicate(json.dumps(job), timeout=limit)
            return output, _reason(chatter) if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0], f"not done within {limit:g} s"


def _environment(timeout_s: float) -> dict[str, str]:
    """Return variables for short calls without retries (the spool is the retry), telemetry and chatter."""
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(timeout_s))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(max(1, round(timeout_s))),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def _everything(params: Params) -> dict[str, str]:
    """Return the parameters that any result of the pipeline depends on, flat."""
    tree = to_dict(params)
    for key in ("track", "report", "models", "recipes"):
        del tree[key]
    # No result depends on where trials are kept, and the address may hold a password.
    del tree["tune"]["storage"]
    recipes = {name: to_dict(params.recipes[name]) for name in params.active}
    return flat({**tree, "recipes": recipes, "base": to_dict(params.base)})


def read_by(params: Params, stage: str, item: str | None) -> dict[str, str]:
    """Return the parameters that a stage reads, flat: top of the file, section, part of the model's row, recipe."""
    base = to_dict(params.base)
    named = {key: value for key, value in base.items() if not isinstance(value, dict)}
    tree = {"shots": params.shots, "seed": params.seed, "model": params.model, "base": named}
    section: dict[str, Any] = to_dict(getattr(params, stage)) if hasattr(params, stage) else {}
    tree[stage] = {name: value for name, value in section.items() if name != "storage"}  # which may hold a password
    tree |= {f"base.{stage}": base[stage]} if stage in base else {}
    tree |= {"recipe": to_dict(params.recipes[item])} if item in params.recipes else {}
    return flat(tree)


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return the values of a tree as text, by their names with a dot between."""
    rows: dict[str, str] = {}
    for key, value in tree.items():
        name = above + key.rstrip("_")
        if isinstance(value, dict):
            rows |= flat(value, name + ".")
        else:
            rows[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return rows


def _commit(root: Path) -> str:
    """Return the commit that is checked out, or ``none`` outside git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return done.stdout.strip() if done.returncode == 0 else "none"


def _reason(chatter: str) -> str:
    """Return the exception's line of a traceback, shortened."""
    lines = [line for line in chatter.splitlines() if line.strip()] or ["no message"]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    reason = _EXCEPTION.sub("", (raised or lines)[-1]).strip()
    # A message may hold a whole query. What a person has to run is shorter, and stays whole.
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST].rsplit(' ', 1)[0]} …"


def _counted(records: int) -> str:
    return f"{records} tracking record{'' if records == 1 else 's'}"


def warn(sentence: str) -> None:
    """Print a warning, which is all that a failure of tracking costs."""
    print(f"dreamset: warning: {sentence}", file=sys.stderr, flush=True)
