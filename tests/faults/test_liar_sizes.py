"""Row 10: a peer that sends too much. One `apostille serve` lives through all of it: oversize entries, pages and
messages, pages of millions of tiny things, compression bombs in both directions. Each is refused by name and changes
nothing but one audit row, and after all of them the memory of the process has grown by less than 32 MiB.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import grpc
import pytest

from federation.base64url import b64url
from federation.entries import Delivery
from federation.limits import MAX_ENTRY_BYTES, MAX_MESSAGE_BYTES
from federation.model import Presentation
from node import main
from node.peering import agreements
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import Net, acknowledged, make_net, release, status_of, until
from tests.e2e.processes import PATIENCE_S, Serving, ready
from tests.faults.liar import (
    Call,
    Liar,
    Script,
    append_raw,
    calling,
    difference,
    everything,
    lying,
    peak_kib,
    prepare,
    reset_peak,
)
from tests.nodes import AGREEMENT, DE, FR, ForgedFeed, agree, entry, history, issued, terms_for

MOST_KIB = 32 << 10
BOMB_BYTES = 64 << 20
HONEST = 20
NOTE_WITHOUT_END = wire.PullRequest(feed=f"{DE}/feeds/{FR}/1", newest=bytes(250_000), protocol=2).SerializeToString()
NOTICE = wire.NotifyRequest(protocol=2).SerializeToString()
ORIGIN = f"{FR}/feeds/{DE}/1"


@dataclass(slots=True)
class Prey:
    """DE, which serves and polls, and FR, which lies to it. `began_kib` is what DE needed for honest work."""

    net: Net
    liar: Liar
    serving: Serving
    call: Callable[..., bytes]
    began_kib: int = 0

    def feed(self) -> tuple[int, str | None, str]:
        """Of DE's side of the feed: how many entries it holds, the problem that is noted, when a page came last."""
        with closing(sqlite3.connect(self.net.world[DE].home / main.DATABASE_FILE)) as file:
            row: tuple[int, str | None, str] = file.execute("SELECT size, problem, contact_at FROM in_feeds").fetchone()
        return row

    def sync(self) -> str | None:
        """Has DE sync, and returns how that ended: the problem that is noted, None after a good one."""
        before, size = self.feed(), len(history(self.net.world[FR], DE))
        self.call("Notify", NOTICE)
        until(lambda: self.feed() != before and (self.feed()[1] is not None or self._rests(size)), PATIENCE_S)
        return self.feed()[1]

    def _rests(self, size: int) -> bool:
        """Whether DE holds everything, FR knows so, and the last answer has been taken in."""
        if self.feed()[0] > size:  # it has taken in what nobody has honestly sent
            return True
        if acknowledged(self.net.world[FR], DE) != size or self.liar.open:
            return False
        held, _, contact = self.feed()
        return held == size and datetime.fromisoformat(f"{contact}+00:00") >= self.liar.answered_at

    def honest(self) -> None:
        """FR is honest, DE syncs, and what it needs from now on is measured."""
        self.liar.be_honest()
        assert self.sync() is None

        self.began_kib = reset_peak(self.serving.process.pid)

    def check_memory(self, what: str) -> None:
        """What the attack has cost."""
        grown = peak_kib(self.serving.process.pid) - self.began_kib
        print(f"{what}: {grown} KiB")
        assert grown <= MOST_KIB, what


@pytest.fixture(scope="module")
def prey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prey]:
    with make_net(tmp_path_factory.mktemp("sizes"), FR, DE) as net, ExitStack() as ends:
        agree(net.world)
        prepare(net, FR, DE)
        for number in range(HONEST):
            release(net.world, f"HONEST-{number}")
        liar = ends.enter_context(lying(net, FR, DE))
        serving = ends.enter_context(ready(net.world[DE].home))
        made = Prey(net, liar, serving, ends.enter_context(calling(net, FR, DE)))
        until(lambda: made.feed()[0] == len(history(net.world[FR], DE)), PATIENCE_S)
        made.honest()
        first_kib = made.began_kib
        yield made
        made.honest()
        print(f"all of them together: {made.began_kib - first_kib} KiB")


def full_of(field: bytes) -> Script:
    """A message of the largest size, of nothing but this field."""
    return lambda _: field * ((MAX_MESSAGE_BYTES - 100) // len(field))


def bomb(call: Call) -> bytes:
    call.context.set_compression(grpc.Compression.Gzip)
    return b"\x12" + b"\x80\x80\x80\x20" + bytes(BOMB_BYTES)


def with_metadata(call: Call) -> bytes:
    call.context.send_initial_metadata((("x-bin", bytes(4 << 20)),))
    return call.honest()


def with_trailers(call: Call) -> bytes:
    call.context.set_trailing_metadata(tuple((f"x-{number}", "x" * 8_000) for number in range(500)))
    return call.honest()


ANSWERS: dict[str, tuple[Script, str]] = {
    "millions of empty items": (full_of(b"\x0a\x00"), "TOO_LARGE"),
    "a million empty entries": (full_of(b"\x0a\x02\x0a\x00"), "TOO_LARGE"),
    "millions of unknown fields": (full_of(b"\x78\x01"), "TOO_LARGE"),
    "millions of groups": (full_of(b"\x7b\x7c"), "TOO_LARGE"),
    "one item of the largest size": (full_of(b"x" * MAX_MESSAGE_BYTES), "MALFORMED"),
    "over the largest size": (lambda _: bytes(2 * MAX_MESSAGE_BYTES), "DENIED"),
    "a compression bomb": (bomb, "DENIED"),
    "megabytes of metadata": (with_metadata, "DENIED"),
    "megabytes of trailers": (with_trailers, "DENIED"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_too_much_is_refused_and_changes_one_audit_row(prey: Prey, name: str) -> None:
    answer, code = ANSWERS[name]
    home = prey.net.world[DE].home
    prey.honest()
    before = everything(home)
    prey.liar.answers["Pull"] = answer
    assert prey.sync() == code
    check_refused(prey, before, code)
    prey.check_memory(name)


def check_refused(prey: Prey, before: dict[str, Any], code: str) -> None:
    """Nothing has changed but the note at the feed and one audit row, none where that minute has it."""
    home = prey.net.world[DE].home
    changed = difference(before, everything(home))
    assert changed.keys() <= {"in_feeds", "audit"}
    gone, new = changed["in_feeds"]
    assert [a for a, b in zip(gone[0], new[0], strict=True) if a != b] == [None]  # the problem
    gone, new = changed.get("audit", ([], []))
    assert (gone, len(new)) in (([], 0), ([], 1))
    assert any(row[2:5] == (FR, "feed.refuse", FR) and row[5].split()[0] == code for row in everything(home)["audit"])


def presented(*fields: bytes) -> bytes:
    """An entry that holds a presentation of these fields."""
    body = b"".join(fields)
    return wire.Entry(feed=ORIGIN, seq=9, nonce=b"n" * 16).SerializeToString() + b"\x22" + _length(body) + body


def _length(data: bytes) -> bytes:
    """The length of `data` as protobuf writes it."""
    size, written = len(data), b""
    while size > 0x7F:
        written, size = written + bytes([size & 0x7F | 0x80]), size >> 7
    return written + bytes([size])


def _delivery(prey: Prey, core: bytes, disclosures: tuple[bytes, ...] = ()) -> bytes:
    fr = prey.net.world[FR]
    issued(fr, "HONEST-0")
    terms = terms_for(fr, DE, "HONEST-0", agreements.find(fr, AGREEMENT))
    made = replace(terms, core_digest=hashlib.sha256(core).digest())
    return entry(ORIGIN, len(history(fr, DE)), Delivery(Presentation(core, disclosures), made))


def _core(payload: bytes) -> bytes:
    return (
        b64url(b'{"alg":"Ed25519","typ":"advisory+sd-jwt","kid":"x"}').encode()
        + b"."
        + b64url(payload).encode()
        + b"."
        + b"A" * 86
    )


def _control(field: bytes, inner: bytes) -> bytes:
    return wire.Entry(nonce=b"n" * 16).SerializeToString() + field + _length(inner) + inner


ROOM = MAX_ENTRY_BYTES - 1000
TINY = 15_000  # in an entry of 60 KB
PLAIN = b'{"iss":"cert.fr.example","a":['
ENTRIES: dict[str, tuple[Callable[[Prey], bytes], str]] = {
    "over the largest size": (lambda _: bytes(MAX_ENTRY_BYTES + 1), "TOO_LARGE"),
    "millions of disclosures": (lambda _: presented(b"\x12\x00" * (ROOM // 2)), "TOO_LARGE"),
    "millions of unknown fields": (lambda _: presented(b"\x78\x01" * (ROOM // 2)), "TOO_LARGE"),
    "millions of purposes": (
        lambda _: presented(b"\x1a" + _length(bytes(ROOM)) + b"\x22\x00" * (ROOM // 2)),
        "TOO_LARGE",
    ),
    "millions of numbers": (lambda _: _control(b"\x32", b"\x0a" + _length(bytes(ROOM)) + b"\x01" * ROOM), "TOO_LARGE"),
    "millions of lists in a core": (
        lambda prey: _delivery(prey, _core(PLAIN + b"[]," * (ROOM // 5) + b"[]]}")),
        "TOO_LARGE",
    ),
    "millions of texts in a core": (
        lambda prey: _delivery(prey, _core(PLAIN + b'"ab",' * (ROOM // 8) + b"[]]}")),
        "TOO_LARGE",
    ),
    "deep": (lambda prey: _delivery(prey, _core(b"[" * (ROOM // 2))), "TOO_LARGE"),
}


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_is_too_much_is_set_aside_and_the_feed_goes_on(prey: Prey, name: str) -> None:
    make, code = ENTRIES[name]
    prey.honest()
    seq = append_raw(prey.net.world[FR], DE, make(prey))
    release(prey.net.world, f"AFTER {name}")
    assert prey.sync() is None
    with closing(sqlite3.connect(prey.net.world[DE].home / main.DATABASE_FILE)) as file:
        query = "SELECT outcome, code FROM in_entries WHERE seq >= ? ORDER BY seq"
        assert file.execute(query, (seq,)).fetchall() == [("quarantined", code), ("admitted", None)]
    prey.check_memory(name)


@pytest.mark.invariant("I10")
def test_a_page_of_tiny_disclosures_takes_no_more_than_its_bytes(prey: Prey) -> None:
    prey.honest()
    fr = prey.net.world[FR]
    tiny = presented(b"\x12\x02ab" * TINY)
    for _ in range((MAX_MESSAGE_BYTES - 2_000) // len(tiny)):
        append_raw(fr, DE, tiny)
    prey.liar.tell(ForgedFeed(fr, DE, history(fr, DE)))  # all of it in one page
    prey.call("Notify", NOTICE)
    until(lambda: prey.feed()[0] == len(history(fr, DE)), PATIENCE_S)
    prey.check_memory("tiny disclosures in bad entries")
    prey.honest()
    before = everything(prey.net.world[DE].home)
    large = _delivery(prey, b"core", tuple(b"%02x" % (number % 256) for number in range(TINY)))
    items = [large] * ((MAX_MESSAGE_BYTES - 2_000) // len(large))
    honest = len(history(fr, DE))
    items = [with_seq(large, honest + number) for number in range(len(items))]
    prey.liar.tell(ForgedFeed(fr, DE, [*history(fr, DE), *items]))
    assert prey.sync() == "TOO_LARGE"
    check_refused(prey, before, "TOO_LARGE")
    prey.check_memory("tiny disclosures in good entries")


def with_seq(data: bytes, seq: int) -> bytes:
    """The entry `data` at another place."""
    made = wire.Entry.FromString(data)
    made.seq = seq
    return made.SerializeToString(deterministic=True)


REQUESTS: dict[str, tuple[Callable[[Prey], object], str]] = {
    "over the largest size": (lambda prey: prey.call("Pull", bytes(10 << 20)), "RESOURCE_EXHAUSTED"),
    "a compression bomb": (lambda prey: prey.call("Pull", bytes(BOMB_BYTES), gzip=True), "RESOURCE_EXHAUSTED"),
    "unknown fields": (lambda prey: prey.call("Pull", b"\x78\x01" * 130_000), "INVALID_ARGUMENT"),
    "megabytes of metadata": (
        lambda prey: prey.call("Pull", NOTICE, metadata=[("x", "x" * (4 << 20))]),
        "RESOURCE_EXHAUSTED",
    ),
    "a note without end": (lambda prey: prey.call("Pull", NOTE_WITHOUT_END), "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_too_much_is_refused_in_one_word(prey: Prey, name: str) -> None:
    attack, status = REQUESTS[name]
    prey.honest()
    before = everything(prey.net.world[DE].home)
    code, word = status_of(lambda: attack(prey))
    assert code == status
    assert len(word) < 100
    assert difference(before, everything(prey.net.world[DE].home)).keys() <= {"audit"}
    prey.check_memory(name)
