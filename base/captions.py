"""Words for glyphs: the captions that the base is trained on, and the prompts that it is measured with."""

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
# Half of all captions use the first lead, so that the plain template is the one known best.
_LEAD_WEIGHTS: Final = (0.5, 0.07, 0.07, 0.07, 0.07, 0.07, 0.08, 0.07)


def names(character: str) -> tuple[str, ...]:
    """What a character is called, the usual name first: ``digit three``, ``letter capital B``."""
    if character.isdigit():
        word = DIGIT_WORDS[int(character)]
        return (f"digit {word}", f"digit {character}", f"number {word}", word, character)
    case = "capital" if character.isupper() else "small"
    return (f"letter {case} {character}", f"{case} letter {character}", f"{case} {character}")


def prompt(character: str) -> str:
    """The caption without attributes that later templates follow: ``a photo of the digit three``."""
    return PROMPT.format(names(character)[0])


def caption(character: str, attributes: tuple[str, ...], rng: np.random.Generator) -> str:
    """A caption of varied wording; the attributes follow the name, separated by commas."""
    known = names(character)
    name = known[0] if rng.random() < 0.5 else known[int(rng.integers(len(known)))]
    lead = _LEADS[int(rng.choice(len(_LEADS), p=_LEAD_WEIGHTS))]
    return ", ".join([lead.format(name), *attributes])


def mention(attributes: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of the true attributes a caption mentions: none for half the images, else each with even odds.

    Args:
        attributes: (n, a) bool, what is true.
        rng: source of the choice.

    Returns:
        (n, a) bool, a subset of ``attributes``.
    """
    talkative = rng.random((len(attributes), 1)) < 0.5
    return attributes & talkative & (rng.random(attributes.shape) < 0.5)


def vocabulary() -> list[str]:
    """Every word of every caption, in a fixed order."""
    from dreamset.glyphs.render import ATTRIBUTES

    texts = [lead.format(name) for lead in _LEADS for c in CHARACTERS for name in names(c)]
    return sorted({word for text in [*texts, *ATTRIBUTES] for word in text.lower().split()})
