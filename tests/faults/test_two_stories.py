"""Row 15: an origin that tells two stories. FR, who lies over the wire under its real keys, gives DE one core and IN
another under one revision. DE and IN are processes, `apostille sync` and `apostille serve`: each by itself sees nothing
wrong; once they have exchanged with each other both hold the revision back and have a proof that a third party judges.

What others could make of the comparison is tried below on whole nodes in this process: to have an honest advisory held
back, to learn cores by guessing, to take the proof away before it is found.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from federation.model import NodeId, Role
from federation.recall import Reason
from federation.statement import Kind, Seen, Subject
from node import main
from node.desk import inbox
from node.desk.inbox import InboxState
from node.peering import rotation
from node.records import incidents
from node.records.alarms import Alarm
from node.sharing import recalls, releases, statements
from node.store.database import write
from node.store.tables import peers
from tests.e2e.net import Net, make_net, until
from tests.e2e.processes import PATIENCE_S, ready
from tests.faults.campaign import count
from tests.faults.liar import command, difference, everything, lying, prepare, sync
from tests.nodes import (
    DE,
    FR,
    IN,
    World,
    agree,
    document,
    history,
    import_document,
    make_world,
    payload_of,
    reopen,
    signed_core,
)
from tests.unit.test_comparing import (
    A,
    bilateral,
    cores_shown,
    open_alarms,
    release,
    say,
    talk,
    tell_two_stories,
    two_faced,
)

VERIFY = Path(__file__).parents[1] / "conformance" / "verify_incident.py"
HELD = 6  # exit code: a person must look
SAID = {"statements", "in_entries", "out_entries", "in_feeds", "out_feeds"}  # what any statement changes on both sides

AGREED = ("all three, TLP:AMBER", "each two, TLP:GREEN")
CARDS = {"peers", "card_deliveries"}  # a server also brings its newest card to its peers


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with make_net(tmp_path, FR, DE, IN) as made:
        yield made


def told(net: Net, name: NodeId, *words: str) -> Any:
    """What a command says as JSON."""
    done = command(net, name, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(net: Net, name: NodeId) -> dict[str, str]:
    return {item["advisory"]: item["state"] for item in told(net, name, "inbox", "list", "--all")}


def fetch_from_fr(net: Net, receiver: NodeId, *, lie: bool = False) -> None:
    """`apostille sync` from FR, who may put another core in the place of the last."""
    with lying(net, FR, receiver) as liar:
        if lie:
            liar.tell(two_faced(net.world))
        assert sync(net, receiver, FR).code == 0


def exchange(net: Net) -> None:
    """DE and IN fetch from each other, until there is nothing more."""
    for _ in range(2):
        for receiver, sender in ((IN, DE), (DE, IN)):
            with lying(net, sender, receiver):  # honest, without a script
                assert sync(net, receiver, sender).code == 0


def serve(net: Net) -> None:
    """DE and IN serve, and do by themselves what they do, until both hold the advisory back."""
    with ready(net.world[DE].home), ready(net.world[IN].home):
        for name in (DE, IN):
            until(lambda name=name: states(net, name)["A"] == "equivocation", PATIENCE_S)  # type: ignore[misc]


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("agreed", AGREED[: count(1, 2)])
def test_two_stories_are_found_by_both_who_heard_one_and_proved_to_anybody(
    net: Net, tmp_path: Path, agreed: str
) -> None:
    world = net.world
    if agreed == "all three, TLP:AMBER":
        agree(world)
    else:
        bilateral(world)
    prepare(net, FR, DE, IN)

    # An honest update, and sanity: both have it, tell each other, and nothing comes of it.
    tlp = agreed.rpartition(":")[2]
    for name in ("HONEST", "A"):
        import_document(world[FR], document(name), handling={"tlp": tlp})
    releases.release(world[FR], "HONEST")
    for name in (DE, IN):
        fetch_from_fr(net, name)
    exchange(net)
    for name in (DE, IN):
        assert states(net, name) == {"HONEST": "current"}
        assert not told(net, name, "peer", "incident", "list", "--all")

    # The attack: neither sees anything wrong in its own feed.
    releases.release(world[FR], "A")
    fetch_from_fr(net, DE)
    fetch_from_fr(net, IN, lie=True)
    assert [states(net, name)["A"] for name in (DE, IN)] == ["current"] * 2
    before = {name: everything(world[name].home) for name in (DE, IN)}
    (serve if tlp == "AMBER" else exchange)(net)
    after = {name: everything(world[name].home) for name in (DE, IN)}

    # Both hold it back, tell their people, and can prove it; nothing else has changed.
    card = tmp_path / "card.json"
    card.write_bytes(world[FR].card_bytes)
    for name in (DE, IN):
        assert states(net, name) == {"HONEST": "current", "A": "equivocation"}
        refused = command(net, name, "inbox", "show", "A")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (HELD, 1)
        assert command(net, name, "inbox", "show", "HONEST").returncode == 0
        kinds = {alarm["kind"] for alarm in told(net, name, "alerts", "list")}
        assert Alarm.EQUIVOCATION in kinds <= {Alarm.EQUIVOCATION, Alarm.SUSPECTED_EQUIVOCATION, Alarm.STALE}
        (incident,) = told(net, name, "peer", "incident", "list")
        assert (incident["kind"], incident["peer"], incident["about"]) == ("EQUIVOCATION", FR, "A/1")
        assert incident["proves_itself"]
        assert len(incident["cores"]) == 2
        number, file = str(incident["incident"]), tmp_path / f"{name}.json"
        assert told(net, name, "peer", "incident", "show", number) == incident
        assert command(net, name, "peer", "incident", "export", number, "--out", str(file)).returncode == 0
        assert judged(file, card).startswith(f"proved: {FR} ")
        mine = tmp_path / f"{name}.card.json"
        mine.write_bytes(world[name].card_bytes)
        assert judged(file, mine).startswith("not proved")  # it accuses nobody else
        changed = difference(before[name], after[name])
        assert changed.keys() <= {*SAID, *CARDS, "inbox", "incidents", "alarms", "audit", "ledger"}
        assert "ledger" not in changed or {"receipt"} == {row[3] for row in changed["ledger"][1]}
        gone, come = changed["inbox"]
        assert len(gone) == len(come) == 1  # of A, and of it its state


def judged(file: Path, card: Path) -> str:
    """What a third party finds, without our code."""
    command = [sys.executable, "-E", "-s", str(VERIFY), str(file), "--card", str(card)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S).stdout


# What others could make of it: whole nodes in this process


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    yield made
    made.close()


def all_states(world: World) -> dict[NodeId, set[InboxState]]:
    return {name: {item.state for item in inbox.items(world[name], every_state=True)} for name in (DE, IN)}


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("shown", ["the same core", "that of a later revision", "another that FR never signed"])
def test_a_third_node_has_no_honest_advisory_held_back(world: World, shown: str) -> None:
    """IN, which got it as well, tries to make DE believe that FR has told two stories."""
    agree(world)
    release(world)
    world.sync_all(2)
    assert all_states(world) == {DE: {InboxState.CURRENT}, IN: {InboxState.CURRENT}}  # sanity
    (item,) = inbox.items(world[IN])
    core = inbox.content(world[IN], str(item.id)).compact.split("~")[0].encode()
    claim_by(world, IN, DE)
    if shown == "that of a later revision":
        core = signed_core(world[FR], payload_of(core) | {"jti": f"{FR}/A/2"})
    if shown == "another that FR never signed":
        core = signed_core(world[IN], payload_of(core))
    say(world, IN, DE, Kind.CORE, {"core": core.decode()}, about=A)
    assert all_states(world) == {DE: {InboxState.CURRENT}, IN: {InboxState.CURRENT}}
    assert open_alarms(world, DE) <= {Alarm.SUSPECTED_EQUIVOCATION, Alarm.QUARANTINE}
    assert not incidents.all_incidents(world[DE])


def claim_by(world: World, author: NodeId, recipient: NodeId, name: str = "A", revision: int = 1) -> None:
    """Tells of a core that does not exist."""
    seen = Seen(Subject(FR, name, revision), bytes(32))
    say(world, author, recipient, Kind.SEEN, {"cores": [seen.write()]})


@pytest.mark.invariant("I4")
def test_who_guesses_gets_one_core_of_each_name_that_he_knows_and_nothing_that_was_withheld(world: World) -> None:
    agree(world)
    release(world)
    world.sync_all(2)
    for revision in (1, 2, 3, 1, 1):
        claim_by(world, IN, DE, revision=revision)
    for name in ("a", "A ", "A/1", "B"):
        claim_by(world, IN, DE, name)
    assert cores_shown(world, DE) == [IN]
    world.sync(IN, DE)
    said = [kept.statement for kept in statements.all_kept(world[IN]) if kept.statement.kind == Kind.CORE]
    assert [s.author for s in said] == [DE]
    assert b"What is known." not in said[0].document
    assert "~" not in said[0].body["core"]  # no disclosure goes along


@pytest.mark.invariant("I12")
@pytest.mark.parametrize("gone", ["withdrawn", "recalled"])
def test_an_origin_that_takes_one_story_back_before_it_is_found_leaves_an_alarm(world: World, gone: str) -> None:
    agree(world)
    release(world)
    tell_two_stories(world)
    if gone == "withdrawn":
        releases.withdraw(world[FR], "A", DE)
    else:
        recalls.give(world[FR], "A", Reason.ERROR, ())
    world.clock.move(minutes=1)
    world.sync(DE, FR)  # IN hears no more of FR
    assert all_states(world)[DE] == {InboxState(gone)}
    talk(world, 3)
    assert all_states(world) == {DE: {InboxState(gone)}, IN: {InboxState.CURRENT}}
    assert Alarm.SUSPECTED_EQUIVOCATION in open_alarms(world, IN)


@pytest.mark.invariant("I5")
def test_an_origin_that_replaces_its_key_in_between_is_found_all_the_same(world: World) -> None:
    agree(world)
    release(world)
    tell_two_stories(world)
    rotation.change(world[FR], rotation.Change(rotate=(Role.ISSUE,), overlap=timedelta(days=1)))
    world.sync(DE, FR)
    world.clock.move(days=3)  # DE knows the new card, and the old key has ended; IN has not heard
    talk(world, 3)
    assert all_states(world) == {DE: {InboxState.EQUIVOCATION}, IN: {InboxState.EQUIVOCATION}}


def test_a_node_of_the_first_version_is_told_nothing_and_nobody_is_alarmed(world: World) -> None:
    agree(world)
    release(world)
    made = replace(world[IN].card, protocols=(1,), version=world[IN].card.version + 1)
    with write(world[DE].engine) as tx:
        tx.execute(update(peers).where(peers.c.node == IN).values(card=main.sign_card(made, world[IN].keys)))
    before = len(history(world[DE], IN))
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    assert len(history(world[DE], IN)) == before
    assert open_alarms(world, DE) == set()
    assert all_states(world)[DE] == {InboxState.CURRENT}


@pytest.mark.invariant("I16")
def test_a_receiver_that_was_rolled_back_finds_it_again(world: World, tmp_path: Path) -> None:
    agree(world)
    release(world)
    tell_two_stories(world)
    kept, file = tmp_path / "kept.db", world[DE].home / main.DATABASE_FILE
    world[DE].engine.dispose()
    shutil.copyfile(file, kept)
    talk(world, 3)
    world[DE].engine.dispose()
    shutil.copyfile(kept, file)
    reopen(world, DE)
    assert all_states(world) == {DE: {InboxState.CURRENT}, IN: {InboxState.EQUIVOCATION}}  # sanity
    world.clock.move(minutes=1)
    world.sync(DE, IN)
    assert all_states(world)[DE] == {InboxState.EQUIVOCATION}
