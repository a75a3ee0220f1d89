"""Releasing: deciding what each peer gets, and appending it to that peer's feed.

A release signs the advisory if it was a draft, decides for each peer under the agreement in force, presents, and
appends entry and ledger row in one transaction: no disclosure without its row (I14). Serving asks policy again (I11):
what may no longer go is withdrawn in place of being sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from federation import handling
from federation.agreement import Agreement
from federation.entries import Delivery, Withdrawal
from federation.entries import read as read_entry
from federation.errors import HeldError, NotFoundError, TermsError, UsageError
from federation.keyring import Card
from federation.model import Decision, Form, NodeId, Terms, Tier, Tlp, instant, instant_text
from federation.outbound import OwnAdvisory, Presented, present
from federation.policy.decide import decide
from node.home.context import Node
from node.home.people import Post
from node.peering import control, feeds
from node.peering.agreements import in_force
from node.peering.feeds import Place
from node.peering.peers import all_peers, trusted_card
from node.records import ledger as book
from node.records.alarms import raise_faults, untold_faults
from node.records.ledger import Act
from node.sharing import advisories, erasures, relays, statements
from node.sharing.advisories import State, Summary
from node.store.database import read, record, scrub, write
from node.store.tables import advisories as own_advisories
from node.store.tables import ledger, out_entries

_GAIN = {Form.FULL: 2, Form.GENERALISED: 1, Form.WITHHELD: 0}
ANSWERS_RECALLS: Final = 2  # the protocol version from which on a node answers for what it purged
_TOO_OLD: Final = "it speaks protocol version 1, which cannot answer a recall: it must be upgraded before it gets this"
_KEY_IS_OVER: Final = (
    "the key that signed this revision has ended or was retired, so nobody takes it any more: make and release the next"
    " one with apostille advisory revise --from-issued"
)
_NO_LONGER_PERMITTED = "no-longer-permitted"
_BY_HAND = "withdrawn-by-hand"
_DELIVERED: Final = (  # entries whose bytes stand, with their rows of the ledger and of what they were made from
    select(
        out_entries.c.seq,
        out_entries.c.advisory,
        out_entries.c.inbox,
        out_entries.c.data,
        ledger.c.record,
        own_advisories.c.core,
        own_advisories.c.disclosures,
        own_advisories.c.recall,
    )
    .join(ledger, (ledger.c.feed == out_entries.c.feed) & (ledger.c.seq == out_entries.c.seq))
    .outerjoin(own_advisories, own_advisories.c.id == out_entries.c.advisory)
    .where(ledger.c.kind == Act.RELEASE, out_entries.c.data.is_not(None))
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a release comes to for one peer.

    `presented` is None when nothing may leave; `held` says why a person must look; `seq` is the entry's place in the
    feed, None for a preview or when nothing was appended; `already` tells that the very same was released before.
    """

    peer: NodeId
    decision: Decision
    presented: Presented | None
    held: str | None
    seq: int | None
    already: bool = False


def preview(node: Node, name: str, to: Iterable[NodeId] = ()) -> tuple[Summary, tuple[Outcome, ...]]:
    """What a release of `name` would give each peer; nothing is changed. Raises NotFoundError, UsageError."""
    targets = _targets(node, to)
    with read(node.engine) as tx:
        summary, own = advisories.own_advisory(node, name, tx)
        _refuse_recalled(summary)
        agreements = in_force(tx, node.clock())
    return summary, tuple(_judge(node, own, card, agreements) for card in targets)


def release(node: Node, name: str, to: Iterable[NodeId] = ()) -> tuple[Summary, tuple[Outcome, ...]]:
    """Releases `name` to each peer (all trusted ones, unless `to` names some): decided, appended, accounted for.

    One transaction: either every peer's outcome stands, or none. Raises NotFoundError, UsageError, ConflictError.
    """
    node.allow(Post.ANALYST)
    targets = _targets(node, to)
    with write(node.engine) as tx:
        unsigned = tx.begin_nested()
        summary, own = advisories.issue(node, tx, name)
        _refuse_recalled(summary)
        agreements = in_force(tx, node.clock())
        outcomes = [_judge(node, own, card, agreements) for card in targets]
        faults = [fault for outcome in outcomes for fault in outcome.decision.alarms]
        if all(outcome.presented is None for outcome in outcomes):
            unsigned.rollback()  # nothing leaves, so a draft stays a draft and can still be mended
        else:
            unsigned.commit()
            outcomes = [_append(node, tx, summary, own, outcome, agreements) for outcome in outcomes]
        raise_faults(tx, faults, node.clock())
    return summary, tuple(outcomes)


def explain(node: Node, name: str, peer: NodeId) -> tuple[Summary, Outcome]:
    """The decision for one peer, with everything that decided it. Raises NotFoundError."""
    summary, outcomes = preview(node, name, (peer,))
    return summary, outcomes[0]


def withdraw(node: Node, name: str, peer: NodeId, revision: int | None = None) -> tuple[int, ...]:
    """Takes back what stands of our own advisory in the feed to a peer, of one revision if it is named.

    Returns the entries. Raises NotFoundError, and HeldError when law forbids even to say so.
    """
    node.allow(Post.ANALYST)
    card = trusted_card(node, peer)
    with write(node.engine) as tx:
        keys = advisories.issued_keys(tx, name, revision)
        epochs = erasures.standing(tx, own=keys).get(peer, {})
        seqs = epochs.get(feeds.out_feed(tx, peer).epoch, ())
        if not seqs:
            which = name if revision is None else f"{name} revision {revision}"
            ended = "; what it got in an epoch that has ended can be recalled: apostille recall" if epochs else ""
            raise NotFoundError(f"nothing of {which} stands in the feed to {peer}{ended}")
        take_back(node, tx, card, seqs, _BY_HAND, by=node.actor)
    scrub(node.engine)
    return seqs


def withdraw_what_may_not_go(node: Node, card: Card, seqs: range) -> tuple[int, ...]:
    """Asks policy again about the entries `seqs` of the feed to a peer; takes back those that may no longer go.

    Returns their sequence numbers. The withdrawal is an entry of the feed; the bytes are erased in the same
    transaction.
    """
    with read(node.engine) as tx:
        doubtful, faults = _not_permitted(node, tx, card, seqs)
        faults = untold_faults(tx, faults, node.clock())
    if not doubtful and not faults:
        return ()
    with write(node.engine) as tx:
        doubtful, faults = _not_permitted(node, tx, card, seqs)  # again, under the lock
        raise_faults(tx, faults, node.clock())
        if doubtful:
            take_back(node, tx, card, doubtful, _NO_LONGER_PERMITTED, by=feeds.POLICY)
    scrub(node.engine)
    return doubtful


def take_back(node: Node, tx: Connection, card: Card, seqs: tuple[int, ...], reason: str, *, by: str) -> None:
    """Withdraws entries of the current feed to a peer and erases their bytes; the caller scrubs after the commit.

    Raises HeldError when law forbids even to say so.
    """
    eraser = control.send(node, tx, card, Withdrawal(seqs, reason))
    feeds.erase(tx, eraser.feed, seqs, eraser.seq)
    now, feed = node.clock(), feeds.out_feed(tx, card.node)
    facts = {"entries": list(seqs), "reason": reason, "leaf_hash": eraser.leaf_hash.hex()}
    where = book.Where(card.node, feed.id, feed.origin, eraser.seq)
    book.add(tx, Act.WITHDRAWAL, where, facts, at=now, by=by)
    detail = f"entries {', '.join(map(str, seqs))} by {eraser.seq}"
    record(tx, at=now, by=by, act="release.withdraw", subject=card.node, detail=detail)


def deliver_again(node: Node, tx: Connection, card: Card, places: Iterable[tuple[int, int]]) -> int:
    """Appends deliveries of ended epochs to the current feed, the very same, as far as policy still allows all of each.

    `places` are rows of old feeds with a number in each. Each that goes has its row of the ledger; returns how many did
    not go.
    """
    agreements, left = in_force(tx, node.clock()), 0
    faults: list[str] = []
    for ended, seq in places:
        row = tx.execute(_DELIVERED.where(out_entries.c.feed == ended, out_entries.c.seq == seq)).one()
        body = read_entry(row.data).body
        if not isinstance(body, Delivery) or not _still_permitted(node, tx, row, card, agreements, faults):
            left += 1
            continue
        facts = book.facts_of(row.record)
        place = feeds.append(node, tx, card.node, body, advisory=row.advisory, inbox=row.inbox)
        about = NodeId(facts["origin"]), facts["name"], facts["revision"]
        enter(node, tx, card.node, place, *about, body.terms, facts["elements"], act="release.again")
    raise_faults(tx, faults, node.clock())
    return left


def _refuse_recalled(summary: Summary) -> None:
    if summary.state is State.RECALLED:
        raise UsageError(
            f"{summary.name} revision {summary.revision} is recalled and is released no more; a new revision is made"
            f" with: apostille advisory revise {summary.name} FILE"
        )


def _targets(node: Node, to: Iterable[NodeId]) -> tuple[Card, ...]:
    chosen = tuple(to)
    if chosen:
        return tuple(trusted_card(node, peer) for peer in dict.fromkeys(chosen))
    found = tuple(peer.card for peer in all_peers(node) if peer.trusted and peer.direct)
    if not found:
        raise UsageError("there is no peer to release to; enrol one with: apostille peer enrol CARD")
    return found


def _judge(node: Node, own: OwnAdvisory, card: Card, agreements: dict[bytes, Agreement]) -> Outcome:
    """The best outcome that an agreement in force allows; without one, everything is withheld."""
    covering = sorted((a for a in agreements.values() if a.covers(node.id, card.node)), key=lambda a: a.id)
    if not covering:
        return _judge_under(node, own, card, None)
    return max((_judge_under(node, own, card, agreement) for agreement in covering), key=gain)


def _judge_under(node: Node, own: OwnAdvisory, card: Card, agreement: Agreement | None) -> Outcome:
    decision = decide(
        own.elements, own.handling, node.id, node.id, card.node, card.jurisdiction, agreement, node.book, node.clock()
    )
    if not decision.shares_anything:
        held = "a duty to send it conflicts with the rules that withhold it" if decision.owed else None
        return Outcome(card.node, decision, None, held, None)
    if card.speaks < ANSWERS_RECALLS and (own.handling.tlp is Tlp.RED or own.handling.tier is Tier.DUAL_USE):
        return Outcome(card.node, decision, None, _TOO_OLD, None)
    if not advisories.can_be_verified(node, own):
        return Outcome(card.node, decision, None, _KEY_IS_OVER, None)
    try:
        presented = present(own, decision)
    except HeldError as e:
        return Outcome(card.node, decision, None, str(e), None)
    return Outcome(card.node, presented.decision, presented, None, None)


def gain(outcome: Outcome) -> int:
    """How much an outcome gives the peer: of several the greatest is chosen."""
    return sum(_GAIN[e.form] for e in outcome.decision.elements) if outcome.presented else -1


def _append(
    node: Node, tx: Connection, summary: Summary, own: OwnAdvisory, outcome: Outcome, agreements: dict[bytes, Agreement]
) -> Outcome:
    if outcome.presented is None or outcome.decision.agreement_digest is None:
        return outcome
    elements = book.account(outcome.decision)
    agreement = agreements[outcome.decision.agreement_digest]
    feed = feeds.out_feed(tx, outcome.peer)
    previous = tx.execute(
        select(ledger.c.seq, ledger.c.record)
        .join(out_entries, (out_entries.c.feed == ledger.c.feed) & (out_entries.c.seq == ledger.c.seq))
        .where(
            ledger.c.kind == Act.RELEASE,
            out_entries.c.feed == feed.id,
            out_entries.c.advisory == summary.key,
            out_entries.c.data.is_not(None),
        )
        .order_by(ledger.c.seq.desc())
        .limit(1)
    ).one_or_none()
    if previous is not None and not statements.refused(tx, feed, previous.seq):
        facts = book.facts_of(previous.record)
        if facts["elements"] == elements and facts["agreement"] == agreement.digest.hex():
            return Outcome(outcome.peer, outcome.decision, outcome.presented, None, previous.seq, already=True)
    now = node.clock()
    try:
        terms = handling.narrow(own.handling, agreement, own.core_digest, outcome.peer, now)
    except TermsError as e:
        return Outcome(outcome.peer, outcome.decision, None, str(e), None)
    place = feeds.append(node, tx, outcome.peer, Delivery(outcome.presented.presentation, terms), advisory=summary.key)
    enter(node, tx, outcome.peer, place, node.id, summary.name, summary.revision, terms, elements)
    return Outcome(outcome.peer, outcome.decision, outcome.presented, None, place.seq)


def enter(
    node: Node,
    tx: Connection,
    peer: NodeId,
    place: Place,
    origin: NodeId,
    name: str,
    revision: int,
    terms: Terms,
    elements: list[list[Any]],
    *,
    act: str = "release",
) -> None:
    """The ledger's row for an advisory that was appended (I14), and the audit row, which calls it `act`."""
    now, feed = node.clock(), feeds.out_feed(tx, peer)
    facts = {
        "origin": origin,
        "name": name,
        "revision": revision,
        "core_digest": terms.core_digest.hex(),
        "leaf_hash": place.leaf_hash.hex(),
        "agreement": terms.agreement_digest.hex(),
        "purposes": sorted(terms.purposes),
        "retain_until": None if terms.retain_until is None else instant_text(terms.retain_until),
        "storage": None if terms.storage is None else sorted(terms.storage),
        "onward": terms.onward,
        "attribution": terms.attribution,
        "elements": elements,
    }
    where = book.Where(peer, place.feed, feed.origin, place.seq)
    book.add(tx, Act.RELEASE, where, facts, at=now, by=node.actor)
    record(tx, at=now, by=node.actor, act=act, subject=name, detail=f"{peer} {place.seq}")


def _not_permitted(node: Node, tx: Connection, card: Card, seqs: range) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Those of `seqs` whose disclosure policy would not allow now, and what it could not evaluate."""
    agreements = in_force(tx, node.clock())
    rows = tx.execute(
        _DELIVERED.where(
            out_entries.c.feed == feeds.out_feed(tx, card.node).id,
            out_entries.c.seq >= seqs.start,
            out_entries.c.seq < seqs.stop,
        ).order_by(out_entries.c.seq)
    ).all()
    faults: list[str] = []
    doubtful = tuple(row.seq for row in rows if not _still_permitted(node, tx, row, card, agreements, faults))
    return doubtful, tuple(faults)


def _still_permitted(
    node: Node, tx: Connection, row: Any, card: Card, agreements: dict[bytes, Agreement], faults: list[str]
) -> bool:
    """Whether policy, asked now, allows every element at least in the form in which it stands in the entry.

    What it could not evaluate is added to `faults`.
    """
    facts = book.facts_of(row.record)
    agreement = agreements.get(bytes.fromhex(facts["agreement"]))
    if agreement is None or (facts["retain_until"] is not None and instant(facts["retain_until"]) <= node.clock()):
        return False
    if row.inbox is not None:  # passed on for its origin
        again = relays.judge_again(node, tx, row.inbox, row.data, card, agreement)
        if again is None:
            return False
        decision = again
    else:
        if row.recall is not None and advisories.has_to_follow(tx, row.recall, card.node):
            return False
        own = advisories.reopened(node, row.core, row.disclosures)
        decision = decide(
            own.elements,
            own.handling,
            node.id,
            node.id,
            card.node,
            card.jurisdiction,
            agreement,
            node.book,
            node.clock(),
        )
    faults += decision.alarms
    allowed = {e.element.path: _GAIN[e.form] for e in decision.elements}
    return all(_GAIN[Form(form)] <= allowed.get(path, 0) for path, form, _ in facts["elements"])
