"""The inbox: what peers sent and this node may use.

What a peer says is an assertion by that peer, stored with its name (I12); what is shown is read again from the stored
bytes. Retention is checked at each use against the clock (I11): what has ended is expired, whether or not it was erased
yet. What people here do with an item is `node.desk.work`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, insert, or_, select, update

from federation import entries, merkle, sdjwt
from federation.entries import Delivery
from federation.errors import DamagedError, HeldError, NotFoundError, UsageError
from federation.inbound import Advisory
from federation.model import JsonObject, NodeId, Terms, Tlp
from node.desk import search
from node.desk.search import Query
from node.home.context import Node
from node.records import incidents
from node.store.database import batches, read, storable, write
from node.store.tables import in_entries, inbox, inbox_terms

_FILE: Final = insert(inbox).returning(inbox.c.id)
_UNTITLED = "(no title disclosed)"
_DIGITS: Final = 9  # of a number that fits the column
_AT_ONCE: Final = 100  # documents in memory
_ORDER: Final = (
    "current",
    "equivocation",
    "superseded",
    "rejected",
    "recalled",
    "withdrawn",
    "expired",
)  # which one a name means, of several


class Disposition(StrEnum):
    """What became of a received entry."""

    ADMITTED = "admitted"
    CONTROL = "control"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    ERASED = "erased"
    WITHDRAWN = "withdrawn"
    RECALLED = "recalled"
    EXPIRED = "expired"


class InboxState(StrEnum):
    """What may be done with a received revision. Only `current` is worked with."""

    CURRENT = "current"
    SUPERSEDED = "superseded"
    EQUIVOCATION = "equivocation"  # its origin signed another document under this revision too
    REJECTED = "rejected"  # of two such documents, people here did not choose this one
    WITHDRAWN = "withdrawn"  # by its sender
    RECALLED = "recalled"  # by its origin
    EXPIRED = "expired"  # its retention has ended, and its bytes are gone


_GONE: Final = {  # nothing of them may be shown, and what stands in place of the title
    InboxState.WITHDRAWN: "(withdrawn by its sender)",
    InboxState.RECALLED: "(recalled by its origin)",
    InboxState.EXPIRED: "(its retention has ended)",
}
_OUT: Final = (*_GONE, InboxState.REJECTED)


@dataclass(frozen=True, slots=True)
class Item:
    """One received advisory, for lists."""

    id: int
    peer: NodeId
    feed: int
    seq: int
    origin: NodeId
    name: str
    revision: int
    core_digest: bytes
    title: str
    tlp: Tlp
    issued_at: datetime
    state: InboxState
    retain_until: datetime | None
    received_at: datetime
    read_at: datetime | None
    read_by: str | None
    assigned_to: str | None
    actioned_at: datetime | None
    actioned_by: str | None

    @property
    def gone(self) -> str:
        """In a few words why nothing of what it said may be shown; empty if that is not so."""
        return _GONE.get(self.state, "").strip("()")


@dataclass(frozen=True, slots=True)
class Content:
    """A received advisory as it may be read here. `compact` is the standard SD-JWT of exactly what was disclosed."""

    item: Item
    core_digest: bytes
    handling: JsonObject
    terms: Terms
    csaf: JsonObject
    ai: JsonObject | None
    compact: str
    disclosures: int


def file(tx: Connection, advisory: Advisory, peer: NodeId, feed: int, seq: int, now: datetime) -> InboxState:
    """Files an admitted advisory and settles which revision is current.

    The same revision with another core is EQUIVOCATION: both are kept, neither is current. A lower revision than the
    one held is superseded; a new delivery of the same core supersedes the earlier one, unless that came from its origin
    and this one is passed on: a relay cannot put less in its place. Where people have settled a contradiction, the core
    that they chose is current, those that they rejected stay so, and a further one contradicts all of them.
    """
    same_name = _named(advisory.origin, advisory.name)
    seen = tx.execute(select(inbox).where(same_name)).all()  # withdrawn ones too: they were signed all the same
    held = inbox.c.state.not_in(_OUT)
    same_revision = inbox.c.revision == advisory.revision
    others = {row.core_digest for row in seen if row.revision == advisory.revision}
    if others:  # whoever shows another core shows it to one that holds the revision
        others |= incidents.cores(tx, advisory.origin, _about(advisory.name, advisory.revision))
    others -= {advisory.core_digest}
    settled = _settled(tx, advisory) if others else incidents.Settled()
    state = InboxState.CURRENT
    if advisory.core_digest in settled.rejected:
        state = InboxState.REJECTED
    elif others - settled.rejected or (others and settled.kept != advisory.core_digest):
        state = InboxState.EQUIVOCATION
        tx.execute(update(inbox).where(same_name, same_revision, held).values(state=state))
    elif any(_comes_first(row, advisory, peer) for row in seen):
        state = InboxState.SUPERSEDED
    elif any(row.state == InboxState.CURRENT for row in seen):
        older = inbox.c.state == InboxState.CURRENT
        tx.execute(update(inbox).where(same_name, older).values(state=InboxState.SUPERSEDED))
    filed = {
        "peer": peer,
        "feed": feed,
        "seq": seq,
        "origin": advisory.origin,
        "name": storable(advisory.name),
        "revision": advisory.revision,
        "core_digest": advisory.core_digest,
        "title": _title(advisory),
        "tlp": advisory.handling.tlp,
        "issued_at": advisory.issued_at,
        "retain_until": advisory.terms.retain_until,
        "state": state,
        "received_at": now,
    }
    item = tx.execute(_FILE, filed).scalar_one()
    search.index(tx, item, advisory.csaf, advisory.ai)
    return state


def report_equivocation(node: Node, tx: Connection, advisory: Advisory) -> None:
    """Keeps the cores that contradict each other as evidence against their origin, with an alarm."""
    held = deliveries(tx, advisory.origin, advisory.name, advisory.revision).values()
    about = _about(advisory.name, advisory.revision)
    incidents.open_equivocation(node, tx, advisory.origin, about, {body.presentation.core for body in held})


def deliveries(tx: Connection, origin: NodeId, name: str, revision: int) -> dict[bytes, Delivery]:
    """What came under a revision and whose bytes are still here, one of each core, by its digest."""
    rows = tx.execute(
        select(in_entries.c.data, inbox.c.core_digest)
        .join(inbox, _entry_of_item())
        .where(_named(origin, name), inbox.c.revision == revision, in_entries.c.data.is_not(None))
    ).all()
    bodies = ((row.core_digest, entries.read(row.data).body) for row in rows)
    return {digest: body for digest, body in bodies if isinstance(body, Delivery)}


def seen(tx: Connection, origin: NodeId, name: str, revision: int) -> frozenset[bytes]:
    """The digests of the cores that ever came under a revision, or that somebody has shown."""
    rows = tx.execute(select(inbox.c.core_digest).where(_named(origin, name), inbox.c.revision == revision)).scalars()
    return frozenset(rows) | incidents.cores(tx, origin, _about(name, revision))


def came(tx: Connection, names: Collection[str]) -> dict[tuple[str, str, int], set[bytes]]:
    """The digests of the cores that ever came under advisories of these names, by origin, name and revision."""
    found: dict[tuple[str, str, int], set[bytes]] = {}
    columns = (inbox.c.origin, inbox.c.name, inbox.c.revision, inbox.c.core_digest)
    for some in batches(tuple({storable(name) for name in names})):
        for origin, name, revision, digest in tx.execute(select(*columns).where(inbox.c.name.in_(some))):
            found.setdefault((origin, name, revision), set()).add(digest)
    return found


def contradict(node: Node, tx: Connection, origin: NodeId, name: str, revision: int, other: bytes) -> None:
    """Somebody has shown `other`, a core that its origin signed under a revision that is held here: neither is used."""
    held = {body.presentation.core for body in deliveries(tx, origin, name, revision).values()}
    tx.execute(
        update(inbox)
        .where(_named(origin, name), inbox.c.revision == revision, inbox.c.state.not_in(_OUT))
        .values(state=InboxState.EQUIVOCATION)
    )
    incidents.open_equivocation(node, tx, origin, _about(name, revision), {*held, other})


def settle(tx: Connection, origin: NodeId, about: str, cores: Collection[bytes], kept: bytes | None) -> None:
    """Of the contradicting `cores` of a revision, by their digests, one is used from now on, or none.

    `about` is the subject of the incident. The kept one is current unless a later revision is.
    """
    name, _, revision = about.rpartition("/")
    same_name = _named(origin, name)
    disputed = and_(same_name, inbox.c.revision == int(revision), inbox.c.state == InboxState.EQUIVOCATION)
    tx.execute(
        update(inbox)
        .where(disputed, inbox.c.core_digest.in_(cores), inbox.c.core_digest != (kept or b""))
        .values(state=InboxState.REJECTED)
    )
    if kept is None:
        return
    mine = tx.execute(select(inbox.c.id).where(disputed, inbox.c.core_digest == kept).order_by(inbox.c.id)).scalars()
    *earlier, newest = mine.all() or (None,)
    held = inbox.c.state.not_in(_OUT)
    later = tx.execute(select(inbox.c.id).where(same_name, held, inbox.c.revision > int(revision))).first()
    if later is None:
        older = and_(same_name, inbox.c.state == InboxState.CURRENT)
        tx.execute(update(inbox).where(older).values(state=InboxState.SUPERSEDED))
    state = InboxState.CURRENT if later is None else InboxState.SUPERSEDED
    tx.execute(update(inbox).where(inbox.c.id == newest).values(state=state))
    tx.execute(update(inbox).where(inbox.c.id.in_(earlier)).values(state=InboxState.SUPERSEDED))


def _comes_first(row: Row[Any], advisory: Advisory, peer: NodeId) -> bool:
    """Whether what is held is a later revision, or the same one from its origin where a relay brings it now."""
    if row.revision > advisory.revision:
        return row.state not in _OUT
    from_origin: bool = row.peer == advisory.origin != peer
    return from_origin and bool(row.revision == advisory.revision and row.state == InboxState.CURRENT)


def _settled(tx: Connection, advisory: Advisory) -> incidents.Settled:
    return incidents.settled(tx, advisory.origin, _about(advisory.name, advisory.revision))


def _named(origin: NodeId, name: str) -> ColumnElement[bool]:
    return and_(inbox.c.origin == origin, inbox.c.name.in_({name, storable(name)}))


def _about(name: str, revision: int) -> str:
    """What an incident calls a revision."""
    return f"{storable(name)}/{revision}"


def index_missing(node: Node) -> int:
    """Takes search terms out of items that have none: those that an older version filed. Returns how many."""
    found = select(inbox.c.id, in_entries.c.data).join(in_entries, _entry_of_item())
    found = found.where(inbox.c.state.not_in(_GONE), in_entries.c.data.is_not(None))
    found = found.where(inbox.c.id.not_in(select(inbox_terms.c.inbox).where(inbox_terms.c.kind == "text")))
    done = 0
    while True:
        with read(node.engine) as tx:
            if tx.execute(found.limit(1)).first() is None:
                return done
        with write(node.engine) as tx:
            for row in tx.execute(found.order_by(inbox.c.id).limit(_AT_ONCE)).all():
                read_again = _read_again(row.data)
                search.index(tx, row.id, read_again.csaf, read_again.ai)
                done += 1


def _title(advisory: Advisory) -> str:
    title = advisory.csaf["document"].get("title")
    return storable(title) if isinstance(title, str) else _UNTITLED


def withdraw(tx: Connection, feed: int, seqs: tuple[int, ...]) -> None:
    """A sender took back its own deliveries: their bytes go, their leaf hashes stay.

    What is disputed stays as evidence: an origin that signed two documents cannot take the proof back.
    """
    disputed = select(inbox.c.seq).where(inbox.c.feed == feed, inbox.c.state == InboxState.EQUIVOCATION)
    tx.execute(
        update(in_entries)
        .where(in_entries.c.feed == feed, in_entries.c.seq.in_(seqs), in_entries.c.seq.not_in(disputed))
        .values(data=None, outcome=Disposition.WITHDRAWN)
    )
    forget(
        tx,
        select(inbox.c.id).where(inbox.c.feed == feed, inbox.c.seq.in_(seqs), inbox.c.state != InboxState.EQUIVOCATION),
        InboxState.WITHDRAWN,
    )


def forget(tx: Connection, which: Select[tuple[int]], state: InboxState) -> None:
    """Takes items out of use: what was read out of their bytes, title and search terms, goes as the bytes go."""
    ids = tuple(tx.execute(which).scalars())
    tx.execute(delete(inbox_terms).where(inbox_terms.c.inbox.in_(ids)))
    tx.execute(update(inbox).where(inbox.c.id.in_(ids)).values(state=state, title=_GONE[state]))


def items(
    node: Node, query: Query | None = None, *, states: Collection[InboxState] = (), every_state: bool = False
) -> tuple[Item, ...]:
    """What may be used now, newest first: as far as `query` asks for it; with `states` or `every_state`, others too.

    What has ended is found by nothing that stood in it. Raises UsageError for words that nothing can be found by.
    """
    query, now = query or Query(), node.clock()
    wanted = set(InboxState) if every_state else set(states) or {InboxState.CURRENT}
    live = or_(inbox.c.retain_until.is_(None), inbox.c.retain_until > now)
    found = or_(
        and_(inbox.c.state.in_(wanted - _GONE.keys()), live),
        inbox.c.state.in_(wanted & _GONE.keys()),
        *([and_(inbox.c.state.not_in(_GONE), ~live)] if InboxState.EXPIRED in wanted else []),
    )
    if query.by_content:
        found = and_(found, live)
    with read(node.engine) as tx:
        rows = tx.execute(select(inbox).where(found, search.condition(query)).order_by(inbox.c.id.desc())).all()
    return tuple(_item(row, now) for row in rows)


def find(node: Node, reference: str) -> Item:
    """An item, whatever became of it, by its number, its tracking id, or ORIGIN/TRACKING-ID: of several the one that
    may be used.

    Raises NotFoundError, UsageError when two origins use the name.
    """
    reference = reference.encode(errors="replace").decode()  # what was typed may be no text
    origin, _, name = reference.partition("/")
    by_name = or_(inbox.c.name == reference, and_(inbox.c.origin == origin, inbox.c.name == name))
    number = int(reference) if re.fullmatch(f"[1-9][0-9]{{0,{_DIGITS - 1}}}", reference) else None
    with read(node.engine) as tx:
        rows = tx.execute(select(inbox).where(or_(by_name, inbox.c.id == number)).order_by(inbox.c.id.desc())).all()
    everything = [_item(row, node.clock()) for row in rows]
    found = [item for item in everything if item.id == number]  # a number is ours: no peer can name that
    found = found or everything
    if len({item.origin for item in found}) > 1:
        origins = " or ".join(sorted({f"{item.origin}/{item.name}" for item in found}))
        raise UsageError(f"several origins call an advisory {reference}; say which: {origins}")
    if not found:
        raise NotFoundError(f"the inbox has no {reference}; see: apostille inbox list")
    return min(found, key=lambda item: _ORDER.index(item.state))


def by_number(node: Node, tx: Connection, number: int) -> Item:
    """An item of the inbox, as it stands in this transaction."""
    return _item(tx.execute(select(inbox).where(inbox.c.id == number)).one(), node.clock())


def content(node: Node, reference: str) -> Content:
    """A received advisory by its number, its tracking id, or ORIGIN/TRACKING-ID.

    Raises NotFoundError, UsageError when two origins use the name; HeldError for one that may not be used: disputed,
    rejected, superseded (unless named by its number), withdrawn, or past its retention.
    """
    item = find(node, reference)
    if item.state is InboxState.EQUIVOCATION:
        raise HeldError(
            f"{item.origin} signed two different documents as {item.name} revision {item.revision}: use neither"
        )
    if item.state is InboxState.REJECTED:
        raise HeldError(
            f"{item.origin} signed two different documents as {item.name} revision {item.revision}, and two people here"
            " have decided that this one is not used"
        )
    if item.state is InboxState.SUPERSEDED and reference != str(item.id):
        raise HeldError(f"{item.name} was superseded; to see it all the same, name it by its number, {item.id}")
    return stored(node, item)


def stored(node: Node, item: Item) -> Content:
    """What is kept of an item, whoever asks: only what is gone, or past its retention, is refused. Raises HeldError,
    and DamagedError for bytes that are not those that came.

    For those who compare documents: whether this one may be used, `content` says.
    """
    if item.state is InboxState.EXPIRED and item.retain_until is not None:
        raise HeldError(
            f"{item.name}: its retention ended on {item.retain_until:%Y-%m-%d}; it may not be used any more"
        )
    with read(node.engine) as tx:
        row = tx.execute(
            select(in_entries.c.data, in_entries.c.leaf_hash).where(
                in_entries.c.feed == item.feed, in_entries.c.seq == item.seq
            )
        ).one()
    if row.data is None or item.gone:
        raise HeldError(f"{item.name}: its bytes are gone {_GONE.get(item.state, '')}".rstrip())
    if merkle.leaf_hash(row.data) != row.leaf_hash:
        raise DamagedError(f"{item.name}: its bytes are not those that came")
    found = _read_again(row.data)
    presentation = found.delivery.presentation
    return Content(
        item=item,
        core_digest=found.delivery.terms.core_digest,
        handling=found.handling,
        terms=found.delivery.terms,
        csaf=found.csaf,
        ai=found.ai,
        compact=sdjwt.serialise(presentation.core, presentation.disclosures),
        disclosures=len(presentation.disclosures),
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A stored delivery, read again. It was verified when it came."""

    delivery: Delivery
    handling: JsonObject
    csaf: JsonObject
    ai: JsonObject | None


def _read_again(data: bytes) -> _Read:
    body = entries.read(data).body
    if not isinstance(body, Delivery):
        raise NotFoundError("an item of the inbox is no advisory")
    core = sdjwt.read_header_and_payload(body.presentation.core)
    claims = sdjwt.process(core.payload, body.presentation.disclosures).claims
    return _Read(body, core.payload["handling"], claims["csaf"], claims.get("ai"))


def _entry_of_item() -> ColumnElement[bool]:
    return and_(inbox.c.feed == in_entries.c.feed, inbox.c.seq == in_entries.c.seq)


def _item(row: Row[Any], now: datetime) -> Item:
    """An item as it stands now: one that has ended and is not erased yet is expired."""
    state, title = InboxState(row.state), row.title
    if state not in _GONE and row.retain_until is not None and row.retain_until <= now:
        state, title = InboxState.EXPIRED, _GONE[InboxState.EXPIRED]
    return Item(
        id=row.id,
        peer=NodeId(row.peer),
        feed=row.feed,
        seq=row.seq,
        origin=NodeId(row.origin),
        name=row.name,
        revision=row.revision,
        core_digest=row.core_digest,
        title=title,
        tlp=Tlp(row.tlp),
        issued_at=row.issued_at,
        state=state,
        retain_until=row.retain_until,
        received_at=row.received_at,
        read_at=row.read_at,
        read_by=row.read_by,
        assigned_to=row.assigned_to,
        actioned_at=row.actioned_at,
        actioned_by=row.actioned_by,
    )
