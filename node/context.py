"""What every use case of a running node works with, put together by `node.main`."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine

from federation.keyring import Card
from federation.labels import LabelSet
from federation.model import Country, NodeId
from federation.policy.engine import RuleBook
from node.keys import Keys


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its use cases see it. `actor` is the local user on whose behalf things happen."""

    id: NodeId
    jurisdiction: Country
    home: Path
    listen: str
    poll_interval_s: int
    card: Card
    card_bytes: bytes
    keys: Keys
    engine: Engine
    labels: LabelSet
    book: RuleBook
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    actor: str
