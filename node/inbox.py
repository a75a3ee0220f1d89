"""The inbox: what peers sent and this node may use.

What a peer says is an assertion by that peer, stored with its name (I12); what is shown is read again from the stored
bytes. Retention is checked at each use against the clock (I11).
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, Select, delete, insert, or_, select, update

from federation import entries, sdjwt
from federation.entries import Delivery
from federation.errors import EquivocationError, HeldError, NotFoundError, UsageError
from federation.inbound import Advisory
from federation.model import JsonObject, NodeId, Terms, Tlp
from node import incidents
from node.context import Node
from node.store.database import read, storable
from node.store.tables import in_entries, inbox, inbox_terms

_UNTITLED = "(no title disclosed)"
_ORDER: Final = (
    "current",
    "equivocation",
    "superseded",
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
    EQUIVOCATION = "equivocation"
    WITHDRAWN = "withdrawn"  # by its sender
    RECALLED = "recalled"  # by its origin
    EXPIRED = "expired"  # its retention has ended, and its bytes are gone


_GONE: Final = {
    InboxState.WITHDRAWN: "(withdrawn by its sender)",
    InboxState.RECALLED: "(recalled by its origin)",
    InboxState.EXPIRED: "(its retention has ended)",
}


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
    title: str
    tlp: Tlp
    state: InboxState
    retain_until: datetime | None
    received_at: datetime


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
    and this one is passed on: a relay cannot put less in its place.
    """
    same_name = (inbox.c.origin == advisory.origin) & (inbox.c.name == advisory.name)
    seen = tx.execute(select(inbox).where(same_name)).all()  # withdrawn ones too: they were signed all the same
    held = inbox.c.state.not_in(_GONE)
    state = InboxState.CURRENT
    if any(row.revision == advisory.revision and row.core_digest != advisory.core_digest for row in seen):
        state = InboxState.EQUIVOCATION
        same_revision = inbox.c.revision == advisory.revision
        tx.execute(update(inbox).where(same_name, same_revision, held).values(state=state))
    elif any(row.revision > advisory.revision and row.state not in _GONE for row in seen):
        state = InboxState.SUPERSEDED
    elif peer != advisory.origin and any(
        row.peer == advisory.origin and row.revision == advisory.revision and row.state == state for row in seen
    ):
        state = InboxState.SUPERSEDED
    else:
        older = inbox.c.state == InboxState.CURRENT
        tx.execute(update(inbox).where(same_name, older).values(state=InboxState.SUPERSEDED))
    tx.execute(
        insert(inbox).values(
            peer=peer,
            feed=feed,
            seq=seq,
            origin=advisory.origin,
            name=advisory.name,
            revision=advisory.revision,
            core_digest=advisory.core_digest,
            title=_title(advisory),
            tlp=advisory.handling.tlp,
            issued_at=advisory.issued_at,
            retain_until=advisory.terms.retain_until,
            state=state,
            received_at=now,
        )
    )
    return state


def report_equivocation(node: Node, tx: Connection, advisory: Advisory) -> None:
    """Keeps the cores that contradict each other as evidence against their origin, with an alarm."""
    rows = tx.execute(
        select(in_entries.c.data)
        .join(inbox, (inbox.c.feed == in_entries.c.feed) & (inbox.c.seq == in_entries.c.seq))
        .where(
            inbox.c.origin == advisory.origin,
            inbox.c.name == advisory.name,
            inbox.c.revision == advisory.revision,
            in_entries.c.data.is_not(None),
        )
    ).scalars()
    bodies = [entries.read(data).body for data in rows]
    cores = sorted({body.presentation.core.decode() for body in bodies if isinstance(body, Delivery)})
    subject = f"{advisory.name}/{advisory.revision}"
    incidents.open_incident(
        tx,
        EquivocationError.code,
        advisory.origin,
        storable(subject),
        {"cores": cores},
        "it signed two documents under one revision",
        node.clock(),
    )


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


def items(node: Node, *, every_state: bool = False) -> tuple[Item, ...]:
    """What may be used now, newest first; with `every_state`, superseded, withdrawn and disputed ones too."""
    query = select(inbox).order_by(inbox.c.id.desc())
    if not every_state:
        live = or_(inbox.c.retain_until.is_(None), inbox.c.retain_until > node.clock())
        query = query.where(inbox.c.state == InboxState.CURRENT, live)
    with read(node.engine) as tx:
        rows = tx.execute(query).all()
    return tuple(
        Item(
            id=row.id,
            peer=NodeId(row.peer),
            feed=row.feed,
            seq=row.seq,
            origin=NodeId(row.origin),
            name=row.name,
            revision=row.revision,
            title=row.title,
            tlp=Tlp(row.tlp),
            state=InboxState(row.state),
            retain_until=row.retain_until,
            received_at=row.received_at,
        )
        for row in rows
    )


def content(node: Node, reference: str) -> Content:
    """A received advisory by its number, its tracking id, or ORIGIN/TRACKING-ID.

    Raises NotFoundError, UsageError when two origins use the name; HeldError for one that may not be used: disputed,
    superseded (unless named by its number), withdrawn, or past its retention.
    """
    everything = items(node, every_state=True)
    found = [item for item in everything if reference == str(item.id)]  # a number is ours: no peer can name that
    found = found or [item for item in everything if reference in (item.name, f"{item.origin}/{item.name}")]
    if len({item.origin for item in found}) > 1:
        origins = " or ".join(sorted({f"{item.origin}/{item.name}" for item in found}))
        raise UsageError(f"several origins call an advisory {reference}; say which: {origins}")
    if not found:
        raise NotFoundError(f"the inbox has no {reference}; see: apostille inbox list")
    item = min(found, key=lambda item: _ORDER.index(item.state))
    if item.state is InboxState.EQUIVOCATION:
        raise HeldError(
            f"{item.origin} signed two different documents as {item.name} revision {item.revision}: use neither"
        )
    if item.state is InboxState.SUPERSEDED and reference != str(item.id):
        raise HeldError(f"{item.name} was superseded; to see it all the same, name it by its number, {item.id}")
    if item.retain_until is not None and item.retain_until <= node.clock():
        raise HeldError(
            f"{item.name}: its retention ended on {item.retain_until:%Y-%m-%d}; it may not be used any more"
        )
    with read(node.engine) as tx:
        data = tx.execute(
            select(in_entries.c.data).where(in_entries.c.feed == item.feed, in_entries.c.seq == item.seq)
        ).scalar_one()
    if data is None:
        raise HeldError(f"{item.name}: its bytes are gone {_GONE.get(item.state, '')}".rstrip())
    body = entries.read(data).body
    if not isinstance(body, Delivery):
        raise NotFoundError(f"{reference} is no advisory")
    presentation = body.presentation
    core = sdjwt.read_header_and_payload(presentation.core)
    claims = sdjwt.process(core.payload, presentation.disclosures).claims
    return Content(
        item=item,
        core_digest=body.terms.core_digest,
        handling=core.payload["handling"],
        terms=body.terms,
        csaf=claims["csaf"],
        ai=claims.get("ai"),
        compact=sdjwt.serialise(presentation.core, presentation.disclosures),
        disclosures=len(presentation.disclosures),
    )
