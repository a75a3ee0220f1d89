"""Mutual TLS without an authority: every node pins the certificates on the cards that it has enrolled.

The chain only opens the connection. Who calls is decided by comparing the exact public key with the cards that are
trusted at that moment, at every call, because an open connection outlives the trust in its peer. A client cannot ask
gRPC which certificate the server showed; so a certificate is enrolled only if no other can be accepted in its place,
see `node.home.certificates`.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache

import grpc
from sqlalchemy import select

from federation.errors import KeyringError, MalformedError
from federation.keyring import Card, open_card
from federation.model import Role
from node.home import signing
from node.home.certificates import pem_of, public_key_of, public_key_of_pem
from node.home.context import Node
from node.rpc import limits
from node.store.database import read
from node.store.tables import peers

_REMEMBERED = (
    256  # cards and certificates whose parsing is not repeated: checking a card's signatures takes a millisecond
)

_open_card = lru_cache(_REMEMBERED)(open_card)
_public_key_of = lru_cache(_REMEMBERED)(public_key_of)
_pem_of = lru_cache(_REMEMBERED)(pem_of)


def trusted_cards(node: Node) -> tuple[Card, ...]:
    """The cards of all peers that are trusted now and exchanged with directly, read afresh."""
    admitted = select(peers.c.card).where(peers.c.trusted == 1, peers.c.direct == 1).order_by(peers.c.node)
    with read(node.engine) as tx:
        rows = tx.execute(admitted).scalars().all()
    return tuple(_open_card(data) for data in rows)


def server_credentials(node: Node) -> grpc.ServerCredentials:
    """Credentials that admit the holders of trusted cards, looked up again for each connection.

    Whoever connects needs no key for that, and a look takes milliseconds: in a flood of connections one is admitted as
    the last look found it, which is less than a second old. Calls are decided apart, each by a look of its own.

    gRPC is told only of what has changed: it replaces what it has without a lock, and where connections come together
    while it does so for each of them, the process ends with a fault of memory. Raises LockedError, UsageError.
    """
    told: tuple[bytes, bytes, bytes] | None = None
    looks: deque[float] = deque(maxlen=limits.LOOKS_PER_SECOND)
    telling = threading.Lock()

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        nonlocal told
        now, now_s = node.clock(), time.monotonic()
        with telling:
            if len(looks) == looks.maxlen and now_s - looks[0] < 1:
                return None
            looks.append(now_s)
        with read(node.engine) as tx:
            own = signing.tls_for_all(node, tx)
        # nobody enrolled: gRPC needs a root, and our own key is the one that no peer holds
        roots = b"".join(_roots(trusted_cards(node), now)) or own.certificate
        with telling:
            if told == (own.private_key, own.certificate, roots):
                return None
            told = (own.private_key, own.certificate, roots)
        return grpc.ssl_server_certificate_configuration([(own.private_key, own.certificate)], roots)

    return grpc.dynamic_ssl_server_credentials(
        configuration(),  # type: ignore[arg-type]  # the first time there is one
        configuration,  # type: ignore[arg-type]  # None is what the documentation asks for where nothing has changed
        require_client_authentication=True,
    )


def channel_credentials(node: Node, peer: Card) -> grpc.ChannelCredentials:
    """Credentials that accept nothing but the certificates on `peer`'s card.

    Raises LockedError, UsageError, KeyringError.
    """
    now = node.clock()
    with read(node.engine) as tx:
        own = signing.tls_for(node, tx, peer.node)
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
    except MalformedError as e:
        raise KeyringError("the caller's certificate cannot be read") from e
    found = [card for card in cards if key in _keys_of(card, now)]  # (2)
    if len(found) != 1:  # (3)
        raise KeyringError(f"{len(found)} trusted cards hold the caller's key")
    return found[0]


def _keys_of(card: Card, now: datetime) -> frozenset[bytes]:
    return frozenset(_public_key_of(key.public) for key in card.keys if key.role is Role.TLS and key.valid_at(now))


def _roots(cards: Iterable[Card], now: datetime) -> Iterable[bytes]:
    for card in cards:
        for key in card.keys:
            if key.role is Role.TLS and key.valid_at(now):
                yield _pem_of(key.public)
