"""Receiving: pulling a peer's feed until it is caught up.

Each page is proved before anything in it is read, and committed whole: entries, inbox, cursor, edge and head in one
transaction, by compare-and-swap on the cursor (I9). The first call of a sync carries no receipt: the page tells the
newest one that the sender holds, and no receipt is signed below that (I16). Afterwards each is signed from the head
that is durable then and goes with the next call; a sync ends with an empty pull that has carried the last one. One bad
entry is quarantined and the feed goes on (I10); of what may not be kept, only leaf hash and rule are. The sender is
told of what was not taken.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, insert, select, update

from federation import checkpoint, feed, merkle
from federation.base64url import b64url
from federation.entries import (
    AgreementOffer,
    Delivery,
    ErasedItem,
    Erasing,
    Granted,
    NewCard,
    NewEpoch,
    RecallOrder,
    Said,
    Withdrawal,
)
from federation.errors import (
    BadPageError,
    ConflictError,
    DeniedError,
    EpochError,
    FeedFrozenError,
    HeldError,
    LocalError,
    MalformedError,
    NotAdmittedError,
    NotFoundError,
    RecalledError,
    RemoteError,
    TooLargeError,
    UnreachableError,
)
from federation.feed import Ask, FeedState, PageBytes, PageEntry, VerifiedPage
from federation.inbound import (
    Admitted,
    Advisory,
    Receiver,
    admit,
    may_keep_evidence,
    may_keep_unread,
    open_delivery,
    read_advisory,
)
from federation.keyring import Card
from federation.model import JsonObject, NodeId, Role
from federation.statement import Kind
from node.desk import inbox
from node.desk.inbox import Disposition
from node.exchange import epochs, memory, refusals
from node.exchange.epochs import Standing
from node.home import signing
from node.home.context import Node
from node.peering import agreements, cards
from node.peering.peers import floors, keyring, trusted_card
from node.records import incidents
from node.records.alarms import Alarm, raise_alarm, raise_faults
from node.sharing import answers, comparing, passing, recalls, relays, statements
from node.store.database import batches, one_row, read, record, scrub, write
from node.store.tables import in_entries, in_feeds

STALE_AFTER_POLLS = 2
MAX_THIN_PAGES = 1_000  # in a row, of one sync: an honest page is full, or the last, or small by what was withdrawn
_SILENCE = (UnreachableError, DeniedError)
_THIN_ITEMS, _THIN_BYTES = 16, 64 << 10


class Link(Protocol):
    """The calls to one peer that a sync makes; each raises UnreachableError or DeniedError."""

    def pull(self, ask: Ask) -> PageBytes:
        """The page that is asked for."""

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
class Held:
    """What is held of the current feed from a peer: the row, and the state that the federation's checks take.

    `cosigned` is the largest size for which a receipt is known to have been given, `doubted` whether the last page that
    came did not follow from the state.
    """

    id: int
    epoch: int
    state: FeedState
    cosigned: int
    standing: Standing
    doubted: bool


@dataclass(frozen=True, slots=True)
class _Judged:
    """An entry with what is to become of it, before it is committed."""

    entry: PageEntry
    outcome: Disposition
    admitted: Admitted | None = None
    code: str | None = None
    detail: str | None = None
    rules: tuple[str, ...] = ()
    keep: bool = True
    faults: tuple[str, ...] = ()  # what the policy engine could not evaluate


def sync(node: Node, peer: NodeId, link: Link, progress: Callable[[Report], None] = lambda _: None) -> Report:
    """Pulls until nothing is left. Everything before an error is kept; the next sync goes on from there.

    Raises NotFoundError for a peer that is not trusted, HeldError for a feed that is frozen, and a RemoteError; a
    FeedFrozenError freezes the feed and keeps the evidence, an EpochError notes the epoch that two people must accept.
    """
    card = trusted_card(node, peer)
    report = Report(peer)
    try:
        _catch_up(node, card, link, report, progress)
    except RemoteError as e:
        refusals.note(node, peer, e)
        raise
    return report


def _catch_up(node: Node, card: Card, link: Link, report: Report, progress: Callable[[Report], None]) -> None:
    bad: BadPageError | None = None
    receipt_due, thin, first = False, 0, 0
    while True:
        card = trusted_card(node, card.node)  # a page may have brought a newer one
        held = load_state(node, card.node)
        state = held.state
        receipt = _receipt(node, card.node, held) if receipt_due else b""
        restored = held.standing is Standing.RESTORED
        try:
            page = link.pull(Ask(state.origin, state.cursor, receipt, state.newest, restored, protocol=card.speaks))
        except _SILENCE:
            if bad is not None:
                raise bad from None  # what it sent is told, and not that it fell silent then
            raise
        if page.epoch:
            epochs.check_claim(card.node, held.epoch, page)
            raise EpochError(f"{card.node} has opened epoch {page.epoch} of its feed to this node", page.epoch)
        now = node.clock()
        keys = card.note_keys(Role.FEED, state.origin, now)
        try:
            verified = feed.verify_page(state, page, keys)
            if held.epoch > 1 and not state.cursor and verified.entries:
                epochs.check_beginning(node, card.node, held.epoch, held.standing, verified)
        except BadPageError as e:
            try:
                answer = link.checkpoint(state.origin, state.cursor)
            except _SILENCE:
                raise e from None
            try:
                feed.judge_fork(state, answer, keys, retried=bad is not None or held.doubted)
            except FeedFrozenError as frozen:
                _freeze(node, card, held, frozen, (state.head, state.newest, answer, page.checkpoint, page.latest))
                raise
            bad = e
            continue
        except FeedFrozenError as e:
            ends = () if state.cursor else epochs.ends(node, card.node, held.epoch, page)
            _freeze(node, card, held, e, (state.head, state.newest, page.checkpoint, page.latest, *ends))
            raise
        bad = None
        given = max(held.cosigned, _given(node, state.origin, page.receipt))
        if restored:  # a receipt of ours may have been lost on its way: nothing larger than this was ever signed for us
            given = max(given, verified.latest.size)
        try:
            counts = _commit(node, card.node, held, verified, given)
        except ConflictError:
            if load_state(node, card.node).state.cursor == state.cursor:
                raise
            continue  # another process of this home took in this page first: go on from where it is
        report.pages += 1
        for outcome, count in counts.items():
            report.counts[outcome] = report.counts.get(outcome, 0) + count
        progress(report)
        first, thin = first or verified.latest.size, thin + 1 if _is_thin(page) else 0
        if thin > MAX_THIN_PAGES and verified.state.cursor < first:
            raise TooLargeError(f"{card.node}: a feed of tiny pages that does not end; what came is kept")
        ended = not verified.entries and (
            receipt_due or not _owes_receipt(verified.state, _given(node, state.origin, page.receipt))
        )
        if ended or thin > MAX_THIN_PAGES:
            feed.check_fresh(page.latest, keys, node.clock(), STALE_AFTER_POLLS * node.poll_interval_s)
            return
        receipt_due = True


def _is_thin(page: PageBytes) -> bool:
    return len(page.items) < _THIN_ITEMS and sum(len(i) for i in page.items if isinstance(i, bytes)) < _THIN_BYTES


def load_state(node: Node, peer: NodeId) -> Held:
    """What is held of the feed from `peer`. Raises NotFoundError; HeldError when it is frozen; DamagedError."""
    with read(node.engine) as tx:
        row = tx.execute(
            select(in_feeds).where(in_feeds.c.peer == peer).order_by(in_feeds.c.epoch.desc()).limit(1)
        ).one_or_none()
    if row is None:
        raise NotFoundError(f"no peer is called {peer}; see: apostille peer list")
    if row.frozen:
        raise HeldError(
            f"the feed from {peer} is frozen: {row.frozen}. Two people look at the evidence and settle it:"
            " apostille peer incident list"
        )
    pending = tuple(ErasedItem(seq, bytes.fromhex(leaf_hash), eraser) for seq, leaf_hash, eraser in row.pending)
    state = FeedState(row.origin, merkle.RightEdge.decode(row.edge), row.head, row.newest, pending)
    memory.check_head(state)
    return Held(row.id, row.epoch, state, row.cosigned, Standing(row.restored), row.problem == BadPageError.code)


def _receipt(node: Node, peer: NodeId, held: Held) -> bytes:
    """The receipt for all that is durable here; empty before the first entry, while an eraser is outstanding, and below
    the largest that was given before."""
    state = held.state
    if not state.head or state.pending or state.cursor < held.cosigned:
        return b""
    with read(node.engine) as tx:
        signers = signing.signers_for(node, tx, peer, Role.RECEIPT)
    note, now_s = state.head, int(node.clock().timestamp())
    for signer in signers:
        note = checkpoint.cosign(note, node.id, now_s, signer.sign, signer.public)
    return note


def _owes_receipt(state: FeedState, given: int) -> bool:
    return bool(state.head) and not state.pending and state.cursor > given


def _given(node: Node, origin: str, receipt: bytes) -> int:
    """The size of a receipt that the sender shows; 0 when it shows none. Raises a RemoteError if it is not ours."""
    if not receipt:
        return 0
    keys = (checkpoint.VerifierKey(node.id, key.public) for key in node.own.every_key() if key.role is Role.RECEIPT)
    return feed.cosigned_head(receipt, origin, tuple(keys)).size


def _commit(node: Node, peer: NodeId, held: Held, page: VerifiedPage, given: int) -> dict[Disposition, int]:
    """Judges the entries in their order and stores the whole page, in one transaction.

    In their order, because an agreement or its last signature may come just before what it allows.
    """
    now, before, after = node.clock(), held.state, page.state
    caught_up = held.standing is Standing.WHOLE or after.cursor >= page.latest.size
    counts: dict[Disposition, int] = {}
    turned_away: list[JsonObject] = []
    came: list[Advisory] = []
    with write(node.engine) as tx:
        moved = tx.execute(
            update(in_feeds)
            .where(in_feeds.c.id == held.id, in_feeds.c.size == before.cursor, in_feeds.c.frozen.is_(None))
            .values(
                size=after.cursor,
                edge=after.edge.encode(),
                head=after.head,
                newest=after.newest,
                pending=[[item.seq, item.leaf_hash.hex(), item.erased_by] for item in after.pending],
                cosigned=given,
                restored=Standing.WHOLE if caught_up else Standing.CATCHING_UP,
                contact_at=now,
                problem=None,
            )
        )
        one_row(moved.rowcount, f"the feed from {peer}")
        receiver = _receiver(node, tx, now)
        if peer not in receiver.keyring.cards:  # distrusted since the page was asked for: nothing of it is kept
            raise NotFoundError(f"{peer} is distrusted; nothing is exchanged with it")
        dropped = floors(tx, held.id)
        for entry in page.entries:
            old = {(f.node, f.kid): f.public for f in dropped if entry.seq < f.size}
            judged = _judge(node, tx, entry, receiver.accepting(old), held, peer)
            _store(node, tx, peer, held, judged)
            counts[judged.outcome] = counts.get(judged.outcome, 0) + 1
            if judged.admitted is not None:
                came.append(judged.admitted.advisory)
            if judged.outcome is Disposition.CONTROL:
                receiver, dropped = _receiver(node, tx, now), floors(tx, held.id)
            if judged.code is not None and not _is_statement(entry):
                turned_away.append(_turned_away(judged))
        if came:
            comparing.tell(node, tx, came, peer, receiver)
        if turned_away:
            statements.refuse(node, tx, peer, before.origin, turned_away)
    if any(entry.envelope and isinstance(entry.envelope.body, Erasing) for entry in page.entries):
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


def _judge(node: Node, tx: Connection, entry: PageEntry, receiver: Receiver, held: Held, peer: NodeId) -> _Judged:
    """What becomes of one entry; control traffic takes effect here."""
    if entry.bad is not None:
        keep = may_keep_unread(entry.data or b"", receiver, peer, node.clock())
        return _Judged(entry, Disposition.QUARANTINED, code=entry.bad.code, detail=str(entry.bad), keep=keep)
    if entry.envelope is None:
        return _Judged(entry, Disposition.ERASED)
    body, now = entry.envelope.body, node.clock()
    try:
        if isinstance(body, Delivery):
            advisory = read_advisory(open_delivery(body, receiver, now), receiver.labels, now)
            recalls.check_not_barred(tx, advisory)
            admitted = admit(advisory, receiver, peer, now)
            return _Judged(entry, Disposition.ADMITTED, admitted, faults=admitted.alarms)
        with tx.begin_nested():
            _apply(node, tx, peer, held, body, receiver)
        return _Judged(entry, Disposition.CONTROL)
    except NotAdmittedError as e:
        return _Judged(
            entry, Disposition.REFUSED, code=e.code, detail=str(e), rules=e.rules, keep=False, faults=e.faults
        )
    except RecalledError as e:
        return _Judged(entry, Disposition.REFUSED, code=e.code, detail=str(e), keep=False)
    except RemoteError as e:
        keep = not isinstance(body, Delivery) or may_keep_evidence(body, receiver, peer, now)
        keep = keep and not recalls.may_be_barred(tx, peer, entry.data or b"")
        return _Judged(entry, Disposition.QUARANTINED, code=e.code, detail=str(e), keep=keep)
    except LocalError as e:  # a card that does not follow, a message for which there is no place here
        return _Judged(entry, Disposition.QUARANTINED, code=MalformedError.code, detail=str(e))


def _store(node: Node, tx: Connection, peer: NodeId, held: Held, judged: _Judged) -> None:
    entry, now = judged.entry, node.clock()
    stored = {
        "feed": held.id,
        "seq": entry.seq,
        "leaf_hash": entry.leaf_hash,
        "data": entry.data if judged.keep else None,
        "outcome": judged.outcome,
        "code": judged.code,
        "detail": judged.detail,
        "received_at": now,
    }
    tx.execute(insert(in_entries), stored)
    raise_faults(tx, judged.faults, now)
    if judged.admitted is not None:
        advisory = judged.admitted.advisory
        if inbox.file(tx, advisory, peer, held.id, entry.seq, now) is inbox.InboxState.EQUIVOCATION:
            record(tx, at=now, by=peer, act="inbox.equivocation", subject=advisory.name, detail=f"entry {entry.seq}")
            inbox.report_equivocation(node, tx, advisory)
    elif judged.code is not None:
        record(tx, at=now, by=peer, act=f"entry.{judged.outcome}", subject=f"{peer} {entry.seq}", detail=judged.code)
        about_card = entry.envelope is not None and isinstance(entry.envelope.body, NewCard)
        kind = Alarm.CARD if about_card else Alarm.QUARANTINE
        raise_alarm(tx, kind, peer, f"entry {entry.seq}: {judged.outcome}, {judged.code}", now)


def _is_statement(entry: PageEntry) -> bool:
    """A statement is never answered by a refusal: two nodes that cannot verify each other would go on for ever."""
    return entry.envelope is not None and isinstance(entry.envelope.body, Said)


def _turned_away(judged: _Judged) -> JsonObject:
    """What the sender is told of an entry that was not taken."""
    entry = judged.entry
    return {
        "seq": entry.seq,
        "leaf_hash": entry.leaf_hash.hex(),
        "code": judged.code,
        "rules": sorted(judged.rules),
    }


def _apply(
    node: Node,
    tx: Connection,
    peer: NodeId,
    held: Held,
    body: AgreementOffer | Erasing | Said | NewCard | Granted | NewEpoch,
    receiver: Receiver,
) -> None:
    """Control traffic takes effect. Raises a RemoteError or a LocalError, and then has no effect."""
    if isinstance(body, AgreementOffer):
        agreements.receive(node, tx, body.document, peer)
    elif isinstance(body, Withdrawal):
        where = epochs.row_of(tx, peer, body.feed) if body.feed else held.id
        for some in batches(body.seqs):
            passing.follow_withdrawal(node, tx, where, some)
            inbox.withdraw(tx, where, some)
    elif isinstance(body, RecallOrder):
        recalls.receive(node, tx, body.document, peer, receiver.keyring)
    elif isinstance(body, Said):
        said = statements.receive(node, tx, body.document, peer, receiver.keyring)
        if said is not None and said.kind == Kind.PURGE:
            answers.receive(node, tx, said, peer)
        elif said is not None and said.kind == Kind.SEEN:
            comparing.compare(node, tx, said, receiver)
        elif said is not None and said.kind == Kind.CORE:
            comparing.take_core(node, tx, said, receiver)
    elif isinstance(body, NewCard):
        cards.receive(node, tx, body.document, peer)
    elif isinstance(body, Granted):
        relays.receive_grant(node, tx, body.document, peer, receiver.keyring)
    elif isinstance(body, NewEpoch):
        if held.epoch == 1:
            raise MalformedError("epoch: this is the first one, which continues nothing")
        epochs.note_beginning(node, tx, peer, body)
    # a purge says that the sender's own bytes are gone: ours stay under their own terms


def _freeze(node: Node, card: Card, held: Held, error: FeedFrozenError, notes: tuple[bytes, ...]) -> None:
    """Stops ingest from a peer and keeps the signed heads that show why (I8)."""
    evidence = {
        "feed": held.state.origin,
        "heads": [b64url(note) for note in dict.fromkeys(notes) if note],
    }
    with write(node.engine) as tx:
        frozen = tx.execute(
            update(in_feeds).where(in_feeds.c.id == held.id, in_feeds.c.frozen.is_(None)).values(frozen=error.code)
        )
        if frozen.rowcount:  # the first evidence is what counts
            incidents.open_incident(
                tx, error.code, card.node, held.state.origin, evidence, "its feed is frozen", node.clock()
            )
        record(tx, at=node.clock(), by=card.node, act="feed.frozen", subject=card.node, detail=error.code)
