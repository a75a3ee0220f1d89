"""Every public advisory we have, through the whole exchange: imported by the command line, killed half-way and resumed,
released to two peers, synced over gRPC, exported.

Germany has an agreement that shares everything: what the validator holds valid must arrive equal as JSON, all of it.
India's leaves out `personal` and `exploit`: every export must be valid CSAF, and nothing withheld may be found in
anything that India stores or logs. The same search over what Germany stores is the positive control.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from jwcrypto.jwk import JWK
from sd_jwt.verifier import SDJWTVerifier
from sqlalchemy import select

from federation import csaf, entries, sdjwt
from federation.base64url import b64url
from federation.entries import Delivery
from federation.model import Form, JsonObject, NodeId, Role
from federation.outbound import OwnAdvisory
from federation.policy.guard import Withheld, search
from node import main
from node.desk import inbox
from node.desk.inbox import Disposition
from node.home.context import Node
from node.peering import feeds
from node.sharing import advisories, releases
from node.store.database import read
from node.store.tables import in_entries, metadata
from tests.commands import Running
from tests.e2e.net import Net, until
from tests.nodes import DE, EVERYTHING, FR, IN, World, agree, make_world

pytestmark = pytest.mark.corpora

ENOUGH_TO_KILL = 12
PATIENCE_S = 300
NO_PERSONAL_OR_EXPLOIT = (
    EVERYTHING.replace("exploit: full,", "")
    .replace("personal: full,", "")
    .replace("attribution: full", "attribution: full, victim: full, source: full")
)
ALL_OF_IT = EVERYTHING.replace("attribution: full", "attribution: full, victim: full, source: full")
GRANTS = """
  - id: to-germany
    from: [cert.fr.example]
    to: [cert.de.example]
    tlp: [CLEAR, GREEN, AMBER, AMBER+STRICT, RED]
    tiers: [standard, sensitive, dual_use]
    share: {all}
  - id: to-india
    from: [cert.fr.example]
    to: [cert.in.example]
    tlp: [CLEAR, GREEN, AMBER, AMBER+STRICT, RED]
    tiers: [standard, sensitive, dual_use]
    share: {less}"""


@dataclass(frozen=True)
class Exchanged:
    """The exchange after everybody is caught up."""

    net: Net
    source: dict[str, JsonObject]  # by tracking id: every document that the validator holds valid
    invalid: dict[str, list[str]]  # by file: the tests that every other one fails
    report: JsonObject  # what the command line said of its second, resuming run
    killed_after: int
    log: list[Any]


@pytest.fixture(scope="module")
def exchanged(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchanged]:
    """The exchange, run once for this module."""
    folder = tmp_path_factory.mktemp("corpora")
    source, invalid = _judged(corpora / "csaf-real")
    with ExitStack() as ends:
        world = make_world(folder, FR, DE, IN)
        agree(world, grants=GRANTS.format(all=ALL_OF_IT, less=NO_PERSONAL_OR_EXPLOIT))
        # from here on the real clock, which the command line uses too
        real = World({name: main.open_node(node.home) for name, node in world.nodes.items()}, world.clock)
        ends.callback(real.close)
        world.close()
        killed_after = _import_and_kill(real[FR], corpora / "csaf-real")
        done = _import(real[FR].home, corpora / "csaf-real")
        out, _ = done.communicate(timeout=PATIENCE_S)
        net = Net(real, ends)
        with structlog.testing.capture_logs() as log:
            net.serve(FR)
            for receiver in (DE, IN):
                net.polls(receiver).start()
            until(lambda: all(_caught_up(real[FR], receiver) for receiver in (DE, IN)), PATIENCE_S)
            until(lambda: sum(line["event"] == "sync" for line in log) >= 2, PATIENCE_S)
        yield Exchanged(net, source, invalid, json.loads(out), killed_after, log)


def _caught_up(sender: Node, receiver: NodeId) -> bool:
    with read(sender.engine) as tx:
        feed = feeds.out_feed(tx, receiver)
    return feed.receipt_size == feed.size


def _judged(folder: Path) -> tuple[dict[str, JsonObject], dict[str, list[str]]]:
    valid, invalid = {}, {}
    for path in sorted(folder.rglob("*.json")):
        document = json.loads(path.read_bytes())
        problems = csaf.problems(document)
        if problems:
            invalid[str(path)] = sorted({problem.test for problem in problems})
        else:
            valid[document["document"]["tracking"]["id"]] = document
    return valid, invalid


def _import(home: Path, folder: Path) -> Running:
    return Running("--home", str(home), "advisory", "import", str(folder), "--release", "--tlp", "CLEAR", "--json")


def _import_and_kill(node: Node, folder: Path) -> int:
    """Starts the import and kills it once some advisories are in; returns how many are."""
    process = _import(node.home, folder)
    until(lambda: process.poll() is not None or len(advisories.all_advisories(node)) >= ENOUGH_TO_KILL, PATIENCE_S)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return len(advisories.all_advisories(node))


def test_every_valid_document_is_released_and_every_other_refused_with_its_reason(exchanged: Exchanged) -> None:
    report = exchanged.report
    assert report["already"] >= exchanged.killed_after >= ENOUGH_TO_KILL
    assert report["imported"] + report["already"] == len(exchanged.source)
    assert {row["file"] for row in report["refused"]} == set(exchanged.invalid)
    for row in report["refused"]:
        named = [test for test in exchanged.invalid[row["file"]] if test in row["reason"]]
        assert named, row
    assert report["held"] == []
    assert report["released_to_nobody"] == []
    print(f"{len(exchanged.source)} released, {len(exchanged.invalid)} refused")


@pytest.mark.invariant("I9")
def test_all_of_it_arrives_equal_under_a_full_agreement(exchanged: Exchanged) -> None:
    germany = exchanged.net.world[DE]
    assert _outcomes(germany) <= {Disposition.ADMITTED, Disposition.CONTROL}
    items = inbox.items(germany)
    assert {item.name for item in items} == set(exchanged.source)
    for item in items:
        assert inbox.content(germany, item.name).csaf == exchanged.source[item.name], item.name


def test_every_export_without_personal_and_exploit_is_valid_csaf(exchanged: Exchanged) -> None:
    india = exchanged.net.world[IN]
    items = inbox.items(india)
    assert {item.name for item in items} == set(exchanged.source)
    for item in items:
        assert csaf.problems(inbox.content(india, item.name).csaf) == (), item.name


def test_every_export_verifies_in_an_independent_implementation(exchanged: Exchanged) -> None:
    france, india = exchanged.net.world[FR], exchanged.net.world[IN]
    public = next(key.public for key in france.card.keys if key.role is Role.ISSUE)
    key = JWK(kty="OKP", crv="Ed25519", x=b64url(public))
    for item in inbox.items(india):
        content = inbox.content(india, item.name)
        claims = SDJWTVerifier(content.compact, lambda *_: key, None, None).get_verified_payload()
        assert claims["csaf"] == content.csaf, item.name


@pytest.mark.invariant("I4")
def test_nothing_withheld_is_found_at_the_receiver(exchanged: Exchanged) -> None:
    france = exchanged.net.world[FR]
    found = {IN: 0, DE: 0}
    narrowed, searched = [], 0
    everywhere: list[Withheld] = []
    for name in exchanged.source:
        summary, outcome = releases.explain(france, name, IN)
        _, own = advisories.own_advisory(france, name)
        secrets = _withheld(own, outcome)
        everywhere.extend(secrets)
        searched += bool(secrets)
        if outcome.presented is not None and outcome.presented.narrowed:
            narrowed.append((name, outcome.presented.narrowed))
        for receiver in found:
            stored = _decoded(exchanged.net.world[receiver], summary.name)
            found[receiver] += len(search(stored, {}, secrets))
    assert searched > len(exchanged.source) / 4  # else this would prove little
    assert found[DE] >= searched / 2  # the positive control: Germany got what India did not
    assert found[IN] == 0
    assert any(line["event"] == "sync" for line in exchanged.log)
    assert search({"log": exchanged.log}, {}, everywhere) == ()
    assert search({"log": [{"event": _a_term(everywhere)}]}, {}, everywhere) != ()
    print(f"{searched} documents with something withheld; the guard narrowed {len(narrowed)} further:")
    for name, paths in narrowed:
        print(f"  {name}: {', '.join(paths)}")


def _outcomes(node: Node) -> set[str]:
    with read(node.engine) as tx:
        return set(tx.execute(select(in_entries.c.outcome)).scalars().all())


def _withheld(own: OwnAdvisory, outcome: releases.Outcome) -> list[Withheld]:
    values = {node.digest: node.disclosure.value for node in own.nodes}
    return [
        Withheld(e.element.path, e.element.categories, values[digest])
        for e in outcome.decision.elements
        if e.form is not Form.FULL and (digest := e.element.full or e.element.generalised) is not None
    ]


def _a_term(secrets: list[Withheld]) -> Any:
    return next(secret.value for secret in secrets if "personal" in secret.categories)


def _decoded(node: Node, name: str) -> dict[str, Any]:
    """Every row that the receiver holds of one advisory, entries opened down to their claims, by a name for the row."""
    found: dict[str, Any] = {}
    with read(node.engine) as tx:
        for table in (metadata.tables["inbox"], metadata.tables["audit"]):
            column = table.c.name if "name" in table.c else table.c.subject
            rows = tx.execute(select(table).where(column == name)).mappings().all()
            found[table.name] = [[value for value in row.values() if isinstance(value, str)] for row in rows]
        places = tx.execute(
            select(metadata.tables["inbox"].c.feed, metadata.tables["inbox"].c.seq).where(
                metadata.tables["inbox"].c.name == name
            )
        ).all()
        for place in places:
            row = tx.execute(
                select(in_entries).where(in_entries.c.feed == place.feed, in_entries.c.seq == place.seq)
            ).one()
            body = entries.read(row.data).body
            assert isinstance(body, Delivery)
            payload = sdjwt.read_header_and_payload(body.presentation.core).payload
            nodes = sdjwt.process(payload, body.presentation.disclosures).nodes
            found[f"entry {place.seq}"] = [node.disclosure.value for node in nodes]
            found[f"entry {place.seq} core"] = payload
            found[f"entry {place.seq} outcome"] = [row.code or "", row.detail or ""]
    return found
