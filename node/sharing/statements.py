"""Statements: what nodes tell each other about advisories and entries, signed (`federation.statement`).

People here say something about a received advisory to its origin; the origin answers. A statement goes to the node that
it is for through the feed to that node, or to the peer that brought the advisory, who passes it on as it is: one hop,
and only between the two for whom it passed that advisory on. What arrives is an assertion by its author, kept with its
name, and changes nothing here (I12); which cores somebody saw is compared at once and not kept apart. What a person
wrote stands in the signed document and nowhere else (I17).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, or_, select

from federation import statement
from federation.entries import Said
from federation.errors import HeldError, NotAdmittedError, NotFoundError, UsageError
from federation.keyring import Card, Keyring
from federation.limits import MAX_STATEMENT_TEXT
from federation.model import JsonObject, NodeId, Role
from federation.statement import SPOKEN, WITH_TEXT, Kind, Statement, Subject
from node.home import signing
from node.home.context import Node
from node.home.people import Post
from node.peering import control, feeds
from node.peering.feeds import OutFeed
from node.peering.peers import trusted_cards
from node.sharing import relays
from node.store.database import read, record, storable, write
from node.store.tables import advisories, inbox, ledger, out_entries, out_feeds, statements

_VERSION: Final = 2  # an older node knows no statements
_MAX_REFUSALS: Final = 128  # that are read for one release: a peer may send any number, each of 256 KiB
_NOT_PASSED_ON: Final = ("statement/not-passed-on",)


@dataclass(frozen=True, slots=True)
class Kept:
    """A statement as it is kept here. `peer` brought it, None for our own; `by` is who made or brought it.

    `answers` is the number of the statement that it answers, where that is here. `concerns` are the names of the
    advisories that it is about; for a refusal, those in the entries that were refused.
    """

    number: int
    statement: Statement
    peer: NodeId | None
    at: datetime
    by: str
    answers: int | None
    concerns: tuple[str, ...]


def say(node: Node, item: int, kind: Kind, text: str | None) -> Kept:
    """Tells the origin of an item of the inbox something about it: directly, or by the peer that delivered it.

    Raises NotFoundError, UsageError, and HeldError when law forbids to send it.
    """
    node.allow(Post.ANALYST)
    if kind not in SPOKEN:
        raise UsageError(f"people say: {', '.join(SPOKEN)}")
    body = _body(kind, text)
    with write(node.engine) as tx:
        row = tx.execute(select(inbox).where(inbox.c.id == item)).one_or_none()
        if row is None:
            raise NotFoundError(f"the inbox has no {item}; see: apostille inbox list --all")
        about = Subject(NodeId(row.origin), row.name, row.revision)
        return _send(node, tx, kind, about.origin, body, bringer=NodeId(row.peer), about=about)


def reply(node: Node, number: int, text: str) -> Kept:
    """Answers a statement that came here, by the way that it came. Raises as `say`."""
    node.allow(Post.ANALYST)
    with write(node.engine) as tx:
        row = _row(tx, number)
        if row.author == node.id or row.recipient != node.id:
            raise UsageError(f"statement {number} was not made to this node: there is nothing to answer")
        said = statement.reread(row.document)
        return _send(
            node,
            tx,
            Kind.ANSWER,
            said.author,
            _body(Kind.ANSWER, text),
            bringer=NodeId(row.peer),
            about=said.about,
            in_reply_to=said.digest,
        )


def all_kept(node: Node, about: str | None = None) -> tuple[Kept, ...]:
    """Every statement, oldest first; with `about`, those that concern an advisory: NAME or ORIGIN/NAME."""
    with read(node.engine) as tx:
        found = tuple(_kept(tx, row) for row in tx.execute(select(statements).order_by(statements.c.id)).all())
    if about is None:
        return found
    return tuple(kept for kept in found if any(about in (name, name.partition("/")[2]) for name in kept.concerns))


def find(node: Node, number: int) -> Kept:
    """The statement of that number. Raises NotFoundError."""
    with read(node.engine) as tx:
        return _kept(tx, _row(tx, number))


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
    card = _spoken_with(tx, via)
    if card is None:
        return None
    made = _sign(node, tx, kind, recipient, body, card, about, in_reply_to)
    _keep(node, tx, made, peer=None, by=by)
    control.offer(node, tx, card, Said(made.document))
    return made


def refuse(node: Node, tx: Connection, peer: NodeId, feed: str, entries: Sequence[JsonObject]) -> None:
    """Tells `peer` which entries of its feed were not taken, and why: codes and rule ids only."""
    make(node, tx, Kind.REFUSAL, peer, {"feed": feed, "entries": list(entries)}, via=peer, by=feeds.POLICY)


def receive(node: Node, tx: Connection, document: bytes, peer: NodeId, keyring: Keyring) -> Statement | None:
    """Takes in a statement that a peer brought, and passes it on if it is for another node.

    Returns it; None when it is here already, which changes nothing. Raises a RemoteError; a NotAdmittedError when it is
    for another node and not passed on.
    """
    now = node.clock()
    said = statement.read(document, lambda author, kid: keyring.key(author, Role.ISSUE, kid, now))
    known = tx.execute(select(statements.c.digest).where(statements.c.digest == said.digest)).one_or_none()
    if known is not None:
        return None
    if (
        said.recipient != node.id and said.kind != Kind.PURGE
    ):  # that goes back as the order came: `node.sharing.answers`
        forward(node, tx, said, peer)
    _keep(node, tx, said, peer=peer, by=peer)
    return said


def forward(node: Node, tx: Connection, said: Statement, peer: NodeId) -> None:
    """Passes a statement on to the node that it is for, as it is.

    (1) its author brings it, so that it has made no hop before; (2) it is about an advisory of the one that this node
    has passed on to the other; (3) we exchange with its recipient, whose node knows statements; (4) and law allows it.
    Raises NotAdmittedError.
    """
    about = said.about
    if said.author != peer:  # (1)
        raise NotAdmittedError(f"statement for {said.recipient}: it was passed on once already", _NOT_PASSED_ON)
    ends = {said.author, said.recipient}
    if (
        about is None
        or about.origin not in ends
        or not any(
            relays.passed_on_between(tx, about.origin, storable(about.name), end) for end in ends - {about.origin}
        )
    ):  # (2)
        raise NotAdmittedError(
            f"statement for {said.recipient}: this node has passed nothing on between the two that it is about",
            _NOT_PASSED_ON,
        )
    card = _spoken_with(tx, said.recipient)
    if card is None:  # (3)
        raise NotAdmittedError(f"statement for {said.recipient}: no statements go there from here", _NOT_PASSED_ON)
    try:
        control.send(node, tx, card, Said(said.document))  # (4)
    except HeldError as e:
        raise NotAdmittedError(f"statement for {said.recipient}: law holds it back here", _NOT_PASSED_ON) from e


def refused(tx: Connection, feed: OutFeed, seq: int) -> bool:
    """Whether the peer said that it did not take that entry of our feed to it.

    A refusal names no feed outside of its document, so those are read that came since the entry was released, the first
    of them: where a peer sends more, or the clock was put back since, the entry counts as taken, and is not sent again.
    """
    released_at = select(func.min(ledger.c.at)).where(ledger.c.feed == feed.id, ledger.c.seq == seq).scalar_subquery()
    rows = tx.execute(
        select(statements.c.document)
        .where(
            statements.c.author == feed.peer,
            statements.c.kind == Kind.REFUSAL,
            statements.c.peer == feed.peer,
            statements.c.at >= released_at,
        )
        .order_by(statements.c.id)
        .limit(_MAX_REFUSALS)
    ).scalars()
    bodies = (statement.reread(document).body for document in rows)
    return any(body["feed"] == feed.origin and any(entry["seq"] == seq for entry in body["entries"]) for body in bodies)


def _send(
    node: Node,
    tx: Connection,
    kind: Kind,
    recipient: NodeId,
    body: Mapping[str, Any],
    *,
    bringer: NodeId,
    about: Subject | None,
    in_reply_to: bytes | None = None,
) -> Kept:
    """What a person says: to the recipient itself, or to the peer by which what it is about came."""
    card = _spoken_with(tx, recipient) or _spoken_with(tx, bringer)
    if card is None:
        raise UsageError(
            f"{recipient} cannot be told: this node exchanges no statements with it, nor with {bringer}; see:"
            " apostille peer list"
        )
    made = _sign(node, tx, kind, recipient, body, card, about, in_reply_to)
    if tx.execute(select(statements.c.id).where(statements.c.digest == made.digest)).one_or_none() is not None:
        raise UsageError("the very same was said a moment ago; nothing was sent")
    control.send(node, tx, card, Said(made.document))
    _keep(node, tx, made, peer=None, by=node.actor)
    return _kept(tx, tx.execute(select(statements).where(statements.c.digest == made.digest)).one())


def _spoken_with(tx: Connection, peer: NodeId) -> Card | None:
    """The card of a peer with whom statements are exchanged; None for any other node."""
    card = trusted_cards(tx).get(peer)
    return card if card is not None and card.speaks >= _VERSION else None


def _sign(
    node: Node,
    tx: Connection,
    kind: Kind,
    recipient: NodeId,
    body: Mapping[str, Any],
    via: Card,
    about: Subject | None,
    in_reply_to: bytes | None,
) -> Statement:
    direct = recipient == via.node
    signer = (
        signing.signer_for(node, tx, recipient, Role.ISSUE) if direct else signing.signer_for_all(node, tx, Role.ISSUE)
    )
    return statement.sign(
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


def _body(kind: Kind, text: str | None) -> JsonObject:
    """What a person wrote, as the body of that kind. Raises UsageError."""
    if kind not in WITH_TEXT:
        if text:
            raise UsageError(f"{kind} says all by itself; a text goes with: {', '.join(sorted(WITH_TEXT))}")
        return {}
    try:
        size = len(text.encode()) if text and text.strip() else 0
    except UnicodeEncodeError as e:
        raise UsageError("the text is not in UTF-8") from e
    if not size or len(text or "") > MAX_STATEMENT_TEXT:
        raise UsageError(f"{kind} takes a text of 1 to {MAX_STATEMENT_TEXT} characters: --text or --file")
    return {"text": text}


def _keep(node: Node, tx: Connection, said: Statement, *, peer: NodeId | None, by: str) -> None:
    if said.kind == Kind.SEEN:  # there are many, and each says nothing once it was compared
        return
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


def _row(tx: Connection, number: int) -> Row[Any]:
    row = tx.execute(select(statements).where(statements.c.id == number)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no statement {number}; see: apostille statement list")
    return row


def _kept(tx: Connection, row: Row[Any]) -> Kept:
    said = statement.reread(row.document)
    answers = (
        None
        if said.in_reply_to is None
        else tx.execute(select(statements.c.id).where(statements.c.digest == said.in_reply_to)).scalar_one_or_none()
    )
    concerns = [f"{said.about.origin}/{said.about.name}"] if said.about else []
    if said.kind == Kind.REFUSAL:
        concerns += _in_entries(tx, said)
    return Kept(row.id, said, row.peer, row.at, row.by, answers, tuple(concerns))


def _in_entries(tx: Connection, refusal: Statement) -> Iterable[str]:
    """ORIGIN/NAME of the advisories in the entries of our feed that a refusal names."""
    feed = tx.execute(select(out_feeds).where(out_feeds.c.origin == storable(refusal.body["feed"]))).one_or_none()
    if feed is None:
        return ()
    named = [entry["seq"] for entry in refusal.body["entries"] if entry["seq"] < feed.size]  # a peer names any number
    rows = tx.execute(
        select(advisories.c.name, inbox.c.origin, inbox.c.name.label("passed_on"))
        .select_from(out_entries)
        .outerjoin(advisories, advisories.c.id == out_entries.c.advisory)
        .outerjoin(inbox, inbox.c.id == out_entries.c.inbox)
        .where(
            out_entries.c.feed == feed.id,
            out_entries.c.seq.in_(named),
            or_(advisories.c.name.is_not(None), inbox.c.name.is_not(None)),
        )
    ).all()
    own = refusal.recipient
    return sorted({f"{row.origin}/{row.passed_on}" if row.name is None else f"{own}/{row.name}" for row in rows})
