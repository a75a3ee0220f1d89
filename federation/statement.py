"""Statements: what a node says to another, signed by it, about an advisory, an entry, or nothing in particular.

The envelope is fixed: kind, author, recipient, instant, subject, the statement that it answers, and a body that belongs
to the kind. A node that does not know a kind still verifies the statement, keeps it, shows who said what about which
advisory, and passes it on. A statement is an assertion by its author and changes nobody's truth (I12).

Bodies of the kinds that this version writes: `acknowledge` {}; `question`, `correction`, `affects` and `answer` {text};
`refusal` {feed, entries: [{seq, leaf_hash, code, rules}]}; `purge` {recall, outcome, passed_on, unreachable}; `seen`
{cores: [{origin, name, revision, core}]}; `core` {core}.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from federation import assertion
from federation.errors import MalformedError
from federation.limits import HASH_BYTES, MAX_NAME_CHARS, MAX_REVISION, MAX_SEEN, MAX_STATEMENT_TEXT
from federation.model import JsonObject, NodeId, instant, instant_text, node_id

JWS_TYPE = "statement+jws"
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_HEX = re.compile(r"[0-9a-f]*")
_MEMBERS: Final = frozenset(("statement", "to", "at", "about", "in_reply_to", "body"))
_SUBJECT: Final = frozenset(("origin", "name", "revision"))


class Kind(StrEnum):
    """The kinds that this version writes and reads; others are kept as they are."""

    ACKNOWLEDGE = "acknowledge"  # received and read
    QUESTION = "question"
    CORRECTION = "correction"  # something in it is wrong
    AFFECTS = "affects"  # it concerns us: we have it, or are hit by it
    ANSWER = "answer"  # to the statement that it names
    REFUSAL = "refusal"  # entries that were not accepted, with the reason
    PURGE = "purge"  # the answer to a recall
    SEEN = "seen"  # which core came here under which revision
    CORE = "core"  # the core that is held here, to whoever saw another one under that revision


SPOKEN: Final = (Kind.ACKNOWLEDGE, Kind.QUESTION, Kind.CORRECTION, Kind.AFFECTS)  # what people say of an advisory
WITH_TEXT: Final = frozenset((Kind.QUESTION, Kind.CORRECTION, Kind.AFFECTS, Kind.ANSWER))


class Outcome(StrEnum):
    """What a recall came to at one node."""

    PURGED = "purged"
    NEVER_HELD = "never-held"  # barred from now on


@dataclass(frozen=True, slots=True)
class Subject:
    """The advisory that a statement is about. `revision` is None for all of them."""

    origin: NodeId
    name: str
    revision: int | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, verified. `kind` may be one that we do not know; then `body` means nothing to us.

    `digest` names it, 32 bytes; `in_reply_to` is the digest of another one.
    """

    kind: str
    author: NodeId
    recipient: NodeId
    at: datetime
    about: Subject | None
    in_reply_to: bytes | None
    body: JsonObject
    digest: bytes
    document: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """Which core, by its digest, came to the author of a statement of kind `seen` under one revision."""

    about: Subject
    core_digest: bytes

    def write(self) -> JsonObject:
        """As it stands in the body."""
        about = {"origin": self.about.origin, "name": self.about.name, "revision": self.about.revision}
        return {**about, "core": self.core_digest.hex()}


def sign(
    kind: Kind,
    author: NodeId,
    recipient: NodeId,
    at: datetime,
    about: Subject | None,
    body: Mapping[str, Any],
    *,
    in_reply_to: bytes | None = None,
    kid: str,
    sign_bytes: Callable[[bytes], bytes],
) -> Statement:
    """A signed statement. Raises MalformedError for a body that is not of the kind."""
    subject = None if about is None else {"origin": about.origin, "name": about.name, "revision": about.revision}
    members: JsonObject = {
        "statement": kind.value,
        "to": recipient,
        "at": instant_text(at),
        "about": subject,
        "in_reply_to": None if in_reply_to is None else in_reply_to.hex(),
        "body": dict(body),
    }
    return _read(assertion.sign(members, JWS_TYPE, author, kid, sign_bytes))


def read(document: bytes, key_of: Callable[[NodeId, str], bytes]) -> Statement:
    """The statement in `document`.

    Raises what `assertion.read` raises; MalformedError for an envelope that is not exactly this, or for a known kind
    with a body of another form.
    """
    return _read(assertion.read(document, JWS_TYPE, key_of))


def reread(document: bytes) -> Statement:
    """The statement in a document of the store, which was verified when it came."""
    return _read(assertion.reread(document, JWS_TYPE))


def seen(statement: Statement) -> tuple[Seen, ...]:
    """What a statement of kind `seen` says, once `read` has read it."""
    return tuple(_seen(listed) for listed in statement.body["cores"])


def _read(signed: assertion.Assertion) -> Statement:
    members = signed.members
    if members.keys() != _MEMBERS or not isinstance(members["body"], dict):
        raise MalformedError("statement: members missing or unknown")
    kind, reply = members["statement"], members["in_reply_to"]
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise MalformedError("statement: the kind is no plain word")
    statement = Statement(
        kind=kind,
        author=signed.author,
        recipient=node_id(members["to"]),
        at=instant(members["at"]),
        about=None if members["about"] is None else _subject(members["about"]),
        in_reply_to=None if reply is None else _digest(reply),
        body=members["body"],
        digest=signed.digest,
        document=signed.document,
    )
    _check_body(statement)
    return statement


def _subject(data: object) -> Subject:
    if not isinstance(data, dict) or data.keys() != _SUBJECT:
        raise MalformedError("statement: its subject has members missing or unknown")
    name, revision = data["name"], data["revision"]
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
        raise MalformedError("statement: its subject has no name")
    if revision is not None and (type(revision) is not int or not 1 <= revision <= MAX_REVISION):
        raise MalformedError("statement: its subject has no such revision")
    return Subject(node_id(data["origin"]), name, revision)


def _check_body(statement: Statement) -> None:
    body = statement.body
    if statement.kind == Kind.ACKNOWLEDGE:
        _members(body, ())
    elif statement.kind in WITH_TEXT:
        _members(body, ("text",))
        if not isinstance(body["text"], str) or len(body["text"]) > MAX_STATEMENT_TEXT:
            raise MalformedError(f"statement: a text has at most {MAX_STATEMENT_TEXT} characters")
    elif statement.kind == Kind.REFUSAL:
        _members(body, ("feed", "entries"))
        if not isinstance(body["feed"], str) or not isinstance(body["entries"], list) or not body["entries"]:
            raise MalformedError("statement: a refusal names a feed and entries of it")
        for entry in body["entries"]:
            _check_refused(entry)
    elif statement.kind == Kind.PURGE:
        _members(body, ("recall", "outcome", "passed_on", "unreachable"))
        _digest(body["recall"])
        if body["outcome"] not in tuple(Outcome):
            raise MalformedError("statement: an outcome that this protocol version does not know")
        for listed in (body["passed_on"], body["unreachable"]):
            if not isinstance(listed, list) or [node_id(name) for name in listed] != sorted(set(map(str, listed))):
                raise MalformedError("statement: a list of nodes is not sorted, or a node stands twice")

    elif statement.kind == Kind.SEEN:
        _members(body, ("cores",))
        if statement.about is not None or not isinstance(body["cores"], list) or len(body["cores"]) > MAX_SEEN:
            raise MalformedError(f"statement: it names at most {MAX_SEEN} cores that were seen, and no other subject")
        for listed in body["cores"]:
            _seen(listed)
    elif statement.kind == Kind.CORE:
        _members(body, ("core",))
        if not isinstance(body["core"], str):
            raise MalformedError("statement: a core is text")


def _seen(listed: object) -> Seen:
    if not isinstance(listed, dict) or type(listed.get("revision")) is not int:
        raise MalformedError("statement: a core that was seen has a revision")
    about = _subject({name: value for name, value in listed.items() if name != "core"})
    return Seen(about, _digest(listed.get("core")))


def _check_refused(entry: object) -> None:
    if not isinstance(entry, dict):
        raise MalformedError("statement: a refused entry is an object")
    _members(entry, ("seq", "leaf_hash", "code", "rules"))
    _digest(entry["leaf_hash"])
    rules = entry["rules"]
    if type(entry["seq"]) is not int or entry["seq"] < 0 or not isinstance(entry["code"], str):
        raise MalformedError("statement: a refused entry has a number and a code")
    if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
        raise MalformedError("statement: the rules of a refused entry are a list of ids")


def _members(data: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if set(data) != set(names):
        raise MalformedError("statement: its body has members missing or unknown")


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * HASH_BYTES or not _HEX.fullmatch(value):
        raise MalformedError("statement: expected a digest of 64 hexadecimal digits")
    return bytes.fromhex(value)
