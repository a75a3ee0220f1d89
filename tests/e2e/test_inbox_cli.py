"""The commands for what came in, for alarms and for incidents, as people type them; run in this process."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import select

from federation.recall import Reason
from node.cli import app, exits
from node.cli.inbox import State
from node.desk import inbox
from node.desk.inbox import InboxState
from node.home.context import Node
from node.operation import courier
from node.records import alarms
from node.records.alarms import Alarm
from node.sharing import recalls, releases
from node.store.database import read, write
from node.store.tables import audit
from tests.e2e.net import make_net, until
from tests.e2e.processes import ready
from tests.e2e.test_people import commands
from tests.lies import fork, sign_again
from tests.nodes import DE, FR, World, agree, document, import_document, make_world
from tests.unit.test_courier import Receiver, write_addresses
from tests.unit.test_work import revise

SCRIPT = Path(__file__).parents[1] / "conformance" / "verify_incident.py"
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")  # imported by apprise


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def run(node: Node, *words: str) -> Done:
    """One command on the home of a node."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    command = typer.main.get_command(app)
    arguments = ["--home", str(node.home), *words]
    with redirect_stdout(out), redirect_stderr(err):
        code = exits.run(lambda: command.main(args=arguments, prog_name="apostille", standalone_mode=False))
    out.seek(0)
    return Done(int(code), out.read(), err.getvalue())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR has sent A and B to DE."""
    made = make_world(tmp_path)
    agree(made)
    for name, text in (("A", "Prompt injection."), ("B", "A buffer overflow.")):
        releases.release(made[FR], import_document(made[FR], document(name, title=f"About {name}", notes=(text,))))
    made.sync(DE, FR)
    yield made
    made.close()


@pytest.fixture
def de(world: World) -> Node:
    return world[DE]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def names(done: Done) -> list[str]:
    return sorted(item["advisory"] for item in done.json())


def test_the_inbox_is_asked_in_words(world: World, de: Node) -> None:
    today = f"{world.clock():%Y-%m-%d}"
    for words, found in (
        ((), ["A", "B"]),
        (("--text", "PROMPT inject"), ["A"]),
        (("--text", "overflow", "--origin", FR, "--tlp", "GREEN"), ["B"]),
        (("--since", today, "--until", today), ["A", "B"]),
        (("--until", "2026-01-01"), []),
        (("--state", "superseded"), []),
        (("--state", "current", "--state", "recalled"), ["A", "B"]),
        (("--unread",), ["A", "B"]),
        (("--assigned-to", "me"), []),
    ):
        assert names(run(de, "inbox", "list", *words, "--json")) == found, words
    assert "Nothing fits." in run(de, "inbox", "list", "--text", "nowhere").err
    shown = run(de, "inbox", "list", "--text", "prompt")
    assert "About A" in shown.out
    assert "About B" not in shown.out
    for wrong in (("--since", "yesterday"), ("--until", "2026-02-30"), ("--cve", "x"), ("--text", "")):
        done = run(de, "inbox", "list", *wrong)
        assert (done.code, done.out) == (2, ""), done.err
        assert wrong[0] in done.err
        assert len(done.err.splitlines()) == 1


def test_an_item_is_read_assigned_done_and_annotated(de: Node) -> None:
    number = str(inbox.find(de, "A").id)
    assert run(de, "inbox", "show", "A").code == 0
    (item,) = run(de, "inbox", "list", "--text", "prompt", "--json").json()
    me = item["read_by"]
    assert me
    assert names(run(de, "inbox", "list", "--unread", "--json")) == ["B"]
    assert run(de, "inbox", "read", "B", "--json").json()["read_by"] == me
    assert run(de, "inbox", "assign", number, "me", "--json").json()["assigned_to"] == me
    assert names(run(de, "inbox", "list", "--assigned-to", me, "--json")) == ["A"]
    assert (
        run(de, "inbox", "assign", number, "--undo").err == f"A revision 1, number {number}, is assigned to nobody.\n"
    )
    assert run(de, "inbox", "assign", number).code == 2
    assert run(de, "inbox", "actioned", number, "--json").json()["actioned_by"] == me
    assert run(de, "inbox", "actioned", number, "--undo", "--json").json()["actioned_by"] is None
    assert run(de, "inbox", "annotate", number, "ours: teapot \x1b[31m").code == 0
    shown = run(de, "inbox", "show", "A")
    body, _, ours = shown.out.partition("Notes of this node, which no peer wrote or sees")
    assert "teapot" not in body
    assert "ours: teapot" in ours
    assert "\x1b" not in shown.out
    assert run(de, "inbox", "show", "A", "--json").json()["annotations"][0]["by"] == me
    export = run(de, "inbox", "export", "A", "--format", "csaf")
    assert "Prompt injection." in export.out
    assert "teapot" not in export.out


@pytest.mark.invariant("I15")
def test_of_what_is_gone_only_our_words_are_shown(world: World, de: Node) -> None:
    run(de, "inbox", "annotate", "A", "ours: teapot")
    recalls.give(world[FR], "A", Reason.ERROR)
    world.sync(DE, FR)
    done = run(de, "inbox", "show", "A")
    assert done.code == exits.Code.HELD
    assert "recalled by its origin" in done.out
    assert "ours: teapot" in done.out
    assert "bytes are gone" in done.err
    assert "Prompt" not in done.out + done.err
    assert "About A" not in done.out + done.err
    told = json.loads(run(de, "inbox", "show", "A", "--json").out)
    assert (told["state"], told["annotations"][0]["text"]) == ("recalled", "ours: teapot")
    assert "csaf" not in told


def test_revisions_are_compared(world: World, de: Node) -> None:
    assert run(de, "inbox", "diff", "A").code == exits.Code.NOT_FOUND
    revise(world, "A", title="About A, again", notes=("Prompt injection.",))
    changed = {change["pointer"]: change for change in run(de, "inbox", "diff", "A", "--json").json()["changes"]}
    assert changed["/csaf/document/title"]["later"] == "About A, again"
    shown = run(de, "inbox", "diff", "A").out
    assert "/csaf/document/title" in shown
    assert "not disclosed in number" in shown


def test_every_state_can_be_asked_for() -> None:
    assert {state.value for state in State} == {state.value for state in InboxState}


# Alarms


def test_what_an_alarm_tells_to_do_are_commands_that_exist() -> None:
    known = commands()
    for kind, advice in alarms.ADVICE.items():
        words = advice.partition("apostille ")[2].split()
        assert any(" ".join(words).startswith(command) for command in known), (kind, advice)


def raise_one(node: Node, kind: Alarm, subject: str) -> None:
    with write(node.engine) as tx:
        alarms.raise_alarm(tx, kind, subject, "a detail", node.clock())


def test_alarms_are_listed_with_what_to_do_and_acknowledged(de: Node) -> None:
    assert "There is no open alarm." in run(de, "alerts", "list").err
    assert run(de, "status", "--json").json()["alarms"] == 0
    raise_one(de, Alarm.QUARANTINE, FR)
    raise_one(de, Alarm.DISK, "home")
    assert run(de, "status", "--json").json()["alarms"] == 2
    assert "2 open (apostille alerts list)" in run(de, "status").out
    shown = run(de, "alerts", "list").out
    assert "apostille quarantine list" in shown
    assert "apostille doctor" in shown
    first = run(de, "alerts", "list", "--json").json()[-1]
    assert (first["kind"], first["subject"], first["count"]) == ("QUARANTINE", FR, 1)
    assert run(de, "alerts", "ack").code == 2
    assert run(de, "alerts", "ack", "99").code == exits.Code.NOT_FOUND
    assert "Acknowledged" in run(de, "alerts", "ack", str(first["alarm"])).err
    assert [alarm["kind"] for alarm in run(de, "alerts", "list", "--json").json()] == ["DISK"]
    assert len(run(de, "alerts", "ack", "--all", "--json").json()) == 1
    assert "Nothing of that was open" in run(de, "alerts", "ack", "--all").err
    assert "Acknowledged" in run(de, "alerts", "list", "--all").out


def test_a_test_message_goes_to_every_address_and_tells_which_took_it(de: Node, receiver: Receiver) -> None:
    done = run(de, "alerts", "test")
    assert done.code == 2
    assert str(de.home / courier.FILE_NAME) in done.err
    write_addresses(de, receiver.url("/one"), receiver.url("/two", user="user:SECRET@"))
    assert "nothing is wrong" not in run(de, "alerts", "test").out
    assert [path for path, _ in receiver.got] == ["/one", "/two"]
    assert "a test of alerts" in receiver.got[0][1]["message"]
    receiver.failures = {"/two": 1}
    done = run(de, "alerts", "test", "--json")
    assert (done.code, json.loads(done.out)) == (
        1,
        [{"line": 1, "scheme": "json", "taken": True}, {"line": 2, "scheme": "json", "taken": False}],
    )
    assert "SECRET" not in done.out + done.err
    with read(de.engine) as tx:
        told = tx.execute(select(audit.c.detail).where(audit.c.act == "alerts.test")).scalars().all()
    assert told == ["2 of 2 took it", "1 of 2 took it"]


@pytest.mark.invariant("I17")
def test_a_node_that_serves_carries_its_alarms(tmp_path: Path, receiver: Receiver) -> None:
    with make_net(tmp_path) as net:
        fr = net.world[FR]
        settings = fr.home / "apostille.yaml"
        settings.write_text(settings.read_text("utf-8").replace("127.0.0.1:7001", "127.0.0.1:0", 1), encoding="utf-8")
        write_addresses(fr, "json://user:secret@secret.invalid/x", receiver.url("/one", user="user:SECRET@"))
        raise_one(fr, Alarm.QUARANTINE, DE)
        with ready(fr.home) as served:
            until(lambda: len(receiver.got) == 1, 60)
            assert run(fr, "alerts", "list", "--json").json()[0]["kind"] == "QUARANTINE"
            served.process.terminate()
            code, said = served.ended()
        assert code == 0
        assert 'event="alert failed"' in said
        assert "secret" not in said.lower()
        assert receiver.got[0][1]["title"] == f"apostille {FR}: QUARANTINE"


# Incidents


def test_an_incident_is_shown_exported_and_proved_to_a_third_party(world: World, de: Node, tmp_path: Path) -> None:
    assert "There is no open incident." in run(de, "peer", "incident", "list").err
    fork(world)
    (found,) = run(de, "peer", "incident", "list", "--json").json()
    assert (found["kind"], found["peer"], found["proves_itself"]) == ("FORK", FR, True)
    number, file, card = str(found["incident"]), tmp_path / "incident.json", tmp_path / "card.json"
    assert "two histories" in run(de, "peer", "incident", "show", number).out
    assert "It proves itself" in run(de, "peer", "incident", "export", number, "--out", str(file)).err
    assert run(de, "peer", "incident", "export", number).out.encode() == file.read_bytes()
    run(world[FR], "card", "export", "--out", str(card))
    command = [sys.executable, "-E", "-s", str(SCRIPT), str(file), "--card", str(card)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"proved: {FR} signed two heads")
    assert run(de, "status", "--json").json()["incidents"] == 1
    asked = run(de, "peer", "incident", "resolve", number, "--reason", "explained by telephone")
    assert asked.code == exits.Code.AWAITS_SECOND
    assert "Settle this incident" in run(de, "approval", "show", "1").out
    assert run(de, "peer", "incident", "show", "99").code == exits.Code.NOT_FOUND


def test_of_two_documents_one_is_chosen_by_its_digest(world: World, de: Node) -> None:
    second = sign_again(world)
    number = str(run(de, "peer", "incident", "list", "--json").json()[0]["incident"])
    shown = run(de, "peer", "incident", "show", number).out
    assert second.hex() in shown
    done = run(de, "peer", "incident", "resolve", number, "--reason", "x")
    assert done.code == 2
    assert second.hex()[:16] in done.err
    asked = run(de, "peer", "incident", "resolve", number, "--reason", "x", "--keep", second.hex()[:16])
    assert asked.code == exits.Code.AWAITS_SECOND
    assert f"the document {second.hex()[:16]}" in run(de, "approval", "show", "1").out
