"""Any bytes give a value or a RemoteError, whatever parser they meet; and Merkle proofs follow the definition."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import ed25519, jws, merkle, strictjson
from federation.base64url import b64url, from_b64url
from federation.checkpoint import (
    Checkpoint,
    VerifierKey,
    cosign,
    open_checkpoint,
    open_cosignature,
    parse_origin_line,
    sign,
)
from federation.errors import RemoteError, SignatureError

SEED = hashlib.sha256(b"any bytes").digest()
PUBLIC = ed25519.public_key(SEED)
SIGN = partial(ed25519.sign, SEED)
ORIGIN = "cert.fr.example/feeds/cert.de.example/1"
KEY = VerifierKey(ORIGIN, PUBLIC)
NOTE = cosign(sign(Checkpoint(ORIGIN, 7, bytes(32)), ORIGIN, SIGN, PUBLIC), ORIGIN, 1, SIGN, PUBLIC)
DOCUMENT = jws.serialise(jws.SignedDocument(b"{}", (jws.sign(b"{}", "t", "k", SIGN),)))
JSON = b'{"a": [1, -2.5e3, "x\\u00e9\\ud83d\\ude00", null, true], "b": {"c": {}}}'
EDGE = merkle.EMPTY.extend([bytes(32)] * 5).encode()

quick = settings(deadline=None, max_examples=150)


def as_text(parser: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parser(data.decode("utf-8", "surrogateescape"))


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "json": (partial(strictjson.decode, max_bytes=1 << 16, what="test"), JSON),
    "object": (partial(strictjson.decode_object, max_bytes=1 << 16, what="test"), JSON),
    "base64url": (as_text(from_b64url), b"YWJj_-8"),
    "jws": (partial(jws.parse, typ="t", max_bytes=1 << 16), DOCUMENT),
    "body": (Checkpoint.parse_body, NOTE.split(b"\n\n")[0] + b"\n"),
    "checkpoint": (lambda data: open_checkpoint(data, ORIGIN, KEY), NOTE),
    "cosignature": (lambda data: open_cosignature(data, KEY), NOTE),
    "cosign": (lambda data: cosign(data, "cert.de.example", 1, SIGN, PUBLIC), NOTE),
    "origin": (as_text(parse_origin_line), ORIGIN.encode()),
    "edge": (merkle.RightEdge.decode, EDGE),
    "public key": (ed25519.check_public_key, PUBLIC),
    "key": (lambda data: ed25519.verify(data, SIGN(b"m"), b"m"), PUBLIC),
    "signature": (lambda data: ed25519.verify(PUBLIC, data, b"m"), SIGN(b"m")),
}


def spliced(base: bytes) -> st.SearchStrategy[bytes]:
    """Bytes near to `base`: a stretch of it replaced by others, which gets deeper into a parser than noise does."""
    place = st.integers(0, len(base))
    return st.builds(
        lambda a, b, new: base[: min(a, b)] + new + base[max(a, b) :], place, place, st.binary(max_size=12)
    )


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@quick
def test_any_bytes_give_a_value_or_a_remote_error(name: str, data: st.DataObject) -> None:
    parser, valid = PARSERS[name]
    raw = data.draw(st.one_of(st.binary(max_size=200), spliced(valid), st.text(max_size=50).map(str.encode)))
    try:
        parser(raw)
    except RemoteError as e:
        assert str(e)  # noqa: PT017  # any value will do, and no other exception


def test_each_parser_accepts_its_own_sample() -> None:
    for parser, valid in PARSERS.values():
        parser(valid)


texts = st.text(st.characters(codec="utf-8"))  # scalar values only
numbers = st.integers(-(1 << 64), 1 << 64) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
@quick
def test_what_is_encoded_is_read_back(value: Any) -> None:
    assert strictjson.decode(strictjson.encode(value), max_bytes=1 << 20, what="test") == value


@given(st.binary(max_size=64))
@quick
def test_base64url_has_one_spelling(data: bytes) -> None:
    assert from_b64url(b64url(data)) == data


@given(st.text("ABCDEFGHgw_-", max_size=8))
@quick
def test_what_base64url_accepts_is_that_spelling(text: str) -> None:
    try:
        data = from_b64url(text)
    except RemoteError:
        return
    assert b64url(data) == text


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 2.1, naively."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = max(1 << n for n in range(32) if 1 << n < len(leaves))
    return merkle.node_hash(tree_hash(leaves[:split]), tree_hash(leaves[split:]))


sizes = st.integers(1, 130)


@given(size=sizes, pages=st.lists(st.integers(0, 40), max_size=8))
@quick
def test_however_the_leaves_arrive_the_root_is_the_definitions(size: int, pages: list[int]) -> None:
    leaves = [merkle.leaf_hash(n.to_bytes(2, "big")) for n in range(size)]
    edge, rest = merkle.EMPTY, leaves
    for page in pages:
        edge, rest = merkle.RightEdge.decode(edge.extend(rest[:page]).encode()), rest[page:]
    assert edge.extend(rest).root() == tree_hash(leaves)


@given(size=sizes, data=st.data())
@quick
def test_proofs_hold_and_one_flipped_bit_is_refused(size: int, data: st.DataObject) -> None:
    leaves = [merkle.leaf_hash(n.to_bytes(2, "big")) for n in range(size)]
    index, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    inclusion, consistency = merkle.inclusion_proof(leaves, index), merkle.consistency_proof(leaves, first)
    root1, root2 = tree_hash(leaves[:first]), tree_hash(leaves)
    merkle.verify_inclusion(index, size, leaves[index], inclusion, root2)
    merkle.verify_consistency(first, size, consistency, root1, root2)
    checks: list[tuple[tuple[bytes, ...], Callable[[Sequence[bytes]], None]]] = [
        (inclusion, lambda p: merkle.verify_inclusion(index, size, leaves[index], p, root2)),
        (consistency, lambda p: merkle.verify_consistency(first, size, p, root1, root2)),
    ]
    for proof, check in checks:
        if proof:
            place, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
            flipped = (int.from_bytes(proof[place], "big") ^ 1 << bit).to_bytes(32, "big")
            with pytest.raises(SignatureError):
                check((*proof[:place], flipped, *proof[place + 1 :]))
        with pytest.raises(SignatureError):
            check((*proof, bytes(32)))
        if proof:
            with pytest.raises(SignatureError):
                check(proof[:-1])


@given(message=st.binary(max_size=100), bit=st.integers(0, 511))
@quick
def test_a_signature_with_one_flipped_bit_is_refused(message: bytes, bit: int) -> None:
    signature = SIGN(message)
    ed25519.verify(PUBLIC, signature, message)
    flipped = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
    with pytest.raises(SignatureError):
        ed25519.verify(PUBLIC, flipped, message)
