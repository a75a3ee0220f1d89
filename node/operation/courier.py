"""Carrying alarms to people who are not looking: chat, mail, whatever `apprise` speaks.

Addresses are secrets. They lie in the file `alerts` of the home, which only its owner can read, one to a line; nothing
is sent to any other: no redirect is followed unless an address itself says so (I18). What is sent is one sentence:
node, kind, subject, time, and what to do; no payload (I17). An alarm is carried once to each address. One that fails is
tried again, ever more rarely, while the alarm is open; a new process tries only what nobody has taken yet. Where a
process ends between the answer and its own note, a message comes twice.

The serving process alone carries, in threads of its own: an address that hangs delays neither the exchange nor the
other addresses. apprise takes long to import, so that waits until there is something to carry.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from federation.errors import LocalError, UsageError
from federation.model import instant_text
from node.home import inert, logs
from node.home.context import Node
from node.home.keys import check_private
from node.records import alarms
from node.records.alarms import ADVICE, Raised
from node.store.database import read, write

if TYPE_CHECKING:
    from apprise import NotifyBase

FILE_NAME: Final = "alerts"
LOOK_EVERY_S: Final = 10.0  # alarms that another process of this home has raised are found this late at most
SEND_LIMIT_S: Final = 20.0  # for one message to one address
FIRST_RETRY_S: Final = 30.0
MOST_RETRY_S: Final = 3600.0
_STOP_S: Final = 1.0
_MAX_FILE = 64 << 10  # bytes
_MAX_ADDRESSES = 50
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Address:
    """Where alarms go, without its secrets: the number of its line, and the scheme of its URL."""

    line: int = field(compare=False)
    scheme: str
    _url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """What is carried."""

    title: str
    text: str


@dataclass(slots=True)
class _Rest:
    """An address that failed: how often in a row, and when it is tried again."""

    failures: int
    until: float


def addresses(home: Path) -> tuple[Address, ...]:
    """The addresses in the file of this home, none if it has no such file.

    Raises UsageError for a file that others can read, and for a line that is no address; no line is repeated.
    """
    path = home / FILE_NAME
    if not path.exists():
        return ()
    check_private(path, str(path))
    try:
        data = path.read_bytes()
        lines = data[:_MAX_FILE].decode("utf-8-sig").splitlines()
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not text in UTF-8") from e
    texts = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    found = [(number, text) for number, text in texts if text and not text.startswith("#")]
    if len(data) > _MAX_FILE or len(found) > _MAX_ADDRESSES:
        raise UsageError(f"{path} is too large: {_MAX_ADDRESSES} addresses are enough for anybody")
    for number, text in found:
        if _service(text) is None:
            raise UsageError(f"{path}, line {number}: no address that apprise understands, such as mailto://...")
    return tuple(Address(number, text.partition(":")[0].lower(), text) for number, text in found)


def message(node: Node, alarm: Raised) -> Message:
    """What is told of an alarm, in one sentence. Its subject may hold a name that a peer chose."""
    subject = inert.name(alarm.subject)
    return Message(
        f"apostille {node.id}: {alarm.kind}",
        f"{node.id}: {alarm.kind} {subject}, since {instant_text(alarm.first_at)}; {ADVICE[alarm.kind]}",
    )


def trial_message(node: Node) -> Message:
    """What `apostille alerts test` sends."""
    now = instant_text(node.clock())
    return Message(
        f"apostille {node.id}: test", f"{node.id}: a test of alerts by {node.actor}, {now}; nothing is wrong"
    )


def send(address: Address, message: Message, limit_s: float = SEND_LIMIT_S) -> bool:
    """Whether the address took the message in time. A call that hangs is left to its thread."""
    return _Sending(address, message).result(limit_s)


class Courier:
    """Carries the open alarms of a node that were not carried yet. `wake` when there may be new ones."""

    def __init__(
        self,
        node: Node,
        look_every_s: float = LOOK_EVERY_S,
        first_retry_s: float = FIRST_RETRY_S,
        limit_s: float = SEND_LIMIT_S,
    ) -> None:
        self._node = node
        self._limit_s = limit_s
        self._look_every_s = look_every_s
        self._first_retry_s = first_retry_s
        self._owed: dict[int, set[Address]] = {}  # by alarm, to whom it has to go
        self._resting: dict[Address, _Rest] = {}
        self._hanging: dict[Address, tuple[int, _Sending]] = {}
        self._told: str | None = None
        self._end, self._look = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Begins to carry."""
        self._thread.start()

    def wake(self) -> None:
        """Looks now."""
        self._look.set()

    def stop(self) -> None:
        """Carries no more. Waits for a moment; what is under way ends with the process."""
        self._end.set()
        self._look.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._carry_all()
            except (LocalError, SQLAlchemyError, OSError) as e:
                self._complain(e)
            except Exception as e:  # noqa: BLE001 - the boundary of a thread: no raw text reaches a log, and it goes on
                self._complain(e)
            else:
                self._told = None
            self._look.wait(self._look_every_s)
            self._look.clear()

    def _carry_all(self) -> None:
        self._take_in_late_ones()
        with read(self._node.engine) as tx:
            waiting = alarms.undelivered(tx)
        if not waiting and not self._owed:
            return
        known = addresses(self._node.home)
        for alarm in waiting:
            self._owed.setdefault(alarm.number, set(known))
        for number in sorted(self._owed):
            self._owed[number] &= set(known)
            for address in sorted(self._owed[number], key=lambda address: address.line):
                if not self._end.is_set() and not self._is_resting(address):
                    self._carry(number, address)
        self._owed = {number: whom for number, whom in self._owed.items() if whom}

    def _carry(self, number: int, address: Address) -> None:
        with read(self._node.engine) as tx:
            alarm = alarms.still_open(tx, number)
        if alarm is None:
            self._owed[number].clear()
            return
        sending = _Sending(address, message(self._node, alarm))
        if sending.result(self._limit_s):
            self._note(number, address)
            return
        if sending.is_running():
            self._hanging[address] = (number, sending)
        failures = self._resting[address].failures + 1 if address in self._resting else 1
        rest_s = min(MOST_RETRY_S, self._first_retry_s * 2 ** min(failures - 1, 20))
        self._resting[address] = _Rest(failures, time.monotonic() + rest_s)
        _log.info("alert failed", alarm=number, line=address.line, scheme=address.scheme)

    def _note(self, number: int, address: Address) -> None:
        self._owed.get(number, set()).discard(address)
        self._resting.pop(address, None)
        with write(self._node.engine) as tx:
            alarms.note_delivered(tx, number, self._node.clock())
        _log.info("alert", alarm=number, line=address.line)

    def _take_in_late_ones(self) -> None:
        """What was taken after all, long after it was sent, is not sent again."""
        for address, (number, sending) in list(self._hanging.items()):
            if not sending.is_running():
                del self._hanging[address]
                if sending.result(0):
                    self._note(number, address)

    def _is_resting(self, address: Address) -> bool:
        """Whether it failed a short time ago, or has not come back from the last message."""
        failed = address in self._resting and time.monotonic() < self._resting[address].until
        return failed or address in self._hanging

    def _complain(self, error: Exception) -> None:
        """Once for the same fault."""
        said = str(error) if isinstance(error, UsageError) else f"{type(error).__name__} at {logs.place(error)}"
        if said != self._told:
            _log.error("alerts cannot be sent", reason=said)
        self._told = said


class _Sending:
    """One message on its way to one address, in a thread of its own that ends with the process at the latest."""

    def __init__(self, address: Address, message: Message) -> None:
        self._address, self._message, self._taken = address, message, False
        self._thread = threading.Thread(target=self._send, name=f"alert to line {address.line}", daemon=True)
        self._thread.start()

    def result(self, limit_s: float) -> bool:
        """Whether it was taken within `limit_s` from now."""
        self._thread.join(limit_s)
        return self._taken

    def is_running(self) -> bool:
        """Whether the address neither took nor refused it yet."""
        return self._thread.is_alive()

    def _send(self) -> None:
        try:
            self._taken = self._notify()
        except Exception as e:  # noqa: BLE001 - whatever a service's plugin raises, it was not taken; its text is secret
            _log.info("alert broke", line=self._address.line, error=type(e).__name__)

    def _notify(self) -> bool:
        from apprise import NotifyFormat, NotifyType

        service = _service(self._address._url)
        if service is None:
            return False
        return bool(
            service.notify(
                body=self._message.text,
                title=self._message.title,
                notify_type=NotifyType.WARNING,
                body_format=NotifyFormat.TEXT,
            )
        )


def _service(url: str) -> "NotifyBase | None":
    """What speaks to an address; None if nothing does. What apprise would log, addresses in it, goes nowhere."""
    import apprise

    asset = apprise.AppriseAsset(
        app_id="apostille",
        app_desc="apostille",
        app_url="",
        image_url_mask="",
        image_url_logo="",
        async_mode=False,
        http_redirects=False,
        pgp_autogen=False,
        pem_autogen=False,
        allow_templates=False,
    )
    found: Any = apprise.Apprise.instantiate(url, asset=asset)
    return found if isinstance(found, apprise.NotifyBase) else None
