"""One line of params.yaml changes, and the rest stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamset.core.errors import InputError
from dreamset.params.edit import get_value, set_value

PARAMS = (Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8")


def changed(before: str, after: str) -> list[str]:
    """The lines of ``after`` that ``before`` does not have."""
    old = before.splitlines()
    return [line for line in after.splitlines() if line not in old]


def flow_keys(node: yaml.Node, held: Any, above: str = "") -> dict[str, Any]:
    """Every dotted key whose value stands where its row stands, with the value that ``held`` has of it."""
    found: dict[str, Any] = {}
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key = f"{above}.{name.value}".strip(".")
            if value.start_mark.index > name.start_mark.index:
                found[key] = held[name.value]
                found |= flow_keys(value, held[name.value], key)
    return found


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("shots", 16, "shots: 16                   # labelled images per class to learn from"),
        ("shots", "all", "shots: all                  # labelled"),
        ("shots", {"cat": 3, "a dog": 2}, "shots: {cat: 3, a dog: 2}   # labelled"),
        ("active", ["stable_diffusion"], "active: [stable_diffusion]  # rows of `recipes` to run"),
        ("prepare.source", "imagefolder:data/raw", "  source: imagefolder:data/raw # digits |"),
        ("prepare.source", "imagefolder:/a b (1), c", "  source: imagefolder:/a b (1), c # digits |"),
        ("prepare.template", "a photo of a {class}", "  template: a photo of a {class} # caption with"),
        ("prepare.template", "{class}: a photo", "  template: '{class}: a photo' # caption"),
        ("prepare.source", "csv:a #1.csv", "  source: 'csv:a #1.csv'    # digits |"),
        ("prepare.invariances", [], "  invariances: []           # label-preserving changes"),
        ("prepare.invariances", ["hflip"], "  invariances: [hflip]      # label-preserving changes"),
        ("track.uri", None, "  uri: null                 # MLflow tracking URI"),
        ("models.bundled.adapt.dataset.lr", 0.001, "        lr: 0.001               # peak learning rate"),
        ("recipes.stable_diffusion_tuned.search.steps", {"low": 1, "high": 9}, "      steps: {low: 1, high: 9}"),
        ("recipes.stable_diffusion_tuned.search", None, "    search: null            # of guidance, steps,"),
    ],
)
def test_one_line_changes(key: str, value: Any, line: str) -> None:
    after = set_value(PARAMS, key, value)
    (new,) = changed(PARAMS, after)
    assert new.startswith(line)
    assert get_value(after, key) == value


def test_a_comment_returns_to_its_column() -> None:
    long = set_value(PARAMS, "prepare.source", "imagefolder:/a/very/long/path/of/many/images")
    assert set_value(long, "prepare.source", "digits") == PARAMS


def test_the_same_value_changes_nothing() -> None:
    keys = {
        key: value
        for key, value in flow_keys(yaml.compose(PARAMS, yaml.SafeLoader), yaml.safe_load(PARAMS)).items()
        if not isinstance(value, dict) and key.count(".") < 3 and not isinstance(value, float)
    }
    assert len(keys) > 100
    # The file is parsed three times for each, so not for every one of 500.
    for key in [*keys][::80]:
        assert set_value(PARAMS, key, keys[key]) == PARAMS


def test_a_key_that_is_not_there_may_be_added() -> None:
    with pytest.raises(InputError, match=r"no key 'recipes.stable_diffusion.sampler.guidance'"):
        set_value(PARAMS, "recipes.stable_diffusion.sampler.guidance", 3.0)
    after = set_value(PARAMS, "recipes.stable_diffusion.sampler.guidance", 3.0, add=True)
    (line,) = changed(PARAMS, after)
    assert line.startswith("    sampler: {guidance: 3.0}")
    twice = set_value(after, "recipes.stable_diffusion.sampler.steps", 5, add=True)
    assert get_value(twice, "recipes.stable_diffusion.sampler") == {"guidance": 3.0, "steps": 5}
    row = set_value(PARAMS, "recipes.datadream_cls.lr", 0.002, add=True).splitlines()
    assert row[row.index("    lr: 0.002") - 1 :][:2] == ["    sampler: {}", "    lr: 0.002"]
    assert row.index("    lr: 0.002") < row.index("  fakeit:")


def test_a_row_gets_a_line_of_its_own_for_what_another_row_gives_it() -> None:
    after = set_value(PARAMS, "models.sd15.resolution", 256)
    assert changed(PARAMS, after) == ["    resolution: 256"]
    assert get_value(after, "models.sd15.resolution") == 256
    assert get_value(after, "models.sd21_base.resolution") == 512
    with pytest.raises(InputError, match=r"models.sd15.generate.steps cannot be changed on one line.*in an editor"):
        set_value(PARAMS, "models.sd15.generate.steps", 9)
    # What other rows repeat may be changed where it stands.
    after = set_value(PARAMS, "models.sd21_base.generate.steps", 9)
    assert changed(PARAMS, after) == ["      steps: 9"]
    with pytest.raises(InputError, match="by an anchor"):
        set_value(PARAMS, "models.sd21_base", None)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("prepare.sorce", "params.yaml: no key 'prepare.sorce'; did you mean prepare.source?"),
        ("shot", "no key 'shot'; did you mean shots?"),
        ("source", r"no key 'source'; did you mean prepare.source"),
        ("seed.x", "no key 'seed.x'"),
        ("", "no key ''"),
        ("prepare.zzzz", "no key 'prepare.zzzz'; prepare has source, few_shot"),
    ],
)
def test_an_unknown_key_gets_the_nearest_ones(key: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        set_value(PARAMS, key, 1)


def test_layouts_of_other_people() -> None:
    text = (
        "a:   # beside\n  b: 1  # one\n  c:\n    - x\n    - y  # last\n\n# alone\nd: [1,\n  2]  # list\n"
        "e:\nf: |\n  t\n\ng: 3"
    )
    after = set_value(text, "a.c", [])
    assert after == text.replace("  c:\n    - x\n    - y  # last\n", "  c: []\n")
    assert set_value(text, "a", {"b": 2}) == "a: {b: 2} # beside\n" + text[text.index("\n# alone") :]
    assert "\nd: [3] # list\ne:" in set_value(text, "d", [3])
    assert "\ne: 5\nf" in set_value(text, "e", 5)
    assert "\nf: u\n\ng" in set_value(text, "f", "u")
    assert set_value(text, "g", 4).endswith("\ng: 4")
    assert set_value(text, "h", 4, add=True).endswith("\ng: 3\nh: 4")


def test_a_broken_file_is_named_with_its_line() -> None:
    with pytest.raises(InputError, match=r"params.yaml, line 3: is not plain YAML"):
        set_value("a: 1\nb: [1\nc: 2\n", "a", 2)
    with pytest.raises(InputError, match=r"params.yaml: holds no keys"):
        set_value("# nothing\n", "a", 2)
