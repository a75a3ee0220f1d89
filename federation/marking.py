"""From a document and its labels to a payload in which everything that may be withheld is hidden.

1. `mark` walks the document beside the label file. What the file does not name, or what has another shape than it says,
   is hidden as an element of no category, so policy withholds it (I2), and is reported.
2. A generaliser's result goes in as the alternate of the same name, unless it equals the value: such a value is
   general already, and one disclosure is both forms (`federation.elements` tells by the same comparison).
3. An analyst may raise one element of one advisory. The raised category is added to those of the label file, never put
   in their place: a permit must cover all categories of an element and a forbid any, so adding can only narrow.
4. Raised categories travel inside the signed core, so that receivers and relays know them: member `labels` maps the
   digest of each form of the element to its category, each entry a disclosure of its own that goes with the element
   (`federation.elements.selection`). `labels` always stands there with at least four digests, so that its presence
   tells nothing. A relay that drops an entry breaks its agreement and cannot be caught by the core alone.

Lowering a category needs approval, which is given elsewhere.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from federation.errors import PolicyError
from federation.labels import SENSITIVITY, Kind, LabelRule, LabelSet
from federation.model import Category, JsonObject
from federation.sdjwt import Disclosure, Hide, Node, Salts, conceal, walk
from federation.sdjwt.walk import escape

LABELS: Final = "labels"
_NEAREST = 3  # pointers named when one names no element


@dataclass(frozen=True, slots=True)
class Marked:
    """Claims with `Hide` marks (`csaf`, and `ai` if there is one), and the paths that no label covers."""

    claims: JsonObject
    unlabelled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Concealed:
    """A payload's `csaf`, `ai` and `labels`, every disclosure of it, and the paths that no label covers."""

    payload: JsonObject
    disclosures: tuple[Disclosure, ...]
    unlabelled: tuple[str, ...]


def mark(csaf: JsonObject, ai: JsonObject | None, labels: LabelSet, raised: Mapping[str, Category]) -> Marked:
    """The document as claims for `federation.sdjwt.conceal`.

    `raised` maps JSON pointers of single elements ("/csaf/vulnerabilities/0/notes/2") to a category. Raises PolicyError
    for a pointer that names no element, with the nearest that do, and for a category that would lower the element's.
    """
    marker = _Marker(labels)
    claims = {name: marker.visit(f"/{name}", part) for name, part in (("csaf", csaf), ("ai", ai)) if part is not None}
    for pointer, category in raised.items():
        _check_raised(pointer, category, marker)
    return Marked(claims, tuple(marker.unlabelled))


def issue_claims(
    csaf: JsonObject, ai: JsonObject | None, labels: LabelSet, raised: Mapping[str, Category], *, salts: Salts
) -> Concealed:
    """The document marked and concealed, with its raised categories; to be completed with handling and signed.

    Raises as `mark` and `federation.sdjwt.conceal` do.
    """
    marked = mark(csaf, ai, labels, raised)
    # what is absent leaves a digest that nobody can open, like the decoys beside it
    absent = {} if ai is not None else {"ai": Hide(None)}
    spare = len(absent)
    if not raised:
        payload, disclosures = conceal(marked.claims | {LABELS: {"none": Hide(None)}} | absent, salts=salts)
        return Concealed(payload, disclosures[: len(disclosures) - spare - 1], marked.unlabelled)
    payload, disclosures = conceal(marked.claims | absent, salts=salts)
    disclosures = disclosures[: len(disclosures) - spare]
    entries, of_entries = conceal({LABELS: raised_labels(walk(payload, disclosures), raised)}, salts=salts)
    return Concealed(payload | entries, disclosures + of_entries, marked.unlabelled)


def raised_labels(nodes: Sequence[Node], raised: Mapping[str, Category]) -> dict[str, Hide]:
    """The members of `labels`: the digest of each form of each raised element, with its category hidden."""
    return {node.digest: Hide(raised[node.path].value) for node in nodes if node.path in raised}


class _Marker:
    """One walk through one document."""

    def __init__(self, labels: LabelSet) -> None:
        self._labels = labels
        self.elements: dict[str, LabelRule] = {}
        self.unlabelled: list[str] = []

    def visit(self, path: str, value: Any) -> Any:
        rule = self._labels.match(path, value)
        if rule is None or not _has_shape(rule, value):
            self.unlabelled.append(path)
            return Hide(value)
        if rule.kind is Kind.PLAIN:
            return self._inside(path, value)
        if rule.kind is Kind.CONTAINER:
            return Hide(self._inside(path, value))
        self.elements[path] = rule
        general = rule.generalise(value)
        return Hide(value) if general is None or general == value else Hide(value, general)

    def _inside(self, path: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self.visit(f"{path}/{escape(name)}", member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.visit(f"{path}/{index}", item) for index, item in enumerate(value)]
        return value


def _has_shape(rule: LabelRule, value: Any) -> bool:
    """Whether `value` is what the rules inside expect. An empty container would never travel, so it is none."""
    if rule.kind is Kind.ELEMENT:
        return True
    if rule.inside is None:
        return not isinstance(value, dict | list)
    return isinstance(value, rule.inside) and (bool(value) or rule.kind is Kind.PLAIN)


def _check_raised(pointer: str, category: Category, marker: _Marker) -> None:
    if pointer in marker.unlabelled:
        raise PolicyError(f"{pointer}: lowering a category needs approval, and what has no label is withheld")
    rule = marker.elements.get(pointer)
    if rule is None:
        raise PolicyError(f"{pointer} names no element. {_nearest(pointer, marker.elements)}")
    if SENSITIVITY[category] < max(SENSITIVITY[c] for c in rule.categories):
        raise PolicyError(f"{pointer}: lowering {'+'.join(sorted(rule.categories))} to {category} needs approval")


def _nearest(pointer: str, known: Iterable[str]) -> str:
    """Those inside `pointer` or around it, else those that are spelled most like it."""
    known = tuple(known)
    related = [p for p in known if p.startswith(f"{pointer}/") or pointer.startswith(f"{p}/")]
    near = related[:_NEAREST] or difflib.get_close_matches(pointer, known, _NEAREST, cutoff=0.0)
    return f"The nearest: {', '.join(near)}" if near else "The document has no elements"
