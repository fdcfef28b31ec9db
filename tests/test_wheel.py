"""What is installed from a wheel is whole: the pages, the bundled base, and what `dreamset init` makes a project of."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dreamset
from dreamset.core.errors import InputError
from dreamset.core.shipped import shipped
from test_pipeline import copy_project

ROOT = Path(__file__).parents[1]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """What a new interpreter prints; only ``path`` is searched before the installed packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist, as a package index does it; no network, no other environment."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_project(folder / "repository")
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    python("-c", build, "build_sdist", str(folder), cwd=folder / "repository")
    (sdist,) = folder.glob("dreamset-*.tar.gz")
    shutil.unpack_archive(sdist, folder)
    python("-c", build, "build_wheel", str(folder), cwd=folder / sdist.name.removesuffix(".tar.gz"))
    (made,) = folder.glob("dreamset-*.whl")
    return made


def test_a_wheel_holds_every_file_of_the_package_and_of_the_base(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        held = {name: file.getinfo(name).file_size for name in file.namelist()}
    package = ROOT / "src/dreamset"
    wanted = {
        f"dreamset/{path.relative_to(package).as_posix()}": path.stat().st_size
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    base = [path for path in (ROOT / "models/base").rglob("*") if path.is_file()]
    shared = [ROOT / name for name in ("params.yaml", "dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/plots/heat.json")]
    wanted |= {
        f"dreamset/shipped/{path.relative_to(ROOT).as_posix()}": path.stat().st_size
        for path in (*base, *shared)
        if path.name not in ("dvc.yaml", "dvc.lock") or path.parent == ROOT
    }
    assert wanted.items() <= held.items()
    assert sum(map(os.path.getsize, [wheel])) < 16e6
    assert not [name for name in held if name.startswith(("tests/", "base/", "benchmarks/"))]


def test_from_an_installed_wheel_a_project_is_made(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target))
    python(*pip, str(wheel), cwd=elsewhere)
    found = python("-c", "import dreamset; print(dreamset.__file__)", cwd=elsewhere, path=target)
    assert Path(found.strip()).is_relative_to(target)
    script = str(target / "bin/dreamset")
    assert python(script, "--version", cwd=elsewhere, path=target) == f"dreamset {dreamset.__version__}\n"
    python(script, "init", "mine", "--digits", cwd=elsewhere, path=target)
    made = elsewhere / "mine"
    for name in ("sd/unet/diffusion_pytorch_model.safetensors", "clip/open_clip_model.safetensors", "params.yaml"):
        assert (made / "models/base" / name).read_bytes() == (ROOT / "models/base" / name).read_bytes()
    assert (made / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    # The stages find all that they read: what the first one would do is told from the parameters and the splits.
    assert "digits" in python(script, "prepare", "--dry-run", cwd=made, path=target)


def test_a_package_that_is_not_whole_says_so(tmp_path: Path) -> None:
    assert shipped("params.yaml") == ROOT / "params.yaml"
    package = tmp_path / "dreamset"
    (package / "shipped").mkdir(parents=True)
    with pytest.raises(InputError, match=r"models/base: is missing, so the installed dreamset is not whole; install"):
        shipped("models/base", package)
