"""What a node looks at from time to time, because nothing else would tell: ends that come near, disk, clock, silence.

A finding is an alarm, raised once. What a person has acknowledged and is still so is raised again after a while; what
is so no more is acknowledged by the check itself (`node.records.alarms.OVER`). Nothing is decided here: keys,
agreements and embargoes are checked where they are used (I11).
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, func, select

from federation.model import NodeId
from node.home.context import Node
from node.peering import agreements, rotation
from node.peering.agreements import Held
from node.records import alarms
from node.records.alarms import OVER, Alarm
from node.store.database import read, write
from node.store.tables import alarms as alarms_table
from node.store.tables import audit, in_feeds, peers

NEAR_END: Final = timedelta(days=30)  # time enough to agree on new terms, or to have rules reviewed
SILENT: Final = timedelta(days=1)  # a peer may be off over night
DISK_WARN: Final = 1 << 30  # bytes
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
_QUIET: Final = {  # how long an alarm that a person has acknowledged is not raised again
    Alarm.KEY_ENDING: timedelta(days=7),
    Alarm.AGREEMENT_ENDING: timedelta(days=7),
    Alarm.PACK_ENDING: timedelta(days=7),
    Alarm.DISK: timedelta(days=1),
    Alarm.CLOCK: timedelta(days=1),
    Alarm.STALE: timedelta(days=1),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found to be so now."""

    kind: Alarm
    subject: str
    detail: str


def check(
    node: Node, *, starting: bool = False, free_bytes: Callable[[Path], int] = lambda home: shutil.disk_usage(home).free
) -> None:
    """Looks at everything, raises what is new, and acknowledges what is over.

    Whether peers are silent is not asked of a node that is `starting`: it has not asked them yet.
    """
    now, held = node.clock(), agreements.all_held(node)
    found = [
        *(Finding(Alarm.KEY_ENDING, key, f"it ends on {end:%Y-%m-%d}") for key, end in rotation.endings(node)),
        *_of_agreements(held, node.id, now),
        *_of_packs(node, now),
        *_of_disk(node.home, free_bytes),
    ]
    with read(node.engine) as tx:
        found += _of_clock(tx, now)
        found += () if starting else _of_silence(tx, now)
        new = [finding for finding in found if not _is_known(tx, finding, now)]
        over = _over(tx, found, starting=starting)
    if new or over:
        with write(node.engine) as tx:
            for finding in new:
                alarms.raise_alarm(tx, finding.kind, finding.subject, finding.detail, now)
            for kind, subject in over:
                alarms.settle(tx, kind, subject, by=OVER, now=now)


def silence(peer: NodeId) -> str:
    """What the alarm about a peer that is not heard of is about; a peer's old head is another one."""
    return f"{peer} sync"


def _of_agreements(held: tuple[Held, ...], me: NodeId, now: datetime) -> Iterator[Finding]:
    """The newest version of each agreement, if it ends soon or has just ended, or a review of it is due."""
    newest: dict[str, Held] = {}
    for one in held:  # the newest version of each first
        if not one.missing and me in one.agreement.parties:
            newest.setdefault(one.agreement.id, one)
    for one in newest.values():
        terms = one.agreement
        subject, until_end = f"{terms.id} version {terms.version}", terms.valid_until - now
        if -NEAR_END < until_end < NEAR_END:
            yield Finding(Alarm.AGREEMENT_ENDING, subject, f"it ends on {terms.valid_until:%Y-%m-%d}")
        if terms.sunset_review <= now and until_end > timedelta():
            detail = f"its sunset review is due since {terms.sunset_review:%Y-%m-%d}"
            yield Finding(Alarm.AGREEMENT_ENDING, f"{subject} review", detail)


def _of_packs(node: Node, now: datetime) -> Iterator[Finding]:
    for pack, day in node.book.reviews.items():
        if datetime(day.year, day.month, day.day, tzinfo=UTC) - now < NEAR_END:
            yield Finding(Alarm.PACK_ENDING, pack, f"it has to be reviewed by {day:%Y-%m-%d}")


def _of_disk(home: Path, free_bytes: Callable[[Path], int]) -> Iterator[Finding]:
    free = free_bytes(home)
    if free < DISK_WARN:
        yield Finding(Alarm.DISK, "home", f"{free >> 20} MiB are free where the home lies")


def _of_clock(tx: Connection, now: datetime) -> Iterator[Finding]:
    newest = tx.execute(select(func.max(audit.c.at))).scalar_one_or_none()
    if newest is not None and newest > now + CLOCK_TOLERANCE:
        yield Finding(Alarm.CLOCK, "records", f"the newest record is of {newest:%Y-%m-%d %H:%M}Z, in our future")


def _of_silence(tx: Connection, now: datetime) -> Iterator[Finding]:
    """Peers from whom nothing was fetched for SILENT, be it an empty page. A frozen feed has an alarm of its own."""
    current = select(func.max(in_feeds.c.id)).group_by(in_feeds.c.peer)
    ever = in_feeds.alias()  # in this epoch or another
    contact = select(func.max(ever.c.contact_at)).where(ever.c.peer == in_feeds.c.peer).scalar_subquery()
    query = (
        select(in_feeds.c.peer, contact.label("contact_at"), in_feeds.c.problem, peers.c.enrolled_at)
        .join(peers, peers.c.node == in_feeds.c.peer)
        .where(in_feeds.c.id.in_(current), in_feeds.c.frozen.is_(None), peers.c.trusted == 1, peers.c.direct == 1)
        .order_by(in_feeds.c.peer)
    )
    for row in tx.execute(query).all():
        if now - (row.contact_at or row.enrolled_at) > SILENT:
            since = "it was enrolled" if row.contact_at is None else f"{row.contact_at:%Y-%m-%d %H:%M}Z"
            reason = f", {row.problem}" if row.problem else ""
            yield Finding(Alarm.STALE, silence(row.peer), f"nothing was fetched since {since}{reason}")


def _is_known(tx: Connection, finding: Finding, now: datetime) -> bool:
    return alarms.is_told(tx, finding.kind, finding.subject, now, _QUIET[finding.kind])


def _over(tx: Connection, found: list[Finding], *, starting: bool) -> list[tuple[Alarm, str]]:
    """The open alarms of these kinds that are not found any more."""
    still = {(finding.kind, finding.subject) for finding in found}
    rows = tx.execute(
        select(alarms_table.c.kind, alarms_table.c.subject, alarms_table.c.last_at).where(
            alarms_table.c.acked_at.is_(None), alarms_table.c.kind.in_(tuple(_QUIET))
        )
    ).all()
    over = []
    for row in rows:
        kind = Alarm(row.kind)
        if kind is not Alarm.STALE:
            so_no_more = (kind, row.subject) not in still
        elif row.subject == silence(NodeId(row.subject.partition(" ")[0])):
            so_no_more = not starting and (kind, row.subject) not in still
        else:
            so_no_more = _is_fresh_again(tx, row.subject, row.last_at)
        if so_no_more:
            over.append((kind, row.subject))
    return over


def _is_fresh_again(tx: Connection, peer: str, since: datetime) -> bool:
    """Whether a peer whose newest head was old has been synced with success since."""
    query = select(in_feeds.c.contact_at, in_feeds.c.problem).where(in_feeds.c.peer == peer)
    row = tx.execute(query.order_by(in_feeds.c.epoch.desc()).limit(1)).one_or_none()
    return row is not None and row.problem is None and row.contact_at is not None and row.contact_at > since
