"""Nodes of one process that talk over real gRPC with mutual TLS, and what tests of them share."""

import asyncio
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import select

from federation.keyring import Card
from federation.model import NodeId
from node.desk import inbox
from node.exchange.sync import sync
from node.home.context import Node
from node.operation.scheduler import Polls
from node.peering import peers
from node.rpc import server
from node.rpc.client import PeerLink
from node.rpc.server import RunningServer
from node.rpc.tls import channel_credentials
from node.sharing import releases
from node.store.database import read
from node.store.tables import audit, out_feeds
from tests.nodes import FR, World, document, import_document, make_world

SECRET = "Maria Musterfrau, victim"
POLL_NEVER_S = 3600
_PORTS_EACH = 1_000  # for each worker of a run; all of them below those of outgoing connections
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
_PORTS = deque(range(20_000 + _PORTS_EACH * _WORKER, 20_000 + _PORTS_EACH * (_WORKER + 1)))
_PORTS.rotate(os.getpid())  # two runs on one machine begin at different places


class Net:
    """A world whose nodes can be served on ports of this machine."""

    def __init__(self, world: World, ends: ExitStack) -> None:
        self.world = world
        self.addresses: dict[NodeId, str] = {}
        self._ends = ends
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        ends.callback(self._loop.close)
        ends.callback(thread.join)
        ends.callback(self._loop.call_soon_threadsafe, self._loop.stop)

    def serve(self, name: NodeId, on_notify: Callable[[NodeId], None] = lambda _: None) -> RunningServer:
        """Starts the server of a node; it is stopped at the end of the test."""
        listening = replace(self.world[name], listen="127.0.0.1:0")
        running: RunningServer = self._await(server.start(listening, on_notify))
        self._ends.callback(lambda: self._await(running.stop(0)))
        self.addresses[name] = running.address
        return running

    def start_raising(self, node: Node) -> None:
        """Starts a server that is expected not to start."""
        self._await(server.start(node, lambda _: None))

    def link(self, receiver: NodeId, sender: NodeId) -> PeerLink:
        """The link by which `receiver` calls `sender`, wherever that was bound."""
        return self.connect(self.world[receiver], peers.trusted_card(self.world[receiver], sender))

    def connect(self, node: Node, card: Card) -> PeerLink:
        """What `Polls` calls in place of `PeerLink`."""
        return PeerLink(node, replace(card, endpoint=self.addresses.get(card.node, card.endpoint)))

    def sync(self, receiver: NodeId, sender: NodeId) -> int:
        """One sync; returns how many entries came."""
        with self.link(receiver, sender) as link:
            return sync(self.world[receiver], sender, link).entries

    def polls(self, name: NodeId) -> Polls:
        """Running polls that ask only at the start and on a hint."""
        polls = Polls(replace(self.world[name], poll_interval_s=POLL_NEVER_S), self.connect)
        self._ends.callback(polls.stop)
        return polls

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


@contextmanager
def make_net(folder: Path, *names: NodeId) -> Iterator[Net]:
    with ExitStack() as ends:
        world = make_world(folder, *names)
        ends.callback(world.close)
        yield Net(world, ends)


def until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    """Waits for a condition."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        threading.Event().wait(0.02)


def release(world: World, name: str) -> None:
    """FR releases a new advisory to everybody."""
    import_document(world[FR], document(name))
    releases.release(world[FR], name)


def names_in_inbox(node: Node) -> set[str]:
    return {item.name for item in inbox.items(node)}


def acknowledged(node: Node, peer: NodeId) -> int:
    with read(node.engine) as tx:
        return int(tx.execute(select(out_feeds.c.receipt_size).where(out_feeds.c.peer == peer)).scalar_one())


def refusals(node: Node) -> list[tuple[str, str, str]]:
    with read(node.engine) as tx:
        rows = tx.execute(select(audit).where(audit.c.act == "rpc.refuse").order_by(audit.c.id)).all()
    return [(row.by, row.subject, row.detail) for row in rows]


@contextmanager
def raw_channel(net: Net, caller: NodeId, callee: NodeId) -> Iterator[Callable[[str, bytes], bytes]]:
    """Calls with bytes of the attacker's choice, under the caller's real key."""
    node = net.world[caller]
    credentials = channel_credentials(node, peers.trusted_card(node, callee))
    options = (("grpc.ssl_target_name_override", callee), ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(net.addresses[callee], credentials, options) as channel:

        def call(method: str, data: bytes) -> bytes:
            path = method if method.startswith("/") else f"/{server.SERVICE}/{method}"
            handle: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path, None, None)
            return handle(data, timeout=10)

        yield call


def status_of(call: Callable[[], object]) -> tuple[str, str]:
    """The status and details with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, error.details()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on, that the system gives to no connection, and no other worker to its tests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(len(_PORTS)):
        _PORTS.rotate(-1)
        with suppress(OSError), socket.create_server((host, _PORTS[0]), family=family):
            return _PORTS[0]
    raise AssertionError("no port is free")
