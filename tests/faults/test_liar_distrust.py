"""Row 18: distrust on a live connection, in the middle of a sync. `apostille peer distrust` runs beside a process that
pulls, or is pulled from, over a connection that stays open: what came before stays, nothing comes or goes after it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.feed import Ask
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import Net, make_net, names_in_inbox, refusals, release, status_of
from tests.e2e.processes import ready
from tests.faults.liar import Call, calling, command, difference, everything, lying, prepare, sync
from tests.nodes import DE, FR, agree, history

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


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("when", ["before a page is answered", "after it was asked for the next"])
def test_whom_we_distrust_while_we_pull_is_pulled_from_no_more(net: Net, when: str) -> None:
    def one_a_page(call: Call) -> bytes:
        request = call.request
        request.max_items = 1
        page = call.liar.servicer.Pull(request, call.liar.victim).SerializeToString()
        if call.number == 2:
            done = command(net, DE, "peer", "distrust", FR)
            assert done.returncode == 0, done.stderr
        return bytes(page)

    with lying(net, FR, DE) as liar:
        liar.answers["Pull"] = one_a_page
        told = sync(net, DE, FR)
    assert (told.code, told.report["pages"]) == (3, 2)
    assert len(liar.calls) == 3
    assert json.loads(command(net, DE, "inbox", "list", "--json").stdout) == []
