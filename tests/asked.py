"""A recipe ``asking`` for tests of what asks: templates, sentences, captions, context."""

from typing import Any

import pytest
import yaml

import toy
from dreamset import adapt, generate
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.data.work import Work
from dreamset.drawing.finish import settled
from dreamset.params import Params
from dreamset.sources import digits

ROW: dict[str, Any] = {"adapter": "none", "prompt": "template", "sampler": {}}
GROUPS = {"stroke": ["none", "bold", "thin"], "slant": ["none", "slanted"]}
SENTENCES = {name: [f"{place} bold", f"{place} thin"] for place, name in enumerate(digits.CLASS_NAMES)}


@pytest.fixture(autouse=True)
def found_from_anywhere(small: dict[str, Any]) -> None:
    row = small["models"]["bundled"]
    row["clip"] = str(toy.ROOT / "models/base/clip")
    row["attributes"] = GROUPS
    row["generate"] |= {"per_class": 3}


def with_row(small: dict[str, Any], base: str | None = None, **knobs: Any) -> Params:
    """The parameters with a recipe ``asking``, that of ``base`` or a plain one with other knobs."""
    small["recipes"]["asking"] = (ROW if base is None else small["recipes"][base]) | knobs
    small["active"] = ["stable_diffusion", "asking"]
    return toy.parse(small)


def work_of(small: dict[str, Any], workspace: Workspace, base: str | None = None, **knobs: Any) -> Work:
    return settled(Work.read(with_row(small, base, **knobs), workspace, "asking"))


def made(
    small: dict[str, Any], workspace: Workspace, base: str | None = None, **knobs: Any
) -> tuple[dict[str, Any], list[SyntheticImage]]:
    params = with_row(small, base, **knobs)
    adapt.run(params, workspace, "asking")
    return generate.run(params, workspace, "asking"), read_metadata(workspace.synthetic("asking"))


def described(workspace: Workspace, text: dict[str, Any]) -> str:
    path = workspace.root / "data/prompts/some.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(text))
    return "data/prompts/some.yaml"
