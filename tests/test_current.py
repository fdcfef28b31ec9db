"""Adapters and images that were made with other settings: a verb that is run by hand refuses them in a sentence."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

import toy
from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json
from dreamset.data import current
from dreamset.data.synthetic import read_metadata
from dreamset.use import export, kohya, tensors

if TYPE_CHECKING:
    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

RECIPE = "datadream_dset"


def changed(raw: dict[str, Any], key: str, value: Any) -> Params:
    *parents, last = key.split(".")
    row = raw
    for parent in parents:
        row = row[parent]
    row[last] = value
    return toy.parse(raw)


@pytest.fixture
def made(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> Workspace:
    """A workspace with the adapter and the images of a recipe."""
    small["generate"]["per_class"], small["active"] = 1, ["stable_diffusion", RECIPE]
    params, workspace = toy.parse(small), prepared[1]
    adapt.run(params, workspace, RECIPE)
    generate.run(params, workspace, RECIPE)
    return workspace


def test_what_differs_is_named(made: Workspace, small: dict[str, Any]) -> None:
    row = f"recipes.{RECIPE}"
    for key, value, adapters, images in (
        ("seed", 7, "seed", "seed"),
        (f"{row}.rank", 4, row, row),
        ("models.bundled.adapt.dataset.lr", 0.5, "models.bundled", None),
        ("adapt.weight_decay", 0.5, "models.bundled", None),
        (f"{row}.sampler", {"steps": 3}, None, f"{row}, models.bundled"),
        ("generate.per_class", 2, None, "generate"),
        ("generate.budget_s", 60, None, "generate"),
        (f"{row}.per_class", 2, None, "generate"),
        # What changes nothing of either.
        ("adapt.sample_images", 2, None, None),
        ("generate.max_redrawn_share", 0.5, None, None),
        (f"{row}.per_class", 1, None, None),
        (f"{row}.real_weight", 0.25, None, None),
        (f"{row}.finish_on_real", 0.2, None, None),
        (f"{row}.nearness", 1.0, None, None),
        ("models.bundled.generate.batch", 7, None, None),
        ("models.bundled.adapt.class.lr", 0.5, None, None),
    ):
        params = changed(copy.deepcopy(small), key, value)
        for check, folder, verb, expected in (
            (current.check_adapters, made.adapter(RECIPE), "adapt", adapters),
            (current.check_images, made.synthetic(RECIPE), "generate", images),
        ):
            if expected is None:
                check(params, made, RECIPE)
                continue
            with pytest.raises(InputError) as refused:
                check(params, made, RECIPE)
            assert str(refused.value).startswith(f"{folder}: was ") and f"of now ({expected});" in str(refused.value)
            assert f"run `dreamset {verb} {RECIPE}` first, or `dvc repro`." in str(refused.value)


def test_other_shots_and_other_adapters_are_others(made: Workspace, small: dict[str, Any]) -> None:
    params = changed(small, "models.bundled.adapt.dataset.lr", 0.5)
    adapt.run(params, made, RECIPE)
    current.check_adapters(params, made, RECIPE)
    with pytest.raises(InputError, match=r"was made for other settings than those of now \(adapters\)"):
        current.check_images(params, made, RECIPE)
    current.check_split(params, made)
    params = changed(small, "shots", 1)
    with pytest.raises(InputError, match=r"train\.json: was drawn with other shots than params\.yaml has now"):
        current.check_split(params, made)
    toy.prepare(params, made)
    with pytest.raises(InputError, match=r"\(shots\); run `dreamset adapt"):
        current.check_adapters(params, made, RECIPE)


def test_values_of_a_study_are_those_of_its_adapters(made: Workspace, small: dict[str, Any]) -> None:
    small["recipes"][RECIPE]["search"] = {"guidance": {"low": 1.5, "high": 3.0}}
    params = toy.parse(small)
    write_json(made.tuned(RECIPE) / "adapters.json", {"tuned": False, "adapters": []})
    toy.write_study(params, made, RECIPE, best={"guidance": 2.5})
    # A sampler that a study chose is no other training.
    current.check_adapters(params, made, RECIPE)
    with pytest.raises(InputError, match=r"\(recipes\.datadream_dset, models\.bundled\); run `dreamset generate"):
        current.check_images(params, made, RECIPE)
    generate.run(params, made, RECIPE)
    current.check_images(params, made, RECIPE)


def test_what_leaves_the_project_is_of_the_present_settings(made: Workspace, small: dict[str, Any]) -> None:
    params, target = changed(small, "seed", 7), made.root / "out"
    for write, words in (
        (export.public, "data/synthetic/datadream_dset: was made for other"),
        (tensors.tensors, "data/synthetic/datadream_dset: was made for other"),
        (kohya.kohya, "models/adapters/datadream_dset: was trained for other"),
    ):
        with pytest.raises(InputError, match=words):
            write(params, made, RECIPE, target)
        assert not target.exists()
    small["seed"] = 0
    assert tensors.tensors(toy.parse(small), made, RECIPE, target)["shape"][0] == 10


def test_what_is_refused_leaves_the_images_before(
    made: Workspace, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_metadata(made.synthetic(RECIPE))
    params = changed(small, "seed", 7)

    def refuse(*_: object) -> None:
        raise InputError("none accepted")

    monkeypatch.setattr(generate, "_filtered", refuse)
    with pytest.raises(InputError, match="none accepted"):
        generate.run(params, made, RECIPE)
    assert read_metadata(made.synthetic(RECIPE)) == before
    with pytest.raises(InputError, match=r"data/synthetic/datadream_dset: was made for other .*\(seed"):
        tensors.tensors(params, made, RECIPE, made.root / "out")


def test_records_of_an_older_version_say_nothing(made: Workspace, small: dict[str, Any]) -> None:
    for path in (made.adapter(RECIPE) / "adapters.json", made.result("generate", RECIPE)):
        record = read_json(path, "")
        del record["made_for"]
        write_json(path, record)
    params = changed(small, "seed", 7)
    current.check_adapters(params, made, RECIPE)
    current.check_images(params, made, RECIPE)
