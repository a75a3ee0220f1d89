"""The signed head of a feed, and the receipts for it: C2SP signed-note, tlog-checkpoint and tlog-cosignature (v1).

    cert.fr.example/feeds/cert.de.example/1            origin line: sender, receiver, epoch
    42                                                 size: entries in the feed
    lCkHU...                                           Merkle root, base64

    — cert.fr.example/feeds/cert.de.example/1 5Y8o…  the sender's signature; its key is named as the origin line
    — cert.de.example Kq2x...                          a cosignature, with the time inside: the receiver's receipt

Rules kept:

1. A note is at most MAX_NOTE_BYTES of UTF-8 without control characters other than newline; a body, an empty line, and
   1 to MAX_NOTE_SIGNATURES signature lines. Base64 is canonical.
2. The body is the three lines above and nothing else: extension lines, which tlog-checkpoint allows, mean nothing in
   this protocol and are refused. The size has no leading zero and is below 2^63.
3. A signature is looked up by its key's name and 4-byte id. Other lines are ignored, as C2SP asks; one by the wanted
   key that does not verify, or two of them, is an error.
4. A cosignature signs the body together with its time, in POSIX seconds, which is never 0.

Left out: signature algorithms other than Ed25519, and encoded verifier keys: those come from node cards.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from federation import ed25519
from federation.errors import MalformedError, SignatureError, TooLargeError, WrongFeedError
from federation.limits import HASH_BYTES, MAX_NOTE_BYTES, MAX_NOTE_SIGNATURES
from federation.merkle import MAX_TREE_SIZE
from federation.model import NodeId, node_id

MAX_TIME_S = (1 << 63) - 1  # POSIX seconds as a signed 64-bit integer
MAX_EPOCH = (1 << 31) - 1  # epochs change by two people's hands; nobody reaches this

_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_KEY_NAME = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f]+")  # C2SP signed-note: no Unicode spaces, no plus, no controls
_SIGNATURE_LINE = re.compile(r"— ([^ ]+) ([^ ]+)")  # an em dash, U+2014
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_ORIGIN = re.compile(r"([^/]+)/feeds/([^/]+)/([1-9][0-9]{0,9})")


class _Algorithm(IntEnum):
    """The byte that goes into a key id. C2SP signed-note, "Signature types"."""

    ED25519 = 0x01
    COSIGNATURE_V1 = 0x04


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a feed's head says: `size` entries under the Merkle `root` (32 bytes). MalformedError when made wrong."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not _KEY_NAME.fullmatch(self.origin):
            raise MalformedError("checkpoint: the origin line is empty or has spaces, plus signs or control characters")
        if not 0 <= self.size <= MAX_TREE_SIZE:
            raise MalformedError("checkpoint: the size is out of range")
        if len(self.root) != HASH_BYTES:
            raise MalformedError(f"checkpoint: a root has {HASH_BYTES} bytes")

    def body(self) -> bytes:
        """The bytes that signatures cover, final newline included. C2SP tlog-checkpoint, "Note text"."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n".encode()

    @classmethod
    def parse_body(cls, body: bytes) -> Self:
        """The inverse of `body`. Raises MalformedError for any bytes that `body` does not make."""
        lines = _utf8(body).split("\n")
        if len(lines) != 4 or lines[3]:  # rule 2
            raise MalformedError("checkpoint: not exactly three lines")
        if not _SIZE.fullmatch(lines[1]):
            raise MalformedError("checkpoint: the size is not a plain decimal number")
        return cls(lines[0], int(lines[1]), _from_base64(lines[2]))

    @classmethod
    def of(cls, note: bytes) -> Self:
        """What the note says; no signature is looked at. Raises MalformedError or TooLargeError."""
        return cls.parse_body(_parse(note).body)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key (Ed25519, 32 bytes) under the name that its signature lines carry."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        if not _KEY_NAME.fullmatch(self.name) or len(self.public_key) != ed25519.PUBLIC_KEY_BYTES:
            raise MalformedError("note key: a name without spaces or plus signs, and 32 bytes")


def origin_line(sender: NodeId, receiver: NodeId, epoch: int) -> str:
    """The name of the feed from `sender` to `receiver`: the first line of its checkpoints and its log key's name."""
    line = f"{sender}/feeds/{receiver}/{epoch}"
    parse_origin_line(line)
    return line


def parse_origin_line(text: str) -> tuple[NodeId, NodeId, int]:
    """Sender, receiver and epoch (from 1) of an origin line. Raises MalformedError."""
    match = _ORIGIN.fullmatch(text)
    if not match or int(match[3]) > MAX_EPOCH:
        raise MalformedError("origin line: not of the form SENDER/feeds/RECEIVER/EPOCH")
    return node_id(match[1]), node_id(match[2]), int(match[3])


def sign(checkpoint: Checkpoint, key_name: str, sign: Callable[[bytes], bytes], public_key: bytes) -> bytes:
    """The signed note of `checkpoint` with one signature line. `sign` makes the Ed25519 signature (64 bytes)."""
    body = checkpoint.body()
    key = VerifierKey(key_name, public_key)
    return body + b"\n" + _line(key, _Algorithm.ED25519, sign(body))


def sign_besides(note: bytes, key_name: str, sign: Callable[[bytes], bytes], public_key: bytes) -> bytes:
    """`note` with one more line: the same signature by another key, for readers who know that one.

    Raises MalformedError for a note that is none, SignatureError if it already has a line of this key, and
    TooLargeError when no line more fits.
    """
    parsed = _parse(note)
    key = VerifierKey(key_name, public_key)
    if parsed.payloads(key, _Algorithm.ED25519):
        raise SignatureError("note: this key has signed it already")
    signed = note + _line(key, _Algorithm.ED25519, sign(parsed.body))
    _parse(signed)
    return signed


def cosign(note: bytes, cosigner_name: str, time: int, sign: Callable[[bytes], bytes], public_key: bytes) -> bytes:
    """`note` with one more line: the cosignature at `time` (POSIX seconds) by the cosigner. C2SP tlog-cosignature.

    Nothing is verified: open the checkpoint first. Raises MalformedError for a note or time that is none,
    SignatureError if the note already has a line of this key, and TooLargeError when no line more fits.
    """
    if not 0 < time <= MAX_TIME_S:
        raise MalformedError("cosignature: a time is a positive number of POSIX seconds")
    parsed = _parse(note)
    key = VerifierKey(cosigner_name, public_key)
    if parsed.payloads(key, _Algorithm.COSIGNATURE_V1):
        raise SignatureError("note: this key has cosigned it already")
    payload = time.to_bytes(_TIME_BYTES, "big") + sign(_cosigned(parsed.body, time))
    cosigned = note + _line(key, _Algorithm.COSIGNATURE_V1, payload)
    _parse(cosigned)
    return cosigned


def open_checkpoint(note: bytes, origin: str, log_key: VerifierKey) -> Checkpoint:
    """The checkpoint in `note`, of the feed `origin`, signed by `log_key`.

    Raises MalformedError or TooLargeError for what is no such note, WrongFeedError for another origin line, and
    SignatureError unless the note has exactly one line by that key and it verifies.
    """
    parsed = _parse(note)
    if parsed.checkpoint.origin != origin:
        raise WrongFeedError("checkpoint: another origin line than asked for")
    ed25519.verify(log_key.public_key, parsed.only(log_key, _Algorithm.ED25519), parsed.body)
    return parsed.checkpoint


def open_cosignature(note: bytes, key: VerifierKey) -> int:
    """When the cosigner `key` signed this note, in POSIX seconds.

    Raises MalformedError or TooLargeError for what is no checkpoint note, and SignatureError unless the note has
    exactly one cosignature by that key, it verifies, and its time is in range and not 0. The log's signature is not
    looked at: `open_checkpoint` does that.
    """
    parsed = _parse(note)
    payload = parsed.only(key, _Algorithm.COSIGNATURE_V1)
    time = int.from_bytes(payload[:_TIME_BYTES], "big")
    if not 0 < time <= MAX_TIME_S:  # rule 4
        raise SignatureError("cosignature: the time is 0 or out of range")
    ed25519.verify(key.public_key, payload[_TIME_BYTES:], _cosigned(parsed.body, time))
    return time


def with_one_line(note: bytes, key: VerifierKey) -> bytes:
    """`note` with its one signature line by `key`, and no other line: no cosignature either.

    Raises MalformedError or TooLargeError for what is no note, SignatureError unless it has exactly one such line; what
    it says is not verified.
    """
    parsed = _parse(note)
    return parsed.body + b"\n" + _line(key, _Algorithm.ED25519, parsed.only(key, _Algorithm.ED25519))


@dataclass(frozen=True, slots=True)
class _Note:
    """A note's body, what it says, and the signature lines as (key name, key id and payload)."""

    body: bytes
    checkpoint: Checkpoint
    lines: tuple[tuple[str, bytes], ...]

    def payloads(self, key: VerifierKey, algorithm: _Algorithm) -> list[bytes]:
        wanted = (key.name, _key_id(key, algorithm))
        return [raw[_KEY_ID_BYTES:] for name, raw in self.lines if (name, raw[:_KEY_ID_BYTES]) == wanted]

    def only(self, key: VerifierKey, algorithm: _Algorithm) -> bytes:
        found = self.payloads(key, algorithm)
        if len(found) != 1:  # rule 3
            raise SignatureError(f"note: {len(found)} signatures by the wanted key in place of one")
        return found[0]


def _parse(note: bytes) -> _Note:
    """`note` by rules 1 and 2; no signature is looked at."""
    if len(note) > MAX_NOTE_BYTES:
        raise TooLargeError(f"note: {len(note)} bytes, at most {MAX_NOTE_BYTES} are allowed")
    head, gap, signatures = _utf8(note).rpartition("\n\n")
    if not gap or not signatures.endswith("\n"):
        raise MalformedError("note: not a body, an empty line and signature lines that end with a newline")
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_NOTE_SIGNATURES:
        raise TooLargeError(f"note: {len(lines)} signatures, at most {MAX_NOTE_SIGNATURES} are allowed")
    body = f"{head}\n".encode()
    return _Note(body, Checkpoint.parse_body(body), tuple(_parse_line(line) for line in lines))


def _parse_line(line: str) -> tuple[str, bytes]:
    match = _SIGNATURE_LINE.fullmatch(line)
    if not match or not _KEY_NAME.fullmatch(match[1]):
        raise MalformedError("note: a signature line is an em dash, a key name and base64, with single spaces")
    raw = _from_base64(match[2])
    if len(raw) <= _KEY_ID_BYTES:
        raise MalformedError("note: a signature line has no signature")
    return match[1], raw


def _line(key: VerifierKey, algorithm: _Algorithm, payload: bytes) -> bytes:
    return f"— {key.name} {_base64(_key_id(key, algorithm) + payload)}\n".encode()


def _key_id(key: VerifierKey, algorithm: _Algorithm) -> bytes:
    """C2SP signed-note, "Verifier keys": ties a line to name, algorithm and key; a hint, not a defence."""
    return hashlib.sha256(key.name.encode() + b"\n" + bytes([algorithm]) + key.public_key).digest()[:_KEY_ID_BYTES]


def _cosigned(body: bytes, time: int) -> bytes:
    """The bytes that a cosignature covers. C2SP tlog-cosignature, "Format"."""
    return f"cosignature/v1\ntime {time}\n".encode() + body


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise MalformedError("note: not UTF-8") from e


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:  # ValueError: characters outside ASCII
        raise MalformedError("note: not base64") from e
    if _base64(data) != text:  # RFC 4648 3.5
        raise MalformedError("note: base64 whose trailing bits are not zero")
    return data
