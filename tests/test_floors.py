"""The house: a folder is a floor that imports its own folder and lower floors; no imports run in a circle."""

from pathlib import Path

from dreamset.core import code

PACKAGE = Path(__file__).parents[1] / "src/dreamset"
STAGES = "the stages"  # the files in the root of the package, and the two folders that are stages
# The only place that orders the folders, lowest first. Folders of one floor do not import each other.
FLOORS = (
    ("core",),
    ("params", "glyphs"),
    ("data", "weights", "track", "compute"),
    ("generator", "classifiers", "metrics", "review"),
    ("drawing", "sources"),
    ("study", "use"),
    (STAGES,),
    ("sweep",),
    ("command",),
)
FLOOR_OF = {folder: floor for floor, folders in enumerate(FLOORS, 1) for folder in folders}


def module(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(("dreamset", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


IMPORTS = {name: (code.imports(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def folder(name: str) -> str | None:
    """The folder of a module; None of the package's own file and of ``python -m dreamset``, which forwards to it."""
    if name in ("dreamset", "dreamset.__main__"):
        return None
    first = name.split(".")[1]
    return first if first in FLOOR_OF else STAGES


def circles() -> list[set[str]]:
    """The groups of modules that import each other in a circle."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for other in IMPORTS[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    reach = {name: reached(name) for name in MODULES}
    groups = {frozenset({other for other in reach[name] if name in reach[other]}) for name in MODULES}
    return [set(group) for group in groups if group]


def test_a_module_imports_its_own_folder_and_lower_floors() -> None:
    above = [
        f"{name} ({here}, floor {FLOOR_OF[here]}) imports {other}"
        for name in MODULES
        if (here := folder(name)) is not None
        for other in sorted(IMPORTS[name])
        if (there := folder(other)) is not None and there != here and FLOOR_OF[there] >= FLOOR_OF[here]
    ]
    assert above == []


ROOT = sorted(path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))


def summary() -> str:
    """The three measures of the house; ``conftest`` prints them at the end of a run."""
    return f"{len(FLOORS)} floors, {len(circles())} circles of imports, {len(ROOT)} modules in the root of the package"


def test_the_house_in_three_numbers() -> None:
    assert len(FLOORS) <= 9
    assert circles() == []
    assert ROOT == ["adapt.py", "deliver.py", "expect.py", "generate.py", "prepare.py", "train.py", "tune.py"]


def test_every_folder_stands_on_a_floor() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == FLOOR_OF.keys() - {STAGES} | {"evaluate", "report"}
