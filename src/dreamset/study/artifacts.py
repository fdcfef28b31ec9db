"""What optuna-dashboard shows beside the trials: what the numbers are, and pictures in ``.dreamset/artifacts``."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from dreamset.core.files import filling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna
    from PIL import Image

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

SAMPLES: Final = "samples"  # attribute of a trial: the artifact's id
_CLASSES: Final = 20
_PER_CLASS: Final = 10
_TILE: Final = 64  # px: larger pictures are shrunk to it, and smaller ones magnified by whole factors


def explain(study: optuna.Study, params: Params, recipe: str) -> None:
    """Say in the study itself what its numbers are, since the dashboard knows nothing else of it."""
    from optuna.exceptions import ExperimentalWarning

    row = params.base.tune
    names = ["CAS"] if params.tune.objectives == "cas" else ["CAS", "seconds per image"]
    told = {
        "recipe": recipe,
        "CAS": f"accuracy on real images outside the test set, of {row.classifier} trained on synthetic images alone",
        "intermediate values": "CAS by images per class: " + ", ".join(map(str, row.per_class)),
        "pruner": params.tune.pruner if params.tune.prunes else "none",
        "sampler": params.tune.sampler,
    }
    if study.metric_names != names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)
    for name, value in told.items():
        if study.user_attrs.get(name) != value:
            study.set_user_attr(name, value)


def keep_samples(trial: optuna.Trial, folder: Path, classes: Sequence[str], workspace: Workspace) -> str:
    """Keep a sheet of the first images that a trial has drawn: a row for each class, of the first 20.

    Args:
        trial: its values stand above the pictures. Of one that is tried again the sheet is kept already.
        folder: a synthetic dataset, with its ``metadata.jsonl``.
        classes: their names, by label.
        workspace: where pictures are kept, for all studies of the project.

    Returns:
        The artifact's id, which is the trial's attribute ``samples`` too.

    Raises:
        InputError: the dataset is not whole.
        DiskFullError: there is no space.
    """
    kept = trial.user_attrs.get(SAMPLES)
    if kept is not None and (workspace.artifacts / kept).is_file():
        return str(kept)
    buffer = io.BytesIO()
    _sheet(trial, folder, classes).save(buffer, "PNG", optimize=True)
    return keep(trial, buffer.getvalue(), workspace)


def keep(trial: optuna.Trial, data: bytes, workspace: Workspace) -> str:
    """Keep a PNG file as the sample sheet of a trial; returns the artifact's id.

    Raises:
        DiskFullError: there is no space.
    """
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact

    with filling(workspace.artifacts, len(data)), TemporaryDirectory() as aside:
        workspace.artifacts.mkdir(parents=True, exist_ok=True)
        # Optuna takes a file, whose name is what the dashboard shows.
        file = Path(aside) / f"{SAMPLES}.png"
        file.write_bytes(data)
        store = FileSystemArtifactStore(workspace.artifacts)
        kept = upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=trial)
    trial.set_user_attr(SAMPLES, kept)
    return kept


def _sheet(trial: optuna.Trial, folder: Path, classes: Sequence[str]) -> Image.Image:
    from PIL import Image

    from dreamset.core.images import read_rgb
    from dreamset.core.sheet import Block, contact_sheet
    from dreamset.data.synthetic import read_metadata

    shown: list[list[Image.Image]] = [[] for _ in classes[:_CLASSES]]
    for row in read_metadata(folder):
        if row.label < len(shown) and len(shown[row.label]) < _PER_CLASS:
            image = read_rgb(folder / row.file_name)
            small = max(image.size) <= _TILE
            shown[row.label].append(image if small else image.resize((_TILE, _TILE), Image.Resampling.LANCZOS))
    return contact_sheet([Block(_told(trial.params), shown)], classes)


def _told(values: Mapping[str, object]) -> str:
    """A trial's values in a line; one that is tried again has the same."""
    told = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(told) or "samples"
