"""Verify a proof of disclosure without Apostille: the standard library and `cryptography` only.

    python verify_proof.py FILE --card CARD_FILE [--card CARD_FILE ...] [--without-receipt]

FILE is what `apostille proof export` wrote. The cards are those of its sender, its recipient, and the origin of what
was passed on, got in another way than the file. Prints what is proved. Exit status: 0 if everything holds, else 1; no
receipt is a failure too, unless --without-receipt. Formats and the numbers of the checks: docs/proofs.md.

Has `verify_entry.py`, which lies beside this file, read the entries. There is no label file here, so whether a part
that the sender calls generalised is in a general form is not checked.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SKEW_S = 300
MOST_BYTES = 16 << 20
NODE = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])"
FEED = re.compile(f"({NODE})/feeds/({NODE})/([1-9][0-9]{{0,9}})")
SAID = ("sender", "recipient", "origin", "advisory", "revision", "feed", "seq", "released_at", "released_by")
RECORD = {"row", "at", "by", "act", "peer", "feed", "seq", "origin", "name", "revision", "core_digest", "leaf_hash"} | {
    "agreement",
    "purposes",
    "retain_until",
    "storage",
    "onward",
    "attribution",
    "elements",
}
ONWARD = ("none", "constituents", "peers")


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


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def digest(text: str) -> bytes:
    return bytes.fromhex(text) if re.fullmatch("[0-9a-f]{64}", text) else refuse("not a digest")


def parse(data: bytes) -> Any:
    """Strict JSON: no key twice, no NaN."""
    unique: Callable[[Any], Any] = lambda p: dict(p) if len(dict(p)) == len(p) else refuse("a key twice")  # noqa: E731 - as short as it is plain
    return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)


def members(value: Any, *names: str) -> dict[str, Any]:
    return value if isinstance(value, dict) and value.keys() == set(names) else refuse(f"not exactly {names}")


def seconds(instant: str) -> int:
    return int(datetime.strptime(instant, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())


def holds(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True)
class Signed:
    """A signed document, RFC 7515 7.2.1: its payload, and (kid, signature, what it covers) of each signature."""

    payload: bytes
    signatures: list[tuple[str, bytes, bytes]]


def signed_document(data: bytes, typ: str) -> Signed:
    """The document, in the one form in which it is written."""
    document = members(parse(data), "payload", "signatures")
    for one in document["signatures"]:
        members(one, "protected", "signature")
    compact = json.dumps(
        {
            "payload": document["payload"],
            "signatures": [{n: s[n] for n in ("protected", "signature")} for s in document["signatures"]],
        },
        separators=(",", ":"),
    )
    found = []
    for one in document["signatures"]:
        header = members(parse(unb64(one["protected"])), "alg", "kid", "typ")
        need((header["alg"], header["typ"]) == ("Ed25519", typ), f"not a signature of kind {typ}")
        covered = f"{one['protected']}.{document['payload']}".encode("ascii")
        found.append((header["kid"], unb64(one["signature"]), covered))
    need(compact.encode() == data, f"{typ}: not in its one form")
    need(found and len({kid for kid, _, _ in found}) == len(found), f"{typ}: no signature, or a key twice")
    return Signed(unb64(document["payload"]), found)


# Cards


@dataclass(frozen=True)
class Card:
    """A card that its own root keys have signed."""

    node: str
    version: int
    said: Any
    document: Signed

    @property
    def roots(self) -> tuple[int, list[str]]:
        return self.said["roots"]["threshold"], self.said["roots"]["keys"]

    def signers(self, roots: tuple[int, list[str]]) -> int:
        """How many of these root keys have signed it."""
        ids = {sha(b"root\n" + unb64(key)).hex()[:16]: unb64(key) for key in roots[1]}
        mine = [(ids[kid], signature, covered) for kid, signature, covered in self.document.signatures if kid in ids]
        return len(mine) if all(holds(*one) for one in mine) else refuse("a card has a signature that does not hold")


def read_card(data: bytes) -> Card:
    document = signed_document(data, "card+jws")
    said = parse(document.payload)
    canonical = json.dumps(said, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    need(canonical == document.payload, "a card is not canonical")
    card = Card(said["card"], said["version"], said, document)
    for key in said["keys"]:
        need(sha(key["role"].encode() + b"\n" + unb64(key["public"])).hex()[:16] == key["kid"], "a key has another id")
    need(1 <= card.roots[0] <= card.signers(card.roots), f"a card of {card.node} lacks signatures of its roots")
    return card


def follows(card: Card, other: Card) -> bool:
    """Check 2: the same root keys, or newer and signed by those of the other and by nobody unknown."""
    if card.node != other.node or card.roots == other.roots:
        return card.node == other.node
    known = {sha(b"root\n" + unb64(key)).hex()[:16] for key in card.roots[1] + other.roots[1]}
    if card.version < other.version or {kid for kid, _, _ in card.document.signatures} - known:
        return False
    return card.signers(other.roots) >= other.roots[0]


@dataclass(frozen=True)
class Keys:
    """The keys on the cards of the file, once it is settled which cards are believed; `alone` are vouched for by it."""

    cards: list[Card]
    alone: set[str]

    def of(self, node: str, role: str) -> Iterator[tuple[bytes, str, int, int]]:
        for key in (key for card in self.cards if card.node == node for key in card.said["keys"]):
            if key["role"] == role:
                yield unb64(key["public"]), key["kid"], seconds(key["from"]) - SKEW_S, seconds(key["until"])

    def issue(self, node: str, kid: str, begin: float = float("inf"), end: float = float("-inf")) -> bytes:
        """The `issue` key of that id that was valid from `begin` at the latest, and after `end`."""
        found = [key[0] for key in self.of(node, "issue") if key[1] == kid and key[2] <= begin and end < key[3]]
        need(found, f"no card in the file has that issue key of {node} for that time")
        return found[0]


def believe(documents: list[bytes], given: list[bytes], needed: set[str]) -> Keys:
    """Check 2."""
    anchors, cards = [read_card(data) for data in given], [read_card(data) for data in documents]
    names = [(card.node, card.version) for card in cards]
    need(names == sorted(set(names)), "the cards are not in order")
    said: dict[tuple[str, int], Any] = {}
    for card in [*cards, *anchors]:
        need(said.setdefault((card.node, card.version), card.said) == card.said, "one version, two cards")
    need(needed <= {card.node for card in anchors}, f"a card is missing: give those of {', '.join(sorted(needed))}")
    known, rest = list(anchors), list(cards)
    while found := [card for card in rest if any(follows(card, other) for other in known)]:
        known += found
        rest = [card for card in rest if card not in found]
    need(not needed & {card.node for card in rest}, "a card in the file does not follow from those that were given")
    return Keys(cards, {card.node for card in rest})


# What was sent


def read_entry(data: bytes) -> dict[str, Any]:
    """The fields of an entry, bytes in hexadecimal, with what its core discloses."""
    command = [sys.executable, str(Path(__file__).with_name("verify_entry.py")), "-"]
    done = subprocess.run(command, input=data.hex(), capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else refuse(done.stderr.strip())
    return found


def check_parts(found: dict[str, bool], elements: list[Any]) -> None:
    """Check 6: exactly the parts that the row lists."""
    going = {path for path, form, _ in elements if form != "withheld"}
    need(len({path for path, _, _ in elements}) == len(elements), "the row lists a part twice")
    need(going <= found.keys(), "a part that is said to have gone is not there")
    for path, is_container in found.items():
        need(path in going or is_container or path.startswith("/labels/"), f"{path} went, and is not listed")


def check_terms(terms: dict[str, Any], handling: Any, agreement: Any, row: Any) -> None:
    """Check 6 for the terms, and 8."""
    storage = terms["storage"]["countries"] if "storage" in terms else None
    said = (row["peer"], row["purposes"], row["retain_until"], row["storage"], row["onward"], row["attribution"])
    retain = terms.get("retain_until")
    need(
        said == (terms["recipient"], terms["purposes"], retain, storage, terms["onward"], terms["attribution"]), "terms"
    )
    need(terms["core_digest"] == row["core_digest"], "the terms are for another core")
    need(terms["agreement_digest"] == row["agreement"], "the terms name another agreement")
    allowed = set(handling["purposes"]) & set(agreement["purposes"])
    need(terms["purposes"] and set(terms["purposes"]) <= allowed, "wider purposes")
    limits = [seconds(handling["retain_until"])] if handling["retain_until"] else []
    if agreement["retention_days"] is not None:
        limits.append(seconds(row["at"]) + agreement["retention_days"] * 86_400 + SKEW_S)
    need(all(retain and seconds(retain) <= limit for limit in limits), "longer retention")
    for places in (handling["storage"], agreement["storage"]):
        need(places is None or (storage is not None and set(storage) <= set(places)), "wider storage")
    widest = min(ONWARD.index(handling["onward"]), ONWARD.index(agreement["onward"]))
    need(ONWARD.index(terms["onward"]) <= widest, "wider onward sharing")
    need(terms["attribution"] == agreement["attribution"], "another attribution")


def check_leave(grant: bytes, handling: Any, row: Any, sender: str, keys: Keys) -> None:
    """Check 9."""
    at = seconds(row["at"])
    if row["origin"] == sender:
        need(not grant, "a grant that is not needed")
        return
    need(handling["tlp"] not in ("RED", "AMBER+STRICT"), "TLP of what is never passed on")
    need(not handling["embargo_until"] or at + SKEW_S >= seconds(handling["embargo_until"]), "under embargo")
    if not grant:
        need(handling["onward"] == "peers", "passed on without the origin's leave")
        return
    said = assertion(grant, "grant+jws", row["origin"], lambda node, kid: keys.issue(node, kid, at))
    need((said["grant"], said["relay"]) == (row["core_digest"], sender), "a grant for something else")
    need(row["peer"] in said["recipients"] and at < seconds(said["until"]), "a grant for somebody else, or ended")


def assertion(data: bytes, typ: str, author: str, key: Callable[[str, str], bytes]) -> Any:
    """What one node signed by itself."""
    document = signed_document(data, typ)
    need(len(document.signatures) == 1, f"{typ}: not one signature")
    name, signature, covered = document.signatures[0]
    node, _, kid = name.partition("/")
    need(node == author and holds(key(node, kid), signature, covered), f"{typ}: not signed by {author}")
    return parse(document.payload)


def check_core(entry: dict[str, Any], row: Any, agreement: Any, sender: str, keys: Keys) -> None:
    """Checks 6 to 9 for an entry whose bytes are there."""
    core, sent = entry["opened"], entry["presentation"]
    payload, text = core["payload"], bytes.fromhex(sent["core"])
    need(core["digest"] == row["core_digest"] and payload["iss"] == row["origin"], "another core than the row names")
    need(payload["jti"] == f"{row['origin']}/{row['name']}/{row['revision']}", "another advisory or revision")
    check_parts(core["disclosed"], row["elements"])
    covered, _, signature = text.rpartition(b".")
    key = keys.issue(row["origin"], core["kid"], payload["iat"], payload["iat"])
    need(holds(key, unb64(signature.decode()), covered), "the core is not signed by its origin")
    check_terms(sent["terms"], payload["handling"], agreement, row)
    check_leave(bytes.fromhex(sent.get("grant", "")), payload["handling"], row, sender, keys)


# Receipts: signed notes and Merkle trees


def note_line(note: bytes, name: str, kind: int, public: bytes) -> bytes | None:
    """What the one signature line of this key on a C2SP note holds."""
    _, _, lines = note.rpartition(b"\n\n")
    key_id = sha(name.encode() + b"\n" + bytes([kind]) + public)[:4]
    found = []
    for line in lines.decode().removesuffix("\n").split("\n"):
        dash, other, text = line.split(" ")
        blob = base64.b64decode(text, validate=True)
        need(dash == "\u2014" and base64.b64encode(blob).decode() == text, "not a signature line")
        found += [blob[4:]] if (other, blob[:4]) == (name, key_id) else []
    return found[0] if len(found) == 1 else None


def included(index: int, size: int, node: bytes, path: list[bytes]) -> bytes:
    """RFC 9162 2.1.3.2: the root that follows."""
    need(0 <= index < size, "the entry is not below the size of the head")
    fn, sn = index, size - 1
    for sibling in path:
        need(sn, "an inclusion proof that is too long")
        if fn & 1 or fn == sn:
            node = sha(b"\x01" + sibling + node)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = sha(b"\x01" + node + sibling)
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "an inclusion proof that is too short")
    return node


def feed_of(row: Any) -> tuple[str, str]:
    """Sender and recipient of the feed that a row names."""
    found = FEED.fullmatch(row["feed"]) or refuse("no feed")
    return found[1], found[2]


def check_receipt(receipt: Any, row: Any, seq: int, leaf: bytes, keys: Keys) -> tuple[int, int] | None:
    """Check 10: when it was cosigned, and the size of the head."""
    if receipt is None:
        return None
    note = unb64(members(receipt, "note", "path")["note"])
    body = note.rpartition(b"\n\n")[0] + b"\n"
    origin, count, root, end = body.decode().split("\n")
    need(
        origin == row["feed"] and not end and re.fullmatch("[1-9][0-9]{0,18}", count), "the receipt is for another feed"
    )
    sender, recipient = feed_of(row)
    times = []
    for public, _, start, until in keys.of(recipient, "receipt"):
        blob = note_line(note, recipient, 4, public) or bytes(72)
        at = int.from_bytes(blob[:8], "big")
        if start <= at < until and holds(public, blob[8:], f"cosignature/v1\ntime {at}\n".encode() + body):
            times.append(at)
    need(times, "not cosigned by a key that the recipient had then")
    begin, last = seconds(row["at"]), min(times)
    need(begin <= last + SKEW_S, "the row says a later time of release than that of the receipt")
    signed = (
        holds(public, note_line(note, origin, 1, public) or bytes(64), body)
        for public, _, start, until in keys.of(sender, "feed")
        if start <= last and begin - SKEW_S < until  # `start` allows for the skew already
    )
    need(any(signed), "the head is not signed by a key that the sender had then")
    path = [digest(one) for one in receipt["path"]]
    need(b64(included(seq, int(count), leaf, path)) == b64(base64.b64decode(root, validate=True)), "not in the head")
    return last, int(count)


def check_eraser(eraser: Any, row: Any, keys: Keys) -> tuple[str, tuple[int, int] | None]:
    """Check 11: what kind of entry erased this one, and the receipt for it."""
    data = unb64(members(eraser, "entry", "receipt")["entry"])
    entry = read_entry(data)
    kind = entry["kind"]
    need(kind in ("withdrawal", "recall", "purge") and row["seq"] in entry[kind]["seqs"], "it does not erase this one")
    need(
        not entry[kind].get("feed") and entry["feed"] == row["feed"] and entry["seq"] > row["seq"],
        "it stands elsewhere",
    )
    if kind == "recall":
        said = assertion(bytes.fromhex(entry["recall"]["document"]), "recall+jws", row["origin"], keys.issue)
        need(said["recall"] == row["name"] and row["revision"] in said["revisions"], "a recall of something else")
    return kind, check_receipt(eraser["receipt"], row, entry["seq"], sha(b"\x00" + data), keys)


# The whole


def check_agreement(data: bytes, row: Any, sender: str, keys: Keys) -> Any:
    """Check 5."""
    document = signed_document(data, "agreement+jws")
    agreement = parse(document.payload)
    need(sha(document.payload) == digest(row["agreement"]), "another agreement than the row names")
    signed = []
    for name, signature, covered in document.signatures:
        party, _, kid = name.partition("/")
        need(holds(keys.issue(party, kid, seconds(row["at"])), signature, covered), f"{party} has not signed")
        signed.append(party)
    need(sorted(signed) == agreement["parties"], "not every party has signed the agreement")
    need(agreement["valid_from"] <= row["at"] < agreement["valid_until"], "the agreement was not in force")
    pairs = (sender in clause["from"] and row["peer"] in clause["to"] for clause in agreement["grants"])
    need(any(pairs), "the agreement does not let the sender share with the recipient")
    return agreement


def check(data: bytes, given: list[bytes]) -> tuple[list[str], bool]:
    """The lines to print, and whether there is a receipt. Raises ValueError and its like for what does not hold."""
    need(len(data) <= MOST_BYTES, "too large")
    document = signed_document(data, "proof+jws")  # (1)
    need(len(document.signatures) == 1, "not one signature")
    proof = parse(document.payload)
    members(proof, "proof", "says", "ledger", "entry", "receipt", "eraser", "agreement", "cards")
    need(proof["proof"] == 1 and type(proof["proof"]) is int, "another version")
    need((proof["entry"] is None) is not (proof["eraser"] is None), "an entry, or what erased it")
    says, ledger = proof["says"], members(proof["ledger"], "before", "record", "digest")
    record = unb64(ledger["record"])
    row = parse(record)
    need(row.keys() - {"carried_from_schema"} == RECORD and row["act"] == "release", "the row is no release")
    sender, recipient = feed_of(row)
    keys = believe([unb64(card) for card in proof["cards"]], given, {sender, recipient, row["origin"]})  # (2)
    name, signature, covered = document.signatures[0]  # (3)
    node, _, kid = name.partition("/")
    exported = seconds(says["exported_at"])
    need(
        node == sender and holds(keys.issue(node, kid, exported, exported), signature, covered),
        "not signed by its sender",
    )
    need(
        sha(digest(ledger["before"]) + record) == digest(ledger["digest"]), "the digest of the row does not follow"
    )  # (4)
    leaf = digest(row["leaf_hash"])
    got = check_receipt(proof["receipt"], row, row["seq"], leaf, keys)  # (10)
    kind, _ = check_eraser(proof["eraser"], row, keys) if proof["eraser"] is not None else (None, None)  # (11)
    agreement = check_agreement(unb64(proof["agreement"]), row, sender, keys)  # (5)
    if proof["entry"] is not None:
        entry = unb64(proof["entry"])
        need(sha(b"\x00" + entry) == leaf, "the entry has another leaf hash than the row says")  # (6)
        opened = read_entry(entry)
        need((opened["feed"], opened["seq"]) == (row["feed"], row["seq"]), "the entry stands elsewhere")
        check_core(opened, row, agreement, sender, keys)  # (6) to (9)
    at = None if got is None else f"{datetime.fromtimestamp(got[0], UTC):%Y-%m-%dT%H:%M:%SZ}"
    plain = (
        sender,
        recipient,
        row["origin"],
        row["name"],
        row["revision"],
        row["feed"],
        row["seq"],
        row["at"],
        row["by"],
    )
    need(row["peer"] == recipient, "the row names another peer than its feed")
    expected = dict(zip(SAID, plain, strict=True))
    expected |= {"acknowledged_at": at, "taken_back": kind, "exported_at": says["exported_at"]}
    need(json.dumps(says) == json.dumps(expected), "what it says in plain is not what it shows")  # (4)
    lines = [f"{field} {'none' if value is None else value}" for field, value in expected.items()]
    lines += [
        f"agreement {agreement['agreement']} version {agreement['version']}",
        f"row {row['row']} {ledger['digest']}",
    ]
    lines += [f"part {form} {path}" for path, form, _ in row["elements"]]
    lines += [f"card of {node}: only the file vouches for it" for node in sorted(keys.alone)]
    return lines, got is not None


def main(arguments: list[str]) -> int:
    """Exit status 0 or 1."""
    without = "--without-receipt" in arguments
    file, *rest = [a for a in arguments if a != "--without-receipt"] or [""]
    if not file or not rest or len(rest) % 2 or set(rest[::2]) != {"--card"}:
        print(__doc__, file=sys.stderr)
        return 1
    try:
        lines, acknowledged = check(Path(file).read_bytes(), [Path(card).read_bytes() for card in rest[1::2]])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as e:
        print(f"does not hold: {type(e).__name__} {e}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    if not acknowledged and not without:
        print("there is no receipt", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
