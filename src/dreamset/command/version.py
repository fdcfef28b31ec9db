"""``dreamset version``: what a project takes from the installed package, as files that DVC compares.

The repository's stages depend on source files. A project has none: the stage ``version`` runs before all others, and
writes the hash of each stage's code into ``versions/``. An upgrade runs a stage again only where its hash changed.
"""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING, Final

from dreamset import __version__
from dreamset.core import code
from dreamset.core.files import atomic_write, digest, filling, sha256_file
from dreamset.core.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

FOLDER: Final = "versions"
# What stages depend on and nobody has to fill: a person's prompts and decisions, and the table over seeds.
_THERE: Final = ("data/prompts", "data/review", "results/table")
_BASE: Final = "models/base"
_TRAINING: Final = ("dvc.yaml", "dvc.lock")  # in the repository, how the base was trained
# Stages whose work is dear, and whose words are few: only code that changes numbers makes them run again.
_DEAR: Final = ("adapt", "generate", "train", "tune")
# What the command hands to a stage that does not import it.
_HANDED: Final = dict.fromkeys(("evaluate", "deliver"), ("dreamset.sweep.crossval",))


def run(root: Path, stages: Collection[str]) -> list[str]:
    """Write ``versions/``, and put the bundled base and empty folders where stages look for them.

    Args:
        root: the project's folder.
        stages: the names of all stages, which are those of their modules.

    Returns:
        Sentences on what has changed since the last time; none where nothing has.
    """
    folder = root / FOLDER
    for name in _THERE:
        if not (root / name).exists():
            atomic_write(root / name / "README.md", "Written by dreamset; may stay empty.\n")
    before = {path.name: path.read_text(encoding="utf-8").strip() for path in folder.glob("[!.]*") if path.is_file()}
    base, sentences = _put_base(root, before.get("base"))
    now = {**_digests(root, stages), "base": base, "dreamset": __version__}
    for name, text in now.items():
        if before.get(name) != text:
            atomic_write(folder / name, f"{text}\n")
    if "dreamset" not in before:
        return sentences
    changed = [stage for stage in stages if stage in before and before[stage] != now[stage]]
    if changed or before["dreamset"] != __version__:
        what = f"to run again: {', '.join(changed)}, and what their results change" if changed else "nothing runs again"
        since = ", with other code" if before["dreamset"] == __version__ else f" {before['dreamset']} -> {__version__}"
        sentences.insert(0, f"dreamset{since}; {what}.")
    return sentences


def _digests(root: Path, stages: Collection[str]) -> dict[str, str]:
    """Return the hash of each stage's code; they are kept, for they take a second and seldom change."""
    state = digest([sorted(stages), code.state()])
    kept = root / ".dreamset/code.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("state") != state:
        known = {"state": state, "stages": {stage: _digest(stage, state) for stage in stages}}
        atomic_write(kept, json.dumps(known, indent=2) + "\n")
    return dict(known["stages"])


@functools.cache
def _digest(stage: str, _state: str) -> str:
    """Return the hash of a stage's code, which is another one where the package's state is."""
    of = code.numbers_digest if stage in _DEAR else code.words_digest
    return of(f"dreamset.{stage}", *_HANDED.get(stage, ()))


def _put_base(root: Path, put: str | None) -> tuple[str, list[str]]:
    """Copy the bundled base into the project, where it is missing or another version's.

    Args:
        root: the project's folder.
        put: the hash of the base that was copied last; what a person has changed since then stays.

    Returns:
        The hash of the base that was copied last, and sentences on what a person should know.
    """
    source, target = shipped(_BASE), root / _BASE
    files = {path.relative_to(source).as_posix(): path for path in _files(source)}
    new = digest({name: sha256_file(path) for name, path in files.items()})
    there = {path.relative_to(target).as_posix(): path for path in _files(target)}
    old = digest({name: sha256_file(path) for name, path in there.items()})
    if old == new:
        return new, []
    if there and old != put:
        words = f"{_BASE} is not the bundled base of dreamset {__version__}, and stays; remove it to get that one."
        return put or old, [words]
    aside = target.with_name(f".{target.name}.new")
    with filling(root):
        shutil.rmtree(aside, ignore_errors=True)
        for name, path in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / name)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    return new, [f"{_BASE}: the bundled base of dreamset {__version__} is another one."] if there else []


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a base, without those that say how it was trained."""
    return (path for path in folder.rglob("*") if path.is_file() and path.name not in _TRAINING)
