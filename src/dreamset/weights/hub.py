"""The location of pretrained weights: a folder of the project, or a repository in the Hugging Face hub's cache.

Stages never use the network: ``dreamset fetch`` downloads, and everything else reads the files on this machine. Only
safetensors are fetched and opened, because a pickled file can run any code when it is read.
"""

from __future__ import annotations

import functools
import json
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import digest, disk_full, read_json, sha256_file, write_json
from dreamset.params.values import Part
from dreamset.weights import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamset.params import Params

RECORD: Final = "models/fetched.json"
PICKLED: Final = ("bin", "ckpt", "pt", "pth")
_PATIENCE: Final = 4.0  # seconds until the hub has to answer a first question
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_VOCABULARIES: Final = ("vocab.json", "vocab.txt", "*.model")  # of tokenizers in their older forms

_NAME = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?")
_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja"]
# Where each kind of repository keeps its weights; many repositories hold the same weights again in other forms.
_WEIGHTS: dict[Part, list[str]] = {
    "generator": ["unet/*", "vae/*", "text_encoder/*", "text_encoder_2/*"],
    "student": ["unet/*", "pytorch_lora_weights"],
    "clip": ["open_clip_model"],
    "judge": ["*"],
    "captioner": ["*"],
}


@dataclass(frozen=True)
class Repository:
    """A repository of the hub; ``revision`` is a commit, a branch or a tag, or None where the name has none."""

    id: str
    revision: str | None


def repository(name: str) -> Repository | None:
    """The repository that ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION`` names; None for a folder's path.

    Raises:
        InputError: the name starts with ``hub:`` and has neither form.
    """
    if not name.startswith("hub:"):
        return None
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: is no repository of the hub; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION.")
    return Repository(match[1], match[2])


def locate(root: Path, name: str, part: Part, variant: str | None = None) -> Path:
    """The folder with the weights that a model's row calls ``name``.

    Args:
        root: the project's root; a path is relative to it.
        name: a path, or ``hub:OWNER/NAME[@REVISION]``.
        part: the use of the weights, which decides the required files.
        variant: the variant of the weights' files on the hub.

    Raises:
        InputError: the repository is missing or incomplete in the hub's cache.
    """
    repo = repository(name)
    if repo is None:
        return root / name
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = repo.revision or recorded(root).get(repo.id, {}).get("commit")
    try:
        return Path(snapshot_download(repo.id, revision=revision, local_files_only=True, **_selected(part, variant)))
    except LocalEntryNotFoundError as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"{repo.id}{at} is missing or incomplete in the hub's cache ({constants.HF_HUB_CACHE}); run "
            "`dreamset fetch` where there is a network, or set HF_HOME to the folder that holds it."
        ) from error


def check(root: Path, name: str, part: Part, variant: str | None = None) -> None:
    """Fail on a folder of this machine whose files are missing or are none, before there is work to lose.

    A missing folder, pickled weights and the hub's cache are left to who reads them.

    Raises:
        InputError: a file is missing, is a pointer of Git LFS, or is not whole.
    """
    folder = root / name
    if repository(name) is not None or not folder.is_dir():
        return
    remedy = f"fetch or copy it again, or correct {part} in its row"
    for file in files(folder, part, variant):
        if file.suffix == ".safetensors":
            tensors.check(file, remedy)
        elif file.suffix == ".json":
            try:
                json.loads(file.read_bytes())
            except ValueError as error:
                raise InputError(f"{file}: is not whole JSON ({error}); {remedy}.") from error
    for anyone in _needed(folder, part, variant):
        if not any(path.is_file() for pattern in anyone for path in folder.glob(pattern)):
            raise InputError(f"{folder / anyone[0]}: is missing; {remedy}.")


def _needed(folder: Path, part: Part, variant: str | None) -> Iterator[tuple[str, ...]]:
    """Yield patterns of files, of which any one must be there; the first names the usual file."""
    if part == "clip":
        yield ("open_clip_config.json",)
        yield ("open_clip_model.safetensors", *(f"*.{suffix}" for suffix in PICKLED))
        text = _mapping(folder / "open_clip_config.json", "model_cfg", "text_cfg")
        if "hf_tokenizer_name" in text:
            yield ("tokenizer.json", *_VOCABULARIES)
    elif part == "student":
        if not (folder / "pytorch_lora_weights.safetensors").is_file():
            yield ("unet/config.json",)
            yield ("unet/diffusion_pytorch_model.safetensors", "unet/*.safetensors")
    elif part == "generator":
        yield ("model_index.json",)
        # A part that a model does without is listed as null, null.
        kinds = _mapping(folder / "model_index.json")
        yield ("scheduler/scheduler_config.json",)
        for name in (name for name, kind in kinds.items() if isinstance(kind, list) and kind[:1] != [None]):
            if name in ("unet", "vae", "text_encoder", "text_encoder_2"):
                usual = "model" if name.startswith("text") else "diffusion_pytorch_model"
                pickled = (f"{name}/*.{suffix}" for suffix in PICKLED)
                yield (f"{name}/config.json",)
                yield (f"{name}/{usual}{_suffix(variant)}", f"{name}/*.safetensors", *pickled)
            elif name in ("tokenizer", "tokenizer_2"):
                yield (f"{name}/tokenizer.json", *(f"{name}/{pattern}" for pattern in _VOCABULARIES))


def _mapping(file: Path, *keys: str) -> dict[str, Any]:
    """The mapping in a JSON file, or the one in it below ``keys``; empty where there is none."""
    value = json.loads(file.read_bytes())
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def files(folder: Path, part: Part, variant: str | None = None) -> list[Path]:
    """The files that loading reads, sorted: configurations, tokenizers, and one variant of the weights."""
    texts = {path for pattern in _TEXTS for path in folder.rglob(pattern)}
    weights = {path for pattern in _patterns(part, variant) for path in folder.glob(pattern)}
    if variant is None:
        weights = {path for path in weights if "." not in path.stem}
    return sorted(path for path in texts | weights if path.is_file())


@functools.cache
def identity(root: Path, name: str, part: Part, variant: str | None = None) -> dict[str, Any]:
    """The identity of weights, for cards and manifests: name, commit on the hub, and sha256 of the files' contents."""
    folder = locate(root, name, part, variant)
    hashes = [[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files(folder, part, variant)]
    repo = repository(name)
    # The cache names the folder of a snapshot after its commit.
    return {"name": name, "commit": folder.name if repo else None, "sha256": digest(hashes)}


def student(root: Path, params: Params, recipe: str) -> dict[str, Any] | None:
    """Return the identity of the student that draws the images of a recipe; None where the generator itself does."""
    if not params.sampler(recipe).student:
        return None
    assert params.base.few_steps is not None
    return identity(root, *params.base.few_steps.pretrained)


def recorded(root: Path) -> dict[str, Any]:
    """The record of ``fetch`` for each repository: its commit, and the sha256 of its files."""
    path = root / RECORD
    records: dict[str, Any] = read_json(path, "dreamset fetch") if path.is_file() else {}
    return records


def to_load(name: str, part: Part, variant: str | None = None) -> int:
    """The bytes of a repository's files that the hub's cache lacks; one question to the hub, none where all are there.

    Raises:
        InputError: as ``fetch``.
    """
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, selected = _to_fetch(name), _selected(part, variant)
    if _COMMIT.fullmatch(repo.revision or ""):
        # What a commit holds never changes.
        with suppress(LocalEntryNotFoundError):
            snapshot_download(repo.id, revision=repo.revision, local_files_only=True, **selected)
            return 0
    with _asking(repo):
        # The download itself tries again and again, for half a minute where there is no network.
        info = HfApi().model_info(repo.id, revision=repo.revision, files_metadata=True, timeout=_PATIENCE)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def missing(file: str) -> bool:
        allowed, ignored = (
            any(fnmatchcase(file, pattern) for pattern in selected[f"{which}_patterns"] or ())
            for which in ("allow", "ignore")
        )
        return allowed and not ignored and not isinstance(try_to_load_from_cache(repo.id, file, revision=info.sha), str)

    return sum(size for file, size in sizes.items() if missing(file))


def _to_fetch(name: str) -> Repository:
    repo = repository(name)
    if repo is None:
        raise InputError(f"{name}: is a folder, which needs no fetching.")
    return repo


@contextmanager
def _asking(repo: Repository) -> Iterator[None]:
    """Turn what the hub's library raises into one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repo.id}: the hub knows no such repository, or it needs a login (`hf auth login`) and the acceptance "
            "of its licence on its page."
        ) from error
    except Exception as error:  # those of a network are of another library with each release of the hub's
        if disk_full(error, Path(constants.HF_HUB_CACHE)) is not None:
            raise
        offline = isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{repo.id}: the hub at {constants.ENDPOINT} gives nothing ({reason}); run the same command where there is "
            "a network, and it goes on from what is here."
        ) from error


def fetch(root: Path, name: str, part: Part, variant: str | None = None) -> dict[str, Any]:
    """Download the missing files of a repository into the hub's cache, and record its commit and files.

    Raises:
        InputError: there is no network, no such repository or revision, no access, or no safetensors in it.
    """
    from huggingface_hub import snapshot_download

    repo = _to_fetch(name)
    with _asking(repo):
        folder = Path(snapshot_download(repo.id, revision=repo.revision, **_selected(part, variant)))
    paths = files(folder, part, variant)
    if not any(path.suffix == ".safetensors" for path in paths):
        raise InputError(f"{repo.id}: holds no safetensors weights{_of(variant)}; name a repository that does.")
    record = {
        "commit": folder.name,
        "pinned": repo.revision == folder.name,
        "bytes": sum(path.stat().st_size for path in paths),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths},
    }
    write_json(root / RECORD, recorded(root) | {repo.id: record})
    return record


def refuse_pickles(folder: Path, variant: str | None = None) -> None:
    """Fail on a generator's folder with only pickled weights, and name the command that converts them.

    Raises:
        InputError: a part of the model has weights, but none in safetensors.
    """
    for part in sorted(path.parent for path in folder.glob("*/config.json")):
        pickled = [path for suffix in PICKLED for path in part.glob(f"*.{suffix}")]
        if pickled and not list(part.glob("*.safetensors")):
            option = f", variant={variant!r}" if variant else ""
            call = f"P.from_pretrained('{folder}'{option}).save_pretrained('{folder}-safe')"
            raise InputError(
                f"{pickled[0]}: is a pickled file, which can run any code when it is opened; if you trust it, "
                f'convert it with `python -c "from diffusers import DiffusionPipeline as P; {call}"` and name the '
                "new folder."
            )


def _selected(part: Part, variant: str | None) -> dict[str, Any]:
    """The patterns of a repository's files to download."""
    patterns = [*_TEXTS, *(f"*/{text}" for text in _TEXTS), *_patterns(part, variant)]
    return {"allow_patterns": patterns, "ignore_patterns": None if variant else ["*.*.safetensors"]}


def _patterns(part: Part, variant: str | None) -> list[str]:
    return [f"{stem}{_suffix(variant)}" for stem in _WEIGHTS[part]]


def _suffix(variant: str | None) -> str:
    return f".{variant}.safetensors" if variant else ".safetensors"


def _of(variant: str | None) -> str:
    return f" of variant {variant}" if variant else ""
