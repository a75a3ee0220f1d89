"""Row 11: malformed protobuf, JSON, JWT, CSAF, card, agreement, checkpoint, and whatever else comes from outside: a
value or a refusal of ours, within LIMIT_CPU_S of CPU time and MEMORY_BYTES of memory; and a feed goes on.

Here hypothesis chooses the seeds; the campaign that is guided by coverage is `tests.faults.campaign_fuzz`. A failure
tells target and seed: `mutant(target, seed)` are its bytes again.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from federation.entries import NewCard
from federation.errors import ApostilleError, MalformedError
from node.store.database import read
from node.store.tables import audit
from tests.faults.campaign import count
from tests.faults.fuzz import LIMIT_CPU_S, MEMORY_BYTES, TARGETS, HangError, Target, bounded, execute
from tests.faults.fuzzworld import (
    NAMES,
    ORIGIN,
    Scene,
    fuzzed_entries,
    good_entry,
    make_scene,
    sign_card,
    take_in,
    targets,
    with_certificate,
)
from tests.nodes import DE, IN, entry

FEW = {
    "terms": 150,
    "pack": 250,
    "labels": 300,
    "settings": 300,
    "archive": 250,
    "proof": 80,
    "import": 150,
    "request": 200,
}
MANY = {"delivery": 800, "entry": 800}
USUAL = 400  # of the other targets; all of them together take a minute
BATCHES, BATCH = count(10, 1_000), 10
FOUND = {  # by the campaign, and mended
    "YAML took a text that begins with a truth value for one": ("terms", b"agreement: true story\n"),
    "YAML in which a key begins with a truth value": ("pack", b"pack:\n  falsehood: 1\n"),
    "a port of thousands of digits": (
        "settings",
        b'node: cert.fr.example\njurisdiction: FR\nlisten: "127.0.0.1:' + b"1" * 5_000 + b'"\nadvertise: a:1\n'
        b"poll_interval_s: 60\nlaw_packs: []\n",
    ),
    "an integer in YAML too long to be written in a refusal": (
        "settings",
        b"node: cert.fr.example\njurisdiction: FR\nadvertise: a:1\npoll_interval_s: 60\nlaw_packs: []\nlisten: 0x"
        + b"f" * 5_000,
    ),
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with make_scene(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


@pytest.fixture(scope="module")
def with_nodes(scene: Scene) -> dict[str, Target]:
    return targets(scene)


def mutant(target: Target, seed: int) -> bytes:
    """One of the target's samples, changed a few times."""
    chance = Random(seed)  # noqa: S311
    data = chance.choice(target.samples)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = target.mutate(data, chance)
    return data


def campaign(name: str, target: Target) -> None:
    """Runs a target; prints how it went."""
    short = FEW.get(name) or MANY.get(name) or USUAL
    told: Counter[bool] = Counter()

    @settings(
        max_examples=count(short, 20 * short), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.integers(0, (1 << 64) - 1))
    def each(seed: int) -> None:
        data = mutant(target, seed)
        note(f"{name}, {seed=}: {data[:2_000]!r}")
        told[execute(target, data)] += 1

    with bounded():
        each()
    print(f"{name}: {told.total()} executions, {told[True]} of them taken, the others refused by name")


@pytest.mark.parametrize("name", [*TARGETS, *NAMES])
def test_the_honest_samples_are_taken(with_nodes: dict[str, Target], name: str) -> None:
    target = with_nodes[name] if name in NAMES else TARGETS[name]()
    assert any(execute(target, sample) for sample in target.samples)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_gives_a_value_or_a_refusal(name: str) -> None:
    campaign(name, TARGETS[name]())


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_to_a_node_gives_a_value_or_a_refusal(with_nodes: dict[str, Target], name: str) -> None:
    campaign(name, with_nodes[name])


@pytest.mark.parametrize("name", FOUND)
def test_what_the_campaign_found_stays_mended(name: str) -> None:
    target, data = FOUND[name]
    assert not execute(TARGETS[target](), data)


@pytest.mark.invariant("I10")
def test_a_feed_goes_on_whatever_entries_are_in_it(scene: Scene) -> None:
    seed = Random().randrange(1 << 32)  # noqa: S311 - told below
    chance = Random(seed)  # noqa: S311
    outcomes: Counter[str] = Counter()
    for batch in range(BATCHES):
        what = f"{seed=}, batch {batch}"
        before = _audited(scene)
        bad = fuzzed_entries(scene, BATCH, len(scene.told), chance)
        with bounded():
            told = take_in(scene, bad)
        assert len(told) == BATCH, what
        turned_away = [code for _, outcome, code in told if outcome in ("quarantined", "refused")]
        assert all(turned_away), what
        after = _audited(scene)
        assert after.total() - before.total() >= len(turned_away), what
        for kind in ("quarantined", "refused"):  # one row for each
            rows = after[f"entry.{kind}"] - before[f"entry.{kind}"]
            assert rows == sum(outcome == kind for _, outcome, _ in told), what
        ((_, outcome, _),) = take_in(scene, [good_entry(scene, f"GOOD-{seed}-{batch}")])
        assert outcome == "admitted", what
        outcomes.update(outcome for _, outcome, _ in told)
    assert outcomes["quarantined"] > BATCHES, f"{seed=}"
    print(f"{outcomes.total()} fuzzed entries in a feed: {dict(outcomes)}; {BATCHES} honest ones arrived; {seed=}")


CERTIFICATES = {  # bytes of one that the parser of certificates refuses by exceptions of its own
    "of a version that there is not": (bytes.fromhex("a003020102"), bytes.fromhex("a003020105")),
    "of a curve that it does not know": (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030102")),
    "of a kind of key that it does not know": (bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0209")),
}


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_card_with_a_certificate_that_cannot_be_read_is_set_aside_and_the_feed_goes_on(
    scene: Scene, name: str
) -> None:
    node = scene.world[IN]
    card = with_certificate(replace(node.card, version=9), lambda der: der.replace(*CERTIFICATES[name]))
    body = NewCard(sign_card(node, card.payload()))
    assert take_in(scene, [entry(ORIGIN, len(scene.told), body)])[0][1:] == ("quarantined", "MALFORMED")
    assert take_in(scene, [good_entry(scene, f"AFTER-{name}")])[0][1] == "admitted"


def _audited(scene: Scene) -> Counter[str]:
    with read(scene.world[DE].engine) as tx:
        found = tx.execute(select(audit.c.act, func.count()).group_by(audit.c.act)).all()
    return Counter({row.act: row.count for row in found})


def _spin(_: bytes) -> None:
    while True:
        pass


def _refuse(_: bytes) -> None:
    raise MalformedError("no")


def _fill(_: bytes) -> object:
    return bytearray(2 * MEMORY_BYTES)


def _fail(_: bytes) -> None:
    raise KeyError


@pytest.mark.parametrize(("run", "error"), [(_spin, HangError), (_fill, MemoryError), (_fail, KeyError)])
def test_a_hang_a_bomb_and_a_foreign_exception_would_be_seen(run: object, error: type[BaseException]) -> None:
    target = Target((b"",), run, lambda data, _: data, ApostilleError)  # type: ignore[arg-type]
    assert LIMIT_CPU_S <= 2
    with bounded(), pytest.raises(error):
        execute(target, b"")
    assert not execute(Target((b"",), _refuse, lambda data, _: data), b"")
