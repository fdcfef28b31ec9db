"""``dreamset init``: a folder of one's own, with parameters that suit its images, for DVC and git to work in."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__, classifiers, sources
from dreamset.command import version
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, check_target, filling
from dreamset.core.shipped import shipped
from dreamset.params import load
from dreamset.params.edit import set_value
from dreamset.sources import survey

if TYPE_CHECKING:
    from collections.abc import Collection

_COPIED: Final = (".dvcignore", ".dvc/.gitignore", ".dvc/config", "data/prompts/README.md", "data/prompts/digits.yaml")
_PLOTS: Final = ".dvc/plots"
_RAW: Final = "data/raw"
_SPACE: Final = 100 * 2**20  # bytes: the base, git's folder, and the first splits

_HEAD: Final = """\
# The program: `dvc repro` runs every stage that is out of date. A stage runs the verb of `dreamset` with its name.
# It depends on data, on weights, on the parameters that it reads, and on the code of the installed dreamset for it,
# whose hash stands in versions/. `*name` repeats the parameters after `&name`. A stage with `_after` runs the recipes
# of `after` in params.yaml: `${key}` is such a recipe, and `${item}` the one whose result it starts from.

stages:
  # Runs each time, in a third of a second; another stage runs again only where its own file has changed.
  version:
    desc: the bundled base, and the hash of each stage's code, of the dreamset that is installed
    cmd: dreamset version
    always_changed: true
    outs:
      - models/base: {cache: false, persist: true}
      - versions: {cache: false, persist: true}

"""
_CODE: Final = re.compile(r"src/dreamset/[\w./]+(?:,\s+src/dreamset/[\w./]+)*")
_STAGE: Final = re.compile(r"^(?=  \w+:\n)", re.MULTILINE)
_VERB: Final = re.compile(r"cmd: dreamset (\w+)")

_IGNORED: Final = """\
# Your images, and all that is made of them, stay out of git.
/data/*
!/data/review/
/models/
.dreamset/
mlflow.db*
studies.db*
mlartifacts/
mlruns/
dvc_plots/
.venv/
"""
_RESULTS: Final = """\
# Figures and pictures of your images. Remove this line to give them to git, and to those who get the repository.
/results/
"""

_README: Final = """\
# {name}

Made by `dreamset init` of dreamset {version}, from {origin}. In this folder:

- `dreamset run` runs whatever is out of date, and says first what it costs. `dvc repro` does it without a word.
- `params.yaml` has every setting, each with its meaning. `dreamset set shots=4` changes one.
- `results/report.html` is the page to read: does it help, and by how much?
- `models/classifier/` is the classifier to take away. `dreamset predict FILES` uses it.
- `data/raw` is your images, or a link to them. Nothing changes them.
- {share}
"""


def run(target: Path, images: Path | None, stages: Collection[str], *, share: bool = False) -> list[str]:
    """Make a project, whole or not at all.

    Args:
        target: its folder, which is missing or empty.
        images: a folder of images as ``sources.imagefolder`` reads it, or a list of them; None: the digits.
        stages: the names of all stages.
        share: git takes the results.

    Returns:
        What a person should know: what the images are, what was proposed, and what comes next.

    Raises:
        InputError: the images cannot be used, the folder cannot be the project's, or there is no git.
        DiskFullError: there is no space; nothing is left behind.
    """
    source, raw = _source(images)
    _check(target, raw)
    text = shipped("params.yaml").read_text(encoding="utf-8")
    lines: list[str] = []
    changes: list[tuple[str, Any, str]] = []
    if images is not None:
        prepare = load(shipped("params.yaml"), classifiers.ROWS).prepare
        read = sources.read(dataclasses.replace(prepare, source=f"{source.partition(':')[0]}:{_real(images)}"))
        found = survey.of(read, str(images))
        lines = [*found.lines(), *(f"note     {warning}" for warning in read.warnings)]
        changes = survey.proposal(found, 0.0 if found.glyphs else _gpu_gb())
        changes.append(("prepare.source", source, "a link to your folder, which nothing changes"))
    for key, value, _ in changes:
        text = set_value(text, key, value)
    readme = _README.format(
        name=target.resolve().name,
        version=__version__,
        origin=f"`{raw}`" if raw else "handwritten digits",
        share=_share_words(share),
    )
    files = {
        "params.yaml": text,
        "dvc.yaml": stages_of_project(shipped("dvc.yaml").read_text(encoding="utf-8")),
        "README.md": readme,
        ".gitignore": _IGNORED if share else _IGNORED + _RESULTS,
    }
    _build(target, files, raw, stages)
    lines += [f"line {_line(text, key):<4}{key}: {_said(value)}  ({why})" for key, value, why in changes]
    return [*lines, f"{target} is made; the lines are of its params.yaml. Next: cd {target} && dreamset run"]


def stages_of_project(text: str) -> str:
    """Return the repository's ``dvc.yaml`` for a project, whose stages depend on the installed version.

    Args:
        text: each stage lists the folders of its source next to one another.
    """
    stages = text.partition("\nstages:\n")[2]
    return _HEAD + "".join(_stage_of_project(block) for block in _STAGE.split(stages))


def _stage_of_project(block: str) -> str:
    verb = _VERB.search(block)
    return block if verb is None else _CODE.sub(f"{version.FOLDER}/{verb[1]}", block)


def _source(images: Path | None) -> tuple[str, Path | None]:
    """Return ``prepare.source`` of the project, and the folder that ``data/raw`` links to.

    Raises:
        InputError: there is no such folder or list.
    """
    if images is None:
        return "digits", None
    real = _real(images)
    if real.is_dir():
        return f"imagefolder:{_RAW}", real
    if real.is_file() and real.suffix.lower() == ".csv":
        return f"csv:{_RAW}/{real.name}", real.parent
    what = "is no folder" if real.exists() else "is missing"
    raise InputError(f"--images {images}: {what}; name a folder that holds one folder of images per class.")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path.expanduser()))


def _check(target: Path, raw: Path | None) -> None:
    """Refuse a target before anything is read or written.

    Raises:
        InputError: one sentence naming the folder and the mend.
    """
    if shutil.which("git") is None:
        raise InputError("init: git is not installed, and a project needs it; install git, and run this again.")
    real = _real(target)
    check_target(real, "init", folder=True)
    if target.exists() and not target.is_dir():
        raise InputError(f"init {target}: is a file; name a new folder.")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"init {target}: is not empty; name a new folder, or an empty one.")
    if raw is not None and real.is_relative_to(raw):
        raise InputError(f"init {target}: lies in the folder of the images, {raw}; name a folder outside of it.")
    for above in real.parents:
        for mark, what in ((".dvc", "DVC project"), (".git", "git repository")):
            if (above / mark).exists():
                raise InputError(
                    f"init {target}: lies in the {what} {above}, and a project has a repository of its own; name a "
                    "folder outside of it."
                )
    parent = next(place for place in (real, *real.parents) if place.is_dir())
    free = shutil.disk_usage(parent).free
    if free < _SPACE:
        raise InputError(
            f"init {target}: needs {_SPACE >> 20} MiB, and {free >> 20} MiB are free; make room, or name a folder on "
            "another disk."
        )


def _gpu_gb() -> float:
    """Return the memory of the first CUDA device in GB; 0 without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0


def _build(target: Path, files: dict[str, str], raw: Path | None, stages: Collection[str]) -> None:
    """Write the project aside first, so that whatever happens leaves a whole one or none."""
    made = not target.exists()
    with filling(target):
        target.mkdir(parents=True, exist_ok=True)
        aside = target / f".init.{os.getpid()}"
        try:
            aside.mkdir()
            for name in _COPIED:
                atomic_write(aside / name, shipped(name).read_bytes())
            for path in shipped(_PLOTS).iterdir():
                atomic_write(aside / _PLOTS / path.name, path.read_bytes())
            for name, text in files.items():
                atomic_write(aside / name, text)
            version.run(aside, stages)
            (aside / _RAW).parent.mkdir(exist_ok=True)
            if raw is not None:
                (aside / _RAW).symlink_to(raw, target_is_directory=True)
            _commit(aside)
            for path in aside.iterdir():
                path.rename(target / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if made and not any(target.iterdir()):
                target.rmdir()


def _commit(root: Path) -> None:
    """Make a git repository with one commit, which `dvc exp run` needs.

    Raises:
        InputError: git refuses; the sentence has its reason.
    """
    # Nobody's hooks and keys are asked, and a machine without a name in its settings has one here.
    named = subprocess.run(["git", "config", "user.email"], capture_output=True, check=False).returncode == 0
    who = [] if named else ["-c", "user.name=dreamset", "-c", "user.email=dreamset@localhost"]
    commit = ["commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", "dreamset init"]
    for command in (["init", "--quiet"], ["add", "--all"], [*who, *commit]):
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = " ".join(done.stderr.split())[:300]
            raise InputError(f"init: git {command[0]} does not work here ({reason}); mend that, and run this again.")


def _share_words(share: bool) -> str:
    if share:
        return "git keeps `results/`, with figures and pictures of your images: remember it before you publish."
    return "git keeps neither images nor results. To share these, remove the line `/results/` of `.gitignore`."


def _line(text: str, key: str) -> int:
    """Return the number of the line of a key's last part, below its section."""
    section, _, name = key.rpartition(".")
    lines = text.splitlines()
    start = lines.index(f"{section}:") if section else 0
    wanted = f"  {name}:" if section else f"{name}:"
    return next(number for number, line in enumerate(lines, 1) if number > start and line.startswith(wanted))


def _said(value: Any) -> str:
    return str(value).replace("'", "") if isinstance(value, list) else str(value)
