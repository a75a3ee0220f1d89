"""Grants: an origin's leave to a relay to pass one of its advisories on; giving and listing them."""

import re
from datetime import datetime
from typing import Any

from federation.errors import MalformedError, UsageError
from federation.model import Category, NodeId, instant
from node.cli import screen, session
from node.sharing import relays
from node.sharing.relays import Given

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def give(name: str, relay: str, to: list[str], until: str, categories: list[Category] | None, *, as_json: bool) -> None:
    """Gives a grant and tells what it covers."""
    node = session.node()
    given, fresh = relays.give(node, name, NodeId(relay), map(NodeId, to), categories or None, _until(until))
    session.wake()
    if as_json:
        screen.emit({**_data(given), "fresh": fresh})
        return
    screen.facts(
        [
            ("Advisory", f"{given.name}, revision {given.revision}"),
            ("Relay", given.grant.relay),
            ("To", given.grant.recipients),
            ("Parts of these kinds", given.grant.categories),
            ("Until", given.grant.until),
        ]
    )
    screen.note("The grant goes to the relay with its next pull." if fresh else "Given before; nothing was changed.")


def show(*, as_json: bool) -> None:
    """Lists every grant."""
    node = session.node()
    found = relays.all_grants(node)
    if as_json:
        screen.emit([_data(given) for given in found])
        return
    if not found:
        screen.note("There is no grant. Give one with: apostille advisory grant NAME --relay NODE --to NODE ...")
        return
    now = node.clock()
    screen.table(
        ("Origin", "Advisory", "#Rev.", "Relay", "To", "Kinds", "Until", "State"),
        [
            (
                given.grant.origin,
                given.name or f"(not here) {given.grant.core_digest.hex()[:16]}",
                given.revision,
                given.grant.relay,
                given.grant.recipients,
                given.grant.categories,
                given.grant.until,
                "in force" if now < given.grant.until else "expired",
            )
            for given in found
        ],
    )


def _until(text: str) -> datetime:
    """The instant that a person wrote: a day, which it does not include, or an instant. Raises UsageError."""
    try:
        return instant(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    except MalformedError as e:
        raise UsageError(f"--until {text}: expected a day such as 2027-03-01, or 2027-03-01T12:00:00Z") from e


def _data(given: Given) -> dict[str, Any]:
    return {
        "grant": given.grant.digest,
        "origin": given.grant.origin,
        "advisory": given.name,
        "revision": given.revision,
        "core_digest": given.grant.core_digest,
        "relay": given.grant.relay,
        "to": given.grant.recipients,
        "categories": given.grant.categories,
        "until": given.grant.until,
        "at": given.at,
        "by": given.by,
    }
