"""This node's own card: the newest one in the database, which a running server reads again when it is told to.

Every card that the node ever had is kept: an auditor needs the one that was current when something was signed.
"""

from datetime import datetime

from sqlalchemy import Connection, Engine, insert, select

from federation import keyring
from federation.errors import MalformedError, SignatureError, UsageError
from federation.keyring import Card, OnlineKey
from federation.model import Role
from node.store.database import read
from node.store.tables import own_cards


class OwnCard:
    """The current card. `reload` after another process may have installed a new one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.document, self.card = _newest(engine)

    def every_key(self) -> tuple[OnlineKey, ...]:
        """Every online key that this node has ever had."""
        with read(self._engine) as tx:
            documents = tx.execute(select(own_cards.c.document)).scalars().all()
        return tuple(key for document in documents for key in keyring.unverified(document).keys)

    def oldest_of_use(self, tx: Connection, now: datetime) -> int:
        """The oldest version with a TLS key that is still on the current card and valid.

        Of a node that has just enrolled this one it is not known which card it was given; the keys of this one serve
        for all from there on.
        """
        current = {key.kid for key in self.card.keys if key.role is Role.TLS and key.valid_at(now)}
        cards = [keyring.unverified(document) for document in history(tx)]
        shared = (card.version for card in cards if current & {key.kid for key in card.keys})
        return min((*shared, self.card.version))

    def reload(self) -> None:
        """Reads the newest card again. Raises UsageError when it is missing or damaged."""
        self.document, self.card = _newest(self._engine)


def store(tx: Connection, card: Card, document: bytes, *, at: datetime, by: str) -> None:
    """Makes `document` the current card."""
    tx.execute(insert(own_cards).values(version=card.version, document=document, installed_at=at, installed_by=by))


def history(tx: Connection) -> tuple[bytes, ...]:
    """Every card that this node has had, oldest first."""
    return tuple(tx.execute(select(own_cards.c.document).order_by(own_cards.c.version)).scalars())


def _newest(engine: Engine) -> tuple[bytes, Card]:
    with read(engine) as tx:
        found = tx.execute(select(own_cards.c.document).order_by(own_cards.c.version.desc()).limit(2)).scalars().all()
    if not found:
        raise UsageError("the database holds no card of this node: restore it from a backup")
    document, *before = found
    try:
        return document, keyring.open_card(document, keyring.unverified(before[0]).roots if before else None)
    except (MalformedError, SignatureError) as e:
        raise UsageError("this node's own card is damaged in the database: restore it from a backup") from e
