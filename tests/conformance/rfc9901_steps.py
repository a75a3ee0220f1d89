"""Tokens that break one step of RFC 9901 section 7 each, made of a real advisory and signed anew by its origin.

What stands in the tree beside this: each step by the smallest payload (`tests/unit/test_sdjwt_verify.py`), the vectors
of the RFC itself (`tests/vectors/test_rfc9901.py`), and random claims (`tests/property/test_sdjwt.py`). Here are whole
advisories, so that they can be sent over the wire and judged by somebody else's verifier.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from federation.base64url import b64url, from_b64url
from federation.errors import (
    KeyringError,
    MalformedError,
    RemoteError,
    SignatureError,
    UnknownOriginError,
)
from federation.sdjwt.disclosure import Disclosure, digest_of
from federation.strictjson import encode
from tests.conformance.tokens import Token, element, jws, member

_ORDER = (1 << 252) + 27742317777372353535851937790883648493  # of the group of Ed25519


Change = Callable[[Token], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A change after which the token must be refused with `error`. `independent`: by any verifier of RFC 9901, too;
    otherwise what refuses it is the profile of an advisory."""

    step: str
    name: str
    error: type[RemoteError]
    change: Change
    independent: bool = True


def cases() -> Iterator[Case]:
    """All of them, by the steps of section 7.1."""
    yield from _separate()
    yield from _header()
    yield from _signature()
    yield from _issuer()
    yield from _hash_name()
    yield from _digests()
    yield from _members()
    yield from _elements()
    yield from _twice()
    yield from _unreferenced()
    yield from _validity()


def _separate() -> Iterator[Case]:
    """1: core and disclosures apart. Between nodes they travel so; the compact text is judged in the test."""
    lasts: dict[str, Callable[[bytes], bytes]] = {
        "two parts": lambda core: core.rpartition(b".")[0],
        "four parts": lambda core: core + b"." + core.partition(b".")[0],
        "disclosures behind the core": lambda core: core + b"~" + b64url(member("lang", "fr")).encode() + b"~",
        "a line feed behind it": lambda core: core + b"\n",
        "padding": lambda core: core + b"==",
        "another alphabet": lambda core: core.replace(b".", b"+.", 1),
        "JSON serialisation": lambda core: encode(
            dict(zip(("protected", "payload", "signature"), core.decode().split("."), strict=True))
        ),
    }
    for name, last in lasts.items():
        yield Case("1", name, MalformedError, _last(last))


def _header() -> Iterator[Case]:
    """2.a: algorithm, type, kid and crit."""

    def with_header(**changed: Any) -> Change:
        def change(token: Token) -> None:
            token.header = {k: v for k, v in {**token.header, **changed}.items() if v is not ...}

        return change

    for alg in (
        "none",
        "None",
        "nOnE",
        "",
        "HS256",
        "RS256",
        "ES256",
        "EdDSA",
        "Ed448",
        "ed25519",
        None,
        ["Ed25519"],
        ...,
    ):
        yield Case("2.a", f"alg {alg!r}", MalformedError, with_header(alg=alg))
    yield Case("2.a", "none and no signature", MalformedError, _unsigned)
    yield Case("2.a", "HS256 with the public key as secret", MalformedError, _hmac)
    for typ in ("JWT", "sd+jwt", "dc+sd-jwt", "agreement+jws", "card+jws", "ADVISORY+SD-JWT", "kb+jwt", None, ...):
        yield Case("2.a", f"typ {typ!r}", MalformedError, with_header(typ=typ))
    kids: tuple[Any, ...] = (None, 1, ["x"], {}, ...)
    for kid in kids:
        yield Case("2.a", f"kid {kid!r}", MalformedError, with_header(kid=kid))
    more: dict[str, Any] = {
        "crit": ["exp"], "b64": False, "jwk": {"kty": "OKP"}, "jku": "https://evil.example/k", "x5u": "https://evil.example/c",
        "x5c": ["AA"], "x5t": "AA", "zip": "DEF", "cty": "JWT", "iss": "cert.fr.example", "nonce": "n",
    }  # fmt: skip
    for name, value in more.items():
        yield Case("2.a", f"{name} in the header", MalformedError, with_header(**{name: value}))
    yield Case("2.a", "crit that names b64", MalformedError, with_header(crit=["b64"], b64=False))
    yield Case("2.a", "crit that is empty", MalformedError, with_header(crit=[]))
    yield Case("2.a", "alg twice", MalformedError, _header_twice)


def _signature() -> Iterator[Case]:
    """2.b."""
    lasts: dict[str, Callable[[bytes], bytes]] = {
        "no signature": lambda core: core.rpartition(b".")[0] + b".",
        "zeros": lambda core: core.rpartition(b".")[0] + b"." + b64url(bytes(64)).encode(),
        "a byte too few": lambda core: _with_signature(core, lambda s: s[:-1]),
        "a byte too many": lambda core: _with_signature(core, lambda s: s + b"\0"),
        "S plus the order of the group": lambda core: _with_signature(core, _malleable),
        "another R": lambda core: _with_signature(core, lambda s: bytes([s[0] ^ 1]) + s[1:]),
        "another payload": _other_payload,
    }
    for name, last in lasts.items():
        yield Case("2.b", name, SignatureError, _last(last))
    yield Case("2.b", "the feed key of the same node", SignatureError, _by_feed_key)


def _issuer() -> Iterator[Case]:
    """2.c: the key belongs to the issuer; never found by its id alone."""
    yield Case("2.c", "the feed key under its own id", KeyringError, _as_feed_key)
    for kid in ("", "0" * 16, "../issue-1", "' OR 1=1 --"):
        yield Case("2.c", f"kid {kid!r}", KeyringError, _header_member("kid", kid), independent=False)
    yield Case("2.c", "another node's name", KeyringError, _claim("iss", "cert.de.example"), independent=False)
    yield Case("2.c", "a stranger's name", UnknownOriginError, _claim("iss", "cert.xx.example"), independent=False)
    for iss in (
        "CERT.FR.EXAMPLE",
        "cert.fr.example.",
        "cert.fr.\u0435xample",
        "",
        " cert.fr.example",
        "https://cert.fr.example",
    ):
        yield Case("2.c", f"iss {iss!a}", MalformedError, _claim("iss", iss), independent=False)
    for wrong in (None, 1, ["cert.fr.example"], {"id": "cert.fr.example"}):
        yield Case("2.c", f"iss {wrong!r}", MalformedError, _claim("iss", wrong), independent=False)
    yield Case("2.c", "no iss", MalformedError, _without("iss"), independent=False)


def _hash_name() -> Iterator[Case]:
    """2.d."""
    for name in ("md5", "sha-1", "sha-384", "sha-512", "sha3-256", "SHA-256", "sha256", "", None, 256, ["sha-256"]):
        yield Case("2.d", f"_sd_alg {name!r}", MalformedError, _claim("_sd_alg", name))
    yield Case("2.d", "no _sd_alg", MalformedError, _without("_sd_alg"))
    yield Case("2.d", "_sd_alg below the top", MalformedError, lambda t: t.document.update(_sd_alg="sha-256"))


def _digests() -> Iterator[Case]:
    """3.a and 3.b: what is hashed, and what is a digest. By the RFC a reserved name whose value has the wrong type is
    passed over; no issuer of ours writes one, so it is refused."""
    spelled: dict[str, Callable[[bytes], str]] = {
        "of the JSON in place of its base64url": lambda raw: b64url(hashlib.sha256(raw).digest()),
        "in hexadecimal": lambda raw: hashlib.sha256(b64url(raw).encode()).hexdigest(),
        "padded": lambda raw: digest_of(raw) + "=",
        "of SHA-512": lambda raw: b64url(hashlib.sha512(b64url(raw).encode()).digest()),
        "cut": lambda raw: digest_of(raw)[:-1],
        "in the other alphabet": lambda raw: digest_of(raw).replace("-", "+").replace("_", "/") + "=",
    }
    for name, digest in spelled.items():
        yield Case("3.a", f"a digest {name}", SignatureError, _digest_spelled(digest))
    yield Case("3.a", "a disclosure spelled anew", SignatureError, _respelled)
    sets: tuple[Any, ...] = ("x", None, 1, {}, {"0": "x"}, True, [1], [None], [["x"]], [{"...": "x"}])
    for value in sets:
        yield Case("3.b.i", f"_sd {value!r}", MalformedError, _digests_are(value), independent=False)
        yield Case("3.b.i", f"_sd {value!r} inside", MalformedError, _hidden({"_sd": value}), independent=False)
    placeholders: tuple[Any, ...] = (
        {"...": "x", "a": 1},
        {"...": 1},
        {"...": None},
        {"...": ["x"]},
        {"...": "x", "_sd": []},
    )
    for value in placeholders:
        yield Case("3.b.ii", f"{value!r}", MalformedError, _references_are([value]), independent=False)
        yield Case("3.b.ii", f"{value!r} inside", MalformedError, _hidden([value]), independent=False)
    yield Case("3.b.ii", "... as a member", MalformedError, lambda t: t.document.update({"...": "x"}))
    yield Case("3.b.ii", "... as a member of a disclosure", MalformedError, _hidden({"...": "x"}))


_NO_MEMBER = (
    b"[]", b'["s"]', b'["s","a",1,2]', b"{}", b'{"0":"s","1":"a","2":1}', b'"abc"', b"123", b"null", b'["s","a",1]x',
    b'["s","a",NaN]', b'["s","a",{"b":1,"b":2}]', b'["s","a","\xff"]', b'["s","a","\\ud800"]',
    b'\xef\xbb\xbf["s","a",1]',
    b'[1,"a",1]', b'[null,"a",1]', b'["s",1,1]', b'["s",null,1]', b'["s",["a"],1]', b'["s","a",1e999]',
)  # fmt: skip


def _members() -> Iterator[Case]:
    """3.c.ii: a disclosure in the place of an object member."""
    yield Case("3.c.ii.1", "an array element's", MalformedError, lambda t: _ignore(t.hide(element("fr"))))
    for raw in _NO_MEMBER:
        yield Case("3.c.ii.1", repr(raw), MalformedError, lambda t, raw=raw: _ignore(t.hide(raw)))  # type: ignore[misc]
    for name in ("_sd", "...", "_sd_alg"):
        yield Case("3.c.ii.2", name, MalformedError, lambda t, n=name: _ignore(t.hide(member(n, "x"))))  # type: ignore[misc]
        yield Case("3.c.ii.2", f"{name} inside", MalformedError, _inside(member(name, "x")))
    plain: tuple[tuple[str, Any], ...] = (("tracking", {}), ("publisher", {}), ("csaf_version", "2.1"))
    for name, value in plain:
        yield Case("3.c.ii.3", f"in place of the plain {name}", MalformedError, _hidden_as(name, value))
    for name in ("handling", "iss", "iat", "jti", "v", "csaf", "labels"):
        yield Case("3.c.ii.3", f"in place of {name}", MalformedError, _hidden_on_top(name))
    yield Case("3.c.ii.3", "a narrower TLP beside the signed one", MalformedError, _other_tlp)
    yield Case("3.c.ii.3", "both forms of the title", MalformedError, _both_forms)
    yield Case("3.c.ii.3", "two of one name", MalformedError, _two_of_one_name)
    yield Case("3.c.ii.3", "a plain member of a disclosed object", MalformedError, _inside(member("a", 2), a=1))
    yield Case("3.c.ii.5", "a disclosure of the wrong shape inside", MalformedError, _inside(element(1)))
    yield Case("3.c.ii.5", "_sd_alg inside", MalformedError, _hidden({"_sd_alg": "sha-256"}))


def _elements() -> Iterator[Case]:
    """3.c.iii: a disclosure in the place of an array element."""
    yield Case("3.c.iii.1", "an object member's", MalformedError, lambda t: t.hide_element(member("a", 1)))
    for raw in (b"[]", b'["s"]', b'["s",1,2,3]', b"{}", b'{"0":"s","1":1}', b'"ab"', b"12", b"[1,1]", b"[null,1]"):
        yield Case("3.c.iii.1", repr(raw), MalformedError, lambda t, raw=raw: t.hide_element(raw))  # type: ignore[misc]
    for value in ({"_sd": "x"}, [{"...": 1}], {"...": "x"}, {"_sd_alg": "sha-256"}):
        bad = lambda t, v=value: t.hide_element(element(v))  # noqa: E731 - one of many
        yield Case("3.c.iii.3", f"{value!r} inside", MalformedError, bad, independent=value == {"_sd_alg": "sha-256"})


def _twice() -> Iterator[Case]:
    """4: a digest that is met twice, anywhere, with its disclosure or without."""

    def in_one(token: Token) -> None:
        token.document["_sd"].append(token.document["_sd"][0])

    def in_two(token: Token) -> None:
        token.payload["csaf"].setdefault("_sd", []).append(token.document["_sd"][0])

    def in_both_kinds(token: Token) -> None:
        token.document["references"] = [{"...": token.document["_sd"][0]}]

    def in_an_array(token: Token) -> None:
        token.document["references"] = [{"...": "decoy"}, {"...": "decoy"}]

    def in_a_disclosure(token: Token) -> None:
        token.hide(member("x", {"_sd": [token.document["_sd"][0]]}))

    def unseen(token: Token) -> None:
        token.document["_sd"] += ["decoy", "decoy"]

    def in_two_disclosures(token: Token) -> None:
        for name in ("x", "y"):
            token.hide(member(name, [{"...": "decoy"}]))

    for change in (in_one, in_two, in_both_kinds, in_an_array, in_a_disclosure, unseen, in_two_disclosures):
        yield Case("4", change.__name__, MalformedError, change)


def _unreferenced() -> Iterator[Case]:
    """5."""

    def stranger(token: Token) -> None:
        token.shown.append(member("title", "Another title"))

    def orphan(token: Token) -> None:
        child = member("a", 1)
        token.document["_sd"].append(digest_of(member("x", {"_sd": [digest_of(child)]})))
        token.shown.append(child)

    def named_in_a_text(token: Token) -> None:
        raw = member("a", 1)
        token.document["references"] = digest_of(raw)
        token.shown.append(raw)

    def named_in_a_name(token: Token) -> None:
        raw = member("a", 1)
        token.document[digest_of(raw)] = []
        token.shown.append(raw)

    for change in (stranger, orphan, named_in_a_text, named_in_a_name):
        yield Case("5", change.__name__, SignatureError, change)
    yield Case("5", "the same twice", MalformedError, lambda t: t.shown.append(t.shown[0]))


def _validity() -> Iterator[Case]:
    """6: an advisory has none of these claims, and always `iat`."""
    for name in ("exp", "nbf", "aud", "cnf"):
        yield Case("6", name, MalformedError, _claim(name, 4_102_444_800))
        yield Case("6", f"{name} disclosed", MalformedError, _hidden_on_top(name))
    instants: tuple[Any, ...] = (None, "2026-11-21", True, 1.5, -1, 0, 1 << 63, 4_102_444_800, [])
    for value in instants:
        yield Case("6", f"iat {value!r}", MalformedError, _claim("iat", value), independent=False)
    yield Case("6", "no iat", MalformedError, _without("iat"), independent=False)


def _ignore(_: object) -> None:
    return None


def _last(last: Callable[[bytes], bytes]) -> Change:
    return lambda token: setattr(token, "last", last)


def _claim(name: str, value: Any) -> Change:
    return lambda token: token.payload.update({name: value})


def _without(name: str) -> Change:
    return lambda token: _ignore(token.payload.pop(name))


def _header_member(name: str, value: Any) -> Change:
    return lambda token: token.header.update({name: value})


def _hidden(value: Any) -> Change:
    return lambda token: _ignore(token.hide(member("x", value)))


def _hidden_as(name: str, value: Any) -> Change:
    return lambda token: _ignore(token.hide(member(name, value)))


def _hidden_on_top(name: str) -> Change:
    return lambda token: _ignore(token.hide(member(name, 4_102_444_800), token.payload))


def _inside(raw: bytes, **plain: Any) -> Change:
    """`raw` inside a disclosed object."""

    def change(token: Token) -> None:
        token.hide(member("x", {**plain, "_sd": [digest_of(raw)]}))
        token.shown.append(raw)

    return change


def _digests_are(value: Any) -> Change:
    return lambda token: token.payload["csaf"].update(_sd=value)


def _references_are(value: Any) -> Change:
    return lambda token: token.document.update(references=value)


def _digest_spelled(digest: Callable[[bytes], str]) -> Change:
    def change(token: Token) -> None:
        raw = member("lang", "fr???>>>")
        token.document["_sd"].append(digest(raw))
        token.shown.append(raw)

    return change


def _respelled(token: Token) -> None:
    token.shown[0] = json.dumps(json.loads(token.shown[0])).encode()


def _other_tlp(token: Token) -> None:
    token.hide(member("tlp", "CLEAR"), token.payload["handling"])


def _both_forms(token: Token) -> None:
    here = [d for d in map(Disclosure.parse, token.shown) if d.digest in token.document["_sd"]]
    (title,) = (d for d in here if d.name == "title")
    token.hide(member("title", f"{title.value} and more"))


def _two_of_one_name(token: Token) -> None:
    token.hide(member("source_lang", "fr"))
    token.hide(member("source_lang", "de"))


def _unsigned(token: Token) -> None:
    token.header["alg"] = "none"
    token.last = lambda core: core.rpartition(b".")[0] + b"."


def _hmac(token: Token) -> None:
    token.header["alg"] = "HS256"
    public = token.origin.public
    token.last = lambda core: _with_signature(
        core, lambda _: hmac.digest(public, core.rpartition(b".")[0], hashlib.sha256)
    )


def _header_twice(token: Token) -> None:
    text = b'{"alg":"none","alg":"Ed25519","typ":"advisory+sd-jwt","kid":"%s"}' % token.header["kid"].encode()
    token.last = lambda _: jws(text, token.payload, token.origin.sign)


def _by_feed_key(token: Token) -> None:
    token.last = lambda _: jws(token.header, token.payload, token.origin.feed_sign)


def _as_feed_key(token: Token) -> None:
    token.header["kid"] = token.origin.feed_kid
    _by_feed_key(token)


def _with_signature(core: bytes, change: Callable[[bytes], bytes]) -> bytes:
    signed, _, signature = core.rpartition(b".")
    return signed + b"." + b64url(change(from_b64url(signature.decode()))).encode()


def _malleable(signature: bytes) -> bytes:
    return signature[:32] + (int.from_bytes(signature[32:], "little") + _ORDER).to_bytes(32, "little")


def _other_payload(core: bytes) -> bytes:
    head, payload, signature = core.split(b".")
    claims = json.loads(from_b64url(payload.decode()))
    return b".".join((head, b64url(encode({**claims, "iat": claims["iat"] - 1})).encode(), signature))
