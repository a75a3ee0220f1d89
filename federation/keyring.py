"""Node cards and the keys on them.

A card binds a node id to its jurisdiction, its advertised endpoint, its root keys with their threshold, and its online
keys, each with one role and a validity. Root keys sign cards and nothing else; people compare the fingerprint of the
root set by voice when they enrol a card. A key is always looked up by node, role and key id together (never the id
alone). Enrolment itself, and where private keys lie, are the node's affair.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

import rfc8785

from federation import ed25519, jws, strictjson
from federation.base64url import b64url, from_b64url
from federation.checkpoint import VerifierKey
from federation.errors import KeyringError, MalformedError, SignatureError, UnknownOriginError
from federation.limits import MAX_CARD_BYTES, MAX_CLOCK_SKEW_S, MAX_ROOT_KEYS
from federation.model import (
    SPOKEN_VERSIONS,
    Country,
    JsonObject,
    NodeId,
    Role,
    country,
    instant,
    instant_text,
    node_id,
)

JWS_TYPE = "card+jws"
FINGERPRINT_BYTES = 16  # 128 bits against a second preimage: twelve words to say
MAX_KEYS = 32  # of a card: a rotation of every role each month, each with a year of overlap, stays below
_REMEMBERED = 256  # cards whose parsing is not repeated: it takes most of a millisecond
_MAX_VERSION = 1 << 31
_MAX_ENDPOINT = 300
_ENDPOINT = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})"
)  # no scheme, no path
_KEY_MEMBERS = {"role", "kid", "public", "from", "until"}
_CARD_MEMBERS = {"card", "version", "issued_at", "jurisdiction", "protocols", "endpoint", "roots", "keys"}


@dataclass(frozen=True, slots=True)
class OnlineKey:
    """A public key with its one role. `public` is 32 bytes of Ed25519, for the role `tls` a DER certificate."""

    role: Role
    kid: str
    public: bytes
    valid_from: datetime
    valid_until: datetime

    def valid_at(self, moment: datetime) -> bool:
        """Whether `moment` lies in the validity, with the clock skew that peers are allowed."""
        return self.valid_from <= moment + timedelta(seconds=MAX_CLOCK_SKEW_S) and moment < self.valid_until


@dataclass(frozen=True, slots=True)
class RootSet:
    """The root keys of a node, each 32 bytes of Ed25519, and how many of them must sign a card."""

    threshold: int
    keys: tuple[bytes, ...]

    def fingerprint(self) -> bytes:
        """16 bytes that people compare, as words, before they trust the card."""
        data: JsonObject = {"threshold": self.threshold, "keys": [b64url(key) for key in self.keys]}
        return hashlib.sha256(rfc8785.dumps(data)).digest()[:FINGERPRINT_BYTES]


@dataclass(frozen=True, slots=True)
class Card:
    """What a node says of itself, signed by its roots."""

    node: NodeId
    version: int
    issued_at: datetime
    jurisdiction: Country
    protocols: tuple[int, ...]
    endpoint: str
    roots: RootSet
    keys: tuple[OnlineKey, ...]

    def payload(self) -> bytes:
        """The bytes that the roots sign."""
        return rfc8785.dumps(
            {
                "card": self.node,
                "version": self.version,
                "issued_at": instant_text(self.issued_at),
                "jurisdiction": self.jurisdiction,
                "protocols": list(self.protocols),
                "endpoint": self.endpoint,
                "roots": {"threshold": self.roots.threshold, "keys": [b64url(key) for key in self.roots.keys]},
                "keys": [_write_key(key) for key in self.keys],
            }
        )

    @property
    def speaks(self) -> int:
        """The highest protocol version that this node and ours share; 0 for none."""
        return max(set(self.protocols) & set(SPOKEN_VERSIONS), default=0)

    def valid_keys(self, role: Role, at: datetime) -> tuple[OnlineKey, ...]:
        """The keys of `role` that are valid at `at`. Raises KeyringError when there is none."""
        found = tuple(key for key in self.keys if key.role is role and key.valid_at(at))
        if not found:
            raise KeyringError(f"{self.node}: its card has no {role} key that is valid now; ask for its new card")
        return found

    def note_keys(self, role: Role, name: str, at: datetime) -> tuple[VerifierKey, ...]:
        """The valid keys of `role` as signers of notes under `name`. Raises KeyringError when there is none."""
        return tuple(VerifierKey(name, key.public) for key in self.valid_keys(role, at))


def key_id(role: Role, public: bytes) -> str:
    """The id that a key has by its own bytes: 16 hexadecimal digits."""
    return hashlib.sha256(role.value.encode() + b"\n" + public).hexdigest()[:16]


def root_key_id(public: bytes) -> str:
    """The id of a root key: 16 hexadecimal digits."""
    return hashlib.sha256(b"root\n" + public).hexdigest()[:16]


def open_card(data: bytes, before: RootSet | None = None) -> Card:
    """The card in a signed document, self-consistent and signed by its own root threshold.

    (1) well formed, exact members; (2) every key canonical, in one role, its id its own; (3) the payload is canonical;
    (4) every signature is by a root key on the card, or by one of `before`, the roots that were known; (5) as many
    distinct roots signed as the threshold demands; (6) where the roots have changed, as many of `before` as theirs.
    Whether the first roots are the right ones is for people: they compare `card.roots.fingerprint()`.
    Raises MalformedError or SignatureError.
    """
    document = jws.parse(data, max_bytes=MAX_CARD_BYTES, typ=JWS_TYPE)
    card = read_payload(document.payload)  # (1) (2)
    if card.payload() != document.payload:  # (3)
        raise MalformedError("card: the signed bytes are not in canonical form (RFC 8785)")
    demanded = [card.roots] if before is None or before == card.roots else [card.roots, before]
    by_id = {root_key_id(key): key for roots in demanded for key in roots.keys}
    signed: set[str] = set()
    for signature in document.signatures:
        key = by_id.get(signature.kid)
        if key is None:  # (4)
            raise SignatureError(f"card of {card.node}: signed by a key that is none of its roots")
        jws.verify(signature, document.payload, key)
        signed.add(signature.kid)
    for roots in demanded:  # (5) (6)
        count = len(signed & {root_key_id(key) for key in roots.keys})
        if count < roots.threshold:
            which = "root" if roots is card.roots else "enrolled root"
            raise SignatureError(f"card of {card.node}: {count} of {roots.threshold} {which} signatures")
    return card


def for_newcomers(data: bytes) -> bytes:
    """A card without the signatures of earlier roots, which nobody who meets the node now could check."""
    document = jws.parse(data, max_bytes=MAX_CARD_BYTES, typ=JWS_TYPE)
    own = {root_key_id(key) for key in unverified(data).roots.keys}
    kept = tuple(signature for signature in document.signatures if signature.kid in own)
    return jws.serialise(jws.SignedDocument(document.payload, kept))


@lru_cache(_REMEMBERED)
def unverified(data: bytes) -> Card:
    """What a card says, unverified: for cards of the store, which were verified when they came.

    Raises MalformedError or TooLargeError.
    """
    return read_payload(jws.parse(data, max_bytes=MAX_CARD_BYTES, typ=JWS_TYPE).payload)


def read_payload(payload: bytes) -> Card:
    """What the bytes say that the roots sign, or are to sign. Raises MalformedError or TooLargeError."""
    return _read(strictjson.decode_object(payload, max_bytes=MAX_CARD_BYTES, what="card"))


@dataclass(frozen=True, slots=True)
class Keyring:
    """The cards of this node and of the peers that it trusts.

    `dropped` are `issue` keys that are on no card any more but still speak, by node and key id: for entries that stood
    in a checkpoint that was held before they were dropped.
    """

    cards: Mapping[NodeId, Card]
    dropped: Mapping[tuple[NodeId, str], bytes] = field(default_factory=dict)

    def card(self, node: NodeId) -> Card:
        """The card of `node`. Raises UnknownOriginError."""
        try:
            return self.cards[node]
        except KeyError as e:
            raise UnknownOriginError(f"no card of {node} is enrolled") from e

    def key(self, node: NodeId, role: Role, kid: str, at: datetime) -> bytes:
        """The public key `kid` of `node` in exactly that role, valid at `at`.

        Raises UnknownOriginError, KeyringError.
        """
        for key in self.card(node).keys:
            if key.kid == kid and key.role is role and key.valid_at(at):
                return key.public
        if role is Role.ISSUE and (node, kid) in self.dropped:
            return self.dropped[(node, kid)]
        raise KeyringError(f"{node} has no valid {role} key of that id")


def _write_key(key: OnlineKey) -> JsonObject:
    return {
        "role": key.role.value,
        "kid": key.kid,
        "public": b64url(key.public),
        "from": instant_text(key.valid_from),
        "until": instant_text(key.valid_until),
    }


def _read(data: JsonObject) -> Card:
    roots, keys, protocols = data.get("roots"), data.get("keys"), data.get("protocols")
    if data.keys() != _CARD_MEMBERS or not isinstance(roots, dict) or roots.keys() != {"threshold", "keys"}:
        raise MalformedError("card: members missing or unknown")
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAX_KEYS:
        raise MalformedError(f"card: expected 1 to {MAX_KEYS} online keys")
    if not isinstance(protocols, list) or not 1 <= len(protocols) <= MAX_KEYS:
        raise MalformedError("card: protocols: expected a list of version numbers")
    online = tuple(_read_key(key) for key in keys)
    root_set = _read_roots(roots["threshold"], roots["keys"])
    if len({*root_set.keys, *(key.public for key in online)}) != len(root_set.keys) + len(online):
        raise MalformedError("card: a key stands twice; each has one role")
    return Card(
        node=node_id(data["card"]),
        version=_integer(data["version"], _MAX_VERSION),
        issued_at=instant(data["issued_at"]),
        jurisdiction=country(data["jurisdiction"]),
        protocols=tuple(_integer(version, _MAX_VERSION) for version in protocols),
        endpoint=_endpoint(data["endpoint"]),
        roots=root_set,
        keys=online,
    )


def _read_roots(threshold: object, keys: object) -> RootSet:
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAX_ROOT_KEYS:
        raise MalformedError(f"card: expected 1 to {MAX_ROOT_KEYS} root keys")
    public = tuple(ed25519.check_public_key(_bytes(key)) for key in keys)
    if len(set(public)) != len(public):
        raise MalformedError("card: a root key stands twice")
    return RootSet(threshold=_integer(threshold, len(public)), keys=public)


def _read_key(data: object) -> OnlineKey:
    if not isinstance(data, dict) or data.keys() != _KEY_MEMBERS:
        raise MalformedError("card: an online key has members missing or unknown")
    try:
        role = Role(data["role"])
    except ValueError as e:
        raise MalformedError("card: an online key has an unknown role") from e
    public = _bytes(data["public"])
    if role is not Role.TLS:
        ed25519.check_public_key(public)
    if data["kid"] != key_id(role, public):
        raise MalformedError("card: the id of an online key is not that of its bytes")
    key = OnlineKey(role, data["kid"], public, instant(data["from"]), instant(data["until"]))
    if key.valid_from >= key.valid_until:
        raise MalformedError("card: an online key is never valid")
    return key


def _endpoint(value: object) -> str:
    match = _ENDPOINT.fullmatch(value) if isinstance(value, str) and len(value) <= _MAX_ENDPOINT else None
    if match is None or not 0 < int(match[1]) < 1 << 16:
        raise MalformedError("card: endpoint: expected HOST:PORT")
    return match[0]


def _integer(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise MalformedError(f"card: expected a whole number from 1 to {most}")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise MalformedError("card: expected base64url text")
    return from_b64url(value)
