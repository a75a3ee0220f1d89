"""The composition root: makes and opens homes. The only reader of settings, clock, environment and entropy.

A home is a folder that only its owner can read:

    apostille.yaml   settings          card.json      this node's card, signed by its roots
    keys/            online keys       roots/         root keys, until they are moved offline
    passphrase       opens the keys    apostille.db   everything else
"""

import os
import pwd
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from config import data, settings
from config.settings import Settings
from federation import jws, keyring
from federation.errors import MalformedError, SignatureError, UsageError
from federation.keyring import Card, RootSet, root_key_id
from federation.labels import load as load_labels
from federation.limits import MAX_ROOT_KEYS
from federation.model import Country, NodeId
from federation.policy.engine import RuleBook, rule_book
from federation.policy.packs import load_pack
from node import keys
from node.context import Node
from node.store import database

CARD_FILE = "card.json"
DATABASE_FILE = "apostille.db"
PASSPHRASE_FILE = "passphrase"  # noqa: S105 - the name of a file
PASSPHRASE_VARIABLE = "APOSTILLE_PASSPHRASE"  # noqa: S105 - the name of a variable
DEFAULT_POLL_INTERVAL_S = 60
_PASSPHRASE_BYTES = 32


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
) -> Card:
    """Makes a home: keys, card, settings, database. Raises UsageError; then nothing is left behind."""
    if not 1 <= threshold <= roots <= MAX_ROOT_KEYS:
        raise UsageError(f"roots: 1 to {MAX_ROOT_KEYS} keys, and a threshold of 1 to that many")
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UsageError(f"{home} is no empty folder; name a new one with --home")
    existed = home.exists()
    chosen = Settings(node, jurisdiction, listen, advertise, DEFAULT_POLL_INTERVAL_S, packs)
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
        protocols=(keyring.PROTOCOL_VERSION,),
        endpoint=chosen.advertise,
        roots=root_set,
        keys=online,
    )
    (home / CARD_FILE).write_bytes(sign_card(card, keys.Keys(home, passphrase)))
    (home / settings.FILE_NAME).write_text(settings.write(chosen), encoding="utf-8")
    keys.write_private(home / DATABASE_FILE, b"")  # SQLite gives its other files the mode of this one
    engine = database.open_engine(home / DATABASE_FILE)
    database.create(engine, chosen.node)
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
    engine = database.open_engine(home / DATABASE_FILE)
    if not (home / DATABASE_FILE).is_file():
        raise UsageError(f"{home / DATABASE_FILE} is missing: restore it from a backup")
    database.check(engine, chosen.node)
    card_bytes, card = read_card(home, chosen)
    return Node(
        id=chosen.node,
        jurisdiction=chosen.jurisdiction,
        home=home,
        listen=chosen.listen,
        poll_interval_s=chosen.poll_interval_s,
        card=card,
        card_bytes=card_bytes,
        keys=keys.Keys(home, passphrase_of(home)),
        engine=engine,
        labels=load_labels(data.labels_text(), "labels/csaf-2.0.yaml"),
        book=book_of(chosen),
        clock=utc_now,
        entropy=secrets.token_bytes,
        actor=_local_user(),
    )


def _local_user() -> str:
    """Who runs this command, by user id and not by what the environment says; in a container it may have no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def read_settings(home: Path) -> Settings:
    """The settings of `home`. Raises UsageError."""
    path = home / settings.FILE_NAME
    try:
        return settings.read(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as e:
        raise UsageError(f"{home} is no home of a node; make one with: apostille --home {home} init") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} cannot be read") from e


def read_card(home: Path, chosen: Settings) -> tuple[bytes, Card]:
    """This node's own card. Raises UsageError when it is missing, damaged or that of another node."""
    path = home / CARD_FILE
    try:
        card_bytes = path.read_bytes()
        card = keyring.open_card(card_bytes)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: restore it from a backup") from e
    except (MalformedError, SignatureError) as e:
        raise UsageError(f"{path} is damaged: restore it from a backup") from e
    if (card.node, card.jurisdiction) != (chosen.node, chosen.jurisdiction):
        raise UsageError(f"{path} is the card of {card.node} in {card.jurisdiction}, the settings say otherwise")
    return card_bytes, card


def passphrase_of(home: Path) -> bytes | None:
    """What opens the private keys: the environment first, then the file that `init` made. Raises UsageError."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given.encode()
    path = home / PASSPHRASE_FILE
    if not path.exists():
        return None
    keys.check_private(path, str(path))
    return path.read_bytes().strip()


def book_of(chosen: Settings) -> RuleBook:
    """The rules that this node decides by. Raises PolicyError or UsageError."""
    known = tuple(Country(code) for code in data.countries())
    packs = [load_pack(data.pack_text(name), f"packs/{name}.yaml", known) for name in chosen.law_packs]
    return rule_book(packs, known)
