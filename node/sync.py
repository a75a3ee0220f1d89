"""Receiving: pulling a peer's feed until it is caught up.

Each page is proved before anything in it is read, and committed whole: entries, inbox, cursor, edge and head in one
transaction, by compare-and-swap on the cursor (I9). A receipt is signed afterwards, from the head that is durable
then, and goes with the next call; a sync ends with an empty pull that carries the last one. One bad entry is
quarantined and the feed goes on (I10); of what may not be kept, only leaf hash and rule are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, insert, select, update

from federation import checkpoint, feed, merkle
from federation.entries import AgreementOffer, Delivery, ErasedItem, Withdrawal
from federation.errors import (
    BadPageError,
    ConflictError,
    FeedFrozenError,
    HeldError,
    NotAdmittedError,
    NotFoundError,
    RemoteError,
)
from federation.feed import FeedState, PageBytes, PageEntry, VerifiedPage
from federation.inbound import Admitted, Receiver, admit, may_keep_evidence, open_delivery, read_advisory
from federation.keyring import Card
from federation.model import NodeId, Role
from node import agreements, inbox
from node.context import Node
from node.inbox import Disposition
from node.peers import keyring, trusted_card
from node.store.database import one_row, read, record, scrub, write
from node.store.tables import in_entries, in_feeds

STALE_AFTER_POLLS = 2


class Link(Protocol):
    """The calls to one peer that a sync makes; each raises UnreachableError or DeniedError."""

    def pull(self, origin: str, cursor: int, receipt: bytes) -> PageBytes:
        """The page after `cursor`."""

    def checkpoint(self, origin: str, size: int) -> bytes:
        """The peer's signed head at `size`."""


@dataclass(slots=True)
class Report:
    """What a sync brought, by outcome."""

    peer: NodeId
    pages: int = 0
    counts: dict[Disposition, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """How many entries arrived."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class _Judged:
    """An entry with what is to become of it, before it is committed."""

    entry: PageEntry
    outcome: Disposition
    admitted: Admitted | None = None
    code: str | None = None
    detail: str | None = None
    keep: bool = True


def sync(node: Node, peer: NodeId, link: Link, progress: Callable[[Report], None] = lambda _: None) -> Report:
    """Pulls until nothing is left. Everything before an error is kept; the next sync goes on from there.

    Raises NotFoundError for a peer that is not trusted, HeldError for a feed that is frozen, and a RemoteError; a
    FeedFrozenError freezes the feed and keeps the evidence.
    """
    card = trusted_card(node, peer)
    report = Report(peer)
    try:
        _catch_up(node, card, link, report, progress)
    except RemoteError as e:
        _note_problem(node, peer, e)
        raise
    return report


def _catch_up(node: Node, card: Card, link: Link, report: Report, progress: Callable[[Report], None]) -> None:
    retried = False
    while True:
        state = load_state(node, card.node)
        page = link.pull(state.origin, state.cursor, _receipt(node, state))
        now = node.clock()
        keys = card.note_keys(Role.FEED, state.origin, now)
        try:
            verified = feed.verify_page(state, page, keys)
        except BadPageError:
            answer = link.checkpoint(state.origin, state.cursor)
            try:
                feed.judge_fork(state, answer, keys, retried=retried)
            except FeedFrozenError as e:
                _freeze(node, card.node, e, (state.head, answer))
                raise
            retried = True
            continue
        except FeedFrozenError as e:
            _freeze(node, card.node, e, (state.head, page.checkpoint, page.latest))
            raise
        retried = False
        try:
            counts = _commit(node, card.node, state, verified)
        except ConflictError:
            if load_state(node, card.node).cursor == state.cursor:
                raise
            continue  # another process of this home took in this page first: go on from where it is
        report.pages += 1
        for outcome, count in counts.items():
            report.counts[outcome] = report.counts.get(outcome, 0) + count
        progress(report)
        if not verified.entries:
            feed.check_fresh(page.latest, keys, node.clock(), STALE_AFTER_POLLS * node.poll_interval_s)
            return


def load_state(node: Node, peer: NodeId) -> FeedState:
    """What is held of the feed from `peer`. Raises NotFoundError; HeldError when it is frozen."""
    with read(node.engine) as tx:
        row = tx.execute(select(in_feeds).where(in_feeds.c.peer == peer)).one_or_none()
    if row is None:
        raise NotFoundError(f"no peer is called {peer}; see: apostille peer list")
    if row.frozen:
        raise HeldError(
            f"the feed from {peer} is frozen: {row.frozen}. Two people must look at the evidence and heal it"
        )
    pending = tuple(ErasedItem(seq, bytes.fromhex(leaf_hash), eraser) for seq, leaf_hash, eraser in row.pending)
    return FeedState(row.origin, merkle.RightEdge.decode(row.edge), row.head, row.newest, pending)


def _receipt(node: Node, state: FeedState) -> bytes:
    """The receipt for all that is durable here; empty before the first entry, and while an eraser is outstanding."""
    if not state.head or state.pending:
        return b""
    now = node.clock()
    signer = node.keys.signer(Role.RECEIPT, node.card, now)
    return checkpoint.cosign(state.head, node.id, int(now.timestamp()), signer.sign, signer.public)


def _commit(node: Node, peer: NodeId, before: FeedState, page: VerifiedPage) -> dict[Disposition, int]:
    """Judges the entries in their order and stores the whole page, in one transaction.

    In their order, because an agreement or its last signature may come just before what it allows.
    """
    now, after = node.clock(), page.state
    counts: dict[Disposition, int] = {}
    with write(node.engine) as tx:
        moved = tx.execute(
            update(in_feeds)
            .where(in_feeds.c.peer == peer, in_feeds.c.size == before.cursor, in_feeds.c.frozen.is_(None))
            .values(
                size=after.cursor,
                edge=after.edge.encode(),
                head=after.head,
                newest=after.newest,
                pending=[[item.seq, item.leaf_hash.hex(), item.erased_by] for item in after.pending],
                contact_at=now,
                problem=None,
            )
        )
        one_row(moved.rowcount, f"the feed from {peer}")
        receiver = _receiver(node, tx, now)
        if peer not in receiver.keyring.cards:  # distrusted since the page was asked for: nothing of it is kept
            raise NotFoundError(f"{peer} is distrusted; nothing is exchanged with it")
        for entry in page.entries:
            judged = _judge(node, tx, entry, receiver, peer)
            _store(node, tx, peer, judged)
            counts[judged.outcome] = counts.get(judged.outcome, 0) + 1
            if judged.outcome is Disposition.CONTROL:
                receiver = _receiver(node, tx, now)
    if any(entry.envelope and isinstance(entry.envelope.body, Withdrawal) for entry in page.entries):
        scrub(node.engine)
    return counts


def _receiver(node: Node, tx: Connection, now: datetime) -> Receiver:
    return Receiver(
        me=node.id,
        country=node.jurisdiction,
        keyring=keyring(node, tx),
        labels=node.labels,
        book=node.book,
        agreements=agreements.in_force(tx, now),
    )


def _judge(node: Node, tx: Connection, entry: PageEntry, receiver: Receiver, peer: NodeId) -> _Judged:
    """What becomes of one entry; control traffic takes effect here."""
    if entry.bad is not None:
        return _Judged(entry, Disposition.QUARANTINED, code=entry.bad.code, detail=str(entry.bad))
    if entry.envelope is None:
        return _Judged(entry, Disposition.ERASED)
    body, now = entry.envelope.body, node.clock()
    try:
        if isinstance(body, Delivery):
            advisory = read_advisory(open_delivery(body, receiver, now), receiver.labels, now)
            return _Judged(entry, Disposition.ADMITTED, admit(advisory, receiver, peer, now))
        with tx.begin_nested():
            _apply(node, tx, peer, body)
        return _Judged(entry, Disposition.CONTROL)
    except NotAdmittedError as e:
        return _Judged(entry, Disposition.REFUSED, code=e.code, detail=str(e), keep=False)
    except RemoteError as e:
        keep = not isinstance(body, Delivery) or may_keep_evidence(body.terms, receiver, peer, now)
        return _Judged(entry, Disposition.QUARANTINED, code=e.code, detail=str(e), keep=keep)


def _store(node: Node, tx: Connection, peer: NodeId, judged: _Judged) -> None:
    entry, now = judged.entry, node.clock()
    tx.execute(
        insert(in_entries).values(
            peer=peer,
            seq=entry.seq,
            leaf_hash=entry.leaf_hash,
            data=entry.data if judged.keep else None,
            outcome=judged.outcome,
            code=judged.code,
            detail=judged.detail,
            received_at=now,
        )
    )
    if judged.admitted is not None:
        advisory = judged.admitted.advisory
        if inbox.file(tx, advisory, peer, entry.seq, now) is inbox.InboxState.EQUIVOCATION:
            record(tx, at=now, by=peer, act="inbox.equivocation", subject=advisory.name, detail=f"entry {entry.seq}")
    elif judged.code is not None:
        record(tx, at=now, by=peer, act=f"entry.{judged.outcome}", subject=f"{peer} {entry.seq}", detail=judged.code)


def _apply(node: Node, tx: Connection, peer: NodeId, body: AgreementOffer | Withdrawal) -> None:
    """Control traffic: an agreement, or the sender taking back its own. Raises a RemoteError."""
    if isinstance(body, AgreementOffer):
        agreements.receive(node, tx, body.document, peer)
    else:
        inbox.withdraw(tx, peer, body.seqs)


def _freeze(node: Node, peer: NodeId, error: FeedFrozenError, evidence: tuple[bytes, ...]) -> None:
    """Stops ingest from `peer` and keeps the signed heads that show why (I8)."""
    with write(node.engine) as tx:
        tx.execute(
            update(in_feeds)
            .where(in_feeds.c.peer == peer, in_feeds.c.frozen.is_(None))  # the first evidence stays
            .values(frozen=error.code, evidence=b"\n\n".join(evidence))
        )
        record(tx, at=node.clock(), by=peer, act="feed.frozen", subject=peer, detail=error.code)


def _note_problem(node: Node, peer: NodeId, error: RemoteError) -> None:
    with write(node.engine) as tx:
        tx.execute(update(in_feeds).where(in_feeds.c.peer == peer).values(problem=error.code))
