"""The numbers of a toy pipeline, bit for bit, against those pinned in ``golden.json``: refactoring changes none.

One sha256 for each part of what the stages write: splits, adapters, images, classifiers, predictions and metrics; and
one each for what is chosen, and what is scored, over folds of the shots. Hashed are numbers, pixels, tensors and the
names of classes, files and runs; no shard keys, folders, seconds, versions or sentences. Studies are left out.

Other releases of torch and other processors round differently, so that hashes are pinned for each such pair. To pin
those of this machine, or new ones after a change that is meant to change numbers: ``python tests/test_golden.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

# Before torch and numpy are imported, as in conftest.py, for where this file is run by itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load
from threadpoolctl import threadpool_limits

# All that is taken from the project. Everything else is read from the files that these write.
import toy
from dreamset import adapt, evaluate, generate, prepare, train
from dreamset.core.workspace import Workspace
from dreamset.sweep import crossval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Raw = dict[str, Any]

ROOT: Final = Path(__file__).parents[1]
PINNED: Final = Path(__file__).with_name("golden.json")

# What is drawn; of these, classifiers are trained and evaluated on the images of fewer.
DRAWN: Final = (
    "stable_diffusion",
    "datadream_dset",
    "datadream_cls",
    "datadream_light",
    "datadream_early",
    "class_encoder_untuned",
    "retrieved",
    "from_shots",
)
AFTER: Final = {"class_encoder_ft_untuned": "class_encoder_untuned"}
SCORED: Final = ("stable_diffusion", "datadream_dset", "datadream_light")

# What is hashed of the stages' records: values in this order, and no keys.
_TRAINING: Final = (
    *("steps", "chosen_step", "temperature", "temperature_images", "real_images", "synthetic_images"),
    *("labels_train_per_class", "labels_selection_per_class"),
)
_IMAGE: Final = ("label", "index", "seed", "redraws", "adapter_scale", "nearness")
_RUN: Final = (
    *("accuracy", "low", "high", "top5", "balanced_accuracy", "macro_f1", "auroc", "majority", "scale"),
    *("nll", "ece", "temperature", "nll_scaled", "ece_scaled", "touched", "accuracy_untouched"),
)
_DIFFERENCE: Final = ("difference", "low", "high", "gained", "lost", "mcnemar_p")
_SET: Final = (
    *("images", "n", "kid_subset", "fid", "kid", "kid_sd", "precision", "recall", "density", "coverage"),
    *("vendi", "vendi_overall", "vendi_real", "vendi_overall_real"),
)
_COPIES: Final = ("threshold", "count", "share", "touched")


# The toy pipeline.


def _raw(**changes: Any) -> Raw:
    """params.yaml made small, with the bundled base wherever the workspace is."""
    raw: Raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw |= {"shots": 2, "seed": 0, "selection": "fixed", "active": list(SCORED), "after": {}}
    raw |= {"primary": "datadream_dset"}
    raw["recipes"]["datadream_early"] = raw["recipes"]["datadream_dset"] | {
        "epoch": 0.5,
        "sampler": {"scheduler": "euler_ancestral"},
    }
    raw["recipes"]["from_shots"] = {
        "adapter": "none",
        "prompt": "label",
        "init": "image",
        "sampler": {"scheduler": "ddim", "steps": 4, "strength": 0.6},
    }
    row = raw["models"]["bundled"]
    row |= {"clip": f"{ROOT}/models/base/clip", "judge": f"{ROOT}/models/base/judge"}
    row |= {"generator": f"{ROOT}/models/base/sd"}
    for schedule in ("dataset", "class", "class_encoder", "whole_unet"):
        row["adapt"][schedule] |= {"max_steps": 2, "batch": 2, "warmup": 1}
    row["generate"] |= {"per_class": 2, "batch": 20, "steps": 2}
    row["train"]["resnet20"] |= {"width": 4, "steps": 4, "batch": 8, "warmup": 1}
    row["train"]["clip_lora"] |= {"rank": 2, "alpha": 4, "steps": 2, "batch": 8, "warmup": 1}
    row["train"]["linear_probe"] |= {"steps": 4, "batch": 8, "warmup": 1}
    raw["adapt"] |= {"sample_images": 1, "sample_steps": 1}
    raw["train"] |= {"classifiers": ["resnet20", "clip_lora"], "baselines": ["linear_probe"], "scales": []}
    raw["train"] |= {"simple": [], "real_weight": 0.8}  # no simple one is pinned; the weight is that of the pinned ones
    raw["evaluate"] |= {"protocol": None, "bootstrap": 100, "kid_subset": 10, "worst_pairs": 3}
    return raw | changes


def _raw_over_folds(protocol: str, selection: str) -> Raw:
    """The same over folds of the shots, which score where the protocol is ``cv``, and choose where the selection is."""
    raw = _raw(shots=4, selection=selection, active=["from_shots"], primary="from_shots")
    raw["evaluate"] |= {"protocol": protocol, "folds": 2}
    raw["train"] |= {"classifiers": ["resnet20"], "baselines": []}
    raw["train"] |= {"scales": [1]} if selection == "fixed" else {"selections": 2, "configurations": 2}
    return raw


def _place(folder: Path) -> Workspace:
    """A workspace with what retrieval renders glyphs by."""
    (folder / "models/base").mkdir(parents=True)
    shutil.copy(ROOT / "models/base/params.yaml", folder / "models/base")
    return Workspace.at(folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, however many the process was given: sums in another order are other sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _draw(raw: Raw, place: Workspace, recipes: Iterable[str]) -> None:
    """Splits, adapters and images."""
    params = toy.parse(raw)
    prepare.run(params, place)
    for recipe in recipes:
        adapt.run(params, place, recipe)
        generate.run(params, place, recipe)


def _train(raw: Raw, place: Workspace) -> None:
    """Classifiers."""
    params = toy.parse(raw)
    for arm in train.arms(params):
        train.run(params, place, arm)


def plain(folder: Path) -> dict[str, str]:
    """Every kind of adapter and of image, and classifiers scored on test images; the sha256 of each part."""
    place, raw = _place(folder), _raw()
    with _one_thread():
        _draw(raw | {"active": list(DRAWN), "after": AFTER}, place, (*DRAWN, *AFTER))
        _train(raw, place)
        evaluate.run(toy.parse(raw), place, crossval.run)
    return {
        "splits": splits(place),
        "adapters": adapters(place, (*DRAWN, *AFTER)),
        "images": images(place, (*DRAWN, *AFTER)),
        "classifiers": classifiers(place, ("real", *SCORED)),
        "predictions": predictions(place),
        "metrics": metrics(place),
    }


def chosen(folder: Path) -> dict[str, str]:
    """Classifiers whose step and configuration are chosen over folds."""
    place, raw = _place(folder), _raw_over_folds("test", "cv")
    with _one_thread():
        _draw(raw, place, raw["active"])
        _train(raw, place)
    return {"chosen over folds": _sha256(splits(place), classifiers(place, ("real", *raw["active"])))}


def scored(folder: Path) -> dict[str, str]:
    """Classifiers that are scored over folds, without test images."""
    place, raw = _place(folder), _raw_over_folds("cv", "fixed")
    with _one_thread():
        _draw(raw, place, raw["active"])
        _train(raw, place)
        evaluate.run(toy.parse(raw), place, crossval.run)
    return {"scored over folds": _sha256(splits(place), predictions(place), metrics(place))}


RUNS: Final = (plain, chosen, scored)


# What is hashed of each part.


def splits(place: Workspace) -> str:
    """Which images are shots, selection and test images, their labels, groups, names and pixels."""
    learned, held_out = _json(place.splits), _json(place.test_split)
    found: list[Any] = [learned["classes"], learned["native"], learned["channels"]]
    for samples in (learned["train"], learned["selection"], held_out["test"]):
        for sample in samples:
            path = place.cell / sample["path"]
            found += [[path.name, sample["label"], sample["group"]], _pixels(path)]
    found += [[pair["distance"] for pair in _json(place.near_duplicates)], len(_json(place.rejected))]
    return _sha256(*found)


def adapters(place: Workspace, recipes: Iterable[str]) -> str:
    """Every tensor of the adapters, and how the loss fell."""
    found: list[Any] = []
    for recipe in recipes:
        found += [recipe, *_tensors(place.adapter(recipe))]
        found += [(place.plots("adapt", recipe) / "loss.csv").read_text(encoding="utf-8").splitlines()[1:]]
    return _sha256(*found)


def images(place: Workspace, recipes: Iterable[str]) -> str:
    """Names and pixels of the synthetic images, and what they were drawn with."""
    found: list[Any] = []
    for recipe in recipes:
        folder = place.synthetic(recipe)
        for path in sorted(folder.rglob("*.png")):
            found += [[recipe, path.relative_to(folder).as_posix()], _pixels(path)]
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        found += [_values(json.loads(line), _IMAGE) for line in lines]
    return _sha256(*found)


def classifiers(place: Workspace, arms: Iterable[str]) -> str:
    """Every tensor of the trained classifiers, what chose them, and how the loss fell."""
    found: list[Any] = []
    for arm in arms:
        found += [arm, *_tensors(place.classifiers(arm))]
        for run in _json(place.result("train", arm))["runs"]:
            choice = run["choice"] and [run["choice"][key] for key in sorted(run["choice"])]
            losses = [[point["step"], point["loss"]] for point in run["loss"]]
            scores = [[[point["step"], point["accuracy"]] for point in tried["scores"]] for tried in run["tried"]]
            configurations = [sorted(tried["configuration"].values()) for tried in run["tried"]]
            found += [[run["train_on"], run["classifier"], *_values(run, _TRAINING)]]
            found += [choice, losses, scores, configurations]
    return _sha256(*found)


def predictions(place: Workspace) -> str:
    """The class that each classifier gives each image, the images' labels, and which of them synthetic ones copy."""
    found = _json(place.plots("evaluate") / "predictions.json")
    return _sha256(found["labels"], sorted(found["predicted"].items()), sorted(found["touched"].items()))


def metrics(place: Workspace) -> str:
    """Accuracies and their intervals and differences, distances of sets, near-duplicates, and the verdict."""
    said = _json(place.result("evaluate"))
    found: list[Any] = [said["test_images"], said["groups"], said["folds"]]
    for run in sorted(said["runs"], key=_name):
        confused = [[pair["actual"], pair["predicted"], pair["count"]] for pair in run["most_confused"]]
        found += [[_name(run), *_values(run, _RUN), list(run["per_class"].items()), confused]]
    for row in sorted(said["differences"], key=lambda row: (row["of"], row["minus"])):
        found += [[row["of"], row["minus"], *_values(row, _DIFFERENCE)]]
    for recipe, about in sorted(said["sets"].items()):
        by_class = [[name, own["n"], own.get("kid")] for name, own in about["per_class"].items()]
        copies = [_copies(about["near_duplicates"]), _copies(about["near_duplicates_test"])]
        found += [[recipe, *_values(about, _SET), by_class, copies]]
    found += [_copies(said["near_duplicates_real"] or {"pairs": []})]
    found += [_values(said["reach"], ("smallest_gain", "detectable_gain", "discordant_share", "power"))]
    found += [[said["verdict"].get(key) for key in ("of", "minus", "difference", "low", "high")]]
    return _sha256(*found)


def _copies(about: Raw) -> list[Any]:
    return [*_values(about, _COPIES), [pair["distance"] for pair in about["pairs"]]]


def _name(run: Raw) -> list[str]:
    return [run["arm"], run["train_on"], run["classifier"]]


def _values(record: Raw, names: Iterable[str]) -> list[Any]:
    """Values by name; None where there is none."""
    return [record.get(name) for name in names]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _tensors(folder: Path) -> Iterator[Any]:
    """Files, names and values of all tensors under a folder; a LoRA's names say by the way what nests its layers."""
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {name.replace(".text_model.", "."): tensor for name, tensor in load(path.read_bytes()).items()}
        for name, tensor in sorted(tensors.items()):
            yield [path.relative_to(folder).as_posix(), name]
            yield tensor


def _sha256(*parts: Any) -> str:
    """Of arrays with their type and shape, and of anything else as JSON."""
    found = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray)
        about = [part.dtype.str, part.shape] if array else part
        found.update(json.dumps(about, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        if array:
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


# What they are compared with.


def machine() -> str:
    """What the last bits depend on: the release of torch, and the family of the processor."""
    return f"{torch.__version__}/{_processor()}"


def _processor() -> str:
    kind = torch.backends.cpu.get_cpu_capability()
    facts: dict[str, str] = {}
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "vendor_id" in facts:
        return f"{facts['vendor_id']} {kind} {facts.get('cpu family', '?')}/{facts.get('model', '?')}"
    return f"{platform.processor() or platform.machine()} {kind}"


def _pinned() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = _json(PINNED) if PINNED.is_file() else {}
    return found


def _needs_cpu() -> str | None:
    """What to say where the stages would not run on the CPU."""
    if torch.cuda.is_available():
        return "the hashes are of the CPU: run this with CUDA_VISIBLE_DEVICES set to nothing."
    return (
        "the hashes are of the CPU, and this machine computes on Apple's GPU."
        if torch.backends.mps.is_available()
        else None
    )


@pytest.mark.parametrize("run", RUNS)
def test_every_number_is_the_one_that_was_pinned(run: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    if (reason := _needs_cpu()) is not None:
        pytest.skip(reason)
    pinned = _pinned().get(machine())
    if pinned is None:
        pytest.skip(
            f"{PINNED.name} has no hashes for {machine()}: on a commit whose numbers are right, run "
            "`python tests/test_golden.py` to pin them, then come back to this one."
        )
    found = run(tmp_path / "run")
    # A part that a change was meant to change has no pin, until somebody pins it on such a machine.
    changed = [part for part, value in found.items() if value != pinned.get(part, value)]
    assert not changed, f"other numbers than those pinned for {machine()}: {', '.join(changed)}"


def test_another_seed_and_another_last_bit_have_other_hashes(tmp_path: Path) -> None:
    found = []
    with _one_thread():
        for seed in (0, 1):
            place = _place(tmp_path / str(seed))
            _draw(_raw(seed=seed), place, ["stable_diffusion"])
            found.append((splits(place), images(place, ["stable_diffusion"])))
    assert all(first != second for first, second in zip(*found, strict=True))
    path = min(place.synthetic("stable_diffusion").rglob("*.png"))
    pixels = _pixels(path).copy()
    pixels.flat[0] ^= 1
    path.unlink()  # it is a link to a shard
    Image.fromarray(pixels).save(path)
    assert images(place, ["stable_diffusion"]) != found[1][1]


def main() -> None:
    """Pin the hashes of this machine."""
    if (reason := _needs_cpu()) is not None:
        sys.exit(reason)
    started = time.time()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            found |= run(Path(folder) / run.__name__)
    pinned = _pinned()
    before = pinned.get(machine(), {})
    print(f"{machine()}, {time.time() - started:.1f} s")
    for part, value in found.items():
        print(f"  {part:18} {value} {'' if before.get(part) == value else '(new)'}")
    pinned[machine()] = found
    PINNED.write_text(json.dumps(pinned, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
