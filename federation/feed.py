"""The receiver's checks of a feed, and what it needs to remember to make them (I8, I9).

A feed is the append-only log from one node to one peer. Its receiver keeps the right edge of the tree; every page must
continue from there to a root that the sender signed. Storing, asking again and telling people are the node's affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from federation import entries, merkle
from federation.checkpoint import Checkpoint, VerifierKey, open_checkpoint, open_cosignature
from federation.entries import Delivery, Envelope, ErasedItem, Purge, RecallOrder, Withdrawal
from federation.errors import (
    BadPageError,
    ErasureError,
    ForkError,
    GapError,
    RemoteError,
    ReorderedError,
    RepeatedError,
    RollbackError,
    SignatureError,
    StaleError,
    SuspectedForkError,
    TooLargeError,
    WrongFeedError,
)
from federation.limits import (
    MAX_CLOCK_SKEW_S,
    MAX_NOTE_BYTES,
    MAX_PAGE_DISCLOSURES,
    MAX_PAGE_ITEMS,
    MAX_PENDING_ERASURES,
)
from federation.merkle import RightEdge
from federation.model import PROTOCOL_VERSION

_NO_ORIGIN: Final = "none"  # of a feed of which no head was ever shown


@dataclass(frozen=True, slots=True)
class FeedState:
    """What a receiver holds of one feed.

    `head` is the signed checkpoint at exactly the cursor, `newest` the largest that the sender ever signed for us (both
    empty before the first page), `pending` the hash-only items whose eraser has not arrived yet.
    """

    origin: str
    edge: RightEdge
    head: bytes
    newest: bytes
    pending: tuple[ErasedItem, ...]

    @property
    def cursor(self) -> int:
        """How many entries are held durably."""
        return self.edge.size


@dataclass(frozen=True, slots=True)
class Ask:
    """What a receiver asks for: the page after `cursor` of the feed `origin`.

    `receipt` and `newest` are notes, or empty: its cosigned head, and the largest head that it was ever shown, by which
    a sender that comes from a backup learns so (I16). `restored` says that the receiver itself comes from one.
    """

    origin: str
    cursor: int
    receipt: bytes = b""
    newest: bytes = b""
    restored: bool = False
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class PageBytes:
    """A page as it arrived. `receipt` is the newest that the sender holds; `epoch` is not 0 if the feed has ended."""

    items: tuple[bytes | ErasedItem, ...]
    checkpoint: bytes
    latest: bytes
    receipt: bytes = b""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class PageEntry:
    """One item whose place in the feed is proved. `envelope` is None when it was erased or is `bad`."""

    seq: int
    leaf_hash: bytes
    data: bytes | None
    envelope: Envelope | None
    bad: RemoteError | None


@dataclass(frozen=True, slots=True)
class VerifiedPage:
    """A page that follows from what is held, and the state after it. `may_receipt`: no eraser is outstanding."""

    entries: tuple[PageEntry, ...]
    state: FeedState
    latest: Checkpoint

    @property
    def may_receipt(self) -> bool:
        """Whether a receipt may cover everything up to here."""
        return not self.state.pending


def empty(origin: str) -> FeedState:
    """The state before the first page."""
    return FeedState(origin=origin, edge=merkle.EMPTY, head=b"", newest=b"", pending=())


def verify_page(state: FeedState, page: PageBytes, keys: Sequence[VerifierKey]) -> VerifiedPage:
    """The page, proved to continue `state`. Nothing is changed by a page that fails.

    (1) within the limits; both heads signed by a feed key of the sender, for this origin line and epoch, and the newest
        one dated by it
    (2) no rollback: the newest head is no smaller than the largest seen, the page ends no earlier than the cursor; and
        no two signed heads have one size and two roots
    (3) each item has the next sequence number, else REORDERED, REPEATED or GAP; an entry that is not well formed keeps
        its place and is handed on as bad (I10)
    (4) the root, by extending our own right edge, is the signed one, and the history passes through the newest head
        that was shown before
    (5) an eraser that arrives names every item that says it was erased by it
    """
    if len(page.items) > MAX_PAGE_ITEMS:  # (1)
        raise TooLargeError(f"page: over {MAX_PAGE_ITEMS} items")
    head = _open(page.checkpoint, state.origin, keys)
    latest = _open(page.latest, state.origin, keys)
    _any_cosignature(page.latest, keys)
    newest = _own_copy(state.newest)
    if latest.size < newest.size:  # (2)
        raise RollbackError(f"{state.origin}: newest head {latest.size}, but {newest.size} was signed before")
    if head.size < state.cursor:
        raise RollbackError(f"{state.origin}: the page ends at {head.size}, but {state.cursor} entries are held")
    _check_heads(state, (newest, _own_copy(state.head), head, latest))
    if head.size != state.cursor + len(page.items) or latest.size < head.size:
        raise BadPageError(f"{state.origin}: the heads do not fit the number of items")
    read = _read(state, page)  # (3)
    edge = state.edge.extend([entry.leaf_hash for entry in read])
    if edge.root() != head.root:  # (4)
        raise BadPageError(f"{state.origin}: the signed root at {head.size} does not follow from the items")
    _check_passed(state, read, newest)
    pending = _settle(state, page, read)  # (5)
    newest_note = page.latest if latest.size > newest.size or not state.newest else state.newest
    after = replace(state, edge=edge, head=page.checkpoint, newest=newest_note, pending=pending)
    return VerifiedPage(read, after, latest)


def check_fresh(latest: bytes, keys: Sequence[VerifierKey], now: datetime, max_age_s: float) -> None:
    """Refuses a newest head whose own timestamp is older than `max_age_s` seconds or ahead of us. Raises StaleError."""
    age = now.timestamp() - _any_cosignature(latest, keys)
    if age > max_age_s:
        raise StaleError(f"the newest head was signed {age:.0f} s ago, over the limit of {max_age_s:.0f} s")
    if age < -MAX_CLOCK_SKEW_S:
        raise StaleError("the newest head is dated in our future: one of the clocks is wrong")


def judge_fork(state: FeedState, answer: bytes, keys: Sequence[VerifierKey], *, retried: bool) -> None:
    """What a BAD_PAGE means, once the sender has signed its head at our size.

    Another root at the same size is FORK, self-proving with `state.head`. An equal root means: try once more; when
    that was done, SUSPECTED_FORK. Returns when a retry is due.
    """
    head = _open(answer, state.origin, keys)
    if head.size != state.cursor:
        raise SuspectedForkError(f"{state.origin}: asked for the head at {state.cursor}, got {head.size}")
    if head.root != state.edge.root():
        raise ForkError(f"{state.origin}: two signed roots at size {head.size}")
    if retried:
        raise SuspectedForkError(f"{state.origin}: the root at {head.size} is shared, yet no page follows from it")


def check_receipt(note: bytes, origin: str, log_keys: Sequence[VerifierKey], keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint that the receiver cosigned. The caller compares its root with its own at that size.

    (1) our own signature on the checkpoint, by any key that we have had, so that it is a head of this feed; (2) the
    receiver's cosignature. Raises SignatureError, WrongFeedError or MalformedError.
    """
    checkpoint = _open(note, origin, log_keys)  # (1)
    _any_cosignature(note, keys)  # (2)
    return checkpoint


def cosigned_head(note: bytes, origin: str, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The head that one of `keys` cosigned, for its own holder: the log's signature is not looked at.

    Raises SignatureError, WrongFeedError or MalformedError.
    """
    _any_cosignature(note, keys)
    checkpoint = Checkpoint.of(note)
    if checkpoint.origin != origin:
        raise WrongFeedError(f"{origin}: a receipt for another feed")
    return checkpoint


def signed_head(note: bytes, origin: str, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The head in `note`, signed by one of `keys`. Raises SignatureError, WrongFeedError or MalformedError."""
    return _open(note, origin, keys)


def check_final(final: bytes, origin: str, newest: bytes) -> None:
    """Refuses the final head that a new epoch names, if it contradicts the newest head that was shown of the old one.

    Raises RollbackError when it is smaller, ForkError when it has another root at the same size, WrongFeedError when it
    is that of another feed.
    """
    shown, last = _own_copy(newest), _own_copy(final)
    if last.origin not in (origin, _NO_ORIGIN):
        raise WrongFeedError(f"{origin}: the new epoch names the final head of another feed")
    if last.size < shown.size:
        raise RollbackError(
            f"{origin}: the new epoch says that it ended at {last.size}; {shown.size} was signed before"
        )
    if last.size == shown.size and last.root != shown.root:
        raise ForkError(f"{origin}: two signed roots at size {last.size}")


def _check_heads(state: FeedState, heads: tuple[Checkpoint, ...]) -> None:
    """Refuses signed heads that contradict each other."""
    roots: dict[int, bytes] = {}
    for head in heads:
        if roots.setdefault(head.size, head.root) != head.root:
            raise ForkError(f"{state.origin}: two signed roots at size {head.size}")


def _check_passed(state: FeedState, read: tuple[PageEntry, ...], newest: Checkpoint) -> None:
    """Refuses a history that does not pass through the newest head that was shown before."""
    passed = newest.size - state.cursor
    if 0 < passed <= len(read) and state.edge.extend([e.leaf_hash for e in read[:passed]]).root() != newest.root:
        raise SuspectedForkError(f"{state.origin}: the pages do not lead through the head shown at {newest.size}")


def _own_copy(note: bytes) -> Checkpoint:
    """A checkpoint that was verified when it was stored; the empty tree before the first."""
    body = note.partition(b"\n\n")[0] + b"\n"
    return Checkpoint.parse_body(body) if note else Checkpoint(_NO_ORIGIN, 0, merkle.EMPTY.root())


def _open(note: bytes, origin: str, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint, signed by one of the keys that are valid now (two during a rotation)."""
    if len(note) > MAX_NOTE_BYTES:
        raise TooLargeError(f"checkpoint: over {MAX_NOTE_BYTES} bytes")
    *others, last = keys
    for key in others:
        try:
            return open_checkpoint(note, origin, key)
        except SignatureError:
            continue
    return open_checkpoint(note, origin, last)


def _any_cosignature(note: bytes, keys: Sequence[VerifierKey]) -> int:
    *others, last = keys
    for key in others:
        try:
            return open_cosignature(note, key)
        except SignatureError:
            continue
    return open_cosignature(note, last)


def _read(state: FeedState, page: PageBytes) -> tuple[PageEntry, ...]:
    read, disclosures = [], 0
    for number, item in enumerate(page.items):
        entry = _place(item, state, number, len(page.items))
        read.append(entry)
        if entry.envelope is not None and isinstance(entry.envelope.body, Delivery):
            disclosures += len(entry.envelope.body.presentation.disclosures)
        if disclosures > MAX_PAGE_DISCLOSURES:
            raise TooLargeError(f"page: over {MAX_PAGE_DISCLOSURES} disclosures")
    return tuple(read)


def _place(item: bytes | ErasedItem, state: FeedState, number: int, count: int) -> PageEntry:
    expected = state.cursor + number
    if isinstance(item, ErasedItem):
        _check_seq(item.seq, expected, state.cursor, count)
        return PageEntry(expected, item.leaf_hash, None, None, None)
    leaf_hash = merkle.leaf_hash(item)
    try:
        envelope = entries.read(item)
    except RemoteError as e:
        e.__cause__ = e.__context__ = None  # frames keep what was read, for as long as the page
        return PageEntry(expected, leaf_hash, item, None, e.with_traceback(None))
    if envelope.feed != state.origin:
        raise WrongFeedError(f"{state.origin}: the entry at {expected} belongs to another feed")
    _check_seq(envelope.seq, expected, state.cursor, count)
    return PageEntry(expected, leaf_hash, item, envelope, None)


def _check_seq(seq: int, expected: int, cursor: int, count: int) -> None:
    if seq == expected:
        return
    if seq < cursor:
        raise RepeatedError(f"entry {seq} where {expected} should stand: it is already held")
    if seq < cursor + count:
        raise ReorderedError(f"entry {seq} where {expected} should stand")
    raise GapError(f"entry {seq} where {expected} should stand")


def _settle(state: FeedState, page: PageBytes, read: tuple[PageEntry, ...]) -> tuple[ErasedItem, ...]:
    """The hash-only items still waiting for their eraser after this page."""
    pending = [*state.pending, *(item for item in page.items if isinstance(item, ErasedItem))]
    arrived = {entry.seq: entry.envelope.body if entry.envelope else None for entry in read}
    still = []
    for item in pending:
        if item.erased_by not in arrived:
            still.append(item)
            continue
        body = arrived[item.erased_by]
        elsewhere = isinstance(body, Withdrawal) and body.feed  # it takes back entries of an earlier epoch
        if not isinstance(body, (Withdrawal, RecallOrder, Purge)) or elsewhere or item.seq not in body.seqs:
            raise ErasureError(f"entry {item.seq} is said to be erased by {item.erased_by}, which does not name it")
    if len(still) > MAX_PENDING_ERASURES:
        raise TooLargeError(f"{state.origin}: over {MAX_PENDING_ERASURES} items wait for the entry that erased them")
    return tuple(still)
