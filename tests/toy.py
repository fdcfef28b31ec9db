"""A toy world for tests: three classes of 16-pixel pictures with real manifests, and a tiny random CLIP."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamset import classifiers
from dreamset import params as parameters
from dreamset.core.files import atomic_write, sha256, write_json
from dreamset.core.images import png
from dreamset.core.strict import read_yaml
from dreamset.core.workspace import Workspace
from dreamset.data import packed, tuned
from dreamset.data.splits import Sample, Split, TestSplit, write_split, write_test
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.params import Params

if TYPE_CHECKING:
    from dreamset.generator.base_model import BaseModel

CLASSES = ("bar", "plank", "spot")
SIZE = 16
ROOT = Path(__file__).parent.parent


def picture(label: int, rng: np.random.Generator) -> np.ndarray:
    """(16, 16, 3) uint8: a standing bar, a lying one, or a disc, somewhere, on noise."""
    y, x = np.mgrid[:SIZE, :SIZE]
    at_y, at_x = rng.uniform(5, 11, 2)
    mask = [
        (abs(x - at_x) < 1.5) & (abs(y - at_y) < 6),
        (abs(y - at_y) < 1.5) & (abs(x - at_x) < 6),
        (x - at_x) ** 2 + (y - at_y) ** 2 < 12,
    ][label]
    grey = np.clip(mask * rng.uniform(150, 240) + rng.normal(12, 8, (SIZE, SIZE)), 0, 255)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)


@functools.cache
def _params_yaml() -> bytes:
    return pickle.dumps(read_yaml(ROOT / "params.yaml"))


def raw() -> dict[str, Any]:
    """The project's params.yaml; each caller has its own."""
    loaded: dict[str, Any] = pickle.loads(_params_yaml())
    return loaded


def found_raw() -> dict[str, Any]:
    """The project's params.yaml, but that the bundled judge is found from any folder."""
    loaded = raw()
    loaded["models"]["bundled"]["judge"] = str(ROOT / "models/base/judge")
    return loaded


def shrunk(raw: dict[str, Any], generator: Path) -> dict[str, Any]:
    """Make raw parameters those of a run of seconds on a generator with random weights."""
    row = raw["models"]["bundled"]
    row["generator"] = str(generator)
    for scope in ("dataset", "class", "image", "shared"):
        row["adapt"][scope] |= {"max_steps": 2, "warmup": 1, "batch": 4}
    row["adapt"] |= {"sample_every": 4, "together": 10}
    row["generate"] |= {"per_class": 4, "batch": 20, "steps": 2}
    raw["adapt"] |= {"checkpoint_every": 2, "sample_images": 1, "sample_steps": 2}
    raw["train"]["simple"] = []
    raw["shots"] = 2
    return raw


def parse(raw: object) -> Params:
    """Parameters as a file with this content gives them."""
    return parameters.parse(raw, classifiers.ROWS)


def base(raw: object) -> BaseModel:
    """The generator of raw parameters, on the CPU."""
    import torch

    from dreamset.generator import base_model

    model = parse(raw).base
    return base_model.load(Path(model.generator), model, torch.device("cpu"))


def load(path: Path) -> Params:
    """The parameters of a file."""
    return parameters.load(path, classifiers.ROWS)


def params(**changes: Any) -> Params:
    """The project's params.yaml made short; ``changes`` are dotted keys with ``__`` for the dot."""
    own = raw()
    train = own["models"]["bundled"]["train"]
    train["resnet20"] |= {"width": 4, "steps": 12, "batch": 16, "warmup": 2}
    train["resnet50"] |= {"steps": 2, "batch": 4, "warmup": 1}
    train["clip_lora"] |= {"rank": 2, "alpha": 4, "steps": 6, "batch": 16, "warmup": 1}
    train["linear_probe"] |= {"steps": 6, "batch": 16, "warmup": 1}
    train["classifier_tuning"] |= {"steps": 6, "batch": 16}
    train["convnet_d3"] |= {"width": 8, "steps": 12, "batch": 16}
    train["vpt"] |= {"depth": "deep", "tokens": 2, "steps": 6, "batch": 16, "warmup": 1}
    train["prompt_tuning"] |= {"tokens": 4, "steps": 6, "batch": 16, "warmup": 1}
    own["train"] |= {"selections": 3, "simple": []}
    own["evaluate"] |= {"bootstrap": 200, "worst_pairs": 3}
    own["deliver"]["calibrate"] = False
    own["active"] = ["stable_diffusion", "datadream_dset"]
    for key, value in changes.items():
        *parents, last = key.split("__")
        row = own
        for parent in parents:
            row = row[parent]
        row[last] = value
    return parse(own)


@dataclass(frozen=True)
class _Made:
    """The files that ``dreamset prepare`` has written into a folder, and when each was last changed there."""

    folder: tempfile.TemporaryDirectory[str]
    files: dict[str, bytes]
    times: dict[str, int]

    def put(self, name: str, path: Path) -> None:
        """Put a file at ``path``: pictures are hard links, since hundreds of files take half a second to write."""
        if not name.endswith(".png"):
            path.write_bytes(self.files[name])
            return
        own = Path(self.folder.name) / name
        if own.stat().st_mtime_ns != self.times.get(name):  # new here, or a test has written into its link
            own.unlink()
            own.write_bytes(self.files[name])
            self.times[name] = own.stat().st_mtime_ns
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(own)
        except OSError:  # another file system
            path.write_bytes(self.files[name])


_SPLITS: dict[str, _Made] = {}


def prepare(params: Params, workspace: Workspace) -> None:
    """The splits of the digits as ``dreamset prepare`` writes them, made once in a process for what decides them."""
    from dreamset import prepare

    if params.prepare.source != "digits":
        prepare.run(params, workspace)
        return
    row = params.base
    weights = (row.generator, row.clip, row.judge, row.variant)
    key = repr((params.active, params.evaluate, params.prepare, params.seed, params.selection, params.shots, weights))
    if key not in _SPLITS:
        # On the file system of the tests' own folders, or there are no hard links.
        folder = tempfile.TemporaryDirectory(prefix="dreamset-splits-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
        prepare.run(params, Workspace(workspace.root, Path(folder.name)))
        found = {
            path: path.relative_to(folder.name).as_posix() for path in Path(folder.name).rglob("*") if path.is_file()
        }
        files = {name: path.read_bytes() for path, name in found.items()}
        _SPLITS[key] = _Made(folder, files, {name: path.stat().st_mtime_ns for path, name in found.items()})
    for place in (workspace.real, workspace.real_test):
        shutil.rmtree(place, ignore_errors=True)
    made = _SPLITS[key]
    for parent in {(workspace.cell / name).parent for name in made.files}:
        parent.mkdir(parents=True, exist_ok=True)
    for name in made.files:
        made.put(name, workspace.cell / name)


def _real(cell: Path, part: str, counts: int, rng: np.random.Generator) -> tuple[Sample, ...]:
    samples = []
    for label in range(len(CLASSES)):
        for index in range(counts):
            data = png(picture(label, rng))
            path = f"data/{part}/{label:03d}/{index}.png"
            atomic_write(cell / path, data)
            samples.append(Sample(path, label, f"{part}{index}", sha256(data)))
    return tuple(samples)


def write_splits(workspace: Workspace, *, shots: int = 4, selection: int = 0, test: int = 8, seed: int = 0) -> Split:
    """Real images and both manifests."""
    rng = np.random.default_rng(seed)
    split = Split(
        source="toy",
        classes=CLASSES,
        template="a photo of a {class}",
        invariances=("colour",),
        shots=shots,
        seed=seed,
        train=_real(workspace.cell, "real/train", shots, rng),
        selection=_real(workspace.cell, "real/selection", selection, rng),
    )
    write_split(workspace.splits, split)
    write_test(workspace.test_split, TestSplit(CLASSES, _real(workspace.cell, "real_test", test, rng)))
    return split


def write_study(params: Params, workspace: Workspace, name: str, **record: Any) -> None:
    """What a study of these parameters and shots has said."""
    made = {"best": None, **record, "made_for": tuned.made_for(params, workspace, name)}
    write_json(workspace.result("tune", name), made)


def synthetic_image(file: str, label: int, name: str, index: int, digest: str = "") -> SyntheticImage:
    """A row of metadata."""
    return SyntheticImage(
        file_name=file,
        label=label,
        class_name=name,
        index=index,
        prompt=f"a photo of a {name}",
        seed=index,
        redraws=0,
        sampler={},
        adapter=None,
        sha256=digest,
    )


def write_synthetic(workspace: Workspace, recipe: str, per_class: int = 6, seed: int = 1) -> list[SyntheticImage]:
    """A synthetic dataset with its metadata."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(CLASSES):
        for index in range(per_class):
            data = png(picture(label, rng))
            file = f"{label:03d}_{name}/{index:05d}.png"
            atomic_write(workspace.synthetic(recipe) / file, data)
            rows.append(synthetic_image(file, label, name, index, sha256(data)))
    write_metadata(workspace.synthetic(recipe), rows)
    return rows


def pack(folder: Path) -> None:
    """Make tars of a synthetic dataset of class folders."""
    rows, read = read_metadata(folder), packed.files(folder, "")
    packed.write(folder, rows, lambda at: read(rows[at].file_name), len(CLASSES))
    for row in rows:
        (folder / row.file_name).unlink()


def write_clip(folder: Path, vision: dict[str, Any] | None = None, **text: Any) -> None:
    """A tiny random CLIP as an open_clip folder, with open_clip's own tokenizer."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "vision_cfg": vision or {"layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "image_size": SIZE},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, **text},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))


def write_judge(folder: Path) -> None:
    """A narrow random judge."""
    import torch

    from dreamset.weights.judge import Judge, save_judge

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_judge(Judge(("a", "b"), width=8), folder)
