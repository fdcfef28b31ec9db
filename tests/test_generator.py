"""The generator against stock diffusers: the same images, fused or not, alone or in a batch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import toy
from dreamset.core.errors import InputError
from dreamset.generator import base_model, lora, sampler
from dreamset.generator.base_model import BaseModel
from dreamset.params.knobs import Lora
from dreamset.params.model import Model, Sampler
from tiny import write_pipeline

SAMPLER = Sampler("dpmsolver++", 4, 2.0)
WIDE = Lora(rank=4, alpha=8.0, unet=True, text_encoder=True)  # alpha != rank, which diffusers loses without metadata


@pytest.fixture
def model(small: dict[str, Any]) -> Model:
    return toy.parse(small).base


@pytest.fixture
def base(small: dict[str, Any]) -> BaseModel:
    return toy.base(small)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@torch.no_grad()
def images(base: BaseModel, prompts: list[str], kind: Sampler = SAMPLER) -> torch.Tensor:
    return sampler.draw(base, kind, base.encode(prompts), base.encode([""] * len(prompts)), generators(len(prompts)))


def shaken(base: BaseModel, spec: Lora, names: tuple[str, ...], amount: float = 0.2) -> lora.Adapters:
    """Adapters as after training: B is not zero any more."""
    adapters = lora.attach(base, spec, {name: index for index, name in enumerate(names)})
    for index, name in enumerate(names):
        random = torch.Generator().manual_seed(index)
        for parameter in adapters.parameters(name).values():
            parameter.data.add_(amount * torch.randn(parameter.shape, generator=random))
    return adapters


def stock(folder: str, kind: Sampler, prompt: str, adapter: Path | None = None, scale: float = 1.0) -> torch.Tensor:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, sampler.SCHEDULERS[kind.scheduler]).from_config(pipeline.scheduler.config)
    if adapter:
        pipeline.load_lora_weights(adapter, adapter_name="ours")
        pipeline.set_adapters(["ours"], adapter_weights=[scale])
    random = torch.Generator().manual_seed(0)
    latents = torch.randn((1, 4, 8, 8), generator=random)
    drawn = pipeline(
        prompt,
        latents=latents,
        generator=random,
        num_inference_steps=kind.steps,
        guidance_scale=kind.guidance,
        height=16,
        width=16,
        output_type="pt",
    )
    result: torch.Tensor = drawn.images
    return result


@pytest.mark.parametrize("name", sorted(sampler.SCHEDULERS))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_sampler_draws_what_the_stock_pipeline_draws(
    tmp_path: Path, model: Model, name: str, prediction: str
) -> None:
    folder = write_pipeline(tmp_path / "sd", prediction_type=prediction)
    base = base_model.load(folder, model, torch.device("cpu"))
    kind = Sampler(name, 4, 3.0)  # type: ignore[arg-type]
    ours = (images(base, ["a photo of three"], kind).clamp(-1, 1) + 1) / 2
    assert (ours - stock(str(folder), kind, "a photo of three")).abs().max() < 1e-5


def test_a_stock_pipeline_loads_our_adapter_and_draws_the_same(base: BaseModel, model: Model, tmp_path: Path) -> None:
    before = images(base, ["three"])
    adapters = shaken(base, WIDE, ("one",))
    unfused = images(base, ["three"])
    adapters.save("one", tmp_path)
    lora.detach(adapters)
    assert torch.equal(images(base, ["three"]), before)
    with lora.fused(base, tmp_path / lora.WEIGHTS):
        fused = images(base, ["three"])
    assert torch.equal(images(base, ["three"]), before)
    assert (unfused - before).abs().max() > 0.05
    assert (fused - unfused).abs().max() < 1e-5
    theirs = stock(model.generator, SAMPLER, "three", tmp_path)
    assert ((fused.clamp(-1, 1) + 1) / 2 - theirs).abs().max() < 1e-5
    with lora.fused(base, tmp_path / lora.WEIGHTS, 0.3):
        weaker = images(base, ["three"])
    theirs = stock(model.generator, SAMPLER, "three", tmp_path, 0.3)
    assert ((weaker.clamp(-1, 1) + 1) / 2 - theirs).abs().max() < 1e-5
    assert (weaker - fused).abs().max() > 0.01 < (weaker - before).abs().max()


@pytest.mark.parametrize(("unet", "text"), [(True, False), (False, True)])
def test_either_model_can_be_left_as_it_is(base: BaseModel, tmp_path: Path, unet: bool, text: bool) -> None:
    adapters = shaken(base, Lora(4, 4.0, unet, text), ("one",))
    adapters.save("one", tmp_path)
    prefixes = {key.split(".")[0] for key in load_file(tmp_path / lora.WEIGHTS)}
    assert prefixes == ({"unet"} if unet else {"text_encoder"})


def test_adapters_together_are_each_as_alone(base: BaseModel, tmp_path: Path) -> None:
    adapters = shaken(base, WIDE, ("one", "two", "three"))
    with torch.no_grad():
        prompts, empty = (base.encode_each(texts) for texts in (["a", "b", "c"], [""] * 3))
        together = sampler.draw(base, SAMPLER, prompts, empty, generators(3))
    for name in adapters.names:
        adapters.save(name, tmp_path / name)
    lora.detach(adapters)
    for index, (name, prompt) in enumerate(zip(adapters.names, "abc", strict=True)):
        with lora.fused(base, tmp_path / name / lora.WEIGHTS), torch.no_grad():
            alone = sampler.draw(
                base, SAMPLER, base.encode([prompt]), base.encode([""]), [torch.Generator().manual_seed(index)]
            )
        assert (alone - together[index : index + 1]).abs().max() < 1e-5


def test_the_wrapped_layers_are_the_attention_projections(base: BaseModel) -> None:
    adapters = lora.attach(base, WIDE, {"one": 0})
    names = {key.removesuffix(".lora_A.weight") for key in adapters.parameters("one") if key.endswith("lora_A.weight")}
    # 4 transformer blocks' worth of U-Net attention pairs, 2 text layers, 4 projections each.
    assert sum(name.startswith("unet.") for name in names) == sum(
        name.endswith(("to_q", "to_k", "to_v")) or name.endswith("to_out.0")
        for name, module in base.unet.named_modules()
        if hasattr(module, "base_layer")
    )
    assert sum(name.startswith("text_encoder.") for name in names) == 2 * 4
    assert not any("ff" in name or "conv" in name for name in names)
    down = [value for key, value in adapters.parameters("one").items() if "lora_A" in key]
    up = [value for key, value in adapters.parameters("one").items() if "lora_B" in key]
    assert all(value.dtype == torch.float32 and value.requires_grad for value in down + up)
    assert all((value == 0).all() for value in up)
    spread = torch.cat([value.detach().flatten() for value in down]).std()
    assert spread == pytest.approx(1 / WIDE.rank, rel=0.05)


def test_an_image_does_not_depend_on_its_batch(base: BaseModel) -> None:
    seeds = [5, 6, 7, 8]
    with torch.no_grad():
        prompts, empty = base.encode(["a", "b", "c", "d"]), base.encode([""] * 4)
    whole = sampler.to_uint8(sampler.draw_fitting(base, SAMPLER, prompts, empty, seeds)).int()
    for i, seed in enumerate(seeds):
        one = sampler.draw_fitting(base, SAMPLER, prompts.rows([i]), empty.rows([i]), [seed])
        assert (sampler.to_uint8(one).int() - whole[i]).abs().max() <= 1


def test_out_of_memory_halves_the_batch(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    draw = sampler.draw

    def hungry(*args: object) -> torch.Tensor:
        sizes.append(len(args[4]))  # type: ignore[arg-type]
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return draw(*args)  # type: ignore[arg-type]

    with torch.no_grad():
        prompts, empty = base.encode(["a"] * 5), base.encode([""] * 5)
    whole = sampler.to_uint8(sampler.draw_fitting(base, SAMPLER, prompts, empty, [1, 2, 3, 4, 5])).int()
    monkeypatch.setattr(sampler, "draw", hungry)
    halved = sampler.to_uint8(sampler.draw_fitting(base, SAMPLER, prompts, empty, [1, 2, 3, 4, 5])).int()
    assert sizes == [5, 2, 3, 1, 2]
    assert (whole - halved).abs().max() <= 1


def test_degenerate_images_are_seen() -> None:
    fine = torch.rand(3, 16, 16) * 2 - 1
    black, grey, broken = torch.full((3, 16, 16), -1.0), torch.full((3, 16, 16), 0.01), fine.clone()
    broken[0, 0, 0] = float("nan")
    found = sampler.degenerate(torch.stack([fine, black, grey, broken]))
    assert found.tolist() == [False, True, True, True]


def test_each_distinct_prompt_is_encoded_once(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    encoder = base.parts["text_encoder"]
    monkeypatch.setattr(encoder, "forward", _counted(encoder.forward, rows))
    with torch.no_grad():
        hidden = base.encode(["a", "b", "a", "a"]).hidden
    assert rows == [2]
    assert torch.equal(hidden[0], hidden[2])


def _counted(forward, rows):  # type: ignore[no-untyped-def]
    def inner(ids, *args, **kwargs):  # type: ignore[no-untyped-def]
        rows.append(len(ids))
        return forward(ids, *args, **kwargs)

    return inner


def test_a_damaged_adapter_is_refused(base: BaseModel, tmp_path: Path) -> None:
    adapters = shaken(base, WIDE, ("one",))
    adapters.save("one", tmp_path)
    lora.detach(adapters)
    path = tmp_path / lora.WEIGHTS
    state = load_file(path)
    key = next(key for key in state if key.endswith("lora_B.weight"))

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words), lora.fused(base, path):
            pass

    save_file(state | {key: torch.full_like(state[key], float("nan"))}, path)
    refused("NaN")
    save_file(state | {key: state[key][:, :2].contiguous()}, path)
    refused("do not fit")
    pair = {side: state[key.replace("lora_B", f"lora_{side}")].clone() for side in "AB"}
    save_file(state | {f"unet.nowhere.lora_{side}.weight": pair[side] for side in "AB"}, path)
    refused("does not have")
    path.write_bytes(path.read_bytes()[:100])
    refused("not a complete LoRA file")


def test_another_kind_of_model_is_refused(tmp_path: Path, model: Model) -> None:
    with pytest.raises(InputError, match=r"no diffusers folder"):
        base_model.load(tmp_path, model, torch.device("cpu"))
    folder = write_pipeline(tmp_path / "sd", prediction_type="sample")
    with pytest.raises(InputError, match="predicts sample"):
        base_model.load(folder, model, torch.device("cpu"))


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, model: Model, part: str) -> None:
    folder = write_pipeline(tmp_path / "sd")
    base_model.load(folder, model, torch.device("cpu"))
    path = folder / f"{part}.safetensors"
    state = load_file(path)
    key = next(key for key, value in state.items() if value.is_floating_point())
    save_file(state | {key: torch.full_like(state[key], float("inf"))}, path, {"format": "pt"})
    with pytest.raises(InputError, match=rf"sd/{path.parent.name}: {key} holds NaN or infinite weights; fetch or copy"):
        base_model.load(folder, model, torch.device("cpu"))


# Half precision. A weight of a full-size base is about 0.03, which bfloat16 tells from the next one by 0.0001.


@pytest.fixture
def half(model: Model) -> BaseModel:
    return base_model.load(Path(model.generator), dataclasses.replace(model, dtype="bfloat16"), torch.device("cpu"))


def learned(before: BaseModel, name: str, rows: torch.Tensor) -> torch.Tensor:
    """The weight that a layer has by its outputs, (in, out) float64, by least squares over many inputs."""
    out = before.unet.get_submodule(name)(rows.bfloat16())
    return torch.linalg.lstsq(rows.bfloat16().double(), out.double()).solution


@pytest.mark.parametrize("size", [1e-3, 3e-3])
@torch.no_grad()
def test_a_weak_adapter_is_not_rounded_away_in_half_precision(half: BaseModel, tmp_path: Path, size: float) -> None:
    name, random = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    layer = half.unet.get_submodule(name)
    layer.weight.copy_(0.03 * torch.randn(layer.weight.shape, generator=random))
    adapters = lora.attach(half, Lora(16, 16.0, unet=True, text_encoder=False), {"one": 0})
    for key, value in adapters.parameters("one").items():
        if "lora_B" in key:
            value.copy_(size * torch.randn(value.shape, generator=random))
    down, up = (adapters.parameters("one")[f"unet.{name}.lora_{side}.weight"].clone() for side in "AB")
    adapters.save("one", tmp_path)
    adapters.detach()
    rows = torch.randn((40_000, layer.in_features), generator=random)
    before = learned(half, name, rows)
    with lora.fused(half, tmp_path / lora.WEIGHTS, 0.25):
        moved = learned(half, name, rows) - before
    wanted = 0.25 * (up @ down).T.double()
    assert (moved - wanted).norm() / wanted.norm() < 0.1
    rounded = (layer.weight.float() + wanted.T.float()).bfloat16() - layer.weight
    assert (rounded.T.double() - wanted).norm() / wanted.norm() > 0.15  # what merging makes of it
    assert torch.equal(learned(half, name, rows), before)


def test_an_adapter_is_drawn_in_half_precision_as_it_was_trained(half: BaseModel, tmp_path: Path) -> None:
    before = images(half, ["three"])
    adapters = shaken(half, WIDE, ("one",))
    trained = images(half, ["three"])
    adapters.save("one", tmp_path)
    adapters.detach()
    with lora.fused(half, tmp_path / lora.WEIGHTS):
        drawn = images(half, ["three"])
    assert (drawn - trained).abs().mean() < 0.2 * (trained - before).abs().mean()
    assert torch.equal(images(half, ["three"]), before)


# Few steps


def without_a_word(folder: Path) -> Path:
    """The same base, its scheduler's file silent on PNDM's first steps."""
    file = folder / "scheduler/scheduler_config.json"
    facts = json.loads(file.read_text())
    del facts["skip_prk_steps"]
    file.write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_pndm_skips_runge_kutta_whatever_the_base_says(
    tmp_path: Path, model: Model, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, told = Sampler("pndm", steps, 1.0), write_pipeline(tmp_path / "told")
    silent = base_model.load(without_a_word(write_pipeline(tmp_path / "sd")), model, torch.device("cpu"))
    calls: list[float] = []
    predict = BaseModel.predict

    def counted(self: BaseModel, latents: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        calls.append(float(t))
        return predict(self, latents, t, condition)

    monkeypatch.setattr(BaseModel, "predict", counted)
    ours = (images(silent, ["three"], kind).clamp(-1, 1) + 1) / 2
    assert len(calls) == steps + 1
    assert (ours - stock(str(told), kind, "three")).abs().max() < 1e-5
    # From a shot: the last half of 20 steps, the first of them taken in two.
    del calls[:]
    with torch.no_grad():
        told_of, empty = silent.encode(["three"]), silent.encode([""])
    begun = torch.zeros(1, *silent.latent_shape)
    sampler.draw(silent, Sampler("pndm", 20, 1.0, 0.5), told_of, empty, generators(1), begun)
    assert (len(calls), calls[0]) == (11, 451)


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "pndm"])
def test_a_first_timestep_without_noise_is_refused(base: BaseModel, name: Any) -> None:
    with pytest.raises(InputError, match=r"^x\.steps: .* begins at timestep 1 of this base.*; raise steps\.$"):
        sampler.check_first_step(base.schedule, Sampler(name, 1, 2.0), "x.steps")
    # A base that was distilled to one step spaces its timesteps from the noisiest.
    sampler.check_first_step(base.schedule | {"timestep_spacing": "trailing"}, Sampler(name, 1, 2.0), "x.steps")
    sampler.check_first_step(base.schedule, Sampler(name, 2, 2.0), "x.steps")
    assert "begins at timestep 501" in sampler.late_start_words(base.schedule, Sampler(name, 2, 2.0), "x.steps")
    assert sampler.late_start_words(base.schedule, Sampler(name, 5, 2.0), "x.steps") == ""
