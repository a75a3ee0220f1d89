"""What tests of recalls share: an advisory that must not be found any more, who holds it, and forged orders."""

import hashlib
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select, update

from federation import entries, recall
from federation.entries import Delivery
from federation.model import NodeId, Presentation, Role
from federation.policy.engine import RuleBook
from federation.policy.schema import Control
from federation.recall import Reason
from federation.statement import Kind
from node import main
from node.desk import inbox
from node.desk.inbox import InboxState
from node.peering.agreements import Held
from node.sharing import answers, releases, statements
from node.sharing.answers import HolderState
from node.store import tables
from node.store.database import read, write
from tests.laws import book_of
from tests.nodes import (
    DE,
    FR,
    World,
    document,
    history,
    import_document,
    issued,
    payload_of,
    signed_core,
    terms_for,
)

SECRET = "The passphrase of the pump is kestrel-nine."
BYTES = SECRET.encode()
FORBID_RECALLS = (
    '@id("test/silence") @basis("a law") @says("Nothing may be told.")\n'
    'forbid (principal, action == Action::"notify", resource) when { %s };\n'
)


def released(world: World, name: str = "X", *to: NodeId, **handling: Any) -> None:
    """FR releases an advisory that holds SECRET."""
    made = import_document(world[FR], document(name, notes=(SECRET,)), handling={"tlp": "GREEN", **handling})
    releases.release(world[FR], made, to or (DE,))


def holders(world: World, name: str = "X", at: NodeId = FR) -> dict[NodeId, tuple[NodeId, HolderState]]:
    """Who has to follow the newest recall of an advisory: via whom, and how it stands."""
    return {holder.node: (holder.via, holder.state) for holder in answers.status(world[at], name)[0].holders}


def said(world: World, at: NodeId, author: NodeId) -> list[dict[str, Any]]:
    """The answers to recalls that one node keeps of another."""
    return [
        kept.statement.body
        for kept in statements.all_kept(world[at])
        if (kept.statement.kind, kept.statement.author) == (Kind.PURGE, author)
    ]


def last(world: World, sender: NodeId, recipient: NodeId) -> entries.Body:
    """The newest entry in a feed."""
    data = history(world[sender], recipient)[-1]
    assert isinstance(data, bytes)
    return entries.read(data).body


def items(world: World, at: NodeId = DE) -> list[tuple[str, int, InboxState]]:
    return [(i.name, i.revision, i.state) for i in sorted(inbox.items(world[at], every_state=True), key=lambda i: i.id)]


def silenced(when: str) -> RuleBook:
    """A law that forbids control messages."""
    return book_of(FORBID_RECALLS % when)


def forbidding(*kinds: Control) -> RuleBook:
    """A law that forbids control messages of these kinds."""
    return silenced(" || ".join(f'resource.kind == Control::"{kind}"' for kind in kinds))


def make_old(world: World, at: NodeId, peer: NodeId) -> None:
    """One node knows another by a card that lists version 1 only."""
    made = replace(world[peer].card, protocols=(1,), version=world[peer].card.version + 1)
    with write(world[at].engine) as tx:
        card = main.sign_card(made, world[peer].keys)
        tx.execute(update(tables.peers).where(tables.peers.c.node == peer).values(card=card))


def signed_recall(world: World, author: NodeId, name: str, *revisions: int, origin: NodeId | None = None) -> bytes:
    """An order under the real key of `author`, in the name of `origin` if one is given."""
    node = world[author]
    signer = node.keys.signer(Role.ISSUE, node.card, world.clock())
    made = recall.sign(
        origin or author, name, revisions, Reason.ERROR, world.clock(), kid=signer.kid, sign_bytes=signer.sign
    )
    return made.document


def outcome_of_last(world: World, at: NodeId, sender: NodeId) -> tuple[str, str | None]:
    """What became of the newest entry that a node holds of another."""
    with read(world[at].engine) as tx:
        row = tx.execute(
            select(tables.in_entries.c.outcome, tables.in_entries.c.code)
            .join(tables.in_feeds, tables.in_feeds.c.id == tables.in_entries.c.feed)
            .where(tables.in_feeds.c.peer == sender)
            .order_by(tables.in_entries.c.seq.desc())
        ).first()
    assert row is not None
    return row.outcome, row.code


def again(world: World, held: Held, **members: Any) -> Delivery:
    """The advisory X for DE, signed again with other members, in full."""
    presentation = issued(world[FR], "X")
    core = signed_core(world[FR], payload_of(presentation.core) | members)
    terms = replace(terms_for(world[FR], DE, "X", held), core_digest=hashlib.sha256(core).digest())
    return Delivery(Presentation(core, presentation.disclosures), terms)


def count(world: World, at: NodeId, table: Any) -> int:
    with read(world[at].engine) as tx:
        return int(tx.execute(select(func.count()).select_from(table)).scalar_one())


def document_of(world: World, at: NodeId = FR) -> bytes:
    """The order that a node keeps, as it was signed."""
    with read(world[at].engine) as tx:
        document_: bytes = tx.execute(select(tables.recalls.c.document)).scalar_one()
    return document_
