"""The collaborators of the handlers: one frozen `Services` under a typed key of the application.

Nothing below `api/` sees the application or a request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.access.attempts import Attempts
from gateway.access.audit import Audit
from gateway.access.declared_keys import DeclaredKeys
from gateway.access.keys import Keys
from gateway.access.limit_changes import LimitChanges
from gateway.access.policy import Policy
from gateway.access.revoked_secrets import RevokedSecrets
from gateway.access.sessions import Sessions
from gateway.access.signing import Signing
from gateway.access.teams import Teams
from gateway.api.bodies import Frames
from gateway.api.inspection import Inspection, ShownFinding
from gateway.api.open_requests import OpenRequests
from gateway.billing.alert_watch import AlertWatch
from gateway.billing.counted_limits import LimitState
from gateway.billing.focus_export import FocusExport
from gateway.billing.limit_gauges import LimitGauges
from gateway.billing.limit_states import CounterUse
from gateway.billing.recent_days import RecentDays
from gateway.billing.recent_requests import RecentRequests
from gateway.billing.reports import Reports
from gateway.billing.running_totals import RunningTotals
from gateway.cache.blobs import Blobs
from gateway.cache.image_index import ImageIndex
from gateway.cache.image_search import ImageSearch
from gateway.cache.invalidation import Invalidation
from gateway.cache.purges import Purges
from gateway.cache.thumbnails import Thumbnails
from gateway.calendar import Calendar
from gateway.images import LimitSubject
from gateway.metrics import Metrics
from gateway.net.client_address import TrustedProxies
from gateway.proxy.request import Proxy
from gateway.purchasing.request_search import RequestSearch
from gateway.purchasing.upstream_health import AccountsHealth
from gateway.purchasing.upstream_switches import UpstreamSwitches
from gateway.tasks import Kept, SerialThread, SingleFlight
from gateway.tracing import Tracer
from gateway.upstream.accounts import Account
from gateway.upstream.pool import Pool
from gateway.webhooks.kept_events import KeptEvent, KeptEvents


class ExpiringKey(NamedTuple):
    """An active key that expires soon and was used lately."""

    name: str
    expires_at: float


class ApiSettings(BaseModel):
    """The tokens of operators, the address in links, origins, and the bounds of request bodies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    admin_token: SecretStr
    metrics_token: SecretStr | None = None
    public_url: str | None = None
    """The start of every link; None: the scheme and host of the request."""
    is_public_url_set: bool = False
    """The operator chose it: then the scheme that a proxy reports does not change it."""
    admin_url: str | None = None
    """Of the address of operators; None: they use the address of clients."""
    cors_origins: tuple[str, ...] = ()
    """As browsers send them; empty: CORS is off."""
    stores_prompts: bool = False
    """Whether the image index has prompts, which operators may read."""
    redirects_links: bool = False
    """Whether clients of links are sent to the bucket that has the bytes."""
    max_body_bytes: int = Field(gt=0)
    body_timeout_seconds: float = Field(gt=0)


@dataclass(slots=True)
class Health:
    """The state of this worker, as `/readyz` and the middleware need it."""

    store_reached: bool = False
    """The store has answered at least once."""
    store_up: bool = False
    is_books_memory_low: bool = False
    """The books use most of the memory or disk that they have."""
    is_store_nearly_full: bool = False
    """Hardly any memory or disk is left."""
    store_reason: Callable[[], str | None] = lambda: None
    """Why the store is not up, if that is known."""
    policy_fault: Callable[[], str | None] = lambda: None
    """What is wrong with a changed `models.yaml` or `access.yaml`, if an older one is used."""
    is_draining: bool = False
    """The whole gateway ends: `/readyz` answers 503."""
    closes_connections: bool = False
    """This worker ends: every response closes its connection."""


@dataclass(frozen=True, slots=True)
class OverviewCaches:
    """What of the overview takes long to read, and is the same for some seconds."""

    events: Kept[tuple[Sequence[KeptEvent], Sequence[LimitState]]] = field(
        default_factory=lambda: Kept(3.0)
    )
    """With the limits that they are about."""
    expiring: Kept[Sequence[ExpiringKey]] = field(default_factory=lambda: Kept(60.0))
    findings: Kept[Sequence[ShownFinding]] = field(default_factory=lambda: Kept(60.0))


class Cache(Protocol):
    """The parts of the cache that handlers use; image requests go through `Proxy`."""

    @property
    def image_index(self) -> ImageIndex: ...
    @property
    def image_search(self) -> ImageSearch: ...
    @property
    def thumbnails(self) -> Thumbnails: ...
    @property
    def blobs(self) -> Blobs: ...
    @property
    def purges(self) -> Purges: ...
    @property
    def invalidation(self) -> Invalidation: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a handler can reach."""

    settings: ApiSettings
    proxy: Proxy
    keys: Keys
    audit: Audit
    attempts: Attempts
    sessions: Sessions
    trusted_proxies: TrustedProxies
    open_requests: OpenRequests
    frames: Frames
    signing: Signing
    cache: Cache
    policy: Callable[[], Policy]
    """The current policy; a request takes one snapshot."""
    metrics: Metrics
    scrapes: SingleFlight[str, bytes]
    """Concurrent scrapes share one answer."""
    running_totals: RunningTotals
    reports: Reports
    teams: Teams
    limit_changes: LimitChanges
    read_limit_states: Callable[[LimitSubject], Awaitable[Sequence[LimitState]]]
    read_uses: Callable[
        [Sequence[LimitSubject]], Coroutine[Any, Any, Mapping[str, Sequence[CounterUse]]]
    ]
    """What limit subjects have used of their limits, by the subjects' names."""
    calendar: Calendar
    """Of `billing.time_zone`."""
    alert_watch: AlertWatch
    revoked_secrets: RevokedSecrets
    declared_keys: DeclaredKeys
    limit_gauges: LimitGauges
    focus: FocusExport
    health: Health
    upstream_health: AccountsHealth
    upstream_switches: UpstreamSwitches
    pool: Pool
    """The accounts at upstream."""
    read_budgets: Callable[
        [Sequence[Account]], Awaitable[Mapping[str, Sequence[Mapping[str, Any]]]]
    ]
    """What accounts have used of their budgets, by name."""
    request_search: RequestSearch
    recent_days: RecentDays
    recent_requests: RecentRequests
    kept_events: KeptEvents
    inspection: Inspection
    doctor: SingleFlight[None, Sequence[ShownFinding]]
    """One at a time."""
    overview_caches: OverviewCaches
    tracer: Tracer | None
    """None if traces are off: then requests have no spans."""
    body_thread: SerialThread
    """Reads large request bodies."""
    clock: Callable[[], float]
    """Unix seconds."""


SERVICES: Final = web.AppKey("services", Services)
