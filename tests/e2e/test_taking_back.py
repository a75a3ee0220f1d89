"""Taking back, on the command line: recall, withdraw, revise, purge; what people see, and what scripts get."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from node.desk import inbox
from node.desk.inbox import InboxState
from node.store.database import write
from node.store.tables import inbox as inbox_table
from tests.e2e.test_cli import run
from tests.nodes import DE, FR, IN, World, agree, document, import_document, make_world, release, reopen
from tests.unit.test_revise import later


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR has released X and Y to DE and IN, who have them."""
    made = make_world(tmp_path, FR, DE, IN)
    agree(made)
    release(made, "X", "Y")
    made.sync_all()
    yield made
    made.close()


def sync(world: World) -> None:
    """Everybody exchanges, after commands of other processes."""
    for name in (FR, DE, IN):
        reopen(world, name)
    world.sync_all(2)


def told(home: Path, *words: str) -> Any:
    return run(home, *words, "--json").json()


def test_a_recall_from_the_first_look_to_the_last_answer(world: World) -> None:
    home = world[FR].home
    seen = told(home, "recall", "preview", "X")
    assert [(r["peer"], r["revisions"], r["acknowledged"], r["may_pass_on"]) for r in seen] == [
        (DE, [1], 1, False),
        (IN, [1], 1, False),
    ]
    assert "May pass it on" in run(home, "recall", "preview", "X").out
    assert run(home, "recall", "status").err == "There is no recall.\n"
    run(home, "recall", "X").refused(2, "Missing option '--reason'")
    run(home, "recall", "Z", "--reason", "error").refused(3, "no advisory is called Z")
    given = told(home, "recall", "X", "--reason", "consent")
    assert (given["advisory"], given["revisions"], given["reason"]) == ("X", [1], "consent")
    assert {holder["node"]: holder["state"] for holder in given["holders"]} == {DE: "pending", IN: "pending"}
    run(home, "advisory", "release", "X").refused(2, "is recalled and is released no more")
    assert [a["state"] for a in told(home, "advisory", "list")] == ["recalled", "issued"]
    sync(world)
    (order,) = told(home, "recall", "status", "X")
    assert {(h["node"], h["via"], h["state"], h["order_acknowledged"]) for h in order["holders"]} == {
        (DE, DE, "purged", True),
        (IN, IN, "purged", True),
    }
    run(home, "recall", "order", "X", "--reason", "consent").refused(2, "recalled already, and everybody has answered")
    shown = run(home, "recall", "status").out
    assert "X revision 1 of cert.fr.example: consent" in shown
    assert "purged" in shown
    assert run(home, "recall", "status", "Y").err == "Y was not recalled.\n"
    (theirs,) = told(world[DE].home, "recall", "status")
    assert (theirs["origin"], theirs["by"], theirs["holders"]) == (FR, FR, [])
    rows = told(home, "ledger", "list", "--advisory", "X")
    assert {row["taken_back"] for row in rows} == {"recall"}


def test_an_advisory_is_taken_back_from_one_peer(world: World) -> None:
    home = world[FR].home
    assert told(home, "advisory", "withdraw", "X", "--from", DE)["peer"] == DE
    run(home, "advisory", "withdraw", "X", "--from", DE).refused(3, "nothing of X stands in the feed")
    run(home, "advisory", "withdraw", "Y", "--from", "cert.ke.example").refused(3, "no peer is called")
    sync(world)
    states = {item.name: item.state for item in inbox.items(world[DE], every_state=True)}
    assert states == {"X": InboxState.WITHDRAWN, "Y": InboxState.CURRENT}
    assert [item.state for item in inbox.items(world[IN], every_state=True)] == [InboxState.CURRENT] * 2
    assert "Withdrew Y from cert.in.example: entry" in run(home, "advisory", "withdraw", "Y", "--from", IN).err


def test_a_revision_and_what_becomes_of_those_who_do_not_get_it(world: World, tmp_path: Path) -> None:
    home, file = world[FR].home, tmp_path / "later.json"
    file.write_text(json.dumps({"csaf": later("X", "2"), "labels": {"/csaf/document/notes/0": "exploit"}}), "utf-8")
    run(home, "advisory", "revise", "X").refused(2, "a FILE, or --from-issued")
    run(home, "advisory", "revise", "X", str(file), "--from-issued").refused(2, "a FILE, or --from-issued")
    made = told(home, "advisory", "revise", "X", str(file))
    assert (made["revision"], made["state"], made["fresh"], made["tlp"]) == (2, "draft", True, "GREEN")
    assert "changed" in run(home, "advisory", "revise", "X", str(file)).err
    sent = told(home, "advisory", "release", "X", "--to", DE)
    assert sent["unsettled"] == [{"peer": IN, "holds": [1], "newest": 2, "acknowledged": True, "left": None}]
    shown = run(home, "advisory", "release", "X", "--to", DE).err
    assert f"{IN} is left with revision 1 and did not get revision 2." in shown
    assert told(home, "status")["unsettled"] == 1
    assert "a peer is left with an earlier revision" in run(home, "status").err
    assert "NONE" in run(home, "advisory", "holders", "X").out
    run(home, "advisory", "holders", "X", "--leave", IN).refused(2, "--leave PEER --reason TEXT")
    (left,) = told(home, "advisory", "holders", "X", "--leave", IN, "--reason", "an archive")
    assert left["left"] == "an archive"
    assert told(home, "status")["unsettled"] == 0
    run(home, "advisory", "holders", "X", "--recall").refused(2, "nobody is left")
    assert told(home, "advisory", "show", "X", "--revision", "1")["csaf"]["document"]["tracking"]["version"] == "1"
    again = run(home, "advisory", "revise", "X", "--from-issued").err
    assert "Drafted revision 3 of X." in again
    assert "/csaf/document/notes/0 stays exploit" in again
    told(home, "advisory", "release", "X", "--to", DE)
    assert told(home, "advisory", "holders", "X", "--json")[0]["left"] == "an archive"
    file.write_text(json.dumps(later("X", "4", notes=("Otherwise.", "In other words."))), "utf-8")
    beside = run(home, "advisory", "revise", "X", str(file)).err
    assert "/csaf/document/notes/0 stays exploit" in beside
    assert "/csaf/document/notes/1 is raised to exploit: /csaf/document/notes/0 was" in beside
    assert "A second person can lower it: apostille advisory label X PART CATEGORY" in beside
    import_document(world[FR], document("Z"))
    run(home, "advisory", "revise", "Z", "--from-issued").refused(2, "never released")


def test_those_who_are_left_can_be_recalled_from(world: World) -> None:
    home = world[FR].home
    told(home, "advisory", "revise", "X", "--from-issued")
    told(home, "advisory", "release", "X", "--to", DE)
    assert run(home, "advisory", "holders", "X", "--recall").err == "Nobody is left with an earlier revision of X.\n"
    (order,) = told(home, "recall", "status", "X")
    assert (order["reason"], [holder["node"] for holder in order["holders"]]) == ("replaced", [IN])


def test_what_has_ended_is_counted_and_then_erased(world: World) -> None:
    home = world[DE].home
    run(home, "purge").refused(2, "--expired")
    nothing = {"inbox": 0, "set_aside": 0, "deliveries": 0}
    assert told(home, "purge", "--expired") == {"dry_run": False, **nothing}
    with write(world[DE].engine) as tx:
        over = world.clock() - timedelta(hours=1)
        tx.execute(update(inbox_table).where(inbox_table.c.name == "X").values(retain_until=over))
    assert told(home, "purge", "--expired", "--dry-run") == {"dry_run": True, **nothing, "inbox": 1}
    assert run(home, "purge", "--expired", "--dry-run").err == "Nothing was erased.\n"
    assert run(home, "purge", "--expired").err == "Erased. Leaf hashes and the ledger stay.\n"
    states = {item.name: item.state for item in inbox.items(world[DE], every_state=True)}
    assert states == {"X": InboxState.EXPIRED, "Y": InboxState.CURRENT}
