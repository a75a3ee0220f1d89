"""Verify an exported advisory without Apostille: the standard library and `cryptography` only.

    python verify_sdjwt.py FILE|- ISSUER_PUBLIC_KEY_HEX
    python verify_sdjwt.py FILE|- --card CARD_FILE

FILE holds a compact SD-JWT (RFC 9901). With --card the Ed25519 key is taken from the issuer's node card: by the core's
kid, in the role `issue`, valid when the core was issued. The card's own signatures are not checked here. Prints what
was revealed, as JSON. Exit status: 0 if the signature and every disclosure hold (RFC 9901 7.1), else 1.
"""

import base64
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

RESERVED = {"_sd", "_sd_alg", "..."}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    return data if b64(data) == text else refuse("base64url is not canonical")


def parse(text: str) -> Any:
    value = json.loads(
        unb64(text).decode(),  # strictly UTF-8: json.loads would guess
        object_pairs_hook=lambda p: dict(p) if len(dict(p)) == len(p) else refuse("twice"),
        parse_constant=refuse,
    )
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # nor overflows, nor halves of surrogate pairs
    return value


def refuse(reason: str) -> Any:
    raise ValueError(reason)


def reveal(value: Any, shown: dict[str, Any], seen: set[str]) -> Any:
    """RFC 9901 7.1 step 3: `value` with its digests replaced; disclosures that were used leave `shown`."""

    def take(digest: str, parts: int) -> list[list[Any]]:
        if digest in seen:  # step 4
            refuse("a digest stands twice")
        seen.add(digest)
        found = [shown.pop(digest)] if digest in shown else []
        fits = all(isinstance(d, list) and len(d) == parts and {str} == {*map(type, d[:-1])} for d in found)
        return found if fits else refuse("a disclosure of the wrong shape")

    if isinstance(value, list):
        out = []
        for item in value:
            hidden = isinstance(item, dict) and item.keys() == {"..."}
            out += [reveal(d[1], shown, seen) for d in take(item["..."], 2)] if hidden else [reveal(item, shown, seen)]
        return out
    if not isinstance(value, dict):
        return value
    plain = {name: reveal(inner, shown, seen) for name, inner in value.items() if name != "_sd"}
    for _, name, hidden in (d for digest in value.get("_sd", []) for d in take(digest, 3)):
        if name in plain or name in RESERVED:
            refuse("two claims of one name, or a reserved one")
        plain[name] = reveal(hidden, shown, seen)
    return plain if RESERVED.isdisjoint(plain) else refuse("a reserved member where it has no meaning")


def key_from_card(card: bytes, issuer: str, kid: str, issued_at: int) -> bytes:
    said, at = parse(json.loads(card)["payload"]), f"{datetime.fromtimestamp(issued_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    for key in said["keys"]:
        if (said["card"], key["role"], key["kid"]) == (issuer, "issue", kid) and key["from"] <= at < key["until"]:
            return unb64(key["public"])
    raise ValueError(f"the card of {said['card']} has no issue key {kid} for {issuer} that was valid at {at}")


def check(text: str, key: str, card: str = "") -> Any:
    """What is revealed. Raises ValueError, KeyError, TypeError or InvalidSignature for what does not hold."""
    core, *disclosures, end = text.strip().split("~")
    head, body, signature = core.split(".")
    header, payload = parse(head), parse(body)
    expected = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": header["kid"]}
    if end or header != expected or not isinstance(header["kid"], str) or payload.pop("_sd_alg") != "sha-256":
        refuse("not an advisory's header and digest algorithm, or not without key binding")
    card_key = (payload["iss"], header["kid"], payload["iat"])
    public = key_from_card(Path(card).read_bytes(), *card_key) if card else bytes.fromhex(key)
    Ed25519PublicKey.from_public_bytes(public).verify(unb64(signature), f"{head}.{body}".encode("ascii"))
    shown = {b64(hashlib.sha256(d.encode()).digest()): parse(d) for d in disclosures}
    revealed = reveal(payload, shown, set())
    if shown or len(set(disclosures)) != len(disclosures):  # step 5
        refuse("a disclosure twice, or one that the signed part does not refer to")
    return revealed if {"exp", "nbf", "aud", "cnf"}.isdisjoint(revealed) else refuse("a claim that no advisory has")


def main(arguments: list[str]) -> int:
    """Exit status 0 or 1."""
    if len(arguments) < 2 or (arguments[1] == "--card") is not (len(arguments) == 3):
        print(__doc__, file=sys.stderr)
        return 1
    try:
        text = sys.stdin.read() if arguments[0] == "-" else Path(arguments[0]).read_text(encoding="ascii")
        print(json.dumps(check(text, *arguments[1:]), indent=2, ensure_ascii=False))
    except (ValueError, KeyError, TypeError, RecursionError, InvalidSignature) as e:
        print(f"does not hold: {type(e).__name__} {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
