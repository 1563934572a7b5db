"""The origins of pages that may use the gateway from a browser: `server.cors_origins`.

An origin is compared with the header `Origin` as text, so it is kept as browsers write it there:
lower case, IDN as punycode, without a default port.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, WithJsonSchema
from yarl import URL

from gateway.configuration.fields import UnshownValueError

FORM: Final = "origins, scheme://host or scheme://host:port, such as https://app.example.com"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_APP_SCHEMES: Final = frozenset(
    {
        *("app", "capacitor", "ionic", "tauri", "vscode-webview"),
        *("chrome-extension", "moz-extension", "safari-web-extension"),
    }
)
"""Of apps and extensions that run in a browser's engine. Their origins have no port."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
MAX_HOST: Final = 255


def parse_origins(value: object) -> tuple[str, ...]:
    """Origins as browsers send them, from a list or text with commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(FORM)
    origins = [_parse_origin(item.strip()) for item in items if item.strip()]
    return tuple(dict.fromkeys(origins))


def _parse_origin(item: str) -> str:
    if "@" in item:  # perhaps with a password
        raise UnshownValueError(f"{FORM}, without a user")
    if item == "*":
        raise ValueError(f"{FORM}; '*' would be every page of the internet: name each origin")
    if item.lower() == "null":
        raise ValueError(f"{FORM}; 'null' is sent by any sandboxed page and cannot be allowed")
    try:
        parts = urlsplit(item)
        port = parts.port
    except ValueError:
        raise _is_none(item) from None
    # Browsers send no path; a single slash is what their address bar adds.
    has_more = parts.path not in ("", "/") or re.search(r"[?#%\s]", item) is not None
    is_app = parts.scheme in _APP_SCHEMES
    if has_more or port == 0 or not (parts.scheme in _DEFAULT_PORTS or (is_app and port is None)):
        raise _is_none(item)
    shown_port = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{_host(parts, item)}{shown_port}"


def _host(parts: SplitResult, item: str) -> str:
    """The host of an origin in the form that the URL standard gives it."""
    host, netloc = (parts.hostname or "").lower(), parts.netloc
    try:
        if netloc.startswith("["):
            if netloc.rpartition("]")[2][:1] not in ("", ":"):
                raise _is_none(item)
            return f"[{IPv6Address(host).compressed}]"
        if not host.isascii():
            host = (URL.build(scheme="http", host=host).raw_host or "").lower()
        if host.rstrip(".").rpartition(".")[2].isdecimal():  # browsers read it as an address
            return str(IPv4Address(host.rstrip(".")))
    except (AddressValueError, ValueError, UnicodeError):
        raise _is_none(item) from None
    if len(host) > MAX_HOST or not _NAME.fullmatch(host) or netloc.endswith(":"):
        raise _is_none(item)
    return host


def _is_none(item: str) -> ValueError:
    return ValueError(f"{FORM}; {item!r} is none")


Origins = Annotated[
    tuple[str, ...],
    BeforeValidator(parse_origins),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
