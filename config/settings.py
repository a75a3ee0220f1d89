"""The settings file of a node, `apostille.yaml` in its home: typed, frozen; an unknown key is an error.

The file holds no secret. Where keys lie follows from the home folder and cannot be configured; so does the database,
unless it is a PostgreSQL server, whose password the environment or the server's own files give.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from federation.errors import RemoteError, UsageError
from federation.model import Country, NodeId, country, node_id
from federation.yamltext import load, mapping

FILE_NAME = "apostille.yaml"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_POLL_S = 86_400
_KNOWN = ("listen", "advertise", "poll_interval_s", "law_packs")
_OPTIONAL = ("people", "database", "metrics", "log")
_URL = re.compile(r"[!#-&(-;=?-\[\]-~]{1,500}")  # what a URL may hold, without quotes, angles and backslashes
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}|uid [0-9]{1,10}")
_MAX_LOG_MIB, _MAX_LOG_FILES = 10_000, 1_000


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log file in the home that is rotated: `keep` old ones of `max_mib` mebibytes each."""

    name: str
    max_mib: int
    keep: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator decides. `listen` is where the server binds, `advertise` what the card tells peers.

    `people` maps accounts of the operating system to their posts (`node.home.people`); empty, the account that owns the
    home has them all. `database` is the URL of a PostgreSQL database, None for the file in the home. `metrics` is a
    loopback address, None for none; `log` is None for stderr.
    """

    node: NodeId
    jurisdiction: Country
    listen: str
    advertise: str
    poll_interval_s: int
    law_packs: tuple[str, ...]
    people: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    database: str | None = None
    metrics: str | None = None
    log: LogFile | None = None


def read(text: str, where: str) -> Settings:
    """The settings in `text`. Raises UsageError naming `where` and the key."""
    data = mapping(load(text, where), where, required=("node", "jurisdiction", *_KNOWN), optional=_OPTIONAL)
    interval, packs = data["poll_interval_s"], data["law_packs"]
    if not isinstance(interval, int) or isinstance(interval, bool) or not 1 <= interval <= _MAX_POLL_S:
        raise UsageError(f"{where}: poll_interval_s: expected a whole number of seconds from 1 to {_MAX_POLL_S}")
    if not isinstance(packs, list) or not all(isinstance(name, str) for name in packs):
        raise UsageError(f"{where}: law_packs: expected a list of names")
    try:
        return Settings(
            node=node_id(data["node"]),
            jurisdiction=known_country(data["jurisdiction"]),
            listen=address(data["listen"], f"{where}: listen"),
            advertise=address(data["advertise"], f"{where}: advertise"),
            poll_interval_s=interval,
            law_packs=tuple(packs),
            people=_people(data.get("people"), f"{where}: people"),
            database=None if data.get("database") is None else database_url(data["database"], f"{where}: database"),
            metrics=_loopback(data.get("metrics"), f"{where}: metrics"),
            log=_log(data.get("log"), f"{where}: log"),
        )
    except RemoteError as e:
        raise UsageError(f"{where}: {e}") from e


def write(settings: Settings) -> str:
    """The text of the settings file; the inverse of `read`."""
    packs = "\n".join(f"  - {name}" for name in settings.law_packs)
    people = "".join(f'  "{name}": [{", ".join(posts)}]\n' for name, posts in sorted(settings.people.items()))
    log = settings.log
    return (
        "# The settings of this node. `apostille doctor` checks them.\n"
        f"node: {settings.node}\n"
        f"jurisdiction: {settings.jurisdiction}   # whose law this node lives under\n"
        f'listen: "{settings.listen}"   # where the server binds\n'
        f'advertise: "{settings.advertise}"   # what the card tells peers; change it with a new card\n'
        f"poll_interval_s: {settings.poll_interval_s}   # a release notifies at once; polls mend what a notice missed\n"
        f"law_packs:{' []' if not packs else chr(10) + packs}\n"
        + (f"people:   # accounts of this machine, and what each may do\n{people}" if people else "")
        + (f'database: "{settings.database}"\n' if settings.database else "")
        + (f'metrics: "{settings.metrics}"   # Prometheus metrics, on loopback only\n' if settings.metrics else "")
        + (f"log: {{file: {log.name}, max_mib: {log.max_mib}, keep: {log.keep}}}\n" if log else "")
    )


def address(value: object, where: str) -> str:
    """`value` as HOST:PORT, an IPv6 host in brackets. Raises UsageError."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not _PORT.fullmatch(port) or not 0 <= int(port) < 1 << 16 or not _is_host(host):
        raise UsageError(f"{where}: {value!r} is not HOST:PORT, such as 192.0.2.7:7443 or [2001:db8::7]:7443")
    return f"{host}:{int(port)}"


def database_url(value: object, where: str) -> str:
    """`value` as the URL of a PostgreSQL database. Raises UsageError, which does not repeat it."""
    try:
        parts = urlsplit(value if isinstance(value, str) and _URL.fullmatch(value) else "")
        is_one = parts.scheme == "postgresql" and bool(parts.path.strip("/")) and parts.port != 0
    except ValueError:  # a port or a bracket that is none
        is_one = False
    if not is_one:
        raise UsageError(f"{where}: expected postgresql://USER@HOST:PORT/NAME, or leave it out for a file in the home")
    if parts.password is not None or any(name in parse_qs(parts.query) for name in ("password", "sslpassword")):
        raise UsageError(f"{where}: it must not hold a password; use PGPASSFILE or the server's peer authentication")
    return parts.geturl()


def _people(value: object, where: str) -> dict[str, tuple[str, ...]]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{where}: expected accounts with lists of posts, such as alice: [analyst, approver]")
    found = {}
    for account, posts in value.items():
        if not isinstance(account, str) or not _ACCOUNT.fullmatch(account):
            raise UsageError(f'{where}: {account!r} is no account; write its name, or "uid 1001" where it has none')
        if not isinstance(posts, list) or not posts or len(set(map(str, posts))) != len(posts):
            raise UsageError(f"{where}: {account}: expected a list of posts, each once")
        found[account] = tuple(map(str, posts))
    return found


def _loopback(value: object, where: str) -> str | None:
    if value is None:
        return None
    found = address(value, where)
    host = found.rpartition(":")[0].strip("[]")
    try:
        if ip_address(host).is_loopback:
            return found
    except ValueError:
        pass
    raise UsageError(f"{where}: {host} is not a loopback address; metrics stay on this machine: 127.0.0.1 or [::1]")


def _log(value: object, where: str) -> LogFile | None:
    if value is None:
        return None
    data = mapping(value, where, required=("file",), optional=("max_mib", "keep"))
    name, max_mib, keep = data["file"], data.get("max_mib", 20), data.get("keep", 10)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}\.log", name):
        raise UsageError(f"{where}: file: expected a plain name that ends in .log; the file lies in the home")
    for number, most, what in ((max_mib, _MAX_LOG_MIB, "max_mib"), (keep, _MAX_LOG_FILES, "keep")):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise UsageError(f"{where}: {what}: expected a whole number from 1 to {most}")
    return LogFile(name, max_mib, keep)


def known_country(value: object) -> Country:
    """`value` as the code of a country that exists. Raises UsageError."""
    from config.data import countries  # the table of countries costs start-up time

    code = country(value)
    if code not in countries():
        raise UsageError(f"{code} is no country of ISO 3166-1; write its alpha-2 code, such as FR")
    return code


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            return ip_address(host[1:-1]).version == 6
        except ValueError:
            return False
    return _HOST.fullmatch(host) is not None
