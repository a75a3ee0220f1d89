"""`apostille inbox`: advisories that peers sent, finding them and working with them."""

import json
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import HeldError, UsageError
from federation.model import NodeId, Tlp
from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.desk.inbox import Item
    from node.desk.work import Annotation

app = make.group(
    "Advisories that peers sent. What stands in one is said by its origin, whose signature was verified; parts that "
    "were not meant for this node are absent.",
    "apostille inbox list --cve CVE-2026-10042",
    "apostille inbox show 3",
    "apostille inbox export 3 --format csaf --out advisory.json",
)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ID = Annotated[str, typer.Argument(metavar="ID", help="Its number in `inbox list`, or its name.")]


class State(StrEnum):
    """The states of `node.desk.inbox.InboxState`."""

    CURRENT = "current"
    SUPERSEDED = "superseded"
    EQUIVOCATION = "equivocation"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"
    RECALLED = "recalled"
    EXPIRED = "expired"


class Format(StrEnum):
    """What `export` writes."""

    CSAF = "csaf"
    SD_JWT = "sd-jwt"


@make.command(
    app,
    "list",
    "apostille inbox list",
    "apostille inbox list --cve CVE-2026-10042",
    'apostille inbox list --product "acme gateway" --tlp AMBER --since 2026-11-01',
    'apostille inbox list --text "prompt injection" --unread --json',
    "apostille inbox list --assigned-to me",
)
def list_items(
    every: Annotated[
        bool,
        typer.Option("--all", help="Also what may not be worked with: superseded, disputed, withdrawn, expired, ..."),
    ] = False,
    state: Annotated[list[State] | None, typer.Option("--state", help="Only what is in this state.")] = None,
    cve: Annotated[str | None, typer.Option(metavar="CVE", help="That names this CVE number.")] = None,
    product: Annotated[
        str | None, typer.Option(metavar="TEXT", help="About a product whose name has all these words in it.")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="WORDS", help="With all these words in what it says.")] = None,
    tlp: Annotated[Tlp | None, typer.Option(help="Under this label.")] = None,
    origin: Annotated[str | None, typer.Option(metavar="NODE", help="Signed by this node.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Received on this day (UTC) or later.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="Received on this day (UTC) or before.")] = None,
    unread: Annotated[bool, typer.Option("--unread", help="That nobody here has read.")] = False,
    assigned_to: Annotated[
        str | None, typer.Option(metavar="ACCOUNT", help="Assigned to this person, or `me`.")
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Lists what may be used now, newest first: all of it, or what fits everything that is asked for.

    Words are looked for in what was disclosed to this node, wherever it stands, in any spelling of small and capital
    letters; `gate` finds Gateway.
    """
    from node.desk import inbox, work
    from node.desk.inbox import InboxState
    from node.desk.search import Query

    node = session.node()
    query = Query(
        cve=cve,
        product=product,
        text=text,
        tlp=tlp,
        origin=None if origin is None else NodeId(origin),
        since=None if since is None else _day(since, "--since"),
        until=None if until is None else _day(until, "--until") + timedelta(days=1),
        unread=unread,
        assigned_to=None if assigned_to is None else work.account_of(node, assigned_to),
    )
    found = inbox.items(node, query, states=[InboxState(one) for one in state or ()], every_state=every)
    if as_json:
        screen.emit([_data(item) for item in found])
        return
    if not found:
        asked = query != Query() or state or every
        screen.note("Nothing fits." if asked else "The inbox is empty. Fetch what peers have with: apostille sync")
        return
    screen.table(
        (
            "#Id",
            "Origin",
            "Advisory",
            "#Rev.",
            "TLP",
            "State",
            "Read",
            "Assigned to",
            "Done",
            "Keep until",
            "Received",
            "Title",
        ),
        [
            (
                i.id,
                i.origin,
                i.name,
                i.revision,
                i.tlp,
                i.state,
                i.read_at is not None,
                i.assigned_to,
                i.actioned_at is not None,
                i.retain_until,
                i.received_at,
                i.title,
            )
            for i in found
        ],
    )


@make.command(app, "show", "apostille inbox show 3", "apostille inbox show CB-2026-0042")
def show(reference: _ID, as_json: make.AsJson = False) -> None:
    """Shows a received advisory as far as it was disclosed to this node, and apart from that what people here wrote.

    For an analyst it counts as read from then on. Of one that is gone, only what people here wrote is left.
    """
    from node.cli import document
    from node.desk import inbox, work

    node = session.node()
    notes = work.annotations_of(node, inbox.find(node, reference))
    try:
        found = inbox.content(node, reference)
    except HeldError:
        _show_what_is_ours(inbox.find(node, reference), notes, as_json=as_json)
        raise
    item, terms = found.item, found.terms
    if as_json:
        screen.emit(
            {
                **_data(item),
                "disclosures": found.disclosures,
                "handling": found.handling,
                "terms": {
                    "agreement": terms.agreement_digest,
                    "purposes": terms.purposes,
                    "retain_until": terms.retain_until,
                    "storage": terms.storage,
                    "onward": terms.onward,
                    "attribution": terms.attribution,
                },
                "csaf": found.csaf,
                "ai": found.ai,
                "annotations": _notes(notes),
            }
        )
        work.mark_shown(node, item)
        return
    screen.facts(
        [
            ("Advisory", f"{item.name}, revision {item.revision}"),
            ("Origin", item.origin),
            ("Delivered by", f"{item.peer}, entry {item.seq}, {screen.cell(item.received_at)}"),
            ("TLP", item.tlp),
            ("State", item.state),
            ("May be used for", terms.purposes),
            ("May be kept in", "any country" if terms.storage is None else terms.storage),
            ("May be kept until", terms.retain_until),
            ("Not to be published before", found.handling["embargo_until"]),
            ("May be passed to", terms.onward),
            ("Provider's name", f"you {terms.attribution.replace('_', ' ')} tell it"),
            *_ours(item),
        ]
    )
    document.show(found.csaf, found.ai)
    _show_notes(notes)
    work.mark_shown(node, item)


@make.command(
    app,
    "export",
    "apostille inbox export 3 --format csaf --out advisory.json",
    "apostille inbox export CB-2026-0042 --format sd-jwt > advisory.sd-jwt",
)
def export(
    reference: _ID,
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="csaf: the document, unsigned. sd-jwt: what was signed, for any verifier of RFC 9901."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; stdout without it.")] = None,
) -> None:
    """Writes a received advisory for other tools: as a CSAF document, or as the signed original."""
    from node.desk import inbox

    found = inbox.content(session.node(), reference)
    if form is Format.SD_JWT:
        data = found.compact.encode() + b"\n"
    else:
        data = screen.json_text(found.csaf, indent=2).encode() + b"\n"
    if out is None:
        screen.raw(data)
        return
    session.write_file(out, data)
    screen.note(
        f"Wrote {out}. TLP:{found.item.tlp} and the terms of delivery go with it: apostille inbox show {reference}"
    )


@make.command(app, "read", "apostille inbox read 3")
def read(reference: _ID, as_json: make.AsJson = False) -> None:
    """Marks an item as read, as `inbox show` does."""
    from node.desk import work

    _told(work.mark_read(session.node(), reference), "is read", as_json=as_json)


@make.command(
    app, "assign", "apostille inbox assign 3 alice", "apostille inbox assign 3 me", "apostille inbox assign 3 --undo"
)
def assign(
    reference: _ID,
    account: Annotated[str | None, typer.Argument(help="An analyst of this node, or `me`.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="To nobody.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Assigns an item to somebody who works on it."""
    from node.desk import work

    if (account is None) is not undo:
        raise UsageError("say to whom, or --undo")
    item = work.assign(session.node(), reference, account)
    _told(item, f"is assigned to {item.assigned_to or 'nobody'}", as_json=as_json)


@make.command(app, "actioned", "apostille inbox actioned 3", "apostille inbox actioned 3 --undo")
def actioned(
    reference: _ID,
    undo: Annotated[bool, typer.Option("--undo", help="It has not been done after all.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Notes that what an item asks for has been done here."""
    from node.desk import work

    item = work.action(session.node(), reference, undo=undo)
    _told(item, "is open again" if undo else "is done", as_json=as_json)


@make.command(app, "annotate", "apostille inbox annotate 3 'affects the ministry, see case FR-2026-017'")
def annotate(
    reference: _ID,
    text: Annotated[str, typer.Argument(help="What to keep beside it.")],
    as_json: make.AsJson = False,
) -> None:
    """Keeps a text of ours beside an item. It never leaves this node, and stays when the item itself has to go.

    So do not copy into it what must not stay.
    """
    from node.desk import work

    _told(work.annotate(session.node(), reference, text), "is annotated", as_json=as_json)


@make.command(app, "diff", "apostille inbox diff CB-2026-0042", "apostille inbox diff 7 3 --json")
def diff(
    reference: _ID,
    other: Annotated[
        str | None, typer.Argument(help="What to compare it with; the delivery before it without this.")
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Compares two revisions of an advisory, or two deliveries of one, part by part.

    A part that the later one lacks was taken out or is withheld from this node: nobody here can tell which.
    """
    from node.desk import work
    from node.desk.work import Difference

    earlier, later, changes = work.diff(session.node(), reference, other)
    if as_json:
        screen.emit(
            {
                "earlier": _data(earlier),
                "later": _data(later),
                "changes": [
                    {"pointer": c.pointer, "difference": c.difference, "earlier": c.earlier, "later": c.later}
                    for c in changes
                ],
            }
        )
        return
    screen.facts(
        (about, f"number {i.id}, revision {i.revision}, by {i.peer}, {screen.cell(i.received_at)}")
        for about, i in (("Earlier", earlier), ("Later", later))
    )
    if not changes:
        screen.note("They say the same.")
        return
    lacks = {Difference.ONLY_LATER: earlier, Difference.ONLY_EARLIER: later}
    said = {how: f"not disclosed in number {item.id}" for how, item in lacks.items()}
    screen.table(
        ("Part", "Difference", "Earlier", "Later"),
        [(c.pointer, said.get(c.difference, c.difference), _value(c.earlier), _value(c.later)) for c in changes],
    )


def _show_what_is_ours(item: "Item", notes: "tuple[Annotation, ...]", *, as_json: bool) -> None:
    """Of an item that may not be shown: that it is gone or not used, and what people here wrote."""
    if as_json:
        screen.emit({**_data(item), "annotations": _notes(notes)})
        return
    screen.facts(
        [
            ("Advisory", f"{item.name}, revision {item.revision}"),
            ("Origin", item.origin),
            ("State", f"{item.state}: {item.gone}" if item.gone else item.state),
            *_ours(item),
        ]
    )
    _show_notes(notes)


def _ours(item: "Item") -> list[tuple[str, object]]:
    return [
        ("Read", None if item.read_at is None else f"{screen.cell(item.read_at)}, {item.read_by}"),
        ("Assigned to", item.assigned_to),
        ("Done", None if item.actioned_at is None else f"{screen.cell(item.actioned_at)}, {item.actioned_by}"),
    ]


def _show_notes(notes: "tuple[Annotation, ...]") -> None:
    if notes:
        screen.heading("Notes of this node, which no peer wrote or sees")
    for one in notes:
        screen.paragraph(f"{screen.cell(one.at)}, {one.by}:", indent=2)
        screen.paragraph(one.text, indent=4)


def _notes(notes: "tuple[Annotation, ...]") -> list[dict[str, Any]]:
    return [{"at": one.at, "by": one.by, "text": one.text} for one in notes]


def _told(item: "Item", what: str, *, as_json: bool) -> None:
    if as_json:
        screen.emit(_data(item))
        return
    screen.note(f"{item.name} revision {item.revision}, number {item.id}, {what}.")


def _value(value: object) -> object:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _day(text: str, option: str) -> datetime:
    """The beginning of a day, UTC. Raises UsageError."""
    try:
        if _DAY.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        pass
    raise UsageError(f"{option}: expected a day such as 2026-11-21")


def _data(item: "Item") -> dict[str, Any]:
    return {
        "id": item.id,
        "peer": item.peer,
        "entry": item.seq,
        "origin": item.origin,
        "advisory": item.name,
        "revision": item.revision,
        "title": item.title,
        "tlp": item.tlp,
        "state": item.state,
        "retain_until": item.retain_until,
        "received_at": item.received_at,
        "read_at": item.read_at,
        "read_by": item.read_by,
        "assigned_to": item.assigned_to,
        "actioned_at": item.actioned_at,
        "actioned_by": item.actioned_by,
        "core_digest": item.core_digest,
    }
