"""Mutual TLS without an authority: every node pins the certificates on the cards that it has enrolled.

The chain only opens the connection. Who calls is decided by comparing the exact public key with the cards that are
trusted at that moment, at every call, because an open connection outlives the trust in its peer. A client cannot ask
gRPC which certificate the server showed; so a certificate is enrolled only if no other can be accepted in its place,
see `check_certificate`. Making keys is `node.keys`' affair.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import select

from federation.errors import KeyringError, MalformedError
from federation.keyring import Card, open_card
from federation.model import NodeId, Role
from node.context import Node
from node.keys import pem_of, public_key_of, public_key_of_pem
from node.store.database import read
from node.store.tables import peers

LEAST_RSA_BITS = 3072  # NIST SP 800-57: 128 bits of security
_REMEMBERED = (
    256  # cards and certificates whose parsing is not repeated: checking a card's signatures takes a millisecond
)

_open_card = lru_cache(_REMEMBERED)(open_card)
_public_key_of = lru_cache(_REMEMBERED)(public_key_of)
_pem_of = lru_cache(_REMEMBERED)(pem_of)


def trusted_cards(node: Node) -> tuple[Card, ...]:
    """The cards of all peers that are trusted now, read afresh."""
    with read(node.engine) as tx:
        rows = tx.execute(select(peers.c.card).where(peers.c.trusted == 1).order_by(peers.c.node)).scalars().all()
    return tuple(_open_card(data) for data in rows)


def server_credentials(node: Node) -> grpc.ServerCredentials:
    """Credentials that admit the holders of trusted cards, looked up again for each connection.

    Raises LockedError, UsageError.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        now = node.clock()
        own = node.keys.tls(node.card, now)
        # nobody enrolled: gRPC needs a root, and our own key is the one that no peer holds
        roots = b"".join(_roots(trusted_cards(node), now)) or own.certificate
        return grpc.ssl_server_certificate_configuration([(own.private_key, own.certificate)], roots)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)


def channel_credentials(node: Node, peer: Card) -> grpc.ChannelCredentials:
    """Credentials that accept nothing but the certificates on `peer`'s card.

    Raises LockedError, UsageError, KeyringError.
    """
    now = node.clock()
    own = node.keys.tls(node.card, now)
    pinned = b"".join(_pem_of(key.public) for key in peer.valid_keys(Role.TLS, now))
    return grpc.ssl_channel_credentials(pinned, own.private_key, own.certificate)


def peer_of(auth_context: Mapping[str, Iterable[bytes]], cards: Iterable[Card], now: datetime) -> Card:
    """The card that holds the exact key of whoever is at the other end.

    (1) one certificate was presented; (2) its public key is, byte for byte, that of a `tls` key valid now
    (3) on exactly one of `cards`. Raises KeyringError.
    """
    presented = tuple(auth_context.get("x509_pem_cert", ()))
    if len(presented) != 1:  # (1)
        raise KeyringError("the caller presented no certificate")
    try:
        key = public_key_of_pem(presented[0])
    except ValueError as e:
        raise KeyringError("the caller's certificate cannot be read") from e
    found = [card for card in cards if key in _keys_of(card, now)]  # (2)
    if len(found) != 1:  # (3)
        raise KeyringError(f"{len(found)} trusted cards hold the caller's key")
    return found[0]


def check_certificate(der: bytes, node: NodeId) -> None:
    """Refuses to pin a certificate in whose place another could be accepted, or which gRPC could not use.

    (1) X.509 version 3, self-signed by its own key: nobody can enrol a key that he does not hold
    (2) basicConstraints says CA:FALSE (RFC 5280 4.2.1.9)
    (3) keyUsage says digitalSignature and not keyCertSign (4.2.1.3). This is what counts: TLS accepts what a pinned
        certificate has signed even under CA:FALSE, and takes the first of two roots with one name for the other
    (4) the key is P-256, or RSA of 3072 bits or more; gRPC's TLS does not offer Ed25519
    (5) the subject's one alternative name is the node id
    Raises MalformedError.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        key = certificate.public_key()
        certificate.verify_directly_issued_by(certificate)  # (1)
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension) as e:
        raise MalformedError(f"tls certificate of {node}: not a self-signed leaf of version 3") from e
    if constraints.ca:  # (2)
        raise MalformedError(f"tls certificate of {node}: it may sign others (CA:TRUE)")
    if not usage.digital_signature or usage.key_cert_sign:  # (3)
        raise MalformedError(
            f"tls certificate of {node}: keyUsage must allow signatures, and not those of certificates"
        )
    if not _is_usable(key):  # (4)
        raise MalformedError(f"tls certificate of {node}: the key must be P-256, or RSA of {LEAST_RSA_BITS} bits")
    if names != [x509.DNSName(node)]:  # (5)
        raise MalformedError(f"tls certificate of {node}: its one alternative name must be the node id")


def _is_usable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS


def _keys_of(card: Card, now: datetime) -> frozenset[bytes]:
    return frozenset(_public_key_of(key.public) for key in card.keys if key.role is Role.TLS and key.valid_at(now))


def _roots(cards: Iterable[Card], now: datetime) -> Iterable[bytes]:
    for card in cards:
        for key in card.keys:
            if key.role is Role.TLS and key.valid_at(now):
                yield _pem_of(key.public)
