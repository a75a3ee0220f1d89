"""`apostille advisory`: this node's own advisories. Importing and releasing have modules of their own."""

from pathlib import Path
from typing import Annotated

import typer

from federation.errors import UsageError
from federation.model import Category, Tlp
from node.cli import make, screen, session, summaries

app = make.group(
    "This node's own advisories: drafted or imported, labelled, then released. A release signs an advisory once and "
    "gives each peer the parts that law and agreement allow.",
    "apostille advisory import advisories/ --tlp AMBER",
    "apostille advisory release CERT-FR-2026-0131 --dry-run",
    "apostille advisory release CERT-FR-2026-0131",
)

To = Annotated[
    list[str] | None, typer.Option("--to", metavar="PEER", help="Only to this peer; may be given several times.")
]


@make.command(app, "draft", "apostille advisory draft FR-2026-017")
def draft(
    case: Annotated[str, typer.Argument(help="The case's name.")],
    as_json: make.AsJson = False,
) -> None:
    """Drafts an advisory from a case. Only named fields are copied: internal notes and the reporter stay behind."""
    from node.sharing import cases

    made = cases.draft(session.node(), case)
    if as_json:
        screen.emit(summaries.imported_data(made))
        return
    name = made.advisory.name
    screen.note(f"Drafted {name}." if made.fresh else f"{name} was drafted from this case before; nothing changed.")
    summaries.say_unlabelled(made)
    screen.note(f"Next: apostille advisory release {name} --dry-run")


@make.command(
    app,
    "import",
    "apostille advisory import advisory.json",
    "apostille advisory import exports/ --tlp GREEN --release --to cert.de.example",
)
def import_files(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="CSAF documents as JSON, or folders of them.")],
    tlp: Annotated[
        Tlp | None, typer.Option(case_sensitive=False, help="The TLP label for documents that carry none.")
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="Release each one right after it is imported.")] = False,
    to: To = None,
    as_json: make.AsJson = False,
) -> None:
    """Imports advisories from files and folders. Repeat an interrupted import: what is here already is only counted.

    A file that is refused does not stop the others; its reason is listed, and the exit code is 1.
    """
    from node.cli import importing

    importing.run(paths, tlp, release=release, to=to or [], as_json=as_json)


@make.command(app, "label", "apostille advisory label CERT-FR-2026-0131 /csaf/vulnerabilities/0/notes/1 exploit")
def label(
    name: Annotated[str, typer.Argument(help="The advisory's name.")],
    pointer: Annotated[str, typer.Argument(help="The part, as a JSON pointer that begins with /csaf or /ai.")],
    category: Annotated[Category, typer.Argument(help="What kind of information it holds.")],
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why, where this lowers a category; the second person reads it.")
    ] = None,
) -> None:
    """Marks one part of a draft as more sensitive than its place says. Marking only ever narrows what is shared.

    Lowering what was marked before takes two people: with --reason it is noted for a second one, with exit code 10.
    """
    from node.sharing import advisories

    advisories.label(session.node(), name, pointer, category, reason)
    screen.note(f"{pointer} of {name} is {category} from now on.")


@make.command(
    app,
    "release",
    "apostille advisory release CERT-FR-2026-0131 --dry-run",
    "apostille advisory release CERT-FR-2026-0131 --to cert.de.example",
)
def release(
    name: Annotated[str, typer.Argument(help="The advisory's name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would leave; sign and send nothing.")] = False,
    to: To = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every part, not only the rules.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Decides what each peer gets of an advisory, by law and agreement, and puts it into that peer's feed.

    The first release signs it; from then on it cannot be changed. Without --to it goes to every trusted peer. Exit
    code 1 when nothing leaves for anybody, 6 when something is held for a person to look at.
    """
    from node.cli import releasing

    releasing.run(name, to or [], dry_run=dry_run, verbose=verbose, as_json=as_json)


@make.command(
    app,
    "revise",
    "apostille advisory revise CERT-FR-2026-0131 advisory-2.json",
    "apostille advisory revise CERT-FR-2026-0131 --from-issued",
)
def revise(
    name: Annotated[str, typer.Argument(help="The advisory's name.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The new document, in a form that an import takes.")
    ] = None,
    from_issued: Annotated[
        bool, typer.Option("--from-issued", help="The document as it is, to be labelled otherwise.")
    ] = False,
    tlp: Annotated[
        Tlp | None, typer.Option(case_sensitive=False, help="The TLP label, if it is another and the file has none.")
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Makes the next revision of an issued advisory, as a draft; a release signs it and supersedes the one before.

    The tracking id stays and the tracking version changes. Handling that the file does not give is as before, and parts
    that were raised to a more sensitive category stay so.
    """
    from node.cli import revising

    revising.revise(name, file, tlp, from_issued=from_issued, as_json=as_json)


@make.command(
    app,
    "holders",
    "apostille advisory holders CERT-FR-2026-0131",
    'apostille advisory holders CERT-FR-2026-0131 --leave cert.de.example --reason "archive copy, no systems affected"',
    "apostille advisory holders CERT-FR-2026-0131 --recall",
)
def holders(
    name: Annotated[str, typer.Argument(help="The advisory's name; ORIGIN/NAME of what was passed on.")],
    leave: Annotated[
        str | None, typer.Option(metavar="PEER", help="Record the decision that this peer keeps what it has.")
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, with --leave.")] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Recall the earlier revisions from all for whom nothing was decided.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Lists the peers that hold an earlier revision and did not get the newest one.

    Each of them gets the newest one (release it to them), a recall, or a recorded decision that it keeps what it has.
    Of what was passed on for its origin: the newest one is passed on, or the earlier one taken back, with `relay`.
    Perhaps: through a relay, which alone knows whether it let them have it.
    """
    from node.cli import revising

    revising.show_holders(name, leave, reason, recall=recall, as_json=as_json)


@make.command(app, "withdraw", "apostille advisory withdraw CERT-FR-2026-0131 --from cert.de.example")
def withdraw(
    name: Annotated[str, typer.Argument(help="The advisory's name.")],
    peer: Annotated[str, typer.Option("--from", metavar="PEER", help="The peer from which it is taken back.")],
    revision: Annotated[int | None, typer.Option(metavar="N", help="Only this revision.")] = None,
    as_json: make.AsJson = False,
) -> None:
    """Takes an advisory back from one peer: its copy is purged there, and what it passed on is taken back too.

    To take an advisory back from everybody, with answers that say so, recall it: apostille recall --help
    """
    from federation.model import NodeId
    from node.sharing import releases

    seqs = releases.withdraw(session.node(), name, NodeId(peer), revision)
    session.wake()
    if as_json:
        screen.emit({"advisory": name, "peer": peer, "entries": seqs})
        return
    screen.note(f"Withdrew {name} from {peer}: entry {', '.join(map(str, seqs))}. It learns so with its next pull.")


@make.command(
    app,
    "grant",
    "apostille advisory grant CERT-FR-2026-0131 --relay cert.de.example --to cert.in.example --until 2027-03-01",
)
def grant(
    name: Annotated[str, typer.Argument(help="The advisory's name; its newest signed revision is meant.")],
    relay: Annotated[str, typer.Option(metavar="NODE", help="The peer that may pass it on.")],
    to: Annotated[list[str], typer.Option("--to", metavar="NODE", help="To this node; may be given several times.")],
    until: Annotated[str, typer.Option(metavar="DATE", help="When the grant ends, at 00:00 UTC of a day: 2027-03-01.")],
    categories: Annotated[
        list[Category] | None,
        typer.Option("--category", help="Only parts of this kind; may be given several times."),
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Lets one peer pass an advisory on to nodes that get nothing from this one directly.

    Needed where the handling allows no onward sharing. Without --category it covers every kind that handling and law
    let pass, but personal, victim and source. What the recipient gets, the relay's agreement with it decides.
    """
    from node.cli import granting

    granting.give(name, relay, to, until, categories, as_json=as_json)


@make.command(app, "grants", "apostille advisory grants", "apostille advisory grants --json")
def grants(as_json: make.AsJson = False) -> None:
    """Lists the grants that were given to relays, and those that this node has as a relay."""
    from node.cli import granting

    granting.show(as_json=as_json)


@make.command(app, "list", "apostille advisory list")
def list_advisories(as_json: make.AsJson = False) -> None:
    """Lists this node's own advisories."""
    from node.sharing import advisories

    found = advisories.all_advisories(session.node())
    if as_json:
        screen.emit([summaries.summary_data(summary) for summary in found])
        return
    if not found:
        screen.note("There is no advisory. Take some in with: apostille advisory import PATH")
        return
    screen.table(
        ("Advisory", "#Rev.", "TLP", "Risk tier", "State", "Embargo until", "Title"),
        [
            (s.name, s.revision, s.handling.tlp, s.handling.tier, s.state, s.handling.embargo_until, s.title)
            for s in found
        ],
    )


@make.command(
    app,
    "show",
    "apostille advisory show CERT-FR-2026-0131",
    "apostille advisory show CERT-FR-2026-0131 --as-peer cert.de.example --json",
)
def show(
    name: Annotated[str, typer.Argument(help="The advisory's name.")],
    as_peer: Annotated[
        str | None, typer.Option(metavar="PEER", help="The document as this peer would get it now.")
    ] = None,
    revision: Annotated[int | None, typer.Option(metavar="N", help="This revision; the newest one otherwise.")] = None,
    as_json: make.AsJson = False,
) -> None:
    """Shows an advisory: whole, or as one peer would get it."""
    from node.cli import document, releasing

    if as_peer is None:
        from node.sharing import advisories

        summary, csaf, ai = advisories.content(session.node(), name, revision)
    elif revision is not None:
        raise UsageError("--as-peer shows what a release would give now, which is the newest revision")
    else:
        summary, csaf, ai = releasing.seen_by(name, as_peer)
    if as_json:
        screen.emit({**summaries.summary_data(summary), "as_peer": as_peer, "csaf": csaf, "ai": ai})
        return
    handling = summary.handling
    screen.facts(
        [
            ("Advisory", f"{summary.name}, revision {summary.revision}"),
            ("State", summary.state),
            ("As seen by", as_peer or "its author"),
            ("TLP", handling.tlp),
            ("Risk tier", handling.tier),
            ("May be used for", handling.purposes),
            ("May be kept in", "any country" if handling.storage is None else handling.storage),
            ("Embargo until", handling.embargo_until),
        ]
    )
    document.show(csaf, ai)
