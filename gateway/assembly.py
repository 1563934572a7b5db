"""The composition root: opens, wires, closes."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote

import structlog
from pydantic import SecretStr

from gateway.access.keys import Keys
from gateway.access.policy import CurrentPolicy, Policy, PolicySource
from gateway.access.signing import Signing
from gateway.api.services import Health, Services
from gateway.billing.ledger import Ledger
from gateway.cache.blobs import Blobs, BlobsSettings, Observer
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.ephemeral_blobs import EphemeralBlobs
from gateway.cache.flights import Flights
from gateway.cache.idempotency_keys import IdempotencyKeys
from gateway.cache.image_cache import ImageCache
from gateway.cache.image_index import ImageIndex
from gateway.cache.invalidation import Invalidation
from gateway.cache.partial_images import PartialImages
from gateway.cache.takedowns import Takedowns
from gateway.cache.transcoding import Transcoding
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.proxy.idempotency import IdempotentImages
from gateway.proxy.images import Images
from gateway.proxy.interpret import Interpreter, InterpreterSettings
from gateway.proxy.recording import Recorder
from gateway.proxy.request import Proxy
from gateway.proxy.store_outage import StoreOutage
from gateway.purchasing.delivery import Delivery, DeliverySettings
from gateway.purchasing.purchase import Purchases, PurchaseSettings
from gateway.purchasing.recovery import Recovery
from gateway.purchasing.settlement import Settlements
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.blobs.redis import open_redis_blobs
from gateway.store.protocol import BlobStore, Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.store import open_sqlite_store
from gateway.store.wrappers import EvictingStore, InstrumentedStore, LimitedStore
from gateway.tasks import OwnedTasks
from gateway.upstream.client import UpstreamClient, open_client
from gateway.upstream.fetch import LinkFetcher, RehostSettings, open_link_fetcher
from gateway.upstream.session import ClientSettings

DATABASE: Final = "gateway.sqlite"
BLOBS_FOLDER: Final = "blobs"
TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file's name
WILDCARDS: Final = ("0.0.0.0", "::")
LINK_ROUNDING: Final = 25 / 24
"""A link lives up to so many times `url_ttl`, because its end is rounded up (CONTRACT §7)."""

log = structlog.get_logger(__name__)


# ── the services ────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[tuple[Store, BlobStore]]:
    """The store that the settings name, and where image bytes lie.

    An embedded one must exist. An empty Redis becomes one, which may still be away.
    """
    async with AsyncExitStack() as stack:
        store, blobs = await _open_main_store(settings, stack)
        url = settings.store.blobs_url.get_secret_value() if settings.store.blobs_url else ""
        if url.startswith("file://"):
            blobs = FolderBlobs(Path(unquote(url.removeprefix("file://"))))
        elif url:
            blobs = await stack.enter_async_context(open_redis_blobs(url))
        yield store, blobs


async def _open_main_store(settings: Settings, stack: AsyncExitStack) -> tuple[Store, BlobStore]:
    if settings.store.redis_url is not None:
        url = settings.store.redis_url.get_secret_value()
        store = await stack.enter_async_context(open_redis_store(url))
        blobs = await stack.enter_async_context(open_redis_blobs(url, is_beside_verbs=True))
        return store, blobs
    folder = settings.store.data_dir
    embedded = await stack.enter_async_context(open_sqlite_store(folder / DATABASE))
    return embedded, FolderBlobs(folder / BLOBS_FOLDER, home=folder)


@asynccontextmanager
async def open_existing_store(settings: Settings) -> AsyncIterator[Store]:
    """The store of a running gateway, for commands; never creates one.

    Raises `StoreMissing`, `LayoutMismatch`, `StoreUnavailable`.
    """
    url = settings.store.redis_url
    if url is None:
        async with open_store(settings) as (embedded, _):
            yield embedded
        return
    async with open_redis_store(url.get_secret_value(), may_create=False) as store:
        await store.check_schema()
        yield store


@dataclass(frozen=True, slots=True)
class Cache:
    """The rooms that keep images, wired together: all that a command needs of a gateway."""

    image_cache: ImageCache
    image_index: ImageIndex
    blobs: Blobs
    takedowns: Takedowns
    invalidation: Invalidation
    transcoding: Transcoding


def _wire_cache(
    settings: Settings,
    store: Store,
    blob_store: BlobStore,
    *,
    observer: Observer,
    ttl_seconds: float | None = None,
) -> Cache:
    """Constructs the rooms of `cache/`. No I/O."""
    entries, takedowns = Entries(_entries_settings(settings)), Takedowns(store)
    blobs_settings = _blobs_settings(settings)
    if ttl_seconds is not None:
        blobs_settings = blobs_settings.model_copy(update={"ttl_seconds": ttl_seconds})
    blobs = Blobs(
        blobs_settings,
        blob_store,
        store,
        takedowns=takedowns,
        observer=observer,
    )
    image_index = ImageIndex(store, blobs, ttl_seconds=blobs_settings.ttl_seconds)
    image_cache = ImageCache(store, entries=entries, image_index=image_index, blobs=blobs)
    invalidation = Invalidation(store, image_cache, image_index=image_index, takedowns=takedowns)
    transcoding = Transcoding(store, image_cache, blobs=blobs, takedowns=takedowns)
    return Cache(image_cache, image_index, blobs, takedowns, invalidation, transcoding)


@asynccontextmanager
async def open_cache(
    settings: Settings, *, ttl_seconds: float | None = None
) -> AsyncIterator[tuple[Store, Cache]]:
    """The cache of a running gateway, for commands.

    What they put there stays `lifetime_seconds`; None: as long as the gateway's own. Raises
    `StoreMissing`, `LayoutMismatch`, `StoreUnavailable`.
    """
    async with open_existing_store(settings), open_store(settings) as (store, blob_store):
        cache = _wire_cache(
            settings, store, blob_store, observer=Metrics(), ttl_seconds=ttl_seconds
        )
        yield store, cache


@dataclass(frozen=True, slots=True)
class Gateway:
    """One worker's rooms, wired together."""

    services: Services
    store: Store
    blob_store: BlobStore
    cache: Cache
    tasks: OwnedTasks
    """Purchases, and work that must not end with a request."""
    flights: Flights
    recovery: Recovery
    ledger: Ledger
    policy: CurrentPolicy
    worker: str
    """This worker's name in the store, never used twice."""
    reload_asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have the policy read again."""


class OpenLinks(Protocol):
    """Opens what fetches upstream's links, as `open_rehost` does."""

    def __call__(
        self, settings: RehostSettings, *, observer: Callable[[str], None]
    ) -> AbstractAsyncContextManager[LinkFetcher]:
        """`observer` is told how each fetch ended."""


@asynccontextmanager
async def open_gateway(
    settings: Settings, source: PolicySource, *, open_links: OpenLinks = open_link_fetcher
) -> AsyncIterator[Gateway]:
    """Everything that one worker needs, wired; what it does by itself is `maintenance`."""
    metrics, health = Metrics(), Health()
    policy = CurrentPolicy(
        source,
        on_change=partial(_know_policy, metrics),
        on_failure=metrics.config_reload_failures.inc,
    )
    async with AsyncExitStack() as stack:
        opened, blob_store = await stack.enter_async_context(open_store(settings))
        store = EvictingStore(InstrumentedStore(LimitedStore(opened), _teller(health, metrics)))
        links = await stack.enter_async_context(
            open_links(rehost_settings(settings), observer=metrics.fetched)
        )
        client = await stack.enter_async_context(
            open_client(client_settings(settings), observer=metrics)
        )
        gateway = _wire(
            settings,
            policy,
            store=store,
            blob_store=blob_store,
            client=client,
            links=links,
            metrics=metrics,
            health=health,
        )
        if settings.store.blobs_url is None:  # making room elsewhere would not help
            store.make_room = gateway.cache.blobs.make_room
        yield gateway


def _wire(
    settings: Settings,
    policy: CurrentPolicy,
    *,
    store: Store,
    blob_store: BlobStore,
    client: UpstreamClient,
    links: LinkFetcher,
    metrics: Metrics,
    health: Health,
) -> Gateway:
    """Constructs every room and introduces them to the stories. No I/O."""
    worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    cache = _wire_cache(settings, store, blob_store, observer=metrics)
    signing = create_signing(settings, store)
    keys, ledger, tasks = Keys(store), Ledger(store), OwnedTasks(metrics.flights.set)
    ephemeral = EphemeralBlobs(blob_store, cache.takedowns)
    flights = Flights(store, PartialImages(store, ephemeral), tasks)
    settlements = Settlements(store, cache.image_cache, metrics)
    purchases = Purchases(
        _purchase_settings(settings, worker),
        store,
        Delivery(
            _delivery_settings(settings), client, links, flights=flights, cache=cache.image_cache
        ),
        settlements=settlements,
        tasks=tasks,
    )
    recovery = Recovery(
        store,
        settlements,
        metrics,
        worker=worker,
        expires_after_seconds=settings.workers.dead_after_seconds,
    )
    interpreter = Interpreter(_interpreter_settings(settings), ledger)
    images = Images(
        interpreter,
        cache.image_cache,
        flights,
        purchases,
        transcoding=cache.transcoding if settings.cache.derive_formats else None,
        sign=signing.sign,
        clock=time.time,
    )
    proxy = Proxy(
        store,
        keys,
        interpreter,
        cache.image_cache,
        images,
        idempotent_images=IdempotentImages(
            IdempotencyKeys(store), images, cache.image_cache, tasks
        ),
        store_outage=StoreOutage(
            keys,
            images,
            flights,
            purchases,
            ignores_limits=settings.store.limits_when_away == "ignore",
        ),
        recorder=Recorder(ledger, metrics, time.time),
    )
    services = Services(
        proxy=proxy,
        keys=keys,
        signing=signing,
        image_index=cache.image_index,
        blobs=cache.blobs,
        invalidation=cache.invalidation,
        policy=policy,
        metrics=metrics,
        health=health,
        public_url=public_url(settings),
        admin_token=admin_token(settings),
        metrics_token=settings.server.metrics_token,
        max_body_bytes=settings.server.max_body_bytes,
        body_timeout_seconds=settings.server.read_timeout_seconds,
        clock=time.time,
    )
    return Gateway(
        services,
        store,
        blob_store,
        cache=cache,
        tasks=tasks,
        flights=flights,
        recovery=recovery,
        ledger=ledger,
        policy=policy,
        worker=worker,
    )


def admin_token(settings: Settings) -> SecretStr:
    """The token that opens the admin API: from the settings, else from the data folder."""
    if settings.server.admin_token is not None:
        return settings.server.admin_token
    return SecretStr((settings.store.data_dir / TOKEN_FILE).read_text().strip())


def create_signing(settings: Settings, store: Store) -> Signing:
    """What links are signed with. No I/O."""
    return Signing(
        store,
        keys=settings.server.signing_keys,
        url_ttl_seconds=settings.cache.url_ttl_seconds,
        clock=time.time,
    )


def _know_policy(metrics: Metrics, policy: Policy) -> None:
    metrics.know(
        models=policy.catalog.models,
        sizes=policy.values_of("size"),
        qualities=policy.values_of("quality"),
        prices_as_of=policy.catalog.prices_as_of,
    )


def client_settings(settings: Settings) -> ClientSettings:
    """What is known of the paid service."""
    upstream = settings.upstream
    return ClientSettings(
        base_url=upstream.base_url,
        api_key=upstream.api_key or SecretStr(""),
        timeout_seconds=upstream.timeout_seconds,
        max_image_bytes=settings.cache.max_image_bytes,
        auth_header=upstream.auth_header,
        headers=upstream.headers,
        proxy=upstream.proxy,
        ca_file=upstream.ca_file,
        breaker_failures=upstream.breaker.failures,
        breaker_open_seconds=upstream.breaker.open_seconds,
    )


def _interpreter_settings(settings: Settings) -> InterpreterSettings:
    return InterpreterSettings(
        upstream_name=settings.upstream.name,
        validation=settings.validation,
        scope=settings.cache.scope,
    )


def _entries_settings(settings: Settings) -> EntriesSettings:
    return EntriesSettings(
        ttl_seconds=settings.cache.ttl_seconds,
        stale_if_error_seconds=settings.cache.stale_if_error_seconds,
        refusal_seconds=settings.cache.refusal_ttl_seconds,
    )


def _blobs_settings(settings: Settings) -> BlobsSettings:
    longest_link = settings.cache.url_ttl_seconds * LINK_ROUNDING
    return BlobsSettings(
        ttl_seconds=_entries_settings(settings).longest_seconds + longest_link,
        total_bytes=settings.cache.total_bytes,
        memory_bytes=settings.cache.memory_bytes,
    )


def rehost_settings(settings: Settings) -> RehostSettings:
    """Where images behind links may be fetched from."""
    return RehostSettings(
        upstream_url=settings.upstream.base_url,
        allow=settings.rehost.allow,
        max_bytes=settings.cache.max_image_bytes,
        ca_file=settings.upstream.ca_file,
    )


def public_url(settings: Settings) -> str | None:
    """What links start with; None where nobody but the client knows how we are reached."""
    listen = settings.server.listen
    if settings.server.public_url is not None:
        return settings.server.public_url
    if listen.host in WILDCARDS or listen.port == 0:
        return None
    return f"http://{listen}"


def _purchase_settings(settings: Settings, worker: str) -> PurchaseSettings:
    return PurchaseSettings(
        worker=worker,
        timeout_seconds=settings.upstream.timeout_seconds,
        dead_after_seconds=settings.workers.dead_after_seconds,
    )


def _delivery_settings(settings: Settings) -> DeliverySettings:
    return DeliverySettings(
        max_image_bytes=settings.cache.max_image_bytes, max_pixels=settings.cache.max_pixels
    )


def _teller(health: Health, metrics: Metrics) -> Callable[[bool], None]:
    def tell(was_answered: bool) -> None:
        if not was_answered:
            metrics.store_errors.inc()
        if was_answered != health.store_up or not health.store_reached:
            metrics.store_up.set(was_answered)
        health.store_up = was_answered
        health.store_reached = health.store_reached or was_answered

    return tell
