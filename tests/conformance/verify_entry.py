"""Read an entry of a feed without Apostille, and what its core discloses: the standard library and `cryptography` only.

    python verify_entry.py FILE|- [ISSUER_PUBLIC_KEY_HEX]

FILE holds the entry's bytes in hexadecimal. Prints JSON: place and leaf hash of the entry, its fields (bytes in
hexadecimal), and of a presentation the core with the JSON pointer of everything that is disclosed, and whether that is
a container, which tells nothing by itself. Exit status: 0 if the entry is in its one form (docs/protocol.md, 8), every
disclosure belongs to the core (RFC 9901 7.1), and the key, if one is given, has signed the core; else 1.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BODIES = {4: "presentation", 5: "agreement", 6: "withdrawal", 7: "recall", 8: "purge"}
BODIES |= {9: "statement", 10: "card", 11: "grant", 12: "epoch"}
DOCUMENT = {1: ("document", "bytes")}
MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "entry": {1: ("feed", "text"), 2: ("seq", "number"), 3: ("nonce", "bytes")}
    | {n: (b, b) for n, b in BODIES.items()},
    "presentation": {1: ("core", "bytes"), 2: ("disclosures", "bytes*"), 3: ("terms", "terms"), 4: ("grant", "bytes")},
    "terms": {
        1: ("core_digest", "bytes"),
        2: ("recipient", "text"),
        3: ("agreement_digest", "bytes"),
        4: ("purposes", "text*"),
        5: ("retain_until", "text"),
        6: ("storage", "places"),
        7: ("onward", "text"),
        8: ("attribution", "text"),
    },
    "places": {1: ("countries", "text*")},
    "withdrawal": {1: ("seqs", "numbers"), 2: ("reason", "text"), 3: ("feed", "text")},
    "recall": {1: ("document", "bytes"), 2: ("seqs", "numbers")},
    "purge": {1: ("seqs", "numbers"), 2: ("reason", "text")},
    "epoch": {1: ("previous", "text"), 2: ("final", "bytes"), 3: ("reason", "text")},
    "agreement": DOCUMENT,
    "statement": DOCUMENT,
    "card": DOCUMENT,
    "grant": DOCUMENT,
}
RESERVED = {"_sd", "_sd_alg", "..."}
REFUSED = {"exp", "nbf", "aud", "cnf"}


def refuse(reason: str) -> Any:
    raise ValueError(reason)


def need(condition: object, reason: str) -> None:
    if not condition:
        refuse(reason)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    return data if b64(data) == text else refuse("base64url is not canonical")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else refuse("a key twice")


def parse(data: bytes) -> Any:
    return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and the place after it."""
    value = shift = 0
    while True:
        byte = data[at] if at < len(data) else refuse("protobuf: cut off")
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            need((byte or shift == 7) and value < 1 << 64, "protobuf: a number is not as short as can be")
            return value, at


def message(data: bytes, kind: str) -> dict[str, Any]:
    """The fields of a message: in their order, none unknown, no default written out."""
    fields = MESSAGES[kind]
    found: dict[str, Any] = {name: [] for name, form in fields.values() if form in ("bytes*", "text*", "numbers")}
    at = last = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        name, form = fields.get(number) or refuse(f"protobuf: {kind} has an unknown field")
        many = form.endswith("*")
        need(number > last or (number == last and many), "protobuf: fields are not in order, or one stands twice")
        need(wire == (0 if form == "number" else 2), "protobuf: a field of another type")
        last, (value, at) = number, varint(data, at)
        if form == "number":
            found[name] = value
        else:
            raw, at = data[at : at + value], at + value
            need(at <= len(data), "protobuf: cut off")
            one = field(raw, form)
            found[name] = [*found[name], one] if many else one
        need(found[name] or form in MESSAGES, "protobuf: a default value is written")
    return found


def field(raw: bytes, form: str) -> Any:
    if form in MESSAGES:
        return message(raw, form)
    if form == "numbers":
        numbers, place = [], 0
        while place < len(raw):
            value, place = varint(raw, place)
            numbers.append(value)
        return numbers
    return raw.decode("utf-8") if form.startswith("text") else raw


def disclosed(payload: Any, disclosures: list[bytes]) -> dict[str, Any]:
    """RFC 9901 7.1: the value of every disclosure by its JSON pointer; no digest is met twice, no disclosure left."""
    shown = {b64(hashlib.sha256(b64(raw).encode()).digest()): parse(raw) for raw in disclosures}
    need(len(shown) == len(disclosures), "a disclosure twice")
    seen: set[str] = set()
    found: dict[str, Any] = {}

    def take(one: Any, parts: int, path: str, within: set[str]) -> None:
        need(isinstance(one, str) and one not in seen, "a digest stands twice")
        seen.add(one)
        if one not in shown:
            return
        _, *name, value = shown.pop(one)
        need(
            len(name) == parts - 2 and not (RESERVED | within) & set(name),
            "a disclosure out of place, or two of a name",
        )
        within.update(name)
        path = f"{path}/{escape(name[0])}" if name else path
        found[path] = value
        walk(value, path)

    def walk(value: Any, path: str) -> None:
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict) and "..." in item:
                    need(len(item) == 1, "a placeholder with another member")
                    take(item["..."], 2, f"{path}/{index}", set())
                else:
                    walk(item, f"{path}/{index}")
        elif isinstance(value, dict):
            need(not value.keys() & {"_sd_alg", "..."}, "a reserved name")
            for name, inner in value.items():
                if name != "_sd":
                    walk(inner, f"{path}/{escape(name)}")
            within = set(value)
            for one in value.get("_sd", []):
                take(one, 3, path, within)

    walk({name: value for name, value in payload.items() if name != "_sd_alg"}, "")
    need(not shown, "a disclosure that the signed part does not refer to")
    return found


def escape(name: str) -> str:
    """RFC 6901 3."""
    return name.replace("~", "~0").replace("/", "~1")


def is_container(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() <= {"_sd"}
    return isinstance(value, list) and all(isinstance(item, dict) and item.keys() == {"..."} for item in value)


def read_core(core: bytes, disclosures: list[bytes], key: str) -> dict[str, Any]:
    head, body, signature = core.decode("ascii").split(".")
    header, payload = parse(unb64(head)), parse(unb64(body))
    need(header == {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": header["kid"]}, "not the header of a core")
    need(payload["_sd_alg"] == "sha-256", "another digest algorithm")
    found = disclosed(payload, disclosures)
    need(not REFUSED & {*payload, *(path[1:] for path in found)}, "a claim that no advisory has")
    if key:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(unb64(signature), f"{head}.{body}".encode())
    else:
        unb64(signature)
    return {
        "digest": hashlib.sha256(core).hexdigest(),
        "kid": header["kid"],
        "payload": payload,
        "disclosed": {path: is_container(value) for path, value in found.items()},
    }


def read(data: bytes, key: str = "") -> dict[str, Any]:
    """What is printed. Raises ValueError and its like, or InvalidSignature."""
    entry: dict[str, Any] = {"feed": "", "seq": 0, **message(data, "entry")}
    need(len(entry.get("nonce", b"")) == 16 and len(entry) == 4, "no nonce of 16 bytes, or not one body")
    kind = next(name for name in BODIES.values() if name in entry)
    found = {**entry, "kind": kind, "leaf_hash": hashlib.sha256(b"\x00" + data).digest()}
    if kind == "presentation":
        found["opened"] = read_core(entry[kind]["core"], entry[kind]["disclosures"], key)
    elif kind in ("withdrawal", "recall", "purge"):
        need(entry[kind]["seqs"] == sorted(set(entry[kind]["seqs"])), "numbers that are not in order")
    return found


def main(arguments: list[str]) -> int:
    """Exit status 0 or 1."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 1
    try:
        text = sys.stdin.read() if arguments[0] == "-" else Path(arguments[0]).read_text(encoding="ascii")
        found = read(bytes.fromhex(text), *arguments[1:])
        print(json.dumps(found, default=bytes.hex))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, StopIteration, InvalidSignature) as e:
        print(f"does not hold: {type(e).__name__} {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
