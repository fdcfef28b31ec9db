"""What a person sees of a study while it goes on and afterwards: optuna-dashboard and MLflow, in a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import studied
import toy
from dreamset.errors import InputError
from dreamset.study import artifacts
from dreamset.synthetic import write_metadata

if TYPE_CHECKING:
    from dreamset.workspace import Workspace


def test_each_trial_that_drew_keeps_one_sheet(workspace: Workspace) -> None:
    made = studied.run(workspace)
    kept = {row["samples"] for row in made["trials"] if "samples" in row}
    assert kept == {path.name for path in studied.pictures(workspace)}
    assert [row["number"] for row in made["trials"] if "samples" not in row] == [3]
    sheet = Image.open(workspace.artifacts / made["trials"][0]["samples"])
    assert sheet.format == "PNG"
    # Three rows of three pictures of 16 px, magnified by whole factors.
    first = workspace.root / ".dreamset/tune/0/data/synthetic" / studied.RECIPE / "000_bar/00000.png"
    tile = Image.open(first).convert("RGB").resize((48, 48), Image.Resampling.NEAREST)
    places = [(x, y) for x in range(sheet.width - 48) for y in range(sheet.height - 48) if _at(sheet, tile, x, y)]
    assert len(places) == 1


def _at(sheet: Image.Image, tile: Image.Image, x: int, y: int) -> bool:
    return sheet.getpixel((x, y)) == tile.getpixel((0, 0)) and (
        sheet.crop((x, y, x + tile.width, y + tile.height)).tobytes() == tile.tobytes()
    )


def test_a_trial_that_is_tried_again_keeps_the_sheet_of_the_first(workspace: Workspace) -> None:
    made = studied.run(workspace)
    kept = made["trials"][0]["samples"]
    again: Any = SimpleNamespace(user_attrs={"samples": kept})
    assert artifacts.keep_samples(again, workspace.root, toy.CLASSES, workspace) == kept
    # Another machine's picture is not here, and the trial has to draw anyway.
    (workspace.artifacts / kept).unlink()
    again.params = {}
    with pytest.raises(InputError, match=r"metadata\.jsonl: is missing"):
        artifacts.keep_samples(again, workspace.root, toy.CLASSES, workspace)


def test_a_sheet_of_many_large_classes_stays_small(workspace: Workspace) -> None:
    folder, rows = workspace.root, []
    for label in range(24):
        for index in range(12):
            Image.new("RGB", (200, 200), (label * 10, index * 20, 0)).save(folder / f"{label}_{index}.png")
            rows.append(toy.synthetic_image(f"{label}_{index}.png", label, f"class {label}", index))
    write_metadata(folder, rows)
    trial: Any = SimpleNamespace(user_attrs={}, params={"guidance": 2.123456, "steps": 7})
    sheet = artifacts._sheet(trial, folder, [f"class {label}" for label in range(24)])
    step = 64 + 4
    assert 20 * step < sheet.height < 22 * step
    assert 10 * step < sheet.width < 13 * step
    assert artifacts._told(trial.params) == "guidance 2.123, steps 7"
