"""What each part of an advisory is: a label file, read strictly and asked by path.

The text is handed in; where it lies is the caller's affair. A path that no rule names has no label, so it is withheld
(I2). Every rule hangs below a plain part or a container, so no rule can speak of the inside of an element.

The format is explained at the head of `config/labels/csaf-2.0.yaml`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NoReturn

from federation import yamltext
from federation.errors import PolicyError, UsageError
from federation.generalise import GENERALISERS, NEEDS_PARAMETER
from federation.model import Category

ANY_INDEX: Final = "*"
_INDEX = re.compile(r"/(?:0|[1-9][0-9]*)(?=/|\Z)")  # RFC 6901 4
_PATTERN = re.compile(r"(?:/(?:[a-z][a-z0-9_]*|\*))+")
_KEY = re.compile(r"\s*[\"']?(/[^\s\"':]*)[\"']?\s*:")  # a path at the start of a line of the file
_RULE_KEYS = ("category", "generalise", "needs_products", "when")

# From what anybody may know to what can cost a person or a source most. Analysts raise along it, never down.
SENSITIVITY: Final[Mapping[Category, int]] = {
    category: rank
    for rank, category in enumerate(
        (
            Category.IDENTIFICATION,
            Category.PRODUCT,
            Category.SEVERITY,
            Category.REMEDIATION,
            Category.TECHNICAL,
            Category.ATTRIBUTION,
            Category.INDICATOR,
            Category.EXPLOIT,
            Category.PERSONAL,
            Category.VICTIM,
            Category.SOURCE,
        )
    )
}


class Kind(StrEnum):
    """How a part of a document is treated."""

    PLAIN = "plain"
    CONTAINER = "container"
    ELEMENT = "element"


@dataclass(frozen=True, slots=True)
class LabelRule:
    """One rule of the file.

    `inside` says what the rules below expect the value to be: dict, list, or None where it has no labelled inside.
    `refers` is True if every such value refers to product ids, else the members that do. `when` maps members of the
    value to what they may be; empty for any value.
    """

    pattern: str
    kind: Kind
    inside: type | None
    categories: frozenset[Category] = frozenset()
    generaliser: str | None = None
    parameter: Any = None
    refers: bool | tuple[str, ...] = False
    when: Mapping[str, frozenset[str]] | None = None

    def generalise(self, value: Any) -> Any | None:
        """The generalised form of `value`; None where there is none."""
        return GENERALISERS[self.generaliser](value, self.parameter) if self.generaliser else None

    def needs_products(self, value: Any) -> bool:
        """Whether `value` refers to product ids or group ids."""
        if isinstance(self.refers, bool):
            return self.refers
        return not isinstance(value, dict) or any(member in value for member in self.refers)

    def fits(self, value: Any) -> bool:
        """Whether `when` holds for `value`."""
        if not self.when:
            return True
        return isinstance(value, dict) and all(
            isinstance(value.get(member), str) and value[member] in allowed for member, allowed in self.when.items()
        )


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A label file: its rules by pattern. `digest` is the SHA-256 of its bytes: nodes can say which labels they use."""

    digest: bytes
    rules: Mapping[str, tuple[LabelRule, ...]]

    def match(self, path: str, value: Any) -> LabelRule | None:
        """The rule for `value` at `path`, a JSON pointer below the payload; None where nothing names it."""
        if f"/{ANY_INDEX}" in path:  # a member of that name is no array index
            return None
        for rule in self.rules.get(_INDEX.sub(f"/{ANY_INDEX}", path), ()):
            if rule.fits(value):
                return rule
        return None


def load(text: str, where: str) -> LabelSet:
    """The labels in `text`; `where` names the file in error texts.

    Raises PolicyError, naming the path and its line, for unknown keys, kinds, categories and generalisers; for two
    rules of which one never counts; for alternates of an array element (RFC 9901 has none); and for a rule that hangs
    below nothing or below an element.
    """
    try:
        top = yamltext.mapping(yamltext.load(text, where), where, required=("labels", "rules"))
        if not isinstance(top["labels"], str) or not isinstance(top["rules"], dict):
            raise PolicyError(f"{where}: `labels` must be a name, and `rules` map paths to rules")
        return _Reader(text, where, top["rules"]).labels()
    except UsageError as e:
        raise PolicyError(str(e)) from e


class _Reader:
    """One reading of one file."""

    def __init__(self, text: str, where: str, paths: Mapping[str, Any]) -> None:
        self._text = text
        self._lines = {
            key[1]: number for number, line in enumerate(text.splitlines(), 1) if (key := _KEY.match(line)) is not None
        }
        self._where = where
        self._paths = paths
        self._inside: dict[str, type] = {}

    def labels(self) -> LabelSet:
        for path in self._paths:
            if not _PATTERN.fullmatch(path):
                self._refuse(path, "not a path: /names_in_lower_case with * for an array index")
            above, _, last = path.rpartition("/")
            shape: type = list if last == ANY_INDEX else dict
            if self._inside.setdefault(above, shape) is not shape:
                self._refuse(path, f"{above} cannot be both an object and an array")
        rules = {path: self._rules(path, written) for path, written in self._paths.items()}
        for path, (first, *_) in rules.items():
            self._check_place(path, first, rules)
        return LabelSet(
            digest=hashlib.sha256(self._text.encode("utf-8")).digest(),
            rules=MappingProxyType(rules),
        )

    def _check_place(self, path: str, rule: LabelRule, rules: Mapping[str, tuple[LabelRule, ...]]) -> None:
        above = path.rpartition("/")[0]
        if above:
            if above not in rules:
                self._refuse(path, f"{above} has no rule")
            if rule.kind is Kind.PLAIN and rules[above][0].kind is not Kind.PLAIN:
                self._refuse(path, f"plain inside {above}, which is not")
        if rule.kind is Kind.CONTAINER and rule.inside is None:
            self._refuse(path, "a container with nothing in it")
        if rule.kind is Kind.PLAIN and rule.inside is list:
            self._refuse(path, "an array cannot be plain and have elements")
        if rule.kind is Kind.ELEMENT and rule.inside is not None:
            self._refuse(path, "an element is hidden as one: nothing inside it has a label of its own")

    def _rules(self, path: str, written: Any) -> tuple[LabelRule, ...]:
        several = written if isinstance(written, list) else [written]
        if not several:
            self._refuse(path, "no rule")
        rules = tuple(self._rule(path, data) for data in several)
        if any(rule.when is None for rule in rules[:-1]):
            self._refuse(path, "a rule without `when` stands before another, which never counts")
        if len(rules) > 1 and any(rule.kind is not Kind.ELEMENT for rule in rules):
            self._refuse(path, "only elements can have several rules")
        return rules

    def _rule(self, path: str, data: Any) -> LabelRule:
        place = self._place(path)
        rule = yamltext.mapping(data, place, required=("kind",), optional=_RULE_KEYS)
        kind = next((k for k in Kind if k == rule["kind"]), None)
        if kind is None:
            self._refuse(path, f"unknown kind (known: {', '.join(Kind)})")
        inside = self._inside.get(path)
        if kind is not Kind.ELEMENT:
            yamltext.mapping(data, place, required=("kind",))
            return LabelRule(path, kind, inside)
        categories = self._texts(path, "category", rule.get("category"))
        if not categories <= set(Category):
            self._refuse(path, f"unknown category (known: {', '.join(Category)})")
        generaliser, parameter = self._generaliser(path, rule.get("generalise"))
        refers = rule.get("needs_products", False)
        return LabelRule(
            path,
            kind,
            inside,
            frozenset(Category(c) for c in categories),
            generaliser,
            parameter,
            refers if isinstance(refers, bool) else tuple(sorted(self._texts(path, "needs_products", refers))),
            self._when(path, rule["when"]) if "when" in rule else None,
        )

    def _generaliser(self, path: str, written: Any) -> tuple[str | None, Any]:
        if written is None:
            return None, None
        if path.endswith(f"/{ANY_INDEX}"):  # RFC 9901 7.1 step 3.c.iii: array placeholders have no name to share
            self._refuse(path, "an array element has no alternates: generalise its members")
        spelled = {"with": written} if isinstance(written, str) else written
        data = yamltext.mapping(spelled, f"{self._place(path)}: generalise", required=("with",), optional=("value",))
        name = data["with"]
        if not isinstance(name, str) or name not in GENERALISERS:
            self._refuse(path, f"unknown generaliser (known: {', '.join(sorted(GENERALISERS))})")
        if ("value" in data) is not (name in NEEDS_PARAMETER):
            self._refuse(path, f"{name} {'needs a value' if name in NEEDS_PARAMETER else 'takes no value'}")
        return name, data.get("value")

    def _when(self, path: str, written: Any) -> Mapping[str, frozenset[str]]:
        if not isinstance(written, dict) or not written:
            self._refuse(path, "`when` maps members to lists of values")
        return {member: self._texts(path, f"when: {member}", values) for member, values in written.items()}

    def _texts(self, path: str, key: str, values: Any) -> frozenset[str]:
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            self._refuse(path, f"`{key}` must be a list of words, and not empty")
        return frozenset(values)

    def _place(self, path: str) -> str:
        line = self._lines.get(path)
        return f"{self._where}, line {line}: {path}" if line else f"{self._where}: {path}"

    def _refuse(self, path: str, rule: str) -> NoReturn:
        raise PolicyError(f"{self._place(path)}: {rule}")
