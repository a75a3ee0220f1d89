"""Exporting proofs: what this node can show an auditor of one release (`federation.proof`).

Everything in the file lies in the database as it was signed; only the file itself is signed anew. So a proof of an
entry that nobody has acknowledged holds no head of the feed: signing one here would go past the check that a node has
all that it ever signed (I16). The file is verified before it is handed out, with the cards that this node holds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from federation import account as accounts
from federation import agreement, entries, grant, jws, merkle, proof, recall, sdjwt
from federation.account import Account
from federation.base64url import from_b64url
from federation.entries import Delivery, RecallOrder
from federation.errors import HeldError, NotFoundError, RemoteError, UsageError
from federation.keyring import Card, OnlineKey, unverified
from federation.limits import MAX_CONTROL_BYTES
from federation.model import NodeId, Role
from federation.proof import Eraser, Evidence, Receipt, Shown
from node.home.context import Node
from node.home.people import Post
from node.peering import feeds
from node.records import ledger
from node.records.ledger import Act
from node.store.database import read, record, write
from node.store.tables import agreements as agreements_table
from node.store.tables import ledger as ledger_table
from node.store.tables import out_entries, own_cards, peer_cards

_FAULTY: Final = "no proof of this release can be made, since what lies here does not hold"
_LOOK: Final = "see: apostille ledger verify"
_SAME_SECOND: Final = timedelta(seconds=1)  # the ledger knows whole seconds
Fits = Callable[[OnlineKey], bool]
Wanted = tuple[NodeId, Role, Fits]


@dataclass(frozen=True, slots=True)
class Exported:
    """The file, what it shows, and how many releases of that name this peer was sent, of which it shows one."""

    data: bytes
    shown: Shown
    releases: int


@dataclass(frozen=True, slots=True)
class _Held:
    """A card with the instant from which this node went by it."""

    since: datetime
    document: bytes
    card: Card


def export(
    node: Node,
    reference: str,
    peer: NodeId,
    *,
    revision: int | None = None,
    entry: int | None = None,
    epoch: int | None = None,
) -> Exported:
    """A proof of the newest release of an advisory to a peer, unless revision, entry or epoch of the feed say which.

    `reference` is NAME or ORIGIN/NAME. Raises NotFoundError, UsageError, HeldError when what lies here does not hold,
    and LockedError without the passphrase.
    """
    node.allow(Post.AUDITOR)
    now = node.clock()
    with read(node.engine) as tx:
        number, count = _chosen(node, reference, peer, revision, entry, epoch)
        try:
            data, shown = _made(node, tx, number, now)
        except RemoteError as e:
            raise HeldError(f"{_FAULTY}: {e}; {_LOOK}") from e
    with write(node.engine) as tx:
        record(
            tx,
            at=now,
            by=node.actor,
            act="proof.export",
            subject=shown.account.name,
            detail=f"{peer} {shown.account.seq}",
        )
    return Exported(data, shown, count)


def _made(node: Node, tx: Connection, number: int, now: datetime) -> tuple[bytes, Shown]:
    """The file on one row of the ledger, and what it shows. Raises a RemoteError for what does not hold."""
    histories = _histories(node, tx)
    evidence, told = _evidence(tx, number)
    signer = node.keys.signer(Role.ISSUE, node.card, now)
    wanted = [*_wanted(told, evidence), (told.sender, Role.ISSUE, lambda k: k.kid == signer.kid and k.valid_at(now))]
    chosen = _chosen_cards(histories, told, wanted)
    evidence = replace(evidence, cards=tuple(held.document for held in chosen))
    at = None if evidence.receipt is None else _time(evidence.receipt.note, told.peer, chosen)
    data = proof.sign(evidence, at, now, kid=signer.kid, sign_bytes=signer.sign)
    anchors = [held.document for history in histories.values() for held in history]
    return data, proof.verify(data, anchors, node.labels)


def _chosen(
    node: Node, reference: str, peer: NodeId, revision: int | None, entry: int | None, epoch: int | None
) -> tuple[int, int]:
    """The number of the ledger row, and of how many it is one."""
    found = [row for row in ledger.rows(node, peer) if reference in (row.name, f"{row.facts['origin']}/{row.name}")]
    if not found:
        raise NotFoundError(f"{reference} was never released to {peer}; see: apostille ledger list --peer {peer}")
    origins = sorted({str(row.facts["origin"]) for row in found})
    if len(origins) > 1:
        raise UsageError(f"advisories of several origins are called {reference}; say which: {' or '.join(origins)}/...")
    fitting = [
        row
        for row in found
        if revision in (None, row.revision)
        and entry in (None, row.seq)
        and epoch in (None, int(row.feed.rpartition("/")[2]))
    ]
    if not fitting:
        raise NotFoundError(
            f"{reference} was released to {peer}, but not as that revision or entry; see: apostille ledger list"
            f" --peer {peer}"
        )
    return fitting[-1].number, len(found)


def _evidence(tx: Connection, number: int) -> tuple[Evidence, Account]:
    """All but the cards."""
    pair = ledger_table.c.id.in_((number - 1, number))
    row, *earlier = tx.execute(select(ledger_table).where(pair).order_by(ledger_table.c.id.desc())).all()
    told, item = accounts.read(row.record), _item(tx, row.feed, row.seq)
    eraser = None
    if item.data is None:
        eraser = Eraser(_item(tx, row.feed, item.erased_by).data, _receipt(tx, row.feed, item.erased_by))
    document = tx.execute(
        select(agreements_table.c.document).where(agreements_table.c.digest == told.agreement)
    ).scalar_one_or_none()
    if document is None or (eraser is not None and eraser.entry is None):
        raise HeldError(f"{_FAULTY}: the agreement, or the entry that erased this one, is not here; {_LOOK}")
    before = earlier[0].digest if earlier else ledger.GENESIS
    return Evidence(before, row.record, item.data, eraser, _receipt(tx, row.feed, row.seq), document, ()), told


def _item(tx: Connection, feed: int, seq: int) -> Row[Any]:
    return tx.execute(select(out_entries).where(out_entries.c.feed == feed, out_entries.c.seq == seq)).one()


def _receipt(tx: Connection, feed: int, seq: int) -> Receipt | None:
    """The first receipt that covers an entry, with the way from the entry to its head."""
    given = tx.execute(
        select(ledger_table.c.seq, ledger_table.c.record)
        .where(ledger_table.c.kind == Act.RECEIPT, ledger_table.c.feed == feed, ledger_table.c.seq >= seq)
        .order_by(ledger_table.c.id)
        .limit(1)
    ).one_or_none()
    if given is None:
        return None
    note = from_b64url(ledger.facts_of(given.record)["receipt"])
    return Receipt(note, merkle.inclusion_proof(feeds.leaf_hashes(tx, feed, given.seq + 1), seq))


def _time(note: bytes, peer: NodeId, cards: Iterable[_Held]) -> datetime | None:
    keys = (key for held in cards if held.card.node == peer for key in held.card.keys if key.role is Role.RECEIPT)
    return min((at for key in keys if (at := proof.cosigned_at(note, peer, key)) is not None), default=None)


def _wanted(told: Account, evidence: Evidence) -> Iterator[Wanted]:
    """The keys that the checks of the file need."""
    for text in _signers(evidence):
        name, _, kid = text.partition("/")
        yield NodeId(name), Role.ISSUE, partial(_is, kid)
    erased = evidence.eraser.receipt if evidence.eraser else None
    for receipt in (evidence.receipt, erased):
        if receipt is not None:
            yield told.sender, Role.FEED, partial(proof.signs, receipt.note, told.feed)
            yield told.peer, Role.RECEIPT, partial(_cosigned, receipt.note, told.peer)


def _is(kid: str, key: OnlineKey) -> bool:
    return key.kid == kid


def _cosigned(note: bytes, name: NodeId, key: OnlineKey) -> bool:
    return proof.cosigned_at(note, name, key) is not None


def _signers(evidence: Evidence) -> Iterator[str]:
    """NODE/KEY of every `issue` key that signed something in the file."""
    documents = [(agreement.JWS_TYPE, evidence.agreement)]
    if evidence.entry is not None:
        body = entries.read(evidence.entry).body
        if isinstance(body, Delivery):
            core = sdjwt.read_header_and_payload(body.presentation.core)
            yield f"{core.iss}/{core.kid}"
            documents += [(grant.JWS_TYPE, body.grant)] if body.grant else []
    if evidence.eraser is not None:
        body = entries.read(evidence.eraser.entry).body
        documents += [(recall.JWS_TYPE, body.document)] if isinstance(body, RecallOrder) else []
    for typ, document in documents:
        yield from (s.kid for s in jws.parse(document, typ=typ, max_bytes=MAX_CONTROL_BYTES).signatures)


def _chosen_cards(
    histories: Mapping[NodeId, Sequence[_Held]], told: Account, wanted: Iterable[Wanted]
) -> tuple[_Held, ...]:
    """By node and version: the cards that were current then, the newest one with each key that they lack, and those
    up to there at which the root keys changed, by which one card leads to the next."""
    by_node: dict[NodeId, list[tuple[Role, Fits]]] = {name: [] for name in (told.sender, told.peer, told.origin)}
    for name, role, fits in wanted:
        by_node.setdefault(name, []).append((role, fits))
    chosen: list[_Held] = []
    for name, needs in sorted(by_node.items()):
        history = histories.get(name, ())
        then = [held for held in history if held.since <= told.at + _SAME_SECOND]
        taken = {held.card.version for held in (then or history)[-1:]}
        for role, fits in needs:
            having = [h.card.version for h in history if any(k.role is role and fits(k) for k in h.card.keys)]
            if having and taken.isdisjoint(having):
                taken.add(having[-1])
        turns = {new.card.version for old, new in pairwise(history) if old.card.roots != new.card.roots}
        taken |= {version for version in turns if version <= max(taken, default=0)}
        chosen += [held for held in history if held.card.version in taken]
    return tuple(chosen)


def _histories(node: Node, tx: Connection) -> dict[NodeId, tuple[_Held, ...]]:
    """Every card that this node has had, and that it has held of others, oldest first."""
    own = tx.execute(select(own_cards).order_by(own_cards.c.version)).all()
    found = {node.id: tuple(_Held(row.installed_at, row.document, unverified(row.document)) for row in own)}
    for row in tx.execute(select(peer_cards).order_by(peer_cards.c.node, peer_cards.c.version)).all():
        held = _Held(row.taken_at, row.document, unverified(row.document))
        found[NodeId(row.node)] = (*found.get(NodeId(row.node), ()), held)
    return found
