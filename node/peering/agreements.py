"""Sharing agreements at this node: proposing, countersigning, and which ones are in force.

A proposal travels to every other party through the feeds, as control traffic; each party signs with its `issue` key;
whoever learns of a new one tells the other parties. Files carry the same bytes. Signatures are only ever added: what
is received is merged with what is held, after every signature was verified.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from federation import agreement as terms
from federation import jws
from federation.agreement import Agreement
from federation.entries import AgreementOffer
from federation.errors import KeyringError, NotAdmittedError, NotFoundError, UsageError
from federation.limits import MAX_CONTROL_BYTES
from federation.model import NodeId, Role, node_id
from node.home import signing
from node.home.context import Node
from node.home.people import Post
from node.peering import control
from node.peering.peers import earlier_key, keyring, trusted_cards
from node.store.database import read, record, write
from node.store.tables import agreements

_SHORT_DIGEST: Final = 8  # hexadecimal digits that name an agreement


@dataclass(frozen=True, slots=True)
class Held:
    """An agreement as this node holds it, with the parties whose signatures it has verified."""

    agreement: Agreement
    signed_by: frozenset[NodeId]
    document: bytes

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """The parties that have not signed."""
        return tuple(party for party in self.agreement.parties if party not in self.signed_by)

    def state(self, now: datetime) -> str:
        """`proposed`, `pending` (signed, not begun), `in force` or `expired`."""
        if self.missing:
            return "proposed"
        if now < self.agreement.valid_from:
            return "pending"
        return "in force" if self.agreement.in_dates(now) else "expired"


def propose(node: Node, text: str, where: str) -> Held:
    """Signs the terms in `text` and offers them to every other party that is enrolled. Raises UsageError."""
    node.allow(Post.OPERATOR)
    agreement = terms.from_yaml(text, where)
    if node.id not in agreement.parties:
        raise UsageError(f"{where}: {node.id} is no party to it: {', '.join(agreement.parties)}")
    if node.clock() >= agreement.valid_until:
        raise UsageError(f"{where}: it ended on {agreement.valid_until:%Y-%m-%d}; write new dates")
    with write(node.engine) as tx:
        unknown = sorted({*agreement.parties} - keyring(node, tx).cards.keys())
        if unknown:
            raise UsageError(f"{where}: enrol {', '.join(unknown)} first (apostille peer enrol CARD)")
        known = tx.execute(select(agreements).where(agreements.c.name == agreement.id)).all()
        if any(row.version == agreement.version and row.digest != agreement.digest for row in known):
            raise UsageError(f"{where}: version {agreement.version} of {agreement.id} exists already with other terms")
        try:
            _check_previous(agreement, known)
        except NotAdmittedError as e:
            raise UsageError(f"{where}: {e}") from e
        document = jws.SignedDocument(agreement.canonical, (_sign(node, agreement, tx),))
        return _store_and_offer(node, tx, jws.serialise(document), by=node.actor, act="agreement.propose")


def countersign(node: Node, reference: str) -> Held:
    """Adds this node's signature to a proposal that is held, named by id or digest.

    Raises NotFoundError, UsageError.
    """
    node.allow(Post.OPERATOR)
    with write(node.engine) as tx:
        held = _find(tx, reference)
        if node.id in held.signed_by:
            raise UsageError(f"{held.agreement.id} version {held.agreement.version} is signed by this node already")
        if node.clock() >= held.agreement.valid_until:
            raise UsageError(f"{held.agreement.id} ended on {held.agreement.valid_until:%Y-%m-%d}; it cannot be signed")
        document = jws.with_signature(_parsed(held.document), _sign(node, held.agreement, tx))
        return _store_and_offer(node, tx, jws.serialise(document), by=node.actor, act="agreement.countersign")


def receive(node: Node, tx: Connection, document: bytes, by: str) -> Held:
    """Takes in an agreement from a peer or a file: verifies every signature, keeps the union of the signatures.

    When that taught us a signature, every other party is offered the union. Raises RemoteError.
    """
    return _store_and_offer(node, tx, document, by=by, act="agreement.receive")


def receive_file(node: Node, document: bytes) -> Held:
    """The same for a document that came as a file."""
    node.allow(Post.OPERATOR)
    with write(node.engine) as tx:
        return receive(node, tx, document, node.actor)


def all_held(node: Node) -> tuple[Held, ...]:
    """Every agreement, the newest version of each first."""
    with read(node.engine) as tx:
        rows = tx.execute(select(agreements).order_by(agreements.c.name, agreements.c.version.desc())).all()
    return tuple(_held(row) for row in rows)


def find(node: Node, reference: str) -> Held:
    """The agreement of that id (its newest version) or digest.

    Raises NotFoundError, UsageError when it is ambiguous.
    """
    with read(node.engine) as tx:
        return _find(tx, reference)


def in_force(tx: Connection, now: datetime) -> dict[bytes, Agreement]:
    """The agreements that every party signed and whose dates include `now`, by digest; of each only the newest version.

    The signatures were verified when they were stored.
    """
    newest: dict[str, Agreement] = {}
    rows = tx.execute(
        select(agreements.c.document)
        .where(agreements.c.complete == 1)
        .order_by(agreements.c.version, agreements.c.digest)
    ).scalars()
    for document in rows.all():
        agreement = terms.from_canonical(_parsed(document).payload)
        if agreement.in_dates(now):
            newest[agreement.id] = agreement
    return {agreement.digest: agreement for agreement in newest.values()}


def with_peer(tx: Connection, me: NodeId, peer: NodeId, now: datetime) -> tuple[bytes, ...]:
    """The documents between `me` and `peer` that have not ended, in force or not yet, older versions first."""
    rows = tx.execute(select(agreements).order_by(agreements.c.name, agreements.c.version, agreements.c.digest)).all()
    held = map(_held, rows)
    return tuple(h.document for h in held if {me, peer} <= set(h.agreement.parties) and now < h.agreement.valid_until)


def _store_and_offer(node: Node, tx: Connection, received: bytes, *, by: str, act: str) -> Held:
    new = _verified(node, tx, received)
    agreement = new.agreement
    if node.id not in agreement.parties:
        raise NotAdmittedError(f"agreement {agreement.id}: this node is no party to it")
    known = tx.execute(select(agreements).where(agreements.c.name == agreement.id)).all()
    _check_previous(agreement, known)
    row = next((row for row in known if row.digest == agreement.digest), None)
    if row is not None:
        old = _held(row)
        if new.signed_by <= old.signed_by:
            return old
        new = _union(old, new)
    now = node.clock()
    values = {
        "document": new.document,
        "signed_by": sorted(new.signed_by),
        "complete": int(not new.missing),
        "updated_at": now,
    }
    if row is None:
        names = {"digest": agreement.digest, "name": agreement.id, "version": agreement.version}
        tx.execute(insert(agreements).values(**names, **values))
    else:
        tx.execute(update(agreements).where(agreements.c.digest == agreement.digest).values(**values))
    record(tx, at=now, by=by, act=act, subject=agreement.id, detail=f"version {agreement.version}")
    _offer(node, tx, new)
    return new


def _check_previous(agreement: Agreement, known: Sequence[Row[Any]]) -> None:
    """A version follows the one before it, which every party has signed: no name can be taken far ahead."""
    if agreement.previous is None:
        return
    before = next((row for row in known if row.digest == agreement.previous), None)
    if before is None or not before.complete or before.version + 1 != agreement.version:
        raise NotAdmittedError(
            f"agreement {agreement.id} version {agreement.version}: `previous` must name version"
            f" {agreement.version - 1}, held here and signed by every party"
        )


def _offer(node: Node, tx: Connection, held: Held) -> None:
    """Appends the document to the feed of every other party that is enrolled, unless law forbids even that."""
    cards = trusted_cards(tx)
    for party in held.agreement.parties:
        if party in cards:
            control.offer(node, tx, cards[party], AgreementOffer(held.document))


def _union(old: Held, new: Held) -> Held:
    """Both documents' signatures, all of which were verified; of a party that signed twice, the first."""
    document = _parsed(old.document)
    for signature in _parsed(new.document).signatures:
        if node_id(signature.kid.partition("/")[0]) not in old.signed_by:
            document = jws.with_signature(document, signature)
    return Held(old.agreement, old.signed_by | new.signed_by, jws.serialise(document))


def _verified(node: Node, tx: Connection, document: bytes) -> Held:
    """A document from outside, every signature verified under a key that is valid now; of those that are held already,
    under the key that made them, which may be on no card any more. Raises RemoteError.
    """
    ring, now = keyring(node, tx), node.clock()
    digest = terms.from_canonical(_parsed(document).payload).digest
    row = tx.execute(select(agreements.c.document).where(agreements.c.digest == digest)).scalar()
    held = set() if row is None else {signature.kid for signature in _parsed(row).signatures}

    def key_of(party: NodeId, kid: str) -> bytes:
        name = kid.partition("/")[2]
        try:
            return ring.key(party, Role.ISSUE, name, now)
        except KeyringError:
            if kid not in held:
                raise
            return earlier_key(node, tx, party, Role.ISSUE, name)

    agreement, signed_by, _ = terms.open_signed(document, key_of)
    return Held(agreement, signed_by, document)


def _held(row: Row[Any]) -> Held:
    """A document of the store. Its signatures were verified when it came; the keys may have ended since."""
    agreement = terms.from_canonical(_parsed(row.document).payload)
    return Held(agreement, frozenset(NodeId(party) for party in row.signed_by), row.document)


def _parsed(document: bytes) -> jws.SignedDocument:
    return jws.parse(document, max_bytes=MAX_CONTROL_BYTES, typ=terms.JWS_TYPE)


def _find(tx: Connection, reference: str) -> Held:
    rows = tx.execute(select(agreements).order_by(agreements.c.version.desc(), agreements.c.digest)).all()
    by_digest = [row for row in rows if len(reference) >= _SHORT_DIGEST and row.digest.hex().startswith(reference)]
    found = by_digest or [row for row in rows if row.name == reference]
    if not found:
        raise NotFoundError(f"no agreement is called {reference}; see: apostille agreement list")
    if len(found) > 1 and found[0].version == found[1].version:
        digests = " or ".join(row.digest.hex()[:16] for row in found if row.version == found[0].version)
        raise UsageError(f"{reference} names several proposals with other terms; say which by its digest: {digests}")
    return _held(found[0])


def _sign(node: Node, agreement: Agreement, tx: Connection | None = None) -> jws.Signature:
    if tx is None:
        with read(node.engine) as own:
            return _sign(node, agreement, own)
    signer = signing.signer_for_all(node, tx, Role.ISSUE)
    return jws.sign(agreement.canonical, terms.JWS_TYPE, f"{node.id}/{signer.kid}", signer.sign)
