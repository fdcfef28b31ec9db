"""Definitions of the page's terms, each at the place where the term first appears."""

from __future__ import annotations

import re
from typing import Final

from markupsafe import Markup, escape

# Patterns of the words, with at most twelve words of what they mean; docs/glossary.md says more.
TERMS: Final = {
    r"synthetic images?": "images that a text-to-image model drew, with the class asked for",
    r"test images|held-out images|images held out": "real images that score classifiers; nothing learned from them",
    r"points": "percentage points of accuracy: a share of the images that score",
    r"\d+% intervals?": "the range that the true value lies in, with this confidence",
    r"shots?": "a real labelled image that a run learns from",
    r"strongly augmented|strong augmentation": "trained on images cropped, coloured, blurred and mixed at random",
    r"recipes?": "a named way of making synthetic images, a row of params.yaml",
    r"adapters?": "weights that training on the shots adds to the generator",
    r"seeds?": "the number that redraws shots, noise and first weights",
    r"folds?": "one part of the images, held out while all else is trained",
    r"zero-shot": "without any training on the shots",
    r"CAS": "accuracy on real images of a network trained on synthetic ones alone",
    r"FID": "distance between two sets of images; lower is nearer",
    r"KID": "like FID, and fair to small sets of images; lower is nearer",
    r"near-duplicates?": "an image that is almost the same picture as another one",
    r"McNemar": "test of two classifiers on the same images",
    r"guidance": "how strongly the prompt pulls each image",
}
_HEADS: Final = frozenset({"head", "style", "title", "h1", "h2", "h3", "summary", "ol"})
_PLAIN: Final = frozenset({"svg", "code", "pre", "bdi", "dfn"}) | _HEADS  # elements without definitions


def defined(document: str) -> str:
    """Return a page in which each term has its definition as a tooltip where it first stands in running text."""
    waiting = {re.compile(rf"(?<![\w-])(?:{words})(?![\w-])"): meaning for words, meaning in TERMS.items()}
    inside: list[str] = []
    parts = re.split(r"(<[^>]*>)", document)
    for index, part in enumerate(parts):
        if part.startswith("<"):
            tag = re.match(r"</?([a-z0-9]+)", part)
            name = tag[1] if tag else ""
            if name in _PLAIN and part.startswith("</"):
                inside.remove(name)
            elif name in _PLAIN:
                inside.append(name)
        elif part.strip() and not inside:
            parts[index] = _marked(part, waiting)
    return "".join(parts)


def _marked(text: str, waiting: dict[re.Pattern[str], str]) -> str:
    """Return text with the first occurrence of each term that still waits as an element; these wait no more."""
    found = [(match, pattern) for pattern in waiting if (match := pattern.search(text))]
    end, parts = 0, []
    for match, pattern in sorted(found, key=lambda pair: pair[0].start()):
        if match.start() < end:
            continue  # inside of another term; a later place will do
        parts += [text[end : match.start()], Markup('<dfn title="{}">').format(escape(waiting.pop(pattern)))]
        parts += [match[0], "</dfn>"]
        end = match.end()
    return "".join([*parts, text[end:]])
