"""Alarms: what a person has to look at. Raised in the transaction that finds it; open until somebody acknowledges it.

The same finding again counts up and makes no new alarm. Texts hold codes, node ids and local names only (I17).
"""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, insert, select, update

from node.store.tables import alarms


class Alarm(StrEnum):
    """What can be wrong."""

    FORK = "FORK"
    ROLLBACK = "ROLLBACK"
    SUSPECTED_FORK = "SUSPECTED_FORK"
    STALE = "STALE"
    EQUIVOCATION = "EQUIVOCATION"
    QUARANTINE = "QUARANTINE"
    RESTORED = "RESTORED"  # a peer holds more of our own feed than we do
    EPOCH = "EPOCH"  # a peer has opened an epoch that nobody here has accepted
    CARD = "CARD"  # a card that does not follow from the one we know
    POLICY = "POLICY"  # a rule failed while it was evaluated
    RECALL = "RECALL"  # an order to purge that has not been answered
    HELD = "HELD"  # a release or control message that waits for a person
    KEY_ENDING = "KEY_ENDING"
    AGREEMENT_ENDING = "AGREEMENT_ENDING"
    PACK_ENDING = "PACK_ENDING"
    DISK = "DISK"
    CLOCK = "CLOCK"


def raise_alarm(tx: Connection, kind: Alarm, subject: str, detail: str, now: datetime) -> None:
    """Raises an alarm, or counts up the open one of this kind and subject."""
    counted = tx.execute(
        update(alarms)
        .where(alarms.c.kind == kind, alarms.c.subject == subject, alarms.c.acked_at.is_(None))
        .values(count=alarms.c.count + 1, last_at=now, detail=detail)
    )
    if counted.rowcount == 0:
        tx.execute(insert(alarms).values(kind=kind, subject=subject, detail=detail, first_at=now, last_at=now, count=1))


def open_count(tx: Connection) -> int:
    """How many alarms nobody has acknowledged."""
    return len(tx.execute(select(alarms.c.id).where(alarms.c.acked_at.is_(None))).all())
