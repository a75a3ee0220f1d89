"""Row 23: whatever a peer writes is inert where this node shows it.

FR, who signs with its real keys what its own software would refuse, puts canaries (`tests.faults.canaries`) into every
text of the wire contract: documents with all their keys, names, statements, recalls, refusals, agreements, cards, bytes
that are nothing. Then every command of the command line is run on DE's home: in a pipe, as JSON, with colours forced,
and on terminals of 80 and 200 columns. Nothing that they write steers, hides, or begins a line that is not ours; the
same holds for files that they make, for logs, metrics and messages to people. A command that is in neither list below
fails the test.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import grpc
import pytest
import structlog
import typer
from prometheus_client.parser import text_string_to_metric_families

from federation import entries
from federation.entries import AgreementOffer
from federation.limits import MAX_NAME_CHARS
from federation.strictjson import encode
from node.cli import app
from node.desk import inbox
from node.home import logs
from node.operation import courier
from node.records import alarms
from node.store.database import storable
from protos.exchange.v1 import exchange_pb2 as wire
from tests.commands import outside
from tests.e2e.net import make_net, status_of
from tests.e2e.processes import PATIENCE_S, ready
from tests.faults.campaign import FULL
from tests.faults.canaries import (
    CANARIES,
    TEXTS,
    Scene,
    agreed,
    faults,
    honest_update,
    send_all,
    shown,
    signed,
    valid,
    write,
)
from tests.faults.liar import Call, calling, command, lying, prepare
from tests.faults.screens import json_faults, on_terminal, run_all
from tests.nodes import AGREEMENT, DE, FR, IN, agree, terms_text

REFUSALS = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION)
MODES = ("pipe", "json", "80 columns", *(("colours", "200 columns") if FULL else ()))  # the first with every command
DRAW = """
import json, sys
from pathlib import Path
from node.cli import screen

for text in json.loads(Path(sys.argv.pop()).read_text()):
    screen.heading(text)
    screen.facts([(f"  {text}", text)])
    screen.table(("Id", text), [(1, [text] * 3)])
    screen.paragraph(text, indent=2)
    screen.emit({text: text})
"""
CALLED = "=a\x1b[8m\x9b2J\nb\u202e\u200b{0}[red].json"  # the name of a file
IMPORTED = "=CANARY9\x1b[8m\x9b2J\u202e\u200b\r[red]{0}x"  # as strange as CSAF lets a tracking id be
CASE = """
case: OURS-1
title: {text}
summary: {text}
details: {text}
reporter: {{name: {text}, email: {text}}}
internal_notes: {text}
handling: {{tlp: GREEN}}
"""
NO_JSON = {
    "inbox export", "peer incident export", "peer incident resolve", "peer distrust", "peer trust", "peer epoch open",
    "peer epoch accept", "advisory label", "proof export",
}  # fmt: skip
OWN = {  # what shows nothing that came from outside, and why
    "init": "it makes a home",
    "serve": "it writes its log, see below",
    "demo": "its three nodes are its own",
    "upgrade": "it shows versions of this node",
    "people": "accounts of this machine",
    "agreement template": "it ships",
    "alerts test": "it sends a sentence of this node",
    "card export": "this node's card",
    "card renew": "this node's card",
    "card new-roots": "this node's keys",
    "key list": "this node's keys",
    "key rotate": "this node's keys",
    "key retire": "this node's keys",
    "key prune": "this node's keys",
}
READS = {  # what shows what a peer wrote, and has to have shown a canary, or the test has missed it
    "inbox list", "inbox show", "inbox export", "inbox read", "inbox assign", "inbox actioned", "inbox annotate",
    "inbox diff", "statement list", "statement show", "recall status", "advisory grants", "peer incident list",
    "peer incident show", "alerts list", "alerts ack", "relay", "ledger list", "proof verify", "approval list",
    "approval show", "advisory list", "advisory show", "case show", "case list",
}  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with make_net(tmp_path_factory.mktemp("canaries"), FR, DE, IN) as net:
        held = agree(net.world)
        prepare(net, FR, DE, IN)
        made = Scene(net, held, tmp_path_factory.mktemp("files"))
        honest_update(made)
        send_all(made)
        net.world.sync(DE, FR)
        net.world.sync(DE, IN)
        write_files(made)
        yield made


def write_files(scene: Scene) -> None:
    """Files that strangers gave to people here, their names included."""
    text = TEXTS[0]
    path = scene.files / CALLED
    document_of = {"csaf": valid(IMPORTED, " ".join(TEXTS)), "handling": {"tlp": "GREEN"}, "labels": {}}
    files = {
        "import.json": encode(document_of),
        "hostile.json": encode({"csaf": write("X", text)[0], "handling": {text: text}, "labels": {text: text}}),
        "agreement.yaml": terms_text(scene.net.world, agreement=_quoted(text)).encode(),
        "signed.json": signed(scene.net.world[FR], agreed(scene) | {"agreement": text}, "agreement+jws"),
        "card.json": signed(scene.net.world[FR], {"card": text, text: text}, "card+jws"),
        "proof.json": encode({"proof": text, text: [text]}),
        "case.yaml": CASE.format(text=_quoted(" ".join(TEXTS))).encode(),
    }
    for name, data in files.items():
        (scene.files / name).write_bytes(data)
    path.write_bytes(text.encode())
    (scene.files / "cards").mkdir()
    for node in scene.net.world.nodes.values():
        (scene.files / "cards" / f"{node.id}.json").write_bytes(node.card_bytes)


def _quoted(text: str) -> str:
    """`text` as YAML has it."""
    spelt = (c if c.isascii() and c.isalnum() else f"\\U{ord(c):08X}" for c in text)
    return '"' + "".join(spelt) + '"'


def typed(scene: Scene) -> dict[str, list[list[str]]]:
    """What is typed on DE's home, by command, in an order in which each finds what it is to show."""
    files = scene.files
    at = {path.name: str(path) for path in files.iterdir()}
    strange = at[CALLED]
    name = TEXTS[0][:MAX_NAME_CHARS]
    cards = [word for path in sorted((files / "cards").iterdir()) for word in ("--card", str(path))]
    proof = str(files / "made.json")
    return {
        "inbox list": [["--all"], ["--text", "canary0"], ["--origin", FR, "--tlp", "GREEN"]],
        "inbox show": [["2"], ["4"], [name], [f"{name}?"]],
        "inbox export": [["2", "--format", form] for form in ("csaf", "sd-jwt")]
        + [["2", "--format", form, "--out", str(files / f"made.{form}")] for form in ("csaf", "sd-jwt")],
        "inbox read": [["2"]],
        "inbox assign": [["2", "me"], [name, "--undo"]],
        "inbox actioned": [["2"]],
        "inbox annotate": [["2", TEXTS[1].replace("\0", "")]],
        "inbox diff": [["2", "7"]],
        "statement list": [[], ["--about", name]],
        "statement show": [[str(number)] for number in range(1, 12)],
        "statement send": [["--about", "2", "--kind", "question", "--text", "Why?"]],
        "statement reply": [["1", "--text", "So."]],
        "quarantine list": [[]],
        "quarantine show": [[FR, str(number)] for number in (20, 30, 40, 60, 80)],
        "recall status": [[], [name[:-2]]],
        "advisory grants": [[]],
        "relay": [["2", "--to", IN, "--preview", "-v"], ["2", "--to", IN], ["4", "--to", IN]],
        "peer incident list": [["--all"]],
        "peer incident show": [["1"]],
        "peer incident export": [["1"], ["1", "--out", str(files / "made.incident")]],
        "peer incident resolve": [["1", "--reason", "x", "--neither"], ["1", "--reason", "x", "--keep", "zz"]],
        "approval list": [["--all"]],
        "approval show": [["1"]],
        "approval approve": [["1"]],
        "approval refuse": [["1"]],
        "alerts list": [["--all"]],
        "alerts ack": [["--all"]],
        "ledger verify": [[]],
        "status": [[]],
        "doctor": [[]],
        "purge": [["--expired", "--dry-run"]],
        "sync": [[FR]],
        "peer list": [[]],
        "peer distrust": [["cert\x1b[8m.example"]],
        "peer trust": [["cert\x1b[8m.example", "--reason", "x"]],
        "peer enrol": [[at["card.json"], "--yes"], [strange, "--yes"]],
        "peer epoch list": [[]],
        "peer epoch open": [[FR, "--reason", "x"]],
        "peer epoch accept": [[FR, "--reason", "x"]],
        "agreement list": [[]],
        "agreement show": [[AGREEMENT], [at["signed.json"]], [at["agreement.yaml"]], [strange], [f"{name}?"]],
        "agreement check": [[at["agreement.yaml"]], [strange]],
        "agreement propose": [[at["agreement.yaml"]]],
        "agreement countersign": [[at["signed.json"], "--yes"], [strange]],
        "card show": [[at["card.json"]], [strange], []],
        "card sign": [[at["card.json"], "--roots", str(files), "--yes"]],
        "card install": [[at["card.json"]], [strange]],
        "case open": [[at["case.yaml"]], [strange]],
        "case list": [[]],
        "case show": [["OURS-1", "--reporter"], [f"{name}?"]],
        "advisory draft": [["OURS-1"]],
        "advisory import": [[at["import.json"]], [at["hostile.json"]], [strange], [str(files)]],
        "advisory list": [[]],
        "advisory show": [[IMPORTED], [IMPORTED, "--as-peer", FR], [f"{name}?"]],
        "advisory label": [[IMPORTED, "/csaf/document/notes/0\x1b[8m", "exploit"]],
        "explain": [[IMPORTED, FR, "--all"]],
        "advisory release": [[IMPORTED, "--dry-run", "-v"], [IMPORTED]],
        "advisory grant": [[IMPORTED, "--relay", FR, "--to", IN, "--until", "2099-01-01"]],
        "advisory holders": [[IMPORTED]],
        "advisory revise": [[IMPORTED, "--from-issued"]],
        "ledger list": [[], ["--elements"], ["--advisory", IMPORTED]],
        "proof export": [[IMPORTED, FR, "--out", proof], [f"{name}?", FR]],
        "proof verify": [[proof, *cards, "--content", "--without-receipt"], [at["proof.json"], *cards], [strange]],
        "advisory withdraw": [[IMPORTED, "--from", FR]],
        "recall preview": [[IMPORTED]],
        "recall order": [[IMPORTED, "--reason", "error"]],
        "backup": [[at["card.json"], "--verify"], [strange, "--verify"]],
        "restore": [[strange]],
    }


def leaves() -> Iterator[str]:
    """Every command there is."""

    def walk(command: Any, context: Any, path: tuple[str, ...]) -> Iterator[str]:
        names = command.list_commands(context) if hasattr(command, "list_commands") else ()
        if not names:
            yield " ".join(path)
        for name in names:
            child = command.get_command(context, name)
            yield from walk(child, child.context_class(child, info_name=name, parent=context), (*path, name))

    root = typer.main.get_command(app)
    yield from walk(root, root.context_class(root, info_name="apostille"), ())


def test_every_command_is_run_or_shows_nothing_from_outside(scene: Scene) -> None:
    assert set(leaves()) == typed(scene).keys() | OWN.keys()
    assert not typed(scene).keys() & OWN.keys()
    assert typed(scene).keys() >= READS


@pytest.mark.invariant("I12")
def test_no_command_shows_a_canary_that_is_not_inert(scene: Scene) -> None:
    by_command = typed(scene)
    takes_json = {name for name in by_command if name not in NO_JSON}
    seen: dict[str, set[str]] = defaultdict(set)
    wrong = []
    number = 0
    for mode in MODES:
        lines = [
            (name, [*name.split(), *words, *(["--json"] if mode == "json" else [])])
            for name, listed in by_command.items()
            for words in listed
            if (mode != "json" or name in takes_json) and (FULL or mode == "pipe" or name in READS)
        ]
        number += len(lines)
        outs, errs = run_all(scene.home, [words for _, words in lines], mode)
        for (name, words), out, err in zip(lines, outs, errs, strict=True):
            seen[name] |= shown(out + err)
            found = faults(err)
            if mode == "json":
                found += json_faults(out)
            else:
                found += faults(out, colours=mode != "pipe")
            wrong += [f"{mode}: {' '.join(words)!r}: {fault}" for fault in found]
            if "internal error" in err:
                wrong.append(f"{mode}: {' '.join(words)!r}: {err}")
    assert not wrong, "\n".join(wrong[:40])
    assert {name for name in READS if not seen[name]} == set()
    print(f"{number} commands in {len(MODES)} ways over {len(CANARIES)} canaries: every one inert")


# Files, logs, metrics, messages to people

LISTS = (
    "inbox list --all",
    "statement list",
    "quarantine list",
    "alerts list --all",
    "advisory grants",
    "peer incident list --all",
    "agreement list",
    "peer list",
    "peer epoch list",
)


@pytest.mark.invariant("I12")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_what_is_drawn_of_a_canary_is_inert(tmp_path: Path, columns: int) -> None:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps([*(f"x{canary}" for canary in CANARIES.values()), *TEXTS]), "utf-8")
    out, err = on_terminal(file, outside() | {"TERM": "xterm-256color"}, columns, DRAW)
    assert (err, len(shown(out))) == ("", len(TEXTS))
    assert not faults(out, colours=True)


@pytest.mark.invariant("I12")
def test_what_a_peer_wrote_makes_no_row_of_a_table(scene: Scene) -> None:
    lines = [line.split() for line in LISTS]
    outs, _ = run_all(scene.home, [words for line in lines for words in (line, [*line, "--json"])], "pipe")
    found = dict(zip(LISTS, zip(outs[::2], map(json.loads, outs[1::2]), strict=True), strict=True))
    for line, (table, data) in found.items():
        assert len(table.splitlines()) == len(data) + 2, line  # two lines are the table's head
        assert data, line
    assert not shown(json.dumps(found["quarantine list"]))  # why something was set aside is told without its words
    refusal = next(str(said["statement"]) for said in found["statement list"][1] if said["kind"] == "refusal")
    (told,), _ = run_all(scene.home, [["statement", "show", refusal]], "pipe")
    assert len(told[told.index("Entry") :].splitlines()) == 2 + 2  # entries, of sixty rules each


@pytest.mark.invariant("I7")
def test_an_export_says_what_was_signed_in_ascii(scene: Scene) -> None:
    csaf, token, incident = (scene.files / f"out.{form}" for form in ("csaf", "sd-jwt", "incident"))
    node, name = scene.net.world[DE], TEXTS[0][:MAX_NAME_CHARS]
    number = next(str(item.id) for item in inbox.items(node) if item.name == storable(name))
    lines = [["inbox", "export", number, "--format", path.suffix[1:], "--out", str(path)] for path in (csaf, token)]
    run_all(scene.home, [*lines, ["peer", "incident", "export", "1", "--out", str(incident)]], "pipe")
    for path in (csaf, token, incident):
        assert not faults(path.read_bytes().decode("ascii")), path
    assert json.loads(csaf.read_bytes()) == inbox.content(node, number).csaf
    assert json.loads(csaf.read_bytes())["document"]["title"] == TEXTS[0]


@pytest.mark.invariant("I17")
def test_an_alarm_that_is_carried_to_people_is_one_line_without_markup(scene: Scene) -> None:
    node = scene.net.world[DE]
    found = alarms.all_alarms(node, every=True)
    assert {str(alarm.kind) for alarm in found if shown(alarm.subject)} == {"SUSPECTED_EQUIVOCATION"}  # sanity
    for alarm in found:
        for text in (alarm.subject, *TEXTS):
            message = courier.message(node, replace(alarm, subject=text))
            assert message.title == f"apostille {DE}: {alarm.kind}"
            assert re.fullmatch(r"[\w .,:;/+'()…-]{1,400}", message.text), message.text
            assert "//" not in message.text


@pytest.mark.invariant("I17")
def test_a_log_line_is_one_line_whatever_it_says(tmp_path: Path) -> None:
    """Nothing that a peer wrote gets there; this is for the day when something does."""
    try:
        with logs.writing(tmp_path / "log", 1 << 20, 1):
            for text in TEXTS:
                structlog.get_logger().info("sync", reason=text)
    finally:
        structlog.reset_defaults()
    written = (tmp_path / "log").read_text("utf-8")
    assert len(written.splitlines()) == len(TEXTS)
    assert not faults(written)


@pytest.mark.invariant("I17")
def test_a_server_writes_nothing_of_it_into_logs_or_metrics(scene: Scene) -> None:
    """FR answers with canaries, and calls with them: in status, trailers, pages, requests, metadata, methods."""
    net, home = scene.net, scene.home
    text = TEXTS[0] + TEXTS[2]
    ascii_text = "".join(c for c in text if " " <= c <= "~")

    def refuse(call: Call) -> bytes:
        call.context.set_trailing_metadata((("x", ascii_text), ("x-bin", text.encode())))
        call.context.set_code(REFUSALS[call.number % len(REFUSALS)])
        call.context.set_details(text)
        return b""

    def strange(call: Call) -> bytes:
        note = f"{text}\n1\nAAAA\n\n— {text} AAAA\n".encode()
        wrong = entries.write(entries.Envelope(text, 1 << 40, bytes(16), AgreementOffer(b"x")))
        page = wire.PullResponse(items=[wire.PageItem(entry=wrong)], checkpoint=note, latest=note, receipt=note)
        return page.SerializeToString()

    with lying(net, FR, DE) as liar, ready(home) as process, calling(net, FR, DE) as call:
        for script in (refuse, refuse, refuse, strange, lambda _: text.encode()):
            liar.answers["Pull"] = script
            told = command(net, DE, "sync", FR)
            assert told.returncode in (7, 8), told.stderr
            assert not shown(told.stdout + told.stderr)
            assert not faults(told.stdout + told.stderr)
        ask = wire.PullRequest(feed=text, protocol=2, receipt=text.encode(), newest=text.encode())
        for method, data in (("Pull", ask.SerializeToString()), ("Pull", text.encode()), (f"x{ascii_text}", b"")):
            code, word = status_of(lambda m=method, d=data: call(m, d, metadata=[("x", ascii_text)]))  # type: ignore[misc]
            assert code
            assert not shown(word)
        assert process.count("apostille_calls_refused_total", peer=FR) >= 2
        with build_opener(ProxyHandler({})).open(f"http://{process.metrics}/metrics", timeout=PATIENCE_S) as answer:
            metrics = answer.read().decode()
        assert process.health() == "ok"
    log = (home / "apostille.log").read_text("utf-8")
    for written in (metrics, log):
        assert not shown(written)
        assert not faults(written)
    assert all(re.fullmatch(r"timestamp=\S+Z level=(?:info|error) event=.*", line) for line in log.splitlines())
    assert list(text_string_to_metric_families(metrics))
