"""``dreamset set``: change single values of params.yaml, and keep every other line as it is."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import yaml

from dreamset import classifiers
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write
from dreamset.core.strict import load_yaml, read_text, read_yaml_text
from dreamset.params import parse
from dreamset.params.edit import get_value, set_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NUMBER: Final = re.compile(r"[+-]?[0-9]+e[+-]?[0-9]+")


def run(path: Path, changes: Sequence[str]) -> list[str]:
    """Change values of a file of parameters, which is replaced as a whole, and only if the result can be used.

    Args:
        path: params.yaml.
        changes: ``KEY=VALUE``, the key dotted and the value as YAML has it.

    Returns:
        A line for each change: ``shots: 4 -> 16``.

    Raises:
        InputError: a change has no ``=``, there is no such key, or the parameters are refused with these values.
    """
    text = before = read_text(path)
    lines, unknown = [], {}
    for change in changes:
        key, sign, given = change.partition("=")
        key = key.strip()
        if not key or not sign:
            raise InputError(f"set {change!r}: has no KEY=VALUE; write it such as shots=16.")
        value = _value(key, given)
        old = get_value(text, key)
        try:
            text = set_value(text, key, value, file=str(path))
        except InputError as error:
            # A key that may be given and is not, such as `lr` of a recipe; whether it is one, the check below knows.
            unknown[key] = error
            try:
                text = set_value(text, key, value, add=True, file=str(path))
            except InputError:
                raise error from None
        same = key not in unknown and old == value
        lines.append(
            f"{key}: is {_shown(old)} already" if same else f"{key}: {_old(unknown, key, old)} -> {_shown(value)}"
        )
    try:
        parse(read_yaml_text(text, path), classifiers.ROWS, str(path))
    except InputError as error:
        for key, first in unknown.items():
            if f" {key}: unknown key" in str(error):
                raise first from error
        raise
    if text != before:
        atomic_write(path, text)
    return lines


def _value(key: str, given: str) -> Any:
    try:
        value = load_yaml(given)
    except yaml.YAMLError as error:
        raise InputError(f"set {key}: {given!r} is no value of YAML ({getattr(error, 'problem', error)}).") from error
    stuck = [name for name, own in value.items() if own is None and ":" in name] if isinstance(value, dict) else []
    if stuck:
        raise InputError(f"set {key}: {stuck[0]} has no blank after its colon; write {stuck[0].replace(':', ': ', 1)}.")
    if not _finite(value):
        raise InputError(
            f"set {key}: {given.strip()} is no finite number; give one, or null where nothing is to stand."
        )
    # YAML 1.1 takes 1e-3 for text.
    return float(given) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _finite(value: Any) -> bool:
    """Return whether every number in a value is finite."""
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _old(unknown: dict[str, InputError], key: str, old: Any) -> str:
    return "not given" if key in unknown else _shown(old)


def _shown(value: Any) -> str:
    """A value on one line, as YAML has it."""
    return str(
        yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    ).strip()[1:-1]
