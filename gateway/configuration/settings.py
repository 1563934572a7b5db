"""The sections of `gateway.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from gateway.configuration.values import (
    AUTHORIZATION,
    Address,
    AuthHeader,
    BaseUrl,
    BlobsUrl,
    Bytes,
    BytesOrZero,
    CaFile,
    Count,
    CountOrZero,
    Folder,
    Headers,
    Hosts,
    ListenAddress,
    ProxyUrl,
    RedisUrl,
    Seconds,
    Secret,
    SigningKeys,
    Switch,
    Text,
)

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
    """What links to images start with; empty: http:// and the address above."""
    signing_keys: SigningKeys | None = None
    """Sign links to images, kid:secret,…; the first signs, all verify. Empty: in the store."""


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
    """The folder for the embedded store, image bytes and the admin token."""
    blobs_url: BlobsUrl | None = None
    """Where image bytes lie: a second Redis or file:///…; empty: where the rest lies."""
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
    """How long an image is fresh, give or take 5 % so that not all expire at once."""
    max_image_bytes: Bytes = Field(default=64 << 20, alias="max_image")
    """A larger image is an error of upstream."""
    max_pixels: Count = 33_000_000
    """So is one with more pixels than this."""
    total_bytes: Bytes | None = None
    """All images together, least recently used first out. Empty: 10GiB, in a Redis half of its
    maxmemory, or 1GiB where that is not set."""
    memory_bytes: BytesOrZero = 256 << 20
    """Of them, what each worker keeps in its memory; 0: nothing."""
    stale_if_error_seconds: Seconds = Field(default=7 * 86_400.0, alias="stale_if_error")
    """How long an entry outlives its time, to stand in when upstream fails."""
    refusal_ttl_seconds: Seconds = Field(default=600.0, alias="refusal_ttl")
    """How long it is remembered that upstream refused a question for its content."""
    scope: Literal["global", "team", "key"] = "global"
    """Who shares images: everybody, each team, or nobody. A key may have its own."""
    url_ttl_seconds: Seconds = Field(default=86_400.0, alias="url_ttl")
    """How long a link to an image works, from the answer that it stands in."""
    derive_formats: Switch = False
    """Make jpeg and webp from a cached png instead of buying them."""


class RehostSettings(_Section):
    """Fetching the images behind upstream's links."""

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
