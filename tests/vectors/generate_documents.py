"""Vectors of signatures and of what is signed: Ed25519, cards, agreements, cores."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import rfc8785
from mnemonic import Mnemonic
from nacl import bindings

from federation import agreement, keyring, strictjson
from federation.base64url import b64url
from federation.keyring import key_id
from federation.model import Category, Form, JsonObject, Role, Tlp, instant_text
from federation.sdjwt import Disclosure
from tests.vectors import material as m

Cases = list[dict[str, Any]]
ABOUT_SEEDS = (
    "Test keys: each secret seed is SHA-256 of the ASCII text `apostille vector LABEL`, with labels such as"
    " `cert.fr.example issue` or `cert.fr.example root 1`. Never use one for anything else."
)
L = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19
IDENTITY = (1).to_bytes(32, "little")
ORDER_TWO = (P - 1).to_bytes(32, "little")
ORDER_EIGHT = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
BAD, MALFORMED = "BAD_SIGNATURE", "MALFORMED"


def _scalar(number: int) -> bytes:
    return (number % L).to_bytes(32, "little")


def _times_base(number: int) -> bytes:
    return bindings.crypto_scalarmult_ed25519_base_noclamp(_scalar(number))


def _challenge(r: bytes, a: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + a + message).digest(), "little") % L


def ed25519_cases() -> dict[str, Any]:
    message = b"apostille"
    key, other = m.public("ed25519"), m.public("ed25519 other")
    good = m.signer("ed25519")(message)
    secret = int.from_bytes(m.seed("scalar"), "little") % L
    mixed = bindings.crypto_core_ed25519_add(_times_base(secret), ORDER_EIGHT)

    def by(a: bytes, nonce: int, text: bytes, *, r: bytes | None = None, weight: int = secret) -> bytes:
        r = _times_base(nonce) if r is None else r
        return r + _scalar(nonce + _challenge(r, a, text) * weight)

    def found(a: bytes, weight: int, *, vanishes: bool) -> bytes:
        """A signature whose challenge is, or is not, a multiple of 8: then what `a` has of small order vanishes."""
        tried = (by(a, nonce, message, weight=weight) for nonce in range(1, 200))
        return next(s for s in tried if (_challenge(s[:32], a, message) % 8 == 0) is vanishes)

    plain = _times_base(secret)
    shifted = bindings.crypto_core_ed25519_add(_times_base(7), ORDER_EIGHT)
    large = good[:32] + (int.from_bytes(good[32:], "little") + L).to_bytes(32, "little")
    rows: list[tuple[str, bytes, bytes, bytes, str, str]] = [
        ("an ordinary signature", key, message, good, "ok", "ok"),
        ("an ordinary signature over no bytes", key, b"", m.signer("ed25519")(b""), "ok", "ok"),
        ("another message", key, b"apostillf", good, BAD, "ok"),
        ("another key", other, message, good, BAD, "ok"),
        ("rule 1: 63 bytes of signature", key, message, good[:-1], BAD, "ok"),
        ("rule 1: 31 bytes of key", key[:-1], message, good, BAD, MALFORMED),
        ("rule 2: S with the group order added", key, message, large, BAD, "ok"),
        (
            "rule 3: A is the identity, spelt p + 1",
            (P + 1).to_bytes(32, "little"),
            message,
            by(IDENTITY, 5, message, weight=0),
            BAD,
            MALFORMED,
        ),
        ("rule 3: A is no point of the curve", (2).to_bytes(32, "little"), message, good, BAD, MALFORMED),
        ("rule 4: A is the identity", IDENTITY, message, by(IDENTITY, 5, message, weight=0), BAD, MALFORMED),
        ("rule 4: A has order two", ORDER_TWO, message, found(ORDER_TWO, 0, vanishes=True), BAD, MALFORMED),
        ("rule 4: A has order eight", ORDER_EIGHT, message, found(ORDER_EIGHT, 0, vanishes=True), BAD, MALFORMED),
        ("rule 5: R is the identity", plain, message, by(plain, 0, message, r=IDENTITY), BAD, "ok"),
        (
            "rule 5: R is the identity, spelt p + 1",
            plain,
            message,
            by(plain, 0, message, r=(P + 1).to_bytes(32, "little")),
            BAD,
            "ok",
        ),
        ("rule 5: R has order two", plain, message, by(plain, 0, message, r=ORDER_TWO), BAD, "ok"),
        (
            "rule 6: R is off by a point of order eight: only the cofactored equation holds",
            plain,
            message,
            by(plain, 7, message, r=shifted),
            BAD,
            "ok",
        ),
        (
            "rule 6: A of mixed order, and the equation holds exactly",
            mixed,
            message,
            found(mixed, secret, vanishes=True),
            "ok",
            MALFORMED,
        ),
        (
            "rule 6: A of mixed order: only the cofactored equation holds",
            mixed,
            message,
            found(mixed, secret, vanishes=False),
            BAD,
            MALFORMED,
        ),
    ]
    return {
        "about": "The one Ed25519 verdict. `expect` is for verifying `signature` over `message` by `public_key` (all"
        " hexadecimal); `enrol` is for putting `public_key` on a card as a root key or an online key. " + ABOUT_SEEDS,
        "cases": [
            {"name": n, "public_key": k.hex(), "message": t.hex(), "signature": s.hex(), "expect": e, "enrol": c}
            for n, k, t, s, e, c in rows
        ],
    }


def card_cases() -> dict[str, Any]:
    good = m.CARDS[m.FR]
    payload = json.loads(good.payload())
    signers = m.root_signers(m.FR, 1, 2)
    cases: Cases = []

    def add(name: str, text: str, expect: str, **more: Any) -> None:
        cases.append({"name": name, "card": text, "expect": expect, **more})

    def changed(name: str, expect: str, **changes: Any) -> None:
        data = {k: v for k, v in (payload | changes).items() if v is not None}
        add(name, m.document(rfc8785.dumps(data), keyring.JWS_TYPE, signers), expect)

    def with_key(name: str, expect: str, **changes: Any) -> None:
        first, *rest = payload["keys"]
        changed(name, expect, keys=[first | changes, *rest])

    def with_public(name: str, raw: bytes) -> None:
        with_key(name, MALFORMED, public=b64url(raw), kid=key_id(Role.ISSUE, raw))

    printed = good.roots.fingerprint()
    words = Mnemonic("english").to_mnemonic(printed)
    fingerprint = {"node": good.node, "version": good.version, "fingerprint": printed.hex(), "words": words}
    add("two of three roots sign", m.card_text(good), "ok", **fingerprint)
    all_roots = m.root_signers(m.FR, 3, 1, 2)
    add(
        "all three roots sign, in any order",
        m.document(good.payload(), keyring.JWS_TYPE, all_roots),
        "ok",
        **fingerprint,
    )
    rotating = replace(good, version=2, keys=(*good.keys, m.online(Role.FEED, m.public("new feed"))))
    add("two feed keys, during a rotation", m.card_text(rotating), "ok", **(fingerprint | {"version": 2}))
    add(
        "one of three roots, where the threshold is two", m.document(good.payload(), keyring.JWS_TYPE, signers[:1]), BAD
    )
    foreign = [*signers, *m.root_signers(m.DE, 1)]
    add("a third signature, by a root of another node", m.document(good.payload(), keyring.JWS_TYPE, foreign), BAD)
    borrowed = [signers[0], (signers[1][0], f"{m.DE} root 1")]
    add(
        "the kid of one root over the signature of another key",
        m.document(good.payload(), keyring.JWS_TYPE, borrowed),
        BAD,
    )
    by_issue = [signers[0], (good.keys[0].kid, f"{m.FR} issue")]
    add("an online key signs in place of a root", m.document(good.payload(), keyring.JWS_TYPE, by_issue), BAD)
    twice = [signers[0], signers[0]]
    add("one root signs twice", m.document(good.payload(), keyring.JWS_TYPE, twice), MALFORMED)
    add("no signature", m.document(good.payload(), keyring.JWS_TYPE, []), MALFORMED)
    spaced = json.dumps(payload, sort_keys=True).encode()
    add("signed bytes with white space", m.document(spaced, keyring.JWS_TYPE, signers), MALFORMED)
    add("signed as an agreement", m.document(good.payload(), agreement.JWS_TYPE, signers), MALFORMED)
    for member, value in (("alg", "EdDSA"), ("crit", ["b64"]), ("jwk", {}), ("jku", "https://example.org/keys")):
        text = m.document(good.payload(), keyring.JWS_TYPE, signers, {member: value})
        add(f"protected header with {member} {json.dumps(value)}", text, MALFORMED)
    document = json.loads(m.card_text(good))
    document["signatures"][0]["header"] = {}
    add("an unprotected header", json.dumps(document), MALFORMED)
    add("a member twice", m.card_text(good).replace("{", '{"payload":"",', 1), MALFORMED)
    add("padded base64url", m.card_text(good).replace('","signatures"', '=","signatures"', 1), MALFORMED)
    changed("an unknown member", MALFORMED, comment="hello")
    changed("a missing member", MALFORMED, endpoint=None)
    changed("a node id in upper case", MALFORMED, card="CERT.FR.EXAMPLE")
    changed("an instant with an offset", MALFORMED, issued_at="2026-11-01T01:00:00+01:00")
    changed("an endpoint without a port", MALFORMED, endpoint="cert.fr.example")
    changed("an endpoint with a scheme", MALFORMED, endpoint="https://cert.fr.example:443")
    changed("version 0", MALFORMED, version=0)
    roots = payload["roots"]
    changed("a threshold of 0", MALFORMED, roots=roots | {"threshold": 0})
    changed("a threshold above the number of roots", MALFORMED, roots=roots | {"threshold": 4})
    changed("a root twice", MALFORMED, roots=roots | {"keys": [roots["keys"][0], *roots["keys"]]})
    changed("a root of small order", MALFORMED, roots=roots | {"keys": [*roots["keys"], b64url(ORDER_TWO)]})
    changed("an online key twice", MALFORMED, keys=[*payload["keys"], payload["keys"][0]])
    with_key("an online key under an id that is not its own", MALFORMED, kid="0" * 16)
    with_key("an unknown role", MALFORMED, role="admin")
    with_key("an online key that is never valid", MALFORMED, until=payload["keys"][0]["from"])
    mixed = bindings.crypto_core_ed25519_add(m.public("mixed"), ORDER_EIGHT)
    with_public("an online key of mixed order", mixed)
    with_public("an online key of small order", ORDER_EIGHT)
    with_public("an online key spelt non-canonically", (P + 3).to_bytes(32, "little"))
    return {
        "about": "Node cards, as the text of their file. `ok` cards name node, version and the fingerprint of the root"
        " set (16 bytes, hexadecimal, and the same as words). " + ABOUT_SEEDS,
        "cases": cases,
    }


def agreement_cases() -> dict[str, Any]:
    good, terms = m.AGREEMENT, json.loads(m.AGREEMENT.canonical)
    everyone = m.party_signers(m.FR, m.DE, m.IN)
    cases: Cases = []

    def add(name: str, text: str, expect: str, **more: Any) -> None:
        cases.append({"name": name, "document": text, "expect": expect, **more})

    def signed(payload: bytes, signers: list[tuple[str, str]] = everyone) -> str:
        return m.document(payload, agreement.JWS_TYPE, signers)

    def changed(name: str, expect: str, **changes: Any) -> None:
        data = {k: v for k, v in (terms | changes).items() if v is not m.ABSENT}
        add(name, signed(rfc8785.dumps(data)), expect)

    def clause(name: str, expect: str, **changes: Any) -> None:
        first, *rest = terms["grants"]
        changed(name, expect, grants=[first | changes, *rest])

    result = {"id": good.id, "version": 1, "digest": good.digest.hex()}
    add("signed by all", signed(good.canonical), "ok", signed_by=[m.DE, m.FR, m.IN], **result)
    add("a proposal", signed(good.canonical, everyone[:1]), "ok", signed_by=[m.FR], **result)
    second = agreement.from_yaml(
        m.AGREEMENT_YAML.replace("version: 1\n", f"version: 2\nprevious: {good.digest.hex()}\n"), "second.yaml"
    )
    add("version 2 names version 1", signed(second.canonical), "ok", signed_by=[m.DE, m.FR, m.IN],
        id=good.id, version=2, digest=second.digest.hex())  # fmt: skip
    stranger = m.root_signers(m.FR, 1)[0][0]
    add("signed by a node that is no party", signed(good.canonical, [("cert.us.example/" + stranger, "us")]), BAD)
    two_party = json.loads(good.canonical) | {"parties": [m.DE, m.FR]}
    two_party["grants"] = [terms["grants"][0]]
    two = rfc8785.dumps(two_party)
    add("signed by an enrolled node that is no party", signed(two, m.party_signers(m.FR, m.IN)), BAD)
    unknown = rfc8785.dumps(terms | {"parties": sorted([*terms["parties"], "cert.us.example"])})
    add("signed by a party without a card", signed(unknown, [("cert.us.example/" + stranger, "us")]), "UNKNOWN_ORIGIN")
    by_feed = [(m.issue_kid(m.FR, Role.FEED), f"{m.FR} feed")]
    add("signed by a feed key", signed(good.canonical, by_feed), "UNKNOWN_KEY")
    old = [(f"{m.FR}/{m.OLD_KEY.kid}", f"{m.FR} old issue")]
    add("signed by a key that is no longer valid", signed(good.canonical, old), "UNKNOWN_KEY")
    add("one party signs twice", signed(good.canonical, [everyone[0], *by_feed]), BAD)
    add(
        "the key of one party over the signature of another",
        signed(good.canonical, [(everyone[0][0], f"{m.DE} issue")]),
        BAD,
    )
    add(
        "a kid without a party",
        signed(good.canonical, [(everyone[0][0].partition("/")[2], f"{m.FR} issue")]),
        MALFORMED,
    )
    add("signed as a card", m.document(good.canonical, keyring.JWS_TYPE, everyone), MALFORMED)
    add("signed bytes with white space", signed(json.dumps(terms).encode()), MALFORMED)
    changed("an unknown member", MALFORMED, comment="hello")
    changed("a missing member, even if null is what it would hold", MALFORMED, previous=m.ABSENT)
    changed("parties not sorted", MALFORMED, parties=terms["parties"][::-1])
    changed("purposes not sorted", MALFORMED, purposes=terms["purposes"][::-1])
    changed("one party", MALFORMED, parties=[m.FR])
    changed("an unknown purpose", MALFORMED, purposes=["marketing"])
    changed("the review after the end", MALFORMED, sunset_review="2028-01-01T00:00:00Z")
    changed("the end before the beginning", MALFORMED, valid_until="2025-12-31T00:00:00Z")
    changed("version 1 that names a previous one", MALFORMED, previous="00" * 32)
    changed("version 2 that names none", MALFORMED, version=2)
    changed("retention of 0 days", MALFORMED, retention_days=0)
    changed("storage in no country", MALFORMED, storage=[])
    changed("no clause", MALFORMED, grants=[])
    changed("two clauses of one id", MALFORMED, grants=[terms["grants"][0]] * 2)
    clause("a clause that names a stranger", MALFORMED, to=["cert.us.example"])
    clause("a clause with an unknown TLP", MALFORMED, tlp=["WHITE"])
    clause("a clause that shares no identification", MALFORMED, share={"technical": "full"})
    clause("a clause that says withheld", MALFORMED, share={"identification": "full", "exploit": "withheld"})
    clause("a clause with an unknown category", MALFORMED, share={"identification": "full", "secrets": "full"})
    written = m.AGREEMENT_YAML
    alias = written.replace("[CLEAR, GREEN, AMBER]", "&a [CLEAR]").replace("storage: [FR, DE, IN]", "storage: *a")
    canonical = good.canonical.decode()
    return {
        "about": "Agreements: `document` is the signed text, read at `now` by a node that has enrolled `cards`. `ok`"
        " says whose signatures hold, and the digest of the terms. `yaml` cases turn what a person wrote into the"
        " canonical bytes, or are `refused`. " + ABOUT_SEEDS,
        "now": instant_text(m.NOW),
        "cards": m.CARD_TEXTS,
        "cases": cases,
        "yaml": [
            {"name": "as people write it", "yaml": written, "expect": "ok", "canonical": canonical},
            {"name": "a key twice", "yaml": written + "version: 1\n", "expect": "refused"},
            {"name": "an alias", "yaml": alias, "expect": "refused"},
            {"name": "a second document", "yaml": written + "---\nversion: 2\n", "expect": "refused"},
        ],
    }


def core_cases() -> dict[str, Any]:
    made = m.make()
    cases: Cases = []
    withheld = frozenset((Category.EXPLOIT, Category.ATTRIBUTION))

    def add(name: str, core: bytes, disclosures: tuple[bytes, ...], expect: str, **more: Any) -> None:
        shown = [raw.decode() for raw in disclosures]
        cases.append({"name": name, "core": core.decode(), "disclosures": shown, "expect": expect, **more})

    def bad(
        name: str,
        expect: str,
        payload: JsonObject | bytes | None = None,
        label: str = f"{m.FR} issue",
        header: dict[str, Any] | None = None,
    ) -> None:
        add(name, m.core(made.payload() if payload is None else payload, label, **(header or {})), (), expect)

    def chosen(name: str, forms: Callable[[str, frozenset[Category]], Form], **more: Any) -> None:
        shown = {e.path: (forms(e.path, e.categories), e) for e in made.own.elements}
        elements = {
            path: ["full" if form is Form.FULL and e.full else "generalised", *sorted(e.categories)]
            for path, (form, e) in shown.items()
            if form is not Form.WITHHELD
        }
        add(name, made.own.core, made.choose(forms), "ok", elements=elements, **more)

    def handling(name: str, expect: str = "BAD_HANDLING", **changes: Any) -> None:
        data = {k: v for k, v in (made.own.payload["handling"] | changes).items() if v is not m.ABSENT}
        bad(f"handling: {name}", expect, made.payload(handling=data))

    chosen("everything in full", lambda *_: Form.FULL, csaf=m.CSAF, ai=m.AI)
    chosen("no exploit, no attribution", lambda _, c: Form.WITHHELD if c & withheld else Form.FULL)
    general = {e.path for e in made.own.elements if e.generalised}
    chosen(
        "generalised where there is such a form, else withheld",
        lambda p, _: Form.GENERALISED if p in general else Form.WITHHELD,
    )
    chosen("nothing disclosed", lambda *_: Form.WITHHELD, ai=None)
    full = made.choose(lambda *_: Form.FULL)
    add("in another order", made.own.core, full[::-1], "ok", csaf=m.CSAF, ai=m.AI)
    titles = tuple(raw for raw in made.disclosures if b'"title","Gateway' in raw or b'"title","Security' in raw)
    add("both forms of the title", made.own.core, titles, MALFORMED)
    add("one disclosure twice", made.own.core, titles[:1] * 2, MALFORMED)
    alien = Disclosure.make(bytes(16), "title", "Injected").raw
    add("a disclosure that the core does not refer to", made.own.core, (alien,), BAD)
    orphan = next(
        raw for raw in made.disclosures if b"GW41" in raw and b"remediation" not in raw and b"known_affected" in raw
    )
    add("a member without the containers around it", made.own.core, (orphan,), BAD)
    add("a disclosure with white space added", made.own.core, (titles[0].replace(b",", b", ", 1),), BAD)
    flipped = made.own.core[:-2] + (b"A" if made.own.core[-2:-1] != b"A" else b"B") + made.own.core[-1:]
    add("a changed signature", flipped, (), BAD)
    head, body, signature = made.own.core.split(b".")
    widened = strictjson.encode(made.payload(handling=made.own.payload["handling"] | {"tlp": "CLEAR"}))
    add("handling widened after signing", b".".join((head, b64url(widened).encode(), signature)), (), BAD)
    add("padded base64url", head + b"=." + body + b"." + signature, (), MALFORMED)
    # 64 bytes are 86 characters, of which the last has four bits to spare
    spare = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = spare[spare.index(made.own.core[-1:]) | 1 : (spare.index(made.own.core[-1:]) | 1) + 1]
    add("left-over bits of the signature that are not zero", made.own.core[:-1] + last, (), MALFORMED)
    add("four parts", made.own.core + b".", (), MALFORMED)

    headers: list[tuple[str, Any]] = [
        ("alg", "EdDSA"),
        ("alg", "none"),
        ("typ", "JWT"),
        ("typ", "agreement+jws"),
        ("crit", ["exp"]),
    ]
    for member, value in headers:
        bad(f"header with {member} {json.dumps(value)}", MALFORMED, header={member: value})
    for name in ("jwk", "jku", "x5c", "cty"):
        bad(f"header with {name}", MALFORMED, header={name: "x"})
    bad("header without kid", MALFORMED, header={"kid": None})
    bad("an unknown kid", "UNKNOWN_KEY", header={"kid": "0" * 16})
    feed_kid = key_id(Role.FEED, m.public(f"{m.FR} feed"))
    bad("the kid of a feed key", "UNKNOWN_KEY", label=f"{m.FR} feed", header={"kid": feed_kid})
    bad(
        "the kid of another node's key",
        "UNKNOWN_KEY",
        label=f"{m.DE} issue",
        header={"kid": key_id(Role.ISSUE, m.public(f"{m.DE} issue"))},
    )
    bad("a key that is no longer valid", "UNKNOWN_KEY", label=f"{m.FR} old issue", header={"kid": m.OLD_KEY.kid})
    bad("another key under the right kid", BAD, label=f"{m.DE} issue")
    us = made.payload(iss="cert.us.example", jti="cert.us.example/FR-VECTOR-1/1")
    bad("an origin that is not enrolled", "UNKNOWN_ORIGIN", us)
    claims: JsonObject = {"exp": 4_000_000_000, "nbf": 1, "aud": m.DE, "cnf": {}}
    for claim, content in claims.items():
        bad(f"claim {claim}", MALFORMED, made.payload(**{claim: content}))
    bad("no _sd_alg", MALFORMED, made.payload(_sd_alg=None))
    bad("another _sd_alg", MALFORMED, made.payload(_sd_alg="sha-512"))
    bad("version 2", MALFORMED, made.payload(v=2))
    bad("an unknown plain member", MALFORMED, made.payload(comment="hello"))
    bad("no labels", MALFORMED, made.payload(labels=None))
    bad("labels with a plain member", MALFORMED, made.payload(labels={"note": "x"}))
    bad("jti of another revision form", MALFORMED, made.payload(jti=f"{m.FR}/FR-VECTOR-1/01"))
    bad("jti of another document", MALFORMED, made.payload(jti=f"{m.FR}/FR-VECTOR-2/1"))
    bad("jti of another node", MALFORMED, made.payload(jti=f"{m.DE}/FR-VECTOR-1/1"))
    late = int((m.NOW + timedelta(seconds=301)).timestamp())
    bad("issued 301 s in our future", MALFORMED, made.payload(iat=late))
    bad("issued 300 s in our future", "ok", made.payload(iat=late - 1))
    plain = made.payload()
    plain["csaf"]["document"]["title"] = "In plain"
    bad("a plain title, which could not be withheld", MALFORMED, plain)
    plain = made.payload()
    plain["csaf"]["document"]["_sd"].append(plain["csaf"]["document"]["_sd"][0])
    bad("one digest at two places", MALFORMED, plain)
    text = strictjson.encode(made.payload())
    bad("a payload member twice", MALFORMED, text.replace(b"{", b'{"v":1,', 1))
    bad("NaN in the payload", MALFORMED, text.replace(b'"v":1', b'"v":NaN', 1))
    bad("no handling", MALFORMED, made.payload(handling=None))
    bad(
        "handling that is null",
        "BAD_HANDLING",
        text.replace(text[text.index(b'"handling":') : text.index(b',"csaf"')], b'"handling":null'),
    )
    for member in made.own.payload["handling"]:
        handling(f"no {member}", **{member: m.ABSENT})
    handling("an unknown member", note="x")
    handling("an unknown TLP", tlp="WHITE")
    handling("a tlp in lower case", tlp="amber")
    handling("an unknown tier", tier="secret")
    handling("an unknown purpose", purposes=["marketing"])
    handling("purposes not sorted", purposes=["remediation", "detection"])
    handling("no purpose", purposes=[])
    handling("storage in no country", storage=[])
    handling("a country in lower case", storage=["fr"])
    handling("an instant with fractions", retain_until="2028-01-01T00:00:00.0Z")
    handling("RED without recipients", tlp=Tlp.RED)
    handling("AMBER+STRICT with onward sharing", tlp=Tlp.AMBER_STRICT, onward="peers")
    handling("RED with recipients", "ok", tlp=Tlp.RED, recipients=[m.DE])
    return {
        "about": "Cores with disclosures (each the JSON text that is hashed), read at `now` by a node that has enrolled"
        " `cards` and uses the label file whose SHA-256 is `labels`: signature, disclosures and meaning, before policy."
        " `csaf` and `ai`, where given, are what is read; `elements` says which elements came, in which form, and of"
        " which categories they are. " + ABOUT_SEEDS,
        "now": instant_text(m.NOW),
        "labels": m.LABELS.digest.hex(),
        "cards": m.CARD_TEXTS,
        "cases": cases,
    }
