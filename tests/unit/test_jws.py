"""Documents signed by several parties: the honest way, every bent form, and another implementation's opinion."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from jwcrypto import jwk
from jwcrypto import jws as other_jws

from federation import ed25519, strictjson
from federation.base64url import b64url
from federation.errors import MalformedError, RemoteError, SignatureError, TooLargeError
from federation.jws import Signature, SignedDocument, parse, serialise, sign, verify, with_signature
from federation.limits import MAX_CONTROL_BYTES, MAX_PARTIES

TYP = "agreement+jws"
PAYLOAD = b'{"parties":["cert.fr.example","cert.de.example"]}'


def key_pair(label: str) -> tuple[bytes, Callable[[bytes], bytes]]:
    seed = hashlib.sha256(label.encode()).digest()
    return ed25519.public_key(seed), partial(ed25519.sign, seed)


FR_PUBLIC, FR_SIGN = key_pair("jws fr")
DE_PUBLIC, DE_SIGN = key_pair("jws de")
BY_FR = sign(PAYLOAD, TYP, "fr-1", FR_SIGN)
BY_DE = sign(PAYLOAD, TYP, "de-1", DE_SIGN)
BOTH = SignedDocument(PAYLOAD, (BY_FR, BY_DE))


def read(data: bytes, typ: str = TYP) -> SignedDocument:
    return parse(data, typ=typ, max_bytes=MAX_CONTROL_BYTES)


def form() -> dict[str, Any]:
    """The document by both, as a value to bend."""
    value: dict[str, Any] = json.loads(serialise(BOTH))
    return value


def with_header(header: bytes) -> bytes:
    """A document whose only signature is honest, over this header."""
    signature = FR_SIGN(f"{b64url(header)}.{b64url(PAYLOAD)}".encode())
    return serialise(SignedDocument(PAYLOAD, (Signature(header, signature, "fr-1"),)))


def test_two_parties_sign_one_after_the_other() -> None:
    proposed = serialise(SignedDocument(PAYLOAD, (BY_FR,)))
    agreed = serialise(with_signature(read(proposed), BY_DE))
    document = read(agreed)
    assert document == BOTH
    assert [s.kid for s in document.signatures] == ["fr-1", "de-1"]
    for signature, public in zip(document.signatures, (FR_PUBLIC, DE_PUBLIC), strict=True):
        verify(signature, document.payload, public)


@pytest.mark.invariant("I5")
def test_a_changed_payload_or_header_or_key_is_refused() -> None:
    verify(BY_FR, PAYLOAD, FR_PUBLIC)  # sanity
    attacks = [
        (BY_FR, PAYLOAD + b" ", FR_PUBLIC),
        (BY_FR, PAYLOAD, DE_PUBLIC),
        (Signature(BY_DE.protected, BY_FR.signature, "de-1"), PAYLOAD, FR_PUBLIC),
        (Signature(BY_FR.protected, BY_DE.signature, "fr-1"), PAYLOAD, FR_PUBLIC),
        (Signature(BY_FR.protected, BY_FR.signature[:63], "fr-1"), PAYLOAD, FR_PUBLIC),
    ]
    for signature, payload, public in attacks:
        with pytest.raises(SignatureError):
            verify(signature, payload, public)


def test_a_signature_is_not_taken_from_one_kind_of_document_to_another() -> None:
    card = serialise(SignedDocument(PAYLOAD, (sign(PAYLOAD, "card+jws", "fr-1", FR_SIGN),)))
    assert read(card, "card+jws").payload == PAYLOAD
    with pytest.raises(MalformedError):
        read(card)


def test_one_key_signs_once() -> None:
    with pytest.raises(MalformedError):
        with_signature(BOTH, BY_FR)
    doubled = form()
    doubled["signatures"].append(doubled["signatures"][0])
    with pytest.raises(MalformedError):
        read(strictjson.encode(doubled))


def test_limits() -> None:
    many = [sign(PAYLOAD, TYP, f"key-{n}", FR_SIGN) for n in range(MAX_PARTIES + 1)]
    assert len(read(serialise(SignedDocument(PAYLOAD, tuple(many[1:])))).signatures) == MAX_PARTIES
    with pytest.raises(TooLargeError):
        SignedDocument(PAYLOAD, tuple(many))
    crowd = form()
    crowd["signatures"] = [crowd["signatures"][0]] * (MAX_PARTIES + 1)
    with pytest.raises(TooLargeError):
        read(strictjson.encode(crowd))
    with pytest.raises(TooLargeError):
        parse(serialise(BOTH), typ=TYP, max_bytes=100)
    with pytest.raises(TooLargeError):
        read(with_header(strictjson.encode({"alg": "Ed25519", "kid": "k" * 2000, "typ": TYP})))


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"EdDSA","kid":"fr-1","typ":"agreement+jws"}',
        b'{"alg":"none","kid":"fr-1","typ":"agreement+jws"}',
        b'{"alg":"HS256","kid":"fr-1","typ":"agreement+jws"}',
        b'{"alg":["Ed25519"],"kid":"fr-1","typ":"agreement+jws"}',
        b'{"kid":"fr-1","typ":"agreement+jws"}',
        b'{"alg":"Ed25519","typ":"agreement+jws"}',
        b'{"alg":"Ed25519","kid":"fr-1"}',
        b'{"alg":"Ed25519","kid":"fr-1","typ":"Agreement+jws"}',
        b'{"alg":"Ed25519","kid":"fr-1","typ":null}',
        b'{"alg":"Ed25519","kid":"","typ":"agreement+jws"}',
        b'{"alg":"Ed25519","kid":1,"typ":"agreement+jws"}',
        b'{"alg":"Ed25519","kid":"fr 1","typ":"agreement+jws"}',
        b'{"alg":"Ed25519","kid":"fr\\n1","typ":"agreement+jws"}',
        b'{"alg":"Ed25519","kid":"fr-1","typ":"agreement+jws","crit":["exp"],"exp":1}',
        b'{"alg":"Ed25519","kid":"fr-1","typ":"agreement+jws","b64":false}',
        b'{"alg":"Ed25519","kid":"fr-1","typ":"agreement+jws","jwk":{}}',
        b'{"alg":"Ed25519","kid":"fr-1","typ":"agreement+jws","jku":"https://cert.fr.example/keys"}',
        b'{"alg":"Ed25519","alg":"Ed25519","kid":"fr-1","typ":"agreement+jws"}',
        b'["Ed25519"]',
        b"",
        b"\xff",
    ],
)
@pytest.mark.invariant("I18")
def test_any_other_header_is_refused_though_honestly_signed(header: bytes) -> None:
    with pytest.raises(MalformedError):
        read(with_header(header))


def test_the_order_of_header_members_is_the_signers() -> None:
    document = read(with_header(b'{"typ": "agreement+jws", "kid": "fr-1", "alg": "Ed25519"}'))
    verify(document.signatures[0], document.payload, FR_PUBLIC)


def bend(change: Callable[[dict[str, Any]], Any]) -> bytes:
    value = form()
    change(value)
    return strictjson.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        bend(lambda v: v.update(header={})),
        bend(lambda v: v.update(signature=v["signatures"][0]["signature"])),
        bend(lambda v: v.pop("payload")),
        bend(lambda v: v.update(payload=None)),
        bend(lambda v: v.update(payload=v["payload"] + "=")),
        bend(lambda v: v.update(payload="Ä")),
        bend(lambda v: v.update(signatures=[])),
        bend(lambda v: v.update(signatures={})),
        bend(lambda v: v.update(signatures=1)),
        bend(lambda v: v.update(signatures=[1])),
        bend(lambda v: v["signatures"][0].update(header={"kid": "de-1"})),
        bend(lambda v: v["signatures"][0].pop("protected")),
        bend(lambda v: v["signatures"][0].update(protected={})),
        bend(lambda v: v["signatures"][0].update(signature="")),
        bend(lambda v: v["signatures"][0].update(signature=v["signatures"][0]["signature"] + "AA")),
        bend(lambda v: v["signatures"][0].update(signature=v["signatures"][0]["signature"] + "=")),
        serialise(BOTH).replace(b'{"payload"', b'{"payload":"","payload"'),
    ],
)
def test_any_other_form_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read(data)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"[", "agreement+jws: "),
        (bend(lambda v: v.update(payload=1)), "agreement+jws: "),
        (bend(lambda v: v["signatures"][0].update(protected=1)), "agreement+jws: "),
        (bend(lambda v: v["signatures"][0].update(signature=1)), "agreement+jws: "),
        (with_header(b"["), "agreement+jws header: "),
    ],
)
def test_a_refusal_names_the_kind_of_document(data: bytes, place: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read(data)
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("kid", ["", "a b", "é", "k" * 256])
def test_we_do_not_sign_under_a_key_id_that_nobody_would_read(kid: str) -> None:
    with pytest.raises(RemoteError):
        sign(PAYLOAD, TYP, kid, FR_SIGN)


def okp(public: bytes, private: bytes | None = None) -> jwk.JWK:
    members = {"kty": "OKP", "crv": "Ed25519", "x": b64url(public)}
    return jwk.JWK(**members, **({"d": b64url(private)} if private else {}))


def test_another_implementation_accepts_what_we_sign() -> None:
    for public in (FR_PUBLIC, DE_PUBLIC):
        token = other_jws.JWS()
        token.allowed_algs = ["Ed25519"]
        token.deserialize(serialise(BOTH).decode())
        token.verify(okp(public))
        assert token.payload == PAYLOAD
    token = other_jws.JWS()
    token.allowed_algs = ["Ed25519"]
    token.deserialize(serialise(SignedDocument(PAYLOAD + b" ", BOTH.signatures)).decode())
    with pytest.raises(other_jws.InvalidJWSSignature):
        token.verify(okp(FR_PUBLIC))


def test_we_accept_what_another_implementation_signs() -> None:
    token = other_jws.JWS(PAYLOAD)
    token.allowed_algs = ["Ed25519"]
    for label, kid in (("jws fr", "fr-1"), ("jws de", "de-1")):
        seed = hashlib.sha256(label.encode()).digest()
        header = json.dumps({"alg": "Ed25519", "kid": kid, "typ": TYP})
        token.add_signature(okp(ed25519.public_key(seed), seed), protected=header)
    document = read(token.serialize().encode())
    assert document.payload == PAYLOAD
    verify(document.signatures[0], document.payload, FR_PUBLIC)
    verify(document.signatures[1], document.payload, DE_PUBLIC)
