"""What a node that lies tells in place of its history, and what a bad line does to a page."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from federation.checkpoint import origin_line
from federation.entries import AgreementOffer, ErasedItem
from federation.feed import PageBytes
from federation.model import NodeId
from node.exchange import sync
from tests.faults.simulation import Run
from tests.nodes import ForgedFeed, entry, history


def forged(run: Run, receiver: NodeId, sender: NodeId, lie: str) -> None:
    """The sender tells another history than before. Raises what the receiver makes of it."""
    node, held = run.world[sender], sync.load_state(run.world[receiver], sender)
    items = history(node, receiver)
    cursor = held.state.cursor
    if cursor < 2 or held.state.origin != origin_line(sender, receiver, held.epoch):
        return
    if lie == "fork":
        at = run.chance.randrange(cursor)
        items[at] = entry(held.state.origin, at, AgreementOffer(b"rewritten"))
    elif lie == "rollback":
        items = items[: cursor - 1]
    elif lie == "hidden":  # an entry that is there is said to be erased by the last one
        items = [*items, ErasedItem(len(items), b"h" * 32, len(items) + 1)]
    feed = ForgedFeed(node, receiver, items, latest_age_s=86_400 if lie == "stale" else 0)
    feed.origin = held.state.origin
    sync.sync(run.world[receiver], sender, feed)


def damage(chance: Random) -> Callable[[PageBytes], PageBytes]:
    """Something that a bad line does to a page."""

    def flipped(data: bytes) -> bytes:
        at = chance.randrange(len(data) * 8) if data else 0
        return data[: at // 8] + bytes([data[at // 8] ^ (1 << at % 8)]) + data[at // 8 + 1 :] if data else data

    def flip_item(page: PageBytes) -> PageBytes:
        at = chance.randrange(len(page.items)) if page.items else 0
        items = tuple(flipped(i) if n == at and isinstance(i, bytes) else i for n, i in enumerate(page.items))
        return replace(page, items=items)

    def reordered(page: PageBytes) -> PageBytes:
        items = list(page.items)
        chance.shuffle(items)
        return replace(page, items=tuple(items))

    ways: list[Callable[[PageBytes], PageBytes]] = [
        flip_item,
        reordered,
        lambda page: replace(page, items=page.items[:-1]),
        lambda page: replace(page, items=page.items[1:]),
        lambda page: replace(page, items=page.items[:1] + page.items),
        lambda page: replace(page, checkpoint=flipped(page.checkpoint)),
        lambda page: replace(page, latest=flipped(page.latest)),
        lambda page: replace(page, receipt=flipped(page.receipt)),
        lambda page: replace(page, checkpoint=page.latest, latest=page.checkpoint),
    ]
    return chance.choice(ways)
