"""Rows 12 and 13: what hides in a page, and one bad entry among good ones.

FR holds its real keys and lies to DE, whose `apostille sync` is a real process. Whatever it hides in fields that the
schema does not have is in no file of DE afterwards, nor of IN, to whom DE passes things on; bad entries are set aside,
and the good ones beside them arrive.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from federation.entries import Delivery
from node.peering import agreements
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import Net, make_net, release
from tests.faults.campaign import count
from tests.faults.liar import (
    Call,
    Liar,
    append_raw,
    command,
    difference,
    everything,
    holds,
    lying,
    prepare,
    sync,
)
from tests.nodes import AGREEMENT, DE, FR, IN, agree, document, entry, history, import_document, issued, terms_for

CANARY = b"CANARY-that-nobody-should-hold"
HIDDEN = b"\xfa\x01" + bytes([len(CANARY)]) + CANARY  # field 31, which no message has
ORIGIN = f"{FR}/feeds/{DE}/1"
BAD_ONES = count(40, 1_000)


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
        agree(net.world)
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


def _passed_over(page: wire.PullResponse) -> bytes:
    """A field that stands twice: a reader takes the last."""
    return b"\x12" + _length(CANARY) + CANARY + page.SerializeToString()


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
    if not names:
        return made.SerializeToString(deterministic=True) + HIDDEN
    return _grow_inner(made, names)


def _grow_inner(message: object, names: list[str]) -> bytes:
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
