"""Chains of nodes for tests: neighbours exchange with each other; of all others they know the card and no more.

An origin, relays, recipients: what one end sends reaches the other only if somebody between them passes it on.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import select

from federation.base64url import b64url
from federation.entries import Delivery
from federation.entries import read as read_entry
from federation.model import NodeId
from federation.sdjwt import read_header_and_payload
from node.desk import inbox
from node.peering import agreements, peers
from node.peering.agreements import Held
from node.sharing import passing, relays, releases
from node.sharing.relays import Given
from node.store.database import read
from node.store.tables import audit, in_entries, in_feeds
from tests.nodes import (
    COUNTRY_OF,
    DE,
    FR,
    IN,
    PEOPLE,
    World,
    begin,
    clock_of,
    document,
    history,
    import_document,
    make_node,
    remembered,
    terms_text,
)

KE = NodeId("cert.ke.example")
Link = tuple[NodeId, NodeId]
LINE: tuple[Link, ...] = ((FR, DE), (DE, IN))
NAME = "CERT-FR-2026-0001"


@dataclass(slots=True)
class Chain(World):
    """Nodes of which only the pairs in `links` exchange with each other."""

    links: tuple[Link, ...] = LINE

    def sync_all(self, rounds: int = 1) -> None:
        """Everybody pulls from every neighbour, `rounds` times."""
        for _ in range(rounds):
            for one, other in self.links:
                self.sync(other, one)
                self.sync(one, other)


def make_chain(
    folder: Path,
    *links: Link,
    packs: tuple[str, ...] = (),
    databases: Mapping[NodeId, str | None] = MappingProxyType({}),
) -> Chain:
    """The nodes that `links` name (FR to DE to IN if there is none); no agreement yet."""
    links = links or LINE
    names = dict.fromkeys(name for link in links for name in link)
    made = {
        name: make_node(folder, name, {**COUNTRY_OF, KE: "KE"}[name], packs=packs, database=databases.get(name))
        for name in names
    }
    clock = clock_of(made.values())
    nodes = {name: replace(node, clock=clock, actor="alice", people=PEOPLE) for name, node in made.items()}
    chain = Chain(nodes, clock, links=links)

    def enrol() -> None:
        for node in nodes.values():
            for other in nodes.values():
                if other is not node:
                    peers.enrol(node, other.card_bytes, direct={node.id, other.id} in map(set, links))

    if any(databases.values()):
        enrol()
    else:
        begin(chain, packs, links)
        remembered(chain, "enrol", enrol)
    return chain


def join(chain: Chain, one: NodeId, other: NodeId, **changed: Any) -> Held:
    """An agreement in force between two neighbours: everything, both ways; members replaced by `changed`."""
    name = f"{one.split('.')[1]}-{other.split('.')[1]}"
    terms = {"agreement": name, "parties": f"[{one}, {other}]", **changed}

    def sign() -> None:
        held = agreements.propose(chain[one], terms_text(chain, **terms), "agreement.yaml")
        chain.sync(other, one)
        agreements.countersign(chain[other], held.agreement.digest.hex())
        chain.sync(one, other)

    remembered(chain, f"join {terms}", sign)
    return agreements.find(chain[one], terms["agreement"])


def send(
    chain: Chain, name: str = NAME, *, handling: Mapping[str, Any] | None = None, labels: Any = None, **more: Any
) -> int:
    """FR releases a document to DE, who takes it in; returns its number in the inbox of DE."""

    def exchange() -> None:
        import_document(chain[FR], document(name, **more), handling=handling, labels=labels)
        releases.release(chain[FR], name, (DE,))
        chain.sync(DE, FR)

    remembered(chain, f"send {name} {handling} {labels} {more}", exchange)
    return next(item.id for item in inbox.items(chain[DE], every_state=True) if item.name == name)


def give(chain: Chain, name: str = NAME, *, to: NodeId = IN, relay: NodeId = DE, **changed: Any) -> Given:
    """FR lets a relay pass `name` on to one recipient for a month, and the relay learns of it."""
    chosen = {"categories": None, "until": chain.clock() + timedelta(days=30), **changed}
    given, _ = relays.give(chain[FR], name, relay, (to,), chosen["categories"], chosen["until"])
    with suppress(KeyError):
        chain.sync(relay, FR)
    return given


def pass_on(chain: Chain, item: int, *withhold: str, to: NodeId = IN, by: NodeId = DE) -> releases.Outcome:
    """What comes of passing an item of the inbox of DE on to one peer."""
    _, (outcome,) = passing.pass_on(chain[by], str(item), (to,), withhold)
    return outcome


def arrived(chain: Chain, at: NodeId = IN) -> inbox.Content:
    """The one advisory that `at` can work with."""
    (item,) = inbox.items(chain[at])
    return inbox.content(chain[at], str(item.id))


def last_delivery(chain: Chain, sender: NodeId, recipient: NodeId) -> Delivery:
    """The newest presentation in a feed whose bytes are there."""
    bodies = [read_entry(data).body for data in history(chain[sender], recipient) if isinstance(data, bytes)]
    return [body for body in bodies if isinstance(body, Delivery)][-1]


def last_entry(chain: Chain, at: NodeId = IN, sender: NodeId = DE) -> tuple[str, str | None, bytes | None]:
    """What became of the newest entry that `at` holds from `sender`: outcome, code and stored bytes."""
    with read(chain[at].engine) as tx:
        row = tx.execute(
            select(in_entries)
            .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
            .where(in_feeds.c.peer == sender)
            .order_by(in_entries.c.seq.desc())
        ).first()
    assert row is not None
    return row.outcome, row.code, row.data


def acts(chain: Chain, at: NodeId, *names: str) -> list[tuple[str, str, str, str]]:
    """Who did these acts at a node: act, by, subject, detail."""
    with read(chain[at].engine) as tx:
        rows = tx.execute(select(audit).where(audit.c.act.in_(names)).order_by(audit.c.id)).all()
    return [(row.act, row.by, row.subject, row.detail) for row in rows]


def retagged(core: bytes, **handling: Any) -> bytes:
    """A core with other handling under the old signature."""
    from federation.strictjson import encode

    read_core = read_header_and_payload(core)
    payload = {**read_core.payload, "handling": {**read_core.payload["handling"], **handling}}
    header, _, signature = core.split(b".")
    return b".".join((header, b64url(encode(payload)).encode(), signature))
