"""A feed signs nothing until its receiver has shown that nothing of it is lost, whatever became of either side."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation import merkle
from federation.checkpoint import Checkpoint, sign
from federation.entries import AgreementOffer
from federation.errors import EpochError, HeldError, MalformedError, SignatureError, UnconfirmedError, UnreachableError
from federation.feed import Ask
from federation.model import NodeId, Role
from federation.recall import Reason
from node.desk import inbox
from node.desk.inbox import Disposition
from node.exchange import serving, sync
from node.exchange.epochs import Standing
from node.home.context import Node
from node.peering import confirm, feeds
from node.records.alarms import Alarm
from node.sharing import recalls, releases
from node.store.database import read, write
from node.store.tables import alarms, in_feeds
from tests.chains import NAME, give, join, make_chain, pass_on, send
from tests.copies import Recorder, accept_epoch, clone, copy_home, open_epoch, put_back, roll_back, save
from tests.nodes import (
    DE,
    FR,
    IN,
    World,
    agree,
    append_by_hand,
    arrived,
    document,
    held_by_sender,
    import_document,
    make_world,
    release,
    reopen,
)

pytestmark = pytest.mark.invariant("I16")
ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    release(made, "A", "B")
    made.sync_all()
    yield made
    made.close()


def ask_of(world: World) -> Ask:
    """What DE would ask now."""
    held = sync.load_state(world[DE], FR)
    restored = held.standing is Standing.RESTORED
    return Ask(held.state.origin, held.state.cursor, b"", held.state.newest, restored)


def pull(node: Node, world: World, ask: Ask | None = None) -> serving.Page:
    return serving.pull(node, world[DE].card, ask or ask_of(world))


def release_at(node: Node, *names: str) -> None:
    for name in names:
        releases.release(node, import_document(node, document(name)))


def raised(node: Node) -> list[tuple[object, ...]]:
    with read(node.engine) as tx:
        found = tx.execute(select(alarms).where(alarms.c.kind == Alarm.RESTORED).order_by(alarms.c.id)).all()
    return [(row.subject, row.detail, row._mapping["count"]) for row in found]


def out_row(node: Node, peer: NodeId = DE) -> tuple[object, ...]:
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, peer)
    return feed.shown_to, feed.shown, feed.refused_at


# A start


def test_after_a_start_nothing_is_signed_before_the_receiver_has_pulled(world: World) -> None:
    fr = reopen(world, FR)
    with pytest.raises(UnconfirmedError, match="has not pulled since"):
        serving.checkpoint_at(fr, world[DE].card, ORIGIN, 1)
    with pytest.raises(UnconfirmedError, match="has not pulled since"):
        serving.prove(fr, world[DE].card, ORIGIN, leaf=0, from_size=None, size=1)
    world.sync(DE, FR)
    assert serving.checkpoint_at(fr, world[DE].card, ORIGIN, 1)


def test_outside_of_a_page_nothing_is_signed_that_the_receiver_has_not_shown(world: World) -> None:
    release(world, "C")
    fr, size = world[FR], sync.load_state(world[DE], FR).state.cursor
    assert serving.checkpoint_at(fr, world[DE].card, ORIGIN, size)
    with pytest.raises(UnconfirmedError, match=f"{size + 1} entries"):
        serving.checkpoint_at(fr, world[DE].card, ORIGIN, size + 1)
    with pytest.raises(UnconfirmedError, match=f"{size + 1} entries"):
        serving.prove(fr, world[DE].card, ORIGIN, leaf=size, from_size=None, size=size + 1)
    world.sync(DE, FR)
    assert serving.checkpoint_at(fr, world[DE].card, ORIGIN, size + 1)


@pytest.mark.parametrize("shown", [b"", "old"])
def test_a_cursor_needs_the_head_that_covers_it(world: World, shown: bytes | str) -> None:
    ask = ask_of(world)
    head = b"" if shown == b"" else serving.checkpoint_at(world[FR], world[DE].card, ORIGIN, ask.cursor - 1)
    before = out_row(world[FR])
    with pytest.raises(MalformedError, match="cursor"):
        pull(world[FR], world, replace(ask, newest=head))
    assert out_row(world[FR]) == before


def test_a_head_that_none_of_our_keys_signed_proves_nothing_and_is_told_once(world: World) -> None:
    de, ask = world[DE], ask_of(world)
    signer = de.keys.signer(Role.FEED, de.card, de.clock())
    forged = sign(Checkpoint(ORIGIN, 99, merkle.leaf_hash(b"x")), ORIGIN, signer.sign, signer.public)
    before = out_row(world[FR])
    for _ in range(3):
        with pytest.raises(SignatureError):
            pull(world[FR], world, replace(ask, newest=forged))
    assert out_row(world[FR]) == before
    assert [(subject, count) for subject, _, count in raised(world[FR])] == [(DE, 1)]
    world.sync(DE, FR)


# A sender that was put back


def test_a_sender_that_was_put_back_signs_nothing_for_whoever_holds_more(world: World, tmp_path: Path) -> None:
    saved = save(world[FR], tmp_path / "backup.tar")
    release(world, "C")
    world.sync(DE, FR)
    put_back(world, FR, saved, lost=True)
    release(world, "D", "E")  # longer than what was lost
    world.sync(FR, DE)
    for _ in range(2):
        with pytest.raises(UnconfirmedError, match=r"apostille peer epoch open cert\.de\.example"):
            world.sync(DE, FR)
    with pytest.raises(UnconfirmedError):
        serving.checkpoint_at(world[FR], world[DE].card, ORIGIN, 1)
    fr = reopen(world, FR)
    with pytest.raises(UnconfirmedError):  # nor after another start, whatever it is shown then
        pull(fr, world, Ask(ORIGIN, 0))
    assert arrived(world) == ["A", "B", "C"]
    assert sum(subject == DE for subject, _, _ in raised(fr)) == 1


def test_a_snapshot_that_was_put_back_without_a_word_is_found_out_as_well(world: World, tmp_path: Path) -> None:
    saved = copy_home(world[FR], tmp_path / "snapshot")
    release(world, "C")
    world.sync(DE, FR)
    fr = roll_back(world, FR, saved)
    release_at(fr, "X")
    with pytest.raises(UnconfirmedError, match="comes from a backup"):
        world.sync(DE, FR)


def test_a_backup_that_lacks_nothing_signs_on_as_soon_as_the_receiver_was_heard(world: World, tmp_path: Path) -> None:
    saved = save(world[FR], tmp_path / "backup.tar")
    put_back(world, FR, saved, lost=True)
    release(world, "C")
    with pytest.raises(UnconfirmedError, match=r"not heard yet: cert\.de\.example"):
        world.sync(DE, FR)
    world.sync(FR, DE)
    world.sync(DE, FR)
    assert arrived(world) == ["A", "B", "C"]


# A receiver that was put back


def test_a_receiver_that_was_put_back_takes_everything_again_from_a_sender_that_kept_running(
    world: World, tmp_path: Path
) -> None:
    saved = save(world[DE], tmp_path / "backup.tar")
    release(world, "C")
    world.sync(DE, FR)
    put_back(world, DE, saved, lost=True)
    assert arrived(world) == ["A", "B"]
    world.sync(DE, FR)
    assert arrived(world) == ["A", "B", "C"]
    assert ask_of(world).restored is False


def test_two_that_have_forgotten_prove_nothing_to_each_other(world: World, tmp_path: Path) -> None:
    saved = save(world[DE], tmp_path / "backup.tar")
    release(world, "C")
    world.sync(DE, FR)
    put_back(world, DE, saved, lost=True)
    fr = reopen(world, FR)  # it may come from a backup as well: a start is all that it knows of itself
    with pytest.raises(UnconfirmedError, match="neither can show"):
        world.sync(DE, FR)
    assert out_row(fr)[2] == ask_of(world).cursor
    assert ask_of(world).restored is True


def test_a_receiver_that_was_put_back_gives_no_receipt_below_one_that_was_lost_on_its_way(
    world: World, tmp_path: Path
) -> None:
    saved = save(world[DE], tmp_path / "backup.tar")
    release(world, "C", "D", "E")
    cut = world.link(DE, FR)
    given: list[bytes] = []
    real = serving.pull

    def lose_the_receipt(node: Node, caller: object, ask: Ask, max_items: int = 0) -> serving.Page:
        if ask.receipt:
            given.append(ask.receipt)
            raise UnreachableError("the call was lost")
        return real(node, caller, ask, max_items)  # type: ignore[arg-type]  # passed on as it came

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(serving, "pull", lose_the_receipt)
        with pytest.raises(UnreachableError):
            sync.sync(world[DE], FR, cut)
    assert Checkpoint.of(given[0]).size > held_by_sender(world)
    put_back(world, DE, saved, lost=True)
    again = world.link(DE, FR)
    again.page = 1
    sync.sync(world[DE], FR, again)
    assert [Checkpoint.of(note).size for note in again.receipts if note] == [Checkpoint.of(given[0]).size]


# Copies


@pytest.mark.parametrize("seed", range(6))
def test_of_two_copies_only_the_one_signs_whose_entries_the_receiver_has(
    world: World, tmp_path: Path, seed: int
) -> None:
    """Both append and are asked in any order; what one has signed, the other never contradicts."""
    chance, recorder = random.Random(seed), Recorder()  # noqa: S311 - which copy is asked next
    copies = [world[FR], clone(world, FR, tmp_path / "copy")]
    refused = 0
    names = (f"N-{number}" for number in itertools.count())
    for _ in range(12):
        release_at(copies[chance.randrange(2)], next(names))
        try:
            sync.sync(world[DE], FR, recorder.link(copies[chance.randrange(2)], world[DE], page=chance.choice((0, 1))))
        except UnconfirmedError:
            refused += 1
    copies[1].engine.dispose()
    assert refused
    assert recorder.signed_twice == []
    assert recorder.receipts_that_fell == []


def test_a_copy_signs_no_head_of_its_own_between_two_pages_either(world: World, tmp_path: Path) -> None:
    twin = clone(world, FR, tmp_path / "copy")
    pull(twin, world)  # it is confirmed at the size that both share
    release(world, "C")
    release_at(twin, "X")
    world.sync(DE, FR)
    size = sync.load_state(world[DE], FR).state.cursor
    with pytest.raises(UnconfirmedError):
        serving.checkpoint_at(twin, world[DE].card, ORIGIN, size)
    with pytest.raises(UnconfirmedError):
        sync.sync(world[DE], FR, Recorder().link(twin, world[DE]))
    twin.engine.dispose()
    world.sync(DE, FR)


# Epochs that were lost


def test_a_sender_that_lost_a_whole_epoch_opens_one_after_it(world: World, tmp_path: Path) -> None:
    saved = save(world[FR], tmp_path / "backup.tar")
    for name in ("C", "D"):  # loses C, opens an epoch, and is put back to before that
        release(world, name)
        world.sync(DE, FR)
        put_back(world, FR, saved, lost=True)
        world.sync(FR, DE)
        with pytest.raises(UnconfirmedError):
            world.sync(DE, FR)
        if name == "C":
            open_epoch(world[FR], DE)
            with pytest.raises(EpochError) as second:
                world.sync(DE, FR)
            accept_epoch(world[DE], FR)
            world.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError) as told:
        world.sync(DE, FR)
    assert told.value.epoch > second.value.epoch
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    release(world, "E")
    world.sync(DE, FR)
    assert set(arrived(world)) == {"A", "B", "C", "D", "E"}


def test_a_receiver_that_falls_back_to_an_ended_epoch_gets_all_that_it_lost(world: World, tmp_path: Path) -> None:
    early = save(world[DE], tmp_path / "early.tar")
    release(world, "C")
    world.sync(DE, FR)
    saved = save(world[FR], tmp_path / "backup.tar")
    release(world, "D")
    world.sync(DE, FR)
    put_back(world, FR, saved, lost=True)
    renew(world)
    release(world, "E")
    world.sync(DE, FR)
    world.sync(FR, DE)
    put_back(world, DE, early, lost=True)  # it had acknowledged C, and knows nothing of it or of the epoch after that
    with pytest.raises(UnconfirmedError, match="it has lost what it held"):
        world.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError):
        world.sync(DE, FR)
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    assert {"A", "B", "C", "E"} <= set(arrived(world))


def unheard_by(node: Node) -> frozenset[NodeId]:
    with read(node.engine) as tx:
        return confirm.unheard(tx)


def renew(world: World) -> None:
    """FR opens a new epoch for DE, which accepts it and takes it in."""
    world.sync(FR, DE)
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError):
        world.sync(DE, FR)
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)


# The wait after a restore


def test_nothing_is_sent_before_every_peer_was_heard_or_has_had_its_time(tmp_path: Path) -> None:
    world = make_world(tmp_path, FR, DE, IN)
    agree(world)
    saved = save(world[FR], tmp_path / "backup.tar")
    put_back(world, FR, saved, lost=True)
    release(world, "A")
    world.sync(FR, DE)
    for _ in range(2):
        with pytest.raises(UnconfirmedError, match=r"not heard yet: cert\.in\.example"):
            world.sync(DE, FR)
    with pytest.raises(UnconfirmedError, match="not heard yet"):
        serving.checkpoint_at(world[FR], world[DE].card, ORIGIN, 1)
    world.clock.move(minutes=14)
    fr = reopen(world, FR)  # a start does not begin the wait anew
    with pytest.raises(UnconfirmedError, match="not heard yet"):
        world.sync(DE, FR)
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    assert "A" in arrived(world)
    assert unheard_by(fr) == {IN}
    world.close()


@pytest.mark.parametrize("first", [(FR, IN), (IN, FR)])
def test_a_peer_is_heard_when_it_has_asked_and_was_asked(tmp_path: Path, first: tuple[NodeId, NodeId]) -> None:
    world = make_world(tmp_path, FR, DE, IN)
    agree(world)
    saved = save(world[FR], tmp_path / "backup.tar")
    put_back(world, FR, saved, lost=True)
    world.sync(FR, DE)
    for receiver, sender in (first, first[::-1]):
        with pytest.raises(UnconfirmedError, match=r"not heard yet: cert\.in\.example"):
            world.sync(DE, FR)
        try:
            world.sync(receiver, sender)
        except UnconfirmedError:
            assert (receiver, sender) == (IN, FR)
    world.sync(DE, FR)
    world.close()


def test_a_peer_is_heard_once_all_that_it_had_was_taken_in(world: World, tmp_path: Path) -> None:
    """What it has recalled may stand on the last of many pages."""
    saved = save(world[FR], tmp_path / "backup.tar")
    for _ in range(3):
        append_by_hand(world[DE], FR, AgreementOffer(b"x"))
    put_back(world, FR, saved, lost=True)
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)
    with pytest.raises(UnreachableError):
        sync.sync(world[FR], DE, Recorder().link(world[DE], world[FR], page=1, pages=2))
    with pytest.raises(UnconfirmedError, match="not heard yet"):
        world.sync(DE, FR)
    world.sync(FR, DE)
    world.sync(DE, FR)


def test_a_feed_that_is_frozen_is_not_waited_for(world: World, tmp_path: Path) -> None:
    with write(world[FR].engine) as tx:
        tx.execute(update(in_feeds).values(frozen="FORK"))
    saved = save(world[FR], tmp_path / "backup.tar")
    put_back(world, FR, saved, lost=True)
    world.sync(DE, FR)


def test_what_came_from_a_peer_that_was_not_heard_is_taken_back_in_place_of_being_passed_on(tmp_path: Path) -> None:
    """Its origin may have recalled it since the backup."""
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    join(chain, DE, IN)
    item = send(chain)
    give(chain)
    assert pass_on(chain, item).seq is not None
    saved = save(chain[DE], tmp_path / "backup.tar")
    put_back(chain, DE, saved, lost=True)
    chain.sync(DE, IN)
    with pytest.raises(UnconfirmedError, match=r"not heard yet: cert\.fr\.example"):
        chain.sync(IN, DE)
    with pytest.raises(HeldError, match="not been heard since a restore"):
        pass_on(chain, item)
    chain.clock.move(minutes=15)
    assert Disposition.ERASED in chain.sync(IN, DE).counts
    assert inbox.items(chain[IN]) == ()
    chain.sync(DE, FR)
    pass_on(chain, item)
    chain.sync(IN, DE)
    assert [found.name for found in inbox.items(chain[IN])] == [NAME]
    chain.close()


def test_what_was_recalled_since_the_backup_is_gone_before_anything_is_sent(tmp_path: Path) -> None:
    """The hub has forgotten the recall of what it passes on; it hears of it again before it serves."""
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    join(chain, DE, IN)
    item = send(chain)
    give(chain)
    assert pass_on(chain, item).seq is not None
    saved = save(chain[DE], tmp_path / "backup.tar")
    recalls.give(chain[FR], NAME, Reason.ERROR)
    chain.sync(DE, FR)
    assert inbox.items(chain[DE]) == ()
    put_back(chain, DE, saved, lost=True)
    assert [found.name for found in inbox.items(chain[DE])] == [NAME]
    chain.sync(DE, FR)
    chain.sync(DE, IN)
    with pytest.raises(UnconfirmedError, match=r"not heard yet: cert\.fr\.example"):
        chain.sync(IN, DE)
    chain.sync(FR, DE)
    assert Disposition.ADMITTED not in chain.sync(IN, DE).counts
    assert inbox.items(chain[IN], every_state=True) == ()
    chain.close()


# Version 1, which shows its receipt and no more


def test_a_receipt_is_what_a_node_of_version_1_has_to_show(world: World, tmp_path: Path) -> None:
    saved = copy_home(world[FR], tmp_path / "snapshot")
    release(world, "C")
    world.sync(DE, FR)
    old = replace(ask_of(world), newest=b"", receipt=_receipt(world), protocol=1)
    caller = replace(world[DE].card, protocols=(1,))
    assert serving.pull(world[FR], caller, old).items == ()
    fr = roll_back(world, FR, saved)
    release_at(fr, "X", "Y")
    with pytest.raises(UnconfirmedError):
        serving.pull(fr, caller, old)
    with pytest.raises(UnconfirmedError):
        serving.pull(fr, caller, replace(old, receipt=b"", cursor=99))


def _receipt(world: World) -> bytes:
    with read(world[FR].engine) as tx:
        return feeds.out_feed(tx, DE).receipt
