"""Clocks that are wrong by two months, that run backwards, and the hours that local time has twice or not at all.

The story of each: nodes exchange; then the clock of the sender, of the receiver or of both jumps; people release; later
it is put right. What may not go does not go early, what is over is over, and nothing depends on whose clock was ahead:
entries stand in the order of the feed, revisions in the order of their numbers. What a wrong clock costs is told: the
peer sees STALE, the doctor names the clock, and what was refused meanwhile can be released again.

The clocks of in-process nodes are moved by hand; real processes get theirs by libfaketime.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from federation.errors import EpochError, KeyringError, StaleError, UnconfirmedError, UsageError
from federation.feed import Ask, PageBytes
from federation.model import NodeId, instant_text
from node.audit import verify
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange import sync
from node.operation import watch
from node.records import alarms, ledger
from node.sharing import passing, releases, retention, revisions
from tests import commands
from tests.copies import accept_epoch, open_epoch, put_back, save
from tests.e2e.net import make_net
from tests.e2e.processes import ready, settle
from tests.faults.campaign import needs
from tests.nodes import (
    DE,
    FR,
    IN,
    World,
    agree,
    arrived,
    document,
    files_hold,
    held_by_sender,
    history,
    import_document,
    make_world,
    release,
    reopen,
    rows,
    terms_text,
)

TWO_MONTHS = timedelta(days=60)
BEFORE = timedelta(days=70)  # how long the keys and the agreement have been valid by then
PATIENCE_S = 120
USAGE, BAD_PEER = 2, 8  # exit codes
MONOTONIC = {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # timeouts go by the true clock


class Clocks:
    """A world in which each node has its own clock: the true one, and how far it is wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wrong = dict.fromkeys(world.nodes, timedelta())
        world.clock.now += BEFORE
        for name, node in world.nodes.items():
            world.nodes[name] = replace(node, clock=self.of(name))
        world.sync_all()

    def of(self, name: NodeId) -> Callable[[], datetime]:
        return lambda: self.world.clock() + self.wrong[name]

    def jump(self, span: timedelta, *names: NodeId) -> None:
        for name in names:
            self.wrong[name] = span

    def right(self) -> None:
        self.wrong = dict.fromkeys(self.wrong, timedelta())

    def pull(self) -> str:
        """DE pulls from FR; returns what it says of the time, in a word."""
        try:
            self.world.sync(DE, FR)
        except StaleError as e:
            return "future" if "future" in str(e) else "past"
        return "fresh"


@pytest.fixture
def clocks(tmp_path: Path) -> Iterator[Clocks]:
    world = make_world(tmp_path)
    agree(world)
    made = Clocks(world)
    release(world, "A")
    world.sync(DE, FR)
    assert arrived(world) == ["A"]
    yield made
    world.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Clocks]:
    """FR, DE and IN, under an agreement that lets DE pass on to IN."""
    world = make_world(tmp_path, FR, DE, IN)
    agree(world, onward="peers")
    yield Clocks(world)
    world.close()


WRONG: dict[str, tuple[timedelta, tuple[NodeId, ...], str, bool]] = {
    "the sender's is behind": (-TWO_MONTHS, (FR,), "past", True),
    "the sender's is ahead": (TWO_MONTHS, (FR,), "future", False),
    "the receiver's is behind": (-TWO_MONTHS, (DE,), "future", False),
    "the receiver's is ahead": (TWO_MONTHS, (DE,), "past", True),
    "both are behind": (-TWO_MONTHS, (FR, DE), "fresh", True),
    "both are ahead": (TWO_MONTHS, (FR, DE), "fresh", True),
}


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("which", WRONG)
def test_a_clock_that_is_two_months_wrong_is_told_and_changes_no_order(clocks: Clocks, which: str) -> None:
    world, (span, who, told, taken) = clocks.world, WRONG[which]
    clocks.jump(span, *who)
    release(world, "B")
    assert clocks.pull() == told
    assert arrived(world) == (["A", "B"] if taken else ["A"])  # what is dated in our future is set aside
    assert held_by_sender(world) == len(history(world[FR], DE))  # and the feed has gone on
    open_ = [alarm.kind for alarm in alarms.all_alarms(world[DE])]
    assert (alarms.Alarm.STALE in open_) is (told != "fresh")
    clocks.right()
    assert clocks.pull() == "fresh"
    release(world, "C")
    assert clocks.pull() == "fresh"
    assert arrived(world) == (["A", "B", "C"] if taken else ["A", "C"])
    for node in world.nodes.values():
        assert verify.verify(node).findings == ()


def test_a_revision_is_newer_by_its_number_whatever_its_date(clocks: Clocks) -> None:
    world = clocks.world
    clocks.jump(-TWO_MONTHS, FR)
    revisions.revise_from_issued(world[FR], "A")
    releases.release(world[FR], "A")
    assert clocks.pull() == "past"
    (newest, first) = sorted(inbox.items(world[DE], every_state=True), key=lambda item: -item.revision)
    assert newest.issued_at < first.issued_at
    assert (newest.revision, newest.state) == (2, InboxState.CURRENT)
    assert (first.revision, first.state) == (1, InboxState.SUPERSEDED)


def test_what_a_receiver_with_a_wrong_clock_refused_is_released_again(clocks: Clocks) -> None:
    world = clocks.world
    clocks.jump(-TWO_MONTHS, DE)
    release(world, "B")
    assert clocks.pull() == "future"
    assert rows(world)[-1][1:] == ("quarantined", "MALFORMED")
    clocks.right()
    clocks.pull()
    world.sync(FR, DE)
    (outcome,) = releases.release(world[FR], "B")[1]
    assert not outcome.already
    assert clocks.pull() == "fresh"
    assert arrived(world) == ["A", "B"]


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("days", [-100, 400])
def test_by_a_clock_at_which_no_key_is_valid_nothing_is_signed(clocks: Clocks, days: int) -> None:
    """Before the keys began, and after they ended: the sentence asks whether the clock is right."""
    world = clocks.world
    import_document(world[FR], document("B"))
    before = history(world[FR], DE)
    clocks.jump(timedelta(days=days), FR)
    for act in (lambda: releases.release(world[FR], "B"), lambda: world.sync(DE, FR)):
        with pytest.raises(UsageError, match="is the clock right"):
            act()
    clocks.right()
    assert history(world[FR], DE) == before
    assert arrived(world) == ["A"]


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("days", [-100, 400])
def test_by_a_clock_at_which_no_key_of_its_peer_is_valid_a_receiver_takes_nothing(clocks: Clocks, days: int) -> None:
    world = clocks.world
    release(world, "B")
    clocks.jump(timedelta(days=days), DE)
    with pytest.raises(KeyringError):
        world.sync(DE, FR)
    assert arrived(world) == ["A"]
    clocks.right()
    assert clocks.pull() == "fresh"
    assert arrived(world) == ["A", "B"]


@pytest.mark.invariant("I11")
def test_by_the_clock_of_a_sender_the_agreement_is_over_and_nothing_goes(clocks: Clocks) -> None:
    world = clocks.world
    release(world, "B")
    clocks.jump(timedelta(days=140), FR)
    import_document(world[FR], document("C"))
    (outcome,) = releases.release(world[FR], "C")[1]
    assert outcome.presented is None
    assert clocks.pull() == "future"
    assert [row[1] for row in rows(world)[-2:]] == ["withdrawn", "control"]
    clocks.right()
    assert clocks.pull() == "fresh"
    assert arrived(world) == ["A"]
    assert not files_hold(world[DE], b"Title of B")


@pytest.mark.invariant("I11")
def test_by_the_clock_of_a_receiver_the_agreement_is_over_and_nothing_is_kept(clocks: Clocks) -> None:
    world = clocks.world
    release(world, "B")
    clocks.jump(timedelta(days=140), DE)
    assert clocks.pull() == "past"
    assert rows(world)[-1][1:] == ("refused", "NOT_ADMITTED")
    assert not files_hold(world[DE], b"Title of B")


EMBARGOED = {  # how far the clocks of relay and last receiver are wrong
    "both are right": (timedelta(), timedelta()),
    "the relay's is ahead": (TWO_MONTHS, timedelta()),
    "the receiver's is ahead": (timedelta(), TWO_MONTHS),
    "the relay's is ahead and the receiver's behind": (TWO_MONTHS, -TWO_MONTHS),
    "the relay's is behind and the receiver's ahead": (-TWO_MONTHS, TWO_MONTHS),
}


@pytest.mark.invariant("I11")
def test_an_embargo_never_ends_early_by_the_clock_of_one_node(three: Clocks) -> None:
    """A relay whose clock is ahead passes on; whoever receives it by a right clock refuses it and keeps nothing."""
    world = three.world
    for number, (which, (relay, last)) in enumerate(EMBARGOED.items()):
        name = f"E-{number}"
        embargo(world, name)
        three.jump(relay, DE)
        three.jump(last, IN)
        (outcome,) = passing.pass_on(world[DE], name, (IN,))[1]
        assert (outcome.seq is not None) is (relay > timedelta()), which
        pull_anyhow(world, IN, DE)
        three.right()
        pull_anyhow(world, IN, DE)
        assert name not in {item.name for item in inbox.items(world[IN], every_state=True)}, which
        assert not files_hold(world[IN], word_of(name).encode()), which
    world.clock.move(days=31)
    passing.pass_on(world[DE], "E-0", (IN,))
    pull_anyhow(world, IN, DE)
    assert {item.name for item in inbox.items(world[IN])} == {"E-0"}  # when it has ended it is passed on


@pytest.mark.invariant("I11")
def test_what_two_wrong_clocks_agree_on_is_believed(three: Clocks) -> None:
    """Nobody else has a clock: where relay and receiver are both ahead, the embargo is over for both."""
    world = three.world
    embargo(world, "E")
    three.jump(TWO_MONTHS, DE, IN)
    passing.pass_on(world[DE], "E", (IN,))
    pull_anyhow(world, IN, DE)
    assert {item.name for item in inbox.items(world[IN])} == {"E"}


def embargo(world: World, name: str) -> None:
    """FR releases an advisory to DE that may be passed on in a month."""
    until = instant_text(world.clock() + timedelta(days=30))
    embargoed = {"tlp": "GREEN", "onward": "peers", "embargo_until": until}
    import_document(world[FR], document(name, notes=(word_of(name),)), handling=embargoed)
    releases.release(world[FR], name, (DE,))
    world.sync(DE, FR)


def word_of(name: str) -> str:
    return f"Under embargo, {name}."


def pull_anyhow(world: World, receiver: NodeId, sender: NodeId) -> None:
    """A sync whose end may be STALE; what came is kept."""
    with suppress(StaleError):
        world.sync(receiver, sender)


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("who", [(FR,), (DE,), (FR, DE)], ids=["sender", "receiver", "both"])
def test_what_has_ended_is_not_taken_because_a_clock_is_behind(clocks: Clocks, who: tuple[NodeId, ...]) -> None:
    """The end came while it waited in the feed. Where both clocks are behind it is taken, until they are right."""
    world = clocks.world
    until = instant_text(world.clock() + timedelta(days=10))
    import_document(world[FR], document("R", notes=("Ends soon.",)), handling={"tlp": "GREEN", "retain_until": until})
    clocks.jump(timedelta(days=-15), *who)
    releases.release(world[FR], "R") if FR not in who else None
    clocks.right()
    if FR in who:
        releases.release(world[FR], "R")
    world.clock.move(days=20)
    clocks.jump(timedelta(days=-15), *who)
    pull_anyhow(world, DE, FR)
    if len(who) == 2:
        assert arrived(world) == ["A", "R"]
        clocks.right()
        assert [i.name for i in inbox.items(world[DE])] == ["A"]  # no longer used, before anybody has erased it
        retention.expire(world[DE])
    else:
        assert arrived(world) == ["A"]
    assert not files_hold(world[DE], b"Ends soon.")


@pytest.mark.invariant("I9")
def test_a_clock_that_runs_backwards_in_the_middle_of_a_sync_loses_and_repeats_nothing(clocks: Clocks) -> None:
    world = clocks.world
    release(world, *(f"N-{number}" for number in range(6)))

    class Backwards:
        """After each page the sender's clock runs back by a day."""

        def __init__(self) -> None:
            self.honest = world.link(DE, FR)
            self.honest.page = 2

        def pull(self, ask: Ask) -> PageBytes:
            page = self.honest.pull(ask)
            clocks.wrong[FR] -= timedelta(days=1)
            return page

        def checkpoint(self, origin: str, size: int) -> bytes:
            return self.honest.checkpoint(origin, size)

    with pytest.raises(StaleError):
        sync.sync(world[DE], FR, Backwards())
    clocks.right()
    assert clocks.pull() == "fresh"
    assert arrived(world) == ["A", *(f"N-{number}" for number in range(6))]
    assert held_by_sender(world) == len(history(world[FR], DE))
    for node in world.nodes.values():
        assert verify.verify(node).findings == ()


def test_a_clock_that_was_put_back_is_named_by_an_alarm(clocks: Clocks) -> None:
    world = clocks.world
    clocks.jump(TWO_MONTHS, FR)
    release(world, "B")
    clocks.right()
    watch.check(world[FR], starting=True)
    (found,) = [alarm for alarm in alarms.all_alarms(world[FR]) if alarm.kind is alarms.Alarm.CLOCK]
    assert "in our future" in found.detail


@pytest.mark.invariant("I16")
def test_epochs_are_numbered_upwards_though_the_clock_runs_backwards(clocks: Clocks, tmp_path: Path) -> None:
    world = clocks.world
    numbers: list[int] = []
    for span in (TWO_MONTHS, timedelta(), -TWO_MONTHS):
        saved = save(world[FR], tmp_path / f"backup-{len(numbers)}.tar")
        release(world, f"LOST-{len(numbers)}")
        clocks.right()
        pull_anyhow(world, DE, FR)
        put_back(world, FR, saved, lost=True)
        world.nodes[FR] = replace(world[FR], clock=clocks.of(FR))
        clocks.jump(span, FR, DE)
        world.sync(FR, DE)
        numbers.append(go_on(world))
    assert numbers == sorted(set(numbers))


def go_on(world: World) -> int:
    """What four people do once DE was refused; returns the new epoch."""
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError) as told:
        world.sync(DE, FR)
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    return told.value.epoch


# Real processes


def faked(when: str, home: Path, *words: str, zone: str = "UTC") -> subprocess.CompletedProcess[str]:
    """A command at a time of libfaketime's, in a time zone; started the slow way, since it sets LD_PRELOAD."""
    return subprocess.run(
        ["faketime", when, sys.executable, "-c", commands.APOSTILLE, "--home", str(home), *words],
        env={**commands.outside(), "TZ": zone, "PYTHONPATH": str(commands.ROOT), **MONOTONIC},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def change_of(zone: str, after: datetime) -> datetime:
    """When local time is next put back by an hour."""
    place, moment = ZoneInfo(zone), after.replace(minute=0, second=0, microsecond=0)
    for _ in range(400 * 24):
        later = moment + timedelta(hours=1)
        before_, after_ = moment.astimezone(place).utcoffset(), later.astimezone(place).utcoffset()
        assert before_ is not None
        assert after_ is not None
        if after_ < before_:
            return later
        moment = later
    raise AssertionError("local time is never put back there")


@needs("faketime")
@pytest.mark.invariant("I11")
@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York"])
def test_an_agreement_ends_once_though_local_time_has_that_hour_twice(tmp_path: Path, zone: str) -> None:
    """It ends in the middle of the first of the two; twenty minutes into the second, local time is before its end."""
    world = make_world(tmp_path)
    change = change_of(zone, world.clock())
    ends = change - timedelta(minutes=30)
    if ends - world.clock() > timedelta(days=390):
        pytest.skip("the keys that were made today are not valid any more at the change of local time")
    agree(
        world, terms_text(world, valid_until=instant_text(ends), sunset_review=instant_text(ends - timedelta(days=1)))
    )
    for name in ("A", "B"):
        import_document(world[FR], document(name))
    world.close()
    for name, moment, leaves in (
        ("A", ends - timedelta(minutes=10), True),
        ("B", change + timedelta(minutes=20), False),
    ):
        place = ZoneInfo(zone)
        assert moment.astimezone(place).replace(tzinfo=None) < ends.astimezone(place).replace(tzinfo=None)
        done = faked(f"{moment:%Y-%m-%d %H:%M:%S} UTC", world[FR].home, "advisory", "release", name, zone=zone)
        assert (done.returncode == 0) is leaves, done.stdout + done.stderr
    assert [row.name for row in ledger.rows(reopen(world, FR), DE)] == ["A"]
    world.close()


@needs("faketime")
@pytest.mark.parametrize("when", ["+60 days", "-60 days"])
def test_a_node_whose_machine_has_a_clock_that_is_two_months_wrong_says_so(tmp_path: Path, when: str) -> None:
    """Black box. DE syncs; then its clock jumps. Ahead it takes what comes and says STALE; behind, its keys are not
    valid yet and it takes nothing. Nothing leaves that should not, and it goes on once the clock is right."""
    ahead = when.startswith("+")
    with make_net(tmp_path, FR, DE) as net:
        settle(net, FR, DE)
        world = net.world
        agree(world)
        release(world, "A")
        fr, de = (world[name].home for name in (FR, DE))
        import_document(world[DE], document("D"))
        with ready(fr):
            assert commands.run("--home", str(de), "sync").returncode == 0
            release(world, "B")
            done = faked(when, de, "sync")
            assert done.returncode == (BAD_PEER if ahead else USAGE), done.stdout + done.stderr
            assert ("[STALE]" if ahead else "right") in done.stdout + done.stderr
            assert arrived(world) == (["A", "B"] if ahead else ["A"])
            doctor = faked(when, de, "doctor")
            assert ("set the clock" in doctor.stdout) is not ahead  # what is ahead shows once it is put right
            done = faked(when, de, "advisory", "release", "D")
            assert (done.returncode == 0) is ahead, done.stdout + done.stderr
            assert len(ledger.rows(world[DE], FR)) == int(ahead)
            assert commands.run("--home", str(de), "sync").returncode == 0
        assert arrived(world) == ["A", "B"]
        doctor_ = commands.run("--home", str(de), "doctor").stdout
        assert ("set the clock" in doctor_) is ahead
