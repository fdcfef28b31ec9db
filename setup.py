"""Puts files of the project into the package when it is built, so that the repository holds each of them once.

``dreamset.core.shipped`` finds them: in an installed package, or in the repository where the install is editable.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Files, and folders with all that is in them. `dreamset init` makes a project of these.
SHIPPED = (
    "params.yaml",
    "dvc.yaml",
    ".dvcignore",
    ".dvc/.gitignore",
    ".dvc/config",
    ".dvc/plots",
    "data/prompts",
    "models/base",
)
# How the base was trained concerns nobody who uses it.
LEFT_OUT = ("dvc.yaml", "dvc.lock")


class BuildWithShipped(build_py):
    """``build_py``, and then the shipped files, in ``dreamset/shipped``."""

    def run(self) -> None:
        """Build; an editable install finds the files in the repository."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._shipped().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return every file that is built."""
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._shipped().values())]

    def _shipped(self) -> dict[str, str]:
        """Return the place in the built package of each shipped file."""
        target = Path(self.build_lib, "dreamset/shipped")
        files = [path for name in SHIPPED for path in _files(Path(name))]
        return {str(path): str(target / path) for path in files}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    inner = sorted(file for file in path.rglob("*") if file.is_file())
    found = [file for file in inner if file.name not in LEFT_OUT and "__pycache__" not in file.parts]
    if not found:
        raise SystemExit(f"{path}: is missing, and the package is not whole without it")
    return found


setup(cmdclass={"build_py": BuildWithShipped})
