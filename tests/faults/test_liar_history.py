"""Row 14: a peer that tells its history wrongly. Each lie is refused by its own name, by `apostille sync` in a process
of its own; what two signatures prove goes out by `apostille peer incident export` and is judged offline by
`tests/conformance/verify_incident.py`. In the other direction DE asks a serving FR with numbers of 2^63-1 and 2^64-1.
"""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from federation.checkpoint import Checkpoint
from federation.entries import AgreementOffer, ErasedItem, Withdrawal, read
from federation.errors import MalformedError
from federation.feed import PageBytes
from node import main
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import Net, make_net, release, status_of, until
from tests.e2e.processes import ready
from tests.faults.liar import Liar, calling, command, difference, everything, lying, prepare, sync
from tests.nodes import DE, FR, IN, ForgedFeed, LyingLink, agree, entry, history

ORIGIN = f"{FR}/feeds/{DE}/1"
LARGEST = (1 << 63) - 1
VERIFY = Path(__file__).parents[1] / "conformance" / "verify_incident.py"


@dataclass(slots=True)
class Scene:
    """FR, who lies, and DE, whose database is put back after each lie."""

    net: Net
    liar: Liar
    items: list[bytes | ErasedItem]

    @property
    def home(self) -> Path:
        return self.net.world[DE].home

    def feed(self, *more: bytes | ErasedItem, items: Any = None, **how: Any) -> ForgedFeed:
        """A history of FR's choice: what DE holds, and `more`."""
        return ForgedFeed(self.net.world[FR], DE, [*(self.items if items is None else items), *more], **how)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with make_net(tmp_path_factory.mktemp("history"), FR, DE, IN) as net, ExitStack() as ends:
        agree(net.world)
        prepare(net, FR, DE)
        for name in "ABC":
            release(net.world, name)
        liar = ends.enter_context(lying(net, FR, DE))
        assert sync(net, DE, FR).code == 0
        net.world[DE].engine.dispose()
        yield Scene(net, liar, history(net.world[FR], DE))


@pytest.fixture
def scene(honest: Scene, tmp_path: Path) -> Iterator[Scene]:
    honest.liar.be_honest()
    with (
        closing(sqlite3.connect(honest.home / main.DATABASE_FILE)) as file,
        closing(sqlite3.connect(tmp_path / "before")) as copy,
    ):
        file.backup(copy)
        yield honest
        copy.backup(file)


def told_by(feed: ForgedFeed, rewrite: Callable[[PageBytes], PageBytes]) -> Any:
    return LyingLink(feed, rewrite)


def note(seq: int, text: bytes = b"x") -> bytes:
    return entry(ORIGIN, seq, AgreementOffer(text))


def _mix(scene: Scene) -> Any:
    """Entries of the feed to another receiver."""
    others = history(scene.net.world[FR], IN)
    return scene.feed(*others[:1])


def _beyond(scene: Scene) -> Any:
    feed = scene.feed()
    far = feed.latest(LARGEST, b"r" * 32).replace(str(LARGEST).encode(), str(LARGEST + 1).encode())
    return told_by(feed, lambda page: replace(page, latest=far))


def _page_at(scene: Scene, size: int) -> Any:
    feed = scene.feed()
    return told_by(
        feed, lambda page: replace(page, checkpoint=feed.head(size, b"r" * 32), latest=feed.latest(size, b"r" * 32))
    )


def _epoch(scene: Scene, epoch: int) -> Any:
    """Says that another epoch has begun."""
    return told_by(scene.feed(), lambda _: PageBytes((), b"", b"", b"", epoch))


def _no_items(scene: Scene) -> Any:
    """Says that there is one more, and hands out nothing that leads there."""
    feed = scene.feed(note(len(scene.items)))
    return told_by(feed, lambda page: replace(page, items=(), checkpoint=page.latest, latest=page.latest))


LIES: dict[str, tuple[str, Callable[[Scene], Any]]] = {
    "replay": ("REPEATED", lambda s: s.feed(note(0))),
    "an entry out of order": ("REORDERED", lambda s: s.feed(note(len(s.items) + 1), note(len(s.items)))),
    "a gap": ("GAP", lambda s: s.feed(note(len(s.items) + 7))),
    "fast-forward of an entry, 2^63-1": ("GAP", lambda s: s.feed(note(LARGEST))),
    "fast-forward of an entry, 2^64-1": ("GAP", lambda s: s.feed(note(2 * LARGEST + 1))),
    "fast-forward of an erased one, 2^64-2": (
        "GAP",
        lambda s: s.feed(ErasedItem(2 * LARGEST, bytes(32), 2 * LARGEST + 1)),
    ),
    "fast-forward of a page, 2^63-1": ("SUSPECTED_FORK", lambda s: _page_at(s, LARGEST)),
    "a head of 2^63": ("MALFORMED", _beyond),
    "a new epoch of 2^31": ("MALFORMED", lambda s: _epoch(s, 1 << 31)),
    "a new epoch of 2^32-1": (
        "MALFORMED",
        lambda s: told_by(s.feed(), lambda _: PageBytes((), b"", b"", b"", (1 << 32) - 1)),
    ),
    "a mix of two feeds": ("WRONG_FEED", _mix),
    "a stale head": ("STALE", lambda s: s.feed(latest_age_s=7_200)),
    "a rollback": ("ROLLBACK", lambda s: s.feed(items=s.items[:-1])),
    "a fork": ("FORK", lambda s: s.feed(items=[note(0, b"rewritten"), *s.items[1:]])),
    "no item to the head": ("SUSPECTED_FORK", _no_items),
    "an eraser that does not name it": (
        "BAD_ERASURE",
        lambda s: s.feed(
            ErasedItem(len(s.items), bytes(32), len(s.items) + 1),
            entry(ORIGIN, len(s.items) + 1, Withdrawal((0,), "test/reason")),
        ),
    ),
}
FROZEN = ("FORK", "ROLLBACK", "SUSPECTED_FORK")
BESIDES = {"STALE": {"alarms"}, **{code: {"alarms", "incidents"} for code in FROZEN}}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_history_is_refused_by_its_own_name(scene: Scene, name: str) -> None:
    code, lie = LIES[name]
    before = everything(scene.home)
    scene.liar.tell(lie(scene))
    told = sync(scene.net, DE, FR)
    assert (told.code, told.report["error"], told.report["entries"]) == (8, code, 0), told
    assert f"[{code}]" in told.said
    changed = difference(before, everything(scene.home))
    _, new = changed.pop("audit")
    assert [row[2:5] for row in new] == [(FR, "feed.frozen" if code in FROZEN else "feed.refuse", FR)]
    assert changed.keys() == {"in_feeds"} | (BESIDES.get(code, set()))
    status = json.loads(command(scene.net, DE, "status", "--json").stdout)
    assert code in json.dumps(status)
    if code in FROZEN:
        (incident,) = json.loads(command(scene.net, DE, "peer", "incident", "list", "--json").stdout)
        assert incident["kind"] == code


@pytest.mark.invariant("I8")
def test_the_evidence_of_a_fork_convinces_whoever_has_the_card_and_nothing_else(scene: Scene, tmp_path: Path) -> None:
    _, lie = LIES["a fork"]
    scene.liar.tell(lie(scene))
    assert sync(scene.net, DE, FR).code == 8
    scene.liar.be_honest()
    assert sync(scene.net, DE, FR).code == 6  # frozen, whatever it says now
    (incident,) = json.loads(command(scene.net, DE, "peer", "incident", "list", "--json").stdout)
    file, card, other = (tmp_path / name for name in ("incident.json", "card.json", "other.json"))
    number = str(incident["incident"])
    assert command(scene.net, DE, "peer", "incident", "export", number, "--out", str(file)).returncode == 0
    card.write_bytes(scene.net.world[FR].card_bytes)
    other.write_bytes(scene.net.world[IN].card_bytes)
    assert judged(file, card) == (0, "proved")
    assert judged(file, other)[0] == 1
    file.write_bytes(file.read_bytes().replace(b"FORK", b"FROK"))
    assert judged(file, card)[0] == 1


def judged(file: Path, card: Path) -> tuple[int, str]:
    """What a third party finds, with public keys and standards alone."""
    words = [sys.executable, "-E", "-s", str(VERIFY), str(file), "--card", str(card)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    return done.returncode, done.stdout.partition(":")[0]


@pytest.mark.invariant("I9")
def test_items_whose_eraser_never_comes_get_no_receipt(scene: Scene) -> None:
    size = len(scene.items)
    feed = scene.feed(ErasedItem(size, bytes(32), LARGEST + 5))
    scene.liar.tell(feed)
    told = sync(scene.net, DE, FR)
    assert (told.code, told.report["counts"]) == (0, {"erased": 1})
    assert {Checkpoint.of(note).size for note in feed.receipts if note} <= {size}


OURS = f"{DE}/feeds/{FR}/1"
ASKED: dict[str, Callable[[int], Message]] = {
    "cursor": lambda number: wire.PullRequest(feed=OURS, protocol=2, cursor=number),
    "cursor of protocol 1": lambda number: wire.PullRequest(feed=OURS, protocol=1, cursor=number),
    "epoch": lambda number: wire.PullRequest(feed=f"{DE}/feeds/{FR}/{number}", protocol=2),
    "epoch and cursor": lambda number: wire.PullRequest(feed=f"{DE}/feeds/{FR}/2", protocol=2, cursor=number),
    "size": lambda number: wire.GetCheckpointRequest(feed=OURS, size=number, protocol=2),
    "leaf": lambda number: wire.GetProofRequest(feed=OURS, leaf=number, size=number, protocol=2),
    "first size": lambda number: wire.GetProofRequest(feed=OURS, from_size=number, size=1, protocol=2),
}
NEUTRAL = {"MALFORMED", "not found", "VERSION", "UNCONFIRMED", "OVER_QUOTA", "BAD_SIGNATURE"}


def test_numbers_beyond_all_measure_are_refused_in_one_word(scene: Scene) -> None:
    with ready(scene.home), calling(scene.net, FR, DE) as call:
        until(lambda: everything(scene.home)["card_deliveries"].total() == len(scene.net.world.nodes) - 1)
        before = everything(scene.home)
        for what, make in ASKED.items():
            for number in (LARGEST, 2 * LARGEST + 1):
                asked = make(number)
                method = asked.DESCRIPTOR.name.removesuffix("Request")
                status, word = status_of(lambda: call(method, asked.SerializeToString()))  # noqa: B023 - called at once
                assert word in NEUTRAL, (what, number, status, word)
        changed = difference(before, everything(scene.home))
    rows = changed.pop("audit")[1]
    assert {row[3] for row in rows} == {"rpc.refuse"}
    assert len(rows) <= 2 * len(ASKED)
    changed.pop("in_feeds", None)  # DE polls FR meanwhile
    assert changed == {}


@pytest.mark.invariant("I10")
def test_a_withdrawal_of_an_ended_epoch_names_no_number_that_a_database_does_not_hold() -> None:
    later = f"{FR}/feeds/{DE}/2"
    assert read(entry(later, 3, Withdrawal((LARGEST - 1,), "test/reason", ORIGIN))).seq == 3  # sanity
    with pytest.raises(MalformedError):
        read(entry(later, 3, Withdrawal((2 * LARGEST + 1,), "test/reason", ORIGIN)))
