"""Alarms: raised once, acknowledged by people or because they are over, carried to those who are not looking."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import structlog
from sqlalchemy import select, update

from config import data
from federation.errors import NotAllowedError, NotFoundError, StaleError, UsageError
from federation.model import Country, Form, instant_text
from federation.policy.engine import rule_book
from federation.policy.packs import LawPack, load_pack
from federation.policy.rules import parse
from node.exchange import sync
from node.home import logs
from node.home.context import Node
from node.home.people import Post
from node.operation import checkup, courier, watch
from node.operation.courier import Courier
from node.peering import agreements, peers, rotation
from node.peering.rotation import Change
from node.records import alarms
from node.records.alarms import ADVICE, OVER, Alarm, Raised
from node.sharing import releases
from node.store.database import read, record, write
from node.store.tables import alarms as table
from node.store.tables import audit
from tests.e2e.net import until
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    document,
    history,
    import_document,
    make_world,
    release,
    terms_text,
)

pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")  # imported by apprise
PLENTY = 1 << 40  # bytes that are free on a disk
COUNTRIES = tuple(Country(code) for code in data.countries())
FAILS = 'Node::"nobody.example".groups.isEmpty()'  # the entity does not exist: Cedar errors on it


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.close()


@pytest.fixture
def fr(world: World) -> Node:
    return world[FR]


def raised(node: Node, *, every: bool = False) -> list[tuple[str, str]]:
    return [(alarm.kind.value, alarm.subject) for alarm in reversed(alarms.all_alarms(node, every=every))]


def raise_one(node: Node, kind: Alarm = Alarm.QUARANTINE, subject: str = DE, detail: str = "entry 3") -> int:
    with write(node.engine) as tx:
        alarms.raise_alarm(tx, kind, subject, detail, node.clock())
        return int(tx.execute(select(table.c.id).order_by(table.c.id.desc())).scalars().first() or 0)


def only(node: Node) -> Raised:
    (found,) = alarms.all_alarms(node)
    return found


# Raising and acknowledging


def test_the_same_again_counts_up_until_somebody_has_seen_it(world: World, fr: Node) -> None:
    raise_one(fr)
    first = world.clock()
    world.clock.move(hours=1)
    raise_one(fr, detail="entry 4")
    raise_one(fr, subject="cert.in.example")
    found = alarms.all_alarms(fr)[1]
    assert (found.count, found.first_at, found.last_at, found.detail) == (2, first, world.clock(), "entry 4")
    seen = alarms.acknowledge(fr, [found.number])
    assert [alarm.number for alarm in seen] == [found.number]
    assert raised(fr) == [("QUARANTINE", "cert.in.example")]
    raise_one(fr)
    assert raised(fr) == [("QUARANTINE", "cert.in.example"), ("QUARANTINE", DE)]
    assert [a.acked_by for a in alarms.all_alarms(fr, every=True)] == [None, None, "alice"]


def test_acknowledging_is_for_an_operator_and_is_recorded(fr: Node) -> None:
    one, two = raise_one(fr), raise_one(fr, Alarm.DISK, "home")
    for node in (replace(fr, people={"alice": frozenset((Post.ANALYST, Post.AUDITOR))}), replace(fr, actor="mallory")):
        with pytest.raises(NotAllowedError, match="operator"):
            alarms.acknowledge(node, None)
    with pytest.raises(NotFoundError, match="no alarm 99"):
        alarms.acknowledge(fr, [one, 99])
    assert len(alarms.all_alarms(fr)) == 2
    assert [alarm.number for alarm in alarms.acknowledge(fr, None)] == [one, two]
    assert alarms.acknowledge(fr, [one]) == ()
    with read(fr.engine) as tx:
        found = tx.execute(select(audit.c.by, audit.c.subject).where(audit.c.act == "alarm.ack")).all()
    assert [tuple(row) for row in found] == [("alice", f"QUARANTINE {DE}"), ("alice", "DISK home")]


def test_there_is_advice_for_every_alarm() -> None:
    assert ADVICE.keys() == set(Alarm)


# What a node looks at from time to time


def look(node: Node, free: int = PLENTY, *, starting: bool = False) -> None:
    watch.check(node, starting=starting, free_bytes=lambda _: free)


def test_a_healthy_node_finds_nothing(world: World, fr: Node) -> None:
    agree(world)
    world.sync_all()
    look(fr)
    assert raised(fr) == []


def test_keys_that_end_are_told_thirty_days_before_and_no_more_once_there_are_others(world: World, fr: Node) -> None:
    ends = [min(key.valid_until for key in world[name].card.keys) for name in (FR, DE)]
    world.clock.now = min(ends) - timedelta(days=30)
    look(fr, starting=True)
    assert raised(fr) == []
    world.clock.now = max(ends) - timedelta(days=30) + timedelta(seconds=1)
    look(fr, starting=True)
    look(fr, starting=True)
    of_peer = {("KEY_ENDING", f"{key.role} key of {DE}") for key in fr.card.keys}
    assert set(raised(fr)) == of_peer | {("KEY_ENDING", f"own {key.role} key") for key in fr.card.keys}
    assert {alarm.count for alarm in alarms.all_alarms(fr)} == {1}
    rotation.change(fr, Change(rotate=tuple({key.role for key in fr.card.keys})))
    fr.own.reload()
    look(fr, starting=True)
    assert set(raised(fr)) == of_peer
    assert {a.acked_by for a in alarms.all_alarms(fr, every=True) if a.acked_at is not None} == {OVER}


def test_an_agreement_that_ends_is_told_until_it_is_renewed(world: World, fr: Node) -> None:
    agree(world)
    (held,) = agreements.all_held(fr)
    world.clock.now = held.agreement.sunset_review
    look(fr, starting=True)
    assert raised(fr) == [("AGREEMENT_ENDING", "exchange-2026 version 1 review")]
    world.clock.now = held.agreement.valid_until - timedelta(days=29)
    look(fr, starting=True)
    assert ("AGREEMENT_ENDING", "exchange-2026 version 1") in raised(fr)
    world.clock.now = held.agreement.valid_until + timedelta(days=1)
    look(fr, starting=True)
    assert ("AGREEMENT_ENDING", "exchange-2026 version 1") in raised(fr)  # that it has ended is not that it is over
    agree(world, terms_text(world, version=2, previous=f'"{held.agreement.digest.hex()}"'))
    look(fr, starting=True)
    assert [subject for kind, subject in raised(fr) if kind == "AGREEMENT_ENDING"] == []
    assert {a.acked_by for a in alarms.all_alarms(fr, every=True) if a.kind is Alarm.AGREEMENT_ENDING} == {OVER}


def test_a_proposal_that_nobody_signed_is_no_agreement_that_ends(world: World, fr: Node) -> None:
    soon = instant_text(world.clock() + timedelta(days=9))
    agreements.propose(fr, terms_text(world, valid_until=soon, sunset_review=soon), "a.yaml")
    look(fr)
    assert raised(fr) == []


def test_a_law_pack_is_told_before_the_day_of_its_review(world: World, fr: Node) -> None:
    pack = load_pack(data.pack_text("eu-gdpr"), "eu-gdpr", COUNTRIES)
    assert pack.review_by == date(2027, 11, 21)
    node = replace(fr, book=rule_book((pack,), COUNTRIES))
    assert dict(node.book.reviews) == {"eu-gdpr version 1": pack.review_by}
    world.clock.now = world.clock().replace(year=2027, month=10, day=21, hour=23)
    look(node, starting=True)
    assert ("PACK_ENDING", "eu-gdpr version 1") not in raised(node)
    world.clock.move(hours=2)
    look(node, starting=True)
    assert ("PACK_ENDING", "eu-gdpr version 1") in raised(node)


def test_a_full_disk_and_a_wrong_clock_are_told_until_they_are_mended(world: World, fr: Node) -> None:
    look(fr, watch.DISK_WARN - 1)
    assert raised(fr) == [("DISK", "home")]
    assert only(fr).detail == "1023 MiB are free where the home lies"
    look(fr, watch.DISK_WARN)
    assert raised(fr) == []
    with write(fr.engine) as tx:
        future = world.clock() + watch.CLOCK_TOLERANCE
        record(tx, at=future, by="x", act="x", subject="x")
    look(fr)
    assert raised(fr) == []
    world.clock.move(seconds=-1)
    look(fr)
    assert raised(fr) == [("CLOCK", "records")]
    world.clock.move(seconds=1)
    look(fr)
    assert raised(fr) == []


def test_a_peer_that_is_not_heard_of_for_a_day_is_told(world: World, fr: Node) -> None:
    world.clock.move(days=1)
    look(fr)
    assert raised(fr) == []
    world.clock.move(seconds=1)
    look(fr, starting=True)
    assert raised(fr) == []  # a node that was off has to ask first
    look(fr)
    assert raised(fr) == [("STALE", f"{DE} sync")]
    look(fr, starting=True)
    assert raised(fr) == [("STALE", f"{DE} sync")]
    world.sync(FR, DE)
    look(fr)
    assert raised(fr) == []


def test_a_peer_was_heard_of_in_the_epoch_before(world: World, fr: Node) -> None:
    world.clock.move(days=2)
    world.sync(FR, DE)
    with write(fr.engine) as tx:
        peers.open_in_feed(fr, tx, DE, 2)
    look(fr)
    assert raised(fr) == []
    world.clock.move(days=1, seconds=1)
    look(fr)
    assert raised(fr) == [("STALE", f"{DE} sync")]


def test_an_old_head_is_told_apart_from_silence_and_is_over_with_the_next_good_sync(world: World, fr: Node) -> None:
    agree(world)
    world.sync(FR, DE)
    world.clock.move(seconds=1)
    old = ForgedFeed(world[DE], FR, history(world[DE], FR), latest_age_s=10_000)
    with pytest.raises(StaleError):
        sync.sync(fr, DE, old)
    look(fr)
    assert raised(fr) == [("STALE", DE)]
    world.clock.move(days=2)
    with pytest.raises(StaleError):
        sync.sync(fr, DE, old)
    look(fr)
    assert raised(fr) == [("STALE", DE)]
    world.clock.move(seconds=1)
    world.sync(FR, DE)
    look(fr)
    assert raised(fr) == []


def test_what_a_person_has_seen_is_told_again_while_it_stays_so_but_not_at_once(world: World, fr: Node) -> None:
    look(fr, 0)
    alarms.acknowledge(fr, None)
    world.clock.move(hours=23)
    look(fr, 0)
    assert raised(fr) == []
    world.clock.move(hours=1)
    look(fr, 0, starting=True)
    assert raised(fr) == [("DISK", "home")]
    look(fr, starting=True)
    look(fr, 0, starting=True)
    assert raised(fr) == [("DISK", "home")]  # it was over, so this is a new one


def test_what_others_have_raised_is_left_to_them(world: World, fr: Node) -> None:
    every = [kind for kind in Alarm if kind not in watch._QUIET]
    for kind in every:
        raise_one(fr, kind)
    look(fr)
    assert len(raised(fr)) == len(every)


# Faults of the policy engine (I3)


def book_with(rule: str) -> Any:
    """A rule book with a forbid that no loader would let in."""
    pack = LawPack(
        id="test",
        version=1,
        jurisdiction=None,
        title="test",
        status="example",
        checked_on=date(2026, 11, 21),
        source="test",
        groups=MappingProxyType({}),
        safeguards=MappingProxyType({}),
        rules=parse(rule, "test", "forbid"),
        duties=parse("", "test", "permit"),
    )
    return rule_book((pack,), COUNTRIES)


def failing(action: str) -> str:
    head = '@id("test/rule") @basis("a law") @says("A sentence.")\n'
    return f'{head}forbid (principal, action == Action::"{action}", resource) when {{ {FAILS} }};\n'


FAULT = ("POLICY", "rule test/rule could not be evaluated")


@pytest.mark.invariant("I3")
def test_a_rule_that_fails_at_a_release_is_told_although_nothing_leaves(world: World, fr: Node) -> None:
    agree(world)
    broken = replace(fr, book=book_with(failing("disclose")))
    _, outcomes = releases.release(broken, import_document(fr, document("A")))
    assert {e.form for e in outcomes[0].decision.elements} == {Form.WITHHELD}
    assert raised(fr) == [FAULT]
    releases.release(broken, "A")
    assert only(fr).count == 1  # it is told once, and not at every decision


@pytest.mark.invariant("I3")
@pytest.mark.invariant("I11")
def test_a_rule_that_fails_at_serving_is_told(world: World, fr: Node) -> None:
    agree(world)
    release(world, "A")
    broken = replace(fr, book=book_with(failing("disclose")))
    releases.withdraw_what_may_not_go(broken, world[DE].card, range(99))
    assert raised(fr) == [FAULT]


@pytest.mark.invariant("I3")
def test_a_rule_that_fails_at_receiving_is_told(world: World) -> None:
    agree(world)
    release(world, "A")
    de = world.nodes[DE] = replace(world[DE], book=book_with(failing("store")))
    world.sync(DE, FR)
    assert raised(de) == [("POLICY", FAULT[1]), ("QUARANTINE", FR)]


@pytest.mark.invariant("I3")
def test_a_rule_that_fails_for_control_messages_is_told(world: World, fr: Node) -> None:
    broken = replace(fr, book=book_with(failing("notify")))
    agreements.propose(broken, terms_text(world), "a.yaml")
    assert raised(fr) == [("HELD", f"{DE} agreement"), FAULT]


# Carrying


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
