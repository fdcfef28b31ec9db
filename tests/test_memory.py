"""The estimate of GPU memory: the same count on tensors without content as on real ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.published import SD21_TEXT, SD21_UNET, SD21_VAE
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

import toy
from dreamset.command import cli
from dreamset.core.workspace import Workspace
from dreamset.generator import base_model, lora, memory
from dreamset.params.knobs import Lora
from dreamset.params.model import Model
from tiny import write_pipeline, write_xl_pipeline

SPEC = Lora(4, 4.0, unet=True, text_encoder=True)


def model(raw: dict[str, Any], **changes: Any) -> Model:
    raw["models"]["bundled"] |= changes
    return toy.parse(raw).base


@pytest.mark.parametrize("write", [write_pipeline, write_xl_pipeline])
@pytest.mark.parametrize("saved", [[], ["gradient_checkpointing"]])
def test_the_count_is_that_of_a_real_step(raw: dict[str, Any], tmp_path: Path, write: Any, saved: list[str]) -> None:
    row = model(raw, memory=saved)
    folder = write(tmp_path / "sd")
    expected = memory.of_adapting(memory.on_meta(folder, row), SPEC, batch=8, together=2, offload=False)
    base = base_model.load(folder, row, torch.device("cpu"))
    adapters = lora.attach(base, SPEC, {"one": 1, "two": 2})
    trained = sum(p.numel() for p in adapters.tensors)
    assert expected["trained"] == trained * memory.TRAINED_BYTES
    assert expected["weights"] == sum(base_model.parameters(part) * 4 for part in base.parts.values()) - 4 * trained
    with memory.Peak() as peak:
        for part in base.parts.values():
            for tensor in (*part.parameters(), *part.buffers()):
                peak.ignore(tensor)
        condition = base.encode_each(["a", "b"]).rows([i % 2 for i in range(16)])
        latents = torch.randn(16, *base.latent_shape)
        base.predict(latents, torch.full((16,), 500), condition).float().square().mean().backward()
    assert expected["step"] == pytest.approx(peak.peak - 4 * trained, rel=0.05)


def test_checkpointing_and_slicing_take_less(raw: dict[str, Any], tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "sd")
    plain, thrifty = (
        memory.on_meta(folder, model(raw, memory=saved)) for saved in ([], ["gradient_checkpointing", "vae_slicing"])
    )
    steps = [memory.of_adapting(base, SPEC, 16, 1, offload=False)["step"] for base in (plain, thrifty)]
    assert steps[1] < 0.7 * steps[0]
    parts = [memory.of_drawing(plain, 1, guided=True, offload=offload)["weights"] for offload in (False, True)]
    assert parts[1] < parts[0]


def write_configurations(folder: Path) -> Path:
    """Stable Diffusion 2.1-base without its weights."""
    with torch.device("meta"):
        UNet2DConditionModel(**SD21_UNET).save_config(folder / "unet")
        AutoencoderKL(**SD21_VAE).save_config(folder / "vae")
    CLIPTextConfig(**SD21_TEXT).save_pretrained(folder / "text_encoder")
    return folder


def test_full_size_is_counted_in_seconds(raw: dict[str, Any], tmp_path: Path) -> None:
    row = toy.parse(raw).models["sd21_base"]
    base = memory.on_meta(write_configurations(tmp_path), row)
    found = memory.of_adapting(base, Lora(16, 16.0, unet=True, text_encoder=True), 8, 1, offload=False)
    # U-Net 866 M, text encoder 340 M, autoencoder 84 M, two bytes each.
    assert found["weights"] == pytest.approx(2.58e9, rel=0.01)
    assert found["trained"] == 20 * 6_334_464
    # Eight images of 512 pixels do not fit a card of 8 GB, and fit one of 16.
    assert 8e9 < found["total"] < 16e9
    assert "vae_slicing" in row.memory
    sliced = memory.of_drawing(base, 32, guided=True, offload=False)
    base.vae.disable_slicing()
    assert sliced["step"] < 0.5 * memory.of_drawing(base, 32, guided=True, offload=False)["step"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("saved", [(), ("gradient_checkpointing",)])
def test_the_estimate_holds_on_a_gpu(raw: dict[str, Any], tmp_path: Path, saved: tuple[str, ...]) -> None:
    raw["models"]["sd21_base"]["memory"] = list(saved)
    row = toy.parse(raw).models["sd21_base"]
    spec = Lora(16, 16.0, unet=True, text_encoder=True)
    meta = memory.on_meta(write_configurations(tmp_path), row)
    expected = memory.of_adapting(meta, spec, 8, 1, offload=False)
    base = base_model.BaseModel(
        {name: part.to_empty(device="cuda") for name, part in meta.parts.items()},
        (),
        {},
        512,
        torch.device("cuda"),
        meta.dtype,
    )
    for part in base.parts.values():
        for tensor in (*part.parameters(), *part.buffers()):
            torch.nn.init.zeros_(tensor)
    adapters = lora.attach(base, spec, {"one": 0})
    optimizer = torch.optim.AdamW(adapters.tensors, lr=1e-4)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        condition = base.embed(torch.zeros((1, 1, 77), dtype=torch.int64, device="cuda")).rows([0] * 8)
        latents = torch.randn((8, *base.latent_shape), device="cuda")
        base.predict(latents, torch.full((8,), 500, device="cuda"), condition).float().square().mean().backward()
        optimizer.step()
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected["total"], rel=0.25)


def test_the_dry_run_prints_it(
    small: dict[str, Any], workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    (workspace.cell / "params.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    monkeypatch.chdir(workspace.cell)
    shown = {}
    for words in (["adapt", "datadream_cls"], ["generate", "stable_diffusion"], ["adapt", "stable_diffusion"]):
        cli.main([*words, "--dry-run"])
        shown[" ".join(words)] = yaml.safe_load(capsys.readouterr().out)["memory on a GPU"]
    assert "10 adapters at once, 4 images each" in shown["adapt datadream_cls"]
    assert "20 images at once" in shown["generate stable_diffusion"]
    assert shown["adapt stable_diffusion"] == "none: nothing is trained"
    small["models"]["bundled"]["generator"] = "hub:nobody/nothing"
    (workspace.cell / "params.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    # The plan stands there, and then why the stage would refuse to run.
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", "stable_diffusion", "--dry-run"])
    shown = capsys.readouterr()
    assert "dreamset fetch" in yaml.safe_load(shown.out)["memory on a GPU"]
    assert shown.err.startswith("dreamset: nobody/nothing is missing or incomplete in the hub's cache")
