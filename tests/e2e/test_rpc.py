"""What nodes exchange over gRPC with mutual TLS, whom they admit, and what the server refuses."""

import socket
import threading
import time
from concurrent import futures
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
from grpc_health.v1 import health_pb2

from federation import merkle
from federation.checkpoint import open_checkpoint
from federation.errors import (
    ConflictError,
    DeniedError,
    HeldError,
    LockedError,
    NotFoundError,
    OverQuotaError,
    SignatureError,
    TooLargeError,
    UnreachableError,
    UsageError,
)
from federation.feed import Ask
from federation.keyring import Card
from federation.model import Role
from node.exchange import serving
from node.home.context import Node
from node.peering import agreements, peers
from node.records import ledger
from node.rpc import limits, server
from node.rpc.quota import Quota
from node.rpc.server import refusal_of
from protos.exchange.v1 import exchange_pb2 as wire
from tests.e2e.net import (
    SECRET,
    Net,
    acknowledged,
    free_port,
    make_net,
    names_in_inbox,
    raw_channel,
    refusals,
    release,
    status_of,
    until,
)
from tests.nodes import DE, FR, IN, agree, history, make_world, terms_text

NOTICE = wire.NotifyRequest(protocol=2).SerializeToString()


class TestExchange:
    """What an honest pair does."""

    @pytest.mark.invariant("I9")
    def test_a_release_arrives_and_is_acknowledged(self, net: Net) -> None:
        agree(net.world)
        release(net.world, "FR-1")
        net.serve(FR)
        fr, de = net.world[FR], net.world[DE]
        assert not any(row.receipt for row in ledger.rows(fr, DE))
        assert net.sync(DE, FR) == 1
        assert names_in_inbox(de) == {"FR-1"}
        assert all(row.receipt for row in ledger.rows(fr, DE))
        assert acknowledged(fr, DE) == len(history(fr, DE))
        assert net.sync(DE, FR) == 0
        assert refusals(fr) == []

    def test_three_nodes_pull_from_each_other(self, three: Net) -> None:
        agree(three.world)
        release(three.world, "FR-1")
        for name in (FR, DE, IN):
            three.serve(name)
        assert [three.sync(name, FR) for name in (DE, IN)] == [1, 1]
        assert (three.sync(FR, IN), three.sync(IN, DE)) == (0, 1)  # DE tells IN which core came

    def test_a_notice_makes_the_peer_sync_at_once(self, net: Net) -> None:
        agree(net.world)
        receiving, sending = net.polls(DE), net.polls(FR)
        net.serve(FR, sending.hint)
        net.serve(DE, receiving.hint)
        receiving.start()
        sending.start()
        for number in (1, 2):
            release(net.world, f"FR-{number}")
            sending.announce()
            until(lambda wanted=f"FR-{number}": wanted in names_in_inbox(net.world[DE]))  # type: ignore[misc]
            until(lambda: acknowledged(net.world[FR], DE) == len(history(net.world[FR], DE)))

    def test_signatures_on_an_agreement_go_round_by_notices_alone(self, net: Net) -> None:
        fr, de = net.world[FR], net.world[DE]
        at_fr, at_de = net.polls(FR), net.polls(DE)
        net.serve(FR, at_fr.hint)
        net.serve(DE, at_de.hint)
        at_fr.start()
        at_de.start()
        proposed = agreements.propose(fr, terms_text(net.world), "agreement.yaml").agreement
        at_fr.announce()
        until(lambda: len(agreements.all_held(de)) == 1)
        agreements.countersign(de, proposed.id)
        at_de.announce()
        until(lambda: agreements.find(fr, proposed.id).state(fr.clock()) == "in force")
        # FR relays the union of the signatures, and tells DE of it without being asked to
        until(lambda: len(history(fr, DE)) == 2 and acknowledged(fr, DE) == 2)

    def test_proofs_and_heads_are_served(self, net: Net) -> None:
        agree(net.world)
        release(net.world, "FR-1")
        net.serve(FR)
        fr, de = net.world[FR], net.world[DE]
        leaves = [merkle.leaf_hash(entry) for entry in history(fr, DE) if isinstance(entry, bytes)]
        size, origin = len(leaves), f"{FR}/feeds/{DE}/1"
        key = fr.card.note_keys(Role.FEED, origin, de.clock())[0]
        with net.link(DE, FR) as link:
            with pytest.raises(DeniedError, match="signs nothing for us now"):
                link.proof(origin, size, leaf=0)  # it has not been shown so much yet
            net.sync(DE, FR)
            hashes, head = link.proof(origin, size, leaf=0)
            assert hashes == merkle.inclusion_proof(leaves, 0)
            assert open_checkpoint(head, origin, key).root == merkle.root(leaves)
            hashes, _ = link.proof(origin, size, from_size=1)
            assert hashes == merkle.consistency_proof(leaves, 1)
            assert open_checkpoint(link.checkpoint(origin, 1), origin, key).root == merkle.root(leaves[:1])
            with pytest.raises(DeniedError, match="NOT_FOUND"):
                link.checkpoint(origin, size + 1)
            with pytest.raises(DeniedError, match="NOT_FOUND"):
                link.pull(Ask(f"{FR}/feeds/{IN}/1", 0, b""))
            with pytest.raises(DeniedError, match="INVALID_ARGUMENT"):
                link.proof(origin, size)

    def test_health_is_for_peers_and_streams_are_not_offered(self, net: Net) -> None:
        net.serve(FR)
        with raw_channel(net, DE, FR) as call:
            answer = health_pb2.HealthCheckResponse.FromString(call("/grpc.health.v1.Health/Check", b""))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            asked = health_pb2.HealthCheckRequest(service="another").SerializeToString()
            assert status_of(lambda: call("/grpc.health.v1.Health/Check", asked)) == ("NOT_FOUND", "not found")
            assert status_of(lambda: call("/grpc.health.v1.Health/Watch", b""))[0] == "UNIMPLEMENTED"
            assert status_of(lambda: call("Steal", b""))[0] == "UNIMPLEMENTED"


class TestWhoMayCall:
    """Keys."""

    def test_a_refused_key_is_told_apart_from_a_dead_line(self, three: Net) -> None:
        # honest: IN may call. attack: FR has never seen IN, who presents a key of its own all the same
        running = three.serve(FR)
        three.sync(IN, FR)
        peers.distrust(three.world[FR], IN)
        with three.link(IN, FR) as link, pytest.raises(UnreachableError, match="refuses our TLS key"):
            link.notify()
        three.addresses[FR] = f"127.0.0.1:{free_port()}"
        with three.link(IN, FR) as link, pytest.raises(UnreachableError, match="does not answer"):
            link.notify()
        three.addresses[FR] = running.address
        three.sync(DE, FR)  # the others are served as before

    def test_a_server_with_another_key_is_not_talked_to(self, net: Net) -> None:
        net.serve(FR)
        net.addresses[DE] = net.addresses[FR]  # FR answers where DE should
        card = peers.trusted_card(net.world[FR], DE)
        with net.connect(net.world[FR], card) as link, pytest.raises(UnreachableError):
            link.notify()

    @pytest.mark.invariant("I2")
    def test_distrust_takes_effect_at_the_next_call_on_an_open_channel(self, net: Net) -> None:
        agree(net.world)
        net.serve(FR)
        origin = f"{FR}/feeds/{DE}/1"
        with net.link(DE, FR) as link:
            assert link.pull(Ask(origin, 0, b"")).items
            peers.distrust(net.world[FR], DE)
            for _ in range(3):
                with pytest.raises(DeniedError, match="UNAUTHENTICATED"):
                    link.pull(Ask(origin, 0, b""))
        assert refusals(net.world[FR]) == [("unknown", "Pull", "UNAUTHENTICATED UNKNOWN_KEY")]  # once, not thrice

    @pytest.mark.invariant("I2")
    def test_a_peer_that_we_distrust_is_not_called_any_more(self, net: Net) -> None:
        net.serve(FR)
        with net.link(DE, FR) as link:
            link.notify()
            peers.distrust(net.world[DE], FR)
            with pytest.raises(NotFoundError, match="distrusted"):
                link.notify()

    def test_a_peer_is_admitted_without_restart(self, tmp_path: Path) -> None:
        with make_net(tmp_path, FR, DE) as net:
            alone = make_world(tmp_path / "alone", IN)
            try:
                net.world.nodes[IN] = replace(alone[IN], clock=net.world.clock)
                net.serve(IN)  # nobody is enrolled there
                peers.enrol(net.world[DE], net.world[IN].card_bytes)
                with net.link(DE, IN) as link, pytest.raises(UnreachableError, match="refuses our TLS key"):
                    link.notify()
                peers.enrol(net.world[IN], net.world[DE].card_bytes)
                assert net.sync(DE, IN) == 0
            finally:
                alone.close()


class TestServer:
    """What the server refuses, and what it says."""

    def test_a_port_in_use_is_refused(self, net: Net) -> None:
        running = net.serve(FR)
        with pytest.raises(UsageError, match=f"port {running.port} of 127.0.0.1 is in use"):
            net.start_raising(replace(net.world[DE], listen=running.address))

    def test_hidden_fields_and_junk_are_refused(self, net: Net) -> None:
        net.serve(FR)
        hidden = NOTICE + b"\x7a\x06hidden"
        with raw_channel(net, DE, FR) as call:
            call("Notify", NOTICE)
            for data in (hidden, b"\xff\xff", b"\x08"):
                assert status_of(lambda data=data: call("Notify", data)) == (  # type: ignore[misc]
                    "INVALID_ARGUMENT",
                    "MALFORMED",
                )
            large = wire.PullRequest(receipt=b"r" * (1 << 20)).SerializeToString()
            assert status_of(lambda: call("Pull", large))[0] == "RESOURCE_EXHAUSTED"
        assert refusals(net.world[FR]) == [(DE, "Notify", "INVALID_ARGUMENT MALFORMED")]

    def test_a_forged_receipt_is_refused_by_code(self, net: Net) -> None:
        agree(net.world)
        net.serve(FR)
        origin = f"{FR}/feeds/{DE}/1"
        with raw_channel(net, DE, FR) as call:
            request = wire.PullRequest(feed=origin, receipt=b"not a receipt", protocol=2).SerializeToString()
            assert status_of(lambda: call("Pull", request)) == ("INVALID_ARGUMENT", "MALFORMED")

    @pytest.mark.invariant("I17")
    def test_an_unforeseen_error_says_nothing(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> serving.Page:
            raise RuntimeError(SECRET)

        net.serve(FR)
        monkeypatch.setattr(serving, "pull", broken)
        with raw_channel(net, DE, FR) as call, structlog.testing.capture_logs() as lines:
            assert status_of(lambda: call("Pull", b"")) == ("INTERNAL", "internal error")
        assert [(line["log_level"], line["error"], line["at"][:11]) for line in lines] == [
            ("error", "RuntimeError", "test_rpc.py")
        ]
        assert SECRET not in str(lines)
        assert refusals(net.world[FR]) == [(DE, "Pull", "INTERNAL RuntimeError")]

    @pytest.mark.invariant("I17")
    @pytest.mark.parametrize(
        ("error", "status", "word"),
        [
            (SignatureError(SECRET), "INVALID_ARGUMENT", "BAD_SIGNATURE"),
            (TooLargeError(SECRET), "RESOURCE_EXHAUSTED", "TOO_LARGE"),
            (OverQuotaError(SECRET), "RESOURCE_EXHAUSTED", "OVER_QUOTA"),
            (NotFoundError(SECRET), "NOT_FOUND", "not found"),
            (ConflictError(SECRET), "ABORTED", "try again"),
            (LockedError(SECRET), "FAILED_PRECONDITION", "not available"),
            (HeldError(SECRET), "FAILED_PRECONDITION", "not available"),
            (ValueError(SECRET), "INTERNAL", "internal error"),
        ],
    )
    def test_every_error_has_its_status_and_a_neutral_word(self, error: Exception, status: str, word: str) -> None:
        code, text = refusal_of(error)
        assert (code.name, text) == (status, word)

    def test_silent_sockets_neither_block_nor_stay(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        quick = tuple(o if o[0] != "grpc.server_handshake_timeout_ms" else (o[0], 1500) for o in server._OPTIONS)
        assert quick != server._OPTIONS
        monkeypatch.setattr(server, "_OPTIONS", quick)
        running = net.serve(FR)
        with ExitStack() as ends:
            silent = [ends.enter_context(socket.create_connection(("127.0.0.1", running.port), 5)) for _ in range(50)]
            began = time.monotonic()
            assert net.sync(DE, FR) == 0
            assert time.monotonic() - began < 5
            for held in silent:
                held.settimeout(10)
                assert held.recv(1) == b""


class TestQuota:
    """One peer cannot take everything."""

    def test_the_bucket_refills(self) -> None:
        quota = Quota()

        def calls(now_s: float) -> int:
            for count in range(1000):
                try:
                    quota.enter(DE, now_s)
                except OverQuotaError:
                    return count
                quota.leave(DE)
            return 1000

        assert calls(0) == limits.CALL_BURST
        assert calls(0) == 0
        assert calls(1) == limits.CALLS_PER_SECOND
        assert calls(1000) == limits.CALL_BURST
        quota.enter(FR, 1000)  # others have their own

    def test_calls_at_once_are_counted_whatever_they_ask(self) -> None:
        quota = Quota()
        for _ in range(limits.CALLS_AT_ONCE):
            quota.enter(DE, 0)
        with pytest.raises(OverQuotaError):
            quota.enter(DE, 0)
        quota.enter(FR, 0)
        quota.leave(DE)
        quota.enter(DE, 0)
        assert 2 * limits.CALLS_AT_ONCE < limits.WORKER_THREADS  # one peer never holds half of the workers

    def test_a_flood_is_refused_and_others_are_served(self, three: Net) -> None:
        three.serve(FR)
        with raw_channel(three, DE, FR) as call:
            refused = 0
            for _ in range(3 * limits.CALL_BURST):
                try:
                    call("Notify", NOTICE)
                except grpc.RpcError as e:
                    refused += (e.code().name, e.details()) == ("RESOURCE_EXHAUSTED", "OVER_QUOTA")
            assert refused
            assert three.sync(IN, FR) == 0
        assert refusals(three.world[FR]) == [(DE, "Notify", "RESOURCE_EXHAUSTED OVER_QUOTA")]

    def test_stalled_pulls_do_not_block_anybody(self, three: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        entered, go_on, honest = threading.Semaphore(0), threading.Event(), serving.pull

        def slow(node: Node, caller: Card, *rest: Any) -> serving.Page:
            if caller.node == DE:
                entered.release()
                go_on.wait(20)
            return honest(node, caller, *rest)

        three.serve(FR)
        monkeypatch.setattr(serving, "pull", slow)
        origin = f"{FR}/feeds/{DE}/1"
        with futures.ThreadPoolExecutor(limits.CALLS_AT_ONCE) as threads, three.link(DE, FR) as link:
            stalled = [threads.submit(link.pull, Ask(origin, 0)) for _ in range(limits.CALLS_AT_ONCE)]
            try:
                for _ in stalled:
                    assert entered.acquire(timeout=10)
                with pytest.raises(DeniedError, match="RESOURCE_EXHAUSTED"):
                    link.pull(Ask(origin, 0, b""))
                assert three.sync(IN, FR) == 0
            finally:
                go_on.set()
            assert all(not call.result(10).items for call in stalled)
