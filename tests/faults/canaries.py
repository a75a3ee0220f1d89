"""Canaries: text that would steer a terminal, forge a line, run a formula or hide, and where a peer can put it.

`CANARIES` are the texts by what they try, `TEXTS` all of them in a few texts no longer than a tracking id may be.
`write` puts one into every place of a document that is text, keys included; `send_all` has FR sign documents, and
whatever else a peer signs, with its real keys. `faults` says what in a text is not inert; it shares no code with what
makes it so.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from federation import entries, grant, handling, jws, outbound, recall, strictjson
from federation.base64url import b64url
from federation.entries import (
    AgreementOffer,
    Body,
    Delivery,
    Granted,
    NewCard,
    NewEpoch,
    Purge,
    RecallOrder,
    Said,
    Withdrawal,
)
from federation.limits import MAX_NAME_CHARS
from federation.marking import issue_claims
from federation.model import Category, JsonObject, Presentation, Role, instant_text
from federation.recall import Reason
from federation.sdjwt import Salts
from federation.statement import Seen, Subject
from federation.strictjson import encode
from node.home.context import Node
from node.peering.agreements import Held
from node.sharing import advisories, releases
from tests.e2e.net import Net
from tests.faults.campaign import FULL
from tests.faults.liar import append_raw
from tests.nodes import DE, FR, IN, append_by_hand, document, history, import_document, payload_of, signed_core

_EVERY = (1 << 63) - 1
FORGED = "FORGED"  # begins a line, where a line break came through
CANARIES = {
    "CSI: colour, clear, cursor": "\x1b[8m\x1b[5;7m\x1b[2J\x1b[1;1H",
    "OSC 8: link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "OSC 52: clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "OSC 0: title": "\x1b]0;owned\x07",
    "DCS, APC, PM, SOS": "\x1bP$q\x1b\\\x1b_a\x1b\\\x1b^p\x1b\\\x1bXs\x1b\\",
    "reset, charset": "\x1bc\x1b(0",
    "C1": "".join(map(chr, range(0x80, 0xA0))),
    "line feed": f"\n{FORGED} line feed",
    "carriage return": f"\r{FORGED} return",
    "both": f"\r\n{FORGED} both",
    "vertical tab, form feed": f"\v{FORGED} vt\f{FORGED} ff",
    "separators": f"\x1c{FORGED} fs\x1d\x1e\x1f",
    "next line": f"\x85{FORGED} nel",
    "line and paragraph separator": f"\u2028{FORGED} ls\u2029{FORGED} ps",
    "bell, backspace, delete, null": "\x07a\b\b\x7f\x00",
    "tab": "\t",
    "bidi embedding, override": "\u202a\u202b\u202d\u202egpj.exe\u202c",
    "bidi isolate": "\u2066\u2067\u2068x\u2069",
    "bidi marks": "\u200e\u200f\u061c",
    "zero width": "a\u200bb\u2060\ufeffc\u00ad\u180ed",
    "joiners between Latin letters": "pay\u200dpal\u200c\u200c.example",
    "tags": "\U000e0001\U000e0041\U000e007f",
    "variation selectors": "x\ufe00\ufe0f\U000e0100\U000e01ef",
    "fillers": "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4",
    "spaces": "\u00a0\u1680\u2003\u202f\u205f\u3000",
    "combining flood": "z" + "\u0300\u0489\u20dd" * 10,
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd",
    "no character": "\ufdd0\ufffe\U0001ffff\u0378",
    "annotation": "\ufff9a\ufffab\ufffb",
    "rich markup": "[bold red]x[/bold red][link=http://evil.example]y[/link][/]",
    "format strings": "%s%n%(a)s{0}{x!r}{",
    "formulas": "=1+1;+1;-1;@SUM(A1)",
    "formula behind a quote": "\";=cmd|' /C calc'!A0",
    "HTML": "<img src=x onerror=alert(1)>&amp;",
    "Markdown": "[x](http://evil.example) `y` **z** ![i](//evil.example/i)",
    "mentions": "@everyone @here <!channel> <@U1>",
    "shell": "$(id)`id`;id|id&id>/tmp/x*?~",
    "log line": f"\nlevel=error event={FORGED} peer=x",
    "Prometheus": f'"}} 1\n{FORGED} 1\n',
    "journal": f"\nPRIORITY=0\nMESSAGE={FORGED}",
    "mail header": "\r\nBcc: evil@evil.example\r\n\r\nx",
    "path": "../../etc/passwd",
    "SQL": "'; DROP TABLE audit; --",
}
OWN_COLOURS = frozenset(("0", "1", "2", "31", "32", "33", "1;31"))
_COLOUR = re.compile(r"\x1b\[([0-9;]*)m")
_MARKER = re.compile(r"CANARY[0-9]+")
_MARKS = re.compile("(?:[\u0300-\u036f\u0483-\u0489\u20d0-\u20f0]){7,}")
_IGNORABLE = re.compile(  # Default_Ignorable_Code_Point of Unicode, what is no letter or mark left out; and U+2800
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)


def _texts() -> Iterator[str]:
    text = ""
    for canary in CANARIES.values():
        if len(text) + len(canary) > MAX_NAME_CHARS - 12:
            yield text
            text = ""
        text += canary
    yield text


TEXTS = tuple(f"=CANARY{number} {text}" for number, text in enumerate(_texts()))


def faults(text: str, *, colours: bool = False) -> list[str]:
    """What in `text` is not inert; with `colours`, those that the node itself uses are."""
    found = []
    if colours:
        found += [f"a colour that is not ours: {c}" for c in _COLOUR.findall(text) if c not in OWN_COLOURS]
        text = _COLOUR.sub("", text)
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        steers = category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and character != "\n"
        if steers or _IGNORABLE.match(character) or (category == "Zs" and character != " "):
            found.append(f"U+{ord(character):04X} in {text[max(0, place - 30) : place + 10]!r}")
    if flood := _MARKS.search(text):
        found.append(f"a flood of marks in {text[flood.start() : flood.start() + 20]!r}")
    return found + [f"a line begins with {line[:40]!r}" for line in text.splitlines() if line.startswith(FORGED)]


def shown(text: str) -> frozenset[str]:
    """The marks of the canaries that can be read in `text`."""
    return frozenset(_MARKER.findall(text))


def write(name: str, text: str) -> tuple[JsonObject, JsonObject]:
    """A CSAF document that says `text` wherever it can, and its AI part. It is valid for nobody who looks closely."""
    any_object = {text: text, "text": text, "deep": {text: [text, {text: text}]}}
    product = {"product_id": text, "name": text, "product_identification_helper": any_object}
    note = {"category": "summary", "title": text, "text": text, "audience": text, text: text}
    reference = {"category": "self", "summary": text, "url": text, text: text}
    credit = {"names": [text, text], "organization": text, "summary": text, "urls": [text]}
    score = {
        "products": [text],
        "cvss_v3": {"baseScore": text, "vectorString": text, text: text},
        "cvss_v2": any_object,
    }
    status = {"known_affected": [text], "fixed": [text], text: [text]}
    document = {
        "category": text,
        "csaf_version": "2.0",
        "title": text,
        "lang": text,
        "source_lang": text,
        "distribution": any_object,
        "aggregate_severity": any_object,
        "publisher": {
            "category": text,
            "name": text,
            "namespace": text,
            "contact_details": text,
            "issuing_authority": text,
        },
        "tracking": {
            "id": name,
            "version": text,
            "status": text,
            "initial_release_date": text,
            "current_release_date": text,
            "revision_history": [{"date": text, "number": text, "summary": text, text: text}],
            "aliases": [text],
            "generator": any_object,
        },
        "acknowledgments": [credit],
        "notes": [note, {**note, "category": "description"}],
        "references": [reference],
    }
    vulnerability = {
        "title": text,
        "cve": text,
        "ids": [any_object],
        "release_date": text,
        "discovery_date": text,
        "cwe": {"id": text, "name": text},
        "product_status": status,
        "scores": [score],
        "flags": [any_object],
        "remediations": [{"category": "mitigation", "details": text, "product_ids": [text], text: text}],
        "threats": [{"category": "impact", "details": text, text: text}],
        "involvements": [any_object],
        "notes": [note],
        "references": [reference],
        "acknowledgments": [credit],
    }
    tree = {
        "branches": [
            {"category": text, "name": text, "branches": [{"category": text, "name": text, "product": product}]}
        ],
        "full_product_names": [{**product, "product_id": f"{text}2"}],
        "relationships": [{"category": text, "full_product_name": product, text: text}],
        "product_groups": [{"group_id": text, "product_ids": [text], "summary": text}],
    }
    members = ("artifact_type", "model", "developer", "observed", "taxonomy", "avid", "reproduction", "transferability")
    ai: JsonObject = dict.fromkeys(members, any_object) | {"harm_class": text, "eu_ai_act_risk": [text, text]}
    return {"document": document, "product_tree": tree, "vulnerabilities": [vulnerability, vulnerability]}, ai


def valid(name: str, text: str) -> JsonObject:
    """A document that says `text` wherever valid CSAF lets it: what an analyst imports who got it from a stranger."""
    moment = "2026-11-01T09:00:00Z"
    note: dict[str, Any] = {"category": "summary", "title": text, "text": text}
    return {
        "document": {
            "category": "csaf_base",
            "csaf_version": "2.0",
            "title": text,
            "publisher": {"category": "other", "name": text, "namespace": "https://cert.example"},
            "tracking": {
                "id": name,
                "version": "1",
                "status": "final",
                "initial_release_date": moment,
                "current_release_date": moment,
                "revision_history": [{"date": moment, "number": "1", "summary": text}],
            },
            "notes": [note],
            "acknowledgments": [{"names": [text], "organization": text, "summary": text}],
        }
    }


@dataclass(frozen=True, slots=True)
class Scene:
    """DE, to whom FR has sent all that, and a folder of files that came from strangers."""

    net: Net
    held: Held
    files: Path

    @property
    def home(self) -> Path:
        return self.net.world[DE].home


def honest_update(scene: Scene) -> None:
    """FR sends DE an ordinary advisory, which DE takes."""
    fr = scene.net.world[FR]
    releases.release(fr, import_document(fr, document("HONEST")))
    assert scene.net.world.sync(DE, FR).entries == 1


def delivery(scene: Scene, name: str, text: str, *, later_s: int = 0) -> Delivery:
    """A document of canaries, signed by FR, with every part of it in full."""
    fr = scene.net.world[FR]
    concealed = issue_claims(*write(name, text), fr.labels, {}, salts=Salts(fr.entropy))
    _, honest = advisories.own_advisory(fr, "HONEST")
    moment = int(fr.clock().timestamp()) - 60 + later_s
    plain = {"v": 1, "iss": FR, "jti": f"{FR}/{name}/1", "iat": moment, "handling": honest.payload["handling"]}
    core = signed_core(fr, plain | concealed.payload)
    own = outbound.reopen(core, tuple(d.raw for d in concealed.disclosures), fr.labels)
    general = {e.generalised for e in own.elements if e.full is not None}
    parts = tuple(n.disclosure.raw for n in own.nodes if n.digest not in general)
    terms = handling.narrow(own.handling, scene.held.agreement, own.core_digest, DE, fr.clock() - timedelta(minutes=1))
    return Delivery(Presentation(core, parts), terms)


def send_all(scene: Scene) -> None:
    """Everything that FR and IN say. `raw` may be anything: what DE does not take is shown as well."""
    world = scene.net.world
    fr, india = world[FR], world[IN]
    for number, text in enumerate(TEXTS):
        name = text[:MAX_NAME_CHARS]
        sent = delivery(scene, name, text)
        append_by_hand(fr, DE, sent)
        append_by_hand(fr, DE, delivery(scene, name[:-1], text))
        append_by_hand(fr, DE, delivery(scene, name[:-1], text, later_s=1))  # the same revision: EQUIVOCATION
        recalled = name[:-2]
        append_by_hand(fr, DE, delivery(scene, recalled, text))
        for body in _said(fr, name, text):
            append_by_hand(fr, DE, body)
        append_by_hand(fr, DE, _order(fr, recalled))
        append_by_hand(fr, DE, _grant_of(fr, sent))
        for data in _malformed(scene, sent, text, number) if number == 0 or FULL else ():
            append_raw(fr, DE, data)
        seen = Seen(Subject(FR, name, 1), bytes(32))
        append_by_hand(india, DE, _statement_of(india, DE, "seen", None, {"cores": [seen.write()]}))


def _statement_of(author: Node, to: str, kind: str, about: JsonObject | None, body: JsonObject) -> Said:
    """A statement that says whatever it is told to."""
    members = {
        "statement": kind,
        "to": to,
        "at": instant_text(author.clock() - timedelta(minutes=1)),
        "about": about,
        "in_reply_to": None,
        "body": body,
    }
    return Said(signed(author, members, "statement+jws"))


def signed(author: Node, members: JsonObject, typ: str, kid: str | None = None) -> bytes:
    """A document under the author's real key, whatever its members are."""
    signer = author.keys.signer(Role.ISSUE, author.card, author.clock())
    payload = strictjson.encode(members)
    signature = jws.sign(payload, typ, kid or f"{author.id}/{signer.kid}", signer.sign)
    return jws.serialise(jws.SignedDocument(payload, (signature,)))


def _said(fr: Node, name: str, text: str) -> Iterator[Said]:
    """Statements of every kind, and of none that is known."""
    about: JsonObject = {"origin": FR, "name": name, "revision": 1}
    for kind in ("question", "correction", "affects", "answer"):
        yield _statement_of(fr, DE, kind, about, {"text": text * 20})
    yield _statement_of(fr, DE, "acknowledge", about, {})
    yield _statement_of(fr, DE, "future-kind", about, {text: text, "text": {text: [text]}})
    refused = {"seq": 0, "leaf_hash": "00" * 32, "code": text, "rules": [text] * 60}
    yield _statement_of(fr, DE, "refusal", about, {"feed": text, "entries": [refused, refused | {"seq": _EVERY}]})
    yield _statement_of(fr, DE, "core", about, {"core": text})
    yield _statement_of(fr, DE, "seen", None, {"cores": [{**about, "core": text}]})
    answer = {"recall": text, "outcome": text, "passed_on": [text], "unreachable": [text]}
    for change in ({}, {"recall": "00" * 32}, {"recall": "00" * 32, "outcome": "purged"}):
        yield _statement_of(fr, DE, "purge", about, answer | change)
    for members in ({"origin": text}, {"name": f"{name}{text}"}, {"revision": text}, {text: text}):
        yield _statement_of(fr, DE, "question", about | members, {"text": text})
    yield _statement_of(fr, text, "question", about, {"text": text})
    yield _statement_of(fr, DE, text, about, {"text": text})


def _order(fr: Node, name: str) -> RecallOrder:
    """A recall of what DE holds."""
    signer = fr.keys.signer(Role.ISSUE, fr.card, fr.clock())
    at = fr.clock() - timedelta(minutes=1)
    return RecallOrder(
        recall.sign(FR, name, (1,), Reason.ERROR, at, kid=signer.kid, sign_bytes=signer.sign).document, ()
    )


def _grant_of(fr: Node, sent: Delivery) -> Granted:
    """Leave for DE to pass it on."""
    signer = fr.keys.signer(Role.ISSUE, fr.card, fr.clock())
    until = fr.clock().replace(microsecond=0) + timedelta(days=9)
    made = grant.sign(
        FR, sent.terms.core_digest, DE, [IN], set(Category), until, kid=signer.kid, sign_bytes=signer.sign
    )
    return Granted(made.document)


def _malformed(scene: Scene, sent: Delivery, text: str, number: int) -> Iterator[bytes]:
    """Entries that are wrong somewhere, with canaries in that place."""
    fr = scene.net.world[FR]
    raw = text.encode("utf-8")
    honest = history(fr, DE)[0]
    assert isinstance(honest, bytes)
    payload = payload_of(sent.presentation.core)
    changes: list[JsonObject] = [
        {"iss": text},
        {"jti": text},
        {"jti": f"{FR}/{text}/{text}"},
        {"iat": text},
        {"v": text},
        {text: text},
        {"handling": text},
        *({"handling": payload["handling"] | {member: text}} for member in payload["handling"]),
        {"handling": payload["handling"] | {text: text}},
        {"csaf": text},
        {"_sd_alg": text},
    ]
    bodies: list[Body] = [
        Delivery(Presentation(signed_core(fr, payload | change), sent.presentation.disclosures), sent.terms)
        for change in changes
    ]
    bodies += [Delivery(Presentation(core, (raw,)), sent.terms, raw) for core in (raw, sent.presentation.core)]
    bodies += [
        Delivery(Presentation(_signed_header(fr, member, text), ()), sent.terms) for member in ("alg", "typ", "kid")
    ]
    wrong: list[Any] = [{"onward": text}, {"attribution": text}, {"recipient": text}]
    bodies += [Delivery(sent.presentation, replace(sent.terms, **change)) for change in wrong]
    bodies += [kind((0,), text) for kind in (Withdrawal, Purge)]
    bodies += [Withdrawal((0,), "x", f"{FR}/feeds/{text}/0"), NewEpoch(f"{FR}/feeds/{text}/1", raw, text)]
    documents = [raw, signed(fr, {text: text}, "agreement+jws"), signed(fr, {}, "agreement+jws", "a/x")]
    documents += [signed(fr, agreed(scene) | {member: text}, "agreement+jws") for member in agreed(scene)]
    bodies += [kind(data) for data in documents for kind in (AgreementOffer, NewCard, Granted, Said)]
    bodies += [RecallOrder(raw, (0,)), RecallOrder(signed(fr, {"recall": text, "reason": text}, "recall+jws"), ())]
    seq = len(history(fr, DE))
    for place, body in enumerate(bodies):
        yield entries.write(entries.Envelope(f"{FR}/feeds/{DE}/1", seq + place, bytes([number]) * 16, body))
    yield from (raw, honest + raw, b"")


def agreed(scene: Scene) -> JsonObject:
    members: JsonObject = json.loads(scene.held.agreement.canonical)
    return members


def _signed_header(fr: Node, member: str, text: str) -> bytes:
    """A core whose header says `text`."""
    head = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": "x"} | {member: text}
    return ".".join(b64url(part) for part in (encode(head), encode({"iss": FR}), bytes(64))).encode()
