"""`/metrics` and `/healthz` on a loopback address: how this node stands, for Prometheus and for a supervisor.

Counts of this process come from `node.home.tally`, the rest from the database, read in one transaction when somebody
asks. Labels are node ids, methods, codes and states; no advisory, person or text of a peer is named (I17). Only GET and
HEAD of these two paths, under a name of this machine, are answered; nothing is read from a query or a body.
"""

import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from federation.errors import UsageError
from node.desk.inbox import InboxState
from node.home import logs
from node.home.context import Node
from node.home.tally import Count, Tally
from node.records import quarantine
from node.records.alarms import Alarm
from node.records.approvals import State
from node.store.database import read
from node.store.tables import alarms, approvals, in_feeds, inbox, incidents, out_feeds, peers, recall_holders

_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_REQUESTS_AT_ONCE = 4  # a scraper and a supervisor, and one more of each; whoever else comes is turned away
_PATIENCE_S = 5.0  # for a request that does not come, or an answer that is not taken
_STOP_STEP_S = 0.05
_log = structlog.get_logger()


class NodeCollector(Collector):
    """What Prometheus sees of one node. A look costs a few queries, the longest one over the rows of the inbox."""

    def __init__(self, node: Node, tally: Tally) -> None:
        self._node = node
        self._tally = tally

    def describe(self) -> list[Metric]:
        """Nothing: what is there is found out when it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now. A database that does not answer is told as such, and the counts still come."""
        yield _gauge("apostille_info", "This node.", {(self._node.id, _version()): 1}, "node", "version")
        for what in Count:
            counter = CounterMetricFamily(what.metric, what.meaning, labels=what.labels)
            for labels, count in sorted(self._tally.all(what).items()):
                counter.add_metric(labels, count)
            yield counter
        now = self._node.clock()
        ends = {(key.role.value, key.kid): (key.valid_until - now).total_seconds() for key in self._node.card.keys}
        yield _gauge("apostille_key_seconds_until_end", "Until a key of this node's card ends.", ends, "role", "key")
        try:
            with read(self._node.engine) as tx:
                stored = (*_feeds(tx, self._node.start, now), *_counts(tx), _size(tx))
        except SQLAlchemyError as e:
            _log.error("metrics failed", error=type(e).__name__, at=logs.place(e))
            stored = ()
        yield _gauge("apostille_database_up", "Whether the database answered.", {(): bool(stored)})
        yield from stored


def _feeds(tx: Connection, start: bytes, now: datetime) -> Iterator[Metric]:
    """The two current feeds with each peer: `in` what it sends us, `out` what we send it."""
    newest_in = select(func.max(in_feeds.c.id)).group_by(in_feeds.c.peer)
    newest_out = select(func.max(out_feeds.c.id)).group_by(out_feeds.c.peer)
    coming = tx.execute(select(in_feeds).where(in_feeds.c.id.in_(newest_in)).order_by(in_feeds.c.peer)).all()
    going = tx.execute(select(out_feeds).where(out_feeds.c.id.in_(newest_out)).order_by(out_feeds.c.peer)).all()
    trusted = tx.execute(select(peers.c.node, peers.c.trusted).order_by(peers.c.node)).all()
    sizes = {(row.peer, "in"): row.size for row in coming} | {(row.peer, "out"): row.size for row in going}
    covered = {(row.peer, "in"): row.cosigned for row in coming} | {
        (row.peer, "out"): row.receipt_size for row in going
    }
    ages = {(row.peer,): (now - row.contact_at).total_seconds() for row in coming if row.contact_at is not None}
    yield _gauge("apostille_feed_entries", "Entries of a feed.", sizes, "peer", "direction")
    yield _gauge(
        "apostille_feed_acknowledged_entries",
        "Entries of a feed that its receiver has signed for, as the sender knows.",
        covered,
        "peer",
        "direction",
    )
    confirmed = {(row.peer,): row.shown_to == start for row in going}
    yield _gauge(
        "apostille_feed_confirmed",
        "Whether a peer has shown since this start that nothing of our feed to it is lost; before, we sign nothing.",
        confirmed,
        "peer",
    )
    frozen = {(row.peer,): row.frozen is not None for row in coming}
    yield _gauge("apostille_feed_frozen", "Whether ingest from a peer waits for two people.", frozen, "peer")
    yield _gauge("apostille_peer_contact_age_seconds", "Since a page of a peer was last taken in.", ages, "peer")
    trust = {(row.node,): row.trusted for row in trusted}
    yield _gauge("apostille_peer_trusted", "Whether a peer is trusted.", trust, "peer")


def _counts(tx: Connection) -> Iterator[Metric]:
    """What lies here, and what waits for a person or a peer."""
    open_alarms = select(alarms.c.kind, func.count()).where(alarms.c.acked_at.is_(None)).group_by(alarms.c.kind)
    kinds = {(kind.value,): 0 for kind in Alarm} | {(kind,): count for kind, count in tx.execute(open_alarms)}
    yield _gauge("apostille_alarms_open", "Alarms that nobody has acknowledged.", kinds, "kind")
    states = tx.execute(select(inbox.c.state, func.count()).group_by(inbox.c.state))
    held = {(state.value,): 0 for state in InboxState} | {(state,): count for state, count in states}
    yield _gauge("apostille_inbox_items", "Received revisions, by what may be done with them.", held, "state")
    aside = {(): quarantine.count(tx)}
    yield _gauge("apostille_entries_set_aside", "Received entries that were quarantined or refused.", aside)
    answers = tx.execute(select(recall_holders.c.state, func.count()).group_by(recall_holders.c.state))
    purges = {(state,): count for state, count in answers}
    yield _gauge("apostille_recall_holders", "Who has to purge what was recalled, by their answer.", purges, "state")
    waiting = select(func.count()).select_from(approvals).where(approvals.c.state == State.OPEN)
    yield _gauge(
        "apostille_approvals_open", "Acts that wait for a second person.", {(): tx.execute(waiting).scalar_one()}
    )
    unsettled = select(func.count()).select_from(incidents).where(incidents.c.resolved_at.is_(None))
    yield _gauge("apostille_incidents_open", "Incidents not settled.", {(): tx.execute(unsettled).scalar_one()})


def _size(tx: Connection) -> Metric:
    query = "SELECT pg_database_size(current_database())"
    if tx.dialect.name == "sqlite":
        query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    return _gauge("apostille_database_bytes", "Size of the database.", {(): tx.execute(text(query)).scalar_one()})


def _gauge(name: str, meaning: str, values: Mapping[Any, float], *labels: str) -> Metric:
    """A gauge; the keys of `values` are tuples, as long as `labels`."""
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, float(value))
    return family


def _version() -> str:
    try:
        return version("apostille")
    except PackageNotFoundError:
        return "unknown"  # run from its source tree


class MetricsServer(ThreadingMixIn, TCPServer):
    """Answers on `listen`, HOST:PORT of this machine, in threads of its own until it is closed.

    `health` says in one word why the node is not fit to serve, None when it is. Raises UsageError when the address
    cannot be had.
    """

    allow_reuse_address = True
    daemon_threads = True  # whoever is still asking when it is closed gets no answer

    def __init__(self, node: Node, tally: Tally, listen: str, health: Callable[[], str | None]) -> None:
        self.health = health
        self.registry = CollectorRegistry()
        self.registry.register(NodeCollector(node, tally))
        ProcessCollector(registry=self.registry)
        self._places = threading.BoundedSemaphore(_REQUESTS_AT_ONCE)
        host, _, port = listen.rpartition(":")
        self.address_family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        try:
            super().__init__((host.strip("[]"), int(port)), _Request)
        except OSError as e:
            raise UsageError(_why_not(listen, e)) from e
        self.address = f"{host}:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(_STOP_STEP_S,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers nobody any more."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread, while there is one left."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Gives the thread's place back at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - named by the base
        """Tells what is no connection that broke: the base would print a traceback."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            _log.error("metrics failed", error=type(error).__name__, at=logs.place(error))


class _Request(BaseHTTPRequestHandler):
    """One request, on a connection of its own."""

    timeout = _PATIENCE_S
    server: MetricsServer

    def do_GET(self) -> None:
        if not _is_this_machine(self.headers.get("Host")):  # a page in a browser here, under a name that leads here
            self._answer(HTTPStatus.NOT_FOUND)
        elif self.path == "/metrics":
            self._answer(HTTPStatus.OK, generate_latest(self.server.registry), _PROMETHEUS)
        elif self.path == "/healthz":
            word = self.server.health()
            status = HTTPStatus.OK if word is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{word or 'ok'}\n".encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815 - named by the base

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the base refuses, in our words: its own repeat the request."""
        self._answer(HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the base
        """Nothing: who asked for what stands in no log."""

    def version_string(self) -> str:
        """Who answers."""
        return "apostille"

    def _answer(self, status: HTTPStatus, body: bytes | None = None, kind: str = _TEXT) -> None:
        body = f"{status.phrase}\n".encode() if body is None else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_this_machine(host: str | None) -> bool:
    """Whether a request's Host is a loopback address or localhost; a request without one names nothing."""
    if host is None:
        return True
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        return name.lower() == "localhost" or ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _why_not(listen: str, error: OSError) -> str:
    host, _, port = listen.rpartition(":")
    if error.errno == errno.EADDRINUSE:
        return f"metrics: port {port} of {host} is in use; stop what uses it, or change metrics in apostille.yaml"
    return f"metrics: {listen} cannot be had ({error.strerror}); change metrics in apostille.yaml"
