"""What the generated vectors are made of: three invented nodes with fixed keys, an agreement, an advisory, a feed.

Every secret here is SHA-256 of a printed label: for tests only, worth nothing anywhere else. Nothing is random and no
clock is read, so the same code gives the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation import agreement, ed25519, entries, keyring, merkle, outbound, strictjson
from federation.base64url import b64url
from federation.checkpoint import Checkpoint, cosign, origin_line, sign
from federation.elements import selection
from federation.entries import AgreementOffer, Body, Envelope
from federation.keyring import Card, OnlineKey, RootSet, key_id, root_key_id
from federation.labels import load as load_labels
from federation.model import (
    Category,
    Country,
    Form,
    Handling,
    JsonObject,
    NodeId,
    Onward,
    Presentation,
    Purpose,
    Role,
    Tier,
    Tlp,
)
from federation.outbound import Draft

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
BEGIN, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2027, 12, 3, tzinfo=UTC)
LABELS_FILE = Path(__file__).parents[2] / "config" / "labels" / "csaf-2.0.yaml"
LABELS = load_labels(LABELS_FILE.read_text(encoding="utf-8"), LABELS_FILE.name)
FR, DE, IN = NodeId("cert.fr.example"), NodeId("cert.de.example"), NodeId("cert.in.example")
ORIGIN = origin_line(FR, DE, 1)
ABSENT: Any = object()  # in place of a member that is to be left out; null is a value

_SIGNATURES_ONLY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def seed(label: str) -> bytes:
    """A test secret: SHA-256 of `apostille vector LABEL`."""
    return hashlib.sha256(f"apostille vector {label}".encode()).digest()


def signer(label: str) -> Callable[[bytes], bytes]:
    return partial(ed25519.sign, seed(label))


def public(label: str) -> bytes:
    return ed25519.public_key(seed(label))


def entropy(label: str) -> Callable[[int], bytes]:
    return lambda size: hashlib.shake_256(f"apostille vector {label}".encode()).digest(size)


def certificate(node: NodeId) -> bytes:
    """A certificate of the profile in docs/protocol.md, DER; ECDSA by RFC 6979, so that it is the same each time."""
    private = ec.derive_private_key(int.from_bytes(seed(f"{node} tls")[:31], "big"), ec.SECP256R1())
    key = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hashlib.sha256(key).hexdigest()[:32])])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    built = (
        x509.CertificateBuilder(name, name, private.public_key(), 1, BEGIN - timedelta(hours=1), END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(_SIGNATURES_ONLY, critical=True)
        .add_extension(usage, critical=False)
    )
    return built.sign(private, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(serialization.Encoding.DER)


def online(role: Role, raw: bytes, begin: datetime = BEGIN, end: datetime = END) -> OnlineKey:
    return OnlineKey(role, key_id(role, raw), raw, begin, end)


def card(node: NodeId, country: str, *more: OnlineKey) -> Card:
    keys = [online(role, public(f"{node} {role}")) for role in (Role.ISSUE, Role.FEED, Role.RECEIPT)]
    roots = RootSet(2, tuple(public(f"{node} root {number}") for number in (1, 2, 3)))
    return Card(
        node=node,
        version=1,
        issued_at=BEGIN,
        jurisdiction=Country(country),
        protocols=(1,),
        endpoint=f"{node}:7443",
        roots=roots,
        keys=(*keys, online(Role.TLS, certificate(node)), *more),
    )


def root_signers(node: NodeId, *numbers: int) -> list[tuple[str, str]]:
    """Key id and seed label of root keys."""
    return [(root_key_id(public(f"{node} root {n}")), f"{node} root {n}") for n in numbers]


def document(
    payload: bytes, typ: str, signers: Iterable[tuple[str, str]], header: Mapping[str, Any] | None = None
) -> str:
    """JWS in general JSON serialisation by (kid, seed label); `header` overrides members of the protected headers."""
    signatures = []
    for kid, label in signers:
        protected = strictjson.encode({"alg": "Ed25519", "kid": kid, "typ": typ} | dict(header or {}))
        signing_input = f"{b64url(protected)}.{b64url(payload)}".encode()
        signatures.append({"protected": b64url(protected), "signature": b64url(signer(label)(signing_input))})
    return json.dumps({"payload": b64url(payload), "signatures": signatures}, separators=(",", ":"))


def card_text(made: Card) -> str:
    return document(made.payload(), keyring.JWS_TYPE, root_signers(made.node, 1, 2))


OLD_KEY = online(Role.ISSUE, public(f"{FR} old issue"), BEGIN - timedelta(days=400), BEGIN)
CARDS = {FR: card(FR, "FR", OLD_KEY), DE: card(DE, "DE"), IN: card(IN, "IN")}
CARD_TEXTS = [card_text(made) for made in CARDS.values()]

AGREEMENT_YAML = """\
agreement: fr-de-in-2026
version: 1
parties: [cert.fr.example, cert.de.example, cert.in.example]
valid_from: 2026-01-01T00:00:00Z
valid_until: 2027-12-31T00:00:00Z
sunset_review: 2027-06-30T00:00:00Z
purposes: [remediation, detection]
retention_days: 730
storage: [FR, DE, IN]
grants:
  - id: france-germany
    from: [cert.fr.example, cert.de.example]
    to: [cert.fr.example, cert.de.example]
    tlp: [CLEAR, GREEN, AMBER, AMBER+STRICT, RED]
    tiers: [standard, sensitive]
    share: {identification: full, technical: full, product: full, severity: full, remediation: full, personal: full}
  - id: with-india
    tlp: [CLEAR, GREEN, AMBER]
    share: {identification: full, product: generalised, remediation: full, personal: generalised}
"""
AGREEMENT = agreement.from_yaml(AGREEMENT_YAML, "agreement.yaml")


def issue_kid(node: NodeId, role: Role = Role.ISSUE) -> str:
    return f"{node}/{key_id(role, public(f'{node} {role}'))}"


def party_signers(*nodes: NodeId) -> list[tuple[str, str]]:
    return [(issue_kid(node), f"{node} issue") for node in nodes]


CSAF: JsonObject = {
    "document": {
        "category": "csaf_security_advisory",
        "csaf_version": "2.0",
        "title": "Gateway parser reads past its buffer",
        "publisher": {"category": "coordinator", "name": "CERT Example", "namespace": "https://cert.fr.example"},
        "tracking": {
            "id": "FR-VECTOR-1",
            "version": "1",
            "status": "final",
            "initial_release_date": "2026-11-20T08:00:00Z",
            "current_release_date": "2026-11-20T08:00:00Z",
            "revision_history": [{"date": "2026-11-20T08:00:00Z", "number": "1", "summary": "First release"}],
        },
        "acknowledgments": [{"names": ["Zoé Example"], "summary": "reported it"}],
        "notes": [{"category": "summary", "text": "A long header makes the parser read past its buffer."}],
    },
    "product_tree": {"full_product_names": [{"name": "Example Gateway 4.1", "product_id": "GW41"}]},
    "vulnerabilities": [
        {
            "title": "Out-of-bounds read",
            "cwe": {"id": "CWE-125", "name": "Out-of-bounds Read"},
            "notes": [
                {"category": "description", "text": "The length field is trusted."},
                {"category": "details", "text": "Send 70 000 bytes in one header line."},
            ],
            "product_status": {"known_affected": ["GW41"]},
            "remediations": [{"category": "vendor_fix", "details": "Update to 4.2.", "product_ids": ["GW41"]}],
        }
    ],
}
AI: JsonObject = {"artifact_type": "model", "model": {"vendor": "Example AI", "name": "Parser-1", "version": "3"}}
HANDLING = Handling(
    tlp=Tlp.AMBER,
    home=Country("FR"),
    storage=None,
    onward=Onward.NONE,
    purposes=frozenset((Purpose.DETECTION, Purpose.REMEDIATION)),
    retain_until=datetime(2028, 1, 1, tzinfo=UTC),
    embargo_until=None,
    tier=Tier.STANDARD,
    recipients=None,
)
_DRAFT = Draft(FR, "FR-VECTOR-1", 1, NOW, HANDLING, CSAF, AI, {"/csaf/vulnerabilities/0/notes/1": Category.EXPLOIT})


@dataclass(frozen=True, slots=True)
class Made:
    """An issued advisory, and what can be chosen from it."""

    own: outbound.OwnAdvisory
    disclosures: tuple[bytes, ...]

    def choose(self, forms: Callable[[str, frozenset[Category]], Form]) -> tuple[bytes, ...]:
        """The disclosures of the form that `forms` gives each element, by its path and categories."""
        chosen = [(e, forms(e.path, e.categories)) for e in self.own.elements]
        has_tree = {e.path: f for e, f in chosen}.get("/csaf/product_tree") is not Form.WITHHELD
        return selection([(e, f) for e, f in chosen if has_tree or not e.needs_products], self.own.nodes)

    def payload(self, **changes: Any) -> JsonObject:
        """The signed payload with members replaced; None removes one."""
        changed: JsonObject = json.loads(json.dumps(self.own.payload)) | changes
        return {name: value for name, value in changed.items() if value is not None}


def make(handling: Handling = HANDLING) -> Made:
    issued = outbound.issue(
        replace(_DRAFT, handling=handling),
        LABELS,
        kid=key_id(Role.ISSUE, public(f"{FR} issue")),
        sign=signer(f"{FR} issue"),
        entropy=entropy("salts"),
    )
    return Made(outbound.reopen(issued.core, issued.disclosures, LABELS), issued.disclosures)


def core(payload: JsonObject | bytes, label: str = f"{FR} issue", **header: Any) -> bytes:
    """A core over any payload and header, signed by a test key; a header member of None is left out."""
    members = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": key_id(Role.ISSUE, public(f"{FR} issue"))} | header
    first = strictjson.encode({name: value for name, value in members.items() if value is not None})
    body = payload if isinstance(payload, bytes) else strictjson.encode(payload)
    signing_input = f"{b64url(first)}.{b64url(body)}".encode()
    return signing_input + b"." + b64url(signer(label)(signing_input)).encode()


def offer() -> AgreementOffer:
    return AgreementOffer(document(AGREEMENT.canonical, agreement.JWS_TYPE, party_signers(FR, DE, IN)).encode())


def entry(seq: int, body: Body, *, origin: str = ORIGIN, nonce: str = "") -> bytes:
    return entries.write(Envelope(origin, seq, entropy(f"nonce {seq}{nonce}")(16), body))


def note(size: int, root: bytes, *, origin: str = ORIGIN, label: str = f"{FR} feed") -> str:
    """A signed head."""
    return sign(Checkpoint(origin, size, root), origin, signer(label), public(label)).decode()


def newest(size: int, root: bytes, *, at: datetime = NOW) -> str:
    """A signed head with the log's own timestamped cosignature."""
    label = f"{FR} feed"
    return cosign(note(size, root).encode(), ORIGIN, int(at.timestamp()), signer(label), public(label)).decode()


def root_of(items: Iterable[bytes]) -> bytes:
    return merkle.root(merkle.leaf_hash(item) for item in items)


def presentation(made: Made, disclosures: Iterable[bytes]) -> Presentation:
    return Presentation(made.own.core, tuple(disclosures))
