"""`apostille proof`: a file that shows what was disclosed to whom, and checking such a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import exits, make, screen, session

if TYPE_CHECKING:
    from federation.proof import Acknowledged, Shown

app = make.group(
    "Proofs of disclosure: one file shows an auditor what this node sent to whom, when, under which agreement, and "
    "that it arrived. It is checked with the cards of the nodes alone, without a home or network.",
    "apostille proof export CERT-FR-2026-0131 cert.de.example --out proof.json",
    "apostille proof verify proof.json --card cert.fr.example.json --card cert.de.example.json",
)


@make.command(
    app,
    "export",
    "apostille proof export CERT-FR-2026-0131 cert.de.example --out proof.json",
    "apostille proof export CERT-FR-2026-0131 cert.de.example --revision 1 --out proof.json",
    "apostille proof export cert.in.example/CI-2026-0007 cert.de.example --entry 12 > proof.json",
)
def export(
    name: Annotated[str, typer.Argument(metavar="ADVISORY", help="Its tracking id, or ORIGIN/ID if it was passed on.")],
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Who was sent it.")],
    revision: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only this revision.")] = None,
    entry: Annotated[
        int | None, typer.Option(min=0, metavar="SEQ", help="Only this entry of the feed; see: apostille ledger list")
    ] = None,
    epoch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only this epoch of the feed.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; stdout without it.")] = None,
) -> None:
    """Writes the proof of one release to a peer, the newest unless an option says which.

    The file holds what was sent, so it is as confidential as the advisory. What the peer has not acknowledged yet is
    exported without a receipt, and says so; what was taken back, with the entry that did it.
    """
    from federation.model import NodeId
    from node.audit import proofs

    made = proofs.export(session.node(), name, NodeId(peer), revision=revision, entry=entry, epoch=epoch)
    if out is None:
        screen.raw(made.data)
    else:
        session.write_file(out, made.data)
        screen.note(f"Wrote {out}. It is checked with: apostille proof verify {out.name} --card FILE ...")
    told = made.shown.account
    if made.releases > 1:
        screen.note(
            f"It shows revision {told.revision}, entry {told.seq}, one of {made.releases} releases to {told.peer};"
            " --revision, --entry and --epoch choose another."
        )
    for node in sorted({told.sender, told.peer, told.origin}):
        roots = {v.card.roots: v.card.version for v in made.shown.cards if v.card.node == node}
        if len(roots) > 1:
            versions = " and ".join(map(str, sorted(roots.values())))
            screen.note(f"{node} has changed its root keys: to check it takes cards {versions} of that node.")
    if made.shown.acknowledged is None:
        screen.note(f"It has no receipt: {told.peer} has not acknowledged this entry.")


@make.command(
    app,
    "verify",
    "apostille proof verify proof.json --card cert.fr.example.json --card cert.de.example.json",
    "apostille proof verify proof.json --card cert.fr.example.json --card cert.de.example.json --content --json",
)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The proof.")],
    cards: Annotated[
        list[Path] | None,
        typer.Option(
            "--card",
            metavar="FILE",
            help="The card of the sender, of the recipient, and of the origin of what was passed on. May be repeated.",
        ),
    ] = None,
    without_receipt: Annotated[
        bool, typer.Option("--without-receipt", help="Do not count it as a failure that there is no receipt.")
    ] = False,
    content: Annotated[bool, typer.Option("--content", help="Show what was disclosed as well.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Checks a proof and shows what it proves, and what it does not. Needs neither home nor network.

    The cards must have come to you in another way than the file, and their fingerprints been compared. Which checks are
    made, in which order, is in docs/proofs.md.
    """
    from config.data import labels_text
    from federation.labels import load
    from federation.limits import MAX_CARD_BYTES, MAX_PROOF_BYTES
    from federation.proof import verify as check

    given = [session.read_file(path, MAX_CARD_BYTES) for path in cards or ()]
    data = session.read_file(file, MAX_PROOF_BYTES)
    labels = load(labels_text(), "labels/csaf-2.0.yaml")
    with exits.reading(file):
        shown = check(data, given, labels)
    if as_json:
        screen.emit(_data(shown, content=content))
    else:
        _show(shown)
        if content and shown.delivered is not None:
            from node.cli import document

            document.show(shown.delivered.claims["csaf"], shown.delivered.claims.get("ai"))
    if shown.acknowledged is None and not without_receipt:
        raise exits.RefusedError(
            f"there is no receipt: {shown.account.peer} has not acknowledged this entry; all else holds"
            " (--without-receipt accepts that)"
        )


def _show(shown: "Shown") -> None:
    told, agreement, terms = shown.account, shown.agreement, shown.account.terms
    facts: list[tuple[str, object]] = [
        ("Advisory", f"{told.name}, revision {told.revision}"),
        ("Sent by", f"{told.sender}, local user {told.by}"),
        ("Origin", told.origin),
        ("To", told.peer),
        ("Released", told.at),
        ("Acknowledged", _acknowledged(shown.acknowledged)),
        ("Entry", f"{told.seq} of {told.feed}"),
        ("Agreement", f"{agreement.id} version {agreement.version}, signed by {screen.cell(agreement.parties)}"),
        ("  in force", f"{screen.cell(agreement.valid_from)} to {screen.cell(agreement.valid_until)}"),
        ("  digest", agreement.digest),
        ("Ledger row", f"{told.row}, digest {shown.digest.hex()}"),
        ("File signed", shown.exported_at),
    ]
    if shown.handling is not None:
        facts.insert(4, ("TLP", shown.handling.tlp))
    if terms is not None:
        facts += [
            ("May be used for", terms.purposes),
            ("May be kept in", "any country" if terms.storage is None else terms.storage),
            ("May be kept until", terms.retain_until),
            ("May be passed to", terms.onward),
        ]
    if shown.grant is not None:
        facts.append(("Passed on by grant", f"of {shown.grant.origin}, until {screen.cell(shown.grant.until)}"))
    if shown.erasure is not None:
        gone = shown.erasure
        facts.append(("Taken back", f"by {gone.kind} ({gone.reason}), entry {gone.seq}"))
        facts.append(("  acknowledged", _acknowledged(gone.acknowledged)))
    screen.facts(facts)
    screen.table(("Part", "Form", "Rules"), [(part.path, part.form, part.rules) for part in told.parts])
    screen.table(
        ("Card of", "#Version", "Believed because"), [(v.card.node, v.card.version, v.how) for v in shown.cards]
    )
    screen.heading("What this file does not prove")
    screen.paragraph("\n".join(f"- {sentence}" for sentence in _not_proved(shown)), indent=2)


def _acknowledged(done: "Acknowledged | None") -> str:
    return "NO RECEIPT" if done is None else f"{screen.cell(done.at)}, with all entries below {done.size}"


def _not_proved(shown: "Shown") -> list[str]:
    from federation.vouching import How

    told = shown.account
    said = [
        "That what the advisory says is true: signatures tell who said it.",
        f"That {told.peer} read, accepted or used it: a receipt says that the bytes are durable there.",
        f"That {told.peer} got nothing else, in other entries or by other ways.",
        f"Release time, local user and rules: these are the word of {told.sender} in its own ledger.",
        f"The time of the receipt: it is by the clock of {told.peer}.",
        "That no key was stolen before it was replaced.",
    ]
    if shown.acknowledged is None:
        said.insert(0, f"That it reached {told.peer} at all: there is no receipt.")
    if shown.erasure is not None:
        said.insert(0, "What stood in the entry: its bytes are erased, and the parts are the word of the sender.")
        if shown.acknowledged is not None and not shown.bytes_arrived:
            said.insert(
                1, f"That {told.peer} ever held the bytes: its first receipt covers what took them back as well."
            )
    alone = sorted({v.card.node for v in shown.cards if v.how is How.FILE})
    if alone:
        said.append(f"The signatures of {', '.join(alone)} under the agreement: only the file vouches for these cards.")
    return said


def _data(shown: "Shown", *, content: bool) -> dict[str, Any]:
    told, agreement, gone = shown.account, shown.agreement, shown.erasure
    terms = told.terms
    data: dict[str, Any] = {
        "advisory": told.name,
        "revision": told.revision,
        "sender": told.sender,
        "origin": told.origin,
        "recipient": told.peer,
        "released_at": told.at,
        "released_by": told.by,
        "acknowledged_at": None if shown.acknowledged is None else shown.acknowledged.at,
        "bytes_arrived": shown.bytes_arrived,
        "feed": told.feed,
        "entry": told.seq,
        "core_digest": told.core_digest,
        "leaf_hash": told.leaf_hash,
        "tlp": None if shown.handling is None else shown.handling.tlp,
        "agreement": {
            "id": agreement.id,
            "version": agreement.version,
            "digest": agreement.digest,
            "parties": agreement.parties,
            "valid_from": agreement.valid_from,
            "valid_until": agreement.valid_until,
        },
        "terms": None
        if terms is None
        else {
            "purposes": terms.purposes,
            "retain_until": terms.retain_until,
            "storage": terms.storage,
            "onward": terms.onward,
            "attribution": terms.attribution,
        },
        "parts": [{"path": part.path, "form": part.form, "rules": part.rules} for part in told.parts],
        "granted_until": None if shown.grant is None else shown.grant.until,
        "taken_back": None
        if gone is None
        else {
            "by": gone.kind,
            "reason": gone.reason,
            "entry": gone.seq,
            "acknowledged_at": None if gone.acknowledged is None else gone.acknowledged.at,
        },
        "row": told.row,
        "row_digest": shown.digest,
        "exported_at": shown.exported_at,
        "cards": [{"node": v.card.node, "version": v.card.version, "believed": v.how} for v in shown.cards],
        "not_proved": _not_proved(shown),
    }
    if content:
        data["csaf"] = None if shown.delivered is None else shown.delivered.claims["csaf"]
        data["ai"] = None if shown.delivered is None else shown.delivered.claims.get("ai")
    return data
