"""The people of this node: what each account of the operating system may do here.

A post is given in the settings. Where they name nobody, the account that owns the home holds every post. Reading is
open to whoever can open the home; every change needs a post and is recorded under the account's name. Who sits at the
keyboard is the operating system's to say (`who`): the account that runs the command, or that had `sudo` run it, as long
as the login that the kernel remembers is not of another one. Whoever logs in as root can be anybody, here as everywhere
on the machine.

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
_DOUBT: Final = ", logged in as "  # stands in no name of an account: whoever is called so holds no post


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
    """Refuses an act to whoever does not hold `post`. Raises NotAllowedError, saying who does.

    Of whom it is not clear who they are, nobody holds one.
    """
    if holds(people, account, post):
        return
    if _DOUBT in account:
        raise NotAllowedError(
            f"this is {account}: nobody can tell which of the two acts; log in as yourself, then run it"
        )
    holders = sorted(name for name in people if holds(people, name, post))
    ask = f"ask {' or '.join(holders)}" if holders else "nobody is: name one under `people` in apostille.yaml"
    raise NotAllowedError(f"{account} is no {post} here; {ask}")


def account(sudo: str | None) -> str:
    """Who runs this process, by account name; where an account has no name, `uid N`; both where there is a doubt.

    `sudo` is what sudo says of its caller, None where there is no sudo. Raises UsageError when that is no user id.
    """
    told = None if sudo is None else _uid_told(sudo)
    person, login = who(os.getuid(), os.geteuid(), _login_uid(_LOGIN_UID), told)
    return name_of(person) if login is None else f"{name_of(person)}{_DOUBT}{name_of(login)}"


def who(real: int, effective: int, login: int | None, sudo: int | None) -> tuple[int, int | None]:
    """The user id of the person who acts, and that of the login where it is another one: then nobody can tell.

    A program that changes the effective user id leaves the real one. `sudo` changes both and says who called. Where
    there is neither, it is a shell of the home's owner or of root, and the login says whose. Elsewhere the login only
    takes away: where the kernel has none, any process may name one, of any account.
    """
    if real != effective:
        caller = real
    elif sudo is not None:
        caller = sudo
    else:
        return real if login is None else login, None
    return caller, None if login in (None, caller) else login


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


def _uid_told(sudo: str) -> int:
    if not (sudo.isascii() and sudo.isdecimal() and int(sudo) < _UNSET):
        raise UsageError("SUDO_UID is no user id: sudo sets it, and nobody else should; unset it")
    return int(sudo)


def _login_uid(path: Path) -> int | None:
    """The user id with which the session began; None where the kernel does not say, or it began as root."""
    try:
        uid = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return uid if 0 < uid < _UNSET else None
