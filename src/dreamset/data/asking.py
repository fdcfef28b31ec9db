"""The prompts of images and of shots, each a function of a few things that are known beforehand.

A prompt begins with its *lead*: a template with the class's name in it. What follows is a sentence on the class, or
what is seen in a shot: its caption, or the attributes that CLIP reads. ``dreamset.generator.asking`` brings these
together, and hands them over as a ``Told``. So no image and no adapter depends on the code that writes captions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.files import sha256_file
from dreamset.core.seeds import order, seed_for
from dreamset.core.strict import meant, read_yaml
from dreamset.data.splits import caption
from dreamset.params.knob_rules import check_placeholders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dreamset.data.splits import Sample, Split
    from dreamset.params import Params
    from dreamset.params.recipe import Recipe

NONE: Final = "none"  # the word of a group that says nothing


@dataclass(frozen=True)
class Told:
    """What a recipe asks with, beside the names of the classes.

    Attributes:
        descriptions: sentences by label.
        captions: of shots, by the sha256 of their files.
        attributes: the word of each group that is read in a shot, by the sha256 of its file.
    """

    descriptions: tuple[tuple[str, ...], ...] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """The prompt of an image.

    Attributes:
        prompt: the text.
        shot: sha256 of the shot whose caption or attributes it tells; None: of no shot.
        attributes: the word of each group that was read in that shot; None: nothing was read.
    """

    prompt: str
    shot: str | None = None
    attributes: Mapping[str, str] | None = None


def lead(split: Split, row: Recipe, label: int, turn: int = 0) -> str:
    """Return how the prompts of a class begin: the template whose turn it is, with the class's name.

    Without ``templates`` it is the split's caption; before a sentence on the class it is the bare name, as in "Fake it
    till you make it" (arXiv 2212.08420).
    """
    if row.templates:
        return caption(row.templates[turn % len(row.templates)], split.prompt(label, "label"))
    return split.prompt(label, "template" if row.tells_shots else row.prompt)


def asked(split: Split, row: Recipe, seed: int, told: Told, wanted: Iterable[tuple[int, int]]) -> list[Asked]:
    """Return the prompts of images, each of which depends on the seed, its class and its index alone.

    Templates and sentences take turns, each round in an order of its own. A caption is that of a shot of the class, all
    shots in turn, and never of the shot that the image starts from if there is another one (DISEF). A context is that
    of a shot of any class, all shots in turn (Beyond Objects, arXiv 2510.24078: the attributes of one shot together).

    Args:
        split: with the shots; those of a fold are the ones that it does not hold out.
        row: of the recipe.
        seed: of the run.
        told: what the recipe asks with.
        wanted: label and index of each image.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in split.train:
        by_label.setdefault(sample.label, []).append(sample)
    prompts = []
    for label, index in wanted:
        name = split.classes[label]
        begun = lead(split, row, label, _turn("template", seed, name, index, len(row.templates or ("",))))
        if row.describes:
            sentences = told.descriptions[label]
            sentence = sentences[_turn("description", seed, name, index, len(sentences))]
            prompts.append(Asked(_joined(split, label, begun, sentence)))
        elif row.tells_context:
            sample = split.train[_turn("context", seed, name, index, len(split.train))]
            prompts.append(_of_shot(split, label, begun, told, sample))
        elif row.tells_captions:
            shots = by_label[label]
            prompts.append(_of_shot(split, label, begun, told, shots[_another(seed, name, index, len(shots))]))
        else:
            prompts.append(Asked(begun))
    return prompts


def learned(split: Split, row: Recipe, told: Told, samples: Sequence[Sample]) -> list[str]:
    """Return the prompts that an adapter learns shots with: each tells what is seen in its own shot.

    Templates and sentences take turns among the shots of a class, in the order of ``samples``.
    """
    place: dict[int, int] = {}
    prompts = []
    for sample in samples:
        label, turn = sample.label, place.get(sample.label, 0)
        place[label] = turn + 1
        begun = lead(split, row, label, turn)
        if row.describes:
            sentences = told.descriptions[label]
            prompts.append(_joined(split, label, begun, sentences[turn % len(sentences)]))
        elif row.tells_shots:
            prompts.append(_of_shot(split, label, begun, told, sample).prompt)
        else:
            prompts.append(begun)
    return prompts


def with_attributes(begun: str, attributes: Mapping[str, str]) -> str:
    """Return a lead with the words of attributes after it, separated by commas."""
    return ", ".join([begun, *(word for word in attributes.values() if word != NONE)])


def public_prompts(split: Split, row: Recipe, told: Told, label: int) -> set[str]:
    """Return the prompts of a class that tell nothing of a shot."""
    leads = [lead(split, row, label, turn) for turn in range(len(row.templates or ("",)))]
    sentences = told.descriptions[label] if row.describes else ()
    return {*leads, *(_joined(split, label, begun, sentence) for begun in leads for sentence in sentences)}


def _of_shot(split: Split, label: int, begun: str, told: Told, sample: Sample) -> Asked:
    if sample.sha256 in told.attributes:
        attributes = told.attributes[sample.sha256]
        return Asked(with_attributes(begun, attributes), sample.sha256, attributes)
    return Asked(_joined(split, label, begun, told.captions[sample.sha256]), sample.sha256)


def _joined(split: Split, label: int, begun: str, text: str) -> str:
    """Return a sentence as a prompt: behind the lead, unless it names the class itself."""
    name = split.prompt(label, "label")
    if "{class}" in text or "{a class}" in text:
        return caption(text, name)
    words = "|".join(map(re.escape, (name, split.classes[label])))
    return text if re.search(rf"(?<!\w)({words})(?!\w)", text, re.IGNORECASE) else f"{begun}, {text}"


def _turn(purpose: str, seed: int, class_name: str, index: int, count: int) -> int:
    """Return which of ``count`` things image ``index`` takes: all in turn, each round in an order of its own."""
    turn, place = divmod(index, count)
    return order(purpose, seed, class_name, turn, count)[place]


def _another(seed: int, class_name: str, index: int, count: int) -> int:
    """Return the shot whose caption image ``index`` takes: not the one it starts from, where there are two.

    ``drawing.starts`` takes the shots in the same order, from which this one is a round shift.
    """
    turn, place = divmod(index, count)
    shift = 1 + seed_for("caption", seed, class_name, turn) % (count - 1) if count > 1 else 0
    return order("start", seed, class_name, turn, count)[(place + shift) % count]


def read_descriptions(path: Path, split: Split, key: str) -> tuple[tuple[str, ...], ...]:
    """Return the sentences on each class, by label, of a YAML file that maps a class to a sentence or to several.

    Raises:
        InputError: the file is missing or cannot be read, misses a class or holds another one, or gives a class no
            sentence, or one with a placeholder that is none.
    """
    check_there(path, key)
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: is no mapping of classes to sentences; write `class: [sentence, ...]` lines.")
    unknown = [name for name in raw if name not in split.classes]
    missing = [name for name in split.classes if name not in raw]
    if missing:
        hint = f", and holds {unknown[0]!r}, which is no class" if unknown else ""
        raise InputError(f"{path}: misses class {missing[0]!r}{hint}; {key} needs a sentence on each class.")
    if unknown:
        near = meant(unknown[0], split.classes)
        raise InputError(f"{path}: {unknown[0]!r} is no class of the source{near}; remove it, or mend its name.")
    described = []
    for name in split.classes:
        given = raw[name] if isinstance(raw[name], list) else [raw[name]]
        if not given or not all(isinstance(sentence, str) and sentence.strip() for sentence in given):
            raise InputError(f"{path}: class {name!r} needs one or more sentences as text; write them there.")
        for sentence in given:
            check_placeholders(sentence, f"{path}, class {name!r}")
        described.append(tuple(" ".join(sentence.split()) for sentence in given))
    return tuple(described)


def check_there(path: Path, key: str) -> None:
    """Refuse a file that a recipe asks with and that is not there.

    Raises:
        InputError: naming the key and the file.
    """
    if not path.is_file():
        raise InputError(f"{key}: {path} is missing; write it, or name another file.")


def files_digest(params: Params, root: Path, recipe: str) -> list[str]:
    """Return the sha256 of the files of descriptions and captions that a recipe and its parents ask with."""
    rows = [params.recipes[name] for name in params.lineage(recipe)]
    files = [file for row in rows for file in (row.descriptions, row.captions_file) if file is not None]
    return [sha256_file(root / file) for file in files if (root / file).is_file()]
