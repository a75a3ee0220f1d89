"""The composition root: makes and opens homes. The only reader of settings, clock, environment and entropy.

A home is a folder that only its owner can read:

    apostille.yaml   settings          keys/          online keys
    passphrase       opens the keys    roots/         root keys, until they are moved offline
    apostille.db     everything else, this node's card included
    alerts           where alarms are carried to, if the operator wrote that file (`node.operation.courier`)
"""

import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from config import data, settings
from config.settings import Settings
from federation import jws, keyring
from federation.errors import MalformedError, SignatureError, UsageError
from federation.keyring import Card, RootSet, root_key_id
from federation.labels import load as load_labels
from federation.limits import MAX_ROOT_KEYS
from federation.model import SPOKEN_VERSIONS, Country, NodeId
from federation.policy.engine import RuleBook, rule_book
from federation.policy.packs import load_pack
from node.home import keys, lock, owncard, owned, people
from node.home.context import Node
from node.home.owncard import OwnCard
from node.home.people import People, Post
from node.store import database
from node.store.database import Upgraded

DATABASE_FILE = "apostille.db"
_CARD_FILE = "card.json"  # where the first version kept this node's card
PASSPHRASE_FILE = "passphrase"  # noqa: S105 - the name of a file
PASSPHRASE_VARIABLE = "APOSTILLE_PASSPHRASE"  # noqa: S105 - the name of a variable
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # systemd.exec(5): set by the service manager for LoadCredential
SUDO_VARIABLE = "SUDO_UID"  # sudo(8): the user id of whoever called it
NOTIFY_VARIABLE = "NOTIFY_SOCKET"  # sd_notify(3)
DEFAULT_POLL_INTERVAL_S = 60
_PASSPHRASE_BYTES = 32
_OWNED = (
    settings.FILE_NAME,
    DATABASE_FILE,
    f"{DATABASE_FILE}-wal",
    f"{DATABASE_FILE}-shm",
    "keys",
    "roots",
    PASSPHRASE_FILE,
)
_START_BYTES = 16


def utc_now() -> datetime:
    """The node's clock."""
    return datetime.now(UTC)


def init_home(
    home: Path,
    node: NodeId,
    jurisdiction: Country,
    listen: str,
    advertise: str,
    *,
    roots: int,
    threshold: int,
    packs: tuple[str, ...],
    server: str | None = None,
) -> Card:
    """Makes a home: keys, card, settings, database. Raises UsageError; then nothing is left behind.

    `server` is the URL of an empty PostgreSQL database, None for a file in the home.
    """
    if not 1 <= threshold <= roots <= MAX_ROOT_KEYS:
        raise UsageError(f"roots: 1 to {MAX_ROOT_KEYS} keys, and a threshold of 1 to that many")
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UsageError(f"{home} is no empty folder; name a new one with --home")
    check_owner(home)
    existed = home.exists()
    chosen = Settings(node, jurisdiction, listen, advertise, DEFAULT_POLL_INTERVAL_S, packs, database=server)
    book_of(chosen)  # a law pack that does not exist is found before anything is made
    try:
        return _fill_home(home, chosen, roots, threshold)
    except BaseException:
        for item in home.iterdir() if home.exists() else ():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        if not existed and home.exists():
            home.rmdir()
        raise


def _fill_home(home: Path, chosen: Settings, roots: int, threshold: int) -> Card:
    for folder in (home, home / "keys", home / "roots"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may have been there
    passphrase = os.environ.get(PASSPHRASE_VARIABLE, "").encode()
    if not passphrase:
        passphrase = secrets.token_urlsafe(_PASSPHRASE_BYTES).encode()
        keys.write_private(home / PASSPHRASE_FILE, passphrase + b"\n")
    now = utc_now()
    keys.make_salt(home, secrets.token_bytes)
    password = keys.stretch(home, passphrase)
    root_set = RootSet(threshold, keys.make_roots(home, roots, password))
    online = keys.make_online(home, chosen.node, password, now)
    card = Card(
        node=chosen.node,
        version=1,
        issued_at=now.replace(microsecond=0),
        jurisdiction=chosen.jurisdiction,
        protocols=SPOKEN_VERSIONS,
        endpoint=chosen.advertise,
        roots=root_set,
        keys=online,
    )
    (home / settings.FILE_NAME).write_text(settings.write(chosen), encoding="utf-8")
    document = sign_card(card, keys.Keys(home, passphrase))
    if chosen.database is None:
        keys.write_private(home / DATABASE_FILE, b"")  # SQLite gives its other files the mode of this one
    engine = engine_of(home, chosen)
    try:
        with database.create(engine, chosen.node, now) as tx:  # last: a server's tables would not go with the home
            owncard.store(tx, card, document, at=now, by=account())
    finally:
        engine.dispose()
    return card


def sign_card(card: Card, held: keys.Keys) -> bytes:
    """The card as a file, signed by as many of the home's root keys as its threshold asks for. Raises UsageError."""
    payload = card.payload()
    signers = [signer for signer in held.roots() if signer.kid in {root_key_id(key) for key in card.roots.keys}]
    if len(signers) < card.roots.threshold:
        raise UsageError(f"{card.roots.threshold} root keys must sign; {len(signers)} lie in roots/")
    signatures = tuple(
        jws.sign(payload, keyring.JWS_TYPE, signer.kid, signer.sign) for signer in signers[: card.roots.threshold]
    )
    return jws.serialise(jws.SignedDocument(payload, signatures))


def open_node(home: Path) -> Node:
    """The node in `home`. Raises UsageError, PolicyError or LockedError, with what to do next."""
    chosen = read_settings(home)
    engine = open_database(home, chosen)
    own = own_card(engine, chosen)
    return Node(
        id=chosen.node,
        jurisdiction=chosen.jurisdiction,
        home=home,
        listen=chosen.listen,
        poll_interval_s=chosen.poll_interval_s,
        own=own,
        keys=keys.Keys(home, passphrase_of(home)),
        engine=engine,
        labels=load_labels(data.labels_text(), "labels/csaf-2.0.yaml"),
        book=book_of(chosen),
        clock=utc_now,
        entropy=secrets.token_bytes,
        actor=account(),
        people=people_of(home, chosen),
        start=secrets.token_bytes(_START_BYTES),
    )


def open_database(home: Path, chosen: Settings) -> Engine:
    """The database of `home`. Raises UsageError when it is missing, of another node, or of another version."""
    engine = engine_of(home, chosen)
    try:
        database.check(engine, chosen.node)
    except UsageError:
        engine.dispose()
        raise
    return engine


def engine_of(home: Path, chosen: Settings) -> Engine:
    """The database that the settings name: the file in the home, or a server. Raises UsageError for a missing file."""
    if chosen.database is not None:
        return database.open_engine(chosen.database)
    if not (home / DATABASE_FILE).is_file():
        raise UsageError(f"{home / DATABASE_FILE} is missing: restore it from a backup")
    return database.open_engine(home / DATABASE_FILE)


def upgrade_home(home: Path, *, keep_copy: bool) -> Upgraded:
    """Brings the database of `home` to the schema of this version, all of it or nothing.

    The first version kept this node's card in a file; it moves into the database with the rest. Raises UsageError while
    a server runs and for what cannot be upgraded, NotAllowedError to who is no operator.
    """
    chosen, by, now = read_settings(home), account(), utc_now()
    people.require(people_of(home, chosen), by, Post.OPERATOR)
    copy = home / DATABASE_FILE if keep_copy else None
    file = home / _CARD_FILE
    with lock.hold(home):
        engine = engine_of(home, chosen)
        try:
            with database.upgrade(engine, chosen.node, now, copy=copy) as (tx, done):
                if not owncard.history(tx):
                    document, card = _card_in(file, chosen)
                    owncard.store(tx, card, document, at=card.issued_at, by=by)
                spent = file.is_file() and file.read_bytes() in owncard.history(tx)
                if done.before != done.after:
                    detail = f"schema {done.before} to {done.after}"
                    database.record(tx, at=now, by=by, act="database.upgrade", subject=chosen.node, detail=detail)
            database.scrub(engine)
        finally:
            engine.dispose()
        if spent:
            file.unlink()
    return done


def _card_in(file: Path, chosen: Settings) -> tuple[bytes, Card]:
    try:
        document = file.read_bytes()
        card = keyring.open_card(document)
    except OSError as e:
        raise UsageError(f"{file}, this node's card, cannot be read: restore it from a backup") from e
    except (MalformedError, SignatureError) as e:
        raise UsageError(f"{file} is damaged: restore it from a backup") from e
    if card.node != chosen.node:
        raise UsageError(f"{file} is the card of {card.node}, not of {chosen.node}: restore it from a backup")
    return document, card


def read_settings(home: Path) -> Settings:
    """The settings of `home`, which must be of whoever reads them. Raises UsageError."""
    check_owner(home)
    path = home / settings.FILE_NAME
    try:
        return settings.read(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as e:
        raise UsageError(f"{home} is no home of a node; make one with: apostille --home {home} init") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} cannot be read") from e


def check_owner(home: Path) -> None:
    """Refuses a home that is not, or not all, of the account that this process runs as. Raises UsageError."""
    owned.check((home, *(home / name for name in _OWNED)), os.geteuid())


def own_card(engine: Engine, chosen: Settings) -> OwnCard:
    """This node's own card. Raises UsageError when it is missing, damaged or that of another node."""
    own = OwnCard(engine)
    if (own.card.node, own.card.jurisdiction) != (chosen.node, chosen.jurisdiction):
        raise UsageError(
            f"the database holds the card of {own.card.node} in {own.card.jurisdiction}, the settings say otherwise"
        )
    return own


def people_of(home: Path, chosen: Settings) -> People:
    """Who may do what on this node. Raises UsageError."""
    return people.read(chosen.people, people.name_of(home.stat().st_uid), str(home / settings.FILE_NAME))


def account() -> str:
    """Who acts, by account name. Raises UsageError."""
    return people.account(os.environ.get(SUDO_VARIABLE))


def passphrase_of(home: Path) -> bytes | None:
    """What opens the private keys: the environment first, then what the service manager hands over, then the file that
    `init` made. Raises UsageError.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given.encode()
    handed = os.environ.get(CREDENTIALS_VARIABLE)
    if handed and (Path(handed) / PASSPHRASE_FILE).is_file():
        return (Path(handed) / PASSPHRASE_FILE).read_bytes().strip()  # its mode is the manager's care, see systemd.exec
    path = home / PASSPHRASE_FILE
    if not path.exists():
        return None
    keys.check_private(path, str(path))
    return path.read_bytes().strip()


def given_passphrase(file: Path | None) -> bytes | None:
    """What opens root keys that are in no home: of a file, or of the environment. Raises UsageError."""
    if file is None:
        given = os.environ.get(PASSPHRASE_VARIABLE)
        return given.encode() if given else None
    try:
        return file.read_bytes().strip()
    except OSError as e:
        raise UsageError(f"{file} cannot be read: {e.strerror}") from e


def notify_socket() -> str | None:
    """Where the service manager wants to hear that this process is ready; None where there is none."""
    return os.environ.get(NOTIFY_VARIABLE) or None


def book_of(chosen: Settings) -> RuleBook:
    """The rules that this node decides by. Raises PolicyError or UsageError."""
    known = tuple(Country(code) for code in data.countries())
    packs = [load_pack(data.pack_text(name), f"packs/{name}.yaml", known) for name in chosen.law_packs]
    return rule_book(packs, known)
