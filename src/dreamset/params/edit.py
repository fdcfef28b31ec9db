"""One value of a YAML file changed in its text; comments, layout and every other line stay as they are."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import yaml

from dreamset.core.errors import InputError
from dreamset.core.strict import join

if TYPE_CHECKING:
    from collections.abc import Iterator

_MERGE: Final = "<<"
_COMMENT: Final = re.compile(r"(?P<gap>[ \t]+)(?P<comment>#[^\n]*)")
_NEAR: Final = 0.8  # likeness of dotted keys from which one may be meant for the other
_EXTENT: Final = 10**6  # characters of a line; flow values are never folded


def set_value(text: str, key: str, value: Any, *, add: bool = False, file: str = "params.yaml") -> str:
    """Return a YAML text in which one key has another value.

    The comment after the value keeps its column where the value leaves room. A value that takes several lines becomes
    one in flow form. A key that a row has by ``<<`` gets a line of its own in that row.

    Args:
        text: a mapping in YAML.
        key: dotted, such as ``prepare.source``.
        value: what JSON can hold: text, a number, a boolean, None, a list or a mapping.
        add: a missing key is appended to the mapping that would hold it; without it, such a key is refused.
        file: names the text in sentences.

    Raises:
        InputError: there is no such key; the sentence names the nearest ones. Or the file cannot be changed so.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{file}{line}: is not plain YAML ({problem}); correct it.") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{file}: holds no keys; write KEY: VALUE into it.")
    *above, last = key.split(".")
    node: yaml.Node = root
    seen = ""
    for name in above:
        found = _find(node, name)
        if found is None:
            raise _unknown(root, node, key, seen, file)
        node, seen = found[1], join(seen, name)
        if node.start_mark.index < found[0].start_mark.index:
            raise _by_hand(key, file, f"{seen} is another row's, by an alias")
    own = _find(node, last, merged=False)
    if own is not None and isinstance(node, yaml.MappingNode):
        changed = _replaced(text, node, own, value, key, file)
    elif isinstance(node, yaml.MappingNode) and (add or _find(node, last) is not None):
        changed = _added(text, node, last, value)
    else:
        raise _unknown(root, node, key, seen, file)
    _check(root, changed, key, value, file)
    return changed


def get_value(text: str, key: str) -> Any:
    """Return the value of a dotted key in a YAML text; None where there is no such key."""
    found: Any = yaml.safe_load(text)
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _find(node: yaml.Node, name: str, *, merged: bool = True) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the key and the value of a mapping's entry, its own before one that it has by ``<<``."""
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if key.value == name:
            return key, value
    for key, value in node.value if merged else ():
        if key.value == _MERGE:
            for row in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if found := _find(row, name):
                    # Its place is not here: whoever changes it would change the other row.
                    return key, found[1]
    return None


def _replaced(
    text: str, mapping: yaml.MappingNode, entry: tuple[yaml.Node, yaml.Node], value: Any, key: str, file: str
) -> str:
    name, old = entry
    if old.start_mark.index < name.end_mark.index:
        raise _by_hand(key, file, "its value is an alias of another row's")
    if text[old.start_mark.index : old.start_mark.index + 1] == "&":
        raise _by_hand(key, file, "other rows repeat its value by an anchor")
    start, end = old.start_mark.index, _end(text, old)
    colon = text.index(":", name.end_mark.index) + 1
    if "\n" in text[colon:start]:
        # A block value begins below its key; the comment beside the key stays.
        inner = text[colon:start]
        beside = _COMMENT.match(inner)
        head = f"{text[:colon]} {_flow(value, mapping)}"
        rest = text[end:]
        return f"{head}{_comment(text, mapping, colon, len(head), beside) if beside else ''}{_after(rest)}"
    gap = "" if text[colon:start].strip(" ") == "" and start > colon else " "
    head = f"{text[:start]}{gap}{_flow(value, mapping)}"
    beside = _COMMENT.match(text, end)
    if beside is None:
        return head + text[end:]
    if "\n" in text[start:end]:
        return f"{head} {beside['comment']}{text[beside.end() :]}"
    return f"{head}{_comment(text, mapping, end, len(head), beside)}{text[beside.end() :]}"


def _after(rest: str) -> str:
    """Return what follows a block value, without the comment of its last line."""
    return rest[len(rest.partition("\n")[0]) :]


def _comment(text: str, mapping: yaml.MappingNode, end: int, stop: int, beside: re.Match[str]) -> str:
    """Return the gap and the comment behind a new value that ends at ``stop``; the old one ended at ``end``."""
    line = text.rindex("\n", 0, end) + 1 if "\n" in text[:end] else 0
    column = end - line + len(beside["gap"])
    if len(beside["gap"]) == 1:
        # The old value had pushed it away from the column of its neighbours.
        columns = Counter(_columns(text, mapping))
        column = min(column, columns.most_common(1)[0][0]) if columns else column
    return f"{' ' * max(1, column - (stop - line))}{beside['comment']}"


def _columns(text: str, mapping: yaml.MappingNode) -> Iterator[int]:
    """Yield the columns of the comments behind the values of a mapping."""
    for _, value in mapping.value:
        beside = _COMMENT.match(text, _end(text, value))
        if beside is not None and len(beside["gap"]) > 1:
            yield beside.start("comment") - (text.rfind("\n", 0, beside.start()) + 1)


def _added(text: str, mapping: yaml.MappingNode, name: str, value: Any) -> str:
    entry = f"{_flow(name, mapping)}: {_flow(value, mapping)}"
    end = _end(text, mapping)
    if mapping.flow_style:
        return f"{text[: end - 1]}{', ' if mapping.value else ''}{entry}{text[end - 1 :]}"
    stop = text.find("\n", end)
    stop = len(text) if stop < 0 else stop
    return f"{text[:stop]}\n{' ' * mapping.value[0][0].start_mark.column}{entry}{text[stop:]}"


def _end(text: str, node: yaml.Node) -> int:
    """Return the index behind the last character of a value, without what follows it on its line."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        entries = [entry[-1] if isinstance(entry, tuple) else entry for entry in node.value]
        keys = [entry[0] for entry in node.value if isinstance(entry, tuple)]
        last = entries[-1]
        if keys and last.start_mark.index < keys[-1].start_mark.index:
            # An alias: its node stands elsewhere.
            behind: int = keys[-1].end_mark.index
            return behind + len(text[behind:].partition("\n")[0].partition(" #")[0].rstrip())
        return _end(text, last)
    start: int = node.start_mark.index
    return start + len(text[start : node.end_mark.index].rstrip())


def _flow(value: Any, mapping: yaml.MappingNode) -> str:
    """Return a value on one line; in a flow mapping more texts need quotes."""
    among = mapping.flow_style or isinstance(value, list | dict)
    dumped = yaml.safe_dump(
        [value] if among else value, default_flow_style=True, width=_EXTENT, sort_keys=False, allow_unicode=True
    )
    return dumped.strip()[1:-1] if among else dumped.removesuffix("...\n").strip()


def _check(before: yaml.Node, text: str, key: str, value: Any, file: str) -> None:
    """Refuse a change after which the file says something else than was asked for.

    Raises:
        InputError: what the file says cannot be changed on one line.
    """
    try:
        after, right = yaml.compose(text, yaml.SafeLoader), get_value(text, key) == value
    except yaml.YAMLError:
        after, right = None, False
    if after is None or not right or [*_others(before, "", key)] != [*_others(after, "", key)]:
        raise _by_hand(key, file, "its layout is unusual")


def _others(node: yaml.Node, above: str, but: str) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the type and the text of every value as it is written, without those of one key."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            here = join(above, name.value)
            if here == but:
                continue
            if value.start_mark.index < name.start_mark.index:
                yield here, "alias", ""
            else:
                yield from _others(value, here, but)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _others(value, f"{above}[{index}]", but)
    else:
        yield above, node.tag, node.value


def _unknown(root: yaml.Node, node: yaml.Node, key: str, seen: str, file: str) -> InputError:
    """Return the error for a key that is not there: near ones beside it, else anywhere, else of the same last name."""
    names = [entry[0].value for entry in node.value] if isinstance(node, yaml.MappingNode) else []
    everywhere, last = [*dict.fromkeys(_keys(root, ""))], key.rpartition(".")[2]
    near = [join(seen, name) for name in difflib.get_close_matches(last, names, 1)]
    near = near or difflib.get_close_matches(key, everywhere, 3, _NEAR)
    near = near or [other for other in everywhere if other.rpartition(".")[2] == last][:3]
    if near:
        return InputError(f"{file}: no key {key!r}; did you mean {' or '.join(near)}?")
    there = f"{seen or 'it'} has {', '.join(names)}" if names else f"{seen} has no keys"
    return InputError(f"{file}: no key {key!r}; {there}.")


def _keys(node: yaml.Node, above: str) -> Iterator[str]:
    """Yield every dotted key of a mapping, those that rows have by ``<<`` among them."""
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if name.value == _MERGE:
            for row in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _keys(row, above)
        else:
            yield join(above, name.value)
            yield from _keys(value, join(above, name.value))


def _by_hand(key: str, file: str, why: str) -> InputError:
    return InputError(f"{file}: {key} cannot be changed on one line, since {why}; change it in an editor.")
