"""Background jobs of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import (
    asynccontextmanager,
    suppress,
)
from typing import Any, Final

import structlog

from gateway.access.keys import Keys
from gateway.access.policy import PolicySource
from gateway.assembly import Gateway, OpenLinks, open_gateway
from gateway.billing.ledger import WRITE_EVERY_SECONDS
from gateway.cache.takedowns import REFRESH_SECONDS
from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.metrics import MAX_KEYS, Metrics
from gateway.store.batch import execute
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.commands import Deregister, Heartbeat, SetValue, Sweep
from gateway.store.protocol import BlobStore, Store
from gateway.upstream.fetch import open_link_fetcher

log = structlog.get_logger(__name__)

POLICY_LOOK_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 60.0
SWEEP_MOST: Final = 1000
KEY_LABELS_SECONDS: Final = 60.0
BOOKS_SECONDS: Final = 1.0
"""How often a worker tells the store which images were used."""
BOUNDS_SECONDS: Final = 5.0
ORPHANS_SECONDS: Final = 3600.0


# ── a gateway that runs ─────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_running_gateway(
    settings: Settings, source: PolicySource, *, open_links: OpenLinks = open_link_fetcher
) -> AsyncIterator[Gateway]:
    """A gateway with its background jobs; on leaving, open purchases are settled first."""
    async with open_gateway(settings, source, open_links=open_links) as gateway:
        await _first_look(gateway)
        async with _running(_loops(settings, gateway)):
            try:
                yield gateway
            finally:
                await _drain(gateway, settings.drain_seconds)
                await _close(gateway)


async def _first_look(gateway: Gateway) -> None:
    """The first heartbeat, and what must not be served; a store that is away keeps nobody from
    starting.
    """
    with suppress(StoreUnavailable):
        await execute(gateway.store, Heartbeat(gateway.worker))
        await gateway.cache.takedowns.refresh()


async def _drain(gateway: Gateway, seconds: float) -> None:
    """Waits until every purchase is settled."""
    try:
        async with asyncio.timeout(seconds):
            await gateway.tasks.drain()
    except TimeoutError:
        log.error("drain_timeout", purchases=len(gateway.tasks))
    await gateway.flights.close()


async def _close(gateway: Gateway) -> None:
    """Writes what is waiting and says good-bye; what cannot be written now others will find."""
    try:
        await gateway.ledger.write()
        await execute(gateway.store, Deregister(gateway.worker))
    except StoreUnavailable:
        log.warning("store_away_at_close", purchases=len(gateway.tasks))


# ── background loops ────────────────────────────────────────────────────────────────────────


def _loops(settings: Settings, gateway: Gateway) -> Mapping[str, Coroutine[Any, Any, None]]:
    """What one worker does without being asked, by name."""
    store, services = gateway.store, gateway.services
    heartbeat = settings.workers.heartbeat_seconds
    return {
        "heartbeat": _every(heartbeat, lambda: execute(store, Heartbeat(gateway.worker))),
        "recovery": _every(heartbeat, gateway.recovery.recover_expired),
        "ledger": _every(WRITE_EVERY_SECONDS, gateway.ledger.write),
        "policy": _every(0.0, lambda: _look_at_policy(gateway)),
        "takedowns": _every(REFRESH_SECONDS, lambda: _learn_takedowns(gateway)),
        "blob books": _every(BOOKS_SECONDS, gateway.cache.blobs.record_uses),
        "bounds": _every(BOUNDS_SECONDS, gateway.cache.blobs.evict_to_bound),
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
    if digests := await takedowns.refresh():
        blobs.forget(digests)
        await blobs.delete(digests)
        takedowns.mark_deleted(digests)


async def _adopt_orphans(gateway: Gateway) -> None:
    """Once an hour, by whoever comes first, and not by all."""
    turn = SetValue(
        "turns", "orphans", gateway.worker.encode(), ORPHANS_SECONDS * 0.9, only_if_absent=True
    )
    if await execute(gateway.store, turn) and (
        adopted := await gateway.cache.blobs.track_untracked()
    ):
        log.info("orphans_adopted", images=adopted)


async def _sweep(store: Store, blobs: BlobStore) -> None:
    """Removes what is past its time, where the store does not do so by itself."""
    await execute(store, Sweep())
    if isinstance(blobs, FolderBlobs):
        await blobs.sweep(SWEEP_MOST)
        await blobs.ephemeral().sweep(SWEEP_MOST)


async def _label_keys(keys: Keys, metrics: Metrics) -> None:
    live = [record.name for record in await keys.list_keys() if record.revoked_at is None]
    metrics.know_keys(live[:MAX_KEYS])
