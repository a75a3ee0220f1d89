"""Is a home fit to run? Findings, each with what to do. Nothing is changed, and no finding stops the next check.

Works where `node.main.open_node` refuses: that is when people ask. Checked are the folder's modes, settings, card, keys
and passphrase, database, clock, disk, law packs and labels, agreements near their end, and whether the packages that
are loaded are the ones that were installed: `config` and `node` are common names.
"""

import base64
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.exc import DatabaseError

from config import data
from config.settings import Settings
from federation.errors import ApostilleError, LocalError
from federation.keyring import Card
from federation.labels import load as load_labels
from federation.model import SPOKEN_VERSIONS, Role
from node import main
from node.home import keys
from node.home.owncard import OwnCard
from node.operation import courier
from node.operation.watch import CLOCK_TOLERANCE, DISK_WARN, NEAR_END
from node.peering import agreements, cards, rotation
from node.store import database
from node.store.tables import audit

_DISK_FAIL: Final = 100 << 20  # bytes; SQLite needs room for its log to commit at all
_CARD_PATIENCE: Final = timedelta(days=3)  # for a peer to fetch a new card; the old keys serve it far longer
_PACKAGES: Final = ("config", "federation", "node", "protos")


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it; `advice` is empty when there is nothing to do."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(home: Path) -> tuple[Finding, ...]:
    """Every finding about `home`, in the order in which one would mend things. Raises UsageError when it is no home."""
    chosen = main.read_settings(home)
    now = main.utc_now()
    return (
        Finding("settings", Verdict.OK, f"{chosen.node} in {chosen.jurisdiction}, listens on {chosen.listen}"),
        *_modes(home),
        *_card_and_keys(home, chosen, now),
        *_guarded(
            "database", "do what it says; what is damaged, restore from a backup", lambda: _database(home, chosen, now)
        ),
        *_guarded("law packs", "mend law_packs in apostille.yaml", lambda: _rules(chosen, now)),
        *_guarded("agreements", "mend what is named above first", lambda: _agreements(home, now)),
        *_guarded("peers", "mend what is named above first", lambda: _peers(home, now)),
        *_guarded("alerts", "mend that file; see: apostille alerts --help", lambda: _alerts(home)),
        _disk(home),
        _installation(),
    )


def _guarded(check: str, advice: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (ApostilleError, DatabaseError, OSError) as e:
        # A driver's text names its statement and values: only its class is told.
        yield Finding(check, Verdict.FAIL, str(e) if isinstance(e, ApostilleError) else type(e).__name__, advice)


def _modes(home: Path) -> Iterator[Finding]:
    names = ("keys", "roots", main.PASSPHRASE_FILE, main.DATABASE_FILE, courier.FILE_NAME)
    private = [home, *(home / name for name in names)]
    private += [*home.glob("keys/*.pem"), *home.glob("roots/*.pem")]
    open_to_others = [path for path in private if path.exists() and path.stat().st_mode & 0o077]
    if open_to_others:
        told = ", ".join(str(path) for path in open_to_others)
        yield Finding("file modes", Verdict.FAIL, f"others can read {told}", f"chmod go-rwx {told}")
    else:
        yield Finding("file modes", Verdict.OK, "only the owner can read keys, passphrase and database")


def _card_and_keys(home: Path, chosen: Settings, now: datetime) -> Iterator[Finding]:
    try:
        own = main.own_card(main.open_database(home, chosen), chosen)
    except (LocalError, DatabaseError) as e:
        found = str(e) if isinstance(e, LocalError) else type(e).__name__
        yield Finding("card", Verdict.FAIL, found, "it lies in the database: restore that from a backup")
        return
    card = own.card
    yield _clock("clock", card.issued_at, "this node's card was signed", now)
    yield _card(card, now)
    yield _endpoint(card, chosen)
    yield _keys(home, card, now)
    yield _key_files(home, own)
    yield _roots(home)


def _card(card: Card, now: datetime) -> Finding:
    ended = sorted({key.role for key in card.keys} - {key.role for key in card.keys if key.valid_at(now)})
    soonest = min(max(key.valid_until for key in card.keys if key.role is role) for role in Role)
    if ended:
        return Finding(
            "card",
            Verdict.FAIL,
            f"no valid {', '.join(ended)} key",
            "apostille key rotate --all, then give every peer the card",
        )
    until = f"its keys are valid until {soonest:%Y-%m-%d}"
    if soonest - now < rotation.NEAR_END:
        return Finding("card", Verdict.WARN, until, "make new keys beside them: apostille key rotate --all")
    if card.protocols != SPOKEN_VERSIONS:
        spoken, ours = (", ".join(map(str, versions)) for versions in (card.protocols, SPOKEN_VERSIONS))
        found = f"it says that this node speaks protocol version {spoken}; it speaks {ours}"
        return Finding("card", Verdict.WARN, found, "apostille card renew")
    return Finding("card", Verdict.OK, until)


def _endpoint(card: Card, chosen: Settings) -> Finding:
    if card.endpoint != chosen.advertise:
        found = f"the card says {card.endpoint}, the settings advertise {chosen.advertise}"
        return Finding(
            "address", Verdict.WARN, found, "peers dial what the card says: apostille card renew, or undo the change"
        )
    return Finding("address", Verdict.OK, f"peers dial {card.endpoint}")


def _keys(home: Path, card: Card, now: datetime) -> Finding:
    try:
        held = keys.Keys(home, main.passphrase_of(home))
        for key in card.keys:
            if key.valid_until > now:
                held.check(key)
        held.unseal(held.seal(b"probe"))
    except (ApostilleError, OSError) as e:
        return Finding("keys", Verdict.FAIL, str(e), f"mend the passphrase, or restore {home / 'keys'} from a backup")
    return Finding("keys", Verdict.OK, "the passphrase opens the keys for issue, feed, receipt, tls and seal")


def _key_files(home: Path, own: OwnCard) -> Finding:
    named = {key.kid for key in own.every_key()}
    found = [kid for _, kid in keys.Keys(home, None).stored() if kid not in named]
    if found:
        return Finding(
            "key files",
            Verdict.WARN,
            f"{len(found)} private keys are on no card",
            "install the card that was prepared with them, or delete them: apostille key prune --unused",
        )
    return Finding("key files", Verdict.OK, "every private key is on a card")


def _roots(home: Path) -> Finding:
    found = len(list((home / "roots").glob("root-*.pem")))
    if found:
        advice = f"move {home / 'roots'} to media that are kept offline, in more than one place"
        return Finding("root keys", Verdict.WARN, f"{found} root keys lie on this machine", advice)
    return Finding("root keys", Verdict.OK, "no root key lies on this machine")


def _database(home: Path, chosen: Settings, now: datetime) -> Iterator[Finding]:
    engine = main.open_database(home, chosen)
    try:
        with database.read(engine) as tx:
            wrong, about = database.faults(tx), database.describe(tx)
            newest = tx.execute(select(func.max(audit.c.at))).scalar_one_or_none()
    finally:
        engine.dispose()
    if wrong is not None:
        yield Finding("database", Verdict.FAIL, wrong, "stop the server and restore the database from a backup")
    else:
        yield Finding("database", Verdict.OK, about)
    yield from _copies(home)
    if newest is not None:
        yield _clock("clock and records", newest, "the newest record was made", now)


def _copies(home: Path) -> Iterator[Finding]:
    """What an upgrade left: everything that was in the database then."""
    left = ", ".join(map(str, database.copies(home / main.DATABASE_FILE)))
    if left:
        found = f"{left} holds all that was in the database before an upgrade"
        yield Finding("old copy", Verdict.WARN, found, "delete it once you are content; the next erasure does so too")


def _clock(check: str, before: datetime, event: str, now: datetime) -> Finding:
    if now + CLOCK_TOLERANCE < before.astimezone(UTC):
        found = f"it shows {now:%Y-%m-%d %H:%M}Z, but {event} at {before:%Y-%m-%d %H:%M}Z"
        return Finding(
            check, Verdict.FAIL, found, "set the clock, and keep it set by NTP: validity and embargoes depend on it"
        )
    return Finding(check, Verdict.OK, f"{now:%Y-%m-%d %H:%M}Z, after {event}")


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(home).free
    found = f"{free >> 20} MiB free at {home}"
    if free < DISK_WARN:
        return Finding("disk", Verdict.FAIL if free < _DISK_FAIL else Verdict.WARN, found, "free some space")
    return Finding("disk", Verdict.OK, found)


def _rules(chosen: Settings, now: datetime) -> Iterator[Finding]:
    reviews = main.book_of(chosen).reviews
    load_labels(data.labels_text(), "labels/csaf-2.0.yaml")
    if chosen.law_packs:
        yield Finding("law packs", Verdict.OK, f"{', '.join(chosen.law_packs)}, and the labels of CSAF 2.0")
    else:
        yield Finding(
            "law packs", Verdict.WARN, "none", "only agreements limit what leaves: name packs under law_packs"
        )
    due = sorted(f"{pack} by {day}" for pack, day in reviews.items() if day - now.date() < NEAR_END)
    if due:
        advice = "have their rules compared with the law, and a newer version installed"
        yield Finding("reviews of law packs", Verdict.WARN, f"to be reviewed: {', '.join(due)}", advice)


def _agreements(home: Path, now: datetime) -> Iterator[Finding]:
    node = main.open_node(home)
    with database.read(node.engine) as tx:
        held = agreements.in_force(tx, now).values()
    ending = sorted(f"{a.id} ends on {a.valid_until:%Y-%m-%d}" for a in held if a.valid_until - now < NEAR_END)
    due = sorted(f"{a.id} was due on {a.sunset_review:%Y-%m-%d}" for a in held if a.sunset_review <= now)
    if ending:
        yield Finding(
            "agreements", Verdict.WARN, ", ".join(ending), "propose a next version, or nothing is shared after that"
        )
    else:
        yield Finding("agreements", Verdict.OK, f"{len(held)} in force, none near its end")
    if due:
        yield Finding(
            "sunset reviews", Verdict.WARN, ", ".join(due), "review whether the terms still do what they should"
        )


def _peers(home: Path, now: datetime) -> Iterator[Finding]:
    node = main.open_node(home)
    waiting = cards.waiting(node)
    if waiting and now - node.card.issued_at > _CARD_PATIENCE:
        found = f"not known to hold card {node.card.version} of this node: {', '.join(waiting)}"
        yield Finding("peers", Verdict.WARN, found, "give them the file of: apostille card export")
    else:
        yield Finding("peers", Verdict.OK, "none has been without this node's card for long")


def _alerts(home: Path) -> Iterator[Finding]:
    """Whether alarms reach anybody; nothing is sent: `apostille alerts test` does that."""
    found = courier.addresses(home)
    if found:
        yield Finding("alerts", Verdict.OK, f"{len(found)} addresses are told of alarms")
    else:
        yield Finding("alerts", Verdict.OK, "nobody is told of alarms but who looks: see apostille alerts --help")


def _installation() -> Finding:
    """Are the packages that Python finds ours? Their names are common: others may have put files there."""
    ours = Path(__file__).parents[2]
    strangers = [name for name in _PACKAGES if not _is_at(name, ours / name)]
    if strangers:
        found = f"{', '.join(strangers)} is another package of that name"
        return Finding("installation", Verdict.FAIL, found, "install apostille in an environment of its own")
    try:
        changed = _changed(distribution("apostille"))
    except PackageNotFoundError:
        return Finding("installation", Verdict.OK, "run from its source tree")
    if changed:
        found = f"{len(changed)} installed files are not those of the release, such as {changed[0]}"
        return Finding("installation", Verdict.FAIL, found, "install apostille again, in an environment of its own")
    return Finding("installation", Verdict.OK, "the installed files are those of the release")


def _is_at(package: str, folder: Path) -> bool:
    spec = find_spec(package)
    return spec is not None and str(folder) in (spec.submodule_search_locations or ())


def _changed(installed: Distribution) -> list[str]:
    """The files of our packages whose bytes are not those that the installer recorded (PyPA: RECORD)."""
    changed = []
    for file in installed.files or ():
        if file.parts[0] not in _PACKAGES or file.hash is None:
            continue
        path = Path(str(file.locate()))
        recorded = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
        if not path.is_file() or hashlib.new(file.hash.mode, path.read_bytes()).digest() != recorded:
            changed.append(str(file))
    return changed
