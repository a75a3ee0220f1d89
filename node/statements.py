"""Statements: what nodes tell each other about advisories and entries, signed (`federation.statement`).

A statement goes to the node that it is for through the feed to that node, or to the peer that brought the advisory, who
passes it on. What arrives is an assertion by its author, kept with its name, and changes nothing here (I12).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select

from federation import statement
from federation.entries import Said
from federation.keyring import Keyring
from federation.model import JsonObject, NodeId, Role
from federation.statement import Kind, Statement, Subject
from node import control, feeds
from node.context import Node
from node.peers import trusted_cards
from node.store.database import record, storable
from node.store.tables import statements


def make(
    node: Node,
    tx: Connection,
    kind: Kind,
    recipient: NodeId,
    body: Mapping[str, Any],
    *,
    via: NodeId,
    about: Subject | None = None,
    in_reply_to: bytes | None = None,
    by: str,
) -> Statement | None:
    """Signs a statement for `recipient`, keeps it, and appends it to the feed to `via`.

    None when `via` is no peer that we exchange with: then nothing is made.
    """
    cards = trusted_cards(tx)
    if via not in cards or cards[via].speaks < 2:
        return None
    signer = feeds.signer_for(node, tx, via, Role.ISSUE)
    made = statement.sign(
        kind,
        node.id,
        recipient,
        node.clock(),
        about,
        body,
        in_reply_to=in_reply_to,
        kid=signer.kid,
        sign_bytes=signer.sign,
    )
    _keep(node, tx, made, peer=None, by=by)
    control.offer(node, tx, cards[via], Said(made.document))
    return made


def refuse(node: Node, tx: Connection, peer: NodeId, feed: str, entries: Sequence[JsonObject]) -> None:
    """Tells `peer` which entries of its feed were not taken, and why: codes and rule ids only."""
    make(node, tx, Kind.REFUSAL, peer, {"feed": feed, "entries": list(entries)}, via=peer, by=feeds.POLICY)


def receive(node: Node, tx: Connection, document: bytes, peer: NodeId, keyring: Keyring) -> None:
    """Takes in a statement that a peer brought; the same again changes nothing. Raises a RemoteError."""
    now = node.clock()
    said = statement.read(document, lambda author, kid: keyring.key(author, Role.ISSUE, kid, now))
    known = tx.execute(select(statements.c.digest).where(statements.c.digest == said.digest)).one_or_none()
    if known is None:
        _keep(node, tx, said, peer=peer, by=peer)


def _keep(node: Node, tx: Connection, said: Statement, *, peer: NodeId | None, by: str) -> None:
    number = tx.execute(select(func.coalesce(func.max(statements.c.id), 0) + 1)).scalar_one()
    about = said.about
    tx.execute(
        insert(statements).values(
            digest=said.digest,
            id=number,
            kind=said.kind,
            author=said.author,
            recipient=said.recipient,
            origin=about.origin if about else None,
            name=storable(about.name) if about else None,
            revision=about.revision if about else None,
            document=said.document,
            peer=peer,
            at=node.clock(),
            by=by,
        )
    )
    record(tx, at=node.clock(), by=by, act="statement", subject=f"{said.author} {said.kind}", detail=said.digest.hex())
