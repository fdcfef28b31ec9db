"""`dreamset init`: a project of one's own, and what its stages depend on."""

import errno
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from PIL import Image

import toy
from dreamset.command import cli, init, verbs, version
from dreamset.command.run import planned
from dreamset.core import code
from dreamset.core.errors import DiskFullError, InputError
from dreamset.core.shipped import shipped
from dreamset.sources import survey

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")

ROOT = Path(__file__).parents[1]
STAGES = tuple(cli._STAGES)


def pictures(root: Path, counts: dict[str, int], size: tuple[int, int] = (16, 16), *, grey: bool = True) -> Path:
    """A folder of class folders with so many random pictures each."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            shape = size[::-1] if grey else (*size[::-1], 3)
            Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


def make(target: Path, images: Path | None, **more: Any) -> list[str]:
    return init.run(target, images, STAGES, **more)


def git(folder: Path, *command: str) -> list[str]:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_folder_of_small_grey_pictures_becomes_a_project(tmp_path: Path) -> None:
    images = pictures(tmp_path / "letters", {"a": 3, "b": 5})
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    lines = make(tmp_path / "mine", images)
    assert lines[:4] == [
        "classes  2: a, b",
        "images   8, grey, 16 x 16 px",
        "parts    train 3 to 5 a class; no test/, so every shot is scored by cross-validation",
        "groups   none known; a list can name them (docs/own-images.md)",
    ]
    assert len(lines) <= 12
    assert lines[-1].endswith("&& dreamset run")
    assert all(len(line) <= 100 for line in lines[:-1])
    mine = tmp_path / "mine"
    params = (mine / "params.yaml").read_text()
    shipped_lines = (ROOT / "params.yaml").read_text().splitlines()
    changed = {number: line for number, line in enumerate(params.splitlines(), 1) if line not in shipped_lines}
    assert [line.split("#")[0].strip() for line in changed.values()] == [
        "shots: all",
        "primary: auto",
        "source: imagefolder:data/raw",
        "invariances: []",
    ]
    assert len(params.splitlines()) == len(shipped_lines)
    # What is printed names the line.
    assert all(any(line.split()[:2] == ["line", str(number)] for line in lines) for number in changed)
    assert toy.load(mine / "params.yaml").prepare.source == "imagefolder:data/raw"
    assert (mine / "data/raw").resolve() == images
    assert len((mine / "README.md").read_text().splitlines()) <= 10
    assert {path: path.read_bytes() for path in images.rglob("*") if path.is_file()} == before


def test_git_takes_neither_images_nor_results(tmp_path: Path) -> None:
    images = pictures(tmp_path / "letters", {"a": 2, "b": 2})
    for share in (False, True):
        mine = tmp_path / f"mine {share}"
        make(mine, images, share=share)
        assert len(git(mine, "log", "--oneline")) == 1
        assert git(mine, "status", "--porcelain") == []
        for name in (
            "results/evaluate.json",
            "data/real/0.png",
            "data/splits/train.json",
            "models/classifier/w",
            "mlflow.db",
        ):
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).touch()
        taken = git(mine, "ls-files", "--others", "--exclude-standard")
        assert taken == (["results/evaluate.json"] if share else [])
        assert all(not name.startswith(("data/raw", "models")) for name in git(mine, "ls-files"))


def graph(folder: Path) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """The stages of a project as dvc resolves them, and the names of all that run before each."""
    with Repo(str(folder)) as repo:
        repo.check_graph(repo.index.stages)
        stages = {stage.name: stage for stage in repo.index.stages}
        above = {}
        for name, stage in stages.items():
            seen, waiting = set(), [stage]
            while waiting:
                for other in repo.index.graph.successors(waiting.pop()):
                    if other.name not in seen:
                        seen.add(other.name)
                        waiting.append(other)
            above[name] = seen
        return stages, above


def test_stages_of_a_project_depend_on_the_installed_version(tmp_path: Path) -> None:
    make(tmp_path / "mine", None)
    stages, above = graph(tmp_path / "mine")
    text = (tmp_path / "mine/dvc.yaml").read_text()
    assert "src/" not in text
    repository = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    own = yaml.safe_load(text)
    assert own["plots"] == repository["plots"]
    assert own["stages"].keys() - {"version"} == repository["stages"].keys()
    for name, stage in repository["stages"].items():
        mine, theirs = own["stages"][name].get("do", own["stages"][name]), stage.get("do", stage)
        verb = theirs["cmd"].split()[1]
        kept = [dep for dep in theirs.get("deps", ()) if not dep.startswith("src/")]
        depends = [*kept, *([f"versions/{verb}"] if name != "raw" else [])]
        assert mine == theirs | ({"deps": depends} if depends else {})
    for name, stage in stages.items():
        if name not in ("raw", "version"):
            assert "version" in above[name]
        missing = [
            dep.def_path
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency)
            and dep.def_path.startswith(("versions/", "models/base", "data/review", "results/table"))
            and not (tmp_path / "mine" / dep.def_path).exists()
        ]
        assert missing == []
    assert stages["version"].always_changed
    assert above["version"] == set()


def test_what_runs_each_time_makes_nothing_else_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  version: {cmd: test -e v || echo 1 > v, always_changed: true, outs: [v: {cache: false, persist: true}]}\n"
        "  prepare: {cmd: dreamset prepare, deps: [v], outs: [w: {cache: false}]}\n"
    )
    (tmp_path / "v").write_text("1\n")
    (tmp_path / "w").touch()
    with Repo(str(tmp_path)) as repo:
        repo.commit(force=True)
    assert planned(tmp_path) == []
    (tmp_path / "v").write_text("2\n")
    assert [one.name for one in planned(tmp_path)] == ["version", "prepare"]


def test_a_stage_is_given_all_of_its_code() -> None:
    for stage in STAGES:
        run = verbs.stage_function(stage)
        handed = run.keywords.values() if isinstance(run, functools.partial) else ()
        assert {function.__module__ for function in handed} == set(version._HANDED.get(stage, ()))


def test_an_upgrade_says_what_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("adapt", "prepare")
    assert version.run(tmp_path, stages) == []
    assert version.run(tmp_path, stages) == []
    before = {path.name: path.read_text() for path in (tmp_path / "versions").iterdir()}
    monkeypatch.setattr(version, "__version__", "9.0.0")
    assert version.run(tmp_path, stages) == [f"dreamset {before['dreamset'].strip()} -> 9.0.0; nothing runs again."]
    # The hashes of another package.
    monkeypatch.setattr(code, "state", lambda: {"other": "files"})
    monkeypatch.setattr(code, "numbers_digest", lambda *_: "new")
    (sentence,) = version.run(tmp_path, stages)
    assert sentence == "dreamset, with other code; to run again: adapt, and what their results change."
    after = {path.name: path.read_text() for path in (tmp_path / "versions").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"adapt", "dreamset"}


def test_the_base_comes_back_and_a_person_s_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    mine = tmp_path / "mine"
    version.run(mine, ("prepare",))
    shutil.rmtree(mine / "models")
    assert version.run(mine, ("prepare",)) == []
    card = mine / "models/base/README.md"
    assert card.read_bytes() == (ROOT / "models/base/README.md").read_bytes()
    # An upgrade brings another base.
    shutil.copytree(ROOT / "models/base", other / "models/base")
    (other / "models/base/README.md").write_text("newer")
    monkeypatch.setattr(version, "shipped", lambda name: other / name)
    (sentence,) = version.run(mine, ("prepare",))
    assert "the bundled base" in sentence
    assert card.read_text() == "newer"
    card.write_text("my own")
    (sentence,) = version.run(mine, ("prepare",))
    assert sentence.startswith("models/base is not the bundled base")
    assert card.read_text() == "my own"


def test_which_change_of_the_code_counts(tmp_path: Path) -> None:
    def written(name: str, text: str) -> tuple[str, str]:
        (tmp_path / "pack" / name).write_text(text)
        code._parsed_text.cache_clear()
        return (
            code.numbers_digest("pack.stage", source=tmp_path),
            code.words_digest("pack.stage.page", "pack.stage", source=tmp_path),
        )

    (tmp_path / "pack/stage").mkdir(parents=True)
    (tmp_path / "pack/stage/page.py").write_text("")
    (tmp_path / "pack/stage/template.html").write_text("<p>")
    (tmp_path / "pack/__init__.py").write_text("__version__ = '1'")
    first = written("stage/__init__.py", "x = 1")
    commented = written("stage/__init__.py", "x = 1  # one")
    assert commented[0] == first[0]
    assert commented[1] != first[1]
    assert written("__init__.py", "__version__ = '2'")[1] == commented[1]
    assert written("stage/template.html", "<b>")[1] != commented[1]
    assert written("stage/__init__.py", "x = 2")[0] != first[0]


@pytest.mark.parametrize(
    ("counts", "size", "grey", "gpu", "expected"),
    [
        ({"a": 2, "b": 2}, (28, 28), True, 80.0, ("bundled", "all", [])),
        ({"a": 2, "b": 2}, (80, 70), False, 0.0, ("bundled", "all", ["hflip"])),
        ({"a": 2, "b": 2}, (80, 70), False, 8.0, ("bundled", "all", ["hflip"])),
        ({"a": 2, "b": 2}, (80, 70), False, 15.8, ("sd21_base", "all", ["hflip"])),
        ({"a": 2, "b": 2}, (80, 70), True, 15.8, ("sd21_base", "all", [])),
        ({"a": 101, "b": 2}, (9, 8), True, 0.0, ("bundled", 100, [])),
    ],
)
def test_what_is_proposed(
    tmp_path: Path, counts: dict[str, int], size: tuple[int, int], grey: bool, gpu: float, expected: tuple[Any, ...]
) -> None:
    from dreamset.core.images import Decoding
    from dreamset.sources import imagefolder

    source = imagefolder.read(pictures(tmp_path / "pics", counts, size, grey=grey), Decoding(10**6, None))
    proposed = {key: value for key, value, _ in survey.proposal(survey.of(source, "pics"), gpu)}
    # The weight of the shots is DataDream's where photographs are drawn.
    assert proposed.pop("train.real_weight", None) == (None if expected[0] == "bundled" else 0.8)
    assert tuple(proposed.values()) == (*expected, "auto")


def test_parts_groups_and_a_list(tmp_path: Path) -> None:
    images = pictures(tmp_path / "all/train", {"a": 3, "b": 3}).parent
    pictures(images / "test", {"a": 1, "b": 2})
    lines = make(tmp_path / "parts", images)
    assert "parts    train 3 a class, test 1 to 2 a class" in lines
    rows = [f"train/{name}/{index}.png,{name},g{index}" for name in "ab" for index in range(3)]
    (images / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    lines = make(tmp_path / "list", images / "list.csv")
    assert "groups   3 groups of several images" in lines
    assert toy.load(tmp_path / "list/params.yaml").prepare.source == "csv:data/raw/list.csv"
    assert (tmp_path / "list/data/raw/list.csv").is_file()


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def repository(path: Path, mark: str) -> Path:
    folder(path / mark)
    return path / "mine"


def written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no image")
    return path


BAD: dict[str, tuple[Callable[[Path], tuple[Path, Path]], str]] = {
    "an empty folder": (
        lambda at: (at / "mine", folder(at / "empty")),
        r"empty: holds 0 class folders; .*make one folder per class",
    ),
    "one class": (
        lambda at: (at / "mine", pictures(at / "one", {"a": 3})),
        r"one: holds 1 class folders; a classifier needs at least two",
    ),
    "no images": (
        lambda at: (at / "mine", folder(at / "none/a").parent / folder(at / "none/b").name / ".."),
        r"no class has a usable image to learn from; add images",
    ),
    "a class without images": (
        lambda at: (at / "mine", folder(pictures(at / "two", {"a": 3, "b": 2}) / "c").parent),
        r"1 classes, such as 'c', do not have a usable image",
    ),
    "images that are none": (
        lambda at: (at / "mine", written(written(at / "bad/a/0.png").parents[1] / "b/0.png").parents[1]),
        r"no class has a usable image to learn from \(first .*0.png: ",
    ),
    "no such folder": (lambda at: (at / "mine", at / "absent"), r"--images .*absent: is missing; name a folder"),
    "no folder": (lambda at: (at / "mine", written(at / "file")), r"--images .*file: is no folder; name a folder"),
    "a target that is not empty": (
        lambda at: (written(at / "full/x").parent, pictures(at / "two", {"a": 2, "b": 2})),
        r"full: is not empty; name a new folder",
    ),
    "a target that is a file": (
        lambda at: (written(at / "file"), pictures(at / "two", {"a": 2, "b": 2})),
        r"file: is a file; name a new folder",
    ),
    "a target in the images": (
        lambda at: (at / "two/mine", pictures(at / "two", {"a": 2, "b": 2})),
        r"lies in the folder of the images, .*two; name a folder outside of it",
    ),
    "a target in a git repository": (
        lambda at: (repository(at / "theirs", ".git"), pictures(at / "two", {"a": 2, "b": 2})),
        r"lies in the git repository .*theirs, .*name a folder outside of it",
    ),
    "a target in another project": (
        lambda at: (repository(at / "theirs", ".dvc"), pictures(at / "two", {"a": 2, "b": 2})),
        r"lies in the DVC project .*theirs, .*name a folder outside of it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_nothing_is_lost(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrange, sentence = BAD[case]
    target, images = arrange(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", str(target), "--images", str(images)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert message.endswith(".\n")
    with pytest.raises(InputError, match=sentence):
        make(target, images)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_git_or_space_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(tmp_path / "two", {"a": 2, "b": 2})
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        with pytest.raises(InputError, match="git is not installed, and a project needs it; install git"):
            make(tmp_path / "mine", images)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2**20))
        with pytest.raises(InputError, match="needs 100 MiB, and 1 MiB are free; make room"):
            make(tmp_path / "mine", images)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(version, "run", full)
        with pytest.raises(DiskFullError, match="bytes free; make room"):
            make(tmp_path / "mine", images)
    broken = written(tmp_path / "bin/git")
    broken.write_text("#!/bin/sh\necho 'fatal: no' >&2\nexit 128\n")
    broken.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(broken.parent))
        with pytest.raises(InputError, match=r"git init does not work here \(fatal: no\); mend that"):
            make(tmp_path / "mine", images)
    shutil.rmtree(broken.parent)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # a machine where git knows no name
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    make(Path(), None)
    assert (tmp_path / "mine/README.md").read_text().startswith("# mine\n")
    assert len(git(Path(), "log", "--oneline")) == 1
    assert not [*Path().glob(".init*")]
    assert shipped("params.yaml").read_bytes() == Path("params.yaml").read_bytes()
