"""How a node stands: its feeds with each peer, and how much lies in inbox, quarantine and drafts. Reading only."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, or_, select

from federation.model import NodeId
from node.desk.inbox import InboxState
from node.home.context import Node
from node.peering.agreements import in_force
from node.peering.feeds import POLICY
from node.records import quarantine
from node.records.alarms import open_count
from node.records.ledger import Act
from node.sharing import holders
from node.store.database import read
from node.store.tables import advisories, in_feeds, inbox, incidents, ledger, out_entries, out_feeds, peers


@dataclass(frozen=True, slots=True)
class Exchange:
    """The two feeds shared with one peer. `acknowledged`: how many of the `sent` entries it has receipted as durable.

    `problem` is the code of the last failed sync, `frozen` that of the error that stopped ingest until people heal it.
    """

    peer: NodeId
    trusted: bool
    sent: int
    acknowledged: int
    receipt_at: datetime | None
    received: int
    contact_at: datetime | None
    problem: str | None
    frozen: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Counts of what lies here, and the exchange with every peer."""

    exchanges: tuple[Exchange, ...]
    inbox: int
    unread: int  # of these
    set_aside: int
    drafts: int
    issued: int
    agreements_in_force: int
    alarms: int  # open ones
    incidents: int  # open ones
    unsettled: int  # peers left with an earlier revision, for whom nobody has decided
    unsettled_of: tuple[str, ...]  # NAME, or ORIGIN/NAME of what was passed on
    withdrawn: tuple[tuple[str, NodeId], ...]  # taken back by rule, and not released again


def overview(node: Node) -> Overview:
    """How the node stands now."""
    now = node.clock()
    feeds = (
        select(
            peers.c.node,
            peers.c.trusted,
            out_feeds.c.size.label("sent"),
            out_feeds.c.receipt_size,
            out_feeds.c.receipt_at,
            in_feeds.c.size.label("received"),
            in_feeds.c.contact_at,
            in_feeds.c.problem,
            in_feeds.c.frozen,
        )
        .join_from(peers, out_feeds, out_feeds.c.peer == peers.c.node)
        .join(in_feeds, in_feeds.c.peer == peers.c.node)
        .where(
            out_feeds.c.id.in_(select(func.max(out_feeds.c.id)).group_by(out_feeds.c.peer)),
            in_feeds.c.id.in_(select(func.max(in_feeds.c.id)).group_by(in_feeds.c.peer)),
        )
        .order_by(peers.c.node)
    )
    live = or_(inbox.c.retain_until.is_(None), inbox.c.retain_until > now)
    usable = select(func.count()).select_from(inbox).where(inbox.c.state == InboxState.CURRENT, live)
    count = select(func.count()).select_from(advisories)
    unresolved = select(func.count()).select_from(incidents).where(incidents.c.resolved_at.is_(None))
    with read(node.engine) as tx:
        unsettled = holders.unsettled(tx)
        return Overview(
            exchanges=tuple(
                Exchange(
                    peer=NodeId(row.node),
                    trusted=bool(row.trusted),
                    sent=row.sent,
                    acknowledged=row.receipt_size,
                    receipt_at=row.receipt_at,
                    received=row.received,
                    contact_at=row.contact_at,
                    problem=row.problem,
                    frozen=row.frozen,
                )
                for row in tx.execute(feeds)
            ),
            inbox=tx.execute(usable).scalar_one(),
            unread=tx.execute(usable.where(inbox.c.read_at.is_(None))).scalar_one(),
            set_aside=quarantine.count(tx),
            drafts=tx.execute(count.where(advisories.c.core.is_(None))).scalar_one(),
            issued=tx.execute(count.where(advisories.c.core.is_not(None))).scalar_one(),
            agreements_in_force=len(in_force(tx, now)),
            alarms=open_count(tx),
            incidents=tx.execute(unresolved).scalar_one(),
            unsettled=len(unsettled),
            unsettled_of=tuple(dict.fromkeys(unsettled)),
            withdrawn=_withdrawn(tx),
        )


def _withdrawn(tx: Connection) -> tuple[tuple[str, NodeId], ...]:
    """Own advisory and peer of every release that was withdrawn by no person, was not recalled, and has none in its
    place that stands: of this revision or another."""
    standing = (
        select(advisories.c.name, out_feeds.c.peer)
        .join_from(out_entries, advisories, advisories.c.id == out_entries.c.advisory)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(out_entries.c.data.is_not(None))
        .distinct()
        .subquery()
    )
    eraser = ledger.alias()
    rows = tx.execute(
        select(advisories.c.name, out_feeds.c.peer)
        .join_from(out_entries, advisories, advisories.c.id == out_entries.c.advisory)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .join(eraser, (eraser.c.feed == out_entries.c.feed) & (eraser.c.seq == out_entries.c.erased_by))
        .outerjoin(standing, (standing.c.name == advisories.c.name) & (standing.c.peer == out_feeds.c.peer))
        .where(
            eraser.c.kind == Act.WITHDRAWAL,
            eraser.c.by == POLICY,
            advisories.c.recall.is_(None),
            standing.c.peer.is_(None),
        )
        .distinct()
        .order_by(advisories.c.name, out_feeds.c.peer)
    ).all()
    return tuple((row.name, NodeId(row.peer)) for row in rows)
