"""The people of this node: what each account of the operating system may do here.

A post is given in the settings. Where they name nobody, the account that owns the home holds every post. Reading is
open to whoever can open the home; every change needs a post and is recorded under the account's name. Who sits at the
keyboard is the operating system's to say: the login account that the kernel remembers across `sudo` and `su`, else the
real user id. Whoever logs in as root can be anybody, here as everywhere on the machine.

An account has one name here however it is written: the one that the machine has for its user id. Posts bind whoever
uses the commands. They do not protect the files of the home: that is for the operating system, which should let people
run the command as the home's owner and nothing else.
"""

import os
import pwd
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from federation.errors import NotAllowedError, UsageError

_LOGIN_UID: Final = Path("/proc/self/loginuid")  # proc(5): set once at login, inherited by every child
_UNSET: Final = 2**32 - 1
_UID: Final = "uid "


class Post(StrEnum):
    """What a local person may do. One person may hold several."""

    ANALYST = "analyst"  # cases, advisories, releases, recalls, statements, the inbox
    APPROVER = "approver"  # the second half of what takes two people
    OPERATOR = "operator"  # peers, agreements, keys, backups, incidents, alarms
    AUDITOR = "auditor"  # reads everything, changes nothing


People = Mapping[str, frozenset[Post]]


def read(given: Mapping[str, tuple[str, ...]], owner: str, where: str) -> People:
    """The posts that the settings give; all of them to `owner` when they name nobody.

    Raises UsageError for a post that there is not, and for an account that is named twice in two spellings.
    """
    if not given:
        return {owner: frozenset(Post)}
    found: dict[str, frozenset[Post]] = {}
    for written, posts in given.items():
        unknown = sorted(set(posts) - set(Post))
        if unknown:
            raise UsageError(f"{where}: people: {written}: no post is called {', '.join(unknown)}: {', '.join(Post)}")
        uid = uid_of(written)
        account = written if uid is None else name_of(uid)
        if account in found:
            raise UsageError(f"{where}: people: {written} is the account {account}, which stands there twice")
        found[account] = frozenset(map(Post, posts))
    return found


def holds(people: People, account: str, post: Post) -> bool:
    """Whether `account` holds `post` now."""
    return post in people.get(account, frozenset())


def require(people: People, account: str, post: Post) -> None:
    """Refuses an act to whoever does not hold `post`. Raises NotAllowedError, saying who does."""
    if holds(people, account, post):
        return
    holders = sorted(name for name in people if holds(people, name, post))
    ask = f"ask {' or '.join(holders)}" if holders else "nobody is: name one under `people` in apostille.yaml"
    raise NotAllowedError(f"{account} is no {post} here; {ask}")


def account() -> str:
    """Who runs this process, by account name; where an account has no name, `uid N`."""
    return name_of(_login_uid(_LOGIN_UID) or os.getuid())


def name_of(uid: int) -> str:
    """The name of an account; `uid N` where it has none, as in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"{_UID}{uid}"


def uid_of(account: str) -> int | None:
    """The user id of an account by its name or as `uid N`; None where the machine has no such account."""
    number = account.removeprefix(_UID)
    if number != account and number.isascii() and number.isdecimal():
        return int(number)
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def _login_uid(path: Path) -> int | None:
    """The user id with which the session began; None where the kernel does not say, or it began as root."""
    try:
        uid = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return uid if 0 < uid < _UNSET else None
