"""Judge an exported incident without Apostille: the standard library and `cryptography` only.

    python verify_incident.py FILE|- --card CARD

FILE was written by `apostille peer incident export`, CARD is the card of the node that is accused, as you know it from
elsewhere: it decides whose keys count. Prints what is proved. Exit status: 0 "proved: ...", 1 "not proved: ...".

    (1) FILE is JSON in its one form: members sorted, no white space, one newline; exactly the members of its kind
    (2) every card in it, in its one form as well, names the node and the root keys that CARD names, and is signed by
        their threshold
    (3) every signature in it holds under a key on one of these cards, in the role for it, and every card is needed
    (4) FORK          two heads of one feed from that node with one size and two roots; or one of size 0 with another
                      root than RFC 6962 gives the empty tree
        EQUIVOCATION  at least two cores by that node with one `jti`, no two of them alike

Nothing else is ever proved. A ROLLBACK rests on the clock of the node that is accused, and an honest clock that was
ahead for a while dates two heads the same way; a SUSPECTED_FORK rests on what the other side saw.

Formats: RFC 7515 (cards), C2SP signed-note and tlog-checkpoint (heads), RFC 9901 (cores).
"""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MEMBERS = {"FORK": "heads", "EQUIVOCATION": "cores"}
RESTS_ON = {"ROLLBACK": "the clock of the node that is accused", "SUSPECTED_FORK": "what the other side saw"}
PLAIN = 1  # C2SP signed-note, signature type
WRONG = (ValueError, LookupError, TypeError, AttributeError, RecursionError, InvalidSignature)  # what `check` raises
Key = tuple[int, bytes]  # number of the card it stands on, and 32 bytes


def refuse(reason: str) -> Any:
    raise ValueError(reason)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else refuse("a member stands twice")


def unb64(text: str) -> bytes:
    """base64url without padding, spelt in the one canonical way."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    canonical = base64.urlsafe_b64encode(data).rstrip(b"=").decode() == text
    return data if canonical else refuse("base64url is not canonical")


def verify(key: bytes, signature: bytes, message: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(key).verify(signature, message)


def read_card(data: bytes, *, exact: bool) -> dict[str, Any]:
    """What a card says, once its own root keys have signed it. Raises ValueError or InvalidSignature."""
    document = json.loads(data, object_pairs_hook=unique)
    if list(document) != ["payload", "signatures"] or (
        exact and json.dumps(document, separators=(",", ":")).encode() != data
    ):
        refuse("a card has another form")
    card: dict[str, Any] = json.loads(unb64(document["payload"]), object_pairs_hook=unique)
    roots = {hashlib.sha256(b"root\n" + unb64(key)).hexdigest()[:16]: unb64(key) for key in card["roots"]["keys"]}
    signed = set()
    for signature in document["signatures"]:
        if signature.keys() != {"protected", "signature"}:
            refuse("a signature of a card has another form")
        header = json.loads(unb64(signature["protected"]), object_pairs_hook=unique)
        if header != {"alg": "Ed25519", "kid": header["kid"], "typ": "card+jws"}:
            refuse("a signature of a card has another header")
        message = f"{signature['protected']}.{document['payload']}".encode("ascii")
        verify(roots[header["kid"]], unb64(signature["signature"]), message)
        signed.add(header["kid"])
    if len(signed) < card["roots"]["threshold"] or len(signed) != len(document["signatures"]):
        refuse("too few root keys have signed a card")
    return card


def keys_of(cards: list[dict[str, Any]], role: str) -> list[Key]:
    return [(n, unb64(key["public"])) for n, card in enumerate(cards) for key in card["keys"] if key["role"] == role]


def read_head(note: bytes, keys: list[Key]) -> tuple[str, int, bytes, int]:
    """Origin line, size and root of a head with one signature line, and the card that has its key."""
    origin, size, root, gap, line, end = note.decode("utf-8").split("\n")
    match = re.fullmatch("— ([^ ]+) ([A-Za-z0-9+/]+={0,2})", line)
    if gap or end or match is None or match[1] != origin or not re.fullmatch("0|[1-9][0-9]{0,18}", size):
        raise ValueError("a head of another form")
    blob = canonical_base64(match[2])
    body, found = f"{origin}\n{size}\n{root}\n".encode(), []
    for number, key in keys:
        key_id = hashlib.sha256(origin.encode() + b"\n" + bytes([PLAIN]) + key).digest()[:4]
        if key_id == blob[:4]:
            verify(key, blob[4:], body)
            found.append(number)
    if not found or int(size) >= 1 << 63:
        refuse("a head that no key on a card has signed")
    root_bytes = canonical_base64(root)
    return (
        origin,
        int(size),
        root_bytes if len(root_bytes) == 32 else refuse("a root of another length"),
        found[0],
    )


def canonical_base64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    return data if base64.b64encode(data).decode() == text else refuse("base64 is not canonical")


def read_core(core: str, keys: list[tuple[int, str, bytes]], node: str) -> tuple[str, int]:
    """The `jti` of a core, and the card that has its key."""
    head, body, signature = core.split(".")
    header = json.loads(unb64(head), object_pairs_hook=unique)
    payload = json.loads(unb64(body), object_pairs_hook=unique)
    if header != {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": header["kid"]} or payload["iss"] != node:
        refuse("a core of another form, or of another node")
    for number, kid, key in keys:
        if kid == header["kid"]:
            verify(key, unb64(signature), f"{head}.{body}".encode("ascii"))
            jti = payload["jti"]
            return (jti, number) if isinstance(jti, str) else refuse("a core without a jti")
    raise ValueError("a core that no key on a card has signed")


def judge_heads(notes: list[bytes], cards: list[dict[str, Any]], node: str) -> tuple[str, Iterable[int]]:
    heads = [read_head(note, keys_of(cards, "feed")) for note in notes]
    if len(heads) not in (1, 2):
        refuse("neither one head nor two")
    feed = heads[0][0]
    if {head[0] for head in heads} != {feed} or not re.fullmatch(rf"{re.escape(node)}/feeds/[^/]+/[1-9][0-9]*", feed):
        refuse("heads of several feeds, or of another node's")
    used = [head[3] for head in heads]
    if len(heads) == 1:
        if heads[0][1] != 0 or heads[0][2] == hashlib.sha256(b"").digest():
            refuse("one head that contradicts nothing")
        return f"{node} signed a head of {feed} that has no entries and yet a root", used
    first, second = heads
    if first[1] != second[1] or first[2] == second[2]:
        refuse("the heads do not contradict each other")
    return f"{node} signed two heads of {feed} at {first[1]} entries, with two roots", used


def check(data: bytes, given: bytes) -> str:
    """What is proved. Raises whatever is wrong."""
    file = json.loads(data, object_pairs_hook=unique)
    kind = file["incident"]
    if json.dumps(file, sort_keys=True, separators=(",", ":")).encode() + b"\n" != data:  # (1)
        refuse("the file is not in its one form")
    if kind in RESTS_ON:
        refuse(f"{kind} rests on {RESTS_ON[kind]}: such evidence proves nothing to a third party")
    if kind not in MEMBERS or file.keys() != {"incident", "proves_itself", "cards", MEMBERS[kind]}:
        refuse("an incident that does not prove itself, or of another form")
    if file["proves_itself"] is not True:
        refuse("it says of itself that it proves nothing")
    known = read_card(given, exact=False)
    node, cards = known["card"], [read_card(unb64(card), exact=True) for card in file["cards"]]  # (2)
    if any((card["card"], card["roots"]) != (node, known["roots"]) for card in cards):
        refuse("a card of another node, or with other root keys")
    if kind == "EQUIVOCATION":  # (3) (4)
        keys = [
            (n, k["kid"], unb64(k["public"])) for n, c in enumerate(cards) for k in c["keys"] if k["role"] == "issue"
        ]
        cores = [read_core(core, keys, node) for core in file["cores"]]
        if len({jti for jti, _ in cores}) != 1 or len(set(file["cores"])) != len(cores) or len(cores) < 2:
            refuse("the cores do not contradict each other")
        said: str = f"{node} signed {len(cores)} documents as {cores[0][0]}"
        used: Iterable[int] = [number for _, number in cores]
    else:
        said, used = judge_heads([unb64(note) for note in file["heads"]], cards, node)
    return said if set(used) == set(range(len(cards))) else refuse("a card that is not needed")


def main(arguments: list[str]) -> int:
    """Exit status 0 or 1."""
    if len(arguments) != 3 or arguments[1] != "--card":
        print(__doc__, file=sys.stderr)
        return 1
    try:
        data = sys.stdin.buffer.read() if arguments[0] == "-" else Path(arguments[0]).read_bytes()
        print(f"proved: {check(data, Path(arguments[2]).read_bytes())}")
    except (*WRONG, OSError) as e:
        print(f"not proved: {type(e).__name__} {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
