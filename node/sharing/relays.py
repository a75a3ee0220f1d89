"""Passing on: an origin's grants, and what of a received advisory may go to another peer.

A grant is the origin's leave, signed, to pass one core on (`federation.grant`). It comes through the origin's feed, and
travels on beside the core. Whether anything is passed on is decided here, part by part, under an agreement between this
node and the recipient, never the origin's: law, agreement, the signed handling, the terms under which it was received,
and the grant must all allow it. A part passes in the form in which it came, or not at all. Appending is
`node.sharing.passing`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, exists, insert, select

from federation import entries, grant, handling, outbound
from federation.agreement import Agreement
from federation.entries import Delivery, Granted
from federation.errors import GrantError, HeldError, NotFoundError, TermsError, UsageError
from federation.grant import Grant
from federation.handling import as_received
from federation.keyring import Card, Keyring
from federation.limits import MAX_PARTIES
from federation.model import (
    Attribution,
    Category,
    Decision,
    Element,
    ElementDecision,
    Form,
    Handling,
    NodeId,
    Onward,
    Role,
    Rule,
    Terms,
)
from federation.outbound import OwnAdvisory
from federation.policy.decide import decide, forbidden_onward, with_products
from node.desk.inbox import InboxState
from node.home import signing
from node.home.context import Node
from node.home.people import Post
from node.peering import confirm, control
from node.peering.peers import keyring, trusted_cards
from node.store.database import read, record, write
from node.store.tables import advisories, grants, in_entries, inbox, out_entries, out_feeds

BY_NAME_ONLY: Final = frozenset((Category.PERSONAL, Category.VICTIM, Category.SOURCE))  # if a grant says so
_USABLE: Final = (InboxState.CURRENT, InboxState.SUPERSEDED)
_NOT_GRANTED = Rule("relay/grant", "the origin's grant", "The origin's grant does not cover parts of this kind.")
_BY_HAND = Rule("relay/by-hand", "a person's decision", "A person here keeps this part back.")


@dataclass(frozen=True, slots=True)
class Given:
    """A grant that was given or received. `name` and `revision` are None where its core is not here."""

    grant: Grant
    name: str | None
    revision: int | None
    at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class Received:
    """What is held of an advisory that a peer delivered, for passing it on. `item` is its number in the inbox."""

    item: int
    peer: NodeId
    origin: NodeId
    name: str
    revision: int
    state: InboxState
    advisory: OwnAdvisory
    terms: Terms

    @property
    def handling(self) -> Handling:
        """The widest use that this node can pass on."""
        return as_received(self.advisory.handling, self.terms)

    @property
    def needs_grant(self) -> bool:
        """Whether nobody but the origin can allow that it be passed on.

        Whoever must not tell who provided it cannot pass on what the provider has signed.
        """
        return self.handling.onward is not Onward.PEERS or self.terms.attribution is Attribution.MUST_NOT


def give(
    node: Node,
    name: str,
    relay: NodeId,
    recipients: Iterable[NodeId],
    categories: Iterable[Category] | None,
    until: datetime,
) -> tuple[Given, bool]:
    """Signs a grant for the newest signed revision of `name`, and sends it to the relay.

    Without `categories`: all that handling and law let the relay pass on, but those of BY_NAME_ONLY. Returns the grant,
    and whether it is new. Raises NotFoundError, UsageError, and HeldError for what handling or law forbid.
    """
    node.allow(Post.ANALYST)
    now, named = node.clock(), frozenset(recipients)
    with write(node.engine) as tx:
        relay_card, cards = _parties(node, tx, relay, named)
        row = tx.execute(
            select(advisories)
            .where(advisories.c.name == name, advisories.c.core.is_not(None))
            .order_by(advisories.c.revision.desc())
            .limit(1)
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"no advisory that is called {name} was signed here; see: apostille advisory list")
        if row.recall is not None:
            raise UsageError(f"{name} revision {row.revision} is recalled: nobody may pass it on")
        if until <= now:
            raise UsageError("the grant would have ended before it was given; name a later day")
        allowed = _grantable(node, handling.read(row.handling), relay_card, cards, categories)
        signer = signing.signer_for_all(node, tx, Role.ISSUE)  # it is verified where it goes on to
        made = grant.sign(
            node.id, row.core_digest, relay, named, allowed, until, kid=signer.kid, sign_bytes=signer.sign
        )
        known = tx.execute(select(grants).where(grants.c.digest == made.digest)).one_or_none()
        if known is not None:
            return Given(grant.reread(known.document), name, row.revision, known.at, known.by), False
        control.send(node, tx, relay_card, Granted(made.document))
        _keep(tx, made, now, by=node.actor)
        detail = f"{row.core_digest.hex()} {relay} for {', '.join(sorted(named))}"
        record(tx, at=now, by=node.actor, act="grant.give", subject=name, detail=detail)
    return Given(made, name, row.revision, now, node.actor), True


def receive_grant(node: Node, tx: Connection, document: bytes, peer: NodeId, keyring: Keyring) -> None:
    """Takes in a grant from its origin; the same again changes nothing. Raises a RemoteError."""
    now = node.clock()
    given = grant.read(document, lambda author, kid: keyring.key(author, Role.ISSUE, kid, now))
    if given.origin != peer:
        raise GrantError(f"grant: {peer} brings one that {given.origin} signed; it goes to the relay directly")
    if given.relay != node.id:
        raise GrantError(f"grant: for the relay {given.relay}, which is not this node")
    if tx.execute(select(grants.c.digest).where(grants.c.digest == given.digest)).one_or_none() is not None:
        return
    _keep(tx, given, now, by=peer)
    record(tx, at=now, by=peer, act="grant.receive", subject=given.origin, detail=given.core_digest.hex())


def all_grants(node: Node) -> tuple[Given, ...]:
    """Every grant that was given or received, newest first."""
    with read(node.engine) as tx:
        rows = tx.execute(select(grants).order_by(grants.c.at.desc(), grants.c.digest)).all()
        names = {
            row.core_digest: (row.name, row.revision)
            for table in (inbox, advisories)
            for row in tx.execute(
                select(table.c.core_digest, table.c.name, table.c.revision).where(
                    table.c.core_digest.in_([row.core_digest for row in rows])
                )
            )
        }
    return tuple(
        Given(grant.reread(row.document), *names.get(row.core_digest, (None, None)), row.at, row.by) for row in rows
    )


def received(node: Node, tx: Connection, item: int) -> Received:
    """What is held of the inbox's item of that number.

    Raises HeldError for what this node may not use itself: disputed, withdrawn, recalled, past its retention; and where
    the origin is not trusted.
    """
    row = tx.execute(
        select(inbox, in_entries.c.data)
        .join(in_entries, (in_entries.c.feed == inbox.c.feed) & (in_entries.c.seq == inbox.c.seq))
        .where(inbox.c.id == item)
    ).one()
    if row.peer in confirm.unheard(tx):
        raise HeldError(f"{row.peer} brought item {item} of the inbox, and has not been heard since a restore")
    now, body = node.clock(), entries.read(row.data).body if row.data is not None else None
    if row.state not in _USABLE or not isinstance(body, Delivery):
        raise HeldError(f"item {item} of the inbox may not be used any more: it is {row.state}")
    if row.origin not in keyring(node, tx).cards:
        raise HeldError(f"{row.origin}, the origin of item {item}, is not trusted")
    core, disclosures = body.presentation.core, body.presentation.disclosures
    held = Received(
        item=item,
        peer=NodeId(row.peer),
        origin=NodeId(row.origin),
        name=row.name,
        revision=row.revision,
        state=InboxState(row.state),
        advisory=outbound.reopen(core, disclosures, node.labels, whole=False),
        terms=body.terms,
    )
    if held.handling.retain_until is not None and held.handling.retain_until <= now:
        raise HeldError(f"item {item} of the inbox: its retention has ended")
    return held


def grant_for(node: Node, tx: Connection, held: Received, recipient: NodeId) -> Grant | None:
    """The grant that lets this node pass most of it on to `recipient` now."""
    rows = tx.execute(
        select(grants.c.document).where(
            grants.c.core_digest == held.advisory.core_digest,
            grants.c.origin == held.origin,
            grants.c.relay == node.id,
            grants.c.until > node.clock(),
        )
    ).scalars()
    fitting = (given for given in map(grant.reread, rows) if recipient in given.recipients)
    return max(fitting, key=lambda given: (len(given.categories), given.until, given.digest), default=None)


def judge(
    node: Node,
    held: Received,
    card: Card,
    agreement: Agreement | None,
    leave: Grant | None,
    keep_back: Callable[[Element], bool] = lambda _: False,
) -> Decision:
    """What may be passed on to a peer under `agreement`, and under `leave` where a grant is needed.

    `keep_back` are parts that a person withholds.
    """
    may_go = leave is not None or not held.needs_grant
    decision = decide(
        held.advisory.elements,
        replace(held.handling, onward=Onward.PEERS if may_go else Onward.NONE),
        held.origin,
        node.id,
        card.node,
        card.jurisdiction,
        agreement,
        node.book,
        node.clock(),
        sender_country=node.jurisdiction,
    )

    def narrowed(decided: ElementDecision) -> ElementDecision:
        element = decided.element
        if decided.form is Form.WITHHELD:
            return decided
        if leave is not None and not element.categories <= leave.categories:
            return ElementDecision(element, Form.WITHHELD, (_NOT_GRANTED,))
        if keep_back(element):
            return ElementDecision(element, Form.WITHHELD, (_BY_HAND,))
        return replace(decided, form=Form.GENERALISED if element.full is None else Form.FULL)  # as it came

    ends = [decision.next_change_at, leave.until if leave else None]
    return replace(
        decision,
        elements=with_products(map(narrowed, decision.elements)),
        next_change_at=min((end for end in ends if end is not None), default=None),
    )


def narrowed_terms(node: Node, held: Received, recipient: NodeId, agreement: Agreement) -> Terms:
    """The terms of passing it on: no wider than handling, agreement, and the terms under which it came.

    Raises TermsError when that is nothing, or when the agreement lets the recipient tell who provided it, or be silent
    about that, where this node may not.
    """
    if held.terms.attribution not in (Attribution.MAY, agreement.attribution):
        raise TermsError(
            f"agreement {agreement.id} says of the provider's name: {agreement.attribution}; it came here under the"
            f" terms: {held.terms.attribution}"
        )
    return handling.narrow(held.handling, agreement, held.advisory.core_digest, recipient, node.clock())


def judge_again(
    node: Node, tx: Connection, item: int, entry: bytes, card: Card, agreement: Agreement
) -> Decision | None:
    """The decision on an entry that passes `item` on, as it would be made now; None when it may not go at all."""
    body = entries.read(entry).body
    leave = grant.reread(body.grant) if isinstance(body, Delivery) and body.grant else None
    try:
        held = received(node, tx, item)
    except HeldError:
        return None
    if leave is not None and leave.until <= node.clock():
        return None
    return judge(node, held, card, agreement, leave)


def passed_on_between(tx: Connection, origin: NodeId, name: str, peer: NodeId) -> bool:
    """Whether this node has ever passed that advisory of `origin` on to `peer`."""
    found = (
        select(out_entries.c.seq)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .join(inbox, inbox.c.id == out_entries.c.inbox)
        .where(out_feeds.c.peer == peer, inbox.c.origin == origin, inbox.c.name == name)
    )
    return bool(tx.execute(select(exists(found))).scalar_one())


def _parties(
    node: Node, tx: Connection, relay: NodeId, recipients: frozenset[NodeId]
) -> tuple[Card, dict[NodeId, Card]]:
    """The cards of the relay and of each recipient, whose country law asks for. Raises NotFoundError, UsageError."""
    direct = trusted_cards(tx)
    if relay not in direct:
        raise NotFoundError(f"{relay} is no peer that this node exchanges with; see: apostille peer list")
    if not 1 <= len(recipients) <= MAX_PARTIES:
        raise UsageError(f"a grant names 1 to {MAX_PARTIES} recipients")
    if recipients & {node.id, relay}:
        raise UsageError("a grant names others as recipients than this node and the relay")
    known = keyring(node, tx).cards
    unknown = sorted(recipients - known.keys())
    if unknown:
        raise UsageError(
            f"the card of {', '.join(unknown)} is not known here, and with it the country that law asks for:"
            " apostille peer enrol CARD --keys-only"
        )
    return direct[relay], {recipient: known[recipient] for recipient in recipients}


def _grantable(
    node: Node,
    allowed: Handling,
    relay: Card,
    recipients: dict[NodeId, Card],
    asked: Iterable[Category] | None,
) -> frozenset[Category]:
    """The categories that a grant may name. Raises HeldError where law or handling forbid one that was asked for."""
    wanted = frozenset(Category) - BY_NAME_ONLY if asked is None else frozenset(asked)
    forbidden: dict[Category, str] = {}
    for recipient, card in sorted(recipients.items()):
        rules_of = forbidden_onward(
            wanted,
            allowed,
            node.id,
            relay.node,
            relay.jurisdiction,
            recipient,
            card.jurisdiction,
            node.book,
            node.clock(),
        )
        for category, rules in rules_of.items():
            why = "; ".join(f"{rule.says} ({rule.id})" for rule in rules)
            forbidden[category] = f"{category} may not be passed on to {recipient}: {why}"
    left = wanted - forbidden.keys()
    if forbidden and (asked is not None or not left):
        raise HeldError(next(iter(forbidden.values())))
    return left


def _keep(tx: Connection, given: Grant, at: datetime, *, by: str) -> None:
    tx.execute(
        insert(grants).values(
            digest=given.digest,
            origin=given.origin,
            core_digest=given.core_digest,
            relay=given.relay,
            until=given.until,
            document=given.document,
            at=at,
            by=by,
        )
    )
