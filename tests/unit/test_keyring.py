"""Cards and keys: self-consistent, signed by their threshold, and looked up by node, role and id together."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rfc8785

from federation import ed25519, jws, keyring, strictjson
from federation.base64url import b64url
from federation.errors import (
    KeyringError,
    MalformedError,
    RemoteError,
    SignatureError,
    TooLargeError,
    UnknownOriginError,
)
from federation.keyring import Card, Keyring, OnlineKey, RootSet, key_id, open_card, root_key_id
from federation.model import Country, JsonObject, NodeId, Role

FR, DE = NodeId("cert.fr.example"), NodeId("cert.de.example")
ROOTS = tuple(bytes([n]) * 32 for n in (1, 2, 3))
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
START, END = NOW - timedelta(days=10), NOW + timedelta(days=387)
SMALL_ORDER = bytes(31) + b"\x80"  # a point of order 4
NOT_CANONICAL = b"\xee" + b"\xff" * 30 + b"\x7f"  # y = p + 1


def online(role: Role, seed: int) -> OnlineKey:
    public = ed25519.public_key(bytes([seed]) * 32)
    return OnlineKey(role, key_id(role, public), public, START, END)


ISSUE, FEED, RECEIPT = online(Role.ISSUE, 11), online(Role.FEED, 12), online(Role.RECEIPT, 13)
TLS = OnlineKey(Role.TLS, key_id(Role.TLS, b"der"), b"der", START, END)
CARD = Card(
    node=FR,
    version=1,
    issued_at=NOW.replace(microsecond=0),
    jurisdiction=Country("FR"),
    protocols=(1,),
    endpoint="192.0.2.7:7443",
    roots=RootSet(2, tuple(ed25519.public_key(seed) for seed in ROOTS)),
    keys=(ISSUE, FEED, RECEIPT, TLS),
)


def root_signature(
    payload: bytes, seed: bytes, *, kid: str | None = None, typ: str = keyring.JWS_TYPE
) -> jws.Signature:
    return jws.sign(
        payload, typ, kid or root_key_id(ed25519.public_key(seed)), lambda message: ed25519.sign(seed, message)
    )


def signed(payload: bytes, *seeds: bytes) -> bytes:
    seeds = seeds or ROOTS[:2]
    return jws.serialise(jws.SignedDocument(payload, tuple(root_signature(payload, seed) for seed in seeds)))


def changed(change: Callable[[JsonObject], object]) -> bytes:
    """A card whose roots signed something else than `Card` would write."""
    data = strictjson.decode_object(CARD.payload(), max_bytes=1 << 16, what="card")
    change(data)
    return signed(rfc8785.dumps(data))


def test_a_card_is_read_as_it_was_written() -> None:
    assert open_card(signed(CARD.payload())) == CARD
    assert open_card(signed(CARD.payload(), *ROOTS)) == CARD


def _set(**members: Any) -> Callable[[JsonObject], object]:
    return lambda data: data.update(members)


def _key(**members: Any) -> Callable[[JsonObject], object]:
    return lambda data: data["keys"][0].update(members)


def _roots(**members: Any) -> Callable[[JsonObject], object]:
    return lambda data: data["roots"].update(members)


MALFORMED: dict[str, Callable[[JsonObject], object]] = {
    "(1) a member too many": _set(also=1),
    "(1) a member too few": lambda data: data.pop("protocols"),
    "(1) no node id": _set(card="FR"),
    "(1) version 0": _set(version=0),
    "(1) version true": _set(version=True),
    "(1) a version that never ends": _set(version=(1 << 31) + 1),
    "(1) no instant": _set(issued_at="yesterday"),
    "(1) no country": _set(jurisdiction="france"),
    "(1) no protocols": _set(protocols=[]),
    "(1) protocols that are no list": _set(protocols="1"),
    "(1) protocol 0": _set(protocols=[0]),
    "(1) no keys": _set(keys=[]),
    "(1) keys that are no list": _set(keys={}),
    "(1) too many keys": lambda data: data.update(keys=data["keys"] * 9),
    "(1) roots that are no object": _set(roots=[]),
    "(1) roots with a member too many": _roots(also=1),
    "(1) no root": _roots(keys=[], threshold=1),
    "(1) a root twice": lambda data: data["roots"]["keys"].append(data["roots"]["keys"][0]),
    "(1) ten roots": _roots(keys=[b64url(ed25519.public_key(bytes([n]) * 32)) for n in range(40, 50)]),
    "(1) threshold 0": _roots(threshold=0),
    "(1) a threshold that no signatures reach": _roots(threshold=4),
    "(1) threshold true": _roots(threshold=True),
    "(1) an endpoint without port": _set(endpoint="192.0.2.7"),
    "(1) an endpoint with port 0": _set(endpoint="192.0.2.7:0"),
    "(1) an endpoint with a port too large": _set(endpoint="192.0.2.7:65536"),
    "(1) an endpoint with a blank": _set(endpoint="a b:1"),
    "(1) an endpoint with a line feed": _set(endpoint="a\nb:1"),
    "(1) an endpoint that is no text": _set(endpoint=7),
    "(1) an endpoint without end": _set(endpoint="a" * 300 + ":1"),
    "(2) a role that nobody knows": _key(role="admin"),
    "(2) a role that is no text": _key(role=[]),
    "(2) a key with a member too many": _key(also=1),
    "(2) a key that is no object": lambda data: data["keys"].append(7),
    "(2) a key id of other bytes": _key(kid="0" * 16),
    "(2) the key of another role": _key(role="feed"),
    "(2) a key without validity": _key(**{"from": "2027-01-01T00:00:00Z", "until": "2027-01-01T00:00:00Z"}),
    "(2) a key too short": _key(public=b64url(b"k" * 31)),
    "(2) a key that is no text": _key(public=7),
    "(2) a key with padding": _key(public=b64url(ISSUE.public) + "="),
    "(2) a key of small order": _key(public=b64url(SMALL_ORDER), kid=key_id(Role.ISSUE, SMALL_ORDER)),
    "(2) a key with two forms": _key(public=b64url(NOT_CANONICAL), kid=key_id(Role.ISSUE, NOT_CANONICAL)),
    "(2) a root of small order": lambda data: data["roots"]["keys"].append(b64url(SMALL_ORDER)),
    "(2) a key twice": lambda data: data["keys"].append(data["keys"][0]),
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_a_card_that_is_not_well_formed_is_refused_although_its_roots_signed_it(name: str) -> None:
    with pytest.raises(MalformedError):
        open_card(changed(MALFORMED[name]))


def test_a_card_in_another_form_is_refused() -> None:
    with pytest.raises(MalformedError, match="canonical"):
        open_card(signed(b" " + CARD.payload()))  # (3)


def test_every_signature_is_by_a_root_on_the_card() -> None:
    payload = CARD.payload()
    with pytest.raises(SignatureError, match="none of its roots"):
        open_card(signed(payload, *ROOTS[:2], b"\x09" * 32))  # (4)
    with pytest.raises(SignatureError, match="none of its roots"):
        open_card(signed(payload, ROOTS[0], bytes([11]) * 32))  # an online key is no root


@pytest.mark.parametrize("forged", [0, 1])
def test_a_forged_signature_is_refused_even_beside_enough_good_ones(forged: int) -> None:
    payload = CARD.payload()
    signatures = [root_signature(payload, seed) for seed in ROOTS]
    signatures[forged] = root_signature(payload, b"\x09" * 32, kid=signatures[forged].kid)
    with pytest.raises(SignatureError):
        open_card(jws.serialise(jws.SignedDocument(payload, tuple(signatures))))


def test_as_many_roots_sign_as_the_threshold_demands() -> None:
    with pytest.raises(SignatureError, match="1 of 2"):
        open_card(signed(CARD.payload(), ROOTS[0]))  # (5)
    one = root_signature(CARD.payload(), ROOTS[0])
    again = jws.Signature(one.protected, one.signature, one.kid + "x")  # the object cannot hold one kid twice
    document = jws.serialise(jws.SignedDocument(CARD.payload(), (one, again)))
    with pytest.raises(MalformedError):
        open_card(document)


def test_a_signature_from_another_kind_of_document_does_not_count() -> None:
    payload = CARD.payload()
    signatures = tuple(root_signature(payload, seed, typ="agreement+jws") for seed in ROOTS[:2])
    with pytest.raises(MalformedError):
        open_card(jws.serialise(jws.SignedDocument(payload, signatures)))


def test_a_card_over_its_limit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        open_card(b" " * ((64 << 10) + 1))


def test_one_flipped_bit_is_refused() -> None:
    data = signed(CARD.payload())
    for place in range(0, len(data), 7):
        broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(RemoteError):
            open_card(broken)


def test_a_fingerprint_is_of_the_roots_and_their_threshold() -> None:
    roots = CARD.roots
    assert len(roots.fingerprint()) == 16
    assert replace(CARD, version=2, keys=(FEED,)).roots.fingerprint() == roots.fingerprint()
    assert replace(roots, threshold=1).fingerprint() != roots.fingerprint()
    assert replace(roots, keys=roots.keys[:2]).fingerprint() != roots.fingerprint()


def test_a_key_is_found_by_node_role_and_id_together() -> None:
    ring = Keyring({FR: CARD})
    assert ring.key(FR, Role.ISSUE, ISSUE.kid, NOW) == ISSUE.public
    with pytest.raises(UnknownOriginError):
        ring.key(DE, Role.ISSUE, ISSUE.kid, NOW)
    for role in (Role.FEED, Role.RECEIPT, Role.TLS):
        with pytest.raises(KeyringError):
            ring.key(FR, role, ISSUE.kid, NOW)
    with pytest.raises(KeyringError):
        ring.key(FR, Role.ISSUE, FEED.kid, NOW)


def test_a_key_counts_only_while_it_is_valid() -> None:
    ring = Keyring({FR: CARD})
    skew = timedelta(seconds=300)
    assert ring.key(FR, Role.ISSUE, ISSUE.kid, START - skew) == ISSUE.public
    assert ring.key(FR, Role.ISSUE, ISSUE.kid, END - timedelta(seconds=1)) == ISSUE.public
    for moment in (START - skew - timedelta(seconds=1), END):
        with pytest.raises(KeyringError):
            ring.key(FR, Role.ISSUE, ISSUE.kid, moment)
        with pytest.raises(KeyringError):
            CARD.valid_keys(Role.ISSUE, moment)


def test_keys_for_notes_are_those_of_the_role() -> None:
    (key,) = CARD.note_keys(Role.FEED, "name", NOW)
    assert (key.name, key.public_key) == ("name", FEED.public)
    with pytest.raises(KeyringError, match="feed"):
        replace(CARD, keys=(ISSUE,)).note_keys(Role.FEED, "name", NOW)
