"""Who shows another certificate than the one on his card is nobody, whichever side he is on, and people are told so.

The story: FR and DE exchange; then somebody with a certificate that is expired, not valid yet, unknown, signed by DE's
own pinned key, of another kind of key or with another node's name calls FR, or answers at DE's address. Nothing is
exchanged and nothing changes; the command says that it is the key and not the line, which it says of a line that is
dead, and so does the log. The same certificates on a card are refused when it is enrolled, or at the handshake.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import func, select

from federation.model import Country, NodeId
from node import main
from node.home import keys, lock, signing
from node.peering import peers
from node.rpc import server
from node.store.database import read
from node.store.tables import audit, in_entries
from tests import commands
from tests.e2e.net import Net, make_net, names_in_inbox, release, status_of, until
from tests.e2e.processes import PATIENCE_S, Serving, ready, settle
from tests.faults.proxy import Proxy
from tests.nodes import ADDRESS, DE, FR, IN, PEOPLE, agree

UNREACHABLE, BAD_PEER = 7, 8
DAY = timedelta(days=1)
_TOLD_WITHIN_S = 20
# It asks nobody by itself: what it does is counted.
_QUIET = "from node.operation.scheduler import Polls; Polls.refresh = Polls.announce = lambda polls: None"
_REFUSED = "refuses our TLS key"
_DEAD = "does not answer"


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> tuple[bytes, bytes]:
        form = serialization.PrivateFormat.PKCS8
        private = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return private, self.certificate.public_bytes(serialization.Encoding.PEM)


def identity(
    name: NodeId = DE,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    start: timedelta = -DAY,
    end: timedelta = DAY,
    issuer: Identity | None = None,
    may_sign: bool = False,
    usage: x509.ObjectIdentifier | None = None,
) -> Identity:
    """One of the profile that cards demand, unless told otherwise; valid from `start` to `end`, from now."""
    key, now = key or ec.generate_private_key(ec.SECP256R1()), main.utc_now()
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hashlib.sha256(spki).digest()[:16].hex())])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, *(False,) * 4, may_sign, *(False,) * 3), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    return Identity(key, builder.sign(issuer.key if issuer else key, hashes.SHA256()))


def real(net: Net, name: NodeId) -> Identity:
    """What a node shows by right."""
    node = net.world[name]
    with read(node.engine) as tx:
        own = signing.tls_for_all(node, tx)
    key: Any = serialization.load_pem_private_key(own.private_key, None)
    return Identity(key, x509.load_pem_x509_certificate(own.certificate))


IMPOSTORS: dict[str, Callable[[Identity], Identity]] = {
    "unknown": lambda _: identity(),
    "expired": lambda mine: identity(key=mine.key, start=-2 * DAY, end=-DAY),
    "not valid yet": lambda mine: identity(key=mine.key, start=DAY, end=2 * DAY),
    "minted by the pinned key": lambda mine: identity(issuer=mine),
    "of another kind of key": lambda _: identity(key=ec.generate_private_key(ec.SECP384R1())),
    "with another node's name": lambda _: identity(IN),
    "for another use": lambda _: identity(usage=ExtendedKeyUsageOID.CODE_SIGNING),
}


@dataclass(frozen=True)
class Place:
    """FR is served by a process. So is DE, at `honest`, to which its address leads unless it is led elsewhere; IN is
    down."""

    net: Net
    server: Serving
    honest: str = ""
    elsewhere: list[str] = field(default_factory=list)

    def sync(self, name: NodeId, peer: NodeId, code: int, *words: str) -> None:
        """The command ends with `code`, and says all of `words`."""
        done = commands.run("--home", str(self.net.world[name].home), "sync", peer, timeout=PATIENCE_S)
        assert done.returncode == code, done.stderr
        assert all(word in done.stderr for word in words), done.stderr
        assert done.stderr.count("\n") <= 1, "gRPC speaks too"

    def state(self) -> tuple[object, ...]:
        """What must not change: entries and the audit trail of each, and the calls that FR let in."""
        counts: list[int] = []
        for node in self.net.world.nodes.values():
            with read(node.engine) as tx:
                tables = (select(func.count()).select_from(table) for table in (audit, in_entries))
                counts.extend(tx.execute(rows).scalar_one() for rows in tables)
        let_in = self.server.count("apostille_calls_total", peer=DE)
        return (*counts, let_in, self.server.count("apostille_calls_refused_total"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as ends:
        net = ends.enter_context(make_net(tmp_path_factory.mktemp("place"), FR, DE, IN))
        settle(net, FR, DE, IN)
        agree(net.world)
        settings = net.world[DE].home / "apostille.yaml"
        text = settings.read_text("utf-8").replace(f'listen: "{net.addresses[DE]}"', 'listen: "127.0.0.1:0"')
        settings.write_text(text, "utf-8")
        ends.enter_context(ready(net.world[DE].home, _QUIET))
        honest = lock.serving_address(net.world[DE].home)
        assert honest is not None
        elsewhere: list[str] = []
        ends.enter_context(Proxy(net.addresses[DE], lambda: [honest, *elsewhere][-1]))
        made = Place(net, ends.enter_context(ready(net.world[FR].home)), honest, elsewhere)
        until(lambda: made.server.count("apostille_syncs_total", peer=DE, result="ok") > 0, PATIENCE_S)
        yield made


@contextmanager
def answering(shown: Identity, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Somebody answers every call at `address`, and admits whoever calls. Gives the address with its port."""
    made = grpc.server(ThreadPoolExecutor(1), [_Answers()])
    port = made.add_secure_port(address, grpc.ssl_server_credentials([shown.pem]))
    made.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        made.stop(None).wait()


class _Answers(grpc.GenericRpcHandler):
    called = 0

    def service(self, _call: "grpc.HandlerCallDetails") -> "grpc.RpcMethodHandler[Any, Any]":
        _Answers.called += 1
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")


def call(net: Net, shown: Identity) -> None:
    """Calls FR with a key and certificate. Raises grpc.RpcError."""
    pinned = real(net, FR).pem[1]
    options = (("grpc.ssl_target_name_override", FR), ("grpc.use_local_subchannel_pool", 1))
    credentials = grpc.ssl_channel_credentials(pinned, *shown.pem)
    with grpc.secure_channel(net.addresses[FR], credentials, options) as channel:
        handle: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{server.SERVICE}/Notify", None, None
        )
        handle(b"\x08\x02", timeout=PATIENCE_S)


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_who_calls_with_another_certificate_is_not_let_in(place: Place, kind: str) -> None:
    mine = real(place.net, DE)
    call(place.net, mine)  # honest
    before = place.state()
    status, _ = status_of(lambda: call(place.net, IMPOSTORS[kind](mine)))
    assert status == "UNAVAILABLE"
    assert place.state() == before
    call(place.net, mine)


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("kind", [*IMPOSTORS, "of another enrolled node"])
def test_who_answers_with_another_certificate_is_told_nothing(place: Place, kind: str) -> None:
    mine = real(place.net, DE)
    shown = IMPOSTORS[kind](mine) if kind in IMPOSTORS else real(place.net, IN)
    place.net.sync(FR, DE)  # honest
    before, called = place.state(), _Answers.called
    with answering(shown) as there:
        place.elsewhere.append(there)
        try:
            place.sync(FR, DE, UNREACHABLE, DE, place.net.addresses[DE], _REFUSED)
        finally:
            place.elsewhere.clear()
    assert (place.state(), _Answers.called) == (before, called)
    place.net.sync(FR, DE)


@pytest.mark.invariant("I2")
def test_a_line_that_is_dead_is_told_apart_from_a_refused_key(place: Place) -> None:
    before = place.state()
    place.sync(FR, IN, UNREACHABLE, IN, place.net.addresses[IN], _DEAD)
    place.sync(FR, DE, 0)
    assert place.state() == before


@pytest.mark.invariant("I2")
def test_the_log_tells_a_refused_key_from_a_dead_line(place: Place) -> None:
    # FR's server asks IN, where nobody answers; then somebody else does
    address = place.net.addresses[IN]

    def told(reason: str) -> bool:
        lines = (place.net.world[FR].home / "apostille.log").read_text("utf-8").splitlines()
        return any(f"peer={IN} " in line and line.endswith(f"reason={reason}") for line in lines)

    until(lambda: told("UNREACHABLE"), PATIENCE_S)
    assert not told("TLS_REFUSED")
    with answering(identity(IN), address):
        place.net.world.clock.now = main.utc_now()
        release(place.net.world, "FR-2")  # it tells IN
        lock.wake(place.net.world[FR].home)
        until(lambda: told("TLS_REFUSED"), _TOLD_WITHIN_S)


@pytest.mark.parametrize(
    ("shown", "rule"),
    [
        ({"may_sign": True}, "keyUsage"),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, "P-256"),
        ({"name": IN}, "alternative name"),
        ({"issuer": identity()}, "self-signed"),
    ],
)
@pytest.mark.invariant("I2")
def test_such_a_certificate_is_not_enrolled(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any], rule: str
) -> None:
    made = identity(**{"name": NodeId("cert.ke.example"), **shown})
    card = card_with(tmp_path, monkeypatch, NodeId("cert.ke.example"), made)
    before = place.state()
    home = place.net.world[FR].home
    done = commands.run("--home", str(home), "peer", "enrol", str(card), "--yes", timeout=PATIENCE_S)
    assert done.returncode == BAD_PEER, done.stderr
    assert rule in done.stderr
    assert place.state() == before


def card_with(folder: Path, monkeypatch: pytest.MonkeyPatch, name: NodeId, shown: Identity) -> Path:
    """The card of a new node, which names a certificate of the attacker's choice."""
    der = shown.certificate.public_bytes(serialization.Encoding.DER)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "make_certificate", lambda *_: der)
        main.init_home(folder / name, name, Country("DE"), ADDRESS, ADDRESS, roots=1, threshold=1, packs=())
    node = main.open_node(folder / name)
    node.engine.dispose()
    (folder / "card.json").write_bytes(node.card_bytes)
    return folder / "card.json"


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(("start", "end"), [(-2 * DAY, -DAY), (DAY, 2 * DAY)], ids=["expired", "not valid yet"])
def test_a_card_whose_certificate_is_not_valid_now_opens_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: timedelta, end: timedelta
) -> None:
    # the card's own dates are good; those inside the certificate are not, and TLS goes by them on both sides
    def dated(private: ec.EllipticCurvePrivateKey, node: NodeId, _start: datetime, _validity: timedelta) -> bytes:
        made = identity(node, key=private, start=start, end=end)
        return made.certificate.public_bytes(serialization.Encoding.DER)

    with ExitStack() as ends:
        net = ends.enter_context(make_net(tmp_path, FR, IN))
        with monkeypatch.context() as patch:
            patch.setattr(keys, "make_certificate", dated)
            main.init_home(tmp_path / DE, DE, Country("DE"), ADDRESS, ADDRESS, roots=1, threshold=1, packs=())
        node = replace(main.open_node(tmp_path / DE), clock=net.world.clock, actor="alice", people=PEOPLE)
        net.world.nodes[DE] = node
        for other in (FR, IN):
            peers.enrol(node, net.world[other].card_bytes)
            peers.enrol(net.world[other], node.card_bytes)
        settle(net, FR, IN, DE)
        agree(net.world)
        release(net.world, "FR-1")
        with ready(net.world[FR].home) as serving, ready(node.home):
            place = Place(net, serving)
            place.sync(IN, FR, 0)  # honest
            before = place.state()
            place.sync(DE, FR, UNREACHABLE, FR, _REFUSED)
            place.sync(FR, DE, UNREACHABLE, DE, _REFUSED)
            assert place.state() == before
        assert names_in_inbox(node) == set()
        assert names_in_inbox(net.world[IN]) == {"FR-1"}
