"""`apostille statement`: what nodes say to each other about advisories."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import NotFoundError, UsageError
from federation.limits import MAX_STATEMENT_TEXT
from node.cli import make, screen, session

if TYPE_CHECKING:
    from federation.model import NodeId
    from node.sharing.statements import Kept

app = make.group(
    "Signed statements about advisories: what people here say to an origin, what others say to this node, and the "
    "answers. A statement is its author's word and changes nothing by itself.",
    "apostille statement send --about 3 --kind question --text 'Is version 4 hit as well?'",
    "apostille statement list --about CERT-FR-2026-0131",
    "apostille statement reply 7 --text 'Version 4 is not hit.'",
)
_SHORT = 60  # characters of a text in the list
_MOST = (1 << 31) - 1  # of a number that every database can hold
_MOST_BYTES = 4 * MAX_STATEMENT_TEXT  # UTF-8 takes four bytes for a character at most

Number = Annotated[
    int,
    typer.Argument(metavar="NUMBER", min=1, max=_MOST, help="The statement's number in `statement list`."),
]
Text = Annotated[str | None, typer.Option("--text", metavar="TEXT", help="What you have to say.")]
File = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="A file with what you have to say.")]


class Spoken(StrEnum):
    """What people say of an advisory: `federation.statement.SPOKEN`."""

    ACKNOWLEDGE = "acknowledge"
    QUESTION = "question"
    CORRECTION = "correction"
    AFFECTS = "affects"


@make.command(
    app,
    "send",
    "apostille statement send --about 3 --kind acknowledge",
    "apostille statement send --about 3 --kind question --text 'Is version 4 hit as well?'",
)
def send(
    about: Annotated[str, typer.Option(metavar="ID", help="Its number in `inbox list`, or its name.")],
    kind: Annotated[Spoken, typer.Option(help="What kind of statement it is.")],
    text: Text = None,
    file: File = None,
    as_json: make.AsJson = False,
) -> None:
    """Says something about a received advisory to its origin: directly, or through the peer that passed it on.

    acknowledge: received and read. question: an answer is asked for. correction: something in it is wrong. affects: it
    concerns this country. All but the first take a text, which every node on the way can read.
    """
    from federation.statement import Kind
    from node.desk import inbox
    from node.sharing import statements

    node = session.node()
    words = _words(text, file)
    items = inbox.items(node, every_state=True)
    found = [item for item in items if about == str(item.id)]  # a number is ours: no peer can name that
    found = found or [item for item in items if about in (item.name, f"{item.origin}/{item.name}")]
    origins = sorted({item.origin for item in found})
    if len(origins) > 1:
        raise UsageError(f"several origins call an advisory {about}: {', '.join(origins)}; name it by its number")
    if not found:
        raise NotFoundError(f"the inbox has no {about}; see: apostille inbox list --all")
    number = max(found, key=lambda item: (item.revision, item.id)).id
    _say(statements.say(node, number, Kind(kind), words), as_json=as_json)


@make.command(app, "reply", "apostille statement reply 7 --text 'Version 4 is not hit.'")
def reply(
    number: Number,
    text: Text = None,
    file: File = None,
    as_json: make.AsJson = False,
) -> None:
    """Answers a statement that was made to this node, by the way on which it came."""
    from node.sharing import statements

    _say(statements.reply(session.node(), number, _words(text, file) or ""), as_json=as_json)


@make.command(app, "list", "apostille statement list", "apostille statement list --about CERT-FR-2026-0131 --json")
def list_statements(
    about: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only those about this advisory: NAME or ORIGIN/NAME.")
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Lists what was said, oldest first; the refusals that nodes make by themselves too."""
    from node.sharing import statements

    node = session.node()
    found = statements.all_kept(node, about)
    if as_json:
        screen.emit([_data(kept) for kept in found])
        return
    if not found:
        screen.note("Nothing was said." if about is None else f"Nothing was said about {about}.")
        return
    screen.table(
        ("#No.", "Said", "From", "To", "Kind", "Answers", "About", "In short"),
        [
            (
                kept.number,
                kept.statement.at,
                _name(kept.statement.author, node.id),
                _name(kept.statement.recipient, node.id),
                kept.statement.kind,
                kept.answers,
                [name.partition("/")[2] for name in kept.concerns],
                _short(kept),
            )
            for kept in found
        ],
    )


@make.command(app, "show", "apostille statement show 7", "apostille statement show 7 --json")
def show(
    number: Number,
    as_json: make.AsJson = False,
) -> None:
    """Shows a statement. Of a kind that this version does not know, it shows who said it to whom about what."""
    from federation.statement import Kind
    from node.sharing import statements

    kept = statements.find(session.node(), number)
    if as_json:
        screen.emit(_data(kept))
        return
    said = kept.statement
    screen.facts(
        [
            ("Statement", f"{kept.number}, {said.kind}"),
            ("From", said.author),
            ("To", said.recipient),
            ("Said", said.at),
            ("Made here by" if kept.peer is None else "Brought by", kept.by),
            ("About", kept.concerns),
            ("Revision", said.about.revision if said.about else None),
            ("Answers", f"statement {kept.answers}" if kept.answers else None),
        ]
    )
    if said.kind not in set(Kind):
        screen.note("This version does not know statements of that kind; --json shows what it holds.")
        return
    _show_body(said.kind, said.body)


def _show_body(kind: str, body: dict[str, Any]) -> None:
    if "text" in body:
        screen.heading("In their words")
        screen.paragraph(body["text"], indent=2)
    elif kind == "refusal":
        screen.facts([("Of the feed", body["feed"])])
        rows = [(entry["seq"], entry["code"], entry["rules"]) for entry in body["entries"]]
        screen.table(("#Entry", "Code", "Rules"), rows)
    elif kind == "purge":
        screen.facts(
            [
                ("Recall", body["recall"]),
                ("Outcome", body["outcome"]),
                ("Passed on to", body["passed_on"]),
                ("Could not reach", body["unreachable"]),
            ]
        )


def _say(kept: "Kept", *, as_json: bool) -> None:
    session.wake()
    if as_json:
        screen.emit(_data(kept))
        return
    screen.note(f"Statement {kept.number}, {kept.statement.kind}, is on its way to {kept.statement.recipient}.")


def _words(text: str | None, file: Path | None) -> str | None:
    if text is not None and file is not None:
        raise UsageError("--text and --file are both there; say it once")
    return text if file is None else session.read_text(file, _MOST_BYTES)


def _name(node: "NodeId", own: "NodeId") -> str:
    return "this node" if node == own else node


def _short(kept: "Kept") -> str | None:
    """What it says, in one line; it is cleaned where it is printed."""
    body = kept.statement.body
    if kept.statement.kind == "refusal":
        codes = sorted({entry["code"] for entry in body["entries"]})
        return f"{len(body['entries'])} not taken: {', '.join(codes)}"
    if kept.statement.kind == "purge":
        return str(body["outcome"])
    text = body.get("text")
    if not isinstance(text, str):
        return None
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def _data(kept: "Kept") -> dict[str, Any]:
    said = kept.statement
    return {
        "statement": kept.number,
        "digest": said.digest,
        "kind": said.kind,
        "author": said.author,
        "recipient": said.recipient,
        "said_at": said.at,
        "origin": said.about.origin if said.about else None,
        "advisory": said.about.name if said.about else None,
        "revision": said.about.revision if said.about else None,
        "concerns": kept.concerns,
        "answers": kept.answers,
        "in_reply_to": said.in_reply_to,
        "body": said.body,
        "brought_by": kept.peer,
        "by": kept.by,
        "at": kept.at,
    }
