"""URLs of a Redis Cluster: `redis+cluster://user:password@host:port,host:port/0?option=…`.

The hosts are those that are asked for the cluster's nodes; any one that answers is enough. With TLS
the URL begins with `rediss+cluster://`. User, password and options are those of every node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gateway.store.redis.topology.addresses import Address

CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")

VALID_FORM: Final = (
    "redis+cluster://user:password@host:6379,host:6379/0 (rediss+cluster:// for TLS) with at least"
    " one node, no database but 0, and signs like / # ? and @ in a password written as %2F %23 %3F"
    " and %40"
)

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:,/?#@\s]+))(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """The parts of a cluster's URL."""

    hosts: Sequence[Address]
    location: str
    """The URL without user, password and options, for messages."""
    _scheme: str
    _credentials: str
    _query: str

    def node_url(self, host: str, port: int) -> str:
        """The URL of one node, with the same user, password and options."""
        name = f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{self._credentials}{name}:{port}/0{self._query}"


def is_cluster_url(url: str) -> bool:
    """Whether the URL is one of a Redis Cluster."""
    return url.partition("://")[0] in CLUSTER_SCHEMES


def parse_cluster_url(url: str) -> ClusterUrl:
    """Raises `ValueError` with what a valid URL looks like; its message never quotes the URL."""
    parts = urlsplit(url)
    credentials, at, names = parts.netloc.rpartition("@")
    found = [_HOST.fullmatch(name) for name in names.split(",")]
    hosts = [Address(m[1] or m[2], int(m[3] or 6379)) for m in found if m is not None]
    # A password with a bare `/`, `?` or `#` ends the hosts early, so the rest is no database.
    is_whole = not (parts.fragment or "@" in parts.query or re.search(r"\s", url))
    has_ports = all(0 < one.port < 65536 for one in hosts)
    if len(hosts) < len(found) or not (is_whole and has_ports) or parts.path not in ("", "/", "/0"):
        raise ValueError(VALID_FORM)
    return ClusterUrl(
        hosts,
        location=f"{parts.scheme}://{names}{parts.path}",
        _scheme=parts.scheme.removesuffix("+cluster"),
        _credentials=credentials + at,
        _query=f"?{parts.query}" if parts.query else "",
    )
