"""New keys and cards on the command line: real processes, a server that goes on, root keys on media of their own."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config import settings
from federation.model import Role
from node import acts, main
from node.home.context import Node
from node.home.people import Post
from node.peering import cards, peers, rotation
from node.peering.rotation import Change
from node.records import approvals
from node.rpc.client import PeerLink
from node.store.database import read, write
from tests.e2e.net import Net, make_net, names_in_inbox, until
from tests.e2e.processes import ready, settle
from tests.e2e.test_cli import Done, run
from tests.nodes import DE, FR, PEOPLE, agree, make_node, release

USAGE, NOT_FOUND, LOCKED, AWAITS_SECOND = 2, 3, 5, 10
REFUSED, HELD = 1, 6


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A French home of its own; the German node is enrolled and never asks."""
    fr, de = make_node(tmp_path, FR, "FR"), make_node(tmp_path, DE, "DE")
    peers.enrol(replace(fr, actor="alice", people=PEOPLE), de.card_bytes)
    fr.engine.dispose()
    de.engine.dispose()
    return fr.home


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with make_net(tmp_path, FR, DE) as made:
        agree(made.world)
        settle(made, FR, DE)
        yield made


def ok(done: Done) -> Done:
    assert done.code == 0, done.err
    return done


def on_media(home: Path) -> list[Path]:
    """Each root key on a medium of its own, with the salt."""
    media = []
    for path in sorted((home / "roots").glob("root-*.pem")):
        medium = home.parent / "media" / path.stem
        medium.mkdir(parents=True)
        shutil.move(path, medium / path.name)
        shutil.copy(home / "roots" / "salt", medium / "salt")
        media.append(medium)
    return media


def approve(home: Path, number: int) -> None:
    """What a second person does."""
    node = main.open_node(home)
    node = replace(node, actor="bob", people={**node.people, "bob": frozenset(Post)})
    approvals.settle(node, number, acts.registry(), approve=True)
    node.engine.dispose()


def card_of(home: Path) -> dict[str, object]:
    shown: dict[str, object] = ok(run(home, "card", "show", "--json")).json()
    return shown


# A server that goes on


def test_a_server_takes_new_keys_up_without_a_restart_and_peers_follow(net: Net) -> None:
    fr, de = net.world[FR], net.world[DE]
    with ready(fr.home):
        ok(run(de.home, "sync"))
        rotated = ok(run(fr.home, "key", "rotate", "--all", "--json")).json()
        assert rotated["version"] == 3
        listed = ok(run(fr.home, "key", "list", "--json")).json()
        assert (listed["card"], listed["waiting"]) == (3, [DE])
        assert [key["state"] for key in listed["keys"]] == ["next", "current"] * 4
        release(net.world, "A")
        ok(run(de.home, "sync"))
        until(lambda: not run(fr.home, "key", "list", "--json").json()["waiting"])
        ok(run(de.home, "sync"))
        fr.own.reload()
        de.own.reload()
        newest = next(key for key in fr.card.keys if key.role is Role.TLS)
        known = peers.trusted_card(de, FR)
        assert known == fr.card
        with PeerLink(de, replace(known, keys=(newest,))) as link:  # it presents the new certificate and no other
            link.notify()
    table = ok(run(fr.home, "key", "list")).out
    assert table.count("current") == table.count("old") == 4
    assert names_in_inbox(de) == {"A"}


def test_a_peer_that_was_enrolled_with_an_older_file_is_brought_the_current_card_by_the_server(
    net: Net, tmp_path: Path
) -> None:
    fr = net.world[FR]
    rotation.change(fr, Change(rotate=tuple(Role)))
    with write(fr.engine) as tx:
        tx.exec_driver_sql("DELETE FROM card_deliveries")  # as if the peer had come after it
    before = cards.waiting(fr)
    with ready(fr.home):
        until(lambda: _brought(fr))
    assert before == (DE,)


def _brought(node: Node) -> bool:
    with read(node.engine) as tx:
        return bool(tx.exec_driver_sql("SELECT count(*) FROM card_deliveries").scalar_one())


# Root keys on media of their own


def test_a_card_goes_from_medium_to_medium_and_comes_back_signed(home: Path) -> None:
    media = on_media(home)
    run(home, "key", "rotate", "--all").refused(USAGE, "2 root keys must sign", "--prepare")
    file = home.parent / "card.json"
    prepared = ok(run(home, "key", "rotate", "tls", "feed", "--prepare", str(file)))
    assert "card sign card.json" in prepared.err
    assert ok(run(home, "doctor")).out.count("2 private keys are on no card") == 1
    shown = ok(run(home, "card", "show", str(file)))
    assert "2 of 2 signatures" in shown.err
    shutil.copy(home / "passphrase", home.parent / "words")
    sign = ("card", "sign", str(file), "--passphrase-file", str(home.parent / "words"), "--roots")
    nowhere = home.parent / "no-home-at-all"
    run(nowhere, *sign, str(media[0])).refused(USAGE, "card show")  # nobody is there to be asked
    assert "it has 1 of the 2 root signatures that it needs" in ok(run(nowhere, *sign, str(media[0]), "--yes")).err
    run(home, "card", "install", str(file)).refused(8, "1 of 2 root signatures")
    signed = ok(run(nowhere, *sign, str(media[2]), "--yes", "--json")).json()
    assert (signed["signatures"], signed["by_others"], signed["version"]) == (2, 0, 2)
    assert not nowhere.exists()
    assert ok(run(home, "card", "install", str(file), "--json")).json()["version"] == 2
    assert card_of(home)["version"] == 2
    run(home, "card", "install", str(file)).refused(4, "does not follow")
    assert "every private key is on a card" in ok(run(home, "doctor")).out


def test_root_keys_change_by_leave_of_the_old_ones_and_of_a_second_person(home: Path) -> None:
    media = on_media(home)
    before = card_of(home)
    file, words = home.parent / "new.json", home.parent / "words"
    shutil.copy(home / "passphrase", words)
    run(home, "card", "new-roots").refused(USAGE, "--reason")
    run(home, "card", "new-roots", "--reason", "yearly").refused(USAGE, "0 of them lie in roots/")
    assert list((home / "roots").glob("*.pem")) == []
    ok(run(home, "card", "new-roots", "--roots", "2", "--threshold", "1", "--prepare", str(file)))
    assert len(list((home / "roots").glob("*.pem"))) == 2
    sign = ("card", "sign", str(file), "--passphrase-file", str(words), "--yes", "--roots")
    run(home, *sign, str(media[0])).refused(USAGE, "--hand-over")
    for medium in media[:2]:
        ok(run(home, *sign, str(medium), "--hand-over"))
    run(home, "card", "install", str(file)).refused(USAGE, "--reason")
    run(home, "card", "install", str(file), "--reason", "one was lost").refused(AWAITS_SECOND, "request 1")
    assert card_of(home) == before
    request = ok(run(home, "approval", "show", "1", "--json")).json()
    approve(home, 1)
    after = card_of(home)
    assert (after["version"], after["root_keys"], after["root_threshold"]) == (2, 2, 1)
    assert after["fingerprint"] == request["arguments"]["fingerprint"] != before["fingerprint"]
    _newcomers_and_peers_follow(home, before, after)


def _newcomers_and_peers_follow(home: Path, before: dict[str, object], after: dict[str, object]) -> None:
    ok(run(home, "key", "rotate", "feed"))  # by the new root keys alone
    ok(run(home, "card", "export", "--out", "fr-now.json"))
    ok(run(home, "card", "export", "--version", "2", "--out", "fr-change.json"))
    run(home, "card", "export", "--version", "9").refused(NOT_FOUND, "never had a card 9")
    newcomer, known = make_node(home.parent / "more", DE, "DE"), home.parent / DE
    newcomer.engine.dispose()
    ok(run(newcomer.home, "peer", "enrol", str(home.parent / "fr-now.json"), "--yes"))
    ok(run(known, "peer", "enrol", str(_original(home)), "--yes"))
    refused = run(known, "peer", "enrol", str(home.parent / "fr-now.json"), "--yes")
    refused.refused(8, "root signatures")  # it missed the change
    for file in ("fr-change.json", "fr-now.json"):
        ok(run(known, "peer", "enrol", str(home.parent / file), "--yes"))
    listed = ok(run(known, "peer", "list"))
    assert str(after["fingerprint"]) in listed.out
    assert str(before["fingerprint"]) not in listed.out
    (entry,) = ok(run(known, "peer", "list", "--json")).json()
    assert (entry["fingerprint"], entry["version"]) == (after["fingerprint"], 3)
    assert entry["roots_changed_at"] is not None


def _original(home: Path) -> Path:
    """The first card, as peers had it."""
    file = home.parent / "fr-first.json"
    ok(run(home, "card", "export", "--version", "1", "--out", file.name))
    return file


# Everyday changes and mistakes


def test_an_address_that_was_changed_in_the_settings_goes_onto_a_new_card(home: Path) -> None:
    run(home, "card", "renew").refused(USAGE, "says all of that already")
    chosen = replace(main.read_settings(home), advertise="192.0.2.9:7443")
    (home / "apostille.yaml").write_text(settings.write(chosen), encoding="utf-8")
    assert "apostille card renew" in ok(run(home, "doctor")).out
    ok(run(home, "card", "renew"))
    assert card_of(home)["endpoint"] == "192.0.2.9:7443"
    assert "apostille card renew" not in ok(run(home, "doctor")).out


def test_a_stolen_key_is_retired_with_one_command_after_it_has_a_successor(home: Path) -> None:
    (old,) = (key["kid"] for key in ok(run(home, "key", "list", "--json")).json()["keys"] if key["role"] == "issue")
    run(home, "key", "retire", old).refused(USAGE, "the only valid issue key")
    ok(run(home, "key", "rotate", "issue"))
    run(home, "key", "retire", old).refused(HELD, DE, "--now")
    ok(run(home, "key", "retire", old, "--now"))
    kept = ok(run(home, "card", "show", "--json")).json()["keys"]
    assert old not in {key["kid"] for key in kept}
    run(home, "key", "retire", old, "--now").refused(NOT_FOUND, "no key")


def test_mistakes_get_one_sentence_and_change_nothing(home: Path, tmp_path: Path) -> None:
    before, files = card_of(home), sorted(path.name for path in (home / "keys").iterdir())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"payload": "", "signatures": []}), encoding="utf-8")
    for words, code, said in (
        (("key", "rotate"), USAGE, "--all"),
        (("key", "rotate", "feed", "--all"), USAGE, "--all"),
        (("key", "rotate", "web"), USAGE, "no key is for web"),
        (("key", "rotate", "feed", "--overlap", "a week"), USAGE, "36h"),
        (("key", "rotate", "feed", "--version", "1"), USAGE, "higher number"),
        (("card", "install", str(other)), 8, "other.json"),
        (("card", "install", str(tmp_path / "none")), USAGE, "cannot be read"),
        (("card", "sign", str(other), "--roots", str(tmp_path), "--yes"), 8, "other.json"),
        (("card", "new-roots", "--roots", "2", "--threshold", "3", "--reason", "why"), USAGE, "threshold"),
    ):
        run(home, *words).refused(code, said)
    run(home, "key", "rotate", "feed", passphrase="wrong").refused(LOCKED, "passphrase")
    assert card_of(home) == before
    assert sorted(path.name for path in (home / "keys").iterdir()) == files
