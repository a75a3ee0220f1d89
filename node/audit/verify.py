"""Does what this node says of its disclosures agree with what it sent, and with what peers have signed? (I14)

What can be computed again is not believed: the chain of the ledger, the tree of every feed, the signatures. In one
read transaction, row by row, these are checked:

1. cards, own advisories, agreements, recalls, grants and statements: each signature, under a key of that time, and that
   what is filed beside a document is what it says (`node.audit.holdings`);
2. the chain of the ledger: rows from 1 without gaps, each digest, each column as the record has it;
3. every feed to a peer: leaf hashes of the bytes, the root at each entry, edge and size; each entry stands where it
   says; each advisory in it has one ledger row that agrees with its bytes, part by part, and is made from the local row
   that it names; what is erased is named by a later entry, which has its row too;
4. every receipt: signed by our key and cosigned by the peer's, of that time, and its root is ours at that size;
5. every feed from a peer, and the inbox (`node.audit.received`).

What cannot be found is what somebody changes who can write to the database and computes everything after it anew, where
no signature of a peer lies here that contradicts it:

- the entries and rows after the last receipt, and of any row the members that stand in no entry: local user, time and
  rules;
- that everything that was sent to one peer is gone, with its receipts; only that peer can show those then;
- that a document is gone from where it is filed, and nothing else tells of it: a statement, a recall, a grant.

A proof that was exported (`node.audit.proofs`) pins the ledger up to its row, whose digest it carries. Not looked at
are the audit rows, approvals, alarms, and what people have set: posts, trust in peers, marks and notes in the inbox.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, and_, func, select

from federation import account as accounts
from federation import assertion, entries, merkle, proof, recall
from federation.base64url import from_b64url
from federation.checkpoint import Checkpoint, VerifierKey, parse_origin_line
from federation.entries import Erasing, Kind, Purge, RecallOrder, Withdrawal
from federation.model import JsonObject, NodeId, Role, instant_text
from federation.vouching import Cards
from node.audit import holdings, received
from node.audit.holdings import AT_ONCE, Finding, as_written, guarded, in_order, instant_of, row_or, told
from node.audit.walk import Walk, is_dated
from node.home.context import Node
from node.records import ledger as book
from node.records.ledger import Act
from node.store.database import read, storable
from node.store.tables import advisories, in_entries, inbox, ledger, out_entries, out_feeds

_ACTS: Final = {Withdrawal: Act.WITHDRAWAL, RecallOrder: Act.RECALL, Purge: Act.PURGE}


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and everything that does not agree."""

    ledger_rows: int
    sent: int
    received: int
    findings: tuple[Finding, ...]


@dataclass(slots=True, kw_only=True)
class _Walk(Walk):
    """A feed to a peer, with which entry is said to have erased which, and the receipt that reaches farthest."""

    id: int
    peer: NodeId
    called: str = "entry"
    erased: dict[int, int] = field(default_factory=dict)
    receipt: bytes = b""
    receipt_size: int = 0


def count(node: Node) -> int:
    """How many rows `verify` will look at, for showing how far it is."""
    with read(node.engine) as tx:
        return sum(_counts(tx))


def verify(node: Node, progress: Callable[[int], None] = lambda _: None) -> Report:
    """Everything that does not agree. `progress` is told how many rows were looked at."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done)

    with read(node.engine) as tx:
        ledger_rows, sent, came = _counts(tx)
        cards, found = holdings.cards(tx)
        findings = [
            *found,
            *guarded("own advisories", holdings.own_advisories(node, tx, cards)),
            *guarded("agreements", holdings.agreed(tx, cards)),
            *guarded("recalls, grants and statements", holdings.assertions(tx, cards)),
            *guarded("ledger", _chain(tx, advance)),
            *guarded("feeds", _sent(node, tx, cards, advance)),
            *guarded("received feeds", received.check(tx, cards, advance)),
        ]
    return Report(ledger_rows, sent, came, tuple(findings))


def _counts(tx: Connection) -> tuple[int, ...]:
    """Rows of the ledger, entries sent, entries received."""
    tables = (ledger, out_entries, in_entries)
    return tuple(tx.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def _chain(tx: Connection, advance: Callable[[], None]) -> Iterator[Finding]:
    """(2)"""
    origins = {row.id: row.origin for row in tx.execute(select(out_feeds.c.id, out_feeds.c.origin))}
    columns = [column for column in ledger.c if column is not ledger.c.at]
    before, number = book.GENESIS, 0
    for key, row in in_order(tx, select(*columns, as_written(ledger.c.at)), ledger.c.id):
        advance()
        number += 1
        if key != number:
            yield Finding(f"ledger row {number}", "it is not here")
            number = key
        yield from row_or(f"ledger row {key}", row, partial(_row, before=before, origins=origins))
        before = row.digest if row is not None else b""
    here = and_(out_entries.c.feed == ledger.c.feed, out_entries.c.seq == ledger.c.seq)
    lost = select(ledger.c.id).outerjoin(out_entries, here).where(out_entries.c.seq.is_(None)).order_by(ledger.c.id)
    for number in tx.execute(lost).scalars():
        yield Finding(f"ledger row {number}", "the entry that it tells of is not here")


def _row(row: Any, before: bytes, origins: Mapping[int, str]) -> Iterator[str]:
    if book.chained(before, row.record) != row.digest:
        yield "its digest does not follow from the row before and its record"
    facts = book.facts_of(row.record)
    at = instant_of(row.at)
    columns = {
        "row": row.id,
        "at": None if at is None or at.microsecond else instant_text(at),
        "by": row.by,
        "act": row.kind,
        "peer": row.peer,
        "feed": origins.get(row.feed),
        "seq": row.seq,
    }
    for name, value in columns.items():
        if facts.get(name) != value:
            yield f"beside its record stands another {name}"
    Act(row.kind)


def _sent(node: Node, tx: Connection, cards: Cards, advance: Callable[[], None]) -> Iterator[Finding]:
    """(3) and (4)"""
    for row in tx.execute(select(out_feeds.c.id, out_feeds.c.peer, out_feeds.c.origin).order_by(out_feeds.c.id)).all():
        walk = _Walk(id=row.id, peer=NodeId(row.peer), origin=row.origin)
        yield from guarded(f"feed {row.origin}", _feed(node, tx, walk, cards, advance))
    known = select(out_feeds.c.id)
    for seq in tx.execute(select(out_entries.c.seq).where(out_entries.c.feed.not_in(known))).scalars():
        yield Finding(f"entry {seq}", "it belongs to a feed that there is not")


def _feed(node: Node, tx: Connection, walk: _Walk, cards: Cards, advance: Callable[[], None]) -> Iterator[Finding]:
    def look(place: str, entry: Any, told_of: list[Any]) -> Iterator[Finding]:
        yield from told(place, _entry(entry, walk))
        yield from told(place, _accounted(node, tx, entry, told_of, walk))
        for given in told_of:
            if given.kind == Act.RECEIPT:
                yield from told(f"ledger row {given.id}", _receipt(given.record, entry, walk, cards))

    yield from walk.along(_entries(tx, walk.id), advance, look)
    yield from told(f"feed {walk.origin}", _end(tx, walk, cards))


def _entries(tx: Connection, feed: int) -> Iterator[tuple[Any, Any, list[Any]]]:
    """The numbers of the entries of a feed in their order, each with its row and the ledger's rows on it."""
    entries_ = in_order(tx, select(out_entries).where(out_entries.c.feed == feed), out_entries.c.seq)
    on_them = select(ledger.c.id, ledger.c.kind, ledger.c.seq, ledger.c.record).where(ledger.c.feed == feed)
    while page := list(islice(entries_, AT_ONCE)):
        first, last = page[0][0], page[-1][0]
        found: dict[int, list[Any]] = {}
        for _, row in in_order(tx, on_them.where(ledger.c.seq >= first, ledger.c.seq <= last), ledger.c.id):
            if row is not None:
                found.setdefault(row.seq, []).append(row)
        yield from ((seq, row, found.get(seq, [])) for seq, row in page)


def _root(entry: Any, walk: _Walk) -> bytes:
    """The root up to the entry, as it follows; where entries before it are lost, as it was noted."""
    return walk.edge.root() if walk.whole else bytes(entry.root)


def _entry(entry: Any, walk: _Walk) -> Iterator[str]:
    """The entry by itself, and in the tree."""
    if _root(entry, walk) != entry.root:
        yield "the root noted beside it does not follow from the entries up to it"
    if (entry.data is None) is not (entry.erased_by is not None):
        yield "its bytes are here, and it counts as erased; or neither"
    kind = Kind(entry.kind)
    if (entry.advisory is not None) + (entry.inbox is not None) != (kind is Kind.PRESENTATION):
        yield "it names no advisory from which it was made, or one too many"
    if entry.data is None:
        walk.erased[entry.seq] = entry.erased_by
        if kind is not Kind.PRESENTATION:
            yield f"it is erased, and is a {kind}: these stay"
        return
    if merkle.leaf_hash(entry.data) != entry.leaf_hash:
        yield "its bytes have another leaf hash"
    envelope = entries.read(entry.data)
    if (envelope.feed, envelope.seq) != (walk.origin, entry.seq):
        yield "its bytes belong to another place or feed"
    if entries.kind_of(envelope.body) is not kind:
        yield f"it counts as {kind}, and is a {entries.kind_of(envelope.body)}"


def _accounted(node: Node, tx: Connection, entry: Any, told_of: Sequence[Any], walk: _Walk) -> Iterator[str]:
    """The ledger tells of the entry what its bytes say."""
    mine = [row for row in told_of if row.kind != Act.RECEIPT]
    if entry.kind == Kind.PRESENTATION:
        if [row.kind for row in mine] != [Act.RELEASE]:
            yield f"the ledger has {len(mine)} rows on this advisory in place of one"
            return
        told_so = accounts.read(mine[0].record)
        if told_so.leaf_hash != entry.leaf_hash:
            yield "the ledger has another leaf hash of it"
        if _source(node, tx, entry) != (told_so.origin, storable(told_so.name), told_so.revision, told_so.core_digest):
            yield "it was made from another advisory than the ledger says"
        if entry.data is not None:
            accounts.compare(told_so, entry.data, node.labels)
        return
    body = entries.read(entry.data).body
    if isinstance(body, (Withdrawal, RecallOrder, Purge)):
        yield from _eraser(tx, entry, body, mine, walk)
    elif mine:
        yield "the ledger tells of something here that is not an advisory and erased nothing"


def _source(node: Node, tx: Connection, entry: Any) -> tuple[str, str, int, bytes] | None:
    """Origin, name, revision and core digest of the local row that an entry was made from."""
    if entry.advisory is not None:
        own = select(advisories.c.name, advisories.c.revision, advisories.c.core_digest)
        row = tx.execute(own.where(advisories.c.id == entry.advisory)).one_or_none()
        return None if row is None else (node.id, storable(row.name), row.revision, row.core_digest)
    passed_on = select(inbox.c.origin, inbox.c.name, inbox.c.revision, inbox.c.core_digest)
    item = tx.execute(passed_on.where(inbox.c.id == entry.inbox)).one_or_none()
    return None if item is None else (item.origin, storable(item.name), item.revision, item.core_digest)


def _eraser(tx: Connection, entry: Any, body: Erasing, mine: Sequence[Any], walk: _Walk) -> Iterator[str]:
    """What it names is erased by it, and the ledger says the same."""
    if isinstance(body, Withdrawal) and body.feed:  # of an epoch that has ended, where it was erased and accounted for
        here = select(out_feeds.c.id).where(out_feeds.c.origin == body.feed).scalar_subquery()
        left = select(out_entries.c.seq).where(
            out_entries.c.feed == here, out_entries.c.seq.in_(body.seqs), out_entries.c.data.is_not(None)
        )
        if tx.execute(left.limit(1)).one_or_none() is not None:
            yield "it takes back an entry of an earlier epoch whose bytes are still here"
        return
    for seq in body.seqs:
        if walk.erased.pop(seq, None) != entry.seq:
            yield f"it names entry {seq}, which counts as erased by another one, or not at all"
    if not mine and not body.seqs:
        return  # an order sent to somebody who held nothing of it here
    if [row.kind for row in mine] != [_ACTS[type(body)]]:
        yield f"the ledger has {len(mine)} rows on what it erased in place of one"
        return
    facts = book.facts_of(mine[0].record)
    expected = {"entries": list(body.seqs), "leaf_hash": entry.leaf_hash.hex(), **_reasons(body)}
    if any(facts.get(name) != value for name, value in expected.items()):
        yield "the ledger says something else of what it erased"


def _reasons(body: Erasing) -> JsonObject:
    if not isinstance(body, RecallOrder):
        return {"reason": body.reason}
    return {"recall": assertion.reread(body.document, recall.JWS_TYPE).digest.hex()}


def _receipt(record: bytes, entry: Any, walk: _Walk, cards: Cards) -> Iterator[str]:
    """(4), at the entry that it ends with."""
    facts = book.facts_of(record)
    note = from_b64url(facts["receipt"])
    head = Checkpoint.of(note)
    if (head.origin, head.size, head.root) != (walk.origin, walk.size, _root(entry, walk)):
        yield "the receipt is not for the feed up to this entry"
    if (facts["size"], facts["root"]) != (head.size, head.root.hex()):
        yield "the row says something else than the receipt"
    yield from _signatures(note, walk, cards)
    if head.size <= walk.receipt_size:
        yield "the receipt says no more than the one before"
    walk.receipt, walk.receipt_size = note, head.size


def _signatures(note: bytes, walk: _Walk, cards: Cards) -> Iterator[str]:
    sender = NodeId(walk.origin.partition("/")[0])
    if not any(proof.signs(note, walk.origin, key) for key in cards.keys(sender, Role.FEED)):
        yield "the head in the receipt is not signed by a key of this node"
    times = [proof.cosigned_at(note, walk.peer, key) for key in cards.keys(walk.peer, Role.RECEIPT)]
    if not any(times):
        yield f"the receipt is not signed by a key that {walk.peer} had then"


def _end(tx: Connection, walk: _Walk, cards: Cards) -> Iterator[str]:
    row = tx.execute(select(out_feeds).where(out_feeds.c.id == walk.id)).one()
    sender, *named = parse_origin_line(walk.origin)
    if [row.peer, row.epoch] != named:
        yield "its receiver or epoch is not that of its name"
    if walk.whole and (walk.size, walk.edge.encode()) != (row.size, row.edge):
        yield "the tree of its entries is another one than is noted"
    if walk.erased:
        yield f"entry {min(walk.erased)} counts as erased by an entry that does not name it"
    if (row.receipt or b"", row.receipt_size) != (walk.receipt, walk.receipt_size):
        yield "the newest receipt is not the last one in the ledger"
    own = cards.keys(sender, Role.FEED)
    if row.shown and not any(proof.signs(row.shown, walk.origin, key) for key in own):
        yield "the newest head that the receiver has shown is not signed by a key of this node"
    if row.shown and not is_dated(row.shown, [VerifierKey(walk.origin, key.public) for key in own]):
        yield "the newest head that the receiver has shown has no date that this node signed"
    last = tx.execute(
        select(ledger.c.at).where(ledger.c.kind == Act.RECEIPT, ledger.c.feed == row.id).order_by(ledger.c.id.desc())
    ).first()
    if (row.receipt_at is None) is not (last is None) or (last and row.receipt_at.replace(microsecond=0) != last.at):
        yield "the newest receipt came at another time than the ledger says"
