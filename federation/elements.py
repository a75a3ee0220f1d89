"""From a core's payload and the disclosures that are held to elements that policy judges, and back to what travels.

Which form a disclosure holds is not written on the wire: it is generalised if, and only if, the label's generaliser
leaves its value as it is. So nobody has to be believed: an origin cannot pass names off as roles, and a relay cannot
strip a mark. Where two nodes have different labels the value counts as full, the stricter reading. A value that was
general from the start has one disclosure, and it is the generalised one.

The origin may have used another label file. What does not fit ours is kept from travelling (I2): an element that no
rule names, a container that holds more than digests, and everything inside such a container have no categories. What
should be disclosable but stands plain in the core cannot be withheld any more, so such a core is refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from federation.errors import MalformedError, UsageError
from federation.labels import Kind, LabelRule, LabelSet
from federation.marking import LABELS
from federation.model import Category, Element, Form, JsonObject
from federation.sdjwt import Node
from federation.sdjwt.disclosure import ELLIPSIS, SD
from federation.sdjwt.walk import escape

PRODUCT_TREE: Final = "/csaf/product_tree"
_LABELS_PATH: Final = f"/{LABELS}"
_Held = tuple[Node, LabelRule | None]


def elements(payload: JsonObject, nodes: Sequence[Node], labels: LabelSet) -> tuple[Element, ...]:
    """The elements among `nodes`, which are `payload`'s disclosures as `federation.sdjwt.walk` found them.

    In the order of `nodes`; both forms of one path are one element. Containers and the entries of `labels` are none.
    Raises MalformedError when `payload` has in plain what its labels call disclosable.
    """
    for name in ("csaf", "ai"):
        if name in payload:
            _check_plain(f"/{name}", payload[name], labels)
    raisings = payload.get(LABELS, {})
    if not isinstance(raisings, dict) or not raisings.keys() <= {SD}:
        raise MalformedError("core: `labels` holds something other than digests")
    entries = [node for node in nodes if _is_entry(node)]
    raised = {node.disclosure.name: _category(node) for node in entries}
    impure: set[str] = set()
    forms: dict[str, list[_Held]] = {}
    for node in nodes:
        if _is_entry(node):
            continue
        rule = labels.match(node.path, node.disclosure.value)
        if rule is not None and rule.kind is Kind.CONTAINER and _is_pure(rule, node.disclosure.value):
            continue
        if rule is None or rule.kind is not Kind.ELEMENT:
            impure.add(node.digest)
            rule = None
        forms.setdefault(node.path, []).append((node, rule))
    return tuple(_element(path, held, raised, impure) for path, held in forms.items())


def selection(chosen: Iterable[tuple[Element, Form]], nodes: Sequence[Node]) -> tuple[bytes, ...]:
    """The raw disclosures that carry `chosen`, with their containers and raised categories, in the order of `nodes`.

    FULL of an element of which only the generalised form is held means that form. Raises UsageError for GENERALISED
    without such a form, and for an element that refers to products while the product tree is withheld.
    """
    going = [(element, _digest(element, form)) for element, form in chosen if form is not Form.WITHHELD]
    has_products = any(element.path == PRODUCT_TREE for element, _ in going)
    digests: set[str] = set()
    for element, digest in going:
        if element.needs_products and not has_products:  # CSAF 2.0 6.1.1, 6.1.4: ids without their definitions
            raise UsageError(f"{element.path} refers to products, and {PRODUCT_TREE} is withheld")
        digests.update((digest, *element.parents))
    return tuple(
        node.disclosure.raw
        for node in nodes
        if node.digest in digests or (_is_entry(node) and node.disclosure.name in digests)
    )


def raised_by_path(nodes: Sequence[Node]) -> dict[str, Category]:
    """The paths of the elements among `nodes` whose category was raised, with that category."""
    entries = {node.disclosure.name: _category(node) for node in nodes if _is_entry(node)}
    found = {node.path: entries.get(node.digest) for node in nodes}
    return {path: category for path, category in found.items() if category is not None}


def _element(path: str, held: list[_Held], raised: Mapping[str | None, Category | None], impure: set[str]) -> Element:
    """One element from the disclosures of one path; without categories where they make no sense together."""
    full: list[_Held] = []
    general: list[_Held] = []
    for form in held:
        (general if _is_general(*form) else full).append(form)
    node, rule = (full or general)[0]
    categories: frozenset[Category] = frozenset()
    sound = len(full) <= 1 and len(general) <= 1 and all(other.parents == node.parents for other, _ in held)
    if rule is not None and sound and impure.isdisjoint(node.parents):
        added = [raised[other.digest] for other, _ in held if other.digest in raised]
        known = frozenset(category for category in added if category is not None)
        if None not in added:  # a category that this version does not know: withheld (I2)
            categories = rule.categories | known
    return Element(
        path=path,
        categories=categories,
        full=full[0][0].digest if full else None,
        generalised=general[0][0].digest if general else None,
        parents=node.parents,
        needs_products=rule is not None and rule.needs_products(node.disclosure.value),
    )


def _is_general(node: Node, rule: LabelRule | None) -> bool:
    return (
        rule is not None
        and rule.generaliser is not None
        and rule.generalise(node.disclosure.value) == node.disclosure.value
    )


def _digest(element: Element, form: Form) -> str:
    digest = element.generalised if form is Form.GENERALISED else element.full or element.generalised
    if digest is None:
        raise UsageError(f"{element.path} is not held in {form} form")
    return digest


def _is_entry(node: Node) -> bool:
    """Whether `node` is an entry of `labels`. Raises MalformedError where such entries are hidden in one another."""
    if node.path != _LABELS_PATH and not node.path.startswith(f"{_LABELS_PATH}/"):
        return False
    if node.parents or node.path == _LABELS_PATH:
        raise MalformedError("core: raised categories are not direct disclosures of `labels`")
    return True


def _category(node: Node) -> Category | None:
    """The raised category that an entry of `labels` holds; None for one that this version does not know."""
    return next((category for category in Category if category == node.disclosure.value), None)


def _is_pure(rule: LabelRule, value: Any) -> bool:
    """Whether a container holds digests and nothing else, so that each thing in it can be withheld."""
    if rule.inside is dict:
        return isinstance(value, dict) and value.keys() <= {SD}
    return isinstance(value, list) and all(isinstance(item, dict) and item.keys() == {ELLIPSIS} for item in value)


def _check_plain(path: str, value: Any, labels: LabelSet) -> None:
    """(1) a rule names it, (2) as plain, (3) in the shape of that rule; likewise everything plain inside it."""
    rule = labels.match(path, value)
    if rule is None or rule.kind is not Kind.PLAIN:  # (1), (2)
        raise MalformedError("core: a part stands plain that has to be disclosable")
    if isinstance(value, dict | list) is not (rule.inside is not None) or isinstance(value, list):  # (3)
        raise MalformedError(f"core: {rule.pattern} has not the shape that its label expects")
    if isinstance(value, dict):
        for name, member in value.items():
            if name != SD:
                _check_plain(f"{path}/{escape(name)}", member, labels)
