"""Row 21: guessing what was withheld. The attacker is a peer: it holds the core, the disclosures that it was given with
their salts, and dictionaries in which the right value stands. It tries each value with each salt that it can think of,
against every digest that it cannot open.

First it is shown that the same attack finds everything at once where salts are reused or derived. Then what else could
tell: salts of many documents, the number and order of digests, revisions, and the presentations of two peers.
"""

import hashlib
import math
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import count as counting
from itertools import islice
from typing import Any

import pytest

from config import data as config_data
from federation import outbound, sdjwt
from federation.base64url import b64url, from_b64url
from federation.entries import Delivery
from federation.entries import read as read_entry
from federation.labels import load
from federation.limits import SALT_BYTES
from federation.model import Category, JsonObject, Presentation
from federation.outbound import Draft, Issued
from federation.sdjwt.disclosure import Disclosure
from federation.sdjwt.issue import Salts
from federation.strictjson import encode
from node.sharing import releases
from tests.faults.campaign import FULL, count
from tests.nodes import DE, FR, IN, agree, document, history, import_document, make_world
from tests.vectors import material as m

GUESSES = count(100_000, 100_000_000)
DOCUMENTS = count(60, 3_000)
LABELS = load(config_data.labels_text(), "labels")
FIRST_NAMES = ["Maria", "Zoé", "Anna", "Jean", "Priya", "Arjun", "Lukas", "Emma", "Noah", "Mia"]
LAST_NAMES = ["Musterfrau", "Example", "Dupont", "Sharma", "Weber", "Martin", "Singh", "Schmidt", "Roux", "Iyer"]
DEVELOPERS = tuple(f"{country}" for country in config_data.countries())
SECRET: JsonObject = {
    "acknowledgments": [{"names": ["Priya Sharma"], "summary": "reported it"}],
    "aggregate_severity": {"text": "critical"},
}
FLAWS: list[JsonObject] = [
    {"cve": "CVE-2026-1234", "title": "A flaw", "notes": [{"category": "details", "text": "Traffic to 198.18.7.9"}]}
]


def dictionaries() -> dict[str | None, tuple[bytes, ...]]:
    """By the name of a member, all values that it can have; None for an array element. Some 10^5 altogether."""
    people = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    years = count(2_000, 100_000)
    hosts = ((third, fourth) for third in range(count(8, 256)) for fourth in range(count(16, 256)))
    values: dict[str | None, Iterable[Any]] = {
        "text": ("critical", "high"),
        "aggregate_severity": ({"text": word} for word in ("critical", "important", "high", "medium", "low", "none")),
        "names": [[name] for name in people],
        "cve": (f"CVE-2026-{number:04}" for number in range(years)),
        "developer": DEVELOPERS,
        "harm_class": ("low", "medium", "high", "critical"),
        None: ({"category": "details", "text": f"Traffic to 198.18.{a}.{b}"} for a, b in hosts),
    }
    return {name: tuple(map(encode, listed)) for name, listed in values.items()}


def issue(name: str, entropy: Callable[[int], bytes], **changes: Any) -> Issued:
    """An advisory with secrets, signed by FR."""
    content = document(name)
    content["document"].update(SECRET)
    content["vulnerabilities"] = FLAWS
    ai = {"artifact_type": "model", "developer": "FR", "harm_class": "high"}
    draft = replace(Draft(m.FR, name, 1, m.NOW, m.HANDLING, content, ai, {}), **changes)
    return outbound.issue(draft, LABELS, kid="0" * 16, sign=m.signer(f"{m.FR} issue"), entropy=entropy)


@dataclass(frozen=True, slots=True)
class Known:
    """What the attacker holds: digests that it cannot open, and salts that it can think of."""

    closed: frozenset[bytes]
    salts: tuple[str, ...]


def known(core: bytes, shown: Sequence[bytes]) -> Known:
    """What follows from a presentation: salts of others, near to them, constant, or derived from what is plain."""
    payload = sdjwt.read_header_and_payload(core).payload
    opened = [Disclosure.parse(raw) for raw in shown]
    digests = {d for value in (payload, *(o.value for o in opened)) for d in digests_in(value)}
    closed = {from_b64url(d) for d in digests - {o.digest for o in opened}}
    seen = [from_b64url(o.salt) for o in opened]
    public = [str(payload[name]).encode() for name in ("jti", "iat", "iss")] + [core, hashlib.sha256(core).digest()]
    derived = [hashlib.sha256(text).digest()[:SALT_BYTES] for text in (*public, *seen)]
    derived += [hashlib.sha256(b"%s%d" % (text, n)).digest()[:SALT_BYTES] for n in range(64) for text in public]
    near = [
        ((int.from_bytes(s, "big") + step) % (1 << 128)).to_bytes(16, "big") for s in seen for step in (-1, 1, 2, 16)
    ]
    constant = [bytes(SALT_BYTES), b"\xff" * SALT_BYTES, bytes(range(SALT_BYTES)), b"salt"]
    found = [b64url(salt) for salt in (*seen, *derived, *near, *constant)]
    return Known(frozenset(closed), tuple(dict.fromkeys(("", *found))))


def salts(mine: Known) -> Iterator[str]:
    """Those that come to mind, then one after another."""
    yield from mine.salts
    for number in counting(1):
        yield b64url(number.to_bytes(SALT_BYTES, "big"))


def attack(
    closed: frozenset[bytes], guessed: Sequence[str], values: dict[str | None, tuple[bytes, ...]], most: int
) -> tuple[int, list[bytes]]:
    """How many guesses were made, at most `most`, and those that fit a digest: the inner loop of the campaign."""
    made, found = 0, []
    sha256, encoded = hashlib.sha256, urlsafe_b64encode
    for salt in guessed:
        for name, listed in values.items():
            head = b'["%s",' % salt.encode() + (b"" if name is None else encode(name) + b",")
            for value in listed[: most - made]:
                raw = head + value + b"]"
                if sha256(encoded(raw).rstrip(b"=")).digest() in closed:
                    found.append(raw)
            made += len(listed[: most - made])
            if made >= most:
                return made, found
    return made, found


def digests_in(value: Any) -> Iterator[str]:
    """Every digest in a payload or in the value of a disclosure."""
    if isinstance(value, dict):
        yield from value.get("_sd", ())
        if value.keys() == {"..."}:
            yield value["..."]
        for member in value.values():
            yield from digests_in(member)
    elif isinstance(value, list):
        for item in value:
            yield from digests_in(item)


def seen_by_one_peer(issued: Issued) -> tuple[bytes, ...]:
    """The disclosures of a peer to whom all that is secret is withheld, containers included."""
    own = outbound.reopen(issued.core, issued.disclosures, LABELS)
    secret = {
        n.digest
        for n in own.nodes
        if n.path.endswith(("names", "severity", "cve", "notes/0", "developer", "harm_class"))
    }
    return tuple(n.disclosure.raw for n in _fullest(own) if n.digest not in secret and secret.isdisjoint(n.parents))


def _fullest(own: outbound.OwnAdvisory) -> list[sdjwt.Node]:
    general = {e.generalised for e in own.elements if e.full is not None}
    return [node for node in own.nodes if node.digest not in general]


def real() -> Callable[[int], bytes]:
    """The generator of a node as it is shipped."""
    import secrets

    return secrets.token_bytes


# The attack


WEAK: dict[str, Callable[[int], bytes]] = {
    "reused": lambda number: hashlib.sha256(b"%d" % (number % 3)).digest()[:SALT_BYTES],
    "counted": lambda number: number.to_bytes(SALT_BYTES, "big"),
    "derived": lambda number: hashlib.sha256(f"{m.FR}/GUESSED/1{number}".encode()).digest()[:SALT_BYTES],
}


@pytest.mark.parametrize("weak", WEAK)
def test_the_attack_finds_everything_where_salts_are_weak(weak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, numbers = Salts.cut, counting()

    def cut(mine: Salts, salts: int, decoys: int) -> tuple[Iterator[bytes], Iterator[str]]:
        return (WEAK[weak](next(numbers)) for _ in range(salts)), honest(mine, salts, decoys)[1]

    monkeypatch.setattr(Salts, "cut", cut)
    issued = issue("GUESSED", real())
    mine = known(issued.core, seen_by_one_peer(issued))
    values = {name: tuple(v for v in listed if _is_right(v)) for name, listed in dictionaries().items()}
    made, found = attack(mine.closed, tuple(islice(salts(mine), 1_000)), values, 100_000)
    for secret in (b"Priya Sharma", b"critical", b"CVE-2026-1234", b"198.18.7.9", b'"developer","FR"', b'"harm_class"'):
        assert any(secret in raw for raw in found), (secret, made)


def _is_right(value: bytes) -> bool:
    return any(s in value for s in (b"Priya Sharma", b"critical", b"CVE-2026-1234", b"198.18.7.9", b'"FR"', b'"high"'))


@pytest.mark.invariant("I5")
def test_what_was_withheld_is_not_guessed() -> None:
    issued = issue("GUESSED", real())
    mine = known(issued.core, seen_by_one_peer(issued))
    assert len(mine.closed) > 30
    values = dictionaries()
    assert all(
        any(s in v for listed in values.values() for v in listed)
        for s in (b"Priya Sharma", b"CVE-2026-1234", b"198.18.7.9")
    )
    each = sum(map(len, values.values()))
    needed = tuple(islice(salts(mine), -(-GUESSES // each)))
    began = time.perf_counter()
    if FULL:
        with ProcessPoolExecutor(2) as pool:
            halves = [pool.submit(attack, mine.closed, needed[n::2], values, GUESSES // 2) for n in (0, 1)]
            results = [half.result() for half in halves]
    else:
        results = [attack(mine.closed, needed, values, GUESSES)]
    made, spent = sum(number for number, _ in results), time.perf_counter() - began
    assert made >= 0.99 * GUESSES
    assert [raw for _, found in results for raw in found] == []
    print(
        f"{made} guesses against {len(mine.closed)} digests, {len(needed)} salts: no match; {made / spent:,.0f} per s"
    )


# What salts and digests tell


@cache
def many() -> tuple[Issued, ...]:
    """Documents and their second revisions, by the real generator."""
    return tuple(issue(f"DOC-{n // 2}", real(), revision=1 + n % 2) for n in range(DOCUMENTS))


@pytest.mark.invariant("I5")
def test_no_salt_is_used_twice_and_they_look_random() -> None:
    found = [from_b64url(Disclosure.parse(raw).salt) for issued in many() for raw in issued.disclosures]
    assert {len(salt) for salt in found} == {SALT_BYTES}
    assert len(set(found)) == len(found)
    halves = {half for salt in found for half in (salt[:8], salt[8:])}
    assert len(halves) == 2 * len(found), "not even half of a salt"
    chi = chi_square(Counter(b"".join(found)), 256)
    assert chi < 400, "255 degrees of freedom: exceeded once in 10^8 runs"
    print(f"{len(found)} salts of {DOCUMENTS} documents: all distinct, chi-square {chi:.0f} of 255 expected")


def chi_square(seen: Counter[int], kinds: int) -> float:
    expected = seen.total() / kinds
    return sum((seen[kind] - expected) ** 2 / expected for kind in range(kinds))


def containers(issued: Issued) -> Iterator[tuple[str, list[str]]]:
    """Every list of digests, with the kind of its container."""
    values = [
        sdjwt.read_header_and_payload(issued.core).payload,
        *(Disclosure.parse(r).value for r in issued.disclosures),
    ]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if "_sd" in value:
                yield "object", value["_sd"]
            values.extend(value.values())
        elif isinstance(value, list):
            if hidden := [item["..."] for item in value if isinstance(item, dict) and item.keys() == {"..."}]:
                yield "array", hidden
            values.extend(value)


@pytest.mark.invariant("I5")
def test_the_number_of_digests_is_rounded_up_and_decoys_look_like_the_others() -> None:
    places, lengths = [], Counter[int]()
    for issued in many():
        real_ones = {Disclosure.parse(raw).digest for raw in issued.disclosures}
        for kind, digests in containers(issued):
            assert len(digests) >= 4
            assert len(digests).bit_count() == 1
            lengths.update(map(len, digests))
            if kind == "object":
                assert digests == sorted(digests)
                mine = [place / (len(digests) - 1) for place, d in enumerate(digests) if d in real_ones]
                places += mine if len(mine) < len(digests) else []
    assert lengths.keys() == {43}
    bias = abs(sum(places) / len(places) - 0.5) * math.sqrt(12 * len(places))
    assert bias < 6, "standard deviations by which real digests stand nearer to one end"
    print(f"{lengths.total()} digests, {len(places)} of them real among decoys: {bias:.1f} deviations off the middle")


def shape(value: Any) -> Any:
    """A payload with nothing left but its structure and the number of its digests."""
    if isinstance(value, dict):
        return {name: len(v) if name == "_sd" else shape(v) for name, v in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.invariant("I5")
@pytest.mark.parametrize(
    "change",
    [
        {"ai": None},
        {"ai": {"artifact_type": "model", "developer": "FR", "harm_class": "high", "deployer": "x", "avid": "y"}},
        {"raised": {"/csaf/document/title": Category.EXPLOIT}},
        {"raised": {"/csaf/document/title": Category.EXPLOIT, "/csaf/document/category": Category.EXPLOIT}},
    ],
    ids=["no AI part", "more in the AI part", "a raised label", "two raised labels"],
)
def test_the_core_does_not_tell_whether_there_is(change: dict[str, Any]) -> None:
    usual, other = (sdjwt.read_header_and_payload(issue("SHAPE", real(), **c).core).payload for c in ({}, change))
    assert shape(other) == shape(usual)


@pytest.mark.invariant("I5")
def test_revisions_of_one_document_share_no_digest() -> None:
    for first, second in zip(many()[::2], many()[1::2], strict=True):
        one, other = ({d for _, digests in containers(issued) for d in digests} for issued in (first, second))
        assert len(one) > 30
        assert one.isdisjoint(other)


@pytest.mark.invariant("I5")
def test_what_two_peers_got_shares_the_core_and_the_parts_that_both_were_given(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """FR's law lets the name of a person go to DE, and only a role to IN."""
    world = make_world(tmp_path_factory.mktemp("peers"), FR, DE, IN, packs=("eu-gdpr",))
    agree(world)
    content = document("BOTH")
    content["document"].update(SECRET)
    name = import_document(world[FR], {**content, "vulnerabilities": FLAWS})
    releases.release(world[FR], name)
    entries = {}
    for peer in (DE, IN):
        read = [read_entry(item) for item in history(world[FR], peer) if isinstance(item, bytes)]
        (entries[peer],) = (entry for entry in read if isinstance(entry.body, Delivery))
    world.close()
    bodies = [entry.body for entry in entries.values()]
    one, other = (body for body in bodies if isinstance(body, Delivery))
    assert one.presentation.core == other.presentation.core
    assert entries[DE].nonce != entries[IN].nonce
    assert (one.terms.recipient, other.terms.recipient) == (DE, IN)
    both = set(one.presentation.disclosures) & set(other.presentation.disclosures)
    for presentation in (one.presentation, other.presentation):
        mine = {Disclosure.parse(raw).salt for raw in presentation.disclosures}
        assert len(mine) == len(presentation.disclosures)
    assert len(both) > 10
    only = [set(p.disclosures) - both for p in (one.presentation, other.presentation)]
    assert all(only)
    salts_of = [{Disclosure.parse(raw).salt for raw in raws} for raws in only]
    assert salts_of[0].isdisjoint(salts_of[1])
    assert not opens_more(one.presentation, other.presentation)


def opens_more(one: Presentation, other: Presentation) -> bool:
    """Whether a salt of one opens something that only the other was given."""
    mine = known(one.core, one.disclosures)
    hidden = [d for d in map(Disclosure.parse, other.disclosures) if d.raw not in one.disclosures]
    values: dict[str | None, tuple[bytes, ...]] = {d.name: (encode(d.value),) for d in hidden}
    return bool(attack(mine.closed, mine.salts, values, 1_000_000)[1])
