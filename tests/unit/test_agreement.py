"""Agreements: written strictly, one canonical form, and in force for whoever signed exactly that."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rfc8785

from federation import agreement as terms
from federation import ed25519, jws, strictjson
from federation.agreement import Agreement, from_canonical, from_yaml, open_signed
from federation.errors import KeyringError, MalformedError, SignatureError, TooLargeError, UsageError
from federation.model import Category, Form, NodeId, Onward

FR, DE, IN, KE = (NodeId(f"cert.{code}.example") for code in ("fr", "de", "in", "ke"))
SEEDS = {FR: b"f" * 32, DE: b"d" * 32, IN: b"i" * 32, KE: b"k" * 32}

MEMBERS: dict[str, str] = {
    "agreement": "fr-de-in",
    "version": "1",
    "parties": f"[{FR}, {DE}, {IN}]",
    "valid_from": "2026-01-01T00:00:00Z",
    "valid_until": "2027-01-01T00:00:00Z",
    "sunset_review": "2026-07-01T00:00:00Z",
    "purposes": "[remediation]",
    "grants": "[{id: all, tlp: [GREEN], share: {identification: full, exploit: generalised}}]",
}


def text(**changed: str | None) -> str:
    members = {**MEMBERS, **changed}
    return "\n".join(f"{name}: {value}" for name, value in members.items() if value is not None)


def read(**changed: str | None) -> Agreement:
    return from_yaml(text(**changed), "a.yaml")


def grant(**changed: str | None) -> str:
    members: dict[str, str | None] = {"id": "all", "tlp": "[GREEN]", "share": "{identification: full}", **changed}
    return "[{" + ", ".join(f"{name}: {value}" for name, value in members.items() if value is not None) + "}]"


def test_an_agreement_is_read_with_its_defaults() -> None:
    agreed = read()
    assert agreed.parties == (DE, FR, IN)  # sorted: one form
    assert (agreed.previous, agreed.storage, agreed.retention_days) == (None, None, None)
    assert (agreed.onward, agreed.safeguards) == (Onward.NONE, frozenset())
    (clause,) = agreed.grants
    assert clause.senders == clause.receivers == {FR, DE, IN}
    assert clause.share == {Category.IDENTIFICATION: Form.FULL, Category.EXPLOIT: Form.GENERALISED}
    assert agreed.covers(FR, DE)
    assert not agreed.covers(FR, KE)
    assert not agreed.covers(KE, FR)


def test_it_is_in_force_from_its_first_instant_up_to_its_last() -> None:
    agreed = read()
    first, last, tick = agreed.valid_from, agreed.valid_until, timedelta(microseconds=1)
    assert agreed.in_dates(first)
    assert agreed.in_dates(last - tick)
    assert not agreed.in_dates(first - tick)
    assert not agreed.in_dates(last)


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_a_member_that_is_missing_is_named(member: str) -> None:
    with pytest.raises(UsageError, match=f"a.yaml: missing {member}"):
        read(**{member: None})


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"also": "1"}, "unknown key also"),
        ({"agreement": "Fr De"}, "lower-case"),
        ({"agreement": "fr-"}, "lower-case"),
        ({"agreement": "7"}, "lower-case"),
        ({"version": "0"}, "whole number"),
        ({"version": "true"}, "whole number"),
        ({"version": "1.0"}, "whole number"),
        ({"version": "10001", "previous": "ab" * 32}, "whole number"),
        ({"parties": f"[{FR}]"}, "at least two"),
        ({"parties": f"[{FR}, {FR}]"}, "stands twice"),
        ({"parties": f"{FR}"}, "list"),
        ({"parties": "[Cert.FR.example, cert.de.example]"}, "node id"),
        ({"parties": f"[{', '.join(f'c{n}.example' for n in range(65))}]"}, "list of 1 to 64"),
        ({"valid_from": "2026-01-01"}, "instant"),
        ({"valid_until": "2026-02-30T00:00:00Z"}, "date that exists"),
        ({"valid_until": "2025-01-01T00:00:00Z"}, "dates must run"),
        ({"sunset_review": "2026-01-01T00:00:00Z"}, "dates must run"),
        ({"sunset_review": "2027-01-02T00:00:00Z"}, "dates must run"),
        ({"purposes": "[]"}, "list"),
        ({"purposes": "[everything]"}, "everything"),
        ({"purposes": "[remediation, remediation]"}, "stands twice"),
        ({"storage": "[]"}, "list"),
        ({"storage": "[fr]"}, "country"),
        ({"retention_days": "0"}, "whole number"),
        ({"retention_days": "36501"}, "whole number"),
        ({"onward": "everybody"}, "everybody"),
        ({"attribution": "maybe"}, "maybe"),
        ({"safeguards": '["a b"]'}, "safeguards"),
        ({"previous": "ab" * 32}, "version 2"),
        ({"version": "2"}, "version 2"),
        ({"version": "2", "previous": "abcd"}, "64 hexadecimal"),
        ({"version": "2", "previous": "AB" * 32}, "64 hexadecimal"),
        ({"grants": "[]"}, "at least one clause"),
        ({"grants": "{}"}, "at least one clause"),
        ({"grants": "[7]"}, "expected keys"),
        ({"grants": grant(id=None)}, "missing id"),
        ({"grants": grant(also="1")}, "unknown key also"),
        ({"grants": grant(tlp="[]")}, "list"),
        ({"grants": grant(tlp="[WHITE]")}, "WHITE"),
        ({"grants": grant(tiers="[high]")}, "high"),
        ({"grants": grant(to=f"[{KE}]")}, "no party"),
        ({"grants": grant(**{"from": f"[{KE}]"})}, "no party"),
        ({"grants": grant(to="[]")}, "list"),
        ({"grants": grant(share="{}")}, "expected categories"),
        ({"grants": grant(share="[identification]")}, "expected categories"),
        ({"grants": grant(share="{identification: full, everything: full}")}, "everything"),
        ({"grants": grant(share="{identification: full, victim: withheld}")}, "leave a category out"),
        ({"grants": grant(share="{identification: full, victim: maybe}")}, "maybe"),
        ({"grants": grant(share="{exploit: full}")}, "identification is needed"),
        ({"grants": grant()[:-1] + ", " + grant()[1:]}, "same id"),
    ],
)
def test_a_mistake_is_told_with_its_place(changed: Mapping[str, str], rule: str) -> None:
    with pytest.raises(UsageError, match=rf"a\.yaml.*{rule}"):
        read(**changed)


def test_equal_terms_have_one_digest_however_they_are_written() -> None:
    written = read(parties=f"[{IN}, {FR}, {DE}]", grants=MEMBERS["grants"].replace("full, exploit", "full,   exploit"))
    assert written == read()
    assert written.digest == read().digest
    assert read(purposes="[detection]").digest != read().digest


def test_the_canonical_form_is_read_back() -> None:
    for agreed in (read(), read(version="2", previous="ab" * 32, storage="[FR]", retention_days="7", onward="peers")):
        assert from_canonical(agreed.canonical) == agreed


def _other_form(agreed: Agreement, **changed: Any) -> bytes:
    return rfc8785.dumps({**strictjson.decode(agreed.canonical, max_bytes=1 << 20, what="x"), **changed})


@pytest.mark.parametrize(
    "payload",
    [
        b" " + read().canonical,
        read().canonical.replace(b'"version":1', b'"version":1.0'),
        _other_form(read(), parties=[FR, DE, IN]),  # not sorted
        read().canonical.replace(b'"onward":"none",', b""),  # the default left out
        _other_form(read(), also=1),
        b"{}",
        b"[]",
        b"{",
        b"\xff",
    ],
)
def test_another_form_of_the_same_terms_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        from_canonical(payload)


def _signature(party: NodeId, payload: bytes, *, kid: str | None = None, seed: bytes | None = None) -> jws.Signature:
    return jws.sign(payload, terms.JWS_TYPE, kid or f"{party}/k1", lambda m: ed25519.sign(seed or SEEDS[party], m))


def _document(*signatures: jws.Signature, payload: bytes | None = None) -> bytes:
    return jws.serialise(jws.SignedDocument(payload or read().canonical, signatures))


def _key_of(party: NodeId, kid: str) -> bytes:
    if kid.partition("/")[2] not in ("k1", "k2"):
        raise KeyringError("no such key")
    return ed25519.public_key(SEEDS[party])


PAYLOAD = read().canonical


def test_the_signatures_that_hold_are_named() -> None:
    agreed, signed, _ = open_signed(_document(_signature(FR, PAYLOAD), _signature(IN, PAYLOAD)), _key_of)
    assert agreed == read()
    assert signed == {FR, IN}


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("signatures", "error"),
    [
        ([_signature(KE, PAYLOAD)], SignatureError),  # (2) no party
        ([_signature(FR, PAYLOAD, kid="nobody")], MalformedError),  # (2) no node
        ([_signature(FR, PAYLOAD, kid=f"{FR}/k9")], KeyringError),
        ([_signature(FR, PAYLOAD), _signature(FR, PAYLOAD, kid=f"{FR}/k2")], SignatureError),  # (3)
        ([_signature(FR, PAYLOAD, seed=SEEDS[DE])], SignatureError),  # (4) forged
        ([_signature(FR, PAYLOAD, kid=f"{DE}/k1")], SignatureError),  # (4) under another's name
        ([_signature(FR, PAYLOAD), _signature(DE, read(version="2", previous="ab" * 32).canonical)], SignatureError),
    ],
)
def test_one_signature_that_does_not_hold_refuses_the_document(
    signatures: list[jws.Signature], error: type[Exception]
) -> None:
    with pytest.raises(error):
        open_signed(_document(*signatures), _key_of)


def test_a_signature_over_another_kind_of_document_does_not_count() -> None:
    signature = jws.sign(PAYLOAD, "card+jws", f"{FR}/k1", lambda m: ed25519.sign(SEEDS[FR], m))
    with pytest.raises(MalformedError):
        open_signed(_document(signature), _key_of)


def test_signed_bytes_that_are_not_canonical_are_refused() -> None:
    payload = b" " + PAYLOAD
    with pytest.raises(MalformedError, match="canonical"):
        open_signed(_document(_signature(FR, payload), payload=payload), _key_of)


def test_a_document_over_the_limit_of_control_traffic_is_refused() -> None:
    with pytest.raises(TooLargeError):
        open_signed(b" " * ((256 << 10) + 1), _key_of)


def test_dates_are_utc() -> None:
    assert read().valid_from == datetime(2026, 1, 1, tzinfo=UTC)
