"""`apostille agreement`: sharing agreements, from a template to their signatures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import UsageError
from node.cli import exits, make, screen, session

if TYPE_CHECKING:
    from datetime import datetime

    from federation.agreement import Agreement
    from node.home.context import Node
    from node.peering.agreements import Held

_SHORT_DIGEST = 8  # hexadecimal digits that name an agreement
app = make.group(
    "Sharing agreements: who may send what to whom, until when. One is in force once every party has signed it.",
    "apostille agreement template > agreement.yaml",
    "apostille agreement check agreement.yaml",
    "apostille agreement propose agreement.yaml",
)

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Also write the signed agreement to a file, for other parties."),
]


@make.command(app, "template", "apostille agreement template > agreement.yaml")
def template() -> None:
    """Prints an agreement to start from; every key is explained in it."""
    screen.raw(session.agreement_template())


@make.command(app, "check", "apostille agreement check agreement.yaml")
def check(
    file: Annotated[Path, typer.Argument(help="The terms as YAML.")],
    as_json: make.AsJson = False,
) -> None:
    """Reads an agreement and shows what it would allow, for each sender, receiver and category. Signs nothing.

    What law forbids is not shown here: law applies on top, advisory by advisory (apostille explain). Exit code 1 if the
    agreement is over already.
    """
    from node.main import utc_now

    agreement = _from_yaml(file)
    over = _over(agreement, utc_now())
    if as_json:
        screen.emit({**_terms_data(agreement), "ended": over})
    else:
        _show_terms(agreement)
    if over:
        raise exits.RefusedError(f"{file}: it ended on {agreement.valid_until:%Y-%m-%d}; write new dates")


@make.command(
    app,
    "propose",
    "apostille agreement propose agreement.yaml",
    "apostille agreement propose agreement.yaml --out signed.json",
)
def propose(
    file: Annotated[Path, typer.Argument(help="The terms as YAML.")], out: Out = None, as_json: make.AsJson = False
) -> None:
    """Signs an agreement for this node and offers it to the other parties, through their feeds."""
    from federation.limits import MAX_CONTROL_BYTES
    from node.peering import agreements

    node = session.node()
    held = agreements.propose(node, session.read_text(file, MAX_CONTROL_BYTES), str(file))
    _finish(held, node.clock(), out, as_json, "Signed and offered")


@make.command(
    app,
    "countersign",
    "apostille agreement countersign fr-de-in",
    "apostille agreement countersign signed.json --out signed-by-both.json",
)
def countersign(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE", help="A proposal that is here, by name or digest; or a signed agreement as a file."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="The terms were read; sign without asking.")] = False,
    out: Out = None,
    as_json: make.AsJson = False,
) -> None:
    """Adds this node's signature to what another party proposed. Shows the terms and asks first.

    In a script, where nobody can be asked, name the proposal by its digest (apostille agreement list), or say --yes.

    A file that this node has signed before is taken in for the signatures of the others.
    """
    from node.peering import agreements

    node = session.node()
    path = Path(reference)
    held = _receive(node, path) if path.is_file() else agreements.find(node, reference)
    agreement = held.agreement
    if _over(agreement, node.clock()):
        raise UsageError(f"{agreement.id} ended on {agreement.valid_until:%Y-%m-%d}: there is nothing left to sign")
    if not as_json:
        _show_terms(agreement)
    if path.is_file() and node.id in held.signed_by:
        _finish(held, node.clock(), out, as_json, "Signed by this node before; took in what else is signed in the file")
        return
    by_digest = agreement.digest.hex().startswith(reference.lower()) and len(reference) >= _SHORT_DIGEST
    if not yes and not by_digest:
        if not screen.is_person():
            raise UsageError(
                f"nobody can be asked here: name it by its digest, {agreement.digest.hex()[:16]}, or say --yes"
            )
        if not typer.confirm("Sign these terms?", err=True):
            raise exits.RefusedError(f"{agreement.id} was not signed")
    held = agreements.countersign(node, agreement.digest.hex())
    _finish(held, node.clock(), out, as_json, "Signed")


@make.command(app, "list", "apostille agreement list")
def list_agreements(as_json: make.AsJson = False) -> None:
    """Lists every agreement, the newest version of each first."""
    from node.peering import agreements

    node = session.node()
    now = node.clock()
    found = agreements.all_held(node)
    if as_json:
        screen.emit([_held_data(held, now) for held in found])
        return
    if not found:
        screen.note("There is no agreement. Start one with: apostille agreement template > agreement.yaml")
        return
    screen.table(
        ("Agreement", "#Version", "State", "Until", "Review", "Parties", "Not yet signed by"),
        [
            (a.id, a.version, held.state(now), a.valid_until, a.sunset_review, a.parties, held.missing)
            for held in found
            for a in (held.agreement,)
        ],
    )


@make.command(app, "show", "apostille agreement show fr-de-in", "apostille agreement show signed.json")
def show(
    reference: Annotated[
        str, typer.Argument(metavar="ID|FILE", help="An agreement that is here; or a file, signed or as YAML.")
    ],
    as_json: make.AsJson = False,
) -> None:
    """Shows the terms of an agreement and who has signed it. Signatures in a file are listed, not checked."""
    from node.peering import agreements

    path = Path(reference)
    if path.is_file():
        agreement, names = _from_file(path)
        if as_json:
            screen.emit({**_terms_data(agreement), "signatures_in_file": names})
            return
        _show_terms(agreement)
        screen.facts([("Signatures in the file (not checked)", names)])
        return
    node = session.node()
    held = agreements.find(node, reference)
    if as_json:
        screen.emit({**_terms_data(held.agreement), **_held_data(held, node.clock())})
        return
    _show_terms(held.agreement)
    screen.facts(
        [("State", held.state(node.clock())), ("Signed by", held.signed_by), ("Not yet signed by", held.missing)]
    )


def _finish(held: "Held", now: "datetime", out: Path | None, as_json: bool, done: str) -> None:
    session.wake()
    if out is not None:
        session.write_file(out, held.document)
        screen.note(f"Wrote {out}.")
    if as_json:
        screen.emit(_held_data(held, now))
        return
    agreement = held.agreement
    screen.note(f"{done}: {agreement.id} version {agreement.version}, digest {agreement.digest.hex()}")
    waiting = ", ".join(held.missing)
    screen.note(
        f"It waits for the signature of {waiting}." if waiting else f"Every party has signed: it is {held.state(now)}."
    )


def _receive(node: "Node", path: Path) -> "Held":
    from federation.limits import MAX_CONTROL_BYTES
    from node.peering import agreements

    document = session.read_file(path, MAX_CONTROL_BYTES)
    with exits.reading(path):
        return agreements.receive_file(node, document)


def _from_yaml(path: Path) -> "Agreement":
    from federation.agreement import from_yaml
    from federation.limits import MAX_CONTROL_BYTES

    return from_yaml(session.read_text(path, MAX_CONTROL_BYTES), str(path))


def _from_file(path: Path) -> "tuple[Agreement, list[str]]":
    """The terms in a file, and who signs in it; a signed agreement is JSON, terms that a person wrote are YAML."""
    from federation import agreement, jws
    from federation.limits import MAX_CONTROL_BYTES

    data = session.read_file(path, MAX_CONTROL_BYTES)
    if not data.lstrip().startswith(b"{"):
        return _from_yaml(path), []
    with exits.reading(path):
        document = jws.parse(data, max_bytes=MAX_CONTROL_BYTES, typ=agreement.JWS_TYPE)
        terms = agreement.from_canonical(document.payload)
    return terms, [signature.kid.partition("/")[0] for signature in document.signatures]


def _over(agreement: "Agreement", now: "datetime") -> bool:
    return now >= agreement.valid_until


def _show_terms(agreement: "Agreement") -> None:
    days = agreement.retention_days
    screen.facts(
        [
            ("Agreement", f"{agreement.id}, version {agreement.version}"),
            ("Parties", agreement.parties),
            ("Valid", f"{screen.cell(agreement.valid_from)} to {screen.cell(agreement.valid_until)}"),
            ("Sunset review", agreement.sunset_review),
            ("May be used for", agreement.purposes),
            ("May be kept in", "any country" if agreement.storage is None else agreement.storage),
            ("May be kept for", "no limit" if days is None else f"{days} days"),
            (
                "May be passed to",
                {"none": "nobody", "constituents": "the receiver's constituents"}.get(agreement.onward, "peers"),
            ),
            ("Provider's name", f"the receiver {agreement.attribution.replace('_', ' ')} tell it"),
            ("Safeguards", agreement.safeguards or "none"),
            ("Digest", agreement.digest),
        ]
    )
    screen.table(
        ("From", "To", "Clause", "TLP", "Risk tiers", "In full", "Generalised", "Withheld"),
        [
            (pair["from"], pair["to"], pair["clause"], pair["tlp"], pair["tiers"], *_by_form(pair["share"]))
            for pair in _pairs(agreement)
        ],
    )


def _by_form(share: dict[str, str]) -> list[list[str]]:
    return [[name for name, form in share.items() if form == wanted] for wanted in ("full", "generalised", "withheld")]


def _pairs(agreement: "Agreement") -> list[dict[str, Any]]:
    """What each clause lets each sender share with each receiver, by category."""
    from federation.model import Category, Form

    return [
        {
            "from": sender,
            "to": receiver,
            "clause": grant.id,
            "tlp": sorted(grant.tlp),
            "tiers": sorted(grant.tiers),
            "share": {category.value: grant.share.get(category, Form.WITHHELD).value for category in Category},
        }
        for sender in agreement.parties
        for receiver in agreement.parties
        if sender != receiver
        for grant in agreement.grants
        if sender in grant.senders and receiver in grant.receivers
    ]


def _terms_data(agreement: "Agreement") -> dict[str, Any]:
    return {
        "agreement": agreement.id,
        "version": agreement.version,
        "digest": agreement.digest,
        "previous": agreement.previous,
        "parties": agreement.parties,
        "valid_from": agreement.valid_from,
        "valid_until": agreement.valid_until,
        "sunset_review": agreement.sunset_review,
        "purposes": agreement.purposes,
        "storage": agreement.storage,
        "retention_days": agreement.retention_days,
        "onward": agreement.onward,
        "attribution": agreement.attribution,
        "safeguards": agreement.safeguards,
        "pairs": _pairs(agreement),
    }


def _held_data(held: "Held", now: "datetime") -> dict[str, Any]:
    agreement = held.agreement
    return {
        "agreement": agreement.id,
        "version": agreement.version,
        "digest": agreement.digest,
        "state": held.state(now),
        "valid_from": agreement.valid_from,
        "valid_until": agreement.valid_until,
        "sunset_review": agreement.sunset_review,
        "parties": agreement.parties,
        "signed_by": held.signed_by,
        "missing": held.missing,
    }
