"""Incidents: evidence that a peer has broken the protocol, kept until two people settle it (I8).

An incident holds what was signed, so that a third party can judge it without us: heads that contradict each other, or
two cores under one revision.
"""

from datetime import datetime

from sqlalchemy import Connection, insert

from federation import strictjson
from federation.model import JsonObject, NodeId
from node.alarms import Alarm, raise_alarm
from node.store.tables import incidents


def open_incident(
    tx: Connection, code: str, peer: NodeId, subject: str, evidence: JsonObject, detail: str, now: datetime
) -> None:
    """Keeps evidence against `peer` and raises the alarm. `code` is that of the error, `evidence` JSON."""
    tx.execute(
        insert(incidents).values(
            kind=code, peer=peer, subject=subject, evidence=strictjson.encode(evidence), opened_at=now
        )
    )
    raise_alarm(tx, Alarm(code), peer, detail, now)
