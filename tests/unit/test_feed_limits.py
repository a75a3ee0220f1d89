"""Pages of a feed at the edges: as much as is allowed and one more, and what an earlier epoch has to do with it."""

from functools import partial

import pytest

from federation import checkpoint, ed25519, feed, merkle
from federation.checkpoint import Checkpoint, VerifierKey, origin_line
from federation.entries import AgreementOffer, Body, Delivery, Envelope, ErasedItem, Purge, Withdrawal, write
from federation.errors import ErasureError, TooLargeError
from federation.feed import PageBytes, VerifiedPage, verify_page
from federation.model import Attribution, NodeId, Onward, Presentation, Purpose, Terms

FR, DE = NodeId("cert.fr.example"), NodeId("cert.de.example")
EARLIER, ORIGIN = (origin_line(FR, DE, epoch) for epoch in (1, 2))
SEED = b"s" * 32
PUBLIC = ed25519.public_key(SEED)
KEYS = (VerifierKey(ORIGIN, PUBLIC),)


def item(seq: int, body: Body) -> bytes:
    return write(Envelope(ORIGIN, seq, bytes([seq]) * 16, body))


def read(*items: bytes | ErasedItem) -> VerifiedPage:
    """A whole feed as one page, signed by its sender."""
    leaves = [i.leaf_hash if isinstance(i, ErasedItem) else merkle.leaf_hash(i) for i in items]
    head = Checkpoint(ORIGIN, len(items), merkle.root(leaves))
    signer = partial(ed25519.sign, SEED)
    note = checkpoint.sign(head, ORIGIN, signer, PUBLIC)
    latest = checkpoint.cosign(note, ORIGIN, 1_795_000_000, signer, PUBLIC)
    return verify_page(feed.empty(ORIGIN), PageBytes(items, note, latest), KEYS)


def delivery(disclosures: int) -> Delivery:
    terms = Terms(
        core_digest=bytes(32),
        recipient=DE,
        agreement_digest=bytes(32),
        purposes=frozenset((Purpose.REMEDIATION,)),
        retain_until=None,
        storage=None,
        onward=Onward.NONE,
        attribution=Attribution.MAY,
    )
    return Delivery(Presentation(b"core", tuple(b"%d" % n for n in range(disclosures))), terms)


def test_all_disclosures_of_a_page_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_PAGE_DISCLOSURES", 4)
    page = read(item(0, delivery(3)), item(1, AgreementOffer(b"x")), item(2, delivery(1)))
    assert [entry.bad for entry in page.entries] == [None] * 3
    with pytest.raises(TooLargeError, match="over 4 disclosures"):
        read(item(0, delivery(3)), item(1, AgreementOffer(b"x")), item(2, delivery(2)))


@pytest.mark.invariant("I8")
def test_a_withdrawal_of_an_earlier_epoch_erases_nothing_of_this_one() -> None:
    gone = ErasedItem(0, merkle.leaf_hash(b"what it was"), 1)
    for eraser in (Withdrawal((0,), "r"), Purge((0,), "r")):
        assert read(gone, item(1, eraser)).may_receipt
    earlier = read(item(0, AgreementOffer(b"x")), item(1, Withdrawal((0,), "r", EARLIER)))
    assert earlier.entries[1].bad is None  # sanity: it is well formed, and says something about the earlier epoch
    with pytest.raises(ErasureError, match="which does not name it"):
        read(gone, item(1, Withdrawal((0,), "r", EARLIER)))
