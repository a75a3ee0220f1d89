"""Later revisions of own advisories: making them, and who is left with an earlier one."""

from pathlib import Path
from typing import Any

from federation.errors import UsageError
from federation.limits import MAX_DOCUMENT_BYTES
from federation.model import NodeId, Tlp
from node.cli import screen, session
from node.cli.summaries import say_unlabelled, summary_data
from node.home.context import Node
from node.sharing import revisions
from node.sharing.revisions import OldHolder


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
        screen.emit(
            {**summary_data(made.advisory), "fresh": made.fresh, "kept_labels": kept, "unlabelled": made.unlabelled}
        )
        return
    if not made.fresh:
        screen.note(f"Revision {made.advisory.revision} of {name} is that document already; nothing changed.")
        return
    screen.note(f"Drafted revision {made.advisory.revision} of {name}.")
    for path, category in revised.kept.items():
        screen.note(f"{path} stays {category}, as it was raised before.")
    say_unlabelled(made)
    screen.note(f"Next: apostille advisory release {name} --dry-run")


def holders(name: str, leave: str | None, reason: str | None, *, recall: bool, as_json: bool) -> None:
    """Lists who is left with an earlier revision, after a decision about them if one is given."""
    node = session.node()
    if (leave is None) != (reason is None) or (leave is not None and recall):
        raise UsageError("one decision at a time: --leave PEER --reason TEXT, or --recall")
    if leave is not None and reason is not None:
        revisions.leave(node, name, NodeId(leave), reason)
    if recall:
        revisions.recall_from_old_holders(node, name)
        session.wake()
    found = revisions.old_holders(node, name)
    if as_json:
        screen.emit([data(holder) for holder in found])
        return
    if not found:
        screen.note(f"Nobody is left with an earlier revision of {name}.")
        return
    screen.table(
        ("Peer", "Holds revision", "#Newest", "Acknowledged", "Decision"),
        [
            (h.peer, h.revisions, h.newest, h.acknowledged, "NONE" if h.left is None else f"keeps it: {h.left}")
            for h in found
        ],
    )


def say_unsettled(node: Node, name: str) -> None:
    """After a release: who is left with an earlier revision, and what can be decided."""
    unsettled = open_holders(node, name)
    for holder in unsettled:
        held = ", ".join(map(str, holder.revisions))
        screen.note(f"{holder.peer} is left with revision {held} and did not get revision {holder.newest}.")
    if unsettled:
        screen.note(f"Decide on each: apostille advisory holders {name} --help")


def open_holders(node: Node, name: str) -> list[OldHolder]:
    """Those for whom nothing was decided."""
    return [holder for holder in revisions.old_holders(node, name) if holder.left is None]


def data(holder: OldHolder) -> dict[str, Any]:
    """One of them, for scripts."""
    return {
        "peer": holder.peer,
        "holds": holder.revisions,
        "newest": holder.newest,
        "acknowledged": holder.acknowledged,
        "left": holder.left,
    }
