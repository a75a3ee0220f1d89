"""The settings file of a node, `apostille.yaml` in its home: typed, frozen; an unknown key is an error.

The file holds no secret. Where keys and the database lie follows from the home folder and cannot be configured.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address

from federation.errors import RemoteError, UsageError
from federation.model import Country, NodeId, country, node_id
from federation.yamltext import load, mapping

FILE_NAME = "apostille.yaml"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_MAX_POLL_S = 86_400
_KNOWN = ("listen", "advertise", "poll_interval_s", "law_packs")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator decides. `listen` is where the server binds, `advertise` what the card tells peers."""

    node: NodeId
    jurisdiction: Country
    listen: str
    advertise: str
    poll_interval_s: int
    law_packs: tuple[str, ...]


def read(text: str, where: str) -> Settings:
    """The settings in `text`. Raises UsageError naming `where` and the key."""
    data = mapping(load(text, where), where, required=("node", "jurisdiction", *_KNOWN))
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
        )
    except RemoteError as e:
        raise UsageError(f"{where}: {e}") from e


def write(settings: Settings) -> str:
    """The text of the settings file; the inverse of `read`."""
    packs = "\n".join(f"  - {name}" for name in settings.law_packs)
    return (
        "# The settings of this node. `apostille doctor` checks them.\n"
        f"node: {settings.node}\n"
        f"jurisdiction: {settings.jurisdiction}   # whose law this node lives under\n"
        f'listen: "{settings.listen}"   # where the server binds\n'
        f'advertise: "{settings.advertise}"   # what the card tells peers; change it with a new card\n'
        f"poll_interval_s: {settings.poll_interval_s}   # a release notifies at once; polls mend what a notice missed\n"
        f"law_packs:{' []' if not packs else chr(10) + packs}\n"
    )


def address(value: object, where: str) -> str:
    """`value` as HOST:PORT, an IPv6 host in brackets. Raises UsageError."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not port.isdecimal() or not port.isascii() or not 0 <= int(port) < 1 << 16 or not _is_host(host):
        raise UsageError(f"{where}: {value!r} is not HOST:PORT, such as 192.0.2.7:7443 or [2001:db8::7]:7443")
    return f"{host}:{int(port)}"


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
