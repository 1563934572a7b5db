"""URLs of a Redis Cluster: redis+cluster://user:password@host1:6379,host2,host3/0.

Any of the hosts names all nodes. User, password and options are those of every node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from gateway.store.redis.faults import NoAddress
from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.topology.multi_host_url import FORMS, SIGNS, parse_multi_host_url
from gateway.store.redis.urls import CLUSTER_SCHEME

_EXAMPLE: Final = FORMS[CLUSTER_SCHEME].example

_ANNOUNCED: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+")
"""A host name or an IP address, as a node announces it."""


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """The parts of such a URL."""

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

    Raises `NoAddress` unless `host` is one, because it becomes part of a URL with a password.
    """
    if not (isinstance(host, str) and _ANNOUNCED.fullmatch(host) and 0 < port < 1 << 16):
        raise NoAddress(host)
    return f"{host}:{port}"


def is_cluster_url(url: str) -> bool:
    """Whether the URL is one of a Redis Cluster."""
    return url.startswith(f"{CLUSTER_SCHEME}://")


def parse_cluster_url(url: str) -> ClusterUrl:
    """Raises `ValueError` with what is expected instead; its message never quotes the URL."""
    parts = parse_multi_host_url(url)
    options = dict(parts.options)
    database = "/".join(parts.path) or options.pop("db", "0")
    if not re.fullmatch(r"\d*", database, re.ASCII):
        raise ValueError(f"{_EXAMPLE}, {SIGNS}")
    if int(database or 0):
        raise ValueError(f"{_EXAMPLE}: a cluster has no database but 0")
    return ClusterUrl(
        parts.hosts,
        location=f"{parts.location}/0",
        _scheme=parts.scheme,
        _userinfo=parts.userinfo,
        _options=f"?{urlencode(options)}" if options else "",
    )
