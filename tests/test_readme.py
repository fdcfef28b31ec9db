"""Every command of the README, of the notebook and of the Dockerfile is one that this project has."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import toy
from dreamset.command import cli
from dreamset.params.edit import set_value

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BOOK = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))


def fenced(text: str) -> Iterator[str]:
    """The commands in blocks of shell code, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def quoted(text: str) -> Iterator[str]:
    """The commands in the second column of tables."""
    for row in re.findall(r"^\| .*? \| (.*) \|$", text, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in (*fenced(text), *quoted(text))]


def check(words: list[str]) -> None:
    """Fail where a command is none of this project, or changes parameters in a way that is refused."""
    program, *rest = words
    if program == "dreamset":
        arguments = cli._parser().parse_args(rest)
        if rest[0] == "set":
            text = (ROOT / "params.yaml").read_text(encoding="utf-8")
            for pair in arguments.changes:
                key, _, value = pair.partition("=")
                text = set_value(text, key, yaml.safe_load(value))
            toy.parse(yaml.safe_load(text))
        for recipe in (getattr(arguments, "item", None), getattr(arguments, "recipe", None)):
            assert recipe in (None, "real", *toy.load(ROOT / "params.yaml").recipes)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        # That these exist is asked of the tests that run them.
        assert program in ("cd", "dvc", "mlflow", "pip", "source")


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_a_command_of_the_readme_is_one(words: list[str]) -> None:
    check(words)


def test_the_readme_sets_up_with_two_commands() -> None:
    assert [words for words in commands(README) if words[0] == "make"] == [["make", "repro"], ["make", "test"]]


def test_what_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert len(local) > 15
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_readme_s_first_screen_defines_its_words() -> None:
    # A reader who has never heard of them meets each with its meaning.
    for word in ("*shots*, the real images", "*recipe*, a way of making images"):
        assert word in README


def lines_of_notebook() -> Iterator[str]:
    for cell in BOOK["cells"]:
        if cell["cell_type"] == "code":
            yield from (line.strip() for line in "".join(cell["source"]).splitlines())


def test_the_notebook_runs_commands_of_this_project() -> None:
    asked = [shlex.split(line[1:]) for line in lines_of_notebook() if line.startswith("!")]
    mine = [words for words in asked if words[0] == "dreamset"]
    assert [words[1] for words in mine] == ["init", "run", "compare", "init", "fetch", "run", "predict"]
    for words in mine:
        check(words)
    assert all(not cell.get("outputs") for cell in BOOK["cells"])
    assert len({cell["id"] for cell in BOOK["cells"]}) == len(BOOK["cells"])


def test_the_image_is_made_of_files_that_are_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept
    # All that setup.py puts into the package, and what it is itself built from.
    shipped = (ROOT / "setup.py").read_text().partition("SHIPPED = ")[2].partition("\n# ")[0]
    for name in ("setup.py", "pyproject.toml", "src", *ast.literal_eval(shipped)):
        assert any(Path(name).is_relative_to(source) for source in copied), name
    assert all((ROOT / name).exists() for name in copied)
