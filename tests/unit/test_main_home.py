"""Homes: made whole or not at all, closed to others, and opened only by their own passphrase and database."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from federation.errors import LockedError, UsageError
from federation.keyring import open_card
from federation.model import Country, NodeId, Role
from node import main
from node.home import keys
from node.home.context import Node
from node.store import database
from node.store.database import write
from node.store.tables import own_cards
from tests.nodes import ADDRESS, DE, FR, make_node


@pytest.fixture(autouse=True)
def _no_passphrase_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(main.PASSPHRASE_VARIABLE, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    node = make_node(tmp_path, FR, "FR")
    node.engine.dispose()
    return node.home


def init(home: Path, **changed: Any) -> None:
    settings: dict[str, Any] = {"roots": 2, "threshold": 1, "packs": (), **changed}
    main.init_home(home, FR, Country("FR"), ADDRESS, ADDRESS, **settings)


def opened(home: Path) -> Node:
    node = main.open_node(home)
    node.engine.dispose()
    return node


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_home_opens_and_its_card_holds(tmp_path: Path) -> None:
    init(tmp_path / "deep" / "home", packs=("eu-gdpr",))
    node = opened(tmp_path / "deep" / "home")
    assert open_card(node.card_bytes) == node.card
    assert {key.role for key in node.card.keys} == set(Role)
    assert (node.card.roots.threshold, len(node.card.roots.keys)) == (1, 2)
    now = main.utc_now()
    for role in (Role.ISSUE, Role.FEED, Role.RECEIPT):
        assert node.keys.signer(role, node.card, now).public in {key.public for key in node.card.keys}
    assert b"BEGIN CERTIFICATE" in node.keys.tls(node.card, now).certificate


def test_secrets_are_closed_to_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init(home)
    assert {mode(folder) for folder in (home, home / "keys", home / "roots")} == {0o700}
    secrets = [*home.glob("keys/*.pem"), *home.glob("roots/*.pem"), home / "passphrase", home / "apostille.db"]
    assert len(secrets) == 5 + 2 + 2
    assert {mode(path) for path in secrets} == {0o600}
    for path in (*home.glob("keys/*.pem"), *home.glob("roots/*.pem")):
        assert b"ENCRYPTED" in path.read_bytes()


def test_a_passphrase_from_outside_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv(main.PASSPHRASE_VARIABLE, "a passphrase")
    init(home)
    assert not (home / "passphrase").exists()
    node = opened(home)
    node.keys.signer(Role.ISSUE, node.card, main.utc_now())
    monkeypatch.delenv(main.PASSPHRASE_VARIABLE)
    locked = opened(home)  # what signs nothing works
    with pytest.raises(LockedError, match="APOSTILLE_PASSPHRASE"):
        locked.keys.signer(Role.ISSUE, locked.card, main.utc_now())


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"roots": 0}, "roots"),
        ({"roots": 10, "threshold": 1}, "roots"),
        ({"threshold": 0}, "roots"),
        ({"threshold": 3}, "roots"),
        ({"packs": ("no-such",)}, "no law pack"),
    ],
)
def test_a_mistake_leaves_nothing_behind(tmp_path: Path, changed: dict[str, Any], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        init(tmp_path / "home", **changed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("step", ["make_roots", "make_online", "create"])
@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, existed: bool, failure: type[BaseException]
) -> None:
    home = tmp_path / "home"
    if existed:
        home.mkdir()

    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setattr(database if step == "create" else keys, step, fails)
    with pytest.raises(failure):
        init(home)
    assert list(tmp_path.rglob("*")) == ([home] if existed else [])
    monkeypatch.undo()
    init(home)  # and it can be tried again


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="no empty folder"):
        init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_wrong_passphrase_opens_no_key(home: Path) -> None:
    (home / "passphrase").write_text("another\n", encoding="utf-8")
    node = opened(home)
    with pytest.raises(LockedError, match="passphrase is wrong"):
        node.keys.signer(Role.FEED, node.card, main.utc_now())
    with pytest.raises(LockedError):
        node.keys.roots()


def test_the_environment_comes_before_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(main.PASSPHRASE_VARIABLE, "another")
    node = opened(home)
    with pytest.raises(LockedError):
        node.keys.signer(Role.FEED, node.card, main.utc_now())


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused(home: Path, bits: int) -> None:
    (home / "passphrase").chmod(bits)
    with pytest.raises(UsageError, match="chmod 600"):
        main.open_node(home)
    (home / "passphrase").chmod(0o600)
    (key,) = home.glob("keys/feed-*.pem")
    key.chmod(bits)
    node = opened(home)
    with pytest.raises(UsageError, match="chmod 600"):
        node.keys.signer(Role.FEED, node.card, main.utc_now())


def test_a_key_that_is_missing_or_another_is_told(home: Path) -> None:
    (feed_key,) = home.glob("keys/feed-*.pem")
    content = feed_key.read_bytes()
    feed_key.unlink()
    node = opened(home)
    with pytest.raises(UsageError, match="missing"):
        node.keys.signer(Role.FEED, node.card, main.utc_now())
    feed_key.touch(mode=0o600)
    feed_key.write_bytes(content[:-40])
    with pytest.raises(LockedError, match="damaged"):
        node.keys.signer(Role.FEED, node.card, main.utc_now())
    shutil.copy(home / "keys" / "seal.pem", feed_key)
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        node.keys.signer(Role.FEED, node.card, main.utc_now())


def test_the_database_of_another_node_is_refused(home: Path, tmp_path: Path) -> None:
    other = make_node(tmp_path, DE, "DE")
    other.engine.dispose()
    shutil.copy(other.home / "apostille.db", home / "apostille.db")
    with pytest.raises(UsageError, match=f"that of {DE}"):
        main.open_node(home)


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at" * 100])
def test_what_is_no_database_of_ours_is_refused(home: Path, content: bytes) -> None:
    (home / "apostille.db").write_bytes(content)
    with pytest.raises(UsageError, match="database"):
        main.open_node(home)


def test_a_missing_database_is_not_made_anew(home: Path) -> None:
    (home / "apostille.db").unlink()
    with pytest.raises(UsageError, match="missing"):
        main.open_node(home)
    assert not (home / "apostille.db").exists()


def test_the_card_of_another_node_is_refused(home: Path, tmp_path: Path) -> None:
    other = make_node(tmp_path, DE, "DE")
    other.engine.dispose()
    engine = main.open_node(home).engine
    cards = ((other.card_bytes, f"card of {DE}"), (b"{}", "damaged"), (None, "holds no card"))
    for document, said in cards:
        with write(engine) as tx:
            tx.execute(delete(own_cards) if document is None else update(own_cards).values(document=document))
        with pytest.raises(UsageError, match=said):
            main.open_node(home)
    engine.dispose()


def test_what_is_no_home_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no home"):
        main.open_node(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jurisdiction: FR", "jurisdiction: DE"),
        ("jurisdiction: FR", "jurisdiction: XX"),
        ("node: cert.fr.example", "node: cert.de.example"),
        ("node: cert.fr.example", "node: FR"),
        ("poll_interval_s: 60", "poll_interval_s: 0"),
        ("poll_interval_s: 60", "poll_interval_s: 60\nalso: 1"),
        ("  - eu-gdpr", "  - no-such"),
        ('listen: "127.0.0.1:7001"', "listen: nowhere"),
    ],
)
def test_settings_that_do_not_fit_are_refused(home: Path, old: str, new: str) -> None:
    path = home / "apostille.yaml"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError):
        main.open_node(home)


def test_two_homes_share_no_key(tmp_path: Path) -> None:
    for name in ("a", "b"):
        init(tmp_path / name)
    first, second = opened(tmp_path / "a"), opened(tmp_path / "b")
    assert not {key.public for key in first.card.keys} & {key.public for key in second.card.keys}
    assert (first.id, second.id) == (NodeId(FR), NodeId(FR))
