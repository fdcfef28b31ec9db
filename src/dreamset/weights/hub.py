"""Where pretrained weights are: a folder of the project, or a repository in the cache of the Hugging Face hub.

Stages never touch the network: ``dreamset fetch`` downloads, everything else reads what is there. Only safetensors
are fetched and opened, for a pickled file can run any code when it is read.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json, sha256_file, write_json

Part = Literal["generator", "clip", "judge"]

RECORD: Final = "models/fetched.json"

_NAME = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?")
_TEXTS = ["*.json", "*.txt", "*.model"]
# Weights are looked for where each kind of repository keeps them: many hold the same ones again in other forms.
_WEIGHTS: dict[Part, list[str]] = {
    "generator": ["unet/*", "vae/*", "text_encoder/*", "text_encoder_2/*"],
    "clip": ["open_clip_model"],
    "judge": ["*"],
}


@dataclass(frozen=True)
class Repository:
    """A repository of the hub; ``revision`` is a commit, a branch or a tag, or None where none is pinned."""

    id: str
    revision: str | None


def repository(name: str) -> Repository | None:
    """What ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION`` names; None for a folder's path.

    Raises:
        InputError: it starts with ``hub:`` and is neither.
    """
    if not name.startswith("hub:"):
        return None
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: is no repository of the hub; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION.")
    return Repository(found[1], found[2])


def locate(root: Path, name: str, part: Part, variant: str | None = None) -> Path:
    """The folder that holds the weights called ``name`` in a model's row.

    Args:
        root: the project; a path is relative to it.
        name: a path, or ``hub:OWNER/NAME[@REVISION]``.
        part: what it is used as, which says what must be there.
        variant: form of the weights' files on the hub.

    Raises:
        InputError: the repository is not in the hub's cache, or only half of it.
    """
    wanted = repository(name)
    if wanted is None:
        return root / name
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = wanted.revision or recorded(root).get(wanted.id, {}).get("commit")
    try:
        return Path(snapshot_download(wanted.id, revision=revision, local_files_only=True, **_wanted(part, variant)))
    except LocalEntryNotFoundError as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"{wanted.id}{at} is not, or not wholly, in the hub's cache ({constants.HF_HUB_CACHE}); run "
            "`dreamset fetch` where there is a network, or set HF_HOME to the folder that holds it."
        ) from error


def files(folder: Path, part: Part, variant: str | None = None) -> list[Path]:
    """The files that loading reads, in order: configurations, tokenizers, and one form of the weights."""
    texts = {path for pattern in _TEXTS for path in folder.rglob(pattern)}
    weights = {path for pattern in _patterns(part, variant) for path in folder.glob(pattern)}
    if variant is None:
        weights = {path for path in weights if "." not in path.stem}
    return sorted(path for path in texts | weights if path.is_file())


@functools.cache
def identity(root: Path, name: str, part: Part, variant: str | None = None) -> dict[str, Any]:
    """What was loaded, for cards and manifests: name, commit (of the hub's) and sha256 of the files' contents."""
    folder = locate(root, name, part, variant)
    found = [[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files(folder, part, variant)]
    wanted = repository(name)
    # The cache keeps a snapshot in a folder of its commit's name.
    return {"name": name, "commit": folder.name if wanted else None, "sha256": digest(found)}


def recorded(root: Path) -> dict[str, Any]:
    """What ``fetch`` has written down of each repository: its commit, and the sha256 of its files."""
    path = root / RECORD
    found: dict[str, Any] = read_json(path, "dreamset fetch") if path.is_file() else {}
    return found


def fetch(root: Path, name: str, part: Part, variant: str | None = None) -> dict[str, Any]:
    """Download a repository into the hub's cache, or what is missing of it, and record what came.

    Raises:
        InputError: no network, no such repository or revision, no access, or no safetensors in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = repository(name)
    if wanted is None:
        raise InputError(f"{name}: is a folder, which needs no fetching.")
    try:
        folder = Path(snapshot_download(wanted.id, revision=wanted.revision, **_wanted(part, variant)))
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{wanted.id}: the hub knows no such repository, or it needs a login (`hf auth login`) and the acceptance "
            "of its licence on its page."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{wanted.id}: cannot be fetched ({error}); run the same command to go on.") from error
    found = files(folder, part, variant)
    if not any(path.suffix == ".safetensors" for path in found):
        raise InputError(f"{wanted.id}: holds no safetensors weights{_of(variant)}; name a repository that does.")
    record = {
        "commit": folder.name,
        "pinned": wanted.revision == folder.name,
        "bytes": sum(path.stat().st_size for path in found),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in found},
    }
    write_json(root / RECORD, recorded(root) | {wanted.id: record})
    return record


def refuse_pickles(folder: Path, variant: str | None = None) -> None:
    """Fail on a folder of a generator whose weights are pickled only, with the command that converts them.

    Raises:
        InputError: a part of the model has weights, and none of them in safetensors.
    """
    for part in sorted(path.parent for path in folder.glob("*/config.json")):
        pickled = [path for suffix in ("bin", "ckpt", "pt", "pth") for path in part.glob(f"*.{suffix}")]
        if pickled and not list(part.glob("*.safetensors")):
            kept = f", variant={variant!r}" if variant else ""
            call = f"P.from_pretrained('{folder}'{kept}).save_pretrained('{folder}-safe')"
            raise InputError(
                f"{pickled[0]}: is a pickled file, which can run any code when it is opened; where you trust it, "
                f'convert it with `python -c "from diffusers import DiffusionPipeline as P; {call}"` and name the '
                "new folder."
            )


def _wanted(part: Part, variant: str | None) -> dict[str, Any]:
    """Which files of a repository are downloaded."""
    patterns = [*_TEXTS, *(f"*/{text}" for text in _TEXTS), *_patterns(part, variant)]
    return {"allow_patterns": patterns, "ignore_patterns": None if variant else ["*.*.safetensors"]}


def _patterns(part: Part, variant: str | None) -> list[str]:
    form = f".{variant}.safetensors" if variant else ".safetensors"
    return [f"{stem}{form}" for stem in _WEIGHTS[part]]


def _of(variant: str | None) -> str:
    return f" of variant {variant}" if variant else ""
