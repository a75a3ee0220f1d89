"""The way in: from an entry whose place in the feed is proved to an advisory that may be kept.

    PageEntry.envelope --open_delivery--> Opened --read_advisory--> Advisory --admit--> Admitted

Each function takes only the type that the one before makes, so nothing unverified can be read. Whether CSAF is valid is
checked by its author, never here. Proving the page comes before (`federation.feed`), committing after
(`node.exchange.sync`).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from federation import grant, handling, sdjwt
from federation.agreement import Agreement
from federation.base64url import from_b64url
from federation.elements import elements
from federation.entries import Delivery, hides
from federation.errors import HandlingError, MalformedError, NotAdmittedError, RemoteError, TooLargeError
from federation.keyring import Keyring
from federation.labels import LabelSet
from federation.limits import MAX_CLOCK_SKEW_S, MAX_EVIDENCE_BYTES, MAX_JSON_VALUES, UNCOUNTED_BYTES
from federation.model import (
    CORE_VERSION,
    Category,
    Country,
    Element,
    Form,
    Handling,
    JsonObject,
    NodeId,
    Onward,
    Presentation,
    Role,
    Rule,
    Terms,
    Tlp,
    node_id,
)
from federation.policy.decide import may_store
from federation.policy.engine import RuleBook
from federation.sdjwt import Verified

_PLAIN: Final = frozenset(("v", "iss", "jti", "iat", "_sd_alg", "handling", "csaf", "labels", "_sd"))
_REVISION = re.compile(r"[1-9][0-9]{0,8}")
_LATEST_IAT = 253_402_300_799  # the last second of the year 9999
_MAX_NAME = 255  # a tracking id as a file system would take it


@dataclass(frozen=True, slots=True)
class Opened:
    """The origin's signature holds over the core, and every disclosure belongs to it."""

    origin: NodeId
    core_digest: bytes
    verified: Verified
    terms: Terms
    grant: bytes


@dataclass(frozen=True, slots=True)
class Advisory:
    """What an opened core says: its place, its handling, and as much of the document as was disclosed.

    `grant` is what came beside it, not read yet: empty where its origin delivers it.
    """

    origin: NodeId
    name: str
    revision: int
    issued_at: datetime
    handling: Handling
    csaf: JsonObject
    ai: JsonObject | None
    core_digest: bytes
    elements: tuple[Element, ...]
    terms: Terms
    grant: bytes


@dataclass(frozen=True, slots=True)
class Admitted:
    """An advisory that agreement and law let this node keep, with the rules that decided.

    `alarms` are what the policy engine could not evaluate on the way.
    """

    advisory: Advisory
    rules: tuple[Rule, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who receives, and by what it judges. `agreements` are those in force, by digest."""

    me: NodeId
    country: Country
    keyring: Keyring
    labels: LabelSet
    book: RuleBook
    agreements: dict[bytes, Agreement]

    def accepting(self, dropped: Mapping[tuple[NodeId, str], bytes]) -> "Receiver":
        """The same, to whom dropped keys still speak."""
        return replace(self, keyring=replace(self.keyring, dropped=dropped)) if dropped else self


def open_delivery(delivery: Delivery, receiver: Receiver, now: datetime) -> Opened:
    """The core, verified under its origin's key.

    (1) the core is well formed and of no more parts than memory has room for, its header the one that the profile
    allows; (2) its origin has an enrolled card and the key, looked up by origin, role and key id together, is valid
    now; (3) signature and every disclosure (RFC 9901 7.1).
    Raises MalformedError, UnknownOriginError, KeyringError or SignatureError.
    """
    core = read_core(delivery.presentation)  # (1)
    origin = node_id(core.iss)
    key = receiver.keyring.key(origin, Role.ISSUE, core.kid, now)  # (2)
    verified = sdjwt.verify(core, delivery.presentation.disclosures, public_key=key)  # (3)
    return Opened(origin, hashlib.sha256(core.core).digest(), verified, delivery.terms, delivery.grant)


def read_core(presentation: Presentation) -> sdjwt.UnverifiedCore:
    """The core, unverified. Raises MalformedError, and TooLargeError for one of so many values, or disclosures of so
    many, that they would take many times their size in memory."""
    if len(presentation.core) + sum(map(len, presentation.disclosures)) > UNCOUNTED_BYTES:
        payload = from_b64url(presentation.core.partition(b".")[2].partition(b".")[0].decode("latin-1"))
        if sum(map(_values, (payload, *presentation.disclosures))) > MAX_JSON_VALUES:
            raise TooLargeError(f"core: over {MAX_JSON_VALUES} values in it and its disclosures")
    return sdjwt.read_header_and_payload(presentation.core)


def _values(text: bytes) -> int:
    """No fewer values than JSON holds; marks in its texts count too."""
    return sum(map(text.count, (b",", b"[", b"{")))


def read_advisory(opened: Opened, labels: LabelSet, now: datetime) -> Advisory:
    """The meaning of a core whose signature holds.

    (1) exactly the members of this version, always plain; (2) `jti` is the origin, the document's tracking id and a
    revision; (3) `iat` is not in our future; (4) handling is whole and known (I6).
    Raises MalformedError or HandlingError.
    """
    payload, claims = opened.verified.payload, opened.verified.claims
    members = payload.keys()
    if (
        members != _PLAIN
        or type(payload["v"]) is not int
        or payload["v"] != CORE_VERSION
        or claims.keys() - _PLAIN - {"ai"}
    ):
        raise MalformedError("core: members missing, unknown or of another version")  # (1)
    name, revision = _name_and_revision(payload, opened.origin)  # (2)
    issued_at = payload["iat"]
    if not isinstance(issued_at, int) or isinstance(issued_at, bool) or not 0 < issued_at <= _LATEST_IAT:
        raise MalformedError("core: iat is no instant")
    moment = datetime.fromtimestamp(issued_at, UTC)
    if moment > now + timedelta(seconds=MAX_CLOCK_SKEW_S):  # (3)
        raise MalformedError("core: issued in our future: one of the clocks is wrong")
    if not isinstance(payload["handling"], dict):
        raise HandlingError("handling: missing")
    return Advisory(
        origin=opened.origin,
        name=name,
        revision=revision,
        issued_at=moment,
        handling=handling.read(payload["handling"]),  # (4)
        csaf=claims["csaf"],
        ai=claims.get("ai"),
        core_digest=opened.core_digest,
        elements=elements(payload, opened.verified.nodes, labels),
        terms=opened.terms,
        grant=opened.grant,
    )


def admit(advisory: Advisory, receiver: Receiver, sender: NodeId, now: datetime) -> Admitted:
    """Whether this node may keep an advisory that `sender` delivered.

    (1) the sender is the origin, or may pass it on; (2) the terms name an agreement that is in force between the sender
    and us; (3) storage in this country is allowed by handling, agreement and terms, and the retention has not ended;
    (4) the origin's home is what its card says, since law asks for it; (5) the agreement's permits and our own law let
    us store what arrived; (6) the terms are no wider than agreement and signed handling. What fails at (1), (2), (3) or
    (5) may not be stored; the rest is evidence. Raises NotAdmittedError, HandlingError, TermsError, and for what was
    passed on as `_passed_on`.
    """
    categories = _categories_by_form(advisory.elements)
    if sender == advisory.origin:  # (1)
        asked, sent_from = _from_origin(advisory), None
    else:
        asked = _passed_on(advisory, categories, receiver, sender, now)
        sent_from = receiver.keyring.card(sender).jurisdiction
    agreement = receiver.agreements.get(advisory.terms.agreement_digest)
    if agreement is None or not agreement.in_dates(now) or not agreement.covers(sender, receiver.me):  # (2)
        raise NotAdmittedError("the terms name no agreement that is in force between us")
    for places in (advisory.handling.storage, agreement.storage, advisory.terms.storage):  # (3)
        if places is not None and receiver.country not in places:
            raise NotAdmittedError("storage in this country is not allowed", ("handling/storage",))
    for end in (advisory.handling.retain_until, advisory.terms.retain_until):
        if end is not None and end <= now:
            raise NotAdmittedError("the retention has ended", ("handling/expired",))
    if advisory.handling.home != receiver.keyring.card(advisory.origin).jurisdiction:  # (4)
        raise HandlingError("handling: home is not the jurisdiction on the origin's card")
    kept = may_store(  # (5)
        categories,
        asked,
        advisory.origin,
        sender,
        receiver.me,
        receiver.country,
        agreement,
        receiver.book,
        now,
        sender_country=sent_from,
    )
    handling.check_terms(advisory.terms, advisory.handling, agreement, advisory.core_digest, receiver.me, now)  # (6)
    return Admitted(advisory, kept.rules, kept.alarms)


def _from_origin(advisory: Advisory) -> Handling:
    """The handling of a core that its origin delivers. Raises MalformedError for a grant beside it: it needs none."""
    if advisory.grant:
        raise MalformedError("delivery: a grant beside a core that its origin delivers itself")
    return advisory.handling


def _passed_on(
    advisory: Advisory,
    categories: Mapping[Form, frozenset[Category]],
    receiver: Receiver,
    sender: NodeId,
    now: datetime,
) -> Handling:
    """The handling of a core that a relay delivers, as its origin lets that relay pass it on to us.

    (a) never TLP:RED or AMBER+STRICT; (b) not before the embargo ends; (c) the handling allows it, or the origin's
    grant beside the core does: verified under the origin's key, for this core, this sender, us, all that arrived, and
    now. A grant counts as its origin's word that this relay may share with peers. Raises NotAdmittedError, GrantError,
    and what `grant.read` raises.
    """
    allowed = advisory.handling
    if allowed.tlp in (Tlp.RED, Tlp.AMBER_STRICT):  # (a)
        raise NotAdmittedError(f"TLP:{allowed.tlp} is not passed on", ("handling/relay-tlp",))
    if allowed.embargo_until is not None and now + timedelta(seconds=MAX_CLOCK_SKEW_S) < allowed.embargo_until:  # (b)
        raise NotAdmittedError("its embargo has not ended: nothing is passed on before", ("handling/embargo",))
    if not advisory.grant:  # (c)
        if allowed.onward is not Onward.PEERS:
            raise NotAdmittedError(
                f"{sender} passes on what {advisory.origin} does not let it, without a grant", ("relay/no-grant",)
            )
        return allowed
    grant.check(
        grant.read(advisory.grant, lambda author, kid: receiver.keyring.key(author, Role.ISSUE, kid, now)),
        origin=advisory.origin,
        core_digest=advisory.core_digest,
        relay=sender,
        recipient=receiver.me,
        categories=frozenset().union(*categories.values()),
        now=now,
    )
    return replace(allowed, onward=Onward.PEERS)


def may_keep_evidence(delivery: Delivery, receiver: Receiver, sender: NodeId, now: datetime) -> bool:
    """Whether the bytes of a delivery that is set aside may be kept: an agreement in force lets `sender` have us store
    things of its own in this country. Else only the leaf hash is kept: nobody can plant bytes here, nor have us keep
    what another node signed and did not let go as far as here."""
    if not _is_own(delivery, sender):
        return False
    agreement = receiver.agreements.get(delivery.terms.agreement_digest)
    return agreement is not None and _lets_store(agreement, receiver, sender, now)


def may_keep_unread(data: bytes, receiver: Receiver, sender: NodeId, now: datetime) -> bool:
    """Whether bytes that are no entry may be kept as evidence: there are few, they do not hide anything behind what can
    be read, and an agreement in force lets `sender` have us store things in this country, as for `may_keep_evidence`.
    """
    if len(data) > MAX_EVIDENCE_BYTES or hides(data):
        return False
    return any(_lets_store(agreement, receiver, sender, now) for agreement in receiver.agreements.values())


def _lets_store(agreement: Agreement, receiver: Receiver, sender: NodeId, now: datetime) -> bool:
    if not agreement.in_dates(now) or not agreement.covers(sender, receiver.me):
        return False
    return agreement.storage is None or receiver.country in agreement.storage


def _is_own(delivery: Delivery, sender: NodeId) -> bool:
    """Whether a core names its sender as the origin; so does one that nobody can read."""
    try:
        return read_core(delivery.presentation).iss == sender
    except RemoteError:
        return True


def _categories_by_form(arrived: Sequence[Element]) -> dict[Form, frozenset[Category]]:
    """The categories of everything that arrived in each form; an element without a category is refused (I2)."""
    found: dict[Form, frozenset[Category]] = {}
    for element in arrived:
        if not element.categories:
            raise NotAdmittedError("a part of it has no label, so nothing permits keeping it")
        form = Form.FULL if element.full is not None else Form.GENERALISED
        found[form] = found.get(form, frozenset()) | element.categories
    return found


def _name_and_revision(payload: JsonObject, origin: NodeId) -> tuple[str, int]:
    """The tracking id and our revision; the tracking id of a CSAF document is always plain."""
    csaf = payload["csaf"]
    document = csaf.get("document") if isinstance(csaf, dict) else None
    tracking = document.get("tracking") if isinstance(document, dict) else None
    name = tracking.get("id") if isinstance(tracking, dict) else None
    jti = payload["jti"]
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME or not isinstance(jti, str):
        raise MalformedError("core: no tracking id, or no jti")
    revision = jti.rpartition("/")[2]
    if not _REVISION.fullmatch(revision) or jti != f"{origin}/{name}/{revision}":
        raise MalformedError("core: jti is not origin, tracking id and revision")
    return name, int(revision)
