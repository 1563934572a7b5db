"""URLs of a service that sentinels watch: redis+sentinel://user:password@h1,h2:26379/service/0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, urlencode

from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.topology.multi_host_url import FORMS, SIGNS, parse_multi_host_url
from gateway.store.redis.urls import SENTINEL_SCHEME

_EXAMPLE: Final = FORMS[SENTINEL_SCHEME].example

_CREDENTIALS: Final = ("username", "password")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """The parts of such a URL."""

    sentinels: Sequence[Address]
    service: str
    location: str
    """Without user, password and options."""
    master_url: str = field(repr=False)
    """Has the options of connections to the master. Its host is a placeholder."""
    sentinel_url: str = field(repr=False)
    """Has the options of connections to a sentinel. Its host is a placeholder."""


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Raises `ValueError` with what is expected instead; its message never quotes the URL."""
    parts = parse_multi_host_url(url)
    service, database, *others = (*map(unquote, parts.path), "")
    if any(others) or not re.fullmatch(r"\d*", database, re.ASCII):
        raise ValueError(f"{_EXAMPLE}, {SIGNS}")
    if not re.fullmatch(r"[\w.-]+", service, re.ASCII):
        raise ValueError(
            f"{_EXAMPLE}, whose path begins with the service: the name that `sentinel monitor` "
            "gives the master"
        )
    options = dict(parts.options)
    user, password = (options.pop(f"sentinel_{name}", "") for name in _CREDENTIALS)
    if user and not password:
        raise ValueError("sentinel_password beside sentinel_username in its options")
    database = database or options.pop("db", "") or "0"
    credentials = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return SentinelUrl(
        parts.hosts,
        service,
        f"{parts.location}/{service}/{database}",
        f"{parts.scheme}://{parts.userinfo}master/{database}?{urlencode(options)}",
        f"{parts.scheme}://{credentials}sentinel?{urlencode(tls)}",
    )
