"""What text encoders read of the captions: two classes that they cannot tell apart would be learned as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.data.asking import lead
from dreamset.weights import hub, pretrained
from dreamset.weights.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.params import Params


@dataclass(frozen=True)
class Reading:
    """The captions of all classes as the encoders of a model receive them.

    Attributes:
        captions: by label.
        tokens: what the encoders receive of each caption, equal where they cannot tell two captions apart.
        length: tokens that they receive of a caption, with its start and end.
        cut: whether a caption is longer, by label.
    """

    captions: Sequence[str]
    tokens: Sequence[Any]
    length: int
    cut: Sequence[bool]


def check(split: Split, params: Params, workspace: Workspace) -> list[str]:
    """Compare the captions of the classes as the generator and CLIP read them.

    Weights that are not on this machine are passed over: whoever needs them says so.

    Returns:
        Warnings of captions that are cut.

    Raises:
        InputError: two classes have captions that a model reads alike.
    """
    warnings = {}
    for key, reading in _readings(split, params, workspace):
        first: dict[Any, int] = {}
        for label, tokens in enumerate(reading.tokens):
            other = first.setdefault(tokens, label)
            if other != label:
                raise InputError(
                    f"classes {split.classes[other]!r} and {split.classes[label]!r} are one to {key}, which reads the "
                    f"same {reading.length} tokens of {reading.captions[other]!r} and {reading.captions[label]!r}; "
                    "rename one of them, or shorten prepare.template."
                )
        long = [caption for caption, cut in zip(reading.captions, reading.cut, strict=True) if cut]
        if long:
            warnings[key] = (
                f"{len(long)} of {len(reading.captions)} captions are longer than the {reading.length} tokens that "
                f"{key} reads, and are cut (first: {long[0]!r})"
            )
    return [*warnings.values()]


def _readings(split: Split, params: Params, workspace: Workspace) -> Iterator[tuple[str, Reading]]:
    """Yield what each model reads of the captions that this run gives it, with the key that names the model."""
    rows = [params.recipes[name] for name in params.active]
    asking = [row for row in rows if row.draws and not row.asks_by_vectors]
    labels, key = range(len(split.classes)), f"models.{params.model}"
    folder = _generator(params, workspace)
    if folder is not None:
        tokens = Tokens.of(folder)
        begun = {
            tuple(lead(split, row, label, turn) for label in labels): None
            for row in asking
            for turn in range(len(row.templates or ("",)))
        }
        for captions in begun:
            yield f"{key}.generator", _by_generator(tokens, captions)
    try:
        clip = pretrained.find(workspace.root, params.base.clip)
    except InputError:
        return
    tokenizer = clip.tokenizer()
    # A class has as many captions as there are templates, and is told from another by any of them.
    readings = [_by_clip(tokenizer, captions) for captions in split.clip_prompts()]
    for reading in readings:
        yield (
            f"{key}.clip",
            Reading(
                reading.captions, list(zip(*(one.tokens for one in readings), strict=True)), reading.length, reading.cut
            ),
        )
    if split.clip_templates and any(not params.base.train.rows[name].from_scratch for name in params.train.classifiers):
        yield f"{key}.clip", _by_clip(tokenizer, [split.prompt(label) for label in labels])


def _generator(params: Params, workspace: Workspace) -> Path | None:
    """Return the folder of the generator; None where it is not on this machine."""
    try:
        folder = hub.locate(workspace.root, *params.base.pretrained)
    except InputError:
        return None
    return folder if (folder / "tokenizer").is_dir() else None


def _by_generator(tokens: Tokens, captions: Sequence[str]) -> Reading:
    # The end of a caption is a token too, so that a cut one differs from one that ends there.
    return Reading(
        captions,
        [tokens.read(caption) for caption in captions],
        tokens.length,
        [tokens.lost(caption) > 0 for caption in captions],
    )


def _by_clip(tokenizer: Any, captions: Sequence[str]) -> Reading:
    read = tokenizer(list(captions))
    length = read.shape[1]
    # After the end of a caption there is padding alone.
    whole = tokenizer(list(captions), context_length=8 * length)
    cut = (whole[:, length:] != whole[:, -1:]).any(dim=1)
    return Reading(captions, [tuple(row) for row in read.tolist()], length, cut.tolist())
