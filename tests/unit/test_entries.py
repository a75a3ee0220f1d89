"""Entries: one form on the wire, nothing hidden in it at any depth, nothing over its limit."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from federation import entries, limits
from federation.checkpoint import origin_line
from federation.entries import AgreementOffer, Body, Delivery, Envelope, ErasedItem, Withdrawal
from federation.errors import MalformedError, TooLargeError
from federation.model import Attribution, Country, NodeId, Onward, Presentation, Purpose, Terms
from protos.exchange.v1 import exchange_pb2 as wire

FR, DE = NodeId("cert.fr.example"), NodeId("cert.de.example")
ORIGIN = origin_line(FR, DE, 1)
NONCE = b"n" * limits.NONCE_BYTES
TERMS = Terms(
    core_digest=b"c" * 32,
    recipient=DE,
    agreement_digest=b"a" * 32,
    purposes=frozenset((Purpose.REMEDIATION, Purpose.DETECTION)),
    retain_until=datetime(2027, 1, 1, tzinfo=UTC),
    storage=frozenset((Country("FR"), Country("DE"))),
    onward=Onward.NONE,
    attribution=Attribution.MAY,
)
BODIES: dict[str, Body] = {
    "delivery": Delivery(Presentation(b"core", (b"[1]", b"[2]")), TERMS),
    "delivery without limits": Delivery(Presentation(b"core", ()), replace(TERMS, retain_until=None, storage=None)),
    "agreement": AgreementOffer(b"document"),
    "withdrawal": Withdrawal((0, 2, 6), "no-longer-permitted"),
}
# a field that no message of ours has: number 15, length-delimited, "hidden"
HIDDEN = bytes([15 << 3 | 2]) + bytes([6]) + b"hidden"


def envelope(body: Body, seq: int = 7) -> Envelope:
    return Envelope(ORIGIN, seq, NONCE, body)


def message(name: str = "delivery") -> wire.Entry:
    made = wire.Entry()
    made.ParseFromString(entries.write(envelope(BODIES[name])))
    return made


def raw(made: wire.Entry) -> bytes:
    return made.SerializeToString(deterministic=True)


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 1 << 14
    return bytes([number << 3 | 2, len(data) & 127 | 128, len(data) >> 7]) + data


@pytest.mark.parametrize("name", sorted(BODIES))
def test_what_is_written_is_read_back(name: str) -> None:
    assert entries.read(entries.write(envelope(BODIES[name]))) == envelope(BODIES[name])


def test_entry_zero_reads_back() -> None:
    first = envelope(AgreementOffer(b"x"), seq=0)
    assert entries.read(entries.write(first)) == first


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("place", ["entry", "presentation", "terms", "places"])
def test_hidden_data_is_refused_at_every_depth(place: str) -> None:
    honest = message()
    assert entries.read(raw(honest)) == envelope(BODIES["delivery"])  # sanity
    tampered = message()
    target = {
        "entry": tampered,
        "presentation": tampered.presentation,
        "terms": tampered.presentation.terms,
        "places": tampered.presentation.terms.storage,
    }[place]
    target.MergeFromString(HIDDEN)
    data = raw(tampered)
    assert b"hidden" in data  # protobuf carries it along: nothing but our check is in its way
    with pytest.raises(MalformedError, match="does not know"):
        entries.read(data)


@pytest.mark.parametrize("kind", ["agreement", "withdrawal"])
def test_hidden_data_is_refused_in_control_traffic(kind: str) -> None:
    tampered = message(kind)
    getattr(tampered, kind).MergeFromString(HIDDEN)
    with pytest.raises(MalformedError, match="does not know"):
        entries.read(raw(tampered))


def test_a_group_is_hidden_data_too() -> None:
    group = bytes([15 << 3 | 3, 15 << 3 | 4])
    with pytest.raises(MalformedError, match="does not know"):
        entries.read(raw(message()) + group)


@pytest.mark.invariant("I7")
def test_one_entry_has_one_form() -> None:
    honest = message()
    canonical = raw(honest)
    seq = bytes([2 << 3, 7])
    assert seq in canonical
    for name, data in {
        "a field twice": canonical + seq,
        "a number in more bytes than it needs": canonical.replace(seq, bytes([2 << 3, 0x87, 0x00])),
        "fields in another order": canonical.replace(seq, b"") + seq,
        "the body in two parts": canonical + field(4, wire.Presentation(disclosures=[b"[3]"]).SerializeToString()),
        "two bodies, the last counts": raw(message("agreement")) + canonical,
        "a default written out": raw(message("agreement")) + field(3, b"")[:2].replace(b"\x80", b"\x00"),
        "the body's length in three bytes": raw(message("agreement")).replace(
            bytes([5 << 3 | 2, 10]), bytes([5 << 3 | 2, 0x8A, 0x80, 0x00])
        ),
    }.items():
        assert data != canonical, name
        with pytest.raises(MalformedError):
            entries.read(data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 20, b"{}", raw(message())[:-1]])
def test_bytes_that_are_no_entry_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        entries.read(data)


def test_an_entry_without_a_body_is_refused() -> None:
    with pytest.raises(MalformedError, match="no body"):
        entries.read(raw(wire.Entry(feed=ORIGIN, seq=7, nonce=NONCE)))


@pytest.mark.parametrize("nonce", [b"", b"n" * 15, b"n" * 17])
def test_a_nonce_has_its_size(nonce: bytes) -> None:
    made = message()
    made.nonce = nonce
    with pytest.raises(MalformedError, match="nonce"):
        entries.read(raw(made))


@pytest.mark.invariant("I6")
@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("core_digest", b"c" * 31),
        ("core_digest", b""),
        ("agreement_digest", b"a" * 33),
        ("recipient", ""),
        ("recipient", "DE"),
        ("retain_until", "2027-01-01"),
        ("retain_until", "never"),
        ("onward", ""),
        ("onward", "everybody"),
        ("attribution", ""),
        ("attribution", "maybe"),
    ],
)
def test_terms_with_a_member_that_is_not_well_formed_are_refused(member: str, value: object) -> None:
    made = message()
    setattr(made.presentation.terms, member, value)
    with pytest.raises(MalformedError):
        entries.read(raw(made))


@pytest.mark.invariant("I6")
def test_a_delivery_without_terms_is_refused() -> None:
    made = message()
    made.presentation.ClearField("terms")
    with pytest.raises(MalformedError):
        entries.read(raw(made))


@pytest.mark.parametrize(
    "purposes", [["remediation", "detection"], ["detection", "detection"], ["detection", "everything"], [""]]
)
def test_purposes_are_sorted_known_and_each_once(purposes: list[str]) -> None:
    made = message()
    made.presentation.terms.purposes[:] = purposes
    with pytest.raises(MalformedError):
        entries.read(raw(made))


@pytest.mark.parametrize("countries", [["FR", "DE"], ["DE", "DE"], ["de"], ["DEU"], [""]])
def test_places_are_sorted_countries_each_once(countries: list[str]) -> None:
    made = message()
    made.presentation.terms.storage.countries[:] = countries
    with pytest.raises(MalformedError):
        entries.read(raw(made))


def test_no_place_of_storage_is_not_any_place() -> None:
    made = message()
    del made.presentation.terms.storage.countries[:]
    body = entries.read(raw(made)).body
    assert isinstance(body, Delivery)
    assert body.terms.storage == frozenset()


@pytest.mark.parametrize("seqs", [[], [2, 0], [1, 1], [7], [8], [0, 1 << 63]])
def test_a_withdrawal_names_earlier_entries_each_once(seqs: list[int]) -> None:
    made = message("withdrawal")
    made.withdrawal.seqs[:] = seqs
    with pytest.raises(MalformedError, match="withdrawal"):
        entries.read(raw(made))


@pytest.mark.parametrize("reason", ["", "r" * 201, "une règle"])
def test_a_withdrawal_has_a_rule_for_a_reason(reason: str) -> None:
    made = message("withdrawal")
    made.withdrawal.reason = reason
    with pytest.raises(MalformedError, match="reason"):
        entries.read(raw(made))


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (Delivery(Presentation(b"x" * limits.MAX_ENTRY_BYTES, ()), TERMS), limits.MAX_ENTRY_BYTES),
        (AgreementOffer(b"x" * limits.MAX_CONTROL_BYTES), limits.MAX_CONTROL_BYTES),
        (Withdrawal(tuple(range(1 << 20, (1 << 20) + 90_000)), "r"), limits.MAX_CONTROL_BYTES),
    ],
)
def test_sizes_are_bounded_on_both_sides(body: Body, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    big = envelope(body, seq=1 << 22)
    with pytest.raises(TooLargeError, match=str(most)):
        entries.write(big)
    monkeypatch.setattr(limits, "MAX_ENTRY_BYTES", 1 << 30)
    monkeypatch.setattr(limits, "MAX_CONTROL_BYTES", 1 << 30)
    data = entries.write(big)  # a sender without limits
    monkeypatch.undo()
    with pytest.raises(TooLargeError):
        entries.read(data)


def test_the_number_of_disclosures_is_bounded() -> None:
    many = Delivery(Presentation(b"core", (b"[]",) * (limits.MAX_DISCLOSURES + 1)), TERMS)
    with pytest.raises(TooLargeError, match="disclosures"):
        entries.read(entries.write(envelope(many)))


def test_a_page_item_is_an_entry_or_what_is_left_of_one() -> None:
    assert entries.read_item(wire.PageItem(entry=b"bytes")) == b"bytes"
    erased = wire.Erased(seq=3, leaf_hash=b"h" * 32, erased_by=5)
    assert entries.read_item(wire.PageItem(erased=erased)) == ErasedItem(3, b"h" * 32, 5)


@pytest.mark.parametrize(
    "item",
    [
        wire.PageItem(),
        wire.PageItem(erased=wire.Erased(seq=3, leaf_hash=b"h" * 31, erased_by=5)),
        wire.PageItem(erased=wire.Erased(seq=3, leaf_hash=b"", erased_by=5)),
        wire.PageItem(erased=wire.Erased(seq=3, leaf_hash=b"h" * 32, erased_by=3)),
        wire.PageItem(erased=wire.Erased(seq=3, leaf_hash=b"h" * 32, erased_by=2)),
    ],
)
def test_a_page_item_that_is_neither_is_refused(item: wire.PageItem) -> None:
    with pytest.raises(MalformedError, match="page"):
        entries.read_item(item)


def test_a_whole_page_is_searched_for_hidden_data() -> None:
    erased = wire.Erased(seq=3, leaf_hash=b"h" * 32, erased_by=5)
    erased.MergeFromString(HIDDEN)
    page = wire.PullResponse(items=[wire.PageItem(entry=b"x"), wire.PageItem(erased=erased)])
    with pytest.raises(MalformedError, match="does not know"):
        entries.refuse_unknown(page, "page")
