"""The types of settings beyond plain numbers: addresses, URLs, headers, hosts, files, time zones.

A type is an `Annotated` alias of a parser and its JSON Schema. Each parser raises `ValueError` with
what it expected. Durations, sizes and counts are parsed in `gateway.values`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import SplitResult, quote, unquote, urlsplit
from zoneinfo import available_timezones

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SecretStr,
    WithJsonSchema,
)

from gateway.net.guard import Network, parse_allow_list
from gateway.store.blobs.bucket_url import BUCKET_SCHEMES, is_bucket, parse_bucket_url
from gateway.store.redis.urls import REDIS_SCHEMES, is_redis_url
from gateway.values import (
    DURATION,
    SIZE,
    nearest,
    parse_count,
    parse_count_or_zero,
    parse_duration,
    parse_ratio,
    parse_size,
    parse_size_or_zero,
    parse_switch,
)

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_SIGNING_KEY: Final = re.compile(r"([A-Za-z0-9_-]{1,32}):([!-~]{16,})")

_LABEL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_SCOPES: Final = frozenset({"key", "team", "everyone", "model"})
MAX_METRIC_LABELS: Final = 8

MIN_TOKEN_CHARACTERS: Final = 16
_MIN_DIFFERENT_CHARACTERS: Final = 4
_GUESSABLE: Final = (
    *("changeme", "changethis", "replaceme", "replacethis", "placeholder"),
    *("password", "letmein", "qwerty", "12345678"),
)
"""What examples write where a token belongs, and what comes to mind first, without separators."""

AUTHORIZATION: Final = "Authorization"
_API_VERSION: Final = re.compile(r"api-version=[\w.-]{1,64}", re.ASCII)
MAX_PRICE_FACTOR: Final = 1000
MAX_BUDGET_USD: Final = 1_000_000_000

# What the gateway sets itself, or the HTTP client for the message and the connection. And
# Idempotency-Key: with a constant one, upstream would answer every purchase like the first.
_OWN_HEADERS: Final = frozenset(
    {
        *("authorization", "accept", "accept-encoding", "content-type", "user-agent"),
        *("connection", "content-encoding", "content-length", "expect", "host", "keep-alive"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "idempotency-key"),
    }
)
_MAPPED_PREFIX: Final = 96
"""Bits in front of an IPv4 address that IPv6 maps (`::ffff:10.0.0.1`)."""
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class UnshownValueError(ValueError):
    """An invalid value that messages must not show: it is, or may contain, a secret."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port to listen on; an IPv6 host without brackets."""

    host: str
    port: int

    @property
    def is_wildcard(self) -> bool:
        """Whether this is every address of the machine."""
        return self.host in _WILDCARDS

    @property
    def on_this_machine(self) -> Address:
        """The same address as a client on this machine can use it."""
        return Address(_WILDCARDS.get(self.host, self.host), self.port)

    def overlaps(self, other: Address) -> bool:
        """Whether a process cannot listen on both. Port 0 is a free one each time."""
        if self.port != other.port or self.port == 0:
            return False
        is_same = self.host.lower() == other.host.lower()
        return is_same or self.is_wildcard or other.is_wildcard

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """`host:port`, with an IPv6 host in brackets; port 0 is any free one."""
    if isinstance(value, Address):
        return value
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]/]+)):(\d{1,5})", str(value), re.ASCII)
    if match is None or int(match[3]) > 65_535:
        raise ValueError("host:port such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080")
    return Address(host=match[1] or match[2], port=int(match[3]))


def parse_text(value: object) -> str:
    """Text. Numbers and booleans are refused, because YAML may have changed their spelling."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text; put it in quotes")
    return value.strip()


def parse_secret(value: object) -> str:
    """Text that fits into an HTTP header: visible ASCII only."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not re.fullmatch(r"[!-~]+", text.strip()):
        raise UnshownValueError(
            "visible ASCII characters without spaces, in quotes if all are digits"
        )
    return text.strip()


def parse_token(value: object, *, variable: str) -> str:
    """A secret that opens the gateway itself: too long to guess, and no placeholder."""
    token = parse_secret(value)
    if (problem := token_weakness(token)) is not None:
        raise UnshownValueError(
            f"another token: {problem}. `openssl rand -hex 32` makes one ({variable})"
        )
    return token


def token_weakness(token: str) -> str | None:
    """Why a token is no good, without quoting it; None if it is good."""
    if not re.fullmatch(r"[!-~]*", token):
        return "it has other characters than visible ASCII"
    if len(token) < MIN_TOKEN_CHARACTERS:
        return f"it has {len(token)} characters and needs at least {MIN_TOKEN_CHARACTERS}"
    if len(set(token)) < _MIN_DIFFERENT_CHARACTERS:
        return f"it has fewer than {_MIN_DIFFERENT_CHARACTERS} different characters"
    characters = re.sub(r"[^a-z0-9]", "", token.lower())
    for guessable in _GUESSABLE:
        if guessable in characters:
            return f"it contains '{guessable}'"
    return None


def parse_base_url(value: object) -> str:
    """An HTTP URL without credentials; a trailing slash is removed.

    Azure's may have the query `api-version=…`, which every request then has. There is no other one.
    """
    expected = "an address such as https://api.example.com/v1, without user and query"
    # A URL with a user may contain a password, which the message must not show.
    if "@" in str(value):
        raise UnshownValueError(expected)
    parts = _split_url(value)
    if parts is None or parts.scheme not in ("http", "https") or parts.fragment:
        raise ValueError(expected)
    if parts.query and not _API_VERSION.fullmatch(parts.query):
        raise ValueError(expected)
    return parts.geturl().rstrip("/")


def parse_proxy(value: object) -> str:
    """`http://host:port`, also with user and password."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    parts = _split_url(text)
    if parts is None or parts.scheme != "http" or parts.path.strip("/") or parts.query:
        raise UnshownValueError("http://host:3128, or http://user:password@host:3128")
    # Basic authentication cannot express a user with a colon (RFC 7617 §2).
    if not unquote(parts.netloc).isascii() or ":" in unquote(parts.username or ""):
        raise UnshownValueError("a user without a colon and a password, both in ASCII")
    return parts.geturl()


def parse_ca_file(value: object) -> Path:
    """A PEM file of certificates, relative to the working directory."""
    expected = "a file with certificates in PEM"
    if not isinstance(value, str | Path):
        raise ValueError(expected)
    path = _expand_home(value)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    # Before OSError, which is its base class.
    except ssl.SSLError:
        raise ValueError(expected) from None
    except OSError as fault:
        raise ValueError(f"{expected}; it cannot be read: {fault.strerror}") from None
    return path


def parse_tls_file(value: object) -> Path:
    """The name of a PEM file, relative to the working directory. `net.server_tls` reads it."""
    if not isinstance(value, str | Path):
        raise ValueError("a PEM file")
    return _expand_home(value)


def parse_auth_header(value: object) -> str:
    """The name of the header that carries upstream's key."""
    if not isinstance(value, str) or not _HEADER_NAME.fullmatch(value.strip()):
        raise ValueError("the name of a header such as Authorization or api-key")
    name = value.strip()
    if name.lower() in _OWN_HEADERS - {AUTHORIZATION.lower()}:
        raise ValueError(f"another header than {name}, which cannot carry a key")
    return AUTHORIZATION if name.lower() == AUTHORIZATION.lower() else name


def parse_headers(value: object) -> dict[str, str]:
    """Headers by name, without empty ones. No message shows a value."""
    if not isinstance(value, dict):
        raise UnshownValueError("names and values of headers, such as 'OpenAI-Organization: org-…'")
    headers: dict[str, str] = {}
    for name, item in value.items():
        if item in (None, ""):
            continue
        _check_header_name(name)
        text = item.get_secret_value() if isinstance(item, SecretStr) else item
        if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text.strip()):
            raise UnshownValueError(
                f"visible ASCII characters as {name}, in quotes if all are digits"
            )
        headers[name] = text.strip()
    if len({name.lower() for name in headers}) < len(headers):
        raise UnshownValueError("each header once, whether its name is in capitals or not")
    return headers


def _check_header_name(name: object) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise UnshownValueError(f"names of headers; {name!r} is none")
    if name.lower() in _OWN_HEADERS:
        raise UnshownValueError(f"other headers than {name}, which cannot be set here")


def parse_model_names(value: object) -> dict[str, str]:
    """The models of an account by our name, with the name there; an empty one is the same."""
    expected = "names of models with their names there, such as gpt-image-2: my-deployment"
    if not isinstance(value, Mapping):
        raise ValueError(expected)
    names: dict[str, str] = {}
    for ours, theirs in value.items():
        found = ours if theirs in (None, "") else theirs
        if not all(isinstance(name, str) and name.strip() for name in (ours, found)):
            raise ValueError(f"{expected}; {ours!r}: {theirs!r} is none. Put numbers in quotes")
        names[ours.strip()] = found.strip()
    return names


def parse_shutdown_dates(value: object) -> dict[str, date | None]:
    """The dates by model, such as 2027-04-07; None for a model whose end is not announced."""
    expected = "names of models with a date, such as gpt-image-1-mini: 2027-04-07, or without one"
    if not isinstance(value, Mapping):
        raise ValueError(expected)
    dates: dict[str, date | None] = {}
    for model, day in value.items():
        try:
            found = date.fromisoformat(day.strip()) if isinstance(day, str) and day else day or None
        except ValueError:
            found = day
        is_date = isinstance(found, date) and not isinstance(found, datetime)
        if not isinstance(model, str) or not (found is None or is_date):
            raise ValueError(f"{expected}; {model!r}: {day!r} is none")
        dates[model.strip()] = found
    return dates


def parse_price_factor(value: object) -> Decimal:
    """A decimal number from 0 to 1,000 with at most six places."""
    factor = _read_decimal(value)
    places = factor.as_tuple().exponent
    if not factor.is_finite() or not 0 <= factor <= MAX_PRICE_FACTOR or int(places) < -6:
        raise ValueError("a number such as 1.1, from 0 to 1000 with at most six decimal places")
    return factor


def parse_budget(value: object) -> int:
    """US dollars, such as 250 or 0.5, as micro-dollars; 0 allows nothing."""
    usd = _read_decimal(value)
    micros = usd * 1_000_000
    if not usd.is_finite() or not 0 <= usd <= MAX_BUDGET_USD or micros != int(micros):
        raise ValueError("an amount in US dollars, 0 or more, such as 250 or 0.50")
    return int(micros)


def _read_decimal(value: object) -> Decimal:
    """The number; NaN for anything else."""
    try:
        return Decimal("nan") if isinstance(value, bool) else Decimal(str(value).strip())
    except InvalidOperation:
        return Decimal("nan")


def parse_redis_url(value: object) -> str:
    """`redis://`, `rediss://` for TLS or `unix://`, also with user, password and database."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not is_redis_url(text.strip()):
        raise UnshownValueError(
            "redis://host:6379/0, rediss://… for TLS, redis+sentinel://host1,host2/service/0, or"
            " redis+cluster://host1,host2/0"
        )
    # Imported only here: redis-py takes longer than most commands on an embedded store.
    from gateway.store.redis.topology.opening import check_redis_url  # noqa: PLC0415

    try:
        check_redis_url(text.strip())
    except ValueError as fault:
        raise UnshownValueError(str(fault)) from None
    return text.strip()


def parse_blobs_url(value: object) -> str:
    """The store of image bytes: a bucket, another Redis, or a folder as `file:///…`."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and is_bucket(text.strip()):
        try:
            parse_bucket_url(text.strip())
        except ValueError as fault:
            raise UnshownValueError(str(fault)) from None
        return text.strip()
    if isinstance(text, str) and re.fullmatch(r"file:///[^?#\s]+", text.strip()):
        return text.strip()
    if not isinstance(text, str) or not is_redis_url(text.strip()):
        raise UnshownValueError(
            "s3://bucket/prefix, gs://…, az://…, the URL of a Redis such as redis://host:6379/0, "
            "or file:///a/folder"
        )
    return parse_redis_url(value)


def parse_signing_keys(value: object) -> tuple[tuple[str, SecretStr], ...]:
    """`kid:secret,…`: the first key signs links, all of them verify."""
    if isinstance(value, tuple):
        return value
    found = [_SIGNING_KEY.fullmatch(item.strip()) for item in str(value).split(",")]
    keys = [(match[1], SecretStr(match[2])) for match in found if match is not None]
    if len(keys) < len(found) or len({kid for kid, _ in keys}) < len(keys):
        raise UnshownValueError(
            "kid:secret,kid:secret with a different kid of letters and digits for each, and "
            "secrets of 16 or more visible characters without a comma"
        )
    return tuple(keys)


def parse_label_names(value: object) -> tuple[str, ...]:
    """Names of labels, as a list or separated by commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("names of labels, such as cost_center")
    names = tuple(dict.fromkeys(item.strip() for item in items if item.strip()))
    for name in names:
        if not _LABEL.fullmatch(name):
            raise ValueError(
                "names of labels such as cost_center, of 1 to 63 of the characters A-Z a-z 0-9 _ . "
                f"-; {name[:64]!r} is none"
            )
        if name in _SCOPES:
            raise ValueError(
                f"names of labels; {name!r} is a scope of its own, so give the label another name"
            )
    if len(names) > MAX_METRIC_LABELS:
        raise ValueError(f"at most {MAX_METRIC_LABELS} names of labels, each has series of its own")
    return names


def parse_collector(value: object) -> str:
    """The base URL of an OpenTelemetry collector, as `OTEL_EXPORTER_OTLP_ENDPOINT` has it."""
    url = parse_base_url(value)
    if url.endswith("/v1/traces"):
        raise ValueError("the address of a collector without /v1/traces, which is added")
    return url


def parse_collector_headers(value: object) -> tuple[tuple[str, SecretStr], ...]:
    """Headers as `OTEL_EXPORTER_OTLP_HEADERS` has them: `name=value,…`, percent-encoded."""
    if isinstance(value, tuple):
        return value
    pairs = _parse_pairs(value)
    if pairs is None or not all(
        _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(text) for name, text in pairs
    ):
        raise UnshownValueError("headers as name=value,name=value with percent-encoded values")
    return tuple((name, SecretStr(text)) for name, text in pairs)


def parse_attributes(value: object) -> tuple[tuple[str, str], ...]:
    """Attributes as `OTEL_RESOURCE_ATTRIBUTES` has them: `name=value,…`, percent-encoded."""
    if isinstance(value, tuple):
        return value
    pairs = _parse_pairs(value)
    if pairs is None:
        raise ValueError("attributes as name=value,name=value, such as deployment.environment=test")
    return pairs


def _parse_pairs(value: object) -> tuple[tuple[str, str], ...] | None:
    """Pairs in the format of W3C Baggage; None if one of them has no name or no value."""
    if not isinstance(value, str):
        return None
    items = [item.partition("=") for item in value.split(",") if item.strip()]
    pairs = tuple((name.strip(), unquote(text.strip())) for name, _, text in items)
    return pairs if all(name and text for name, text in pairs) else None


def _show_pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    return ",".join(f"{name}={quote(text)}" for name, text in pairs)


def parse_hosts(value: object) -> tuple[str, ...]:
    """Hosts, host:port or networks, as a list or separated by commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("hosts or networks, such as images.internal, 10.0.0.0/8")
    hosts = tuple(item.strip() for item in items if item.strip())
    for host in hosts:
        try:
            # As the worker will, so that a fault is reported when the file is read.
            parse_allow_list([host])
        except ValueError:
            raise ValueError(
                f"hosts or networks such as images.internal, 10.0.0.0/8; {host!r} is none"
            ) from None
    return hosts


def parse_networks(value: object) -> tuple[Network, ...]:
    """Addresses or networks, as a list or separated by commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError("addresses or networks, such as 10.0.0.0/8, fd00::/8")
    # As text: `ip_network` would take a number for an address.
    return tuple(_parse_network(str(item).strip()) for item in items if str(item).strip())


def _parse_network(item: str) -> Network:
    try:
        network = ip_network(item)
    except ValueError:
        raise ValueError(
            f"addresses or networks such as 10.0.0.0/8, fd00::/8; {item!r} is none"
        ) from None
    # An address that IPv6 maps is compared as the IPv4 address that it is.
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= _MAPPED_PREFIX:
        return ip_network(f"{mapped}/{network.prefixlen - _MAPPED_PREFIX}")
    return network


def parse_folder(value: object) -> Path:
    """A folder, relative to the working directory; `~` is the home folder."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("a folder such as ./data")
    return _expand_home(value)


def _expand_home(value: str | Path) -> Path:
    """The path, in which `~` is the home folder. A user of a container may have none."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("a path without ~, because this user has no home folder") from None


def parse_time_zone(value: object) -> str:
    """The name of a time zone in the IANA database."""
    names = available_timezones()
    name = str(value).strip()
    if name not in names:
        raise ValueError(
            f"an IANA time zone such as UTC or Europe/Berlin; the nearest is {nearest(name, names)}"
        )
    return name


def _split_url(value: object) -> SplitResult | None:
    """The parts of a URL; None without a host or with an impossible port."""
    if not isinstance(value, str) or re.search(r"\s", value.strip()):
        return None
    try:
        parts = urlsplit(value.strip())
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _as_text(pattern: str = "") -> WithJsonSchema:
    """The JSON Schema of text."""
    return WithJsonSchema({"type": "string"} | ({"pattern": pattern} if pattern else {}))


def _any_of(*schemes: str) -> str:
    """The pattern of how a URL with one of the schemes begins."""
    return f"(?:{'|'.join(map(re.escape, schemes))})://"


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
AdminToken = Annotated[
    SecretStr, BeforeValidator(partial(parse_token, variable="GATEWAY_ADMIN_TOKEN")), _as_text()
]
MetricsToken = Annotated[
    SecretStr, BeforeValidator(partial(parse_token, variable="GATEWAY_METRICS_TOKEN")), _as_text()
]
ModelNames = Annotated[
    Mapping[str, str],
    BeforeValidator(parse_model_names),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"]}}),
]
ShutdownDates = Annotated[
    Mapping[str, date | None],
    BeforeValidator(parse_shutdown_dates),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"]}}),
]
_DECIMAL = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "pattern": r"^\d+(?:\.\d{1,6})?$"},
            {"type": "number", "minimum": 0},
        ]
    }
)
PriceFactor = Annotated[
    Decimal,
    BeforeValidator(parse_price_factor),
    PlainSerializer(str, return_type=str),
    _DECIMAL,
]
Budget = Annotated[
    int,
    BeforeValidator(parse_budget),
    PlainSerializer(lambda micros: f"{Decimal(micros) / 1_000_000:f}", return_type=str),
    _DECIMAL,
]
BaseUrl = Annotated[str, BeforeValidator(parse_base_url), _as_text("^https?://")]
RedisUrl = Annotated[
    SecretStr, BeforeValidator(parse_redis_url), _as_text(f"^{_any_of(*REDIS_SCHEMES)}")
]
BlobsUrl = Annotated[
    SecretStr,
    BeforeValidator(parse_blobs_url),
    _as_text(f"^(?:{_any_of(*BUCKET_SCHEMES, *REDIS_SCHEMES)}|file:///)"),
]
SigningKeys = Annotated[
    tuple[tuple[str, SecretStr], ...], BeforeValidator(parse_signing_keys), _as_text(":")
]
CollectorUrl = Annotated[str, BeforeValidator(parse_collector), _as_text("^https?://")]
CollectorHeaders = Annotated[
    tuple[tuple[str, SecretStr], ...], BeforeValidator(parse_collector_headers), _as_text("=")
]
Attributes = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(parse_attributes),
    PlainSerializer(_show_pairs, return_type=str),
    _as_text("="),
]
Ratio = Annotated[
    float,
    BeforeValidator(parse_ratio),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]
Hosts = Annotated[tuple[str, ...], BeforeValidator(parse_hosts), _as_text()]
LabelNames = Annotated[
    tuple[str, ...],
    BeforeValidator(parse_label_names),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Networks = Annotated[
    tuple[Network, ...],
    BeforeValidator(parse_networks),
    PlainSerializer(lambda networks: tuple(map(str, networks)), return_type=tuple[str, ...]),
    _as_text(),
]
ProxyUrl = Annotated[SecretStr, BeforeValidator(parse_proxy), _as_text("^http://")]
TimeZone = Annotated[str, BeforeValidator(parse_time_zone), _as_text()]
Folder = Annotated[Path, BeforeValidator(parse_folder), _as_text()]
CaFile = Annotated[Path, BeforeValidator(parse_ca_file), _as_text()]
TlsFile = Annotated[Path, BeforeValidator(parse_tls_file), _as_text()]
AuthHeader = Annotated[str, BeforeValidator(parse_auth_header), _as_text()]
Headers = Annotated[
    Mapping[str, SecretStr],
    BeforeValidator(parse_headers),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"]}}),
]
