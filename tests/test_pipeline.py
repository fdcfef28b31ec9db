"""The stage graph: what it declares is what the code does, and `dvc repro` runs what a change touches."""

import copy
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage import Stage
from ruamel.yaml import YAML

import toy
from dreamset import adapt, generate, prepare
from dreamset.command.verbs import stage_function
from dreamset.core import code
from dreamset.core.workspace import Workspace

ROOT = Path(__file__).parents[1]
STAGES = {
    "prepare": "prepare",
    "expect": "expect",
    "adapt": "adapt",
    "adapt_after": "adapt",
    "tune": "tune",
    "tune_after": "tune",
    "generate": "generate",
    "generate_after": "generate",
    "train": "train",
    "train_after": "train",
    "train_real": "train",
    "evaluate": "evaluate",
    "deliver": "deliver",
    "report": "report",
}
CROSS_VALIDATES = "dreamset.sweep.crossval"


def graph() -> dict[str, Any]:
    """dvc.yaml, with what a stage does for each of a mapping as if it were the stage."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    return loaded | {"stages": {name: stage.get("do", stage) for name, stage in loaded["stages"].items()}}


def closure(module: str) -> set[str]:
    """Every source file that a module depends on."""
    return {path.relative_to(ROOT).as_posix() for path in code.closure(module).values()}


def folder(file: str) -> str:
    """The folder of ``src/dreamset`` that a source file stands in, or the file where it stands in none."""
    return "/".join(file.split("/")[:3])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_folders_that_it_imports(stage: str) -> None:
    declared = [dep for dep in graph()["stages"][stage]["deps"] if dep.startswith("src/")]
    files = closure(f"dreamset.{STAGES[stage]}")
    if stage in ("evaluate", "deliver"):
        # It imports no training; the command hands it the module that cross-validates.
        run = stage_function(stage)
        assert isinstance(run, functools.partial)
        assert run.keywords["cross_validate"].__module__ == CROSS_VALIDATES
        files |= closure(CROSS_VALIDATES)
    assert sorted(declared) == sorted({folder(file) for file in files})


def test_the_graph_can_be_read_in_one_go() -> None:
    lines = (ROOT / "dvc.yaml").read_text().splitlines()
    assert len(lines) <= 260
    assert max(map(len, lines)) <= 120


def graph_of_dvc(folder: Path, **changes: Any) -> dict[str, Stage]:
    """The stages as dvc resolves them in a folder without a git repository, by name."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copyfile(ROOT / name, folder / name)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text()) | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    with Repo(str(folder)) as repo:
        repo.check_graph(repo.index.stages)
        return {stage.name: stage for stage in repo.index.stages}


def test_what_starts_from_another_s_result_runs_after_it(tmp_path: Path) -> None:
    first, second = "class_encoder", "class_encoder_ft"
    stages = graph_of_dvc(tmp_path, active=["stable_diffusion", first], after={second: first})
    results = {f"models/adapters/{first}", f"models/tuned/{first}", f"results/tune/{first}.json"}
    for verb in ("adapt", "tune", "generate", "train"):
        stage, plain = stages[f"{verb}_after@{second}"], stages[f"{verb}@{first}"]
        assert stage.cmd == f"dreamset {verb} {second}"
        assert outs(stage) == {path.replace(first, second) for path in outs(plain)}
        assert deps(stage) == {path.replace(first, second) for path in deps(plain)} | results
        assert params(stage) == params(plain) | {f"recipes.{second}"}
    assert deps(stages["generate_after@class_encoder_ft"]) >= {f"models/adapters/{second}", f"models/tuned/{second}"}
    assert f"data/synthetic/{second}" in deps(stages["train_after@class_encoder_ft"])


def deps(stage: Stage) -> set[str]:
    return {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}


def outs(stage: Stage) -> set[str]:
    return {out.def_path for out in stage.outs}


def params(stage: Stage) -> set[str]:
    return {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params}


def test_a_recipe_s_stages_read_its_row_and_no_other(tmp_path: Path) -> None:
    stages = graph_of_dvc(tmp_path, active=["stable_diffusion", "datadream_dset"])
    for name, stage in stages.items():
        rows = {row for row in params(stage) if row.startswith("recipes")}
        verb, _, recipe = name.partition("@")
        compares = verb in ("evaluate", "deliver", "report")
        assert rows == ({f"recipes.{recipe}"} if recipe else {"recipes"} if compares else set())
    # What draws has no part in what is learned before it.
    assert not any("generate" in name for name in params(stages["adapt@datadream_dset"]))


def test_what_costs_waits_for_the_decision_of_expect(tmp_path: Path) -> None:
    stages = graph_of_dvc(
        tmp_path, active=["stable_diffusion", "class_encoder"], after={"class_encoder_ft": "class_encoder"}
    )
    made_by = {path: name for name, stage in stages.items() for path in outs(stage)}
    assert made_by["data/splits/go"] == "expect"

    @functools.cache
    def before(name: str) -> set[str]:
        needs = deps(stages[name])
        direct = {made for path, made in made_by.items() if any(Path(path).is_relative_to(need) for need in needs)}
        return direct.union(*map(before, direct))

    for name in stages:
        if name.partition("@")[0] in STAGES and name not in ("prepare", "expect"):
            assert "expect" in before(name), name
    # The record with its sentences would run them again at every change of a figure.
    readers = {name for name, stage in stages.items() if "results/expect.json" in deps(stage)}
    assert readers == {"report"}


def test_dvc_deletes_no_folder_that_a_person_may_put_a_lora_into(tmp_path: Path) -> None:
    graph_of_dvc(tmp_path, active=["datadream_dset", "class_encoder"], after={"class_encoder_ft": "class_encoder"})
    with Repo(str(tmp_path)) as repo, repo.lock:
        for stage in repo.index.stages:
            if not stage.name.startswith(("adapt@", "adapt_after@")):
                continue
            (folder,) = (out for out in stage.outs if out.def_path.startswith("models/adapters/"))
            mine = tmp_path / folder.def_path / "mine.safetensors"
            mine.parent.mkdir(parents=True)
            mine.write_text("mine")
            stage.remove_outs(ignore_remove=False, force=False)  # what dvc does before the command
            assert mine.read_text() == "mine"
    assert len(list(tmp_path.glob("models/adapters/*/mine.safetensors"))) == 3


def test_what_python_compiles_is_no_change_of_the_source(tmp_path: Path) -> None:
    core = tmp_path / "src/dreamset/core"
    core.mkdir(parents=True)
    (core / "errors.py").write_text("pass")
    stage = graph_of_dvc(tmp_path)["deliver"]
    (dep,) = (dep for dep in stage.deps if dep.def_path == "src/dreamset/core")
    dep.save()
    assert not dep.status()
    (core / "__pycache__").mkdir()
    (core / "__pycache__/errors.cpython-311.pyc").touch()
    assert not dep.status()
    (core / "errors.py").write_text("...")
    assert dep.status()


def test_dvc_s_files_are_parsed_in_c() -> None:
    # ruamel.yaml 0.19.1 installs its parser in C no more by itself (findings/ruamel_yaml_installs_no_c_parser.sh).
    assert YAML(typ="safe").Parser.__name__ == "CParser"


def test_only_evaluate_depends_on_the_test_images() -> None:
    secret = {"data/splits/test.json", "data/real_test"}
    holders = {name for name, stage in graph()["stages"].items() if secret & set(stage.get("deps", ()))}
    assert holders == {"evaluate"}


def test_only_evaluate_reads_the_test_manifest() -> None:
    readers = {
        path.relative_to(ROOT / "src/dreamset").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if "read_test" in path.read_text()
    }
    assert readers == {"data/splits.py", "evaluate/__init__.py"}
    # prepare writes it, and so do folds for themselves; nobody else knows where it is.
    knowers = {
        path.relative_to(ROOT / "src/dreamset").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if "test_split" in path.read_text()
    }
    assert knowers == {
        "core/audit.py",
        "core/workspace.py",
        "evaluate/__init__.py",
        "prepare.py",
        "sweep/crossval.py",
    }


def test_names_are_the_same_everywhere() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage, module in STAGES.items():
        assert graph()["stages"][stage]["cmd"].startswith(f"dreamset {module}")
        assert module in raw
        assert code.module_file(f"dreamset.{module}")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")
def test_git_takes_no_images_of_the_user(tmp_path: Path) -> None:
    # An experiment commits what lies about, and a push publishes it.
    copy_project(tmp_path)
    # A tracked file would stand in the way of a link in the folder's place: DVC puts changes of git aside and back.
    assert not (tmp_path / "data/raw").exists()
    command = ["git", "ls-files", "--others", "--exclude-standard", "data/raw"]
    stage = graph()["stages"]["raw"]
    assert stage["outs"] == [{"data/raw": {"cache": False, "persist": True}}]
    for link in (False, True):
        if link:
            (tmp_path / "photos").mkdir()
            (tmp_path / "data/raw").symlink_to(tmp_path / "photos")
        subprocess.run(stage["cmd"], shell=True, cwd=tmp_path, check=True)
        for name in ("data/raw/cat/0.png", "data/raw/list.csv"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        # Run again, it leaves the folder as it is.
        subprocess.run(stage["cmd"], shell=True, cwd=tmp_path, check=True)
        assert (tmp_path / "data/raw/README.md").exists() == (not link)
        left = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert left.split() == []
        shutil.rmtree((tmp_path / "data/raw").resolve())


def copy_project(target: Path) -> None:
    """The files that git would commit, in a repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("tests/", "results/", "benchmarks/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    (target / "results/table").mkdir(parents=True)
    (target / "results/table/none").touch()
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)


def repro(folder: Path) -> list[str]:
    """Run the pipeline; the commands that ran."""
    done = subprocess.run(
        ["dvc", "repro", "report"], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.removeprefix("> dreamset ") for line in done.stdout.splitlines() if line.startswith("> dreamset ")]


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.dvc
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")
def test_killed_repro_makes_only_the_rest_and_then_what_a_change_touches(tmp_path: Path) -> None:
    copy_project(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    # That a recipe's stages read its own row alone is asked of the resolved graph above, which costs no process.
    raw["active"] = ["stable_diffusion"]
    raw["train"] |= {"classifiers": ["resnet20"], "baselines": [], "simple": ["pixels"]}
    raw["deliver"]["calibrate"] = False
    raw["evaluate"]["bootstrap"] = 100
    raw["expect"]["steps"] = 3  # else its pictures would be the first ones of the dataset
    row = raw["models"]["bundled"]
    row["generate"] |= {"per_class": 12, "batch": 20, "steps": 4}
    row["train"]["resnet20"] |= {"steps": 2, "width": 4, "batch": 8}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    store = tmp_path / ".dreamset/shards"
    # The pictures of expect, which all the rest waits for, are shards too.
    subprocess.run(["dvc", "repro", "tune@stable_diffusion"], cwd=tmp_path, env=environment(), check=True)
    earlier = {path.name for path in store.iterdir()}

    def finished() -> dict[str, int]:
        done = (path for path in store.glob("[!.]*/done.json") if path.parent.name not in earlier)
        return {path.parent.name: path.stat().st_mtime_ns for path in done}

    running = subprocess.Popen(
        ["dvc", "repro", "generate@stable_diffusion"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wanted = random.Random().randint(1, 4)
    while len(finished()) < wanted and running.poll() is None:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    before = finished()
    assert 1 <= len(before) < 6
    made, whole = tmp_path / "data/synthetic/stable_diffusion", tmp_path / "unbroken/data/synthetic/stable_diffusion"
    assert not made.exists()

    rest = [
        "generate stable_diffusion",
        "train real",
        "train stable_diffusion",
        "evaluate",
        "deliver",
        "report",
    ]
    assert sorted(repro(tmp_path)) == sorted(rest)
    assert before.items() <= finished().items()
    assert len(json.loads((made / "shards.json").read_text())) == 6
    assert "<title>" in (tmp_path / "results/report.html").read_text()
    assert repro(tmp_path) == []

    params, unbroken = toy.load(path), Workspace(tmp_path, tmp_path / "unbroken")
    shutil.rmtree(store)
    prepare.run(params, unbroken)
    adapt.run(params, unbroken, "stable_diffusion")
    generate.run(params, unbroken, "stable_diffusion")
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(names) > 120
    assert names == sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (made / name).read_bytes() for name in names)

    changed = copy.deepcopy(raw)
    changed["recipes"]["stable_diffusion"]["sampler"] = {"guidance": 3.0}
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    status = subprocess.run(
        ["dvc", "status", "--json"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    own = [f"{stage}@stable_diffusion" for stage in ("adapt", "tune", "generate", "train")]
    assert sorted(json.loads(status.stdout)) == sorted([*own, "evaluate", "report", "deliver"])
