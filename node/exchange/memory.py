"""What this node remembers of a peer's feed, held against what else it remembers of it.

Disks lose bits: a peer must not be accused, nor a receipt be signed, because of one that is ours.
"""

from federation.checkpoint import Checkpoint
from federation.errors import DamagedError, RemoteError
from federation.feed import FeedState


def check_head(state: FeedState) -> None:
    """The head at the cursor has the root of our own edge. Raises DamagedError."""
    if not state.head and not state.cursor:
        return
    try:
        head = Checkpoint.of(state.head)
    except RemoteError as e:
        raise DamagedError(f"the head of {state.origin} that is held is none") from e
    if (head.origin, head.size, head.root) != (state.origin, state.cursor, state.edge.root()):
        raise DamagedError(f"the head of {state.origin} that is held is not that of the tree that is held")
