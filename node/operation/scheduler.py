"""When a node asks its peers: regular polls, at once on a hint, ever more rarely while a peer does not answer.

Jobs of APScheduler, one call each: `sync`, or one notice. The schedule makes things prompt, never correct: a poll that
is missed is made up by the next, and everything is checked where it is used (I11).
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC
from typing import Protocol

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from federation.errors import ConflictError, LocalError, NotFoundError, RemoteError, TlsRefusedError
from federation.keyring import Card
from federation.model import NodeId
from node.exchange.sync import Link, Report, sync
from node.home import logs
from node.home.context import Node
from node.home.tally import Count, Tally
from node.operation import watch
from node.peering import feeds
from node.peering.peers import all_peers, trusted_card
from node.sharing import answers, recalls, retention
from node.store.database import disk_fault

MOST_BACK_OFF_S = 900.0  # a peer that comes back is found within a quarter of an hour, or at once by its own notice
HINT_DELAY_S = 0.2  # hints that come together, as after a release to all, make one sync
JITTER = 0.1  # of the interval: nodes that started together drift apart
SYNC_THREADS = 4
TURN_S = 60.0  # then a sync makes room for other peers, and goes on after them: a feed need never end
NOTICE_THREADS = 4  # apart: a slow sync must not delay a notice
_COUNTED = {"sync": Count.SYNCS, "notice": Count.NOTICES}
_log = structlog.get_logger()


class Line(Link, Protocol):
    """An open link that can also notify."""

    def notify(self) -> None:
        """Tells the peer that its feed has grown."""

    def close(self) -> None:
        """Ends the calls that are under way."""


Connect = Callable[[Node, Card], AbstractContextManager[Line]]


class _EndedHereError(Exception):
    """A page was committed, and this sync goes on at another time: the polls are to end, or its turn is over."""


class Polls:
    """The polls of all trusted peers. `connect` opens the link to one; every method may be called from any thread."""

    def __init__(self, node: Node, connect: Connect, tally: Tally | None = None) -> None:
        self._node = node
        self._connect = connect
        self._tally = tally or Tally()
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)  # a line was given up
        self._failures: dict[NodeId, int] = {}
        self._running: set[NodeId] = set()
        self._hinted: set[NodeId] = set()
        self._lines: set[Line] = set()
        self._stopping = False
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(SYNC_THREADS), "notices": ThreadPoolExecutor(NOTICE_THREADS)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self) -> None:
        """Polls every peer once at once, and goes on; notifies those who have not seen everything."""
        self._scheduler.start()
        self._scheduler.add_job(self._keep_up, IntervalTrigger(hours=1, timezone=UTC), id="keep up")
        self.refresh()
        self.announce()

    def refresh(self) -> None:
        """Takes up peers that were enrolled meanwhile, and drops those that are not trusted any more."""
        trusted = {peer.card.node for peer in all_peers(self._node) if peer.trusted and peer.direct}
        with self._lock:
            fresh, gone = trusted - self._failures.keys(), self._failures.keys() - trusted
            for peer in gone:
                self._forget(peer)
            for peer in fresh:
                self._failures[peer] = 0
                self._arm(peer, HINT_DELAY_S)

    def hint(self, peer: NodeId) -> None:
        """A notice from `peer` has come: it is asked at once, or as soon as a sync that is under way has ended."""
        with self._lock:
            if peer not in self._failures or peer in self._hinted:
                return
            self._hinted.add(peer)
            if peer not in self._running:
                self._arm(peer, HINT_DELAY_S)

    def announce(self) -> None:
        """Notifies every peer that has not acknowledged all of its feed; does not wait, and no failure comes back."""
        for peer in feeds.unseen(self._node):
            with self._lock:
                if peer in self._failures and not self._stopping:
                    self._scheduler.add_job(
                        self._notify, args=(peer,), id=f"notice {peer}", executor="notices", replace_existing=True
                    )

    def stop(self, grace_s: float = 0) -> None:
        """Polls no more. What is under way may go on for `grace_s`, a sync to the end of its page; then it is ended.

        Waits for its threads. What was committed stays, and the next sync goes on from there.
        """
        with self._lock:
            self._stopping = True
            self._quiet.wait_for(lambda: not self._lines, grace_s)
            lines = tuple(self._lines)
        for line in lines:
            line.close()
        self._scheduler.shutdown()

    def _poll(self, peer: NodeId) -> None:
        with self._lock:
            if self._stopping or peer not in self._failures:
                return
            self._hinted.discard(peer)
            self._running.add(peer)
            self._arm(peer, self._interval_s(peer))  # polls go on even if this one never ends well
        failed: bool | None = True
        try:
            failed = self._guard(peer, "sync", self._sync)
        finally:
            with self._lock:
                self._running.discard(peer)
                if failed is None:
                    self._forget(peer)
                elif peer in self._failures and not self._stopping:
                    self._failures[peer] = self._failures[peer] + 1 if failed else 0
                    self._arm(peer, HINT_DELAY_S if peer in self._hinted else self._interval_s(peer))

    def _sync(self, peer: NodeId, line: Line) -> None:
        counted: dict[str, int] = {}
        end_s = time.monotonic() + TURN_S

        def page(so_far: Report) -> None:
            self._tally.add(Count.PAGES_IN, peer)
            for outcome, count in so_far.counts.items():
                self._tally.add(Count.ENTRIES_IN, peer, outcome, by=count - counted.get(outcome, 0))
                counted[outcome] = count
            if self._stopping:
                raise _EndedHereError("stopped")
            if time.monotonic() > end_s:
                with self._lock:
                    self._hinted.add(peer)
                raise _EndedHereError("turn over")

        report = sync(self._node, peer, line, page)
        if report.entries:
            _log.info("sync", peer=peer, entries=report.entries, pages=report.pages, **_counts(report))
            self.announce()  # an agreement that came in goes on to its other parties

    def _notify(self, peer: NodeId) -> None:
        self._guard(peer, "notice", lambda _, line: line.notify())

    def _guard(self, peer: NodeId, what: str, call: Callable[[NodeId, Line], None]) -> bool | None:
        """One call over a line of its own. Returns whether it failed; None when the peer is not trusted any more."""
        result: str = "ok"
        failed: bool | None = False
        try:
            with self._connect(self._node, trusted_card(self._node, peer)) as line:
                with self._lock:
                    if self._stopping:
                        return True
                    self._lines.add(line)
                try:
                    call(peer, line)
                finally:
                    with self._lock:
                        self._lines.discard(line)
                        self._quiet.notify_all()
        except NotFoundError as e:
            result, failed = type(e).__name__, None
        except ConflictError as e:  # a command of this home synced at the same moment
            result = type(e).__name__
        except _EndedHereError as e:
            result = str(e)
        except (RemoteError, LocalError) as e:
            result, failed = getattr(e, "code", type(e).__name__), True
            _log.info(f"{what} failed", peer=peer, reason="TLS_REFUSED" if isinstance(e, TlsRefusedError) else result)
        except Exception as e:  # noqa: BLE001 - the boundary of a job: the raw text must not reach a log, the polls go on
            result, failed = disk_fault(e) or type(e).__name__, True
            _log.error(f"{what} broke", peer=peer, error=result, at=logs.place(e))
        self._tally.add(_COUNTED[what], peer, result)
        return failed

    def _keep_up(self) -> None:
        """What has ended is erased, recalls that could not be told are sent if they can be now, answers are missed, and
        what people have to know is looked for."""
        for what in (retention.expire, recalls.send_again, answers.check, watch.check):
            try:
                what(self._node)
            except LocalError as e:
                _log.info("upkeep failed", what=what.__name__, reason=type(e).__name__)
            except Exception as e:  # noqa: BLE001 - the boundary of a job, as in _guard
                _log.error("upkeep broke", what=what.__name__, error=type(e).__name__, at=logs.place(e))
        self.announce()

    def _interval_s(self, peer: NodeId) -> float:
        normal = float(self._node.poll_interval_s)
        failures = min(self._failures[peer], 20)
        return normal if not failures else max(normal, min(MOST_BACK_OFF_S, normal * 2**failures))

    def _arm(self, peer: NodeId, delay_s: float) -> None:
        trigger = IntervalTrigger(seconds=delay_s, jitter=delay_s * JITTER, timezone=UTC)
        self._scheduler.add_job(self._poll, trigger, (peer,), id=f"poll {peer}", replace_existing=True)

    def _forget(self, peer: NodeId) -> None:
        self._failures.pop(peer, None)
        self._hinted.discard(peer)
        try:
            self._scheduler.remove_job(f"poll {peer}")
        except JobLookupError:
            return


def _counts(report: Report) -> dict[str, int]:
    return {outcome.value: count for outcome, count in report.counts.items()}
