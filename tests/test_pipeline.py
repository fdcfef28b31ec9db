"""The stage graph: what it declares is what the code does, and `dvc repro` runs what a change touches."""

import ast
import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = {
    "prepare": "prepare",
    "adapt": "adapt",
    "generate": "generate",
    "train": "train",
    "train_real": "train",
    "evaluate": "evaluate",
    "report": "report",
}


def graph() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    return loaded


def module_file(name: str) -> Path | None:
    path = ROOT / "src" / Path(*name.split("."))
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports when it runs, inside functions too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("dreamset")}


def closure(module: str) -> set[str]:
    """Every source file that importing a module can run."""
    files: set[Path] = set()
    names = [module]
    while names:
        path = module_file(names.pop())
        if path and path not in files:
            files.add(path)
            names += imported(path)
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_modules_that_it_imports(stage: str) -> None:
    declared = {dep for dep in graph()["stages"][stage]["deps"] if dep.startswith("src/") and dep.endswith(".py")}
    assert declared == closure(f"dreamset.{STAGES[stage]}")


def test_only_evaluate_depends_on_the_test_images() -> None:
    secret = {"data/splits/test.json", "data/real_test"}
    holders = {name for name, stage in graph()["stages"].items() if secret & set(stage["deps"])}
    assert holders == {"evaluate"}


def test_only_evaluate_reads_the_test_manifest() -> None:
    readers = {
        path.relative_to(ROOT / "src/dreamset").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if "read_test" in path.read_text()
    }
    assert readers == {"splits.py", "evaluate.py"}
    # prepare writes it, and --dry-run names it; nobody else knows where it is.
    knowers = {
        path.relative_to(ROOT / "src/dreamset").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if "test_split" in path.read_text()
    }
    assert knowers == {"workspace.py", "prepare.py", "evaluate.py", "plan.py"}


def test_names_are_the_same_everywhere() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage, module in STAGES.items():
        assert graph()["stages"][stage]["cmd"].startswith(f"dreamset {module}")
        assert module in raw
        assert module_file(f"dreamset.{module}")


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
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["dvc", "repro", "report"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.removeprefix("> dreamset ") for line in done.stdout.splitlines() if line.startswith("> ")]


@pytest.mark.dvc
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")
def test_repro_runs_what_a_change_touches_and_nothing_else(tmp_path: Path) -> None:
    copy_project(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["active"] = ["stable_diffusion", "datadream_dset"]
    raw["train"]["classifiers"] = ["resnet20"]
    raw["evaluate"]["bootstrap"] = 100
    row = raw["models"]["bundled"]
    row["adapt"]["dataset"] |= {"max_steps": 2, "batch": 4, "warmup": 1}
    row["generate"] |= {"per_class": 2, "batch": 20, "steps": 2}
    row["train"]["resnet20"] |= {"steps": 2, "width": 4, "batch": 8}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    everything = [
        "prepare",
        *(f"{stage} {recipe}" for stage in ("adapt", "generate", "train") for recipe in raw["active"]),
        "train real",
        "evaluate",
        "report",
    ]
    assert sorted(repro(tmp_path)) == sorted(everything)
    assert "<title>" in (tmp_path / "results/report.html").read_text()
    assert repro(tmp_path) == []

    changed = copy.deepcopy(raw)
    changed["recipes"]["datadream_dset"]["sampler"] = {"guidance": 3.0}
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    assert sorted(repro(tmp_path)) == sorted(
        ["adapt datadream_dset", "generate datadream_dset", "train datadream_dset", "evaluate", "report"]
    )
