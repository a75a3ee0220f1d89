"""Row 23: whatever a peer writes is inert where this node shows it.

FR, who signs with its real keys what its own software would refuse, puts canaries (`tests.faults.canaries`) into every
text of the wire contract: documents with all their keys, names, statements, recalls, refusals, agreements, cards, bytes
that are nothing. Then every command of the command line is run on DE's home: in a pipe, as JSON, with colours forced,
and on terminals of 80 and 200 columns. Nothing that they write steers, hides, or begins a line that is not ours; the same
holds for files that they make, for logs, metrics and messages to people. A command that is in neither list below fails
the test.
"""

import fcntl
import json
import os
import pty
import re
import struct
import termios
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from federation import entries, grant, handling, jws, outbound, recall, strictjson
from federation.base64url import b64url
from federation.entries import (
    AgreementOffer,
    Body,
    Delivery,
    Granted,
    NewCard,
    NewEpoch,
    Purge,
    RecallOrder,
    Said,
    Withdrawal,
)
from federation.limits import MAX_NAME_CHARS
from federation.marking import issue_claims
from federation.model import Category, JsonObject, NodeId, Presentation, Role, instant_text
from federation.recall import Reason
from federation.sdjwt import Salts
from federation.statement import Seen, Subject
from federation.strictjson import encode
from node.cli import app
from node.home.context import Node
from node.peering.agreements import Held
from node.sharing import advisories, releases
from tests.commands import Running, outside
from tests.e2e.net import Net, make_net
from tests.e2e.processes import PATIENCE_S
from tests.faults.campaign import FULL
from tests.faults.canaries import CANARIES, TEXTS, faults, shown, valid, write
from tests.faults.liar import append_raw, prepare
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    agree,
    append_by_hand,
    document,
    history,
    import_document,
    payload_of,
    signed_core,
    terms_text,
)

EVERY = (1 << 63) - 1
MODES = ("pipe", "json", "colours", "80 columns", "200 columns")
TERMINALS = {"80 columns": 80, "200 columns": 200}
BETWEEN = "<<<between two commands>>>"
MANY = f"""
import json, os, sys
from pathlib import Path
import typer
from node.cli import app, exits, screen

command = typer.main.get_command(app)
for words in json.loads(Path(sys.argv.pop()).read_text()):
    screen._PRINTED.clear()
    exits.run(lambda: command.main(args=words, prog_name="apostille", standalone_mode=False))
    for stream in (sys.stdout, sys.stderr):
        print("\\n{BETWEEN}", file=stream, flush=True)
"""
CALLED = "=a\x1b[8m\x9b2J\n\u202eFORGED\u200b{0}[red].json"  # the name of a file
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
    "approval show", "advisory list", "advisory show", "case show", "case list", "explain",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """DE, to whom FR has sent all that, and a folder of files that came from strangers."""

    net: Net
    held: Held
    files: Path

    @property
    def home(self) -> Path:
        return self.net.world[DE].home


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


def honest_update(scene: Scene) -> None:
    """FR sends DE an ordinary advisory, which DE takes."""
    fr = scene.net.world[FR]
    releases.release(fr, import_document(fr, document("HONEST")))
    assert scene.net.world.sync(DE, FR).entries == 1


def delivery(scene: Scene, name: str, text: str, *, later_s: int = 0) -> Delivery:
    """A document of canaries, signed by FR, with every part of it in full."""
    fr = scene.net.world[FR]
    concealed = issue_claims(*write(name, text), fr.labels, {}, salts=Salts(fr.entropy))
    _, honest = advisories.own_advisory(fr, "HONEST")
    moment = int(fr.clock().timestamp()) - 60 + later_s
    plain = {"v": 1, "iss": FR, "jti": f"{FR}/{name}/1", "iat": moment, "handling": honest.payload["handling"]}
    core = signed_core(fr, plain | concealed.payload)
    own = outbound.reopen(core, tuple(d.raw for d in concealed.disclosures), fr.labels)
    general = {e.generalised for e in own.elements if e.full is not None}
    parts = tuple(n.disclosure.raw for n in own.nodes if n.digest not in general)
    terms = handling.narrow(own.handling, scene.held.agreement, own.core_digest, DE, fr.clock() - timedelta(minutes=1))
    return Delivery(Presentation(core, parts), terms)


def send_all(scene: Scene) -> None:
    """Everything that FR and IN say. `raw` may be anything: what DE does not take is shown as well."""
    world = scene.net.world
    fr, india = world[FR], world[IN]
    for number, text in enumerate(TEXTS):
        name = text[:MAX_NAME_CHARS]
        sent = delivery(scene, name, text)
        append_by_hand(fr, DE, sent)
        append_by_hand(fr, DE, delivery(scene, name[:-1], text))
        append_by_hand(fr, DE, delivery(scene, name[:-1], text, later_s=1))  # the same revision: EQUIVOCATION
        recalled = name[:-2]
        append_by_hand(fr, DE, delivery(scene, recalled, text))
        for body in said(fr, name, text):
            append_by_hand(fr, DE, body)
        append_by_hand(fr, DE, order(fr, recalled))
        append_by_hand(fr, DE, grant_of(fr, sent))
        for data in malformed(scene, sent, text, number) if number == 0 or FULL else ():
            append_raw(fr, DE, data)
        seen = Seen(Subject(FR, name, 1), bytes(32))
        append_by_hand(india, DE, statement_of(india, DE, "seen", None, {"cores": [seen.write()]}))


def statement_of(author: Node, to: str, kind: str, about: JsonObject | None, body: JsonObject) -> Said:
    """A statement that says whatever it is told to."""
    members = {
        "statement": kind,
        "to": to,
        "at": instant_text(author.clock() - timedelta(minutes=1)),
        "about": about,
        "in_reply_to": None,
        "body": body,
    }
    return Said(signed(author, members, "statement+jws"))


def signed(author: Node, members: JsonObject, typ: str, kid: str | None = None) -> bytes:
    """A document under the author's real key, whatever its members are."""
    signer = author.keys.signer(Role.ISSUE, author.card, author.clock())
    payload = strictjson.encode(members)
    signature = jws.sign(payload, typ, kid or f"{author.id}/{signer.kid}", signer.sign)
    return jws.serialise(jws.SignedDocument(payload, (signature,)))


def said(fr: Node, name: str, text: str) -> Iterator[Said]:
    """Statements of every kind, and of none that is known."""
    about: JsonObject = {"origin": FR, "name": name, "revision": 1}
    for kind in ("question", "correction", "affects", "answer"):
        yield statement_of(fr, DE, kind, about, {"text": text * 20})
    yield statement_of(fr, DE, "acknowledge", about, {})
    yield statement_of(fr, DE, "future-kind", about, {text: text, "text": {text: [text]}})
    refused = {"seq": 0, "leaf_hash": "00" * 32, "code": text, "rules": [text] * 40}
    yield statement_of(fr, DE, "refusal", about, {"feed": text, "entries": [refused, refused | {"seq": EVERY}]})
    yield statement_of(fr, DE, "core", about, {"core": text})
    yield statement_of(fr, DE, "seen", None, {"cores": [{**about, "core": text}]})
    answer = {"recall": text, "outcome": text, "passed_on": [text], "unreachable": [text]}
    for change in ({}, {"recall": "00" * 32}, {"recall": "00" * 32, "outcome": "purged"}):
        yield statement_of(fr, DE, "purge", about, answer | change)
    for members in ({"origin": text}, {"name": f"{name}{text}"}, {"revision": text}, {text: text}):
        yield statement_of(fr, DE, "question", about | members, {"text": text})
    yield statement_of(fr, text, "question", about, {"text": text})
    yield statement_of(fr, DE, text, about, {"text": text})


def order(fr: Node, name: str) -> RecallOrder:
    """A recall of what DE holds."""
    signer = fr.keys.signer(Role.ISSUE, fr.card, fr.clock())
    at = fr.clock() - timedelta(minutes=1)
    return RecallOrder(
        recall.sign(FR, name, (1,), Reason.ERROR, at, kid=signer.kid, sign_bytes=signer.sign).document, ()
    )


def grant_of(fr: Node, sent: Delivery) -> Granted:
    """Leave for DE to pass it on."""
    signer = fr.keys.signer(Role.ISSUE, fr.card, fr.clock())
    until = fr.clock().replace(microsecond=0) + timedelta(days=9)
    made = grant.sign(
        FR, sent.terms.core_digest, DE, [IN], set(Category), until, kid=signer.kid, sign_bytes=signer.sign
    )
    return Granted(made.document)


def malformed(scene: Scene, sent: Delivery, text: str, number: int) -> Iterator[bytes]:
    """Entries that are wrong somewhere, and say so in canaries; their place in the feed is found out by whoever reads."""
    fr = scene.net.world[FR]
    raw = text.encode("utf-8")
    honest = history(fr, DE)[0]
    assert isinstance(honest, bytes)
    payload = payload_of(sent.presentation.core)
    changes: list[JsonObject] = [
        {"iss": text},
        {"jti": text},
        {"jti": f"{FR}/{text}/{text}"},
        {"iat": text},
        {"v": text},
        {text: text},
        {"handling": text},
        *({"handling": payload["handling"] | {member: text}} for member in payload["handling"]),
        {"handling": payload["handling"] | {text: text}},
        {"csaf": text},
        {"_sd_alg": text},
    ]
    bodies: list[Body] = [
        Delivery(Presentation(signed_core(fr, payload | change), sent.presentation.disclosures), sent.terms)
        for change in changes
    ]
    bodies += [Delivery(Presentation(core, (raw,)), sent.terms, raw) for core in (raw, sent.presentation.core)]
    bodies += [
        Delivery(Presentation(signed_header(fr, member, text), ()), sent.terms) for member in ("alg", "typ", "kid")
    ]
    bodies += [Delivery(sent.presentation, replace(sent.terms, **{part: text})) for part in ("onward", "attribution")]
    bodies += [Delivery(sent.presentation, replace(sent.terms, recipient=NodeId(text)))]
    bodies += [kind((0,), text) for kind in (Withdrawal, Purge)]
    bodies += [Withdrawal((0,), "x", f"{FR}/feeds/{text}/0"), NewEpoch(f"{FR}/feeds/{text}/1", raw, text)]
    documents = [raw, signed(fr, {text: text}, "agreement+jws"), signed(fr, {}, "agreement+jws", "a/x")]
    documents += [signed(fr, agreed(scene) | {member: text}, "agreement+jws") for member in agreed(scene)]
    bodies += [kind(data) for data in documents for kind in (AgreementOffer, NewCard, Granted, Said)]
    bodies += [RecallOrder(raw, (0,)), RecallOrder(signed(fr, {"recall": text, "reason": text}, "recall+jws"), ())]
    seq = len(history(fr, DE))
    for place, body in enumerate(bodies):
        yield entries.write(entries.Envelope(f"{FR}/feeds/{DE}/1", seq + place, bytes([number]) * 16, body))
    yield from (raw, honest + raw, b"")


def agreed(scene: Scene) -> JsonObject:
    members: JsonObject = json.loads(scene.held.agreement.canonical)
    return members


def signed_header(fr: Node, member: str, text: str) -> bytes:
    """A core whose header says `text`."""
    head = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": "x"} | {member: text}
    return ".".join(b64url(part) for part in (encode(head), encode({"iss": FR}), bytes(64))).encode()


def write_files(scene: Scene) -> None:
    """Files that strangers gave to people here, their names included."""
    text = TEXTS[0]
    path = scene.files / CALLED
    document_of = {"csaf": valid("IMPORTED", " ".join(TEXTS)), "handling": {"tlp": "GREEN"}, "labels": {}}
    files = {
        "import.json": encode(document_of),
        "hostile.json": encode({"csaf": write("X", text)[0], "handling": {text: text}, "labels": {text: text}}),
        "agreement.yaml": terms_text(scene.net.world, agreement=json.dumps(text)).encode(),
        "signed.json": signed(scene.net.world[FR], agreed(scene) | {"agreement": text}, "agreement+jws"),
        "card.json": signed(scene.net.world[FR], {"card": text, text: text}, "card+jws"),
        "proof.json": encode({"proof": text, text: [text]}),
        "case.yaml": CASE.format(text=json.dumps(" ".join(TEXTS))).encode(),
    }
    for name, data in files.items():
        (scene.files / name).write_bytes(data)
    path.write_bytes(text.encode())
    (scene.files / "cards").mkdir()
    for node in scene.net.world.nodes.values():
        (scene.files / "cards" / f"{node.id}.json").write_bytes(node.card_bytes)


def typed(scene: Scene) -> dict[str, list[list[str]]]:
    """What is typed on DE's home, by command, in an order in which each finds what it is to show."""
    files = scene.files
    at = {name: str(files / name) for name in os.listdir(files)}
    strange = at[CALLED]
    name, imported = TEXTS[0][:MAX_NAME_CHARS], "IMPORTED"
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
        "ledger list": [[], ["--elements"], ["--advisory", f"{FR}/{name}"]],
        "proof export": [[f"{FR}/{name}", IN, "--out", proof], [f"{FR}/{name}?", IN]],
        "proof verify": [[proof, *cards, "--content", "--without-receipt"], [at["proof.json"], *cards], [strange]],
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
        "advisory show": [[imported], [imported, "--as-peer", FR], [f"{name}?"]],
        "advisory label": [[imported, "/csaf/document/notes/0\x1b[8m", "exploit"]],
        "explain": [[imported, FR, "--all"]],
        "advisory release": [[imported, "--dry-run", "-v"], [imported]],
        "advisory grant": [[imported, "--relay", FR, "--to", IN, "--until", "2099-01-01"]],
        "advisory holders": [[imported]],
        "advisory revise": [[imported, "--from-issued"]],
        "advisory withdraw": [[imported, "--from", FR]],
        "recall preview": [[imported]],
        "recall order": [[imported, "--reason", "error"]],
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


def run_all(scene: Scene, lines: Sequence[Sequence[str]], mode: str) -> tuple[list[str], list[str]]:
    """What each of these commands writes to stdout and to stderr, one after the other in one process."""
    script = scene.files.parent / f"{scene.files.name}.commands"
    script.write_text(json.dumps([["--home", str(scene.home), *line] for line in lines]), "utf-8")
    env = outside() | {"TERM": "xterm-256color"} | ({"FORCE_COLOR": "1"} if mode == "colours" else {})
    env.pop("NO_COLOR", None)
    if mode in TERMINALS:
        out, err = on_terminal(script, env, TERMINALS[mode])
    else:
        with Running(str(script), code=MANY, env=env, cwd=scene.files.parent) as process:
            out, err = process.communicate(timeout=3 * PATIENCE_S)
    assert BETWEEN in out, err
    both = [[part.removesuffix("\n") for part in text.split(f"{BETWEEN}\n")][:-1] for text in (out, err)]
    assert len(both[0]) == len(both[1]) == len(lines), err
    return both[0], both[1]


def on_terminal(script: Path, env: dict[str, str], columns: int) -> tuple[str, str]:
    """The same with a terminal as stdout."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    parts: list[bytes] = []

    def read() -> None:
        with open(master, "rb", buffering=0) as screen:
            while True:
                try:
                    parts.append(screen.read(1 << 16))
                except OSError:  # what a terminal says at its end
                    return

    reader = threading.Thread(target=read)
    try:
        process = Running(str(script), code=MANY, env=env, cwd=script.parent, stdout=terminal)
    finally:
        os.close(terminal)
    reader.start()
    with process:
        _, err = process.communicate(timeout=3 * PATIENCE_S)
    reader.join(PATIENCE_S)
    return b"".join(parts).decode("utf-8").replace("\r\n", "\n"), err


def json_faults(text: str) -> list[str]:
    """What is wrong with JSON on stdout: one line of ASCII without controls."""
    if text and not re.fullmatch(r"(?:[\x20-\x7e]+\n)?", text):
        return [f"not one line of ASCII: {text[:80]!r}"]
    try:
        json.loads(text or "0")
    except ValueError as e:
        return [f"not JSON: {e}"]
    return []


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
            if mode != "json" or name in takes_json
        ]
        number += len(lines)
        outs, errs = run_all(scene, [words for _, words in lines], mode)
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
