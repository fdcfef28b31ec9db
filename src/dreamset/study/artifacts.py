"""Explanations and sample sheets that optuna-dashboard shows beside the trials, in ``.dreamset/artifacts``."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from dreamset.core.files import filling
from dreamset.study.sentences import SCORES, rungs_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna
    from PIL import Image

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

SAMPLES: Final = "samples"  # the attribute of a trial that holds the artifact's id
_CLASSES: Final = 20
_PER_CLASS: Final = 10
_TILE: Final = 64  # px; larger pictures are shrunk to it, and smaller ones are magnified by whole factors


def explain(study: optuna.Study, params: Params, recipe: str) -> None:
    """Write into the study what its numbers are, since the dashboard reads nothing else."""
    from optuna.exceptions import ExperimentalWarning

    row, search = params.base.tune, params.recipes[recipe].search
    rungs = {"resource": row.per_class, "searched": () if search is None else search.knobs}
    score = SCORES[params.tune.objectives]
    learned = "the shots and synthetic images" if params.tune.gains else "synthetic images alone"
    names = [score, "seconds per image"] if params.tune.two else [score]
    attributes = {
        "recipe": recipe,
        score: f"accuracy on real images outside the test set, of {row.classifier} trained on {learned}",
        "intermediate values": f"{score} at {rungs_text(rungs)}",
        "pruner": params.tune.pruner if params.tune.prunes else "none",
        "sampler": params.tune.sampler,
    }
    if study.metric_names != names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)
    for name, value in attributes.items():
        if study.user_attrs.get(name) != value:
            study.set_user_attr(name, value)


def keep_samples(trial: optuna.Trial, folder: Path, classes: Sequence[str], workspace: Workspace) -> str:
    """Keep a sheet of the first images of a trial, with a row for each of the first 20 classes.

    Args:
        trial: its values stand above the pictures. If it already has a sheet, that one stays.
        folder: a synthetic dataset, with its ``metadata.jsonl``.
        classes: names by label.
        workspace: whose artifacts all studies of the project share.

    Returns:
        The artifact's id, which is also the trial's attribute ``samples``.

    Raises:
        InputError: the dataset is incomplete.
        DiskFullError: there is no space.
    """
    artifact = trial.user_attrs.get(SAMPLES)
    if artifact is not None and (workspace.artifacts / artifact).is_file():
        return str(artifact)
    buffer = io.BytesIO()
    _sheet(trial, folder, classes).save(buffer, "PNG", optimize=True)
    return keep(trial, buffer.getvalue(), workspace)


def keep(trial: optuna.Trial, data: bytes, workspace: Workspace) -> str:
    """Keep a PNG file as the sample sheet of a trial, and return the artifact's id.

    Raises:
        DiskFullError: there is no space.
    """
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact

    with filling(workspace.artifacts, len(data)), TemporaryDirectory() as temporary:
        workspace.artifacts.mkdir(parents=True, exist_ok=True)
        # Optuna needs a file, and the dashboard shows its name.
        file = Path(temporary) / f"{SAMPLES}.png"
        file.write_bytes(data)
        store = FileSystemArtifactStore(workspace.artifacts)
        artifact = str(upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=trial))
    trial.set_user_attr(SAMPLES, artifact)
    return artifact


def _sheet(trial: optuna.Trial, folder: Path, classes: Sequence[str]) -> Image.Image:
    from PIL import Image

    from dreamset.core.images import rgb
    from dreamset.core.sheet import Block, contact_sheet
    from dreamset.data import packed
    from dreamset.data.synthetic import read_metadata

    read = packed.reader(folder)
    rows: list[list[Image.Image]] = [[] for _ in classes[:_CLASSES]]
    for sample in read_metadata(folder):
        if sample.copy_of is None and sample.label < len(rows) and len(rows[sample.label]) < _PER_CLASS:
            image = rgb(read(sample.file_name))
            small = max(image.size) <= _TILE
            rows[sample.label].append(image if small else image.resize((_TILE, _TILE), Image.Resampling.LANCZOS))
    return contact_sheet([Block(_title(trial.params), rows)], classes)


def _title(values: Mapping[str, object]) -> str:
    """Return a trial's values in a line; a trial that is tried again has the same title."""
    parts = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(parts) or "samples"
