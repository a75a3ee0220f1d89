"""Stories in which more happens, over an SQLite file and over PostgreSQL: each ends alike, word for word.

Nodes in a line, FR to DE to IN, each with a database of that kind. They are made once for each kind; every story has an
advisory of its own. At the end of each the account of every node agrees with what it sent, holds and was told.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from federation import entries
from federation.entries import NewEpoch
from federation.errors import AwaitsSecondError, ConflictError, EpochError, NotAllowedError, UnconfirmedError
from federation.model import Category, Role
from federation.recall import Reason
from federation.statement import Kind
from node import acts as registered
from node.audit import verify
from node.desk import inbox, work
from node.desk.inbox import InboxState
from node.desk.search import Query
from node.home.context import Node
from node.peering import cards, rotation
from node.peering.rotation import Change
from node.records import approvals, ledger
from node.records.approvals import State
from node.records.ledger import Act
from node.sharing import advisories, answers, recalls, statements
from node.sharing.answers import HolderState
from node.store import tables
from node.store.database import read
from tests.chains import Chain, acts, give, join, last_delivery, make_chain, pass_on, send
from tests.contract import stores
from tests.contract.stores import FILE, POSTGRESQL, place
from tests.copies import accept_epoch, open_epoch, put_back, save
from tests.nodes import DE, FR, IN, World, agree, arrived, document, history, import_document, make_world, release

KINDS = (FILE, POSTGRESQL)
EVERYWHERE = (FR, DE, IN)
WORDS = "The passphrase of the pump in Köln is kestrel-nine."


@pytest.fixture(scope="module", params=KINDS)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """FR, DE and IN in a line, with an agreement between neighbours."""
    databases = {name: place(request.param) for name in EVERYWHERE}
    made = make_chain(tmp_path_factory.mktemp(request.param), databases=databases)
    join(made, FR, DE)
    join(made, DE, IN)
    yield made
    made.close()


@pytest.fixture
def chain(line: Chain) -> Iterator[Chain]:
    yield line
    assert_every_account_agrees(line)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, databases={name: place(request.param) for name in (FR, DE)})
    agree(made)
    yield made
    assert_every_account_agrees(made)
    made.close()


def assert_every_account_agrees(world: World) -> None:
    for node in world.nodes.values():
        assert verify.verify(node).findings == ()


def find(node: Node, name: str) -> inbox.Item:
    (found,) = (item for item in inbox.items(node, every_state=True) if item.name == name)
    return found


def passed_on(chain: Chain, name: str, *withhold: str) -> None:
    """What FR released to DE, DE has passed on to IN under a grant."""
    item = send(chain, name, title=f"Title of {name}", notes=("What is known.", WORDS))
    give(chain, name)
    assert pass_on(chain, item, *withhold).seq is not None
    chain.sync(IN, DE)


@pytest.mark.invariant("I5")
def test_a_relay_passes_on_what_it_was_granted_and_withholds_more(chain: Chain) -> None:
    passed_on(chain, "RELAYED", "/csaf/document/notes/1")
    item = find(chain[IN], "RELAYED")
    assert (item.origin, item.peer, item.state) == (FR, DE, InboxState.CURRENT)
    texts = [note["text"] for note in inbox.content(chain[IN], str(item.id)).csaf["document"]["notes"]]
    assert texts == ["What is known."]
    held = inbox.content(chain[DE], str(find(chain[DE], "RELAYED").id)).csaf["document"]["notes"]
    assert [note["text"] for note in held] == ["What is known.", WORDS]
    assert last_delivery(chain, DE, IN).presentation.core == last_delivery(chain, FR, DE).presentation.core
    assert last_delivery(chain, DE, IN).grant
    chain.sync(DE, IN)
    (row,) = ledger.rows(chain[DE], IN, "RELAYED")
    assert (row.act, row.by, row.facts["origin"], row.receipt) == (Act.RELEASE, "alice", FR, True)


@pytest.mark.invariant("I15")
def test_a_recall_follows_over_the_relay_and_every_answer_comes_back(chain: Chain) -> None:
    passed_on(chain, "RECALLED")
    number = find(chain[IN], "RECALLED").id
    assert number in [item.id for item in inbox.items(chain[IN], Query(text="KÖLN is kestrel"))]
    recalls.give(chain[FR], "RECALLED", Reason.CONSENT)
    for receiver, sender in ((DE, FR), (IN, DE), (DE, IN), (FR, DE)):
        chain.sync(receiver, sender)
    (order,) = answers.status(chain[FR], "RECALLED")
    told = {holder.node: (holder.via, holder.state) for holder in order.holders}
    assert told == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.PURGED)}
    said = [kept.statement for kept in statements.all_kept(chain[FR]) if kept.statement.kind == Kind.PURGE]
    assert [(s.author, s.body["outcome"], s.body["passed_on"]) for s in said] == [
        (DE, "purged", [IN]),
        (IN, "purged", []),
    ]
    for name in (DE, IN):
        assert find(chain[name], "RECALLED").state is InboxState.RECALLED
        assert "RECALLED" not in [i.name for i in inbox.items(chain[name], Query(text="kestrel"), every_state=True)]
        with read(chain[name].engine) as tx:
            place = (tables.in_entries.c.feed == tables.inbox.c.feed) & (tables.in_entries.c.seq == tables.inbox.c.seq)
            data = select(tables.in_entries.c.data).join(tables.inbox, place).where(tables.inbox.c.name == "RECALLED")
            assert tx.execute(data).scalars().all() == [None]
    assert [row.act for row in ledger.rows(chain[DE], IN, "RECALLED", (Act.RECALL,))] == [Act.RECALL]


@pytest.mark.invariant("I12")
def test_a_question_reaches_the_origin_over_the_relay_and_the_answer_comes_back(chain: Chain) -> None:
    passed_on(chain, "ASKED")
    question = statements.say(chain[IN], find(chain[IN], "ASKED").id, Kind.QUESTION, "Ist Version 4 auch betroffen? \0")
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    (got,) = statements.all_kept(chain[FR], "ASKED")
    assert got.statement == question.statement
    assert (got.peer, got.by, got.concerns) == (DE, DE, (f"{FR}/ASKED",))
    statements.reply(chain[FR], got.number, "Nein.")
    chain.sync(DE, FR)
    chain.sync(IN, DE)
    asked, answered = statements.all_kept(chain[IN], f"{FR}/ASKED")
    assert (asked.number, answered.answers, answered.statement.body) == (
        question.number,
        asked.number,
        {"text": "Nein."},
    )
    assert [kept.statement.kind for kept in statements.all_kept(chain[DE], "ASKED")] == [Kind.QUESTION, Kind.ANSWER]


def test_what_came_in_is_found_and_worked_with(chain: Chain) -> None:
    chain.clock.move(minutes=1)
    before = chain.clock()
    send(chain, "WORK-1", title="Straße 100%", notes=("Königlich",), vulnerabilities=[{"cve": "CVE-2026-0001"}])
    chain.clock.move(minutes=1)
    send(chain, "WORK-2", notes=("nothing_at_all",))
    de = chain[DE]

    def found(**query: object) -> list[str]:
        return sorted(item.name for item in inbox.items(de, Query(since=before, **query)))  # type: ignore[arg-type]  # as named there

    assert found() == ["WORK-1", "WORK-2"]
    assert found(text="STRASSE") == found(text="königlich") == found(cve="cve-2026-0001") == ["WORK-1"]
    assert found(text="100%") == ["WORK-1"]
    assert found(text="g_at") == ["WORK-2"]
    assert found(text="%") == ["WORK-1"]
    assert found(until=before) == []
    one = str(find(de, "WORK-1").id)
    work.mark_read(replace(de, actor="bob"), one)
    work.mark_read(de, one)
    work.assign(de, one, "bob")
    work.annotate(de, one, "Unsere Worte \0 😀")
    done = work.action(de, one)
    assert (done.read_by, done.assigned_to, done.actioned_by) == ("bob", "bob", "alice")
    assert (done.read_at, done.actioned_at) == (chain.clock(), chain.clock())
    assert [note.text for note in work.annotations_of(de, done)] == ["Unsere Worte \ufffd 😀"]
    assert found(unread=True) == ["WORK-2"]
    assert found(assigned_to="bob") == ["WORK-1"]
    rows = acts(chain, DE, "inbox.read", "inbox.assign", "inbox.annotate", "inbox.actioned")
    assert [(act, by) for act, by, _, _ in rows] == [
        ("inbox.read", "bob"),
        ("inbox.assign", "alice"),
        ("inbox.annotate", "alice"),
        ("inbox.actioned", "alice"),
    ]


@pytest.mark.invariant("I13")
def test_what_takes_two_people_takes_two(chain: Chain) -> None:
    fr, note = chain[FR], "/csaf/document/notes/0"
    import_document(fr, document("LOWERED"), labels={note: "victim"})
    number = _noted(lambda: advisories.label(fr, "LOWERED", note, Category.PERSONAL, "there is no victim in it"))
    with pytest.raises(NotAllowedError):
        approvals.settle(fr, number, registered.registry(), approve=True)
    assert [request.number for request in approvals.pending(fr)] == [number]
    settled = approvals.settle(replace(fr, actor="bob"), number, registered.registry(), approve=True)
    assert (settled.state, settled.asked_by, settled.settled_by) == (State.DONE, "alice", "bob")
    _, own = advisories.own_advisory(fr, "LOWERED")
    (categories,) = (e.categories for e in own.elements if e.path == note)
    assert categories == {Category.IDENTIFICATION, Category.PERSONAL}
    void = _noted(lambda: advisories.label(fr, "LOWERED", note, Category.IDENTIFICATION, "nor a person"))
    advisories.label(fr, "LOWERED", "/csaf/document/title", Category.PERSONAL)
    with pytest.raises(ConflictError):
        approvals.settle(replace(fr, actor="bob"), void, registered.registry(), approve=True)
    assert approvals.find(fr, void).state is State.VOID


@pytest.mark.invariant("I5")
def test_after_a_rotation_the_new_keys_are_used_as_soon_as_the_peer_has_them(chain: Chain) -> None:
    fr = chain[FR]
    old = {key.role: key.kid for key in fr.card.keys}
    card = rotation.change(fr, Change(rotate=tuple(Role)))
    assert card.version == 2
    states = {(s.key.role, s.state) for s in rotation.key_states(fr) if s.key.kid not in old.values()}
    assert states == {(role, "next") for role in Role}
    chain.sync_all(2)
    assert cards.waiting(fr) == ()
    send(chain, "ROTATED")
    chain.sync(FR, DE)
    states = {(s.key.role, s.state) for s in rotation.key_states(fr) if s.key.kid not in old.values()}
    assert states == {(role, "current") for role in Role}
    (row,) = ledger.rows(fr, DE, "ROTATED")
    assert row.receipt
    _, own = advisories.own_advisory(fr, "ROTATED")
    assert own.core.split(b".")[0] != last_delivery(chain, DE, IN).presentation.core.split(b".")[0]


@pytest.mark.invariant("I16")
def test_a_feed_that_comes_from_a_backup_goes_on_in_a_new_epoch(world: World, tmp_path: Path) -> None:
    release(world, "KEPT")
    world.sync_all(2)
    restore = _backup(world, tmp_path / "backup.tar")
    release(world, "LOST")
    world.sync(DE, FR)
    restore()
    world.sync(FR, DE)
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError):
        world.sync(DE, FR)
    accept_epoch(world[DE], FR)
    release(world, "NEW")
    world.sync_all(2)
    assert sorted(arrived(world)) == ["KEPT", "LOST", "NEW"]
    bodies = [entries.read(data).body for data in history(world[FR], DE) if isinstance(data, bytes)]
    assert isinstance(bodies[0], NewEpoch)
    with read(world[FR].engine) as tx:
        out = tables.out_feeds
        sizes = tx.execute(select(out.c.size, out.c.receipt_size).order_by(out.c.id.desc()).limit(1)).one()
        assert tx.execute(select(func.count()).select_from(out)).scalar_one() == 2
    assert sizes == (len(bodies), len(bodies))


def _backup(world: World, target: Path) -> Callable[[], None]:
    """A backup of FR, and of its database where that is on a server. Returns what puts both back."""
    saved = save(world[FR], target)
    url = str(world[FR].engine.url) if world[FR].engine.name == "postgresql" else None
    if url is None:
        dumped = None
    else:
        world[FR].engine.dispose()
        dumped = stores.dump(url)

    def restore() -> None:
        world[FR].engine.dispose()
        if url is not None and dumped is not None:
            stores.load(url, dumped)
        put_back(world, FR, saved, lost=True)

    return restore


def _noted(ask: Callable[[], object]) -> int:
    with pytest.raises(AwaitsSecondError) as caught:
        ask()
    return caught.value.number
