"""What a node signed that contradicts itself: proofs that need nobody's word but that node's.

    fork           two heads of one feed with one size and two roots, or one of size 0 whose root is not that of nothing
    equivocation   cores under one `jti` with different bytes

each signed by a key on a card of that node. A proof holds the least that shows it: of a head its body and the one
signature that counts, of cards those that have the keys. Which cards are a node's, the reader of a proof decides.

A rollback proves nothing to others: that the smaller of two heads is the later one rests on the clock of the node that
is accused, and an honest clock that was ahead for a while dates two heads the same way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from federation import checkpoint, ed25519, merkle, sdjwt
from federation.checkpoint import Checkpoint, VerifierKey, parse_origin_line
from federation.errors import RemoteError
from federation.keyring import for_newcomers, unverified
from federation.model import NodeId, Role

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What proves it, and the signed cards that have the keys. Heads are notes with one signature line each."""

    cards: tuple[bytes, ...]
    heads: tuple[bytes, ...] = ()
    cores: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class _Head:
    """A head with the one line that `card` has the key for."""

    head: Checkpoint
    note: bytes
    card: bytes


def fork(notes: Iterable[bytes], node: NodeId, cards: Sequence[bytes]) -> Contradiction | None:
    """A fork among the heads in `notes`, proved by keys on the `cards` of `node`, oldest first; None without one."""
    heads = [found for note in notes if (found := _signed(note, node, cards))]
    for found in heads:
        if found.head.size == 0 and found.head.root != merkle.EMPTY.root():
            return _of_heads((found,))
    for first, second in combinations(heads, 2):
        same = (first.head.origin, first.head.size) == (second.head.origin, second.head.size)
        if same and first.head.root != second.head.root:
            return _of_heads((first, second))
    return None


def equivocation(cores: Iterable[bytes], node: NodeId, cards: Sequence[bytes]) -> Contradiction | None:
    """The same for cores that `node` signed under one `jti`: all of them that contradict each other."""
    by_jti: dict[str, dict[bytes, bytes]] = {}
    for core in cores:
        found = _issued(core, node, cards)
        if found is not None:
            by_jti.setdefault(found[0], {})[core] = found[1]
    several = next((signed for signed in by_jti.values() if len(signed) > 1), None)
    if several is None:
        return None
    return Contradiction(_cards(several.values()), cores=tuple(sorted(several)))


def dated(note: bytes, node: NodeId, cards: Sequence[bytes]) -> int | None:
    """When `node` called the head in `note` its newest, in POSIX seconds; None when it did not."""
    return _by_any_key(note, node, cards, lambda key, _: checkpoint.open_cosignature(note, key))


def _of_heads(heads: tuple[_Head, ...]) -> Contradiction:
    return Contradiction(_cards(head.card for head in heads), heads=tuple(head.note for head in heads))


def _cards(used: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(for_newcomers(card) for card in dict.fromkeys(used))


def _signed(note: bytes, node: NodeId, cards: Sequence[bytes]) -> _Head | None:
    def read(key: VerifierKey, card: bytes) -> _Head:
        head = checkpoint.open_checkpoint(note, key.name, key)
        return _Head(head, checkpoint.with_one_line(note, key), card)

    return _by_any_key(note, node, cards, read)


def _by_any_key(note: bytes, node: NodeId, cards: Sequence[bytes], read: Callable[[VerifierKey, bytes], T]) -> T | None:
    """What `read` gives for the first feed key that fits, of the newest card first; None when none does."""
    try:
        origin = Checkpoint.of(note).origin
        if parse_origin_line(origin)[0] != node:
            return None
    except RemoteError:
        return None
    for card in reversed(cards):
        for key in unverified(card).keys:
            if key.role is Role.FEED:
                try:
                    return read(VerifierKey(origin, key.public), card)
                except RemoteError:
                    continue
    return None


def _issued(core: bytes, node: NodeId, cards: Sequence[bytes]) -> tuple[str, bytes] | None:
    """The `jti` of a core that `node` signed, and the card that has the key."""
    try:
        opened = sdjwt.read_header_and_payload(core)
    except RemoteError:
        return None
    jti = opened.payload.get("jti")
    if opened.iss != node or not isinstance(jti, str):
        return None
    for card in reversed(cards):
        for key in unverified(card).keys:
            if (key.role, key.kid) == (Role.ISSUE, opened.kid):
                try:
                    ed25519.verify(key.public, opened.signature, opened.signed)
                except RemoteError:
                    continue
                return jti, card
    return None
