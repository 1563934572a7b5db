"""URLs that name several hosts: scheme://user:password@host1:1,host2,[::1]/path?ssl=true&….

The schemes of sentinels and of a cluster have this form. Each gives the path its own meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.urls import CLUSTER_SCHEME, SENTINEL_SCHEME


@dataclass(frozen=True, slots=True)
class UrlForm:
    """How URLs of one scheme differ from those of the others."""

    hosts: str
    default_port: int
    example: str


FORMS: Final[Mapping[str, UrlForm]] = {
    SENTINEL_SCHEME: UrlForm(
        "all sentinels",
        26379,
        f"{SENTINEL_SCHEME}://user:password@host1:26379,host2,host3/service/0",
    ),
    CLUSTER_SCHEME: UrlForm(
        "some nodes", 6379, f"{CLUSTER_SCHEME}://user:password@host1:6379,host2,host3/0"
    ),
}
"""By the scheme of the URL."""

_URL: Final = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<userinfo>[^/?#\s]*@))?(?P<hosts>[^/?#@\s]*)"
    r"(?:/(?P<path>[^?#@\s]*))?(?:\?(?P<options>[^#@\s]*))?"
)

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?", re.ASCII)

_SWITCHES: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""As redis-py reads its own options."""

SIGNS: Final = "with signs like / # ? and @ in a password written as %2F %23 %3F and %40"


@dataclass(frozen=True, slots=True)
class MultiHostUrl:
    """The parts of such a URL."""

    hosts: Sequence[Address]
    location: str
    """Scheme and hosts as they are written."""
    path: Sequence[str]
    """The segments after the hosts, percent-encoded."""
    is_tls: bool
    userinfo: str = field(repr=False)
    """As it is written, with the `@`; empty without one."""
    options: Mapping[str, str] = field(repr=False)
    """All but `ssl`."""

    @property
    def scheme(self) -> str:
        """The scheme of the URL of one server."""
        return "rediss" if self.is_tls else "redis"


def parse_multi_host_url(url: str) -> MultiHostUrl:
    """The parts of a URL with one of the schemes of `FORMS`.

    Raises `ValueError` with what is expected instead; its message never quotes the URL.
    """
    form = FORMS[url.partition("://")[0]]
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"{form.example}, {SIGNS}")
    found = [_HOST.fullmatch(part) for part in match["hosts"].split(",")]
    hosts = [Address(m[1] or m[2], int(m[3] or form.default_port)) for m in found if m is not None]
    if len(hosts) < len(found) or not all(0 < host.port < 1 << 16 for host in hosts):
        raise ValueError(f"{form.example}, with the hosts of {form.hosts} separated by commas")
    options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
    is_tls = _SWITCHES.get(options.pop("ssl", "false").lower())
    if is_tls is None:
        raise ValueError("ssl=true or ssl=false in its options")
    tls = [name for name in options if name.startswith("ssl_")]
    if tls and not is_tls:
        raise ValueError(f"ssl=true beside {min(tls)} in its options")
    return MultiHostUrl(
        list(dict.fromkeys(hosts)),
        f"{match['scheme']}://{match['hosts']}",
        (match["path"] or "").split("/"),
        is_tls,
        match["userinfo"] or "",
        options,
    )
