"""What the client takes from a peer that lies, shouts or says nothing."""

import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from federation.errors import (
    DeniedError,
    MalformedError,
    UnreachableError,
)
from federation.feed import Ask
from node.rpc import limits
from node.rpc.client import PeerLink, split_endpoint
from node.rpc.tls import server_credentials
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import Net
from tests.nodes import DE, FR

RAW_TEXT = "\x1b[2Jcall \N{BELL} this number\nand pay"


class Scripted(grpc.GenericRpcHandler):
    """A peer that answers every call as it is told."""

    def __init__(self, answer: Callable[[bytes, Any], bytes]) -> None:
        self._answer = answer

    def service(self, _call: "grpc.HandlerCallDetails") -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.unary_unary_rpc_method_handler(self._answer)


class TestClient:
    """What the client takes from a peer that lies, shouts or says nothing."""

    @pytest.fixture
    def lying(self, net: Net) -> Iterator[Callable[[Callable[[bytes, Any], bytes]], PeerLink]]:
        """DE's link to a server that holds FR's real key and answers as it is told."""
        with ExitStack() as ends:

            def start(answer: Callable[[bytes, Any], bytes]) -> PeerLink:
                running = grpc.server(futures.ThreadPoolExecutor(2), [Scripted(answer)])
                port = running.add_secure_port("127.0.0.1:0", server_credentials(net.world[FR]))
                running.start()
                ends.callback(lambda: running.stop(None).wait())
                net.addresses[FR] = f"127.0.0.1:{port}"
                return ends.enter_context(net.link(DE, FR))

            yield start

    @pytest.mark.invariant("I17")
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (grpc.StatusCode.UNAVAILABLE, UnreachableError),
            (grpc.StatusCode.DEADLINE_EXCEEDED, UnreachableError),
            (grpc.StatusCode.UNAUTHENTICATED, DeniedError),
            (grpc.StatusCode.INTERNAL, DeniedError),
            (grpc.StatusCode.UNKNOWN, DeniedError),
        ],
    )
    def test_the_words_of_a_peer_are_never_shown(self, lying: Any, code: grpc.StatusCode, kind: type) -> None:
        def shout(_: bytes, context: Any) -> bytes:
            context.abort(code, RAW_TEXT)
            return b""

        with pytest.raises(kind) as caught:
            lying(shout).notify()
        assert "pay" not in str(caught.value)
        assert str(caught.value).isprintable()
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    def test_answers_that_are_not_of_the_schema_are_refused(self, lying: Any) -> None:
        answers = {
            "hidden": wire.PullResponse().SerializeToString() + b"\x7a\x06hidden",
            "junk": b"\xff",
            "empty item": wire.PullResponse(items=[wire.PageItem()]).SerializeToString(),
            "deep": wire.PullResponse(items=[wire.PageItem(erased=wire.Erased(leaf_hash=b"x"))]).SerializeToString(),
        }
        said = b""
        link = lying(lambda _request, _context: said)
        assert link.pull(Ask("feed", 0, b"")).items == ()
        for said in answers.values():  # noqa: B007 - the lambda above says it
            with pytest.raises(MalformedError):
                link.pull(Ask("feed", 0, b""))

    def test_an_answer_that_is_too_large_is_refused(self, lying: Any) -> None:
        link = lying(lambda _request, _context: b"\x12" + b"\x80\x80\x80\x05" + b"x" * (10 << 20))
        with pytest.raises(DeniedError, match="RESOURCE_EXHAUSTED"):
            link.pull(Ask("feed", 0, b""))

    def test_a_peer_that_says_nothing_costs_a_deadline(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "CALL_TIMEOUT_S", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            net.addresses[FR] = f"127.0.0.1:{mute.getsockname()[1]}"
            with net.link(DE, FR) as link, pytest.raises(UnreachableError, match="does not answer"):
                link.notify()

    @pytest.mark.invariant("I18")
    def test_nothing_but_the_endpoint_is_contacted(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        net.serve(FR)
        with socket.create_server(("127.0.0.1", 0)) as trap:
            trap.setblocking(False)
            for variable in ("http_proxy", "https_proxy", "grpc_proxy"):
                monkeypatch.setenv(variable, f"http://127.0.0.1:{trap.getsockname()[1]}")
            assert net.sync(DE, FR) == 0
            with pytest.raises(BlockingIOError):
                trap.accept()

    @pytest.mark.invariant("I18")
    @pytest.mark.parametrize(
        "endpoint",
        ["unix:/tmp/s:1", "unix:///tmp/s:1", "dns://resolver.example/host:1", "a/b:1", "host:1x", "a,b:1", "[::1%x]:1"],
    )
    def test_an_endpoint_cannot_choose_a_scheme(self, endpoint: str) -> None:
        with pytest.raises(MalformedError):
            split_endpoint(endpoint)

    def test_endpoints_that_are_fine(self) -> None:
        assert split_endpoint("cert.fr.example:7443") == ("cert.fr.example", "7443")
        assert split_endpoint("[2001:db8::7]:7443") == ("[2001:db8::7]", "7443")
