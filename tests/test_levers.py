"""Levers of speed that change no image: the order of feature maps in memory, the compiled U-Net."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import read_metadata
from dreamset.data.work import Work
from dreamset.drawing.blocks import plan
from dreamset.generator import base_model, lora, sampler
from dreamset.params.knobs import Lora
from dreamset.params.model import Sampler
from test_generator import images, shaken

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KIND = Sampler("dpmsolver++", 3, 2.0)


def loaded(folder: Path, raw: dict[str, Any], device: str = "cpu") -> base_model.BaseModel:
    return base_model.load(folder, toy.parse(raw).base, torch.device(device))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compilation that stops before it makes machine code, which takes a minute; the batch sizes that were compiled."""
    from torch._dynamo.backends.debugging import aot_eager

    sizes: list[int] = []

    def backend(graph: Any, inputs: Any, **more: Any) -> Any:
        sizes.append(max(x.shape[0] for x in inputs if isinstance(x, torch.Tensor) and x.shape[1:] == (4, 8, 8)))
        return aot_eager(graph, inputs, **more)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return sizes


def test_channels_last_changes_no_image(tiny_generator: Path, raw: dict[str, Any]) -> None:
    base = loaded(tiny_generator, raw)
    assert base.unet.conv_in.weight.is_contiguous()
    plain = images(base, ["a", "b"], KIND)
    base_model.lay_out(base, torch.channels_last)
    assert base.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert base.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (images(base, ["a", "b"], KIND) - plain).abs().max() < 1e-5


# In half precision the adapter is no change of weights, so that it is compiled once.
@pytest.mark.parametrize(("dtype", "near", "compiled"), [("float32", 1e-5, [4]), ("bfloat16", 0.05, [4, 4])])
def test_the_compiled_unet_follows_adapters_that_change_in_place(
    tiny_generator: Path, raw: dict[str, Any], tmp_path: Path, traced: list[int], dtype: str, near: float, compiled: Any
) -> None:
    raw["models"]["bundled"]["dtype"] = dtype
    base = loaded(tiny_generator, raw)
    adapters = shaken(base, Lora(2, 4.0, unet=True, text_encoder=True), ("one",), amount=0.1)
    adapters.save("one", tmp_path)
    lora.detach(adapters)

    def both() -> list[torch.Tensor]:
        plain = images(base, ["a", "b"], KIND)
        with lora.fused(base, tmp_path / lora.WEIGHTS):
            return [plain, images(base, ["a", "b"], KIND)]

    expected = both()
    base_model.compile_unet(base)
    for mine, other in zip(both(), expected, strict=True):
        assert (mine - other).abs().max() < near
    assert (expected[0] - expected[1]).abs().max() > 2 * near
    # Another adapter of the same shapes compiles nothing more, and neither does its strength.
    with lora.fused(base, tmp_path / lora.WEIGHTS, 0.5):
        weaker = images(base, ["a", "b"], KIND)
    assert min((weaker - other).abs().max() for other in expected) > near
    # With guidance the U-Net sees every image twice; three steps and another adapter compile nothing more.
    assert traced == compiled


def test_adapters_train_in_the_order_that_a_gpu_convolves_in(
    small: dict[str, Any], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["models"]["bundled"]["adapt"]["dataset"]["max_steps"] = 6
    params, load = toy.parse(small), base_model.load
    losses = []
    for layout in (torch.contiguous_format, torch.channels_last):

        def in_order(*given: Any, layout: torch.memory_format = layout) -> base_model.BaseModel:
            base = load(*given)
            base_model.lay_out(base, layout)
            return base

        monkeypatch.setattr(base_model, "load", in_order)
        place = Workspace(tmp_path / str(layout), tmp_path / str(layout))
        toy.prepare(params, place)
        adapt.run(params, place, "datadream_dset")
        (record,) = place.shards.glob("*/adapter.json")
        losses.append(json.loads(record.read_text())["losses"])
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_whole_blocks_are_compiled_and_redraws_are_not(
    small: dict[str, Any], workspace: Workspace, traced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = iter([torch.tensor([True] + [False] * 19)])
    monkeypatch.setattr(sampler, "degenerate", lambda drawn: next(first, torch.zeros(len(drawn), dtype=torch.bool)))
    monkeypatch.setitem(small["generate"], "max_redrawn_share", 1.0)
    plain = toy.parse(small)
    small["models"]["bundled"]["generate"]["compile"] = True
    params = toy.parse(small)
    toy.prepare(params, workspace)
    adapt.run(params, workspace, "stable_diffusion")
    generate.run(params, workspace, "stable_diffusion")
    assert sum(image.redraws for image in read_metadata(workspace.synthetic("stable_diffusion"))) == 1
    assert traced == [40]
    works = [Work.read(p, workspace, "stable_diffusion") for p in (plain, params)]
    keys = [{block.key for block in plan(work, [])} for work in works]
    assert not keys[0] & keys[1]


def test_a_missing_compiler_is_one_sentence(
    tiny_generator: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"generate\.compile: needs the C\+\+ compiler no-such-compiler"):
        base_model.compile_unet(loaded(tiny_generator, raw))


@pytest.mark.gpu
@CUDA
def test_a_gpu_draws_compiled_and_channels_last_as_it_does_plainly(tiny_generator: Path, raw: dict[str, Any]) -> None:
    base = loaded(tiny_generator, raw, "cuda")
    assert base.layout is torch.contiguous_format
    plain = images(base, ["a", "b"], KIND)
    base_model.compile_unet(base)
    assert base.layout is torch.channels_last
    compiled = images(base, ["a", "b"], KIND)
    base.compiled = None
    last = images(base, ["a", "b"], KIND)
    assert (last - plain).abs().max() < 0.02
    assert (compiled - plain).abs().max() < 0.02
