"""What a node tells Prometheus and a supervisor: where, to whom, how much, and nothing that names what is exchanged."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
import structlog.testing
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, text, update

from federation.errors import UsageError
from node.home.tally import Count, Tally
from node.operation import metrics
from node.operation.metrics import MetricsServer
from node.peering import peers
from node.records.alarms import Alarm, raise_alarm
from node.sharing import releases
from node.store.database import write
from node.store.tables import in_entries, incidents
from tests.nodes import DE, FR, World, agree, document, history, import_document, make_world, release, reopen

NOBODY = "Maria Musterfrau"


def raw(server: MetricsServer, said: bytes) -> bytes:
    """What is answered to any bytes."""
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), 10) as line:
        try:
            line.sendall(said)
            line.shutdown(socket.SHUT_WR)
            return line.makefile("rb").read()
        except ConnectionError:  # it was turned away before it had said everything
            return b""


class Told(dict[tuple[str, ...], float]):
    """Samples by their name and the values of their labels, in the order of the labels' names."""

    def __call__(self, name: str, *labels: str) -> float:
        return self[name, *labels]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR and DE with an agreement in force."""
    made = make_world(tmp_path)
    agree(made)
    yield made
    made.close()


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """FR and DE, in whose databases nothing moves."""
    made = make_world(tmp_path_factory.mktemp("still"))
    yield made
    made.close()


@contextmanager
def watched(
    world: World,
    *,
    tally: Tally | None = None,
    health: Callable[[], str | None] = lambda: None,
    host: str = "127.0.0.1",
) -> Iterator[MetricsServer]:
    """DE's metrics on a free port."""
    server = MetricsServer(world[DE], tally or Tally(), f"{host}:0", health)
    try:
        yield server
    finally:
        server.close()


def ask(
    server: MetricsServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, str, HTTPResponse]:
    """Status, body and response."""
    host, _, port = server.address.rpartition(":")
    with closing(HTTPConnection(host.strip("[]"), int(port), timeout=10)) as line:
        line.request(method, path, headers=headers or {})
        response = line.getresponse()
        return response.status, response.read().decode(), response


def told(server: MetricsServer) -> Told:
    """Every sample."""
    status, body, response = ask(server, "/metrics")
    assert status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return Told(
        {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }
    )


def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def test_how_the_feeds_stand(world: World) -> None:
    release(world, "FR-1", "FR-2")
    world.sync(DE, FR)
    import_document(world[FR], document("FR-3"))
    releases.release(world[FR], "FR-3")
    world.clock.move(seconds=90)
    with watched(world) as server:
        seen = told(server)
    sent, received = len(history(world[DE], FR)), len(history(world[FR], DE)) - 1  # FR-3 was not fetched
    assert received > 2
    assert seen("apostille_feed_entries", "in", FR) == seen("apostille_feed_acknowledged_entries", "in", FR) == received
    assert seen("apostille_feed_entries", "out", FR) == seen("apostille_feed_acknowledged_entries", "out", FR) == sent
    assert seen("apostille_peer_contact_age_seconds", FR) == 90
    assert seen("apostille_peer_trusted", FR) == seen("apostille_feed_confirmed", FR) == 1
    assert seen("apostille_feed_frozen", FR) == 0
    assert seen("apostille_inbox_items", "current") == 2
    assert seen("apostille_inbox_items", "recalled") == 0
    assert seen("apostille_database_up") == 1
    assert seen("apostille_database_bytes") > 100_000
    assert 0 < seen("apostille_key_seconds_until_end", world[DE].card.keys[0].kid, "issue") < 398 * 86_400
    assert seen("process_resident_memory_bytes") > 1 << 20
    assert seen("apostille_info", DE, metrics._version()) == 1


def test_a_feed_signs_nothing_after_a_start_until_its_receiver_has_shown_its_head(world: World) -> None:
    reopen(world, DE)
    with watched(world) as server:
        assert told(server)("apostille_feed_confirmed", FR) == 0
        world.sync(FR, DE)
        assert told(server)("apostille_feed_confirmed", FR) == 1


def test_what_waits_for_a_person(world: World) -> None:
    de, now = world[DE], world.clock()
    release(world, "FR-1")
    world.sync(DE, FR)
    with watched(world) as server:
        before = told(server)
        assert {before("apostille_alarms_open", kind.value) for kind in Alarm} == {0}
        with write(de.engine) as tx:
            raise_alarm(tx, Alarm.CLOCK, "clock", "", now)
            raise_alarm(tx, Alarm.DISK, "disk", "", now)
            raise_alarm(tx, Alarm.DISK, "another disk", "", now)
            raise_alarm(tx, Alarm.EQUIVOCATION, FR, "", now)
            about = {"kind": "EQUIVOCATION", "peer": FR, "subject": "FR-1"}
            tx.execute(insert(incidents).values(**about, evidence=b"{}", opened_at=now))
            tx.execute(update(in_entries).where(in_entries.c.seq == 1).values(outcome="quarantined"))
        peers.distrust(de, FR)
        seen = told(server)
        assert [seen("apostille_alarms_open", kind) for kind in ("CLOCK", "DISK", "EQUIVOCATION", "FORK")] == [
            1,
            2,
            1,
            0,
        ]
        assert (before("apostille_incidents_open"), seen("apostille_incidents_open")) == (0, 1)
        assert (before("apostille_entries_set_aside"), seen("apostille_entries_set_aside")) == (0, 1)
        assert (before("apostille_peer_trusted", FR), seen("apostille_peer_trusted", FR)) == (1, 0)
        with write(de.engine) as tx:
            tx.execute(text("UPDATE alarms SET acked_at = first_at WHERE kind = 'DISK'"))
        assert told(server)("apostille_alarms_open", "DISK") == 0


def test_what_the_process_has_done(still: World) -> None:
    tally = Tally()

    def work() -> None:
        for _ in range(1_000):
            tally.add(Count.ITEMS_OUT, FR, by=3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.add(Count.REFUSALS, FR, "Pull", "NOT_FOUND")
    with watched(still, tally=tally) as server:
        seen = told(server)
    assert seen("apostille_items_out_total", FR) == 12_000
    assert seen("apostille_calls_refused_total", "Pull", FR, "NOT_FOUND") == 1


@pytest.mark.invariant("I17")
def test_nothing_names_what_is_exchanged_or_who_works_here(world: World) -> None:
    import_document(world[FR], document("FR-1-name", title=f"{NOBODY}, title", notes=(f"{NOBODY}, note",)))
    releases.release(world[FR], "FR-1-name")
    world.sync(DE, FR)
    with write(world[DE].engine) as tx:
        raise_alarm(tx, Alarm.QUARANTINE, f"{NOBODY}, subject", f"{NOBODY}, detail", world.clock())
    with watched(world) as server:
        _, body, _ = ask(server, "/metrics")
    assert FR in body
    for secret in (NOBODY, "FR-1-name", world[DE].actor, "exchange-2026", str(world[DE].home)):
        assert secret not in body
    named = {name for labels in re.findall(r"\{(.*)\}", body) for name in re.findall(r'(\w+)="', labels)}
    assert named <= {"node", "version", "peer", "direction", "kind", "state", "role", "key"}


@pytest.mark.parametrize(
    ("word", "status", "body"), [(None, 200, "ok\n"), ("draining", 503, "draining\n"), ("database", 503, "database\n")]
)
def test_health_in_one_word(still: World, word: str | None, status: int, body: str) -> None:
    with watched(still, health=lambda: word) as server:
        assert ask(server, "/healthz")[:2] == (status, body)


def test_only_two_paths_and_two_methods_are_answered(still: World) -> None:
    with watched(still) as server:
        for path in ("/", "/metrics/", "/metrics?name[]=up", "/healthz?", "/x/../metrics", "/METRICS", "http:/metrics"):
            assert ask(server, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
            status, body, _ = ask(server, "/metrics", method)
            assert (status, body) == (501, "Not Implemented\n")
        for path in ("/metrics", "/healthz"):
            answer = raw(server, f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
            assert b"\r\nContent-Length: " in answer
            assert answer.endswith(b"\r\n\r\n")


def test_a_page_in_a_browser_cannot_read_it_under_a_name_of_its_own(still: World) -> None:
    with watched(still) as server:
        port = server.address.rpartition(":")[2]
        for host in (f"127.0.0.1:{port}", "127.0.0.1", "localhost", f"LOCALHOST:{port}", f"[::1]:{port}", "[::1]"):
            assert ask(server, "/metrics", headers={"Host": host})[0] == 200
        for host in (f"rebound.example:{port}", "rebound.example", "192.0.2.7", "127.0.0.1.example", "", "[::1"):
            assert ask(server, "/metrics", headers={"Host": host})[0] == 404
            assert ask(server, "/healthz", headers={"Host": host})[0] == 404


@pytest.mark.invariant("I17")
def test_junk_is_refused_and_neither_repeated_nor_logged(still: World, capsys: pytest.CaptureFixture[str]) -> None:
    with watched(still) as server:
        for junk in (
            b"SECRET\r\n\r\n",
            b"GET /SECRET HTTP/9\r\n\r\n",
            b"SECRET /" + b"x" * 70_000,
            b"\x16\x03SECRET\r\n",
        ):
            answer = raw(server, junk)
            assert b"200" not in answer
            assert b"SECRET" not in answer
        assert ask(server, "/healthz")[0] == 200
    assert "SECRET" not in "".join(capsys.readouterr())


def test_a_database_that_does_not_answer_is_told_and_the_counts_still_come(world: World) -> None:
    tally = Tally()
    tally.add(Count.PULLS, FR)
    with watched(world, tally=tally) as server:
        with write(world[DE].engine) as tx:
            tx.execute(text("ALTER TABLE alarms RENAME TO elsewhere"))
        with structlog.testing.capture_logs() as lines:
            seen = told(server)
    assert seen("apostille_database_up") == 0
    assert seen("apostille_pulls_total", FR) == 1
    assert ("apostille_feed_entries", "in", FR) not in seen
    assert [line["event"] for line in lines] == ["metrics failed"]


@pytest.mark.invariant("I17")
def test_a_fault_of_ours_is_one_line_without_its_text(
    still: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_registry: object) -> bytes:
        raise RuntimeError(NOBODY)

    with watched(still) as server:
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
            patch.setattr(metrics, "generate_latest", broken)
            with pytest.raises(ConnectionError):
                ask(server, "/metrics")
            until(lambda: bool(lines))
        assert ask(server, "/metrics")[0] == 200
    assert [(line["event"], line["error"]) for line in lines] == [("metrics failed", "RuntimeError")]
    assert NOBODY not in str(lines) + "".join(capsys.readouterr())


def test_whoever_says_nothing_keeps_nobody_waiting_for_ever(still: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics._Request.timeout == metrics._PATIENCE_S
    monkeypatch.setattr(metrics._Request, "timeout", 0.3)
    with watched(still) as server:
        address = ("127.0.0.1", int(server.address.rpartition(":")[2]))
        silent = [socket.create_connection(address, 10) for _ in range(metrics._REQUESTS_AT_ONCE)]
        try:
            until(lambda: server._places._value == 0)
            assert threading.active_count() < 2 * metrics._REQUESTS_AT_ONCE + 5
            with socket.create_connection(address, 10) as one_too_many:
                assert one_too_many.recv(1) == b""
            assert [line.recv(1) for line in silent] == [b""] * len(silent)
        finally:
            for line in silent:
                line.close()
        until(lambda: server._places._value == metrics._REQUESTS_AT_ONCE)
        assert ask(server, "/healthz")[0] == 200


@pytest.mark.parametrize("listen", ["127.0.0.1", "[::1]"])
def test_an_address_that_cannot_be_had_is_said(still: World, listen: str) -> None:
    if listen == "[::1]" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    with watched(still, host=listen) as server:
        with pytest.raises(
            UsageError, match=r"metrics: port \d+ of .+ is in use; stop what uses it, or change metrics"
        ):
            MetricsServer(still[DE], Tally(), server.address, lambda: None)
        assert ask(server, "/healthz")[0] == 200


def test_an_address_of_another_machine_is_said(still: World) -> None:
    with pytest.raises(UsageError, match=r"metrics: 192\.0\.2\.7:9464 cannot be had \(.+\); change metrics"):
        MetricsServer(still[DE], Tally(), "192.0.2.7:9464", lambda: None)


def test_nothing_is_left_of_it_in_the_end(still: World) -> None:
    before = threading.active_count()
    with watched(still) as server:
        assert ask(server, "/healthz")[0] == 200
        host, _, port = server.address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 10)
    until(lambda: threading.active_count() == before)


def has_ipv6() -> bool:
    """Whether ::1 can be had here."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
