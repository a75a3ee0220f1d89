"""Certificates: which may be pinned, who is recognised by them, and what gRPC itself accepts."""

import hashlib
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

import node.rpc  # noqa: F401 - keeps gRPC quiet
from federation.errors import KeyringError, MalformedError
from federation.keyring import Card, OnlineKey, RootSet, key_id
from federation.model import Country, NodeId, Role
from node.home.certificates import check_certificate, make_certificate
from node.rpc.tls import peer_of

FR, DE, IN = NodeId("cert.fr.example"), NodeId("cert.de.example"), NodeId("cert.in.example")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
DIGITAL_SIGNATURE = (True, *(False,) * 8)
MAY_SIGN_CERTIFICATES = (True, *(False,) * 4, True, *(False,) * 3)
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Identity:
    """A private key with its certificate."""

    key: Key
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pair(self) -> tuple[bytes, bytes]:
        private = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private, self.pem


def p256() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def make(
    names: tuple[str, ...] = (FR,),
    key: Key | None = None,
    *,
    ca: bool | None = False,
    usage: tuple[bool, ...] | None = DIGITAL_SIGNATURE,
    issuer: Identity | None = None,
    common_name: str | None = None,
) -> Identity:
    """A certificate like those of `node.home.certificates`, unless told otherwise; its name is the hash of its key."""
    key = key or p256()
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    common_name = common_name or hashlib.sha256(spki).digest()[:16].hex()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    real_now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(real_now - timedelta(hours=1))
        .not_valid_after(real_now + timedelta(days=2))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if usage is not None:
        builder = builder.add_extension(x509.KeyUsage(*usage), critical=True)
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    signing = issuer.key if issuer else key
    digest = None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Identity(key, builder.sign(signing, digest))


def card(node: NodeId, *identities: Identity, role: Role = Role.TLS) -> Card:
    """A card with those certificates, valid for a day around NOW."""
    day = timedelta(days=1)
    keys = tuple(OnlineKey(role, key_id(role, i.der), i.der, NOW - day, NOW + day) for i in identities)
    return Card(node, 1, NOW, Country("FR"), (1,), "127.0.0.1:7001", RootSet(1, (b"r" * 32,)), keys)


def context(*identities: Identity) -> dict[str, list[bytes]]:
    """What gRPC says of a connection with those certificates."""
    return {"x509_pem_cert": [identity.pem for identity in identities], "transport_security_type": [b"ssl"]}


class TestCheckCertificate:
    """What a card may pin."""

    @pytest.mark.parametrize(
        "key", [p256, lambda: rsa.generate_private_key(65537, 3072)], ids=["P-256", "RSA of 3072 bits"]
    )
    def test_a_leaf_for_the_node_passes(self, key: Callable[[], Key]) -> None:
        check_certificate(make(key=key()).der, FR)

    @pytest.mark.parametrize(
        ("changed", "rule"),
        [
            ({"ca": True}, "CA:TRUE"),
            ({"ca": None}, "self-signed leaf"),
            ({"usage": MAY_SIGN_CERTIFICATES}, "keyUsage"),
            ({"usage": None}, "self-signed leaf"),
            ({"usage": (False, True, *(False,) * 7)}, "keyUsage"),
            ({"key": ec.generate_private_key(ec.SECP384R1())}, "P-256"),
            ({"key": ed25519.Ed25519PrivateKey.generate()}, "P-256"),
            ({"key": rsa.generate_private_key(65537, 2048)}, "P-256"),
            ({"common_name": "chosen"}, "hash of its key"),
            ({"names": (DE,)}, "alternative name"),
            ({"names": (FR, DE)}, "alternative name"),
            ({"names": ()}, "self-signed leaf"),
            ({"issuer": make(common_name="another")}, "self-signed leaf"),
            ({"issuer": make(common_name="shared"), "common_name": "shared"}, "self-signed leaf"),
        ],
    )
    def test_anything_else_is_refused(self, changed: dict[str, Any], rule: str) -> None:
        with pytest.raises(MalformedError, match=rule):
            check_certificate(make(**changed).der, FR)

    def test_what_this_node_makes_passes(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        check_certificate(make_certificate(key, FR, NOW, timedelta(days=1)), FR)

    def test_bytes_that_are_no_certificate_are_refused(self) -> None:
        der = make().der
        for data in (b"", b"\x30\x03", der[:-1], der + b"\0"):
            with pytest.raises(MalformedError):
                check_certificate(data, FR)

    def test_a_peer_cannot_enrol_the_key_of_another(self) -> None:
        # Mallory copies the certificate that DE shows to everybody, to be taken for DE, or to have DE taken for him
        german = make((DE,))
        with pytest.raises(MalformedError, match="alternative name"):
            check_certificate(german.der, FR)
        # and with his name on it he lacks the key to sign it
        forged = make((FR,), issuer=Identity(p256(), german.certificate))
        with pytest.raises(MalformedError, match="self-signed"):
            check_certificate(forged.der, FR)


class TestPeerOf:
    """Who is at the other end."""

    def test_the_card_that_holds_the_exact_key(self) -> None:
        french, german = make((FR,)), make((DE,))
        cards = (card(FR, french), card(DE, german))
        assert peer_of(context(german), cards, NOW).node == DE

    def test_either_key_during_a_rotation(self) -> None:
        old, new = make(), make()
        for shown in (old, new):
            assert peer_of(context(shown), [card(FR, old, new)], NOW).node == FR

    def test_another_certificate_over_the_same_key_is_the_same_peer(self) -> None:
        french = make()
        again = make(key=french.key)
        assert peer_of(context(again), [card(FR, french)], NOW).node == FR

    def test_strangers_are_refused(self) -> None:
        french, stranger = make(), make()  # the same names on both
        minted = make(issuer=french, common_name="minted")
        for shown in (context(stranger), context(minted), context(), context(french, stranger), {}):
            with pytest.raises(KeyringError):
                peer_of(shown, [card(FR, french)], NOW)
        with pytest.raises(KeyringError):
            peer_of({"x509_pem_cert": [b"no certificate"]}, [card(FR, french)], NOW)

    def test_a_key_counts_only_within_its_validity(self) -> None:
        french = make()
        cards = [card(FR, french)]
        peer_of(context(french), cards, NOW)
        for moment in (NOW + timedelta(days=1), NOW - timedelta(days=2)):
            with pytest.raises(KeyringError):
                peer_of(context(french), cards, moment)

    def test_a_key_on_two_cards_identifies_nobody(self) -> None:
        shared = make()
        with pytest.raises(KeyringError, match="2 trusted cards"):
            peer_of(context(shared), [card(FR, shared), card(DE, shared)], NOW)

    def test_only_the_role_tls_counts(self) -> None:
        french = make()
        with pytest.raises(KeyringError):
            peer_of(context(french), [replace(card(FR, french, role=Role.ISSUE))], NOW)


class Echo(grpc.GenericRpcHandler):
    """Answers every call with b"ok"."""

    def service(self, _call: "grpc.HandlerCallDetails") -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"ok")


class TestWhatGrpcAccepts:
    """The facts that `check_certificate` rests on, tried against the real handshake."""

    @staticmethod
    def call(server: Identity, server_pins: tuple[Identity, ...], client: Identity, client_pins: Identity) -> bytes:
        """One call; the client expects FR. Raises grpc.RpcError."""
        configuration = grpc.ssl_server_certificate_configuration(
            [server.pair], b"".join(pinned.pem for pinned in server_pins)
        )
        running = grpc.server(futures.ThreadPoolExecutor(1), [Echo()])
        port = running.add_secure_port(
            "127.0.0.1:0", grpc.dynamic_ssl_server_credentials(configuration, lambda: configuration, True)
        )
        running.start()
        options = (("grpc.ssl_target_name_override", FR), ("grpc.use_local_subchannel_pool", 1))
        credentials = grpc.ssl_channel_credentials(client_pins.pem, *client.pair)
        try:
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x/y", None, None)
                return call(b"", timeout=10)
        finally:
            running.stop(None)

    def test_a_self_signed_leaf_is_its_own_trust_anchor(self) -> None:
        french, german, indian = make((FR,)), make((DE,)), make((IN,))
        for client in (german, indian):
            assert self.call(french, (german, indian), client, french) == b"ok"

    def test_of_two_peers_with_one_name_the_second_is_locked_out(self) -> None:
        # the attack: Mallory is enrolled with the name that stands on DE's certificate
        french, german = make((FR,)), make((DE,), usage=None)
        name: Any = german.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        copycat = make((IN,), usage=None, common_name=name)
        assert self.call(french, (german,), german, french) == b"ok"
        with pytest.raises(grpc.RpcError):
            self.call(french, (copycat, german), german, french)
        with pytest.raises(MalformedError):
            check_certificate(make((IN,), common_name=name).der, IN)

    def test_a_server_with_another_key_is_refused(self) -> None:
        french, german, other = make((FR,)), make((DE,)), make((FR,))
        with pytest.raises(grpc.RpcError):
            self.call(other, (german,), german, french)

    @pytest.mark.parametrize("ca", [True, False])
    def test_a_pinned_certificate_without_key_usage_mints_others(self, ca: bool) -> None:
        # the attack that check_certificate excludes: the pinned key vouches for a key that nobody enrolled, and the
        # client, which cannot see the server's certificate, takes it for the pinned one - CA:FALSE or not
        german = make((DE,))
        pinned = make((FR,), usage=None, ca=ca)
        minted = make((FR,), issuer=pinned, common_name="minted")
        assert self.call(minted, (german,), german, pinned) == b"ok"
        with pytest.raises(MalformedError):
            check_certificate(pinned.der, FR)

    def test_a_pinned_certificate_that_passes_the_check_cannot_mint_others(self) -> None:
        german, pinned = make((DE,)), make((FR,))
        check_certificate(pinned.der, FR)
        assert self.call(pinned, (german,), german, pinned) == b"ok"
        minted = make((FR,), issuer=pinned, common_name="minted")
        with pytest.raises(grpc.RpcError):
            self.call(minted, (german,), german, pinned)
        name: Any = pinned.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        same_name = make((FR,), issuer=pinned, common_name=name)
        with pytest.raises(grpc.RpcError):
            self.call(same_name, (german,), german, pinned)

    def test_ed25519_is_not_spoken(self) -> None:
        german = make((DE,))
        server = make((FR,), ed25519.Ed25519PrivateKey.generate())
        with pytest.raises(grpc.RpcError):
            self.call(server, (german,), german, server)
