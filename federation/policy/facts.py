"""What a rule may know: one sending, or one keeping, as closed values, sets and booleans.

Everything about time is decided here, from `now`: what a rule sees are booleans and memberships. `next_change_at` says
until when they hold. A Question is hashable; two equal Questions have one answer under one rule book.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from federation.agreement import Agreement
from federation.model import Category, Country, Form, Handling, NodeId, Onward, Purpose, Tier, Tlp
from federation.policy.packs import Group
from federation.policy.schema import Action, Control

_ADVISORY, _MESSAGE = "advisory", "message"


@dataclass(frozen=True, slots=True)
class Place:
    """A country, and the groups that it belongs to at the instant of asking."""

    country: Country
    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class Situation:
    """All facts of one advisory between one sender and one recipient, but for which part of it is meant."""

    recipient: NodeId
    recipient_place: Place
    sender: NodeId
    sender_place: Place
    origin: NodeId
    home: Place
    tlp: Tlp
    tier: Tier
    onward: Onward
    purposes: frozenset[Purpose]
    names_recipients: bool
    named: bool
    storage_allows: bool
    embargoed: bool
    expired: bool
    safeguards: frozenset[str]


@dataclass(frozen=True, slots=True)
class Question:
    """May this `action` be done with parts of these categories in this form?"""

    action: Action
    categories: frozenset[Category]
    form: Form
    situation: Situation

    def entities(self) -> str:
        """The entities of the question, as Cedar's JSON."""
        s = self.situation
        return json.dumps(
            [
                _node(s.recipient, s.recipient_place),
                {
                    "uid": {"type": "Advisory", "id": _ADVISORY},
                    "parents": [],
                    "attrs": {
                        "origin": _ref("Node", s.origin),
                        "home": _ref("Country", s.home.country),
                        "home_groups": _refs("Group", s.home.groups),
                        "sender": _ref("Node", s.sender),
                        "sender_country": _ref("Country", s.sender_place.country),
                        "sender_groups": _refs("Group", s.sender_place.groups),
                        "categories": _refs("Category", self.categories),
                        "form": _ref("Form", self.form),
                        "tlp": _ref("Tlp", s.tlp),
                        "tier": _ref("Tier", s.tier),
                        "onward": _ref("Onward", s.onward),
                        "purposes": _refs("Purpose", s.purposes),
                        "names_recipients": s.names_recipients,
                        "named": s.named,
                        "storage_allows": s.storage_allows,
                        "embargoed": s.embargoed,
                        "expired": s.expired,
                    },
                },
            ]
        )

    def request(self) -> dict[str, str]:
        """The request of the question, as `cedarpy` takes it."""
        return _request(self.situation.recipient, self.action, "Advisory", _ADVISORY, self.situation.safeguards)


@dataclass(frozen=True, slots=True)
class ControlQuestion:
    """May this control message go to that peer?"""

    control: Control
    recipient: NodeId
    recipient_place: Place
    sender_place: Place

    def entities(self) -> str:
        """The entities of the question, as Cedar's JSON."""
        attrs = {
            "kind": _ref("Control", self.control),
            "sender_country": _ref("Country", self.sender_place.country),
            "sender_groups": _refs("Group", self.sender_place.groups),
        }
        message = {"uid": {"type": "Message", "id": _MESSAGE}, "parents": [], "attrs": attrs}
        return json.dumps([_node(self.recipient, self.recipient_place), message])

    def request(self) -> dict[str, str]:
        """The request of the question, as `cedarpy` takes it."""
        return _request(self.recipient, Action.NOTIFY, "Message", _MESSAGE, frozenset())


def place(country: Country, groups: Mapping[str, Group], now: datetime) -> Place:
    """`country` with the groups that it belongs to at `now`."""
    return Place(
        country,
        frozenset(
            name
            for name, group in groups.items()
            if any(m.country == country and m.holds_at(now) for m in group.members)
        ),
    )


def situation(
    *,
    handling: Handling,
    origin: NodeId,
    sender: NodeId,
    sender_place: Place,
    recipient: NodeId,
    recipient_place: Place,
    home: Place,
    safeguards: frozenset[str],
    now: datetime,
) -> Situation:
    """The facts at `now`. An embargo ends, and retention ends, at the very instant that the handling names."""
    return Situation(
        recipient=recipient,
        recipient_place=recipient_place,
        sender=sender,
        sender_place=sender_place,
        origin=origin,
        home=home,
        tlp=handling.tlp,
        tier=handling.tier,
        onward=handling.onward,
        purposes=handling.purposes,
        names_recipients=handling.recipients is not None,
        named=handling.recipients is not None and recipient in handling.recipients,
        storage_allows=handling.storage is None or recipient_place.country in handling.storage,
        embargoed=handling.embargo_until is not None and now < handling.embargo_until,
        expired=handling.retain_until is not None and now >= handling.retain_until,
        safeguards=safeguards,
    )


def next_change_at(
    handling: Handling,
    agreement: Agreement | None,
    countries: Iterable[Country],
    groups: Mapping[str, Group],
    now: datetime,
) -> datetime | None:
    """The first instant after `now` at which time alone may change an answer; None if it never does."""
    moments = [handling.embargo_until, handling.retain_until]
    if agreement is not None:
        moments += [agreement.valid_from, agreement.valid_until]
    concerned = frozenset(countries)
    for group in groups.values():
        for member in group.members:
            if member.country in concerned:
                moments += member.changes()
    return min((m for m in moments if m is not None and m > now), default=None)


def _request(recipient: NodeId, action: Action, kind: str, name: str, safeguards: frozenset[str]) -> dict[str, str]:
    return {
        "principal": f'Node::"{recipient}"',
        "action": f'Action::"{action}"',
        "resource": f'{kind}::"{name}"',
        "context": json.dumps({"safeguards": _refs("Safeguard", safeguards)}),
    }


def _node(name: NodeId, where: Place) -> dict[str, object]:
    attrs = {"jurisdiction": _ref("Country", where.country), "groups": _refs("Group", where.groups)}
    return {"uid": {"type": "Node", "id": name}, "parents": [], "attrs": attrs}


def _ref(kind: str, name: str) -> dict[str, dict[str, str]]:
    return {"__entity": {"type": kind, "id": name}}


def _refs(kind: str, names: Iterable[str]) -> list[dict[str, dict[str, str]]]:
    return [_ref(kind, name) for name in sorted(names)]
