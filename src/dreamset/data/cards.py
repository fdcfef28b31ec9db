"""Cards in Markdown: they tell whoever receives a dataset, adapters or a classifier what to know of it.

Their headers are the Hugging Face hub's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from dreamset import __version__
from dreamset.data import licences, packed
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
    "sampler": {
        "scheduler": "string",
        "steps": "int64",
        "guidance": "float64",
        "strength": "float64",
        "student": "bool",
    },
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
_OPENS: Final = (
    "Opens with `datasets.load_dataset(FOLDER)`, which reads names and order of the classes from the head of this "
    'card, and with `torchvision.datasets.ImageFolder(FOLDER)`. `load_dataset("imagefolder", ...)` would not read it.'
)

_TARS_OPEN: Final = (
    "WebDataset shards: an image is `.png`, its label `.cls`, its row `.json`. Opens with "
    "`datasets.load_dataset(FOLDER)`, which reads names and order of the classes from the head of this card, and with "
    '`webdataset.WebDataset(sorted(glob.glob("FOLDER/images-*.tar")))`. `tar -xf` makes class folders of each.'
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


def loading(
    classes: Sequence[str], columns: Sequence[str] | None = None, groups: Iterable[str] = (), *, tars: bool = False
) -> Iterator[str]:
    """Yield the lines of a card's head by which ``datasets.load_dataset`` opens the folder of a synthetic dataset.

    Without them it takes a class folder for a split where its name holds a word such as train or test, leaves the
    labels without names, and guesses each column's type from the first rows.

    Args:
        classes: names by label.
        columns: of ``metadata.jsonl``; None: those that every dataset has.
        groups: of the words in the column ``attributes``.
        tars: whether the dataset is tars. Its columns are then named after the endings of a sample's files.
    """
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files:"
    yield "  - split: train"
    yield f'    path: ["{packed.TARS}"]' if tars else '    path: [metadata.jsonl, "*/*.png"]'
    if tars:
        # The loader of tars passes over features there, unlike that of images.
        yield from ("dataset_info:", "- config_name: default")
    yield "  features:"
    rows = [
        text for column in columns or every_column(()) for text in _feature(column, classes, groups, named=not tars)
    ]
    if not tars:
        yield from rows
        return
    yield from ("  - name: png", "    dtype: image", "  - name: cls", *_names(classes), "  - name: json", "    struct:")
    yield from (f"  {text}" for text in rows)
    yield from (text for name in ("__key__", "__url__") for text in (f"  - name: {name}", "    dtype: string"))


def every_column(later: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of ``metadata.jsonl``: those that every dataset has, and those of ``later``."""
    return ("file_name", "label", *(name for name in _TYPES if name not in LATER or name in later))


def _feature(column: str, classes: Sequence[str], groups: Iterable[str], *, named: bool) -> Iterator[str]:
    if column == "file_name" and named:
        # Each row's file is read into this column.
        yield from ("  - name: image", "    dtype: image")
        return
    yield f"  - name: {column}"
    if column in ("file_name", "label"):
        yield from _names(classes) if named else [f"    dtype: {'string' if column == 'file_name' else 'int64'}"]
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


def opening(*, tars: bool) -> str:
    """Return the sentence on what opens a synthetic dataset, single files or tars."""
    return _TARS_OPEN if tars else _OPENS


def _names(classes: Sequence[str]) -> Iterator[str]:
    yield from ("    dtype:", "      class_label:", "        names:")
    yield from (f"          '{label}': {quoted(name)}" for label, name in enumerate(classes))


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
    student: Mapping[str, Any] | None = None,
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
        student: its student, likewise; None where the generator itself has drawn.
        removed: the number of images left out, by reason, of a dataset for publication; None of any other dataset.
        copies: how many of the images are copies of others.
        checked: a phrase on who has checked the labels.
    """
    return joined(_dataset(params, split, recipe, labels, base, student, removed, copies, checked))


def _dataset(
    params: Params,
    split: Split,
    recipe: str,
    labels: Sequence[int],
    base: Mapping[str, Any],
    student: Mapping[str, Any] | None,
    removed: Mapping[str, int] | None,
    copies: int,
    checked: str,
) -> Iterator[str]:
    sampler, row = params.sampler(recipe), params.recipes[recipe]
    # A published card does not say where the real images lie.
    source = split.source if removed is None else split.source.partition(":")[0]
    yield "---"
    yield from licences.front_matter(params.drawn_licence(recipe))
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
    tars = len(labels) > params.generate.pack
    yield from loading(split.classes, columns, params.base.attributes or (), tars=tars)
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
    if student:
        yield _base(student, params.drawn_licence(recipe), "Student of the base, which drew the images")
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
    yield opening(tars=tars)


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
    return joined(lines)


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
    return joined(lines)


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


def _base(base: Mapping[str, Any], licence: str, what: str = "Base") -> str:
    commit = f", commit {base['commit']}" if base["commit"] else ""
    return f"- {what}: `{public_name(base['name'])}`{commit}, sha256 {base['sha256']}. {licences.sentence(licence)}"


def joined(lines: Iterable[str]) -> str:
    """Return lines as the text of a file."""
    return "\n".join(lines) + "\n"
