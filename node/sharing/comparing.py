"""Comparing cores: receivers tell each other what came under which revision, so that no origin can tell two stories.

Each tells the digests of the cores that came (`seen`) to those who may have the same advisories: the other parties of
the agreement under which one came, if its origin is one of them, and for TLP:CLEAR and GREEN every peer with whom an
agreement is in force. Who holds another core under that revision answers with its bytes (`core`), and gets the other's
in return. The origin's two signatures then prove it to both, and both hold the revision back (I5). A digest alone is
somebody's word (I12): it raises an alarm and changes nothing. Each peer is shown one core of a revision at most, so
that nobody gets more for a guess. It takes no memory: of two with different cores, whoever is told second finds it.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from federation import handling, sdjwt, statement
from federation.entries import Delivery
from federation.errors import KeyringError, MalformedError
from federation.inbound import Advisory, Receiver
from federation.limits import MAX_CONTROL_BYTES, MAX_SEEN
from federation.model import Handling, NodeId, Role, Tlp
from federation.statement import Kind, Seen, Statement, Subject
from node.desk import inbox
from node.home.context import Node
from node.peering import feeds
from node.peering.peers import earlier_key, trusted_cards
from node.records.alarms import Alarm, raise_alarm
from node.sharing import statements
from node.store.database import record, storable
from node.store.tables import statements as kept

_WIDE = (Tlp.CLEAR, Tlp.GREEN)
_MOST_SHOWN = 16  # for one statement: each is read whole; one is proof enough against an origin
_MAX_CORE_BYTES = MAX_CONTROL_BYTES * 2 // 3  # what fits into a signed document: base64url adds a third


def tell(node: Node, tx: Connection, came: Collection[Advisory], peer: NodeId, receiver: Receiver) -> None:
    """Tells others which cores `peer` has just delivered."""
    for card in trusted_cards(tx).values():
        listed = [
            Seen(Subject(a.origin, a.name, a.revision), a.core_digest).write()
            for a in came
            if card.node != peer
            and _may_have(card.node, a.origin, a.handling, a.terms.agreement_digest, receiver, node.clock())
        ]
        for start in range(0, len(listed), MAX_SEEN):
            body = {"cores": listed[start : start + MAX_SEEN]}
            statements.make(node, tx, Kind.SEEN, card.node, body, via=card.node, by=feeds.POLICY)


def compare(node: Node, tx: Connection, said: Statement, receiver: Receiver) -> None:
    """Takes in which cores a peer has seen. Who has another one is shown ours, and asked for its own by that.

    What a peer says may name anything any number of times: the database is asked once, a revision looked at once.
    """
    claims: dict[Subject, set[bytes]] = {}
    for claimed in statement.seen(said):
        claims.setdefault(claimed.about, set()).add(claimed.core_digest)
    came = inbox.came(tx, {about.name for about in claims})
    differing = [about for about, digests in claims.items() if _differ(tx, about, digests, came)]
    if differing:
        _suspect(node, tx, said.author, differing)
    for about in differing[:_MOST_SHOWN]:
        _show(node, tx, said.author, about, None, receiver)


def _differ(
    tx: Connection, about: Subject, digests: set[bytes], came: Mapping[tuple[str, str, int], set[bytes]]
) -> bool:
    """Whether something came here under that revision, and what a peer got is none of it, nor of what was shown."""
    if about.revision is None:
        return False
    known = came.get((about.origin, storable(about.name), about.revision), set())
    if not known or digests <= known:
        return False
    return not digests <= inbox.seen(tx, about.origin, about.name, about.revision)


def take_core(node: Node, tx: Connection, said: Statement, receiver: Receiver) -> None:
    """Takes in a core that a peer holds. If its origin signed another one that is held here, neither is used.

    (1) its origin signed it, for that revision, with a key that is valid now, or that signed what is held here;
    (2) what is held is another one. Raises MalformedError, KeyringError, SignatureError.
    """
    about = said.about
    if about is None or about.revision is None:
        raise MalformedError("statement: a core is shown of one revision")
    held = inbox.deliveries(tx, about.origin, about.name, about.revision)
    core = sdjwt.read_header_and_payload(said.body["core"].encode())
    if (core.iss, core.payload.get("jti")) != (about.origin, f"{about.origin}/{about.name}/{about.revision}"):
        raise MalformedError("statement: its core is that of another revision")
    sdjwt.verify(core, (), public_key=_key(node, tx, core, held, receiver))  # (1)
    if not held or hashlib.sha256(core.core).digest() in inbox.seen(
        tx, about.origin, about.name, about.revision
    ):  # (2)
        return
    inbox.contradict(node, tx, about.origin, about.name, about.revision, core.core)
    detail = f"shown by {said.author}"
    record(tx, at=node.clock(), by=said.author, act="inbox.equivocation", subject=storable(about.name), detail=detail)
    if said.in_reply_to is None:
        _show(node, tx, said.author, about, said.digest, receiver)


def _may_have(
    peer: NodeId, origin: NodeId, allowed: Handling, agreement_digest: bytes, receiver: Receiver, now: datetime
) -> bool:
    """Whether a peer may know that this advisory came here.

    (1) it is among the recipients, if the origin names any; (2) its country is among the places of storage, if they are
    limited; (3) it is a party of the agreement under which the advisory came, and so is the origin; or (4) of any one
    with us, for what is widely shared and under no embargo.
    """
    country = receiver.keyring.card(peer).jurisdiction
    under, both = receiver.agreements.get(agreement_digest), {receiver.me, peer}
    if peer == origin or (allowed.recipients is not None and peer not in allowed.recipients):  # (1)
        return False
    if allowed.storage is not None and country not in allowed.storage:  # (2)
        return False
    if under is not None and {*both, origin} <= set(under.parties):  # (3)
        return under.storage is None or country in under.storage  # (2)
    if allowed.tlp not in _WIDE or (allowed.embargo_until is not None and now < allowed.embargo_until):
        return False
    return any(both <= set(agreement.parties) for agreement in receiver.agreements.values())  # (4)


def _suspect(node: Node, tx: Connection, author: NodeId, differing: Sequence[Subject]) -> None:
    names = [f"{about.origin}/{storable(about.name)}/{about.revision}" for about in differing]
    more = f"and {len(names) - 1} more" if len(names) > 1 else ""
    record(tx, at=node.clock(), by=author, act="core.differs", subject=names[0], detail=more)
    for name in names:
        raise_alarm(tx, Alarm.SUSPECTED_EQUIVOCATION, name, f"{author} says that it got another document", node.clock())


def _show(
    node: Node, tx: Connection, peer: NodeId, about: Subject, in_reply_to: bytes | None, receiver: Receiver
) -> None:
    """Sends the core that is held here to a peer who may have the advisory, and was not shown one of that revision."""
    if _was_shown(node, tx, peer, about):
        return
    for delivery in inbox.deliveries(tx, about.origin, about.name, about.revision or 0).values():
        core = delivery.presentation.core
        allowed = handling.read(sdjwt.read_header_and_payload(core).payload["handling"])
        if len(core) > _MAX_CORE_BYTES:
            return
        if _may_have(peer, about.origin, allowed, delivery.terms.agreement_digest, receiver, node.clock()):
            statements.make(
                node,
                tx,
                Kind.CORE,
                peer,
                {"core": core.decode()},
                via=peer,
                about=about,
                in_reply_to=in_reply_to,
                by=feeds.POLICY,
            )
            return


def _was_shown(node: Node, tx: Connection, peer: NodeId, about: Subject) -> bool:
    shown = select(kept.c.id).where(
        kept.c.origin == about.origin,
        kept.c.name == storable(about.name),
        kept.c.revision == about.revision,
        kept.c.kind == Kind.CORE,
        kept.c.author == node.id,
        kept.c.recipient == peer,
    )
    return tx.execute(shown.limit(1)).first() is not None


def _key(
    node: Node, tx: Connection, core: sdjwt.UnverifiedCore, held: Mapping[bytes, Delivery], receiver: Receiver
) -> bytes:
    """Raises KeyringError."""
    origin = NodeId(core.iss)
    try:
        return receiver.keyring.key(origin, Role.ISSUE, core.kid, node.clock())
    except KeyringError:
        if core.kid not in {sdjwt.read_header_and_payload(body.presentation.core).kid for body in held.values()}:
            raise
        return earlier_key(node, tx, origin, Role.ISSUE, core.kid)
