"""Passing on: an origin's grants, and advisories that this node passes on for their origin.

A grant is the origin's leave, signed, to pass one core on (`federation.grant`). It comes through the origin's feed, and
travels on beside the core.
"""

from sqlalchemy import Connection, insert, select

from federation import grant
from federation.errors import GrantError
from federation.keyring import Keyring
from federation.model import NodeId, Role
from node.context import Node
from node.store.database import record
from node.store.tables import grants


def receive_grant(node: Node, tx: Connection, document: bytes, peer: NodeId, keyring: Keyring) -> None:
    """Takes in a grant from its origin; the same again changes nothing. Raises a RemoteError."""
    now = node.clock()
    given = grant.read(document, lambda author, kid: keyring.key(author, Role.ISSUE, kid, now))
    if given.origin != peer:
        raise GrantError(f"grant: {peer} brings one that {given.origin} signed; it goes to the relay directly")
    if given.relay != node.id:
        raise GrantError(f"grant: for the relay {given.relay}, which is not this node")
    known = tx.execute(select(grants.c.digest).where(grants.c.digest == given.digest)).one_or_none()
    if known is not None:
        return
    tx.execute(
        insert(grants).values(
            digest=given.digest,
            origin=given.origin,
            core_digest=given.core_digest,
            relay=given.relay,
            until=given.until,
            document=document,
            at=now,
            by=peer,
        )
    )
    record(tx, at=now, by=peer, act="grant", subject=given.origin, detail=given.core_digest.hex())
