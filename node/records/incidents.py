"""Incidents: evidence that a peer has broken the protocol, kept until two people settle it (I8).

An incident holds what was signed: heads of a feed that contradict each other, or cores under one revision; and the card
that the peer had. `export` makes of it a file that a third party judges without us, with that peer's card and public
standards alone, where the evidence proves itself (`federation.contradiction`); then the file holds nothing else, so
that every byte of it counts:

    {"cards": [...], "heads": [...], "incident": "FORK", "proves_itself": true}
    {"cards": [...], "cores": [...], "incident": "EQUIVOCATION", "proves_itself": true}

Of other evidence nobody has more than our word, and its file says so: of a SUSPECTED_FORK, and of a ROLLBACK, which
rests on the clock of the peer that it accuses. Settling an incident is `node.desk.resolutions`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from federation import contradiction, strictjson
from federation.base64url import b64url, from_b64url
from federation.checkpoint import Checkpoint
from federation.contradiction import Contradiction
from federation.errors import EquivocationError, ForkError, MalformedError, NotFoundError
from federation.keyring import for_newcomers
from federation.model import JsonObject, NodeId
from node.home.context import Node
from node.records.alarms import Alarm, raise_alarm
from node.store.database import read
from node.store.tables import incidents, peer_cards

_MAX_CORES: Final = 8  # of one revision: two prove it, and a peer that signs more fills no disk here
_MAX_EVIDENCE: Final = 64 << 20  # bytes; a core may be as large as an entry
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999; a peer dates its heads as it likes


@dataclass(frozen=True, slots=True)
class Head:
    """A head in the evidence. `dated` is when its sender called it its newest; None if it did not."""

    size: int
    root: bytes
    dated: datetime | None


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident. `about` is the origin line of a feed, or NAME/REVISION of an advisory by the peer.

    `cores` are digests. `proves_itself`: a third party needs nobody's word but the peer's.
    """

    number: int
    kind: str
    peer: NodeId
    about: str
    heads: tuple[Head, ...]
    cores: tuple[bytes, ...]
    proves_itself: bool
    opened_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What people have decided of the cores under one revision, by digest."""

    rejected: frozenset[bytes] = frozenset()
    kept: bytes | None = None


def open_incident(
    tx: Connection, code: str, peer: NodeId, subject: str, evidence: JsonObject, detail: str, now: datetime
) -> None:
    """Keeps evidence against `peer`, with its card as it was signed, and raises the alarm.

    `code` is that of the error, `evidence` JSON.
    """
    kept = strictjson.encode({**evidence, "card": b64url(_cards(tx, peer)[-1])})
    tx.execute(insert(incidents).values(kind=code, peer=peer, subject=subject, evidence=kept, opened_at=now))
    raise_alarm(tx, Alarm(code), peer, detail, now)


def open_equivocation(node: Node, tx: Connection, origin: NodeId, subject: str, cores: Iterable[bytes]) -> None:
    """Keeps cores that contradict each other. While an incident of that revision is open, they are added to it."""
    rows = _of_revision(tx, origin, subject)
    known = [core for row in rows for core in _evidence(row).get("cores", [])]
    kept = tuple(dict.fromkeys((*known, *sorted(core.decode() for core in cores))))
    found = {"cores": list(kept[:_MAX_CORES])}
    for row in rows:
        if row.resolved_at is None:
            _change(tx, row, found)
            return
    detail = "it signed two documents under one revision"
    open_incident(tx, EquivocationError.code, origin, subject, found, detail, node.clock())


def cores(tx: Connection, origin: NodeId, subject: str) -> frozenset[bytes]:
    """The digests of all cores that were ever evidence about a revision, held here or shown by somebody else."""
    return frozenset(digest for row in _of_revision(tx, origin, subject) for digest in core_digests(row))


def settled(tx: Connection, origin: NodeId, subject: str) -> Settled:
    """What was decided of a revision with contradicting cores; nothing if nobody has settled it."""
    decided = [row for row in _of_revision(tx, origin, subject) if row.resolved_at is not None]
    if not decided:
        return Settled()
    kept = _evidence(decided[-1]).get("kept")
    choice = None if kept is None else bytes.fromhex(kept)
    return Settled(frozenset(digest for row in decided for digest in core_digests(row)) - {choice}, choice)


def close(tx: Connection, row: Row[Any], *, by: str, resolution: str, now: datetime, kept: bytes | None = None) -> None:
    """Closes an incident, and notes which core of an EQUIVOCATION was chosen."""
    if row.kind == EquivocationError.code:
        _change(tx, row, {"kept": None if kept is None else kept.hex()})
    changed = {"resolved_at": now, "resolved_by": by, "resolution": resolution}
    tx.execute(update(incidents).where(incidents.c.id == row.id).values(**changed))


def all_incidents(node: Node, *, every: bool = False) -> tuple[Incident, ...]:
    """The incidents that nobody has settled, oldest first; with `every`, the settled ones too."""
    query = select(incidents).order_by(incidents.c.id)
    if not every:
        query = query.where(incidents.c.resolved_at.is_(None))
    with read(node.engine) as tx:
        return tuple(_incident(tx, row) for row in tx.execute(query).all())


def find(node: Node, number: int) -> Incident:
    """The incident of that number. Raises NotFoundError."""
    with read(node.engine) as tx:
        return _incident(tx, row_of(tx, number))


def export(node: Node, number: int) -> tuple[Incident, bytes]:
    """The incident, and the file by which a third party judges it. Raises NotFoundError."""
    with read(node.engine) as tx:
        row = row_of(tx, number)
        return _incident(tx, row), _file(tx, row)


def row_of(tx: Connection, number: int) -> Row[Any]:
    """The stored incident of that number. Raises NotFoundError."""
    row = tx.execute(select(incidents).where(incidents.c.id == number)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no incident {number}; see: apostille peer incident list --all")
    return row


def core_digests(row: Row[Any]) -> tuple[bytes, ...]:
    """The digests of the cores in the evidence of a stored incident."""
    return tuple(sha256(core.encode()).digest() for core in _evidence(row).get("cores", []))


def _incident(tx: Connection, row: Row[Any]) -> Incident:
    cards = _cards(tx, NodeId(row.peer))
    heads = (_head(note, NodeId(row.peer), cards) for note in _notes(row))
    return Incident(
        number=row.id,
        kind=row.kind,
        peer=NodeId(row.peer),
        about=row.subject,
        heads=tuple(head for head in heads if head is not None),
        cores=core_digests(row),
        proves_itself=_proof(row, cards) is not None,
        opened_at=row.opened_at,
        resolved_at=row.resolved_at,
        resolved_by=row.resolved_by,
        resolution=row.resolution,
    )


def _file(tx: Connection, row: Row[Any]) -> bytes:
    """In its one form: members sorted, no white space, a newline at the end."""
    cards = _cards(tx, NodeId(row.peer))
    proof = _proof(row, cards)
    held = proof or Contradiction(
        (for_newcomers(cards[-1]),), _notes(row), tuple(core.encode() for core in _evidence(row).get("cores", []))
    )
    members: JsonObject = {
        "incident": row.kind,
        "proves_itself": proof is not None,
        "cards": [b64url(card) for card in held.cards],
        **({"heads": [b64url(note) for note in held.heads]} if held.heads else {}),
        **({"cores": [core.decode() for core in held.cores]} if held.cores else {}),
    }
    if proof is None:
        members["about"] = row.subject
    return json.dumps(members, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _proof(row: Row[Any], cards: tuple[bytes, ...]) -> Contradiction | None:
    """The least that proves an incident; None when nothing here does."""
    peer = NodeId(row.peer)
    if row.kind == ForkError.code:
        return contradiction.fork(_notes(row), peer, cards)
    if row.kind == EquivocationError.code:
        return contradiction.equivocation((core.encode() for core in _evidence(row).get("cores", [])), peer, cards)
    return None


def _head(note: bytes, peer: NodeId, cards: tuple[bytes, ...]) -> Head | None:
    try:
        head = Checkpoint.of(note)
    except MalformedError:
        return None
    time = contradiction.dated(note, peer, cards)
    if time is None or time > _LAST_SECOND:
        return Head(head.size, head.root, None)
    return Head(head.size, head.root, datetime.fromtimestamp(time, UTC))


def _notes(row: Row[Any]) -> tuple[bytes, ...]:
    return tuple(from_b64url(note) for note in _evidence(row).get("heads", []))


def _cards(tx: Connection, peer: NodeId) -> tuple[bytes, ...]:
    """Every card of a peer that was ever enrolled, oldest first: what it signed may be older than the last one."""
    query = select(peer_cards.c.document).where(peer_cards.c.node == peer).order_by(peer_cards.c.version)
    return tuple(tx.execute(query).scalars())


def _of_revision(tx: Connection, origin: NodeId, subject: str) -> list[Row[Any]]:
    query = select(incidents).where(
        incidents.c.kind == EquivocationError.code, incidents.c.peer == origin, incidents.c.subject == subject
    )
    return list(tx.execute(query.order_by(incidents.c.id)).all())


def _evidence(row: Row[Any]) -> JsonObject:
    return strictjson.decode_object(row.evidence, max_bytes=_MAX_EVIDENCE, what="evidence")


def _change(tx: Connection, row: Row[Any], changed: JsonObject) -> None:
    evidence = strictjson.encode({**_evidence(row), **changed})
    tx.execute(update(incidents).where(incidents.c.id == row.id).values(evidence=evidence))
