"""Are the feeds that came in what their senders signed, and is the inbox what was filed from them?

The tree of every feed is built again (`node.audit.walk`) and compared with the signed heads, whatever was erased since.
`detail` and `received_at` of an entry are this node's own notes: nobody signed them, and only where an inbox item
repeats the time can it be compared. Reading only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, and_, select

from federation import entries, errors, handling, merkle, sdjwt
from federation.checkpoint import Checkpoint, VerifierKey, parse_origin_line
from federation.entries import Delivery, Purge, RecallOrder, Withdrawal
from federation.errors import RemoteError
from federation.feed import signed_head
from federation.model import NodeId, Role
from federation.vouching import Cards
from node.audit.holdings import AT_ONCE, Finding, as_written, guarded, in_order, instant_of, told
from node.audit.walk import Walk, is_dated
from node.desk.inbox import Disposition, InboxState
from node.store.database import storable
from node.store.tables import in_entries, in_feeds, inbox

_WITH_BYTES: Final = (Disposition.ADMITTED, Disposition.CONTROL)
_SET_ASIDE: Final = (Disposition.QUARANTINED, Disposition.REFUSED)
_TAKEN_BACK: Final = (Disposition.WITHDRAWN, Disposition.RECALLED, Disposition.EXPIRED)
_WITHOUT: Final = (Disposition.REFUSED, Disposition.ERASED, *_TAKEN_BACK)
_GONE: Final = (InboxState.WITHDRAWN, InboxState.RECALLED, InboxState.EXPIRED)
_CODES: Final = frozenset(
    error.code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, RemoteError)
)


@dataclass(slots=True, kw_only=True)
class _Walk(Walk):
    """With what was erased in it, and what later entries name as erased."""

    called: str = "received entry"
    erased: set[int] = field(default_factory=set)
    named: set[int] = field(default_factory=set)


def check(tx: Connection, cards: Cards, advance: Callable[[], None]) -> Iterator[Finding]:
    """Everything that came in; `advance` is called for each entry."""
    for number, origin in tx.execute(select(in_feeds.c.id, in_feeds.c.origin).order_by(in_feeds.c.id)).all():
        yield from guarded(f"feed {origin}", _feed(tx, number, _Walk(origin=origin), cards, advance))
    yield from guarded("received entries", _strays(tx))


def _feed(tx: Connection, number: int, walk: _Walk, cards: Cards, advance: Callable[[], None]) -> Iterator[Finding]:
    def look(place: str, entry: Any, item: Any) -> Iterator[Finding]:
        return told(place, _entry(entry, item, walk))

    yield from walk.along(_entries(tx, number), advance, look)
    yield from told(f"feed {walk.origin}", _heads(tx, number, walk, cards))


def _entries(tx: Connection, feed: int) -> Iterator[tuple[Any, Any, Any]]:
    """The numbers of the entries of a feed in their order, each with its row and the inbox item filed from it."""
    columns = [column for column in in_entries.c if column is not in_entries.c.received_at]
    query = select(*columns, as_written(in_entries.c.received_at)).where(in_entries.c.feed == feed)
    columns = [column for column in inbox.c if column is not inbox.c.received_at]
    filed = select(*columns, as_written(inbox.c.received_at)).where(inbox.c.feed == feed)
    entries_ = in_order(tx, query, in_entries.c.seq)
    while page := list(islice(entries_, AT_ONCE)):
        first, last = page[0][0], page[-1][0]
        these = filed.where(inbox.c.seq >= first, inbox.c.seq <= last)
        items = {row.seq: row for _, row in in_order(tx, these, inbox.c.id) if row is not None}
        yield from ((seq, row, items.get(seq)) for seq, row in page)


def _entry(entry: Any, item: Any, walk: _Walk) -> Iterator[str]:
    outcome = Disposition(entry.outcome)
    if entry.data is not None and merkle.leaf_hash(entry.data) != entry.leaf_hash:
        yield "its bytes have another leaf hash"
    if outcome in (_WITHOUT if entry.data is not None else _WITH_BYTES):
        yield f"it counts as {outcome}, and its bytes are {'still' if entry.data is not None else 'not'} here"
    if entry.code not in _CODES if outcome in _SET_ASIDE else not (entry.code is None or outcome in _TAKEN_BACK):
        yield f"it counts as {outcome}, with another code than goes with that"
    if entry.code not in (None, *_CODES):
        yield "it has a code that there is not"
    if instant_of(entry.received_at) is None:
        yield "the instant at which it came cannot be read"
    if outcome is Disposition.ERASED:
        walk.erased.add(entry.seq)
    if item is None if outcome is Disposition.ADMITTED else not (item is None or outcome in _TAKEN_BACK):
        yield f"it counts as {outcome}, and {'no' if item is None else 'an'} inbox item was filed from it"
    if item is not None and (item.state in _GONE) is not (entry.data is None):
        yield f"its bytes are {'not' if entry.data is None else 'still'} here, and the inbox item counts otherwise"
    if item is not None and item.received_at != entry.received_at:
        yield "it came at another time than the inbox item says"
    if entry.data is None or outcome in _SET_ASIDE:
        return
    envelope = entries.read(entry.data)
    body = envelope.body
    if (envelope.feed, envelope.seq) != (walk.origin, entry.seq):
        yield "its bytes belong to another place or feed"
    if isinstance(body, Delivery) is not (outcome is Disposition.ADMITTED):
        yield f"it counts as {outcome}, and is a {entries.kind_of(body)}"
    if isinstance(body, (Withdrawal, RecallOrder, Purge)) and not (isinstance(body, Withdrawal) and body.feed):
        walk.named.update(body.seqs)
    if isinstance(body, Delivery) and item is not None:
        yield from _item(item, body, walk.origin)


def _item(item: Any, delivery: Delivery, origin: str) -> Iterator[str]:
    """The inbox item says what the entry says."""
    core = sdjwt.read_header_and_payload(delivery.presentation.core)
    claims = sdjwt.process(core.payload, delivery.presentation.disclosures).claims
    allowed = handling.read(core.payload["handling"])
    said = {
        "peer": origin.partition("/")[0],
        "origin": core.iss,
        "core_digest": delivery.terms.core_digest,
        "tlp": allowed.tlp,
        "issued_at": datetime.fromtimestamp(core.payload["iat"], UTC),
        "retain_until": delivery.terms.retain_until,
    }
    for name, value in said.items():
        if getattr(item, name) != value:
            yield f"inbox item {item.id} has another {name} than the entry"
    name, revision = claims["csaf"]["document"]["tracking"]["id"], core.payload["jti"].rpartition("/")[2]
    if item.name not in (name, storable(name)) or str(item.revision) != revision:
        yield f"inbox item {item.id} has another name or revision than the entry"
    title = claims["csaf"]["document"].get("title")
    if isinstance(title, str) and item.title != storable(title):
        yield f"inbox item {item.id} has another title than the entry"


def _heads(tx: Connection, number: int, walk: _Walk, cards: Cards) -> Iterator[str]:
    """The signed heads lead through this tree; what is erased is named, or still awaits the entry that names it."""
    row = tx.execute(select(in_feeds).where(in_feeds.c.id == number)).one()
    if (row.peer, row.epoch) != parse_origin_line(walk.origin)[::2]:
        yield "its sender or epoch is not that of its name"
    if walk.whole and (walk.edge.size, walk.edge.encode()) != (row.size, row.edge):
        yield "the tree of its entries is another one than is noted"
    keys = [VerifierKey(walk.origin, k.public) for k in cards.keys(NodeId(row.peer), Role.FEED)]
    for note, which in ((row.head, "head"), (row.newest, "newest head")):
        if note:
            yield from _head(signed_head(note, walk.origin, keys), walk, which, exact=which == "head")
        elif row.size:
            yield f"its {which} is not here"
    if row.newest and not is_dated(row.newest, keys):
        yield "its newest head has no date that its sender signed"
    pending = {seq for seq, _, _ in row.pending}
    if walk.erased - walk.named - pending:
        yield "an entry in it came erased, and no entry says by what"
    if row.cosigned > max(row.size, Checkpoint.of(row.newest).size if row.newest else 0):
        yield "a receipt was given for more than was ever shown"


def _head(head: Checkpoint, walk: _Walk, which: str, *, exact: bool) -> Iterator[str]:
    if exact and head.size != walk.size:
        yield f"its {which} is one of another size"
    if head.size < walk.size:
        yield f"its {which} is smaller than the feed"
    elif walk.whole and head.size == walk.size and head.root != walk.edge.root():
        yield f"its {which} was signed for another root"


def _strays(tx: Connection) -> Iterator[Finding]:
    """Entries of no feed, and inbox items of no entry."""
    known = select(in_feeds.c.id)
    for row in tx.execute(select(in_entries.c.feed, in_entries.c.seq).where(in_entries.c.feed.not_in(known))):
        yield Finding(f"received entry {row.seq}", f"it belongs to the feed {row.feed}, which there is not")
    here = and_(in_entries.c.feed == inbox.c.feed, in_entries.c.seq == inbox.c.seq)
    lost = select(inbox.c.id).outerjoin(in_entries, here).where(in_entries.c.seq.is_(None)).order_by(inbox.c.id)
    for number in tx.execute(lost).scalars():
        yield Finding(f"inbox item {number}", "the entry from which it was filed is not here")
