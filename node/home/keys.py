"""Private keys of a node: made by `init` and by rotations, encrypted at rest, mode 0600.

Each key is one PKCS #8 file, encrypted under a password that Argon2id makes of the passphrase and the home's salt: what
PKCS #8 does by itself (2,048 rounds of PBKDF2) is no match for guessing at a passphrase that a person chose. Online
keys lie in `keys/`, named by role and key id; root keys lie in `roots/` until the operator moves them offline. A key is
decrypted when it is first needed, so commands that sign nothing need no passphrase. Which keys are valid is what the
node's own card says, which of them is used towards whom is decided in `node.home.signing`. A private key is on the disk
before any card names it.
"""

import os
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
from node.home.certificates import make_certificate, public_key_of

ONLINE_VALIDITY = timedelta(days=397)  # a year and a month: an operator who rotates yearly has time for it
_PRIVATE_MODE = 0o600
_FOLDER_MODE = 0o700
_PASSWORD_BYTES = 32
_SALT = "salt"
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
        """The newest key of `role` on the node's own `card` that is valid now and whose private half lies here.

        Raises LockedError, UsageError.
        """
        return self.signer_of(self.chosen(card, role, now))

    def signer_of(self, key: OnlineKey) -> Signer:
        """The private half of a key that signs. Raises LockedError, UsageError."""
        private = self._load(self._path(key.role, key.kid))
        if not isinstance(private, ed25519.Ed25519PrivateKey):
            raise UsageError(f"keys/{key.role}-{key.kid}.pem: not an Ed25519 key")
        return _signer(private, key.kid)

    def tls(self, card: Card, now: datetime) -> TlsIdentity:
        """The newest TLS key with its certificate, chosen as `signer` does. Raises LockedError, UsageError."""
        return self.tls_of(self.chosen(card, Role.TLS, now))

    def tls_of(self, key: OnlineKey) -> TlsIdentity:
        """The private half of a TLS key, with its certificate. Raises LockedError, UsageError."""
        private = self._load(self._path(Role.TLS, key.kid))
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = x509.load_der_x509_certificate(key.public)
        return TlsIdentity(pem, certificate.public_bytes(serialization.Encoding.PEM))

    def chosen(self, card: Card, role: Role, now: datetime) -> OnlineKey:
        """The newest valid key of those whose private halves lie here; where none does, the newest, to be missed.

        Raises UsageError when none is valid.
        """
        try:
            valid = newest_first(card.valid_keys(role, now))
        except KeyringError as e:
            raise UsageError(
                f"this node's own {role} key is not valid at {now:%Y-%m-%d}: is the clock right? If it is, make a new"
                f" one: apostille key rotate {role}"
            ) from e
        return next((key for key in valid if self.holds(role, key.kid)), valid[0])

    def holds(self, role: Role, kid: str) -> bool:
        """Whether a file for that private key lies here; it is not opened."""
        return self._path(role, kid).is_file()

    def check(self, key: OnlineKey) -> None:
        """Makes sure that the private half of `key` lies here and opens. Raises LockedError, UsageError."""
        path = self._path(key.role, key.kid)
        private = self._load(path)
        if isinstance(private, ed25519.Ed25519PrivateKey):
            fits = private.public_key().public_bytes_raw() == key.public
        else:
            spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            fits = key.role is Role.TLS and private.public_key().public_bytes(*spki) == public_key_of(key.public)
        if not fits:
            raise UsageError(f"keys/{path.name} is not the private half of that key: restore it from a backup")

    def make(self, role: Role, node: NodeId, now: datetime) -> OnlineKey:
        """Makes a key of `role` and returns what a card says of it. Raises LockedError, UsageError."""
        return _make(self._home, role, node, self._password(), now.replace(microsecond=0))

    def stored(self) -> tuple[tuple[Role, str], ...]:
        """Role and id of every online key whose private half lies here."""
        found = []
        for path in sorted((self._home / "keys").glob("*-*.pem")):
            role, _, kid = path.stem.rpartition("-")
            if role in set(Role):
                found.append((Role(role), kid))
        return tuple(found)

    def remove(self, role: Role, kid: str) -> None:
        """Deletes a private key."""
        path = self._path(role, kid)
        path.unlink(missing_ok=True)
        self._open.pop(path, None)

    def roots(self) -> tuple[Signer, ...]:
        """The root keys that still lie in this home."""
        return tuple(_root(self._load(path), path) for path in sorted((self._home / "roots").glob("root-*.pem")))

    def make_roots(self, count: int) -> tuple[Signer, ...]:
        """Makes `count` new root keys beside those that lie in `roots/`. Raises LockedError, UsageError."""
        (self._home / "roots").mkdir(mode=_FOLDER_MODE, exist_ok=True)
        password, made = self._password(), []
        for _ in range(count):
            private = ed25519.Ed25519PrivateKey.generate()
            kid = root_key_id(private.public_key().public_bytes_raw())
            write_private(self._home / "roots" / f"root-{kid}.pem", _pem(private, password))
            made.append(_signer(private, kid))
        _leave_salt(self._home)
        return tuple(made)

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

    def _path(self, role: Role, kid: str) -> Path:
        return self._home / "keys" / f"{role}-{kid}.pem"

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


def newest_first(keys: tuple[OnlineKey, ...]) -> tuple[OnlineKey, ...]:
    """Keys by the beginning of their validity; of those made at one moment, in the order of the card."""
    return tuple(sorted(keys, key=lambda key: key.valid_from, reverse=True))


def stretch(home: Path, passphrase: bytes) -> bytes:
    """The password of a home's key files: Argon2id over the passphrase and the salt that `init` made, in hexadecimal.

    Raises UsageError when the salt is missing.
    """
    return _stretched(home / "keys" / _SALT, "keys/salt", passphrase)


def make_salt(home: Path, entropy: Callable[[int], bytes]) -> None:
    """The salt of a new home, `keys/salt`. It is no secret."""
    (home / "keys" / _SALT).write_bytes(entropy(argon2id.SALTBYTES))


def offline_roots(folder: Path, salt: Path | None, passphrase: bytes) -> tuple[Signer, ...]:
    """The root keys in a folder that is no home, such as a medium that is kept offline.

    The salt of their home is needed with them: `salt`, or the file `salt` beside them. Raises LockedError, UsageError.
    """
    paths = sorted(folder.glob("root-*.pem"))
    if not paths:
        raise UsageError(f"{folder} holds no root keys: they are files called root-*.pem")
    salts = (salt,) if salt is not None else (folder / _SALT, folder.parent / "keys" / _SALT)
    found = next((path for path in salts if path.is_file()), None)
    if found is None:
        raise UsageError(f"{salts[0]} is missing: copy keys/salt of the node there, or name it with --salt")
    password, signers = _stretched(found, str(found), passphrase), []
    for path in paths:
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password)
        except ValueError as e:
            raise LockedError(f"{path} does not open: the passphrase or the salt is wrong, or it is damaged") from e
        signers.append(_root(private, path))
    return tuple(signers)


def _stretched(salt_file: Path, where: str, passphrase: bytes) -> bytes:
    try:
        salt = salt_file.read_bytes()
    except OSError as e:
        raise UsageError(f"{where} is missing: restore it from a backup") from e
    try:
        return (
            argon2id.kdf(
                _PASSWORD_BYTES, passphrase, salt, argon2id.OPSLIMIT_INTERACTIVE, argon2id.MEMLIMIT_INTERACTIVE
            )
            .hex()
            .encode()
        )
    except ValueError as e:
        raise UsageError(f"{where} is damaged: restore it from a backup") from e


def check_private(path: Path, where: str) -> None:
    """Refuses a secret that others can read. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"{where} is missing: restore it from a backup")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UsageError(f"{where} is readable by others (mode {mode:04o}): run chmod 600 on it")


def write_private(path: Path, data: bytes) -> None:
    """Writes a secret that nobody else can read, not even for a moment; it survives power loss once this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_roots(home: Path, count: int, password: bytes) -> tuple[bytes, ...]:
    """Makes `count` root keys in `roots/` and returns their public halves."""
    public = []
    for number in range(1, count + 1):
        private = ed25519.Ed25519PrivateKey.generate()
        write_private(home / "roots" / f"root-{number}.pem", _pem(private, password))
        public.append(private.public_key().public_bytes_raw())
    _leave_salt(home)
    return tuple(public)


def make_online(home: Path, node: NodeId, password: bytes, now: datetime) -> tuple[OnlineKey, ...]:
    """Makes a key for each role in `keys/`, and the sealing key; returns what the card says of them."""
    start = now.replace(microsecond=0)
    made = [_make(home, role, node, password, start) for role in (Role.ISSUE, Role.FEED, Role.RECEIPT, Role.TLS)]
    sealing = x25519.X25519PrivateKey.generate()
    write_private(home / "keys" / "seal.pem", _pem(sealing, password))
    (home / "keys" / "seal.pub").write_bytes(sealing.public_key().public_bytes_raw())
    return tuple(made)


def _signer(private: ed25519.Ed25519PrivateKey, kid: str) -> Signer:
    seed = private.private_bytes_raw()
    return Signer(kid, private.public_key().public_bytes_raw(), lambda message: signing.sign(seed, message))


def _root(private: object, path: Path) -> Signer:
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path.parent.name}/{path.name}: not an Ed25519 key")
    return _signer(private, root_key_id(private.public_key().public_bytes_raw()))


def _make(home: Path, role: Role, node: NodeId, password: bytes, start: datetime) -> OnlineKey:
    private: PrivateKeyTypes
    if role is Role.TLS:
        private = ec.generate_private_key(ec.SECP256R1())
        public = make_certificate(private, node, start, ONLINE_VALIDITY)
    else:
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
    kid = key_id(role, public)
    write_private(home / "keys" / f"{role}-{kid}.pem", _pem(private, password))
    return OnlineKey(role, kid, public, start, start + ONLINE_VALIDITY)


def _leave_salt(home: Path) -> None:
    """The salt beside the root keys, so that it goes offline with them."""
    beside = home / "roots" / _SALT
    if not beside.exists():
        beside.write_bytes((home / "keys" / _SALT).read_bytes())


def _pem(private: PrivateKeyTypes, password: bytes) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
