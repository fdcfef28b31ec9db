"""``dreamset export``: write a delivered classifier as ONNX, or a synthetic dataset for publication."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, check_target, read_json
from dreamset.data import cards, current, decisions, packed, tuned
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.data.work import Work
from dreamset.use.predict import check_replaced, delivered
from dreamset.weights import hub, judging

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.data.synthetic import SyntheticImage
    from dreamset.params import Params

_NEEDED: Final = ("onnx", "onnxscript")


def onnx(folder: Path, file: Path) -> None:
    """Write a delivered classifier as one ONNX file.

    Its input ``images`` is uint8 (n, side, side, 3), RGB, with any n: images turned upright, changed as ``changes`` of
    ``preprocessing`` in the file's metadata says, then resized and cropped as it says. These steps are outside the
    graph. Its outputs are ``logits`` and ``probabilities``, float32 (n,
    classes); the temperature is applied to the probabilities. The metadata holds class names, preprocessing,
    temperature, threshold and licence as JSON.

    Args:
        folder: the folder that ``dreamset deliver`` wrote.
        file: the file to write.

    Raises:
        InputError: there is no such classifier, the file cannot be written, or the packages for ONNX are missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export --onnx: needs {' and '.join(missing)}; run `pip install -e '.[export]'`.")
    check_target(file, "--onnx")
    check_replaced(file, "--onnx", ".onnx")
    import torch

    from dreamset import classifiers

    record = delivered(folder)
    predictor = classifiers.load(folder)
    side: int = record["preprocessing"]["side"]
    whole = _from_bytes(predictor.classifier.cpu(), record["temperature"]).eval()
    # Two images: the exporter would take a batch of one for a constant.
    example = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    program = torch.onnx.export(
        whole,
        (example,),
        input_names=["images"],
        output_names=["logits", "probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for key in ("classes", "preprocessing", "temperature", "threshold", "licence"):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(record[key], ensure_ascii=False)
    atomic_write(file, model.SerializeToString())


def _from_bytes(classifier: nn.Module, temperature: float) -> nn.Module:
    """A module from uint8 images to logits and probabilities; of a CLIP it keeps only the image tower."""
    import torch
    from torch import Tensor, nn

    from dreamset.classifiers import to_float
    from dreamset.classifiers.clip import Clip

    class Images(nn.Module):
        """A CLIP's image tower with what it makes of its features, such as those of the captions, as its last layer."""

        shift: Tensor
        scale: Tensor

        def __init__(self, clip: Clip) -> None:
            super().__init__()
            self.visual, self.last = clip.model.visual, clip.last()
            for name, value in (("shift", clip.shift), ("scale", clip.scale)):
                self.register_buffer(name, value)

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.last(nn.functional.normalize(self.visual((pixels - self.shift) / self.scale), dim=-1))
            return logits

    class Whole(nn.Module):
        """The computation of ``Predictor`` as one graph."""

        def __init__(self) -> None:
            super().__init__()
            self.network = Images(classifier) if isinstance(classifier, Clip) else classifier
            self.size = classifier.size

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            logits: Tensor = self.network(to_float(images, self))
            return logits, torch.softmax(logits / temperature, -1)

    return Whole().requires_grad_(False)


def public(params: Params, workspace: Workspace, recipe: str, target: Path) -> dict[str, Any]:
    """Write the synthetic dataset of ``recipe`` without the images that must not be published.

    It leaves out copies of a shot, and images whose prompt says more than templates, sentences and attributes do.
    Copies are sought by pixels (``metrics.copies``) and in the judge's features, by the evaluation's threshold. The
    other files are copied unchanged.

    Args:
        params: gives the judge, the recipe and the licence.
        workspace: holds the dataset, the shots and the evaluation.
        recipe: an active row of ``recipes``.
        target: a new or empty folder.

    Returns:
        ``images``, the number published, and ``removed``, the numbers left out by reason.

    Raises:
        InputError: something is missing, the folder is not empty, the images were not generated or are of other
            settings, a person rejected some that are still in the dataset, or a class has no images left.
    """
    check_target(target, "--public", folder=True)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already; name a new folder, or empty it.")
    knobs = params.recipes[recipe]
    if not knobs.draws:
        raise InputError(
            f"{recipe}: its images are retrieved and not generated; publish the collection that they come from."
        )
    current.check_images(params, workspace, recipe)
    split = read_split(workspace.splits)
    source = workspace.synthetic(recipe)
    rows, read = read_metadata(source), packed.reader(source)
    reviewed = decisions.read(workspace.review(recipe))
    unwanted = decisions.count(reviewed, rows).rejected
    if unwanted:
        raise InputError(
            f"{workspace.review(recipe)}: rejects {unwanted} of the pictures in {source}; run `dreamset generate "
            f"{recipe}` first, which replaces them."
        )
    replaced = read_json(workspace.result("generate", recipe), f"dreamset generate {recipe}")["rejected"]
    copies = _copies(params, workspace, split, recipe, rows)
    revealing = _revealing(Work.read(params, workspace, recipe), rows)
    published = [row for row, copy, reveals in zip(rows, copies, revealing, strict=True) if not copy and not reveals]
    removed = {
        "near-duplicates of shots": sum(copies),
        "with other prompts than the class's": sum(
            reveals and not copy for copy, reveals in zip(copies, revealing, strict=True)
        ),
    }
    for label, name in enumerate(split.classes):
        # Readers number the class folders that exist: a missing one would shift the labels after it.
        if not any(row.label == label for row in published):
            mend = "start farther from the shots (strength)" if knobs.starts_from_shots else "adapt in fewer steps"
            if all(revealing):
                mend = "ask with captions: attributes, whose words are of no single image"
            raise InputError(
                f"{source}: no image of class {name!r} may be published ({_counts(removed)}); draw more images, or "
                f"{mend}."
            )
    base = hub.identity(workspace.root, *params.base.pretrained)
    # Rejected images are no longer in the dataset.
    kept = decisions.count(reviewed, (row for row in published if row.copy_of is None))
    looked = decisions.Looked(kept.looked_at + replaced, replaced)
    drawn = sum(row.copy_of is None for row in published)
    checked = decisions.checked(drawn, looked)
    target.parent.mkdir(parents=True, exist_ok=True)
    with shards.assembling(target) as folder:
        columns = cards.public_columns(knobs)
        if len(published) > params.generate.pack:
            width = len(split.classes) * (1 + knobs.copies)
            packed.write(folder, published, lambda at: read(published[at].file_name), width, columns)
        else:
            for row in published:
                (folder / row.file_name).parent.mkdir(exist_ok=True)
                (folder / row.file_name).write_bytes(read(row.file_name))
        write_metadata(folder, published, columns)
        labels = [row.label for row in published]
        chosen = tuned.applied(params, workspace, recipe)
        student = hub.student(workspace.root, chosen, recipe)
        more = len(published) - drawn
        card = cards.dataset(
            chosen, split, recipe, labels, base, removed, student=student, copies=more, checked=checked
        )
        atomic_write(folder / "README.md", card)
    return {"images": len(published), "removed": removed}


def _revealing(work: Work, images: Sequence[SyntheticImage]) -> list[bool]:
    """Return whether the prompt of each image tells more than templates, sentences on classes and words of attributes.

    The caption of a shot may tell what only its owner knows.
    """
    from dreamset.data import asking

    split, row, told = work.split, work.row, asking.Told()
    if row.descriptions is not None:
        file = work.workspace.root / row.descriptions
        told = asking.Told(asking.read_descriptions(file, split, f"recipes.{work.recipe}.descriptions"))
    public = [asking.public_prompts(split, row, told, label) for label in range(len(split.classes))]
    revealing = []
    for image in images:
        allowed = public[image.label]
        if image.attributes is not None:
            allowed = {asking.with_attributes(begun, image.attributes) for begun in allowed}
        revealing.append(image.prompt not in allowed)
    return revealing


def _copies(
    params: Params, workspace: Workspace, split: Split, recipe: str, rows: Sequence[SyntheticImage]
) -> list[bool]:
    """Whether each image of a dataset, in its order, is too near to a shot: by pixels, or in the judge's features.

    A copy of a drawn image is too near where that is: turned and mirrored, it could not be recognised by itself.
    """
    from dreamset.classifiers import seen
    from dreamset.data import arrays
    from dreamset.metrics.copies import copies
    from dreamset.metrics.duplicates import nearest
    from dreamset.metrics.features import Judge

    path = workspace.result("evaluate")
    evaluation = read_json(path, "dreamset evaluate")
    measured = evaluation.get("sets", {}).get(recipe, {}).get("near_duplicates", {})
    if "threshold" not in measured:
        raise InputError(f"{path}: has no near-duplicates of {recipe}; run `dreamset evaluate` with it in active.")
    by, now = evaluation.get("judge", {}), judging.identity(workspace.root, params.base)
    if by and by.get("sha256") != now["sha256"]:
        raise InputError(
            f"{path}: was scored by {by.get('name')}, and now {now['name']} would score; run `dreamset evaluate` again."
        )
    judge = Judge(judging.find(workspace.root, params.base))
    side = seen(judge.size, params.base.resolution)
    shots = arrays.real(split.train, workspace.cell, side, workspace.scratch)
    images = arrays.synthetic(workspace.synthetic(recipe), split, side, workspace.scratch, copies=False)
    distances = nearest(judge.features(images.images), judge.features(shots.images))[1]
    by_pixels = copies(images.images, shots.images, [sample.group for sample in split.train])
    near = dict(zip(images.names, (by_pixels | (distances <= measured["threshold"])).tolist(), strict=True))
    return [near[row.copy_of or row.file_name] for row in rows]


def _counts(removed: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in removed.items())
