"""The ledger: a row for every disclosure (I14).

What, which elements in which form by which rules, to whom, under which agreement, by which local user, when, and
whether the peer's receipt covers it. `node.releases` writes a row in the transaction that appends the entry.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from federation.model import Decision, Form, NodeId
from node.context import Node
from node.store.database import read
from node.store.tables import advisories, ledger, out_feeds


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One disclosure. `receipt` tells whether the peer has acknowledged it as durable."""

    at: datetime
    by: str
    peer: NodeId
    seq: int
    name: str
    revision: int
    core_digest: bytes
    agreement_digest: bytes
    elements: tuple[tuple[str, Form, tuple[str, ...]], ...]
    withdrawn_at: datetime | None
    receipt: bool


def rows(node: Node, peer: NodeId | None = None, name: str | None = None) -> tuple[LedgerRow, ...]:
    """Every disclosure of this node, oldest first; of one peer or one advisory if asked."""
    query = (
        select(ledger, advisories.c.name, advisories.c.revision, out_feeds.c.receipt_size)
        .join(advisories, advisories.c.id == ledger.c.advisory)
        .join(out_feeds, out_feeds.c.peer == ledger.c.peer)
        .order_by(ledger.c.id)
    )
    if peer is not None:
        query = query.where(ledger.c.peer == peer)
    if name is not None:
        query = query.where(advisories.c.name == name)
    with read(node.engine) as tx:
        found = tx.execute(query).all()
    return tuple(
        LedgerRow(
            at=row.at,
            by=row.by,
            peer=NodeId(row.peer),
            seq=row.seq,
            name=row.name,
            revision=row.revision,
            core_digest=row.core_digest,
            agreement_digest=row.agreement_digest,
            elements=tuple((path, Form(form), tuple(rules)) for path, form, rules in row.elements),
            withdrawn_at=row.withdrawn_at,
            receipt=row.receipt_size > row.seq,
        )
        for row in found
    )


def account(decision: Decision) -> list[list[Any]]:
    """The elements of a decision as a row holds them: path, form, ids of the rules."""
    return [[e.element.path, e.form.value, [rule.id for rule in e.rules]] for e in decision.elements]
