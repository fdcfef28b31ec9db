"""The benchmarks compare like with like: both sides compute the same thing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks import __main__ as command
from benchmarks import adapters, classifiers, images, setting
from PIL import Image

from dreamset.classifiers import Predictor
from dreamset.generator import base_model
from dreamset.generator.training import Together

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
