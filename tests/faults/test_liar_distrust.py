"""Row 18: distrust on a live connection, in the middle of a sync. `apostille peer distrust` runs beside a process that
pulls, or is pulled from, over a connection that stays open: what came before stays, nothing comes or goes after it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.rpc.server import STRANGER
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import Net, make_net, release, status_of
from tests.e2e.processes import ready
from tests.faults.liar import Call, calling, command, difference, everything, lying, prepare, sync
from tests.nodes import DE, FR, agree

ADVISORIES = 6
ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with make_net(tmp_path, FR, DE) as made:
        agree(made.world)
        prepare(made, FR, DE)
        for number in range(ADVISORIES):
            release(made.world, f"A-{number}")
        yield made


def counts(net: Net) -> dict[str, int]:
    """How many rows DE has of what comes with a page."""
    found = everything(net.world[DE].home)
    return {name: found[name].total() for name in ("in_entries", "inbox", "out_entries", "ledger")}


@pytest.mark.invariant("I2")
def test_whom_we_distrust_while_a_page_is_under_way_is_taken_from_no_more(net: Net) -> None:
    seen: list[dict[str, int]] = []

    def one_a_page(call: Call) -> bytes:
        request = call.request
        request.max_items = 1
        page = call.liar.servicer.Pull(request, call.liar.victim)
        if call.number == 2:
            seen.append(counts(net))  # two pages are in
            assert command(net, DE, "peer", "distrust", FR).returncode == 0
        return page.SerializeToString()

    with lying(net, FR, DE) as liar:
        liar.answers["Pull"] = one_a_page
        told = sync(net, DE, FR)
        assert told.report["pages"] == 2
        assert (told.code, told.report["error"]) == (3, "NotFoundError")
        assert counts(net) == seen[0]  # the page that was under way is not kept
        assert command(net, DE, "sync", FR, "--json").returncode == 3
        assert len(liar.calls) == 3  # nothing was asked any more


@pytest.mark.invariant("I2")
def test_who_distrusts_us_while_we_are_pulled_from_gets_no_more(net: Net) -> None:
    """The same connection, one page before and none after; DE is refused in one word, and one row says so."""
    ask = wire.PullRequest(feed=ORIGIN, max_items=1, protocol=2)
    home = net.world[FR].home
    with ready(home), calling(net, DE, FR) as call:
        page = wire.PullResponse.FromString(call("Pull", ask.SerializeToString()))
        assert len(page.items) == 1  # sanity
        assert command(net, FR, "peer", "distrust", DE).returncode == 0
        before = everything(home)
        ask.cursor, ask.newest = 1, page.latest
        for method, data in (("Pull", ask.SerializeToString()), ("Notify", b""), ("GetCheckpoint", b"")):
            code, word = status_of(lambda method=method, data=data: call(method, data))  # type: ignore[misc]
            assert (code, word) == ("UNAUTHENTICATED", STRANGER)
        changed = difference(before, everything(home))
    assert changed.keys() == {"audit"}
    assert [row[2:] for row in changed["audit"][1]] == [
        ("unknown", "rpc.refuse", method, "UNAUTHENTICATED UNKNOWN_KEY")
        for method in ("Pull", "Notify", "GetCheckpoint")
    ]
