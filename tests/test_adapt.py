"""Adapters: resumable to the bit, independent of what they are trained with, and really trained."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import toy
from dreamset import adapt, generate
from dreamset.command.counts import adapting
from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.workspace import Workspace
from dreamset.data.adapters import Adapter, read_adapters
from dreamset.data.splits import read_split
from dreamset.data.work import Work
from dreamset.drawing import copies, retrieve
from dreamset.drawing.blocks import plan
from dreamset.drawing.finish import settled
from dreamset.generator import training, trainings
from dreamset.generator.lora import WEIGHTS
from dreamset.params import Params
from dreamset.params.knobs import OF_CLASSIFIERS
from dreamset.params.recipe import Recipe
from dreamset.sources import digits


class Killed(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{key}": tensor
        for path in sorted(folder.rglob(WEIGHTS))
        for key, tensor in load_file(path).items()
    }


@pytest.fixture
def longer(small: dict[str, Any]) -> dict[str, Any]:
    """Raw parameters of trainings that can be killed between checkpoints, class adapters in three groups."""
    adapt = small["models"]["bundled"]["adapt"]
    for scope in ("dataset", "class"):
        adapt[scope] |= {"max_steps": 4, "warmup": 2}
    adapt["together"] = 4
    return small


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes training die before it takes its nth step."""

    def install(nth: int) -> None:
        steps = iter(range(nth))
        train_step = training.Together._train_step

        def dying(self: training.Together) -> None:
            if next(steps, None) is None:
                raise Killed
            train_step(self)

        monkeypatch.setattr(training.Together, "_train_step", dying)

    return install


@pytest.mark.parametrize(
    ("recipe", "losses"),
    [("datadream_dset", {}), ("datadream_cls", {}), ("datadream_dset", {"preserve": 0.5, "diversity": 0.1})],
)
def test_a_killed_run_goes_on_and_ends_equal(
    longer: dict[str, Any],
    tmp_path: Path,
    recipe: str,
    losses: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    killed_at: Any,
) -> None:
    longer["recipes"][recipe] |= losses
    params = toy.parse(longer)
    unbroken, broken = Workspace.at(tmp_path / "a"), Workspace.at(tmp_path / "b")
    for workspace in (unbroken, broken):
        toy.prepare(params, workspace)
    adapt.run(params, unbroken, recipe)

    # Class adapters train four at once: the second kill comes in the second group, after the first is finished.
    for nth in (3, 4) if recipe == "datadream_cls" else (3,):
        with pytest.raises(Killed):
            killed_at(nth)
            adapt.run(params, broken, recipe)
        monkeypatch.undo()

    def finished() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in broken.shards.glob("*/done.json")}

    before = finished()
    assert len(before) == (4 if recipe == "datadream_cls" else 0)
    adapt.run(params, broken, recipe)
    assert before.items() <= finished().items()
    one, other = weights(unbroken.adapter(recipe)), weights(broken.adapter(recipe))
    assert one.keys() == other.keys()
    assert max((one[key] - other[key]).abs().max().item() for key in one) <= 1e-6
    read = [json.loads((w.result("adapt", recipe)).read_text()) for w in (unbroken, broken)]
    assert read[0]["loss_last"] == read[1]["loss_last"]
    assert not list(broken.unfinished.iterdir())


def test_a_torn_checkpoint_is_never_seen(
    longer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: Any
) -> None:
    params, workspace = toy.parse(longer), Workspace.at(tmp_path)
    toy.prepare(params, workspace)
    with pytest.raises(Killed):
        killed_at(3)
        adapt.run(params, workspace, "datadream_dset")
    monkeypatch.undo()
    (state,) = workspace.unfinished.glob("*/state.safetensors")
    # What a kill inside the next write would leave beside it.
    (state.parent / ".state.safetensors.1.tmp").write_bytes(state.read_bytes()[:50])
    assert adapt.run(params, workspace, "datadream_dset")["steps"] == 4


def test_finished_adapters_are_not_trained_again(
    prepared: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, "datadream_cls")
    before = weights(workspace.adapter("datadream_cls"))
    monkeypatch.setattr(training.Together, "run", lambda _: pytest.fail("trained again"))
    adapt.run(params, workspace, "datadream_cls")
    assert before.keys() == weights(workspace.adapter("datadream_cls")).keys()


def test_an_adapter_does_not_depend_on_its_company(small: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for together in (1, 10):
        mine = copy.deepcopy(small)
        mine["models"]["bundled"]["adapt"]["together"] = together
        params, workspace = toy.parse(mine), Workspace.at(tmp_path / str(together))
        toy.prepare(params, workspace)
        adapt.run(params, workspace, "datadream_cls")
        found.append(weights(workspace.adapter("datadream_cls")))
    assert max((found[0][key] - found[1][key]).abs().max().item() for key in found[0]) < 1e-4


def test_training_learns_and_files_say_of_what(small: dict[str, Any], workspace: Workspace) -> None:
    small["models"]["bundled"]["adapt"]["dataset"] |= {"max_steps": 40, "batch": 8, "lr": 0.01}
    small["models"]["bundled"]["adapt"]["sample_every"] = 20
    params = toy.parse(small)
    toy.prepare(params, workspace)
    summary = adapt.run(params, workspace, "datadream_dset")
    (adapter,) = read_adapters(workspace.adapter("datadream_dset"))
    losses = json.loads((workspace.shards / adapter.shard / "adapter.json").read_text())["losses"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    record = json.loads((workspace.adapter("datadream_dset") / "adapters.json").read_text())
    assert len(record["trained_on"]) == 20
    assert record["base_licence"] == "apache-2.0"
    assert summary["steps"] == len(losses) == 40
    grids = sorted(path.name for path in workspace.plots("adapt", "datadream_dset").glob("*.png"))
    assert grids == ["samples_00000.png", "samples_00020.png", "samples_00040.png"]


def test_another_seed_draws_another_adapter(small: dict[str, Any], tmp_path: Path) -> None:
    keys = []
    for seed in (0, 1, 0):
        small["seed"] = seed
        workspace = Workspace.at(tmp_path / f"{len(keys)}")
        params = toy.parse(small)
        toy.prepare(params, workspace)
        adapt.run(params, workspace, "datadream_dset")
        keys.append(read_adapters(workspace.adapter("datadream_dset"))[0])
    assert keys[0].sha256 == keys[2].sha256
    assert keys[0].sha256 != keys[1].sha256


def test_no_prior_batches_are_full_and_cover_the_shots() -> None:
    job = training.Job("k", "n", 7, [np.zeros((16, 16, 3), np.uint8)] * 5, ("p",) * 5, ())
    rows = [training._rows(job, step, 3) for step in range(5)]
    assert all(len(row) == 3 for row in rows)
    flat = [i for row in rows for i in row]
    assert [sorted(flat[i : i + 5]) for i in range(0, 15, 5)] == [[0, 1, 2, 3, 4]] * 3


def test_the_learning_rate_warms_up_and_ends_at_zero(small: dict[str, Any]) -> None:
    params = toy.parse(small)
    schedule = params.base.adapt.dataset
    shared = dict.fromkeys(training.Settings.__dataclass_fields__)
    settings = training.Settings(**(shared | {"schedule": schedule, "steps": 100}))
    rates = [settings.lr(step) for step in range(101)]
    assert rates[0] == 0
    assert max(rates) == rates[schedule.warmup] == schedule.lr
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_an_unadapted_recipe_costs_nothing(prepared: tuple[Params, Workspace]) -> None:
    params, workspace = prepared
    summary = adapt.run(params, workspace, "stable_diffusion")
    assert (summary["adapters"], summary["seconds"]) == (0, 0.0)
    assert read_adapters(workspace.adapter("stable_diffusion")) == []


def test_a_flipped_bit_stops_the_next_stage(prepared: tuple[Params, Workspace]) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, "datadream_dset")
    path = workspace.adapter("datadream_dset") / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="not the adapter that was trained"):
        read_adapters(workspace.adapter("datadream_dset"))


def test_an_exploding_loss_is_one_sentence(small: dict[str, Any], workspace: Workspace) -> None:
    small["models"]["bundled"]["adapt"]["dataset"] |= {"lr": 1e30, "warmup": 0}
    params = toy.parse(small)
    toy.prepare(params, workspace)
    with pytest.raises(InputError, match="loss is not finite"):
        adapt.run(params, workspace, "datadream_dset")
    assert shards.find(workspace.shards, "x") is None


def in_half_precision(raw: dict[str, Any], workspace: Workspace) -> None:
    """Frozen bfloat16 weights, trained float32 ones: adapt and draw."""
    raw["models"]["bundled"]["dtype"] = "bfloat16"
    raw["generate"]["per_class"] = 1
    raw["active"] = ["datadream_dset", "datadream_cls"]
    params = toy.parse(raw)
    toy.prepare(params, workspace)
    for recipe in params.active:
        summary = adapt.run(params, workspace, recipe)
        assert np.isfinite(summary["loss_last"])
        assert {tensor.dtype for tensor in weights(workspace.adapter(recipe)).values()} == {torch.float32}
        assert generate.run(params, workspace, recipe)["images"] == 10


def test_half_precision_freezes_only_what_is_frozen(small: dict[str, Any], workspace: Workspace) -> None:
    in_half_precision(small, workspace)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_on_a_gpu(small: dict[str, Any], workspace: Workspace) -> None:
    in_half_precision(small, workspace)


# For each knob a row, and a change of it; a knob that is new has to be tried here.
KNOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter": (
        "datadream_dset",
        {"adapter": "none"} | dict.fromkeys(("scope", "rank", "alpha", "unet", "text_encoder")),
    ),
    "prompt": ("datadream_dset", {"prompt": "label"}),
    "sampler": ("datadream_dset", {"sampler": {"guidance": 3.5}}),
    "origin": ("stable_diffusion", {"origin": "retrieval"}),
    "init": ("datadream_dset", {"init": "image", "sampler": {"strength": 0.5}}),
    "preserve": ("datadream_dset", {"preserve": 0.5}),
    "diversity": ("datadream_dset", {"diversity": 0.008}),
    "init_mix": ("datadream_dset", {"init": "image", "init_mix": "pixels", "sampler": {"strength": 0.5}}),
    "scope": ("datadream_dset", {"scope": "class"}),
    "rank": ("datadream_dset", {"rank": 2}),
    "alpha": ("datadream_dset", {"alpha": 2}),
    "unet": ("datadream_dset", {"unet": False}),
    "text_encoder": ("datadream_dset", {"text_encoder": False}),
    "adapter_scales": ("datadream_dset", {"adapter_scales": [0.5]}),
    "context_length": ("class_encoder_untuned", {"context_length": 5}),
    "unconditional": ("class_encoder_untuned", {"unconditional": "learned", "class_dropout": 0.1}),
    "class_dropout": ("class_encoder_untuned", {"class_dropout": 0.1}),
    "epoch": ("datadream_dset", {"epoch": 0.5}),
    "lr": ("datadream_dset", {"lr": 0.5}),
    "epochs": ("datadream_dset", {"epochs": 1}),
    "guide": ("datadream_dset", {"guide": "base"}),
    "guide_until": ("datadream_dset", {"guide_until": 0.5}),
    "pull": ("datadream_dset", {"guide": "mode", "pull": 0.3}),
    "filter": ("datadream_dset", {"filter": "argmax"}),
    "mix": ("loft", {"mix": "dirichlet"}),
    "concentration": ("loft", {"mix": "dirichlet", "concentration": 5.0}),
    "filter_tries": ("datadream_dset", {"filter": "argmax", "filter_tries": 3}),
    "first_round": ("datadream_dset", {"filter": "entropy", "first_round": 1}),
    "templates": ("datadream_dset", {"templates": ["a picture of the {class}", "an image of the {class}"]}),
    "negative": ("datadream_dset", {"negative": "blurry"}),
    "descriptions": ("fakeit", {"descriptions": "data/prompts/other.yaml"}),
    "captions": ("disef", {"captions": "file:data/prompts/captions.yaml"}),
    "caption_dropout": ("datadream_dset", {"caption_dropout": 0.7}),
    "post_augment": ("datadream_dset", {"post_augment": {"copies": 2}}),
    "per_class": ("datadream_dset", {"per_class": 7}),
}
# These change how a classifier learns, and no image.
OTHERS = {"real_weight": 0.3, "finish_on_real": 0.3, "nearness": 1.0}


def test_every_knob_of_a_recipe_is_in_the_key_of_what_it_changes(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    # A search chooses among values of the others; the study's own key holds it.
    assert KNOBS.keys() | OTHERS.keys() == {knob.name for knob in dataclasses.fields(Recipe)} - {"search"}
    assert OTHERS.keys() == {*OF_CLASSIFIERS}
    _, workspace = prepared
    (workspace.root / "models/base").mkdir(parents=True)
    shutil.copyfile(toy.ROOT / "models/base/params.yaml", workspace.root / "models/base/params.yaml")
    prompts = workspace.root / "data/prompts"
    shutil.copytree(toy.ROOT / "data/prompts", prompts)
    (prompts / "other.yaml").write_text("".join(f"{name}: [bold]\n" for name in digits.CLASS_NAMES))
    shots = read_split(workspace.splits).train
    (prompts / "captions.yaml").write_text("".join(f"{sample.sha256}: thin\n" for sample in shots))

    def keys(name: str, change: dict[str, Any]) -> list[str]:
        raw = copy.deepcopy(small)
        row = raw["recipes"][name] | change
        raw["recipes"][name] = {key: value for key, value in row.items() if value is not None}
        raw["models"]["bundled"]["adapt"]["kept"] = 2
        raw["models"]["bundled"]["clip"] = str(toy.ROOT / "models/base/clip")
        work = settled(Work.read(toy.parse(raw), workspace, name))
        if not work.row.draws:
            return [block.key for block in retrieve.plan(work, 2)]
        # The same weights for any adapter, so that a block is told apart by its own inputs alone.
        scopes = trainings.scopes(work) if work.row.trains else []
        blocks = plan(work, [Adapter(labels, "weights", "0" * 64, "shard") for labels in scopes])
        drawn = [*blocks, *copies.plan(work, blocks)]
        return [*(adapt.used_shards(work) if work.row.trains else ()), *(one.key for one in drawn)]

    assert [knob for knob, (name, change) in KNOBS.items() if keys(name, change) == keys(name, {})] == []
    assert keys("datadream_dset", OTHERS) == keys("datadream_dset", {})


@pytest.mark.parametrize("recipe", ["datadream_dset", "stable_diffusion"])
def test_a_lora_put_there_by_hand_is_kept_and_its_place_is_told(
    prepared: tuple[Params, Workspace], capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    params, workspace = prepared
    folder, own = workspace.adapter(recipe), workspace.own(recipe)
    (folder / "deep").mkdir(parents=True)
    for name in ("mine.safetensors", "deep/other.bin", ".DS_Store"):
        (folder / name).write_text(name)
    adapt.run(params, workspace, recipe)
    said = capsys.readouterr().err
    assert {path.relative_to(own).as_posix() for path in own.rglob("*.*")} == {"mine.safetensors", "deep/other.bin"}
    assert (own / "mine.safetensors").read_text() == "mine.safetensors"
    assert said.count("To draw with a LoRA of your own, see docs/recipes.md.") == 2
    assert f"{own / 'mine.safetensors'} now holds what stood in {folder}" in said
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "mine.safetensors" not in before
    # Its own files are nobody else's, and a second file of one name pushes the first aside nowhere.
    adapt.run(params, workspace, recipe)
    assert capsys.readouterr().err == ""
    (folder / "mine.safetensors").write_text("second")
    adapt.run(params, workspace, recipe)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (own / "mine_2.safetensors").read_text() == "second"
    assert (own / "mine.safetensors").read_text() == "mine.safetensors"


def test_a_lora_put_in_the_place_of_ours_is_kept_too(
    prepared: tuple[Params, Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, "datadream_dset")
    path = workspace.adapter("datadream_dset") / WEIGHTS
    ours = path.read_bytes()
    path.write_bytes(b"mine")  # into the file that the shard shares
    adapt.run(params, workspace, "datadream_dset")
    assert (workspace.own("datadream_dset") / WEIGHTS).read_bytes() == b"mine"
    assert str(workspace.own("datadream_dset") / WEIGHTS) in capsys.readouterr().err
    assert path.read_bytes() == ours


def test_classes_of_unequal_numbers_train_for_epochs_of_their_own(small: dict[str, Any], workspace: Workspace) -> None:
    small["shots"] = dict(zip(digits.CLASS_NAMES, [5, 1, 3, 5, 2, 1, 1, 1, 1, 5], strict=True))
    small["models"]["bundled"]["adapt"]["class"] |= {"batch": 2, "epochs": 2, "max_steps": 100}
    params = toy.parse(small)
    toy.prepare(params, workspace)
    summary = adapt.run(params, workspace, "datadream_cls")
    steps = [6, 2, 4, 6, 2, 2, 2, 2, 2, 6]
    rows = read_adapters(workspace.adapter("datadream_cls"))
    records = [json.loads((workspace.shards / row.shard / "adapter.json").read_text()) for row in rows]
    assert [record["steps"] for record in records] == [len(record["losses"]) for record in records] == steps
    assert summary["steps"] == sum(steps)
    assert adapting(params, "datadream_cls", [5, 1, 3, 5, 2, 1, 1, 1, 1, 5]) == (10, sum(steps))
    # Each class is on every grid, as it was last.
    grids = sorted((workspace.plots("adapt", "datadream_cls")).glob("*.png"))
    assert [path.name for path in grids] == [f"samples_{step:05d}.png" for step in (0, 2, 4, 6)]
    shapes = {read_rgb(path).size for path in grids}
    assert shapes == {(16, 160)}


def test_a_class_trains_as_in_a_run_where_all_have_its_number(small: dict[str, Any], tmp_path: Path) -> None:
    small["models"]["bundled"]["adapt"] |= {"together": 1}
    small["models"]["bundled"]["adapt"]["class"] |= {"batch": 1, "max_steps": 100, "epochs": 1}
    found = []
    for shots in ({}, {"one": 2, "two": 2}):
        small["shots"] = {name: shots.get(name, 1) for name in digits.CLASS_NAMES}
        params, workspace = toy.parse(small), Workspace.at(tmp_path / str(len(found)))
        toy.prepare(params, workspace)
        adapt.run(params, workspace, "datadream_cls")
        found.append([row.sha256 for row in read_adapters(workspace.adapter("datadream_cls"))])
    # Only the second and third class have other images.
    assert [one == other for one, other in zip(*found, strict=True)] == [True, False, False, *[True] * 7]


@pytest.mark.parametrize("change", [{"sample_images": 2}, {"sample_steps": 1}, {"checkpoint_every": 1}])
def test_what_grids_show_trains_nothing_again(
    prepared: tuple[Params, Workspace], small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, "datadream_cls")
    before = weights(workspace.adapter("datadream_cls"))
    # One training is missing: its grids have other pictures than those of the others.
    shutil.rmtree(workspace.shards / read_adapters(workspace.adapter("datadream_cls"))[3].shard)
    small["adapt"] |= change
    small["models"]["bundled"]["adapt"]["sample_every"] = 1
    small["models"]["bundled"]["adapt"]["together"] = 1
    trained: list[int] = []
    run = training.Together.run

    def counted(self: training.Together, *more: Any) -> None:
        trained.append(len(self.jobs))
        run(self, *more)

    monkeypatch.setattr(training.Together, "run", counted)
    adapt.run(toy.parse(small), workspace, "datadream_cls")
    assert trained == [1]
    after = weights(workspace.adapter("datadream_cls"))
    assert max((before[key] - after[key]).abs().max().item() for key in before) < 1e-4
