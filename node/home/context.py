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
from node.home.keys import Keys
from node.home.owncard import OwnCard
from node.home.people import People, Post, require


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its use cases see it.

    `actor` is the local account on whose behalf things happen, `start` 16 random bytes that tell this start of a
    process from every other, so that what was confirmed to an earlier one does not count.
    """

    id: NodeId
    jurisdiction: Country
    home: Path
    listen: str
    poll_interval_s: int
    own: OwnCard
    keys: Keys
    engine: Engine
    labels: LabelSet
    book: RuleBook
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    actor: str
    people: People
    start: bytes

    @property
    def card(self) -> Card:
        """This node's own card, as it is now."""
        return self.own.card

    @property
    def card_bytes(self) -> bytes:
        """The same as the signed document."""
        return self.own.document

    def allow(self, post: Post) -> None:
        """Refuses what follows unless the actor holds `post`. Raises NotAllowedError."""
        require(self.people, self.actor, post)
