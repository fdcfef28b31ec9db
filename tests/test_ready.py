"""What a verb refuses before its work, and that a dry run of it refuses the same."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import toy
from dreamset import adapt, generate
from dreamset.command import check, cli, ready, verbs
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params

PLAIN, LORA = "stable_diffusion", "datadream_dset"


@pytest.fixture
def place(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> Workspace:
    small["models"]["bundled"]["clip"] = str(toy.ROOT / "models/base/clip")
    small["active"] = [PLAIN, LORA]
    return prepared[1]


def refused(raw: dict[str, Any], workspace: Workspace, stage: str, item: str | None, *, dry: bool = True) -> str:
    """The sentence that a stage is refused with; empty where it is not."""
    try:
        ready.refuse(toy.parse(raw), workspace, stage, item, dry=dry)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        (
            {"init": "image", "sampler": {"steps": 4, "strength": 0.2}},
            r"recipes\.stable_diffusion\.sampler\.strength: 0\.2 of 4 steps is less than one",
        ),
        (
            {"sampler": {"scheduler": "ddim", "steps": 1}},
            r"recipes\.stable_diffusion\.sampler\.steps: ddim with steps: 1 begins at timestep 1 of this base",
        ),
        (
            {"prompt": "description", "descriptions": "data/prompts/none.yaml"},
            r"recipes\.stable_diffusion\.descriptions: .*data/prompts/none\.yaml is missing",
        ),
        (
            {"prompt": "caption", "captions": "beside"},
            r"recipes\.stable_diffusion\.captions: 20 of 20 shots have no cap",
        ),
        (
            {"prompt": "caption", "captions": "nowhere"},
            r"recipes\.stable_diffusion\.captions: nowhere is no folder here; copy it there",
        ),
    ],
)
def test_a_dry_run_refuses_what_drawing_refuses(
    place: Workspace, small: dict[str, Any], knobs: dict[str, Any], words: str
) -> None:
    assert refused(small, place, "generate", PLAIN) == ""
    small["recipes"][PLAIN] |= knobs
    said = refused(small, place, "generate", PLAIN)
    assert re.match(words, said)
    # So does the work itself; of what it cannot open it may say more.
    adapt.run(toy.parse(small), place, PLAIN)
    with pytest.raises(InputError, match=r"nowhere is no folder" if "nowhere" in words else re.escape(said)):
        generate.run(toy.parse(small), place, PLAIN)


def test_weights_that_are_not_there_are_named_with_their_key(place: Workspace, small: dict[str, Any]) -> None:
    row = small["models"]["bundled"]
    row |= {"generator": "no/generator", "clip": "no/clip", "judge": "no/judge"}
    expected = {
        ("generate", PLAIN): ["generator"],
        ("adapt", LORA): ["generator"],
        ("adapt", PLAIN): [],
        ("tune", PLAIN): [],
        ("expect", None): ["clip", "generator", "judge"],
        ("evaluate", None): ["clip", "judge"],
    }
    for (stage, item), parts in expected.items():
        said = refused(small, place, stage, item)
        assert sorted(re.findall(r"models\.bundled\.(\w+): no/\1 is no folder here", said)) == parts
        assert bool(said) == bool(parts)
    small["recipes"][PLAIN]["filter"] = "argmax"
    assert refused(small, place, "generate", PLAIN).startswith("2 problems:\n- models.bundled.generator")


def test_a_verb_refuses_adapters_and_images_of_other_settings(
    place: Workspace, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small["generate"]["per_class"], small["track"]["uri"] = 1, None
    # Nothing is there yet, which is no reason against a plan.
    assert refused(small, place, "generate", LORA) == refused(small, place, "train", LORA) == ""
    params = toy.parse(small)
    adapt.run(params, place, LORA)
    generate.run(params, place, LORA)
    assert refused(small, place, "generate", LORA) == refused(small, place, "train", LORA) == ""
    small["recipes"][LORA]["rank"] = 4
    monkeypatch.setattr(verbs, "opened", lambda _: (toy.parse(small), place))
    monkeypatch.chdir(place.root)
    for words, folder, mend in (
        (["generate", LORA], "models/adapters", "dreamset adapt datadream_dset"),
        (["generate", LORA, "--dry-run"], "models/adapters", "dreamset adapt datadream_dset"),
        (["train", LORA], "data/synthetic", "dreamset generate datadream_dset"),
        (["evaluate"], "data/synthetic", "dreamset generate datadream_dset"),
    ):
        monkeypatch.setattr("dreamset.command.timed_steps.timed", lambda *_: ({}, {}))
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        shown = capsys.readouterr()
        assert f"{folder}/{LORA}: was" in shown.err and f"run `{mend}` first, or `dvc repro`." in shown.err
        assert bool(shown.out) == ("--dry-run" in words)
    small["seed"] = 5
    assert "train.json: was drawn with other seed than params.yaml has now" in refused(small, place, "adapt", LORA)


def test_a_check_of_the_project_names_files_and_strengths_too(
    place: Workspace, small: dict[str, Any], tmp_path: Path
) -> None:
    small["recipes"][PLAIN] |= {"prompt": "description", "descriptions": "data/prompts/none.yaml"}
    small["recipes"]["issynth"]["sampler"] |= {"steps": 2, "strength": 0.1}
    small["active"] = [PLAIN, "issynth"]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(small), encoding="utf-8")
    _, found = check.problems(tmp_path, file)
    assert [sentence.partition(":")[0] for sentence in found] == [
        "recipes.stable_diffusion.descriptions",
        "recipes.issynth.sampler.strength",
    ]
    shutil.rmtree(place.splits.parent)
