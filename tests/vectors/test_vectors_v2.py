"""The vectors that protocol version 2 adds: this implementation accepts what it must and refuses the rest by name."""

from pathlib import Path
from typing import Any

import pytest

from federation import feed, grant, keyring, merkle, recall, sdjwt, statement
from federation.checkpoint import Checkpoint, VerifierKey
from federation.entries import Purge, RecallOrder, kind_of, read
from federation.errors import EquivocationError, MalformedError, UnconfirmedError
from federation.model import Category, NodeId, Role, instant, node_id
from tests.vectors.test_vectors import Case, judged, ring, vectors

FOLDER = Path(__file__).parent / "v2"
READERS: dict[str, Any] = {
    "recalls.json": recall.read,
    "grants.json": grant.read,
    "statements.json": statement.read,
    "comparison.json": statement.read,
}


def cases(name: str, part: str = "cases") -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in vectors(name, FOLDER)[part]]


def key_of(file: dict[str, Any]) -> Any:
    cards, now = ring(file["cards"]), instant(file["now"])

    def find(node: NodeId, kid: str) -> bytes:
        return cards.key(node, Role.ISSUE, kid, now)

    return find


@pytest.mark.parametrize(
    ("name", "case"), [(name, case.values[0]) for name in READERS for case in cases(name)], ids=lambda v: str(v)[:60]
)
def test_documents_that_one_node_signs(name: str, case: Case) -> None:
    read_document = READERS[name]
    made = judged(case, lambda: read_document(case["document"].encode(), key_of(vectors(name, FOLDER))))
    if made is not None:
        assert made.document == case["document"].encode()


@pytest.mark.parametrize("case", cases("grants.json", "uses"))
def test_uses_of_a_grant(case: Case) -> None:
    file = vectors("grants.json", FOLDER)
    given = grant.read(file["used"].encode(), key_of(file))
    judged(
        case,
        lambda: grant.check(
            given,
            origin=node_id(case["origin"]),
            core_digest=bytes.fromhex(case["core_digest"]),
            relay=node_id(case["relay"]),
            recipient=node_id(case["recipient"]),
            categories=frozenset(map(Category, case["categories"])),
            now=instant(case["at"]),
        ),
    )


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("case", cases("comparison.json", "cores"))
def test_cores_that_somebody_shows(case: Case) -> None:
    file = vectors("comparison.json", FOLDER)
    about, held = case["about"], sdjwt.read_header_and_payload(file["held"].encode())

    def judge() -> None:  # as `node.sharing.comparing` does, which works on a node's own tables
        core = sdjwt.read_header_and_payload(case["core"].encode())
        if (core.iss, core.payload["jti"]) != (about["origin"], "{origin}/{name}/{revision}".format(**about)):
            raise MalformedError("that of another revision")
        sdjwt.verify(core, (), public_key=key_of(file)(node_id(core.iss), core.kid))
        if core.payload["jti"] == held.payload["jti"] and core.core != held.core:
            raise EquivocationError("two cores under one revision")

    judged(case, judge)


@pytest.mark.parametrize("case", cases("cards.json"))
def test_newer_cards(case: Case) -> None:
    enrolled = keyring.open_card(vectors("cards.json", FOLDER)["enrolled"].encode())
    card = judged(case, lambda: keyring.open_card(case["card"].encode(), enrolled.roots))
    if card is not None:
        assert card.version > enrolled.version
        assert keyring.open_card(keyring.for_newcomers(case["card"].encode())) == card


@pytest.mark.invariant("I7")
@pytest.mark.parametrize("case", cases("entries.json"))
def test_entries(case: Case) -> None:
    envelope = judged(case, lambda: read(bytes.fromhex(case["entry"])))
    if envelope is not None:
        assert kind_of(envelope.body) == case["body"]
        if isinstance(envelope.body, (Purge, RecallOrder)):
            assert list(envelope.body.seqs) == case["seqs"]


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("case", cases("feed.json", "finals"))
def test_final_heads(case: Case) -> None:
    origin = vectors("feed.json", FOLDER)["origin"]
    judged(case, lambda: feed.check_final(case["final"].encode(), origin, case["newest"].encode()))


@pytest.mark.invariant("I16")
@pytest.mark.parametrize("case", cases("feed.json", "shown"))
def test_heads_that_a_receiver_shows(case: Case) -> None:
    file = vectors("feed.json", FOLDER)
    leaves = [merkle.leaf_hash(bytes.fromhex(item)) for item in file["items"]]
    keys = (VerifierKey(file["origin"], bytes.fromhex(file["feed_key"])),)

    def judge() -> Checkpoint:
        seen = feed.signed_head(case["newest"].encode(), file["origin"], keys)
        if seen.size > len(leaves) or seen.root != merkle.root(
            leaves[: seen.size]
        ):  # the sender's own (node.peering.feeds)
            raise UnconfirmedError("the receiver holds what we do not")
        return seen

    if case["expect"] == "UNCONFIRMED":
        with pytest.raises(UnconfirmedError):
            judge()
    else:
        judged(case, judge)
