"""URLs of a service that sentinels watch: redis+sentinel://user:password@h1,h2:26379/service/0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from gateway.store.redis.topology.addresses import Address

SENTINEL_PORT: Final = 26379

_EXAMPLE: Final = "redis+sentinel://user:password@host1:26379,host2,host3/service/0"

_URL: Final = re.compile(
    r"redis\+sentinel://(?:(?P<userinfo>[^/?#]*)@)?(?P<hosts>[^/?#@]*)"
    r"(?:/(?P<service>[^/?#@]*))?(?:/(?P<database>\d*))?(?:\?(?P<options>[^#@]*))?"
)

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?")

_SWITCHES: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""As redis-py reads its own options."""

_CREDENTIALS: Final = ("username", "password")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """What such a URL says."""

    sentinels: Sequence[Address]
    service: str
    location: str
    """Without user, password and options."""
    master_url: str = field(repr=False)
    """For the options of connections to the master; its host is not the master's."""
    sentinel_url: str = field(repr=False)
    """For the options of connections to a sentinel; its host is none of them."""


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Raises `ValueError` with what is expected instead; its message never quotes the URL."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            f"{_EXAMPLE}, with signs like / # ? and @ in a password written as %2F %23 %3F and %40"
        )
    sentinels = _parse_hosts(match["hosts"])
    service = unquote(match["service"] or "")
    if not re.fullmatch(r"[\w.-]+", service, re.ASCII):
        raise ValueError(
            f"{_EXAMPLE}, whose path begins with the service: the name that `sentinel monitor` "
            "gives the master"
        )
    options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
    is_tls = _SWITCHES.get(options.pop("ssl", "false").lower())
    if is_tls is None:
        raise ValueError("ssl=true or ssl=false in its options")
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if tls and not is_tls:
        raise ValueError(f"ssl=true beside {min(tls)} in its options")
    user, password = (options.pop(f"sentinel_{name}", "") for name in _CREDENTIALS)
    if user and not password:
        raise ValueError("sentinel_password beside sentinel_username in its options")
    scheme = "rediss" if is_tls else "redis"
    userinfo = f"{match['userinfo']}@" if match["userinfo"] else ""
    database = match["database"] or options.pop("db", "") or "0"
    credentials = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    return SentinelUrl(
        sentinels,
        service,
        f"redis+sentinel://{match['hosts']}/{service}/{database}",
        f"{scheme}://{userinfo}master/{database}?{urlencode(options)}",
        f"{scheme}://{credentials}sentinel?{urlencode(tls)}",
    )


def _parse_hosts(text: str) -> Sequence[Address]:
    found = [_HOST.fullmatch(part) for part in text.split(",")]
    hosts = [
        Address(match[1] or match[2], int(match[3] or SENTINEL_PORT))
        for match in found
        if match is not None
    ]
    if len(hosts) < len(found) or not all(0 < host.port < 1 << 16 for host in hosts):
        raise ValueError(f"{_EXAMPLE}, with the hosts of all sentinels separated by commas")
    return list(dict.fromkeys(hosts))
