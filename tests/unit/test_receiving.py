"""What becomes of received entries: bad ones, forbidden ones, revisions, withdrawals; and who may send at all."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from federation import entries, merkle
from federation.entries import Delivery, ErasedItem, Withdrawal
from federation.errors import (
    HeldError,
    NotFoundError,
    UnreachableError,
)
from federation.model import Onward, Presentation
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.exchange import sync
from node.peering import agreements, peers
from node.sharing import releases
from node.store.database import read
from node.store.tables import audit, in_entries, in_feeds
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    ForgedFeed,
    LyingLink,
    World,
    agree,
    append_by_hand,
    arrived,
    document,
    files_hold,
    held_by_sender,
    history,
    import_document,
    issued,
    make_world,
    payload_of,
    release,
    rows,
    signed_core,
    terms_for,
    terms_text,
)

ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    yield made
    made.close()


def same_root(world: World) -> bool:
    edge = sync.load_state(world[DE], FR).state.edge
    return edge.root() == merkle.root(
        [i.leaf_hash if isinstance(i, ErasedItem) else merkle.leaf_hash(i) for i in history(world[FR], DE)]
    )


# One bad entry among good ones (I10), and what may not be kept


def deliver(world: World, name: str, change: Callable[[Delivery], Delivery] = lambda body: body) -> None:
    """FR appends by hand what its own checks would never let out."""
    fr = world[FR]
    presentation = issued(fr, import_document(fr, document(name, title=f"CANARY {name}")))
    body = Delivery(presentation, terms_for(fr, DE, name, agreements.find(fr, AGREEMENT)))
    append_by_hand(fr, DE, change(body))


def _terms(**changed: Any) -> Callable[[Delivery], Delivery]:
    return lambda body: Delivery(body.presentation, replace(body.terms, **changed))


def _resigned(world: World, change: Callable[[dict[str, Any]], object]) -> Callable[[Delivery], Delivery]:
    def made(body: Delivery) -> Delivery:
        payload = payload_of(body.presentation.core)
        change(payload)
        core = signed_core(world[FR], payload)
        digest = hashlib.sha256(core).digest()
        return Delivery(Presentation(core, body.presentation.disclosures), replace(body.terms, core_digest=digest))

    return made


BAD: dict[str, tuple[str, Callable[[World], Callable[[Delivery], Delivery]]]] = {
    "terms for another node": ("BAD_TERMS", lambda _: _terms(recipient=FR)),
    "terms wider than the handling": ("BAD_TERMS", lambda _: _terms(onward=Onward.PEERS)),
    "terms for another core": ("BAD_TERMS", lambda _: _terms(core_digest=b"x" * 32)),
    "handling with more": ("BAD_HANDLING", lambda w: _resigned(w, lambda p: p["handling"].update(a=1))),
    "an unknown TLP": ("BAD_HANDLING", lambda w: _resigned(w, lambda p: p["handling"].update(tlp="WHITE"))),
    "an unknown origin": (
        "UNKNOWN_ORIGIN",
        lambda w: _resigned(w, lambda p: p.update(iss="cert.ke.example")),
    ),
    "another's name": ("UNKNOWN_KEY", lambda w: _resigned(w, lambda p: p.update(iss=DE, jti=f"{DE}/BAD/1"))),
    "a forged signature": (
        "BAD_SIGNATURE",
        lambda _: lambda b: replace(b, presentation=replace(b.presentation, core=b.presentation.core[:-4] + b"AAAA")),
    ),
    "a core that is none": ("MALFORMED", lambda _: lambda b: Delivery(Presentation(b"core", ()), b.terms)),
}


@pytest.mark.invariant("I6")
@pytest.mark.invariant("I10")
@pytest.mark.parametrize("name", sorted(BAD))
def test_one_bad_entry_is_quarantined_with_its_reason_and_the_others_arrive(world: World, name: str) -> None:
    code, change = BAD[name]
    deliver(world, "GOOD-1")
    deliver(world, "BAD", change(world))
    deliver(world, "GOOD-2")
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 2, Disposition.QUARANTINED: 1}
    assert arrived(world) == ["GOOD-1", "GOOD-2"]
    assert [(outcome, found) for _, outcome, found in rows(world)][-2] == ("quarantined", code)
    with read(world[DE].engine) as tx:
        assert tx.execute(select(audit.c.detail).where(audit.c.act == "entry.quarantined")).scalars().all() == [code]
    assert held_by_sender(world) == len(history(world[FR], DE))  # a receipt says durable, not accepted


@pytest.mark.invariant("I10")
def test_bytes_that_are_no_entry_keep_their_place(world: World) -> None:
    world.sync(DE, FR)
    release(world, "A")
    items = [*history(world[FR], DE), b"garbage"]
    good = history(world[FR], DE)[-1]
    assert isinstance(good, bytes)
    assert sync.sync(world[DE], FR, ForgedFeed(world[FR], DE, items)).counts == {
        Disposition.ADMITTED: 1,
        Disposition.QUARANTINED: 1,
    }
    assert rows(world)[-1][1:] == ("quarantined", "MALFORMED")


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I10")
def test_what_may_not_be_kept_is_nowhere_in_the_receivers_files(world: World) -> None:
    deliver(world, "FORBIDDEN", _terms(agreement_digest=b"x" * 32))
    deliver(world, "ALLOWED")
    assert world.sync(DE, FR).counts == {Disposition.REFUSED: 1, Disposition.ADMITTED: 1}
    assert arrived(world) == ["ALLOWED"]
    de = world[DE]
    assert files_hold(de, b"CANARY ALLOWED")  # sanity: the search finds what is there
    assert not files_hold(de, b"CANARY FORBIDDEN")
    de.engine.dispose()
    assert not files_hold(de, b"CANARY FORBIDDEN")
    with read(de.engine) as tx:
        row = tx.execute(select(in_entries).where(in_entries.c.outcome == "refused")).one()
    assert (row.data, row.code, len(row.leaf_hash)) == (None, "NOT_ADMITTED", 32)
    assert held_by_sender(world) == len(history(world[FR], DE))


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("part", ["expired", "another TLP", "less shared"])
def test_the_receiver_enforces_the_agreement_although_the_sender_does_not(world: World, part: str) -> None:
    clause = {
        "expired": None,
        "another TLP": "\n  - {id: all, tlp: [CLEAR], share: {identification: full, technical: full}}",
        "less shared": "\n  - {id: all, tlp: [GREEN], share: {identification: generalised}}",
    }[part]
    if clause is not None:
        (old,) = agreements.all_held(world[FR])
        text = terms_text(world, version=2, previous=f'"{old.agreement.digest.hex()}"', grants=clause)
        agree(world, text)
    deliver(world, "X")
    if clause is None:
        items = history(world[FR], DE)
        world.clock.move(days=201)
        assert sync.sync(world[DE], FR, ForgedFeed(world[FR], DE, items)).counts == {Disposition.REFUSED: 1}
    else:
        assert sync.sync(world[DE], FR, ForgedFeed(world[FR], DE, history(world[FR], DE))).counts == {
            Disposition.REFUSED: 1
        }
    assert inbox.items(world[DE], every_state=True) == ()


def test_an_agreement_and_what_it_allows_may_come_in_one_page(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    fr, de = world[FR], world[DE]
    held = agreements.propose(fr, terms_text(world), "a.yaml")
    world.sync(DE, FR)
    agreements.countersign(de, held.agreement.digest.hex())
    world.sync(FR, DE)
    release(world, "A")
    assert world.sync(DE, FR).counts[Disposition.ADMITTED] == 1
    world.close()


# Revisions and equivocation


def _revision(world: World, revision: int, iat_later: int = 0, name: str = "X") -> None:
    def change(payload: dict[str, Any]) -> None:
        payload["jti"] = f"{FR}/{name}/{revision}"
        payload["iat"] += iat_later

    deliver(world, name, _resigned(world, change))
    world.sync(DE, FR)


def states(world: World) -> list[tuple[int, InboxState]]:
    return [(i.revision, i.state) for i in sorted(inbox.items(world[DE], every_state=True), key=lambda i: i.seq)]


def test_a_later_revision_supersedes_and_an_earlier_one_does_not(world: World) -> None:
    for revision in (2, 3, 1):
        _revision(world, revision)
    assert states(world) == [(2, InboxState.SUPERSEDED), (3, InboxState.CURRENT), (1, InboxState.SUPERSEDED)]
    assert [i.revision for i in inbox.items(world[DE])] == [3]


@pytest.mark.invariant("I12")
def test_two_cores_under_one_revision_are_both_kept_and_neither_is_current(world: World) -> None:
    _revision(world, 1)
    assert states(world) == [(1, InboxState.CURRENT)]
    _revision(world, 1, iat_later=1)
    assert states(world) == [(1, InboxState.EQUIVOCATION)] * 2
    assert inbox.items(world[DE]) == ()
    with read(world[DE].engine) as tx:
        kept = tx.execute(
            select(func.count()).where(in_entries.c.outcome == "admitted", in_entries.c.data.is_not(None))
        )
        assert kept.scalar_one() == 2
        assert tx.execute(select(func.count()).where(audit.c.act == "inbox.equivocation")).scalar_one() == 1
    _revision(world, 1)  # the first core again: still disputed
    assert states(world) == [(1, InboxState.EQUIVOCATION)] * 3
    _revision(world, 2)
    assert [i.revision for i in inbox.items(world[DE])] == [2]


def test_the_same_core_delivered_again_is_one_advisory(world: World) -> None:
    deliver(world, "X")
    deliver(world, "X")
    world.sync(DE, FR)
    assert states(world) == [(1, InboxState.SUPERSEDED), (1, InboxState.CURRENT)]


# Withdrawal and retention at the receiver


def test_a_sender_takes_back_its_own_delivery_and_nothing_else(world: World) -> None:
    deliver(world, "X")
    deliver(world, "Y")
    world.sync(DE, FR)
    seq = next(item.seq for item in inbox.items(world[DE]) if item.name == "X")
    append_by_hand(world[FR], DE, Withdrawal((seq,), "no-longer-permitted"))
    assert world.sync(DE, FR).counts == {Disposition.CONTROL: 1}
    assert [item.name for item in inbox.items(world[DE])] == ["Y"]
    with pytest.raises(HeldError, match="withdrawn"):
        inbox.content(world[DE], "X")
    assert inbox.content(world[DE], "Y").item.name == "Y"
    assert (seq, "withdrawn", None) in rows(world)
    assert same_root(world)  # its leaf hash stays


@pytest.mark.invariant("I11")
def test_once_retention_is_over_nothing_shows_the_content(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agree(world, retention_days=10)
    release(world, "A")
    world.sync(DE, FR)
    assert inbox.content(world[DE], "A").csaf["document"]["title"] == "Title of A"
    (item,) = inbox.items(world[DE])
    assert item.retain_until is not None
    world.clock.now = item.retain_until
    assert inbox.items(world[DE]) == ()
    with pytest.raises(HeldError, match="retention"):
        inbox.content(world[DE], "A")
    world.close()


@pytest.mark.invariant("I12")
def test_content_is_read_again_from_what_was_stored(world: World) -> None:
    deliver(world, "X")
    world.sync(DE, FR)
    content = inbox.content(world[DE], "X")
    stored = history(world[FR], DE)[-1]
    assert isinstance(stored, bytes)
    body = entries.read(stored).body
    assert isinstance(body, Delivery)
    assert content.terms == body.terms
    assert content.handling["tlp"] == "GREEN"
    assert content.core_digest == hashlib.sha256(body.presentation.core).digest()
    assert content.compact.count("~") == len(body.presentation.disclosures) + 1 == content.disclosures + 1
    assert (content.item.peer, content.item.origin) == (FR, FR)


# Who is not a peer


def test_nothing_is_pulled_from_whom_we_do_not_trust(world: World) -> None:
    release(world, "A")
    peers.distrust(world[DE], FR)
    link = LyingLink(world.link(DE, FR))
    with pytest.raises(NotFoundError, match="distrusted"):
        sync.sync(world[DE], FR, link)
    assert link.pulls == 0
    with pytest.raises(NotFoundError):
        sync.load_state(world[DE], DE)


def test_a_problem_is_noted_with_its_code(world: World) -> None:
    with pytest.raises(UnreachableError):
        sync.sync(world[DE], FR, LyingLink(world.link(DE, FR), lost=1))
    with read(world[DE].engine) as tx:
        assert tx.execute(select(in_feeds.c.problem).where(in_feeds.c.peer == FR)).scalar_one() == "UNREACHABLE"


@pytest.mark.invariant("I12")
def test_what_is_disputed_is_not_used_and_its_proof_cannot_be_taken_back(world: World) -> None:
    fr, de = world[FR], world[DE]
    held = agreements.find(fr, AGREEMENT)
    presentation = issued(fr, import_document(fr, document("X")))
    for earlier in (0, 1):
        payload = payload_of(presentation.core)
        payload["iat"] -= earlier
        core = signed_core(fr, payload)
        terms = replace(terms_for(fr, DE, "X", held), core_digest=hashlib.sha256(core).digest())
        append_by_hand(fr, DE, Delivery(Presentation(core, presentation.disclosures), terms))
    world.sync(DE, FR)
    disputed = [item for item in inbox.items(de, every_state=True) if item.state is InboxState.EQUIVOCATION]
    assert len(disputed) == 2
    for reference in ("X", str(disputed[0].id)):
        with pytest.raises(HeldError, match="use neither"):
            inbox.content(de, reference)
    append_by_hand(fr, DE, Withdrawal(tuple(sorted(item.seq for item in disputed)), "no-longer-permitted"))
    world.sync(DE, FR)
    with read(de.engine) as tx:
        kept = tx.execute(select(in_entries.c.data).where(in_entries.c.seq.in_([i.seq for i in disputed]))).scalars()
        assert all(kept.all())


def test_a_superseded_revision_is_named_by_its_number_or_not_at_all(world: World) -> None:
    fr, de = world[FR], world[DE]
    releases.release(fr, import_document(fr, document("X")))
    world.sync(DE, FR)
    (item,) = inbox.items(de)
    append_by_hand(fr, DE, _again(world))
    world.sync(DE, FR)
    append_by_hand(fr, DE, Withdrawal((item.seq + 1,), "no-longer-permitted"))
    world.sync(DE, FR)
    with pytest.raises(HeldError, match="superseded"):
        inbox.content(de, "X")
    assert inbox.content(de, str(item.id)).item.name == "X"


def _again(world: World) -> Delivery:
    held = agreements.find(world[FR], AGREEMENT)
    return Delivery(issued(world[FR], "X"), terms_for(world[FR], DE, "X", held))


@pytest.mark.invariant("I10")
def test_who_has_no_agreement_cannot_plant_bytes_here(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    fr = world[FR]
    held = agree(world)
    presentation = issued(fr, import_document(fr, document("X", title="CANARY-PLANTED")))
    payload = payload_of(presentation.core)
    del payload["handling"]["tier"]
    core = signed_core(fr, payload)
    for agreement_digest in (b"\x07" * 32, held.agreement.digest):
        terms = replace(
            terms_for(fr, DE, "X", held),
            core_digest=hashlib.sha256(core).digest(),
            agreement_digest=agreement_digest,
        )
        append_by_hand(fr, DE, Delivery(Presentation(core, presentation.disclosures), terms))
        world.sync(DE, FR)
        assert rows(world)[-1][1:] == (Disposition.QUARANTINED, "BAD_HANDLING")
        kept = agreement_digest == held.agreement.digest
        assert files_hold(world[DE], b"CANARY-PLANTED") is kept
    world.close()
