"""The CLIP that a model's row names, and its files on this machine.

- a path: an open_clip folder, ``open_clip_config.json`` beside ``open_clip_model.safetensors``;
- ``hub:OWNER/NAME[@REVISION]``: a repository in that layout, in the hub's cache;
- ``open_clip:MODEL/TAG``: the repository that open_clip's table gives for a tag;
- ``open_clip:MODEL/FILE.safetensors``: a file, relative to the project's root, for an architecture of open_clip.

Only safetensors are opened. Weights that were trained with QuickGELU are silently wrong without it. A folder's
configuration says whether it is needed, and so does open_clip's table for its tags and their repositories. For a file,
only the architecture says it: OpenAI's weights in a file are ``open_clip:ViT-B-16-quickgelu/FILE.safetensors``.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256_file
from dreamset.weights import hub, tensors

WEIGHTS: Final = "open_clip_model.safetensors"
CONFIG: Final = "open_clip_config.json"

_NAME = re.compile(r"open_clip:([^/]+)/(.+)")
_REMEDY: Final = "fetch or copy it again, or correct clip in its row"
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Pretrained:
    """A CLIP on disk.

    Attributes:
        name: its name in the model's row.
        source: open_clip's name for its architecture and tokenizer: ``local-dir:FOLDER`` or a model's name.
        weights: the file of its weights.
        config: the content of ``open_clip_config.json``: ``model_cfg`` and ``preprocess_cfg``.
        folder: holds the files of its tokenizer, or None where it needs none.
        commit: its commit on the hub, or None.
        sha256: hash of the files that are read.
    """

    name: str
    source: str
    weights: Path
    config: dict[str, Any]
    folder: Path | None
    commit: str | None
    sha256: str

    def create(self) -> Any:
        """Load the model in float32, on the CPU.

        Raises:
            InputError: the file is not whole, or its weights do not fit the architecture or are no numbers.
        """
        import open_clip

        tensors.check(self.weights, _REMEDY)
        pretrained = None if self.folder else str(self.weights)
        try:
            model = open_clip.create_model(
                self.source,
                pretrained=pretrained,
                precision="fp32",
                force_quick_gelu=bool(self.config["model_cfg"].get("quick_gelu")),
                force_preprocess_cfg=self.config.get("preprocess_cfg"),
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.weights}: does not hold the weights of {self.source} ({reason}); correct clip in its row."
            ) from error
        tensors.finite(model.state_dict(), self.weights, _REMEDY)
        return model

    def tokenizer(self) -> Any:
        """The tokenizer, which maps a list of captions to (n, context) int64."""
        import open_clip

        return open_clip.get_tokenizer(self.source)


def hub_name(name: str) -> str | None:
    """The ``hub:OWNER/NAME[@REVISION]`` of a row's ``clip``; None where ``clip`` is a file or folder.

    Raises:
        InputError: there is no such model or tag, or it is published only as a pickled file.
    """
    if hub.repository(name) is not None:
        return name
    model, tag = _parts(name)
    if model is None or Path(tag).suffix in (".safetensors", *_PICKLED):
        return None
    from open_clip import pretrained

    row = pretrained.get_pretrained_cfg(model, tag)
    if _hub(row):
        return f"hub:{_hub(row)}"
    near = difflib.get_close_matches(tag, [other for other, facts in _tags(model).items() if _hub(facts)], 4, 0)
    others = " or ".join([*(f"open_clip:{model}/{other}" for other in near), f"open_clip:{model}/FILE.safetensors"])
    if row:
        raise InputError(
            f"{name}: is published only as a pickled file, which can run any code when it is opened; name {others}."
        )
    raise InputError(f"{name}: open_clip knows no such weights of {model}; name {others}.")


def find(root: Path, name: str) -> Pretrained:
    """Find the CLIP that a row's ``clip`` names.

    Args:
        root: the project's root; a path is relative to it.
        name: a name in one of the module's four forms.

    Raises:
        InputError: the CLIP is missing, is not in open_clip's layout, or is pickled.
    """
    model, file = _parts(name)
    located = hub_name(name) or name
    if model is not None and located == name:
        return _file(root, name, model, file)
    identity = hub.identity(root, located, "clip")
    clip = in_folder(hub.locate(root, located, "clip"), name, identity["commit"], identity["sha256"])
    repository = hub.repository(located)
    if repository is not None and _quick_gelu(repository.id):
        clip.config["model_cfg"]["quick_gelu"] = True
    return clip


def identity(root: Path, name: str) -> dict[str, Any]:
    """The name, commit and sha256 of the CLIP that a model's row names, from its files on this machine.

    Raises:
        InputError: the CLIP is missing, is not in open_clip's layout, or is pickled.
    """
    clip = find(root, name)
    return {"name": clip.name, "commit": clip.commit, "sha256": clip.sha256}


def in_folder(folder: Path, name: str, commit: str | None, sha256: str) -> Pretrained:
    """The CLIP of an open_clip folder; ``name`` is its name in records.

    Raises:
        InputError: the folder is not open_clip's, or it holds only pickled weights.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: is not an open_clip folder ({CONFIG} is missing); {_REMEDY}.")
    config = read_json(folder / CONFIG, "dreamset fetch")
    if not isinstance(config, dict) or "model_cfg" not in config:
        raise InputError(f"{folder / CONFIG}: has no model_cfg; correct clip in the model's row.")
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise _refusal(pickled[0], f"'local-dir:{folder}'", folder / WEIGHTS, "keep it beside the old file")
        raise InputError(f"{folder / WEIGHTS}: is missing; {_REMEDY}.")
    return Pretrained(name, f"local-dir:{folder}", folder / WEIGHTS, config, folder, commit, sha256)


def _file(root: Path, name: str, model: str, file: str) -> Pretrained:
    """The CLIP of a file of weights for an architecture of open_clip."""
    import open_clip

    path = root / file
    if path.suffix in _PICKLED:
        safe = Path(file).with_suffix(".safetensors")
        source = f"'{model}', pretrained='{path}'"
        raise _refusal(path, source, root / safe, f"name open_clip:{model}/{safe.as_posix()}")
    if not path.is_file():
        raise InputError(f"{path}: is missing; {_REMEDY}.")
    config = open_clip.get_model_config(model)
    if any(config["text_cfg"].get(key) for key in ("hf_tokenizer_name", "hf_model_name")):
        raise InputError(
            f"{name}: {model} needs a tokenizer beside its weights; name a folder or a repository that holds both."
        )
    # A file does not say how its images were normalised; open_clip's table does, where all its tags agree.
    normalisations = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in _tags(model).values()}
    agreed = len(normalisations) == 1
    preprocess = dict(zip(("mean", "std"), map(list, normalisations.pop()), strict=True)) if agreed else {}
    settings = {"model_cfg": config, "preprocess_cfg": preprocess}
    return Pretrained(name, model, path, settings, None, None, sha256_file(path))


def _parts(name: str) -> tuple[str | None, str]:
    """MODEL and REST of ``open_clip:MODEL/REST``; None and an empty string for any other name."""
    if not name.startswith("open_clip:"):
        return None, ""
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"{name}: is no name of a CLIP; write open_clip:MODEL/TAG or open_clip:MODEL/FILE.safetensors."
        )
    import open_clip

    if match[1] not in open_clip.list_models():
        near = ", ".join(difflib.get_close_matches(match[1], open_clip.list_models(), 4, 0))
        raise InputError(f"{name}: open_clip knows no model {match[1]}; the nearest are {near}.")
    return match[1], match[2]


def _tags(model: str) -> dict[str, dict[str, Any]]:
    """The published weights of a model, by tag, from open_clip's table."""
    from open_clip import pretrained

    return {tag: pretrained.get_pretrained_cfg(model, tag) for tag in pretrained.list_pretrained_tags_by_model(model)}


def _hub(row: dict[str, Any]) -> str | None:
    """The repository in a row of open_clip's table, or None where it is not in open_clip's layout."""
    place: str = row.get("hf_hub", "")
    # Only repositories in this layout end in a slash; other rows name one file of a repository, or nothing.
    return place.rstrip("/") if place.endswith("/") else None


def _quick_gelu(repository: str) -> bool:
    """Whether open_clip's table says that a repository's weights were trained with QuickGELU."""
    from open_clip import pretrained

    rows = [pretrained.get_pretrained_cfg(model, tag) for model, tag in pretrained.list_pretrained()]
    return any(row.get("quick_gelu") for row in rows if _hub(row) == repository)


def _refusal(path: Path, source: str, safe: Path, then: str) -> InputError:
    code = (
        "import open_clip; from safetensors.torch import save_file; "
        f"m = open_clip.create_model({source}); "
        f"save_file({{k: v.contiguous() for k, v in m.state_dict().items()}}, '{safe}')"
    )
    return InputError(
        f"{path}: is a pickled file, which can run any code when it is opened; if you trust it, convert it with "
        f'`python -c "{code}"` and {then}.'
    )
