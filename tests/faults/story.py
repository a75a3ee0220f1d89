"""One simulated run, as people and chance make it: every act that can happen, and how people put things right."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial

from federation.entries import Delivery
from federation.model import JsonObject, NodeId, Presentation, Role, instant_text
from federation.recall import Reason
from federation.statement import Kind
from federation.strictjson import encode
from node.home.context import Node
from node.peering import agreements, feeds, peers, rotation
from node.peering.feeds import Place
from node.peering.rotation import Change
from node.sharing import advisories, cases, passing, recalls, relays, releases, retention, revisions, statements
from node.sharing.advisories import State
from node.store.database import write
from tests.faults.badline import damage, forged
from tests.faults.healing import FAULTS, NEVER, Healing
from tests.faults.simulation import PARTIES, CrashError, Ground, Trouble
from tests.nodes import (
    document,
    import_document,
    issued,
    payload_of,
    signed_core,
    terms_for,
    terms_text,
)

NOTHING = ""
CASE = """
case: {name}-C
title: A flaw
summary: What is known.
handling: {{tlp: GREEN}}
internal_notes: "{private}"
"""


class Story(Healing):
    """A run, as people and chance make it."""

    def __init__(self, ground: Ground, seed: int) -> None:
        super().__init__(ground, seed)
        self.made: dict[NodeId, dict[str, int]] = {name: {} for name in PARTIES}  # the newest version of each
        self.versions: dict[tuple[str, int], int] = {}  # of each revision
        self.recalled: set[tuple[NodeId, str, int]] = set()
        self.forged: set[tuple[NodeId, str]] = set()  # advisories of which the liar signs more than one core
        self.acts: list[tuple[float, Callable[[], str]]] = [
            (26, self.pull),
            (13, self.release),
            (7, self.revise),
            (3, self.release_again),
            (3, self.withdraw),
            (5, self.recall),
            (3, self.grant),
            (9, self.pass_on),
            (3, self.propose),
            (9, self.countersign),
            (1.5, self.distrust),
            (2, self.trust),
            (1, self.rotate),
            (2, self.say),
            (2, self.open_case),
            (3, self.expire),
            (4, self.wait),
            (2.5, self.jump),
            (3, self.part),
            (4, self.lie),
            (2, self.equivocate),
            (3, self.append_nonsense),
            (2, self.back_up),
            (2, self.put_back),
            (1.5, self.roll_back),
            (1.5, self.clone),
            (1, self.heal),
        ]

    def step(self) -> None:
        """One act, which may be interrupted."""
        act = self.draw()
        if act != self.heal and self.chance.random() < 0.12:
            self.armed = self.chance.choice(PARTIES)
            self.stores[self.armed].fuse.left = self.chance.randrange(70)
        try:
            while (said := act()) == NOTHING:
                act = self.draw()
        except NEVER:
            raise
        except FAULTS as e:
            said = f"{act.__name__}: {type(e).__name__}"
            if isinstance(e, CrashError) and self.armed is not None:
                self.restart(self.armed)
        for store in self.stores.values():
            store.fuse.left = None
        self.armed = None
        self.told.append(said)
        self.counts[said.split()[0].rstrip(":")] += 1
        assert not self.log.broken

    def draw(self) -> Callable[[], str]:
        acts_, weights = zip(*((act, weight) for weight, act in self.acts), strict=True)
        drawn: Callable[[], str] = self.chance.choices(acts_, weights)[0]
        return drawn

    def one(self) -> NodeId:
        return self.chance.choice(PARTIES)

    def two(self) -> tuple[NodeId, NodeId]:
        first, second = self.chance.sample(PARTIES, 2)
        return first, second

    def some(self, *but: NodeId) -> list[NodeId]:
        others = [name for name in PARTIES if name not in but]
        return self.chance.sample(others, self.chance.randint(1, len(others)))

    def at(self, name: NodeId) -> Node:
        """A copy of the node at which somebody works."""
        return self.chance.choice(self.copies(name))

    # What people do

    def pull(self) -> str:
        receiver, sender = self.two()
        trouble = Trouble(page=self.chance.choice((0, 0, 0, 1, 3)))
        if self.chance.random() < 0.35:
            kind = self.chance.randrange(4)
            trouble.meanwhile = kind == 3
            trouble.pages = self.chance.randrange(3) if kind == 0 else None
            trouble.lose = self.chance.randint(1, 2) if kind == 1 else None
            trouble.damage = damage(self.chance) if kind == 2 else None
        report = self.sync(receiver, sender, trouble)
        return f"pull by {receiver} from {sender}: {report.entries}"

    def release(self) -> str:
        name = self.one()
        title = f"{name[5:7].upper()}-{sum(map(len, self.made.values()))}"
        return self.publish(self.at(name), title, 1, self.some(name))

    def revise(self) -> str:
        name = self.one()
        if not self.made[name] or name in self.lost:
            return NOTHING
        title = self.chance.choice(sorted(self.made[name]))
        return self.publish(self.world[name], title, self.made[name][title] + 1, self.some(name))

    def publish(self, node: Node, title: str, version: int, to: list[NodeId]) -> str:
        handling: JsonObject = {"tlp": "GREEN", "onward": self.chance.choice(("none", "peers", "peers"))}
        if self.chance.random() < 0.2:
            self.retained[title, version] = self.clock.now + timedelta(days=self.chance.randint(2, 30))
            handling["retain_until"] = instant_text(self.retained[title, version])
        if self.chance.random() < 0.2:
            self.embargoes[title, version] = self.clock.now + timedelta(days=self.chance.randint(2, 30))
            handling["embargo_until"] = instant_text(self.embargoes[title, version])
        content, labels = written(title, version)
        self.made[node.id][title] = max(version, self.made[node.id].get(title, 0))
        if version == 1:
            import_document(node, content, handling=handling, labels=labels)
        else:
            file = encode({"csaf": content, "handling": handling, "labels": labels})
            revisions.revise(node, title, file, "file.json", tlp=None)
        for peer in to:
            self.allow(node, peer, title, range(version, version + 1))
        summary, outcomes = releases.release(node, title, to)
        self.versions[title, summary.revision] = version
        gone = [str(outcome.peer) for outcome in outcomes if outcome.seq is not None]
        return f"release of {title} {version} (revision {summary.revision}) by {node.id} to {gone}"

    def release_again(self) -> str:
        name = self.one()
        if not self.made[name]:
            return NOTHING
        title, node, to = self.chance.choice(sorted(self.made[name])), self.at(name), self.some(name)
        for peer in to:
            self.allow(node, peer, title, range(1, self.made[name][title] + 1))
        _, outcomes = releases.release(node, title, to)
        return f"release again of {title} by {name}: {[(str(o.peer), o.seq, o.already) for o in outcomes]}"

    def withdraw(self) -> str:
        name, peer = self.two()
        if self.made[name] and self.chance.random() < 0.7:
            title = self.chance.choice(sorted(self.made[name]))
            return f"withdrawal of {title} from {peer}: {releases.withdraw(self.at(name), title, peer)}"
        items = self.items(name)
        if not items:
            return NOTHING
        item = self.chance.choice(items)
        return f"withdrawal of item {item} of {name} from {peer}: {passing.withdraw(self.world[name], item, peer)}"

    def recall(self) -> str:
        name = self.one()
        if not self.made[name]:
            return NOTHING
        title, node = self.chance.choice(sorted(self.made[name])), self.at(name)
        order = recalls.give(node, title, self.chance.choice(list(Reason)))
        return f"recall of {title} {order.revisions} by {name}"

    def items(self, name: NodeId) -> list[str]:
        """The numbers of what the node may use."""
        rows = self.stores[name].rows("SELECT id FROM inbox WHERE state = 'current' ORDER BY id")
        return [str(row[0]) for row in rows]

    def grant(self) -> str:
        name = self.one()
        if not self.made[name]:
            return NOTHING
        title, (relay, to) = self.chance.choice(sorted(self.made[name])), self.two()
        until = self.clock.now + timedelta(days=self.chance.randint(1, 60))
        relays.give(self.world[name], title, relay, (to,), None, until)
        return f"grant for {title} by {name} to {relay} for {to}"

    def pass_on(self) -> str:
        name, items = self.chance.choice([(n, self.items(n)) for n in PARTIES])
        if not items:
            return NOTHING
        item, to = self.chance.choice(items), self.some(name)
        ((title, revision),) = self.stores[name].rows("SELECT name, revision FROM inbox WHERE id = ?", item)
        assert isinstance(title, str)
        assert isinstance(revision, int)
        version = self.versions.get((title, revision), 1)
        for peer in to:
            self.allow(self.world[name], peer, title, range(version, version + 1))
        _, outcomes = passing.pass_on(self.world[name], item, to)
        return f"passing on of {title} {version} by {name}: {[(str(o.peer), o.seq) for o in outcomes]}"

    def propose(self) -> str:
        name = self.one()
        store = self.stores[name]
        held = store.rows("SELECT version, digest FROM agreements WHERE complete = 1 ORDER BY version DESC, digest")
        version, digest = held[0]
        assert isinstance(version, int)
        assert isinstance(digest, bytes)
        kinds = frozenset(kind for kind in ("personal", "exploit") if self.chance.random() < 0.6)
        share = ", ".join(f"{kind}: full" for kind in ("identification", "technical", "product", *sorted(kinds)))
        ends = self.clock.now + timedelta(days=self.chance.choice((8, 200, 200, 200)))
        text = terms_text(
            self.world,
            version=version + 1,
            previous=digest.hex(),
            onward=self.chance.choice(("peers", "peers", "none")),
            valid_until=instant_text(ends),
            sunset_review=instant_text(ends - timedelta(days=1)),
            grants=f"\n  - id: all\n    tlp: [GREEN]\n    tiers: [standard]\n    share: {{{share}}}",
        )
        made = agreements.propose(self.world[name], text, "agreement.yaml").agreement
        self.shares[made.digest], self.ends[made.digest] = kinds | {"plain"}, ends
        self.signed.setdefault(made.digest, set()).add(name)
        return f"proposal by {name}: version {version + 1}, {sorted(kinds)}, until {ends:%d.%m.}"

    def countersign(self) -> str:
        name = self.one()
        open_ = self.stores[name].rows("SELECT digest FROM agreements WHERE complete = 0 ORDER BY version, updated_at")
        if not open_:
            return NOTHING
        digest = open_[0][0]
        assert isinstance(digest, bytes)
        self.signed.setdefault(digest, set()).add(name)
        agreements.countersign(self.world[name], digest.hex())
        return f"signature by {name}"

    def distrust(self) -> str:
        name, peer = self.two()
        peers.distrust(self.world[name], peer)
        return f"distrust of {peer} by {name}"

    def trust(self) -> str:
        name, peer = self.two()
        self.both(partial(peers.trust_again, self.world[name], peer, "telephoned"))
        return f"trust of {peer} by {name}"

    def rotate(self) -> str:
        name = self.one()
        if name in self.lost:
            return NOTHING
        roles = self.chance.sample((Role.ISSUE, Role.FEED, Role.RECEIPT), self.chance.randint(1, 3))
        rotation.change(self.world[name], Change(rotate=tuple(roles)))
        return f"rotation by {name}: {roles}"

    def say(self) -> str:
        name = self.one()
        items = self.items(name)
        if not items:
            return NOTHING
        statements.say(self.world[name], int(self.chance.choice(items)), Kind.AFFECTS, "We have it too.")
        return f"statement by {name}"

    def open_case(self) -> str:
        name = self.one()
        title = f"{name[5:7].upper()}-{sum(map(len, self.made.values()))}"
        private = f"Nobody else may know that {title} came from the harbour"
        cases.open_case(self.world[name], CASE.format(name=title, private=private), "case.yaml")
        self.private[name].append(private.encode())
        made = cases.draft(self.world[name], f"{title}-C").advisory.name
        releases.release(self.world[name], made)
        return f"case {title} by {name}"

    def expire(self) -> str:
        name = self.one()
        gone = retention.expire(self.world[name])
        return f"expiry at {name}: {len(gone.items)} items, {gone.sent_count} sent"

    def wait(self) -> str:
        span = self.chance.choice((timedelta(minutes=1), timedelta(minutes=20), timedelta(hours=30), timedelta(days=9)))
        self.clock.now += span
        return f"wait of {span}"

    # What goes wrong

    def jump(self) -> str:
        name, way = self.one(), self.chance.choice((-1, 1))
        span = self.chance.choice((timedelta(minutes=20), timedelta(days=1), timedelta(days=20), timedelta(days=60)))
        self.wrong[name] = timedelta() if self.wrong[name] else way * span
        return f"clock of {name}: {self.wrong[name]}"

    def part(self) -> str:
        self.cut ^= {frozenset(self.two())}
        return f"partition: {[sorted(pair) for pair in self.cut]}"

    def lie(self) -> str:
        receiver, sender = self.two()
        sender = self.liar = self.liar or sender
        if receiver == sender or self.lost:
            return NOTHING
        lie = self.chance.choice(("fork", "rollback", "hidden", "stale"))
        with suppress(*FAULTS):
            forged(self, receiver, sender, lie)
        return f"lie by {sender} to {receiver}: {lie}"

    def equivocate(self) -> str:
        """The liar signs another core under a revision, for one peer."""
        receiver, sender = self.two()
        sender = self.liar = self.liar or sender
        if receiver == sender or not self.made[sender] or self.lost:
            return NOTHING
        node, title = self.world[sender], self.chance.choice(sorted(self.made[sender]))
        summary, _ = advisories.own_advisory(node, title)
        if summary.state is not State.ISSUED:
            return NOTHING
        self.forged.add((sender, title))
        presentation = issued(node, title)
        payload = payload_of(presentation.core)
        core = signed_core(node, payload | {"iat": payload["iat"] + 1})
        held = next(held for held in agreements.all_held(node) if not held.missing)
        terms = replace(terms_for(node, receiver, title, held), core_digest=hashlib.sha256(core).digest())
        self.append(sender, receiver, title, Delivery(Presentation(core, presentation.disclosures), terms))
        return f"two cores of {title} by {sender}, one for {receiver}"

    def append(self, sender: NodeId, receiver: NodeId, title: str, body: Delivery) -> Place:
        """Appends what no honest release would, with its row of the ledger."""
        node = self.world[sender]
        summary, _ = advisories.own_advisory(node, title)
        with write(node.engine) as tx:
            place = feeds.append(node, tx, receiver, body, advisory=summary.key)
            releases.enter(node, tx, receiver, place, sender, title, summary.revision, body.terms, [])
        return place

    def append_nonsense(self) -> str:
        """The liar sends an advisory with a signature that does not hold."""
        receiver, sender = self.two()
        sender = self.liar = self.liar or sender
        if receiver == sender or not self.made[sender] or self.lost:
            return NOTHING
        node, title = self.world[sender], self.chance.choice(sorted(self.made[sender]))
        self.forged.add((sender, title))
        presentation = issued(node, title)
        held = next(held for held in agreements.all_held(node) if not held.missing)
        core = presentation.core[:-1] + (b"A" if presentation.core[-1:] != b"A" else b"B")
        terms = replace(terms_for(node, receiver, title, held), core_digest=hashlib.sha256(core).digest())
        place = self.append(sender, receiver, title, Delivery(Presentation(core, presentation.disclosures), terms))
        self.bad.add(place.leaf_hash)
        return f"nonsense by {sender} for {receiver}: {place.seq}"

    def back_up(self) -> str:
        name = self.one()
        if name not in self.lost:
            self.save(name)
        return f"backup of {name}"

    def put_back(self) -> str:
        name = self.one()
        if "twice" in self.lost.values():
            return NOTHING
        self.lose(name, self.chance.choice(self.saved[name]), told=True)
        return f"restore of {name}"

    def roll_back(self) -> str:
        name = self.one()
        if self.lost:
            return NOTHING
        self.lose(name, self.chance.choice(self.saved[name]), told=False)
        return f"rollback of {name}"

    def clone(self) -> str:
        name = self.one()
        if self.lost:
            return NOTHING
        self.run_twice(name)
        return f"clone of {name}"


def written(title: str, version: int) -> tuple[JsonObject, dict[str, str]]:
    """A version of a document with three parts that are handled differently, and their labels."""
    texts = [f"Word of {title} at {version}: {kind}, kestrel" for kind in ("plain", "personal", "exploit")]
    made = document(title, notes=texts)
    tracking = made["document"]["tracking"]
    line = tracking["revision_history"][0]
    tracking["revision_history"] = [{**line, "number": str(number)} for number in range(1, version + 1)]
    tracking["version"] = str(version)
    return made, {"/csaf/document/notes/1": "personal", "/csaf/document/notes/2": "exploit"}
