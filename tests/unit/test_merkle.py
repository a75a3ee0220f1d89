"""Merkle trees: published proofs, the definition of RFC 6962 written out, and a history that somebody rewrites."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from federation.errors import MalformedError, SignatureError, UsageError
from federation.merkle import (
    EMPTY,
    RightEdge,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(bytes([n])) for n in range(40)]


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def test_roots_follow_the_definition() -> None:
    edge = EMPTY
    for size in range(len(LEAVES)):
        assert edge.size == size
        assert edge.root() == root(LEAVES[:size]) == tree_hash(LEAVES[:size])
        assert RightEdge.decode(edge.encode()) == edge
        assert edge.extend(LEAVES[size:]).root() == tree_hash(LEAVES)
        edge = edge.append(LEAVES[size])


def test_known_hashes() -> None:
    """RFC 6962 2.1: one prefix byte for leaves and another for nodes."""
    assert leaf_hash(b"") == hashlib.sha256(b"\x00").digest()
    assert node_hash(b"l", b"r") == hashlib.sha256(b"\x01lr").digest()
    assert EMPTY.root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_every_proof_of_every_small_tree_holds() -> None:
    for size in range(1, 24):
        leaves = LEAVES[:size]
        for index in range(size):
            verify_inclusion(index, size, leaves[index], inclusion_proof(leaves, index), tree_hash(leaves))
        for first in range(1, size + 1):
            proof = consistency_proof(leaves, first)
            verify_consistency(first, size, proof, tree_hash(leaves[:first]), tree_hash(leaves))


@pytest.mark.invariant("I8")
def test_a_rewritten_history_does_not_continue_the_old_one() -> None:
    honest = consistency_proof(LEAVES, 21)
    verify_consistency(21, 40, honest, root(LEAVES[:21]), root(LEAVES))
    rewritten = [*LEAVES[:7], leaf_hash(b"another"), *LEAVES[8:]]
    assert root(rewritten) != root(LEAVES)  # sanity: the attack changes something
    for proof in (honest, consistency_proof(rewritten, 21)):
        with pytest.raises(SignatureError):
            verify_consistency(21, 40, proof, root(LEAVES[:21]), root(rewritten))
    held = EMPTY.extend(LEAVES[:21])
    assert held.extend(rewritten[21:]).root() != root(rewritten)  # the receiver's own edge sees it too
    assert held == EMPTY.extend(LEAVES[:21])


@pytest.mark.invariant("I8")
def test_a_proof_holds_in_one_place_only() -> None:
    proof = inclusion_proof(LEAVES, 13)
    for index in range(40):
        if index != 13:
            with pytest.raises(SignatureError):
                verify_inclusion(index, 40, LEAVES[13], proof, root(LEAVES))
    for wrong in (proof[:-1], (*proof, proof[-1]), proof[1:], (proof[0][:31], *proof[1:]), ()):
        with pytest.raises(SignatureError):
            verify_inclusion(13, 40, LEAVES[13], wrong, root(LEAVES))
    shifted = inclusion_proof(LEAVES, 12)  # the same hashed bytes, cut between leaf and sibling one byte earlier
    with pytest.raises(SignatureError):
        verify_inclusion(12, 40, LEAVES[12][:31], (LEAVES[12][31:] + shifted[0], *shifted[1:]), root(LEAVES))
    verify_inclusion(0, 1, LEAVES[13], (), LEAVES[13])
    for index in (-1, 1):
        with pytest.raises(SignatureError):
            verify_inclusion(index, 1, LEAVES[13], (), LEAVES[13])


@pytest.mark.invariant("I8")
def test_a_tree_continues_itself_only_with_its_own_root_and_without_a_proof() -> None:
    honest, other = root(LEAVES[:8]), root(LEAVES[1:9])
    verify_consistency(8, 8, (), honest, honest)
    attacks: list[tuple[int, int, tuple[bytes, ...], bytes, bytes]] = [
        (8, 8, (), honest, other),
        (8, 8, (LEAVES[0],), honest, honest),
        (9, 8, (), honest, honest),
        (0, 0, (), EMPTY.root(), EMPTY.root()),
        (8, 9, (), honest, other),
    ]
    for size1, size2, proof, root1, root2 in attacks:
        with pytest.raises(SignatureError):
            verify_consistency(size1, size2, proof, root1, root2)


def test_a_node_is_no_leaf() -> None:
    """Without prefixes the pair of two leaf hashes would itself be an entry of a tree half the size."""
    pair = LEAVES[0] + LEAVES[1]
    assert leaf_hash(pair) != node_hash(LEAVES[0], LEAVES[1])
    for leaves in ([pair], [pair, pair], [LEAVES[0][:31], LEAVES[0]]):
        with pytest.raises(MalformedError):
            EMPTY.extend(leaves)


@pytest.mark.parametrize("index", [-1, 40, 1 << 70])
def test_no_proof_for_what_is_not_there(index: int) -> None:
    with pytest.raises(UsageError):
        inclusion_proof(LEAVES, index)
    with pytest.raises(UsageError):
        consistency_proof(LEAVES, index if index != 40 else 41)
    with pytest.raises(UsageError):
        consistency_proof(LEAVES, 0)


@pytest.mark.parametrize(
    ("size", "hashes"),
    [(-1, ()), (0, (bytes(32),)), (1, ()), (3, (bytes(32),)), (2, (bytes(31),)), (1 << 63, (bytes(32),))],
)
def test_an_edge_checks_itself(size: int, hashes: tuple[bytes, ...]) -> None:
    assert RightEdge((1 << 63) - 1, (bytes(32),) * 63).size == (1 << 63) - 1
    with pytest.raises(MalformedError):
        RightEdge(size, hashes)


@pytest.mark.parametrize(
    "data", [b"", bytes(7), bytes(9), bytes(40), bytes(7) + b"\x01", bytes(7) + b"\x03" + bytes(32)]
)
def test_what_is_no_stored_edge(data: bytes) -> None:
    with pytest.raises(MalformedError):
        RightEdge.decode(data)


def cases(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]


def hashes(texts: list[str] | None) -> list[bytes]:
    return [base64.b64decode(text) for text in texts or []]


@pytest.mark.corpora
def test_published_inclusion_proofs(corpora: Path) -> None:
    outcomes: Counter[bool] = Counter()
    for case in cases(corpora / "crypto/merkle/inclusion"):
        leaf, top, *proof = hashes([case["leafHash"], case["root"], *(case["proof"] or [])])
        if case["wantErr"]:
            with pytest.raises(SignatureError):
                verify_inclusion(case["leafIdx"], case["treeSize"], leaf, proof, top)
        else:
            verify_inclusion(case["leafIdx"], case["treeSize"], leaf, proof, top)
        outcomes[case["wantErr"]] += 1
    assert outcomes == {False: 3, True: 52}


@pytest.mark.corpora
def test_published_consistency_proofs(corpora: Path) -> None:
    outcomes: Counter[bool] = Counter()
    for case in cases(corpora / "crypto/merkle/consistency"):
        root1, root2, *proof = hashes([case["root1"], case["root2"], *(case["proof"] or [])])
        if case["wantErr"]:
            with pytest.raises(SignatureError):
                verify_consistency(case["size1"], case["size2"], proof, root1, root2)
        else:
            verify_consistency(case["size1"], case["size2"], proof, root1, root2)
        outcomes[case["wantErr"]] += 1
    assert outcomes == {False: 3, True: 52}
    subtrees = [len(cases(corpora / f"crypto/merkle/subtree{kind}")) for kind in ("inclusion", "consistency")]
    assert subtrees == [115, 66]  # proofs of a later specification, which this protocol does not use
