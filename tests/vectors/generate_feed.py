"""Vectors of entries, of the terms under which they are admitted, and of a feed's pages, forks and receipts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from federation import handling, merkle
from federation.checkpoint import cosign
from federation.entries import AgreementOffer, Delivery, ErasedItem, Withdrawal
from federation.model import (
    Attribution,
    Category,
    Country,
    Form,
    NodeId,
    Onward,
    Presentation,
    Purpose,
    Terms,
    Tier,
    Tlp,
    instant_text,
)
from protos.exchange.v1 import exchange_pb2 as wire
from tests.vectors import material as m
from tests.vectors.generate_documents import ABOUT_SEEDS, BAD, MALFORMED, Cases

Item = bytes | ErasedItem


def _full(_: str, categories: frozenset[Category]) -> Form:
    return Form.WITHHELD if categories & {Category.EXPLOIT, Category.ATTRIBUTION} else Form.FULL


def _for_india(path: str, categories: frozenset[Category]) -> Form:
    if categories & {Category.PRODUCT, Category.PERSONAL} and path != "/ai/model":
        return Form.GENERALISED
    return Form.FULL if categories <= {Category.IDENTIFICATION, Category.REMEDIATION} else Form.WITHHELD


def _delivery(made: m.Made, recipient: NodeId = m.DE, **changes: Any) -> Delivery:
    terms = handling.narrow(made.own.handling, m.AGREEMENT, made.own.core_digest, recipient, m.NOW)
    chosen = made.choose(_for_india if recipient == m.IN else _full)
    return Delivery(m.presentation(made, chosen), replace(terms, **changes))


def entry_cases() -> dict[str, Any]:
    cases: Cases = []

    def add(name: str, data: bytes, expect: str, **more: Any) -> None:
        cases.append({"name": name, "entry": data.hex(), "expect": expect, **more})

    short = Presentation(b"a core is not looked into here", (b'["salt","name",1]', b'["salt",2]'))
    good = m.entry(3, Delivery(short, _delivery(m.make()).terms))
    add("a presentation", good, "ok", feed=m.ORIGIN, seq=3, body="presentation")
    add("the first entry, whose sequence number is not written", m.entry(0, m.offer()), "ok",
        feed=m.ORIGIN, seq=0, body="agreement")  # fmt: skip
    withdrawal = m.entry(9, Withdrawal((2, 3, 300), "no-longer-permitted"))
    add("a withdrawal that names a later entry", withdrawal, MALFORMED)
    withdrawal = m.entry(301, Withdrawal((2, 3, 300), "no-longer-permitted"))
    add("a withdrawal", withdrawal, "ok", feed=m.ORIGIN, seq=301, body="withdrawal", withdraws=[2, 3, 300])

    add("an unknown field", good + bytes.fromhex("7a0161"), MALFORMED)
    add("cut off", good[:-1], MALFORMED)
    add("no bytes", b"", MALFORMED)
    feed_field = 2 + len(m.ORIGIN)
    add("fields in another order", good[feed_field:] + good[:feed_field], MALFORMED)
    zero = m.entry(0, m.offer())
    add("a default written out", zero[:feed_field] + b"\x10\x00" + zero[feed_field:], MALFORMED)
    add("a number longer than it need be", good.replace(b"\x10\x03", b"\x10\x83\x00", 1), MALFORMED)
    add("a field twice", good[:feed_field] + good, MALFORMED)
    unpacked = wire.Entry.FromString(withdrawal)
    packed = unpacked.withdrawal.SerializeToString(deterministic=True)
    loose = b"\x08\x02\x08\x03\x08\xac\x02" + packed[6:]
    add(
        "repeated numbers that are not packed",
        withdrawal.replace(bytes([len(packed)]) + packed, bytes([len(loose)]) + loose),
        MALFORMED,
    )

    def edited(name: str, change: Any) -> None:
        message = wire.Entry.FromString(good)
        change(message)
        add(name, message.SerializeToString(deterministic=True), MALFORMED)

    edited("a nonce of 15 bytes", lambda e: setattr(e, "nonce", bytes(15)))
    edited("no nonce", lambda e: e.ClearField("nonce"))
    edited("no body", lambda e: e.ClearField("presentation"))
    edited("no terms", lambda e: e.presentation.ClearField("terms"))
    edited("an unknown field in the terms", lambda e: e.presentation.terms.MergeFromString(bytes.fromhex("7a0161")))
    edited("purposes not sorted", lambda e: e.presentation.terms.purposes.reverse())
    edited("an unknown purpose", lambda e: e.presentation.terms.purposes.append("zeal"))
    edited("countries not sorted", lambda e: e.presentation.terms.storage.countries.reverse())
    edited("a country that is no code", lambda e: e.presentation.terms.storage.countries.append("XYZ"))
    edited("a core digest of 31 bytes", lambda e: setattr(e.presentation.terms, "core_digest", bytes(31)))
    edited("a recipient that is no node id", lambda e: setattr(e.presentation.terms, "recipient", "Berlin"))
    edited("a retention that is no instant", lambda e: setattr(e.presentation.terms, "retain_until", "2028-01-01"))
    edited("no onward", lambda e: setattr(e.presentation.terms, "onward", ""))
    edited("an unknown attribution", lambda e: setattr(e.presentation.terms, "attribution", "maybe"))
    for name, seqs in (
        ("in no order", (3, 2)),
        ("naming one entry twice", (2, 2)),
        ("of nothing", ()),
        ("of itself", (7,)),
    ):
        add(f"a withdrawal {name}", m.entry(7, Withdrawal(seqs, "rule")), MALFORMED)
    add("a withdrawal without a reason", m.entry(7, Withdrawal((1,), "")), MALFORMED)
    return {
        "about": "`cases`: one entry each, hexadecimal, and whether it is well formed. `deliveries`: a well-formed"
        " entry from `sender`, opened at the file's `now` and admitted at its own `now` by `receiver`, who has enrolled"
        " `cards`, holds `agreement` (canonical bytes, signed by all), uses the label file whose SHA-256 is `labels`"
        " and no law pack. " + ABOUT_SEEDS,
        "cases": cases,
        "now": instant_text(m.NOW),
        "labels": m.LABELS.digest.hex(),
        "cards": m.CARD_TEXTS,
        "agreement": m.AGREEMENT.canonical.decode(),
        "deliveries": _delivery_cases(),
    }


def _delivery_cases() -> Cases:
    cases: Cases = []
    made = m.make()

    def add(
        name: str, expect: str, delivery: Delivery, to: NodeId = m.DE, sender: NodeId = m.FR, now: datetime = m.NOW
    ) -> None:
        data = m.entry(0, delivery, origin=f"{sender}/feeds/{to}/1")
        cases.append({"name": name, "expect": expect, "sender": sender, "receiver": to, "now": instant_text(now),
                      "entry": data.hex()})  # fmt: skip

    def terms(name: str, expect: str = "BAD_TERMS", **changes: Any) -> None:
        add(name, expect, _delivery(made, **changes))

    def other(name: str, expect: str, **changes: Any) -> None:
        add(name, expect, _delivery(m.make(replace(m.HANDLING, **changes))))

    add("to Germany", "ok", _delivery(made))
    add("to India, products and persons generalised", "ok", _delivery(made, m.IN), m.IN)
    add(
        "to India, what only Germany may have",
        "NOT_ADMITTED",
        replace(_delivery(made), terms=_delivery(made, m.IN).terms),
        m.IN,
    )
    terms("for another recipient", recipient=m.IN)
    terms("for another core", core_digest=bytes(32))
    terms("under an agreement that is not in force", "NOT_ADMITTED", agreement_digest=bytes(32))
    terms("narrower purposes", "ok", purposes=frozenset((Purpose.DETECTION,)))
    terms("wider purposes", purposes=frozenset((Purpose.DETECTION, Purpose.RESEARCH)))
    terms("no purpose", purposes=frozenset())
    limit = m.HANDLING.retain_until
    if limit is None:
        raise AssertionError("the handling of the vectors has a limit")
    terms("shorter retention", "ok", retain_until=m.NOW + timedelta(days=1))
    terms("retention longer than the handling's", retain_until=limit + timedelta(seconds=1))
    terms("retention without limit", retain_until=None)
    terms("retention that has ended", "NOT_ADMITTED", retain_until=m.NOW)
    terms("one place of storage fewer", "ok", storage=frozenset((Country("DE"),)))
    terms("storage in a country that the agreement does not name", storage=frozenset((Country("DE"), Country("US"))))
    terms("storage anywhere", storage=None)
    terms("storage nowhere near", "NOT_ADMITTED", storage=frozenset((Country("FR"),)))
    terms("wider onward sharing", onward=Onward.CONSTITUENTS)
    terms("another attribution", attribution=Attribution.MUST)
    add("of another origin than the sender", "NOT_ADMITTED", _delivery(made), sender=m.IN)
    add("after the agreement has ended", "NOT_ADMITTED", _delivery(made), now=m.AGREEMENT.valid_until)
    add(
        "before the agreement begins",
        "NOT_ADMITTED",
        _delivery(made),
        now=m.AGREEMENT.valid_from - timedelta(seconds=1),
    )
    other("a tier that no clause covers", "NOT_ADMITTED", tier=Tier.DUAL_USE)
    open_to_peers = _delivery(m.make(replace(m.HANDLING, onward=Onward.PEERS)), m.IN)
    for_germany = replace(open_to_peers, terms=replace(open_to_peers.terms, recipient=m.DE))
    add("relayed, even where onward sharing with peers is allowed", "NOT_ADMITTED", for_germany, sender=m.IN)
    other("RED for another recipient", "NOT_ADMITTED", tlp=Tlp.RED, recipients=frozenset((m.IN,)))
    other("RED for this recipient", "ok", tlp=Tlp.RED, recipients=frozenset((m.DE,)))
    nothing: Terms = _delivery(made).terms
    add("nothing disclosed", "NOT_ADMITTED", Delivery(m.presentation(made, ()), nothing))
    everything = made.choose(lambda *_: Form.FULL)
    add("a category that no clause shares", "NOT_ADMITTED", Delivery(m.presentation(made, everything), nothing))
    return cases


def _state(items: Sequence[bytes], *, newest: str | None = None, pending: Sequence[ErasedItem] = ()) -> dict[str, Any]:
    edge = merkle.EMPTY.extend(merkle.leaf_hash(item) for item in items)
    return {
        "size": edge.size,
        "edge": [h.hex() for h in edge.hashes],
        "head": m.note(edge.size, edge.root()) if items else "",
        "newest": newest if newest is not None else m.newest(edge.size, edge.root()) if items else "",
        "pending": [_erased(item) for item in pending],
    }


def _erased(item: ErasedItem) -> dict[str, Any]:
    return {**dataclasses.asdict(item), "leaf_hash": item.leaf_hash.hex()}


def _page(items: Sequence[Item], checkpoint: str, latest: str) -> dict[str, Any]:
    shown = [{"erased": _erased(i)} if isinstance(i, ErasedItem) else {"entry": i.hex()} for i in items]
    return {"items": shown, "checkpoint": checkpoint, "latest": latest}


def feed_cases() -> dict[str, Any]:
    cases: Cases = []
    log = [m.entry(seq, AgreementOffer(f"agreement {seq}".encode())) for seq in range(6)]
    log.append(m.entry(6, Withdrawal((4,), "no-longer-permitted")))
    root = [m.root_of(log[:size]) for size in range(len(log) + 1)]
    leaf = [merkle.leaf_hash(data) for data in log]

    def add(
        name: str,
        expect: str,
        state: dict[str, Any],
        items: Sequence[Item],
        *,
        size: int | None = None,
        top: bytes | None = None,
        head: str | None = None,
        latest: str | None = None,
        **after: Any,
    ) -> None:
        size = state["size"] + len(items) if size is None else size
        top = (root[size] if size < len(root) else root[-1]) if top is None else top
        page = _page(items, head or m.note(size, top), latest or m.newest(size, top))
        cases.append({"name": name, "expect": expect, "state": state, "page": page, **after})

    def ok(name: str, state: dict[str, Any], items: Sequence[Item], **options: Any) -> None:
        end = state["size"] + len(items)
        after = merkle.EMPTY.extend(leaf[:end])
        add(name, "ok", state, items, **{"size_after": end, "edge_after": [h.hex() for h in after.hashes]} | options)

    empty, three = _state(()), _state(log[:3])
    ok("an empty feed", empty, (), entries=[])
    ok("the first page", empty, log[:3], entries=["ok", "ok", "ok"])
    ok("the next page", three, log[3:5], entries=["ok", "ok"])
    ok("nothing new", three, (), entries=[])
    ok("more is waiting", three, log[3:4], latest=m.newest(7, root[7]), newest_size_after=7, entries=["ok"])
    add("a gap", "GAP", three, log[4:5], top=root[4])
    add("an entry that is held already", "REPEATED", three, log[2:4], top=root[5])
    add("two entries swapped", "REORDERED", three, [log[4], log[3]], top=root[5])
    forged = m.entry(3, AgreementOffer(b"forged"))
    add("an entry replaced, the signed root of the true one", "BAD_PAGE", three, [forged], top=root[4])
    add(
        "a page from a history that was rewritten",
        "BAD_PAGE",
        three,
        log[3:4],
        top=m.root_of([log[0], forged, *log[2:4]]),
    )
    add("heads beyond the items", "BAD_PAGE", three, log[3:4], size=5)
    add("a newest head below the page's own", "BAD_PAGE", three, log[3:4], latest=m.newest(3, root[3]))
    add(
        "a newest head smaller than one seen before", "ROLLBACK", _state(log[:3], newest=m.newest(6, root[6])), log[3:4]
    )
    elsewhere = m.root_of([*log[:3], forged, log[4]])
    shown = _state(log[:3], newest=m.newest(5, elsewhere))
    add("two roots of one size: the page's head and the newest", "FORK", three, log[3:4], latest=m.newest(4, elsewhere))
    add("two roots of one size: this page's and one shown before", "FORK", shown, log[3:5])
    add("a history that does not lead through the newest head shown before", "SUSPECTED_FORK", shown, log[3:6])
    add("a page that ends before the cursor", "ROLLBACK", three, (), size=2, latest=m.newest(3, root[3]))
    add(
        "a head under another origin line",
        "WRONG_FEED",
        three,
        log[3:4],
        head=m.note(4, root[4], origin=f"{m.FR}/feeds/{m.IN}/1"),
    )
    add(
        "a head of another epoch",
        "WRONG_FEED",
        three,
        log[3:4],
        head=m.note(4, root[4], origin=f"{m.FR}/feeds/{m.DE}/2"),
    )
    alien = m.entry(3, AgreementOffer(b"agreement 3"), origin=f"{m.FR}/feeds/{m.IN}/1")
    add("an entry of another feed", "WRONG_FEED", three, [alien], top=m.root_of([*log[:3], alien]))
    add("a head signed by the receipt key", BAD, three, log[3:4], head=m.note(4, root[4], label=f"{m.FR} receipt"))
    add("a head without a signature", MALFORMED, three, log[3:4], head=m.note(4, root[4]).partition("\n\n")[0] + "\n\n")
    broken = m.entry(3, AgreementOffer(b"agreement 3")) + bytes.fromhex("7a0161")
    top = m.root_of([*log[:3], broken, log[4]])
    after = merkle.EMPTY.extend([*leaf[:3], merkle.leaf_hash(broken), leaf[4]])
    add("an entry that is not well formed keeps its place", "ok", three, [broken, log[4]], top=top, size_after=5,
        edge_after=[h.hex() for h in after.hashes], entries=[MALFORMED, "ok"])  # fmt: skip
    gone = ErasedItem(4, leaf[4], 6)
    ok(
        "an erased entry with its eraser",
        three,
        [log[3], gone, *log[5:]],
        entries=["ok", "erased", "ok", "ok"],
        pending_after=0,
    )
    ok(
        "an erased entry whose eraser is still to come",
        three,
        [log[3], gone, log[5]],
        entries=["ok", "erased", "ok"],
        pending_after=1,
    )
    ok("the eraser that was awaited", _state(log[:6], pending=[gone]), log[6:], entries=["ok"], pending_after=0)
    wrong = ErasedItem(3, leaf[3], 6)
    add("an eraser that does not name the entry", "BAD_ERASURE", three, [wrong, *log[4:]])
    no_eraser = ErasedItem(3, leaf[3], 5)
    add("an eraser that is no withdrawal", "BAD_ERASURE", three, [no_eraser, *log[4:6]])
    add("an awaited eraser that does not name the entry", "BAD_ERASURE", _state(log[:6], pending=[wrong]), log[6:])
    add("an erased entry at another place than its number", "GAP", three, [gone], top=root[4])
    add("an erased entry under another leaf hash", "BAD_PAGE", three, [log[3], ErasedItem(4, bytes(32), 6), *log[5:]])

    def fork(name: str, expect: str, answer: str, *, retried: bool = False) -> dict[str, Any]:
        return {"name": name, "state": three, "answer": answer, "retried": retried, "expect": expect}

    def fresh(name: str, expect: str, latest: str) -> dict[str, Any]:
        return {"name": name, "latest": latest, "max_age_s": 120, "expect": expect}

    def dated(seconds: int) -> str:
        return m.newest(3, root[3], at=m.NOW + timedelta(seconds=seconds))

    return {
        "about": "The receiver's checks of pages of one feed: `state` is what it holds (right edge: roots of the"
        " perfect subtrees, largest first), `page` what arrives; `ok` cases tell what is held afterwards and what"
        " became of each item. `forks` judge the head that the sender signs at the receiver's size after a BAD_PAGE;"
        " `fresh` the time of a newest head; `receipts` are judged by the sender, whose feed has `roots` by size. Notes"
        " are text. " + ABOUT_SEEDS,
        "origin": m.ORIGIN,
        "feed_key": m.public(f"{m.FR} feed").hex(),
        "receipt_key": m.public(f"{m.DE} receipt").hex(),
        "now": instant_text(m.NOW),
        "cases": cases,
        "forks": [
            fork("another root at one size", "FORK", m.note(3, m.root_of(log[1:4]))),
            fork("the shared root: try again", "ok", m.note(3, root[3])),
            fork("the shared root, again", "SUSPECTED_FORK", m.note(3, root[3]), retried=True),
            fork("another size than asked for", "SUSPECTED_FORK", m.note(4, root[4])),
            fork("an answer that the sender did not sign", BAD, m.note(3, root[4], label="nobody")),
        ],
        "fresh": [
            fresh("two polls old", "ok", dated(-120)),
            fresh("older", "STALE", dated(-121)),
            fresh("300 s in our future", "ok", dated(300)),
            fresh("301 s in our future", "STALE", dated(301)),
            fresh("without the log's own timestamp", BAD, m.note(3, root[3])),
        ],
        "roots": [r.hex() for r in root],
        "receipts": [
            _receipt("of three entries", "ok", m.note(3, root[3]), size=3),
            _receipt("without the receiver's cosignature", BAD, m.note(3, root[3]), label=None),
            _receipt("cosigned by another key of the receiver", BAD, m.note(3, root[3]), label=f"{m.DE} feed"),
            _receipt("over a head that the sender never signed", BAD, m.note(3, root[3], label="nobody")),
            _receipt("over a head of another feed", "WRONG_FEED", m.note(3, root[3], origin=f"{m.FR}/feeds/{m.IN}/1")),
            _receipt("over another root", BAD, m.note(3, root[4])),
        ],
    }


def _receipt(
    name: str, expect: str, head: str, *, label: str | None = f"{m.DE} receipt", **more: Any
) -> dict[str, Any]:
    receipt = head
    if label is not None:
        cosigned = cosign(head.encode(), m.DE, int(m.NOW.timestamp()), m.signer(label), m.public(label))
        receipt = cosigned.decode()
    return {"name": name, "receipt": receipt, "expect": expect, **more}
