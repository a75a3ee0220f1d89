"""After a recall nothing is left: not at peers, not at a hub, not in any file of theirs; and every proof still holds.

Every text of every part of a hundred advisories carries a word of its own. Before the recall those that were disclosed
are found in the files of whoever got them; after it, and after a kill -9 at the worst moment, none is.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation import merkle
from federation.checkpoint import Checkpoint
from federation.model import JsonObject, NodeId
from federation.recall import Reason
from federation.strictjson import encode
from node.desk import inbox
from node.desk.inbox import InboxState
from node.peering import feeds
from node.sharing import advisories, answers, passing, recalls, releases
from node.sharing.answers import HolderState
from node.store.database import read, write
from node.store.tables import in_entries, in_feeds
from node.store.tables import inbox as inbox_table
from tests.chains import KE, Chain, join, make_chain
from tests.faults.campaign import count
from tests.nodes import ADDRESS, DE, FR, IN, agree, document, import_document, make_world, reopen

ROOT = Path(__file__).parents[2]
ADVISORIES = count(100, 400)
EXAMPLE = ROOT / "config" / "examples" / "fr" / "poisoned-model-on-a-public-hub.json"
HUB = KE
WORD = re.compile(rb"kanarie[0-9]{3}x[0-9]{3}")
PATIENCE_S = 60
_MARKED = re.compile(
    r"/csaf/document/(title|aggregate_severity/text|distribution/text|notes/\d+/(audience|text|title)|references/\d+/summary"
    r"|tracking/(aliases/\d+|revision_history/\d+/summary))"
    r"|/csaf/product_tree/branches/\d+(/branches/\d+)?/name|/csaf/product_tree/.*/product/name"
    r"|/csaf/vulnerabilities/0/(title|acknowledgments/0/(names/0|organization|summary)|ids/\d+/(system_name|text)"
    r"|involvements/\d+/summary|notes/\d+/(text|title)|(remediations|threats)/\d+/details)"
    r"|/ai/(developer|deployer|model/(name|version)|reproduction/(parameters/(loader|call)|success_rate)|transferability"
    r"|harm_class)"
)
_SYNC_AND_DIE = """
import os, signal, sys
from pathlib import Path
from federation.model import NodeId
from node import main
from node.exchange import sync
from tests.nodes import DirectLink

receiver, sender = (main.open_node(Path(home)) for home in sys.argv[1:])

def die(engine):
    os.kill(os.getpid(), signal.SIGKILL)  # committed, and not scrubbed yet

sync.scrub = die
sync.sync(receiver, sender.id, DirectLink(sender, receiver))
"""


def advisory(number: int) -> JsonObject:
    """An example that may be passed on, with a word of its own in every text that policy judges."""
    example = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    words = iter(f"kanarie{number:03}x{place:03}" for place in range(1000))

    def mark(path: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: mark(f"{path}/{name}", member) for name, member in value.items()}
        if isinstance(value, list):
            return [mark(f"{path}/{place}", member) for place, member in enumerate(value)]
        return f"{value} {next(words)}" if isinstance(value, str) and _MARKED.fullmatch(path) else value

    marked = {name: mark(f"/{name}", example[name]) for name in ("csaf", "ai")}
    marked["csaf"]["document"]["tracking"]["id"] = f"FIGURE-2-{number:03}"
    return {**example, **marked}


def found(home: Path) -> set[bytes]:
    """The words in all files of a home: database, log, shared memory, keys, settings."""
    return {word for path in home.rglob("*") if path.is_file() for word in WORD.findall(path.read_bytes().lower())}


@contextmanager
def exchange(folder: Path) -> Iterator[Chain]:
    """FR exchanges with DE and with a hub, and the hub with IN."""
    chain = make_chain(folder, (FR, DE), (FR, HUB), (HUB, IN))
    for one, other in chain.links:
        join(chain, one, other, onward="peers")
    yield chain
    chain.close()


def spread(chain: Chain, number: int) -> str:
    """FR releases an advisory to DE and to the hub, which passes it on to IN."""
    name = advisories.import_file(chain[FR], encode(advisory(number)), "file.json", tlp=None).advisory.name
    _, outcomes = releases.release(chain[FR], name, (DE, HUB))
    assert all(outcome.seq is not None for outcome in outcomes)
    return name


def deliver(chain: Chain, names: list[str]) -> None:
    """Everybody gets what was spread."""
    chain.sync(DE, FR)
    chain.sync(HUB, FR)
    for name in names:
        _, (outcome,) = passing.pass_on(chain[HUB], name, (IN,))
        assert outcome.seq is not None
    chain.sync(IN, HUB)


def check_proofs(chain: Chain, sender: NodeId, receiver: NodeId) -> int:
    """Every leaf of a feed is shown, on both ends, to stand under the head that the receiver signed for."""
    with read(chain[sender].engine) as tx:
        feed = feeds.out_feed(tx, receiver)
        leaves = feeds.leaf_hashes(tx, feed.id, feed.receipt_size)
    head = Checkpoint.of(feed.receipt)
    assert head.size == feed.receipt_size == feed.size
    with read(chain[receiver].engine) as tx:
        row = tx.execute(select(in_feeds).where(in_feeds.c.peer == sender)).one()
        query = select(in_entries.c.leaf_hash).where(in_entries.c.feed == row.id).order_by(in_entries.c.seq)
        theirs = list(tx.execute(query).scalars())
    assert theirs == leaves
    assert Checkpoint.of(row.head) == head
    for index, leaf in enumerate(leaves):
        merkle.verify_inclusion(index, head.size, leaf, merkle.inclusion_proof(leaves, index), head.root)
    return len(leaves)


@pytest.mark.invariant("I15")
def test_after_a_recall_no_word_is_left_and_every_proof_holds(tmp_path: Path) -> None:
    with exchange(tmp_path) as chain:
        names = [spread(chain, number) for number in range(ADVISORIES)]
        deliver(chain, names)
        everything = found(chain[FR].home)
        assert len(everything) > 40 * ADVISORIES
        for holder in (DE, HUB, IN):  # positive control: what was disclosed is there
            there = found(chain[holder].home)
            assert there < everything  # victims and sources were withheld
            assert len(there) > 30 * ADVISORIES
        for name in names:
            recalls.give(chain[FR], name, Reason.CONSENT)
        for receiver, sender in ((DE, FR), (HUB, FR), (IN, HUB), (HUB, IN), (FR, HUB), (FR, DE)):
            chain.sync(receiver, sender)
        for holder in (DE, HUB, IN):
            assert found(chain[holder].home) == set()
            assert {item.state for item in inbox.items(chain[holder], every_state=True)} == {InboxState.RECALLED}
        assert found(chain[FR].home) == everything  # the origin's own record
        for name in names:
            (order,) = answers.status(chain[FR], name)
            assert {h.node: (h.via, h.state) for h in order.holders} == {
                DE: (DE, HolderState.PURGED),
                HUB: (HUB, HolderState.PURGED),
                IN: (HUB, HolderState.PURGED),
            }
        for receiver, sender in ((DE, FR), (HUB, FR), (IN, HUB)):
            chain.sync(receiver, sender)
            assert check_proofs(chain, sender, receiver) > 2 * ADVISORIES
    print(f"{ADVISORIES} advisories, {len(everything)} words: none left at two peers and a hub")


@pytest.mark.invariant("I15")
def test_a_kill_between_commit_and_scrub_leaves_nothing_after_the_next_start(tmp_path: Path) -> None:
    with exchange(tmp_path) as chain:
        names = [spread(chain, number) for number in range(3)]
        deliver(chain, names)
        for name in names:
            recalls.give(chain[FR], name, Reason.CONSENT)
        chain.close()
        homes = (chain[HUB].home, chain[FR].home)
        code = [sys.executable, "-c", _SYNC_AND_DIE, *map(str, homes)]
        done = subprocess.run(code, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert found(homes[0])  # positive control: it is erased, and still in the files
        with served(homes[0]):
            assert found(homes[0]) == set()
        again = reopen(chain, HUB)
        assert {item.state for item in inbox.items(again, every_state=True)} == {InboxState.RECALLED}


@pytest.mark.invariant("I11")
def test_what_ended_while_nothing_ran_is_gone_before_a_call_is_accepted(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agree(world)
    releases.release(world[FR], import_document(world[FR], document("X", title="kanarie000x000")))
    world.sync(DE, FR)
    with write(world[DE].engine) as tx:
        tx.execute(update(inbox_table).values(retain_until=world.clock() - timedelta(days=2)))
    world.close()
    assert found(world[DE].home)
    with served(world[DE].home):
        assert found(world[DE].home) == set()


@contextmanager
def served(home: Path) -> Iterator[None]:
    """Inside, a process serves the home and accepts calls."""
    settings = home / "apostille.yaml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace(f'listen: "{ADDRESS}"', 'listen: "127.0.0.1:0"'), encoding="utf-8")
    code = (
        "import pathlib, sys; from node.operation.serve import serve\n"
        "serve(pathlib.Path(sys.argv[1]), lambda address: print(address, flush=True))"
    )
    command = [sys.executable, "-c", code, str(home)]
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if ready:
                yield
            process.send_signal(signal.SIGTERM)
            _, lines = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert ready, lines
    assert process.returncode == 0, lines
