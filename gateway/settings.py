"""Process settings: `gateway.yaml`, read once at the start of a process.

Here lives everything between that file and the frozen `Settings`: where the file is looked for,
how `${NAME}` is read from the environment (here and nowhere else), what each key may hold, and
what a person is told about a key that is wrong. Models and their prices are `catalog`; keys and
limits belong to `access/`. A change of these settings needs new workers.
"""

from __future__ import annotations

import difflib
import math
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeGuard
from urllib.parse import SplitResult, unquote, urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from gateway.upstream.guard import parse_guard

GATEWAY_FILE: Final = "gateway.yaml"
MODELS_FILE: Final = "models.yaml"

_REFERENCE: Final = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", re.ASCII)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?", re.ASCII)
_SECONDS: Final = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_BYTES: Final = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT" if unit == "iB" else "kMGT", start=1)
}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_SIGNING_KEY: Final = re.compile(r"([A-Za-z0-9_-]{1,32}):([!-~]{16,})")
_SWITCH: Final = {"true": True, "false": False}

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


class ConfigError(Exception):
    """The configuration cannot be used. The message names file, key and cure, a line a fault."""


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


def parse_duration(value: object) -> float:
    """Seconds above zero, from a number of seconds or `500ms`, `600s`, `10m`, `1h`, `30d`."""
    seconds = _measure(value, _DURATION, _SECONDS)
    if seconds is None or seconds <= 0:
        raise ValueError("a duration such as 600s, 10m, 1h, 30d, or a number of seconds")
    return seconds


def parse_size(value: object) -> int:
    """Bytes above zero, from a number of bytes or `1MiB`, `64MiB`, `10GiB` (`MB` is 10^6)."""
    size = _measure(value, _SIZE, _BYTES)
    if size is None or size < 1:
        raise ValueError("a size such as 512KiB, 1MiB, 10GiB, or a number of bytes")
    return int(size)


def parse_count(value: object) -> int:
    """A whole number above zero; `33e6` is one, which YAML itself takes for text."""
    number = _whole(value)
    if number is None or number < 1:
        raise ValueError("a whole number above zero")
    return number


def parse_count_or_zero(value: object) -> int:
    """A whole number; 0 stands for none."""
    number = _whole(value)
    if number is None or number < 0:
        raise ValueError("a whole number, 0 for none")
    return number


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
    """Where picture bytes lie: a Redis of their own, or a folder as `file:///…`."""
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
            parse_guard([host])
        except ValueError:
            raise ValueError(
                f"hosts or networks such as images.internal, 10.0.0.0/8; {host!r} is none"
            ) from None
    return hosts


def parse_switch(value: object) -> bool:
    """`true` or `false`; from the environment it comes as text."""
    switch = _SWITCH.get(str(value).strip().lower())
    if switch is None:
        raise ValueError("true or false")
    return switch


def parse_size_or_zero(value: object) -> int:
    """As a size; 0 stands for none."""
    return 0 if _whole(value) == 0 else parse_size(value)


def parse_folder(value: object) -> Path:
    """A folder; relative to where the gateway was started, `~` is the home folder."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("a folder such as ./data")
    return Path(value).expanduser()


def _whole(value: object) -> int | None:
    """A whole number however it is written; None when it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _measure(value: object, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    """A number with one of `units`; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = pattern.fullmatch(str(value).strip())
    return float(match[1]) * units[match[2] or ""] if match else None


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
Seconds = Annotated[float, BeforeValidator(parse_duration), _as_number_or(_DURATION)]
Bytes = Annotated[int, BeforeValidator(parse_size), _as_number_or(_SIZE)]
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
                {"type": "string", "pattern": f"^(?:{_SIZE.pattern})$"},
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


# ── sections ────────────────────────────────────────────────────────────────────────────────


class _Section(BaseModel):
    """A part of the file: frozen, no unknown keys, a key that is left empty has its default."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_keys(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = cls.keys()
        return {k: v for k, v in data.items() if k not in known or v not in (None, "")}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys as they are written in the file, in order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())


_LISTEN_DEFAULT: Final = Address("127.0.0.1", 8080)


class ServerSettings(_Section):
    """The gateway's own front door."""

    listen: ListenAddress = Field(
        default=_LISTEN_DEFAULT, json_schema_extra={"default": str(_LISTEN_DEFAULT)}
    )
    """Where clients connect: host:port, 0.0.0.0:8080 for every address of the machine."""
    max_body_bytes: Bytes = Field(default=1 << 20, alias="max_body")
    """The largest request body; a larger one is answered 413."""
    keep_alive_seconds: Seconds = Field(default=620.0, alias="keep_alive")
    """How long an idle connection of a client stays open; longer than any load balancer's."""
    read_timeout_seconds: Seconds = Field(default=30.0, alias="read_timeout")
    """How long a client may take to send a whole head or body; then 408."""
    admin_token: Secret | None = None
    """Opens the admin API and /metrics; empty: made once and kept in the data folder."""
    metrics_token: Secret | None = None
    """A second token, which opens /metrics alone; empty: there is none."""
    public_url: BaseUrl | None = None
    """What links to pictures start with; empty: http:// and the address above."""
    signing_keys: SigningKeys | None = None
    """Sign links to pictures, kid:secret,…; the first signs, all verify. Empty: in the store."""


class WorkerSettings(_Section):
    """The processes that share the port."""

    count: Count = 1
    """How many there are."""
    heartbeat_seconds: Seconds = Field(default=5.0, alias="heartbeat")
    """How often a worker tells the store that it lives."""
    dead_after_seconds: Seconds = Field(default=15.0, alias="dead_after")
    """After how long a silence others finish a worker's purchases."""
    drain_timeout_seconds: Seconds | None = Field(default=None, alias="drain_timeout")
    """How long a stopping worker waits for open purchases; empty: as long as upstream.timeout."""

    @model_validator(mode="after")
    def _outlives_a_heartbeat(self) -> WorkerSettings:
        if self.dead_after_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("dead_after at least twice as long as heartbeat")
        return self


class StoreSettings(_Section):
    """Where state lives."""

    redis_url: RedisUrl | None = None
    """The Redis that all gateways share; empty: an embedded store in the data folder."""
    data_dir: Folder = Path("data")
    """The folder for the embedded store, picture bytes and the admin token."""
    blobs_url: BlobsUrl | None = None
    """Where picture bytes lie: a second Redis or file:///…; empty: where the rest lies."""
    limits_when_away: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a key with limits while the store, which counts them, is away."""


class BreakerSettings(_Section):
    """When a paid service that fails is given a rest."""

    failures: CountOrZero = 5
    """After how many failed purchases in a row nothing more is sent; 0: never."""
    open_seconds: Seconds = Field(default=10.0, alias="open")
    """How long until one request tries again; the others are answered 503 until it succeeds."""


class UpstreamSettings(_Section):
    """The paid service."""

    base_url: BaseUrl = "https://api.fastapi.ai/v1"
    """Any OpenAI-compatible images API."""
    api_key: Secret | None = None
    """The team's real key. Without it `gateway serve` does not start."""
    name: Text = "default"
    """Part of every fingerprint: change it when another service stands behind base_url."""
    timeout_seconds: Seconds = Field(default=600.0, alias="timeout")
    """The longest that one purchase may take."""
    auth_header: AuthHeader = AUTHORIZATION
    """The header that carries the key: Authorization as 'Bearer …', any other (api-key) bare."""
    headers: Headers = Field(default_factory=dict)
    """Further headers of every request to it, by name. Their values are secrets."""
    proxy: ProxyUrl | None = None
    """The HTTP proxy on the way to it, http://user:password@host:port; empty: there is none."""
    ca_file: CaFile | None = None
    """A PEM file with authorities that are trusted beside the system's; empty: there are none."""
    breaker: BreakerSettings = Field(default_factory=BreakerSettings)

    @model_validator(mode="after")
    def _sends_each_header_once(self) -> UpstreamSettings:
        if self.auth_header.lower() in {name.lower() for name in self.headers}:
            raise ValueError(f"headers without {self.auth_header}, which is the auth_header")
        return self


class CacheSettings(_Section):
    """What is kept, and for how long."""

    ttl_seconds: Seconds = Field(default=30 * 86_400.0, alias="ttl")
    """How long a picture is fresh, give or take 5 % so that not all expire at once."""
    max_picture_bytes: Bytes = Field(default=64 << 20, alias="max_picture")
    """A larger picture is an error of upstream."""
    max_pixels: Count = 33_000_000
    """So is one with more pixels than this."""
    total_bytes: Bytes | None = None
    """All pictures together, least recently used first out. Empty: 10GiB, in a Redis half of its
    maxmemory, or 1GiB where that is not set."""
    hot_bytes: BytesOrZero = 256 << 20
    """Of them, what each worker keeps in its memory; 0: nothing."""
    stale_if_error_seconds: Seconds = Field(default=7 * 86_400.0, alias="stale_if_error")
    """How long an entry outlives its time, to stand in when upstream fails."""
    refusal_ttl_seconds: Seconds = Field(default=600.0, alias="refusal_ttl")
    """How long it is remembered that upstream refused a question for its content."""
    scope: Literal["global", "team", "key"] = "global"
    """Who shares pictures: everybody, each team, or nobody. A key may have its own."""
    url_ttl_seconds: Seconds = Field(default=86_400.0, alias="url_ttl")
    """How long a link to a picture works, from the answer that it stands in."""
    derive_formats: Switch = False
    """Make jpeg and webp from a cached png instead of buying them."""


class RehostSettings(_Section):
    """Fetching the pictures behind upstream's links."""

    allow: Hosts = ()
    """Hosts or networks that may be fetched from although they are private or plain http."""


class Settings(_Section):
    """Settings of the image gateway. They are read once; a change needs a restart."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    rehost: RehostSettings = Field(default_factory=RehostSettings)
    validation: Literal["strict", "lenient"] = "strict"
    """What becomes of parameters that the API reference does not allow: refused, or tolerated
    where they change nothing. A key may have its own."""
    log_format: Literal["text", "json"] | None = None
    """How log lines look; empty: text on a terminal, else json."""

    @property
    def drain_seconds(self) -> float:
        """How long a stopping worker waits for its open purchases."""
        return self.workers.drain_timeout_seconds or self.upstream.timeout_seconds


# ── finding and reading ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The files of the configuration; all of them exist."""

    gateway: Path
    models: Path


def find_config(explicit: Path | None, cwd: Path) -> ConfigFiles:
    """Looks for each file beside `explicit`, or else in `cwd/config`, and then in the package.

    `explicit` is what `--config` names and must be there. Raises `ConfigError`.
    """
    if explicit is not None and not explicit.is_file():
        raise ConfigError(f"{explicit}: there is no such file.")
    folders = (explicit.parent if explicit else cwd / "config", *_shipped_folders())
    return ConfigFiles(
        gateway=explicit or _first_file(GATEWAY_FILE, folders),
        models=_first_file(MODELS_FILE, folders),
    )


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Reads `path`, with `${NAME}` taken from `environ`.

    Raises `ConfigError`, which names every key that is wrong and never shows a secret.
    """
    values = read_config(path, environ)
    try:
        return Settings.model_validate(values)
    except ValidationError as fault:
        lines = [f"{path}: {_describe(error)}" for error in fault.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def read_config(path: Path, environ: Mapping[str, str]) -> dict[Any, Any]:
    """What any YAML file of the configuration says, its `${NAME}` filled in, else unchecked.

    Raises `ConfigError`.
    """
    values = _read_yaml(path)
    return {key: _expand(item, environ, f"{path}: {key}") for key, item in values.items()}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `gateway.yaml`, as shipped in `gateway.schema.json`."""
    schema = Settings.model_json_schema(by_alias=True)
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        for key, rule in section["properties"].items():
            section["properties"][key] = _or_reference(rule)
    schema["$defs"]["FromEnvironment"] = {
        "description": "Read from the environment: ${NAME} or ${NAME:-default}.",
        "type": "string",
        "pattern": r"\$\{",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _or_reference(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule of a key that may also be empty or, unless it has keys of its own, `${NAME}`."""
    if "$ref" in rule:
        return {"anyOf": [rule, {"type": "null"}]}
    about = {k: rule[k] for k in ("description", "default") if rule.get(k) is not None}
    if rule.get("type") == "object":
        names = {k: rule[k] for k in ("type", "additionalProperties")}
        return about | {"anyOf": [names, {"type": "null"}]}
    kinds = rule.get("anyOf", [{k: rule[k] for k in ("type", "pattern", "minimum") if k in rule}])
    also = [{"$ref": "#/$defs/FromEnvironment"}, {"type": "null"}]
    return about | {"anyOf": [*kinds, *(kind for kind in also if kind not in kinds)]}


def _shipped_folders() -> tuple[Path, Path]:
    """Where the default configuration lies: inside a wheel, or beside the package's source."""
    package = Path(__file__).resolve().parent
    return package / "config", package.parent / "config"


def _first_file(name: str, folders: tuple[Path, ...]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: not found in {', '.join(str(folder) for folder in folders)}.")


class _Loader(yaml.SafeLoader):
    """YAML without the silent loss of a key that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: the key '{key.value}' is there twice.")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a file; an empty file is an empty one."""
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read: {fault}.") from None
    except yaml.MarkedYAMLError as fault:
        raise ConfigError(f"{path}: {_where(fault)}: not YAML: {fault.problem}.") from None
    except (ConfigError, yaml.YAMLError) as fault:
        raise ConfigError(f"{path}: {' '.join(str(fault).split())}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: expected keys and values, such as 'workers:'.")
    return values or {}


def _where(fault: yaml.MarkedYAMLError) -> str:
    mark = fault.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"


def _expand(value: Any, environ: Mapping[str, str], where: str) -> Any:
    """The same value with every `${NAME}` in its texts replaced."""
    if isinstance(value, dict):
        return {key: _expand(item, environ, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, environ, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        return _expand_text(value, environ, where)
    return value


def _expand_text(text: str, environ: Mapping[str, str], where: str) -> str:
    """As in a shell: an empty variable has the default too. What is put in is not read again."""
    if "${" in _REFERENCE.sub("", text):
        raise ConfigError(f"{where}: expected ${{NAME}} or ${{NAME:-default}} after $.")

    def look_up(reference: re.Match[str]) -> str:
        name, default = reference["name"], reference["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            raise ConfigError(f"{where}: the environment variable {name} is not set.")
        return environ[name]

    return _REFERENCE.sub(look_up, text)


# ── saying what is wrong ────────────────────────────────────────────────────────────────────


def _describe(error: ErrorDetails) -> str:
    """One line about one fault: the key, what stands there, what belongs there."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key '{key}'. Did you mean '{_nearest_key(key)}'?"
    reason = _expected(error)
    is_shown = not isinstance(reason, _Unshown) and not isinstance(error["input"], dict)
    shown = f"{error['input']!r} is" if is_shown else "the value is"
    return f"{key}: {shown} not valid; expected {reason}."


def _expected(error: ErrorDetails) -> object:
    """What belongs there, in the words of a parser above or of pydantic."""
    if error["type"] == "model_type":
        return "a section with " + ", ".join(_section_at(error["loc"]).keys())
    context = error.get("ctx", {})
    return context.get("error") or context.get("expected") or error["msg"]


def _section_at(path: Sequence[int | str]) -> type[_Section]:
    """The section that stands at a path of keys."""
    section: type[_Section] = Settings
    for key in path:
        annotation = section.model_fields[str(key)].annotation
        section = annotation if _is_section(annotation) else section
    return section


def _nearest_key(key: str) -> str:
    """A key of the same last name, or a similar one of the same section, or the most similar."""
    known = list(_dotted_keys(Settings))
    section, _, name = key.rpartition(".")
    same_name = [other for other in known if other.rpartition(".")[2] == name]
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1)
    return (same_name or near or difflib.get_close_matches(key, known, n=1, cutoff=0))[0]


def _dotted_keys(section: type[_Section], prefix: str = "") -> Iterator[str]:
    """Every key that can be set, as `section.key`."""
    for key, field in zip(section.keys(), section.model_fields.values(), strict=True):
        yield prefix + key
        if _is_section(field.annotation):
            yield from _dotted_keys(field.annotation, f"{prefix}{key}.")


def _is_section(annotation: object) -> TypeGuard[type[_Section]]:
    return isinstance(annotation, type) and issubclass(annotation, _Section)
