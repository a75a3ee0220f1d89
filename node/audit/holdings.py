"""Is what this node holds what others signed? Cards, own advisories, agreements, recalls, grants, statements.

Signatures are verified again under the keys of that time: every card that this node has had, and has held of others, is
kept. Reading only, in the caller's transaction; a finding is a sentence with its place, without payload (I17). The
ledger and the feeds to peers are checked in `node.audit.verify`, the feeds from peers in `node.audit.received`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import Column, Connection, Row, Select, String, select, type_coerce
from sqlalchemy.exc import SQLAlchemyError

from federation import agreement as agreements
from federation import ed25519, grant, handling, keyring, recall, sdjwt, statement
from federation.errors import ApostilleError
from federation.keyring import Card
from federation.vouching import Cards, How, Vouched
from node.home.context import Node
from node.sharing.advisories import unpack
from node.store.database import storable
from node.store.tables import advisories, grants, own_cards, peer_cards, peers, recalls
from node.store.tables import agreements as agreements_table
from node.store.tables import statements as statements_table

AT_ONCE: Final = 32  # rows with bytes that are held in memory: each may have some megabytes
_UNREADABLE: Final = (SQLAlchemyError, ArithmeticError, TypeError, ValueError)  # SQLite takes values of any type
_WRITTEN: Final = "%Y-%m-%d %H:%M:%S.%f"  # how SQLite keeps an instant


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not agree, in one sentence, and where."""

    place: str
    says: str


def guarded(place: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """`findings` in several places; that the database cannot be read is one as well, and ends them.

    What a single row holds must not come so far: `in_order` and `told` are for that.
    """
    try:
        yield from findings
    except ApostilleError as e:
        yield Finding(place, str(e))
    except _UNREADABLE as e:
        yield _unreadable(place, e)


def told(place: str, sentences: Iterator[str]) -> Iterator[Finding]:
    """What is found at one place; that what stands there makes no sense is found as well."""
    try:
        yield from (Finding(place, says) for says in sentences)
    except ApostilleError as e:
        yield Finding(place, str(e))
    except (*_UNREADABLE, AttributeError, LookupError) as e:
        yield _unreadable(place, e)


def _unreadable(place: str, error: Exception) -> Finding:
    return Finding(place, f"it cannot be read ({type(error).__name__})")  # its own text could name what stands there


def in_order(tx: Connection, query: Select[Any], key: Column[Any]) -> Iterator[tuple[Any, Row[Any] | None]]:
    """The rows of a query by a column that is unique among them; None in the place of one that cannot be read."""
    ordered, after = query.order_by(key).limit(AT_ONCE), None
    while True:
        page = ordered if after is None else ordered.where(key > after)
        found: list[tuple[Any, Row[Any] | None]]
        try:
            found = [(row._mapping[key], row) for row in tx.execute(page)]
        except _UNREADABLE:
            keys = tx.execute(page.with_only_columns(key)).scalars().all()
            found = [(value, _one(tx, query.where(key == value))) for value in keys]
        if not found:
            return
        yield from found
        after = found[-1][0]


def _one(tx: Connection, query: Select[Any]) -> Row[Any] | None:
    try:
        return tx.execute(query).one()
    except _UNREADABLE:
        return None


def row_or(place: str, row: Row[Any] | None, check: Callable[[Row[Any]], Iterator[str]]) -> Iterator[Finding]:
    """What `check` finds in a row of `in_order`."""
    return iter((Finding(place, "it cannot be read"),)) if row is None else told(place, check(row))


def as_written(column: Column[Any]) -> Any:
    """An instant as the database has it, so that one that was tampered with can be read at all."""
    return type_coerce(column, String).label(column.name)


def instant_of(value: object) -> datetime | None:
    """The instant that stands in such a column; None for what this software never writes."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    try:
        moment = datetime.strptime(str(value), _WRITTEN).replace(tzinfo=UTC)
    except ValueError:
        return None
    return moment if moment.strftime(_WRITTEN) == value else None


def cards(tx: Connection) -> tuple[Cards, tuple[Finding, ...]]:
    """Every card of this node and of others that holds, and what does not."""
    held: list[Card] = []
    found: list[Finding] = []
    for row in tx.execute(select(own_cards).order_by(own_cards.c.version)).all():
        found += told(f"own card {row.version}", _card(row, None, held))
    for row in tx.execute(select(peer_cards).order_by(peer_cards.c.node, peer_cards.c.version)).all():
        found += told(f"card {row.version} of {row.node}", _card(row, row.node, held))
    newest = {card.node: card for card in held}
    for row in tx.execute(select(peers.c.node, peers.c.card, peers.c.card_version).order_by(peers.c.node)).all():
        found += told(f"card of {row.node}", _in_use(row, newest.get(row.node)))
    return Cards(tuple(Vouched(card, How.GIVEN) for card in held)), tuple(found)


def _card(row: Row[Any], name: str | None, held: list[Card]) -> Iterator[str]:
    """A card that follows the last one in `held`, if that is of the same node."""
    document = row.document
    before = held[-1] if held and held[-1].node == (name or held[-1].node) else None
    card = keyring.open_card(document, before.roots) if before else keyring.open_card(keyring.for_newcomers(document))
    held.append(card)
    if card.version != row.version or card.node != (name or card.node):
        yield "it is filed under another node or version than it says"


def _in_use(row: Row[Any], newest: Card | None) -> Iterator[str]:
    if newest is None or keyring.unverified(row.card) != newest or row.card_version != newest.version:
        yield "the one in use is not the newest one that was taken in"


def own_advisories(node: Node, tx: Connection, cards: Cards) -> Iterator[Finding]:
    """What was issued here: core, disclosures, handling and name belong together under a key of ours."""
    query = select(advisories).where(advisories.c.core.is_not(None))
    for number, found in in_order(tx, query, advisories.c.id):
        yield from row_or(f"advisory {number}", found, lambda row: _own(node, row, cards))


def _own(node: Node, row: Row[Any], cards: Cards) -> Iterator[str]:
    core = sdjwt.read_header_and_payload(row.core)
    signed_at = datetime.fromtimestamp(core.payload["iat"], UTC)
    key = cards.issue_key(node.id, core.kid, lambda key: key.valid_at(signed_at))
    ed25519.verify(key, core.signature, core.signed)
    sdjwt.walk(core.payload, unpack(row.disclosures))
    if hashlib.sha256(row.core).digest() != row.core_digest:
        yield "its core has another digest than is filed"
    if core.payload.get("jti") != f"{node.id}/{row.name}/{row.revision}":
        yield "its core is another advisory or revision than is filed"
    if handling.write(handling.read(core.payload.get("handling"))) != row.handling:
        yield "its core has other handling than is filed"
    if row.issued_at.replace(microsecond=0) != signed_at:
        yield "its core was signed at another instant than is filed"


def agreed(tx: Connection, cards: Cards) -> Iterator[Finding]:
    """The agreements, with the signatures that are said to be under each."""
    for digest, found in in_order(tx, select(agreements_table), agreements_table.c.digest):
        yield from row_or(f"agreement {digest.hex()[:16]}", found, lambda row: _agreement(row, cards))


def _agreement(row: Row[Any], cards: Cards) -> Iterator[str]:
    terms, signed_by, _ = agreements.open_signed(
        row.document, lambda party, kid: cards.issue_key(party, kid.partition("/")[2])
    )
    if (terms.digest, terms.id, terms.version) != (row.digest, row.name, row.version):
        yield "the document is another agreement than is filed"
    if sorted(signed_by) != row.signed_by or bool(row.complete) is not (signed_by == set(terms.parties)):
        yield "the document is signed by others than is filed"


def assertions(tx: Connection, cards: Cards) -> Iterator[Finding]:
    """Recalls, grants and statements, each under its author's signature."""
    for table, what, check in (
        (recalls, "recall", _recall),
        (grants, "grant", _grant),
        (statements_table, "statement", _statement),
    ):
        for digest, found in in_order(tx, select(table), table.c.digest):
            yield from row_or(f"{what} {digest.hex()[:16]}", found, partial(check, cards=cards))


def _recall(row: Row[Any], cards: Cards) -> Iterator[str]:
    said = recall.read(row.document, cards.issue_key)
    document = (said.digest, said.origin, storable(said.name), list(said.revisions), said.reason.value, said.at)
    if document != (row.digest, row.origin, row.name, row.revisions, row.reason, row.ordered_at):
        yield "the document says something else than is filed"


def _grant(row: Row[Any], cards: Cards) -> Iterator[str]:
    said = grant.read(row.document, cards.issue_key)
    document = (said.digest, said.origin, said.core_digest, said.relay, said.until)
    if document != (row.digest, row.origin, row.core_digest, row.relay, row.until):
        yield "the document says something else than is filed"


def _statement(row: Row[Any], cards: Cards) -> Iterator[str]:
    said = statement.read(row.document, cards.issue_key)
    about = said.about
    document = (
        said.digest,
        said.kind,
        said.author,
        said.recipient,
        about.origin if about else None,
        storable(about.name) if about else None,
        about.revision if about else None,
    )
    if document != (row.digest, row.kind, row.author, row.recipient, row.origin, row.name, row.revision):
        yield "the document says something else than is filed"
