"""What is weighed before it is read: how much a delivery would take in memory, and bytes that are no entry at all."""

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from federation import inbound
from federation.agreement import Agreement, from_yaml
from federation.base64url import b64url
from federation.entries import AgreementOffer, Delivery, Envelope, write
from federation.errors import MalformedError, TooLargeError
from federation.inbound import Receiver, may_keep_unread, open_delivery
from federation.keyring import Keyring
from federation.labels import LabelSet
from federation.limits import MAX_EVIDENCE_BYTES
from federation.model import Country, NodeId, Presentation, Terms
from federation.policy.engine import RuleBook
from federation.sdjwt.profile import header
from federation.strictjson import encode

FR, DE, IN = NodeId("cert.fr.example"), NodeId("cert.de.example"), NodeId("cert.in.example")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
TERMS = """
agreement: fr-de
version: 1
parties: [cert.fr.example, cert.de.example]
valid_from: "2026-01-01T00:00:00Z"
valid_until: "2027-01-01T00:00:00Z"
sunset_review: "2026-12-01T00:00:00Z"
purposes: [remediation]
grants:
  - {id: one, from: [cert.fr.example], tlp: [GREEN], share: {identification: full}}
"""


def agreed(old: str = "", new: str = "") -> Agreement:
    assert old in TERMS
    return from_yaml(TERMS.replace(old, new) if old else TERMS, "fr-de.yaml")


def receiver(*agreements: Agreement, country: str = "DE") -> Receiver:
    """DE, with nothing but its agreements."""
    held = {agreement.digest: agreement for agreement in agreements}
    return Receiver(DE, Country(country), Keyring({}), cast("LabelSet", None), cast("RuleBook", None), held)


# A core of one value, in an object; each disclosure has three marks
PAYLOAD = b'{"iss":"CERT"}'
CORE = f"{b64url(encode(header('k')))}.{b64url(PAYLOAD)}.{b64url(bytes(64))}".encode()
DISCLOSURES = (b'["s","a",1]', b'["s","b",{}]')


def weigh(monkeypatch: pytest.MonkeyPatch, most: int, uncounted: int = 0) -> None:
    monkeypatch.setattr(inbound, "MAX_JSON_VALUES", most)
    monkeypatch.setattr(inbound, "UNCOUNTED_BYTES", uncounted)
    open_delivery(Delivery(Presentation(CORE, DISCLOSURES), cast("Terms", None)), receiver(), NOW)


def test_values_of_core_and_disclosures_are_counted_together_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TooLargeError, match="over 7 values"):
        weigh(monkeypatch, 7)
    with pytest.raises(MalformedError, match="node id"):  # as many as allowed: it is read, and its origin is no name
        weigh(monkeypatch, 8)


def test_white_space_before_a_disclosure_hides_no_values_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_inbound_unread.DISCLOSURES", tuple(b" " + raw for raw in DISCLOSURES))
    with pytest.raises(TooLargeError, match="over 7 values"):
        weigh(monkeypatch, 7)


def test_a_small_delivery_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(CORE) + sum(map(len, DISCLOSURES))
    with pytest.raises(MalformedError, match="node id"):
        weigh(monkeypatch, 0, size)
    with pytest.raises(TooLargeError):
        weigh(monkeypatch, 0, size - 1)


@pytest.mark.invariant("I10")
def test_bytes_that_are_no_entry_are_kept_by_an_agreement_in_force_if_they_are_few() -> None:
    here = receiver(agreed())
    assert may_keep_unread(b"\xff garbage", here, FR, NOW)
    assert may_keep_unread(b"\xff" * MAX_EVIDENCE_BYTES, here, FR, NOW)
    assert not may_keep_unread(b"\xff" * (MAX_EVIDENCE_BYTES + 1), here, FR, NOW)
    assert not may_keep_unread(b"\xff garbage", receiver(), FR, NOW)
    assert not may_keep_unread(b"\xff garbage", here, IN, NOW)
    assert not may_keep_unread(b"\xff garbage", here, FR, NOW + timedelta(days=300))


@pytest.mark.invariant("I10")
def test_what_hides_behind_a_sound_entry_is_not_kept() -> None:
    entry = write(Envelope("cert.fr.example/feeds/cert.de.example/1", 0, b"n" * 16, AgreementOffer(b"x")))
    hidden = entry + b"\xfa\x7f\x06hidden"  # field 2047, which this version does not know
    assert not may_keep_unread(hidden, receiver(agreed()), FR, NOW)


@pytest.mark.invariant("I10")
def test_one_agreement_that_lets_bytes_lie_in_this_country_is_enough() -> None:
    elsewhere = agreed("purposes: [remediation]", "purposes: [remediation]\nstorage: [FR]")
    here = agreed("purposes: [remediation]", "purposes: [remediation]\nstorage: [DE]")
    assert not may_keep_unread(b"\xff", receiver(elsewhere), FR, NOW)
    assert may_keep_unread(b"\xff", receiver(here), FR, NOW)
    assert may_keep_unread(b"\xff", receiver(elsewhere, here), FR, NOW)
    assert not may_keep_unread(b"\xff", receiver(here, country="FR"), FR, NOW)
