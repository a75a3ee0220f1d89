"""The receiver's checks of a feed: every way in which a sender can rewrite what it said (I8), and what proves it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from federation import checkpoint, ed25519, feed, merkle
from federation.checkpoint import Checkpoint, VerifierKey, open_checkpoint, origin_line
from federation.entries import AgreementOffer, Body, Envelope, ErasedItem, Withdrawal, write
from federation.errors import (
    BadPageError,
    ErasureError,
    ForkError,
    GapError,
    MalformedError,
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
from federation.feed import FeedState, PageBytes, check_fresh, check_receipt, judge_fork, verify_page
from federation.limits import MAX_NOTE_BYTES, MAX_PAGE_ITEMS
from federation.model import NodeId

FR, DE = NodeId("cert.fr.example"), NodeId("cert.de.example")
ORIGIN = origin_line(FR, DE, 1)
SEED, OTHER_SEED, RECEIVER_SEED = b"s" * 32, b"o" * 32, b"r" * 32
KEYS = (VerifierKey(ORIGIN, ed25519.public_key(SEED)),)
RECEIVER_KEYS = (VerifierKey(DE, ed25519.public_key(RECEIVER_SEED)),)
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
Items = Sequence[bytes | ErasedItem]


def item(seq: int, body: Body | None = None, *, origin: str = ORIGIN) -> bytes:
    return write(Envelope(origin, seq, hashlib.sha256(b"%d" % seq).digest()[:16], body or AgreementOffer(b"x")))


def erased(seq: int, by: int) -> ErasedItem:
    return ErasedItem(seq, merkle.leaf_hash(item(seq)), by)


def root(items: Items) -> bytes:
    return merkle.root([i.leaf_hash if isinstance(i, ErasedItem) else merkle.leaf_hash(i) for i in items])


def head(items: Items, *, origin: str = ORIGIN, seed: bytes = SEED, size: int | None = None) -> bytes:
    made = Checkpoint(origin, len(items) if size is None else size, root(items))
    return checkpoint.sign(made, origin, lambda m: ed25519.sign(seed, m), ed25519.public_key(seed))


def dated(note: bytes, *, at: datetime = NOW, seed: bytes = SEED) -> bytes:
    signer = ed25519.public_key(seed)
    return checkpoint.cosign(note, ORIGIN, int(at.timestamp()), lambda m: ed25519.sign(seed, m), signer)


def page(history: Items, start: int, stop: int | None = None) -> PageBytes:
    """What an honest sender with this history shows of it."""
    stop = len(history) if stop is None else stop
    return PageBytes(tuple(history[start:stop]), head(history[:stop]), dated(head(history)))


HONEST: tuple[bytes, ...] = tuple(item(seq) for seq in range(8))


def held(count: int, history: Items = HONEST) -> FeedState:
    """The state of a receiver that holds `count` entries."""
    return verify_page(feed.empty(ORIGIN), page(history, 0, count), KEYS).state


@pytest.mark.invariant("I8")
def test_honest_pages_follow_from_one_another() -> None:
    state = feed.empty(ORIGIN)
    seqs: list[int] = []
    for start in (0, 3, 6):
        verified = verify_page(state, page(HONEST, start, min(start + 3, 8)), KEYS)
        state = verified.state
        seqs += [entry.seq for entry in verified.entries]
        assert verified.may_receipt
        assert verified.latest.size == open_checkpoint(state.newest, ORIGIN, KEYS[0]).size == 8
        assert all(entry.data == HONEST[entry.seq] for entry in verified.entries)  # I7: as received
    assert seqs == list(range(8))
    assert state.edge.root() == root(HONEST)
    empty = verify_page(state, page(HONEST, 8), KEYS)
    assert empty.entries == ()
    assert empty.state.cursor == 8


def _attack(items: Items, *, head_of: Items = HONEST, latest_of: Items = HONEST) -> Callable[[], PageBytes]:
    return lambda: PageBytes(tuple(items), head(head_of), dated(head(latest_of)))


OTHER = (*HONEST[:5], item(5, AgreementOffer(b"other")), *HONEST[6:])
ATTACKS: dict[str, tuple[type[RemoteError], Callable[[], PageBytes]]] = {
    # the receiver holds 3 of 8
    "an entry left out": (GapError, _attack((HONEST[3], HONEST[5]), head_of=HONEST[:5])),
    "an entry from far ahead": (GapError, _attack((HONEST[7],), head_of=HONEST[:4])),
    "an entry that is held": (RepeatedError, _attack((HONEST[2], HONEST[3]), head_of=HONEST[:5])),
    "an entry twice": (ReorderedError, _attack((HONEST[3], HONEST[3]), head_of=HONEST[:5])),
    "two entries exchanged": (ReorderedError, _attack((HONEST[4], HONEST[3]), head_of=HONEST[:5])),
    "an erased entry left out": (GapError, _attack((erased(6, 7),), head_of=HONEST[:4])),
    "an erased entry exchanged": (ReorderedError, _attack((erased(4, 7), HONEST[3]), head_of=HONEST[:5])),
    "an erased entry that is held": (RepeatedError, _attack((erased(1, 7),), head_of=HONEST[:4])),
    "a page that stops short of its head": (BadPageError, _attack(HONEST[3:6])),
    "a page that goes beyond its head": (BadPageError, _attack(HONEST[3:6], head_of=HONEST[:5])),
    "no entries under a larger head": (BadPageError, _attack(())),
    "another entry in the place of one": (BadPageError, _attack(OTHER[3:])),
    "bytes of an entry changed": (BadPageError, _attack((*HONEST[3:7], HONEST[7][:-1] + b"y"))),
    "garbage in the place of an entry": (BadPageError, _attack((*HONEST[3:7], b"garbage"))),
    "an erased entry with another hash": (BadPageError, _attack((*HONEST[3:7], ErasedItem(7, b"h" * 32, 9)))),
    "a newest head below the page's": (BadPageError, _attack(HONEST[3:8], head_of=HONEST, latest_of=HONEST[:4])),
    "a head below the cursor": (RollbackError, _attack((), head_of=HONEST[:2])),
    "an entry of another feed": (
        WrongFeedError,
        _attack((item(3, origin=origin_line(FR, NodeId("cert.in.example"), 1)),), head_of=HONEST[:4]),
    ),
    "an entry of another epoch": (
        WrongFeedError,
        _attack((item(3, origin=origin_line(FR, DE, 2)),), head_of=HONEST[:4]),
    ),
}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_page_that_does_not_follow_is_refused_by_its_name(name: str) -> None:
    error, attack = ATTACKS[name]
    state = verify_page(
        feed.empty(ORIGIN), PageBytes(HONEST[:3], head(HONEST[:3]), dated(head(HONEST[:3]))), KEYS
    ).state
    before = replace(state)
    assert verify_page(state, page(HONEST, 3), KEYS).state.cursor == 8  # sanity: the honest page is fine
    with pytest.raises(error) as caught:
        verify_page(state, attack(), KEYS)
    assert type(caught.value) is error
    assert state == before


@pytest.mark.invariant("I8")
def test_a_newest_head_below_one_that_was_shown_is_a_rollback() -> None:
    state = held(3)  # the newest head that came with it was 8
    assert open_checkpoint(state.newest, ORIGIN, KEYS[0]).size == 8
    shown = PageBytes(HONEST[3:6], head(HONEST[:6]), dated(head(HONEST[:7])))
    with pytest.raises(RollbackError, match="newest head 7, but 8 was signed before"):
        verify_page(state, shown, KEYS)


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("which", ["checkpoint", "latest"])
@pytest.mark.parametrize(
    ("note", "error"),
    [
        (head(HONEST, seed=OTHER_SEED), SignatureError),
        (dated(head(HONEST, seed=OTHER_SEED), seed=OTHER_SEED), SignatureError),
        (head(HONEST, origin=origin_line(FR, DE, 2)), WrongFeedError),
        (head(HONEST, origin=origin_line(DE, FR, 1)), WrongFeedError),
        (head(HONEST).replace(b"\n8\n", b"\n9\n"), SignatureError),
        (b"", MalformedError),
        (b"x" * (MAX_NOTE_BYTES + 1), TooLargeError),
    ],
)
def test_both_heads_are_signed_by_the_sender_for_this_feed(which: str, note: bytes, error: type[RemoteError]) -> None:
    honest = page(HONEST, 3)
    shown = PageBytes(
        honest.items,
        note if which == "checkpoint" else honest.checkpoint,
        note if which == "latest" else honest.latest,
    )
    with pytest.raises(error):
        verify_page(held(3), shown, KEYS)


def test_during_a_rotation_either_feed_key_counts() -> None:
    other = VerifierKey(ORIGIN, ed25519.public_key(OTHER_SEED))
    for keys in ((other, *KEYS), (*KEYS, other)):
        state = verify_page(feed.empty(ORIGIN), page(HONEST, 0), keys).state
        check_fresh(page(HONEST, 0).latest, keys, NOW, 60)
        assert state.cursor == 8


def test_a_page_has_a_limit_of_items() -> None:
    many = tuple(item(seq) for seq in range(MAX_PAGE_ITEMS + 1))
    with pytest.raises(TooLargeError):
        verify_page(feed.empty(ORIGIN), page(many, 0), KEYS)
    assert verify_page(feed.empty(ORIGIN), page(many, 0, MAX_PAGE_ITEMS), KEYS).state.cursor == MAX_PAGE_ITEMS


@pytest.mark.invariant("I10")
def test_an_entry_that_is_not_well_formed_keeps_its_place_and_the_feed_goes_on() -> None:
    history = (*HONEST[:3], b"garbage", *HONEST[4:])
    verified = verify_page(feed.empty(ORIGIN), page(history, 0), KEYS)
    bad = verified.entries[3]
    assert isinstance(bad.bad, MalformedError)
    assert (bad.seq, bad.data, bad.envelope) == (3, b"garbage", None)
    assert [entry.bad is None for entry in verified.entries].count(False) == 1


# Erasure


def _with_eraser(named: tuple[int, ...], by: int = 5) -> list[bytes | ErasedItem]:
    """A history in which the entry at `by` takes `named` back, and entry 2 is shown as erased by it."""
    history: list[bytes | ErasedItem] = list(HONEST)
    history[by] = item(by, Withdrawal(named, "r"))
    history[2] = erased(2, by)
    return history


@pytest.mark.invariant("I8")
def test_a_hash_only_item_counts_when_its_eraser_names_it() -> None:
    history = _with_eraser((1, 2))
    verified = verify_page(feed.empty(ORIGIN), page(history, 0), KEYS)
    assert verified.may_receipt
    assert (verified.entries[2].seq, verified.entries[2].data, verified.entries[2].envelope) == (2, None, None)
    assert verified.state.edge.root() == root((*HONEST[:5], history[5], *HONEST[6:]))


@pytest.mark.invariant("I8")
def test_no_receipt_covers_an_erased_item_before_its_eraser_is_held() -> None:
    history = _with_eraser((2,))
    first = verify_page(feed.empty(ORIGIN), page(history, 0, 4), KEYS)
    assert not first.may_receipt
    assert first.state.pending == (history[2],)
    between = verify_page(first.state, page(history, 4, 5), KEYS)
    assert not between.may_receipt
    assert verify_page(between.state, page(history, 5), KEYS).may_receipt


@pytest.mark.invariant("I8")
def test_an_eraser_that_never_comes_leaves_the_feed_without_a_receipt() -> None:
    history: Items = [*HONEST[:2], erased(2, 1 << 40), *HONEST[3:]]
    verified = verify_page(feed.empty(ORIGIN), page(history, 0), KEYS)
    assert not verified.may_receipt
    assert not verify_page(verified.state, page(history, 8), KEYS).may_receipt


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("split", [8, 4])
@pytest.mark.parametrize(
    "eraser",
    [
        item(5, Withdrawal((1,), "r")),  # names another entry
        item(5),  # takes nothing back
        b"garbage",
        erased(5, 6),  # is gone itself
    ],
)
def test_an_eraser_that_does_not_name_the_item_is_refused(eraser: bytes | ErasedItem, split: int) -> None:
    history = _with_eraser((2,))
    history[5] = eraser
    state = feed.empty(ORIGIN)
    if split < 8:
        state = verify_page(state, page(history, 0, split), KEYS).state
    with pytest.raises(ErasureError):
        verify_page(state, page(history, state.cursor), KEYS)


@pytest.mark.invariant("I8")
def test_one_item_that_waits_does_not_hide_another_that_lies() -> None:
    history: list[bytes | ErasedItem] = [erased(0, 1 << 40), erased(1, 3), *HONEST[2:3], item(3, Withdrawal((1,), "r"))]
    verified = verify_page(feed.empty(ORIGIN), page(history, 0), KEYS)
    assert verified.state.pending == (history[0],)  # sanity: the second is settled
    history[3] = item(3, Withdrawal((0,), "r"))
    with pytest.raises(ErasureError, match="entry 1 is said to be erased by 3"):
        verify_page(feed.empty(ORIGIN), page(history, 0), KEYS)


def test_only_so_many_items_wait_for_their_eraser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_PENDING_ERASURES", 3)
    waiting: Items = [erased(seq, 1 << 40) for seq in range(4)]
    held_back = verify_page(feed.empty(ORIGIN), page(waiting, 0, 3), KEYS).state
    assert len(held_back.pending) == 3
    with pytest.raises(TooLargeError, match="over 3 items wait"):
        verify_page(held_back, page(waiting, 3), KEYS)


# Forks


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("ahead", [1, 2])
def test_pages_lead_through_the_newest_head_that_was_shown(ahead: int) -> None:
    """The sender showed an honest head beyond what it delivered; now it delivers another history that passes by it."""
    shown = head(HONEST[: 5 + ahead])
    first = verify_page(feed.empty(ORIGIN), PageBytes(HONEST[:5], head(HONEST[:5]), dated(shown)), KEYS).state
    assert verify_page(first, page(HONEST, 5), KEYS).state.cursor == 8
    with pytest.raises(SuspectedForkError, match=f"do not lead through the head shown at {5 + ahead}"):
        verify_page(first, page(OTHER, 5), KEYS)


def test_of_two_newest_heads_of_one_size_the_first_is_kept() -> None:
    first = held(3)  # the same head dated anew says nothing more
    later = PageBytes(HONEST[3:5], head(HONEST[:5]), dated(head(HONEST), at=NOW + timedelta(hours=1)))
    assert later.latest != first.newest
    assert verify_page(first, later, KEYS).state.newest == first.newest
    grown = (*HONEST, item(8))
    assert verify_page(first, page(grown, 3), KEYS).state.newest == page(grown, 3).latest


@pytest.mark.invariant("I8")
def test_another_root_at_the_same_size_is_a_fork_and_both_signatures_prove_it() -> None:
    with pytest.raises(ForkError, match=f"size {len(OTHER)}"):  # two newest heads, though no item leads to either
        verify_page(held(6), page(OTHER, 6), KEYS)
    state = replace(held(6), newest=held(6).head)
    with pytest.raises(BadPageError):
        verify_page(state, page(OTHER, 6), KEYS)
    answer = head(OTHER[:6])
    with pytest.raises(ForkError, match="size 6"):
        judge_fork(state, answer, KEYS, retried=False)
    ours, theirs = (open_checkpoint(note, ORIGIN, KEYS[0]) for note in (state.head, answer))
    assert (ours.size, ours.origin) == (theirs.size, theirs.origin)
    assert ours.root != theirs.root


@pytest.mark.invariant("I8")
def test_an_equal_root_means_one_retry_and_then_a_suspected_fork() -> None:
    state = held(6)
    judge_fork(state, head(HONEST[:6]), KEYS, retried=False)
    with pytest.raises(SuspectedForkError):
        judge_fork(state, head(HONEST[:6]), KEYS, retried=True)


@pytest.mark.invariant("I8")
def test_an_answer_at_another_size_is_suspected_at_once() -> None:
    with pytest.raises(SuspectedForkError, match="asked for the head at 6, got 5"):
        judge_fork(held(6), head(HONEST[:5]), KEYS, retried=False)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(head(HONEST[:6], seed=OTHER_SEED), SignatureError), (b"", MalformedError), (b"x" * 20_000, TooLargeError)],
)
def test_an_answer_that_proves_nothing_freezes_nothing(answer: bytes, error: type[RemoteError]) -> None:
    with pytest.raises(error):
        judge_fork(held(6), answer, KEYS, retried=True)


# Freshness


def test_the_newest_head_is_no_older_than_allowed() -> None:
    check_fresh(dated(head(HONEST), at=NOW - timedelta(seconds=120)), KEYS, NOW, 120)
    with pytest.raises(StaleError, match="121 s"):
        check_fresh(dated(head(HONEST), at=NOW - timedelta(seconds=121)), KEYS, NOW, 120)
    check_fresh(dated(head(HONEST), at=NOW + timedelta(seconds=300)), KEYS, NOW, 120)
    with pytest.raises(StaleError, match="future"):
        check_fresh(dated(head(HONEST), at=NOW + timedelta(seconds=301)), KEYS, NOW, 120)


def test_a_newest_head_without_its_own_date_is_refused() -> None:
    with pytest.raises(SignatureError):
        check_fresh(head(HONEST), KEYS, NOW, 120)
    with pytest.raises(SignatureError):
        check_fresh(dated(head(HONEST), seed=OTHER_SEED), KEYS, NOW, 120)


# Receipts


def _receipt(note: bytes, seed: bytes = RECEIVER_SEED, name: str = DE) -> bytes:
    return checkpoint.cosign(
        note, name, int(NOW.timestamp()), lambda m: ed25519.sign(seed, m), ed25519.public_key(seed)
    )


def test_a_receipt_is_our_head_with_the_receivers_cosignature() -> None:
    seen = check_receipt(_receipt(head(HONEST)), ORIGIN, KEYS, RECEIVER_KEYS)
    assert (seen.size, seen.root) == (8, root(HONEST))


@pytest.mark.parametrize(
    ("note", "error"),
    [
        (_receipt(head(HONEST, seed=OTHER_SEED)), SignatureError),  # (1) not our head
        (_receipt(head(HONEST, origin=origin_line(FR, DE, 2))), WrongFeedError),  # (1) of another epoch
        (head(HONEST), SignatureError),  # (2) nobody cosigned
        (_receipt(head(HONEST), seed=OTHER_SEED), SignatureError),  # (2) another key
        (_receipt(head(HONEST), name=FR), SignatureError),  # (2) another name
        (dated(head(HONEST)), SignatureError),  # (2) our own cosignature is no receipt
        (b"x" * (MAX_NOTE_BYTES + 1), TooLargeError),
        (b"", MalformedError),
    ],
)
def test_what_is_no_receipt_of_this_feed_by_this_receiver_is_refused(note: bytes, error: type[RemoteError]) -> None:
    with pytest.raises(error):
        check_receipt(note, ORIGIN, KEYS, RECEIVER_KEYS)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_whoever_cosigned_needs_no_log_key_to_know_its_own_head(place: int) -> None:
    """Any of the receiver's keys, the oldest first or last; of this feed, and of no other."""
    strangers = [VerifierKey(DE, ed25519.public_key(bytes([n]) * 32)) for n in (1, 2)]
    keys = (*strangers[:place], *RECEIVER_KEYS, *strangers[place:])
    seen = feed.cosigned_head(_receipt(head(HONEST, seed=OTHER_SEED)), ORIGIN, keys)
    assert (seen.origin, seen.size, seen.root) == (ORIGIN, 8, root(HONEST))
    assert check_receipt(_receipt(head(HONEST)), ORIGIN, KEYS, keys).size == 8
    with pytest.raises(SignatureError):
        feed.cosigned_head(_receipt(head(HONEST)), ORIGIN, strangers)
    with pytest.raises(WrongFeedError):
        feed.cosigned_head(_receipt(head(HONEST, origin=origin_line(FR, DE, 2))), ORIGIN, keys)


def filled(note: bytes, size: int) -> bytes:
    """`note` with one more line, by a key that nobody asks for, that makes it `size` bytes long."""
    rest = size - len(note) - len("— x \n".encode())
    return note + f"— x{'x' * (rest % 4)} {'A' * (rest - rest % 4)}\n".encode()


def test_a_note_may_be_as_long_as_its_limit() -> None:
    longest = filled(head(HONEST), MAX_NOTE_BYTES)
    assert len(longest) == MAX_NOTE_BYTES
    assert feed.signed_head(longest, ORIGIN, KEYS).size == 8
    with pytest.raises(TooLargeError):
        feed.signed_head(filled(head(HONEST), MAX_NOTE_BYTES + 1), ORIGIN, KEYS)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_head_is_signed_by_any_key_that_counts(place: int) -> None:
    strangers = [VerifierKey(ORIGIN, ed25519.public_key(bytes([n]) * 32)) for n in (1, 2)]
    keys = (*strangers[:place], *KEYS, *strangers[place:])
    assert feed.signed_head(head(HONEST), ORIGIN, keys).size == 8
    with pytest.raises(SignatureError):
        feed.signed_head(head(HONEST), ORIGIN, strangers)
    with pytest.raises(WrongFeedError):
        feed.signed_head(head(HONEST, origin=origin_line(FR, DE, 2)), ORIGIN, keys)


# The final head that a new epoch names


@pytest.mark.invariant("I8")
def test_an_epoch_ends_at_the_newest_head_that_was_shown_or_after_it() -> None:
    for final in (head(HONEST[:5]), head(HONEST)):
        feed.check_final(final, ORIGIN, head(HONEST[:5]))
    for final in (head(HONEST), b""):  # nothing was shown before, and perhaps nothing ever signed
        feed.check_final(final, ORIGIN, b"")
    with pytest.raises(RollbackError, match="ended at 4; 5 was signed before"):
        feed.check_final(head(HONEST[:4]), ORIGIN, head(HONEST[:5]))
    with pytest.raises(RollbackError):
        feed.check_final(b"", ORIGIN, head(HONEST[:5]))
    with pytest.raises(ForkError, match="two signed roots at size 6"):
        feed.check_final(head(OTHER[:6]), ORIGIN, head(HONEST[:6]))
    with pytest.raises(WrongFeedError):
        feed.check_final(head(HONEST, origin=origin_line(FR, DE, 2)), ORIGIN, head(HONEST[:5]))
