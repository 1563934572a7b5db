"""The composition root: opens resources, constructs the components, and closes everything.

`serving/` constructs each area of a worker, `wiring/` what commands need too. `room_settings` makes
the settings of the other components from `gateway.yaml`, `maintenance` runs a gateway's background
jobs, and `process/` serves it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.access.policy import CurrentPolicy, PolicySource
from gateway.api.inspection import NO_INSPECTION, Inspection
from gateway.api.services import Health, Services
from gateway.billing.ledger import Ledger
from gateway.billing.totals import Totals
from gateway.billing.verification import Verification
from gateway.cache.books_memory import BooksMemory
from gateway.cache.flights import Flights
from gateway.configuration.expand import ConfigError
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.net.server_tls import BadPair, ServerTls
from gateway.purchasing.account_queue import AccountQueue
from gateway.purchasing.recovery import Recovery
from gateway.room_settings import (
    client_settings,
    dialect_of,
    fetch_settings,
    sender_settings,
    tls_files,
    tracing_settings,
)
from gateway.serving.books import wire_books
from gateway.serving.events import wire_events
from gateway.serving.observers import create_books_memory, create_policy, create_store_observer
from gateway.serving.purchasing import wire_purchasing
from gateway.serving.requests import wire_requests
from gateway.serving.resources import Resources
from gateway.serving.services import wire_services
from gateway.store.protocol import BlobStore, Store
from gateway.store.wrappers import EvictingStore, InstrumentedStore, LimitedStore
from gateway.tasks import OwnedTasks
from gateway.tracing import NO_TRACER, Tracer, TracingSettings
from gateway.upstream.fetch import FetchSettings, LinkFetcher, open_link_fetcher
from gateway.upstream.pool import open_pool
from gateway.webhooks.outbox import Outbox
from gateway.webhooks.sender import Sender, open_http
from gateway.wiring.access import wire_access
from gateway.wiring.accounts import create_accounts
from gateway.wiring.cache import Cache, wire_cache
from gateway.wiring.policy import ServedPolicySource, service_of
from gateway.wiring.stores import open_store


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
    async with open_resources(
        settings, policy, open_links=open_links, metrics=metrics, health=health, worker=worker
    ) as resources:
        gateway = wire_gateway(
            settings,
            policy,
            resources,
            metrics=metrics,
            health=health,
            tls=tls,
            inspection=inspection,
            worker=worker,
            clock=clock,
        )
        # If the bytes are not in this store, evicting images still frees entries in Redis, but
        # nothing on a disk.
        if settings.store.blobs_url is None or settings.store.redis_url is not None:
            resources.store.make_room = gateway.cache.blobs.make_room
        yield gateway


@asynccontextmanager
async def open_resources(
    settings: Settings,
    policy: CurrentPolicy,
    *,
    open_links: OpenLinks,
    metrics: Metrics,
    health: Health,
    worker: str,
) -> AsyncIterator[Resources]:
    """Opens the stores and the clients of other servers, and closes them in reverse order."""
    async with AsyncExitStack() as stack:
        # First, so that it is closed last: purchases end while the rest closes.
        traces = await stack.enter_async_context(open_tracer(tracing_settings(settings, worker)))
        tracer = traces or NO_TRACER
        opened_store, blob_store = await stack.enter_async_context(open_store(settings))
        observed_store = InstrumentedStore(
            LimitedStore(opened_store), create_store_observer(health, metrics)
        )
        health.store_reason = lambda: observed_store.reason
        links = await stack.enter_async_context(
            open_links(fetch_settings(settings), observer=metrics.upstream.fetched, tracer=tracer)
        )
        by_name = {account.name: account for account in settings.accounts}
        observers = {name: metrics.upstream.purchases_from(name) for name in by_name}
        pool = await stack.enter_async_context(
            open_pool(
                create_accounts(settings).with_services(lambda model: service_of(policy(), model)),
                client_settings(settings),
                observe=observers.__getitem__,
                dialect_of=lambda one: dialect_of(by_name[one.name], lambda: policy().catalog),
                tracer=tracer,
            )
        )
        http = await stack.enter_async_context(open_http(sender_settings(settings)))
        yield Resources(
            EvictingStore(observed_store), blob_store, links, pool, observers, http, traces
        )


def wire_gateway(
    settings: Settings,
    policy: CurrentPolicy,
    resources: Resources,
    *,
    metrics: Metrics,
    health: Health,
    tls: ServerTls | None,
    inspection: Inspection,
    worker: str,
    clock: Callable[[], float],
) -> Gateway:
    """Constructs the components, one area after the other: each uses only those above it."""
    store, blob_store = resources.store, resources.blob_store
    health.policy_fault = lambda: policy.fault
    cache = wire_cache(settings, store, blob_store, observer=metrics.cache)
    books_memory = create_books_memory(settings, store, cache, metrics=metrics, health=health)
    access = wire_access(settings, store, lambda: policy().access)
    books = wire_books(settings, store, access, observer=metrics.money, worker=worker)
    events = wire_events(
        settings,
        policy,
        resources,
        access=access,
        totals=books.totals,
        sending=sender_settings(settings),
        worker=worker,
    )
    purchasing = wire_purchasing(settings, resources, cache, metrics=metrics, worker=worker)
    requests = wire_requests(
        settings,
        resources,
        keys=access.keys,
        cache=cache,
        books=books,
        events=events,
        purchasing=purchasing,
        metrics=metrics,
        clock=clock,
    )
    services = wire_services(
        settings,
        policy,
        resources,
        access=access,
        cache=cache,
        books=books,
        events=events,
        purchasing=purchasing,
        requests=requests,
        metrics=metrics,
        health=health,
        inspection=inspection,
        worker=worker,
        clock=clock,
    )
    return Gateway(
        services,
        store,
        blob_store,
        cache=cache,
        books_memory=books_memory,
        tasks=purchasing.tasks,
        flights=purchasing.flights,
        account_queue=purchasing.account_queue,
        recovery=purchasing.recovery,
        ledger=books.ledger,
        totals=books.totals,
        outbox=events.outbox,
        sender=events.sender,
        verification=books.verification,
        policy=policy,
        worker=worker,
        tls=tls,
    )


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


def create_server_tls(
    settings: Settings, *, on_failure: Callable[[], None] = lambda: None
) -> ServerTls | None:
    """Reads the certificate of the listening sockets; None without one. Raises `ConfigError`."""
    files = tls_files(settings)
    try:
        return ServerTls(files, on_failure=on_failure) if files is not None else None
    except BadPair as fault:
        raise ConfigError(f"server.tls: {fault}") from None
