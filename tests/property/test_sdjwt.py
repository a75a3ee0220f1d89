"""Whatever comes in gives claims that were signed or a RemoteError; whatever is withheld takes nothing else along."""

import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation import ed25519
from federation.base64url import b64url
from federation.errors import RemoteError
from federation.limits import MAX_ENTRY_BYTES
from federation.sdjwt import (
    Disclosure,
    Hide,
    Node,
    Salts,
    Verified,
    conceal,
    parse,
    process,
    serialise,
    sign_core,
    verify,
    walk,
)
from federation.strictjson import decode, encode

SEED = bytes(range(32))
KEY = ed25519.public_key(SEED)
ISS = "cert.fr.example"
few = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def entropy(size: int) -> bytes:
    """The same for each document, so that hypothesis can repeat what it found; within one, no byte is used twice."""
    return hashlib.shake_256(b"entropy").digest(size)


def sign(message: bytes) -> bytes:
    return ed25519.sign(SEED, message)


def documents() -> st.SearchStrategy[dict[str, Any]]:
    """Claims with `Hide` at any place it may stand."""
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6)

    def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        members = inner | inner.map(Hide) | st.builds(Hide, inner, inner)
        return st.dictionaries(st.text("ab/~0é", max_size=3), members, max_size=4) | st.lists(
            inner | inner.map(Hide), max_size=4
        )

    values = st.recursive(scalars, containers, max_leaves=12)
    return st.dictionaries(st.sampled_from("stuvw"), values | st.builds(Hide, values, values), max_size=4)


def issued(document: dict[str, Any]) -> tuple[dict[str, Any], bytes, tuple[Disclosure, ...]]:
    payload, disclosures = conceal({"iss": ISS, **document}, salts=Salts(entropy))
    return payload, sign_core(payload, kid="issue-1", sign=sign), disclosures


def is_part(part: Any, whole: Any) -> bool:
    """Whether `part` is `whole` with hidden things left out or, where an alternate is given, generalised."""
    if isinstance(whole, Hide):
        return any(is_part(part, form) for form in whole.forms)
    if isinstance(whole, dict):
        must = {name for name, member in whole.items() if not isinstance(member, Hide)}
        return (
            isinstance(part, dict)
            and must <= part.keys() <= whole.keys()
            and all(is_part(member, whole[name]) for name, member in part.items())
        )
    if isinstance(whole, list):
        rest = iter(whole)
        return isinstance(part, list) and all(any(is_part(element, each) for each in rest) for element in part)
    return type(part) is type(whole) and bool(part == whole)


@pytest.mark.invariant("I5")
@given(document=documents(), data=st.data())
@few
def test_any_choice_closed_under_parents_verifies_to_a_part_of_the_document(
    document: dict[str, Any], data: st.DataObject
) -> None:
    payload, core, disclosures = issued(document)
    nodes = walk(payload, disclosures)
    assert {node.digest for node in nodes} == {disclosure.digest for disclosure in disclosures}
    kept: dict[str, Node] = {}
    taken = set()
    for node in nodes:  # parents come first
        free = (node.path, node.parents) not in taken and all(parent in kept for parent in node.parents)
        if free and data.draw(st.booleans()):
            taken.add((node.path, node.parents))
            kept[node.digest] = node
    chosen = data.draw(st.permutations([node.disclosure.raw for node in kept.values()]))
    verified = verify(core, chosen, public_key=KEY)
    assert is_part(verified.claims, {"iss": ISS, **document})
    assert {node.digest: node for node in verified.nodes} == kept
    assert parse(serialise(core, chosen)) == (core, tuple(chosen))
    for node in kept.values():
        assert decode(node.disclosure.raw, max_bytes=MAX_ENTRY_BYTES, what="")[-1] == node.disclosure.value


@pytest.mark.invariant("I5")
@given(document=documents(), data=st.data())
@few
def test_a_choice_that_lacks_a_parent_is_refused(document: dict[str, Any], data: st.DataObject) -> None:
    payload, core, disclosures = issued(document)
    orphans = [node for node in walk(payload, disclosures) if node.parents]
    if orphans:
        node = data.draw(st.sampled_from(orphans))
        with pytest.raises(RemoteError):
            verify(core, [node.disclosure.raw], public_key=KEY)


HONEST = issued({"s": Hide("full"), "t": [Hide({"u": Hide([1])}), 2], "v": {"w": Hide("x")}})


@pytest.mark.invariant("I5")
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_one_flipped_bit_anywhere_is_refused(data: st.DataObject) -> None:
    _, core, disclosures = HONEST
    parts = [core, *(disclosure.raw for disclosure in disclosures)]
    assert verify(parts[0], parts[1:], public_key=KEY).claims["s"] == "full"
    index = data.draw(st.sampled_from(range(len(parts))))
    bit = data.draw(st.integers(0, 8 * len(parts[index]) - 1))
    flipped = bytearray(parts[index])
    flipped[bit // 8] ^= 1 << bit % 8
    parts[index] = bytes(flipped)
    with pytest.raises(RemoteError):
        verify(parts[0], parts[1:], public_key=KEY)


@given(core=st.binary(max_size=200), disclosures=st.lists(st.binary(max_size=50), max_size=3))
@few
def test_any_bytes_are_refused_as_the_peers_error(core: bytes, disclosures: list[bytes]) -> None:
    with pytest.raises(RemoteError):
        verify(core, disclosures, public_key=KEY)


@given(text=st.text(max_size=60) | st.text("~aA-_=.", max_size=12))
@few
def test_any_text_is_a_compact_form_or_refused(text: str) -> None:
    try:
        core, disclosures = parse(text)
    except RemoteError:
        return
    assert serialise(core, disclosures) == text


hostile_names = st.sampled_from(["_sd", "...", "_sd_alg", "a", "b", "exp", "iss"])


def hostile(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves | st.sampled_from(["sha-256", "", 0, None]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(hostile_names, inner, max_size=3)
            | inner.map(lambda value: {"_sd": [value]})
            | inner.map(lambda value: [{"...": value}])
        ),
        max_leaves=8,
    )


@pytest.mark.invariant("I5")
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_key_holder_signs_gives_claims_without_digests_or_an_error(data: st.DataObject) -> None:
    """Payloads and disclosures of every shape around digests that fit, under a signature that holds."""
    raws: list[bytes] = []
    digests: list[str] = ["nothing"]
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.lists(hostile_names, max_size=1))
        value = data.draw(hostile(st.sampled_from(digests)))
        raws.append(encode(["salt", *name, value]))
        try:
            digests.append(Disclosure.parse(raws[-1]).digest)
        except RemoteError:
            raws.pop()
    members = data.draw(st.dictionaries(hostile_names, hostile(st.sampled_from(digests)), max_size=3))
    payload = {"_sd_alg": "sha-256", "_sd": digests[1:], **members, "iss": ISS}
    header = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": "issue-1"}
    signed = f"{b64url(encode(header))}.{b64url(encode(payload))}".encode()
    core = signed + b"." + b64url(sign(signed)).encode()
    try:
        verified: Verified = verify(core, raws, public_key=KEY)
    except RemoteError:
        return
    assert len(verified.nodes) == len(raws)
    again = process(verified.claims, ())  # idempotent: nothing is left to disclose
    assert again.claims == verified.claims
    assert not verified.claims.keys() & {"_sd", "_sd_alg", "...", "exp"}
