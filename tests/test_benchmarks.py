"""The benchmarks compare like with like: both sides compute the same thing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from benchmarks import __main__ as command
from benchmarks import (
    adapters,
    arithmetic,
    choices,
    classifiers,
    cluster,
    front,
    images,
    published,
    saved,
    scale,
    scopes,
    setting,
    strength,
    timing,
    trials,
)
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreamset.classifiers import Predictor, clip, lora_attention
from dreamset.data.splits import Sample, Split
from dreamset.generator import base_model
from dreamset.generator.training import Together
from dreamset.weights import pretrained

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(small: dict[str, Any], tmp_path: Path) -> Path:
    for kind in ("clip", "judge"):
        small["models"]["bundled"][kind] = str(ROOT / small["models"]["bundled"][kind])
    small["models"]["bundled"]["train"]["clip_lora"]["dropout"] = 0.0
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    return path


@pytest.fixture
def here(file: Path, tmp_path: Path) -> setting.Setting:
    return setting.make(file, tmp_path / "cell", setting.QUICK)


@pytest.mark.parametrize("recipe", [setting.DATASET, setting.CLASS])
def test_every_lever_leaves_the_losses_of_an_adapter(here: setting.Setting, recipe: str, tmp_path: Path) -> None:
    jobs, files, settings = adapters.jobs(here, recipe)
    base = base_model.load(here.generator, here.params.base, here.device)
    together = Together(base, jobs[:3], settings, tmp_path, losses=[[] for _ in jobs[:3]])
    for _ in range(4):
        together._train_step()
    together.close()
    last = len(together.losses) - 1
    for levers in ({}, {"cached": True}, {"cached": True, "distinct": True}):
        loop = adapters.Plain(base, jobs[last], files[last], settings, **levers)
        loop.run(4)
        loop.close()
        assert loop.losses == pytest.approx(together.losses[last], rel=1e-4)


def test_both_sides_draw_the_same_images(here: setting.Setting, tmp_path: Path) -> None:
    used = images.used(here, setting.DATASET)
    drawn = images.ours(here, setting.DATASET, used).count
    ours = {f"{path.parent.name}/{path.name}": path for path in here.workspace.shards.rglob("[0-9]*/*.png")}
    for levers in ({}, {"resident": True, "fused": True, "mixed": True}):
        out = tmp_path / f"plain{len(levers)}"
        # Twice the same adapter, so that one pipeline takes it off and loads it again.
        count = images.plain(here, setting.DATASET, used * (1 + len(levers) // 3), out, **levers).count
        assert count == drawn * (1 + len(levers) // 3)
        plain = {f"{path.parent.name}/{path.name}": path for path in out.rglob("*.png")}
        assert len(plain) == drawn
        for name, path in plain.items():
            apart = np.asarray(Image.open(path), np.int16) - np.asarray(Image.open(ours[name]), np.int16)
            assert np.abs(apart).max() <= 1, name


def test_both_sides_see_the_same_logits_and_gradients(here: setting.Setting) -> None:
    merged = classifiers.merged(here)
    data = classifiers.decoded(here, merged)
    logits: list[torch.Tensor] = []
    classifiers.plain_evaluate(here, merged, out=logits)
    ours = Predictor(merged, here.split.classes).logits(data.images)
    assert torch.cat(logits)[: len(data)].numpy() == pytest.approx(ours, abs=1e-3)

    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
    for name in ("clip_lora", "resnet20"):
        gradients = []
        for plain in (False, True):
            classifier = classifiers.build(here, name).train()
            seen = classifiers.plain_logits(classifier, pixels * 2 - 1) if plain else classifier(pixels)
            torch.nn.functional.cross_entropy(seen, torch.from_numpy(data.labels)).backward()
            gradients.append([weight.grad for weight in classifier.parameters() if weight.requires_grad])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_tokenizer_is_clips() -> None:
    texts = ["a photo of a 707-320, it's", "An Apple_pie  naïve café", ""]
    padded = published.tokenizer()(texts, padding="max_length", truncation=True, max_length=77).input_ids
    assert padded == open_clip.get_tokenizer(published.VIT_B_16)(texts).tolist()


def test_the_clip_of_random_weights_is_read_as_any(tmp_path: Path) -> None:
    published.write_clip(tmp_path / "clip", reduced=True)
    found = clip.read(pretrained.find(tmp_path, "clip"), ["a photo of a cat"])
    assert found.size == published.REDUCED_RESOLUTION
    assert found.model.visual.patch_size == (16, 16)
    assert lora_attention.adapt(found.model, 2, 2.0, 0.0) == 24 * 2 * 2 * 2 * 64
    with torch.device("meta"):
        full = open_clip.CLIP(**open_clip.get_model_config(published.VIT_B_16))
    assert lora_attention.adapt(full, 16, 32.0, 0.1) == 983_040  # DataDream's


def test_operations_are_those_of_a_real_pass(here: setting.Setting) -> None:
    base = base_model.load(here.generator, here.params.base, here.device)
    latents = torch.randn(1, *base.latent_shape)
    with torch.no_grad():
        told = base.encode(["a"])
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            base.predict(latents, torch.tensor([1]), told)
    # Two steps with guidance.
    assert arithmetic.drawing(here, setting.DATASET) == pytest.approx(4 * counter.get_total_flops(), rel=1e-6)
    spec = here.params.recipes[setting.DATASET].lora()
    assert 2 < arithmetic.step(here, spec) / counter.get_total_flops() < 3.5


def test_shares_and_memory_stand_beside_the_rates() -> None:
    rungs = [timing.Rung("plain", float, 4e12), timing.Rung("+ lever", float, 4e12), timing.Rung("+ other", float)]
    result = timing.summarise(timing.Ladder("Task", "steps", rungs), [[2.0], [1.0], [0.5]], [2**30, 2**31, 0], 8e12)
    assert [row.get("share_of_matmul") for row in result["rows"]] == [0.25, 0.5, None]
    assert [row.get("peak_gib") for row in result["rows"]] == [1.0, 2.0, None]
    lines = timing.markdown(result).splitlines()
    assert "| + lever | 1 | 1 to 1 | 2.00 | 2.00 | 4 | 50% | 2 |" in lines
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_everything_runs_with_random_weights(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the full size, in layout and in steps; one adapter ladder, and few words.
    monkeypatch.setattr(setting, "REDUCED_CAPTIONS", (3,))
    monkeypatch.setitem(published._REDUCED_TEXT, "num_hidden_layers", 2)
    monkeypatch.setitem(published._REDUCED_UNET, "layers_per_block", 1)
    monkeypatch.setitem(published._REDUCED_VAE, "layers_per_block", 1)
    monkeypatch.setattr(setting, "_reduce", shorter(setting._reduce))
    lengths, climb = [], timing.climb

    def ends(ladder: timing.Ladder, *more: Any) -> dict[str, Any]:
        lengths.append(len(ladder.rungs))
        return climb(dataclasses.replace(ladder, rungs=[ladder.rungs[0], ladder.rungs[-1]]), *more)

    monkeypatch.setattr(timing, "climb", ends)
    out = tmp_path / "out"
    report = command.main(["--reduced", "--model", "sd21_base", "--params", str(file), "--output", str(out)])
    assert report["weights"] == "random" and report["reduced"]
    assert lengths == [4, 6, 5, 6, 5, 5, 3]
    for task in report["tasks"]:
        counted = "Adapter" in task["task"] or "Images" in task["task"]
        assert all(("tflops" in row) == counted for row in task["rows"]), task["task"]
    assert "not how fast" in capsys.readouterr().out
    (written,) = out.iterdir()
    assert written.name.endswith("sd21-base-reduced.json")


def shorter(change: Any) -> Any:
    def changed(row: dict[str, Any]) -> None:
        change(row)
        row["generate"] |= {"steps": 2, "batch": 2}

    return changed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_size_runs_on_a_gpu(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "CAPTIONS", (10,))
    raw["models"]["sd21_base"]["generate"] |= {"steps": 2, "batch": 8}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    chosen = ["--quick", "--random-weights", "--model", "sd21_base", "--params", str(file), "--output", str(tmp_path)]
    report = command.main(chosen)
    rows = [row for task in report["tasks"] for row in task["rows"]]
    assert len(rows) == 5 + 7 + 6 + 7 + 7 + 6
    assert all(row["peak_gib"] > 0.3 for row in rows)
    assert all(0 < row["share_of_matmul"] < 1 for row in rows if "tflops" in row)


def test_a_quick_run_prints_and_keeps_ratios(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, every = tmp_path / "out", adapters.ladders
    monkeypatch.setattr(adapters, "ladders", lambda here: every(here)[:1])
    command.main(["--quick", "--only", "adapters", "--params", str(file), "--output", str(out)])
    (written,) = out.glob("*.json")
    report = json.loads(written.read_text())
    (task,) = report["tasks"]
    assert len(task["rows"]) == 4
    assert task["rows"][0]["times_plain"] == 1
    assert "| plain loop |" in capsys.readouterr().out


def test_mixed_batches_and_one_mix_at_a_time_draw_the_same_images(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["models"]["bundled"]["generate"] |= {"per_class": 2, "batch": 10, "steps": 2}
    here = scopes.make(raw, tmp_path, 3, quick=True)
    drawn = scopes.Images(here, "loft")
    mixed, alone = drawn.mixed(2), drawn.one_at_a_time(1000)
    assert mixed.keys() == alone.keys() and len(mixed) == 20
    assert max((mixed[key].int() - alone[key].int()).abs().max().item() for key in mixed) <= 1
    stock = drawn.stock(2)
    assert stock and max((mixed[key].int() - stock[key].int()).abs().max().item() for key in stock) <= 1
    ladder = scopes.trainings(here, "loft", drawn.base)
    assert [rung.lever for rung in ladder.rungs] == ["one training at a time", "30 trainings at once"]
    assert all(rung.seconds() > 0 for rung in ladder.rungs)


def test_what_a_large_set_costs_is_compared_with_the_smallest_of_its_classes() -> None:
    def cell(classes: int, images: int, ms: float, seconds: float) -> dict[str, Any]:
        stages = ("train", "evaluate", "deliver", "report", "gc", "dvc_add", "dvc_status")
        drawn = {"ms_per_image": ms, "cpu_ms_per_image": ms / 2, "peak_mb": 900.0 + images / 1000}
        each = {name: {"s": seconds, "peak_mb": 500.0} for name in stages}
        return {"classes": classes, "images": images, "generate": drawn} | each

    cells = [cell(10, 100_000, 5.2, 12.0), cell(10, 1000, 5.0, 2.1), cell(1000, 1000, 6.0, 3.0)]
    [row] = scale.ratios(cells)
    assert (row["classes"], row["images"], row["against"]) == (10, 100_000, 1000)
    assert (row["ms_per_image"], row["cpu_ms_per_image"], row["peak_mb"]) == (1.04, 1.04, 1.11)
    assert (row["train_s_per_1000"], row["train_mb_per_1000"]) == (0.1, 0.0)


def test_projects_are_compared_by_what_holds_no_seconds(tmp_path: Path) -> None:
    for name in ("one", "other"):
        for path in ("data/synthetic/a/0.png", "models/adapters/a/x.safetensors", "models/adapters/a/adapters.json"):
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(name if path.endswith("json") else "same")
        (tmp_path / name / "results").mkdir()
        (tmp_path / name / cluster.NUMBERS).write_text(f"accuracy,seconds_train\n0.5,{len(name)}\n")
    one, other = (cluster.made(tmp_path / name) for name in ("one", "other"))
    assert len(one) == 3 and cluster.differing(one, other) == []
    (tmp_path / "other/data/synthetic/a/0.png").write_text("another")
    (tmp_path / "other/models/adapters/a/x.safetensors").unlink()
    changed = cluster.made(tmp_path / "other")
    assert cluster.differing(one, changed) == ["data/synthetic/a/0.png", "models/adapters/a/x.safetensors"]


def test_the_front_keeps_what_earlier_commands_found() -> None:
    def one(data: str, seed: int, sampler: str, cas: float) -> dict[str, Any]:
        return {"data": data, "seed": seed, "sampler": sampler, "cas": cas, "fid": 1.0, "coverage": 0.5, "recall": 0.5}

    few = "student, 1 step"
    earlier = [one("digits", seed, sampler, 0.8) for seed in (1, 0) for sampler in (few, front.FIRST)]
    now = [one("digits", 1, few, 0.9), one("letters", 0, front.FIRST, 0.7)]
    cells = front.merged(earlier, now)
    assert [(cell["data"], cell["seed"], cell["sampler"]) for cell in cells] == [
        ("digits", 0, front.FIRST),
        ("digits", 0, few),
        ("digits", 1, front.FIRST),
        ("digits", 1, few),
        ("letters", 0, front.FIRST),
    ]
    first, second, letters = front.summarise(cells)
    assert (first["cas"], first["difference"], letters["seeds"]) == (0.8, None, 1)
    assert second["cas"] == 0.85 and second["difference"]["difference"] == 0.05
    assert "| letters |" in front.markdown([letters], [])


def test_ways_to_choose_are_compared_by_what_their_values_are_worth() -> None:
    record = {"own": 0, "chosen": {"highest": 3, "first": 3, "both": 0}, "worth": {"0": [0.8, 0.82], "3": [0.7, 0.72]}}
    better = record | {"chosen": {"highest": 5, "first": 0, "both": 0}, "worth": {"0": [0.8], "5": [0.85]}}
    highest, first, both = choices.summarise([record, better])
    assert (highest["left"], highest["worse"], highest["gain"], highest["worst"]) == (2, 1, -0.025, -0.1)
    assert (first["left"], first["worse"], both["left"], both["gain"]) == (1, 1, 0, 0.0)
    assert "| both looks | 2 | 0 | 0 | +0.0" in choices.markdown([both])
    # The study sees the first images of each class, and the others judge it.
    samples = tuple(Sample(f"{i}.png", i % 2, "", str(i)) for i in range(10))
    split = Split("toy", ("a", "b"), "{class}", (), 1, 0, samples, samples)
    seen, apart = choices.divided(split, 2)
    assert [sample.path for sample in seen] == [f"{i}.png" for i in range(4)] and len(apart) == 6
    # As many as other benchmarks set apart of the digits: `prepare` finds no more of other writers.
    usual = choices._parser().parse_args([])
    assert usual.seen + usual.scored == strength.DATA["digits"][0]


def test_trials_are_compared_with_those_of_the_earlier_commit() -> None:
    def turn(before: float, now: float, student: float) -> dict[str, dict[str, Any]]:
        seconds = {trials.BEFORE: before, trials.NOW: now, trials.STUDENT: student}
        return {
            kind: {"seconds_per_trial": value / 2, "seconds_per_complete_trial": value}
            for kind, value in seconds.items()
        }

    found = trials.summary([turn(12, 12, 4), turn(13, 10, 6), turn(11, 11, 5)])
    assert found[trials.BEFORE]["seconds_per_trial_times"] == 1
    assert found[trials.STUDENT]["seconds_per_complete_trial"] == 5
    assert found[trials.STUDENT]["seconds_per_complete_trial_times"] == 2.4
    assert found[trials.NOW]["seconds_per_trial_times"] == round(6 / 5.5, 2)


def test_images_saved_are_read_off_the_curve_of_plain_ones() -> None:
    def record(arm: str, seed: int, **cas: float) -> dict[str, Any]:
        scores = {name.removeprefix("n"): value for name, value in cas.items()}
        return {"arm": arm, "seed": seed, "cas": scores, "seconds": {"generate": 10.0 + seed, "train": 1.0}}

    plain = [record(saved.PLAIN, seed, n48=0.80, n100=0.82, n200=0.84) for seed in (0, 1)]
    found = saved.summarise([*plain, *(record(saved.FILTERED, seed, n48=0.81 + 0.04 * seed) for seed in (0, 1))])
    # 0.83 lies half-way between 100 and 200 images.
    assert (found["images_filtered"], found["equal"], found["seeds"]) == (48, 150, 2)
    assert found["difference"]["difference"] == 0.03 and found["seconds"][saved.PLAIN] == 10.5
    assert "| deliberate_practice | 83.0 |  |  |" in saved.markdown(found)
    never = saved.summarise([*plain, *(record(saved.FILTERED, seed, n48=0.9) for seed in (0, 1))])
    worse = saved.summarise([*plain, *(record(saved.FILTERED, seed, n48=0.7) for seed in (0, 1))])
    assert never["equal"] is None and worse["equal"] == 48
