"""The gRPC server: four calls and health, each behind one guard.

The guard identifies the caller by its exact key at every call, holds it to its quota, refuses unknown fields, runs the
call in a bounded number of threads, and turns errors into status: a peer gets a neutral word, the reason stays in our
audit row. A call counts from its first byte until its answer was taken: whoever begins calls and sends no request, or
takes no answer, uses up its own quota and nobody else's. Streams are not offered. What the calls do is decided in
`node.exchange.serving`.
"""

import asyncio
import errno
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.exc import SQLAlchemyError

from federation.entries import ErasedItem, refuse_unknown
from federation.errors import (
    ConflictError,
    KeyringError,
    LocalError,
    MalformedError,
    NotFoundError,
    RemoteError,
    TooLargeError,
    UnconfirmedError,
    UsageError,
    VersionError,
)
from federation.feed import Ask
from federation.keyring import Card
from federation.limits import MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES
from federation.model import NodeId
from node.exchange import serving
from node.home import logs
from node.home.context import Node
from node.home.tally import Count, Tally
from node.rpc import limits
from node.rpc.quota import Quota
from node.rpc.tls import peer_of, server_credentials, trusted_cards
from node.store.database import record, write
from protos.exchange.v1 import exchange_pb2 as wire
from protos.exchange.v1 import exchange_pb2_grpc

if TYPE_CHECKING:  # these types exist for the type checker only
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[bytes, Message]

SERVICE = wire.DESCRIPTOR.services_by_name["Exchange"].full_name
UNCONFIRMED = "UNCONFIRMED"  # this feed signs nothing now (I16)
STRANGER = "the key that was presented is on no card that this node trusts"
_NOBODY = "unknown"
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port fails, in place of taking half of the calls
    ("grpc.max_concurrent_streams", limits.MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", limits.HANDSHAKE_TIMEOUT_MS),
    ("grpc.max_receive_message_length", MAX_CONTROL_BYTES),  # requests are small: a receipt is the largest part
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES),
    ("grpc.max_connection_idle_ms", limits.IDLE_CONNECTION_MS),
    ("grpc.max_connection_age_ms", limits.MAX_CONNECTION_MS),
    ("grpc.max_connection_age_grace_ms", limits.CONNECTION_GRACE_MS),
    ("grpc.keepalive_time_ms", limits.KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", limits.KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", limits.LEAST_PING_GAP_MS),
    ("grpc.http2.max_ping_strikes", limits.PING_STRIKES),
)
_log = structlog.get_logger()


class ExchangeServicer(exchange_pb2_grpc.ExchangeServicer):
    """The calls of the wire contract, blocking. The guard gives them the caller's card where gRPC has a context."""

    def __init__(self, node: Node, on_notify: Callable[[NodeId], None], tally: Tally) -> None:
        self._node = node
        self._on_notify = on_notify
        self._tally = tally

    def Pull(self, request: wire.PullRequest, caller: Card) -> wire.PullResponse:  # noqa: N802 - named by the schema
        """A page of the caller's feed."""
        ask = Ask(
            request.feed, request.cursor, request.receipt, request.newest, request.restored, request.protocol or 1
        )
        page = serving.pull(self._node, caller, ask, request.max_items)
        self._count(caller.node, page.items)
        return wire.PullResponse(
            items=[_item(item) for item in page.items],
            checkpoint=page.checkpoint,
            latest=page.latest,
            receipt=page.receipt,
            epoch=page.epoch,
        )

    def _count(self, peer: NodeId, items: tuple[bytes | ErasedItem, ...]) -> None:
        self._tally.add(Count.PULLS, peer)
        if items:
            self._tally.add(Count.PAGES_OUT, peer)
            self._tally.add(Count.ITEMS_OUT, peer, by=len(items))
            self._tally.add(Count.BYTES_OUT, peer, by=sum(len(item) for item in items if isinstance(item, bytes)))

    def Notify(self, request: wire.NotifyRequest, caller: Card) -> wire.NotifyResponse:  # noqa: N802 - schema
        """Passes the hint on."""
        serving.check_version(caller, request.protocol or 1)
        self._on_notify(caller.node)
        return wire.NotifyResponse()

    def GetCheckpoint(  # noqa: N802 - named by the schema
        self, request: wire.GetCheckpointRequest, caller: Card
    ) -> wire.GetCheckpointResponse:
        """The signed head at one size."""
        serving.check_version(caller, request.protocol or 1)
        note = serving.checkpoint_at(self._node, caller, request.feed, request.size)
        return wire.GetCheckpointResponse(checkpoint=note)

    def GetProof(self, request: wire.GetProofRequest, caller: Card) -> wire.GetProofResponse:  # noqa: N802 - schema
        """The hashes of a proof, with the signed head that it leads to."""
        serving.check_version(caller, request.protocol or 1)
        kind = request.WhichOneof("kind")
        hashes, note = serving.prove(
            self._node,
            caller,
            request.feed,
            leaf=request.leaf if kind == "leaf" else None,
            from_size=request.from_size if kind == "from_size" else None,
            size=request.size,
        )
        return wire.GetProofResponse(hashes=hashes, checkpoint=note)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package is untyped
    """gRPC health checking, for peers only: a node that answers serves, unless it is about to end."""

    draining = False

    def Check(self, request: Any, caller: Card) -> Any:  # noqa: ARG002, N802 - named by the schema
        """SERVING, or NOT_SERVING while draining. Raises NotFoundError for a service that we do not have."""
        if request.service not in ("", SERVICE):
            raise NotFoundError("no such service")
        status = health_pb2.HealthCheckResponse
        return status(status=status.NOT_SERVING if self.draining else status.SERVING)


class Guard(grpc.aio.ServerInterceptor):
    """What stands before every call; see the module's docstring."""

    def __init__(self, node: Node, threads: ThreadPoolExecutor, gate: ThreadPoolExecutor, tally: Tally) -> None:
        self._node = node
        self._tally = tally
        self._threads = threads
        self._gate = gate
        self._quota = Quota()
        self._audited_at_s: dict[tuple[str, str, str], float] = {}
        self._lock = threading.Lock()

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: "grpc.HandlerCallDetails",
    ) -> "Handler | None":
        """The handler of a call, guarded; None (gRPC answers UNIMPLEMENTED) for streams and unknown methods."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return None
        method = handler_call_details.method.rpartition("/")[2]

        async def answer(_requests: object, context: "Context") -> Message:
            return await self._answer(method, handler, context)

        # to gRPC it is a stream of requests, so that the guard stands before the first one; on the wire there is no
        # difference
        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    async def _answer(
        self,
        method: str,
        handler: "Handler",
        context: "Context",
    ) -> Message:
        """(1) who calls, by exact key; (2) within its quota; (3) the request, without unknown fields; (4) the call."""
        now_s, caller = asyncio.get_running_loop().time(), None
        try:
            caller = await asyncio.wrap_future(self._gate.submit(self._identify, context))  # (1)
            self._quota.enter(caller.node, now_s)  # (2)
            work: list[Future[Message]] = []
            context.add_done_callback(partial(self._leave, caller.node, work))  # type: ignore[arg-type]  # its stub
            self._tally.add(Count.CALLS, caller.node, method)
            data = await _request(method, context)  # (3)
            work.append(self._threads.submit(_call, method, handler, data, caller))  # (4)
            return await asyncio.wrap_future(work[0])
        except Exception as e:  # noqa: BLE001 - the boundary: whatever it is, the peer gets a neutral word
            code, word = refusal_of(e)
            if caller is None and isinstance(e, KeyringError):
                code, word = grpc.StatusCode.UNAUTHENTICATED, STRANGER
            name = _NOBODY if caller is None else caller.node
            self._tally.add(Count.REFUSALS, name, method, code.name)
            await asyncio.wrap_future(self._threads.submit(self._account, name, method, code, e, now_s))
        return await context.abort(code, word)

    def _leave(self, peer: NodeId, work: list[Future[Message]], ctx: object) -> None:  # noqa: ARG002 - gRPC's name
        """Gives the place of a call back, which is over: its answer was taken, or it was cancelled. A thread that is
        still at it keeps the place."""
        if work:
            work[0].add_done_callback(lambda _: self._quota.leave(peer))
        else:
            self._quota.leave(peer)

    def _identify(self, context: "Context") -> Card:
        return peer_of(context.auth_context(), trusted_cards(self._node), self._node.clock())

    def _account(self, caller: str, method: str, code: grpc.StatusCode, error: Exception, now_s: float) -> None:
        """An audit row and a log line for a refused call; the same refusal gets one in AUDIT_INTERVAL_S."""
        reason = error.code if isinstance(error, RemoteError) else type(error).__name__
        key = (caller, method, code.name)
        with self._lock:
            if now_s - self._audited_at_s.get(key, -limits.AUDIT_INTERVAL_S) < limits.AUDIT_INTERVAL_S:
                return
            self._audited_at_s[key] = now_s
        if code is grpc.StatusCode.INTERNAL:
            _log.error("call failed", peer=caller, method=method, error=reason, at=logs.place(error))
        else:
            _log.info("call refused", peer=caller, method=method, status=code.name, reason=reason)
        try:
            with write(self._node.engine) as tx:
                detail = f"{code.name} {reason}"
                record(tx, at=self._node.clock(), by=caller, act="rpc.refuse", subject=method, detail=detail)
        except SQLAlchemyError as e:  # the answer must be a refusal all the same, in neutral words
            _log.error("audit failed", peer=caller, method=method, error=type(e).__name__, at=logs.place(e))


class RunningServer:
    """A server that accepts calls. `address` is where it is bound, with the port that was chosen for port 0."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health: HealthServicer,
        pools: tuple[ThreadPoolExecutor, ...],
        address: str,
        port: int,
    ) -> None:
        self._server = server
        self._health = health
        self._pools = pools
        self.address = address
        self.port = port

    def drain(self) -> None:
        """Tells peers that ask for its health to go elsewhere; `stop` must follow."""
        self._health.draining = True

    async def stop(self, grace_s: float) -> None:
        """Accepts nothing more, lets open calls go on for `grace_s`, then ends them."""
        await self._server.stop(grace_s)
        for pool in self._pools:
            await asyncio.to_thread(pool.shutdown)


async def start(node: Node, on_notify: Callable[[NodeId], None], tally: Tally | None = None) -> RunningServer:
    """Serves `node` at `node.listen`, in the running event loop. Port 0 picks a free one.

    `on_notify` is called in a thread with the peer that says that its feed has grown; it must return at once. What is
    served and refused is counted in `tally`. Raises UsageError when the address cannot be had, LockedError when the key
    cannot be opened.
    """
    credentials, tally, health = server_credentials(node), tally or Tally(), HealthServicer()
    threads = ThreadPoolExecutor(limits.WORKER_THREADS, "rpc")
    gate = ThreadPoolExecutor(limits.IDENTIFY_THREADS, "rpc-gate")
    server = grpc.aio.server(
        interceptors=(Guard(node, threads, gate, tally),), options=_OPTIONS, maximum_concurrent_rpcs=limits.RPCS_AT_ONCE
    )
    exchange_pb2_grpc.add_ExchangeServicer_to_server(  # type: ignore[no-untyped-call]  # generated code
        ExchangeServicer(node, on_notify, tally), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    host, _, _ = node.listen.rpartition(":")
    try:
        port = server.add_secure_port(node.listen, credentials)
    except RuntimeError as e:
        raise UsageError(_why_not(node.listen)) from e
    await server.start()
    return RunningServer(server, health, (threads, gate), f"{host}:{port}", port)


def refusal_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the neutral word that a peer gets for `error`. The one place that decides this."""
    if isinstance(error, TooLargeError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, error.code
    if isinstance(error, VersionError):
        return grpc.StatusCode.FAILED_PRECONDITION, error.code
    if isinstance(error, RemoteError):
        return grpc.StatusCode.INVALID_ARGUMENT, error.code
    if isinstance(error, UnconfirmedError):
        return grpc.StatusCode.FAILED_PRECONDITION, UNCONFIRMED
    if isinstance(error, NotFoundError):
        return grpc.StatusCode.NOT_FOUND, "not found"
    if isinstance(error, ConflictError):
        return grpc.StatusCode.ABORTED, "try again"
    if isinstance(error, LocalError):
        return grpc.StatusCode.FAILED_PRECONDITION, "not available"
    return grpc.StatusCode.INTERNAL, "internal error"


async def _request(method: str, context: "Context") -> bytes:
    """The one request of a call. Raises MalformedError for none, for more, and when it does not come in time."""
    try:
        async with asyncio.timeout(limits.REQUEST_TIMEOUT_S):
            read: tuple[object, ...] = (await context.read(), await context.read())
    except TimeoutError as e:
        raise MalformedError(f"{method}: its request did not come in time") from e
    data, end = read
    if not isinstance(data, bytes) or end is not grpc.aio.EOF:
        raise MalformedError(f"{method}: not one request")
    return data


def _call(method: str, handler: "Handler", data: bytes, caller: Card) -> Message:
    if handler.request_deserializer is None or handler.unary_unary is None:
        raise TypeError(method)
    try:
        request = handler.request_deserializer(data)
    except DecodeError as e:
        raise MalformedError(f"{method}: not the protobuf message it should be") from e
    refuse_unknown(request, method)
    response: Message = handler.unary_unary(request, caller)  # type: ignore[arg-type]  # see ExchangeServicer
    return response


def _item(item: bytes | ErasedItem) -> wire.PageItem:
    if isinstance(item, bytes):
        return wire.PageItem(entry=item)
    return wire.PageItem(erased=wire.Erased(seq=item.seq, leaf_hash=item.leaf_hash, erased_by=item.erased_by))


def _why_not(listen: str) -> str:
    """What the operating system says about binding to `listen`; gRPC's own error does not tell it apart."""
    host, _, port = listen.rpartition(":")
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            return f"listen: port {port} of {host} is in use; stop what uses it, or change listen in apostille.yaml"
        return f"listen: {listen} cannot be had ({e.strerror}); change listen in apostille.yaml"
    return f"listen: {listen} cannot be had; change listen in apostille.yaml"
