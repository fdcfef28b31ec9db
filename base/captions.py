"""Words for glyphs: the captions that train the base and the prompts that measure it."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dreamset.glyphs.fonts import CHARACTERS

DIGIT_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT: Final = "a photo of the {}"

_LEADS: Final = (
    "a photo of the {}",
    "a photo of a {}",
    "a photo of {}",
    "a picture of the {}",
    "an image of the {}",
    "a drawing of the {}",
    "the {}",
    "{}",
)
# Half of all captions use the first lead, so that the base knows the plain template best.
_LEAD_WEIGHTS: Final = (0.5, 0.07, 0.07, 0.07, 0.07, 0.07, 0.08, 0.07)


def names(character: str) -> tuple[str, ...]:
    """The names of a character, the usual one first: ``digit three``, ``letter capital B``."""
    if character.isdigit():
        word = DIGIT_WORDS[int(character)]
        return (f"digit {word}", f"digit {character}", f"number {word}", word, character)
    case = "capital" if character.isupper() else "small"
    return (f"letter {case} {character}", f"{case} letter {character}", f"{case} {character}")


def prompt(character: str) -> str:
    """The caption without attributes, which later templates follow: ``a photo of the digit three``."""
    return PROMPT.format(names(character)[0])


def caption(character: str, attributes: tuple[str, ...], rng: np.random.Generator) -> str:
    """A caption of varied wording; the attributes follow the name, separated by commas."""
    choices = names(character)
    name = choices[0] if rng.random() < 0.5 else choices[int(rng.integers(len(choices)))]
    lead = _LEADS[int(rng.choice(len(_LEADS), p=_LEAD_WEIGHTS))]
    return ", ".join([lead.format(name), *attributes])


def mention(attributes: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose the attributes that captions mention: none for half the images, else each true one with even odds.

    Args:
        attributes: (n, a) bool, the true attributes of each image.
        rng: the random generator.

    Returns:
        (n, a) bool, a subset of ``attributes``.
    """
    talkative = rng.random((len(attributes), 1)) < 0.5
    return attributes & talkative & (rng.random(attributes.shape) < 0.5)


def vocabulary() -> list[str]:
    """All words of all captions, sorted."""
    from dreamset.glyphs.render import ATTRIBUTES

    texts = [lead.format(name) for lead in _LEADS for c in CHARACTERS for name in names(c)]
    return sorted({word for text in [*texts, *ATTRIBUTES] for word in text.lower().split()})
