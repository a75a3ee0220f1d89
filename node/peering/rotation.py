"""New keys and new cards of this node.

Every change is a new card, one version higher, signed by the threshold of the root keys. Private keys lie on the disk
before the card that names them is installed; installing it, and appending it to the feeds to peers, is one transaction:
an interruption leaves the old card or the new one, and at most key files that nothing names. Where the root keys are
kept offline, the change is prepared as a file, signed elsewhere, and installed.

A rotation adds keys and ends the old ones soon; an old `issue` key keeps its own end unless told otherwise, because the
advisories that it signed go on being released and passed on. Other root keys take two people, and the old root keys.

Which key is used towards whom meanwhile is decided in `node.home.signing`, how cards travel in `node.peering.cards`.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, NoReturn

from sqlalchemy import Connection

from federation import keyring
from federation.errors import (
    ConflictError,
    HeldError,
    KeyringError,
    NotFoundError,
    UsageError,
)
from federation.keyring import Card, OnlineKey, RootSet, root_key_id
from federation.limits import MAX_ROOT_KEYS
from federation.model import SPOKEN_VERSIONS, NodeId, Role
from node.home import owncard, prepared, signing
from node.home.certificates import check_certificate
from node.home.context import Node
from node.home.keys import newest_first
from node.home.people import Post
from node.peering import cards, peers
from node.records import approvals
from node.records.approvals import Act, Request
from node.store.database import read, record, write

OVERLAP: Final = signing.OVERLAP
NEAR_END: Final = timedelta(days=30)  # time enough to sign a new card, offline too, and to have it everywhere


@dataclass(frozen=True, slots=True)
class Change:
    """What a new card is to be like. None leaves a thing as it is; the version is one higher unless a number is given.

    A number is needed after a restore from a backup, when peers hold newer cards than this node knows of.
    """

    rotate: tuple[Role, ...] = ()
    overlap: timedelta | None = None
    without: str | None = None
    endpoint: str | None = None
    roots: RootSet | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class KeyState:
    """An online key: `state` is current, next (some peers cannot verify it yet), old, ended or dropped.

    `versions` are the cards that name it, `private` says whether its private half lies here.
    """

    key: OnlineKey
    state: str
    versions: tuple[int, ...]
    private: bool


def change(node: Node, wanted: Change) -> Card:
    """Makes the card that is wanted, signs it by the root keys that lie here, installs and distributes it; then prunes.

    Raises UsageError when too few root keys lie here or nothing would change, ConflictError, LockedError.
    """
    node.allow(Post.OPERATOR)
    _check_roots_here(node)
    card = _changed(node, wanted)
    install(node, prepared.sign(card.payload(), node.keys.roots()))
    prune(node)
    return card


def prepare(node: Node, wanted: Change) -> bytes:
    """The bytes of the card that is wanted, to be signed elsewhere. Its private keys lie here, unused until then.

    Raises UsageError, LockedError.
    """
    node.allow(Post.OPERATOR)
    return _changed(node, wanted).payload()


def install(node: Node, document: bytes, reason: str | None = None) -> Card:
    """Installs a signed card that follows the current one, and appends it to the feeds to peers.

    Other root keys than the current ones take a reason and a second person: AwaitsSecondError. Raises a RemoteError for
    a card that does not hold, UsageError, LockedError or ConflictError for one that does not follow.
    """
    node.allow(Post.OPERATOR)
    node.own.reload()
    document = prepared.of_known_roots(document, node.card.roots)
    card = _checked(node, document)
    _check_no_gap(node, card)
    if card.roots != node.card.roots:
        _ask(node, card, document, reason)
    with write(node.engine) as tx:
        _install(node, tx, card, document)
    node.own.reload()
    return card


def new_roots(node: Node, count: int, threshold: int, version: int | None = None) -> bytes:
    """A card with new root keys, which are made in `roots/`, signed by them and by whatever root keys lie there.

    It is to be installed, once enough of the old root keys have signed it too. Raises UsageError, LockedError.
    """
    node.allow(Post.OPERATOR)
    if not 1 <= threshold <= count <= MAX_ROOT_KEYS:
        raise UsageError(f"roots: 1 to {MAX_ROOT_KEYS} keys, and a threshold of 1 to that many")
    made = node.keys.make_roots(count)
    card = _changed(node, Change(roots=RootSet(threshold, tuple(signer.public for signer in made)), version=version))
    return prepared.of_known_roots(prepared.sign(card.payload(), node.keys.roots(), hand_over=True), node.card.roots)


def change_roots(node: Node, count: int, threshold: int, reason: str, version: int | None = None) -> NoReturn:
    """Asks that the node be handed over to new root keys, signed by the old ones that lie here.

    Raises AwaitsSecondError once that is noted, UsageError when too few root keys lie here, LockedError.
    """
    node.allow(Post.OPERATOR)
    _check_roots_here(node)
    document = new_roots(node, count, threshold, version)
    _ask(node, _checked(node, document), document, reason)


def carry_out_roots(node: Node, tx: Connection, request: Request) -> None:
    """Installs the card with other root keys, as it is bound. Raises ConflictError."""
    document = request.arguments["document"].encode()
    approvals.require_unchanged(request, _binding(tx, document))
    _install(node, tx, _checked(node, document), document)


def retire(node: Node, kid: str, *, at_once: bool = False) -> Change:
    """The change that takes a key off the card, for `change` or `prepare`.

    Unless it is to be `at_once`, because the key was stolen, every peer must hold a card with another key of its role.
    Raises NotFoundError, UsageError, HeldError.
    """
    node.allow(Post.OPERATOR)
    key = next((key for key in node.card.keys if key.kid == kid), None)
    if key is None:
        raise NotFoundError(f"the current card has no key {kid}; see: apostille key list")
    others = {k.kid for k in node.card.keys if k.role is key.role and k.kid != kid and k.valid_at(node.clock())}
    if not others:
        raise UsageError(
            f"it is the only valid {key.role} key; make another one first: apostille key rotate {key.role}"
        )
    with read(node.engine) as tx:
        lacking = [peer for peer in peers.trusted_cards(tx) if not _holds_one(tx, peer, others)]
    if lacking and not at_once:
        raise HeldError(
            f"{', '.join(lacking)} cannot verify another {key.role} key yet; wait until the card is there (apostille"
            " key list), or take it off at once with --now"
        )
    return Change(without=kid)


def prune(node: Node, *, unused: bool = False) -> tuple[tuple[Role, str], ...]:
    """Deletes private keys that nothing is signed with any more; returns role and id of each.

    They are not on the current card or have ended, or are `issue` keys whose successor is settled; and no peer is left
    that knows no other. `unused` includes those that no card has ever named, and with that the keys of a card that was
    prepared and waits for its signatures.
    """
    node.allow(Post.OPERATOR)
    needed, named = _needed(node), {key.kid for key in node.own.every_key()}
    gone = tuple((role, kid) for role, kid in node.keys.stored() if kid not in needed and (unused or kid in named))
    if gone:
        with write(node.engine) as tx:
            for role, kid in gone:
                record(tx, at=node.clock(), by=node.actor, act="key.prune", subject=f"{role} {kid}")
        for role, kid in gone:
            node.keys.remove(role, kid)
    return gone


def key_states(node: Node) -> tuple[KeyState, ...]:
    """Every key of the current card, and those of earlier cards whose private half is still here; by role, newest
    first."""
    now = node.clock()
    found: dict[str, KeyState] = {}
    with read(node.engine) as tx:
        history = [keyring.unverified(document) for document in owncard.history(tx)]
        in_use = {role: _in_use(node, tx, role) for role in Role}
    for card in history:
        for key in card.keys:
            versions = (*found[key.kid].versions, card.version) if key.kid in found else (card.version,)
            found[key.kid] = KeyState(key, "dropped", versions, node.keys.holds(key.role, key.kid))
    states = []
    for role in Role:
        for key in newest_first(tuple(s.key for s in found.values() if s.key.role is role)):
            state = found[key.kid]
            if node.card.version in state.versions:
                states.append(replace(state, state=_state(key, node.card, in_use[role], now)))
            elif state.private:
                states.append(state)
    return tuple(states)


def endings(node: Node) -> list[tuple[str, datetime]]:
    """What ends within NEAR_END: the last key of a role on the own card, or on that of a peer. Soonest first."""
    now = node.clock()
    last = {role: max(key.valid_until for key in node.card.keys if key.role is role) for role in Role}
    found = [(f"own {role} key", until) for role, until in last.items()]
    for peer in peers.all_peers(node):
        if peer.trusted and peer.direct:
            for role in Role:
                until = max((key.valid_until for key in peer.card.keys if key.role is role), default=now)
                found.append((f"{role} key of {peer.card.node}", until))
    return sorted((item for item in found if item[1] - now < NEAR_END), key=lambda item: item[1])


def _changed(node: Node, wanted: Change) -> Card:
    """The next card, unsigned. Its new private keys are made here, once everything else is known to fit."""
    node.own.reload()
    now, current = node.clock().replace(microsecond=0), node.card
    version = current.version + 1 if wanted.version is None else wanted.version
    if version <= current.version:
        raise UsageError(f"the current card is version {current.version}: the next one needs a higher number")
    kept = [key for key in current.keys if key.valid_until > now and key.kid != wanted.without]
    if wanted.overlap is not None and wanted.overlap <= timedelta(0):
        raise UsageError(
            "the overlap must be longer than nothing; to end a key at once: apostille key retire KID --now"
        )
    kept = [_shortened(key, wanted, now) for key in kept]
    if len(kept) + len(wanted.rotate) > keyring.MAX_KEYS:
        soonest = min(key.valid_until for key in kept)
        raise UsageError(
            f"a card holds at most {keyring.MAX_KEYS} keys, and {len(kept)} are still valid, the first until"
            f" {soonest:%Y-%m-%d %H:%M}Z: wait for that, or take one off with: apostille key retire"
        )
    card = replace(
        current,
        version=version,
        issued_at=now,
        protocols=SPOKEN_VERSIONS,
        endpoint=wanted.endpoint or current.endpoint,
        roots=wanted.roots or current.roots,
        keys=tuple(kept),
    )
    if replace(card, version=current.version, issued_at=current.issued_at) == current and not wanted.rotate:
        raise UsageError(f"card {current.version} says all of that already; nothing was changed")
    made = tuple(node.keys.make(role, node.id, now) for role in dict.fromkeys(wanted.rotate))
    return replace(card, keys=(*made, *kept))  # of keys made at one moment, the first is the newest


def _shortened(key: OnlineKey, wanted: Change, now: datetime) -> OnlineKey:
    """An old key of a role that is rotated: it ends with the overlap, never later than it would have."""
    if key.role not in wanted.rotate or (key.role is Role.ISSUE and wanted.overlap is None):
        return key
    return replace(key, valid_until=min(key.valid_until, now + (wanted.overlap or OVERLAP)))


def _check_roots_here(node: Node) -> None:
    own = {root_key_id(key) for key in node.card.roots.keys}
    here = len([signer for signer in node.keys.roots() if signer.kid in own])
    if here < node.card.roots.threshold:
        raise UsageError(
            f"{node.card.roots.threshold} root keys must sign a card, and {here} of them lie in roots/. Prepare it here"
            " with --prepare FILE, sign it where they are with: apostille card sign FILE --roots DIR"
        )


def _checked(node: Node, document: bytes) -> Card:
    """A card that may be installed.

    (1) signed by the threshold of its own root keys and of the current ones; (2) of this node and jurisdiction; (3) of
    a higher version; (4) certificates of the profile; (5) each role has a valid key; (6) the private half of every key
    that is new lies here and opens; (7) no key that is on the current card ends later than there.
    """
    current, now = node.card, node.clock()
    card = keyring.open_card(document, current.roots)  # (1)
    if (card.node, card.jurisdiction) != (node.id, node.jurisdiction):  # (2)
        raise UsageError(f"this is the card of {card.node} in {card.jurisdiction}, not of this node")
    if card.version <= current.version:  # (3)
        raise ConflictError(f"card {card.version} does not follow the current card {current.version}: prepare it anew")
    known = {key.kid: key for key in current.keys}
    for key in card.keys:
        if key.role is Role.TLS:
            check_certificate(key.public, card.node)  # (4)
        if key.kid not in known:
            node.keys.check(key)  # (6)
        elif key.valid_from != known[key.kid].valid_from or key.valid_until > known[key.kid].valid_until:  # (7)
            raise UsageError(
                f"card {card.version} gives key {key.kid} another beginning or a later end: prepare it anew"
            )
    for role in Role:
        try:
            card.valid_keys(role, now)  # (5)
        except KeyringError as e:
            raise UsageError(f"card {card.version} has no {role} key that is valid now: prepare it anew") from e
    return card


def _check_no_gap(node: Node, card: Card) -> None:
    """Refuses a card that was prepared too long ago: the old keys that it still names have ended meanwhile.

    Raises HeldError.
    """
    now, valid = node.clock(), {key.kid for key in node.card.keys if key.valid_at(node.clock())}
    for role in Role:
        if valid & {k.kid for k in node.card.keys if k.role is role} and not valid & {
            k.kid for k in card.valid_keys(role, now)
        }:
            raise HeldError(
                f"card {card.version} names no {role} key that peers know and that is still valid: they would be cut"
                " off. Prepare it anew"
            )


def _install(node: Node, tx: Connection, card: Card, document: bytes) -> None:
    now = node.clock()
    newest = keyring.unverified(owncard.history(tx)[-1])
    if newest != node.card:
        raise ConflictError(f"card {newest.version} was installed meanwhile; nothing was changed, try again")
    owncard.store(tx, card, document, at=now, by=node.actor)
    cards.deliver(node, tx)
    record(tx, at=now, by=node.actor, act="card.install", subject=node.id, detail=f"card {card.version}")


def _ask(node: Node, card: Card, document: bytes, reason: str | None) -> NoReturn:
    if reason is None:
        raise UsageError("this card has other root keys, which takes a second person: say why with --reason")
    with write(node.engine) as tx:
        arguments = {
            "version": card.version,
            "root_keys": len(card.roots.keys),
            "threshold": card.roots.threshold,
            "fingerprint": peers.fingerprint_words(card.roots),
            "document": document.decode(),
        }
        number = approvals.ask(node, tx, Act.ROOTS, node.id, arguments, _binding(tx, document), reason)
    raise approvals.awaits(node, number)


def _binding(tx: Connection, document: bytes) -> bytes:
    return approvals.bind(sha256(owncard.history(tx)[-1]).digest(), sha256(document).digest())


def _holds_one(tx: Connection, peer: NodeId, kids: set[str]) -> bool:
    held = signing.held_card(tx, peer)
    return held is None or bool({key.kid for key in held.keys} & kids)


def _in_use(node: Node, tx: Connection, role: Role) -> set[str]:
    """The keys of `role` with which something is signed, or presented, now."""
    try:
        found = {signing.key_for_all(node, tx, role).kid}
        found |= {signing.key_for(node, tx, peer, role).kid for peer in peers.trusted_cards(tx)}
    except UsageError:  # none is valid now
        return set()
    return found


def _state(key: OnlineKey, card: Card, in_use: set[str], now: datetime) -> str:
    if not key.valid_at(now):
        return "ended" if key.valid_until <= now else "next"
    if key.kid in in_use:
        return "current"
    newer = [k for k in card.keys if k.role is key.role and k.valid_from > key.valid_from]
    return "old" if newer else "next"


def _needed(node: Node) -> set[str]:
    """The keys whose private halves may still sign something.

    (1) what is in use; (2) valid keys of the current card, of `issue` the newest, and others while they may be fallen
    back on; (3) keys for heads and receipts that a peer knows who does not hold the current card yet.
    """
    now = node.clock()
    with read(node.engine) as tx:
        needed = {kid for role in Role for kid in _in_use(node, tx, role)}  # (1)
        behind = [held for peer in cards.waiting(node) if (held := signing.held_card(tx, peer)) is not None]
    valid = [key for key in node.card.keys if key.valid_until > now]
    newest = max(key.valid_from for key in valid if key.role is Role.ISSUE)
    settled = newest + OVERLAP <= now
    needed |= {k.kid for k in valid if k.role is not Role.ISSUE or k.valid_from == newest or not settled}  # (2)
    notes = (Role.FEED, Role.RECEIPT)
    needed |= {key.kid for held in behind for key in held.keys if key.role in notes and key.valid_until > now}  # (3)
    return needed
