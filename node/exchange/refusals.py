"""What is noted of a sync that failed: its code at the feed, one audit row, and an alarm where people have to act.

Of bytes that could not be read, size and SHA-256 stand in the audit row, not the bytes: nothing tells what law or
agreement says of them (I10). What a page proves by its signatures is kept elsewhere: bad entries in quarantine, heads
that contradict each other as an incident. The same refusal is one row as long as it lasts, and one that comes and goes
is one in INTERVAL: a flood must not fill the disk.
"""

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, select, update

from federation.errors import BadPageError, EpochError, FeedFrozenError, RemoteError, StaleError, UnreachableError
from federation.model import NodeId
from node.home.context import Node
from node.records.alarms import Alarm, raise_alarm
from node.store.database import record, write
from node.store.tables import audit, in_feeds

INTERVAL: Final = timedelta(minutes=1)
REFUSED: Final = "feed.refuse"
_LOOKED_AT = 200  # rows: an older one may be repeated
_DOUBTED = "a page of it does not follow from the history that both share; nothing of it was taken"
_STALE = "its newest head is old: its clock or ours, or it is cut off"


def note(node: Node, peer: NodeId, error: RemoteError) -> None:
    """Notes why the sync from `peer` failed."""
    now = node.clock()
    with write(node.engine) as tx:
        current = select(in_feeds.c.id).where(in_feeds.c.peer == peer).order_by(in_feeds.c.epoch.desc()).limit(1)
        feed = in_feeds.c.id == current.scalar_subquery()
        before = tx.execute(select(in_feeds.c.problem).where(feed)).scalar_one_or_none()
        tx.execute(update(in_feeds).where(feed).values(problem=error.code))
        # nothing came that could be refused, or it has a row of its own
        told = isinstance(error, (UnreachableError, FeedFrozenError)) or before == error.code
        if not told and not _is_recorded(tx, peer, error.code, now - INTERVAL):
            record(tx, at=now, by=peer, act=REFUSED, subject=peer, detail=f"{error.code} {error}")
        if isinstance(error, BadPageError):
            raise_alarm(tx, Alarm.SUSPECTED_FORK, peer, _DOUBTED, now)
        if isinstance(error, StaleError):
            raise_alarm(tx, Alarm.STALE, peer, _STALE, now)
        if isinstance(error, EpochError):
            tx.execute(update(in_feeds).where(feed).values(offered_epoch=error.epoch))
            detail = f"it has opened epoch {error.epoch}; two people accept it: apostille peer epoch accept {peer}"
            raise_alarm(tx, Alarm.EPOCH, peer, detail, now)


def _is_recorded(tx: Connection, peer: NodeId, code: str, since: datetime) -> bool:
    """Whether this refusal stands among the newest rows."""
    newest = select(audit).order_by(audit.c.id.desc()).limit(_LOOKED_AT)
    rows = tx.execute(newest).all()
    return any((r.by, r.act) == (peer, REFUSED) and r.detail.split()[0] == code and r.at > since for r in rows)
