"""Private keys of a node: made by `init`, encrypted at rest, mode 0600.

Each key is one PKCS #8 file, encrypted under a password that Argon2id makes of the passphrase and the home's salt:
what PKCS #8 does by itself (2,048 rounds of PBKDF2) is no match for guessing at a passphrase that a person chose.
Online keys lie in `keys/`, named by role and key id; root keys lie in `roots/` until the operator moves them offline.
A key is decrypted when it is first needed, so commands that sign nothing need no passphrase. Which keys are current is
what the node's own card says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.pwhash import argon2id

from federation import ed25519 as signing
from federation.errors import KeyringError, LockedError, UsageError
from federation.keyring import Card, OnlineKey, key_id, root_key_id
from federation.model import NodeId, Role
from node.certificates import make_certificate

ONLINE_VALIDITY = timedelta(days=397)  # a year and a month: an operator who rotates yearly has time for it
_PRIVATE_MODE = 0o600
_PASSWORD_BYTES = 32
PrivateKeyTypes = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey


@dataclass(frozen=True, slots=True)
class Signer:
    """A private Ed25519 key that can sign, with its public half."""

    kid: str
    public: bytes
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What gRPC presents: private key and certificate, both PEM."""

    private_key: bytes
    certificate: bytes


class Keys:
    """The key files of one home. Nothing is decrypted before it is asked for."""

    def __init__(self, home: Path, passphrase: bytes | None) -> None:
        self._home = home
        self._passphrase = passphrase
        self._stretched: bytes | None = None
        self._open: dict[Path, PrivateKeyTypes] = {}

    def signer(self, role: Role, card: Card, now: datetime) -> Signer:
        """The key of `role` that the node's own `card` names and that is valid now. Raises LockedError, UsageError."""
        key = _current(card, role, now)
        private = self._load(self._home / "keys" / f"{role}-{key.kid}.pem")
        if not isinstance(private, ed25519.Ed25519PrivateKey):
            raise UsageError(f"keys/{role}-{key.kid}.pem: not an Ed25519 key")
        return _signer(private, key.kid)

    def tls(self, card: Card, now: datetime) -> TlsIdentity:
        """The TLS key and certificate that the card names. Raises LockedError, UsageError."""
        key = _current(card, Role.TLS, now)
        private = self._load(self._home / "keys" / f"{Role.TLS}-{key.kid}.pem")
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = x509.load_der_x509_certificate(key.public)
        return TlsIdentity(pem, certificate.public_bytes(serialization.Encoding.PEM))

    def roots(self) -> tuple[Signer, ...]:
        """The root keys that still lie in this home."""
        found = []
        for path in sorted((self._home / "roots").glob("root-*.pem")):
            private = self._load(path)
            if not isinstance(private, ed25519.Ed25519PrivateKey):
                raise UsageError(f"roots/{path.name}: not an Ed25519 key")
            found.append(_signer(private, root_key_id(private.public_key().public_bytes_raw())))
        return tuple(found)

    def seal(self, secret: bytes) -> bytes:
        """`secret` encrypted to this node; needs no passphrase."""
        return SealedBox(PublicKey((self._home / "keys" / "seal.pub").read_bytes())).encrypt(secret)

    def unseal(self, sealed: bytes) -> bytes:
        """What `seal` hid. Raises LockedError when it is not ours to open."""
        private = self._load(self._home / "keys" / "seal.pem")
        if not isinstance(private, x25519.X25519PrivateKey):
            raise UsageError("keys/seal.pem: not an X25519 key")
        try:
            return SealedBox(PrivateKey(private.private_bytes_raw())).decrypt(sealed)
        except CryptoError as e:
            raise LockedError("a sealed record was sealed to another key than keys/seal.pem") from e

    def _password(self) -> bytes:
        if self._passphrase is None:
            raise LockedError(
                "the private keys are encrypted: set APOSTILLE_PASSPHRASE, or put the passphrase file back"
            )
        if self._stretched is None:
            self._stretched = stretch(self._home, self._passphrase)
        return self._stretched

    def _load(self, path: Path) -> PrivateKeyTypes:
        if path in self._open:
            return self._open[path]
        where = path.relative_to(self._home)
        password = self._password()
        check_private(path, str(where))
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password)
        except ValueError as e:
            raise LockedError(f"{where} does not open: the passphrase is wrong, or the file is damaged") from e
        if not isinstance(private, PrivateKeyTypes):
            raise UsageError(f"{where}: not a key of a kind that this node uses")
        self._open[path] = private
        return private


def stretch(home: Path, passphrase: bytes) -> bytes:
    """The password of a home's key files: Argon2id over the passphrase and the salt that `init` made, in hexadecimal.

    Raises UsageError when the salt is missing.
    """
    try:
        salt = (home / "keys" / "salt").read_bytes()
    except OSError as e:
        raise UsageError("keys/salt is missing: restore it from a backup") from e
    try:
        return (
            argon2id.kdf(
                _PASSWORD_BYTES, passphrase, salt, argon2id.OPSLIMIT_INTERACTIVE, argon2id.MEMLIMIT_INTERACTIVE
            )
            .hex()
            .encode()
        )
    except ValueError as e:
        raise UsageError("keys/salt is damaged: restore it from a backup") from e


def make_salt(home: Path, entropy: Callable[[int], bytes]) -> None:
    """The salt of a new home, `keys/salt`. It is no secret."""
    (home / "keys" / "salt").write_bytes(entropy(argon2id.SALTBYTES))


def check_private(path: Path, where: str) -> None:
    """Refuses a secret that others can read. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"{where} is missing: restore it from a backup")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UsageError(f"{where} is readable by others (mode {mode:04o}): run chmod 600 on it")


def write_private(path: Path, data: bytes) -> None:
    """Writes a secret that nobody else can read, not even for a moment."""
    path.touch(mode=_PRIVATE_MODE, exist_ok=False)
    path.write_bytes(data)


def make_roots(home: Path, count: int, password: bytes) -> tuple[bytes, ...]:
    """Makes `count` root keys in `roots/` and returns their public halves."""
    public = []
    for number in range(1, count + 1):
        private = ed25519.Ed25519PrivateKey.generate()
        write_private(home / "roots" / f"root-{number}.pem", _pem(private, password))
        public.append(private.public_key().public_bytes_raw())
    return tuple(public)


def make_online(home: Path, node: NodeId, password: bytes, now: datetime) -> tuple[OnlineKey, ...]:
    """Makes a key for each role in `keys/`, and the sealing key; returns what the card says of them."""
    start = now.replace(microsecond=0)
    made = []
    for role in (Role.ISSUE, Role.FEED, Role.RECEIPT):
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        made.append(_save(home, role, private, public, password, start))
    tls = ec.generate_private_key(ec.SECP256R1())
    made.append(_save(home, Role.TLS, tls, make_certificate(tls, node, start, ONLINE_VALIDITY), password, start))
    sealing = x25519.X25519PrivateKey.generate()
    write_private(home / "keys" / "seal.pem", _pem(sealing, password))
    (home / "keys" / "seal.pub").write_bytes(sealing.public_key().public_bytes_raw())
    return tuple(made)


def _current(card: Card, role: Role, now: datetime) -> OnlineKey:
    try:
        return max(card.valid_keys(role, now), key=lambda key: key.valid_from)
    except KeyringError as e:
        raise UsageError(
            f"this node's own {role} key is not valid at {now:%Y-%m-%d}: is the clock right?"
            " This version cannot renew keys"
        ) from e


def _signer(private: ed25519.Ed25519PrivateKey, kid: str) -> Signer:
    seed = private.private_bytes_raw()
    return Signer(kid, private.public_key().public_bytes_raw(), lambda message: signing.sign(seed, message))


def _save(
    home: Path, role: Role, private: PrivateKeyTypes, public: bytes, password: bytes, start: datetime
) -> OnlineKey:
    kid = key_id(role, public)
    write_private(home / "keys" / f"{role}-{kid}.pem", _pem(private, password))
    return OnlineKey(role, kid, public, start, start + ONLINE_VALIDITY)


def _pem(private: PrivateKeyTypes, password: bytes) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
