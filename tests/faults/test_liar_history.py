"""Row 14: a peer that tells its history wrongly. Each lie is refused by its own name, by `apostille sync` in a process
of its own; what two signatures prove goes out by `apostille peer incident export` and is judged offline by
`tests/conformance/verify_incident.py`. In the other direction DE asks a serving FR with numbers of 2^63-1 and 2^64-1.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from federation.entries import AgreementOffer, ErasedItem, Withdrawal
from federation.feed import PageBytes
from node import main
from tests.e2e.net import Net, make_net, release
from tests.faults.liar import Liar, command, difference, everything, lying, prepare, sync
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
    honest.liar.be_honest()
    assert sync(honest.net, DE, FR).code == 0  # honest again, and heard


def told_by(feed: Any, rewrite: Callable[[PageBytes], PageBytes]) -> Any:
    return LyingLink(feed, rewrite)


def note(seq: int, text: bytes = b"x") -> bytes:
    return entry(ORIGIN, seq, AgreementOffer(text))


def _mix(scene: Scene) -> Any:
    """Entries of the feed to another receiver."""
    others = history(scene.net.world[FR], IN)
    return scene.feed(*others[:1])


def _heads(scene: Scene, size: int) -> Any:
    feed = scene.feed()
    return told_by(feed, lambda page: replace(page, latest=feed.latest(size, b"r" * 32)))


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


def _after(scene: Scene, *items: bytes | ErasedItem) -> Any:
    return scene.feed(*items)


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
    print(name, {t: (len(a), len(b)) for t, (a, b) in changed.items()})
    status = json.loads(command(scene.net, DE, "status", "--json").stdout)
    assert code in json.dumps(status)
    incidents = json.loads(command(scene.net, DE, "peer", "incident", "list", "--json").stdout)
    assert [incident["kind"] for incident in incidents] == ([code] if code in FROZEN else [])
