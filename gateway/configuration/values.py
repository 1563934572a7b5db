"""What a setting may hold, and how it is parsed."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SecretStr,
    WithJsonSchema,
)

from gateway.net.guard import parse_allow_list
from gateway.values import (
    DURATION,
    SIZE,
    parse_count,
    parse_count_or_zero,
    parse_duration,
    parse_size,
    parse_size_or_zero,
    parse_switch,
)

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_SIGNING_KEY: Final = re.compile(r"([A-Za-z0-9_-]{1,32}):([!-~]{16,})")

AUTHORIZATION: Final = "Authorization"

_OWN_HEADERS: Final = frozenset(
    {
        *("authorization", "accept", "accept-encoding", "content-type", "user-agent"),
        *("connection", "content-encoding", "content-length", "expect", "host", "keep-alive"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "idempotency-key"),
    }
)
"""What a request to upstream says by itself: of us, of the message, of the connection. And the one
header that would be a disaster if it always said the same: every purchase would be the first."""


# ── values: each parser raises ValueError with what it expected ─────────────────────────────


class _Unshown(ValueError):
    """A wrong value that no message may show, because it is, or contains, a secret."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway listens. An IPv6 host stands here without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """`host:port`; an IPv6 host in brackets; port 0 takes any free one."""
    if isinstance(value, Address):
        return value
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]/]+)):(\d{1,5})", str(value), re.ASCII)
    if match is None or int(match[3]) > 65_535:
        raise ValueError("host:port such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080")
    return Address(host=match[1] or match[2], port=int(match[3]))


def parse_text(value: object) -> str:
    """Text; a number or a truth value is refused, because YAML may have changed its spelling."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text; put it in quotes")
    return value.strip()


def parse_secret(value: object) -> str:
    """Text that can stand in an HTTP header: visible ASCII, nothing else."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not re.fullmatch(r"[!-~]+", text.strip()):
        raise _Unshown("visible ASCII characters without spaces, in quotes if all are digits")
    return text.strip()


def parse_base_url(value: object) -> str:
    """An http address without query and credentials; the slash at its end goes."""
    expected = "an address such as https://api.example.com/v1, without user and query"
    if "@" in str(value):
        raise _Unshown(expected)
    parts = _split_url(value)
    if parts is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise ValueError(expected)
    return parts.geturl().rstrip("/")


def parse_proxy(value: object) -> str:
    """`http://host:port`; user and password, where there are any, are part of it."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    parts = _split_url(text)
    if parts is None or parts.scheme != "http" or parts.path.strip("/") or parts.query:
        raise _Unshown("http://host:3128, or http://user:password@host:3128")
    if not unquote(parts.netloc).isascii() or ":" in unquote(parts.username or ""):
        raise _Unshown("a user without a colon and a password, both in ASCII")
    return parts.geturl()


def parse_ca_file(value: object) -> Path:
    """A file that holds certificates in PEM; relative to where the gateway was started."""
    expected = "a file with certificates in PEM"
    if not isinstance(value, str | Path):
        raise ValueError(expected)
    path = Path(value).expanduser()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(expected) from None
    except OSError as fault:
        raise ValueError(f"{expected}; it cannot be read: {fault.strerror}") from None
    return path


def parse_auth_header(value: object) -> str:
    """The name of the header that carries the key."""
    if not isinstance(value, str) or not _HEADER_NAME.fullmatch(value.strip()):
        raise ValueError("the name of a header such as Authorization or api-key")
    name = value.strip()
    if name.lower() in _OWN_HEADERS - {AUTHORIZATION.lower()}:
        raise ValueError(f"another header than {name}, which cannot carry a key")
    return AUTHORIZATION if name.lower() == AUTHORIZATION.lower() else name


def parse_headers(value: object) -> dict[str, str]:
    """Headers by name; one that is left empty is left out. No message shows a value."""
    if not isinstance(value, dict):
        raise _Unshown("names and values of headers, such as 'OpenAI-Organization: org-…'")
    given = {name: text for name, text in value.items() if text not in (None, "")}
    headers = {_header_name(name): _header_value(name, text) for name, text in given.items()}
    if len({name.lower() for name in headers}) < len(given):
        raise _Unshown("each header once, whether its name is in capitals or not")
    return headers


def _header_name(name: object) -> str:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise _Unshown(f"names of headers; {name!r} is none")
    if name.lower() in _OWN_HEADERS:
        raise _Unshown(f"other headers than {name}, which cannot be set here")
    return name


def _header_value(name: object, value: object) -> str:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text.strip()):
        raise _Unshown(f"visible ASCII characters as {name}, in quotes if all are digits")
    return text.strip()


def parse_redis_url(value: object) -> str:
    """`redis://` or, with TLS, `rediss://`; user, password and database are part of it."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    parts = _split_url(text)
    if parts is None or parts.scheme not in ("redis", "rediss"):
        raise _Unshown("redis://host:6379/0, or rediss://… for TLS")
    return parts.geturl()


def parse_blobs_url(value: object) -> str:
    """Where image bytes lie: a Redis of their own, or a folder as `file:///…`."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and re.fullmatch(r"file:///[^?#\s]+", text.strip()):
        return text.strip()
    try:
        return parse_redis_url(value)
    except ValueError:
        raise _Unshown("redis://host:6379/0, rediss://… for TLS, or file:///a/folder") from None


def parse_signing_keys(value: object) -> tuple[tuple[str, SecretStr], ...]:
    """`kid:secret,…`: the first signs links, all verify them."""
    if isinstance(value, tuple):
        return value
    found = [_SIGNING_KEY.fullmatch(item.strip()) for item in str(value).split(",")]
    keys = [(match[1], SecretStr(match[2])) for match in found if match is not None]
    if len(keys) < len(found) or len({kid for kid, _ in keys}) < len(keys):
        raise _Unshown(
            "kid:secret,kid:secret with a different kid of letters and digits for each, and "
            "secrets of 16 or more visible characters without a comma"
        )
    return tuple(keys)


def parse_hosts(value: object) -> tuple[str, ...]:
    """Hosts, host:port or networks, as a list or with commas between them."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("hosts or networks, such as images.internal, 10.0.0.0/8")
    hosts = tuple(item.strip() for item in items if item.strip())
    for host in hosts:
        try:
            parse_allow_list([host])
        except ValueError:
            raise ValueError(
                f"hosts or networks such as images.internal, 10.0.0.0/8; {host!r} is none"
            ) from None
    return hosts


def parse_folder(value: object) -> Path:
    """A folder; relative to where the gateway was started, `~` is the home folder."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("a folder such as ./data")
    return Path(value).expanduser()


def _split_url(value: object) -> SplitResult | None:
    """The parts of an address that has a host and a possible port; else None."""
    if not isinstance(value, str) or re.search(r"\s", value.strip()):
        return None
    try:
        parts = urlsplit(value.strip())
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _as_text(pattern: str = "") -> WithJsonSchema:
    """The JSON Schema of a value that is written as text."""
    return WithJsonSchema({"type": "string"} | ({"pattern": pattern} if pattern else {}))


def _as_number_or(pattern: re.Pattern[str]) -> WithJsonSchema:
    """The JSON Schema of a positive number, bare or with a unit."""
    text = {"type": "string", "pattern": f"^(?:{pattern.pattern})$"}
    return WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, text]})


ListenAddress = Annotated[
    Address,
    BeforeValidator(parse_address),
    PlainSerializer(str, return_type=str),
    _as_text(r":\d+$"),
]
Seconds = Annotated[float, BeforeValidator(parse_duration), _as_number_or(DURATION)]
Bytes = Annotated[int, BeforeValidator(parse_size), _as_number_or(SIZE)]
Count = Annotated[
    int, BeforeValidator(parse_count), _as_number_or(re.compile(r"\d+(?:\.\d+)?(?:e\d+)?"))
]
CountOrZero = Annotated[
    int,
    BeforeValidator(parse_count_or_zero),
    WithJsonSchema({"type": "integer", "minimum": 0}),
]
BytesOrZero = Annotated[
    int,
    BeforeValidator(parse_size_or_zero),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": f"^(?:{SIZE.pattern})$"},
            ]
        }
    ),
]
Switch = Annotated[bool, BeforeValidator(parse_switch), WithJsonSchema({"type": "boolean"})]
Text = Annotated[str, BeforeValidator(parse_text), _as_text()]
Secret = Annotated[SecretStr, BeforeValidator(parse_secret), _as_text()]
BaseUrl = Annotated[str, BeforeValidator(parse_base_url), _as_text("^https?://")]
RedisUrl = Annotated[SecretStr, BeforeValidator(parse_redis_url), _as_text("^rediss?://")]
BlobsUrl = Annotated[
    SecretStr, BeforeValidator(parse_blobs_url), _as_text("^(?:rediss?://|file:///)")
]
SigningKeys = Annotated[
    tuple[tuple[str, SecretStr], ...], BeforeValidator(parse_signing_keys), _as_text(":")
]
Hosts = Annotated[tuple[str, ...], BeforeValidator(parse_hosts), _as_text()]
ProxyUrl = Annotated[SecretStr, BeforeValidator(parse_proxy), _as_text("^http://")]
Folder = Annotated[Path, BeforeValidator(parse_folder), _as_text()]
CaFile = Annotated[Path, BeforeValidator(parse_ca_file), _as_text()]
AuthHeader = Annotated[str, BeforeValidator(parse_auth_header), _as_text()]
Headers = Annotated[
    Mapping[str, SecretStr],
    BeforeValidator(parse_headers),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"]}}),
]
