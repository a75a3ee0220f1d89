"""The one profile of TLS certificates: what `init` makes, and what is checked before a peer's is pinned.

A certificate on a card is used as the trust anchor for that node. TLS looks anchors up by name and takes whatever such
a key has signed, so the profile makes sure that an anchor can stand for nobody but itself: its name is the hash of its
own key, and its key may not sign certificates.
"""

import hashlib
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.errors import MalformedError
from federation.model import NodeId

LEAST_RSA_BITS = 3072  # NIST SP 800-57: 128 bits of security
_NAME_BYTES = 16
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)  # what is said of foreign bytes
_CLOCK_TOLERANCE = timedelta(hours=1)  # a new certificate works at peers whose clock is behind


def make_certificate(private: ec.EllipticCurvePrivateKey, node: NodeId, start: datetime, validity: timedelta) -> bytes:
    """A self-signed leaf of the profile that `check_certificate` demands, DER."""
    name = _name_of(private.public_key())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _CLOCK_TOLERANCE)
        .not_valid_after(start + validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_signatures_only(), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .sign(private, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def check_certificate(der: bytes, node: NodeId) -> None:
    """Refuses to pin a certificate in whose place another could be accepted, or which gRPC could not use.

    (1) X.509 version 3, self-signed by its own key: nobody can enrol a key that he does not hold
    (2) basicConstraints says CA:FALSE (RFC 5280 4.2.1.9)
    (3) keyUsage says digitalSignature and not keyCertSign (4.2.1.3): TLS accepts what a pinned certificate has signed
        even under CA:FALSE
    (4) the key is P-256, or RSA of 3072 bits or more; gRPC's TLS does not offer Ed25519
    (5) subject and issuer are the hash of the key: TLS takes the first of two anchors with one name for the other, so
        a name that could be chosen would let one peer shut out another
    (6) the one alternative name is the node id
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
    except (*_UNREADABLE, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension) as e:
        raise MalformedError(f"tls certificate of {node}: not a self-signed leaf of version 3") from e
    if constraints.ca:  # (2)
        raise MalformedError(f"tls certificate of {node}: it may sign others (CA:TRUE)")
    if not usage.digital_signature or usage.key_cert_sign:  # (3)
        raise MalformedError(f"tls certificate of {node}: keyUsage must allow signatures, not those of certificates")
    if not _is_usable(key):  # (4)
        raise MalformedError(f"tls certificate of {node}: the key must be P-256, or RSA of {LEAST_RSA_BITS} bits")
    if certificate.subject != _name_of(key):  # (5); the issuer is the subject, by (1)
        raise MalformedError(f"tls certificate of {node}: its name must be the hash of its key")
    if names != [x509.DNSName(node)]:  # (6)
        raise MalformedError(f"tls certificate of {node}: its one alternative name must be the node id")


def public_key_of(certificate_der: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo in a certificate: what is compared at each call. Raises MalformedError."""
    try:
        return _spki(x509.load_der_x509_certificate(certificate_der).public_key())
    except _UNREADABLE as e:
        raise MalformedError("not an X.509 certificate") from e


def public_key_of_pem(certificate_pem: bytes) -> bytes:
    """The same for a PEM certificate."""
    try:
        return _spki(x509.load_pem_x509_certificate(certificate_pem).public_key())
    except _UNREADABLE as e:
        raise MalformedError("not an X.509 certificate") from e


def pem_of(certificate_der: bytes) -> bytes:
    """A DER certificate as PEM."""
    return x509.load_der_x509_certificate(certificate_der).public_bytes(serialization.Encoding.PEM)


def _name_of(key: PublicKeyTypes) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hashlib.sha256(_spki(key)).digest()[:_NAME_BYTES].hex())])


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _is_usable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS


def _signatures_only() -> x509.KeyUsage:
    return x509.KeyUsage(
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
