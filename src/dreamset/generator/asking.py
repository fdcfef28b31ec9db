"""What a recipe asks its generator with: sentences on the classes, captions of shots, attributes that CLIP reads.

Whoever makes adapters or images calls ``applied`` first, and writes the prompts into the keys of what it makes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.code import code_digest
from dreamset.core.errors import InputError
from dreamset.data.asking import Told, read_descriptions
from dreamset.generator import attributes, captions
from dreamset.weights import hub, pretrained
from dreamset.weights.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dreamset.data.splits import Sample
    from dreamset.data.work import Work

_MARGIN: Final = 0.01  # by which a word's probability must exceed the next on some shot, or CLIP reads nothing
_NAMED: Final = 3  # prompts that a warning quotes
_SHOWN: Final = 160  # characters of a prompt that it quotes


def applied(work: Work) -> Work:
    """Return the work with what its recipe asks with.

    It looks at the shots of ``work`` alone: in a fold, at those that the fold does not hold out.

    Raises:
        InputError: a file misses a class or a shot, a network is missing, or CLIP cannot tell the words of a group
            apart.
    """
    row, told = work.row, from_files(work)
    if row.reads_attributes:
        told = Told(attributes=_read(work))
    elif row.captioner is not None:
        key = f"recipes.{work.recipe}.captions"
        told = Told(captions=captions.of_model(work.workspace, work.split, row.captioner, key))
        captions.forget()
    return dataclasses.replace(work, told=told)


def from_files(work: Work) -> Told:
    """Return what a recipe asks with as far as files tell it, without a network.

    Raises:
        InputError: a file is missing or cannot be read, or misses a class or a shot.
    """
    row, split, root, key = work.row, work.split, work.workspace.root, f"recipes.{work.recipe}"
    if row.descriptions is not None:
        return Told(descriptions=read_descriptions(root / row.descriptions, split, f"{key}.descriptions"))
    if row.captions == "beside":
        return Told(captions=captions.beside(split.train, f"{key}.captions"))
    if row.captions_file is not None:
        return Told(captions=captions.of_file(root / row.captions_file, split.train, f"{key}.captions"))
    return Told()


def _read(work: Work) -> dict[str, dict[str, str]]:
    """Return the attributes of the shots, by the sha256 of their files.

    Raises:
        InputError: the CLIP is missing, or no word of a group stands out on any shot.
    """
    groups = work.base.attributes or {}
    clip = pretrained.identity(work.workspace.root, work.base.clip)["sha256"]
    about = ["attributes", clip, groups, attributes.captions(work.split), code_digest(attributes.__name__)]

    def make() -> Callable[[Sample], Any]:
        from dreamset.data import arrays

        reader = attributes.reader(work.workspace.root, work.base.clip, work.split, groups)

        def read(sample: Sample) -> dict[str, list[float]]:
            # Each shot by itself, since a batch would change its last bits.
            images = arrays.real([sample], work.workspace.cell, reader.size).images
            return {group: likely[0].astype(float).tolist() for group, likely in reader.read(images).items()}

        return read

    likely = captions.cached(work.workspace, about, work.split.train, make)
    key = f"models.{work.params.model}.attributes"
    for group, words in groups.items():
        check_apart(group, words, [likely[sample.sha256][group] for sample in work.split.train], key)
    return {sha: attributes.winners(one, groups) for sha, one in likely.items()}


def check_apart(group: str, words: Sequence[str], likely: Iterable[Sequence[float]], key: str) -> None:
    """Fail on a group of words of which CLIP finds none likelier than the next on any shot.

    Args:
        group: its name.
        words: of the group.
        likely: for each shot, the probability of each word.
        key: of the groups.

    Raises:
        InputError: naming the two words that are nearest.
    """
    margins = []
    for one in likely:
        first, second = sorted(range(len(words)), key=lambda place: -one[place])[:2]
        margins.append((one[first] - one[second], words[first], words[second]))
    best, first_word, second_word = max(margins)
    if best < _MARGIN:
        raise InputError(
            f"{key}.{group}: CLIP cannot tell its words apart (at best {first_word!r} is {100 * best:.2g} % likelier "
            f"than {second_word!r}, on {len(margins)} shots); name other words, or remove the group."
        )


def too_long(work: Work, prompts: Iterable[tuple[str, str]]) -> list[str]:
    """Return a warning of prompts that are longer than the generator's window, with the tokens that are lost.

    Args:
        work: on the recipe.
        prompts: class name and prompt of each image.
    """
    if work.row.asks_by_vectors:
        return []
    tokens = Tokens.of(hub.locate(work.workspace.root, *work.base.pretrained))
    every = dict.fromkeys((*prompts, *([("no class, negative", work.row.negative)] if work.row.negative else [])))
    known: Mapping[str, int] = {prompt: tokens.lost(prompt) for prompt in {prompt for _, prompt in every}}
    long = sorted((-known[prompt], name, prompt) for name, prompt in every if known[prompt])
    if not long:
        return []
    named = "; ".join(
        f"{name!r} loses {-lost} {'token' if lost == -1 else 'tokens'} of {prompt[:_SHOWN]!r}"
        for lost, name, prompt in long[:_NAMED]
    )
    more = f"; and {len(long) - _NAMED} more" if len(long) > _NAMED else ""
    return [
        f"{len(long)} of {len(every)} prompts of {work.recipe} are longer than the {tokens.length} tokens that the "
        f"generator reads, and their ends are lost: {named}{more}"
    ]
