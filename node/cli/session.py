"""Which home a command works on, its node, and what every command reads and writes alike.

Opening a node costs most of a second, so it is done here and only when a command needs it.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import UsageError
from node.home import lock

if TYPE_CHECKING:
    from node.home.context import Node

HOME_VARIABLE = "APOSTILLE_HOME"
DEFAULT_HOME = Path("~/.apostille")
_SETTINGS = "apostille.yaml"  # what makes a folder a home
_chosen: ContextVar[Path | None] = ContextVar("chosen", default=None)
_used: ContextVar[Path | None] = ContextVar("used", default=None)


def choose_home(given: Path | None) -> None:
    """Keeps what --home or its variable says; called once, before any command."""
    _chosen.set(given)


def home() -> Path:
    """The home that this command works on: --home, APOSTILLE_HOME, or ~/.apostille."""
    chosen = (_chosen.get() or DEFAULT_HOME).expanduser()
    _used.set(chosen)
    return chosen


def used_home() -> Path | None:
    """The home, if this command has come to need one; errors name it."""
    return _used.get()


def node() -> "Node":
    """The node of the home. Raises UsageError, PolicyError or LockedError."""
    from node.main import open_node

    return open_node(home())


def wake() -> None:
    """Tells a server that runs on this home that there is news for peers."""
    lock.wake(home())


def serving_address() -> str | None:
    """Where a server that runs on this home listens; None when there is none."""
    return lock.serving_address(home())


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file that the user named. Raises UsageError when it cannot be read, is too large, or lies in the
    home."""
    check_outside(path)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    if len(data) > max_bytes:
        raise UsageError(f"{path} is too large: at most {max_bytes} bytes are read")
    return data


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a file that the user named. Raises UsageError."""
    try:
        return read_file(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not text in UTF-8") from e


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that the user asked for, outside of the home: whole or not at all. Raises UsageError."""
    check_outside(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {e.strerror}") from e


def bind_address(text: str) -> str:
    """`text` as HOST:PORT, where `0` and HOST:0 ask for a port that is free now. Raises UsageError."""
    from config.settings import address

    listen = address("127.0.0.1:0" if text == "0" else text, "--listen")
    host, _, port = listen.rpartition(":")
    if port != "0":
        return listen
    with _bound(host) as sock:
        return f"{host}:{sock.getsockname()[1]}"


def reachable_address(text: str) -> str:
    """`text` as a HOST:PORT that peers can dial. Raises UsageError."""
    from config.settings import address

    endpoint = address(text, "--advertise")
    host, _, port = endpoint.rpartition(":")
    if host in ("0.0.0.0", "[::]") or port == "0":  # noqa: S104 - refused, not bound
        raise UsageError(f"peers cannot dial {endpoint}: name your public HOST:PORT with --advertise")
    return endpoint


def law_packs() -> tuple[str, ...]:
    """The names of the law packs that ship."""
    from config.data import pack_names

    return pack_names()


def agreement_template() -> bytes:
    """The commented agreement that ships, to start from."""
    from importlib.resources import files

    return files("config").joinpath("agreements", "template.yaml").read_bytes()


def check_outside(path: Path) -> None:
    """Refuses a path into this home or another one: people who may run this command need not be people who may touch
    its files."""
    try:
        place, mine = path.resolve(), (_chosen.get() or DEFAULT_HOME).expanduser().resolve()
    except (OSError, RuntimeError) as e:
        raise UsageError(f"{path} cannot be found: it leads round in a circle") from e
    if any(folder == mine or (folder / _SETTINGS).exists() for folder in (place, *place.parents)):
        raise UsageError(f"{path} lies in the home of a node: name a file outside of it")


@contextmanager
def _bound(host: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.bind((host.strip("[]"), 0))
        except OSError as e:
            raise UsageError(f"--listen: {host} is no address of this machine") from e
        yield sock
