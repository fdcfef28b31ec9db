"""One LoRA per shot: trained at once, mixed image by image in one batch, and each file stock diffusers' own."""

import copy
import dataclasses
import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file

import toy
from dreamset import adapt, generate
from dreamset.command.counts import adapting
from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.workspace import Workspace
from dreamset.data import cards
from dreamset.data.adapters import Adapter, read_adapters
from dreamset.data.lora_file import read_pairs
from dreamset.data.synthetic import read_metadata
from dreamset.data.work import Work
from dreamset.drawing import mixes
from dreamset.drawing.blocks import plan
from dreamset.generator import base_model, lora, sampler, training
from dreamset.generator.base_model import BaseModel
from dreamset.generator.mixture import Mixes, Mixture
from dreamset.params import Params
from dreamset.params.knob_words import scale_call_words
from dreamset.params.knobs import Lora
from dreamset.params.model import Sampler
from dreamset.sources import digits
from dreamset.use import kohya
from test_generator import images, shaken

ROWS = ("loft", "chimera")
SPEC = Lora(rank=2, alpha=3.0, unet=True, text_encoder=False)
SAMPLER = Sampler("dpmsolver++", 4, 2.0)


def strengthened(raw: dict[str, Any]) -> dict[str, Any]:
    """Give raw parameters adapters that differ visibly after a few steps."""
    for scope in ("image", "shared"):
        raw["models"]["bundled"]["adapt"][scope] |= {"lr": 0.05, "max_steps": 3, "batch": 2}
    raw["models"]["bundled"]["adapt"] |= {"ema": 0}
    raw["generate"]["per_class"] = 3
    raw["shots"] = 3
    return raw


@pytest.fixture
def stronger(small: dict[str, Any]) -> dict[str, Any]:
    return strengthened(small)


def made(raw: dict[str, Any], workspace: Workspace, recipe: str) -> Params:
    raw["active"] = ["stable_diffusion", recipe]
    params = toy.parse(raw)
    if not workspace.splits.exists():
        toy.prepare(params, workspace)
    adapt.run(params, workspace, recipe)
    return params


Start = Callable[[str], None]


@pytest.fixture(scope="module")
def finished(tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a recipe of ``stronger`` has been trained and drawn; nobody changes it."""

    @functools.cache
    def of(recipe: str) -> Path:
        workspace = Workspace.at(tmp_path_factory.mktemp(recipe))
        params = made(strengthened(toy.shrunk(toy.found_raw(), tiny_generator)), workspace, recipe)
        generate.run(params, workspace, recipe)
        return workspace.root

    return of


@pytest.fixture
def start(finished: Callable[[str], Path], workspace: Workspace) -> Start:
    """Begins with what a recipe of ``stronger`` has finished, for tests that do not ask how it is trained."""

    def begin(recipe: str) -> None:
        shutil.copytree(finished(recipe), workspace.root, dirs_exist_ok=True)

    return begin


def pixels(path: Path) -> torch.Tensor:
    return torch.tensor(np.asarray(read_rgb(path))).int()


def alone(base: BaseModel, params: Params, workspace: Workspace, recipe: str, row: Any) -> torch.Tensor:
    """The image of a row of metadata, drawn by itself with its LoRAs added to the weights one after the other."""
    folder, state = workspace.adapter(recipe), {}
    files = {adapter.sha256: folder / adapter.file for adapter in read_adapters(folder)}
    for sha, weight in zip(row.adapters, row.adapter_weights, strict=True):
        for at in lora.adapted(base, files[sha]):
            state.setdefault((at.name, at.path), (at.layer, at.layer.weight.detach().clone()))
            with torch.no_grad():
                at.layer.weight.add_(weight * at.pair.delta)
    with torch.no_grad():
        condition, empty = base.encode([row.prompt]), base.encode([""])
    drawn = sampler.draw(base, params.sampler(recipe), condition, empty, [torch.Generator().manual_seed(row.seed)])
    with torch.no_grad():
        for layer, weight in state.values():
            layer.weight.copy_(weight)
    return sampler.to_uint8(drawn)[0].int()


# The other two pairs differ from these in nothing that the mixture of a batch asks for.
@pytest.mark.parametrize(("recipe", "text"), [("loft", False), ("chimera", True)])
def test_an_image_in_a_mixed_batch_is_the_one_drawn_alone_with_its_loras_fused(
    stronger: dict[str, Any], workspace: Workspace, start: Start, recipe: str, text: bool
) -> None:
    if not text:
        start(recipe)
    stronger["recipes"][recipe]["text_encoder"] = text
    params = made(stronger, workspace, recipe)
    assert generate.run(params, workspace, recipe)["drawn"] == 30
    rows = read_metadata(workspace.synthetic(recipe))
    base = base_model.load(Path(params.base.generator), params.base, torch.device("cpu"))
    adapted, moved = [row for row in rows if row.label in (0, 7)], 0
    for row in adapted:
        drawn = pixels(workspace.synthetic(recipe) / row.file_name)
        # Within one grey level, as images of other batches.
        assert (drawn - alone(base, params, workspace, recipe, row)).abs().max() <= 1
        plain = dataclasses.replace(row, adapters=[], adapter_weights=[])
        moved = max(moved, int((drawn - alone(base, params, workspace, recipe, plain)).abs().max()))
    assert moved > 5
    assert {row.adapter for row in rows} == {None} and {row.adapter_scale for row in rows} == {1.0}
    for row in rows:
        assert row.adapters and row.adapter_weights and sum(row.adapter_weights) == pytest.approx(1, abs=1e-5)
        assert len(row.adapters) == (2 if recipe == "loft" else 3)


@pytest.mark.parametrize("recipe", ROWS)
def test_stock_diffusers_draws_the_same_with_set_adapters(
    stronger: dict[str, Any], workspace: Workspace, start: Start, recipe: str
) -> None:
    start(recipe)
    params = made(stronger, workspace, recipe)
    row = next(row for row in read_metadata(workspace.synthetic(recipe)) if row.label == 3)
    pipeline = StableDiffusionPipeline.from_pretrained(params.base.generator)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = sampler.scheduler(params.sampler(recipe).scheduler, dict(pipeline.scheduler.config))
    files = {each.sha256: each.file for each in read_adapters(workspace.adapter(recipe))}
    assert row.adapters and row.adapter_weights
    names = [f"shot{number}" for number in range(len(row.adapters))]
    for name, sha in zip(names, row.adapters, strict=True):
        pipeline.load_lora_weights(workspace.adapter(recipe) / files[sha], adapter_name=name)
    pipeline.set_adapters(names, row.adapter_weights)
    found = pipeline(
        row.prompt,
        generator=torch.Generator().manual_seed(row.seed),
        num_inference_steps=params.sampler(recipe).steps,
        guidance_scale=params.sampler(recipe).guidance,
        height=16,
        width=16,
        output_type="np",
    ).images[0]
    drawn = pixels(workspace.synthetic(recipe) / row.file_name)
    assert (torch.tensor(found * 255).round().int() - drawn).abs().max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_layers_compute_the_weighted_sum_of_each_image(small: dict[str, Any], tmp_path: Path, dtype: str) -> None:
    small["models"]["bundled"]["dtype"] = dtype
    model = toy.parse(small).base
    base = base_model.load(Path(model.generator), model, torch.device("cpu"))
    plain = images(base, ["a", "b", "c"])
    adapters = shaken(base, dataclasses.replace(SPEC, text_encoder=True), ("one", "two", "three"), amount=0.1)
    files = {}
    for name in adapters.names:
        adapters.save(name, tmp_path / name)
        files[name] = tmp_path / name / lora.WEIGHTS
    adapters.detach()
    wanted = [(("one", 0.5), ("two", 0.5)), (("three", 1.0),), (("two", 0.3), ("one", 0.2), ("three", 0.5))]
    randoms = [torch.Generator().manual_seed(seed) for seed in range(3)]
    with Mixture(base, files) as mixture, torch.no_grad():
        assert mixture.changes_conditions
        each = Mixes(mixture, wanted)
        each.use()
        conditions, empty = base.encode_each(["a", "b", "c"]), base.encode_each([""] * 3)
        drawn = sampler.draw(base, SAMPLER, conditions, empty, randoms, mixes=each)
        # A part of the batch, as after memory ran out, and the prompt alone, as after the end of guidance.
        part = sampler.draw(
            base,
            SAMPLER,
            conditions.rows([2]),
            empty.rows([2]),
            [torch.Generator().manual_seed(2)],
            mixes=each.rows([2]),
        )
        late = sampler.draw(
            base,
            SAMPLER,
            conditions,
            empty,
            [torch.Generator().manual_seed(seed) for seed in range(3)],
            guide=sampler.Guide(until=0.5),
            mixes=each,
        )
    assert torch.equal(images(base, ["a", "b", "c"]), plain)  # nothing stays
    near = 1e-4 if dtype == "float32" else 0.1
    assert (part[0] - drawn[2]).abs().max() < near
    assert (late - drawn).abs().max() > 1e-3
    with lora.fused(base, files["three"]), torch.no_grad():
        fused = sampler.draw(base, SAMPLER, base.encode(["b"]), base.encode([""]), [torch.Generator().manual_seed(1)])
    assert (fused[0] - drawn[1]).abs().max() < near
    assert (fused[0] - plain[1]).abs().max() > 2 * (fused[0] - drawn[1]).abs().max()


def test_a_weak_mix_is_not_rounded_away_in_half_precision(small: dict[str, Any], tmp_path: Path) -> None:
    small["models"]["bundled"]["dtype"] = "bfloat16"
    model = toy.parse(small).base
    half = base_model.load(Path(model.generator), model, torch.device("cpu"))
    name, random = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    layer = half.unet.get_submodule(name)
    with torch.no_grad():
        layer.weight.copy_(0.03 * torch.randn(layer.weight.shape, generator=random))
        adapters = lora.attach(half, Lora(16, 16.0, unet=True, text_encoder=False), {"one": 0, "two": 1})
        for each in adapters.names:
            for key, value in adapters.parameters(each).items():
                if "lora_B" in key:
                    value.copy_(1e-3 * torch.randn(value.shape, generator=random))
        sides = [
            [adapters.parameters(each)[f"unet.{name}.lora_{side}.weight"].clone() for side in "BA"]
            for each in adapters.names
        ]
        for each in adapters.names:
            adapters.save(each, tmp_path / each)
        adapters.detach()
        rows = torch.randn((40_000, layer.in_features), generator=random).bfloat16()

        def learned() -> torch.Tensor:
            out = half.unet.get_submodule(name)(torch.cat([rows, rows]).view(2, len(rows), -1))[0]
            return torch.linalg.lstsq(rows.double(), out.double()).solution

        before = learned()
        with Mixture(half, {each: tmp_path / each / lora.WEIGHTS for each in adapters.names}) as mixture:
            mixture.use([(("one", 0.125), ("two", 0.125)), (("one", 1.0),)])
            moved = learned() - before
    wanted = sum(0.125 * (up @ down).T.double() for up, down in sides)
    assert (moved - wanted).norm() / wanted.norm() < 0.1


def test_the_mix_of_an_image_depends_on_seed_class_and_index_alone(small: dict[str, Any], workspace: Workspace) -> None:
    small["shots"] = 4
    small["active"] = ["stable_diffusion", *ROWS]
    params = toy.parse(small)
    toy.prepare(params, workspace)
    work = Work.read(params, workspace, "loft")
    own = [Adapter((label,), f"{label}/{k}", f"{label}-{k}", "s") for label in range(10) for k in range(4)]
    wanted = [(label, index) for index in range(12) for label in range(10)]
    chosen = dict(zip(wanted, mixes.choose(work, own, wanted, 1.0), strict=True))
    for label in range(10):
        pairs = [frozenset(sha for sha, _ in chosen[label, index]) for index in range(12)]
        # All six pairs, and then again, in another order.
        assert (
            {*pairs[:6]}
            == {*pairs[6:]}
            == {frozenset(pair) for pair in itertools.combinations((f"{label}-{k}" for k in range(4)), 2)}
        )
        assert all([weight for _, weight in chosen[label, index]] == [0.5, 0.5] for index in range(12))
    assert [p for p in chosen if p[0] == 0] and any(
        [chosen[label, k] for k in range(6)] != [chosen[label, k] for k in range(6, 12)] for label in range(10)
    )
    # Alone, at another place and at another strength.
    assert mixes.choose(work, own, [(3, 7)], 1.0) == (chosen[3, 7],)
    assert mixes.choose(work, own, [(3, 7)], 0.5) == (tuple((sha, 0.25) for sha, _ in chosen[3, 7]),)
    other = dataclasses.replace(work, params=dataclasses.replace(params, seed=1))
    assert mixes.choose(other, own, wanted, 1.0) != tuple(chosen.values())
    # The only shot of a class has no partner.
    assert mixes.choose(work, own[:1], [(0, 5)], 1.0) == ((("0-0", 1.0),),)
    work = dataclasses.replace(work, recipe="chimera")
    weights = np.array([[w for _, w in mix] for mix in mixes.choose(work, own, [(0, k) for k in range(2000)], 1.0)])
    assert weights.shape == (2000, 4) and np.allclose(weights.sum(1), 1, atol=1e-5)
    # Mean 1 / K, variance (K - 1) / (K^2 (K c + 1)) of a symmetric Dirichlet distribution.
    assert np.allclose(weights.mean(0), 0.25, atol=0.02) and np.allclose(weights.var(0), 3 / (16 * 5), rtol=0.15)


@pytest.mark.parametrize("recipe", ROWS)
def test_files_records_and_cards_of_shots(stronger: dict[str, Any], workspace: Workspace, recipe: str) -> None:
    stronger["shots"] = {name: 1 + (index == 0) for index, name in enumerate(digits.CLASS_NAMES)}
    params = made(stronger, workspace, recipe)
    folder = workspace.adapter(recipe)
    found, work = read_adapters(folder), Work.read(params, workspace, recipe)
    assert [adapter.file for adapter in found[:3]] == [
        "000_zero/000.safetensors",
        "000_zero/001.safetensors",
        "001_one/000.safetensors",
    ]
    assert len(found) == 11 and {adapter.shot for adapter in found} == {sample.sha256 for sample in work.split.train}
    one, two = (read_pairs(folder / adapter.file) for adapter in found[:2])
    assert {pair.down.shape[0] for pair in one.values()} == {params.recipes[recipe].rank}
    same = all(torch.equal(one[key].down, two[key].down) for key in one)
    assert same == (recipe == "chimera")
    assert any(not torch.equal(one[key].up, two[key].up) for key in one)
    summary = json.loads(workspace.result("adapt", recipe).read_text())
    assert (summary["adapters"], summary["steps"]) == adapting(params, recipe, work.split.train_per_class)
    numbers = {sum(t.numel() for key, t in load_file(folder / each.file).items()) for each in found}
    down = sum(pair.down.numel() for pair in one.values())
    (whole,) = numbers
    assert summary["parameters"] == (11 * whole if recipe == "loft" else 11 * whole - down)
    card = (folder / "README.md").read_text()
    words = scale_call_words(params.recipes[recipe])
    assert words in card and 'set_adapters(["first", "second"], [0.5, 0.5])' in card
    assert "of which shot it is" in card
    generate.run(params, workspace, recipe)
    dataset = (workspace.synthetic(recipe) / "README.md").read_text()
    assert "  - name: adapters\n    list: string" in dataset and "(prompt, seed, adapters, adapter_weights" in dataset
    exported = kohya.kohya(params, workspace, recipe, workspace.root / "kohya")
    assert exported["files"] == 11
    assert (workspace.root / f"kohya/{recipe}_000_zero_001.safetensors").is_file()
    mixed = [row.adapters for row in read_metadata(workspace.synthetic(recipe))]
    assert Counter(map(len, filter(None, mixed))) == {2: 3, 1: 27}


def test_initial_weights_are_those_of_peft(small: dict[str, Any]) -> None:
    model = toy.parse(small).base
    base = base_model.load(Path(model.generator), model, torch.device("cpu"))
    adapters = lora.attach(base, SPEC, {"one": 7, "two": 8})
    ours = {name: adapters.parameters(name) for name in adapters.names}
    adapters.detach()
    for name, seed in (("one", 7), ("two", 8)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lora.seed_for("lora", "unet", seed))
            base.unet.add_adapter(
                LoraConfig(r=2, lora_alpha=3, init_lora_weights="gaussian", target_modules=lora._UNET), name
            )
        for path, module in base.unet.named_modules():
            if hasattr(module, "lora_A"):
                key = f"unet.{path}.lora_A.weight"
                assert torch.equal(module.lora_A[name].weight, ours[name][key])


@pytest.mark.parametrize("recipe", ROWS)
def test_adapters_of_shots_do_not_depend_on_their_company(
    stronger: dict[str, Any], tmp_path: Path, recipe: str
) -> None:
    found = []
    for together in (1, 10):
        raw = copy.deepcopy(stronger)
        raw["shots"] = 2 if recipe == "chimera" else 1
        raw["models"]["bundled"]["adapt"]["together"] = together
        raw["models"]["bundled"]["adapt"]["class"]["batch"] = 2  # as many as each adapter of a shot sees
        for scope in ("image", "shared"):
            raw["models"]["bundled"]["adapt"][scope]["lr"] = 0.006
        workspace = Workspace.at(tmp_path / str(together))
        params = made(raw, workspace, recipe)
        assert params.together(recipe) == together
        found.append(
            [load_file(workspace.adapter(recipe) / each.file) for each in read_adapters(workspace.adapter(recipe))]
        )
    far = max((a[key] - b[key]).abs().max().item() for a, b in zip(*found, strict=True) for key in a)
    assert far < 5e-4  # processors sum in other orders, and AdamW makes steps of what was noise; one has 1.7e-4
    first, second = found[0][:2]
    assert max((first[key] - second[key]).abs().max().item() for key in first) > 1e-3


def test_a_shared_a_learns_from_all_and_each_b_from_its_image(small: dict[str, Any], tmp_path: Path) -> None:
    """The B of an image moves by that image alone: another picture of a neighbour changes it only by way of A."""
    small["models"]["bundled"]["adapt"]["shared"] |= {"batch": 3, "max_steps": 1, "warmup": 0, "lr": 0.01}
    model = toy.parse(small).base
    base = base_model.load(Path(model.generator), model, torch.device("cpu"))
    row = toy.parse(small).base.adapt.shared
    kind = Lora(2, 2.0, unet=True, text_encoder=False, shared=True)
    settings = training.Settings(kind, row, 1, 0.0, 1e9, 0.0, 0.0, 99, 99, 1, SAMPLER, 0)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(4)]

    def trained(name: str, shown: list[int]) -> list[dict[str, torch.Tensor]]:
        job = training.Job("k", "a", 3, [pictures[i] for i in shown], ("p",) * 3, ())
        (tmp_path / name).mkdir()
        together = training.Together(base, [job], settings, tmp_path / name, losses=[[]])
        together._train_step()
        state = [
            {k: v.detach().clone() for k, v in together.adapters.parameters("a", head).items()} for head in range(3)
        ]
        together.close()
        return state

    one, other = trained("one", [0, 1, 2]), trained("other", [0, 1, 3])

    def moved(head: int) -> bool:
        return any(not torch.equal(one[head][key], other[head][key]) for key in one[head] if "lora_B" in key)

    # In the first step B is 0 and A has no gradient, so that heads are independent.
    assert [moved(head) for head in range(3)] == [False, False, True]


class Killed(Exception):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize("recipe", ROWS)
def test_a_killed_training_of_shots_goes_on_and_ends_equal(
    stronger: dict[str, Any], tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stronger["models"]["bundled"]["adapt"]["together"] = 5
    stronger["models"]["bundled"]["adapt"]["class"]["batch"] = 2
    stronger["shots"] = 2 if recipe == "chimera" else 1
    whole, broken = Workspace.at(tmp_path / "a"), Workspace.at(tmp_path / "b")
    made(stronger, whole, recipe)
    steps, step = iter(range(4)), training.Together._train_step

    def dying(self: training.Together) -> None:
        if next(steps, None) is None:
            raise Killed
        step(self)

    monkeypatch.setattr(training.Together, "_train_step", dying)
    with pytest.raises(Killed):
        made(stronger, broken, recipe)
    monkeypatch.undo()
    done = {path.parent.name for path in broken.shards.glob("*/done.json")}
    assert done  # the first group
    made(stronger, broken, recipe)
    one, two = (read_adapters(place.adapter(recipe)) for place in (whole, broken))
    for a, b in zip(one, two, strict=True):
        first, second = load_file(whole.adapter(recipe) / a.file), load_file(broken.adapter(recipe) / b.file)
        assert max((first[key] - second[key]).abs().max().item() for key in first) <= 1e-6


def test_a_fold_uses_the_adapters_of_its_shots_again(
    stronger: dict[str, Any], workspace: Workspace, start: Start
) -> None:
    start("loft")
    params = made(stronger, workspace, "loft")
    work = Work.read(params, workspace, "loft")
    fewer = dataclasses.replace(work.split, train=work.split.train[1:])
    assert {*adapt.used_shards(dataclasses.replace(work, split=fewer))} < {*adapt.used_shards(work)}


@pytest.mark.parametrize("recipe", ROWS)
def test_more_images_and_weaker_ones_keep_the_mixes(
    stronger: dict[str, Any], workspace: Workspace, start: Start, recipe: str
) -> None:
    start(recipe)
    made(stronger, workspace, recipe)
    before = {(row.label, row.index): row for row in read_metadata(workspace.synthetic(recipe))}
    stronger["generate"]["per_class"] = 6
    stronger["recipes"]["weaker"] = stronger["recipes"][recipe] | {"adapter_scales": [0.0, 0.5]}
    stronger["active"] = ["stable_diffusion", recipe, "weaker"]
    params = toy.parse(stronger)
    assert generate.run(params, workspace, recipe)["drawn_now"] < 60
    after = {(row.label, row.index): row for row in read_metadata(workspace.synthetic(recipe))}
    assert before.items() <= after.items() and len(after) == 60
    adapt.run(params, workspace, "weaker")
    generate.run(params, workspace, "weaker")
    for row in read_metadata(workspace.synthetic("weaker")):
        full = after[row.label, row.index]
        if row.index % 2 == 0:
            assert (row.adapters, row.adapter_scale) == (None, None)
        else:
            assert row.adapters == full.adapters and full.adapter_weights and row.adapter_scale == 0.5
            assert row.adapter_weights == pytest.approx([0.5 * weight for weight in full.adapter_weights], abs=1e-6)


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        ("loft", {"guide": "base"}),
        ("chimera", {"guide": "mode", "guide_until": 0.5}),
        ("chimera", {"init": "image", "sampler": {"strength": 0.5}}),
        ("loft", {"mix": "dirichlet"}),
        ("chimera", {"prompt": "label", "epoch": 0.5}),
        ("loft", {"preserve": 0.1, "diversity": 0.01, "text_encoder": True}),
    ],
)
def test_other_knobs_work_with_loras_of_shots(
    stronger: dict[str, Any], workspace: Workspace, start: Start, recipe: str, change: dict[str, Any]
) -> None:
    start(recipe)  # what a knob changes is made anew
    stronger["recipes"][recipe] |= change
    if "epoch" in change:
        stronger["models"]["bundled"]["adapt"]["kept"] = 2
    params = made(stronger, workspace, recipe)
    summary = generate.run(params, workspace, recipe)
    assert summary["images"] == summary["drawn_now"] == 30
    if change == {"mix": "dirichlet"}:
        base = base_model.load(Path(params.base.generator), params.base, torch.device("cpu"))
        row = read_metadata(workspace.synthetic(recipe))[4]
        drawn = pixels(workspace.synthetic(recipe) / row.file_name)
        assert (drawn - alone(base, params, workspace, recipe, row)).abs().max() <= 1


@pytest.mark.parametrize(
    ("recipe", "change", "words"),
    [
        ("datadream_dset", {"mix": "pair"}, "datadream_dset.mix: belongs to scope: image and scope: shared; remove it"),
        ("loft", {"concentration": 2}, "loft.concentration: belongs to mix: dirichlet"),
        ("loft", {"mix": "all"}, "mix: expected"),
        ("chimera", {"concentration": 0}, "concentration: expected a number"),
        ("loft", {"rank": None}, "loft.rank: is missing"),
    ],
)
def test_what_does_not_fit_is_refused(raw: dict[str, Any], recipe: str, change: dict[str, Any], words: str) -> None:
    raw["recipes"][recipe] = {
        key: value for key, value in (raw["recipes"][recipe] | change).items() if value is not None
    }
    with pytest.raises(InputError, match=words):
        toy.parse(raw)


def test_files_that_do_not_go_together_are_refused(small: dict[str, Any], tmp_path: Path) -> None:
    model = toy.parse(small).base
    base = base_model.load(Path(model.generator), model, torch.device("cpu"))
    files = {}
    for name, spec in (("one", SPEC), ("two", dataclasses.replace(SPEC, text_encoder=True))):
        adapters = shaken(base, spec, (name,))
        adapters.save(name, tmp_path / name)
        adapters.detach()
        files[name] = tmp_path / name / lora.WEIGHTS
    with Mixture(base, files) as mixture, pytest.raises(InputError, match="adapts other layers than the rest"):
        mixture.use([(("one", 0.5), ("two", 0.5))])


def test_blocks_of_mixed_images_hold_all_classes(stronger: dict[str, Any], workspace: Workspace, start: Start) -> None:
    start("loft")
    params = made(stronger, workspace, "loft")
    work = Work.read(params, workspace, "loft")
    blocks = plan(work, read_adapters(workspace.adapter("loft")))
    assert [len(block) for block in blocks] == [20, 10]
    assert all(block.adapter is None and len(block.mixes) == len(block) for block in blocks)


def test_columns_of_mixes_are_in_the_types_of_cards() -> None:
    assert {"adapters", "adapter_weights"} <= {*cards.every_column(("adapters", "adapter_weights"))}


def test_the_code_of_the_docs_loads_two_loras(stronger: dict[str, Any], workspace: Workspace, start: Start) -> None:
    start("loft")
    params = made(stronger, workspace, "loft")
    text = (toy.ROOT / "docs/recipes.md").read_text().split("## One adapter per image")[1]
    code = text.split("```python")[1].split("```")[0]
    assert code.count("models/base/sd") == 1
    code = code.replace("models/base/sd", str(params.base.generator))
    known: dict[str, Any] = {}
    exec(code.replace("models/adapters", str(workspace.adapter("loft").parent)), known)
    assert known["pipeline"].get_active_adapters() == ["first", "second"]


def test_tables_of_other_scopes_keep_their_setting() -> None:
    params = toy.params()
    assert not {"image", "shared"} & params.setting(["datadream_dset"])["base"]["adapt"].keys()
    assert {"image", "shared"} & params.setting(["loft"])["base"]["adapt"].keys() == {"image"}


def test_as_many_shots_are_trained_at_once_as_see_as_many_images(raw: dict[str, Any]) -> None:
    params = toy.parse(raw)
    assert [params.together(name) for name in ("datadream_dset", "datadream_cls", "loft", "chimera")] == [1, 10, 40, 10]
    raw["model"] = "sd21_base"
    params = toy.parse(raw)
    assert [params.together(name) for name in ("datadream_cls", "loft", "chimera")] == [1, 8, 1]
    assert (params.schedule("loft").lr, params.schedule("loft").steps(1)) == (1e-3, 600)
