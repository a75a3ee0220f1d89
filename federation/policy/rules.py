"""Cedar text becomes rules that can be asked and that can explain themselves.

`parse` reads rules and gives them their `@id` as policy id. `load` is `parse` for text that people write, with
everything checked that Cedar's own validator lets pass: a rule that could fail when asked, or that could never match.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Literal

import cedarpy
from cedarpy import pst

from federation.errors import PolicyError
from federation.model import Rule

_ANNOTATIONS = frozenset(("id", "basis", "says", "lift"))
_UNARY = frozenset(("not", "is_empty"))
_BINARY = frozenset(("eq", "not_eq", "and", "or", "contains", "contains_all", "contains_any"))


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules that are asked together. `lifts` says, by rule id, what cures a forbid; `digest` is SHA-256 over `text`."""

    text: str
    digest: bytes
    rules: Mapping[str, Rule]
    lifts: Mapping[str, str]
    policies: cedarpy.PolicySet = field(compare=False, repr=False)
    nodes: pst.PolicySet = field(compare=False, repr=False)


def parse(text: str, where: str, effect: Literal["permit", "forbid"]) -> RuleSet:
    """The rules in `text`, every one of `effect`, under their `@id`s. Nothing is validated against a schema.

    Raises PolicyError naming `where` and the rule: (1) not Cedar, (2) templates, (3) an annotation missing, empty or
    unknown, (4) the other effect, (5) an id that stands twice.
    """
    try:
        nodes = cedarpy.policies_to_pst(text)  # (1)
    except ValueError as e:
        raise PolicyError(f"{where}: {e}") from e
    if nodes.templates or nodes.template_links:  # (2)
        raise PolicyError(f"{where}: rules have no slots such as ?principal")
    renamed: dict[str, pst.Template] = {}
    for number, policy in enumerate(_in_order(nodes), start=1):
        notes = policy.annotations
        place = f"{where}: rule {notes.get('id') or number}"
        missing = [name for name in ("id", "basis", "says") if not notes.get(name, "").strip()]
        unknown = sorted(set(notes) - _ANNOTATIONS)
        if missing or unknown or not notes.get("lift", "-").strip():  # (3)
            wrong = ", ".join(f"@{name}" for name in (*missing, *unknown)) or "@lift"
            raise PolicyError(f"{place}: missing, empty or unknown: {wrong}")
        if policy.effect != effect:  # (4)
            raise PolicyError(f"{place}: expected {effect}, found {policy.effect}")
        if notes["id"] in renamed:  # (5)
            raise PolicyError(f"{place}: the id stands twice")
        renamed[notes["id"]] = replace(policy, id=notes["id"])
    return _assemble(text, renamed)


def load(text: str, where: str, effect: Literal["permit", "forbid"], schema: cedarpy.Schema) -> RuleSet:
    """`parse`, then everything that keeps a rule from failing or from silently never matching.

    Raises PolicyError naming `where` and the rule: (6) Cedar's strict validation, (7) only expressions that cannot
    fail, (8) no comparison of two different kinds of thing.
    """
    rules = parse(text, where, effect)
    _validate(str(rules.policies), where, schema)  # (6)
    for policy_id, policy in rules.nodes.static_policies.items():
        for clause in policy.clauses:
            for expression in _expressions(clause.expr):
                _check_total(expression, f"{where}: rule {policy_id}")  # (7)
    # (8) Cedar's validator holds `resource.home == Form::"full"` for valid, and it is always false; as a question about
    # a set, which has one type of member, it is refused.
    stricter = {
        key: replace(p, clauses=tuple(replace(c, expr=_as_sets(c.expr)) for c in p.clauses))
        for key, p in rules.nodes.static_policies.items()
    }
    _validate(str(_assemble(text, stricter).policies), where, schema)
    return rules


def joined(sets: Iterable[RuleSet]) -> RuleSet:
    """All the rules together. Raises PolicyError if two sets have a rule of the same id."""
    sets = tuple(sets)
    policies: dict[str, pst.Template] = {}
    for rules in sets:
        for policy_id, policy in rules.nodes.static_policies.items():
            if policy_id in policies:
                raise PolicyError(f"rule {policy_id}: two rule sets have a rule of this id")
            policies[policy_id] = policy
    return _assemble("\n".join(rules.text for rules in sets), policies)


def _assemble(text: str, policies: Mapping[str, pst.Template]) -> RuleSet:
    nodes = pst.PolicySet(templates={}, static_policies=policies, template_links=())
    try:
        handle = cedarpy.PolicySet.from_pst(nodes)
    except ValueError as e:
        raise PolicyError(f"rules do not form a set: {e}") from e
    notes = {key: p.annotations for key, p in policies.items()}
    return RuleSet(
        text=text,
        digest=hashlib.sha256(text.encode()).digest(),
        rules=MappingProxyType({key: Rule(id=key, basis=n["basis"], says=n["says"]) for key, n in notes.items()}),
        lifts=MappingProxyType({key: n["lift"] for key, n in notes.items() if "lift" in n}),
        policies=handle,
        nodes=nodes,
    )


def _in_order(nodes: pst.PolicySet) -> list[pst.Template]:
    return sorted(nodes.static_policies.values(), key=lambda p: int(p.id.removeprefix("policy")))


def _validate(text: str, where: str, schema: cedarpy.Schema) -> None:
    result = cedarpy.validate_policies(text, schema)
    if not result.validation_passed:
        names = result.id_annotations_by_policy_id
        found = "; ".join(f"rule {names.get(e.policy_id, '?')}: {e.error}" for e in result.errors)
        raise PolicyError(f"{where}: {found or 'refused by the validator'}")


def _expressions(node: object) -> Iterator[object]:
    """`node` and every expression below it; a stack, not recursion."""
    stack: list[object] = [node]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, tuple):
            stack.extend(value)
        elif is_dataclass(value) and not isinstance(value, type):
            yield value
            if not isinstance(value, pst.EntityLit):
                stack.extend(getattr(value, f.name) for f in fields(value))


def _check_total(expression: object, place: str) -> None:
    """Refuses what could fail when asked, or cannot match. An allow-list: syntax that is new to us is refused.

    No arithmetic (it overflows), no extension functions (no fact has such a type), no `has`, `is`, `in` or `like` (a
    misspelling never matches), no literal true or false, no attributes but those of principal, resource and context.
    """
    what = type(expression).__name__
    match expression:
        case pst.UnaryOp(op=unary):
            what, allowed = unary, unary in _UNARY
        case pst.BinaryOp(op=binary):
            what, allowed = binary, binary in _BINARY
        case pst.GetAttr(base=base):
            allowed = isinstance(base, pst.Var)
        case _:
            allowed = isinstance(expression, pst.Var | pst.EntityLit | pst.Set | pst.IfThenElse)
    if not allowed:
        raise PolicyError(f"{place}: {what} is not allowed: it could fail, or never match, when the rule is asked")


def _as_sets(expr: pst.Expr) -> pst.Expr:
    """`expr` with each `a == b` as `[a].contains(b)`: the same meaning, but typed strictly."""
    match expr:
        case pst.BinaryOp(op=op, left=left, right=right):
            left, right = _as_sets(left), _as_sets(right)
            if op in ("eq", "not_eq"):
                inside = pst.BinaryOp("contains", pst.Set((left,)), right)
                return inside if op == "eq" else pst.UnaryOp("not", inside)
            return pst.BinaryOp(op, left, right)
        case pst.UnaryOp(op=op1, arg=arg):
            return pst.UnaryOp(op1, _as_sets(arg))
        case pst.IfThenElse(cond=cond, then_expr=then_expr, else_expr=else_expr):
            return pst.IfThenElse(_as_sets(cond), _as_sets(then_expr), _as_sets(else_expr))
        case _:
            return expr
