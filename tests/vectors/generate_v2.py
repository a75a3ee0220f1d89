"""Vectors of what protocol version 2 adds: root change, recalls, grants, statements, new kinds of entries, epochs."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from federation import grant, recall, statement, strictjson
from federation.base64url import b64url
from federation.checkpoint import cosign, origin_line
from federation.entries import Granted, NewCard, NewEpoch, Purge, RecallOrder, Said
from federation.keyring import Card, RootSet, root_key_id
from federation.model import JsonObject, NodeId, Role, instant_text
from protos.exchange.v1 import exchange_pb2 as wire
from tests.vectors import material as m
from tests.vectors.generate_documents import ABOUT_SEEDS, BAD, MALFORMED, Cases

SECOND_EPOCH = origin_line(m.FR, m.DE, 2)
CORE = bytes(range(32))
_RECALL: JsonObject = {"recall": "FR-VECTOR-1", "revisions": [1, 3], "reason": "embargo", "at": "2026-11-21T09:30:00Z"}
_GRANT: JsonObject = {
    "grant": CORE.hex(),
    "relay": m.DE,
    "recipients": [m.IN],
    "categories": ["identification", "remediation"],
    "until": "2027-01-01T00:00:00Z",
}
_STATEMENT: JsonObject = {
    "statement": "question",
    "to": m.FR,
    "at": "2026-11-21T09:30:00Z",
    "about": {"origin": m.FR, "name": "FR-VECTOR-1", "revision": 1},
    "in_reply_to": None,
    "body": {"text": "Is version 4.0 affected too?"},
}


def _signed(members: JsonObject, kind: str, *nodes: NodeId, **header: Any) -> str:
    return m.document(strictjson.encode(members), kind, m.party_signers(*nodes), header)


def _documents(
    name: str, typ: str, good: JsonObject, author: NodeId, changes: list[tuple[str, JsonObject, str]]
) -> Cases:
    """The cases that every signed document has, and those of its own members; a member of ABSENT is left out."""
    cases: Cases = []

    def add(case: str, document: str, expect: str) -> None:
        cases.append({"name": case, "document": document, "expect": expect})

    text = _signed(good, typ, author)
    add(f"a {name}", text, "ok")
    add("signed by two", _signed(good, typ, author, m.IN), BAD)
    add("signed by a node that is not known", _signed(good, typ, NodeId("cert.es.example")), "UNKNOWN_ORIGIN")
    add("of another type", _signed(good, "agreement+jws", author), MALFORMED)
    add("under a type that is not its own", _signed(good, typ, author, typ="card+jws"), MALFORMED)
    add("with crit in its header", _signed(good, typ, author, crit=["x"]), MALFORMED)
    add("with white space around it", f" {text}", MALFORMED)
    add("by a key of another role", m.document(strictjson.encode(good), typ, [_feed_signer(author)]), "UNKNOWN_KEY")
    add("by a key that has ended", m.document(strictjson.encode(good), typ, [_old_signer()]), "UNKNOWN_KEY")
    changed = json.loads(text)
    changed["payload"] = b64url(strictjson.encode(good | {"at": "2026-11-21T09:30:01Z"}))
    add("whose payload was changed", json.dumps(changed, separators=(",", ":")), BAD)
    add("with an unknown member", _signed(good | {"more": 1}, typ, author), MALFORMED)
    for member in good:
        add(f"without {member}", _signed({k: v for k, v in good.items() if k != member}, typ, author), MALFORMED)
    for case, change, expect in changes:
        add(case, _signed(good | change, typ, author), expect)
    return cases


def _feed_signer(node: NodeId) -> tuple[str, str]:
    return m.issue_kid(node, Role.FEED), f"{node} feed"


def _old_signer() -> tuple[str, str]:
    return f"{m.FR}/{m.OLD_KEY.kid}", f"{m.FR} old issue"


def _file(about: str, cases: Cases, **more: Any) -> dict[str, Any]:
    return {
        "about": f"{about} {ABOUT_SEEDS}",
        "now": instant_text(m.NOW),
        "cards": m.CARD_TEXTS,
        **more,
        "cases": cases,
    }


def recall_cases() -> dict[str, Any]:
    changes: list[tuple[str, JsonObject, str]] = [
        ("of one revision", {"revisions": [2]}, "ok"),
        ("of no revision", {"revisions": []}, MALFORMED),
        ("of revisions out of order", {"revisions": [3, 1]}, MALFORMED),
        ("of one revision twice", {"revisions": [1, 1]}, MALFORMED),
        ("of revision 0", {"revisions": [0]}, MALFORMED),
        ("of revision true", {"revisions": [True]}, MALFORMED),
        ("of a revision that is no whole number", {"revisions": [1.0]}, MALFORMED),
        ("of no advisory", {"recall": ""}, MALFORMED),
        ("for a reason in words", {"reason": "we regret"}, MALFORMED),
        ("at no instant", {"at": "2026-11-21 09:30"}, MALFORMED),
    ]
    about = "Recalls: `expect` is for reading `document` at `now`, with `cards` enrolled."
    return _file(about, _documents("recall", recall.JWS_TYPE, _RECALL, m.FR, changes))


def grant_cases() -> dict[str, Any]:
    changes: list[tuple[str, JsonObject, str]] = [
        ("for no recipient", {"recipients": []}, MALFORMED),
        ("for recipients out of order", {"recipients": [m.IN, m.DE]}, MALFORMED),
        ("for a category that does not exist", {"categories": ["weather"]}, MALFORMED),
        ("for a core that is no digest", {"grant": "FR-VECTOR-1"}, MALFORMED),
        ("for a digest in capitals", {"grant": CORE.hex().upper()}, MALFORMED),
        ("to a relay that is no node", {"relay": "DE"}, MALFORMED),
    ]
    use: dict[str, Any] = {
        "origin": m.FR,
        "core_digest": CORE.hex(),
        "relay": m.DE,
        "recipient": m.IN,
        "categories": ["identification"],
        "at": "2026-12-31T23:59:59Z",
    }
    uses: list[tuple[str, JsonObject, str]] = [
        ("what it covers", {}, "ok"),
        ("all that it covers", {"categories": ["identification", "remediation"]}, "ok"),
        ("of another origin", {"origin": m.DE}, "BAD_GRANT"),
        ("for another core", {"core_digest": bytes(32).hex()}, "BAD_GRANT"),
        ("by another relay", {"relay": m.IN}, "BAD_GRANT"),
        ("towards another recipient", {"recipient": "cert.es.example"}, "BAD_GRANT"),
        ("with a category more", {"categories": ["exploit", "identification"]}, "BAD_GRANT"),
        ("at its end", {"at": "2027-01-01T00:00:00Z"}, "BAD_GRANT"),
    ]
    about = (
        "Grants: `cases` as in recalls.json. `uses`: what a recipient says of the grant `used` when `relay` passes"
        " `core_digest` of `origin`, with these `categories` in it, on to `recipient` at the instant `at`."
    )
    made = _file(about, _documents("grant", grant.JWS_TYPE, _GRANT, m.FR, changes))
    return made | {
        "used": _signed(_GRANT, grant.JWS_TYPE, m.FR),
        "uses": [{"name": name, **use, **change, "expect": expect} for name, change, expect in uses],
    }


def statement_cases() -> dict[str, Any]:
    refused = {"seq": 4, "leaf_hash": CORE.hex(), "code": "NOT_ADMITTED", "rules": ["gdpr-44"]}
    purge = {"recall": CORE.hex(), "outcome": "purged", "passed_on": [m.IN], "unreachable": []}
    changes: list[tuple[str, JsonObject, str]] = [
        ("about nothing in particular", {"about": None}, "ok"),
        ("about all revisions", {"about": {**_STATEMENT["about"], "revision": None}}, "ok"),
        ("in reply to another", {"in_reply_to": CORE.hex()}, "ok"),
        ("in reply to nothing that can be named", {"in_reply_to": "yes"}, MALFORMED),
        ("about an advisory without a name", {"about": {**_STATEMENT["about"], "name": ""}}, MALFORMED),
        ("to nobody", {"to": "all"}, MALFORMED),
        ("an acknowledgement", {"statement": "acknowledge", "body": {}}, "ok"),
        ("an acknowledgement with words", {"statement": "acknowledge", "body": {"text": "x"}}, MALFORMED),
        ("a correction", {"statement": "correction", "body": {"text": "It is 4.2."}}, "ok"),
        ("that it affects us", {"statement": "affects", "body": {"text": ""}}, "ok"),
        ("a question of more than 20,000 characters", {"body": {"text": "x" * 20_001}}, MALFORMED),
        ("a question that is no text", {"body": {"text": 7}}, MALFORMED),
        ("a refusal", {"statement": "refusal", "about": None, "body": {"feed": m.ORIGIN, "entries": [refused]}}, "ok"),
        ("a refusal of nothing", {"statement": "refusal", "body": {"feed": m.ORIGIN, "entries": []}}, MALFORMED),
        (
            "a refusal of entry -1",
            {"statement": "refusal", "body": {"feed": m.ORIGIN, "entries": [refused | {"seq": -1}]}},
            MALFORMED,
        ),
        ("the answer to a recall", {"statement": "purge", "body": purge}, "ok"),
        ("an unknown outcome of a recall", {"statement": "purge", "body": purge | {"outcome": "lost"}}, MALFORMED),
        (
            "the answer to a recall with nodes out of order",
            {"statement": "purge", "body": purge | {"passed_on": [m.IN, m.DE]}},
            MALFORMED,
        ),
        ("of a kind that is not known: kept as it is", {"statement": "embargo-9", "body": {"any": ["thing"]}}, "ok"),
        ("of a kind that is no plain word", {"statement": "Embargo!"}, MALFORMED),
        ("whose body is no object", {"body": []}, MALFORMED),
    ]
    about = "Statements: `cases` as in recalls.json."
    return _file(about, _documents("statement", statement.JWS_TYPE, _STATEMENT, m.DE, changes))


def comparison_cases() -> dict[str, Any]:
    """The kinds `seen` and `core`, which came after the others of version 2 were frozen."""
    made = m.make()
    payload, held = made.payload(), made.own.core
    other = m.core(payload | {"iat": payload["iat"] + 1})
    later = m.core(payload | {"jti": f"{m.FR}/FR-VECTOR-1/2"})
    about = {"origin": m.FR, "name": "FR-VECTOR-1", "revision": 1}
    one: JsonObject = {**about, "core": CORE.hex()}
    seen: JsonObject = _STATEMENT | {"statement": "seen", "to": m.IN, "about": None, "body": {"cores": [one]}}
    shown: JsonObject = _STATEMENT | {"statement": "core", "to": m.IN, "about": about, "body": {"core": other.decode()}}
    changes: list[tuple[str, JsonObject, str]] = [
        ("of nothing", {"body": {"cores": []}}, "ok"),
        ("of 256", {"body": {"cores": [one] * 256}}, "ok"),
        ("of 257", {"body": {"cores": [one] * 257}}, MALFORMED),
        ("about an advisory", {"about": about}, MALFORMED),
        ("of no list", {"body": {"cores": one}}, MALFORMED),
        ("with a member more", {"body": {"cores": [one], "more": 1}}, MALFORMED),
        ("of all revisions", {"body": {"cores": [one | {"revision": None}]}}, MALFORMED),
        ("of revision 0", {"body": {"cores": [one | {"revision": 0}]}}, MALFORMED),
        ("of revision true", {"body": {"cores": [one | {"revision": True}]}}, MALFORMED),
        ("of a core that is no digest", {"body": {"cores": [one | {"core": "x"}]}}, MALFORMED),
        ("of a digest in capitals", {"body": {"cores": [one | {"core": "AB" * 32}]}}, MALFORMED),
        ("of a core without a name", {"body": {"cores": [one | {"name": ""}]}}, MALFORMED),
        ("of a core with a member more", {"body": {"cores": [one | {"more": 1}]}}, MALFORMED),
        ("which shows a core", shown, "ok"),
        ("which shows a core in reply", shown | {"in_reply_to": CORE.hex()}, "ok"),
        ("which shows what is no text", shown | {"body": {"core": 7}}, MALFORMED),
        ("which shows two", shown | {"body": {"core": "x", "cores": []}}, MALFORMED),
        ("which shows a core that is none: the statement holds", shown | {"body": {"core": "x"}}, "ok"),
    ]
    cores: list[tuple[str, JsonObject, bytes, str]] = [
        ("another one that its origin signed", about, other, "EQUIVOCATION"),
        ("the one that is held", about, held, "ok"),
        ("of another revision", about, later, MALFORMED),
        ("of another revision, under its own name", about | {"revision": 2}, later, "ok"),
        ("of another advisory", about | {"name": "FR-VECTOR-2"}, other, MALFORMED),
        ("of another origin", about | {"origin": m.DE}, other, MALFORMED),
        ("that somebody else signed", about, m.core(payload, f"{m.DE} issue"), BAD),
        ("by a key that nobody knows", about, m.core(payload, kid="0" * 16), "UNKNOWN_KEY"),
        ("by a key that has ended", about, m.core(payload, f"{m.FR} old issue", kid=m.OLD_KEY.kid), "UNKNOWN_KEY"),
        ("with one bit changed", about, other[:-2] + bytes([other[-2] ^ 1]) + other[-1:], BAD),
        ("with disclosures", about, other + b"~", MALFORMED),
        ("that is no core", about, b"x", MALFORMED),
    ]
    text = (
        "Comparing cores: `cases` as in recalls.json, of the kinds `seen` and `core`. `cores`: what a receiver that"
        " holds the core `held`, revision 1, says of `core` in a statement about `about`; `ok`: nothing comes of it."
    )
    return _file(text, _documents("list of cores that were seen", statement.JWS_TYPE, seen, m.DE, changes)) | {
        "held": held.decode(),
        "cores": [{"name": n, "about": a, "core": c.decode(), "expect": e} for n, a, c, e in cores],
    }


def card_cases() -> dict[str, Any]:
    old = m.CARDS[m.FR]
    roots = RootSet(2, tuple(m.public(f"{m.FR} new root {number}") for number in (1, 2, 3)))
    changed = replace(old, version=2, roots=roots)
    renewed = replace(old, version=2, endpoint=f"{m.FR}:8443")
    lower = replace(old, version=2, roots=RootSet(1, old.roots.keys))
    new = [(root_key_id(m.public(f"{m.FR} new root {n}")), f"{m.FR} new root {n}") for n in (1, 2, 3)]

    def text(card: Card, signers: list[tuple[str, str]]) -> str:
        return m.document(card.payload(), "card+jws", signers)

    cases = [
        ("the same roots", text(renewed, m.root_signers(m.FR, 1, 2)), "ok"),
        ("other roots, signed by both", text(changed, [*m.root_signers(m.FR, 2, 3), *new[:2]]), "ok"),
        ("other roots, signed by the new ones only", text(changed, new[:2]), BAD),
        ("other roots, signed by the old ones only", text(changed, m.root_signers(m.FR, 1, 2)), BAD),
        ("other roots, one old signature too few", text(changed, [*m.root_signers(m.FR, 1), *new]), BAD),
        ("other roots, one new signature too few", text(changed, [*m.root_signers(m.FR, 1, 2), new[0]]), BAD),
        ("another threshold of the same roots", text(lower, m.root_signers(m.FR, 1, 2)), "ok"),
        ("another threshold, signed as the new one asks", text(lower, m.root_signers(m.FR, 3)), BAD),
        ("signed by a stranger besides", text(renewed, [*m.root_signers(m.FR, 1, 2), new[0]]), BAD),
    ]
    return {
        "about": "A newer card of a node whose card `enrolled` is known: `expect` is for its signatures. That a version"
        f" only grows is checked besides. {ABOUT_SEEDS}",
        "enrolled": m.CARD_TEXTS[0],
        "cases": [{"name": name, "card": card, "expect": expect} for name, card, expect in cases],
    }


def entry_cases() -> dict[str, Any]:
    cases: Cases = []

    def add(name: str, data: bytes, expect: str, **more: Any) -> None:
        cases.append({"name": name, "entry": data.hex(), "expect": expect, **more})

    document = _signed(_RECALL, recall.JWS_TYPE, m.FR).encode()
    told = _signed(_STATEMENT, statement.JWS_TYPE, m.DE).encode()
    leave = _signed(_GRANT, grant.JWS_TYPE, m.FR).encode()
    add("a recall of two entries", m.entry(9, RecallOrder(document, (2, 8))), "ok", body="recall", seqs=[2, 8])
    add("a recall of none", m.entry(9, RecallOrder(document, ())), "ok", body="recall", seqs=[])
    add("a purge", m.entry(9, Purge((0, 3), "retention-ended")), "ok", body="purge", seqs=[0, 3])
    add("a statement", m.entry(9, Said(told)), "ok", body="statement")
    add("a card", m.entry(9, NewCard(m.CARD_TEXTS[0].encode())), "ok", body="card")
    add("a grant", m.entry(9, Granted(leave)), "ok", body="grant")
    first = NewEpoch(m.ORIGIN, m.note(3, CORE).encode(), "restored")
    add("an epoch", m.entry(0, first, origin=SECOND_EPOCH), "ok", body="epoch")

    def raw(name: str, change: Callable[[wire.Entry], None]) -> None:
        entry = wire.Entry(feed=m.ORIGIN, seq=9, nonce=bytes(16))
        change(entry)
        add(name, entry.SerializeToString(deterministic=True), MALFORMED)

    def seqs(part: str, *numbers: int, **more: str) -> Callable[[wire.Entry], None]:
        def change(entry: wire.Entry) -> None:
            getattr(entry, part).seqs.extend(numbers)
            for member, value in more.items():
                setattr(getattr(entry, part), member, value)

        return change

    raw("a purge of nothing", seqs("purge", reason="retention-ended"))
    raw("a purge of itself", seqs("purge", 9, reason="retention-ended"))
    raw("a purge out of order", seqs("purge", 3, 0, reason="retention-ended"))
    raw("a purge for a reason in words", seqs("purge", 0, reason="because we say so"))
    raw("a recall of an entry to come", seqs("recall", 10))
    raw("a recall of one entry twice", seqs("recall", 2, 2))
    raw("an epoch in the middle of a feed", lambda entry: setattr(entry.epoch, "previous", m.ORIGIN))
    return {"about": f"Entries that version 2 adds; the others are those of version 1. {ABOUT_SEEDS}", "cases": cases}


def feed_cases() -> dict[str, Any]:
    items = [m.entry(seq, Said(b"{}"), nonce="epoch") for seq in range(4)]
    roots = [m.root_of(items[:size]) for size in range(5)]
    other = m.root_of([items[1]])
    finals = [
        ("the newest head that was shown", m.note(3, roots[3]), m.note(3, roots[3]), "ok"),
        ("a larger head", m.note(4, roots[4]), m.note(3, roots[3]), "ok"),
        ("a head where none was shown", m.note(4, roots[4]), "", "ok"),
        ("no head where none was shown", "", "", "ok"),
        ("a smaller head", m.note(2, roots[2]), m.note(3, roots[3]), "ROLLBACK"),
        ("no head where one was shown", "", m.note(3, roots[3]), "ROLLBACK"),
        ("another root at the same size", m.note(3, other), m.note(3, roots[3]), "FORK"),
        ("the head of another feed", m.note(3, roots[3], origin=SECOND_EPOCH), m.note(3, roots[3]), "WRONG_FEED"),
    ]
    receipt = cosign(
        m.note(3, roots[3]).encode(),
        m.DE,
        int((m.NOW + timedelta(seconds=5)).timestamp()),
        m.signer(f"{m.DE} receipt"),
        m.public(f"{m.DE} receipt"),
    ).decode()
    shown = [
        ("the newest head, which is ours", m.note(3, roots[3]), "ok"),
        ("our receipt by the receiver, which holds our head", receipt, "ok"),
        ("a head that is larger than our feed", m.note(4, roots[4]), "UNCONFIRMED"),
        ("a head of ours with another root", m.note(3, other), "UNCONFIRMED"),
        ("a head that another key signed", m.note(3, roots[3], label="nobody"), BAD),
        ("a head of another feed", m.note(3, roots[3], origin=SECOND_EPOCH), "WRONG_FEED"),
    ]
    return {
        "about": "`finals`: what a receiver says of the final head that the first entry of a new epoch names, when"
        " `newest` is the largest head that it was shown of the old one. `shown`: what a sender whose feed is `items`"
        f" says of the head that its receiver shows with a Pull. {ABOUT_SEEDS}",
        "origin": m.ORIGIN,
        "feed_key": m.public(f"{m.FR} feed").hex(),
        "items": [item.hex() for item in items[:3]],
        "finals": [{"name": n, "final": f, "newest": s, "expect": e} for n, f, s, e in finals],
        "shown": [{"name": n, "newest": s, "expect": e} for n, s, e in shown],
    }
