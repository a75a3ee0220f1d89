"""The vectors of the protocol: this implementation makes the same bytes, accepts what it must, and refuses the rest.

The files carry everything that a case needs; another implementation can be held to them without this code.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mnemonic import Mnemonic

from config import data
from federation import agreement, ed25519, feed, handling, keyring, merkle, sdjwt
from federation.checkpoint import VerifierKey
from federation.entries import AgreementOffer, Delivery, ErasedItem, Withdrawal, read
from federation.errors import MalformedError, RemoteError, SignatureError, UsageError
from federation.feed import FeedState, PageBytes
from federation.inbound import Opened, Receiver, admit, open_delivery, read_advisory
from federation.keyring import Card, Keyring
from federation.labels import load as load_labels
from federation.model import (
    Attribution,
    Country,
    NodeId,
    Onward,
    Presentation,
    Role,
    Terms,
    country,
    instant,
    node_id,
)
from federation.policy.engine import rule_book
from node.home.certificates import check_certificate

FOLDER = Path(__file__).parent / "v1"
LABELS = load_labels(data.labels_text(), "labels/csaf-2.0.yaml")
BOOK = rule_book((), tuple(Country(code) for code in data.countries()))
BODIES = {Delivery: "presentation", AgreementOffer: "agreement", Withdrawal: "withdrawal"}
NO_TERMS = Terms(bytes(32), NodeId("cert.de.example"), bytes(32), frozenset(), None, None, Onward.NONE, Attribution.MAY)
Case = dict[str, Any]


def vectors(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return loaded


def cases(name: str, part: str = "cases") -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in vectors(name)[part]]


def ring(texts: list[str]) -> Keyring:
    cards: list[Card] = [keyring.open_card(text.encode()) for text in texts]
    return Keyring({card.node: card for card in cards})


CORES, ENTRIES, FEED, AGREEMENTS = (vectors(f"{name}.json") for name in ("cores", "entries", "feed", "agreements"))
FEED_KEYS = (VerifierKey(FEED["origin"], bytes.fromhex(FEED["feed_key"])),)


@pytest.mark.parametrize("folder", [FOLDER])  # of every version that was released
def test_the_vectors_of_a_released_version_never_change(folder: Path) -> None:
    lines = (line.split("  ") for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    listed = {name: digest for digest, name in lines}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.json")}
    assert found == listed


def test_the_files_are_what_the_generator_makes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vectors.generate", "--check"],
        capture_output=True,
        text=True,
        cwd=FOLDER.parents[2],
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", cases("ed25519.json"))
def test_ed25519(case: Case) -> None:
    key, message, signature = (bytes.fromhex(case[name]) for name in ("public_key", "message", "signature"))
    if case["expect"] == "ok":
        ed25519.verify(key, signature, message)
    else:
        with pytest.raises(SignatureError):
            ed25519.verify(key, signature, message)
    if case["enrol"] == "ok":
        assert ed25519.check_public_key(key) == key
    else:
        with pytest.raises(MalformedError):
            ed25519.check_public_key(key)


def judged(case: Case, judge: Any) -> Any:
    """What `judge` returns where the case expects `ok`; else None, once it has refused with the code expected."""
    if case["expect"] == "ok":
        return judge()
    with pytest.raises(RemoteError) as refusal:
        judge()
    assert refusal.value.code == case["expect"], refusal.value
    return None


@pytest.mark.parametrize("case", cases("cards.json"))
def test_cards(case: Case) -> None:
    card = judged(case, lambda: keyring.open_card(case["card"].encode()))
    if card is not None:
        fingerprint = card.roots.fingerprint()
        assert (card.node, card.version, fingerprint.hex()) == (case["node"], case["version"], case["fingerprint"])
        assert Mnemonic("english").to_mnemonic(fingerprint) == case["words"]
        for key in card.keys:
            if key.role is Role.TLS:
                check_certificate(key.public, card.node)


@pytest.mark.parametrize("case", cases("agreements.json"))
def test_agreements(case: Case) -> None:
    cards, now = ring(AGREEMENTS["cards"]), instant(AGREEMENTS["now"])

    def key_of(party: NodeId, kid: str) -> bytes:
        return cards.key(party, Role.ISSUE, kid.partition("/")[2], now)

    opened = judged(case, lambda: agreement.open_signed(case["document"].encode(), key_of))
    if opened is not None:
        terms, signed_by, _ = opened
        assert sorted(signed_by) == case["signed_by"]
        assert (terms.id, terms.version, terms.digest.hex()) == (case["id"], case["version"], case["digest"])


@pytest.mark.parametrize("case", cases("agreements.json", "yaml"))
def test_agreements_as_people_write_them(case: Case) -> None:
    if case["expect"] == "ok":
        assert agreement.from_yaml(case["yaml"], "agreement.yaml").canonical.decode() == case["canonical"]
    else:
        with pytest.raises(UsageError):
            agreement.from_yaml(case["yaml"], "agreement.yaml")


def receiver(file: dict[str, Any], me: str = "cert.de.example", in_force: str | None = None) -> Receiver:
    cards = ring(file["cards"])
    assert file["labels"] == LABELS.digest.hex(), "the vectors were made with another label file"
    agreed = agreement.from_canonical(in_force.encode()) if in_force is not None else None
    return Receiver(
        me=node_id(me),
        country=country(cards.card(node_id(me)).jurisdiction),
        keyring=cards,
        labels=LABELS,
        book=BOOK,
        agreements={agreed.digest: agreed} if agreed is not None else {},
    )


@pytest.mark.invariant("I5")
@pytest.mark.invariant("I6")
@pytest.mark.parametrize("case", cases("cores.json"))
def test_cores(case: Case) -> None:
    now = instant(CORES["now"])
    shown = Presentation(case["core"].encode(), tuple(text.encode() for text in case["disclosures"]))

    def judge() -> Any:
        opened = open_delivery(Delivery(shown, NO_TERMS), receiver(CORES), now)
        return read_advisory(opened, LABELS, now)

    advisory = judged(case, judge)
    if advisory is not None:
        assert advisory.name == "FR-VECTOR-1"
        assert handling.write(advisory.handling) == sdjwt.read_header_and_payload(shown.core).payload["handling"]
        for member in ("csaf", "ai"):
            if member in case:
                assert getattr(advisory, member) == case[member]
        if "elements" in case:
            found = {
                e.path: ["full" if e.full is not None else "generalised", *sorted(e.categories)]
                for e in advisory.elements
            }
            assert found == case["elements"]


@pytest.mark.invariant("I7")
@pytest.mark.parametrize("case", cases("entries.json"))
def test_entries(case: Case) -> None:
    envelope = judged(case, lambda: read(bytes.fromhex(case["entry"])))
    if envelope is not None:
        body = envelope.body
        assert (envelope.feed, envelope.seq, BODIES[type(body)]) == (case["feed"], case["seq"], case["body"])
        if isinstance(body, Withdrawal):
            assert list(body.seqs) == case["withdraws"]


# What a node of version 2 says to a case of version 1, where the two differ.
LATER = {"relayed, even where onward sharing with peers is allowed": "ok"}


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I6")
@pytest.mark.parametrize("case", cases("entries.json", "deliveries"))
def test_deliveries(case: Case) -> None:
    case = {**case, "expect": LATER.get(case["name"], case["expect"])}
    me, now = receiver(ENTRIES, case["receiver"], ENTRIES["agreement"]), instant(case["now"])
    body = read(bytes.fromhex(case["entry"])).body
    assert isinstance(body, Delivery)

    def judge() -> Any:
        # The key's validity is not what these cases are about: the core is opened at the file's own time.
        opened: Opened = open_delivery(body, me, instant(ENTRIES["now"]))
        advisory = read_advisory(opened, LABELS, instant(ENTRIES["now"]))
        return admit(advisory, me, node_id(case["sender"]), now)

    judged(case, judge)


def erased(item: dict[str, Any]) -> ErasedItem:
    return ErasedItem(item["seq"], bytes.fromhex(item["leaf_hash"]), item["erased_by"])


def state_of(held: dict[str, Any]) -> FeedState:
    edge = merkle.RightEdge(held["size"], tuple(bytes.fromhex(h) for h in held["edge"]))
    pending = tuple(erased(item) for item in held["pending"])
    return FeedState(FEED["origin"], edge, held["head"].encode(), held["newest"].encode(), pending)


def what_became(entry: feed.PageEntry) -> str:
    if entry.bad is not None:
        return entry.bad.code
    return "erased" if entry.envelope is None else "ok"


@pytest.mark.invariant("I8")
@pytest.mark.invariant("I10")
@pytest.mark.parametrize("case", cases("feed.json"))
def test_pages(case: Case) -> None:
    page = PageBytes(
        tuple(erased(i["erased"]) if "erased" in i else bytes.fromhex(i["entry"]) for i in case["page"]["items"]),
        case["page"]["checkpoint"].encode(),
        case["page"]["latest"].encode(),
    )
    before = state_of(case["state"])
    verified = judged(case, lambda: feed.verify_page(before, page, FEED_KEYS))
    if verified is not None:
        after = verified.state
        assert after.cursor == case["size_after"]
        assert [h.hex() for h in after.edge.hashes] == case["edge_after"]
        assert after.head == page.checkpoint
        assert [what_became(e) for e in verified.entries] == case["entries"]
        assert len(after.pending) == case.get("pending_after", 0)
        assert verified.may_receipt is not bool(after.pending)
        size = int(after.newest.split(b"\n")[1])
        assert size == case.get("newest_size_after", case["size_after"])


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("case", cases("feed.json", "forks"))
def test_forks(case: Case) -> None:
    answer, retried = case["answer"].encode(), case["retried"]
    judged(case, lambda: feed.judge_fork(state_of(case["state"]), answer, FEED_KEYS, retried=retried))


@pytest.mark.parametrize("case", cases("feed.json", "fresh"))
def test_freshness(case: Case) -> None:
    now = instant(FEED["now"])
    judged(case, lambda: feed.check_fresh(case["latest"].encode(), FEED_KEYS, now, case["max_age_s"]))


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("case", cases("feed.json", "receipts"))
def test_receipts(case: Case) -> None:
    keys = (VerifierKey("cert.de.example", bytes.fromhex(FEED["receipt_key"])),)

    def judge() -> int:
        seen = feed.check_receipt(case["receipt"].encode(), FEED["origin"], FEED_KEYS, keys)
        if seen.root.hex() != FEED["roots"][seen.size]:  # the sender's own comparison (node.peering.feeds)
            raise SignatureError("receipt: another root than ours")
        return seen.size

    size = judged(case, judge)
    assert size == case.get("size")
