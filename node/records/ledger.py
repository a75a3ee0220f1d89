"""The ledger: this node's own account of every disclosure (I14), each row chained to the one before by its hash.

A row is a record, JSON that says everything, and a digest: SHA-256 over the digest before and the record. The other
columns repeat what the record says, for queries. Rows are added in the transaction that does what they tell, and never
changed: that an entry was taken back, or that its receipt came, are rows of their own. Checking the chain against feeds
and receipts is `node.audit.verify`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, insert, select

from federation import strictjson
from federation.model import Decision, Form, JsonObject, NodeId, instant_text
from node.home.context import Node
from node.store.database import read
from node.store.tables import ledger, out_entries, out_feeds

GENESIS = bytes(32)  # stands before the first row
MAX_RECORD_BYTES = 8 << 20  # an advisory of the largest size has 20,000 elements


class Act(StrEnum):
    """What a row tells."""

    RELEASE = "release"  # an advisory was appended to a feed
    WITHDRAWAL = "withdrawal"  # own deliveries were taken back
    RECALL = "recall"  # the origin's order went out
    PURGE = "purge"  # bytes were erased because their time was over
    RECEIPT = "receipt"  # the peer has signed that it holds everything up to here


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row. `facts` is what its record says besides the columns; `feed` is an origin line.

    Of a release: `taken_back` is when and by what act its entry was erased; `receipt` whether the peer acknowledged it.
    """

    number: int
    at: datetime
    by: str
    act: Act
    peer: NodeId
    feed: str
    seq: int
    facts: JsonObject
    digest: bytes
    taken_back: tuple[Act, datetime] | None
    receipt: bool

    @property
    def name(self) -> str:
        """The advisory of a release."""
        return str(self.facts["name"])

    @property
    def revision(self) -> int:
        """Its revision."""
        return int(self.facts["revision"])

    @property
    def elements(self) -> tuple[tuple[str, Form, tuple[str, ...]], ...]:
        """Path, form and rule ids of every element of a release."""
        return tuple((path, Form(form), tuple(rules)) for path, form, rules in self.facts["elements"])


@dataclass(frozen=True, slots=True)
class Where:
    """The entry of an outgoing feed that a row is about: `feed` is the local row of the feed, `origin` its name."""

    peer: NodeId
    feed: int
    origin: str
    seq: int


def add(tx: Connection, act: Act, where: Where, facts: JsonObject, *, at: datetime, by: str) -> None:
    """Adds a row. `facts` are the members of its record besides the columns."""
    last = tx.execute(select(ledger.c.id, ledger.c.digest).order_by(ledger.c.id.desc()).limit(1)).one_or_none()
    number = 1 if last is None else last.id + 1
    record = strictjson.encode(
        {
            "row": number,
            "at": instant_text(at),
            "by": by,
            "act": act.value,
            "peer": where.peer,
            "feed": where.origin,
            "seq": where.seq,
            **facts,
        }
    )
    tx.execute(
        insert(ledger).values(
            id=number,
            at=at.replace(microsecond=0),
            by=by,
            kind=act,
            peer=where.peer,
            feed=where.feed,
            seq=where.seq,
            record=record,
            digest=chained(GENESIS if last is None else last.digest, record),
        )
    )


def chained(before: bytes, record: bytes) -> bytes:
    """The digest of a row, 32 bytes."""
    return hashlib.sha256(before + record).digest()


def rows(
    node: Node, peer: NodeId | None = None, name: str | None = None, acts: Iterable[Act] = (Act.RELEASE,)
) -> tuple[LedgerRow, ...]:
    """The rows of these acts, oldest first; those of one peer or one advisory if asked."""
    eraser = ledger.alias("eraser")
    query = (
        select(
            ledger,
            out_feeds.c.origin,
            out_feeds.c.receipt_size,
            eraser.c.kind.label("eraser_kind"),
            eraser.c.at.label("erased_at"),
        )
        .join(out_feeds, out_feeds.c.id == ledger.c.feed)
        .join(out_entries, (out_entries.c.feed == ledger.c.feed) & (out_entries.c.seq == ledger.c.seq))
        .outerjoin(
            eraser,
            (eraser.c.feed == ledger.c.feed)
            & (eraser.c.seq == out_entries.c.erased_by)
            & eraser.c.kind.in_((Act.WITHDRAWAL, Act.RECALL, Act.PURGE)),
        )
        .where(ledger.c.kind.in_(tuple(acts)))
        .order_by(ledger.c.id)
    )
    if peer is not None:
        query = query.where(ledger.c.peer == peer)
    with read(node.engine) as tx:
        found = tuple(map(_row, tx.execute(query)))
    return tuple(row for row in found if name is None or name in row.facts.get("names", (row.facts.get("name"),)))


def account(decision: Decision) -> list[list[Any]]:
    """The elements of a decision as a record holds them: path, form, ids of the rules."""
    return [[e.element.path, e.form.value, [rule.id for rule in e.rules]] for e in decision.elements]


def facts_of(record: bytes) -> JsonObject:
    """The members of a record. Raises MalformedError when it is none."""
    return strictjson.decode_object(record, max_bytes=MAX_RECORD_BYTES, what="ledger record")


def _row(row: Any) -> LedgerRow:
    return LedgerRow(
        number=row.id,
        at=row.at,
        by=row.by,
        act=Act(row.kind),
        peer=NodeId(row.peer),
        feed=row.origin,
        seq=row.seq,
        facts=facts_of(row.record),
        digest=row.digest,
        taken_back=None if row.eraser_kind is None else (Act(row.eraser_kind), row.erased_at),
        receipt=row.receipt_size > row.seq,
    )
