"""Handling and terms as data: read strictly, written in one way, and compared.

Handling is the widest use that the origin allows (I6): every member must be there, null where that means no limit.
Terms narrow it for one delivery; `check_terms` refuses any that are wider. No clock: instants are compared by callers.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

from federation.agreement import Agreement
from federation.errors import HandlingError, MalformedError, TermsError
from federation.limits import MAX_CLOCK_SKEW_S
from federation.model import (
    Country,
    Handling,
    JsonObject,
    NodeId,
    Onward,
    Purpose,
    Terms,
    Tier,
    Tlp,
    country,
    instant,
    instant_text,
    node_id,
)

_MEMBERS = frozenset(
    ("tlp", "home", "storage", "onward", "purposes", "retain_until", "embargo_until", "tier", "recipients")
)
_ONWARD_ORDER = tuple(Onward)
_MAX_LISTED = 300  # there are 249 countries; an origin names fewer recipients
E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def read(data: object) -> Handling:
    """The handling in a core's payload.

    Raises HandlingError when a member is missing, unknown or malformed, when RED names no recipients, or when a list is
    empty, unsorted or holds an item twice: there is one way to write each handling.
    """
    if not isinstance(data, dict) or frozenset(data) != _MEMBERS:
        raise HandlingError("handling: members missing or unknown")
    try:
        tlp = Tlp(data["tlp"])
        handling = Handling(
            tlp=tlp,
            home=country(data["home"]),
            storage=_optional(data["storage"], lambda v: _listed(v, country)),
            onward=Onward(data["onward"]),
            purposes=_listed(data["purposes"], lambda v: Purpose(str(v))),
            retain_until=_optional(data["retain_until"], instant),
            embargo_until=_optional(data["embargo_until"], instant),
            tier=Tier(data["tier"]),
            recipients=_optional(data["recipients"], lambda v: _listed(v, node_id)),
        )
    except (MalformedError, ValueError, TypeError) as e:
        raise HandlingError("handling: a member has a value that this protocol does not know") from e
    check(handling)
    return handling


def check(handling: Handling) -> None:
    """Refuses handling that contradicts itself. Raises HandlingError."""
    if handling.tlp is Tlp.RED and handling.recipients is None:
        raise HandlingError("handling: TLP:RED needs named recipients")
    if handling.tlp in (Tlp.RED, Tlp.AMBER_STRICT) and handling.onward is not Onward.NONE:
        raise HandlingError(f"handling: TLP:{handling.tlp} allows no onward sharing")


def write(handling: Handling) -> JsonObject:
    """The handling as it stands in a core; the inverse of `read`."""
    return {
        "tlp": handling.tlp.value,
        "home": handling.home,
        "storage": None if handling.storage is None else sorted(handling.storage),
        "onward": handling.onward.value,
        "purposes": sorted(handling.purposes),
        "retain_until": _text(handling.retain_until),
        "embargo_until": _text(handling.embargo_until),
        "tier": handling.tier.value,
        "recipients": None if handling.recipients is None else sorted(handling.recipients),
    }


def narrow(handling: Handling, agreement: Agreement, core_digest: bytes, recipient: NodeId, now: datetime) -> Terms:
    """The terms of a delivery: what both the handling and the agreement allow.

    Raises TermsError when that is nothing.
    """
    purposes = handling.purposes & agreement.purposes
    storage = _both(handling.storage, agreement.storage)
    if not purposes:
        raise TermsError(f"agreement {agreement.id} and the handling have no purpose in common")
    if storage is not None and not storage:
        raise TermsError(f"agreement {agreement.id} and the handling have no place of storage in common")
    kept = [handling.retain_until]
    if agreement.retention_days is not None:
        kept.append((now + timedelta(days=agreement.retention_days)).replace(microsecond=0))
    return Terms(
        core_digest=core_digest,
        recipient=recipient,
        agreement_digest=agreement.digest,
        purposes=purposes,
        retain_until=min((moment for moment in kept if moment is not None), default=None),
        storage=storage,
        onward=min(handling.onward, agreement.onward, key=_ONWARD_ORDER.index),
        attribution=agreement.attribution,
    )


def as_received(handling: Handling, terms: Terms) -> Handling:
    """What is left of the handling for whoever received it under `terms`: the widest use that it can pass on.

    `onward` is how far it may go from there.
    """
    ends = [end for end in (handling.retain_until, terms.retain_until) if end is not None]
    return replace(
        handling,
        purposes=handling.purposes & terms.purposes,
        storage=_both(handling.storage, terms.storage),
        retain_until=min(ends, default=None),
        onward=min(handling.onward, terms.onward, key=_ONWARD_ORDER.index),
    )


def check_terms(
    terms: Terms, handling: Handling, agreement: Agreement, core_digest: bytes, me: NodeId, now: datetime
) -> None:
    """The receiver's check of terms against the signed handling and the signed agreement (I6). Raises TermsError.

    (1) for this core and (2) this node, (3) under this agreement; no wider than handling and agreement in (4) purposes,
    (5) retention, (6) storage, (7) onward sharing; (8) attribution as agreed.
    """
    if terms.core_digest != core_digest:  # (1)
        raise TermsError("terms: for another core")
    if terms.recipient != me:  # (2)
        raise TermsError("terms: for another recipient")
    if terms.agreement_digest != agreement.digest:  # (3)
        raise TermsError("terms: under another agreement version")
    if not terms.purposes or not terms.purposes <= handling.purposes & agreement.purposes:  # (4)
        raise TermsError("terms: wider purposes than handling and agreement allow")
    latest = [handling.retain_until]
    if agreement.retention_days is not None:
        latest.append(now + timedelta(days=agreement.retention_days, seconds=MAX_CLOCK_SKEW_S))
    for limit in latest:  # (5)
        if limit is not None and (terms.retain_until is None or terms.retain_until > limit):
            raise TermsError("terms: longer retention than handling and agreement allow")
    for places in (handling.storage, agreement.storage):  # (6)
        if places is not None and (terms.storage is None or not terms.storage <= places):
            raise TermsError("terms: wider storage than handling and agreement allow")
    widest = min(handling.onward, agreement.onward, key=_ONWARD_ORDER.index)
    if _ONWARD_ORDER.index(terms.onward) > _ONWARD_ORDER.index(widest):  # (7)
        raise TermsError("terms: wider onward sharing than handling and agreement allow")
    if terms.attribution is not agreement.attribution:  # (8)
        raise TermsError("terms: another attribution than agreed")


def _both(first: frozenset[Country] | None, second: frozenset[Country] | None) -> frozenset[Country] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _optional(value: object, read_value: Callable[[object], T]) -> T | None:
    return None if value is None else read_value(value)


def _listed(value: object, read_item: Callable[[object], T]) -> frozenset[T]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_LISTED:
        raise HandlingError("handling: a list is missing, empty or too long")
    items = [read_item(item) for item in value]
    if any(str(a) >= str(b) for a, b in pairwise(items)):
        raise HandlingError("handling: a list is not sorted, or an item stands twice")
    return frozenset(items)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else instant_text(moment)
