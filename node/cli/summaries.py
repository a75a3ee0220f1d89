"""An advisory in a few words or members: what several commands print of it alike."""

from typing import TYPE_CHECKING, Any

from node.cli import screen

if TYPE_CHECKING:
    from node.sharing.advisories import Imported, Summary


def say_unlabelled(made: "Imported") -> None:
    """Tells of parts that no label covers: they are never shared."""
    if made.unlabelled:
        paths = ", ".join(made.unlabelled[:3]) + (" …" if len(made.unlabelled) > 3 else "")
        screen.note(f"{made.advisory.name}: {len(made.unlabelled)} parts have no label and are never shared: {paths}")


def summary_data(summary: "Summary") -> dict[str, Any]:
    """An advisory for scripts."""
    handling = summary.handling
    return {
        "advisory": summary.name,
        "revision": summary.revision,
        "title": summary.title,
        "state": summary.state,
        "created_at": summary.created_at,
        "tlp": handling.tlp,
        "tier": handling.tier,
        "home": handling.home,
        "purposes": handling.purposes,
        "onward": handling.onward,
        "storage": handling.storage,
        "recipients": handling.recipients,
        "embargo_until": handling.embargo_until,
        "retain_until": handling.retain_until,
    }


def imported_data(made: "Imported") -> dict[str, Any]:
    """What came of one file or case, for scripts."""
    return {"advisory": made.advisory.name, "fresh": made.fresh, "unlabelled": made.unlabelled}
