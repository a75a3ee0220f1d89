"""A lying peer: what a hostile or broken node can do that is enrolled and holds its real keys.

`Liar` is a real gRPC server under the TLS key of a node. Its answers are bytes that a script makes of the call, with
the honest answer at hand to be changed:

    with lying(net, FR) as liar:
        liar.answers["Pull"] = lambda call: call.honest() + b"\\x7a\\x06hidden"
        told = sync(net, DE, FR)

Without a script it is honest. `tell` makes it tell a history of `tests.nodes.ForgedFeed`. `calling` is its other side:
calls with any bytes, metadata and compression. The victim is a process, `apostille sync` by `sync`, or `apostille
serve` by `tests.e2e.processes`; `everything` and `difference` show what it has changed, `peak_kib` what it has used.
"""

import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from sqlalchemy import insert, update

from federation import merkle
from federation.entries import ErasedItem, Kind
from federation.errors import ApostilleError
from federation.feed import Ask, PageBytes
from federation.keyring import Card
from federation.model import NodeId
from node import main
from node.exchange import sync as syncing
from node.home.context import Node
from node.home.tally import Tally
from node.peering import feeds, peers
from node.rpc import server
from node.rpc.tls import channel_credentials, server_credentials
from node.store.database import write
from node.store.tables import out_entries, out_feeds
from protos.exchange.v1 import exchange_pb2 as wire
from tests import commands
from tests.e2e.net import Net
from tests.e2e.processes import PATIENCE_S, settle

Script = Callable[["Call"], bytes]
Change = dict[str, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]]
_REQUESTS: dict[str, type[Message]] = {
    "Pull": wire.PullRequest,
    "GetCheckpoint": wire.GetCheckpointRequest,
    "GetProof": wire.GetProofRequest,
    "Notify": wire.NotifyRequest,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call by the victim; `number` counts those of its method from 0. `context` is gRPC's, for what is not bytes."""

    method: str
    data: bytes
    number: int
    context: Any
    liar: "Liar"

    @property
    def request(self) -> Any:
        """The request, as the schema has it."""
        return _REQUESTS[self.method].FromString(self.data)

    def honest(self) -> bytes:
        """What an honest node would answer; an honest refusal ends the call."""
        try:
            answer: Message = getattr(self.liar.servicer, self.method)(self.request, self.liar.victim)
        except ApostilleError as e:
            self.context.abort(*server.refusal_of(e))
            raise
        return answer.SerializeToString()

    def page(self) -> wire.PullResponse:
        """The honest answer to Pull, to be changed."""
        return wire.PullResponse.FromString(self.honest())


class Liar(grpc.GenericRpcHandler):
    """The server. `answers` are the scripts by method, `calls` what was asked, `answered_at` is when it last answered,
    `open` how many calls wait for that; what a script raises is raised again at the end."""

    def __init__(self, node: Node, victim: Card) -> None:
        self.node, self.victim = node, victim
        self.servicer = server.ExchangeServicer(node, lambda _: None, Tally())
        self.answers: dict[str, Script] = {}
        self.calls: list[Call] = []
        self.raised: list[Exception] = []
        self.answered_at, self.open = main.utc_now(), 0
        self._counts: Counter[str] = Counter()

    def service(self, called: "grpc.HandlerCallDetails") -> "grpc.RpcMethodHandler[Any, Any]":
        method = called.method.rpartition("/")[2]

        def answer(data: bytes, context: Any) -> bytes:
            call = Call(method, data, self._counts[method], context, self)
            self._counts[method] += 1
            self.open += 1
            self.calls.append(call)
            try:
                return self.answers.get(method, Call.honest)(call)
            except ApostilleError:  # honest: the call was ended
                raise
            except Exception as e:
                if context.is_active():
                    self.raised.append(e)
                raise
            finally:
                if method != "Notify":  # which is no part of a sync
                    self.answered_at = main.utc_now()
                self.open -= 1

        return grpc.unary_unary_rpc_method_handler(answer)

    def be_honest(self) -> None:
        """Forgets scripts and calls."""
        self.answers.clear()
        self.calls.clear()
        self._counts.clear()

    def tell(self, feed: syncing.Link) -> None:
        """Tells the history of `feed` from now on."""

        def pull(call: Call) -> bytes:
            ask = call.request
            return page_of(feed.pull(Ask(ask.feed, ask.cursor, ask.receipt, ask.newest, ask.restored, ask.protocol)))

        def checkpoint(call: Call) -> bytes:
            note = feed.checkpoint(call.request.feed, call.request.size)
            return wire.GetCheckpointResponse(checkpoint=note).SerializeToString()

        self.answers |= {"Pull": pull, "GetCheckpoint": checkpoint}


@contextmanager
def lying(net: Net, name: NodeId, victim: NodeId) -> Iterator[Liar]:
    """The node `name`, whose card names an address (`prepare`), answers there; honestly, until it has a script."""
    node = net.world[name]
    liar = Liar(node, peers.trusted_card(node, victim))
    options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    running = grpc.server(ThreadPoolExecutor(4), [liar], options=options)
    assert running.add_secure_port(net.addresses[name], server_credentials(node))
    running.start()
    try:
        yield liar
    finally:
        running.stop(None).wait()
    for error in liar.raised:
        raise error


def prepare(net: Net, *names: NodeId) -> None:
    """Gives each node an address and the real clock, by which processes go."""
    settle(net, *names)
    for name, node in net.world.nodes.items():
        net.world.nodes[name] = replace(node, clock=main.utc_now)


def page_of(page: PageBytes) -> bytes:
    """A page as it goes over the wire."""
    return wire.PullResponse(
        items=[item_of(item) for item in page.items],
        checkpoint=page.checkpoint,
        latest=page.latest,
        receipt=page.receipt,
        epoch=page.epoch,
    ).SerializeToString()


def item_of(item: bytes | ErasedItem) -> wire.PageItem:
    """One item of a page."""
    if isinstance(item, bytes):
        return wire.PageItem(entry=item)
    return wire.PageItem(erased=wire.Erased(seq=item.seq, leaf_hash=item.leaf_hash, erased_by=item.erased_by))


@contextmanager
def calling(net: Net, name: NodeId, victim: NodeId) -> Iterator[Callable[..., bytes]]:
    """`call(method, data, gzip=False, metadata=())`, under the real key of `name`, over one connection."""
    node = net.world[name]
    credentials = channel_credentials(node, peers.trusted_card(node, victim))
    options = (
        ("grpc.ssl_target_name_override", victim),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
    )
    with grpc.secure_channel(net.addresses[victim], credentials, options) as channel:

        def call(method: str, data: bytes, *, gzip: bool = False, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
            handle: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/{server.SERVICE}/{method}", None, None
            )
            compression = grpc.Compression.Gzip if gzip else None
            return handle(data, timeout=PATIENCE_S, metadata=tuple(metadata), compression=compression)

        yield call


@dataclass(frozen=True, slots=True)
class Told:
    """How `apostille sync` ended: exit code, what it says of the one peer as JSON, and what it said to people."""

    code: int
    report: dict[str, Any]
    said: str


def sync(net: Net, receiver: NodeId, sender: NodeId) -> Told:
    """`apostille sync SENDER --json` in a process of its own."""
    done = command(net, receiver, "sync", sender, "--json")
    return Told(done.returncode, json.loads(done.stdout)[0], done.stderr)


def command(net: Net, name: NodeId, *words: str) -> Any:
    """Any command of a node, in a process of its own."""
    return commands.run("--home", str(net.world[name].home), *words, timeout=PATIENCE_S)


def everything(home: Path) -> dict[str, Counter[tuple[Any, ...]]]:
    """Every row of every table of a node, as another program reads them."""
    with closing(sqlite3.connect(home / main.DATABASE_FILE)) as file:
        names = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: Counter(file.execute(f'SELECT * FROM "{name}"')) for name in names}  # noqa: S608 - the tables' own


def difference(before: dict[str, Counter[tuple[Any, ...]]], after: dict[str, Counter[tuple[Any, ...]]]) -> Change:
    """By table, the rows that are gone and those that are new; only tables that differ."""
    names = before.keys() | after.keys()
    empty: Counter[tuple[Any, ...]] = Counter()
    found = {n: (before.get(n, empty), after.get(n, empty)) for n in names}
    return {n: (list((b - a).elements()), list((a - b).elements())) for n, (b, a) in found.items() if a != b}


def peak_kib(process: int) -> int:
    """The most memory that a process has had so far."""
    lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def reset_peak(process: int) -> int:
    """Forgets the most memory that a process has had, such as for a passphrase; returns what it has now, in KiB."""
    Path(f"/proc/{process}/clear_refs").write_text("5", "ascii")
    return peak_kib(process)


def holds(home: Path, needle: str) -> list[str]:
    """The files of a home, of every kind, in which `needle` stands.

    Read by another process: to close a database's file here would give up the locks that this process has on it.
    """
    found = subprocess.run(["grep", "-rlaF", needle, str(home)], stdout=subprocess.PIPE, text=True, check=False)
    assert found.returncode in (0, 1), found
    return found.stdout.splitlines()


def append_raw(sender: Node, recipient: NodeId, data: bytes) -> int:
    """Puts any bytes into the feed to `recipient` as its next entry, to be served honestly; returns its number."""
    leaf_hash = merkle.leaf_hash(data)
    with write(sender.engine) as tx:
        feed = feeds.out_feed(tx, recipient)
        edge = feed.edge.append(leaf_hash)
        tx.execute(update(out_feeds).where(out_feeds.c.id == feed.id).values(size=edge.size, edge=edge.encode()))
        row = {"feed": feed.id, "seq": feed.size, "kind": Kind.STATEMENT, "data": data}
        tx.execute(insert(out_entries).values(**row, leaf_hash=leaf_hash, root=edge.root()))
    return feed.size
