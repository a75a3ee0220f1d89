"""Making a core: what is hidden leaves no trace but digests, and nothing is signed that a receiver would refuse."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from federation.base64url import b64url, from_b64url
from federation.errors import LocalError, MalformedError, TooLargeError, UsageError
from federation.limits import HASH_BYTES, MAX_DISCLOSURES, MAX_ENTRY_BYTES, MAX_JSON_DEPTH, SALT_BYTES
from federation.sdjwt import Disclosure, Hide, Salts, conceal, parse, process, serialise, sign_core, walk


def counting_entropy() -> tuple[Salts, list[int]]:
    """Salts that never repeat, and the sizes that were asked for."""
    asked: list[int] = []
    numbers = itertools.count()

    def entropy(size: int) -> bytes:
        asked.append(size)
        block = b""
        while len(block) < size:
            block += hashlib.sha256(str(next(numbers)).encode()).digest()
        return block[:size]

    return Salts(entropy), asked


def concealed(claims: dict[str, Any]) -> tuple[dict[str, Any], tuple[Disclosure, ...]]:
    return conceal(claims, salts=counting_entropy()[0])


def no_signature(_: bytes) -> bytes:
    pytest.fail("signed something that should have been refused")


def test_a_hidden_member_leaves_only_a_digest_among_decoys() -> None:
    payload, (title,) = concealed({"iss": "cert.fr.example", "title": Hide("Heap overflow")})
    assert payload.keys() == {"iss", "_sd", "_sd_alg"}
    assert payload["_sd_alg"] == "sha-256"
    assert title.digest in payload["_sd"]
    assert len(payload["_sd"]) == 4
    assert all(len(from_b64url(digest)) == HASH_BYTES for digest in payload["_sd"])
    assert (title.name, title.value, len(from_b64url(title.salt))) == ("title", "Heap overflow", SALT_BYTES)
    assert json.loads(title.raw) == [title.salt, "title", "Heap overflow"]
    assert title.digest == b64url(hashlib.sha256(b64url(title.raw).encode()).digest())


def test_a_document_with_nothing_to_hide_only_gains_the_hash_name() -> None:
    claims = {"a": [{"b": [1, None, True, 1.5]}], "c": {}}
    assert concealed(claims) == ({**claims, "_sd_alg": "sha-256"}, ())


def test_the_input_is_not_changed() -> None:
    claims = {"a": Hide({"b": Hide(1)}), "c": [Hide(2)]}
    concealed(claims)
    assert claims == {"a": Hide({"b": Hide(1)}), "c": [Hide(2)]}


@pytest.mark.parametrize(("hidden", "digests"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (17, 32)])
def test_digests_are_sorted_and_padded_to_a_power_of_two(hidden: int, digests: int) -> None:
    payload, disclosures = concealed({f"n{i}": Hide(i) for i in range(hidden)})
    assert payload["_sd"] == sorted(payload["_sd"])
    assert len(set(payload["_sd"])) == digests
    assert len(disclosures) == hidden


def test_array_placeholders_keep_their_order_and_decoys_come_last() -> None:
    payload, disclosures = concealed({"list": ["a", Hide("b"), "c", Hide("d")], "plain": [[1], [2]]})
    b, d = (each.digest for each in disclosures)
    assert payload["list"][:4] == ["a", {"...": b}, "c", {"...": d}]
    assert [element.keys() for element in payload["list"][4:]] == [{"..."}, {"..."}]
    assert payload["plain"] == [[1], [2]]


def test_an_alternate_is_a_second_disclosure_of_the_same_name_in_the_same_container() -> None:
    payload, (full, generalised, _) = concealed({"title": Hide("CVE-2026-1 in X", "A vulnerability"), "x": Hide(1)})
    assert (full.name, full.value) == ("title", "CVE-2026-1 in X")
    assert (generalised.name, generalised.value) == ("title", "A vulnerability")
    assert len(payload["_sd"]) == 4  # three forms and one decoy


def test_an_alternate_may_be_null() -> None:
    assert [d.value for d in concealed({"title": Hide("x", None)})[1]] == ["x", None]


def test_disclosures_nest_and_come_parents_first() -> None:
    payload, disclosures = concealed({"out": Hide({"in": Hide([Hide(1)]), "open": 2})})
    assert [d.name for d in disclosures] == ["out", "in", None]
    out, inner, element = disclosures
    assert "open" in out.value
    assert inner.digest in out.value["_sd"]
    assert inner.value[0] == {"...": element.digest}
    assert [node.disclosure for node in walk(payload, disclosures)] == list(disclosures)
    assert process(payload, disclosures).claims == {"out": {"in": [1], "open": 2}}


@pytest.mark.invariant("I5")
def test_entropy_is_read_once_and_no_slice_is_used_twice() -> None:
    salts, asked = counting_entropy()
    payload, disclosures = conceal({"a": Hide(1, 2), "b": [Hide(1), Hide({"c": Hide(1)})]}, salts=salts)
    decoys = (4 - 2) + (4 - 2) + (4 - 1)
    assert asked == [len(disclosures) * SALT_BYTES + decoys * HASH_BYTES]
    known = {d.digest for d in disclosures}
    texts = re.findall(r"[A-Za-z0-9_-]{43}", json.dumps([payload, [d.value for d in disclosures]]))
    slices = {from_b64url(d.salt) for d in disclosures} | {from_b64url(text) for text in texts if text not in known}
    assert len(slices) == len(disclosures) + decoys
    assert not any(one in other for one in slices for other in slices if one is not other)
    assert process(payload, [d for d in disclosures if d.value != 2]).claims == {"a": 1, "b": [1, {"c": 1}]}


def test_a_generator_that_gives_too_little_is_refused() -> None:
    with pytest.raises(LocalError, match="random generator"):
        conceal({"a": Hide(1)}, salts=Salts(lambda size: bytes(size - 1)))


def deep(levels: int, leaf: object) -> dict[str, Any]:
    """An object of `levels` levels with `leaf` in the last."""
    value: dict[str, Any] = {"x": leaf}
    for _ in range(levels - 1):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"_sd": []}, "reserves"),
        ({"a": {"...": "x"}}, "reserves"),
        ({"a": [{"_sd_alg": "sha-256"}]}, "reserves"),
        ({"a": Hide({"_sd": []})}, "reserves"),
        ({"a": Hide(1, {"_sd": []})}, "reserves"),
        ({"_sd_alg": "sha-512"}, "can only be sha-256"),
        ({"_sd_alg": Hide("sha-256")}, "can only be sha-256"),
        ({"...": Hide(1)}, "reserves"),
        ({"a": {1: "x"}}, "no string"),
        ({"a": [Hide(1, 2)]}, "/a/0: an array element has no alternates"),
        ({"a": Hide(Hide(1))}, "/a: only a member"),
        ({"a~/b": {"c": Hide(Hide(1))}}, "/a~0~1b/c: only a member"),
        ({"a": (1, 2)}, "/a: not a JSON value"),
        ({"a": Hide(b"x")}, "/a: not a JSON value"),
        ({"a": Hide(float("nan"))}, "JSON cannot say"),
        ({"a": Hide("\ud800")}, "JSON cannot say"),
        (deep(MAX_JSON_DEPTH + 1, 1), "nested deeper"),
        (deep(MAX_JSON_DEPTH, Hide(1)), "nested deeper"),
        ({"a": [Hide(1)] * (MAX_DISCLOSURES + 1)}, "mark larger parts"),
    ],
)
def test_what_no_receiver_would_take_is_refused_with_its_place(claims: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        concealed(claims)


def test_the_deepest_document_that_is_issued_is_also_read() -> None:
    claims = deep(MAX_JSON_DEPTH - 1, Hide(1))
    payload, disclosures = concealed(claims)
    assert process(payload, disclosures).claims == deep(MAX_JSON_DEPTH - 1, 1)


@pytest.mark.parametrize("name", ["_sd", "_sd_alg", "..."])
def test_no_disclosure_is_made_under_a_reserved_name(name: str) -> None:
    with pytest.raises(UsageError, match="reserves"):
        Disclosure.make(bytes(SALT_BYTES), name, 1)


def test_a_core_is_a_compact_jwt_under_the_one_header() -> None:
    signed: list[bytes] = []

    def sign(message: bytes) -> bytes:
        signed.append(message)
        return b"s" * 64

    payload = {"iss": "cert.fr.example", "_sd_alg": "sha-256", "name": "Zoë"}
    core = sign_core(payload, kid="issue-1", sign=sign)
    head, body, signature = core.decode("ascii").split(".")
    assert from_b64url(head) == b'{"alg":"Ed25519","typ":"advisory+sd-jwt","kid":"issue-1"}'
    assert json.loads(from_b64url(body)) == payload
    assert from_b64url(signature) == b"s" * 64
    assert signed == [f"{head}.{body}".encode()]


@pytest.mark.parametrize("claim", ["exp", "nbf", "aud", "cnf"])
def test_a_claim_that_verifiers_refuse_is_never_signed(claim: str) -> None:
    with pytest.raises(UsageError, match="never carries"):
        sign_core({"iss": "a.b", "_sd_alg": "sha-256", claim: 1}, kid="k", sign=no_signature)


@pytest.mark.parametrize("payload", [{"iss": "a.b"}, {"_sd_alg": "sha-256"}, {"iss": 1, "_sd_alg": "sha-256"}])
def test_a_payload_without_hash_name_or_origin_is_never_signed(payload: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs"):
        sign_core(payload, kid="k", sign=no_signature)


def test_a_payload_that_json_cannot_say_is_never_signed() -> None:
    with pytest.raises(UsageError, match="JSON cannot say"):
        sign_core({"iss": "a.b", "_sd_alg": "sha-256", "x": float("inf")}, kid="k", sign=no_signature)


@pytest.mark.parametrize(
    "make",
    [
        lambda: concealed({"a": Hide("secret \ud800")}),
        lambda: sign_core({"iss": "a.b", "_sd_alg": "sha-256", "x": "secret \ud800"}, kid="k", sign=no_signature),
    ],
)
@pytest.mark.invariant("I17")
def test_an_error_does_not_carry_the_value(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


# The compact form


def test_the_compact_form_goes_there_and_back() -> None:
    core, disclosures = b"header.payload.signature", (b'["salt","a",1]', b'["salt","Zo\xc3\xab"]')
    text = serialise(core, disclosures)
    assert text.count("~") == len(disclosures) + 1
    assert parse(text) == (core, disclosures)
    assert parse(serialise(core, ())) == (core, ())


@pytest.mark.parametrize("text", ["", "~", "~~", "core", "core~~", "core~YQ", "core~YQ~kb.jwt.x", "core~é~", "é~"])
def test_other_compact_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse(text)


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("part", ["YQ=", "YQ==", "YR", "Y Q", "YQ\n", "Y", "Y+"])
def test_a_disclosure_with_a_second_spelling_is_refused(part: str) -> None:
    assert parse("core~YQ~") == (b"core", (b"a",))
    with pytest.raises(MalformedError):
        parse(f"core~{part}~")


def test_an_oversized_compact_text_is_refused() -> None:
    with pytest.raises(TooLargeError):
        parse("~" * (2 * MAX_ENTRY_BYTES + 1))
