"""Cards: what somebody who gets a dataset, adapters or a classifier has to know of it, in Markdown.

Their headers are the Hugging Face hub's.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.data import licences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dreamset.data.splits import Split
    from dreamset.params import Params
    from dreamset.params.recipe import Recipe

COPIES: Final = "Adapters, and images drawn with them, may reproduce the images that the adapters were trained on."
DERIVED: Final = "Each image was drawn over a real one: pass them on only where you may pass on those."
NOT_ANONYMOUS: Final = "Not anonymised; adapters contain the shots."


def shown(weights: str) -> str:
    """The name of pretrained weights without what a path tells of the machine that it is on."""
    path = PurePath(weights)
    return path.name if path.is_absolute() else weights


def told(counts: Sequence[int]) -> int | str:
    """Images per class: one number where all are equal, else the span."""
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
    checked: str,
) -> str:
    """The card of a synthetic dataset.

    Args:
        params: for the recipe, the sampler and the licence.
        split: the classes, and what the adapters learned from.
        recipe: the row of ``recipes`` that drew it.
        labels: of its images.
        base: the generator, as ``hub.identity`` tells it.
        removed: of a dataset for publication, how many images were left out for which reason; None: not for that.
        checked: who has checked the labels, in words.
    """
    return _joined(_dataset(params, split, recipe, labels, base, removed, checked))


def _dataset(
    params: Params,
    split: Split,
    recipe: str,
    labels: Sequence[int],
    base: Mapping[str, Any],
    removed: Mapping[str, int] | None,
    checked: str,
) -> Iterator[str]:
    sampler, row = params.sampler(recipe), params.recipes[recipe]
    # Where the real images lie is nobody's business but their owner's.
    source = split.source if removed is None else split.source.partition(":")[0]
    yield "---"
    yield from licences.front_matter(params.base.licence)
    yield "task_categories: [image-classification]"
    yield "tags: [synthetic]"
    yield f"pretty_name: {json.dumps(f'{recipe} of {source}')}"
    yield "---"
    yield f"# Synthetic images: {recipe}"
    yield ""
    each = told(list(Counter(labels).values()))
    made = "by a diffusion model, none of them a photograph" if row.init == "noise" else "over real ones by a model"
    yield (
        f"{len(labels)} images of {len(split.classes)} classes ({each} per class), **all synthetic**: drawn "
        f"{made}. Labels are the classes that were asked for; {checked}."
    )
    yield ""
    if removed is not None:
        told_of = _not_anonymous(row)
        if told_of:
            yield f"**{told_of}**"
            yield ""
        lost = ", ".join(f"{number} {reason}" for reason, number in removed.items())
        known = "real images" if row.adapter == "none" else "the images that were learned from"
        yield f"Left out for publication: {lost}. What is left may still resemble {known}."
        yield ""
    yield _base(base, params.base.licence)
    if row.adapter == "none":
        yield "- Adapter: none."
    else:
        yield (
            f"- Adapter: {_adapter(row)}, trained on {told(split.train_per_class)} images per class of `{source}`"
            f"{_scaled(row)}. {COPIES}"
        )
    yield f"- Sampler: {sampler.scheduler}, {sampler.steps} steps, guidance {sampler.guidance:g}; seed {params.seed}."
    if row.init == "image":
        yield (
            f"- Start: a shot of the class with noise of strength {sampler.strength:g}; which one, `metadata.jsonl` "
            f"says. {DERIVED}"
            if removed is None
            else f"- Start: a real image of the class with noise of strength {sampler.strength:g}. **{DERIVED}**"
        )
    asked = json.dumps(split.prompt(0, row.prompt), ensure_ascii=False)
    if row.prompt == "class_vector":
        yield f"- Asked for by a learned vector of the class, without text: that of class 0 is called {asked}."
    else:
        yield f"- Prompt of class 0: {asked}."
    columns = "prompt, seed, adapter, sha256" if removed is None else "prompt, seed, sampler, sha256"
    if row.adapter_scales and removed is None:
        columns += "; adapter_scale, null where it is the base alone"
    yield f"- Made by dreamset {__version__}; one row per image in `metadata.jsonl` ({columns})."
    yield "- Each file says in its metadata (IPTC, as XMP) that it is synthetic, by which model and with which seed."
    yield ""
    yield 'Opens with `torchvision.datasets.ImageFolder` and with `datasets.load_dataset("imagefolder")`.'


def adapters(params: Params, split: Split, recipe: str, base: Mapping[str, Any]) -> str:
    """The card of a recipe's adapters; ``base`` is the generator, as ``hub.identity`` tells it."""
    row = params.recipes[recipe]
    lines = [
        "---",
        *licences.front_matter(params.base.licence),
        "library_name: diffusers",
        f"tags: [{row.adapter}]",
        "---",
        f"# Adapters: {recipe}",
        "",
        f"{_adapter(row)}, of a text-to-image model, trained on {len(split.train)} images of {len(split.classes)} "
        f"classes. `adapters.json` says which file serves which classes.",
        "",
        f"**{NOT_ANONYMOUS}** Pass them on only where you may pass on those images. {COPIES}",
        "",
        _base(base, params.base.licence),
        f"- Made by dreamset {__version__}. {_opens(row, len(split.classes))}",
    ]
    return _joined(lines)


def _not_anonymous(row: Recipe) -> str:
    """What of the shots is in a recipe's images; empty where nothing can be."""
    if row.init == "noise":
        return "" if row.adapter == "none" else NOT_ANONYMOUS
    learned = "" if row.adapter == "none" else ", and adapters contain the shots"
    return f"Not anonymised; the images contain parts of the shots{learned}."


def _adapter(row: Recipe) -> str:
    """What a recipe trains, in words."""
    # At the end of the training where nothing is said.
    taken = "" if row.epoch in (None, 1) else f", its weights those after {100 * row.epoch:g} % of the training"
    if row.adapter == "lora":
        return f"LoRA of rank {row.rank}, one per {row.scope}{taken}"
    if row.adapter == "class_encoder":
        return f"Class encoder of {row.context_length} vectors per class, in the place of the text encoder{taken}"
    return f"Difference of the whole U-Net to the base's, conditioned by {row.prompt}{taken}"


def _scaled(row: Recipe) -> str:
    """How strongly a recipe's adapter works, where that is not as it was trained."""
    if row.adapter_scales is None:
        return ""
    return f", and used at {', '.join(f'{scale:g}' for scale in row.strengths)} times its strength in turn"


def _opens(row: Recipe, classes: int) -> str:
    """How its files are used without dreamset."""
    if row.adapter == "lora":
        return "Opens with `StableDiffusionPipeline.load_lora_weights`."
    told = (
        f"`contexts` in it are what the U-Net is told, rows by label and last the unconditional one ({classes + 1} in "
        "all): a stock pipeline takes `prompt_embeds=contexts[[label]], negative_prompt_embeds=contexts[[-1]]` at a "
        "guidance above 1."
    )
    if row.adapter == "class_encoder":
        return (
            f"Opens with `safetensors.torch.load_file`; {told} Of many classes the file holds the layers instead: "
            "contexts are `(one_hot @ hidden.weight.T + hidden.bias) @ out.weight.T`, reshaped to the U-Net's width, "
            "and the unconditional one that of zeros, or of the last class where there is one more."
        )
    added = "add `unet.NAME` of the file to the parameter NAME of the base's U-Net."
    return f"Opens with `safetensors.torch.load_file`; {added}" + (f" {told}" * (row.prompt == "class_vector"))


def classifier(record: Mapping[str, Any], snippet: str) -> str:
    """The model card of a delivered classifier.

    Args:
        record: its ``classifier.json``, as ``dreamset.deliver`` writes it.
        snippet: Python that uses it without dreamset.
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
    yield f"- Trained on {learned}{strongly}, because the verdict's outcome is `{record['verdict']['outcome']}`."
    yield f"- {_accuracy(record['accuracy'])}"
    yield f"- Labels used per class: {labels['train']:g} to train, {labels['selection']:g} to select."
    larger = "" if pixels["side"] == pixels["size"] else f", then to {pixels['size']} pixels"
    yield (
        f"- Input: {pixels['channels']}; shortest side to {pixels['side']} pixels ({pixels['resample']}), centre square"
        f"{larger}; mean {pixels['mean']}, standard deviation {pixels['std']} of values in 0..1. Turned upright by "
        "EXIF, transparency put on white."
    )
    yield f"- Probabilities: softmax of logits / {record['temperature']:g} (the temperature)."
    yield f"- {record['threshold_reason']}"
    yield f"- Classes, in the order of the logits: {', '.join(names)}."
    yield f"- Made by dreamset {__version__}."
    yield ""
    yield "## Where it comes from, and its limits"
    yield ""
    if record["base"]:
        yield (
            f"- Weights: trained from `{shown(record['base'])}`, whose own licence holds too; sha256 "
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
        "taken as those were that it was measured on."
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


def _accuracy(found: Mapping[str, Any]) -> str:
    """Where the figure comes from decides what it means."""
    interval = f"{found['confidence']:.0%} interval {found['low']:.1%} to {found['high']:.1%}"
    if found["protocol"] == "cv":
        return (
            f"Accuracy {found['estimate']:.1%} ({interval}): the folds' estimate on {found['images']} labelled images, "
            "each predicted by a classifier that had not seen it. This one was trained afterwards, on "
            f"{_learned(found)}."
        )
    chosen = "; the verdict chose it on the same images, so expect a little less" if found.get("chosen") else ""
    return (
        f"Accuracy {found['estimate']:.1%} ({interval}) on {found['images']} test images that nothing had seen{chosen}."
    )


def _learned(found: Mapping[str, Any]) -> str:
    """What of the labelled images that were scored the delivered classifier is trained on."""
    learned = found.get("learned")
    if learned is None:
        return "the shots but for those that selection takes"
    return "all of them" if learned == found["images"] else f"{learned} of them"


def _base(base: Mapping[str, Any], licence: str) -> str:
    commit = f", commit {base['commit']}" if base["commit"] else ""
    return f"- Base: `{shown(base['name'])}`{commit}, sha256 {base['sha256']}. {licences.sentence(licence)}"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
