"""What people do after a run: as the operator's guide says it, until nobody has anything to fetch."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import NoReturn

from federation.errors import (
    AwaitsSecondError,
    DamagedError,
    EpochError,
    EquivocationError,
    LocalError,
    LockedError,
    PolicyError,
    RemoteError,
    UnconfirmedError,
)
from federation.model import NodeId
from node import acts
from node.desk import resolutions
from node.exchange import epochs
from node.peering import peers
from node.records import approvals
from tests.copies import accept_epoch, open_epoch
from tests.faults.simulation import PARTIES, CrashError, Ground, Run, pairs

ROUNDS_TO_HEAL = 14
FAULTS = (CrashError, RemoteError, LocalError)
NEVER = (DamagedError, PolicyError, LockedError)


class Healing(Run):
    """A run that can be healed."""

    def __init__(self, ground: Ground, seed: int) -> None:
        super().__init__(ground, seed)
        self.told: list[str] = []

    def both(self, ask: "partial[NoReturn]") -> None:
        """Two people at a node."""
        try:
            ask()
        except AwaitsSecondError as e:
            approvals.settle(replace(ask.args[0], actor="bob"), e.number, acts.registry(), approve=True)

    def heal(self) -> str:
        """Faults end, and people settle what waits for them, until nobody has anything to fetch."""
        self.cut.clear()
        self.wrong = dict.fromkeys(PARTIES, timedelta())
        self.clock.now += timedelta(minutes=1)
        self.one_goes_on()
        for _ in range(ROUNDS_TO_HEAL):
            for name in PARTIES:
                self.settle(name)
            mended = [self.mend(*pair) for pair in pairs()]
            if all(mended):
                self.lost.clear()
                self.saved = {name: [self.ground.save(name)] for name in PARTIES}
                return "healing"
        raise AssertionError("it does not heal")

    def settle(self, name: NodeId) -> None:
        """Two people at a node settle incidents, and trust everybody again."""
        node, store = self.world[name], self.stores[name]
        for number, kind in store.rows("SELECT id, kind FROM incidents WHERE resolved_at IS NULL ORDER BY id"):
            assert isinstance(number, int)
            neither = kind == EquivocationError.code
            self.both(partial(resolutions.resolve, node, number, "asked", neither=neither))
        for (peer,) in store.rows("SELECT node FROM peers WHERE trusted = 0"):
            self.both(partial(peers.trust_again, node, NodeId(str(peer)), "telephoned"))

    def mend(self, receiver: NodeId, sender: NodeId) -> bool:
        """One sync, if there is anything to do, and what two people do where it fails."""
        if not self.behind(receiver, sender):
            return True
        try:
            self.sync(receiver, sender)
        except EpochError:
            accept_epoch(self.world[receiver], sender)
        except UnconfirmedError:
            states = [e.state for e in epochs.all_epochs(self.world[sender], receiver) if e.outgoing]
            if states[-1] == "waits for a new epoch":
                open_epoch(self.world[sender], receiver)
            else:
                self.clock.now += timedelta(minutes=15)
        except NEVER:
            raise
        except FAULTS as e:
            self.told.append(f"healing: {receiver} from {sender}: {type(e).__name__} {e}")
        return False
