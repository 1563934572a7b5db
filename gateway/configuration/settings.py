"""The sections of `gateway.yaml`: keys, types and defaults.

The docstring of a key is its description in the JSON Schema (`make schemas` writes it). How values
are parsed is `fields`; which room gets which setting is `assembly`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from gateway.configuration.fields import (
    AUTHORIZATION,
    Address,
    AdminToken,
    Attributes,
    AuthHeader,
    BaseUrl,
    BlobsUrl,
    Budget,
    Bytes,
    BytesOrZero,
    CaFile,
    CollectorHeaders,
    CollectorUrl,
    Count,
    CountOrZero,
    Folder,
    Headers,
    Hosts,
    LabelNames,
    ListenAddress,
    MetricsToken,
    ModelNames,
    Networks,
    PriceFactor,
    ProxyUrl,
    Ratio,
    RedisUrl,
    Seconds,
    Secret,
    ShutdownDates,
    SigningKeys,
    Switch,
    Text,
    TimeZone,
    TlsFile,
    UnshownValueError,
)
from gateway.configuration.origins import Origins
from gateway.store.blobs.bucket_url import is_bucket


class Section(BaseModel):
    """A frozen part of the file that refuses unknown keys. An empty key has its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_keys(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = cls.keys()
        # An unset variable expands to an empty string. An unknown key stays, and is refused later.
        return {k: v for k, v in data.items() if k not in known or v not in (None, "")}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys as spelled in the file, in order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())


DEFAULT_GROUP: Final = "default"
"""Of entries of `upstreams` that name none."""
ACCOUNT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_LISTEN_DEFAULT: Final = Address("127.0.0.1", 8080)


class TlsSettings(Section):
    """The certificate with which the server speaks TLS; without one it speaks plain HTTP."""

    cert: TlsFile | None = None
    """A PEM file with the certificate and its intermediates; read again when it changes."""
    key: TlsFile | None = None
    """A PEM file with the certificate's private key, without a passphrase."""

    @model_validator(mode="after")
    def _has_both_files(self) -> TlsSettings:
        if (self.cert is None) != (self.key is None):
            raise ValueError("both cert and key, or neither")
        return self


class ServerSettings(Section):
    """The HTTP server."""

    listen: ListenAddress = Field(
        default=_LISTEN_DEFAULT, json_schema_extra={"default": str(_LISTEN_DEFAULT)}
    )
    """The address to listen on, host:port; 0.0.0.0:8080 is every address of the machine."""
    admin_listen: ListenAddress | None = None
    """An address of its own for the admin API and /metrics; empty: the address above."""
    tls: TlsSettings = Field(default_factory=TlsSettings)
    max_body_bytes: Bytes = Field(default=1 << 20, alias="max_body")
    """The largest request body; a larger one is refused with 413."""
    max_head_bytes: Bytes = Field(default=64 << 10, alias="max_head")
    """The largest head of a request, its first line and all headers; a larger one gets a 431."""
    max_body_memory_bytes: Bytes = Field(default=256 << 20, alias="max_body_memory")
    """The bytes of request bodies that a worker holds at once; beyond them a 503."""
    max_connections: Count = 16_384
    """The open connections of a worker; a further one gets a 503."""
    max_connections_per_address: CountOrZero = 0
    """The open connections of one address at a worker; a further one gets a 429. 0: no bound."""
    keep_alive_seconds: Seconds = Field(default=620.0, alias="keep_alive")
    """How long an idle client connection stays open; use more than any load balancer does."""
    read_timeout_seconds: Seconds = Field(default=30.0, alias="read_timeout")
    """How long a client may take to send a whole head or body before it gets a 408."""
    max_open_purchases: Count = 10_000
    """How many purchases, and how many requests that wait for others' purchases, a worker has open
    at once; more are refused with 503."""
    max_open_per_key: CountOrZero = 0
    """How many image requests of one key a worker has open at once; 0: any number."""
    max_open_per_address: CountOrZero = 0
    """How many image requests of one client address a worker has open at once; 0: any number."""
    cors_origins: Origins = ()
    """Origins whose pages may call the API from a browser, https://app.example.com; empty: none."""
    trusted_proxies: Networks = ()
    """Networks whose X-Forwarded-For and X-Forwarded-Proto are believed; empty: none."""
    admin_token: AdminToken | None = None
    """Opens the admin API and /metrics; empty: created once, in the data folder."""
    metrics_token: MetricsToken | None = None
    """A second token that opens only /metrics; empty: none."""
    public_url: BaseUrl | None = None
    """The base URL of links to images; empty: http:// or, with tls, https://, and listen."""
    signing_keys: SigningKeys | None = None
    """Keys for links to images, kid:secret,…: the first signs, all verify; empty: in the store."""

    @model_validator(mode="after")
    def _tokens_differ(self) -> ServerSettings:
        if self.admin_token is not None and self.admin_token == self.metrics_token:
            raise UnshownValueError(
                "a metrics_token (GATEWAY_METRICS_TOKEN) other than the admin_token "
                "(GATEWAY_ADMIN_TOKEN), which the monitoring system must not know"
            )
        return self

    @model_validator(mode="after")
    def _listens_on_two_addresses(self) -> ServerSettings:
        if self.admin_listen is not None and self.admin_listen.overlaps(self.listen):
            raise ValueError(
                f"an admin_listen that listen does not use too, but they are {self.admin_listen} "
                f"and {self.listen}; leave admin_listen empty to serve everything on one address"
            )
        return self

    @model_validator(mode="after")
    def _has_memory_for_a_body(self) -> ServerSettings:
        if self.max_body_memory_bytes < self.max_body_bytes:
            raise ValueError("max_body_memory at least as large as max_body")
        return self

    @property
    def scheme(self) -> str:
        """Of the URLs at which clients reach the server itself."""
        return "http" if self.tls.cert is None else "https"

    @property
    def link_base_url(self) -> str | None:
        """The base URL of links; None if only clients know the gateway's address."""
        if self.public_url is not None:
            return self.public_url
        if self.listen.is_wildcard or self.listen.port == 0:
            return None
        return f"{self.scheme}://{self.listen}"

    @property
    def admin_url(self) -> str | None:
        """Of the address of operators, as a client on this machine can use it; None without one."""
        if self.admin_listen is None:
            return None
        return f"{self.scheme}://{self.admin_listen.on_this_machine}"

    @property
    def dashboard_base_url(self) -> str:
        """Where an admin's browser reaches the dashboard, as far as this gateway knows."""
        on_this_machine = f"{self.scheme}://{self.listen.on_this_machine}"
        return self.admin_url or self.public_url or on_this_machine


class WorkerSettings(Section):
    """The processes that share the port."""

    count: Count = 1
    """How many processes serve."""
    heartbeat_seconds: Seconds = Field(default=5.0, alias="heartbeat")
    """How often a worker reports to the store that it is alive."""
    dead_after_seconds: Seconds = Field(default=15.0, alias="dead_after")
    """After how long without a heartbeat other workers finish a worker's purchases."""
    drain_timeout_seconds: Seconds | None = Field(default=None, alias="drain_timeout")
    """How long a draining worker waits for open purchases; empty: as long as upstream.timeout."""

    @model_validator(mode="after")
    def _dead_after_exceeds_heartbeat(self) -> WorkerSettings:
        if self.dead_after_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("dead_after at least twice as long as heartbeat")
        return self


class StoreSettings(Section):
    """Where the gateway stores its state."""

    redis_url: RedisUrl | None = None
    """The Redis that all gateways share; empty: an embedded store in the data folder."""
    data_dir: Folder = Path("data")
    """The folder of the embedded store, of image bytes and of the admin token."""
    blobs_url: BlobsUrl | None = None
    """A separate store for image bytes: a bucket of object storage (s3://, gs://, az://), a second
    Redis or file:///…; empty: the main store."""
    limits_when_unavailable: Literal["refuse", "ignore"] = "refuse"
    """Whether keys with limits may buy while the store, which counts them, is unavailable."""
    allow_eviction: Switch = False
    """Whether the main Redis may have an eviction policy, although it then loses counted money."""

    @property
    def plain_blobs_url(self) -> str:
        """`blobs_url` with its password, which is never logged; empty without one."""
        return "" if self.blobs_url is None else self.blobs_url.get_secret_value()


class BreakerSettings(Section):
    """The circuit breaker in front of upstream."""

    failures: CountOrZero = 5
    """After how many failed purchases in a row the breaker opens; 0: never."""
    open_seconds: Seconds = Field(default=10.0, alias="open")
    """How long the breaker stays open (503) before one request probes upstream."""


class UpstreamLimits(Section):
    """The budget of an account at upstream: what all keys together may spend there."""

    usd_micros_per_day: Budget | None = Field(default=None, alias="usd_per_day")
    """US dollars a day, as for keys; an account over its budget is passed over. Empty: no bound."""
    usd_micros_per_week: Budget | None = Field(default=None, alias="usd_per_week")
    """US dollars a week, from Monday. Empty: no bound."""
    usd_micros_per_month: Budget | None = Field(default=None, alias="usd_per_month")
    """US dollars a month. Empty: no bound."""


class UpstreamSettings(Section):
    """A service that images are bought from: an account there."""

    base_url: BaseUrl = "https://api.fastapi.ai/v1"
    """The base URL of any OpenAI-compatible images API."""
    api_key: Secret | None = None
    """The team's real key; `gateway serve` needs it to start."""
    name: Text = "default"
    """The name of the account, in the ledger, the metrics and the log."""
    group: Text | None = None
    """Part of every fingerprint: accounts of one group share cached images. Empty: for upstream its
    name, for an entry of upstreams 'default'."""
    dialect: Text = "openai"
    """The API that is spoken there: openai, azure, or a dialect of models.yaml."""
    models: ModelNames = Field(default_factory=dict)
    """The models that are bought here, with the name that each has there. Empty: every model,
    under its own name."""
    shutdown: ShutdownDates = Field(default_factory=dict)
    """The shutdown dates of this account, where they differ from models.yaml. Without a date: not
    announced."""
    priority: CountOrZero = 1
    """Accounts with the lowest number are asked first."""
    weight: CountOrZero = 1
    """The share of the purchases among accounts of one priority. 0: it is not asked."""
    images_per_minute: Count | None = None
    """Images that the account makes a minute; further purchases queue. Empty: no bound."""
    concurrent: Count | None = None
    """Purchases that the account takes at once; further ones queue. Empty: no bound."""
    price_factor: PriceFactor = Decimal(1)
    """What every price of models.yaml is multiplied by for purchases here."""
    limits: UpstreamLimits = Field(default_factory=UpstreamLimits)
    timeout_seconds: Seconds = Field(default=600.0, alias="timeout")
    """How long one purchase may take."""
    streams: Switch = True
    """Whether an image for a client that asked for a stream is bought as a stream. False: it is
    bought plain, and the client gets one completed event."""
    api_version: Text | None = None
    """Of dialect azure: the api-version of every request. Empty: that of base_url's query, else a
    current one."""
    auth_header: AuthHeader | None = None
    """The header that carries the key: Authorization as 'Bearer …', any other (api-key) bare.
    Empty: as the dialect has it, which is Authorization unless it is azure."""
    headers: Headers = Field(default_factory=dict)
    """Additional headers of every request to upstream, by name; their values are secrets."""
    proxy: ProxyUrl | None = None
    """The HTTP proxy to use, http://user:password@host:port; empty: none."""
    ca_file: CaFile | None = None
    """A PEM file of certificate authorities to trust besides the system's; empty: none."""
    breaker: BreakerSettings = Field(default_factory=BreakerSettings)

    @model_validator(mode="after")
    def _sends_each_header_once(self) -> UpstreamSettings:
        own = self.auth_header or AUTHORIZATION
        if own.lower() in {name.lower() for name in self.headers}:
            raise ValueError(f"headers without {own}, which is the auth_header")
        return self


class QueueSettings(Section):
    """The queue of purchases that wait for an account's images_per_minute or concurrent."""

    max_wait_seconds: Seconds = Field(default=60.0, alias="max_wait")
    """The longest wait for a turn; then the purchase is refused with 429. One that would have to
    wait longer is refused at once."""


class CacheSettings(Section):
    """The image cache: lifetimes and bounds."""

    ttl_seconds: Seconds = Field(default=30 * 86_400.0, alias="ttl")
    """How long an image is fresh, with a jitter of 5 % so that not all expire at once."""
    max_image_bytes: Bytes = Field(default=64 << 20, alias="max_image")
    """An image of more bytes is refused as an upstream error."""
    max_pixels: Count = 33_000_000
    """An image of more pixels is refused as an upstream error."""
    total_bytes: Bytes | None = None
    """The bound of all images together; the least recently used are evicted. Empty: 10GiB; in Redis
    half of its maxmemory, or 1GiB if that is not set."""
    memory_bytes: BytesOrZero = 256 << 20
    """The size of each worker's memory cache; 0: none."""
    stale_if_error_seconds: Seconds = Field(default=7 * 86_400.0, alias="stale_if_error")
    """How long an expired image may still be served when upstream fails."""
    refusal_ttl_seconds: Seconds = Field(default=600.0, alias="refusal_ttl")
    """How long the negative cache repeats a refusal of a prompt's content."""
    scope: Literal["global", "team", "key"] = "global"
    """Which keys share images: all, those of one team, or none. A key can override it."""
    url_ttl_seconds: Seconds = Field(default=86_400.0, alias="url_ttl")
    """How long a link to an image works after the response that contains it."""
    links: Literal["serve", "redirect"] = "serve"
    """Whether the gateway sends the bytes of its links, or sends clients to the bucket for them."""
    derive_formats: Switch = False
    """Whether jpeg and webp are transcoded from a cached png instead of bought."""
    stores_prompts: Switch = Field(default=False, alias="store_prompts")
    """Whether prompts are stored with images, for the operator and their buyer to read."""


class BillingSettings(Section):
    """The books: calendar windows, and how long records and totals are kept."""

    time_zone: TimeZone = "UTC"
    """The IANA time zone in which the days, weeks and months of budgets and reports begin."""
    keep_records_seconds: Seconds = Field(default=400 * 86_400.0, alias="keep_records")
    """How long ledger records with a charge are kept."""
    keep_free_records_seconds: Seconds = Field(default=30 * 86_400.0, alias="keep_free_records")
    """How long ledger records without a charge are kept."""
    free_records_bytes: Bytes | None = None
    """The bound of all records without a charge together; the oldest are removed first. Empty:
    an eighth of Redis' maxmemory, or 256MiB without one and in the embedded store."""
    keep_totals_seconds: Seconds = Field(default=800 * 86_400.0, alias="keep_totals")
    """How long totals by day are kept."""
    metric_labels: LabelNames = ()
    """Labels of keys and teams, such as `cost_center`, whose money the metrics show by value."""


class RehostSettings(Section):
    """Fetching images from the links in upstream's responses."""

    allow: Hosts = ()
    """Hosts or networks to fetch from although they are private or use plain http."""


class OpenTelemetrySettings(Section):
    """OpenTelemetry traces, which need the extra `otel`. Without an endpoint they are off."""

    endpoint: CollectorUrl | None = None
    """The base URL of a collector that takes OTLP over HTTP, http://collector:4318; empty: none."""
    headers: CollectorHeaders = ()
    """Headers of every export, name=value,name=value with percent-encoded values, as secrets."""
    ca_file: CaFile | None = None
    """A PEM file of the certificate authorities of the collector; empty: the usual ones."""
    service_name: Text = "image-gateway"
    """The name of the service in every trace."""
    resource_attributes: Attributes = ()
    """Further attributes of every span, name=value,name=value."""
    sample_ratio: Ratio = 1.0
    """The share of the traces that begin at the gateway which is exported."""


def _is_list(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError("a list of accounts, each with a name: '- name: openai'")
    return value


def _check_account_names(upstreams: tuple[UpstreamSettings, ...]) -> tuple[UpstreamSettings, ...]:
    names = [one.name for one in upstreams]
    for name in names:
        if not ACCOUNT_NAME.fullmatch(name):
            raise ValueError(
                "names of 1 to 64 of the characters A-Z a-z 0-9 _ . -, beginning with a letter or "
                f"digit; {name[:64]!r} is none"
            )
        if names.count(name) > 1:
            raise ValueError(
                f"a name of its own for each entry, but {name!r} is there {names.count(name)} times"
            )
    return upstreams


Upstreams = Annotated[
    tuple[UpstreamSettings, ...], BeforeValidator(_is_list), AfterValidator(_check_account_names)
]


class Settings(Section):
    """Settings of the image gateway. Workers read them once; a change needs a restart."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings)
    upstreams: Upstreams = ()
    """Several accounts instead of upstream: a list whose entries have the keys of upstream."""
    queue: QueueSettings = Field(default_factory=QueueSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    billing: BillingSettings = Field(default_factory=BillingSettings)
    rehost: RehostSettings = Field(default_factory=RehostSettings)
    tracing: OpenTelemetrySettings = Field(default_factory=OpenTelemetrySettings)
    validation: Literal["strict", "lenient"] = "strict"
    """Whether parameters outside the API reference are refused, or tolerated if they have no
    effect. A key can override it."""
    log_format: Literal["text", "json"] | None = None
    """The format of log lines; empty: text on a terminal, else json."""

    @model_validator(mode="after")
    def _has_upstream_or_upstreams(self) -> Settings:
        # The shipped file spells the defaults of upstream out.
        if self.upstreams and self.upstream != UpstreamSettings():
            raise ValueError(
                "either upstream, for one account, or upstreams, for several, but both have "
                "values; move those of upstream into an entry of upstreams and delete the section"
            )
        return self

    @model_validator(mode="after")
    def _redirects_to_a_bucket(self) -> Settings:
        if self.cache.links == "redirect" and not is_bucket(self.store.plain_blobs_url):
            raise ValueError(
                "cache.links: serve, unless the images are in a bucket: redirect needs a "
                "GATEWAY_BLOBS_URL of s3://, gs:// or az://"
            )
        return self

    @property
    def accounts(self) -> tuple[UpstreamSettings, ...]:
        """The accounts that images are bought from: at least one. Each has its group."""
        if not self.upstreams:
            one = self.upstream
            return (one.model_copy(update={"group": one.group or one.name}),)
        return tuple(
            one.model_copy(update={"group": one.group or DEFAULT_GROUP}) for one in self.upstreams
        )

    @property
    def ca_files(self) -> tuple[Path, ...]:
        """Those of all accounts, each once."""
        files = (account.ca_file for account in self.accounts)
        return tuple(dict.fromkeys(file for file in files if file is not None))

    @property
    def timeout_seconds(self) -> float:
        """How long a purchase may take at any account."""
        return max(account.timeout_seconds for account in self.accounts)

    @property
    def drain_seconds(self) -> float:
        """`drain_timeout`, or its default."""
        return self.workers.drain_timeout_seconds or self.timeout_seconds
