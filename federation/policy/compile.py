"""An agreement's clauses as Cedar permits, for one sender and one receiver.

Each clause gives one permit for what it shares in full and one for what may leave generalised; what may leave in full
may leave generalised too. The same permit lets the sender disclose and the receiver store: both enforce one text.
Whether the agreement is signed and inside its dates is not asked here (`federation.policy.decide`).
"""

from collections.abc import Iterable

from federation.agreement import Agreement, Grant
from federation.errors import PolicyError
from federation.model import Category, Form, NodeId
from federation.policy.rules import RuleSet, parse


def permits_of(agreement: Agreement, sender: NodeId, receiver: NodeId) -> RuleSet:
    """What `agreement` permits `sender` to share with `receiver`; no rules when no clause names the pair so.

    Raises PolicyError if a name in the agreement cannot stand in a rule.
    """
    return parse(permits_text(agreement, sender, receiver), f"agreement {agreement.id}", "permit")


def permits_text(agreement: Agreement, sender: NodeId, receiver: NodeId) -> str:
    """The permits of `permits_of` as Cedar text; equal terms give equal text."""
    return "\n".join(
        _permit(agreement, grant, form, shared, sender, receiver)
        for grant in agreement.grants
        if sender in grant.senders and receiver in grant.receivers and sender != receiver
        for form, shared in _shared(grant).items()
        if shared and grant.tlp and grant.tiers and agreement.purposes
    )


def _shared(grant: Grant) -> dict[Form, list[Category]]:
    full = sorted(category for category, form in grant.share.items() if form is Form.FULL)
    either = sorted(category for category, form in grant.share.items() if form is not Form.WITHHELD)
    return {Form.FULL: full, Form.GENERALISED: either}


def _permit(
    agreement: Agreement, grant: Grant, form: Form, shared: list[Category], sender: NodeId, receiver: NodeId
) -> str:
    how = "in full" if form is Form.FULL else "generalised"
    storage = agreement.storage
    conditions = [
        "!resource.categories.isEmpty()",
        f"{_set('Category', shared)}.containsAll(resource.categories)",
        f"resource.form == {_entity('Form', form)}",
        f"{_set('Tlp', grant.tlp)}.contains(resource.tlp)",
        f"{_set('Tier', grant.tiers)}.contains(resource.tier)",
        f"{_set('Purpose', agreement.purposes)}.containsAny(resource.purposes)",
        f"resource.sender == {_entity('Node', sender)}",
        '(resource.origin == resource.sender || resource.onward == Onward::"peers")',
    ]
    if storage is not None:  # an empty set is no place at all, and no literal of Cedar either
        conditions.append(f"{_set('Country', storage)}.contains(principal.jurisdiction)" if storage else "false")
    when = " &&\n  ".join(conditions)
    says = f"Clause {grant.id} shares {', '.join(shared)} {how}."
    return f"""
@id({_quoted(f"{agreement.id}/{agreement.version}#{grant.id}:{form}")})
@basis({_quoted(f"agreement {agreement.id} version {agreement.version}, clause {grant.id}")})
@says({_quoted(says)})
permit (
  principal == {_entity("Node", receiver)},
  action in [Action::"disclose", Action::"relay", Action::"store"],
  resource
)
when {{
  {when}
}};
"""


def _set(kind: str, values: Iterable[str]) -> str:
    return f"[{', '.join(_entity(kind, value) for value in sorted(values))}]"


def _entity(kind: str, value: str) -> str:
    return f"{kind}::{_quoted(value)}"


def _quoted(text: str) -> str:
    if '"' in text or "\\" in text or not text.isprintable():
        raise PolicyError("a name in the agreement holds a character that cannot stand in a rule")
    return f'"{text}"'
