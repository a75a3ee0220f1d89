"""Running a node for real: how it ends, what it tells while it runs, IPv6, and the unit for systemd."""

import importlib.resources
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from sqlalchemy import select, text

from federation.checkpoint import origin_line
from federation.errors import UsageError
from federation.feed import Ask
from federation.model import Role
from node import main
from node.home import keys, lock, owncard
from node.operation import serve
from node.store.database import read, write
from node.store.tables import in_feeds
from tests.e2e.net import Net, acknowledged, names_in_inbox, raw_channel, release, status_of, until
from tests.e2e.processes import PATIENCE_S, ROOT, locked, ready, refuses_connections, serving, settle
from tests.nodes import DE, FR, agree, history, make_node

UNIT = ROOT / "config" / "systemd" / "apostille.service"
_QUICK = "from node.operation import serve; serve.GRACE_S, serve._LAST_S = 1.0, 0.5"
_ONE_A_PAGE = "from node.rpc import client; client.MAX_PAGE_ITEMS = 1"


@pytest.fixture
def pair(net: Net) -> Net:
    """FR and DE with an agreement in force and addresses of their own."""
    settle(net, FR, DE)
    agree(net.world)
    return net


def received(net: Net) -> int:
    """How many entries of FR's feed are durable at DE."""
    with read(net.world[DE].engine) as tx:
        return int(tx.execute(select(in_feeds.c.size).where(in_feeds.c.peer == FR)).scalar_one())


def how_it_ended(home: Path) -> list[str]:
    """What the log says of that."""
    return re.findall(r'event=("?(?:drain|stop).*)', (home / "apostille.log").read_text("utf-8"))


def everything_arrives(net: Net, *names: str) -> None:
    """After whatever happened, the next sync brings DE all that FR released, and FR every receipt."""
    net.world.clock.now = main.utc_now()  # that of the processes
    net.serve(FR)
    net.sync(DE, FR)
    fr, de = net.world[FR], net.world[DE]
    assert names_in_inbox(de) == set(names)
    assert acknowledged(fr, DE) == len(history(fr, DE)) == received(net)


class TestDrain:
    """How a server ends."""

    @pytest.mark.invariant("I9")
    def test_a_pull_that_is_under_way_is_answered(self, pair: Net) -> None:
        fr, de = pair.world[FR], pair.world[DE]
        release(pair.world, "FR-1")
        ask = Ask(origin_line(FR, DE, 1), 0)
        with ready(fr.home) as server, ThreadPoolExecutor(1) as pool, pair.link(DE, FR) as link:
            assert server.health() == "ok"
            with locked(fr.home):
                page = pool.submit(link.pull, ask)
                until(lambda: server.count("apostille_calls_total", method="Pull", peer=DE) == 1, PATIENCE_S)
                server.tell(signal.SIGTERM)
                assert server.told() == "STOPPING=1"
                until(lambda: refuses_connections(pair.addresses[FR]), PATIENCE_S)
                assert server.health() == "draining"
                assert not page.done()
            assert len(page.result(PATIENCE_S).items) == len(history(fr, DE))
            assert server.ended() == (0, server_note(fr.home, pair.addresses[FR]))
        with lock.hold(fr.home):
            assert not (fr.home / lock.STATE_FILE).exists()
        assert how_it_ended(fr.home) == ["drain grace_s=10.0", f"stop node={FR}"]
        assert names_in_inbox(de) == set()
        everything_arrives(pair, "FR-1")

    @pytest.mark.invariant("I9")
    def test_a_sync_ends_with_the_page_that_it_is_at(self, pair: Net) -> None:
        fr, de = pair.world[FR], pair.world[DE]
        before = received(pair)
        for number in (1, 2, 3):
            release(pair.world, f"FR-{number}")
        with ready(fr.home) as sender:
            with locked(fr.home) as unlock, ready(de.home, _ONE_A_PAGE) as receiver:
                until(lambda: sender.count("apostille_calls_total", method="Pull", peer=DE) == 1, PATIENCE_S)
                receiver.tell(signal.SIGINT)
                until(lambda: receiver.health() == "draining", PATIENCE_S)
                assert received(pair) == before
                unlock()
                assert receiver.ended()[0] == 0
            assert received(pair) == before + 1
            assert sender.count("apostille_pulls_total", peer=DE) == 1
        everything_arrives(pair, "FR-1", "FR-2", "FR-3")

    def test_what_does_not_end_is_cut_off_after_the_grace(self, pair: Net) -> None:
        fr = pair.world[FR]
        release(pair.world, "FR-1")
        with ready(fr.home, _QUICK) as server, ThreadPoolExecutor(1) as pool, pair.link(DE, FR) as link:
            with locked(fr.home):
                page = pool.submit(link.pull, Ask(origin_line(FR, DE, 1), 0))
                until(lambda: server.count("apostille_calls_total", method="Pull") == 1, PATIENCE_S)
                server.tell(signal.SIGTERM)
                assert server.ended(10)[0] == 0  # a writer waits for the lock for 30 seconds
            assert page.exception(PATIENCE_S) is not None
        assert how_it_ended(fr.home) == ["drain grace_s=1.0", '"drain cut short"', f"stop node={FR}"]
        everything_arrives(pair, "FR-1")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_it_at_once(self, pair: Net, number: signal.Signals) -> None:
        fr = pair.world[FR]
        release(pair.world, "FR-1")
        with ready(fr.home) as server, ThreadPoolExecutor(1) as pool, pair.link(DE, FR) as link:
            with locked(fr.home):
                page = pool.submit(link.pull, Ask(origin_line(FR, DE, 1), 0))
                until(lambda: server.count("apostille_calls_total", method="Pull") == 1, PATIENCE_S)
                server.tell(signal.SIGTERM)
                assert server.told() == "STOPPING=1"
                server.tell(number)
                assert server.ended(5)[0] == -number
            assert page.exception(PATIENCE_S) is not None
        everything_arrives(pair, "FR-1")

    def test_a_wake_that_comes_late_kills_nothing(self, pair: Net) -> None:
        with ready(pair.world[FR].home) as server:
            server.tell(signal.SIGTERM)
            while server.process.poll() is None:
                server.tell(signal.SIGUSR1)
                threading.Event().wait(0.002)
            assert server.ended()[0] == 0

    def test_peers_that_ask_for_its_health_are_told(self, net: Net) -> None:
        running = net.serve(FR)
        with raw_channel(net, DE, FR) as call:

            def health() -> str:
                said = health_pb2.HealthCheckResponse.FromString(call("/grpc.health.v1.Health/Check", b""))
                return str(health_pb2.HealthCheckResponse.ServingStatus.Name(said.status))

            assert health() == "SERVING"
            running.drain()
            assert health() == "NOT_SERVING"


class TestHealth:
    """What a supervisor is told."""

    def test_every_word_has_its_cause(self, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serve, "_ANSWER_S", 0.2)
        fr, loop, told = net.world[FR], net._loop, serve._Told()

        def health() -> str | None:
            return serve._health(fr, loop, told)

        assert health() == "starting"
        told.serving.set()
        assert health() is None
        go_on = threading.Event()
        loop.call_soon_threadsafe(go_on.wait, PATIENCE_S)
        assert health() == "stuck"
        go_on.set()
        until(lambda: health() is None)
        with write(fr.engine) as tx:
            tx.execute(text("ALTER TABLE meta RENAME TO elsewhere"))
        assert health() == "database"
        told.end.set()
        assert health() == "draining"


class TestWhatItTells:
    """Metrics, logs, the service manager."""

    def test_an_exchange_is_counted_on_both_sides(self, pair: Net) -> None:
        fr, de = pair.world[FR], pair.world[DE]
        before = len(history(fr, DE))
        release(pair.world, "FR-1")
        with ready(de.home) as receiver:
            until(lambda: receiver.count("apostille_syncs_total", peer=FR, result="UNREACHABLE") == 1, PATIENCE_S)
            with ready(fr.home) as sender:
                until(lambda: sender.count("apostille_notices_total", peer=DE, result="ok") >= 1, PATIENCE_S)
                until(lambda: receiver.count("apostille_syncs_total", peer=FR, result="ok") >= 1, PATIENCE_S)
                until(lambda: acknowledged(fr, DE) == len(history(fr, DE)) == received(pair), PATIENCE_S)
                sent = [entry for entry in history(fr, DE)[before:] if isinstance(entry, bytes)]
                assert receiver.count("apostille_entries_in_total", peer=FR, outcome="admitted") == 1
                assert receiver.count("apostille_entries_in_total", peer=FR) == len(sent)
                assert receiver.count("apostille_inbox_items", state="current") == 1
                assert receiver.count("apostille_feed_entries", peer=FR, direction="in") == before + len(sent)
                pulls = sender.count("apostille_pulls_total", peer=DE)
                assert pulls == sender.count("apostille_calls_total", peer=DE, method="Pull") >= 2
                assert pulls == receiver.count("apostille_pages_in_total", peer=FR)
                assert 1 <= sender.count("apostille_pages_out_total", peer=DE) < pulls
                assert sender.count("apostille_items_out_total", peer=DE) == len(sent)
                assert sender.count("apostille_bytes_out_total", peer=DE) == sum(map(len, sent))
                out = {"peer": DE, "direction": "out"}
                assert sender.count("apostille_feed_acknowledged_entries", **out) == before + len(sent)
                with raw_channel(pair, DE, FR) as call:
                    assert status_of(lambda: call("GetProof", b"\xff"))[0] == "INVALID_ARGUMENT"
                labels = {"peer": DE, "method": "GetProof", "status": "INVALID_ARGUMENT"}
                assert sender.count("apostille_calls_refused_total", **labels) == 1

    def test_prometheus_is_loaded_only_where_it_is_asked_for(self, tmp_path: Path) -> None:
        node = make_node(tmp_path, FR, "FR")
        node.engine.dispose()
        (node.home / "apostille.yaml").write_text(
            (node.home / "apostille.yaml").read_text("utf-8").replace("127.0.0.1:7001", "127.0.0.1:0"), encoding="utf-8"
        )
        tell = f"{_QUICK}\nserve.lock.over = lambda *_: print(*__import__('sys').modules)"
        with ready(node.home, tell, alone=True) as server:
            server.tell(signal.SIGTERM)
            out, said = server.process.communicate(timeout=PATIENCE_S)
        assert "node.operation.serve" in out.split()
        assert "prometheus_client" not in out.split()
        assert "event=start" in said  # without a log file, stderr has it

    def test_the_log_is_written_to_its_file(self, pair: Net) -> None:
        home = pair.world[FR].home
        with ready(home) as server:
            server.tell(signal.SIGTERM)
            assert server.ended() == (0, server_note(home, pair.addresses[FR]))
        log = home / "apostille.log"
        events = [
            re.search(r"^timestamp=\S+ level=info event=(\w+)", line) for line in log.read_text("utf-8").splitlines()
        ]
        assert [found[1] for found in events if found][:2] == ["metrics", "start"]
        assert None not in events
        assert log.stat().st_mode & 0o777 == 0o600

    def test_a_log_that_cannot_be_written_does_not_stop_the_exchange(self, pair: Net) -> None:
        fr, de = pair.world[FR], pair.world[DE]
        release(pair.world, "FR-1")
        (de.home / "apostille.log").mkdir()
        with ready(fr.home), ready(de.home) as receiver:
            until(lambda: names_in_inbox(de) == {"FR-1"}, PATIENCE_S)
            receiver.tell(signal.SIGTERM)
            code, said = receiver.ended()
        assert code == 0
        assert said.count("cannot be written") == 1
        assert "event=stop" in said

    def test_the_service_manager_is_told_by_a_path_too_and_may_be_gone(self, pair: Net, tmp_path: Path) -> None:
        home = pair.world[FR].home
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(PATIENCE_S)
            with serving(home, NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
                assert manager.recv(100) == b"READY=1"
                (tmp_path / "notify").unlink()
                server.tell(signal.SIGTERM)
                assert server.ended()[0] == 0

    def test_an_address_for_metrics_that_cannot_be_had_is_said(self, pair: Net) -> None:
        home = pair.world[FR].home
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            path = home / "apostille.yaml"
            path.write_text(path.read_text("utf-8").replace("127.0.0.1:0", f"127.0.0.1:{port}"), encoding="utf-8")
            with serving(home) as server:
                code, said = server.ended()
        assert code == 2
        assert f"metrics: port {port} of 127.0.0.1 is in use" in said
        assert len(said.splitlines()) == 1
        with lock.hold(home):
            assert refuses_connections(pair.addresses[FR])

    def test_a_card_that_another_command_installed_is_taken_up(self, pair: Net) -> None:
        fr = pair.world[FR]
        with ready(fr.home) as server:
            before = server.count("apostille_key_seconds_until_end", role="issue")
            later = tuple(
                replace(key, valid_until=key.valid_until + timedelta(days=9)) if key.role is Role.ISSUE else key
                for key in fr.card.keys
            )
            card = replace(fr.card, version=fr.card.version + 1, keys=later)
            with write(fr.engine) as tx:
                owncard.store(tx, card, main.sign_card(card, fr.keys), at=fr.clock(), by="alice")
            assert server.count("apostille_key_seconds_until_end", role="issue") <= before
            assert lock.wake(fr.home)
            until(
                lambda: server.count("apostille_key_seconds_until_end", role="issue") > before + 8 * 86_400, PATIENCE_S
            )

    @pytest.mark.invariant("I17")
    def test_a_card_that_is_damaged_is_told_and_the_old_one_goes_on(self, pair: Net) -> None:
        fr = pair.world[FR]
        with ready(fr.home) as server:
            with write(fr.engine) as tx:
                owncard.store(tx, replace(fr.card, version=fr.card.version + 1), b"SECRET", at=fr.clock(), by="alice")
            assert lock.wake(fr.home)
            log = fr.home / "apostille.log"
            until(lambda: 'event="wake failed"' in log.read_text("utf-8"), PATIENCE_S)
            assert server.health() == "ok"
            assert "SECRET" not in log.read_text("utf-8")


class TestIpv6:
    """Addresses of the newer kind."""

    def test_two_nodes_exchange_over_it(self, net: Net) -> None:
        if not has_ipv6():
            pytest.skip("this machine has no IPv6 loopback address")
        settle(net, FR, DE, host="[::1]")
        agree(net.world)
        release(net.world, "FR-1")
        fr, de = net.world[FR], net.world[DE]
        assert fr.card.endpoint == net.addresses[FR]
        assert re.fullmatch(r"\[::1\]:\d+", fr.card.endpoint)
        with ready(fr.home) as sender, ready(de.home) as receiver:
            assert lock.serving_address(fr.home) == fr.card.endpoint
            assert sender.metrics.startswith("[::1]:")
            until(lambda: names_in_inbox(de) == {"FR-1"}, PATIENCE_S)
            until(lambda: acknowledged(fr, DE) == len(history(fr, DE)), PATIENCE_S)
            assert sender.health() == receiver.health() == "ok"
            until(lambda: receiver.count("apostille_syncs_total", result="ok") >= 1, PATIENCE_S)

    def test_an_address_that_is_taken_is_said(self, net: Net) -> None:
        if not has_ipv6():
            pytest.skip("this machine has no IPv6 loopback address")
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            listen = f"[::1]:{taken.getsockname()[1]}"
            with pytest.raises(UsageError, match=r"listen: port \d+ of \[::1\] is in use"):
                net.start_raising(replace(net.world[FR], listen=listen))


class TestPassphrase:
    """What the service manager hands over."""

    def test_a_credential_opens_the_keys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = make_node(tmp_path, FR, "FR")
        node.engine.dispose()
        handed = tmp_path / "credentials"
        handed.mkdir()
        (node.home / "passphrase").rename(handed / "passphrase")
        monkeypatch.delenv("APOSTILLE_PASSPHRASE", raising=False)
        assert main.passphrase_of(node.home) is None
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
        given = main.passphrase_of(node.home)
        keys.Keys(node.home, given).signer(Role.ISSUE, node.card, main.utc_now())
        # the environment's own goes before it; it goes before the file; a manager that hands over nothing is none
        keys.write_private(node.home / "passphrase", b"of the file\n")
        assert main.passphrase_of(node.home) == given
        monkeypatch.setenv("APOSTILLE_PASSPHRASE", "of the environment")
        assert main.passphrase_of(node.home) == b"of the environment"
        monkeypatch.delenv("APOSTILLE_PASSPHRASE")
        (handed / "passphrase").unlink()
        assert main.passphrase_of(node.home) == b"of the file"


class TestUnit:
    """config/systemd/apostille.service."""

    def test_it_is_shipped_with_the_package(self) -> None:
        shipped = importlib.resources.files("config") / "systemd" / "apostille.service"
        assert shipped.read_text("utf-8") == UNIT.read_text("utf-8")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        assert "*.service" in project["tool"]["setuptools"]["package-data"]["*"]

    def test_systemd_takes_it(self, tmp_path: Path) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("this machine has no systemd-analyze")
        program = tmp_path / "apostille"
        program.write_text("#!/bin/sh\n", encoding="utf-8")
        program.chmod(0o755)
        unit = tmp_path / "apostille.service"
        given = UNIT.read_text("utf-8")
        unit.write_text(given.replace("/opt/apostille/bin/apostille", str(program)), encoding="utf-8")
        command = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        unit.write_text(unit.read_text("utf-8").replace("ProtectSystem=", "ProtectSytem="), encoding="utf-8")
        assert "ProtectSytem" in subprocess.run(command, capture_output=True, text=True, check=False).stderr

    def test_every_directive_is_known(self) -> None:
        found = {(section, name) for section, name, _ in directives()}
        assert found <= {(section, name) for section, names in KNOWN.items() for name in names}
        assert {section for section, _ in found} == set(KNOWN)

    def test_it_starts_a_command_that_exists(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        program, *words = value("ExecStart").split()
        assert Path(program).name in project["project"]["scripts"]
        assert words == ["--home", f"%S/{value('StateDirectory')}", "serve"]
        command = [sys.executable, "-c", "from node.cli import main; main()", *words, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr

    def test_it_fits_what_the_server_does(self) -> None:
        assert value("Type") == "notify"
        assert float(value("TimeoutStopSec")) > serve.GRACE_S + serve._LAST_S
        assert value("LoadCredential").partition(":")[0] == main.PASSPHRASE_FILE
        assert value("StateDirectoryMode") == "0700"
        assert value("KillSignal", "SIGTERM") == "SIGTERM"


KNOWN = {  # systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.resource-control(5)
    "Unit": {"Description", "Documentation", "Wants", "After"},
    "Service": {
        *("Type", "ExecStart", "User", "Group", "StateDirectory", "StateDirectoryMode", "UMask", "LoadCredential"),
        *("Restart", "RestartSec", "RestartPreventExitStatus", "TimeoutStartSec", "TimeoutStopSec"),
        *(
            "LimitCORE",
            "LimitNOFILE",
            "MemorySwapMax",
            "NoNewPrivileges",
            "CapabilityBoundingSet",
            "AmbientCapabilities",
        ),
        *("ProtectSystem", "ProtectHome", "ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectProc"),
        *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "PrivateTmp", "PrivateDevices"),
        *("PrivateIPC", "RemoveIPC", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime"),
        *("RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "KeyringMode"),
        *("SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
    },
    "Install": {"WantedBy"},
}


def directives() -> Iterator[tuple[str, str, str]]:
    """Section, name and value of every line of the unit that says something."""
    section = ""
    for line in UNIT.read_text("utf-8").splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
        elif line and not line.startswith("#"):
            name, _, said = line.partition("=")
            yield section, name, said


def value(name: str, default: str = "") -> str:
    """What the unit says under `name`."""
    return next((said for _, found, said in directives() if found == name), default)


def server_note(home: Path, address: str) -> str:
    """All that a server with a log file writes to stderr."""
    return f"Ready: {home} listens on {address}. Stop it with Ctrl-C.\n"


def has_ipv6() -> bool:
    """Whether ::1 can be had here."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
