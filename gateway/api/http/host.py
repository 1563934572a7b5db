"""The host that a request is for: which are valid, and what links to this gateway start with.

RFC 9112 §3.2: a request without a valid host is refused. A valid one is ASCII without quotes,
spaces and slashes, so that it can be part of a link.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_parser import RawRequestMessage

from gateway.errors import InvalidRequest

MAX_HOST: Final = 255
"""Characters, as long as a name can be (RFC 3986 §3.2.2)."""

MAX_PORT: Final = 65_535

# RFC 3986 §3.2.2 and §3.2.3, without the user. An IPv4 address has the form of a name.
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


@lru_cache(maxsize=1024)
def is_valid_authority(authority: str) -> bool:
    """Whether this is `host` or `host:port` as RFC 3986 §3.2 defines them."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or len(match["name"] or "") > MAX_HOST:
        return False
    if match["port"] is not None and not 1 <= int(match["port"]) <= MAX_PORT:
        return False
    return match["ipv6"] is None or _is_ipv6(match["ipv6"])


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def check_host(message: RawRequestMessage) -> InvalidRequest | None:
    """The refusal of a request whose host is missing, repeated or invalid."""
    # Nearly always there is exactly one. HTTP/1.0 has none (RFC 9112 §3.2).
    hosts = message.headers.getall(hdrs.HOST, ())
    if len(hosts) == 1 and is_valid_authority(hosts[0]) and message.path.startswith("/"):
        return None
    is_valid = len(hosts) == 1 if message.version >= HttpVersion11 else len(hosts) <= 1
    if is_valid and all(map(is_valid_authority, hosts)):
        target = message.path
        if target.startswith("/") or target == "*" or message.method == hdrs.METH_CONNECT:
            return None
        absolute = _ABSOLUTE.match(target)
        if absolute is not None and is_valid_authority(absolute[1]):
            return None
    return InvalidRequest(
        "The request needs exactly one valid host: Host: name, or name:port (RFC 9112 §3.2)."
    )


def requested_host(request: web.Request) -> str:
    """The host that the client sent the request to, with the port if it has one."""
    # In the absolute form the target has the host, and `Host` is ignored (RFC 9112 §3.2.2).
    absolute = _ABSOLUTE.match(request.raw_path)
    host = absolute[1] if absolute is not None else request.headers.get(hdrs.HOST)
    return host or _own_address(request)


def _own_address(request: web.Request) -> str:
    """The address that an HTTP/1.0 client without `Host` has connected to."""
    transport = request.transport
    address = None if transport is None else transport.get_extra_info("sockname")
    if not isinstance(address, tuple):
        return "localhost"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
