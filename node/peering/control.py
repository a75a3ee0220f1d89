"""Control traffic: what goes to an enrolled peer whether or not an agreement is in force.

Cards, agreements, recalls, withdrawals, purges, statements, grants. A law pack may forbid even these, and a peer that
speaks an older protocol version may not know them: then the message waits for a person, with an alarm.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection

from federation.entries import Body, Kind, kind_of
from federation.errors import HeldError
from federation.keyring import Card
from federation.policy.decide import may_notify
from federation.policy.schema import Control
from node.home.context import Node
from node.peering import feeds
from node.peering.feeds import Place
from node.records.alarms import Alarm, raise_alarm, raise_faults
from node.store.database import record

_CONTROL: Final[Mapping[Kind, Control]] = {kind: Control(kind.value) for kind in Kind if kind is not Kind.PRESENTATION}


def send(node: Node, tx: Connection, card: Card, body: Body) -> Place:
    """Appends a control message to the feed to a peer. Raises HeldError when law or its version does not allow it."""
    control = _CONTROL[kind_of(body)]
    may_notify(control, node.jurisdiction, card.node, card.jurisdiction, node.book, node.clock())
    return feeds.append(node, tx, card.node, body)


def offer(node: Node, tx: Connection, card: Card, body: Body) -> Place | None:
    """The same; None when it is held back, which is recorded and raises an alarm."""
    try:
        return send(node, tx, card, body)
    except HeldError as e:
        now, kind = node.clock(), kind_of(body)
        record(tx, at=now, by=feeds.POLICY, act=f"{kind}.held", subject=card.node, detail=str(e))
        raise_alarm(tx, Alarm.HELD, f"{card.node} {kind}", "a control message may not go to this peer", now)
        raise_faults(tx, e.faults, now)
        return None
