"""A home belongs to whoever opens it, and all that makes it a home lies in it.

A command runs as the home's owner for people who are somebody else, and takes their word for where the home is. A
folder of their own, with settings of their own and links to the keys and the database of the node, would give them
every post. So nothing of a home is read before its owner is known. Which files count, `node.main` says; modes are for
`doctor`.
"""

from collections.abc import Iterable
from pathlib import Path
from stat import S_ISLNK

from federation.errors import UsageError
from node.home.people import name_of


def check(paths: Iterable[Path], mine: int) -> None:
    """Refuses a path that is a symbolic link, or of another account than the user id `mine`. Raises UsageError."""
    for path in paths:
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            raise UsageError(f"{path} cannot be looked at: {e.strerror}; run this as the home's owner") from e
        owner = name_of(found.st_uid)
        if S_ISLNK(found.st_mode):
            raise UsageError(
                f"{path} is a symbolic link of {owner}: a home and its files must lie where they are named; name the"
                " folder itself, and run this as its owner"
            )
        if found.st_uid != mine:
            raise UsageError(f"{path} belongs to {owner}, and this runs as {name_of(mine)}: run it as {owner}")
