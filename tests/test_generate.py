"""Synthetic datasets: resumable to the byte, on common noise, readable by everyone, and checked."""

import copy
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import toy
from dreamset import adapt, generate
from dreamset.core import xmp
from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.seeds import image_seed
from dreamset.core.workspace import Workspace
from dreamset.data import licences
from dreamset.data.adapters import Adapter
from dreamset.data.synthetic import read_metadata
from dreamset.data.work import Work
from dreamset.drawing import blocks
from dreamset.drawing.blocks import plan
from dreamset.generator import sampler
from dreamset.params import Params
from dreamset.weights import hub


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(params: Params, workspace: Workspace, recipe: str = "stable_diffusion") -> Path:
    toy.prepare(params, workspace)
    adapt.run(params, workspace, recipe)
    generate.run(params, workspace, recipe)
    return workspace.synthetic(recipe)


@pytest.fixture(scope="module")
def drawn(tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Workspace]:
    """Images of the base alone; nobody changes them."""
    params = toy.parse(toy.shrunk(toy.found_raw(), tiny_generator))
    workspace = Workspace.at(tmp_path_factory.mktemp("drawn"))
    made(params, workspace)
    return params, workspace


def test_noise_is_a_function_of_seed_class_and_index() -> None:
    assert image_seed(0, "three", 5) == image_seed(0, "three", 5)
    seeds = {image_seed(s, c, k) for s in range(3) for c in ("a", "b", "1", "a1") for k in range(20)}
    assert len(seeds) == 3 * 4 * 20
    assert image_seed(0, "three", 5, attempt=1) not in seeds
    assert min(seeds) >= 0 and max(seeds) < 2**63


def test_recipes_are_compared_on_common_noise(prepared: tuple[Params, Workspace]) -> None:
    params, workspace = prepared
    found = []
    for recipe in [name for name in params.active if params.recipes[name].search is None][:3]:
        adapt.run(params, workspace, recipe)
        generate.run(params, workspace, recipe)
        found.append([(i.label, i.index, i.seed) for i in read_metadata(workspace.synthetic(recipe))])
    assert found[0] == found[1] == found[2]


def test_growing_draws_only_the_new_images(small: dict[str, Any], workspace: Workspace, tmp_path: Path) -> None:
    small["generate"]["per_class"] = 3
    before = content(made(toy.parse(small), workspace))
    small["generate"]["per_class"] = 7
    params = toy.parse(small)
    summary = generate.run(params, workspace, "stable_diffusion")
    # Blocks of two per class: 0-1 are there. The block of 2 had ended there, so that 2-6 are drawn.
    assert summary["drawn_now"] == 50
    after = content(workspace.synthetic("stable_diffusion"))
    assert {name: data for name, data in after.items() if name in before and name.endswith(".png")} == {
        name: data for name, data in before.items() if name.endswith(".png")
    }
    assert len([name for name in after if name.endswith(".png")]) == 70
    fresh = content(made(params, Workspace.at(tmp_path / "fresh")))
    assert fresh == after


def scaled(raw: dict[str, Any], workspace: Workspace, scope: str) -> Workspace:
    """A recipe whose images are drawn with the adapter of ``datadream`` at two scales in turn."""
    raw["recipes"]["weaker"] = raw["recipes"][f"datadream_{scope}"] | {"adapter_scales": [0.0, 1.0]}
    raw["active"] = ["stable_diffusion", f"datadream_{scope}", "weaker"]
    raw["models"]["bundled"]["generate"]["batch"] = 10
    params = toy.parse(raw)
    for recipe in params.active:
        made(params, workspace, recipe)
    return workspace


@pytest.fixture(scope="module")
def in_turn(tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Images at two scales in turn of an adapter of all classes; nobody changes them."""
    return scaled(toy.shrunk(toy.found_raw(), tiny_generator), Workspace.at(tmp_path_factory.mktemp("turns")), "dset")


def assert_scales_take_turns(workspace: Workspace, scope: str) -> None:
    rows = read_metadata(workspace.synthetic("weaker"))
    assert [(row.label, row.index) for row in rows] == [(label, index) for label in range(10) for index in range(4)]
    assert {(row.index, row.adapter_scale, row.adapter is None) for row in rows} == {
        (0, None, True),
        (1, 1.0, False),
        (2, None, True),
        (3, 1.0, False),
    }
    for row in rows:
        others = [workspace.synthetic(name) / row.file_name for name in ("stable_diffusion", f"datadream_{scope}")]
        mine, plain, adapted = (
            torch.tensor(np.asarray(read_rgb(path))).int()
            for path in (workspace.synthetic("weaker") / row.file_name, *others)
        )
        same, other = (plain, adapted) if row.adapter is None else (adapted, plain)
        # Drawn beside other images, and from the same noise.
        assert (mine - same).abs().max() <= 1
        assert (mine - other).abs().max() > 1
    card = (workspace.synthetic("weaker") / "README.md").read_text()
    assert "used at 0, 1 times its strength in turn" in card


def test_scales_of_an_adapter_take_turns(in_turn: Workspace) -> None:
    assert_scales_take_turns(in_turn, "dset")


def test_scales_of_an_adapter_of_each_class_take_turns(small: dict[str, Any], workspace: Workspace) -> None:
    assert_scales_take_turns(scaled(small, workspace, "cls"), "cls")


def test_what_the_base_draws_alone_is_drawn_once(in_turn: Workspace) -> None:
    plain, weaker = (
        json.loads((in_turn.synthetic(recipe) / "shards.json").read_text()) for recipe in ("stable_diffusion", "weaker")
    )
    assert weaker[:2] == plain[::2] and len(plain) == len(weaker) == 4


def test_more_images_keep_the_scales_of_the_first(
    small: dict[str, Any], in_turn: Workspace, workspace: Workspace
) -> None:
    before = read_metadata(in_turn.synthetic("weaker"))
    shutil.copytree(in_turn.root, workspace.root, dirs_exist_ok=True)
    small["recipes"]["weaker"] = small["recipes"]["datadream_dset"] | {"adapter_scales": [0.0, 1.0]}
    small["active"] = ["stable_diffusion", "datadream_dset", "weaker"]
    small["models"]["bundled"]["generate"]["batch"] = 10
    small["generate"]["per_class"] = 9
    params = toy.parse(small)
    summary = generate.run(params, workspace, "weaker")
    assert summary["images"] == 90 and 0 < summary["drawn_now"] < 90
    after = {(row.label, row.index): row for row in read_metadata(workspace.synthetic("weaker"))}
    assert all(after[row.label, row.index] == row for row in before)
    assert all((row.adapter is None) == (row.index % 2 == 0) for row in after.values())


@pytest.mark.parametrize("recipe", ["datadream_dset", "datadream_cls"])
def test_a_batch_mixes_classes_where_one_adapter_serves_them(prepared: tuple[Params, Workspace], recipe: str) -> None:
    params, workspace = prepared
    adapt.run(params, workspace, recipe)
    generate.run(params, workspace, recipe)
    keys = json.loads((workspace.synthetic(recipe) / "shards.json").read_text())
    labels = [{image.label for image in read_metadata(workspace.shards / key)} for key in keys]
    assert labels == ([set(range(10))] * 2 if recipe == "datadream_dset" else [{label} for label in range(10)])


def test_the_dataset_opens_in_stock_readers(drawn: tuple[Params, Workspace]) -> None:
    from torchvision.datasets import ImageFolder

    params, workspace = drawn
    folder = workspace.synthetic("stable_diffusion")
    found = ImageFolder(str(folder))
    rows = read_metadata(folder)
    assert found.classes[3] == "003_three"
    assert [label for _, label in found.samples] == [row.label for row in rows]
    assert [Path(path).relative_to(folder).as_posix() for path, _ in found.samples] == [row.file_name for row in rows]
    with Image.open(folder / rows[0].file_name) as image:
        assert image.size == (16, 16)
        assert image.text["DigitalSourceType"] == "trainedAlgorithmicMedia"  # type: ignore[attr-defined]
    card = (folder / "README.md").read_text()
    assert "all synthetic" in card and "license: apache-2.0" in card
    assert "(https://www.apache.org/licenses/LICENSE-2.0)" in card
    assert params.base.generator not in card  # an absolute path


def test_every_picture_says_that_it_is_synthetic(drawn: tuple[Params, Workspace]) -> None:
    params, workspace = drawn
    folder = workspace.synthetic("stable_diffusion")
    weights = hub.identity(workspace.root, *params.base.pretrained)
    extension = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
    for row in read_metadata(folder):
        with Image.open(folder / row.file_name) as image:
            chunk = image.text["XML:com.adobe.xmp"]  # type: ignore[attr-defined]
        root = ElementTree.fromstring(chunk)
        description = root.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        assert description is not None
        facts = {name.removeprefix(extension): value for name, value in description.attrib.items()}
        assert facts["DigitalSourceType"] == ("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
        assert facts["AISystemUsed"] == Path(params.base.generator).name
        assert facts["AISystemVersionUsed"] == f"sha256:{weights['sha256']}"
        assert facts["AIPromptInformation"] == f"{row.prompt} (seed {row.seed})"


@pytest.mark.parametrize("prompt", ['a "cat" & <dog>', "a bell \x07", "ein Ölfleck \U0001f41e", "]]> --"])
def test_any_prompt_makes_whole_xml(prompt: str) -> None:
    packet = xmp.packet("model", "0" * 64, prompt, 3, "dreamset")
    root = ElementTree.fromstring(packet.encode())
    told = root.find(".//{*}Description").attrib  # type: ignore[union-attr]
    said = told["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}AIPromptInformation"]
    assert said == f"{prompt} (seed 3)".replace("\x07", "\ufffd")


def test_a_base_for_non_commercial_use_waits_for_its_licence(small: dict[str, Any], workspace: Workspace) -> None:
    small["models"]["bundled"]["licence"] = "sai-nc-community"
    params = toy.parse(small)
    toy.prepare(params, workspace)
    for stage in (adapt.run, generate.run):
        with pytest.raises(InputError, match=r"sai-nc-community allows no commercial use .* accept_licence: true"):
            stage(params, workspace, "datadream_dset")
    assert not workspace.adapter("datadream_dset").exists()
    params = toy.parse(small | {"accept_licence": True})
    adapt.run(params, workspace, "datadream_dset")
    generate.run(params, workspace, "datadream_dset")
    for folder in (workspace.adapter("datadream_dset"), workspace.synthetic("datadream_dset")):
        card = (folder / "README.md").read_text()
        assert "license: other\nlicense_name: sai-nc-community\nlicense_link: https://" in card
        assert "Commercial use is not allowed" in card
        assert "may reproduce" in card


def test_every_row_of_the_projects_models_has_a_known_licence(raw: dict[str, Any]) -> None:
    assert {row["licence"] for row in raw["models"].values()} <= licences.KNOWN.keys()
    assert [name for name, row in raw["models"].items() if not licences.KNOWN[row["licence"]].commercial] == [
        "sdxl_turbo",
        "photographs_cpu",
    ]
    assert licences.front_matter("of-my-own") == ["license: of-my-own"]
    assert "read its limits" in licences.sentence("of-my-own")


def test_the_dataset_opens_in_hugging_face_datasets(drawn: tuple[Params, Workspace], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    _, workspace = drawn
    folder = workspace.synthetic("stable_diffusion")
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(found) == 40
    assert found[5]["prompt"].startswith("a photo of the digit")


@pytest.mark.parametrize("value", [float("nan"), -1.0, 0.5])
def test_degenerate_images_are_redrawn_and_counted(
    prepared: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    params, workspace = prepared
    draw, calls = sampler.draw, []

    def spoilt(*args: Any) -> torch.Tensor:
        images = draw(*args).clone()
        calls.append(len(images))
        if len(calls) == 1:
            images[3] = value
        return images

    monkeypatch.setattr(sampler, "draw", spoilt)
    folder = made(params, workspace)
    assert calls == [20, 1, 20]
    rows = read_metadata(folder)
    again = [row for row in rows if row.redraws]
    assert [(row.label, row.index, row.redraws) for row in again] == [(3, 0, 1)]
    assert again[0].seed == image_seed(0, "three", 0, attempt=1)
    assert json.loads(workspace.result("generate", "stable_diffusion").read_text())["redrawn"] == 1


def test_what_stays_degenerate_fails_loudly(
    prepared: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = prepared
    monkeypatch.setattr(sampler, "draw", lambda *args: torch.zeros(len(args[4]), 3, 16, 16))
    with pytest.raises(InputError, match="after 3 redraws"):
        made(params, workspace)
    assert not workspace.synthetic("stable_diffusion").exists()


def test_too_many_redraws_fail(small: dict[str, Any], workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    small["generate"]["max_redrawn_share"] = 0.02
    draw, calls = sampler.draw, []

    def spoilt(*args: Any) -> torch.Tensor:
        images = draw(*args).clone()
        calls.append(len(images))
        if len(calls) == 1:
            images[:3] = 0
        return images

    monkeypatch.setattr(sampler, "draw", spoilt)
    with pytest.raises(InputError, match=r"3 of 40 images .*max_redrawn_share"):
        made(toy.parse(small), workspace)


def test_a_shard_survives_only_undamaged(prepared: tuple[Params, Workspace]) -> None:
    params, workspace = prepared
    folder = made(params, workspace)
    whole = content(folder)
    key = json.loads((folder / "shards.json").read_text())[0]
    victim = next((workspace.shards / key).rglob("*.png"))
    data = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(data[:-20])
    assert generate.run(params, workspace, "stable_diffusion")["drawn_now"] == 20
    assert content(folder) == whole


def test_memory_is_flat_in_the_number_of_images(small: dict[str, Any], tmp_path: Path) -> None:
    """Twelve times the images must not take more memory than their files' names do."""
    small["models"]["bundled"]["generate"] |= {"batch": 20, "steps": 1, "guidance": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small))
    # In a process of its own: the peak is that of its whole life, and only ever grows.
    code = """
        import dataclasses, resource
        from pathlib import Path
        from dreamset import adapt, classifiers, generate, params, prepare
        from dreamset.core.workspace import Workspace
        p, w = params.load(Path("params.yaml"), classifiers.ROWS), Workspace.at(Path.cwd())
        prepare.run(p, w); adapt.run(p, w, "stable_diffusion")
        for n in (2, 26):
            p = dataclasses.replace(p, generate=dataclasses.replace(p.generate, per_class=n))
            drawn = generate.run(p, w, "stable_diffusion")["drawn_now"]
            print(drawn, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (few, before), (many, after) = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert (few, many) == (20, 240)
    assert after < 1.05 * before


def test_shards_are_keyed_by_what_changes_their_bytes(
    small: dict[str, Any], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.prepare(toy.parse(small), workspace)

    def keys(change: dict[str, Any] | None = None, **row: Any) -> list[str]:
        mine = copy.deepcopy(small)
        mine |= change or {}
        mine["models"]["bundled"]["generate"] |= row
        return [b.key for b in plan(Work.read(toy.parse(mine), workspace, "stable_diffusion"), [])]

    base = keys()
    assert keys({"seed": 1}) != base
    assert keys(guidance=3.0) != base
    assert keys(per_class=2) == base[:1]
    assert keys({"shots": 3}) == base  # an un-adapted recipe shares its images between numbers of shots
    # It is written into every picture.
    monkeypatch.setattr(blocks, "__version__", "9.9.9")
    assert not {*keys()} & {*base}


@pytest.mark.parametrize(("batch", "scales"), [(50, None), (50, [0.25, 0.5]), (30, None), (30, [0, 0.5, 1]), (7, None)])
def test_as_many_images_are_planned_as_are_asked_for(
    small: dict[str, Any], workspace: Workspace, batch: int, scales: list[float] | None
) -> None:
    small["generate"]["per_class"] = 50
    small["models"]["bundled"]["generate"]["batch"] = batch
    if scales:
        small["recipes"]["datadream_dset"]["adapter_scales"] = scales
    params = toy.parse(small)
    toy.prepare(params, workspace)
    work = Work.read(params, workspace, "datadream_dset")
    adapters = [Adapter(tuple(range(10)), "weights", "0" * 64, "shard")]
    found = plan(work, adapters)
    assert sorted((label, index) for block in found for label in block.labels for index in block.indices) == [
        (label, index) for label in range(10) for index in range(50)
    ]
    strengths = work.row.strengths
    assert all(block.scale == strengths[index % len(strengths)] for block in found for index in block.indices)
    # Replacements of rejected images add blocks, and change none; one more of them needs no other blocks.
    more, still = (plan(work, adapters, dict.fromkeys(range(10), count)) for count in (51, 52))
    assert {block.key for block in found} < {block.key for block in more} <= {block.key for block in still}
    assert {(0, index) for index in range(52)} <= {(0, index) for block in still for index in block.indices}
