"""The captions of shots: from texts beside them, from a file, or from an image-to-text model of transformers."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.device import pick
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, digest, read_json
from dreamset.core.strict import read_text, read_yaml
from dreamset.data.asking import check_there
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Sample, Split

# DISEF asks LLaVA for a detailed caption that names the class; CLIP's text encoders read only 77 tokens.
_INSTRUCTION: Final = (
    "This is a photo of {name}. Write one sentence of at most forty words that describes it: begin with {name}, "
    "then its look, its view and what is around it."
)
_TOKENS: Final = 60  # of a caption, at most


def beside(samples: Sequence[Sample], key: str) -> dict[str, str]:
    """Return the captions that ``prepare`` found as ``IMAGE.txt`` beside the images, as kohya's trainer has them.

    Raises:
        InputError: a shot has none.
    """
    missing = [sample for sample in samples if sample.caption is None]
    if missing:
        raise InputError(
            f"{key}: {len(missing)} of {len(samples)} shots have no caption beside them (first: {missing[0].path}); "
            "write a UTF-8 text of the same name that ends in .txt, and run `dreamset prepare` again."
        )
    return {sample.sha256: " ".join((sample.caption or "").split()) for sample in samples}


def of_file(path: Path, samples: Sequence[Sample], key: str) -> dict[str, str]:
    """Return the captions in a file: YAML or JSON of image to caption, or JSON lines with ``file_name`` and ``text``.

    An image is named by the end of its path, as much of it as tells it from others, or by the sha256 of its file.

    Raises:
        InputError: the file is missing or cannot be read, misses a shot, has an image without a caption, or a name in
            it fits several shots.
    """
    check_there(path, key)
    given = _lines(path) if path.suffix == ".jsonl" else read_yaml(path)
    if not isinstance(given, dict):
        raise InputError(f"{path}: is no mapping of images to captions; write `IMAGE: caption` lines.")
    empty = [name for name, text in given.items() if not (isinstance(text, str) and text.strip())]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(f"{path}: {str(empty[0])!r}{more} has no caption as text; write one, or remove the line.")
    names: dict[str, str] = {}
    fits: Counter[str] = Counter()
    missing = []
    for sample in samples:
        parts = sample.path.split("/")
        ends = ["/".join(parts[at:]) for at in range(len(parts))]
        name = next((name for name in (sample.sha256, *ends) if name in given), None)
        if name is None:
            missing.append(sample)
        else:
            names[sample.sha256] = name
            fits[name] += 1
    if missing:
        raise InputError(f"{path}: misses {len(missing)} of {len(samples)} shots (first: {missing[0].path}); add them.")
    twice = [name for name, count in fits.items() if count > 1]
    if twice:
        raise InputError(f"{path}: {twice[0]!r} fits {fits[twice[0]]} shots; write the folder before the name.")
    return {sha: " ".join(given[name].split()) for sha, name in names.items()}


def _lines(path: Path) -> dict[str, Any]:
    given: dict[str, Any] = {}
    # A caption may hold what Python takes for the end of a line, and JSON lines do not.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: is no JSON ({error}); correct the line.") from error
        if not isinstance(row, dict) or not {"file_name", "text"} <= row.keys():
            raise InputError(f"{path}, line {number}: has no file_name and text; write both on each line.")
        name = str(row["file_name"])
        if name in given:
            raise InputError(f"{path}, line {number}: {name!r} stands above already; remove one of the lines.")
        given[name] = row["text"]
    return given


def cached(
    workspace: Workspace, about: Any, samples: Sequence[Sample], make: Callable[[], Callable[[Sample], Any]]
) -> dict[str, Any]:
    """Return what is made of each shot, by the sha256 of its file; what is known already is read and not made.

    Args:
        workspace: has the folder of what is known, which git and DVC ignore.
        about: all that it depends on beside the image.
        samples: the shots.
        make: returns the function that makes it of a shot; called where something is missing.
    """
    folder = workspace.captions / digest(about)
    known, worker = {}, None
    for sample in samples:
        path = folder / f"{sample.sha256}.json"
        if path.is_file():
            known[sample.sha256] = read_json(path, "dreamset generate")
            continue
        worker = make() if worker is None else worker
        known[sample.sha256] = worker(sample)
        atomic_write(path, json.dumps(known[sample.sha256], ensure_ascii=False))
    return known


def of_model(workspace: Workspace, split: Split, name: str, key: str) -> dict[str, str]:
    """Return the captions that an image-to-text model writes, each computed once and kept.

    A model that takes instructions (LLaVA and its like) is told the class, as in DISEF. Others see the image alone. The
    likeliest words are taken, so that a caption is the same every time; DISEF draws them at a temperature of 0.2.

    Args:
        workspace: has the shots and the captions that are known.
        split: has the shots.
        name: a folder, or ``hub:OWNER/NAME[@REVISION]``.
        key: of the knob.

    Raises:
        InputError: the model is missing, is no image-to-text model of transformers, or says nothing of a shot.
    """
    import transformers

    folder = hub.locate(workspace.root, name, "captioner")
    if not (folder / "config.json").is_file():
        raise InputError(f"{key}: {name} is no folder of a transformers model (config.json is missing); correct it.")
    hub.check(workspace.root, str(folder.absolute()), "captioner")
    weights = hub.identity(workspace.root, name, "captioner")["sha256"]
    found: dict[str, str] = {}
    for label in range(len(split.classes)):
        spoken = split.prompt(label, "label")
        about = ["captions", weights, transformers.__version__, _INSTRUCTION, _TOKENS, spoken]
        shots = [sample for sample in split.train if sample.label == label]
        found |= cached(workspace, about, shots, lambda spoken=spoken: _writer(workspace, folder, spoken, key))  # type: ignore[misc]
    return found


_loaded: dict[Path, tuple[Any, Any]] = {}  # the model that writes now, for all classes


def forget() -> None:
    """Give back the memory of the model that wrote captions."""
    _loaded.clear()


def _writer(workspace: Workspace, folder: Path, name: str, key: str) -> Callable[[Sample], str]:
    """Return the function that writes the caption of a shot of the class ``name``."""
    import torch

    from dreamset.core.images import read_rgb

    if folder not in _loaded:
        _loaded[folder] = _load(folder, key)
    processor, model = _loaded[folder]

    def write(sample: Sample) -> str:
        image = read_rgb(workspace.cell / sample.path)
        texts = {}
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": _INSTRUCTION.format(name=name)}]
            said = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            texts = {"text": said}
        inputs = processor(images=image, return_tensors="pt", **texts).to(model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)[0]
        if "input_ids" in inputs and not model.config.is_encoder_decoder:
            tokens = tokens[inputs["input_ids"].shape[1] :]
        tokenizer = getattr(processor, "tokenizer", None) or _tokenizer(folder)
        caption = " ".join(tokenizer.decode(tokens, skip_special_tokens=True).split())
        if not caption:
            raise InputError(f"{key}: {folder} says nothing of {sample.path}; name another model.")
        return caption

    return write


def _load(folder: Path, key: str) -> tuple[Any, Any]:
    import transformers
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    transformers.logging.set_verbosity_error()
    device = pick()
    dtype: Any = "auto" if device.type == "cuda" else "float32"
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
        # A model of two that were put together (ViT and GPT-2) has no processor of its own.
        kind: Any = AutoImageProcessor if model.config.model_type == "vision-encoder-decoder" else AutoProcessor
        processor = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{key}: {folder} holds no image-to-text model of transformers ({reason}); correct it."
        ) from error
    return processor, model.eval().to(device)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
