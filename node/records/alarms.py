"""Alarms: what a person has to look at. Raised in the transaction that finds it; open until somebody acknowledges it.

The same finding again counts up and makes no new alarm. Texts hold codes, node ids and local names only (I17). Carrying
them to people who are not looking is `node.operation.courier`; what is found by looking from time to time,
`node.operation.watch`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from federation.errors import NotFoundError
from node.home.context import Node
from node.home.people import Post
from node.store.database import read, record, write
from node.store.tables import alarms

OVER: Final = "over"  # who acknowledged it, where what was found is so no more
_A_DAY: Final = timedelta(days=1)


class Alarm(StrEnum):
    """What can be wrong."""

    FORK = "FORK"
    ROLLBACK = "ROLLBACK"
    SUSPECTED_FORK = "SUSPECTED_FORK"
    STALE = "STALE"
    EQUIVOCATION = "EQUIVOCATION"
    SUSPECTED_EQUIVOCATION = "SUSPECTED_EQUIVOCATION"  # a peer says that it holds another core than we do
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
    DAMAGED = "DAMAGED"  # what was read back is not what was stored
    DISK = "DISK"
    CLOCK = "CLOCK"


_EVIDENCE: Final = "look at the evidence: apostille peer incident list"
ADVICE: Final[Mapping[Alarm, str]] = {
    Alarm.FORK: _EVIDENCE,
    Alarm.ROLLBACK: _EVIDENCE,
    Alarm.SUSPECTED_FORK: _EVIDENCE,
    Alarm.STALE: "see whether it and the way to it work: apostille status",
    Alarm.EQUIVOCATION: _EVIDENCE,
    Alarm.SUSPECTED_EQUIVOCATION: "compare core digests by voice if it shows none: apostille inbox show ID --json",
    Alarm.QUARANTINE: "see what was set aside: apostille quarantine list",
    Alarm.RESTORED: "see what was lost: apostille peer epoch list",
    Alarm.EPOCH: "two people accept it, or ask that peer: apostille peer epoch accept",
    Alarm.CARD: "ask that peer for its card as a file: apostille peer enrol CARD",
    Alarm.POLICY: "mend the rule; what it is about is withheld meanwhile: apostille doctor",
    Alarm.RECALL: "ask those who have not answered: apostille recall status",
    Alarm.HELD: "see why, and tell that peer by other means: apostille alerts list",
    Alarm.KEY_ENDING: "rotate it, or ask that peer for its new card: apostille key list",
    Alarm.AGREEMENT_ENDING: "propose its next version: apostille agreement list",
    Alarm.PACK_ENDING: "have its rules reviewed, and a newer version installed: apostille doctor",
    Alarm.DAMAGED: "stop the node and restore a backup: apostille ledger verify",
    Alarm.DISK: "free some space: apostille doctor",
    Alarm.CLOCK: "set the clock, and keep it set by NTP: apostille doctor",
}


@dataclass(frozen=True, slots=True)
class Raised:
    """One alarm. `acked_by` is who acknowledged it, OVER where a check found that it is so no more."""

    number: int
    kind: Alarm
    subject: str
    detail: str
    first_at: datetime
    last_at: datetime
    count: int
    acked_at: datetime | None
    acked_by: str | None
    delivered_at: datetime | None


def raise_alarm(tx: Connection, kind: Alarm, subject: str, detail: str, now: datetime) -> None:
    """Raises an alarm, or counts up the open one of this kind and subject."""
    counted = tx.execute(
        update(alarms)
        .where(alarms.c.kind == kind, alarms.c.subject == subject, alarms.c.acked_at.is_(None))
        .values(count=alarms.c.count + 1, last_at=now, detail=detail)
    )
    if counted.rowcount == 0:
        tx.execute(insert(alarms).values(kind=kind, subject=subject, detail=detail, first_at=now, last_at=now, count=1))


def is_told(tx: Connection, kind: Alarm, subject: str, now: datetime, quiet: timedelta = _A_DAY) -> bool:
    """Whether a person has this alarm before them, or acknowledged it less than `quiet` ago.

    For what stays so and is found again and again.
    """
    newest = tx.execute(
        select(alarms.c.acked_at, alarms.c.acked_by)
        .where(alarms.c.kind == kind, alarms.c.subject == subject)
        .order_by(alarms.c.id.desc())
        .limit(1)
    ).one_or_none()
    if newest is None or newest.acked_by == OVER:
        return False
    return newest.acked_at is None or now - newest.acked_at < quiet


def untold_faults(tx: Connection, faults: Iterable[str], now: datetime) -> tuple[str, ...]:
    """Those faults of the policy engine of which nobody was told yet."""
    return tuple(fault for fault in dict.fromkeys(faults) if not is_told(tx, Alarm.POLICY, fault, now))


def raise_faults(tx: Connection, faults: Iterable[str], now: datetime) -> None:
    """Raises an alarm for each fault of the policy engine of which nobody was told yet (I3)."""
    for fault in untold_faults(tx, faults, now):
        raise_alarm(tx, Alarm.POLICY, fault, "what it is about is withheld", now)


def settle(tx: Connection, kind: Alarm, subject: str, *, by: str, now: datetime) -> None:
    """Acknowledges the open alarm of this kind and subject, because what it is about was dealt with or is over."""
    tx.execute(
        update(alarms)
        .where(alarms.c.kind == kind, alarms.c.subject == subject, alarms.c.acked_at.is_(None))
        .values(acked_at=now, acked_by=by)
    )


def acknowledge(node: Node, numbers: Collection[int] | None) -> tuple[Raised, ...]:
    """Notes that a person has seen these alarms, or all open ones for None; returns those that were open.

    Raises NotFoundError for a number that there is not; then nothing is changed.
    """
    node.allow(Post.OPERATOR)
    now = node.clock()
    with write(node.engine) as tx:
        known = {row.id: _raised(row) for row in tx.execute(select(alarms).order_by(alarms.c.id)).all()}
        unknown = sorted(set(numbers or ()) - known.keys())
        if unknown:
            raise NotFoundError(f"there is no alarm {unknown[0]}; see: apostille alerts list --all")
        chosen = known.keys() if numbers is None else set(numbers)
        seen = tuple(alarm for alarm in known.values() if alarm.number in chosen and alarm.acked_at is None)
        for alarm in seen:
            tx.execute(update(alarms).where(alarms.c.id == alarm.number).values(acked_at=now, acked_by=node.actor))
            detail = f"alarm {alarm.number}"
            record(tx, at=now, by=node.actor, act="alarm.ack", subject=f"{alarm.kind} {alarm.subject}", detail=detail)
    return seen


def all_alarms(node: Node, *, every: bool = False) -> tuple[Raised, ...]:
    """The alarms that nobody has acknowledged, newest first; with `every`, the others too."""
    query = select(alarms).order_by(alarms.c.id.desc())
    if not every:
        query = query.where(alarms.c.acked_at.is_(None))
    with read(node.engine) as tx:
        return tuple(map(_raised, tx.execute(query).all()))


def undelivered(tx: Connection) -> tuple[Raised, ...]:
    """The open alarms that nobody outside has been sent, oldest first."""
    query = select(alarms).where(alarms.c.acked_at.is_(None), alarms.c.delivered_at.is_(None))
    return tuple(map(_raised, tx.execute(query.order_by(alarms.c.id)).all()))


def still_open(tx: Connection, number: int) -> Raised | None:
    """The alarm of that number; None when somebody has acknowledged it."""
    row = tx.execute(select(alarms).where(alarms.c.id == number, alarms.c.acked_at.is_(None))).one_or_none()
    return None if row is None else _raised(row)


def note_delivered(tx: Connection, number: int, now: datetime) -> None:
    """Somebody outside has been sent this alarm."""
    unsent = update(alarms).where(alarms.c.id == number, alarms.c.delivered_at.is_(None))
    tx.execute(unsent.values(delivered_at=now))


def open_count(tx: Connection) -> int:
    """How many alarms nobody has acknowledged."""
    return len(tx.execute(select(alarms.c.id).where(alarms.c.acked_at.is_(None))).all())


def _raised(row: Row[Any]) -> Raised:
    return Raised(
        number=row.id,
        kind=Alarm(row.kind),
        subject=row.subject,
        detail=row.detail,
        first_at=row.first_at,
        last_at=row.last_at,
        count=row._mapping["count"],
        acked_at=row.acked_at,
        acked_by=row.acked_by,
        delivered_at=row.delivered_at,
    )
