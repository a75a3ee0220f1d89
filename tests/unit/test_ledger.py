"""`ledger verify`: what this node says of the past agrees with what it sent and with what peers signed, or it is told.

Changes of single bytes are in `tests/faults/test_tampering.py`; here is somebody who knows what he does, and writes to
the database of a node with other software.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from federation import account, entries, merkle, strictjson
from federation.merkle import EMPTY
from federation.model import JsonObject, NodeId
from node import main
from node.audit import verify
from node.home.context import Node
from node.records import ledger
from tests.evidence import History, make_history
from tests.forgeries import altered
from tests.nodes import DE, FR, IN

Change = Callable[[sqlite3.Connection], object]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with make_history(tmp_path_factory.mktemp("history")) as made:
        yield made


@contextmanager
def tampered(node: Node, change: Change) -> Iterator[None]:
    """The node with a database that somebody has changed; afterwards it is as it was."""
    with closing(sqlite3.connect(node.home / main.DATABASE_FILE)) as file, closing(sqlite3.connect(":memory:")) as copy:
        file.backup(copy)
        file.execute("PRAGMA ignore_check_constraints=ON")
        try:
            change(file)
            file.commit()
            yield
        finally:
            file.rollback()
            copy.backup(file)


def findings(node: Node) -> list[str]:
    return [f"{finding.place}: {finding.says}" for finding in verify.verify(node).findings]


def by_sql(*statements: str) -> Change:
    return lambda file: [file.execute(statement) for statement in statements]


# Sound


@pytest.mark.invariant("I14")
def test_an_honest_history_agrees_at_every_node(history: History) -> None:
    for node in history.chain.nodes.values():
        report, shown = verify.verify(node), list[int]()
        verify.verify(node, shown.append)
        assert report.findings == ()
        assert min(report.sent, report.received, report.ledger_rows) > 0
        assert shown == list(range(1, verify.count(node) + 1))
        assert verify.count(node) == report.sent + report.received + report.ledger_rows


# What was changed

CHANGED: dict[str, tuple[NodeId, str, str]] = {
    "the last row": (
        FR,
        "DELETE FROM ledger WHERE id = (SELECT max(id) FROM ledger)",
        "0 rows on this advisory in place of one",
    ),
    "a row in the middle": (FR, "DELETE FROM ledger WHERE id = 5", "ledger row 5: it is not here"),
    "a digest": (FR, "UPDATE ledger SET digest = x'00' WHERE id = 2", "ledger row 2: its digest does not follow"),
    "a row for a recall": (FR, "DELETE FROM ledger WHERE kind = 'recall'", "0 rows on what it erased"),
    "the last entry": (
        FR,
        "DELETE FROM out_entries WHERE seq = (SELECT max(seq) FROM out_entries)",
        "the entry that it tells of is not here",
    ),
    "an entry in the middle": (FR, "DELETE FROM out_entries WHERE seq = 3", "entry 3 of"),
    "an entry erased by nothing": (
        FR,
        "UPDATE out_entries SET data = NULL, erased_by = 4 WHERE seq = 3 AND feed = 1",
        "counts as erased by an entry that does not name it",
    ),
    "an entry that came back": (
        FR,
        "UPDATE out_entries SET data = x'00', erased_by = NULL WHERE erased_by IS NOT NULL",
        "or not at all",
    ),
    "an entry of another feed": (FR, "UPDATE out_entries SET feed = 99 WHERE seq = 0", "a feed that there is not"),
    "the size of a feed": (FR, "UPDATE out_feeds SET size = size + 1", "another one than is noted"),
    "the edge of a feed": (FR, "UPDATE out_feeds SET edge = substr(edge, 1, 8)", "another one than is noted"),
    "the newest receipt": (FR, "UPDATE out_feeds SET receipt_size = 1", "not the last one in the ledger"),
    "no receipt": (FR, "UPDATE out_feeds SET receipt = NULL, receipt_size = 0", "not the last one in the ledger"),
    "when it came": (FR, "UPDATE out_feeds SET receipt_at = '2026-01-01 00:00:00.000000'", "another time"),
    "its epoch": (FR, "UPDATE out_feeds SET epoch = epoch + 9", "not that of its name"),
    "the date of a shown head": (
        FR,
        (
            "UPDATE out_feeds SET shown = CAST(substr(shown, 1, length(shown) - 8) ||"
            " iif(substr(shown, -8, 1) = x'41', x'42', x'41') || substr(shown, -7) AS BLOB)"
        ),
        "no date that this node signed",
    ),
    "the epoch of a received feed": (DE, "UPDATE in_feeds SET epoch = epoch + 9", "not that of its name"),
    "an agreement": (FR, "UPDATE agreements SET version = 2", "another agreement than is filed"),
    "who has signed": (FR, "UPDATE agreements SET signed_by = '[]'", "signed by others than is filed"),
    "an agreement that counts as a proposal": (DE, "UPDATE agreements SET complete = 0", "signed by others"),
    "the terms": (DE, "UPDATE agreements SET document = replace(document, 'a', 'b')", "agreement "),
    "a recall": (DE, "UPDATE recalls SET reason = 'legal'", "says something else"),
    "a grant": (DE, "UPDATE grants SET relay = 'cert.in.example'", "says something else"),
    "a statement": (FR, "UPDATE statements SET author = 'cert.in.example'", "says something else"),
    "the revision of an own advisory": (FR, "UPDATE advisories SET revision = 2 WHERE name = 'FIRST'", "is filed"),
    "its handling": (FR, "UPDATE advisories SET handling = '{}' WHERE name = 'FIRST'", "other handling"),
    "its core": (FR, "UPDATE advisories SET core = CAST(core || 'A' AS BLOB) WHERE name = 'FIRST'", "advisory 1: "),
    "its digest": (FR, "UPDATE advisories SET core_digest = x'00' WHERE name = 'FIRST'", "another digest"),
    "its disclosures": (FR, "UPDATE advisories SET disclosures = '[]' WHERE name = 'FIRST'", "advisory 1: "),
    "when it was signed": (
        FR,
        "UPDATE advisories SET issued_at = '2026-01-01 00:00:00.000000' WHERE name = 'FIRST'",
        "another instant",
    ),
    "an own card": (FR, "UPDATE own_cards SET version = 9 WHERE version = 3", "another node or version"),
    "a card": (FR, "UPDATE peer_cards SET document = x'7b7d' WHERE version = 1", "card 1 of"),
    "the card in use": (
        DE,
        "UPDATE peers SET card = (SELECT document FROM peer_cards WHERE node = peers.node AND version = 1)",
        "not the newest one",
    ),
    "a received entry": (DE, "DELETE FROM in_entries WHERE seq = 3", "received entry 3 of"),
    "the end of a received feed": (
        DE,
        "DELETE FROM in_entries WHERE seq = (SELECT max(seq) FROM in_entries)",
        "another one than is noted",
    ),
    "a received entry of another feed": (
        DE,
        "UPDATE in_entries SET feed = 99 WHERE seq = 0 AND feed = 1",
        "which there is not",
    ),
    "what became of it": (DE, "UPDATE in_entries SET outcome = 'refused' WHERE outcome = 'admitted'", "refused"),
    "why it was set aside": (IN, "UPDATE in_entries SET code = 'GAP' WHERE code IS NULL", "another code"),
    "a head": (DE, "UPDATE in_feeds SET head = (SELECT head FROM in_feeds WHERE peer = 'cert.in.example')", "feed "),
    "no head": (DE, "UPDATE in_feeds SET head = x''", "its head is not here"),
    "what was erased": (DE, "UPDATE in_entries SET outcome = 'erased', data = NULL WHERE seq = 1", "by what"),
    "what was cosigned": (DE, "UPDATE in_feeds SET cosigned = 9999", "more than was ever shown"),
    "an item": (DE, "DELETE FROM inbox", "no inbox item"),
    "an item of no entry": (DE, "UPDATE inbox SET seq = seq + 1000", "is not here"),
    "a title": (DE, "UPDATE inbox SET title = 'Nothing to see'", "another title"),
    "a label": (DE, "UPDATE inbox SET tlp = 'CLEAR'", "another tlp"),
    "an origin": (IN, "UPDATE inbox SET origin = 'cert.de.example'", "another origin"),
    "a name": (DE, "UPDATE inbox SET name = 'X'", "another name"),
    "a core": (DE, "UPDATE inbox SET core_digest = x'00'", "another core_digest"),
    "an end": (DE, "UPDATE inbox SET retain_until = '2099-01-01 00:00:00.000000'", "another retain_until"),
    "a state": (DE, "UPDATE inbox SET state = 'recalled'", "counts otherwise"),
    "what cannot be read": (DE, "UPDATE inbox SET received_at = 'yesterday'", "another time"),
}


@pytest.mark.invariant("I14")
@pytest.mark.parametrize("name", sorted(CHANGED))
def test_what_was_changed_is_told_with_its_place(history: History, name: str) -> None:
    at, statement, words = CHANGED[name]
    with tampered(history.chain[at], by_sql(statement)):
        found = findings(history.chain[at])
    assert any(words in line for line in found), found


HIDING = {
    "an entry that is not here": (FR, "DELETE FROM out_entries WHERE feed = 1 AND seq = 2", "entry 2 of"),
    "an entry of another type": (FR, "UPDATE out_entries SET data = 'x' WHERE feed = 1 AND seq = 2", "entry 2 of"),
    "no leaf hash": (FR, "UPDATE out_entries SET leaf_hash = 3 WHERE feed = 1 AND seq = 2", "entry 2 of"),
    "no kind": (FR, "UPDATE out_entries SET kind = 'x' WHERE feed = 1 AND seq = 2", "entry 2 of"),
    "a kind that is no text": (
        FR,
        "UPDATE out_entries SET kind = CAST(x'ff' AS TEXT) WHERE feed = 1 AND seq = 2",
        "entry 2 of",
    ),
    "an act that is no text": (FR, "UPDATE ledger SET kind = CAST(x'ff' AS TEXT) WHERE id = 2", "ledger row 2"),
    "an outcome that is no text": (
        DE,
        "UPDATE in_entries SET outcome = CAST(x'ff' AS TEXT) WHERE feed = 1 AND seq = 2",
        "received entry 2 of",
    ),
    "no time of the receipt": (FR, "UPDATE out_feeds SET receipt_at = 'x' WHERE id = 1", f"feed {FR}/feeds/{DE}/1"),
    "no record": (FR, "UPDATE ledger SET record = 'x' WHERE id = 1", "ledger row 1"),
    "a received entry that is not here": (DE, "DELETE FROM in_entries WHERE feed = 1 AND seq = 2", "received entry 2"),
    "a received entry of another type": (
        DE,
        "UPDATE in_entries SET data = 'x' WHERE feed = 1 AND seq = 2",
        "received entry 2 of",
    ),
    "no leaf hash of a received entry": (
        DE,
        "UPDATE in_entries SET leaf_hash = 3 WHERE feed = 1 AND seq = 2",
        "received entry 2 of",
    ),
    "no state": (DE, "UPDATE inbox SET retain_until = 'x' WHERE feed = 1 AND seq = 2", "received entry 2 of"),
    "no time of a head": (DE, "UPDATE in_feeds SET contact_at = 'x' WHERE id = 1", f"feed {FR}/feeds/{DE}/1"),
}
LATER = {  # what is wrong further on: in the newest entries, in the inbox, in the ledger
    FR: (
        "UPDATE out_entries SET data = x'00' WHERE feed = 1 AND seq = 4",
        "UPDATE ledger SET digest = x'00' WHERE id = 6",
    ),
    DE: ("UPDATE in_entries SET data = x'00' WHERE feed = 1 AND seq = 4",),
}
TOLD_LATER = {FR: ("entry 4 of", "ledger row 6:"), DE: ("received entry 4 of",)}


@pytest.mark.invariant("I14")
@pytest.mark.parametrize("name", sorted(HIDING))
def test_one_finding_hides_no_later_one(history: History, name: str) -> None:
    at, statement, first = HIDING[name]
    with tampered(history.chain[at], by_sql(*LATER[at])):
        alone = findings(history.chain[at])
    with tampered(history.chain[at], by_sql(statement, *LATER[at])):
        found = findings(history.chain[at])
    assert any(line.startswith(first) for line in found), found
    for later in TOLD_LATER[at]:
        assert any(line.startswith(later) for line in alone), alone  # sanity
        assert any(line.startswith(later) for line in found), found


@pytest.mark.invariant("I17")
def test_a_finding_says_nothing_of_what_stands_there(history: History) -> None:
    changes = (
        "UPDATE inbox SET title = 'Musterfrau', state = 'Musterfrau'",
        "UPDATE in_entries SET outcome = 'Musterfrau', code = 'Musterfrau', received_at = 'Musterfrau'",
        "UPDATE out_entries SET kind = 'Musterfrau'",
        "UPDATE ledger SET kind = 'Musterfrau', peer = 'Musterfrau', by = 'Musterfrau', at = 'Musterfrau'",
        "UPDATE agreements SET signed_by = 'Musterfrau'",
        "UPDATE ledger SET record = 'Musterfrau'",
        "UPDATE advisories SET core = 'Musterfrau', disclosures = 'Musterfrau' WHERE core IS NOT NULL",
    )
    for statement in changes:
        found = []
        for node in (history.chain[FR], history.chain[DE]):
            with tampered(node, by_sql(statement)):
                found += findings(node)
        assert found, statement
        assert not any("Musterfrau" in line for line in found), found


@pytest.mark.invariant("I5")
def test_a_core_that_was_not_signed_here_is_told(history: History) -> None:
    def replace_core(file: sqlite3.Connection) -> None:
        ((core,),) = file.execute("SELECT core FROM advisories WHERE name = 'FIRST'").fetchall()
        forged = altered(core)
        values = (forged, hashlib.sha256(forged).digest())
        file.execute("UPDATE advisories SET core = ?, core_digest = ? WHERE name = 'FIRST'", values)

    with tampered(history.chain[FR], replace_core):
        found = findings(history.chain[FR])
    assert any(line.startswith("advisory 1: Ed25519") for line in found), found


# By somebody who computes everything anew


def chain_anew(file: sqlite3.Connection, change: Callable[[JsonObject], None]) -> None:
    """Every row with a changed record, and digests that follow."""
    before = ledger.GENESIS
    for number, record in file.execute("SELECT id, record FROM ledger ORDER BY id").fetchall():
        facts = strictjson.decode_object(record, max_bytes=1 << 20, what="record")
        change(facts)
        written = strictjson.encode(facts)
        before = account.chained(before, written)
        values = (written, before, facts["by"], facts["seq"], number)
        file.execute("UPDATE ledger SET record = ?, digest = ?, by = ?, seq = ? WHERE id = ?", values)


def feed_anew(file: sqlite3.Connection, seq: int) -> None:
    """The feed to DE with another nonce in one entry: leaf hash, roots, edge and the ledger follow."""
    edge, hashes = EMPTY, {}
    query = "SELECT seq, data, leaf_hash FROM out_entries WHERE feed = 1 ORDER BY seq"
    for number, data, leaf in file.execute(query).fetchall():
        if number == seq:
            data = entries.write(replace(entries.read(data), nonce=bytes(16)))
            hashes[leaf.hex()] = merkle.leaf_hash(data).hex()
            leaf = merkle.leaf_hash(data)
        edge = edge.append(leaf)
        values = (data, leaf, edge.root(), number)
        file.execute("UPDATE out_entries SET data = ?, leaf_hash = ?, root = ? WHERE feed = 1 AND seq = ?", values)
    file.execute("UPDATE out_feeds SET edge = ? WHERE id = 1", (edge.encode(),))
    chain_anew(file, lambda facts: facts.update(leaf_hash=hashes.get(facts.get("leaf_hash"), facts.get("leaf_hash"))))


def fewer_parts(facts: JsonObject) -> None:
    if facts["act"] == "release":
        facts["elements"] = facts["elements"][1:]


def other_rules(facts: JsonObject) -> None:
    if facts["act"] == "release":
        facts["by"] = "nobody"


@pytest.mark.invariant("I14")
def test_a_ledger_that_was_written_anew_does_not_agree_with_the_entries(history: History) -> None:
    node = history.chain[FR]
    with tampered(node, lambda file: chain_anew(file, lambda _: None)):
        assert findings(node) == []  # sanity
    with tampered(node, lambda file: chain_anew(file, fewer_parts)):
        assert any("does not say was shared" in line for line in findings(node))


@pytest.mark.invariant("I14")
def test_a_feed_that_was_written_anew_does_not_agree_with_the_receipts(history: History) -> None:
    node, told = history.chain[FR], history.export("FIRST").shown.account
    late = history.export("LATE").shown.account
    with tampered(node, lambda file: feed_anew(file, told.seq)):
        found = findings(node)
    assert found
    assert all("the receipt is not for the feed up to this entry" in line for line in found), found
    with tampered(node, lambda file: feed_anew(file, late.seq)):
        assert findings(node) == []  # nobody has acknowledged it: only a proof of it can tell


def test_what_stands_in_no_entry_is_pinned_by_a_proof_alone(history: History) -> None:
    node, proof = history.chain[FR], history.export("FIRST").shown
    with tampered(node, lambda file: chain_anew(file, other_rules)):
        assert findings(node) == []
        (row,) = (row for row in ledger.rows(node, DE, "FIRST"))
        assert row.by == "nobody"
        assert row.digest != proof.digest
    assert proof.account.by == "alice"
