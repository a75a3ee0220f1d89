"""The line between two nodes fails in every way that lines do, and comes back. Within two polls after that, both sides
have caught up: nothing lost, nothing repeated, every root equal and every entry receipted.

Two real processes, each behind a fault proxy (`tests.faults.proxy`) or in a network namespace of its own with a bridge
between them. Both release while the line fails. Polls are quick here, and are counted by their calls: each process
notes the beginning and the end of each. How rarely a peer is asked that does not answer is in `e2e/test_serve.py`.
"""

import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count as counting
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import func, select

from federation import merkle
from federation.model import NodeId
from node import main
from node.desk import inbox
from node.exchange import sync
from node.home import lock
from node.peering import feeds
from node.sharing import releases
from node.store.database import read
from node.store.tables import audit, in_entries
from tests.e2e import processes
from tests.e2e.net import Net, make_net, until
from tests.e2e.processes import PATIENCE_S, ready, serving, settle
from tests.faults import campaign
from tests.faults.proxy import Proxy, Way
from tests.nodes import DE, FR, agree, document, import_document

SCHEDULES = campaign.count(20, 200)
MOST_POLLS = 2
CAUGHT_UP_WITHIN_S = 25  # of a busy machine; the polls are what counts
_NAMES = counting()
# Polls follow each other quickly, and a call over a line that lost it ends soon; each poll leaves a line in a file.
_QUICK = """
import json, os, time
from node.operation import scheduler
from node.rpc import client, limits
limits.PULL_TIMEOUT_S = limits.CALL_TIMEOUT_S = 1.0
client.MAX_PAGE_ITEMS = 3
scheduler.Polls._interval_s = lambda polls, peer: 0.3
honest = scheduler.sync
def sync(node, peer, line, page):
    began, result = time.monotonic(), "failed"
    try:
        report = honest(node, peer, line, page)
        result = "ok"
        return report
    finally:
        with open(node.home / "polls", "a") as file:
            file.write(json.dumps([began, time.monotonic(), peer, result]) + "\\n")
scheduler.sync = sync
"""


@dataclass
class Line:
    """FR and DE, each served behind a proxy that the other's calls go through."""

    net: Net
    to: dict[NodeId, Proxy]

    def each(self, act: Callable[[Proxy], None]) -> None:
        for proxy in self.to.values():
            act(proxy)

    def heal(self) -> float:
        """Returns the moment after which all passes."""
        self.each(Proxy.heal)
        return monotonic()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with ExitStack() as ends:
        net = ends.enter_context(make_net(tmp_path_factory.mktemp("line"), FR, DE))
        settle(net, FR, DE)
        agree(net.world)
        proxies = {}
        for name in (FR, DE):
            home, address = net.world[name].home, net.addresses[name]
            settings = home / "apostille.yaml"
            text = settings.read_text("utf-8").replace(f'listen: "{address}"', 'listen: "127.0.0.1:0"')
            settings.write_text(text, "utf-8")
            served = lambda home=home: lock.serving_address(home)  # noqa: E731
            proxies[name] = ends.enter_context(Proxy(address, served))
        for name in (FR, DE):
            ends.enter_context(ready(net.world[name].home, _QUICK))
        made = Line(net, proxies)
        caught_up(net, made.heal())
        yield made


def release_some(net: Net, chance: random.Random) -> None:
    """Each node releases something or nothing; the servers are told, as a command would."""
    net.world.clock.now = main.utc_now()
    for node in net.world.nodes.values():
        for _ in range(chance.randrange(3)):
            name = f"N-{next(_NAMES)}"
            import_document(node, document(name))
            releases.release(node, name)
        lock.wake(node.home)


def polls_since(net: Net, receiver: NodeId, healed: float) -> list[tuple[float, str]]:
    """End and result of each poll that began after the line was whole, in the order in which they began."""
    path = net.world[receiver].home / "polls"
    rows = [json.loads(row) for row in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [(ended, result) for began, ended, _, result in sorted(rows) if began >= healed]


def caught_up(net: Net, healed: float, what: str = "at the beginning") -> int:
    """Both have everything after at most two polls; returns how many it took the slower one."""
    until(lambda: all(is_whole(net, *pair) for pair in ((FR, DE), (DE, FR))), CAUGHT_UP_WITHIN_S)
    taken = []
    for sender, receiver in ((FR, DE), (DE, FR)):
        until(lambda r=receiver: bool(polls_since(net, r, healed)), CAUGHT_UP_WITHIN_S)  # type: ignore[misc]
        results = [result for _, result in polls_since(net, receiver, healed)]
        first = results.index("ok") + 1 if "ok" in results else len(results) + 1
        assert first <= MOST_POLLS, f"{what}: {receiver} needed more than {MOST_POLLS} polls: {results}"
        taken.append(first)
        check(net, sender, receiver, what)
    return max(taken)


def is_whole(net: Net, sender: NodeId, receiver: NodeId) -> bool:
    """Whether the receiver holds the whole feed, and the sender its receipt for it."""
    with read(net.world[sender].engine) as tx:
        out = feeds.out_feed(tx, receiver)
    return out.receipt_size == out.size == sync.load_state(net.world[receiver], sender).state.cursor


def check(net: Net, sender: NodeId, receiver: NodeId, what: str) -> None:
    """Nothing lost, nothing repeated, nothing reordered, nothing refused."""
    with read(net.world[sender].engine) as tx:
        sent = feeds.leaf_hashes(tx, feeds.out_feed(tx, receiver).id, feeds.out_feed(tx, receiver).size)
    held = sync.load_state(net.world[receiver], sender)
    with read(net.world[receiver].engine) as tx:
        query = select(in_entries.c.seq, in_entries.c.leaf_hash, in_entries.c.outcome)
        rows = tx.execute(query.where(in_entries.c.feed == held.id).order_by(in_entries.c.seq)).all()
        bad = tx.execute(select(func.count()).where(audit.c.act.in_(("feed.frozen", "rpc.refuse")))).scalar_one()
    assert [row.seq for row in rows] == list(range(len(sent))), what
    assert [row.leaf_hash for row in rows] == sent, what
    assert held.state.edge.root() == merkle.root(sent), what
    assert {row.outcome for row in rows} <= {inbox.Disposition.ADMITTED, inbox.Disposition.CONTROL}, what
    assert not bad, what


class Weather:
    """Random faults of a line, drawn from a seed; `told` is what happened."""

    def __init__(self, line: Line, seed: int) -> None:
        self.line, self.chance, self.told = line, random.Random(seed), [f"seed {seed}"]  # noqa: S311

    def strike(self) -> None:
        """One fault of either line or both, for a moment; some heal by themselves before the next."""
        faults = (self.cut, self.hold, self.one_way, self.forget, self.flap, self.slow, self.stall)
        fault = self.chance.choice(faults)
        self.told.append(fault.__name__)
        for name in self.chance.choice(((FR,), (DE,), (FR, DE))):
            fault(self.line.to[name])
        release_some(self.line.net, self.chance)
        threading.Event().wait(self.chance.uniform(0.05, 0.5))  # how long it lasts is what the schedule is about
        if self.chance.random() < 0.3:
            self.line.heal()

    def cut(self, proxy: Proxy) -> None:
        proxy.cut()

    def hold(self, proxy: Proxy) -> None:
        proxy.hold()

    def one_way(self, proxy: Proxy) -> None:
        proxy.hold(self.chance.choice(tuple(Way)))

    def forget(self, proxy: Proxy) -> None:
        proxy.forget(*self.chance.choice(((Way.UP,), (Way.DOWN,), tuple(Way))))

    def flap(self, proxy: Proxy) -> None:
        for _ in range(self.chance.randrange(2, 8)):
            self.chance.choice((proxy.cut, proxy.hold))()
            threading.Event().wait(self.chance.uniform(0, 0.06))
            proxy.heal()

    def slow(self, proxy: Proxy) -> None:
        proxy.slow(delay_s=self.chance.uniform(0, 0.05), bytes_per_s=self.chance.uniform(2e4, 2e5))

    def stall(self, proxy: Proxy) -> None:
        proxy.stall(*self.chance.choice(((Way.UP,), (Way.DOWN,))), after=self.chance.randrange(6_000))


@pytest.mark.invariant("I9")
def test_after_any_weather_both_have_caught_up_within_two_polls(line: Line) -> None:
    first_seed = random.randrange(1 << 32)  # noqa: S311 - told in every failure, so that a run can be repeated
    taken = []
    for run in range(SCHEDULES):
        weather = Weather(line, first_seed + run)
        for _ in range(weather.chance.randrange(1, 4)):
            weather.strike()
        taken.append(caught_up(line.net, line.heal(), f"run {run}, {', '.join(weather.told)}"))
    most = [f"{taken.count(polls)} in {polls}" for polls in sorted(set(taken))]
    print(f"{SCHEDULES} schedules from seed {first_seed}: caught up after {', '.join(most)} polls")


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("silent", [Way.UP, Way.DOWN])
def test_a_line_that_is_dead_one_way_only_delays(line: Line, silent: Way) -> None:
    # honest: what FR releases arrives at DE; attack: what one of them says is dropped; then the line is whole again
    chance = random.Random(1)  # noqa: S311
    release_some(line.net, chance)
    caught_up(line.net, line.heal())
    before = sync.load_state(line.net.world[DE], FR).state.cursor
    line.each(lambda proxy: proxy.hold(silent))
    began = monotonic()
    while is_whole(line.net, FR, DE):
        release_some(line.net, chance)
    until(lambda: (began, "failed") < max(polls_since(line.net, DE, began), default=(0.0, "")), PATIENCE_S)
    assert sync.load_state(line.net.world[DE], FR).state.cursor == before
    assert all(result == "failed" for _, result in polls_since(line.net, DE, began))
    caught_up(line.net, line.heal(), f"{silent} was silent")


@pytest.mark.invariant("I9")
def test_a_line_that_breaks_in_every_page_still_brings_all(line: Line) -> None:
    # each connection dies after a little more than a handshake: now and then a page gets through, and that one counts
    release_some(line.net, random.Random(2))  # noqa: S311
    proxy = line.to[FR]
    for passed in (500, 2_000, 3_000, 4_000):
        proxy.stall(Way.DOWN, after=passed)
        release_some(line.net, random.Random(passed))  # noqa: S311
        seen = proxy.connections
        until(lambda seen=seen: proxy.connections > seen + 1, CAUGHT_UP_WITHIN_S)  # type: ignore[misc]
    # what has stalled stays dead, and no reset says so: the calls over it end by their deadlines
    caught_up(line.net, line.heal(), "each connection stalled")


_INSIDE = """
import ctypes, os
assert ctypes.CDLL(None, use_errno=True).setns(os.open("/run/netns/{namespace}", os.O_RDONLY), 0) == 0
"""
_HOSTS = {FR: "10.99.1.2", DE: "10.99.2.2"}


class Namespaces:
    """A network namespace for each node, and a router between them that can drop what goes to one."""

    def __init__(self) -> None:
        self.names = {FR: f"apostille-{os.getpid()}-fr", DE: f"apostille-{os.getpid()}-de"}
        self.router = f"apostille-{os.getpid()}-router"

    def make(self) -> None:
        _ip(f"netns add {self.router}")
        for number, (node, name) in enumerate(self.names.items(), 1):
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} link add name eth0 type veth peer name to{number} netns {self.router}")
            _ip(f"-n {name} address add {_HOSTS[node]}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {self.router} address add 10.99.{number}.1/24 dev to{number}")
            _ip(f"-n {self.router} link set to{number} up")
            _ip(f"-n {name} route add default via 10.99.{number}.1")
        _ip(f"netns exec {self.router} sh -c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def remove(self) -> None:
        for name in (self.router, *self.names.values()):
            if Path("/run/netns", name).exists():
                _ip(f"netns delete {name}")

    def drop(self, *to: NodeId) -> None:
        """From now on no packet arrives at these nodes, and nobody is told so."""
        for node in to:
            _ip(f"-n {self.router} route add blackhole {_HOSTS[node]}/32")

    def heal(self) -> float:
        """Returns the moment after which all passes."""
        _ip(f"-n {self.router} route flush type blackhole")
        return monotonic()


def _ip(words: str, *more: str) -> None:
    subprocess.run(["ip", *words.split(), *more], check=True, timeout=PATIENCE_S)


@contextmanager
def namespaces() -> Iterator[Namespaces]:
    made = Namespaces()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@campaign.needs("ip", root=True)
@pytest.mark.invariant("I9")
def test_packets_that_are_lost_between_two_hosts_only_delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "free_port", lambda _host: 7443)  # of hosts where there is nobody else
    chance = random.Random(3)  # noqa: S311
    with ExitStack() as ends:
        between = ends.enter_context(namespaces())
        net = ends.enter_context(make_net(tmp_path, FR, DE))
        for name in (FR, DE):
            settle(net, name, host=_HOSTS[name])
            settings = net.world[name].home / "apostille.yaml"
            settings.write_text(settings.read_text("utf-8").replace(f"{_HOSTS[name]}:0", "127.0.0.1:0"), "utf-8")
        agree(net.world)
        for name in (FR, DE):
            prelude = _INSIDE.format(namespace=between.names[name]) + _QUICK
            ends.enter_context(serving(net.world[name].home, prelude))
        # it tells a service manager of its own namespace that it is ready, where there is none
        until(lambda: all(lock.serving_address(net.world[name].home) for name in (FR, DE)), PATIENCE_S)
        release_some(net, chance)
        caught_up(net, between.heal())
        for lost in ((FR, DE), (DE,)):
            between.drop(*lost)
            began = monotonic()
            while is_whole(net, FR, DE):
                release_some(net, chance)
            until(lambda began=began: len(polls_since(net, DE, began)) > 1, PATIENCE_S)  # type: ignore[misc]
            assert all(result == "failed" for _, result in polls_since(net, DE, began)), lost
            assert not is_whole(net, FR, DE)
            caught_up(net, between.heal(), f"no packet arrived at {lost}")
