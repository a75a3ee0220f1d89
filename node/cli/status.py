"""`apostille status`: how the node and its feeds are doing."""

from typing import TYPE_CHECKING, Any

from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.operation.overview import Exchange

app = make.single()
_MOST_NAMES = 10  # of advisories in one note


@make.command(app, "status", "apostille status", "apostille --home /srv/apostille status --json")
def status(as_json: make.AsJson = False) -> None:
    """Shows whether the server runs, how the feeds to and from each peer stand, and what lies here.

    Sent: entries in our feed to a peer, and how many of them it has acknowledged as safely stored.
    Problem: the code of the last failed fetch; FROZEN: the peer's history contradicts itself, people must look.
    """
    from node.operation.overview import overview

    node = session.node()
    found, serving = overview(node), session.serving_address()
    if as_json:
        screen.emit(
            {
                "node": node.id,
                "jurisdiction": node.jurisdiction,
                "home": str(node.home),
                "listen": node.listen,
                "serving": serving is not None,
                "address": serving,
                "peers": [_data(exchange) for exchange in found.exchanges],
                "inbox": found.inbox,
                "unread": found.unread,
                "set_aside": found.set_aside,
                "alarms": found.alarms,
                "incidents": found.incidents,
                "drafts": found.drafts,
                "issued": found.issued,
                "agreements_in_force": found.agreements_in_force,
                "unsettled": found.unsettled,
                "unsettled_of": found.unsettled_of,
                "withdrawn": [{"advisory": name, "peer": peer} for name, peer in found.withdrawn],
            }
        )
        return
    screen.facts(
        [
            ("Node", f"{node.id} ({node.jurisdiction})"),
            ("Home", node.home),
            ("Server", f"running on {serving}" if serving else "not running (apostille serve)"),
            ("Agreements in force", found.agreements_in_force),
            ("Own advisories", f"{found.issued} issued, {found.drafts} in draft"),
            ("Inbox", f"{found.inbox} to work with, {found.unread} unread"),
            ("Set aside", f"{found.set_aside} (apostille quarantine list)" if found.set_aside else 0),
            ("Alarms", screen.Alarming(f"{found.alarms} open (apostille alerts list)") if found.alarms else 0),
            *(
                [("Incidents", screen.Alarming(f"{found.incidents} open (apostille peer incident list)"))]
                if found.incidents
                else []
            ),
        ]
    )
    if found.unsettled:
        screen.note(
            f"{found.unsettled} times a peer is left with an earlier revision of an advisory, and nobody has decided on"
            f" it: apostille advisory holders NAME. This is so of {', '.join(found.unsettled_of[:_MOST_NAMES])}"
            f"{' and others' if len(found.unsettled_of) > _MOST_NAMES else ''}."
        )
    for name, peer in found.withdrawn:
        screen.note(
            f"{name} was taken back from {peer}, as rules or agreements changed. Release it again, or leave it so."
        )
    if not found.exchanges:
        screen.note("No peer is enrolled. Take one in with: apostille peer enrol CARD")
        return
    screen.table(
        ("Peer", "Trust", "#Sent", "#Acknowledged", "#Received", "Last contact", "Problem"),
        [
            (
                e.peer,
                "trusted" if e.trusted else "DISTRUSTED",
                e.sent,
                e.acknowledged,
                e.received,
                e.contact_at or "never",
                f"FROZEN: {e.frozen}" if e.frozen else e.problem,
            )
            for e in found.exchanges
        ],
    )


def _data(exchange: "Exchange") -> dict[str, Any]:
    return {
        "peer": exchange.peer,
        "trusted": exchange.trusted,
        "sent": exchange.sent,
        "acknowledged": exchange.acknowledged,
        "receipt_at": exchange.receipt_at,
        "received": exchange.received,
        "contact_at": exchange.contact_at,
        "problem": exchange.problem,
        "frozen": exchange.frozen,
    }
