"""URLs of a Redis Cluster: redis+cluster://user:password@host1:6379,host2,host3/0.

Any of the hosts that answers names all nodes. User, password and options are those of every node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode

from gateway.store.redis.faults import NoAddress
from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.urls import CLUSTER_SCHEME

_PORT: Final = 6379

_EXAMPLE: Final = "redis+cluster://user:password@host1:6379,host2,host3/0"

_URL: Final = re.compile(
    r"redis\+cluster://(?:(?P<userinfo>[^/?#\s]*)@)?(?P<hosts>[^/?#@\s]*)"
    r"(?:/(?P<database>\d*))?(?:\?(?P<options>[^#@\s]*))?"
)

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?")

_ANNOUNCED: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+")
"""A host name or an IP address, as a node announces it."""

_SWITCHES: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""As redis-py reads its own options."""


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """What such a URL says."""

    hosts: Sequence[Address]
    location: str
    """Without user, password and options."""
    _scheme: str
    _userinfo: str = field(repr=False)
    _options: str = field(repr=False)

    def node_url(self, address: Address) -> str:
        """The URL of one node."""
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{self._scheme}://{self._userinfo}{host}:{address.port}/0{self._options}"


def node_name(host: object, port: int) -> str:
    """The name of an announced node, `host:port`.

    Raises `NoAddress` for anything else than a host: it becomes part of a URL with a password.
    """
    if not (isinstance(host, str) and _ANNOUNCED.fullmatch(host) and 0 < port < 1 << 16):
        raise NoAddress(host)
    return f"{host}:{port}"


def is_cluster_url(url: str) -> bool:
    """Whether the URL is one of a Redis Cluster."""
    return url.startswith(f"{CLUSTER_SCHEME}://")


def parse_cluster_url(url: str) -> ClusterUrl:
    """Raises `ValueError` with what is expected instead; its message never quotes the URL."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            f"{_EXAMPLE}, with signs like / # ? and @ in a password written as %2F %23 %3F and %40"
        )
    found = [_HOST.fullmatch(part) for part in match["hosts"].split(",")]
    hosts = [Address(m[1] or m[2], int(m[3] or _PORT)) for m in found if m is not None]
    if len(hosts) < len(found) or not all(0 < host.port < 1 << 16 for host in hosts):
        raise ValueError(f"{_EXAMPLE}, with the hosts of some nodes separated by commas")
    options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
    if int(match["database"] or options.pop("db", "") or 0):
        raise ValueError(f"{_EXAMPLE}: a cluster has no database but 0")
    is_tls = _SWITCHES.get(options.pop("ssl", "false").lower())
    if is_tls is None:
        raise ValueError("ssl=true or ssl=false in its options")
    if not is_tls and any(name.startswith("ssl_") for name in options):
        first = min(name for name in options if name.startswith("ssl_"))
        raise ValueError(f"ssl=true beside {first} in its options")
    return ClusterUrl(
        list(dict.fromkeys(hosts)),
        location=f"{CLUSTER_SCHEME}://{match['hosts']}/0",
        _scheme="rediss" if is_tls else "redis",
        _userinfo=f"{match['userinfo']}@" if match["userinfo"] else "",
        _options=f"?{urlencode(options)}" if options else "",
    )
