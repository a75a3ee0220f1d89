"""Three random nodes: what people do, what goes wrong, and what must hold all the time and in the end.

Each run is drawn from its number: the same number gives the same run again, with APOSTILLE_FULL=1 another and longer
one. See `simulation` for what can happen. `APOSTILLE_SEED=N` runs that one alone, and tells each act.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from federation import csaf, merkle
from federation.csaf import Problem
from federation.entries import Delivery
from federation.errors import (
    SignatureError,
)
from federation.model import JsonObject, NodeId, Presentation
from federation.recall import Reason
from federation.strictjson import encode
from node.audit import verify
from node.peering import agreements
from node.sharing import recalls, retention
from tests.faults.campaign import FULL, count
from tests.faults.simulation import PARTIES, WORDS, Ground, Trouble, pairs
from tests.faults.story import Story
from tests.nodes import (
    DE,
    FR,
    append_by_hand,
    issued,
    terms_for,
)

RUNS = count(200, 10_000)
MOST_ACTS = count(10, 40)
TELLS = 20


# What must hold in the end


def check(run: Story) -> None:
    """Everything, once it is healed. `run.log` has looked on while pages passed."""
    run.heal()
    ended = [retention.expire(run.world[name]) for name in PARTIES]
    if any(ended):
        run.heal()
    for receiver, sender in pairs():
        check_feed(run, receiver, sender)
    for name in PARTIES:
        check_store(run, name)


def check_feed(run: Story, receiver: NodeId, sender: NodeId) -> None:
    """Nothing is lost, repeated or forked, and bytes are stored as they were sent (I7, I8, I9, I10)."""
    sent = run.stores[sender].rows(
        "SELECT e.seq, e.leaf_hash FROM out_entries e JOIN out_feeds f ON f.id = e.feed WHERE f.id ="
        " (SELECT id FROM out_feeds WHERE peer = ? ORDER BY epoch DESC LIMIT 1) ORDER BY e.seq",
        receiver,
    )
    origin, *_ = run.stores[sender].rows("SELECT origin FROM out_feeds WHERE peer = ? ORDER BY epoch DESC", receiver)[0]
    came = run.stores[receiver].rows(
        "SELECT e.seq, e.leaf_hash, e.data, e.outcome FROM in_entries e JOIN in_feeds f ON f.id = e.feed"
        " WHERE f.origin = ? ORDER BY e.seq",
        origin,
    )
    assert [row[:2] for row in came] == sent, f"I9: {origin}"
    for seq, leaf, data, outcome in came:
        assert isinstance(seq, int)
        if isinstance(data, bytes):
            assert data == run.log.sent.get((str(origin), seq), data), f"I7: {origin} {seq}"
            assert merkle.leaf_hash(data) == leaf, f"I7: {origin} {seq}"
        if leaf in run.bad:
            assert outcome not in ("admitted", "control"), f"I10: {origin} {seq}"
        run.counts[f"entries {outcome}"] += 1


def check_store(run: Story, name: NodeId) -> None:
    """What one node holds in the end (I1, I2, I5, I11, I12, I14, I15)."""
    node, store = run.world[name], run.stores[name]
    held = store.raw.serialize()
    for other, texts in run.private.items():
        assert other == name or not any(text in held for text in texts), f"I1: a case of {other} is at {name}"
    recalled = {
        (str(origin), str(title), run.versions.get((str(title), revision)))
        for other in PARTIES
        for origin, title, revision in run.stores[other].rows(
            "SELECT origin, name, j.value FROM recalls, json_each(recalls.revisions) j WHERE origin = ?", other
        )
        if isinstance(revision, int)
    }
    for word in set(WORDS.findall(held)):
        title, version, kind = word[0].decode(), int(word[1]), word[2].decode()
        origin = f"cert.{title[:2].lower()}.example"
        if origin == name:
            continue
        what = f"{kind} of {title} {version} at {name}"
        assert (origin, title, version) not in recalled, f"I15: {what}"
        if (origin, title) not in run.forged:
            assert kind in run.allowed[title, version, name], f"I4: {what}"
            until = run.retained.get((title, version))
            assert until is None or until > run.clock.now, f"I11: {what}"
    accused = {str(peer) for (peer,) in store.rows("SELECT peer FROM incidents")}
    assert accused <= {run.liar}, f"I8: {name} accuses {accused}"
    cores = store.rows(
        "SELECT origin, name, revision FROM inbox WHERE state NOT IN ('equivocation', 'rejected')"
        " GROUP BY origin, name, revision HAVING count(DISTINCT core_digest) > 1"
    )
    assert all((origin, title) in run.forged for origin, title, _ in cores), f"I5: {cores}"
    if name != run.liar and (FULL or run.chance.random() < 0.25):  # which takes as long as some acts
        findings = verify.verify(node).findings
        assert not findings, f"I14: {name}: {findings}"


# The campaign


def run_of(ground: Ground, seed: int) -> Story:
    """One run. A failure tells its seed and what had happened."""
    run = Story(ground, seed)
    try:
        for _ in range(run.chance.randint(4, MOST_ACTS)):
            run.step()
        check(run)
        assert not run.log.broken
    except Exception as e:
        which = f"APOSTILLE_SEED={seed}{' APOSTILLE_FULL=1' if FULL else ''}"
        e.add_note(f"{which}, {len(run.told)} acts; {run.log.broken}; the last of them:")
        for line in run.told[-TELLS:]:
            e.add_note(f"  {line}")
        raise
    return run


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Ground(tmp_path_factory.mktemp("simulation"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents of all runs are the same few, and whether they are valid is computed once."""
    known: dict[bytes, tuple[Problem, ...]] = {}
    validate = csaf.problems

    def problems(content: JsonObject) -> tuple[Problem, ...]:
        key = encode(content)
        if key not in known:
            known[key] = validate(content)
        return known[key]

    monkeypatch.setattr(csaf, "problems", problems)


def chosen_seeds() -> range:
    """What APOSTILLE_SEED names, `17` or `2500-4999`; else all of them from 0."""
    first, _, last = os.environ.get("APOSTILLE_SEED", f"0-{RUNS - 1}").partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.invariant("I9")
def test_whatever_happens_to_three_nodes_every_invariant_holds(ground: Ground) -> None:
    seeds, counts = chosen_seeds(), Counter[str]()
    for seed in seeds:
        run = run_of(ground, seed)
        counts += run.counts
        if len(seeds) == 1:
            print("\n".join(run.told))
    print(f"{len(seeds)} runs: {dict(counts.most_common())}")


# What runs have found, told as stories


@pytest.mark.invariant("I15")
def test_nonsense_that_names_a_recalled_revision_leaves_no_copy(ground: Ground) -> None:
    """An advisory is recalled and gone; then its sender delivers it again, with a signature that does not hold. That is
    set aside, and is no evidence of which the bytes are kept."""
    run = Story(ground, 0)
    run.publish(run.world[FR], "FR-0", 1, [DE])
    run.sync(DE, FR)
    word = b"Word of FR-0 at 1: plain, kestrel"
    assert word in run.stores[DE].raw.serialize()
    presentation = issued(run.world[FR], "FR-0")
    held = agreements.all_held(run.world[FR])[0]
    core = presentation.core[:-1] + (b"A" if presentation.core[-1:] != b"A" else b"B")
    terms = replace(terms_for(run.world[FR], DE, "FR-0", held), core_digest=hashlib.sha256(core).digest())
    recalls.give(run.world[FR], "FR-0", Reason.CONSENT)
    run.sync(DE, FR)
    assert word not in run.stores[DE].raw.serialize()
    append_by_hand(run.world[FR], DE, Delivery(Presentation(core, presentation.disclosures), terms))
    run.liar = FR
    run.sync(DE, FR)
    assert run.stores[DE].rows("SELECT outcome, code FROM in_entries ORDER BY feed, seq DESC")[0][0] == "quarantined"
    assert word not in run.stores[DE].raw.serialize()


@pytest.mark.invariant("I8")
def test_a_newest_head_without_a_date_is_not_kept(ground: Ground) -> None:
    """A sender could plant a head in our books that our own audit calls damaged."""
    run = Story(ground, 0)
    run.publish(run.world[FR], "FR-0", 1, [DE])
    undated = Trouble(damage=lambda page: replace(page, latest=page.checkpoint))
    before = run.stores[DE].rows("SELECT size, newest FROM in_feeds ORDER BY id")
    with pytest.raises(SignatureError):
        run.sync(DE, FR, undated)
    assert run.stores[DE].rows("SELECT size, newest FROM in_feeds ORDER BY id") == before
    run.sync(DE, FR)
    assert verify.verify(run.world[DE]).findings == ()
