"""Build frozen dataclasses from YAML, with strict checks of keys, types and ranges.

A dataclass is the schema. Its field names are the allowed keys (a trailing ``_`` avoids a keyword), its type hints
the allowed types, and ``Annotated[..., Range(...)]`` the allowed values. A field without a default is required.

pydantic would need as many lines for the same sentences, and adds a quarter of a second to every start.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml

from dreamset.core.errors import InputError

T = TypeVar("T")

EMPTY: Final = "may be empty"  # annotation of a mapping
REST: Final = "every other key"  # annotation of a mapping that takes the keys of no other field, unchecked

_WORDS: Final = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Range:
    """The allowed interval of a number; ``above`` and ``below`` are open ends."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = [
            ("of at least", self.low),
            ("above", self.above),
            ("and at most" if self.low is not None or self.above is not None else "of at most", self.high),
            ("and below" if self.low is not None or self.above is not None else "below", self.below),
        ]
        return " ".join(f"{word} {end:g}" for word, end in ends if end is not None)


# The scanner in C, where PyYAML was built with it: ten times as fast, and every process reads params.yaml.
if typing.TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Names(_SafeLoader):
    """The safe loader, but every key is text as it is written: a class may be called yes, off, null or 007.

    Composed, since keyboards and file systems differ in how they write é.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before the keys of a merged mapping come in, which the node's own may override.
        if not getattr(node, "checked", False):
            node.checked = True  # type: ignore[attr-defined]
            first: dict[Any, Any] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, key) is not key:
                    line = first[key.value].start_mark.line + 1
                    said = f"{key.value!r} stands there already, in line {line}"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag, key.value = "tag:yaml.org,2002:str", unicodedata.normalize("NFC", key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text; every key is text as it is written.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands there twice.
    """
    return yaml.load(text, _Names)


def read_yaml(path: Path) -> Any:
    """Read a YAML file with the safe loader; every key is text.

    Raises:
        InputError: the file cannot be read; the sentence names it, and the line of a mistake.
    """
    return read_yaml_text(read_text(path), path)


def read_text(path: Path) -> str:
    """Return the text of a file of the project.

    Raises:
        InputError: the file cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run this in the project's folder.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8.") from error


def read_yaml_text(text: str, path: Path) -> Any:
    """Return the value of a YAML text, as ``read_yaml`` does; ``path`` names it in a sentence."""
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: is not plain YAML ({problem}); correct it.") from error


def build(kind: type[T], raw: object, key: str = "") -> T:
    """Return an instance of the dataclass ``kind`` from a mapping, with every field checked.

    Args:
        kind: the schema.
        raw: the value from ``yaml.safe_load``.
        key: dotted key of ``raw`` in the file; empty for the whole file.

    Raises:
        InputError: one sentence that names the key and the allowed values.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{key or 'the file'}: expected a mapping of keys, got {_quoted(raw)}.")
    hints = _hints(kind)  # type: ignore[arg-type]
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    rest = next((name for name in fields if REST in typing.get_args(hints.get(name))), None)
    if rest is not None:
        del fields[rest]
        values[rest] = {name: value for name, value in raw.items() if name not in fields}
    else:
        refuse_others(raw, fields, key)
    for name, field in fields.items():
        if name in raw:
            values[field.name] = _value(hints[field.name], raw[name], join(key, name))
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{join(key, name)}: is missing; give it.")
    return kind(**values)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the type hints of a schema, whose texts are costly to compile: one schema has many rows."""
    return typing.get_type_hints(kind, include_extras=True)


def problems(kind: type, raw: object, key: str = "") -> typing.Iterator[str]:
    """Yield a sentence for every key and value that ``build`` would refuse; ``build`` raises the first of them."""
    if not isinstance(raw, dict):
        yield from _refusal(build, kind, raw, key)
        return
    hints = _hints(kind)
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(kind)}
    rest = [name for name in fields if REST in typing.get_args(hints.get(name))]
    if not rest:
        for name in raw.keys() - fields.keys():
            yield from _refusal(refuse_others, [name], fields, key)
    for name, field in fields.items():
        where, hint = join(key, name), hints[field.name]
        if name in rest:
            continue
        if name not in raw:
            if field.default is dataclasses.MISSING:
                yield f"{where}: is missing; give it."
        elif dataclasses.is_dataclass(hint):
            yield from problems(typing.cast("type", hint), raw[name], where)
        elif (row := _row(hint)) and isinstance(raw[name], dict) and raw[name]:
            for other, value in raw[name].items():
                yield from problems(row, value, join(where, other))
        else:
            yield from _refusal(_value, hint, raw[name], where)


def _row(hint: Any) -> type | None:
    """Return the dataclass of the rows of a mapping, or None where ``hint`` is no such mapping."""
    row = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
    return row if dataclasses.is_dataclass(row) and isinstance(row, type) else None


def _refusal(check: typing.Callable[..., object], *given: object) -> list[str]:
    try:
        check(*given)
    except InputError as error:
        return [str(error)]
    return []


def refuse_others(raw: typing.Iterable[object], allowed: typing.Collection[str], key: str) -> None:
    """Fail on a key that is not allowed.

    Raises:
        InputError: naming it, and those that are.
    """
    for name in raw:
        if name not in allowed:
            raise InputError(f"{join(key, name)}: unknown key{meant(name, allowed)}; allowed are {listed(allowed)}.")


def one_of(value: str, allowed: typing.Collection[str], key: str) -> None:
    """Fail on a value that is not among those allowed.

    Raises:
        InputError: naming the key, and what is allowed.
    """
    if value not in allowed:
        raise InputError(f"{key}: expected one of {listed(allowed)}, got {_quoted(value)}{meant(value, allowed)}.")


def meant(given: object, allowed: typing.Iterable[object]) -> str:
    """Return `` (did you mean X?)`` where a name is near an allowed one, else nothing."""
    near = difflib.get_close_matches(str(given), [str(name) for name in allowed], 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _value(hint: Any, raw: object, key: str) -> Any:
    """Return ``raw``, converted and checked by a type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and args[1] == EMPTY:
        return {} if raw == {} else _value(args[0], raw, key)
    if origin in (types.UnionType, typing.Union):
        if raw is None and type(None) in args:
            return None
        return _any_of([arg for arg in args if arg is not type(None)], raw, key)
    if origin is Literal:
        if raw not in args or isinstance(raw, bool):
            raise InputError(f"{key}: expected one of {listed(args)}, got {_quoted(raw)}{meant(raw, args)}.")
        return raw
    if origin is tuple:
        if not isinstance(raw, list):
            raise InputError(f"{key}: expected a list, got {_quoted(raw)}.")
        return tuple(_value(args[0], item, f"{key}[{i}]") for i, item in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, dict) or not raw:
            raise InputError(f"{key}: expected {_allowed(hint)}, got {_quoted(raw)}.")
        return {str(name): _value(args[1], row, join(key, name)) for name, row in raw.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), raw, key)
    limits = Range()
    if origin is Annotated:
        hint, limits = args[0], args[1]
    return _scalar(hint, limits, raw, key)


def _any_of(hints: list[Any], raw: object, key: str) -> Any:
    """Return ``raw``, checked by the first alternative that fits; where none does, one sentence names them all."""
    if len(hints) == 1:
        return _value(hints[0], raw, key)
    for hint in hints:
        # An error inside a mapping names the inner key.
        if isinstance(raw, dict) and raw and (typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint)):
            return _value(hint, raw, key)
        try:
            return _value(hint, raw, key)
        except InputError:
            continue
    raise InputError(f"{key}: expected {' or '.join(map(_allowed, hints))}, got {_quoted(raw)}.")


def _allowed(hint: Any) -> str:
    """Return the words for the values that a type hint allows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is dict:
        return f"a mapping of names to {'rows' if dataclasses.is_dataclass(args[1]) else _allowed(args[1])}"
    if origin is tuple:
        return f"a list of {_allowed(args[0])}"
    if dataclasses.is_dataclass(hint):
        return f"a mapping of {listed(field.name for field in dataclasses.fields(hint))}"
    return f"{_WORDS[args[0]]} {args[1]}".strip() if origin is Annotated else _WORDS[hint]


def _scalar(kind: type, limits: Range, raw: object, key: str) -> Any:
    word = _WORDS[kind]
    ok = isinstance(raw, (int, float) if kind is float else kind) and (kind is bool or not isinstance(raw, bool))
    if kind is float and isinstance(raw, str):
        # YAML 1.1 reads 1e-3 as text; only 1.0e-3 is a number to it.
        try:
            raw, ok = float(raw), True
        except ValueError:
            ok = False
    if ok and kind is float:
        raw = float(typing.cast("float", raw))
        ok = math.isfinite(raw)
    if not ok or (kind in (int, float) and raw not in limits):  # type: ignore[operator]
        raise InputError(f"{key}: expected {f'{word} {limits}'.strip()}, got {_quoted(raw)}.")
    if kind is str and not typing.cast("str", raw).strip():
        raise InputError(f"{key}: expected text, got an empty one.")
    return raw


def join(key: str, name: object) -> str:
    """The dotted key of what stands under ``key``."""
    return f"{key}.{name}" if key else str(name)


def listed(names: typing.Iterable[object]) -> str:
    """Return names separated by commas."""
    return ", ".join(str(name) for name in names)


def _quoted(raw: object) -> str:
    if isinstance(raw, dict):
        return "a mapping" if raw else "an empty one"
    return "null" if raw is None else repr(raw)[:60]
