"""Later revisions of own advisories: making them, and who is left with an earlier one."""

from pathlib import Path
from typing import Any

from federation.errors import UsageError
from federation.limits import MAX_DOCUMENT_BYTES
from federation.model import NodeId, Tlp
from node.cli import screen, session
from node.cli.summaries import say_unlabelled, summary_data
from node.home.context import Node
from node.sharing import holders, revisions
from node.sharing.holders import Beyond, OldHolder


def revise(name: str, file: Path | None, tlp: Tlp | None, *, from_issued: bool, as_json: bool) -> None:
    """Makes the next revision as a draft and tells what comes next."""
    if (file is None) != from_issued:
        raise UsageError("say what the revision is made from: a FILE, or --from-issued")
    node = session.node()
    if file is None:
        if tlp is not None:
            raise UsageError("--tlp is for a file that carries no label; with --from-issued the handling stays")
        revised = revisions.revise_from_issued(node, name)
    else:
        revised = revisions.revise(node, name, session.read_file(file, MAX_DOCUMENT_BYTES), file.name, tlp=tlp)
    made = revised.made
    if as_json:
        kept = {path: category.value for path, category in revised.kept.items()}
        more = {
            "fresh": made.fresh,
            "kept_labels": kept,
            "raised_beside": revised.unsure,
            "unlabelled": made.unlabelled,
        }
        screen.emit({**summary_data(made.advisory), **more})
        return
    if not made.fresh:
        screen.note(f"Revision {made.advisory.revision} of {name} is that document already; nothing changed.")
        return
    screen.note(f"Drafted revision {made.advisory.revision} of {name}.")
    for path, category in revised.kept.items():
        if path not in revised.unsure:
            screen.note(f"{path} stays {category}, as it was raised before.")
    for path, lost in revised.unsure.items():
        screen.note(
            f"{path} is raised to {revised.kept[path]}: {lost} was, and what it said is not found again. It may be this"
            " part in other words."
        )
    if revised.unsure:
        screen.note(f"A second person can lower it: apostille advisory label {name} PART CATEGORY --reason TEXT")
    say_unlabelled(made)
    screen.note(f"Next: apostille advisory release {name} --dry-run")


def show_holders(name: str, leave: str | None, reason: str | None, *, recall: bool, as_json: bool) -> None:
    """Lists who is left with an earlier revision, or may be, after a decision about them if one is given."""
    node = session.node()
    if (leave is None) != (reason is None) or (leave is not None and recall):
        raise UsageError("one decision at a time: --leave PEER --reason TEXT, or --recall")
    if leave is not None and reason is not None:
        holders.leave(node, name, NodeId(leave), reason)
    if recall:
        holders.recall_from_old_holders(node, name)
        session.wake()
    found, perhaps = holders.old_holders(node, name), holders.beyond(node, name)
    if as_json:
        known = [{**data(holder), "via": None} for holder in found]
        screen.emit([*known, *(one for others in perhaps for one in _data_beyond(others))])
        return
    if not found and not perhaps:
        screen.note(f"Nobody is left with an earlier revision of {name}.")
        return
    screen.table(
        ("Peer", "Holds revision", "#Newest", "Acknowledged", "Decision"),
        [
            *(
                (h.peer, h.revisions, h.newest, h.acknowledged, "NONE" if h.left is None else f"keeps it: {h.left}")
                for h in found
            ),
            *((f"perhaps {_names(o)}, via {o.via}", o.revisions, o.newest, None, None) for o in perhaps),
        ],
    )
    if perhaps:
        earlier = sorted({revision for others in perhaps for revision in others.revisions})
        command = " ".join((f"apostille recall order {name} --reason replaced", *(f"--revision {n}" for n in earlier)))
        screen.note(f"Only a relay knows to whom it passed what on. A recall reaches all of them: {command}")


def say_unsettled(node: Node, name: str, *, relayed: bool = False) -> None:
    """After a release: who is left with an earlier revision, and what can be decided. `relayed`: it is ORIGIN/NAME."""
    unsettled = open_holders(node, name)
    for holder in unsettled:
        held = ", ".join(map(str, holder.revisions))
        screen.note(f"{holder.peer} is left with revision {held} and did not get revision {holder.newest}.")
    if unsettled and relayed:
        screen.note(f"Pass it on, or take the earlier one back: apostille relay {name} --to PEER [--withdraw]")
    elif unsettled:
        screen.note(f"Decide on each: apostille advisory holders {name} --help")
    for others in holders.beyond(node, name):
        held = ", ".join(map(str, others.revisions))
        screen.note(
            f"Perhaps {_names(others)} got revision {held} from {others.via}: it alone can pass the new one on."
        )


def open_holders(node: Node, name: str) -> list[OldHolder]:
    """Those for whom nothing was decided."""
    return [holder for holder in holders.old_holders(node, name) if holder.left is None]


def data(holder: OldHolder) -> dict[str, Any]:
    """One of them, for scripts."""
    return {
        "peer": holder.peer,
        "holds": holder.revisions,
        "newest": holder.newest,
        "acknowledged": holder.acknowledged,
        "left": holder.left,
    }


def _data_beyond(others: Beyond) -> list[dict[str, Any]]:
    """Those who may be left behind a relay: each that a grant names, and `peer` null for any peer of the relay."""
    told = {"holds": others.revisions, "newest": others.newest, "acknowledged": None, "left": None, "via": others.via}
    return [{"peer": peer, **told} for peer in (*([None] if others.anyone else []), *others.granted)]


def _names(others: Beyond) -> str:
    return ", ".join((*(["others"] if others.anyone else []), *others.granted))
