"""Statements as documents: one envelope for every kind, known bodies exactly, unknown kinds kept as they are."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from federation import ed25519, jws, statement
from federation.errors import ApostilleError, KeyringError, MalformedError, RemoteError, SignatureError
from federation.model import JsonObject, NodeId
from federation.statement import SPOKEN, WITH_TEXT, Kind, Outcome, Statement, Subject
from federation.strictjson import encode

SEED = bytes(range(32))
FR, IN = NodeId("cert.fr.example"), NodeId("cert.in.example")
AT = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
ABOUT = Subject(FR, "CERT-FR-2026-0001", 1)
HASH = "ab" * 32
REFUSED = {"feed": f"{FR}/feeds/{IN}/1", "entries": [{"seq": 0, "leaf_hash": HASH, "code": "RECALLED", "rules": []}]}
PURGED = {"recall": HASH, "outcome": "purged", "passed_on": ["cert.de.example"], "unreachable": []}
BODIES: dict[Kind, JsonObject] = {
    Kind.ACKNOWLEDGE: {},
    Kind.QUESTION: {"text": "Which version?"},
    Kind.CORRECTION: {"text": ""},
    Kind.AFFECTS: {"text": "x" * 20_000},
    Kind.ANSWER: {"text": "Version 3."},
    Kind.REFUSAL: REFUSED,
    Kind.PURGE: PURGED,
    Kind.SEEN: {"cores": [{"origin": FR, "name": "A", "revision": 1, "core": "ab" * 32}] * 256},
    Kind.CORE: {"core": "e30.e30.c2ln"},
}
NO_SUBJECT = {Kind.SEEN}  # it names several


def key_of(node: NodeId, kid: str) -> bytes:
    if (node, kid) != (IN, "issue-1"):
        raise KeyringError("no such key")
    return ed25519.public_key(SEED)


def sign_bytes(data: bytes) -> bytes:
    return ed25519.sign(SEED, data)


def said(kind: Kind = Kind.QUESTION, body: JsonObject | None = None, **more: Any) -> Statement:
    about = more.pop("about", ABOUT)
    return statement.sign(
        kind, IN, FR, AT, about, BODIES[kind] if body is None else body, kid="issue-1", sign_bytes=sign_bytes, **more
    )


def envelope(**changed: Any) -> JsonObject:
    """A question as it is signed; members replaced by `changed`."""
    return {
        "statement": "question",
        "to": FR,
        "at": "2026-11-21T09:30:00Z",
        "about": {"origin": FR, "name": ABOUT.name, "revision": 1},
        "in_reply_to": None,
        "body": {"text": "Which version?"},
        **changed,
    }


def signed(members: JsonObject) -> bytes:
    payload = encode(members)
    signature = jws.sign(payload, statement.JWS_TYPE, f"{IN}/issue-1", sign_bytes)
    return jws.serialise(jws.SignedDocument(payload, (signature,)))


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_signed_is_what_is_read(kind: Kind) -> None:
    about = None if kind in NO_SUBJECT else ABOUT
    made = said(kind, in_reply_to=b"r" * 32, about=about)
    assert statement.read(made.document, key_of) == made
    assert statement.reread(made.document) == made
    assert (made.kind, made.author, made.recipient, made.at, made.about) == (kind, IN, FR, AT, about)
    assert (made.in_reply_to, made.body) == (b"r" * 32, BODIES[kind])


def test_a_statement_may_be_about_every_revision_or_about_nothing() -> None:
    every = Subject(FR, ABOUT.name, None)
    assert statement.read(said(about=every).document, key_of).about == every
    assert statement.read(said(about=None).document, key_of).about is None


@pytest.mark.invariant("I5")
def test_one_flipped_bit_is_refused() -> None:
    document = said().document
    for place in range(len(document)):
        broken = bytearray(document)
        broken[place] ^= 1
        with pytest.raises(RemoteError):
            statement.read(bytes(broken), key_of)


@pytest.mark.invariant("I12")
def test_nobody_speaks_in_the_name_of_another() -> None:
    made = statement.sign(
        Kind.QUESTION, FR, IN, AT, ABOUT, {"text": "x"}, kid="issue-1", sign_bytes=lambda _: b"s" * 64
    )
    with pytest.raises(KeyringError):
        statement.read(made.document, key_of)
    forged = statement.sign(
        Kind.QUESTION,
        IN,
        FR,
        AT,
        ABOUT,
        {"text": "x"},
        kid="issue-1",
        sign_bytes=lambda data: ed25519.sign(bytes(32), data),
    )
    with pytest.raises(SignatureError):
        statement.read(forged.document, key_of)


def test_a_kind_that_is_not_known_is_kept_with_whatever_it_says() -> None:
    body = {"stage": 3, "until": [1, {"deep": None}]}
    found = statement.read(signed(envelope(statement="embargo-vote", body=body)), key_of)
    assert (found.kind, found.author, found.about, found.body) == ("embargo-vote", IN, ABOUT, body)


ENVELOPES: dict[str, JsonObject] = {
    "a member too many": envelope(also=1),
    "no body": {name: value for name, value in envelope().items() if name != "body"},
    "a body that is no object": envelope(body="text"),
    "a kind that is no text": envelope(statement=1),
    "a kind in capitals": envelope(statement="Question"),
    "a kind with a space": envelope(statement="a question"),
    "an empty kind": envelope(statement=""),
    "a kind without end": envelope(statement="k" * 33),
    "a recipient that is no node": envelope(to="FR"),
    "an instant that is none": envelope(at="yesterday"),
    "a subject that is text": envelope(about=ABOUT.name),
    "a subject with a member too many": envelope(about={"origin": FR, "name": "X", "revision": 1, "also": 1}),
    "a subject without a name": envelope(about={"origin": FR, "name": "", "revision": 1}),
    "a subject with a long name": envelope(about={"origin": FR, "name": "n" * 256, "revision": 1}),
    "a subject with a number for a name": envelope(about={"origin": FR, "name": 1, "revision": 1}),
    "revision 0": envelope(about={"origin": FR, "name": "X", "revision": 0}),
    "revision true": envelope(about={"origin": FR, "name": "X", "revision": True}),
    "a revision as text": envelope(about={"origin": FR, "name": "X", "revision": "1"}),
    "a revision beyond the last": envelope(about={"origin": FR, "name": "X", "revision": 10**9}),
    "an origin that is no node": envelope(about={"origin": "x", "name": "X", "revision": 1}),
    "an answer to no digest": envelope(in_reply_to="ab"),
    "an answer to capitals": envelope(in_reply_to="AB" * 32),
    "an answer to a number": envelope(in_reply_to=5),
}


@pytest.mark.parametrize("name", sorted(ENVELOPES))
def test_an_envelope_that_is_not_exactly_this_is_refused(name: str) -> None:
    assert statement.read(signed(envelope()), key_of).body == {"text": "Which version?"}  # sanity
    with pytest.raises(MalformedError):
        statement.read(signed(ENVELOPES[name]), key_of)


def _entry(**changed: Any) -> JsonObject:
    return {"seq": 0, "leaf_hash": HASH, "code": "X", "rules": ["a/b"], **changed}


WRONG: dict[str, tuple[Kind, JsonObject]] = {
    "an acknowledgement with a text": (Kind.ACKNOWLEDGE, {"text": "x"}),
    "a question without a text": (Kind.QUESTION, {}),
    "a question with more": (Kind.QUESTION, {"text": "x", "also": 1}),
    "a text that is a list": (Kind.AFFECTS, {"text": ["x"]}),
    "a text without end": (Kind.CORRECTION, {"text": "x" * 20_001}),
    "an answer without a text": (Kind.ANSWER, {"words": "x"}),
    "a refusal of nothing": (Kind.REFUSAL, {"feed": "f", "entries": []}),
    "a refusal without a feed": (Kind.REFUSAL, {"entries": [_entry()]}),
    "a refusal of text": (Kind.REFUSAL, {"feed": "f", "entries": ["0"]}),
    "a refused entry before the first": (Kind.REFUSAL, {"feed": "f", "entries": [_entry(seq=-1)]}),
    "a refused entry that is true": (Kind.REFUSAL, {"feed": "f", "entries": [_entry(seq=True)]}),
    "a refused entry without a code": (Kind.REFUSAL, {"feed": "f", "entries": [_entry(code=None)]}),
    "a refused entry with a short hash": (Kind.REFUSAL, {"feed": "f", "entries": [_entry(leaf_hash="ab")]}),
    "rules that are numbers": (Kind.REFUSAL, {"feed": "f", "entries": [_entry(rules=[1])]}),
    "rules that are text": (Kind.REFUSAL, {"feed": "f", "entries": [_entry(rules="a")]}),
    "a purge of nothing": (Kind.PURGE, {**PURGED, "recall": ""}),
    "a purge with another outcome": (Kind.PURGE, {**PURGED, "outcome": "kept"}),
    "a purge with a list for an outcome": (Kind.PURGE, {**PURGED, "outcome": ["purged"]}),
    "a purge passed on to text": (Kind.PURGE, {**PURGED, "passed_on": IN}),
    "a purge passed on to no node": (Kind.PURGE, {**PURGED, "passed_on": ["x"]}),
    "a purge with a node twice": (Kind.PURGE, {**PURGED, "unreachable": [IN, IN]}),
    "a purge not sorted": (Kind.PURGE, {**PURGED, "passed_on": [IN, FR]}),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_known_kind_has_its_own_body_and_no_other(name: str) -> None:
    kind, body = WRONG[name]
    with pytest.raises(MalformedError):
        said(kind, body)
    with pytest.raises(MalformedError):
        statement.read(signed(envelope(statement=kind.value, body=body)), key_of)
    assert statement.read(signed(envelope(statement="unknown", body=body)), key_of).body == body


def test_every_outcome_and_kind_that_people_use_is_known() -> None:
    for outcome in Outcome:
        assert said(Kind.PURGE, {**PURGED, "outcome": outcome.value}).body["outcome"] == outcome
    assert set(SPOKEN) | WITH_TEXT == set(Kind) - {Kind.REFUSAL, Kind.PURGE, Kind.SEEN, Kind.CORE}


@pytest.mark.invariant("I17")
@pytest.mark.parametrize(
    "change",
    [
        {"statement": "Maria Musterfrau"},
        {"to": "Maria Musterfrau"},
        {"body": {"text": ["Maria Musterfrau"]}},
        {"about": {"Maria Musterfrau": 1}},
        {"in_reply_to": "Maria Musterfrau"},
        {"Maria Musterfrau": 1},
    ],
)
def test_an_error_holds_no_text_of_the_author(change: Callable[..., object] | JsonObject) -> None:
    assert isinstance(change, dict)
    with pytest.raises(ApostilleError) as caught:
        statement.read(signed(envelope(**change)), key_of)
    assert "Musterfrau" not in str(caught.value)
