"""The model card of a delivered classifier."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dreamset import __version__
from dreamset.core.images import CHANGES
from dreamset.data import cards, licences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def card(record: Mapping[str, Any], snippet: str) -> str:
    """Return the model card of a delivered classifier.

    Args:
        record: its ``classifier.json``, as ``dreamset.deliver`` writes it.
        snippet: Python code that uses the classifier without dreamset.
    """
    return cards.joined(_lines(record, snippet))


def _lines(record: Mapping[str, Any], snippet: str) -> Iterator[str]:
    names = [json.dumps(name, ensure_ascii=False) for name in record["classes"]]
    pixels, labels = record["preprocessing"], record["labels_per_class"]
    yield "---"
    yield from licences.front_matter(record["licence"])
    yield "pipeline_tag: image-classification"
    yield "---"
    yield f"# Classifier of {len(names)} classes: {record['classifier']}"
    yield ""
    yield f"**{record['verdict']['sentence']}**"
    yield ""
    learned = "real images alone" if record["arm"] == "real" else f"real images and those of `{record['arm']}`"
    strongly = ", strongly augmented" if record.get("train_on", "").endswith("_strong") else ""
    candidates = (record.get("chosen") or {}).get("candidates")
    why = "it is the best by cross-validation on the shots" if candidates else ""
    why = why or f"the verdict's outcome is `{record['verdict']['outcome']}`"
    yield f"- Trained on {learned}{strongly}, because {why}."
    if candidates:
        yield f"- {record['chosen']['chosen_by']}, of these: {'; '.join(map(_candidate, candidates))}."
    yield f"- {_accuracy(record['accuracy'])}"
    if record["accuracy"].get("untested"):
        yield f"- {untested_words(record['accuracy']['untested'])}"
    yield f"- Labels used per class: {labels['train']:g} to train, {labels['selection']:g} to select."
    larger = "" if pixels["side"] == pixels["size"] else f", then to {pixels['size']} pixels"
    yield (
        f"- Input: {pixels['channels']}; shortest side to {pixels['side']} pixels ({pixels['resample']}), centre square"
        f"{larger}; mean {pixels['mean']}, standard deviation {pixels['std']} of values in 0..1. Turned upright by "
        f"EXIF, transparency put on white{''.join(f', {CHANGES[key]}' for key in pixels.get('changes', {}))}."
    )
    fitted = record.get("temperature_images")
    how = f", fitted on {fitted} images that were held out" if fitted else ""
    yield f"- Probabilities: softmax of logits / {record['temperature']:g} (the temperature{how})."
    yield f"- {record['threshold_reason']}"
    yield f"- Classes, in the order of the logits: {', '.join(names)}."
    yield f"- Made by dreamset {__version__}."
    yield ""
    yield "## Where it comes from, and its limits"
    yield ""
    if record["base"]:
        yield (
            f"- Weights: trained from `{cards.public_name(record['base'])}`, whose own licence holds too; sha256 "
            f"{record['base_sha256']}."
        )
    else:
        yield "- Weights: trained from scratch, no pretrained network in them."
    drawn = "learned from images that it drew" if record["arm"] != "real" else "learned from no image that it drew"
    if record.get("origin") == "retrieval":
        drawn = "learned from no image that it drew, but from images found for the shots"
    yield (
        f"- Generator of the run: `{record['generator']}`; this classifier {drawn}. "
        f"{licences.sentence(record['licence'])}"
    )
    yield (
        "- A classifier answers with one of its classes whatever the picture shows. Its accuracy holds for pictures "
        "like those that it was measured on."
    )
    yield f"- {cards.COPIES} A classifier can give away who or what was among its training images."
    yield ""
    yield "## Use"
    yield ""
    yield "With dreamset: `dreamset predict PHOTOS --classifier FOLDER --out predictions.csv`. Without it, here:"
    yield ""
    yield "```python"
    yield snippet.strip()
    yield "```"


def _accuracy(row: Mapping[str, Any]) -> str:
    """Return a sentence on the accuracy and on its protocol, which decides what the figure means."""
    interval = f"{row['confidence']:.0%} interval {row['low']:.1%} to {row['high']:.1%}"
    if row["protocol"] == "cv":
        return (
            f"Accuracy {row['estimate']:.1%} ({interval}): the folds' estimate on {row['images']} labelled images, "
            "each predicted by a classifier that had not seen it. This one was trained afterwards, on "
            f"{_learned(row)}{_among(row)}."
        )
    chosen = "; the verdict chose it on the same images, so expect a little less" if row.get("chosen") else ""
    return f"Accuracy {row['estimate']:.1%} ({interval}) on {row['images']} test images that nothing had seen{chosen}."


def _candidate(row: Mapping[str, Any]) -> str:
    """Return a candidate with its accuracy by folds and on the images that score."""
    return f"`{row['run']}` {row['accuracy_folds']:.1%} ({row['accuracy']:.1%} when measured)"


def _among(row: Mapping[str, Any]) -> str:
    """Return a phrase on a choice by the same predictions; an empty one where nothing was chosen."""
    count = row.get("candidates", 1)
    return f"; it was chosen among {count} by the same predictions, so expect a little less" if count > 1 else ""


def untested_words(classes: Sequence[str]) -> str:
    """Return a sentence on classes without a test image; an empty one where there are none."""
    if not classes:
        return ""
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in classes)
    return f"Not tested, for no test image is of them: {names}. No figure says anything of these classes."


def _learned(row: Mapping[str, Any]) -> str:
    """Return a phrase for the labelled images, among those scored, that the delivered classifier is trained on."""
    learned = row.get("learned")
    if learned is None:
        return "the shots but for those that selection takes"
    return "all of them" if learned == row["images"] else f"{learned} of them"
