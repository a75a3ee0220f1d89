"""`apostille inbox`: advisories that peers sent."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.inbox import Item

app = make.group(
    "Advisories that peers sent. What stands in one is said by its origin, whose signature was verified; parts that "
    "were not meant for this node are absent.",
    "apostille inbox list",
    "apostille inbox show 3",
    "apostille inbox export 3 --format csaf --out advisory.json",
)


class Format(StrEnum):
    """What `export` writes."""

    CSAF = "csaf"
    SD_JWT = "sd-jwt"


@make.command(app, "list", "apostille inbox list", "apostille inbox list --all --json")
def list_items(
    every: Annotated[
        bool, typer.Option("--all", help="Also what may not be worked with: superseded, disputed, withdrawn, expired.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Lists what may be used now, newest first."""
    from node import inbox

    found = inbox.items(session.node(), every_state=every)
    if as_json:
        screen.emit([_data(item) for item in found])
        return
    if not found:
        screen.note("The inbox is empty. Fetch what peers have with: apostille sync")
        return
    screen.table(
        ("#Id", "Origin", "Advisory", "#Rev.", "TLP", "State", "Keep until", "Received", "Title"),
        [(i.id, i.origin, i.name, i.revision, i.tlp, i.state, i.retain_until, i.received_at, i.title) for i in found],
    )


@make.command(app, "show", "apostille inbox show 3", "apostille inbox show CB-2026-0042")
def show(
    reference: Annotated[str, typer.Argument(metavar="ID", help="Its number in `inbox list`, or its name.")],
    as_json: make.AsJson = False,
) -> None:
    """Shows a received advisory as far as it was disclosed to this node."""
    from node import inbox
    from node.cli import document

    found = inbox.content(session.node(), reference)
    item, terms = found.item, found.terms
    if as_json:
        screen.emit(
            {
                **_data(item),
                "core_digest": found.core_digest,
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
            }
        )
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
        ]
    )
    document.show(found.csaf, found.ai)


@make.command(
    app,
    "export",
    "apostille inbox export 3 --format csaf --out advisory.json",
    "apostille inbox export CB-2026-0042 --format sd-jwt > advisory.sd-jwt",
)
def export(
    reference: Annotated[str, typer.Argument(metavar="ID", help="Its number in `inbox list`, or its name.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="csaf: the document, unsigned. sd-jwt: what was signed, for any verifier of RFC 9901."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; stdout without it.")] = None,
) -> None:
    """Writes a received advisory for other tools: as a CSAF document, or as the signed original."""
    from node import inbox

    found = inbox.content(session.node(), reference)
    if form is Format.SD_JWT:
        data = found.compact.encode() + b"\n"
    else:
        ascii_only = out is None and sys.stdout.isatty()  # a document is data, a terminal obeys it
        data = json.dumps(found.csaf, indent=2, ensure_ascii=ascii_only).encode() + b"\n"
    if out is None:
        screen.raw(data)
        return
    session.write_file(out, data)
    screen.note(
        f"Wrote {out}. TLP:{found.item.tlp} and the terms of delivery go with it: apostille inbox show {reference}"
    )


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
    }
