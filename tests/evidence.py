"""A history with everything that a ledger can tell, for tests of proofs and of tampering.

FR sends to DE, who passes some of it on to IN. Keys and root keys change on the way.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from federation.errors import AwaitsSecondError
from federation.keyring import for_newcomers
from federation.model import NodeId, Role, instant_text
from federation.recall import Reason
from node import acts
from node.audit import proofs
from node.desk import inbox
from node.home import owncard
from node.home.context import Node
from node.peering import peers, rotation
from node.peering.rotation import Change
from node.records import approvals
from node.sharing import passing, recalls, releases, retention
from node.store.database import read
from tests.chains import Chain, give, join, make_chain
from tests.nodes import DE, FR, IN, document, import_document

SHARE = "{identification: full, technical: full, severity: full, personal: generalised}"
GRANTS = f"[{{id: part, tlp: [CLEAR, GREEN, AMBER], share: {SHARE}}}]"
THANKS = [{"names": ["Maria Musterfrau"], "summary": "who found it"}]
ONWARD = {"tlp": "GREEN", "onward": "peers"}


@dataclass(frozen=True, slots=True)
class History:
    """The nodes, and every release of the history: by its name, who sent it to whom."""

    chain: Chain
    releases: dict[str, tuple[NodeId, NodeId]]

    def export(self, name: str) -> proofs.Exported:
        """The proof of one release, made now."""
        sender, recipient = self.releases[name]
        return proofs.export(self.chain[sender], name.partition(" ")[0], recipient)

    def cards(self, *, newest: bool = False) -> list[bytes]:
        """The cards of each node, as they were handed out: all that it ever had, or the newest."""
        found = []
        for node in self.chain.nodes.values():
            with read(node.engine) as tx:
                found += [for_newcomers(document) for document in owncard.history(tx)[-1 if newest else 0 :]]
        return found


@contextmanager
def make_history(folder: Path) -> Iterator[History]:
    """The whole history; every receipt has come but the one for `LATE`. IN sets aside `STRANGE`."""
    chain = make_chain(folder)
    join(chain, FR, DE, grants=GRANTS, onward="peers")
    join(chain, DE, IN, grants=GRANTS, onward="peers")
    made = History(chain, {})
    try:
        _before(made)
        _rotate(made)
        _after(made)
        yield made
    finally:
        chain.close()


def _before(made: History) -> None:
    chain = made.chain
    _send(made, "FIRST")
    _send(made, "PART", acknowledgments=THANKS, vulnerabilities=[{"title": "One", "notes": [_note("Deep.")]}])
    _send(made, "BACK")
    _send(made, "RECALLED", handling=ONWARD)
    _send(made, "ENDED", handling={"tlp": "GREEN", "retain_until": instant_text(chain.clock() + timedelta(days=3))})
    chain.sync_all(2)
    _pass_on(made, "RECALLED")
    _send(made, "NEVER")
    releases.withdraw(chain[FR], "NEVER", DE)
    releases.withdraw(chain[FR], "BACK", DE)
    recalls.give(chain[FR], "RECALLED", Reason.ERROR)
    chain.sync_all(3)


def _rotate(made: History) -> None:
    chain = made.chain
    for name in (FR, DE):
        chain.clock.move(days=1)
        rotation.change(chain[name], Change(rotate=tuple(Role)))
        chain.sync_all(2)
    change_roots(chain[FR])
    chain.sync_all(2)
    chain.clock.move(days=20)
    for node in chain.nodes.values():
        retention.expire(node)
    chain.sync_all(2)


def _after(made: History) -> None:
    chain = made.chain
    _send(made, "ONWARD", handling=ONWARD)
    _send(made, "GRANTED")
    chain.sync_all(2)
    _pass_on(made, "ONWARD")
    give(chain, "GRANTED")
    _pass_on(made, "GRANTED")
    _send(made, "STRANGE", handling=ONWARD)
    chain.sync_all(2)
    peers.distrust(chain[IN], FR)
    _pass_on(made, "STRANGE")
    chain.sync_all(2)
    _send(made, "LATE")


def change_roots(node: Node) -> None:
    """New root keys, by two people."""
    with suppress(AwaitsSecondError):
        rotation.install(node, rotation.new_roots(node, 2, 1), "one root key was lost")
    (request,) = approvals.pending(node)
    approvals.settle(replace(node, actor="bob"), request.number, acts.registry(), approve=True)
    node.own.reload()


def _send(made: History, name: str, *, handling: Any = None, acknowledgments: Any = None, **more: Any) -> None:
    content = document(name, title=f"Title of {name}", **more)
    if acknowledgments:
        content["document"]["acknowledgments"] = acknowledgments
    import_document(made.chain[FR], content, handling=handling)
    releases.release(made.chain[FR], name, (DE,))
    made.releases[name] = (FR, DE)


def _pass_on(made: History, name: str) -> None:
    item = next(item for item in inbox.items(made.chain[DE]) if item.name == name)
    _, (outcome,) = passing.pass_on(made.chain[DE], str(item.id), (IN,))
    assert outcome.seq is not None, outcome
    made.releases[f"{name} on"] = (DE, IN)


def _note(text: str) -> dict[str, str]:
    return {"category": "details", "text": text}
