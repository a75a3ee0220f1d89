"""The command line as people use it: real processes, two homes, files between them.

Two nodes are prepared once: enrolled, an agreement signed through files, advisories imported. Tests that change
something work on a copy. Whatever goes wrong must give one sentence, its exit code, and leave the home as it was.
"""

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from federation.errors import (
    ApostilleError,
    AwaitsSecondError,
    ConflictError,
    DeniedError,
    ForkError,
    HeldError,
    LockedError,
    MalformedError,
    NotAllowedError,
    NotFoundError,
    PolicyError,
    UnreachableError,
    UsageError,
)
from node.cli import document, exits, screen, session
from tests.commands import Running, outside

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "config" / "examples" / "fr"
ADVISORY = "CERT-FR-2026-0131"
PATIENCE_S = 30
AGREEMENT = """\
agreement: fr-de
version: 1
parties: [cert.de.example, cert.fr.example]
valid_from: 2026-01-01T00:00:00Z
valid_until: {until}
sunset_review: {until}
purposes: [detection, remediation]
grants:
  - id: open
    tlp: [CLEAR, GREEN]
    share: {{identification: full, technical: full, product: full, severity: full, personal: generalised}}
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed with --json."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """It ended with `code` and one sentence that holds `words`; no traceback."""
        assert self.code == code, (self.code, self.err)
        assert len(self.err.splitlines()) == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, self.err


def start(home: Path, *words: str, passphrase: str | None = None) -> Running:
    """A command, started."""
    given = {} if passphrase is None else {"APOSTILLE_PASSPHRASE": passphrase}
    return Running("--home", str(home), *words, cwd=home.parent, env={**outside(), **given})


def run(home: Path, *words: str, passphrase: str | None = None) -> Done:
    """A command, from start to end."""
    process = start(home, *words, passphrase=passphrase)
    out, err = process.communicate(timeout=PATIENCE_S)
    return Done(process.wait(), out, err)


def state(home: Path) -> list[str]:
    """Everything in the database of a home."""
    connection = sqlite3.connect(f"file:{home / 'apostille.db'}?mode=ro", uri=True)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


@dataclass(frozen=True)
class Pair:
    """Two homes that know each other."""

    fr: Path
    de: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """France and Germany: enrolled both ways, an agreement in force, French examples imported. Not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    two = Pair(folder / "fr", folder / "de")
    both = ((two.fr, "fr"), (two.de, "de"))

    def prepare(home: Path, code: str) -> str:
        made = run(
            home, "init", "--id", f"cert.{code}.example", "--jurisdiction", code.upper(), "--listen", "0", "--json"
        )
        run(home, "card", "export", "--out", f"{code}.json")
        words: str = made.json()["fingerprint"]
        return words

    with ThreadPoolExecutor(2) as pool:
        fr_words, de_words = pool.map(lambda args: prepare(*args), both)
        enrolled = pool.map(
            lambda args: run(args[0], "peer", "enrol", args[1], "--fingerprint", args[2]),
            ((two.fr, "de.json", de_words.upper()), (two.de, "fr.json", fr_words)),
        )
        assert [done.code for done in enrolled] == [0, 0]
    (folder / "agreement.yaml").write_text(AGREEMENT.format(until="2099-01-01T00:00:00Z"), encoding="utf-8")
    for home, words in (
        (two.fr, ("agreement", "propose", "agreement.yaml", "--out", "signed.json")),
        (two.de, ("agreement", "countersign", "signed.json", "--yes", "--out", "both.json")),
        (two.fr, ("agreement", "countersign", "both.json", "--yes")),
        (two.fr, ("advisory", "import", str(EXAMPLES))),
    ):
        done = run(home, *words)
        assert done.code == 0, done.err
    return two


@pytest.fixture
def copy(pair: Pair, tmp_path: Path) -> Path:
    """A copy of the French home that a test may change."""
    home = tmp_path / "fr"
    shutil.copytree(pair.fr, home)
    return home


def test_cards_and_agreements_travel_as_files(pair: Pair) -> None:
    (peer,) = run(pair.fr, "peer", "list", "--json").json()
    assert (peer["node"], peer["trusted"]) == ("cert.de.example", True)
    for home in (pair.fr, pair.de):
        (held,) = run(home, "agreement", "list", "--json").json()
        assert (held["state"], held["missing"]) == ("in force", [])


def test_a_card_can_be_looked_at_before_it_is_enrolled(pair: Pair) -> None:
    shown = run(pair.fr, "card", "show", "de.json", "--json").json()
    assert shown["node"] == "cert.de.example"
    assert len(shown["fingerprint"].split()) == 12
    assert {key["role"] for key in shown["keys"]} == {"issue", "feed", "receipt", "tls"}


def test_status_of_a_node_that_does_not_serve(pair: Pair) -> None:
    found = run(pair.fr, "status", "--json").json()
    assert (found["serving"], found["drafts"], found["agreements_in_force"]) == (False, 4, 1)
    assert found["peers"][0]["peer"] == "cert.de.example"


def test_doctor_finds_a_new_home_fit_but_for_its_root_keys(pair: Pair) -> None:
    verdicts = {found["check"]: found["verdict"] for found in run(pair.fr, "doctor", "--json").json()}
    assert {check for check, verdict in verdicts.items() if verdict != "ok"} == {"root keys"}
    assert {"database", "keys", "card", "clock", "disk", "law packs", "installation"} <= verdicts.keys()


def test_doctor_tells_everything_that_is_wrong_at_once(copy: Path) -> None:
    (copy / "passphrase").chmod(0o644)
    with sqlite3.connect(copy / "apostille.db") as database:
        database.execute("UPDATE own_cards SET document = X'7B7D'")
    done = run(copy, "doctor", "--json")
    done.refused(1, "not fit to run", "file modes", "card")
    findings = {found["check"]: found for found in json.loads(done.out)}
    assert findings["database"]["verdict"] == "ok"
    assert findings["file modes"]["do"].startswith("chmod")


def test_an_import_is_repeated_and_a_bad_file_does_not_stop_the_others(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "1.json").write_text('{"document": {"title": "no CSAF"}}', encoding="utf-8")
    (folder / "2.json").write_text("{", encoding="utf-8")
    shutil.copy(ROOT / "config" / "examples" / "de" / "plc-gateway-vex.json", folder / "3.json")
    done = run(copy, "advisory", "import", str(EXAMPLES), str(folder), "--json")
    done.refused(1, "2 of 7 files were refused")
    counts = json.loads(done.out)
    assert (counts["imported"], counts["already"]) == (1, 4)
    assert [Path(refused["file"]).name for refused in counts["refused"]] == ["1.json", "2.json"]
    assert "CSAF" in counts["refused"][0]["reason"]
    before = state(copy)
    assert json.loads(run(copy, "advisory", "import", str(EXAMPLES), str(folder), "--json").out)["already"] == 5
    assert state(copy) == before


def test_a_dry_run_shows_every_peer_and_changes_nothing(pair: Pair) -> None:
    before = state(pair.fr)
    found = run(pair.fr, "advisory", "release", ADVISORY, "--dry-run", "--json").json()
    (peer,) = found["peers"]
    assert peer["full"] > 0
    assert peer["withheld"] > 0
    assert all(rule["basis"] and rule["says"] for rule in peer["rules"])
    assert state(pair.fr) == before


def test_explain_names_the_rule_and_what_it_rests_on(pair: Pair) -> None:
    told = run(pair.fr, "explain", ADVISORY, "cert.de.example")
    assert told.code == 0
    assert told.out.index("WITHHELD") < told.out.index("FULL")
    assert "rests on  agreement fr-de version 1, clause open" in told.out
    assert "\x1b" not in told.out


@pytest.mark.invariant("I14")
def test_a_release_stands_in_the_ledger_and_is_not_repeated(copy: Path) -> None:
    assert run(copy, "ledger", "list").err == "Nothing was disclosed.\n"
    released = run(copy, "advisory", "release", ADVISORY, "--json").json()
    (row,) = run(copy, "ledger", "list", "--peer", "cert.de.example", "--elements", "--json").json()
    assert (row["advisory"], row["entry"], row["receipt"]) == (ADVISORY, released["peers"][0]["entry"], False)
    assert len(row["elements"]) == sum(released["peers"][0][form] for form in ("full", "generalised", "withheld"))
    before = state(copy)
    again = run(copy, "advisory", "release", ADVISORY, "--json").json()
    assert again["peers"][0]["already"] is True
    assert state(copy) == before


def test_an_advisory_as_a_peer_would_get_it(pair: Pair) -> None:
    whole = run(pair.fr, "advisory", "show", ADVISORY, "--json").json()
    seen = run(pair.fr, "advisory", "show", ADVISORY, "--as-peer", "cert.de.example", "--json").json()
    assert "reproduction" in whole["ai"]
    assert "reproduction" not in seen["ai"]


def test_a_release_that_nothing_allows_is_refused(copy: Path) -> None:
    done = run(copy, "advisory", "release", "CERT-FR-2026-0139", "--json")
    done.refused(1, "nothing of CERT-FR-2026-0139 left", "apostille explain")


def test_the_template_is_a_valid_agreement(pair: Pair, tmp_path: Path) -> None:
    template = tmp_path / "agreement.yaml"
    template.write_text(run(pair.fr, "agreement", "template").out, encoding="utf-8")
    terms = run(pair.fr, "agreement", "check", str(template), "--json").json()
    assert len({(pair["from"], pair["to"]) for pair in terms["pairs"]}) == 6
    assert terms["ended"] is False


def test_a_case_is_opened_and_drafted_from(copy: Path) -> None:
    for case in sorted((ROOT / "config" / "examples" / "cases").glob("FR-*.yaml"))[:1]:
        name = run(copy, "case", "open", str(case), "--json").json()["case"]
        assert "reporter" not in run(copy, "case", "show", name, "--json").json()
        assert run(copy, "advisory", "draft", name, "--json").json()["fresh"] is True


def test_the_wrong_passphrase_signs_nothing(copy: Path) -> None:
    before = state(copy)
    run(copy, "advisory", "release", ADVISORY, passphrase="wrong").refused(5, "passphrase", str(copy))
    assert state(copy) == before


def test_an_unknown_setting_is_named(copy: Path) -> None:
    settings = copy / "apostille.yaml"
    settings.write_text(settings.read_text(encoding="utf-8") + "colour: red\n", encoding="utf-8")
    run(copy, "status").refused(2, str(settings), "colour")


def test_no_home_is_said_with_its_name_and_what_to_do(tmp_path: Path) -> None:
    run(tmp_path / "none", "status").refused(2, str(tmp_path / "none"), "init")
    assert not (tmp_path / "none").exists()


def test_init_refuses_what_cannot_be_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "new"
    for words in (
        ("--id", "Not A Name", "--jurisdiction", "FR", "--listen", "0"),
        ("--id", "cert.fr.example", "--jurisdiction", "FR", "--listen", "0", "--law-pack", "none-such"),
        ("--id", "cert.fr.example", "--jurisdiction", "FR", "--listen", "0.0.0.0:7443"),
    ):
        run(home, "init", *words).refused(2)
        assert not home.exists()


def test_an_agreement_that_is_over_is_not_signed(copy: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text(AGREEMENT.format(until="2026-07-01T00:00:00Z"), encoding="utf-8")
    before = state(copy)
    run(copy, "agreement", "check", str(over), "--json").refused(1, "ended on 2026-07-01")
    run(copy, "agreement", "propose", str(over)).refused(2, "ended on 2026-07-01")
    assert state(copy) == before


@pytest.mark.parametrize(
    "words",
    [
        ("explain", ADVISORY, "cert.es.example"),
        ("advisory", "release", ADVISORY, "--to", "cert.es.example"),
        ("sync", "cert.es.example"),
    ],
)
def test_an_unknown_peer_is_not_found(pair: Pair, words: tuple[str, ...]) -> None:
    before = state(pair.fr)
    run(pair.fr, *words).refused(3, "no peer is called cert.es.example")
    assert state(pair.fr) == before


def test_a_card_with_another_fingerprint_is_not_enrolled(pair: Pair, tmp_path: Path) -> None:
    home = tmp_path / "es"
    run(home, "init", "--id", "cert.es.example", "--jurisdiction", "ES", "--listen", "0", "--json").json()
    before = state(home)
    card = str(tmp_path / "fr.card.json")
    assert run(pair.fr, "card", "export", "--out", card).code == 0
    run(home, "peer", "enrol", card).refused(2, "--fingerprint", "--yes")
    run(home, "peer", "enrol", card, "--fingerprint", "zoo " * 12).refused(1, "another fingerprint")
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(Path(card).read_bytes().replace(b"signature", b"signatory"))
    run(home, "peer", "enrol", str(damaged), "--yes").refused(8, str(damaged), "[MALFORMED]")
    assert state(home) == before


def test_a_peer_that_is_down_is_unreachable(copy: Path) -> None:
    done = run(copy, "sync", "--json")
    done.refused(7, "cert.de.example", "[UNREACHABLE]")
    assert json.loads(done.out)[0]["error"] == "UNREACHABLE"
    assert run(copy, "status", "--json").json()["peers"][0]["problem"] == "UNREACHABLE"


@pytest.fixture
def serving(copy: Path) -> Iterator[Running]:
    """A server on the copy."""
    process = start(copy, "serve")
    deadline = time.monotonic() + PATIENCE_S
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Ready:"):
            break
        assert time.monotonic() < deadline, line
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_one_server_a_home_a_delivery_and_a_clean_end(pair: Pair, copy: Path, tmp_path: Path, serving: Running) -> None:
    assert run(copy, "status", "--json").json()["serving"] is True
    run(copy, "serve").refused(2, "served already")
    assert run(copy, "advisory", "release", ADVISORY, "--json").json()["peers"][0]["entry"] is not None
    receiver = tmp_path / "de"
    shutil.copytree(pair.de, receiver)
    (fetched,) = run(receiver, "sync", "--json").json()
    assert (fetched["error"], fetched["counts"]["admitted"]) == (None, 1)
    item = run(receiver, "inbox", "show", ADVISORY, "--json").json()
    assert (item["origin"], item["state"]) == ("cert.fr.example", "current")
    assert "reproduction" not in item["ai"]
    assert run(receiver, "inbox", "export", "1", "--format", "sd-jwt").out.rstrip("\n").endswith("~")
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(timeout=PATIENCE_S) == 0
    assert not (copy / "serve.json").exists()


def test_what_was_set_aside_is_told_with_its_reason(copy: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(copy / "apostille.db")
    rows = [(0, b"evil", "quarantined", "BAD_SIGNATURE"), (1, None, "refused", "NOT_ADMITTED")]
    for seq, data, outcome, code in rows:
        connection.execute(
            "INSERT INTO in_entries (feed, seq, leaf_hash, data, outcome, code, detail, received_at) "
            "SELECT id, ?, ?, ?, ?, ?, 'why \x1b[2J', '2026-11-21 09:30:00.000000' FROM in_feeds",
            (seq, bytes(32), data, outcome, code),
        )
    connection.commit()
    connection.close()
    listed = run(copy, "quarantine", "list")
    assert "BAD_SIGNATURE" in listed.out
    assert "\x1b" not in listed.out
    kept = tmp_path / "entry.bin"
    shown = run(copy, "quarantine", "show", "cert.de.example", "0", "--out", str(kept), "--json").json()
    assert (shown["code"], shown["size"], shown["received_at"]) == ("BAD_SIGNATURE", 4, "2026-11-21T09:30:00Z")
    assert kept.read_bytes() == b"evil"
    run(copy, "quarantine", "show", "cert.de.example", "1", "--out", str(kept)).refused(6, "never kept")
    run(copy, "quarantine", "show", "cert.de.example", "9").refused(3, "not set aside")


# What follows needs no process of its own: the place where errors become sentences, and what peers can put on a screen.


def _raise(error: Exception) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (NotFoundError("x"), 3),
        (ConflictError("x"), 4),
        (LockedError("x"), 5),
        (HeldError("x"), 6),
        (PolicyError("x"), 1),
        (UnreachableError("x"), 7),
        (DeniedError("x"), 8),
        (ForkError("x"), 8),
        (MalformedError("x"), 8),
        (NotAllowedError("x"), 9),
        (AwaitsSecondError("x", 3), 10),
    ],
)
def test_every_error_has_its_exit_code(error: ApostilleError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.run(_raise(error)) == code
    assert capsys.readouterr().err.startswith("apostille: x")


@pytest.mark.parametrize(
    ("words", "code"),
    [("database is locked", 4), ("database or disk is full", 1), ("attempt to write a readonly database", 1)],
)
def test_what_the_database_says_becomes_a_sentence(words: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    error = OperationalError("INSERT INTO cases VALUES (?)", ("secret",), sqlite3.OperationalError(words))
    assert exits.run(_raise(error)) == code
    told = capsys.readouterr().err
    assert "secret" not in told
    assert "INSERT" not in told


@pytest.mark.invariant("I17")
def test_a_fault_of_ours_tells_its_place_and_no_payload(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.run(_raise(ValueError("Jane Roe, jane@example.org"))) == 70
    told = capsys.readouterr().err
    assert "internal error: ValueError in tests.e2e.test_cli:" in told
    assert "Jane" not in told


def test_a_peer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[31mred\x07 \x9b2J[bold]x[/bold] \u202egnp.exe\u2066 a\nb\u2028c"
    screen.table(("Title", hostile), [(hostile, hostile)])
    screen.facts([(hostile, hostile)])
    screen.heading(hostile)
    screen.paragraph(hostile)
    screen.note(hostile)
    screen.emit({"title": hostile})
    exits.run(_raise(DeniedError(hostile)))
    shown = "".join(capsys.readouterr())
    assert not set(shown) & set("\x1b\x07\x9b\u202e\u2066\u2028")
    assert "[bold]x[/bold]" in shown
    assert screen.clean("नेपा\u200dल") == "नेपा\u200dल"  # joiners belong to words


def test_a_document_of_any_shape_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    hostile: Any = {
        "document": {"title": ["\x1b"], "notes": [7, {"text": {"a": "\x1b"}}], "publisher": "no", "references": {}},
        "product_tree": {"branches": [{"branches": [{"product": {"product_id": 1, "name": "\x1b[2J"}}]}, None]},
        "vulnerabilities": [{"scores": [{"cvss_v3": 3}], "product_status": {"fixed": "x"}, "cwe": []}, "text"],
    }
    document.show(hostile, {"\x1bkey": [{"a": [1, None]}], "b": "\u202e"})
    document.show({}, None)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        session.write_file(target, b"x")
    assert list(tmp_path.iterdir()) == [target]
