"""Recalls: the origin's order to stop using revisions of an advisory and to purge them (I15).

An order may arrive before the advisory that it is about; it bars the revisions that it names from then on, whoever
delivers them.
"""

from sqlalchemy import Connection, insert, select, update

from federation import recall
from federation.errors import RecalledError
from federation.inbound import Advisory
from federation.keyring import Keyring
from federation.model import NodeId, Role
from federation.recall import Recall
from node import inbox
from node.context import Node
from node.inbox import Disposition, InboxState
from node.store.database import record, storable
from node.store.tables import in_entries, recalls
from node.store.tables import inbox as inbox_table


def check_not_barred(tx: Connection, advisory: Advisory) -> None:
    """Refuses a revision that its origin has recalled. Raises RecalledError."""
    orders = tx.execute(
        select(recalls.c.revisions).where(
            recalls.c.origin == advisory.origin, recalls.c.name == storable(advisory.name)
        )
    ).scalars()
    if any(advisory.revision in revisions for revisions in orders):
        raise RecalledError(f"{advisory.origin} has recalled revision {advisory.revision} of it")


def receive(node: Node, tx: Connection, document: bytes, peer: NodeId, keyring: Keyring) -> None:
    """Takes in an order that a peer brought, and purges what it names; the same again changes nothing.

    Raises a RemoteError.
    """
    now = node.clock()
    order = recall.read(document, lambda author, kid: keyring.key(author, Role.ISSUE, kid, now))
    if tx.execute(select(recalls.c.digest).where(recalls.c.digest == order.digest)).one_or_none() is not None:
        return
    keep(node, tx, order, by=peer)
    purge(tx, order)


def keep(node: Node, tx: Connection, order: Recall, *, by: str) -> None:
    """Keeps an order, which bars what it names from now on."""
    tx.execute(
        insert(recalls).values(
            digest=order.digest,
            origin=order.origin,
            name=storable(order.name),
            revisions=list(order.revisions),
            reason=order.reason,
            ordered_at=order.at,
            document=order.document,
            at=node.clock(),
            by=by,
        )
    )
    detail = f"revisions {', '.join(map(str, order.revisions))}"
    record(tx, at=node.clock(), by=by, act="recall", subject=f"{order.origin}/{order.name}", detail=detail)


def purge(tx: Connection, order: Recall) -> int:
    """Erases every copy that was received of what the order names; returns how many there were. The caller scrubs."""
    named = (
        (inbox_table.c.origin == order.origin)
        & (inbox_table.c.name == storable(order.name))
        & inbox_table.c.revision.in_(order.revisions)
    )
    places = tx.execute(select(inbox_table.c.feed, inbox_table.c.seq).where(named)).all()
    for feed, seq in places:
        tx.execute(
            update(in_entries)
            .where(in_entries.c.feed == feed, in_entries.c.seq == seq)
            .values(data=None, outcome=Disposition.RECALLED)
        )
    inbox.forget(tx, select(inbox_table.c.id).where(named), InboxState.RECALLED)
    return len(places)
