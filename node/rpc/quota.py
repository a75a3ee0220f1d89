"""How much one peer may ask for: calls a second (a token bucket) and calls at once, each peer by itself.

Kept in memory: a restart forgives. Refused before anything of the request is read.
"""

import threading
from dataclasses import dataclass

from federation.errors import OverQuotaError
from federation.model import NodeId
from node.rpc.limits import CALL_BURST, CALLS_AT_ONCE, CALLS_PER_SECOND


@dataclass(slots=True)
class _Share:
    """What is left to one peer. `tokens` as of `at_s`."""

    tokens: float
    at_s: float
    at_once: int = 0


class Quota:
    """The shares of all peers. `now_s` is any clock that never goes back, in seconds. Safe for several threads."""

    def __init__(self) -> None:
        self._shares: dict[NodeId, _Share] = {}
        self._lock = threading.Lock()

    def enter(self, peer: NodeId, now_s: float) -> None:
        """Takes one call from the share of `peer`; `leave` must follow. Raises OverQuotaError, and takes nothing."""
        with self._lock:
            share = self._shares.setdefault(peer, _Share(CALL_BURST, now_s))
            share.tokens = min(CALL_BURST, share.tokens + (now_s - share.at_s) * CALLS_PER_SECOND)
            share.at_s = now_s
            if share.tokens < 1:
                raise OverQuotaError(f"{peer}: over {CALLS_PER_SECOND} calls a second")
            if share.at_once >= CALLS_AT_ONCE:
                raise OverQuotaError(f"{peer}: over {CALLS_AT_ONCE} calls at once")
            share.tokens -= 1
            share.at_once += 1

    def leave(self, peer: NodeId) -> None:
        """Says that a call is over, its work included."""
        with self._lock:
            self._shares[peer].at_once -= 1
