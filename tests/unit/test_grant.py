"""Grants as documents: what is signed is what is read, and a grant covers what it names and nothing else."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from federation import ed25519, grant, jws
from federation.base64url import from_b64url
from federation.errors import (
    ApostilleError,
    GrantError,
    KeyringError,
    MalformedError,
    RemoteError,
    SignatureError,
    TooLargeError,
)
from federation.grant import Grant
from federation.model import Category, JsonObject, NodeId
from federation.strictjson import decode_object, encode

SEED, OTHER_SEED = bytes(range(32)), bytes(32)
FR, DE, IN, KE = (NodeId(f"cert.{code}.example") for code in ("fr", "de", "in", "ke"))
CORE = b"\xcc" * 32
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
UNTIL = NOW + timedelta(days=30)
SHARED = frozenset((Category.IDENTIFICATION, Category.TECHNICAL))


def key_of(node: NodeId, kid: str) -> bytes:
    """The keyring of these tests: FR has the key `issue-1`."""
    if (node, kid) != (FR, "issue-1"):
        raise KeyringError("no such key")
    return ed25519.public_key(SEED)


def given(recipients: tuple[NodeId, ...] = (IN,), until: datetime = UNTIL, seed: bytes = SEED) -> Grant:
    return grant.sign(
        FR, CORE, DE, recipients, SHARED, until, kid="issue-1", sign_bytes=lambda data: ed25519.sign(seed, data)
    )


def forged(change: Callable[[JsonObject], object]) -> bytes:
    """A grant with other members, under FR's real key."""
    document = decode_object(given().document, max_bytes=1 << 20, what="grant")
    members = decode_object(from_b64url(document["payload"]), max_bytes=1 << 20, what="grant")
    change(members)
    payload = encode(members)
    signature = jws.sign(payload, grant.JWS_TYPE, f"{FR}/issue-1", lambda data: ed25519.sign(SEED, data))
    return jws.serialise(jws.SignedDocument(payload, (signature,)))


def check(made: Grant, **changed: object) -> None:
    asked: dict[str, object] = {
        "origin": FR,
        "core_digest": CORE,
        "relay": DE,
        "recipient": IN,
        "categories": SHARED,
        "now": NOW,
        **changed,
    }
    grant.check(made, **asked)  # type: ignore[arg-type]  # one value of each kind


def test_what_is_signed_is_what_is_read() -> None:
    made = given((KE, IN))
    assert grant.read(made.document, key_of) == made
    assert (made.origin, made.relay, made.core_digest, made.until) == (FR, DE, CORE, UNTIL)
    assert (made.recipients, made.categories) == (frozenset((IN, KE)), SHARED)


def test_a_document_of_the_store_is_read_again_although_its_key_has_ended() -> None:
    made = given()
    assert grant.reread(made.document) == made
    with pytest.raises(MalformedError):
        grant.reread(b"{}")


@pytest.mark.invariant("I5")
def test_one_flipped_bit_is_refused() -> None:
    document = given().document
    for place in range(len(document)):
        broken = bytearray(document)
        broken[place] ^= 1
        with pytest.raises(RemoteError):
            grant.read(bytes(broken), key_of)


@pytest.mark.invariant("I5")
def test_nobody_signs_in_the_name_of_another() -> None:
    with pytest.raises(SignatureError):
        grant.read(given(seed=OTHER_SEED).document, key_of)
    with pytest.raises(KeyringError):
        grant.read(given().document, lambda _, kid: key_of(DE, kid))


@pytest.mark.invariant("I5")
def test_a_document_of_another_kind_is_no_grant() -> None:
    made = given()
    document = decode_object(made.document, max_bytes=1 << 20, what="grant")
    payload = from_b64url(document["payload"])
    other = jws.sign(payload, "recall+jws", f"{FR}/issue-1", lambda data: ed25519.sign(SEED, data))
    with pytest.raises(MalformedError):
        grant.read(jws.serialise(jws.SignedDocument(payload, (other,))), key_of)
    twice = jws.sign(payload, grant.JWS_TYPE, f"{DE}/issue-1", lambda data: ed25519.sign(SEED, data))
    first = jws.parse(made.document, typ=grant.JWS_TYPE, max_bytes=1 << 20).signatures[0]
    with pytest.raises(SignatureError, match="2 signatures"):
        grant.read(jws.serialise(jws.SignedDocument(payload, (first, twice))), key_of)


MEMBERS: dict[str, Callable[[JsonObject], object]] = {
    "a member too many": lambda m: m.update(also=1),
    "no relay": lambda m: m.pop("relay"),
    "a relay that is no node": lambda m: m.update(relay="Hub"),
    "a core that is no digest": lambda m: m.update(grant="c" * 63),
    "a core in capitals": lambda m: m.update(grant=m["grant"].upper()),
    "a core with a space": lambda m: m.update(grant=m["grant"][:30] + " " + m["grant"][31:]),
    "a core that is a number": lambda m: m.update(grant=1),
    "no recipients": lambda m: m.update(recipients=[]),
    "recipients that are text": lambda m: m.update(recipients=IN),
    "a recipient twice": lambda m: m.update(recipients=[IN, IN]),
    "recipients not sorted": lambda m: m.update(recipients=[KE, IN]),
    "too many recipients": lambda m: m.update(recipients=sorted(f"n{i:03}.example" for i in range(65))),
    "a recipient that is no node": lambda m: m.update(recipients=["IN"]),
    "a recipient that is a list": lambda m: m.update(recipients=[[IN]]),
    "no categories": lambda m: m.update(categories=[]),
    "an unknown category": lambda m: m.update(categories=["everything"]),
    "categories not sorted": lambda m: m.update(categories=["technical", "identification"]),
    "an end that is no instant": lambda m: m.update(until="2027-01-01"),
    "no end": lambda m: m.update(until=None),
}


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_members_that_are_not_exactly_these_are_refused(name: str) -> None:
    assert grant.read(forged(lambda _: None), key_of) == given()  # sanity: signing again is not what is refused
    with pytest.raises(MalformedError):
        grant.read(forged(MEMBERS[name]), key_of)


def test_a_grant_that_names_nobody_cannot_be_made() -> None:
    with pytest.raises(MalformedError):
        given(())


def test_a_grant_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(TooLargeError):
        grant.read(b" " * (256 << 10) + given().document, key_of)


BEYOND: dict[str, dict[str, object]] = {
    "(1) an origin that did not give it": {"origin": IN},
    "(2) another core": {"core_digest": b"d" * 32},
    "(3) another relay": {"relay": KE},
    "(4) another recipient": {"recipient": KE},
    "(4) the relay itself": {"recipient": DE},
    "(5) more kinds of parts": {"categories": SHARED | {Category.EXPLOIT}},
    "(6) its last instant": {"now": UNTIL},
    "(6) long after": {"now": UNTIL + timedelta(days=400)},
}


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("name", sorted(BEYOND))
def test_a_grant_covers_what_it_names_and_nothing_else(name: str) -> None:
    made = given()
    check(made)
    check(made, categories=frozenset((Category.TECHNICAL,)))
    check(made, now=UNTIL - timedelta(seconds=1))
    with pytest.raises(GrantError):
        check(made, **BEYOND[name])


@pytest.mark.invariant("I17")
def test_what_is_said_of_a_grant_holds_no_text_of_its_author() -> None:
    canary = "Maria Musterfrau"
    for change in (
        lambda m: m.update(relay=canary),
        lambda m: m.update(categories=[canary]),
        lambda m: m.update(recipients=[canary]),
        lambda m: m.update(until=canary),
        lambda m: m.update(grant=canary),
        lambda m: m.update({canary: 1}),
    ):
        with pytest.raises(ApostilleError) as caught:
            grant.read(forged(change), key_of)
        assert canary not in str(caught.value)
