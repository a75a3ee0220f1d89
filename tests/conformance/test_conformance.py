"""An auditor's view: what real nodes exchange, verified with public keys and public standards, without our code.

Three nodes in one process agree, release the shipped examples and sync; then every received advisory is exported as a
standard SD-JWT and judged by `verify_sdjwt.py` and by PyPI `sd-jwt`, and every feed by `verify_feed.py`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pytest
from jwcrypto.jwk import JWK
from sd_jwt.verifier import SDJWTVerifier
from sqlalchemy import select

from config import data
from federation.base64url import b64url
from federation.checkpoint import origin_line
from federation.entries import ErasedItem
from federation.model import NodeId, Role
from node.desk import inbox
from node.desk.inbox import Content
from node.exchange import serving
from node.peering import feeds
from node.sharing import advisories, releases
from node.store.database import read
from node.store.tables import out_feeds
from tests.nodes import COUNTRY_OF, DE, FR, IN, World, agree, history, make_world

SCRIPTS = Path(__file__).parent
EXPORTS = 21  # what the agreement and the law pack let through of the twelve examples


@dataclass(frozen=True, slots=True)
class Exported:
    """One received advisory as a file, with the card of its origin."""

    content: Content
    file: Path
    card: Path


@dataclass(frozen=True, slots=True)
class Audited:
    """What lies before the auditor."""

    world: World
    exports: tuple[Exported, ...]
    folder: Path

    def card(self, node: NodeId) -> Path:
        return self.folder / f"{node}.card.json"

    def key(self, node: NodeId, role: Role) -> str:
        return self.world[node].card.valid_keys(role, self.world.clock())[0].public.hex()

    def entries(self, sender: NodeId, receiver: NodeId) -> list[str]:
        """The feed as `verify_feed.py` reads it."""
        return [
            f"erased {item.leaf_hash.hex()}" if isinstance(item, ErasedItem) else item.hex()
            for item in history(self.world[sender], receiver)
        ]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script on its own: no import of ours can help it, since it runs isolated from this folder and environment."""
    command = [sys.executable, "-E", "-s", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd="/")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audit")
    world = make_world(folder / "nodes", FR, DE, IN, packs=("eu-gdpr",))
    agree(world)
    for node in world.nodes.values():
        for file in sorted(_examples(node.id), key=lambda item: item.name):
            name = advisories.import_file(node, file.read_bytes(), file.name, tlp=None).advisory.name
            releases.release(node, name)
        (folder / f"{node.id}.card.json").write_bytes(node.card_bytes)
    world.sync_all(2)
    exports = []
    for node in world.nodes.values():
        for item in inbox.items(node):
            content = inbox.content(node, str(item.id))
            path = folder / f"{node.id}.{item.id}.sdjwt"
            path.write_text(content.compact, encoding="ascii")
            exports.append(Exported(content, path, folder / f"{item.origin}.card.json"))
    yield Audited(world, tuple(exports), folder)
    world.close()


def _examples(node: NodeId) -> list[Traversable]:
    folder = data.examples().joinpath(COUNTRY_OF[node].lower())
    return [item for item in folder.iterdir() if item.name.endswith(".json")]


@pytest.mark.invariant("I5")
def test_every_export_verifies_in_an_implementation_that_is_not_ours(audited: Audited) -> None:
    for exported in audited.exports:
        public = bytes.fromhex(audited.key(exported.content.item.origin, Role.ISSUE))
        key = JWK(kty="OKP", crv="Ed25519", x=b64url(public))
        verifier = SDJWTVerifier(exported.content.compact, lambda _iss, _header, key=key: key)
        claims: dict[str, Any] = verifier.get_verified_payload()
        assert claims["csaf"] == exported.content.csaf
        assert claims.get("ai") == exported.content.ai
    assert len(audited.exports) == EXPORTS


@pytest.mark.invariant("I5")
def test_every_export_verifies_by_script(audited: Audited) -> None:
    for exported in audited.exports:
        by_card = run("verify_sdjwt.py", exported.file, "--card", exported.card)
        assert by_card.returncode == 0, by_card.stderr
        revealed = json.loads(by_card.stdout)
        assert revealed["csaf"] == exported.content.csaf
        assert revealed.get("ai") == exported.content.ai
        assert revealed["handling"] == exported.content.handling
    last = audited.exports[-1]
    by_key = run("verify_sdjwt.py", last.file, audited.key(last.content.item.origin, Role.ISSUE))
    assert (by_key.returncode, json.loads(by_key.stdout)) == (0, revealed)


@pytest.mark.invariant("I5")
def test_the_script_refuses_what_was_altered_or_added(audited: Audited, tmp_path: Path) -> None:
    exported = audited.exports[0]
    text, origin = exported.content.compact, exported.content.item.origin
    core, first, *rest = text.split("~")
    other = next(e for e in audited.exports if e.content.core_digest != exported.content.core_digest)
    altered = {
        "a changed byte": text.replace("~", "A~", 1),
        "a disclosure of another core": f"{text}{other.content.compact.split('~')[1]}~",
        "a disclosure twice": f"{text}{first}~",
        "a disclosure changed": "~".join([core, first[:-4] + "AAAA", *rest]),
        "a key binding part": text + "e30.e30.e30",
    }
    file = tmp_path / "altered.sdjwt"
    file.write_text(text, encoding="ascii")
    assert run("verify_sdjwt.py", file, "--card", exported.card).returncode == 0  # sanity
    for name, attack in altered.items():
        file.write_text(attack, encoding="ascii")
        done = run("verify_sdjwt.py", file, "--card", exported.card)
        assert (done.returncode, done.stdout) == (1, ""), name
        assert done.stderr.startswith("does not hold"), name
    stranger = next(node for node in audited.world.nodes if node != origin)
    assert run("verify_sdjwt.py", exported.file, "--card", audited.card(stranger)).returncode == 1
    assert run("verify_sdjwt.py", exported.file, audited.key(stranger, Role.ISSUE)).returncode == 1


def notes(audited: Audited, sender: NodeId, receiver: NodeId, folder: Path) -> tuple[Path, Path, Path]:
    """Files of a feed: its entries, its newest head, and the receipt that the sender holds."""
    node = audited.world[sender]
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, receiver)
        receipt = tx.execute(select(out_feeds.c.receipt).where(out_feeds.c.peer == receiver)).scalar_one()
    head = serving.checkpoint_at(node, audited.world[receiver].card, feed.origin, feed.size)
    files = (folder / "entries.hex", folder / "head.note", folder / "receipt.note")
    files[0].write_text("\n".join(audited.entries(sender, receiver)) + "\n", encoding="ascii")
    files[1].write_bytes(head)
    files[2].write_bytes(receipt)
    return files


@pytest.mark.invariant("I8")
@pytest.mark.invariant("I9")
def test_every_feed_and_receipt_verifies_by_script(audited: Audited, tmp_path: Path) -> None:
    pairs = [(a, b) for a in audited.world.nodes for b in audited.world.nodes if a != b]
    for sender, receiver in pairs:
        entries, head, receipt = notes(audited, sender, receiver, tmp_path)
        log = f"{origin_line(sender, receiver, 1)}+{audited.key(sender, Role.FEED)}"
        cosigner = f"{receiver}+{audited.key(receiver, Role.RECEIPT)}"
        done = run("verify_feed.py", entries, head, log, receipt, cosigner)
        assert done.returncode == 0, done.stderr
        count = len(audited.entries(sender, receiver))
        assert f"{count} entries" in done.stdout.splitlines()[0]
        assert f"{count} entries" in done.stdout.splitlines()[1]
    assert len(pairs) == 6


@pytest.mark.invariant("I8")
def test_a_feed_that_was_rewritten_does_not_verify(audited: Audited, tmp_path: Path) -> None:
    entries, head, receipt = notes(audited, FR, DE, tmp_path)
    log = f"{origin_line(FR, DE, 1)}+{audited.key(FR, Role.FEED)}"
    cosigner = f"{DE}+{audited.key(DE, Role.RECEIPT)}"
    honest = entries.read_text(encoding="ascii").splitlines()
    assert run("verify_feed.py", entries, head, log, receipt, cosigner).returncode == 0  # sanity
    attacks = {
        "one byte changed": [honest[0][:-2] + ("00" if honest[0][-2:] != "00" else "01"), *honest[1:]],
        "two entries swapped": [honest[1], honest[0], *honest[2:]],
        "one entry missing": honest[1:],
        "an entry in place of its erased form": [f"erased {'00' * 32}", *honest[1:]],
    }
    for name, lines in attacks.items():
        entries.write_text("\n".join(lines) + "\n", encoding="ascii")
        assert run("verify_feed.py", entries, head, log, receipt, cosigner).returncode == 1, name
    entries.write_text("\n".join(honest) + "\n", encoding="ascii")
    other_log = f"{origin_line(FR, DE, 1)}+{audited.key(DE, Role.FEED)}"
    assert run("verify_feed.py", entries, head, other_log, receipt, cosigner).returncode == 1
    other_cosigner = f"{DE}+{audited.key(DE, Role.FEED)}"
    assert run("verify_feed.py", entries, head, log, receipt, other_cosigner).returncode == 1
