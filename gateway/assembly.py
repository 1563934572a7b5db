"""The composition root: opens resources, constructs the components, and closes everything.

It also has the observers that connect components to metrics and health. What commands need too is
in `wiring/`. `room_settings` makes the settings of the other components from `gateway.yaml`,
`maintenance` runs a gateway's background jobs, and `process/` serves it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from zoneinfo import ZoneInfo

from gateway.access.attempts import Attempts
from gateway.access.audit import Audit
from gateway.access.declared_keys import DeclaredKeys
from gateway.access.policy import CurrentPolicy, Policy, PolicySource
from gateway.access.revoked_secrets import RevokedSecrets
from gateway.access.sessions import Sessions
from gateway.access.signing import Signing
from gateway.access.watched import list_watched
from gateway.api.bodies import Frames
from gateway.api.inspection import NO_INSPECTION, Inspection
from gateway.api.open_requests import OpenRequests
from gateway.api.services import Health, OverviewCaches, Services
from gateway.billing.alert_watch import AlertWatch
from gateway.billing.alerts import Alerts
from gateway.billing.focus_export import FocusExport
from gateway.billing.ledger import Ledger
from gateway.billing.limit_gauges import LimitGauges
from gateway.billing.limit_states import read_limit_states, read_uses
from gateway.billing.recent_days import RecentDays
from gateway.billing.recent_requests import RecentRequests
from gateway.billing.reports import Reports
from gateway.billing.running_totals import RunningTotals
from gateway.billing.totals import Totals
from gateway.billing.verification import Verification
from gateway.cache.books_memory import BooksMemory, BooksUse
from gateway.cache.ephemeral_blobs import EphemeralBlobs
from gateway.cache.flights import Flights
from gateway.cache.idempotency_keys import IdempotencyKeys
from gateway.cache.partial_images import PartialImages
from gateway.cache.unstored_images import UnstoredImages
from gateway.configuration.expand import ConfigError
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics, PurchaseMetrics
from gateway.net.client_address import TrustedProxies
from gateway.net.server_tls import BadPair, ServerTls
from gateway.proxy.idempotency import IdempotentImages
from gateway.proxy.images import Images
from gateway.proxy.interpret import Interpreter
from gateway.proxy.memory import Memory
from gateway.proxy.recording import Recorder
from gateway.proxy.request import Proxy
from gateway.proxy.store_outage import StoreOutage
from gateway.purchasing.account_queue import AccountQueue
from gateway.purchasing.account_states import read_budgets
from gateway.purchasing.delivery import Delivery
from gateway.purchasing.purchase import Purchases
from gateway.purchasing.recovery import Recovery
from gateway.purchasing.request_search import RequestSearch
from gateway.purchasing.settlement import Settlements
from gateway.purchasing.upstream_health import AccountsHealth, UpstreamHealth
from gateway.purchasing.upstream_switches import UpstreamSwitches
from gateway.room_settings import (
    account_rates,
    api_settings,
    capacities,
    client_settings,
    delivery_settings,
    dialect_of,
    fetch_settings,
    interpreter_settings,
    ledger_settings,
    purchase_settings,
    read_admin_token,
    sender_settings,
    tls_files,
    tracing_settings,
)
from gateway.store.protocol import BlobStore, Store
from gateway.store.wrappers import EvictingStore, InstrumentedStore, LimitedStore
from gateway.tasks import OwnedTasks, SerialThread, SingleFlight
from gateway.tracing import NO_TRACER, Tracer, TracingSettings
from gateway.upstream.fetch import FetchSettings, LinkFetcher, open_link_fetcher
from gateway.upstream.pool import Pool, open_pool
from gateway.webhooks.outbox import Outbox
from gateway.webhooks.sender import GuardedHttp, Sender, open_http
from gateway.wiring.access import wire_access
from gateway.wiring.accounts import create_accounts
from gateway.wiring.books import focus_settings, report_settings, totals_settings
from gateway.wiring.cache import Cache, wire_cache
from gateway.wiring.policy import ServedPolicySource, service_of
from gateway.wiring.stores import open_store
from gateway.wiring.verification import create_verification


@dataclass(frozen=True, slots=True)
class Gateway:
    """The components of one worker."""

    services: Services
    store: Store
    blob_store: BlobStore
    cache: Cache
    books_memory: BooksMemory
    tasks: OwnedTasks
    """Purchases, and other work that must not end with a request."""
    flights: Flights
    account_queue: AccountQueue
    recovery: Recovery
    ledger: Ledger
    totals: Totals
    outbox: Outbox
    sender: Sender
    verification: Verification
    policy: CurrentPolicy
    worker: str
    """This worker's name in the store, never used twice."""
    tls: ServerTls | None = None
    """The certificate of the listening sockets; None: plain HTTP."""
    reload_requested: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have the policy and the certificate read again at once."""


class OpenLinks(Protocol):
    """Opens a fetcher of upstream's links, as `open_link_fetcher` does."""

    def __call__(
        self, settings: FetchSettings, *, observer: Callable[[str], None], tracer: Tracer
    ) -> AbstractAsyncContextManager[LinkFetcher]:
        """`observer` is called with the outcome of each fetch."""


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    source: PolicySource,
    *,
    open_links: OpenLinks = open_link_fetcher,
    inspection: Inspection = NO_INSPECTION,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Gateway]:
    """Everything that one worker needs, wired, without its background jobs.

    `clock` are Unix seconds, by which requests are dated and models retire.
    """
    metrics, health, worker = Metrics(), Health(), create_worker_name()
    metrics.process.configured.set(settings.workers.count)
    policy = create_policy(ServedPolicySource(source, settings), metrics)
    tls = create_server_tls(settings, on_failure=metrics.config_reload_failures.inc)
    async with AsyncExitStack() as stack:
        # First, so that it is closed last: purchases end while the rest closes.
        tracer = await stack.enter_async_context(open_tracer(tracing_settings(settings, worker)))
        opened_store, blob_store = await stack.enter_async_context(open_store(settings))
        observed_store = InstrumentedStore(
            LimitedStore(opened_store), create_store_observer(health, metrics)
        )
        health.store_reason = lambda: observed_store.reason
        store = EvictingStore(observed_store)
        links = await stack.enter_async_context(
            open_links(
                fetch_settings(settings),
                observer=metrics.upstream.fetched,
                tracer=tracer or NO_TRACER,
            )
        )
        by_name = {account.name: account for account in settings.accounts}
        observers = {name: metrics.upstream.purchases_from(name) for name in by_name}
        pool = await stack.enter_async_context(
            open_pool(
                create_accounts(settings).with_services(lambda model: service_of(policy(), model)),
                client_settings(settings),
                observe=observers.__getitem__,
                dialect_of=lambda one: dialect_of(by_name[one.name], lambda: policy().catalog),
                tracer=tracer or NO_TRACER,
            )
        )
        http = await stack.enter_async_context(open_http(sender_settings(settings)))
        gateway = wire_gateway(
            settings,
            policy,
            worker=worker,
            store=store,
            blob_store=blob_store,
            pool=pool,
            links=links,
            http=http,
            metrics=metrics,
            observers=observers,
            health=health,
            tracer=tracer,
            tls=tls,
            inspection=inspection,
            clock=clock,
        )
        # If the bytes are not in this store, evicting images still frees entries in Redis, but
        # nothing on a disk.
        if settings.store.blobs_url is None or settings.store.redis_url is not None:
            store.make_room = gateway.cache.blobs.make_room
        yield gateway


def wire_gateway(
    settings: Settings,
    policy: CurrentPolicy,
    *,
    worker: str,
    store: Store,
    blob_store: BlobStore,
    pool: Pool,
    links: LinkFetcher,
    http: GuardedHttp,
    metrics: Metrics,
    observers: Mapping[str, PurchaseMetrics],
    health: Health,
    tracer: Tracer | None = None,
    tls: ServerTls | None = None,
    inspection: Inspection = NO_INSPECTION,
    clock: Callable[[], float] = time.time,
) -> Gateway:
    """Constructs every component, in the order of their dependencies.

    Long on purpose: one constructor after the other. Reads the admin token's file if the settings
    have no token.
    """
    cache = wire_cache(settings, store, blob_store, observer=metrics.cache)
    books_memory = BooksMemory(
        store,
        cache.blobs,
        metrics.cache,
        shares_bytes=settings.store.blobs_url is None,
        on_change=create_books_observer(health),
        on_measured=create_room_observer(health),
    )
    signing = create_signing(settings, store)
    access = wire_access(settings, store, lambda: policy().access)
    keys, tasks = access.keys, OwnedTasks(metrics.upstream.flights.set)
    ledger = Ledger(store, ledger_settings(settings))
    totals = Totals(store, totals_settings(settings), worker=worker, observer=metrics.money)
    health.policy_fault = lambda: policy.fault
    outbox = Outbox(store, lambda: policy().access.webhooks)
    revoked_secrets = RevokedSecrets(store)
    zone = ZoneInfo(settings.billing.time_zone)
    alert_watch = AlertWatch(
        store,
        totals,
        outbox,
        alerts=Alerts(zone, settings.billing.time_zone),
        calendar=access.subjects.calendar,
        list_watched=lambda at: list_watched(keys, access.subjects, at=at),
        find_revoked_uses=revoked_secrets.find,
        retiring_models=lambda: policy().retiring_models,
        worker=worker,
    )
    sender = Sender(
        store,
        outbox,
        lambda: policy().access.webhooks,
        http,
        worker=worker,
        timeout_seconds=sender_settings(settings).timeout_seconds,
    )
    ephemeral = EphemeralBlobs(
        store, blob_store, cache.takedowns, bound_bytes=cache.blobs.bound_bytes
    )
    purchases_open, waiting = capacities(settings)
    unstored = UnstoredImages(
        settings.cache.memory_bytes,
        ttl_seconds=settings.cache.ttl_seconds,
        is_taken_down=cache.image_cache.is_taken_down,
    )
    cache.invalidation.on_purge = unstored.forget_confirmed
    flights = Flights(
        store,
        PartialImages(store, ephemeral),
        tasks,
        purchases_open=purchases_open,
        waiting=waiting,
        unstored=unstored,
    )
    settlements = Settlements(store, cache.image_cache, metrics.money)
    delivery = Delivery(
        delivery_settings(settings), pool, links, flights=flights, cache=cache.image_cache
    )
    health_changed = asyncio.Event()
    upstream_health = AccountsHealth(
        store,
        {
            account.name: UpstreamHealth(
                store,
                name=account.name,
                worker=worker,
                is_breaker_open=partial(is_breaker_open, pool, account.name),
                observer=observers[account.name],
                changed=health_changed,
            )
            for account in pool.accounts
        },
        changed=health_changed,
    )
    account_queue = AccountQueue(
        store,
        account_rates(settings),
        worker=worker,
        workers=settings.workers.count,
        max_wait_seconds=min(settings.queue.max_wait_seconds, settings.timeout_seconds),
        observers=observers,
        is_wanted=flights.is_wanted,
    )
    for account in pool.accounts:
        pool.client(account.name).on_headers = partial(account_queue.note, account.name)
    upstream_switches = UpstreamSwitches(store, [account.name for account in pool.accounts])
    pool.is_disabled = upstream_switches.is_disabled
    purchases = Purchases(
        purchase_settings(settings, worker),
        store,
        delivery,
        settlements=settlements,
        candidates=pool,
        health=upstream_health.accounts,
        unstored=unstored,
        tasks=tasks,
        queue=account_queue,
    )
    recovery = Recovery(
        store,
        settlements,
        worker=worker,
        expires_after_seconds=settings.workers.dead_after_seconds,
        tracer=tracer or NO_TRACER,
    )
    body_thread = SerialThread("bodies")
    interpreter = Interpreter(
        interpreter_settings(settings), ledger, accounts=pool.accounts, body_thread=body_thread
    )
    images = Images(
        interpreter,
        cache.image_cache,
        flights,
        purchases,
        keys=keys,
        store=store,
        unstored=unstored,
        hits=cache.image_hits,
        transcoding=cache.transcoding if settings.cache.derive_formats else None,
        sign=signing.sign,
        price_factor=pool.price_factor,
        tracer=tracer or NO_TRACER,
        clock=clock,
    )
    idempotent_images = IdempotentImages(
        IdempotencyKeys(store, tasks), images, cache.image_cache, tasks, waiting=waiting
    )
    store_outage = StoreOutage(
        keys,
        images,
        flights,
        purchases,
        ignores_limits=settings.store.limits_when_unavailable == "ignore",
    )
    proxy = Proxy(
        store,
        keys,
        interpreter,
        cache.image_cache,
        images,
        memory=Memory(store.kept, cache.image_cache, on_hit=metrics.cache.found_in_memory),
        idempotent_images=idempotent_images,
        store_outage=store_outage,
        recorder=Recorder(ledger, metrics, clock, on_refused=alert_watch.note_refusal),
    )
    services = Services(
        api_settings(settings),
        proxy=proxy,
        keys=keys,
        audit=Audit(store, keep_seconds=settings.billing.keep_records_seconds),
        attempts=Attempts(),
        sessions=Sessions(store, admin_token=read_admin_token(settings)),
        trusted_proxies=TrustedProxies(settings.server.trusted_proxies),
        open_requests=OpenRequests(
            max_per_key=settings.server.max_open_per_key,
            max_per_address=settings.server.max_open_per_address,
        ),
        frames=Frames(),
        signing=signing,
        cache=cache,
        policy=policy,
        metrics=metrics,
        reports=Reports(store, totals, report_settings(settings)),
        teams=access.teams,
        limit_changes=access.limit_changes,
        read_limit_states=partial(read_limit_states, store),
        read_uses=partial(read_uses, store),
        calendar=access.subjects.calendar,
        alert_watch=alert_watch,
        revoked_secrets=revoked_secrets,
        declared_keys=DeclaredKeys(store, lambda: policy().access, worker=worker),
        scrapes=SingleFlight(),
        running_totals=RunningTotals(store, settings.billing.metric_labels),
        limit_gauges=LimitGauges(store),
        focus=FocusExport(store, totals, focus_settings(settings)),
        health=health,
        upstream_health=upstream_health,
        upstream_switches=upstream_switches,
        pool=pool,
        read_budgets=partial(read_budgets, store),
        request_search=RequestSearch(store, ledger_settings(settings)),
        recent_days=RecentDays(store, totals, access.subjects.calendar),
        recent_requests=RecentRequests(store),
        kept_events=outbox.kept,
        inspection=inspection,
        doctor=SingleFlight(),
        overview_caches=OverviewCaches(),
        tracer=tracer,
        body_thread=body_thread,
        clock=clock,
    )
    return Gateway(
        services,
        store,
        blob_store,
        cache=cache,
        books_memory=books_memory,
        tasks=tasks,
        flights=flights,
        account_queue=account_queue,
        recovery=recovery,
        ledger=ledger,
        totals=totals,
        outbox=outbox,
        sender=sender,
        verification=create_verification(settings, store, keys, worker=worker),
        policy=policy,
        worker=worker,
        tls=tls,
    )


def is_breaker_open(pool: Pool, account: str) -> bool:
    """Whether the circuit breaker of an account is open in this worker."""
    return pool.client(account).is_breaker_open


def create_worker_name() -> str:
    """A name that no other worker has or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@asynccontextmanager
async def open_tracer(settings: TracingSettings | None) -> AsyncIterator[Tracer | None]:
    """The tracer of a worker; None if traces are off."""
    if settings is None:
        yield None
        return
    # Imported only here: OpenTelemetry is optional, and takes a while and some megabytes.
    from gateway import otel  # noqa: PLC0415

    async with otel.open_tracer(settings) as tracer:
        yield tracer


def create_policy(source: PolicySource, metrics: Metrics) -> CurrentPolicy:
    """Reads the policy, and passes each version to the metrics: their labels depend on it."""

    def on_change(policy: Policy) -> None:
        metrics.use_policy(
            models=policy.catalog.models,
            sizes=policy.values_of("size"),
            qualities=policy.values_of("quality"),
            prices_as_of=policy.catalog.prices_as_of,
            retiring_models=policy.retiring_models,
        )

    return CurrentPolicy(source, on_change=on_change, on_failure=metrics.config_reload_failures.inc)


def create_server_tls(
    settings: Settings, *, on_failure: Callable[[], None] = lambda: None
) -> ServerTls | None:
    """Reads the certificate of the listening sockets; None without one. Raises `ConfigError`."""
    files = tls_files(settings)
    try:
        return ServerTls(files, on_failure=on_failure) if files is not None else None
    except BadPair as fault:
        raise ConfigError(f"server.tls: {fault}") from None


def create_store_observer(health: Health, metrics: Metrics) -> Callable[[bool], None]:
    """Records after each batch whether the store is available."""

    def observe(is_available: bool) -> None:
        if not is_available:
            metrics.cache.store_errors.inc()
        # Only when the state changes: setting the gauge writes to a file.
        if is_available != health.store_up or not health.store_reached:
            metrics.cache.store_up.set(is_available)
        health.store_up = is_available
        health.store_reached = health.store_reached or is_available

    return observe


def create_books_observer(health: Health) -> Callable[[bool], None]:
    """Records whether the books use most of their memory."""

    def observe(is_low: bool) -> None:
        health.is_books_memory_low = is_low

    return observe


def create_room_observer(health: Health) -> Callable[[BooksUse], None]:
    """Records whether hardly any memory or disk is left."""

    def observe(use: BooksUse) -> None:
        health.is_store_nearly_full = use.is_nearly_full

    return observe


def create_signing(settings: Settings, store: Store) -> Signing:
    """Signs and verifies links. No I/O."""
    return Signing(
        store,
        keys=settings.server.signing_keys,
        url_ttl_seconds=settings.cache.url_ttl_seconds,
        clock=time.time,
    )
