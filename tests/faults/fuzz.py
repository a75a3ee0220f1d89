"""Row 11: whatever bytes come, every reader gives a value or a refusal of ours: never another exception, never a hang.

A target is a reader, with honest samples of what it reads, and with mutations of them that know the format and are
signed anew by the real keys of test nodes, so that what lies behind the signatures is reached too. `execute` bounds one
run in CPU time, `bounded` all of them in memory. `test_fuzz.py` runs every target with hypothesis, `campaign_fuzz.py`
with atheris. Here are the readers that need no node; those that do are in `fuzzworld.py`.
"""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType

from config import data as config_data
from config import settings
from federation import agreement as agreements
from federation import checkpoint, contradiction, feed, grant, keyring, labels, merkle, recall, statement
from federation.base64url import from_b64url
from federation.entries import Body, Delivery, Granted, NewCard, RecallOrder, Said, check_fields, parse, read_item
from federation.entries import read as read_entry
from federation.errors import ApostilleError, RemoteError
from federation.feed import PageBytes
from federation.handling import narrow
from federation.inbound import Receiver, admit, may_keep_evidence, may_keep_unread, open_delivery, read_advisory
from federation.keyring import Keyring
from federation.model import Category, Country, Form, NodeId, Onward, Presentation, Role
from federation.policy.engine import rule_book
from federation.policy.packs import load_pack
from node.home import prepared
from node.rpc import limits as rpc_limits
from node.rpc.client import split_endpoint
from protos.exchange.v1 import exchange_pb2 as wire
from tests.faults import mutants, resigned
from tests.faults.resigned import Mutate
from tests.property.test_bytes import PARSERS
from tests.vectors import material as m

LIMIT_CPU_S = 2.0  # of one execution
MEMORY_BYTES = 512 << 20  # that executions may take, on top of what the process has
COUNTRIES = tuple(Country(code) for code in config_data.countries())
BOOK = rule_book((load_pack(config_data.pack_text("eu-gdpr"), "eu-gdpr", COUNTRIES),), COUNTRIES)
RECEIVERS = {
    node: Receiver(node, country, Keyring(m.CARDS), m.LABELS, BOOK, {m.AGREEMENT.digest: m.AGREEMENT})
    for node, country in ((m.DE, Country("DE")), (m.IN, Country("IN")))
}
CARD_FILES = tuple(text.encode() for text in m.CARD_TEXTS)


class HangError(BaseException):
    """An execution went on for LIMIT_CPU_S of CPU time; no handler of ours takes it for something else."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, honest `samples` of what it reads, and how they are changed; `refusal` is all that it may raise."""

    samples: tuple[bytes, ...]
    run: Callable[[bytes], object]
    mutate: Mutate
    refusal: type[ApostilleError] | tuple[type[ApostilleError], ...] = RemoteError


def execute(target: Target, data: bytes) -> bool:
    """Whether the target takes `data`. Raises whatever it may not raise, and HangError."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)
    try:
        target.run(data)
    except target.refusal:
        return False
    else:
        return True
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextmanager
def bounded(*, memory: bool = True) -> Iterator[None]:
    """Inside, an execution that hangs raises HangError, and one that takes MEMORY_BYTES raises MemoryError."""

    def hang(_: int, __: FrameType | None) -> None:
        raise HangError(f"over {LIMIT_CPU_S} s of CPU time")

    before = signal.signal(signal.SIGPROF, hang)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


# Readers


def read_delivery(data: bytes) -> None:
    """Everything that a receiver does with an entry, but for its database; what is refused it may keep as evidence."""
    try:
        envelope = read_entry(data)
        sender, me, _ = checkpoint.parse_origin_line(envelope.feed)
    except RemoteError:
        may_keep_unread(data, RECEIVERS[m.DE], m.FR, m.NOW)
        raise
    receiver = RECEIVERS.get(me, RECEIVERS[m.DE])
    body = envelope.body
    if isinstance(body, Delivery):
        try:
            admit(read_advisory(open_delivery(body, receiver, m.NOW), m.LABELS, m.NOW), receiver, sender, m.NOW)
        except RemoteError:
            may_keep_evidence(body, receiver, sender, m.NOW)
            raise
    elif isinstance(body, Said | RecallOrder | Granted):
        readers: dict[type, Callable[..., object]] = {
            Said: statement.read,
            RecallOrder: recall.read,
            Granted: grant.read,
        }
        readers[type(body)](body.document, _issue_key)
    elif isinstance(body, NewCard):
        read_card(body.document)


def read_page(data: bytes) -> None:
    """What a receiver does with an answer to Pull."""
    answer = wire.PullResponse()
    check_fields(answer, data, rpc_limits.MAX_ANSWER_FIELDS, "page")
    parse(answer, data, "page")
    items = tuple(read_item(item) for item in answer.items)
    arrived = PageBytes(items, answer.checkpoint, answer.latest, answer.receipt, answer.epoch)
    verified = feed.verify_page(feed.empty(m.ORIGIN), arrived, [resigned.FEED_KEY])
    for entry in verified.entries:
        if entry.data is not None and entry.bad is None:
            read_delivery(entry.data)


def read_card(data: bytes) -> None:
    """A card as it is enrolled, replaced, and used, but for its TLS certificates."""
    card = keyring.open_card(data)
    assert keyring.open_card(keyring.for_newcomers(data)) == card
    with suppress(RemoteError):
        keyring.open_card(data, m.CARDS[m.FR].roots)
    prepared.read(data)
    card.roots.fingerprint()
    for role in Role:
        card.valid_keys(role, m.NOW)
    split_endpoint(card.endpoint)


def read_agreement(data: bytes) -> None:
    """A signed agreement, and an honest advisory under its terms."""
    found, _, _ = agreements.open_signed(data, lambda party, kid: _issue_key(party, kid.partition("/")[2]))
    assert agreements.from_canonical(found.canonical) == found
    receiver = replace(RECEIVERS[m.DE], agreements={found.digest: found})
    body = read_entry(_deliveries()[0]).body
    assert isinstance(body, Delivery)
    advisory = read_advisory(open_delivery(body, receiver, m.NOW), m.LABELS, m.NOW)
    terms = narrow(advisory.handling, found, advisory.core_digest, m.DE, m.NOW)
    admit(replace(advisory, terms=terms), receiver, m.FR, m.NOW)


def read_note(data: bytes) -> None:
    """A head, a receipt, the final head of an epoch, or one of two heads that contradict each other."""
    contradiction.fork((data, _notes()[0]), m.FR, CARD_FILES[:1])
    contradiction.dated(data, m.FR, CARD_FILES[:1])
    feed.check_receipt(data, m.ORIGIN, (resigned.FEED_KEY,), (resigned.RECEIPT_KEY,))
    feed.cosigned_head(data, m.ORIGIN, (resigned.RECEIPT_KEY,))
    checkpoint.with_one_line(data, resigned.FEED_KEY)
    feed.check_final(data, m.ORIGIN, _notes()[0])


def read_core(data: bytes) -> None:
    """One of two cores under one revision."""
    contradiction.equivocation((data, _core()), m.FR, CARD_FILES[:1])


def as_text(reader: Callable[[str], object]) -> Callable[[bytes], object]:
    """A reader of a file, given the text that `session.read_text` would make of it."""
    return lambda data: reader(data.decode("utf-8-sig", "replace"))


def _issue_key(node: NodeId, kid: str) -> bytes:
    return RECEIVERS[m.DE].keyring.key(node, Role.ISSUE, kid, m.NOW)


# Samples


@cache
def _core() -> bytes:
    return m.make().own.core


@cache
def _deliveries() -> tuple[bytes, ...]:
    """From the origin; from a relay whose handling lets it; from one that needs the grant beside it."""
    entries = []
    for onward, origin, me in (
        (Onward.NONE, m.ORIGIN, m.DE),
        (Onward.PEERS, f"{m.DE}/feeds/{m.IN}/1", m.IN),
        (Onward.NONE, f"{m.DE}/feeds/{m.IN}/1", m.IN),
    ):
        made = m.make(replace(m.HANDLING, onward=onward))
        terms = narrow(made.own.handling, m.AGREEMENT, made.own.core_digest, me, m.NOW)
        leave = resigned.grant_for(made.own.core) if origin != m.ORIGIN and onward is Onward.NONE else b""
        shown = made.choose(_to_india if me == m.IN else _to_germany)
        entries.append(m.entry(1, Delivery(Presentation(made.own.core, shown), terms, leave), origin=origin))
    return tuple(entries)


@cache
def _notes() -> tuple[bytes, ...]:
    root = merkle.leaf_hash(b"one")
    signed = m.note(1, root).encode()
    sign, public = m.signer(f"{m.DE} receipt"), m.public(f"{m.DE} receipt")
    return (
        checkpoint.cosign(signed, m.DE, int(m.NOW.timestamp()), sign, public),
        m.newest(1, root).encode(),
        signed,
    )


def _to_germany(_: str, categories: frozenset[Category]) -> Form:
    return Form.WITHHELD if categories & {Category.EXPLOIT, Category.ATTRIBUTION} else Form.FULL


def _to_india(path: str, categories: frozenset[Category]) -> Form:
    if path == "/csaf/product_tree" or path.endswith("/names"):
        return Form.GENERALISED
    return Form.FULL if categories <= {Category.IDENTIFICATION, Category.REMEDIATION} else Form.WITHHELD


def _vectors(name: str, part: str, member: str, read: Callable[[str], bytes] = str.encode) -> tuple[bytes, ...]:
    """The honest samples among the published vectors."""
    cases = json.loads((Path(m.__file__).parent / name).read_text("utf-8"))[part]
    return tuple(read(case[member]) for case in cases if case["expect"] == "ok")


def _statements() -> tuple[bytes, ...]:
    return _vectors("v2/statements.json", "cases", "document")


def _entries() -> tuple[bytes, ...]:
    named = ("v1/entries.json", "v2/entries.json")
    return tuple(found for name in named for found in _vectors(name, "cases", "entry", bytes.fromhex))


def _page() -> bytes:
    bodies: tuple[Body, ...] = (
        m.offer(),
        Said(_statements()[0]),
        RecallOrder(_vectors("v2/recalls.json", "cases", "document")[0], (1,)),
    )
    items = [m.entry(0, bodies[0]), _deliveries()[0], *(m.entry(2 + n, body) for n, body in enumerate(bodies[1:]))]
    root = m.root_of(items)
    return wire.PullResponse(
        items=[wire.PageItem(entry=item) for item in items],
        checkpoint=m.note(len(items), root).encode(),
        latest=m.newest(len(items), root).encode(),
    ).SerializeToString()


_SETTINGS = """\
node: cert.fr.example
jurisdiction: FR
listen: "127.0.0.1:7443"
advertise: "[2001:db8::7]:7443"
poll_interval_s: 60
law_packs:
  - eu-gdpr
people:
  "alice": [analyst, approver]
  "uid 1001": [auditor]
database: "postgresql://apostille@db.example:5432/apostille"
metrics: "127.0.0.1:9100"
log: {file: apostille.log, max_mib: 20, keep: 10}
"""
_PACK = """\
pack: test
version: 1
jurisdiction: FR
title: A law
status: example
checked_on: 2026-11-21
review_by: 2027-11-21
source: A text
groups:
  near:
    basis: An article
    members:
      - {country: DE, from: 2018-05-25}
      - {country: GB, from: 2018-05-25, until: 2020-12-31}
safeguards: {clauses: What they are}
rules: |
  @id("test/one") @basis("an article") @says("A sentence.")
  forbid (principal, action == Action::"disclose", resource)
  when { resource.categories.contains(Category::"personal") && !(principal.groups.contains(Group::"near")) };
duties: |
  @id("test/two") @basis("an article") @says("A sentence.")
  permit (principal, action == Action::"disclose", resource) when { resource.tlp == Tlp::"CLEAR" };
"""
_LABELS = """\
labels: test
rules:
  /csaf: {kind: plain}
  /csaf/title: {kind: element, category: [identification], generalise: {with: constant, value: Security advisory}}
  /csaf/notes: {kind: container}
  /csaf/notes/*:
    - {kind: element, category: [exploit], when: {category: [details]}}
    - {kind: element, category: [technical], needs_products: [product_ids]}
  /csaf/names: {kind: element, category: [personal, attribution], generalise: {with: person_to_role, value: A role}}
"""


def _signed(typ: str, reader: Callable[[bytes], object], samples: tuple[bytes, ...]) -> Target:
    return Target(samples, reader, resigned.document(typ))


def _file(reader: Callable[[str], object], *samples: str) -> Target:
    """A file that a person wrote."""
    return Target(tuple(map(str.encode, samples)), as_text(reader), mutants.yaml, ApostilleError)


def _bytes(name: str) -> Target:
    """A parser of `tests.property.test_bytes`, with mutations that know the formats."""
    parser, valid = PARSERS[name]
    return Target((valid,), parser, mutants.mutated)


TARGETS: dict[str, Callable[[], Target]] = {
    "delivery": lambda: Target(_deliveries(), read_delivery, resigned.delivery),
    "entry": lambda: Target(
        (*_entries(), *_deliveries()),
        read_delivery,
        lambda data, chance: mutants.message(data, wire.Entry, chance),
    ),
    "page": lambda: Target((_page(),), read_page, resigned.page),
    "statement": lambda: _signed(statement.JWS_TYPE, lambda d: statement.read(d, _issue_key), _statements()),
    "recall": lambda: _signed(
        recall.JWS_TYPE, lambda d: recall.read(d, _issue_key), _vectors("v2/recalls.json", "cases", "document")
    ),
    "grant": lambda: _signed(
        grant.JWS_TYPE, lambda d: grant.read(d, _issue_key), _vectors("v2/grants.json", "cases", "document")
    ),
    "card": lambda: _signed(keyring.JWS_TYPE, read_card, CARD_FILES),
    "agreement": lambda: _signed(agreements.JWS_TYPE, read_agreement, (m.offer().document,)),
    "note": lambda: Target(_notes(), read_note, resigned.note),
    "core": lambda: Target(
        (_core(), m.core({"iss": m.FR, "jti": f"{m.FR}/FR-VECTOR-1/1"})),
        read_core,
        lambda data, chance: m.core(mutants.json_text(from_b64url(data.split(b".")[1].decode()), chance)),
    ),
    "settings": lambda: _file(lambda text: settings.read(text, "file"), _SETTINGS),
    "terms": lambda: _file(lambda text: agreements.from_yaml(text, "file"), m.AGREEMENT_YAML),
    "pack": lambda: _file(lambda text: load_pack(text, "file", COUNTRIES), _PACK),
    "labels": lambda: _file(lambda text: labels.load(text, "file"), _LABELS),
    **{name: partial(_bytes, name) for name in PARSERS},
}
