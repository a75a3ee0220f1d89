"""When peers are asked, and the process that serves a home."""

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from federation.errors import (
    UsageError,
)
from federation.keyring import Card
from federation.model import NodeId
from node import main
from node.home.context import Node
from node.home.lock import LOCK_FILE, STATE_FILE, wake
from node.operation.scheduler import Polls
from node.operation.serve import serve
from node.peering import peers
from node.rpc.client import PeerLink
from tests.commands import Running
from tests.e2e.net import POLL_NEVER_S, SECRET, Net, acknowledged, free_port, names_in_inbox, release, until
from tests.nodes import ADDRESS, DE, FR, agree, history


class TestPolls:
    """When peers are asked."""

    @pytest.fixture
    def polls(self, net: Net) -> Iterator[Polls]:
        """DE's polls, of a peer that answers nothing until a test serves it."""
        net.addresses[FR] = f"127.0.0.1:{free_port()}"
        made = Polls(net.world[DE], net.connect)
        made._scheduler.start(paused=True)
        made.refresh()
        yield made
        made.stop()

    @staticmethod
    def interval_s(polls: Polls) -> float:
        job: Any = polls._scheduler.get_job(f"poll {FR}")
        return float(job.trigger.interval.total_seconds())

    def test_a_peer_that_fails_is_asked_ever_more_rarely(self, net: Net, polls: Polls) -> None:
        seen = []
        for _ in range(6):
            polls._poll(FR)
            seen.append(self.interval_s(polls))
        assert seen == [120, 240, 480, 900, 900, 900]
        net.serve(FR)
        polls._poll(FR)
        assert self.interval_s(polls) == net.world[DE].poll_interval_s

    def test_a_distrusted_peer_is_asked_no_more(self, net: Net, polls: Polls) -> None:
        net.serve(FR)
        polls._poll(FR)
        peers.distrust(net.world[DE], FR)
        polls._poll(FR)
        assert polls._scheduler.get_job(f"poll {FR}") is None
        polls.hint(FR)
        assert polls._scheduler.get_job(f"poll {FR}") is None

    @pytest.mark.invariant("I17")
    def test_a_bug_ends_neither_the_polls_nor_the_silence(self, net: Net) -> None:
        def broken(_node: Node, _card: Card) -> PeerLink:
            raise RuntimeError(SECRET)

        polls = Polls(net.world[DE], broken)
        polls._scheduler.start(paused=True)
        polls.refresh()
        with structlog.testing.capture_logs() as lines:
            polls._poll(FR)
        assert lines
        assert SECRET not in str(lines)
        assert self.interval_s(polls) == 120
        polls.stop()

    def test_a_hint_during_a_sync_is_not_lost(self, net: Net) -> None:
        entered, go_on, opened = threading.Semaphore(0), threading.Event(), 0

        def connect(node: Node, card: Card) -> PeerLink:
            nonlocal opened
            opened += 1
            entered.release()
            go_on.wait(20)
            return net.connect(node, card)

        net.serve(FR)
        polls = Polls(replace(net.world[DE], poll_interval_s=POLL_NEVER_S), connect)
        polls.start()
        try:
            assert entered.acquire(timeout=10)
            for _ in range(5):
                polls.hint(FR)
            polls.hint(NodeId("cert.nobody.example"))
            go_on.set()
            assert entered.acquire(timeout=10)  # asked again, although the interval is an hour
        finally:
            go_on.set()
            polls.stop()
        assert opened == 2

    def test_stopping_ends_a_call_that_hangs(self, net: Net) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            net.addresses[FR] = f"127.0.0.1:{mute.getsockname()[1]}"
            polls = Polls(net.world[DE], net.connect)
            polls.start()
            connection, _ = mute.accept()
            began = time.monotonic()
            polls.stop()
            connection.close()
            assert time.monotonic() - began < 3


class TestServe:
    """The process that serves a home."""

    @staticmethod
    @contextmanager
    def serving(home: Path) -> Iterator[Running]:
        """`serve` in a process of its own; its first line says where."""
        code = (
            "import pathlib, sys; from node.operation.serve import serve\n"
            "serve(pathlib.Path(sys.argv[1]), lambda address: print(address, flush=True))"
        )
        with Running(str(home), code=code) as process:
            try:
                yield process
            finally:
                process.kill()

    @pytest.fixture
    def home(self, net: Net) -> Path:
        """FR's home, to be served on any free port."""
        folder = net.world[FR].home
        settings = folder / "apostille.yaml"
        text = settings.read_text(encoding="utf-8")
        settings.write_text(text.replace(f'listen: "{ADDRESS}"', 'listen: "127.0.0.1:0"'), encoding="utf-8")
        return folder

    def test_one_process_serves_a_home_until_it_is_told_to_stop(self, net: Net, home: Path) -> None:
        assert not wake(home)
        with self.serving(home) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert json.loads((home / STATE_FILE).read_text()) == {"pid": process.pid, "address": address}
            net.addresses[FR] = address
            with pytest.raises(UsageError, match=f"served already by process {process.pid}"):
                serve(home, lambda _: None)
            # another command of this home releases something, and wakes the server: DE is told, and syncs
            agree(net.world)
            polls = net.polls(DE)
            net.serve(DE, polls.hint)
            _advertise(net, DE)
            polls.start()
            until(lambda: acknowledged(net.world[FR], DE) == len(history(net.world[FR], DE)))
            release(net.world, "FR-1")
            assert wake(home)
            until(lambda: names_in_inbox(net.world[DE]) == {"FR-1"})
            process.send_signal(signal.SIGTERM)
            _, lines = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "event=start" in lines
        assert "event=stop" in lines
        assert "Traceback" not in lines
        assert not (home / STATE_FILE).exists()
        assert not wake(home)

    def test_a_process_id_that_was_left_behind_is_not_signalled(self, home: Path) -> None:
        got: list[int] = []
        before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
        try:
            # honest: with the lock held, the holder is signalled
            with (home / LOCK_FILE).open("w") as held:
                held.write(f"{os.getpid()}\n")
                held.flush()
                fcntl.flock(held, fcntl.LOCK_EX)
                assert wake(home)
            assert got == [signal.SIGUSR1]
            # the same file after its process was killed
            assert not wake(home)
            assert got == [signal.SIGUSR1]
            assert (home / LOCK_FILE).read_text() == ""
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_a_folder_that_is_no_home_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no home of a node"):
            serve(tmp_path / "nowhere", lambda _: None)


def _advertise(net: Net, name: NodeId) -> None:
    """FR enrols the card that says where `name` is served now."""
    node = net.world[name]
    card = replace(node.card, version=node.card.version + 1, endpoint=net.addresses[name])
    peers.enrol(net.world[FR], main.sign_card(card, node.keys))
