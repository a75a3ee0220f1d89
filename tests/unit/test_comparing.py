"""An origin that tells two stories: one core to one peer, another to the next, under one revision.

Neither peer can see that in its own feed. They find it by telling each other the digests of what came, and prove it by
showing each other the cores.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation import entries, statement
from federation.entries import Delivery, Said
from federation.limits import MAX_SEEN
from federation.model import NodeId, Presentation, Role, instant_text
from federation.statement import Kind, Seen, Statement, Subject
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange import sync
from node.peering import agreements
from node.records import alarms, incidents
from node.records.alarms import Alarm
from node.sharing import releases, statements
from node.store.database import read
from node.store.tables import audit, in_entries
from tests.chains import KE, join, make_chain, pass_on, send
from tests.nodes import (
    DE,
    FR,
    IN,
    ForgedFeed,
    World,
    agree,
    append_by_hand,
    document,
    entry,
    history,
    import_document,
    make_world,
    payload_of,
    signed_core,
    terms_text,
)

A = Subject(FR, "A", 1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    yield made
    made.close()


def release(world: World, tlp: str = "AMBER", **handling: Any) -> None:
    """FR releases an advisory to both."""
    import_document(world[FR], document("A"), handling={"tlp": tlp, **handling})
    releases.release(world[FR], "A")


def two_faced(world: World, later_s: int = 1, to: NodeId = IN) -> ForgedFeed:
    """FR's feed to a peer, with another core in place of the last one: FR has signed both."""
    *before, last = history(world[FR], to)
    assert isinstance(last, bytes)
    honest = entries.read(last)
    assert isinstance(honest.body, Delivery)
    payload = payload_of(honest.body.presentation.core)
    payload["iat"] += later_s
    core = signed_core(world[FR], payload)
    terms = replace(honest.body.terms, core_digest=hashlib.sha256(core).digest())
    other = Delivery(Presentation(core, honest.body.presentation.disclosures), terms)
    return ForgedFeed(world[FR], to, [*before, entry(f"{FR}/feeds/{to}/1", honest.seq, other)])


def tell_two_stories(world: World) -> None:
    """DE gets one core, IN another; nobody has compared them yet."""
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    sync.sync(world[IN], FR, two_faced(world))


def talk(world: World, rounds: int = 2) -> None:
    """DE and IN pull from each other."""
    for _ in range(rounds):
        world.sync(IN, DE)
        world.sync(DE, IN)


def state(world: World, at: NodeId) -> InboxState:
    (item,) = inbox.items(world[at], every_state=True)
    return item.state


def open_alarms(world: World, at: NodeId) -> set[Alarm]:
    return {alarm.kind for alarm in alarms.all_alarms(world[at])}


def cores_shown(world: World, by: NodeId) -> list[NodeId]:
    """To whom a node has shown a core."""
    kept = (k.statement for k in statements.all_kept(world[by]))
    return [said.recipient for said in kept if said.kind == Kind.CORE and said.author == by]


def say(world: World, author: NodeId, recipient: NodeId, kind: Kind, body: dict[str, Any], **more: Any) -> None:
    """A statement under an author's real key, whatever it says, and one sync."""
    node = world[author]
    signer = node.keys.signer(Role.ISSUE, node.card, world.clock())
    said = statement.sign(
        kind, author, recipient, world.clock(), more.pop("about", None), body, kid=signer.kid, sign_bytes=signer.sign
    )
    append_by_hand(node, recipient, Said(said.document))
    world.clock.move(minutes=1)
    world.sync(recipient, author)


def claim(world: World, digest: bytes, about: Subject = A, *, by: NodeId = DE, to: NodeId = IN) -> None:
    """One tells the other that it has seen a core of that digest."""
    say(world, by, to, Kind.SEEN, {"cores": [Seen(about, digest).write()]})


def codes(world: World, at: NodeId) -> list[str]:
    """Why entries were set aside, in their order."""
    with read(world[at].engine) as tx:
        return [code for code in tx.execute(select(in_entries.c.code)).scalars() if code]


def test_who_got_the_same_core_tells_so_and_nothing_comes_of_it(world: World) -> None:
    agree(world)
    release(world)
    world.sync(DE, FR)
    world.sync(IN, FR)
    before = {name: len(history(world[name], other)) for name, other in ((DE, IN), (IN, DE))}
    talk(world)
    assert [state(world, at) for at in (DE, IN)] == [InboxState.CURRENT] * 2
    assert before == {name: len(history(world[name], other)) for name, other in ((DE, IN), (IN, DE))}  # no answer
    last = entries.read(history(world[DE], IN)[-1])  # type: ignore[arg-type]
    assert isinstance(last.body, Said)
    said = statement.reread(last.body.document)
    (item,) = inbox.items(world[DE])
    assert (said.kind, said.recipient, statement.seen(said)) == (Kind.SEEN, IN, (Seen(A, item.core_digest),))
    assert [open_alarms(world, at) for at in (DE, IN)] == [set()] * 2


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("first", [DE, IN])
def test_two_stories_under_one_revision_are_found_by_both_who_heard_one(world: World, first: NodeId) -> None:
    agree(world)
    release(world)
    tell_two_stories(world)
    assert [state(world, at) for at in (DE, IN)] == [InboxState.CURRENT] * 2  # each by itself sees nothing wrong
    second = IN if first is DE else DE
    for _ in range(3):
        world.sync(first, second)
        world.sync(second, first)
    assert [state(world, at) for at in (DE, IN)] == [InboxState.EQUIVOCATION] * 2
    for at in (DE, IN):
        (incident,) = incidents.all_incidents(world[at])
        assert (incident.kind, incident.peer, incident.about) == ("EQUIVOCATION", FR, "A/1")
        assert incident.proves_itself
        assert len(incident.cores) == 2
        assert Alarm.EQUIVOCATION in open_alarms(world, at)
    assert (len(cores_shown(world, DE)), len(cores_shown(world, IN))) == (1, 1)
    before = [len(history(world[a], b)) for a, b in ((DE, IN), (IN, DE))]
    talk(world)
    assert before == [len(history(world[a], b)) for a, b in ((DE, IN), (IN, DE))]  # and it comes to an end


@pytest.mark.invariant("I5")
def test_a_core_that_somebody_has_shown_still_counts_when_the_advisory_comes_again(world: World) -> None:
    agree(world)
    release(world)
    tell_two_stories(world)
    talk(world)
    assert state(world, DE) is InboxState.EQUIVOCATION  # sanity
    fr = world[FR]
    delivered = entries.read(history(fr, DE)[-1])  # type: ignore[arg-type]
    append_by_hand(fr, DE, delivered.body)
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    assert {item.state for item in inbox.items(world[DE], every_state=True)} == {InboxState.EQUIVOCATION}


@pytest.mark.invariant("I12")
def test_a_digest_alone_is_somebodys_word_and_holds_nothing_back(world: World) -> None:
    agree(world)
    release(world)
    world.sync_all(2)
    claim(world, bytes(32))
    assert state(world, IN) is InboxState.CURRENT
    assert open_alarms(world, IN) == {Alarm.SUSPECTED_EQUIVOCATION}
    assert cores_shown(world, IN) == [DE]
    for other in range(1, 4):
        claim(world, bytes([other]) * 32)
    assert cores_shown(world, IN) == [DE]  # one core of a revision, however often somebody guesses
    assert incidents.all_incidents(world[IN]) == ()


@pytest.mark.invariant("I5")
def test_who_heard_the_second_story_later_shows_it_to_who_heard_the_first(world: World) -> None:
    agree(world)
    release(world)
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    world.sync(IN, DE)  # IN is told what DE has, and has nothing to compare
    sync.sync(world[IN], FR, two_faced(world))
    talk(world)
    assert [state(world, name) for name in (DE, IN)] == [InboxState.EQUIVOCATION] * 2


def test_however_often_a_peer_names_a_revision_it_is_looked_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(world)
    release(world)
    world.sync_all(2)
    read_whole = []

    def deliveries(*words: Any) -> Any:
        read_whole.append(words)
        return honest(*words)

    honest = inbox.deliveries
    monkeypatch.setattr(inbox, "deliveries", deliveries)
    claims = [Seen(A, number.to_bytes(32, "big")).write() for number in range(MAX_SEEN)]
    for _ in range(2):
        say(world, DE, IN, Kind.SEEN, {"cores": claims})
    assert len(read_whole) == 1
    assert cores_shown(world, IN) == [DE]
    with read(world[IN].engine) as tx:
        acts = tx.execute(select(audit.c.act).where(audit.c.by == DE, audit.c.act == "core.differs")).all()
    assert len(acts) == 2  # one for each time that it was said


def test_of_what_never_came_here_nothing_is_said(world: World) -> None:
    agree(world)
    claim(world, bytes(32))
    assert (open_alarms(world, IN), cores_shown(world, IN), codes(world, IN)) == (set(), [], [])


@pytest.mark.parametrize(
    ("forged", "code"),
    [
        ("not signed by its origin", "BAD_SIGNATURE"),
        ("of another revision", "MALFORMED"),
        ("by somebody else", "MALFORMED"),
        ("no core", "MALFORMED"),
    ],
)
@pytest.mark.invariant("I5")
def test_a_core_that_its_origin_did_not_sign_for_that_revision_proves_nothing(
    world: World, forged: str, code: str
) -> None:
    agree(world)
    release(world)
    world.sync_all(2)
    (item,) = inbox.items(world[DE])
    honest = payload_of(inbox.content(world[DE], str(item.id)).compact.split("~")[0].encode())
    changed = {**honest, "iat": honest["iat"] + 1}
    core = {
        "not signed by its origin": signed_core(world[FR], changed)[:-4] + b"AAAA",
        "of another revision": signed_core(world[FR], {**changed, "jti": f"{FR}/A/2"}),
        "by somebody else": signed_core(world[DE], {**changed, "iss": DE}),
        "no core": b"core",
    }[forged]
    say(world, DE, IN, Kind.CORE, {"core": core.decode()}, about=A)
    assert state(world, IN) is InboxState.CURRENT
    assert incidents.all_incidents(world[IN]) == ()
    assert codes(world, IN) == [code]


# Who is told


def bilateral(world: World) -> None:
    """FR has agreed with each of the two; they have agreed on something else."""
    fr, de, india = (world[name] for name in (FR, DE, IN))
    for number, (one, other) in enumerate(((fr, de), (fr, india), (de, india))):
        text = terms_text(world, agreement=f"pair-{number}", parties=f"[{one.id}, {other.id}]")
        held = agreements.propose(one, text, "agreement.yaml")
        world.sync_all()
        agreements.countersign(other, held.agreement.digest.hex())
    world.sync_all(2)


@pytest.mark.parametrize(("tlp", "told"), [("GREEN", True), ("CLEAR", True), ("AMBER", False)])
def test_outside_of_one_agreement_only_what_is_widely_shared_is_compared(world: World, tlp: str, told: bool) -> None:
    bilateral(world)
    before = len(history(world[DE], IN))
    release(world, tlp)
    world.sync(DE, FR)
    assert (len(history(world[DE], IN)) > before) is told


@pytest.mark.parametrize(("recipients", "told"), [([DE], False), ([DE, IN], True)])
def test_what_has_named_recipients_is_compared_among_them(world: World, recipients: list[NodeId], told: bool) -> None:
    agree(world)
    before = len(history(world[DE], IN))
    release(world, "RED", recipients=sorted(recipients))
    world.sync(DE, FR)
    assert (len(history(world[DE], IN)) > before) is told


@pytest.mark.parametrize("kind", [Kind.SEEN, Kind.CORE])
def test_what_was_seen_is_not_passed_on(world: World, kind: Kind) -> None:
    agree(world)
    node = world[DE]
    signer = node.keys.signer(Role.ISSUE, node.card, world.clock())
    body: dict[str, Any] = {"cores": []} if kind is Kind.SEEN else {"core": "x"}
    about = None if kind is Kind.SEEN else A
    said: Statement = statement.sign(kind, DE, FR, world.clock(), about, body, kid=signer.kid, sign_bytes=signer.sign)
    append_by_hand(node, IN, Said(said.document))
    world.clock.move(minutes=1)
    before = len(history(world[IN], FR))
    world.sync(IN, DE)
    assert codes(world, IN) == ["NOT_ADMITTED"]
    assert len(history(world[IN], FR)) == before


@pytest.mark.invariant("I4")
@pytest.mark.parametrize("tlp", ["AMBER", "GREEN"])
def test_whose_country_may_not_store_it_is_not_told_of_it(world: World, tlp: str) -> None:
    agree(world)
    before = len(history(world[DE], IN))
    release(world, tlp, storage=["DE", "FR"])
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    assert state(world, DE) is InboxState.CURRENT  # sanity
    claim(world, bytes(32), by=IN, to=DE)
    assert cores_shown(world, DE) == []
    assert len(history(world[DE], IN)) == before


@pytest.mark.invariant("I11")
def test_what_is_under_embargo_is_not_told_beyond_those_who_agreed_on_it(world: World) -> None:
    bilateral(world)
    before = len(history(world[DE], IN))
    release(world, "GREEN", embargo_until=instant_text(world.clock().replace(microsecond=0) + timedelta(days=9)))
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    assert state(world, DE) is InboxState.CURRENT  # sanity
    claim(world, bytes(32), by=IN, to=DE)
    assert cores_shown(world, DE) == []
    assert len(history(world[DE], IN)) == before


@pytest.mark.invariant("I5")
def test_what_came_over_a_relay_is_compared_with_what_its_origin_told_others(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (FR, KE), (IN, KE))
    for link in chain.links:
        join(chain, *link, onward="peers")
    pass_on(chain, send(chain, "A", handling={"tlp": "GREEN", "onward": "peers"}))
    chain.sync(IN, DE)
    releases.release(chain[FR], "A", (KE,))
    sync.sync(chain[KE], FR, two_faced(chain, to=KE))
    assert [state(chain, name) for name in (IN, KE)] == [InboxState.CURRENT] * 2
    for _ in range(2):
        chain.sync(IN, KE)
        chain.sync(KE, IN)
    assert [state(chain, name) for name in (IN, KE)] == [InboxState.EQUIVOCATION] * 2
    chain.close()
