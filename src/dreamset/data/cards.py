"""Cards in Markdown: they tell whoever receives a dataset, adapters or a classifier what to know of it.

Their headers are the Hugging Face hub's.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.core.images import CHANGES
from dreamset.data import licences
from dreamset.data.asking import lead
from dreamset.data.synthetic import LATER
from dreamset.params.knob_words import (
    NOT_ANONYMOUS,
    adapter_words,
    drawn_words,
    filter_words,
    guide_words,
    init_mix_words,
    mix_words,
    opening_words,
    post_augment_words,
    prompt_words,
    quoted_words,
    scale_call_words,
    scales_words,
    shots_words,
    start_words,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dreamset.data.splits import Split
    from dreamset.params import Params
    from dreamset.params.recipe import Recipe

# Columns of metadata.jsonl in a published dataset. An adapter's hash would help only those who have the adapter.
PUBLIC: Final = ("file_name", "label", "class_name", "prompt", "seed", "sampler", "sha256")


def public_columns(row: Recipe) -> tuple[str, ...]:
    """Return the columns of ``metadata.jsonl`` in a published dataset of a recipe."""
    return (*PUBLIC, "copy_of") if row.copies else PUBLIC


# Their types as the hub's cards write them, beside the two that `_feature` knows.
_TYPES: Final[dict[str, str | dict[str, str] | list[str]]] = {
    "class_name": "string",
    "index": "int64",
    "prompt": "string",
    "seed": "int64",
    "redraws": "int64",
    "sampler": {"scheduler": "string", "steps": "int64", "guidance": "float64", "strength": "float64"},
    "adapter": "string",
    "sha256": "string",
    "origin": "string",
    "source": "string",
    "nearness": "float64",
    "shot": "string",
    "adapter_scale": "float64",
    "tries": "int64",
    "gave_up": "bool",
    "avoid": "string",
    "toward": "string",
    "beside": "string",
    "share": "float64",
    "told": "string",
    "attributes": {},  # by group, which differ by model
    "adapters": ["string"],
    "adapter_weights": ["float64"],
    "copy_of": "string",
}
OPENS: Final = (
    "Opens with `datasets.load_dataset(FOLDER)`, which reads names and order of the classes from the head of this "
    'card, and with `torchvision.datasets.ImageFolder(FOLDER)`. `load_dataset("imagefolder", ...)` would not read it.'
)

# Figures of `python -m benchmarks.copies`; a test compares them with benchmarks/results/copies.json.
FOUND: Final = (
    "Near-duplicates were sought by pixels and in the judge's features. Tried on photographs of Caltech-101 and on "
    "digits, this finds at least 97 % of copies that were saved as JPEG, blurred, made noisy, paler or brighter, "
    "shifted by 4 %, cropped by 7 %, mirrored or turned by 4 degrees. Of new real images it takes 2.8 % (photographs) "
    "and 10.7 % (digits) for near-duplicates."
)

COPIES: Final = "Adapters, and images drawn with them, may reproduce the images that the adapters were trained on."


def public_name(weights: str) -> str:
    """Return the name of pretrained weights, of an absolute path the last part: the rest describes a machine."""
    path = PurePath(weights)
    return path.name if path.is_absolute() else weights


def quoted(text: str) -> str:
    """Return a text as a double-quoted scalar of YAML, on one line whatever characters it holds."""
    # Readers of cards split them at more characters than YAML does, and YAML refuses some; all of these get escapes.
    letters = (letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)
    return '"' + "".join({"\\": "\\\\", '"': '\\"'}.get(letter, letter) for letter in letters) + '"'


def loading(classes: Sequence[str], columns: Sequence[str] | None = None, groups: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of a card's head by which ``datasets.load_dataset`` opens the folder of a synthetic dataset.

    Without them it takes a class folder for a split where its name holds a word such as train or test, leaves the
    labels without names, and guesses each column's type from the first rows.

    Args:
        classes: names by label.
        columns: of ``metadata.jsonl``; None: those that every dataset has.
        groups: of the words in the column ``attributes``.
    """
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files:"
    yield "  - split: train"
    yield '    path: [metadata.jsonl, "*/*.png"]'
    yield "  features:"
    for column in columns or every_column(()):
        yield from _feature(column, classes, groups)


def every_column(later: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of ``metadata.jsonl``: those that every dataset has, and those of ``later``."""
    return ("file_name", "label", *(name for name in _TYPES if name not in LATER or name in later))


def _feature(column: str, classes: Sequence[str], groups: Iterable[str]) -> Iterator[str]:
    if column == "file_name":
        # Each row's file is read into this column.
        yield from ("  - name: image", "    dtype: image")
        return
    yield f"  - name: {column}"
    if column == "label":
        yield from ("    dtype:", "      class_label:", "        names:")
        yield from (f"          '{label}': {quoted(name)}" for label, name in enumerate(classes))
        return
    kind = dict.fromkeys(groups, "string") if column == "attributes" else _TYPES[column]
    if isinstance(kind, str):
        yield f"    dtype: {kind}"
        return
    if isinstance(kind, list):
        yield f"    list: {kind[0]}"
        return
    yield "    struct:"
    for name, dtype in kind.items():
        yield from (f"    - name: {name}", f"      dtype: {dtype}")


def span(counts: Sequence[int]) -> int | str:
    """Return the images per class: one number where all classes have as many, else the least and the most."""
    low, high = min(counts), max(counts)
    return low if low == high else f"{low} to {high}"


def dataset(
    params: Params,
    split: Split,
    recipe: str,
    labels: Sequence[int],
    base: Mapping[str, Any],
    removed: Mapping[str, int] | None = None,
    *,
    copies: int = 0,
    checked: str,
) -> str:
    """Return the card of a synthetic dataset.

    Args:
        params: gives the recipe, the sampler and the licence.
        split: the classes, and the images that the adapters learned from.
        recipe: the row of ``recipes`` that drew the images.
        labels: the label of each image.
        base: the generator, as ``hub.identity`` describes it.
        removed: the number of images left out, by reason, of a dataset for publication; None of any other dataset.
        copies: how many of the images are copies of others.
        checked: a phrase on who has checked the labels.
    """
    return _joined(_dataset(params, split, recipe, labels, base, removed, copies, checked))


def _dataset(
    params: Params,
    split: Split,
    recipe: str,
    labels: Sequence[int],
    base: Mapping[str, Any],
    removed: Mapping[str, int] | None,
    copies: int,
    checked: str,
) -> Iterator[str]:
    sampler, row = params.sampler(recipe), params.recipes[recipe]
    # A published card does not say where the real images lie.
    source = split.source if removed is None else split.source.partition(":")[0]
    yield "---"
    yield from licences.front_matter(params.base.licence)
    yield "task_categories: [image-classification]"
    yield "tags: [synthetic]"
    yield f"pretty_name: {quoted(f'{recipe} of {source}')}"
    away = row.guide == "other_class" or row.negative is not None
    uses = {"tries": row.filters, "gave_up": row.filters, "avoid": away, "toward": row.pulls}
    uses |= {"told": row.tells_shots, "attributes": row.reads_attributes, "copy_of": row.copies > 0}
    uses |= {"beside": row.init_mix is not None, "share": row.init_mix is not None}
    uses |= dict.fromkeys(("adapters", "adapter_weights"), row.has_adapter_per_shot)
    used = [name for name, used in uses.items() if used]
    columns = every_column(used) if removed is None else public_columns(row)
    yield from loading(split.classes, columns, params.base.attributes or ())
    yield "---"
    yield f"# Synthetic images: {recipe}"
    yield ""
    each = span(list(Counter(labels).values()))
    yield (
        f"{len(labels)} images of {len(split.classes)} classes ({each} per class), **all synthetic**: drawn "
        f"{drawn_words(row)}. Labels are the classes that were asked for; {checked}."
    )
    yield ""
    if removed is not None:
        if shots_words(row):
            yield f"**{shots_words(row)}**"
            yield ""
        lost = ", ".join(f"{number} {reason}" for reason, number in removed.items())
        known = "the images that were learned from" if row.trains else "real images"
        yield f"Left out for publication: {lost}. What is left may still resemble {known}. {FOUND}"
        yield ""
    yield _base(base, params.base.licence)
    if not row.trains:
        yield "- Adapter: none."
    else:
        learned = f"trained on {span(split.train_per_class)} images per class of `{source}`"
        scales = f", and {scales_words(row)}" if row.adapter_scales else ""
        mixed = f" {mix_words(row)}" if mix_words(row) else ""
        yield f"- Adapter: {adapter_words(row)}, {learned}{scales}.{mixed} {COPIES}"
    yield f"- Sampler: {sampler.scheduler}, {sampler.steps} steps, guidance {sampler.guidance:g}; seed {params.seed}."
    if guide_words(row):
        yield f"- {guide_words(row)}"
    if filter_words(row):
        yield f"- {filter_words(row)} CLIP: {public_name(params.base.clip)}; the judge has no part in it."
    if row.post_augment:
        yield f"- {post_augment_words(row, split.invariances, len(labels) - copies, copies)}"
    if row.starts_from_shots:
        yield f"- {start_words(sampler.strength, published=removed is not None)}"
        if row.init_mix:
            yield f"- {init_mix_words(row)}"
    yield f"- {prompt_words(row, quoted_words(lead(split, row, 0)))}"
    listed = "prompt, seed, adapter, sha256" if removed is None else "prompt, seed, sampler, sha256"
    if row.has_adapter_per_shot and removed is None:
        listed = listed.replace("adapter", "adapters, adapter_weights")
    if row.adapter_scales and removed is None:
        listed += "; adapter_scale, null where it is the base alone"
    yield f"- Made by dreamset {__version__}; one row per image in `metadata.jsonl` ({listed})."
    yield "- The metadata of each file (IPTC, as XMP) say that it is synthetic, and give the model and the seed."
    yield ""
    yield OPENS


def adapters(params: Params, split: Split, recipe: str, base: Mapping[str, Any], sharing: Sequence[str] = ()) -> str:
    """Return the card of a recipe's adapters.

    Args:
        params: gives the recipe and the licence.
        split: the images that the adapters learned from.
        recipe: a row of ``recipes`` with an adapter.
        base: the generator, as ``hub.identity`` describes it.
        sharing: other recipes that draw with the same weights.
    """
    row = params.recipes[recipe]
    served = "class, and of which shot it is" if row.has_adapter_per_shot else "classes"
    lines = [
        *_adapters_head(
            params, split, recipe, base, "diffusers", f"`adapters.json` says which file serves which {served}."
        ),
        f"- Made by dreamset {__version__}. {opening_words(row, len(split.classes))}",
    ]
    if row.trains_lora:
        lines.append(f"- {scale_call_words(row)}")
    if sharing:
        named = ", ".join(f"`{name}`" for name in sharing)
        lines.append(
            f"- When this was written, {named} drew with the same weights, at the scales that its own card says."
        )
    return _joined(lines)


def kohya(params: Params, split: Split, recipe: str, base: Mapping[str, Any]) -> str:
    """Return the card of a recipe's LoRAs in kohya's layout; the arguments are those of ``adapters``."""
    row = params.recipes[recipe]
    scales, one = " and ".join(f"{scale:g}" for scale in row.strengths), next(filter(None, row.strengths))
    files = "One file per class, named after it." if row.has_adapter_per_class else "One file for all classes."
    if row.has_adapter_per_shot:
        files = f"One file per shot, named after its class and its number there. {mix_words(row)}"
    lines = [
        *_adapters_head(params, split, recipe, base, None, files),
        f"- Made by dreamset {__version__}. In kohya's layout, which ComfyUI and A1111 read, for the base above.",
        f"- The recipe draws at strength {scales}: `<lora:NAME:{one:g}>` in a prompt of A1111; in ComfyUI both "
        "strength_model and strength_clip.",
        f"- {prompt_words(row, quoted_words(lead(split, row, 0)))}",
    ]
    return _joined(lines)


def _adapters_head(
    params: Params, split: Split, recipe: str, base: Mapping[str, Any], library: str | None, files: str
) -> Iterator[str]:
    row = params.recipes[recipe]
    yield "---"
    yield from licences.front_matter(params.base.licence)
    if library:
        yield f"library_name: {library}"
    yield f"tags: [{row.adapter}]"
    yield "---"
    yield f"# Adapters: {recipe}"
    yield ""
    yield (
        f"{adapter_words(row)}, of a text-to-image model, trained on {len(split.train)} images of {len(split.classes)} "
        f"classes. {files}"
    )
    yield ""
    yield f"**{NOT_ANONYMOUS}** Pass them on only where you may pass on those images. {COPIES}"
    yield ""
    yield _base(base, params.base.licence)


def classifier(record: Mapping[str, Any], snippet: str) -> str:
    """Return the model card of a delivered classifier.

    Args:
        record: its ``classifier.json``, as ``dreamset.deliver`` writes it.
        snippet: Python code that uses the classifier without dreamset.
    """
    return _joined(_classifier(record, snippet))


def _classifier(record: Mapping[str, Any], snippet: str) -> Iterator[str]:
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
            f"- Weights: trained from `{public_name(record['base'])}`, whose own licence holds too; sha256 "
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
    yield f"- {COPIES} A classifier can give away who or what was among its training images."
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


def _base(base: Mapping[str, Any], licence: str) -> str:
    commit = f", commit {base['commit']}" if base["commit"] else ""
    return f"- Base: `{public_name(base['name'])}`{commit}, sha256 {base['sha256']}. {licences.sentence(licence)}"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
