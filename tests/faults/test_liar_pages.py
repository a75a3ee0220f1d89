"""Rows 12 and 13: what hides in a page, and one bad entry among good ones.

FR holds its real keys and lies to DE, whose `apostille sync` is a real process. Whatever it hides in fields that the
schema does not have is in no file of DE afterwards, nor of IN, to whom DE passes things on; bad entries are set aside,
and the good ones beside them arrive.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from google.protobuf.message import Message

from federation.entries import AgreementOffer, Delivery
from federation.feed import Ask, PageBytes
from node.desk import inbox
from node.peering import agreements
from node.sharing import releases
from protos.exchange.v1 import exchange_pb2 as wire
from tests import commands
from tests.e2e.net import Net, make_net, release, status_of
from tests.e2e.processes import PATIENCE_S, ready
from tests.faults.campaign import count
from tests.faults.liar import (
    Call,
    Liar,
    append_raw,
    calling,
    command,
    difference,
    everything,
    holds,
    lying,
    prepare,
    sync,
)
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    ForgedFeed,
    agree,
    document,
    entry,
    history,
    import_document,
    issued,
    terms_for,
)

CANARY = b"CANARY-that-nobody-should-hold"
HIDDEN = b"\xfa\x01" + bytes([len(CANARY)]) + CANARY  # field 31, which no message has
ORIGIN = f"{FR}/feeds/{DE}/1"
BAD_ONES = count(40, 1_000)
THIN_PAGES = count(30, 1_000)


@dataclass(frozen=True, slots=True)
class Scene:
    """FR, who lies, DE, and IN, to whom DE passes everything on that it may."""

    net: Net
    liar: Liar

    def next_seq(self) -> int:
        return len(history(self.net.world[FR], DE))

    def good(self, name: str) -> wire.Entry:
        """The next entry of FR's feed, honest in all."""
        fr = self.net.world[FR]
        presentation = issued(fr, import_document(fr, document(name)))
        terms = terms_for(fr, DE, name, agreements.find(fr, AGREEMENT))
        return wire.Entry.FromString(entry(ORIGIN, self.next_seq(), Delivery(presentation, terms)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with make_net(tmp_path_factory.mktemp("pages"), FR, DE, IN) as net, ExitStack() as ends:
        agree(net.world, onward="peers")
        prepare(net, FR, DE)
        release(net.world, "HONEST")
        liar = ends.enter_context(lying(net, FR, DE))
        assert sync(net, DE, FR).code == 0
        yield Scene(net, liar)


def nowhere(scene: Scene) -> bool:
    """Whether no file of DE or IN holds what was hidden."""
    return not any(holds(scene.net.world[name].home, CANARY.decode()) for name in (DE, IN))


def _in_page(page: wire.PullResponse) -> bytes:
    return page.SerializeToString() + HIDDEN


def _in_item(page: wire.PullResponse) -> bytes:
    item = wire.PageItem(entry=page.items[0].entry).SerializeToString() + HIDDEN
    return b"\x0a" + _length(item) + item + _rest(page)


def _in_erased(page: wire.PullResponse) -> bytes:
    erased = wire.Erased(seq=0, leaf_hash=bytes(32), erased_by=1).SerializeToString() + HIDDEN
    item = b"\x12" + _length(erased) + erased
    return b"\x0a" + _length(item) + item + _rest(page)


def _as_group(page: wire.PullResponse) -> bytes:
    return page.SerializeToString() + b"\xfb\x01" + HIDDEN + b"\xfc\x01"


def _rest(page: wire.PullResponse) -> bytes:
    return wire.PullResponse(checkpoint=page.checkpoint, latest=page.latest).SerializeToString()


def _length(data: bytes) -> bytes:
    size, written = len(data), b""
    while size > 0x7F:
        written, size = written + bytes([size & 0x7F | 0x80]), size >> 7
    return written + bytes([size])


PAGES: dict[str, Callable[[wire.PullResponse], bytes]] = {
    "page": _in_page,
    "item": _in_item,
    "erased": _in_erased,
    "group": _as_group,
}


@pytest.mark.parametrize("place", PAGES)
def test_what_hides_in_a_page_has_the_page_refused_and_is_nowhere(scene: Scene, place: str) -> None:
    net, liar = scene.net, scene.liar
    release(net.world, f"PAGE-{place}")
    before = everything(net.world[DE].home)
    liar.answers["Pull"] = lambda call: PAGES[place](call.page())
    told = sync(net, DE, FR)
    assert (told.code, told.report["error"]) == (8, "MALFORMED")
    assert "SHA-256" in told.said
    changed = difference(before, everything(net.world[DE].home))
    assert changed.keys() <= {"in_feeds", "audit"}
    assert nowhere(scene)
    liar.be_honest()
    told = sync(net, DE, FR)
    assert (told.code, told.report["entries"]) == (0, 1)


@pytest.mark.parametrize("method", ["GetCheckpoint"])
def test_what_hides_in_another_answer_is_refused(scene: Scene, method: str) -> None:
    net, liar = scene.net, scene.liar
    release(net.world, f"ANSWER-{method}")

    def broken(call: Call) -> bytes:
        page = call.page()
        page.items[0].entry += b"x"
        return page.SerializeToString()

    liar.answers = {"Pull": broken, method: lambda call: call.honest() + HIDDEN}
    told = sync(net, DE, FR)
    assert (told.code, told.report["error"]) == (8, "MALFORMED")
    assert nowhere(scene)
    liar.be_honest()
    assert sync(net, DE, FR).code == 0


def _grow(path: str, made: wire.Entry) -> bytes:
    """The bytes of `made` with the hidden field at `path` of its messages."""
    names = [name for name in path.split("/") if name]
    return _grow_inner(made, names) if names else made.SerializeToString(deterministic=True) + HIDDEN


def _grow_inner(message: Message, names: list[str]) -> bytes:
    import google.protobuf.message as protobuf

    assert isinstance(message, protobuf.Message)
    name, *deeper = names
    child = getattr(message, name)
    grown = _grow_inner(child, deeper) if deeper else child.SerializeToString(deterministic=True) + HIDDEN
    number = message.DESCRIPTOR.fields_by_name[name].number
    message.ClearField(name)
    return message.SerializeToString(deterministic=True) + bytes([number << 3 | 2]) + _length(grown) + grown


ENTRIES = ["", "presentation", "presentation/terms", "presentation/terms/storage"]


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("place", ENTRIES)
def test_what_hides_in_an_entry_has_it_set_aside_and_is_nowhere(scene: Scene, place: str) -> None:
    net = scene.net
    made = scene.good(f"ENTRY-{place.replace('/', '-')}")
    if place.endswith("storage"):
        made.presentation.terms.storage.countries.append("DE")
    seq = append_raw(net.world[FR], DE, _grow(place, made))
    release(net.world, f"AFTER-{place.replace('/', '-')}")
    told = sync(net, DE, FR)
    assert (told.code, told.report["counts"]) == (0, {"quarantined": 1, "admitted": 1})
    assert nowhere(scene)
    shown = command(net, DE, "quarantine", "show", FR, str(seq), "--json")
    assert '"MALFORMED"' in shown.stdout


REQUESTS: dict[str, Callable[[], Message]] = {
    "Pull": lambda: wire.PullRequest(feed=f"{DE}/feeds/{FR}/1", protocol=2),
    "Notify": lambda: wire.NotifyRequest(protocol=2),
    "GetCheckpoint": lambda: wire.GetCheckpointRequest(feed=f"{DE}/feeds/{FR}/1", protocol=2),
    "GetProof": lambda: wire.GetProofRequest(feed=f"{DE}/feeds/{FR}/1", protocol=2),
}


def test_what_hides_in_a_request_has_it_refused_in_one_word_and_is_nowhere(scene: Scene) -> None:
    home = scene.net.world[DE].home
    scene.liar.be_honest()
    with ready(home), calling(scene.net, FR, DE) as call:
        call("Pull", REQUESTS["Pull"]().SerializeToString())  # sanity
        for method, make in REQUESTS.items():
            data = make().SerializeToString() + HIDDEN
            assert status_of(lambda: call(method, data)) == ("INVALID_ARGUMENT", "MALFORMED")  # noqa: B023 - at once
        assert nowhere(scene)
    rows = [row[2:] for row in everything(home)["audit"] if row[3] == "rpc.refuse"]
    assert sorted(rows) == [(FR, "rpc.refuse", method, "INVALID_ARGUMENT MALFORMED") for method in sorted(REQUESTS)]


def test_what_came_in_a_page_that_hid_something_is_passed_on_without_it(scene: Scene) -> None:
    """First it came with something hidden, and was refused; then without; DE passes it on to IN."""
    net, liar = scene.net, scene.liar
    fr, de = net.world[FR], net.world[DE]
    import_document(fr, document("ONWARD"), handling={"tlp": "GREEN", "onward": "peers"})
    releases.release(fr, "ONWARD", (DE,))
    liar.answers["Pull"] = lambda call: _in_item(call.page())
    assert sync(net, DE, FR).code == 8
    liar.be_honest()
    assert sync(net, DE, FR).code == 0
    assert command(net, DE, "relay", "ONWARD", "--to", IN).returncode == 0
    net.world.sync(IN, DE)
    assert "ONWARD" in {item.name for item in inbox.items(net.world[IN])}
    assert nowhere(scene)
    de.engine.dispose()


@pytest.mark.invariant("I10")
def test_pages_of_nothing_but_bad_ones_do_not_keep_a_good_one_from_arriving(scene: Scene) -> None:
    net = scene.net
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    scene.liar.be_honest()

    def small(call: Call) -> bytes:
        request = call.request
        request.max_items = 8
        answer: Message = scene.liar.servicer.Pull(request, scene.liar.victim)
        return answer.SerializeToString()

    for _ in range(BAD_ONES):
        append_raw(net.world[FR], DE, chance.randbytes(chance.randrange(200)))
    release(net.world, "AFTER-THE-BAD-ONES")
    scene.liar.answers["Pull"] = small
    told = sync(net, DE, FR)
    assert (told.code, told.report["counts"]) == (0, {"quarantined": BAD_ONES, "admitted": 1}), seed
    assert told.report["pages"] >= BAD_ONES // 8
    print(f"{BAD_ONES} bad entries in pages of 8, and a good one behind them, which arrived; {seed=}")


class Endless:
    """A feed in pages of one entry each, whose newest head says that there is far more; it has no end."""

    def __init__(self, scene: Scene) -> None:
        self._feed = ForgedFeed(scene.net.world[FR], DE, history(scene.net.world[FR], DE), page=1)
        self._latest = self._feed.latest(1 << 40, b"r" * 32)

    def pull(self, ask: Ask) -> PageBytes:
        items = self._feed.items
        if ask.cursor == len(items):
            self._feed.items = (*items, entry(ORIGIN, len(items), AgreementOffer(b"x")))
        return replace(self._feed.pull(ask), latest=self._latest, receipt=b"")

    def checkpoint(self, origin: str, size: int) -> bytes:
        return self._feed.checkpoint(origin, size)


@pytest.mark.invariant("I9")
def test_a_feed_of_tiny_pages_without_end_ends_by_our_own_count(scene: Scene) -> None:
    """The last test of this scene: FR cannot go back to its honest history."""
    net = scene.net
    scene.liar.be_honest()
    scene.liar.tell(Endless(scene))
    few = f"from node.exchange import sync; sync.MAX_THIN_PAGES = {THIN_PAGES}"
    words = ("--home", str(net.world[DE].home), "sync", FR, "--json")
    done = commands.run(*words, code=f"{few}\n{commands.APOSTILLE}", timeout=PATIENCE_S)
    (report,) = json.loads(done.stdout)
    assert (done.returncode, report["error"], report["pages"]) == (8, "TOO_LARGE", THIN_PAGES + 1)
    assert command(net, DE, "status", "--json").stdout.count("TOO_LARGE") == 1
