"""YAML that people write, read strictly: plain data with the line of every mistake.

Dates stay text, so that one written form exists for them, and so does NO, which YAML 1.1 takes for false; a duplicate
key, an alias, a tag or a second document is an error. `where` in every call is the file's name as the person typed it.
What the data means is for the caller.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from federation.errors import UsageError
from federation.limits import MAX_NUMBER_CHARS


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without timestamps and aliases, refusing duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed: write the value out", mark)
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(None, None, "a tag is not allowed: write plain data", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_NOT_RESOLVED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool")
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_RESOLVED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# as in YAML 1.2: in YAML 1.1 the country code of Norway is false
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z"), ["t", "f"])


def _text(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    """Text that can be written in UTF-8: an escape may name half of a surrogate pair."""
    text = str(loader.construct_scalar(node))
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise yaml.MarkedYAMLError(None, None, "a character that is none: half of a surrogate pair", node.start_mark)
    return text


def _integer(loader: _StrictLoader, node: yaml.ScalarNode) -> Any:
    """A number that a text of ours can show: Python writes no integer of thousands of digits, though it reads them in
    hexadecimal."""
    if len(node.value) > MAX_NUMBER_CHARS:
        raise yaml.MarkedYAMLError(None, None, f"a number has more than {MAX_NUMBER_CHARS} characters", node.start_mark)
    return loader.construct_yaml_int(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _integer)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _text)


def load(text: str, where: str) -> Any:
    """The data in `text`. Raises UsageError naming `where` and the line."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader with less in it
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: {e.problem}") from e
    except (yaml.YAMLError, RecursionError) as e:
        raise UsageError(f"{where}: not readable as YAML") from e
    except ValueError as e:
        raise UsageError(f"{where}: a number that cannot be read; write text in quotes") from e


def mapping(value: object, where: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """`value` as a mapping with exactly these keys. Raises UsageError naming the key that is missing or unknown."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected keys and values, found {_kind(value)}")
    missing = [key for key in required if key not in value]
    unknown = sorted(str(key) for key in value if key not in required and key not in optional)
    if missing:
        raise UsageError(f"{where}: missing {', '.join(missing)}")
    if unknown:
        known = ", ".join((*required, *optional))
        raise UsageError(f"{where}: unknown key {', '.join(unknown)} (known here: {known})")
    return dict(value)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", bool: "true/false"}
    return names.get(type(value), "nothing")
