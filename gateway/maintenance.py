"""Background jobs of a worker, as one table, and a gateway that runs them.

The steps are in the packages that own the state; this table has their intervals.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from gateway.access.policy import PolicySource
from gateway.assembly import Gateway, OpenLinks, open_gateway
from gateway.billing.ledger import WRITE_EVERY_SECONDS
from gateway.cache.takedowns import REFRESH_SECONDS
from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.metrics import MAX_KEYS
from gateway.store.batch import execute
from gateway.store.commands import Deregister, Heartbeat, SetValue, Sweep
from gateway.upstream.fetch import open_link_fetcher

log = structlog.get_logger(__name__)

TRACK_UNTRACKED_SECONDS: Final = 3600.0
CERTIFICATE_SECONDS: Final = 86_400.0
MAX_SWEPT: Final = 1000
HEARTBEAT_RETRY_SECONDS: Final = 1.0
"""After an outage of the store, workers must look alive before one of them judges the others."""


@dataclass(frozen=True, slots=True)
class Job:
    """A step that a worker repeats, `interval_seconds` after the end of the last one."""

    name: str
    interval_seconds: float
    step: Callable[[], Awaitable[object]]
    start_early: asyncio.Event | None = None
    """If set, the next step starts at once. The step clears it."""
    retry_seconds: float = math.inf
    """The pause instead, if that is shorter, after a step that found the store unavailable."""


def background_jobs(settings: Settings, gateway: Gateway) -> tuple[Job, ...]:
    """Every background job of a worker; a new job is a new row."""
    heartbeat_seconds = settings.workers.heartbeat_seconds
    blobs = gateway.cache.blobs
    return (
        Job(
            "heartbeat",
            heartbeat_seconds,
            lambda: send_heartbeat(gateway),
            retry_seconds=HEARTBEAT_RETRY_SECONDS,
        ),
        Job("recovery", heartbeat_seconds, gateway.recovery.recover_expired),
        Job("ledger", WRITE_EVERY_SECONDS, gateway.ledger.write),
        Job("reload", 1.0, lambda: reload_files(gateway), gateway.reload_requested),
        Job("certificate_expiry", CERTIFICATE_SECONDS, lambda: check_certificate(gateway)),
        Job("takedowns", REFRESH_SECONDS, lambda: apply_takedowns(gateway)),
        Job("lru_uses", 1.0, blobs.record_uses),
        Job("eviction", 5.0, blobs.evict_to_bound),
        Job("untracked_blobs", TRACK_UNTRACKED_SECONDS, lambda: track_untracked(gateway)),
        Job("sweep", 60.0, lambda: sweep(gateway)),
        Job("key_labels", 60.0, lambda: label_keys(gateway)),
    )


@asynccontextmanager
async def open_running_gateway(
    settings: Settings, source: PolicySource, *, open_links: OpenLinks = open_link_fetcher
) -> AsyncIterator[Gateway]:
    """A gateway with its background jobs. On exit, open purchases are settled first."""
    async with open_gateway(settings, source, open_links=open_links) as gateway:
        # Before the first request: other workers must know this one, and it the take-downs. A
        # gateway also starts without its store.
        with suppress(StoreUnavailable):
            await send_heartbeat(gateway)
            await gateway.cache.takedowns.refresh()
        async with run_jobs(background_jobs(settings, gateway)):
            try:
                yield gateway
            finally:
                # Inside the jobs: without heartbeats, other workers would take over the purchases
                # that drain.
                await close_gateway(gateway, settings.drain_seconds)


async def close_gateway(gateway: Gateway, drain_seconds: float) -> None:
    """Waits until every purchase is settled, then writes the ledger and deregisters the worker.

    Whatever cannot be finished in time, or without the store, is left to other workers' recovery.
    """
    try:
        async with asyncio.timeout(drain_seconds):
            await gateway.tasks.drain()
    except TimeoutError:
        log.error("drain_timeout", purchases=len(gateway.tasks))
    await gateway.flights.close()
    gateway.ledger.add_counted_refusals(all_of_them=True)
    try:
        await gateway.ledger.write()
        # The store refuses this while a journal is open, so that another worker finds and finishes
        # it.
        await execute(gateway.store, Deregister(gateway.worker))
    except StoreUnavailable:
        log.warning("store_unavailable", during="close", purchases=len(gateway.tasks))


# ── running ─────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def run_jobs(jobs: tuple[Job, ...]) -> AsyncIterator[None]:
    """Repeats each job in a task of its own; on exit, they are cancelled."""
    tasks = [asyncio.create_task(repeat(job), name=job.name) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def repeat(job: Job) -> None:
    """Repeats a job's step. A failure is logged, and the job continues."""
    while True:
        pause = job.interval_seconds
        try:
            await job.step()
        except StoreUnavailable:
            pause = min(pause, job.retry_seconds)
            log.warning("store_unavailable", during=job.name)
        except Exception:
            log.exception("job_failed", job=job.name)
        if job.start_early is None:
            await asyncio.sleep(pause)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(job.start_early.wait(), pause)


# ── steps that no room owns ─────────────────────────────────────────────────────────────────


async def send_heartbeat(gateway: Gateway) -> None:
    """Registers this worker, or tells the others that it is alive."""
    await execute(gateway.store, Heartbeat(gateway.worker))


async def reload_files(gateway: Gateway) -> None:
    """Reads policy and certificate again if their files have changed, or on request."""
    is_requested = gateway.reload_requested.is_set()
    # Before reading: a request that comes meanwhile causes another reload.
    gateway.reload_requested.clear()
    for current in (gateway.policy, gateway.tls):
        if current is not None:
            reload = current.reload if is_requested else current.reload_if_changed
            await asyncio.to_thread(reload)


async def check_certificate(gateway: Gateway) -> None:
    """Logs a warning once a day while the certificate is about to expire."""
    if gateway.tls is not None:
        gateway.tls.log_expiry(datetime.now(UTC))


async def apply_takedowns(gateway: Gateway) -> None:
    """Removes bytes that another worker took down from this worker's memory and from the store."""
    takedowns, blobs = gateway.cache.takedowns, gateway.cache.blobs
    if digests := await takedowns.refresh():
        blobs.forget(digests)
        await blobs.delete(digests)
        takedowns.mark_deleted(digests)


async def track_untracked(gateway: Gateway) -> None:
    """Adds stored bytes that are missing in the LRU index to it, so that they can be evicted."""
    # The scan is expensive, so one worker does it for all: the first to set this value.
    turn = SetValue(
        "turns",
        "untracked_blobs",
        gateway.worker.encode(),
        # Shorter than the interval, so that it has expired when this worker's next turn comes.
        TRACK_UNTRACKED_SECONDS * 0.9,
        only_if_absent=True,
    )
    if await execute(gateway.store, turn) and (
        count := await gateway.cache.blobs.track_untracked()
    ):
        log.info("untracked_blobs_tracked", images=count)


async def sweep(gateway: Gateway) -> None:
    """Removes expired state from stores that do not expire it themselves."""
    # Some short steps: other commands of the embedded store run in between.
    while await execute(gateway.store, Sweep(MAX_SWEPT)) == MAX_SWEPT:
        continue
    await gateway.blob_store.sweep(MAX_SWEPT)
    await gateway.blob_store.ephemeral().sweep(MAX_SWEPT)


async def label_keys(gateway: Gateway) -> None:
    """Tells the metrics which keys may have labels of their own: the oldest active ones.

    Listing the keys also makes them known to this worker. One that knew none, as after a restart,
    would refuse them all while their clients' address is over its failed attempts.
    """
    services = gateway.services
    records = await services.keys.list_keys()
    active = [record.name for record in records if record.revoked_at is None]
    services.metrics.use_keys(active[:MAX_KEYS])
