"""Reading a core as a hostile peer would write it: every step of RFC 9901 7.1 is tried by breaking it."""

import itertools
import json
from typing import Any

import pytest

from federation import ed25519
from federation.base64url import b64url
from federation.errors import MalformedError, RemoteError, SignatureError, TooLargeError
from federation.limits import MAX_DISCLOSURES, MAX_ENTRY_BYTES, MAX_JSON_DEPTH
from federation.sdjwt import (
    Disclosure,
    Hide,
    Salts,
    conceal,
    process,
    read_header_and_payload,
    sign_core,
    verify,
    walk,
)
from federation.sdjwt.disclosure import digest_of
from federation.strictjson import encode

SEED = bytes(range(32))
KEY = ed25519.public_key(SEED)
HEADER = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": "issue-1"}
PLAIN = {"iss": "cert.fr.example", "_sd_alg": "sha-256"}

_numbers = itertools.count()


def entropy(size: int) -> bytes:
    return b"".join(next(_numbers).to_bytes(8, "big") for _ in range(size // 8))


def jws(payload: object, header: object = HEADER, seed: bytes = SEED) -> bytes:
    """A compact JWS of whatever: what the holder of `seed` could sign."""
    parts = [p if isinstance(p, bytes) else encode(p) for p in (header, payload)]
    signed = ".".join(b64url(part) for part in parts).encode()
    return signed + b"." + b64url(ed25519.sign(seed, signed)).encode()


def made(name: str | None, value: object) -> Disclosure:
    return Disclosure.make(entropy(16), name, value)


def of(*disclosures: Disclosure, **claims: object) -> dict[str, Any]:
    """A payload with the digests of `disclosures` at the top."""
    return {**PLAIN, **claims, "_sd": [d.digest for d in disclosures]}


def honest() -> tuple[bytes, list[bytes]]:
    """A core and the disclosures of one presentation."""
    claims = {"iss": "cert.fr.example", "title": Hide("Full", "General"), "notes": Hide([Hide("a"), Hide("b")])}
    payload, disclosures = conceal(claims, salts=Salts(entropy))
    core = sign_core(payload, kid="issue-1", sign=lambda message: ed25519.sign(SEED, message))
    return core, [d.raw for d in disclosures if d.value != "General"]


def refused(core: bytes, *disclosures: Disclosure | bytes, error: type[RemoteError] = MalformedError) -> str:
    with pytest.raises(RemoteError) as caught:
        verify(core, disclosures, public_key=KEY)
    assert type(caught.value) is error, caught.value
    return str(caught.value)


def test_an_honest_presentation_is_read() -> None:
    core, disclosures = honest()
    verified = verify(core, disclosures, public_key=KEY)
    assert verified.header == HEADER
    assert verified.claims == {"iss": "cert.fr.example", "title": "Full", "notes": ["a", "b"]}
    assert verified.payload.keys() == {"iss", "_sd", "_sd_alg"}
    assert sorted(node.path for node in verified.nodes) == ["/notes", "/notes/0", "/notes/1", "/title"]
    unverified = read_header_and_payload(core)
    assert (unverified.iss, unverified.kid) == ("cert.fr.example", "issue-1")
    assert verify(unverified, disclosures, public_key=KEY) == verified


def test_withheld_elements_are_simply_not_there() -> None:
    core, _ = honest()
    assert verify(core, (), public_key=KEY).claims == {"iss": "cert.fr.example"}


def test_nodes_say_where_each_disclosure_hangs() -> None:
    claims = {"a/b~c": [0, Hide({"d": Hide(1)}), [Hide(2)]]}
    payload, disclosures = conceal(claims, salts=Salts(entropy))
    outer, inner, element = disclosures
    nodes = process(payload, disclosures).nodes
    assert [(n.path, n.digest, n.parents, n.disclosure) for n in nodes] == [
        ("/a~1b~0c/1", outer.digest, (), outer),
        ("/a~1b~0c/1/d", inner.digest, (outer.digest,), inner),
        ("/a~1b~0c/2/0", element.digest, (), element),
    ]


def test_an_array_index_counts_the_signed_array() -> None:
    payload, (_, second) = conceal({"list": [Hide("a"), Hide("b")]}, salts=Salts(entropy))
    processed = process(payload, [second])
    assert processed.claims == {"list": ["b"]}
    assert [node.path for node in processed.nodes] == ["/list/1"]


def test_processing_changes_no_input() -> None:
    payload, disclosures = conceal({"a": Hide({"b": Hide(1)}), "c": [Hide(2)]}, salts=Salts(entropy))
    before = json.dumps([payload, [d.value for d in disclosures]])
    process(payload, disclosures)
    assert json.dumps([payload, [d.value for d in disclosures]]) == before


# Step 1: the core and its parts


@pytest.mark.parametrize("change", [b"", b".", b"..", b"a.b", b"a.b.c.d", "é.b.c".encode()])
def test_what_is_no_compact_jws_is_refused(change: bytes) -> None:
    refused(change)


def test_a_core_has_three_parts() -> None:
    core, _ = honest()
    refused(core.rpartition(b".")[0])
    refused(core + b".")
    refused(core + b"." + core)


def test_an_oversized_core_is_refused_before_it_is_decoded() -> None:
    refused(b"." * (MAX_ENTRY_BYTES + 1), error=TooLargeError)


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_second_spelling_of_the_same_bytes_is_refused(part: int) -> None:
    core, disclosures = honest()
    parts = core.split(b".")
    parts[part] += b"="
    refused(b".".join(parts), *disclosures)


@pytest.mark.parametrize("payload", [b"{", b"[]", b'{"iss":"a.b","iss":"c.d"}', b'{"iss":"a.b","x":NaN}', b"\xff"])
def test_a_payload_must_be_one_strict_json_object(payload: bytes) -> None:
    refused(jws(payload))


@pytest.mark.parametrize("payload", [{}, {"iss": 1}, {"iss": None}])
def test_a_payload_names_its_origin(payload: dict[str, Any]) -> None:
    refused(jws({"_sd_alg": "sha-256", **payload}))


# Step 2.a: the header


@pytest.mark.invariant("I5")
@pytest.mark.parametrize(
    "header",
    [
        {**HEADER, "alg": "none"},
        {**HEADER, "alg": "HS256"},
        {**HEADER, "alg": "EdDSA"},
        {**HEADER, "alg": "ed25519"},
        {**HEADER, "alg": ["Ed25519"]},
        {**HEADER, "typ": "JWT"},
        {**HEADER, "typ": "example+sd-jwt"},
        {**HEADER, "typ": "application/advisory+sd-jwt"},
        {**HEADER, "kid": 1},
        {**HEADER, "kid": None},
        {**HEADER, "kid": {}},
        {**HEADER, "crit": ["b64"], "b64": False},
        {**HEADER, "crit": []},
        {**HEADER, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64url(KEY)}},
        {**HEADER, "x5c": []},
        {**HEADER, "cty": "json"},
        {"alg": "Ed25519", "typ": "advisory+sd-jwt"},
        {"alg": "Ed25519", "kid": "issue-1"},
        {"typ": "advisory+sd-jwt", "kid": "issue-1"},
        [],
        b'{"alg":"Ed25519","alg":"Ed25519","typ":"advisory+sd-jwt","kid":"issue-1"}',
    ],
)
def test_any_other_header_is_refused_though_signed_by_the_right_key(header: object) -> None:
    sanity = verify(jws(PLAIN), (), public_key=KEY)
    assert sanity.header == HEADER
    refused(jws(PLAIN, header))


# Step 2.b and 2.c: the signature and whose it is


@pytest.mark.invariant("I5")
def test_another_key_does_not_verify() -> None:
    assert refused(jws(PLAIN, seed=bytes(32)), error=SignatureError)


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("signature", ["", b64url(bytes(64)), b64url(bytes(63)), b64url(bytes(65))])
def test_a_missing_or_empty_signature_is_refused(signature: str) -> None:
    signed = jws(PLAIN).rpartition(b".")[0]
    refused(signed + b"." + signature.encode(), error=SignatureError)


@pytest.mark.invariant("I5")
def test_header_payload_and_signature_of_two_cores_do_not_mix() -> None:
    one, other = jws(PLAIN).split(b"."), jws({**PLAIN, "x": 1}).split(b".")
    refused(b".".join([one[0], other[1], one[2]]), error=SignatureError)
    refused(b".".join([one[0], one[1], other[2]]), error=SignatureError)


def test_the_signature_is_judged_before_the_disclosures() -> None:
    refused(jws(PLAIN, seed=bytes(32)), b"not a disclosure", error=SignatureError)


# Step 2.d: the hash


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("payload", [{"_sd_alg": "md5"}, {"_sd_alg": "sha-512"}, {"_sd_alg": None}, {}])
def test_another_hash_or_none_named_is_refused(payload: dict[str, Any]) -> None:
    refused(jws({"iss": "cert.fr.example", **payload}))


def test_the_general_algorithm_takes_sha_256_for_granted_and_no_other() -> None:
    assert process({"a": 1}, ()).claims == {"a": 1}
    with pytest.raises(MalformedError):
        process({"_sd_alg": "sha-512"}, ())


# Step 3.b: embedded digests


@pytest.mark.invariant("I5")
@pytest.mark.parametrize(
    "claims",
    [
        {"_sd": "x"},
        {"_sd": None},
        {"_sd": {}},
        {"_sd": [1]},
        {"_sd": [["x"]]},
        {"_sd": [None]},
        {"a": {"_sd": 1}},
        {"a": [{"_sd": "x"}]},
        {"...": "x"},
        {"a": {"...": "x"}},
        {"a": [{"...": "x", "b": 1}]},
        {"a": [{"...": 1}]},
        {"a": [{"...": ["x"]}]},
        {"a": [{"...": None}]},
        {"a": {"_sd_alg": "sha-256"}},
    ],
)
def test_reserved_names_convey_digests_and_nothing_else(claims: dict[str, Any]) -> None:
    refused(jws({**PLAIN, **claims}))
    hidden = made("hidden", claims)
    refused(jws(of(hidden)), hidden)
    element = made(None, claims)
    refused(jws({**PLAIN, "list": [{"...": element.digest}]}), element)


# Step 3.c: the disclosures


@pytest.mark.invariant("I5")
@pytest.mark.parametrize(
    "spelled",
    [
        b"",
        b"{}",
        b'"x"',
        b'"xy"',
        b"12",
        b'{"salt":1,"a":2}',
        b"[]",
        b'["salt"]',
        b'["salt","a",1,2]',
        b'[1,"a",1]',
        b'[null,"a",1]',
        b'["salt",1,1]',
        b'["salt",null,1]',
        b'["salt",["a"],1]',
        b'["salt","_sd",[]]',
        b'["salt","...","x"]',
        b'["salt","_sd_alg","sha-256"]',
        b'["salt","a",{"b":1,"b":2}]',
        b'["salt","a",NaN]',
        b'["salt","a",1]x',
        b'["salt","a","\xff"]',
        b'["salt","a","\\ud800"]',
    ],
)
def test_a_disclosure_of_another_shape_is_refused(spelled: bytes) -> None:
    refused(jws({**PLAIN, "_sd": [digest_of(spelled)]}), spelled)
    with pytest.raises(MalformedError):
        Disclosure.parse(spelled)


@pytest.mark.invariant("I5")
def test_an_elements_disclosure_is_no_members_and_the_other_way_round() -> None:
    member, element = made("a", 1), made(None, 1)
    sanity = jws({**of(member), "list": [{"...": element.digest}]})
    assert verify(sanity, [member, element], public_key=KEY).claims == {"iss": "cert.fr.example", "a": 1, "list": [1]}
    refused(jws(of(element)), element)
    refused(jws({**PLAIN, "list": [{"...": member.digest}]}), member)


@pytest.mark.invariant("I5")
def test_a_disclosure_cannot_replace_a_plain_claim() -> None:
    handling = made("handling", {"tlp": "CLEAR"})
    refused(jws(of(handling, handling={"tlp": "RED"})), handling)
    inner = made("tlp", "CLEAR")
    refused(jws({**PLAIN, "handling": {"tlp": "RED", "_sd": [inner.digest]}}), inner)
    issuer = made("iss", "cert.de.example")
    refused(jws(of(issuer)), issuer)


@pytest.mark.invariant("I5")
def test_full_and_generalised_form_together_are_refused_but_can_be_walked() -> None:
    full, generalised, other = made("title", "CVE-2026-1 in X"), made("title", "A vulnerability"), made("x", 1)
    core = jws(of(full, generalised, other))
    for form in (full, generalised):
        assert verify(core, [form, other], public_key=KEY).claims["title"] == form.value
    refused(core, full, generalised)
    nodes = walk(read_header_and_payload(core).payload, [full, generalised, other])
    assert [(node.path, node.digest) for node in nodes] == [
        ("/title", full.digest),
        ("/title", generalised.digest),
        ("/x", other.digest),
    ]


@pytest.mark.invariant("I5")
def test_walking_allows_alternates_and_nothing_more() -> None:
    hidden, stranger = made("a", 1), made("b", 1)
    with pytest.raises(MalformedError):
        walk(of(hidden, a=2), [hidden])
    with pytest.raises(SignatureError):
        walk(of(hidden), [stranger])
    with pytest.raises(MalformedError):
        walk(of(hidden, hidden), [hidden])
    with pytest.raises(MalformedError):
        walk(of(hidden), [hidden, hidden])


def test_disclosures_inside_disclosures_are_processed() -> None:
    leaf = made(None, "leaf")
    middle = made("middle", [{"...": leaf.digest}, {"...": "decoy"}])
    outer = made("outer", {"_sd": [middle.digest, "other decoy"]})
    core = jws(of(outer))
    assert verify(core, [leaf, middle, outer], public_key=KEY).claims["outer"] == {"middle": ["leaf"]}
    assert verify(core, [middle, outer], public_key=KEY).claims["outer"] == {"middle": []}
    assert verify(core, [outer], public_key=KEY).claims["outer"] == {}  # step 3.e
    assert "outer" not in verify(core, (), public_key=KEY).claims


# Steps 4 and 5: every digest once, every disclosure referred to


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("shown", [True, False])
def test_a_digest_that_occurs_twice_is_refused(shown: bool) -> None:
    hidden, element = made("a", 1), made(None, 1)
    show = (hidden,) if shown else ()
    refused(jws({**PLAIN, "_sd": [hidden.digest, hidden.digest]}), *show)
    refused(jws({**of(hidden), "b": {"_sd": [hidden.digest]}}), *show)
    show = (element,) if shown else ()
    refused(jws({**PLAIN, "list": [{"...": element.digest}, {"...": element.digest}]}), *show)
    refused(jws({**of(element), "list": [{"...": element.digest}]}), *show)


@pytest.mark.invariant("I5")
def test_a_digest_in_payload_and_disclosure_is_refused() -> None:
    inner = made("inner", 1)
    outer = made("outer", {"_sd": [inner.digest]})
    refused(jws(of(outer, inner)), outer, inner)
    refused(jws(of(outer, inner)), outer)


@pytest.mark.invariant("I5")
def test_disclosures_that_seem_to_contain_each_other_end() -> None:
    """No hash contains itself; the digests here are set by hand, as after a break of SHA-256."""
    one = Disclosure(b"1", "", "one", {"_sd": ["digest-2"]}, "digest-1")
    two = Disclosure(b"2", "", "two", {"_sd": ["digest-1"]}, "digest-2")
    with pytest.raises(MalformedError):
        process({"_sd": ["digest-1"]}, [one, two])
    loop = Disclosure(b"3", "", None, [{"...": "digest-3"}], "digest-3")
    with pytest.raises(MalformedError):
        process({"list": [{"...": "digest-3"}]}, [loop])


@pytest.mark.invariant("I5")
def test_a_disclosure_to_which_nothing_refers_is_refused() -> None:
    core, disclosures = honest()
    assert "does not refer" in refused(core, *disclosures, made("added", 1), error=SignatureError)
    stranger_inside = made("outer", {"_sd": []})
    refused(jws(of(stranger_inside)), stranger_inside, made("inner", 1), error=SignatureError)


@pytest.mark.invariant("I5")
def test_a_child_without_its_parent_is_refused() -> None:
    child = made("child", 1)
    parent = made("parent", {"_sd": [child.digest]})
    assert verify(jws(of(parent)), [child, parent], public_key=KEY).claims["parent"] == {"child": 1}
    refused(jws(of(parent)), child, error=SignatureError)


@pytest.mark.invariant("I5")
def test_the_same_disclosure_twice_is_refused() -> None:
    core, disclosures = honest()
    refused(core, *disclosures, disclosures[0])


@pytest.mark.invariant("I5")
def test_a_disclosure_is_hashed_as_it_came() -> None:
    core, disclosures = honest()
    respelled = json.dumps(json.loads(disclosures[0])).encode()
    assert respelled != disclosures[0]
    refused(core, respelled, *disclosures[1:], error=SignatureError)


# Step 6: claims about validity


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("claim", ["exp", "nbf", "aud", "cnf"])
def test_validity_claims_are_refused_plain_and_disclosed(claim: str) -> None:
    refused(jws({**PLAIN, claim: 4102444800}))
    hidden = made(claim, 4102444800)
    core = jws(of(hidden))
    refused(core, hidden)
    assert verify(core, (), public_key=KEY).claims == {"iss": "cert.fr.example"}
    inside = jws({**PLAIN, "csaf": {claim: 1}})
    assert verify(inside, (), public_key=KEY).claims["csaf"] == {claim: 1}


# Bounds


def test_too_many_disclosures_are_refused_unread() -> None:
    refused(jws(PLAIN), *[b""] * (MAX_DISCLOSURES + 1), error=TooLargeError)


@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_json_is_an_error_of_the_peer_not_of_ours(brackets: tuple[bytes, bytes]) -> None:
    opening, closing = brackets
    nest = opening * 10_000 + b"1" + closing * 10_000
    refused(jws(b'{"iss":"a.b","_sd_alg":"sha-256","x":' + nest + b"}"))
    refused(jws(PLAIN), b'["salt","a",' + nest + b"]")


def test_a_chain_of_ten_thousand_disclosures_is_refused() -> None:
    chain = [made("end", 1)]
    for _ in range(10_000):
        chain.append(made("next", {"_sd": [chain[-1].digest]}))
    refused(jws(of(chain[-1])), *(d.raw for d in chain), error=TooLargeError)
    elements = [made(None, 1)]
    for _ in range(10_000):
        elements.append(made(None, [{"...": elements[-1].digest}]))
    refused(jws({**PLAIN, "x": [{"...": elements[-1].digest}]}), *(d.raw for d in elements), error=TooLargeError)


@pytest.mark.parametrize("levels", [MAX_JSON_DEPTH, 10_000])
def test_values_that_were_never_json_are_bounded_too(levels: int) -> None:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    with pytest.raises(TooLargeError):
        process({"x": value}, ())


@pytest.mark.invariant("I17")
def test_errors_name_rules_and_no_content() -> None:
    secret = made("secret-name", "secret-value")
    texts = [
        refused(jws(of(secret, **{"secret-name": "secret-value"})), secret),
        refused(jws(PLAIN), secret, error=SignatureError),
        refused(jws({**PLAIN, "_sd": ["secret-value"] * 2})),
        refused(jws({**PLAIN, "_sd": "secret-value"})),
        refused(jws(PLAIN, {"secret-name": "secret-value"})),
    ]
    assert not any("secret" in text for text in texts)
    assert "secret" not in repr(secret).replace(repr(secret.raw), "")
