"""The code that a piece of work depends on, computed from imports.

Whoever keys finished work by what made it (shards, studies, folds, cells of a table) asks here, and names the module
that does the work. Only one list says which modules do not count: ``ASIDE``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.files import digest, sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Modules that change no number of any shard, study or cell: they refuse, report, lock or keep what others compute.
ASIDE: Final = frozenset(
    {
        "dreamset",  # its version; what is written into a picture is an input of that picture's key
        "dreamset.compute",
        "dreamset.compute.call",
        "dreamset.compute.local",
        "dreamset.compute.on_ray",
        "dreamset.core.addresses",
        "dreamset.core.audit",
        "dreamset.core.code",
        "dreamset.core.errors",
        "dreamset.core.interrupts",
        "dreamset.core.locks",
        "dreamset.core.progress",
        "dreamset.core.remote",
        "dreamset.core.shards",
        "dreamset.core.sheet",
        "dreamset.core.strict",
        "dreamset.core.workspace",
        "dreamset.data.cards",
        "dreamset.data.current",
        "dreamset.data.licences",
        "dreamset.metrics.verdict",
        "dreamset.params.knob_rules",
        "dreamset.params.knob_words",
        "dreamset.params.rules",
        "dreamset.study.analysis",
        "dreamset.study.artifacts",
        "dreamset.study.importance",
        "dreamset.study.plots",
        "dreamset.study.sentences",
        "dreamset.study.storage",
        "dreamset.study.workers",
        "dreamset.weights.fingerprint",
    }
)

# The distributions whose arithmetic decides numbers, by the name that is imported.
_LIBRARIES: Final = {
    "diffusers": "diffusers",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "open_clip": "open_clip_torch",
    "optuna": "optuna",
    "peft": "peft",
    "PIL": "pillow",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "torchvision": "torchvision",
    "transformers": "transformers",
}
_SOURCE: Final = Path(__file__).parents[2]  # the folder that holds the package


@functools.cache
def code_digest(*makers: str, source: Path = _SOURCE) -> str:
    """Hash of the code that some modules run, and of the versions of the libraries whose arithmetic they use.

    Comments, docstrings, the texts of errors and of printed lines, and functions named ``..._words``, which write a
    sentence on a card, are left out: rewording changes no hash.

    Args:
        makers: dotted names of the modules that do the work, such as ``__name__``.
        source: the folder that holds the package.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    paths = modules(*makers, source=source)
    roots = {name.partition(".")[0] for path in paths.values() for name in imports(path, source)}
    versions = {name: importlib.metadata.version(_LIBRARIES[name]) for name in roots & _LIBRARIES.keys()}
    return digest([_meanings(paths), versions])


def numbers_digest(*makers: str, source: Path = _SOURCE) -> str:
    """Hash of the code of the package that some modules run, as in ``code_digest``; no library's version counts."""
    return digest(_meanings(modules(*makers, source=source)))


def words_digest(*makers: str, source: Path = _SOURCE) -> str:
    """Hash of every file of the package that some modules import, words and all, and of the files beside them.

    The file of the package itself, which holds its version, does not count.
    """
    reached = {name: path for name, path in closure(*makers, source=source).items() if "." in name}
    beside = (path.parent.rglob("*") for path in reached.values() if path.name == "__init__.py")
    files = {*reached.values(), *(file for files in beside for file in files if _is_beside(file))}
    return digest({path.relative_to(source).as_posix(): sha256_file(path) for path in files})


def state(source: Path = _SOURCE) -> dict[str, str]:
    """The hash of every file of the package, by path; while none changes, no other hash here does."""
    package = source / __name__.partition(".")[0]
    files = (path for path in package.rglob("*") if path.suffix == ".py" or _is_beside(path))
    own = (path for path in files if path.relative_to(package).parts[0] != "shipped")
    return {path.relative_to(source).as_posix(): sha256_file(path) for path in own}


def _is_beside(path: Path) -> bool:
    """Return whether a file is no code, such as a template."""
    return path.is_file() and path.suffix not in (".py", ".pyc")


def _meanings(paths: dict[str, Path]) -> dict[str, str]:
    return {name: _meaning(path) for name, path in paths.items()}


def modules(*makers: str, source: Path = _SOURCE) -> dict[str, Path]:
    """The modules whose code can change what ``makers`` compute, with their files; see ``code_digest``."""
    reached = closure(*makers, source=source)
    return {name: path for name, path in reached.items() if name not in ASIDE}


def closure(*names: str, source: Path = _SOURCE) -> dict[str, Path]:
    """Every module of the package that some modules import, themselves included, by name.

    Imports inside functions count, and so do those for type checkers: the methods of a value run wherever it came
    from, and its class is imported for its type alone.
    """
    package, reached, waiting = names[0].partition(".")[0], dict[str, Path](), [*names]
    for name in names:
        if module_file(name, source) is None:
            raise ModuleNotFoundError(name)
    while waiting:
        name = waiting.pop()
        path = module_file(name, source)
        if path is not None and name not in reached:
            reached[name] = path
            for other in imports(path, source):
                if other.partition(".")[0] == package:
                    # The file of each package above a module runs before it.
                    waiting += (other.rsplit(".", above)[0] for above in range(other.count(".") + 1))
    return dict(sorted(reached.items()))


def module_file(name: str, source: Path = _SOURCE) -> Path | None:
    """The file of a module; None where the dotted name is no module."""
    path = source.joinpath(*name.split("."))
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def imports(path: Path, source: Path = _SOURCE) -> frozenset[str]:
    """The dotted names of the modules that a file imports; ``from a import b`` imports a.b where that is a module."""
    return frozenset(
        f"{name}.{part}" if part and module_file(f"{name}.{part}", source) else name for name, part in _parsed(path)[0]
    )


def _meaning(path: Path) -> str:
    """Hash of the code of a file without its words."""
    return _parsed(path)[1]


def _parsed(path: Path) -> tuple[frozenset[tuple[str, str]], str]:
    return _parsed_text(path.read_text(encoding="utf-8"))


@functools.cache
def _parsed_text(text: str) -> tuple[frozenset[tuple[str, str]], str]:
    """The imports of a source text as pairs (module, name in it or ""), and the hash of its code without its words."""
    tree = ast.parse(text)
    said = _text(tree) or ""
    return frozenset(_imported(tree.body)), hashlib.sha256(said.encode()).hexdigest()


def _imported(statements: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """The imports of some statements and of those within them; an expression has none."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _imported(getattr(node, field, ()))


def _text(node: object) -> str | None:
    """A syntax tree as text, without words: None where nothing else is in it.

    Words are docstrings, types of arguments, texts of errors and of ``print``, and functions that return words. Empty
    fields are left out, too: each version of Python has other ones, and keys outlive it.
    """
    match node:
        case list():
            items = [said for item in node if (said := _text(item)) is not None]
            return f"[{','.join(items)}]" if items else None
        case ast.Expr(value=ast.Constant(value=str())):
            return None
        case ast.FunctionDef(name=name) if name.endswith("_words"):
            return None
        case ast.Call(func=ast.Name(id=name)) if name == "print" or name.endswith("Error"):
            return f"Call(func={_text(node.func)})"
        case ast.AST():
            unsaid = _UNSAID.get(type(node))
            fields = (
                (name, said)
                for name in node._fields
                if name != unsaid and (value := getattr(node, name, None)) is not None and (said := _text(value))
            )
            return f"{type(node).__name__}({','.join(f'{name}={said}' for name, said in fields)})"
    return repr(node)


_UNSAID: Final[dict[type, str]] = {ast.FunctionDef: "returns", ast.arg: "annotation"}
