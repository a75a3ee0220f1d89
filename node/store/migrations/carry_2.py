"""What a database of schema 1 holds, carried over to schema 2.

Feeds get numbers and an epoch, and entries and inbox follow them. Every disclosure becomes a row of the chained ledger,
with what took it back and the receipt that is held, in the order in which they happened; the rows say that they were
carried over, for they are chained now and were not then. A feed that was frozen becomes an incident, and so do two
documents under one revision.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Connection,
    FromClause,
    LargeBinary,
    MetaData,
    Row,
    Select,
    Table,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from federation import entries, sdjwt, strictjson
from federation.base64url import b64url
from federation.entries import Delivery, Withdrawal
from federation.errors import RemoteError
from federation.model import JsonObject, Terms, instant_text
from node.store.database import storable
from node.store.migrations import schema_1, schema_2
from node.store.migrations.schema_2 import (
    advisories,
    alarms,
    audit,
    in_entries,
    in_feeds,
    inbox,
    incidents,
    ledger,
    meta,
    out_entries,
    out_feeds,
    peer_cards,
    peers,
)

_REBUILT: Final = ("ledger", "inbox", "in_entries", "in_feeds", "out_entries", "out_feeds", "peers")  # children first
_AT_ONCE: Final = 64  # rows with bytes that are held in memory
_FIRST: Final = 1  # epoch, and version of the own card: schema 1 knew no other
_GENESIS: Final = bytes(32)
_CARRIED: Final = {"carried_from_schema": 1}


def run(tx: Connection, at: datetime) -> None:
    """Makes the tables of schema 2 out of those of schema 1. `at` is now."""
    old = {name: _set_aside(tx, name) for name in _REBUILT}
    schema_2.metadata.create_all(tx)
    kind = LargeBinary().compile(tx.dialect)
    column = f"recall {kind} CONSTRAINT fk_advisories_recall REFERENCES recalls (digest)"
    tx.execute(text(f"ALTER TABLE advisories ADD COLUMN {column}"))
    _carry_peers(tx, old["peers"])
    _carry_out(tx, old)
    _carry_in(tx, old)
    _carry_inbox(tx, old)
    _carry_ledger(tx, old["ledger"], at)
    _frozen_feeds(tx, old["in_feeds"], at)
    _disputed_revisions(tx)
    tx.execute(delete(meta).where(meta.c.key == "schema"))
    for table in old.values():
        tx.execute(text(f"DROP TABLE {table.name}"))
    if tx.dialect.name == "postgresql":  # where rows came with their numbers, the next number is told
        for table in (inbox, ledger):
            tx.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), func.max(table.c.id))))


def _set_aside(tx: Connection, name: str) -> Table:
    """The rows of a table of schema 1, under another name; the table itself goes."""
    table = schema_1.metadata.tables[name]
    tx.execute(select(table).into(f"old_{name}"))
    tx.execute(text(f"DROP TABLE {name}"))
    return table.to_metadata(MetaData(), name=f"old_{name}")


def _fill(tx: Connection, into: Table, rows: FromClause, order: Any = None, **columns: Any) -> None:
    """Fills a table by one statement: `columns` are expressions over `rows`."""
    chosen: Select[Any] = select(*columns.values()).select_from(rows).order_by(order)
    tx.execute(insert(into).from_select(list(columns), chosen))


def _carry_peers(tx: Connection, old: Table) -> None:
    known = {column.name: column for column in old.c}
    _fill(tx, peers, old, **known, direct=literal(1), our_card=literal(_FIRST))
    _fill(
        tx,
        peer_cards,
        old,
        node=old.c.node,
        version=old.c.card_version,
        document=old.c.card,
        taken_at=old.c.enrolled_at,
    )


def _carry_out(tx: Connection, old: dict[str, Table]) -> None:
    feeds, before = old["out_feeds"], old["out_entries"]
    known = {column.name: column for column in feeds.c}
    opened = peers.c.enrolled_at
    rows = feeds.join(peers, peers.c.node == feeds.c.peer)
    _fill(tx, out_feeds, rows, feeds.c.peer, **known, epoch=literal(_FIRST), opened_at=opened)
    known = {column.name: column for column in before.c if column.name != "peer"}
    rows = before.join(out_feeds, out_feeds.c.peer == before.c.peer)
    _fill(tx, out_entries, rows, **known, feed=out_feeds.c.id)


def _carry_in(tx: Connection, old: dict[str, Table]) -> None:
    feeds, before = old["in_feeds"], old["in_entries"]
    known = {column.name: column for column in feeds.c if column.name != "evidence"}
    fresh = {"epoch": literal(_FIRST), "cosigned": feeds.c.size, "restored": literal(0)}
    _fill(tx, in_feeds, feeds, feeds.c.peer, **known, **fresh)
    known = {column.name: column for column in before.c if column.name != "peer"}
    rows = before.join(in_feeds, in_feeds.c.peer == before.c.peer)
    _fill(tx, in_entries, rows, **known, feed=in_feeds.c.id)


def _carry_inbox(tx: Connection, old: dict[str, Table]) -> None:
    before = old["inbox"]
    known = {column.name: column for column in before.c}
    rows = before.join(in_feeds, in_feeds.c.peer == before.c.peer)
    _fill(tx, inbox, rows, before.c.id, **known, feed=in_feeds.c.id, issued_at=before.c.received_at)
    mine = (in_entries.c.feed == inbox.c.feed) & (in_entries.c.seq == inbox.c.seq)
    held = select(inbox.c.id, in_entries.c.data).join(in_entries, mine).where(in_entries.c.data.is_not(None))
    for id_, data in tx.execute(held.order_by(inbox.c.id), execution_options={"yield_per": _AT_ONCE}):
        issued_at = _issued_at(data)
        if issued_at is not None:
            tx.execute(update(inbox).where(inbox.c.id == id_).values(issued_at=issued_at))


def _issued_at(data: bytes) -> datetime | None:
    """When the origin signed the advisory in an entry; None when it does not say so legibly."""
    try:
        body = entries.read(data).body
        if isinstance(body, Delivery):
            seconds = sdjwt.read_header_and_payload(body.presentation.core).payload["iat"]
            return datetime.fromtimestamp(seconds, UTC)
    except (RemoteError, KeyError, TypeError, ValueError, OverflowError, OSError):
        pass
    return None


@dataclass(frozen=True, slots=True)
class _Event:
    """What the chained ledger will tell in one row: when, and where its facts are to be read."""

    at: datetime
    by: str
    act: str
    feed: Row[Any]
    seq: int
    facts: Callable[[], JsonObject]


def _carry_ledger(tx: Connection, old: Table, at: datetime) -> None:
    """Disclosures, what took them back, and the receipt of each feed, in the order of their times."""
    feeds = tx.execute(select(out_feeds)).all()
    told = [event for feed in feeds for event in (*_releases(tx, old, feed), *_withdrawals(tx, old, feed, at))]
    told += [event for feed in feeds for event in _receipt(tx, feed)]
    digest = _GENESIS
    for number, event in enumerate(sorted(told, key=lambda event: event.at), start=1):
        moment = event.at.replace(microsecond=0)
        said = {"at": instant_text(moment), "by": event.by, "act": event.act, "peer": event.feed.peer}
        place = {"feed": event.feed.origin, "seq": event.seq}
        record = strictjson.encode({"row": number, **said, **place, **event.facts(), **_CARRIED})
        digest = hashlib.sha256(digest + record).digest()
        columns = {"at": moment, "by": event.by, "kind": event.act, "peer": event.feed.peer, "seq": event.seq}
        tx.execute(insert(ledger).values(id=number, feed=event.feed.id, record=record, digest=digest, **columns))


def _releases(tx: Connection, old: Table, feed: Row[Any]) -> Iterator[_Event]:
    rows = tx.execute(select(old.c.id, old.c.at, old.c.by, old.c.seq).where(old.c.peer == feed.peer).order_by(old.c.id))
    for row in rows.all():
        yield _Event(row.at, row.by, "release", feed, row.seq, partial(_release_facts, tx, old, feed.id, row.id))


def _release_facts(tx: Connection, old: Table, feed: int, id_: int) -> JsonObject:
    """What the row of schema 1 says, and what its entry says of the terms, if it is there still."""
    row = tx.execute(
        select(old, advisories.c.name, advisories.c.revision, out_entries.c.leaf_hash, out_entries.c.data)
        .join(advisories, advisories.c.id == old.c.advisory)
        .join(out_entries, (out_entries.c.feed == feed) & (out_entries.c.seq == old.c.seq))
        .where(old.c.id == id_)
    ).one()
    terms = None if row.data is None else _terms(row.data)
    return {
        "origin": tx.execute(select(meta.c.value).where(meta.c.key == "node")).scalar_one(),
        "name": row.name,
        "revision": row.revision,
        "core_digest": row.core_digest.hex(),
        "leaf_hash": row.leaf_hash.hex(),
        "agreement": row.agreement_digest.hex(),
        "purposes": None if terms is None else sorted(terms.purposes),
        "retain_until": None if row.retain_until is None else instant_text(row.retain_until),
        "storage": None if terms is None or terms.storage is None else sorted(terms.storage),
        "onward": None if terms is None else terms.onward,
        "attribution": None if terms is None else terms.attribution,
        "elements": row.elements,
    }


def _terms(data: bytes) -> Terms | None:
    body = entries.read(data).body
    return body.terms if isinstance(body, Delivery) else None


def _withdrawals(tx: Connection, old: Table, feed: Row[Any], at: datetime) -> Iterator[_Event]:
    rows = tx.execute(
        select(out_entries.c.seq, out_entries.c.data, out_entries.c.leaf_hash)
        .where(out_entries.c.feed == feed.id, out_entries.c.kind == "withdrawal", out_entries.c.data.is_not(None))
        .order_by(out_entries.c.seq)
    )
    for row in rows.all():
        body = entries.read(row.data).body
        if not isinstance(body, Withdrawal):
            continue
        when = tx.execute(
            select(func.max(old.c.withdrawn_at)).where(old.c.peer == feed.peer, old.c.seq.in_(body.seqs))
        ).scalar_one()
        facts = {"entries": list(body.seqs), "reason": body.reason, "leaf_hash": row.leaf_hash.hex()}
        yield _Event(when or at, "policy", "withdrawal", feed, row.seq, partial(dict, facts))


def _receipt(tx: Connection, feed: Row[Any]) -> Iterator[_Event]:
    if feed.receipt is None:
        return
    last = (out_entries.c.feed == feed.id) & (out_entries.c.seq == feed.receipt_size - 1)
    root = tx.execute(select(out_entries.c.root).where(last)).scalar_one()
    facts = {"size": feed.receipt_size, "root": root.hex(), "receipt": b64url(feed.receipt)}
    yield _Event(feed.receipt_at, feed.peer, "receipt", feed, feed.receipt_size - 1, partial(dict, facts))


def _frozen_feeds(tx: Connection, old: Table, at: datetime) -> None:
    """What froze a feed becomes an incident, with the signed heads that show it."""
    for row in tx.execute(select(old).where(old.c.frozen.is_not(None)).order_by(old.c.peer)).all():
        frozen = (audit.c.act == "feed.frozen") & (audit.c.subject == row.peer)
        when = tx.execute(select(func.min(audit.c.at)).where(frozen)).scalar_one() or row.contact_at or at
        heads = {"feed": row.origin, "heads": [b64url(note) for note in _notes(row.evidence or b"")]}
        _open_incident(tx, row.frozen, row.peer, row.origin, heads, "its feed is frozen", when)


def _disputed_revisions(tx: Connection) -> None:
    """Two documents that an origin signed under one revision become an incident."""
    mine = (in_entries.c.feed == inbox.c.feed) & (in_entries.c.seq == inbox.c.seq)
    disputed = (inbox.c.state == "equivocation") & in_entries.c.data.is_not(None)
    rows = tx.execute(
        select(inbox.c.origin, inbox.c.name, inbox.c.revision, inbox.c.received_at, in_entries.c.data)
        .join(in_entries, mine)
        .where(disputed)
        .order_by(inbox.c.id)
    ).all()
    cores: dict[tuple[str, str], set[str]] = {}
    since: dict[tuple[str, str], datetime] = {}
    for row in rows:
        body = entries.read(row.data).body
        if isinstance(body, Delivery):
            revision = (row.origin, f"{storable(row.name)}/{row.revision}")
            cores.setdefault(revision, set()).add(body.presentation.core.decode())
            since[revision] = row.received_at
    for (origin, subject), found in cores.items():
        detail = "it signed two documents under one revision"
        _open_incident(tx, "EQUIVOCATION", origin, subject, {"cores": sorted(found)}, detail, since[origin, subject])


def _open_incident(
    tx: Connection, code: str, peer: str, subject: str, evidence: JsonObject, detail: str, when: datetime
) -> None:
    """An incident with the peer's card as it was signed, and an alarm so that somebody looks at it."""
    card = tx.execute(select(peers.c.card).where(peers.c.node == peer)).scalar_one()
    kept = strictjson.encode({**evidence, "card": b64url(card), **_CARRIED})
    tx.execute(insert(incidents).values(kind=code, peer=peer, subject=subject, evidence=kept, opened_at=when))
    known = tx.execute(select(alarms.c.id).where(alarms.c.kind == code, alarms.c.subject == peer)).first()
    if known is None:
        told = {"kind": code, "subject": peer, "detail": detail}
        tx.execute(insert(alarms).values(first_at=when, last_at=when, count=1, **told))


def _notes(evidence: bytes) -> list[bytes]:
    """The signed notes in the evidence of schema 1: each ends with a line feed, and two more stand between them."""
    return [note.strip(b"\n") + b"\n" for note in evidence.split(b"\n\n\n") if note.strip(b"\n")]
