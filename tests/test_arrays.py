"""Images for classifiers: sides, checks, and memory that does not grow with their number."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from dreamset import classifiers, train
from dreamset.classifiers import fit, resnet20, seen, stored
from dreamset.classifiers.augment import Augment
from dreamset.core.errors import InputError
from dreamset.core.files import sha256
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.splits import Sample
from dreamset.metrics.features import Judge


def _samples(folder: Path, count: int, side: int) -> list[Sample]:
    """``count`` names of one image."""
    data = png(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    (folder / "0.png").write_bytes(data)
    for index in range(1, count):
        os.link(folder / "0.png", folder / f"{index}.png")
    return [Sample(f"{index}.png", index % 3, "", sha256(data)) for index in range(count)]


def test_a_mapped_file_holds_what_memory_would_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", 5)
    split = toy.write_splits(Workspace.at(tmp_path))
    scratch = tmp_path / ".dreamset/scratch"
    for size in (16, 9):
        memory = arrays.real(split.train, tmp_path, size)
        mapped = arrays.real(split.train, tmp_path, size, scratch)
        assert list(scratch.iterdir()) == []
        assert np.array_equal(memory.images, mapped.images)
        assert (memory.names, memory.labels.tolist()) == (mapped.names, mapped.labels.tolist())
        assert mapped.images.shape == (12, size, size, 3)
        assert np.array_equal(mapped.images[5], arrays.real(split.train[5:6], tmp_path, size).images[0])
    assert len(arrays.real([], tmp_path, 16, scratch)) == 0
    (tmp_path / split.train[7].path).write_bytes((tmp_path / split.train[6].path).read_bytes())
    with pytest.raises(InputError, match=rf"{split.train[7].path}: is missing or was changed"):
        arrays.real(split.train, tmp_path, 16, scratch)
    assert list(scratch.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    side, peaks = 48, []
    samples = _samples(tmp_path, 1500, side)
    network = resnet20.network(3, 4, 16, 0.0)
    # Two blocks at the least: one is written while the next is decoded.
    for count in (600, 1500):
        tracemalloc.start()
        data = arrays.real(samples[:count], tmp_path, side, tmp_path / "scratch")
        loader = fit._Loader(network, [fit.Source("real", data, 1, 1)], 8, Augment((), 1.0, 0), ("memory",))
        assert loader.batch()[0].shape == (8, 3, 16, 16)
        loader.close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Pixels alone would be six megabytes more; what grows is names and labels.
    assert peaks[1] - peaks[0] < 0.1 * 900 * side * side * 3


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    split = toy.write_splits(Workspace.at(tmp_path))
    full = Path("/dev/full").open("w+b", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(InputError, match=r"has no room for 0\.0 GB of decoded images"):
        arrays.real(split.train, tmp_path, 16, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("size", "resolution", "kept", "scored"),
    [(16, 16, 16, 16), (224, 512, 256, 224), (32, 512, 37, 32), (224, 16, 16, 16), (336, 512, 384, 336)],
)
def test_images_are_kept_at_a_margin_and_never_beyond_the_base(
    size: int, resolution: int, kept: int, scored: int
) -> None:
    assert (stored(size, resolution), seen(size, resolution)) == (kept, scored)


def test_each_classifier_gets_images_of_its_own_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.at(tmp_path)
    toy.write_splits(workspace)
    toy.write_synthetic(workspace, "datadream_dset")
    toy.write_clip(tmp_path / "models/base/clip")
    asked = []
    read = arrays._read

    def spy(
        rows: Any, folder: Path, size: int, command: str, scratch: Path | None, *more: Any, **named: Any
    ) -> arrays.Labelled:
        asked.append((command.split()[1], size, scratch))
        return read(rows, folder, size, command, scratch, *more, **named)

    monkeypatch.setattr(arrays, "_read", spy)
    params = toy.params(models__bundled__resolution=64, models__bundled__train__resnet20__size=32)
    train.run(params, workspace, "datadream_dset")
    scratch = tmp_path / ".dreamset/scratch"
    assert asked == [
        *[("prepare", 37, scratch), ("generate", 37, scratch), ("prepare", 32, scratch)],
        *[("prepare", 18, scratch), ("generate", 18, scratch), ("prepare", 16, scratch)],
    ]
    assert classifiers.load(workspace.classifiers("datadream_dset") / "both_resnet20").size == 32


def test_a_crop_of_what_is_kept_is_what_is_seen() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    images = torch.stack([x, y, torch.zeros_like(x)]).repeat(50, 1, 1, 1)
    changed = Augment((), 0.25, 0)(images, 56)
    assert changed.shape == (50, 3, 56, 56)
    # From the same random numbers the same crop at another side, up to the resampling.
    same = torch.nn.functional.interpolate(Augment((), 0.25, 0)(images, 112), (56, 56), mode="area")
    inside = (slice(None), slice(None), slice(16, 40), slice(16, 40))
    assert (changed[inside] - same[inside]).abs().mean() < 0.01


def test_images_too_many_for_the_device_come_a_batch_ahead_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sources = [
        fit.Source(
            name,
            arrays.Labelled(
                rng.integers(0, 256, (n, 18, 18, 3), np.uint8), rng.integers(0, 3, n), tuple(map(str, range(n)))
            ),
            0.5,
            0.5,
        )
        for name, n in (("real", 5), ("synthetic", 40))
    ]
    nothing = arrays.Labelled(np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, np.int64), ())
    row = toy.params(models__bundled__train__resnet20__steps=7).base.train.rows["resnet20"]
    losses = []
    for resident in (2**30, 0):
        monkeypatch.setattr(fit, "_RESIDENT", resident)
        torch.manual_seed(0)
        network = resnet20.network(3, 4, 16, 0.0)
        history = fit.fit(
            network, sources, nothing, row, selections=1, invariances=("colour",), crop=0.5, seed=("ahead",)
        )
        losses.append(history.losses)
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_in_bfloat16_from_pinned_batches_and_scores_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.at(tmp_path)
    split = toy.write_splits(workspace)
    toy.write_clip(tmp_path / "models/base/clip")
    toy.write_judge(tmp_path / "models/base/judge")
    data = arrays.real(split.train, tmp_path, 18, tmp_path / "scratch")
    params = toy.params(models__bundled__memory=["gradient_checkpointing"])
    for name in ("resnet20", "clip_lora"):
        losses = []
        for resident in (2**30, 0):
            monkeypatch.setattr(fit, "_RESIDENT", resident)
            torch.manual_seed(0)
            network = classifiers.build(name, params.base, split, tmp_path)
            source = fit.Source("real", data, 1.0, 1.0)
            row = params.base.train.rows[name]
            history = fit.fit(
                network, [source], data, row, selections=2, invariances=("colour",), crop=0.5, seed=("cuda",)
            )
            losses.append(history.losses)
            assert classifiers.Predictor(network, split.classes).logits(data.images).dtype == np.float32
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
    features = Judge(tmp_path / "models/base/judge").features(data.images)
    assert features.shape == (12, 64)
    assert np.isfinite(features).all()
