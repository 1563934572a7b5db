"""The composition root: opens everything in order, wires it, owns it, and closes it in reverse.

`open_services` is what server, command line and tests share. `serve` is one worker from its first
moment to its last: open, say ready, wait to be told, drain, close. The parent of the workers is
`supervisor.py`; what it must have done before it forks is `prepare`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

import structlog
import uvloop
from aiohttp import web
from pydantic import SecretStr

from gateway.access.keys import Keys
from gateway.access.policy import CurrentPolicy, Policy, PolicySource
from gateway.access.signing import Signing
from gateway.api.connection import Runner
from gateway.api.routes import create_app
from gateway.api.services import Health, Services
from gateway.billing.ledger import WRITE_EVERY_SECONDS, Ledger
from gateway.cache.blobs import Blobs, BlobsSettings, Observer
from gateway.cache.derivation import Derivation
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.flights import Flights
from gateway.cache.gallery import Gallery
from gateway.cache.hot import Hot
from gateway.cache.previews import Previews
from gateway.cache.removal import Removal
from gateway.cache.replays import Replays
from gateway.cache.takedowns import LOOK_SECONDS, Takedowns
from gateway.configuration import Configuration
from gateway.errors import StoreUnavailable
from gateway.metrics import MOST_KEYS, Metrics
from gateway.purchase import Purchases, PurchaseSettings
from gateway.question import Questions, QuestionSettings
from gateway.service import Service
from gateway.settings import Settings
from gateway.store.blobs_folder import FolderBlobs
from gateway.store.counted import CountedStore
from gateway.store.queued import QueuedStore
from gateway.store.redis import open_redis_blobs, open_redis_store
from gateway.store.relieved import RelievedStore
from gateway.store.sqlite import create_sqlite_layout, open_sqlite_store
from gateway.store.verbs import Beat, BlobStore, Note, Retire, Store, Sweep, ask
from gateway.tuning import tune_process
from gateway.upstream.client import ClientSettings, UpstreamClient, open_client
from gateway.upstream.rehost import Rehost, RehostSettings, open_rehost

DATABASE: Final = "gateway.sqlite"
BLOBS_FOLDER: Final = "blobs"
WILDCARDS: Final = ("0.0.0.0", "::")
TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file's name

LISTENER_LINGERS_SECONDS: Final = 5.0
"""How long a draining worker still takes connections, so that balancers notice (CONTRACT §3)."""

IDLE_LINGERS_SECONDS: Final = 5.0
"""How long a replaced worker waits for a last request on connections that it holds."""

LAST_REQUEST_SECONDS: Final = 1.0
"""How long a request may take to arrive on a connection that was the last one taken."""

BACKLOG: Final = 4096
"""How many connections wait to be taken, as far as `net.core.somaxconn` lets them; a client of one
more tries again after a second, then after two, four, eight."""

POLICY_LOOK_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 60.0
SWEEP_MOST: Final = 1000
KEY_LABELS_SECONDS: Final = 60.0
BOOKS_SECONDS: Final = 1.0
"""How often a worker tells the store which pictures were used."""
BOUNDS_SECONDS: Final = 5.0
ORPHANS_SECONDS: Final = 3600.0
LINK_ROUNDING: Final = 25 / 24
"""A link lives up to so many times `url_ttl`, because its end is rounded up (CONTRACT §7)."""

log = structlog.get_logger(__name__)


# ── before anything is served ───────────────────────────────────────────────────────────────


def prepare(settings: Settings) -> None:
    """What the parent does before it forks: data folder, the embedded store's layout, the token.

    Raises `LayoutMismatch`, `OSError`.
    """
    folder = settings.store.data_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if settings.store.redis_url is None:
        create_sqlite_layout(folder / DATABASE)
    if settings.server.admin_token is None:
        _create_token(folder / TOKEN_FILE)


def _create_token(path: Path) -> None:
    """Makes the admin token once; the file is complete from the moment it is there."""
    if path.exists():
        return
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # readable by us alone
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    with suppress(FileExistsError):  # another gateway that starts on the same folder was first
        path.hardlink_to(fresh)
        log.info("admin_token_created", file=str(path))
    Path(fresh).unlink()


def admin_token(settings: Settings) -> SecretStr:
    """The token that opens the admin API: from the settings, else from the data folder."""
    if settings.server.admin_token is not None:
        return settings.server.admin_token
    return SecretStr((settings.store.data_dir / TOKEN_FILE).read_text().strip())


# ── the services ────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[tuple[Store, BlobStore]]:
    """The store that the settings name, and where picture bytes lie.

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
        return store, store.blobs
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
        await store.check_layout()
        yield store


async def check_store(settings: Settings) -> None:
    """Refuses a Redis of another layout before anything is served; one that is away may come.

    Raises `LayoutMismatch`.
    """
    if settings.store.redis_url is None:
        return
    async with open_redis_store(settings.store.redis_url.get_secret_value()) as store:
        try:
            await store.check_layout()
        except StoreUnavailable:
            log.warning("store_away_at_start", store=store.name)


@dataclass(frozen=True, slots=True)
class Cache:
    """The rooms that keep pictures, wired together: all that a command needs of a gateway."""

    entries: Entries
    gallery: Gallery
    blobs: Blobs
    takedowns: Takedowns
    removal: Removal
    derivation: Derivation


def _wire_cache(
    settings: Settings,
    store: Store,
    blob_store: BlobStore,
    *,
    observer: Observer,
    lifetime_seconds: float | None = None,
) -> Cache:
    """Constructs the rooms of `cache/`. No I/O."""
    entries, takedowns = Entries(_entries_settings(settings)), Takedowns(store)
    blobs_settings = _blobs_settings(settings)
    if lifetime_seconds is not None:
        blobs_settings = blobs_settings.model_copy(update={"lifetime_seconds": lifetime_seconds})
    blobs = Blobs(
        blobs_settings,
        blob_store,
        store,
        hot=Hot(settings.cache.hot_bytes),
        takedowns=takedowns,
        observer=observer,
    )
    gallery = Gallery(store, blobs, lifetime_seconds=blobs_settings.lifetime_seconds)
    removal = Removal(store, entries=entries, gallery=gallery, blobs=blobs, takedowns=takedowns)
    derivation = Derivation(
        store, entries=entries, gallery=gallery, blobs=blobs, takedowns=takedowns
    )
    return Cache(entries, gallery, blobs, takedowns, removal, derivation)


@asynccontextmanager
async def open_cache(
    settings: Settings, *, lifetime_seconds: float | None = None
) -> AsyncIterator[tuple[Store, Cache]]:
    """The cache of a running gateway, for commands.

    What they put there stays `lifetime_seconds`; None: as long as the gateway's own. Raises
    `StoreMissing`, `LayoutMismatch`, `StoreUnavailable`.
    """
    async with open_existing_store(settings), open_store(settings) as (store, blob_store):
        cache = _wire_cache(
            settings, store, blob_store, observer=Metrics(), lifetime_seconds=lifetime_seconds
        )
        yield store, cache


@dataclass(frozen=True, slots=True)
class Gateway:
    """One worker's rooms, wired together."""

    services: Services
    store: Store
    blob_store: BlobStore
    flights: Flights
    purchases: Purchases
    cache: Cache
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
    ) -> AbstractAsyncContextManager[Rehost]:
        """`observer` is told how each fetch ended."""


@asynccontextmanager
async def open_services(
    settings: Settings, source: PolicySource, *, open_links: OpenLinks = open_rehost
) -> AsyncIterator[Gateway]:
    """Everything one worker needs, running. On leaving, purchases under way are finished first."""
    metrics, health = Metrics(), Health()
    policy = CurrentPolicy(
        source,
        on_change=partial(_know_policy, metrics),
        on_failure=metrics.config_reload_failures.inc,
    )
    async with AsyncExitStack() as stack:
        opened, blob_store = await stack.enter_async_context(open_store(settings))
        store = RelievedStore(CountedStore(QueuedStore(opened), _teller(health, metrics)))
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
            store.relieve = gateway.cache.blobs.make_room
        await _first_look(gateway)
        await stack.enter_async_context(_running(_loops(settings, gateway)))
        stack.push_async_callback(_close, gateway)
        stack.push_async_callback(_drain, gateway.flights, settings.drain_seconds)
        yield gateway


def _wire(
    settings: Settings,
    policy: CurrentPolicy,
    *,
    store: Store,
    blob_store: BlobStore,
    client: UpstreamClient,
    links: Rehost,
    metrics: Metrics,
    health: Health,
) -> Gateway:
    """Constructs every room and introduces them to the stories. No I/O."""
    worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    cache = _wire_cache(settings, store, blob_store, observer=metrics)
    signing = create_signing(settings, store)
    flights = Flights(store, Previews(store, cache.blobs), observe=metrics.flights.set)
    keys, ledger = Keys(store), Ledger(store)
    purchases = Purchases(
        _purchase_settings(settings, worker),
        store,
        client,
        links=links,
        entries=cache.entries,
        gallery=cache.gallery,
        blobs=cache.blobs,
        flights=flights,
        metrics=metrics,
    )
    service = Service(
        store,
        questions=Questions(_question_settings(settings), ledger),
        serves_limits_unchecked=settings.store.limits_when_away == "ignore",
        keys=keys,
        entries=cache.entries,
        gallery=cache.gallery,
        blobs=cache.blobs,
        flights=flights,
        purchases=purchases,
        replays=Replays(store),
        signing=signing,
        derivation=cache.derivation if settings.cache.derive_formats else None,
        ledger=ledger,
        metrics=metrics,
        clock=time.time,
    )
    services = Services(
        service=service,
        keys=keys,
        signing=signing,
        gallery=cache.gallery,
        blobs=cache.blobs,
        removal=cache.removal,
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
        flights,
        purchases,
        cache,
        ledger,
        policy,
        worker,
    )


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
        max_picture_bytes=settings.cache.max_picture_bytes,
        auth_header=upstream.auth_header,
        headers=upstream.headers,
        proxy=upstream.proxy,
        ca_file=upstream.ca_file,
        breaker_failures=upstream.breaker.failures,
        breaker_open_seconds=upstream.breaker.open_seconds,
    )


def _question_settings(settings: Settings) -> QuestionSettings:
    return QuestionSettings(
        upstream_name=settings.upstream.name,
        validation=settings.validation,
        scope=settings.cache.scope,
    )


def _entries_settings(settings: Settings) -> EntriesSettings:
    return EntriesSettings(
        ttl_seconds=settings.cache.ttl_seconds,
        linger_seconds=settings.cache.stale_if_error_seconds,
        refusal_seconds=settings.cache.refusal_ttl_seconds,
    )


def _blobs_settings(settings: Settings) -> BlobsSettings:
    longest_link = settings.cache.url_ttl_seconds * LINK_ROUNDING
    return BlobsSettings(
        lifetime_seconds=_entries_settings(settings).longest_seconds + longest_link,
        total_bytes=settings.cache.total_bytes,
    )


def rehost_settings(settings: Settings) -> RehostSettings:
    """Where pictures behind links may be fetched from."""
    return RehostSettings(
        upstream_url=settings.upstream.base_url,
        allow=settings.rehost.allow,
        max_bytes=settings.cache.max_picture_bytes,
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
        max_picture_bytes=settings.cache.max_picture_bytes,
        max_pixels=settings.cache.max_pixels,
        dead_after_seconds=settings.workers.dead_after_seconds,
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


async def _first_look(gateway: Gateway) -> None:
    """The first heartbeat, and what must not be served; a store that is away keeps nobody from
    starting.
    """
    with suppress(StoreUnavailable):
        await ask(gateway.store, Beat(gateway.worker))
        await gateway.cache.takedowns.look()


async def _drain(flights: Flights, seconds: float) -> None:
    """Waits until everything that is being paid for is settled."""
    try:
        async with asyncio.timeout(seconds):
            await flights.drain()
    except TimeoutError:
        log.error("drain_timeout", purchases=len(flights))
    await flights.close()


async def _close(gateway: Gateway) -> None:
    """Writes what is waiting and says good-bye; what cannot be written now others will find."""
    try:
        await gateway.ledger.write()
        await ask(gateway.store, Retire(gateway.worker))
    except StoreUnavailable:
        log.warning("store_away_at_close", purchases=len(gateway.flights))


# ── background loops ────────────────────────────────────────────────────────────────────────


def _loops(settings: Settings, gateway: Gateway) -> Mapping[str, Coroutine[Any, Any, None]]:
    """What one worker does without being asked, by name."""
    store, services = gateway.store, gateway.services
    heartbeat = settings.workers.heartbeat_seconds
    return {
        "heartbeat": _every(heartbeat, lambda: ask(store, Beat(gateway.worker))),
        "recovery": _every(heartbeat, gateway.purchases.recover_dead),
        "ledger": _every(WRITE_EVERY_SECONDS, gateway.ledger.write),
        "policy": _every(0.0, lambda: _look_at_policy(gateway)),
        "takedowns": _every(LOOK_SECONDS, lambda: _learn_takedowns(gateway)),
        "blob books": _every(BOOKS_SECONDS, gateway.cache.blobs.keep_books),
        "bounds": _every(BOUNDS_SECONDS, gateway.cache.blobs.keep_within_bounds),
        "orphans": _every(ORPHANS_SECONDS, lambda: _adopt_orphans(gateway)),
        "sweep": _every(SWEEP_SECONDS, lambda: _sweep(store, gateway.blob_store)),
        "key labels": _every(
            KEY_LABELS_SECONDS, lambda: _label_keys(services.keys, services.metrics)
        ),
    }


async def _every(seconds: float, step: Callable[[], Awaitable[object]]) -> None:
    """Repeats a step; what goes wrong is logged, and the loop lives on."""
    while True:
        try:
            await step()
        except StoreUnavailable:
            log.warning("loop_waits_for_the_store")
        except Exception:
            log.exception("loop_failed")
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _running(loops: Mapping[str, Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _look_at_policy(gateway: Gateway) -> None:
    """After a while, or when somebody asks: reads the policy again if its file has changed."""
    with suppress(TimeoutError):
        await asyncio.wait_for(gateway.reload_asked.wait(), POLICY_LOOK_SECONDS)
    current, is_asked = gateway.policy, gateway.reload_asked.is_set()
    gateway.reload_asked.clear()
    await asyncio.to_thread(current.reload if is_asked else current.reload_if_changed)


async def _learn_takedowns(gateway: Gateway) -> None:
    """What was taken down meanwhile leaves this worker's memory, and the store, sooner or later."""
    takedowns, blobs = gateway.cache.takedowns, gateway.cache.blobs
    if digests := await takedowns.look():
        blobs.forget(digests)
        await blobs.delete(digests)
        takedowns.were_removed(digests)


async def _adopt_orphans(gateway: Gateway) -> None:
    """Once an hour, by whoever comes first, and not by all."""
    turn = Note("turns", "orphans", gateway.worker.encode(), ORPHANS_SECONDS * 0.9, is_new=True)
    if await ask(gateway.store, turn) and (adopted := await gateway.cache.blobs.adopt_orphans()):
        log.info("orphans_adopted", pictures=adopted)


async def _sweep(store: Store, blobs: BlobStore) -> None:
    """Removes what is past its time, where the store does not do so by itself."""
    await ask(store, Sweep())
    if isinstance(blobs, FolderBlobs):
        await blobs.sweep(SWEEP_MOST)
        await blobs.passing().sweep(SWEEP_MOST)


async def _label_keys(keys: Keys, metrics: Metrics) -> None:
    live = [record.name for record in await keys.everyone() if record.revoked_at is None]
    metrics.know_keys(live[:MOST_KEYS])


# ── one worker ──────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_runner(settings: Settings, gateway: Gateway) -> AsyncIterator[web.AppRunner]:
    """The HTTP server around the services, not yet listening. On leaving, answers are finished."""
    runner = Runner(
        create_app(gateway.services),
        head_seconds=settings.server.read_timeout_seconds,
        keepalive_timeout=settings.server.keep_alive_seconds,
        shutdown_timeout=settings.drain_seconds,
        access_log=None,
        handle_signals=False,
    )
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


def serve(configuration: Configuration, listener: socket.socket, ready: Callable[[], None]) -> None:
    """One worker: reads the configuration, serves on `listener`, drains when told to, returns.

    It is told by SIGTERM when the gateway ends, and by SIGUSR1 when another worker serves in its
    place. Raises `ConfigError` and `CatalogError` before it serves.
    """
    uvloop.run(_serve(configuration, listener, ready))


async def _serve(
    configuration: Configuration, listener: socket.socket, ready: Callable[[], None]
) -> None:
    parent = os.getppid()
    settings = configuration.read_settings()
    told: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, told.put_nowait, number)
    async with (
        open_services(settings, configuration) as gateway,
        open_runner(settings, gateway) as runner,
    ):
        loop.add_signal_handler(signal.SIGHUP, gateway.reload_asked.set)
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        tune_process()
        await site.start()
        ready()
        is_replaced = await _told_to_leave(told, parent) == signal.SIGUSR1
        health = gateway.services.health
        health.is_leaving, health.is_draining = True, not is_replaced
        await _let_clients_leave(site, runner, is_replaced=is_replaced)


async def _told_to_leave(told: asyncio.Queue[int], parent: int) -> int:
    """The signal; SIGTERM also when the parent was killed: nobody would count signals any more."""
    while os.getppid() == parent:
        with suppress(TimeoutError):
            return await asyncio.wait_for(told.get(), timeout=1.0)
    return signal.SIGTERM


async def _let_clients_leave(
    site: web.BaseSite, runner: web.AppRunner, *, is_replaced: bool
) -> None:
    """Closes the listener, and cuts no connection on which a request may be under way.

    A gateway that ends takes connections for a while, for balancers that have not noticed. The
    last one may have been taken a moment before that while is over: its request is waited for.
    """
    if is_replaced:
        await site.stop()
        await _until_alone(runner, IDLE_LINGERS_SECONDS)
        return
    await _until_alone(runner, LISTENER_LINGERS_SECONDS)
    await site.stop()
    await _until_alone(runner, LAST_REQUEST_SECONDS)


async def _until_alone(runner: web.AppRunner, seconds: float) -> None:
    """Until no connection is open any more, so many seconds at most."""
    give_up_at = time.monotonic() + seconds
    while runner.server is not None and runner.server.connections:
        if time.monotonic() > give_up_at:
            return
        await asyncio.sleep(0.05)
