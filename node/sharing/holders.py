"""Who is left with an earlier revision of an advisory.

After a release every holder of an earlier revision gets the new one, a recall, or a recorded decision that it keeps
what it has; until then it is listed. So is at a relay whoever got an earlier revision from there, until the later one
is passed on or the earlier one taken back; a relay does not recall, and records no decision to leave it. The origin
cannot see behind a relay: it is told through whom others may be left with an earlier revision.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, Subquery, exists, func, insert, null, select

from federation.errors import NotFoundError, UsageError
from federation.model import NodeId, Onward
from federation.recall import Reason
from node.desk.inbox import InboxState
from node.home.context import Node
from node.home.people import Post
from node.records import ledger
from node.sharing import recalls, relays
from node.sharing.answers import Order
from node.store.database import read, record, write
from node.store.tables import advisories, inbox, left_with, out_entries, out_feeds, recall_holders
from node.store.tables import ledger as ledger_table

_MAX_REASON: Final = 500  # characters; whoever reads the decision later reads all of it
_REFERENCE: Final = inbox.c.origin + "/" + inbox.c.name
_ENTRY: Final = (out_feeds.c.peer, out_entries.c.seq, out_feeds.c.receipt_size)


@dataclass(frozen=True, slots=True)
class OldHolder:
    """A peer that was sent an earlier revision of an advisory and not the newest one.

    `name` is ORIGIN/NAME of what was passed on for its origin. `revisions` are those that stand in its feed; `left` is
    why it keeps them, None while nobody has decided.
    """

    name: str
    newest: int
    peer: NodeId
    revisions: tuple[int, ...]
    acknowledged: bool
    left: str | None


@dataclass(frozen=True, slots=True)
class Beyond:
    """Others who may be left with an earlier revision that `via` was sent, and let have it: which of them are, only
    `via` knows. `granted` are those whom a grant names; with `anyone`, its terms let it share with peers of its own."""

    newest: int
    via: NodeId
    revisions: tuple[int, ...]
    anyone: bool
    granted: tuple[NodeId, ...]


def old_holders(node: Node, name: str) -> tuple[OldHolder, ...]:
    """Who is left with an earlier revision of an advisory, decided or not, by node id. Of what was passed on for its
    origin, `name` is ORIGIN/NAME. Raises NotFoundError."""
    with read(node.engine) as tx:
        received = _received(tx, name)
        if received is not None:
            origin, theirs = received
            about = (inbox.c.origin == origin, inbox.c.name == theirs)
            return _listed(tx, name, _passed_on().where(*about), _passed_on_standing().where(*about))
        _keys(tx, name)
        return _old_holders(tx, name)


def beyond(node: Node, name: str) -> tuple[Beyond, ...]:
    """Through whom others may be left with an earlier revision of our own advisory `name`, by node id.

    What was taken back from a peer is taken back behind it too. Nothing for what is not ours.
    """
    newest, record_of = _newest(), ledger_table.c.record
    same_entry = (ledger_table.c.feed == out_entries.c.feed) & (ledger_table.c.seq == out_entries.c.seq)
    with read(node.engine) as tx:
        last = tx.execute(select(newest.c.newest).where(newest.c.name == name)).scalar_one_or_none()
        if last is None:
            return ()
        rows = tx.execute(
            select(advisories.c.revision, advisories.c.core_digest, out_feeds.c.peer, record_of)
            .join_from(out_entries, advisories, advisories.c.id == out_entries.c.advisory)
            .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
            .join(ledger_table, same_entry & (ledger_table.c.kind == ledger.Act.RELEASE))
            .where(advisories.c.name == name, out_entries.c.data.is_not(None))
        ).all()
    given = [grant.grant for grant in relays.all_grants(node)]
    current = {row.peer for row in rows if row.revision == last}
    found = []
    for via in sorted({NodeId(row.peer) for row in rows}):
        earlier = [row for row in rows if row.peer == via and row.revision < last]
        anyone = {row.revision for row in earlier if ledger.facts_of(row.record)["onward"] == Onward.PEERS}
        cores = {bytes(row.core_digest): row.revision for row in earlier}
        leaves = [grant for grant in given if grant.relay == via and grant.core_digest in cores]
        granted = {to: cores[grant.core_digest] for grant in leaves for to in grant.recipients - current}
        if anyone or granted:
            revisions = tuple(sorted({*anyone, *granted.values()}))
            found.append(Beyond(last, via, revisions, bool(anyone), tuple(sorted(granted))))
    return tuple(found)


def unsettled(tx: Connection) -> tuple[str, ...]:
    """Of which advisories a peer holds an earlier revision, and nobody has decided what becomes of it: one name for
    each such peer, ORIGIN/NAME for what was passed on."""
    held = _held().subquery()
    decided = exists().where(left_with.c.advisory == advisories.c.id, left_with.c.peer == held.c.peer)
    own = (
        select(held.c.name)
        .join(advisories, (advisories.c.name == held.c.name) & (advisories.c.revision == held.c.revision))
        .where(~decided)
    )
    return (*tx.execute(own.order_by(held.c.name)).scalars(), *tx.execute(_passed_on()).scalars())


def leave(node: Node, name: str, peer: NodeId, reason: str) -> None:
    """Records the decision that a peer keeps the earlier revisions that it holds. Raises NotFoundError, UsageError."""
    node.allow(Post.ANALYST)
    if not 1 <= len(reason.strip()) <= _MAX_REASON or not reason.isprintable():
        raise UsageError(f"the reason must be one line of 1 to {_MAX_REASON} characters")
    with write(node.engine) as tx:
        _check_own(tx, name)
        keys = _keys(tx, name)
        holder = next((h for h in _old_holders(tx, name) if h.peer == peer), None)
        if holder is None or holder.left is not None:
            why = "holds the newest revision or none" if holder is None else "keeps what it has by a decision already"
            raise UsageError(f"{peer} {why}; see: apostille advisory holders {name}")
        now = node.clock()
        for revision in holder.revisions:
            known = select(left_with.c.peer).where(left_with.c.advisory == keys[revision], left_with.c.peer == peer)
            if tx.execute(known).first() is None:
                tx.execute(
                    insert(left_with).values(
                        advisory=keys[revision], peer=peer, reason=reason.strip(), at=now, by=node.actor
                    )
                )
        detail = f"{peer} keeps revision {', '.join(map(str, holder.revisions))}"
        record(tx, at=now, by=node.actor, act="advisory.leave", subject=name, detail=detail)


def recall_from_old_holders(node: Node, name: str) -> Order:
    """Recalls the earlier revisions from every peer for which nothing was decided, and from nobody else.

    Raises NotFoundError, UsageError when there is none.
    """
    node.allow(Post.ANALYST)
    with read(node.engine) as tx:
        _check_own(tx, name)
    open_ = [holder for holder in old_holders(node, name) if holder.left is None]
    if not open_:
        raise UsageError(f"nobody is left with an earlier revision of {name}; nothing was recalled")
    revisions = sorted({revision for holder in open_ for revision in holder.revisions})
    return recalls.give(node, name, Reason.REPLACED, revisions, to=frozenset(holder.peer for holder in open_))


def _received(tx: Connection, reference: str) -> tuple[str, str] | None:
    """Origin and name of what is in the inbox, if the reference is ORIGIN/NAME of it and no own advisory's name."""
    if tx.execute(select(advisories.c.id).where(advisories.c.name == reference)).first() is not None:
        return None
    origin, _, name = reference.partition("/")
    known = select(inbox.c.id).where(inbox.c.origin == origin, inbox.c.name == name).limit(1)
    return None if tx.execute(known).first() is None else (origin, name)


def _check_own(tx: Connection, name: str) -> None:
    """Raises UsageError for what another node has issued."""
    if _received(tx, name) is not None:
        raise UsageError(
            f"{name} is not this node's: pass its newest revision on (apostille relay {name} --to PEER), or take the"
            " earlier ones back (with --withdraw)"
        )


def _keys(tx: Connection, name: str) -> dict[int, int]:
    """The row of each revision of an own advisory. Raises NotFoundError."""
    rows = tx.execute(select(advisories.c.revision, advisories.c.id).where(advisories.c.name == name)).all()
    if not rows:
        raise NotFoundError(f"no advisory is called {name}; see: apostille advisory list")
    return {row.revision: row.id for row in rows}


def _newest() -> Subquery:
    """Name and newest revision of every own advisory that has several; one that was recalled does not count."""
    table = advisories
    return (
        select(table.c.name, func.max(table.c.revision).label("newest"))
        .where(table.c.core.is_not(None), table.c.recall.is_(None))
        .group_by(table.c.name)
        .having(func.max(table.c.revision) > 1)
        .subquery()
    )


def _held() -> Select[tuple[str, int, str, int]]:
    """Name, newest revision, peer, and the highest revision that stands in a feed to it, where that is an earlier one.

    One of which the peer was told that it is recalled is not held.
    """
    table, newest = advisories, _newest()
    told = exists().where(recall_holders.c.recall == table.c.recall, recall_holders.c.node == out_feeds.c.peer)
    highest = func.max(table.c.revision)
    return (
        select(table.c.name, newest.c.newest, out_feeds.c.peer, highest.label("revision"))
        .join_from(newest, table, table.c.name == newest.c.name)
        .join(out_entries, out_entries.c.advisory == table.c.id)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(out_entries.c.data.is_not(None), ~told)
        .group_by(table.c.name, newest.c.newest, out_feeds.c.peer)
        .having(highest < newest.c.newest)
    )


def _passed_on() -> Select[Any]:
    """The same of what was passed on, by ORIGIN/NAME: the newest revision is the one that came here and can be used."""
    later = inbox.alias()
    highest, newest = func.max(inbox.c.revision), func.max(later.c.revision)
    return (
        select(_REFERENCE.label("name"), newest.label("newest"), out_feeds.c.peer, highest.label("revision"))
        .join_from(out_entries, inbox, inbox.c.id == out_entries.c.inbox)
        .join(later, (later.c.origin == inbox.c.origin) & (later.c.name == inbox.c.name))
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(out_entries.c.data.is_not(None), later.c.state.in_((InboxState.CURRENT, InboxState.SUPERSEDED)))
        .group_by(inbox.c.origin, inbox.c.name, out_feeds.c.peer)
        .having(highest < newest)
        .order_by(inbox.c.origin, inbox.c.name, out_feeds.c.peer)
    )


def _standing() -> Select[Any]:
    """Peer, number, size of the receipt, revision and decision of each own entry that stands in a feed."""
    table = advisories
    return (
        select(*_ENTRY, table.c.revision, left_with.c.reason)
        .join_from(out_entries, table, table.c.id == out_entries.c.advisory)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .outerjoin(left_with, (left_with.c.advisory == table.c.id) & (left_with.c.peer == out_feeds.c.peer))
        .where(out_entries.c.data.is_not(None))
    )


def _passed_on_standing() -> Select[Any]:
    """The same of each entry that passes something on."""
    return (
        select(*_ENTRY, inbox.c.revision, null().label("reason"))
        .join_from(out_entries, inbox, inbox.c.id == out_entries.c.inbox)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(out_entries.c.data.is_not(None))
    )


def _old_holders(tx: Connection, name: str) -> tuple[OldHolder, ...]:
    """Those of an own advisory."""
    own = advisories.c.name == name
    return _listed(tx, name, _held().where(own), _standing().where(own))


def _listed(tx: Connection, name: str, held: Select[Any], standing: Select[Any]) -> tuple[OldHolder, ...]:
    entries, holders = tx.execute(standing).all(), []
    for row in tx.execute(held).all():
        theirs = [entry for entry in entries if entry.peer == row.peer]
        highest = [entry for entry in theirs if entry.revision == row.revision]
        holders.append(
            OldHolder(
                name=name,
                newest=row.newest,
                peer=NodeId(row.peer),
                revisions=tuple(sorted({entry.revision for entry in theirs})),
                acknowledged=any(entry.receipt_size > entry.seq for entry in theirs),
                left=highest[0].reason,
            )
        )
    return tuple(sorted(holders, key=lambda holder: holder.peer))
