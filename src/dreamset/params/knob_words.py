"""The words that cards and pages say of the knobs of a recipe.

No shard depends on them: functions named ``..._words`` change no key.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from dreamset.params.knobs import FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.params.recipe import Recipe

_SCOPED: Final = {  # the words of each scope
    "dataset": "one per dataset",
    "class": "one per class",
    "image": "one per shot",
    "shared": "one per shot, those of a class with the same A (down) and each with a B (up) of its own",
    None: "",
}
_CONTEXTS: Final = (
    "`contexts` in it condition the U-Net: rows by label, and last the unconditional one ({rows} in all). A stock "
    "pipeline takes `prompt_embeds=contexts[[label]], negative_prompt_embeds=contexts[[-1]]` at a guidance above 1."
)


def adapter_words(row: Recipe) -> str:
    """Return a phrase on the adapter of a recipe and on when its weights are taken; empty where it has none."""
    if not row.trains:
        return ""
    if row.trains_lora:
        parts = [part for part, on in (("U-Net", row.unet), ("text encoder", row.text_encoder)) if on]
        where = f"on the attention of the {' and '.join(parts)}"
        kind = f"LoRA of rank {row.rank}, alpha {row.alpha:g}, {where}, {_SCOPED[row.scope]}"
        return f"{kind}{_losses_words(row)}{_epoch_words(row)}"
    if row.trains_class_encoder:
        vectors = f"Class encoder of {row.context_length} vectors per class, in the place of the text encoder"
        return f"{vectors}{_class_dropout_words(row)}{_losses_words(row)}{_epoch_words(row)}"
    whole = f"Difference of the whole U-Net to the base's, conditioned by {row.prompt}"
    return f"{whole}{_losses_words(row)}{_epoch_words(row)}"


def opening_words(row: Recipe, classes: int) -> str:
    """Return sentences on how to use the files of an adapter without dreamset."""
    if row.trains_lora:
        return "Opens with `StableDiffusionPipeline.load_lora_weights`."
    contexts = _CONTEXTS.format(rows=classes + 1)
    if row.trains_class_encoder:
        return (
            f"Opens with `safetensors.torch.load_file`; {contexts} Of many classes the file holds the layers instead: "
            "contexts are `(one_hot @ hidden.weight.T + hidden.bias) @ out.weight.T`, reshaped to the U-Net's width, "
            "and the unconditional one that of zeros, or of the last class where there is one more."
        )
    added = "add `unet.NAME` of the file to the parameter NAME of the base's U-Net."
    return f"Opens with `safetensors.torch.load_file`; {added}" + (f" {contexts}" if row.asks_by_vectors else "")


def _class_dropout_words(row: Recipe) -> str:
    return f", with a null class from {100 * row.class_dropout:g} % of the images" if row.class_dropout else ""


def mix_words(row: Recipe) -> str:
    """Return a sentence on the LoRAs that each image is drawn with; empty where all images of a class share one."""
    if row.mixes_by == "pair":
        return "Each image is drawn with two LoRAs of its class at weights 0.5 and 0.5; the pairs take turns."
    if row.mixes_by == "dirichlet":
        weights = f"drawn for the image from a Dirichlet distribution of concentration {row.concentration_of:g}"
        return f"Each image is drawn with all LoRAs of its class, at weights {weights}."
    return ""


def scales_words(row: Recipe) -> str:
    """Return a phrase on the strengths of a recipe's adapter; empty where it is always as trained."""
    scales = ", ".join(f"{scale:g}" for scale in row.adapter_scales or ())
    return f"used at {scales} times its strength in turn" if scales else ""


def scale_call_words(row: Recipe) -> str:
    """Return sentences on the scales at which a recipe draws with its LoRA, and on the calls that set them."""
    scales = [f"{scale:g}" for scale in row.strengths]
    turns = f"scales {', '.join(scales)}, image by image in turn" if len(scales) > 1 else f"scale {scales[0]}"
    one = next(f"{scale:g}" for scale in row.strengths if scale)
    if row.has_adapter_per_shot:
        return f"{mix_words(row)} {_mix_call_words(row)}{_alpha_words(row)}"
    words = (
        f"Drawn at {turns} (1 is the strength of the training, and what a loaded LoRA has): "
        f'`load_lora_weights(FOLDER, adapter_name="shots")`, then `set_adapters("shots", {one})`; or '
        f'`cross_attention_kwargs={{"scale": {one}}}` in each call of the pipeline.'
    )
    return words + _alpha_words(row)


def _alpha_words(row: Recipe) -> str:
    if row.alpha == row.rank or not (row.alpha and row.rank):
        return ""
    return f" A diffusers before 0.34 reads no alpha; times {row.alpha / row.rank:g} its scales are the same."


def _mix_call_words(row: Recipe) -> str:
    half = next(0.5 * scale for scale in row.strengths if scale)
    words = (
        '`load_lora_weights(FIRST, adapter_name="first")` and `load_lora_weights(SECOND, adapter_name="second")`, then '
        f'`set_adapters(["first", "second"], [{half:g}, {half:g}])`, draw with two of these files. `metadata.jsonl` '
        "has the sha256 and the weight of each file that an image was drawn with (`adapters`, `adapter_weights`)."
    )
    scales = ", ".join(f"{scale:g}" for scale in row.adapter_scales or ())
    return words + (f" All weights of an image are times {scales}, image by image in turn." if scales else "")


def _epoch_words(row: Recipe) -> str:
    # None means the end of the training.
    return "" if row.epoch in (None, 1) else f", its weights those after {100 * row.epoch:g} % of the training"


def _losses_words(row: Recipe) -> str:
    held = f", held to the base on captions without a class at a weight of {row.preserve:g}" if row.preserve else ""
    return held + (f", its images driven apart at a weight of {row.diversity:g}" if row.diversity else "")


_ASKED: Final = {
    "description": "Asked for by the class and a sentence on it, from {descriptions}, in turn",
    "caption": "Asked for by the caption of a shot of the class{another}, made {captions}",
    "context": "Asked for by the class and the attributes of a shot of any class, as zero-shot CLIP reads them",
}
_CAPTIONED: Final = {
    "beside": "by who put it beside the image",
    "attributes": "of the attributes that zero-shot CLIP reads",
}


def prompt_words(row: Recipe, prompt: str) -> str:
    """Return a sentence on how the images of a class were asked for; ``prompt`` is that of class 0, quoted."""
    if row.asks_by_vectors:
        return f"Asked for by a learned vector of the class, without text: that of class 0 is called {prompt}."
    turns = f"; {len(row.templates)} templates take turns" if row.templates and len(row.templates) > 1 else ""
    away = f" Negative prompt: {quoted_words(row.negative)}." if row.negative else ""
    if row.prompt not in _ASKED:
        return f"Prompt of class 0: {prompt}{turns}.{away}"
    how = _CAPTIONED.get(row.captions or "", f"by {(row.captions or '').removeprefix('hub:').removeprefix(FILE)}")
    asked = _ASKED[row.prompt].format(
        descriptions=row.descriptions, captions=how, another=" (where it starts from a shot, another one)"
    )
    return f"{asked}. That of class 0 begins with {prompt}{turns}.{away}"


def quoted_words(text: str | None) -> str:
    """Return a text in double quotes, as cards show it."""
    return json.dumps(text, ensure_ascii=False)


DERIVED: Final = "Each image was drawn over a real one: pass them on only where you may pass on those."
NOT_ANONYMOUS: Final = "Not anonymised; adapters contain the shots."
_MIXED: Final = {
    "pixels": "the mean of two of its class, weighted by a draw from Beta(0.2, 0.2)",
    "slerp": "a point between two of its class, on the arc that their noised latents span",
}


def init_mix_words(row: Recipe) -> str:
    """Return a sentence on the mixture that images start from; empty where each starts from one shot."""
    return f"For the start, a shot is {_MIXED[row.init_mix]}; with one alone, that one." if row.init_mix else ""


def drawn_words(row: Recipe) -> str:
    """Return a phrase on how the images were drawn."""
    return "over real ones by a model" if row.starts_from_shots else "by a diffusion model, none of them a photograph"


def start_words(strength: float | None, *, published: bool) -> str:
    """Return sentences on the start of an image that starts from a shot; a study may have chosen ``strength``."""
    if published:
        return f"Start: a real image of the class with noise of strength {strength:g}. **{DERIVED}**"
    return (
        f"Start: a shot of the class with noise of strength {strength:g}; which one, `metadata.jsonl` says. {DERIVED}"
    )


def shots_words(row: Recipe) -> str:
    """Return a warning of the parts of shots in a recipe's images; empty where there can be none."""
    if not (row.starts_from_shots or row.pulls):
        return NOT_ANONYMOUS if row.trains else ""
    learned = ", and adapters contain the shots" if row.trains else ""
    return f"Not anonymised; the images contain parts of the shots{learned}."


_GUIDED: Final = {
    "base": "the unconditional half is the base's, as it was before it was adapted",
    "other_class": "the prompt of the class that CLIP finds nearest stands for the empty prompt",
    "mode": "each image is pulled toward a shot of its class, by {pull:g} of what is left at each step",
}


def guide_words(row: Recipe) -> str:
    """Return a sentence on the guidance of a recipe; empty where the adapted network guides to the end."""
    words = [_GUIDED[row.guide].format(pull=row.pull_share)] if row.guide in _GUIDED else []
    if row.guide_until is not None and row.guide_until < 1:
        words.append(f"guidance ends after {100 * row.guide_until:g} % of the steps")
    return f"Guidance: {'; '.join(words)}." if words else ""


_FILTERED: Final = {
    "argmax": "takes the first that zero-shot CLIP reads as its class",
    "threshold": "takes the first that zero-shot CLIP gives to its class with more than an even chance among classes",
    "real_features": "takes the first that lies nearest to a shot of its class in CLIP's features",
    "entropy": "takes, of those that zero-shot CLIP reads as its class, the one that a probe on these is least sure of",
    "k_of_n": "takes, of those that a probe on the shots gives to the class, the one least like its neighbours",
    "influence": "takes the first whose gradient agrees more with held-out shots of its class than with others",
}


def filter_words(row: Recipe) -> str:
    """Return a sentence on the filter of a recipe; empty without one."""
    if row.filter not in _FILTERED:
        return ""
    first = f" after {row.first} images of each class without it" if row.first else ""
    return f"Filter: of at most {row.tries} candidates an image{first}, it {_FILTERED[row.filter]}."


_CHANGED: Final = {"hflip": "mirrored", "vflip": "turned upside down", "rotation": "turned by up to 60 degrees"}
_COPIED_AT: Final = {"drawn": "at the size that it was drawn at", "target": "after lowering to the real images' size"}


def post_augment_words(row: Recipe, invariances: Sequence[str], drawn: int, copies: int) -> str:
    """Return a sentence on the copies in a dataset; empty where the recipe makes none.

    Args:
        row: the recipe.
        invariances: the changes that keep a label.
        drawn: the number of images that are no copies.
        copies: the number of copies.
    """
    if row.post_augment is None:
        return ""
    ways = ["shifted", *(words for change, words in _CHANGED.items() if change in invariances)]
    ways += [] if "rotation" in invariances else ["tilted by up to 9 degrees"]
    ways += ["changed in brightness, contrast and gamma"] if "colour" in invariances else []
    return (
        f"Copies: {drawn} images were drawn, and {copies} are copies of these, up to {row.post_augment.copies} of each "
        f"({', '.join(ways)}; {_COPIED_AT[row.post_augment.at]}). `copy_of` in `metadata.jsonl` names the drawn image."
    )
