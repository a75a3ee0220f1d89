"""Entries that a peer sent and this node did not use, with the reason: set aside (quarantined), or refused.

Of what was quarantined the bytes are kept for inspection; of what law or agreement forbids to keep, only the leaf hash,
the code and the rule are (I10). Reading only: what becomes of an entry is decided once, in `node.exchange.sync`.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from federation.errors import NotFoundError
from federation.model import NodeId
from node.home.context import Node
from node.store.database import read
from node.store.tables import in_entries, in_feeds

_SET_ASIDE = ("quarantined", "refused")
_ENTRIES = (
    select(in_entries, in_feeds.c.peer)
    .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
    .where(in_entries.c.outcome.in_(_SET_ASIDE))
)


@dataclass(frozen=True, slots=True)
class SetAside:
    """One entry. `size` and `sha256` are None when its bytes are not kept; `code` is that of the error tree."""

    peer: NodeId
    seq: int
    outcome: str
    code: str
    detail: str
    leaf_hash: bytes
    size: int | None
    sha256: bytes | None
    received_at: datetime


def all_set_aside(node: Node) -> tuple[SetAside, ...]:
    """Every entry that was set aside, newest first."""
    query = _ENTRIES.order_by(in_entries.c.received_at.desc(), in_feeds.c.epoch.desc(), in_entries.c.seq.desc())
    with read(node.engine) as tx:
        rows = tx.execute(query).all()
    return tuple(map(_set_aside, rows))


def set_aside(node: Node, peer: NodeId, seq: int) -> tuple[SetAside, bytes | None]:
    """One entry of the newest epoch that has it, with its bytes, None when they are not kept. Raises NotFoundError."""
    query = _ENTRIES.where(in_feeds.c.peer == peer, in_entries.c.seq == seq).order_by(in_feeds.c.epoch.desc())
    with read(node.engine) as tx:
        row = tx.execute(query.limit(1)).one_or_none()
    if row is None:
        raise NotFoundError(f"entry {seq} of {peer} is not set aside; see: apostille quarantine list")
    return _set_aside(row), row.data


def count(tx: Connection) -> int:
    """How many entries were set aside."""
    query = select(func.count()).select_from(in_entries).where(in_entries.c.outcome.in_(_SET_ASIDE))
    found: int = tx.execute(query).scalar_one()
    return found


def _set_aside(row: Row[Any]) -> SetAside:
    return SetAside(
        peer=NodeId(row.peer),
        seq=row.seq,
        outcome=row.outcome,
        code=row.code or "",
        detail=row.detail or "",
        leaf_hash=row.leaf_hash,
        size=None if row.data is None else len(row.data),
        sha256=None if row.data is None else hashlib.sha256(row.data).digest(),
        received_at=row.received_at,
    )
