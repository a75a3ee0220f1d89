"""Importing many files: one refused file never stops the others, and repeating an import only counts what is here."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from federation.errors import (
    ApostilleError,
    ConflictError,
    HeldError,
    LockedError,
    NotAllowedError,
    NotFoundError,
    UsageError,
)
from federation.limits import MAX_DOCUMENT_BYTES
from federation.model import NodeId, Role, Tlp
from node.cli import exits, screen, session
from node.cli.summaries import imported_data, say_unlabelled
from node.home.context import Node
from node.peering.peers import all_peers, trusted_card
from node.sharing.advisories import Imported, import_file
from node.sharing.releases import release

_FATAL = (LockedError, NotAllowedError, ConflictError, NotFoundError)  # it would be the same for every file


@dataclass(slots=True)
class _Tally:
    """What came of each file."""

    imported: list[Imported] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    held: list[tuple[str, str]] = field(default_factory=list)
    unshared: list[str] = field(default_factory=list)
    entries: int = 0


def run(paths: Iterable[Path], tlp: Tlp | None, *, release: bool, to: list[str], as_json: bool) -> None:
    """Imports `paths` and prints a summary. Raises UsageError for a missing path, RefusedError for a refused file."""
    files = _files(paths)
    if to and not release:
        raise UsageError("--to says where to release; add --release")
    node = session.node()
    if release:
        node.keys.signer(Role.ISSUE, node.card, node.clock())  # a wrong passphrase is found before anything is kept
    tally = _Tally()
    targets = _targets(node, to) if release else None
    try:
        with screen.progress("Importing", len(files)) as advance:
            for done, path in enumerate(files, start=1):
                _one(node, path, tlp, tally, targets)
                advance(done)
    finally:
        if tally.entries:
            session.wake()
    _report(tally, len(files), release, as_json)


def _one(node: Node, path: Path, tlp: Tlp | None, tally: _Tally, targets: tuple[NodeId, ...] | None) -> None:
    try:
        made = import_file(node, session.read_file(path, MAX_DOCUMENT_BYTES), path.name, tlp=tlp)
        tally.imported.append(made)
        if targets is None or made.revised:  # what is newest is another document than this file
            return
        _, outcomes = release(node, made.advisory.name, targets)
    except _FATAL:
        raise
    except HeldError as e:
        tally.held.append((path.name, str(e)))
    except ApostilleError as e:
        tally.refused.append((path, str(e).removeprefix(f"{path.name}: ")))
    else:
        tally.entries += sum(outcome.seq is not None and not outcome.already for outcome in outcomes)
        if all(outcome.seq is None for outcome in outcomes):
            tally.unshared.append(made.advisory.name)
        tally.held.extend((made.advisory.name, f"{o.peer}: {o.held}") for o in outcomes if o.held is not None)


def _report(tally: _Tally, total: int, released: bool, as_json: bool) -> None:
    fresh = sum(made.fresh for made in tally.imported)
    again = len(tally.imported) - fresh
    if as_json:
        screen.emit(
            {
                "imported": fresh,
                "already": again,
                "refused": [{"file": str(path), "reason": reason} for path, reason in tally.refused],
                "held": [{"advisory": name, "reason": reason} for name, reason in tally.held],
                "released_entries": tally.entries,
                "released_to_nobody": tally.unshared,
                "advisories": [imported_data(made) for made in tally.imported],
            }
        )
    else:
        for made in tally.imported:
            say_unlabelled(made)
        facts: list[tuple[str, object]] = [
            ("Imported", fresh),
            ("Here already", again),
            ("Refused", len(tally.refused)),
        ]
        if released:
            facts += [
                ("Entries released", tally.entries),
                ("Released to nobody", tally.unshared),
                ("Held for a person", len(tally.held)),
            ]
        screen.facts(facts)
        if tally.refused:
            screen.table(("Refused file", "Why"), tally.refused)
        if tally.held:
            screen.table(("Held for a person", "Why"), tally.held)
    if tally.refused:
        raise exits.RefusedError(f"{len(tally.refused)} of {total} files were refused")


def _targets(node: Node, to: Iterable[str]) -> tuple[NodeId, ...]:
    """Whom to release to, found out before the first file. Raises NotFoundError, UsageError."""
    named = tuple(trusted_card(node, NodeId(peer)).node for peer in to)
    if not named and not any(peer.trusted and peer.direct for peer in all_peers(node)):
        raise UsageError("there is no peer to release to; enrol one with: apostille peer enrol CARD")
    return named


def _files(paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` name; of folders, every .json below them, by name. Raises UsageError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(item for item in path.rglob("*.json") if item.is_file())
            if not inside:
                raise UsageError(f"{path} holds no .json file")
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist")
    return list(dict.fromkeys(found))
