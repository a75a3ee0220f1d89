"""Real processes that serve the homes of a `Net`, as a service manager would start them."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

from federation.model import NodeId
from node import main
from node.home import owncard
from node.peering import peers
from node.store.database import write
from tests.commands import APOSTILLE, Running, outside
from tests.e2e.net import Net, free_port
from tests.nodes import ADDRESS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60  # three processes may share a core with the other tests
_ask = build_opener(ProxyHandler({}))


class Serving:
    """`apostille serve` on one home. `metrics` is where it tells how it is, once it is ready.

    `alone`: in a process that imports what it needs itself.
    """

    process: Running | subprocess.Popen[str]

    def __init__(self, home: Path, prelude: str = "", *, alone: bool = False, **environment: str) -> None:
        self.home = home
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(f"\0apostille-{os.getpid()}-{id(self)}")
        self._manager.settimeout(0.2)
        notify = {"NOTIFY_SOCKET": f"@{self._manager.getsockname()[1:].decode()}"}
        code = f"{prelude}\n{APOSTILLE}"
        words, env = ("--home", str(home), "serve"), {**outside(), **notify, **environment}
        if alone:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=home.parent,
                env={**env, "PYTHONPATH": str(ROOT)},
            )
        else:
            self.process = Running(*words, code=code, cwd=home.parent, env=env)

    def told(self) -> str:
        """What it tells the service manager next."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                return self._manager.recv(100).decode()
            except TimeoutError:
                if self.process.poll() is not None:
                    break
        self.process.kill()
        raise AssertionError(f"it told nothing: {self.ended()}")

    @property
    def metrics(self) -> str:
        """Where it tells how it is."""
        lines = (self.home / "apostille.log").read_text("utf-8").splitlines()
        return next(line for line in reversed(lines) if "event=metrics" in line).rpartition("=")[2]

    def health(self) -> str:
        """What /healthz says."""
        try:
            with _ask.open(f"http://{self.metrics}/healthz", timeout=PATIENCE_S) as answer:
                return str(answer.read().decode().strip())
        except HTTPError as e:
            with e:
                return e.read().decode().strip()

    def count(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 when there is none."""
        with _ask.open(f"http://{self.metrics}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def tell(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def ended(self, within_s: float = PATIENCE_S) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr, once it has ended."""
        _, said = self.process.communicate(timeout=within_s)
        return self.process.wait(), said

    def close(self) -> None:
        """Ends it if it has not ended, and whatever it was."""
        self.process.kill()
        self.process.communicate()
        self._manager.close()


@contextmanager
def serving(home: Path, prelude: str = "", *, alone: bool = False, **environment: str) -> Iterator[Serving]:
    """A server that was started; it may not be ready yet."""
    made = Serving(home, prelude, alone=alone, **environment)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def ready(home: Path, prelude: str = "", *, alone: bool = False) -> Iterator[Serving]:
    """A server that is ready."""
    with serving(home, prelude, alone=alone) as made:
        assert made.told() == "READY=1"
        yield made


def settle(net: Net, *names: NodeId, host: str = "127.0.0.1") -> None:
    """Gives each node an address that its card and its settings name, and lets it tell how it is."""
    for name in names:
        node = net.world[name]
        listen = f"{host}:{free_port(host.strip('[]'))}"
        card = replace(node.card, version=node.card.version + 1, endpoint=listen)
        document = main.sign_card(card, node.keys)
        with write(node.engine) as tx:
            owncard.store(tx, card, document, at=node.clock(), by="alice")
        node.own.reload()
        for other in net.world.nodes.values():
            if other is not node:
                peers.enrol(other, document)
        net.addresses[name] = listen
        path = node.home / "apostille.yaml"
        lines = f'metrics: "{host}:0"\nlog: {{file: apostille.log}}\n'
        path.write_text(path.read_text("utf-8").replace(ADDRESS, listen) + lines, encoding="utf-8")


@contextmanager
def locked(home: Path) -> Iterator[Callable[[], None]]:
    """Inside, nobody else can write to the database of `home`, and whoever tries waits. Gives what ends it earlier."""
    connection = sqlite3.connect(home / "apostille.db", isolation_level=None, timeout=PATIENCE_S)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection.rollback
    finally:
        connection.close()


def refuses_connections(address: str) -> bool:
    """Whether nobody listens on `address`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False
