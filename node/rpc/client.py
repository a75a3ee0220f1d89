"""Calls to one peer, blocking: the link that a sync uses.

One channel a sync, pinned to the certificates on the peer's card. Every call has a deadline, and first asks the
database whether the peer is still trusted. What a peer says in an error is never shown or kept: it may hold anything,
escape codes included; people get our own words and the status code. Nothing but the card's endpoint is contacted: no
proxy, no lookup of service configurations (I18).
"""

import hashlib
import re
import socket
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from federation.entries import check_fields, parse, read_item
from federation.errors import DeniedError, MalformedError, RemoteError, TlsRefusedError, UnreachableError
from federation.feed import Ask, PageBytes
from federation.keyring import Card
from federation.limits import MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES, MAX_PAGE_ITEMS
from node.home.context import Node
from node.peering.peers import trusted_card
from node.rpc import limits
from node.rpc.tls import channel_credentials
from protos.exchange.v1 import exchange_pb2 as wire

_SERVICE = wire.DESCRIPTOR.services_by_name["Exchange"].full_name
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PORT = re.compile(r"[0-9]{1,5}")
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_WORDS = {  # what a peer may tell us beyond a status; anything else that it says is not looked at
    "VERSION": "speaks other protocol versions than this node, or wants a newer one: one of the two must be upgraded",
    "UNCONFIRMED": "signs nothing for us now: it comes from a backup, or has just started; its operators have to look",
}
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_retries", 0),  # a sync is repeated as a whole
    ("grpc.use_local_subchannel_pool", 1),  # no connection and no back-off of an earlier sync
    ("grpc.min_reconnect_backoff_ms", limits.CONNECT_TIMEOUT_MS),  # is gRPC's name for the time a connect may take
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_CONTROL_BYTES),
    ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", limits.KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", limits.KEEPALIVE_TIMEOUT_MS),
)

M = TypeVar("M", bound=Message)


class PeerLink:
    """An open channel to `peer`; a context manager. It fits `node.exchange.sync.Link`.

    Every call raises UnreachableError when no answer came (TlsRefusedError for a key), DeniedError when the answer was
    no, MalformedError when it is not of the schema, and NotFoundError once the peer is not trusted any more. Making one
    raises MalformedError for an endpoint that is none, LockedError or KeyringError; the connection itself is made by
    the first call.
    """

    def __init__(self, node: Node, peer: Card) -> None:
        self._node = node
        self._peer = peer.node
        self._protocol = 0 if peer.speaks == 1 else peer.speaks  # a node of version 1 refuses the field
        self._host, self._port = split_endpoint(peer.endpoint)
        self._answered = False
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", peer.node))
        target = f"dns:///{self._host}:{self._port}"  # the scheme is ours: an endpoint cannot choose another
        self._channel = grpc.secure_channel(target, channel_credentials(node, peer), options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls that are under way in other threads end with DeniedError."""
        self._channel.close()

    def pull(self, ask: Ask) -> PageBytes:
        """The page after `ask.cursor` of the peer's feed to us, unverified."""
        request = wire.PullRequest(
            feed=ask.origin, cursor=ask.cursor, receipt=ask.receipt, max_items=MAX_PAGE_ITEMS, protocol=self._protocol
        )
        if self._protocol:
            request.newest, request.restored = ask.newest, ask.restored
        page = self._call("Pull", request, wire.PullResponse(), limits.PULL_TIMEOUT_S)
        items = tuple(read_item(item) for item in page.items)
        return PageBytes(items, page.checkpoint, page.latest, page.receipt, page.epoch)

    def checkpoint(self, origin: str, size: int) -> bytes:
        """The peer's signed head at `size`, unverified."""
        request = wire.GetCheckpointRequest(feed=origin, size=size, protocol=self._protocol)
        return self._call("GetCheckpoint", request, wire.GetCheckpointResponse(), limits.CALL_TIMEOUT_S).checkpoint

    def proof(
        self, origin: str, size: int, *, leaf: int | None = None, from_size: int | None = None
    ) -> tuple[tuple[bytes, ...], bytes]:
        """Hashes that prove inclusion of `leaf` or consistency with `from_size`, and the head at `size`. Unverified."""
        request = wire.GetProofRequest(feed=origin, size=size, leaf=leaf, from_size=from_size, protocol=self._protocol)
        answer = self._call("GetProof", request, wire.GetProofResponse(), limits.CALL_TIMEOUT_S)
        return tuple(answer.hashes), answer.checkpoint

    def notify(self) -> None:
        """Tells the peer that its feed has grown."""
        self._call("Notify", wire.NotifyRequest(protocol=self._protocol), wire.NotifyResponse(), limits.CALL_TIMEOUT_S)

    def _call(self, method: str, request: Message, response: M, timeout_s: float) -> M:
        trusted_card(self._node, self._peer)  # an open channel outlives the trust in its peer
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{_SERVICE}/{method}", None, None
        )
        try:
            data = call(request.SerializeToString(), timeout=timeout_s, wait_for_ready=False)
        except grpc.RpcError as e:
            # not chained: the peer's own text would come along into every traceback
            raise self._translate(e.code(), e.details()) from None
        except ValueError as e:  # what gRPC raises when the channel was closed
            raise DeniedError(f"{self._peer}: the connection was closed here") from e
        self._answered = True
        what = f"{self._peer}: answer to {method}, {len(data)} bytes with SHA-256 {hashlib.sha256(data).hexdigest()}"
        check_fields(response, data, limits.MAX_ANSWER_FIELDS, what)
        parse(response, data, what)
        return response

    def _translate(self, code: grpc.StatusCode, word: str | None) -> RemoteError:
        """The error for a status, in our own words. A refused TLS key looks like a dead line, so that is tried out."""
        if code not in _NO_ANSWER:
            self._answered = True
            if code is grpc.StatusCode.FAILED_PRECONDITION and word in _WORDS:
                return DeniedError(f"{self._peer} {_WORDS[word]}")
            return DeniedError(f"{self._peer} refuses the call ({code.name})")
        where = f"{self._peer} at {self._host}:{self._port}"
        if self._answered:
            return UnreachableError(f"{where} stopped answering ({code.name})")
        if code is grpc.StatusCode.UNAVAILABLE and self._accepts_connections():
            return TlsRefusedError(
                f"{where} answers on the network but refuses our TLS key: "
                "is our card enrolled there, and theirs current?"
            )
        return UnreachableError(f"{where} does not answer ({code.name})")

    def _accepts_connections(self) -> bool:
        try:
            with socket.create_connection((self._host.strip("[]"), int(self._port)), limits.PROBE_TIMEOUT_S):
                return True
        except OSError:
            return False


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Host and port of a card's endpoint, an IPv6 host in brackets. Raises MalformedError for anything else."""
    host, _, port = endpoint.rpartition(":")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port):
        raise MalformedError("the endpoint on the peer's card is not HOST:PORT; ask for a new card")
    return host, port
