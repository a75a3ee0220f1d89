"""Alarms carried to people who are not looking: once, in one neutral sentence, and only where the operator said."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import update

from federation.errors import UsageError
from federation.model import instant_text
from node.home import logs
from node.home.context import Node
from node.operation import checkup, courier
from node.operation.courier import Courier
from node.records import alarms
from node.records.alarms import Alarm
from node.store.database import write
from node.store.tables import alarms as table
from tests.e2e.net import until
from tests.nodes import (
    DE,
    FR,
    World,
    agree,
    make_world,
    release,
)
from tests.unit.test_alarms import raise_one

pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")  # imported by apprise


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.close()


@pytest.fixture
def fr(world: World) -> Node:
    return world[FR]


class Receiver:
    """A real HTTP server at a loopback address that takes what apprise sends by json://."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.failures: dict[str, int] = {}  # how often a path fails before it works
        self.go_on = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.times.append(time.monotonic())
                outer.got.append((self.path, json.loads(body)))
                if self.path.startswith("/hang"):
                    outer.go_on.wait(30)
                left = outer.failures.get(self.path, 0)
                outer.failures[self.path] = left - 1
                if self.path == "/redirect":
                    self.send_response(307)
                    self.send_header("Location", "/elsewhere")
                else:
                    self.send_response(500 if left > 0 else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str, scheme: str = "json", user: str = "") -> str:
        return f"{scheme}://{user}{self.host}{path}"

    def at(self, path: str) -> list[dict[str, Any]]:
        return [message for where, message in self.got if where == path]

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def write_addresses(node: Node, *lines: str, mode: int = 0o600) -> Path:
    path = node.home / courier.FILE_NAME
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    path.chmod(mode)
    return path


@contextmanager
def carrying(node: Node, **options: float) -> Iterator[Courier]:
    made = Courier(node, look_every_s=0.02, **options)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def delivered(node: Node, number: int) -> bool:
    return next(a.delivered_at for a in alarms.all_alarms(node, every=True) if a.number == number) is not None


@pytest.mark.invariant("I17")
def test_an_alarm_is_carried_once_to_each_address_in_one_neutral_sentence(
    world: World, fr: Node, receiver: Receiver
) -> None:
    write_addresses(fr, "# who is on duty", "", receiver.url("/one"), f"  {receiver.url('/two')}  ")
    number = raise_one(fr, Alarm.FORK, DE, "CANARY of a detail")
    with carrying(fr):
        until(lambda: len(receiver.got) >= 2 and delivered(fr, number))
        raise_one(fr, Alarm.FORK, DE, "CANARY again")  # counts up: nobody is told twice
        second = raise_one(fr, Alarm.DISK, "home")
        until(lambda: len(receiver.got) >= 4 and delivered(fr, second))
    assert [path for path, _ in receiver.got] == ["/one", "/two", "/one", "/two"]
    (told, _) = receiver.at("/one")
    assert told["title"] == f"apostille {FR}: FORK"
    assert told["message"] == (
        f"{FR}: FORK {DE}, since {instant_text(world.clock())}; look at the evidence: apostille peer incident list"
    )
    assert "CANARY" not in json.dumps(receiver.got)
    with carrying(fr):  # another process
        third = raise_one(fr, Alarm.CLOCK, "records")
        until(lambda: delivered(fr, third))
    assert len(receiver.at("/one")) == 3


def test_what_was_acknowledged_is_not_carried_any_more(fr: Node, receiver: Receiver) -> None:
    write_addresses(fr, receiver.url("/one"))
    raise_one(fr, Alarm.FORK)
    alarms.acknowledge(fr, None)
    last = raise_one(fr, Alarm.DISK, "home")
    with carrying(fr):
        until(lambda: delivered(fr, last))
    assert [message["title"] for _, message in receiver.got] == [f"apostille {FR}: DISK"]


def test_an_address_that_fails_is_tried_again_and_the_others_do_not_wait(fr: Node, receiver: Receiver) -> None:
    receiver.failures = {"/weak": 3}
    write_addresses(fr, receiver.url("/weak"), receiver.url("/one"))
    number = raise_one(fr)
    with carrying(fr, first_retry_s=0.01):
        until(lambda: len(receiver.at("/weak")) == 4)
        until(lambda: len(receiver.at("/one")) == 1 and delivered(fr, number))
        last = raise_one(fr, Alarm.DISK, "home")
        until(lambda: len(receiver.at("/weak")) == 5 and delivered(fr, last))
    assert len(receiver.at("/one")) == 2


def test_retries_grow_ever_rarer(fr: Node, receiver: Receiver) -> None:
    receiver.failures = {"/dead": 1000}
    write_addresses(fr, receiver.url("/dead"))
    raise_one(fr)
    with carrying(fr, first_retry_s=0.1):
        until(lambda: len(receiver.times) == 4)
    waits = [after - before for before, after in pairwise(receiver.times)]
    assert waits[0] >= 0.1
    assert waits[1] >= 0.2
    assert waits[2] >= 0.4


def test_an_address_that_hangs_delays_nobody_else_and_what_it_takes_late_is_not_sent_again(
    fr: Node, receiver: Receiver
) -> None:
    write_addresses(fr, receiver.url("/hang?rto=25"), receiver.url("/one"))
    first = raise_one(fr)
    with carrying(fr, first_retry_s=0.01, limit_s=0.2):
        until(lambda: delivered(fr, first))
        second = raise_one(fr, Alarm.DISK, "home")
        until(lambda: delivered(fr, second))
        assert len(receiver.at("/one")) == 2
        assert len(receiver.at("/hang")) == 1  # it has not come back from the first one
        receiver.go_on.set()
        until(lambda: len(receiver.at("/hang")) == 2)
        third = raise_one(fr, Alarm.CLOCK, "records")
        until(lambda: delivered(fr, third) and len(receiver.at("/hang")) == 3)
    titles = [message["title"].rpartition(" ")[2] for message in receiver.at("/hang")]
    assert titles == ["QUARANTINE", "DISK", "CLOCK"]


@pytest.mark.invariant("I18")
def test_nothing_is_sent_where_the_operator_did_not_say(fr: Node, receiver: Receiver) -> None:
    write_addresses(fr, receiver.url("/redirect"), f"# {receiver.url('/commented')}", receiver.url("/one"))
    number = raise_one(fr, Alarm.QUARANTINE, f"json://{receiver.host}/subject", f"json://{receiver.host}/detail")
    with carrying(fr, first_retry_s=0.01):
        until(lambda: len(receiver.at("/redirect")) >= 2 and delivered(fr, number))
    assert {path for path, _ in receiver.got} == {"/redirect", "/one"}


@pytest.mark.invariant("I17")
def test_no_secret_of_an_address_is_written_down(
    fr: Node, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "CANARY-TOKEN"
    write_addresses(
        fr,
        receiver.url("/dead", user=f"user:{secret}@"),
        f"json://user:{secret}@{secret.lower()}.invalid/x",
        receiver.url("/one", user=f"user:{secret}@"),
    )
    receiver.failures = {"/dead": 1000}
    with logs.writing():
        number = raise_one(fr)
        with carrying(fr, first_retry_s=0.01):
            until(lambda: delivered(fr, number) and len(receiver.at("/dead")) >= 2)
    structlog.reset_defaults()
    said = capfd.readouterr()
    assert 'event="alert failed"' in said.err
    assert "event=alert " in said.err
    assert secret.lower() not in (said.err + said.out).lower()
    assert receiver.host not in said.err + said.out
    assert secret not in repr(courier.addresses(fr.home))


BAD: Mapping[str, tuple[Callable[[Node, Receiver], Path], str]] = {
    "others can read it": (lambda node, to: write_addresses(node, to.url("/one"), mode=0o644), "readable by others"),
    "a line that is no address": (lambda node, to: write_addresses(node, to.url("/one"), "foo://SECRET"), "line 2"),
    "not text": (lambda node, _: _bytes(node, b"\xff\xfe\x00"), "not text"),
    "far too large": (lambda node, _: _bytes(node, b"#" * 100_000), "too large"),
    "too many": (lambda node, to: write_addresses(node, *[to.url(f"/{n}") for n in range(51)]), "too large"),
}


def _bytes(node: Node, content: bytes) -> Path:
    path = write_addresses(node)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_right_is_told_once_and_carries_nothing_until_it_is_mended(
    fr: Node, receiver: Receiver, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    make, words = BAD[name]
    path = make(fr, receiver)
    with pytest.raises(UsageError, match=words) as caught:
        courier.addresses(fr.home)
    assert str(path) in str(caught.value)
    assert "SECRET" not in str(caught.value)
    number = raise_one(fr)
    with redirect_stderr(io.StringIO()) as said, logs.writing(), carrying(fr):
        until(lambda: "alerts cannot be sent" in said.getvalue())
        write_addresses(fr, receiver.url("/one"))
        until(lambda: delivered(fr, number))
    assert said.getvalue().count("alerts cannot be sent") == 1
    structlog.reset_defaults()
    assert capfd.readouterr().err == ""
    assert len(receiver.got) == 1


def test_without_the_file_nothing_is_carried_and_alarms_wait_for_it(fr: Node, receiver: Receiver) -> None:
    number = raise_one(fr)
    with carrying(fr) as made:
        made.wake()
        assert courier.addresses(fr.home) == ()
        assert not delivered(fr, number)
        write_addresses(fr, receiver.url("/one"))
        until(lambda: delivered(fr, number))


def test_doctor_looks_at_the_addresses_and_at_reviews(fr: Node, receiver: Receiver) -> None:
    def verdicts() -> dict[str, checkup.Finding]:
        return {finding.check: finding for finding in checkup.examine(fr.home)}

    assert verdicts()["alerts"].verdict is checkup.Verdict.OK
    write_addresses(fr, receiver.url("/one"))
    assert verdicts()["alerts"].found == "1 addresses are told of alarms"
    write_addresses(fr, receiver.url("/one"), mode=0o640)
    assert verdicts()["alerts"].verdict is checkup.Verdict.FAIL
    assert verdicts()["file modes"].verdict is checkup.Verdict.FAIL
    assert receiver.got == []  # it looks, and sends nothing


def test_the_exchange_goes_on_while_an_address_hangs(world: World, receiver: Receiver) -> None:
    agree(world)
    fr = world[FR]
    write_addresses(fr, receiver.url("/hang?rto=25"))
    raise_one(fr)
    with carrying(fr):
        until(lambda: len(receiver.got) == 1)
        release(world, "A")
        world.sync(DE, FR)
        with write(fr.engine) as tx:
            tx.execute(update(table).values(detail="the database is not held either"))
        receiver.go_on.set()
