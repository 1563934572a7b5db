"""Background jobs of a worker, as one table, and a gateway that runs them.

The steps are in the packages that own the state; this table has their intervals.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from gateway.access.declared_keys import RECORD_EVERY_SECONDS
from gateway.access.key_uses import WRITE_EVERY_SECONDS as KEY_USES_SECONDS
from gateway.access.policy import PolicySource
from gateway.api.inspection import NO_INSPECTION, Inspection
from gateway.api.key_labels import label_keys
from gateway.assembly import Gateway, OpenLinks, open_gateway
from gateway.billing.alert_watch import LOOK_BACK_EVERY_SECONDS, LOOK_EVERY_SECONDS
from gateway.billing.ledger import WRITE_EVERY_SECONDS
from gateway.billing.totals import FOLD_EVERY_SECONDS, REMOVE_EVERY_SECONDS
from gateway.billing.verification import VERIFY_EVERY_SECONDS
from gateway.billing.zone_changes import note_time_zone
from gateway.cache.image_hits import WRITE_EVERY_SECONDS as HITS_SECONDS
from gateway.cache.takedowns import REFRESH_SECONDS
from gateway.catalog.lifecycle import utc_date
from gateway.conditions import Condition
from gateway.configuration.settings import Settings
from gateway.errors import StoreFull, StoreUnavailable, detach
from gateway.purchasing.upstream_health import WRITE_SECONDS
from gateway.purchasing.upstream_switches import REFRESH_SECONDS as SWITCHES_SECONDS
from gateway.store.batch import execute
from gateway.store.commands import Deregister, Heartbeat, Sweep
from gateway.store.turns import PART_OF_INTERVAL, take_turn
from gateway.tuning import resident_bytes
from gateway.upstream.fetch import open_link_fetcher
from gateway.webhooks.sender import SEND_EVERY_SECONDS

log = structlog.get_logger(__name__)

PURGE_SECONDS: Final = 1.0
TRACK_UNTRACKED_SECONDS: Final = 3600.0
RAISES_SECONDS: Final = 86_400.0
REVOKED_KEYS_SECONDS: Final = 3600.0
AUDIT_RETENTION_SECONDS: Final = 3600.0
ALERT_CLAIMS_SECONDS: Final = 3600.0
CERTIFICATE_SECONDS: Final = 86_400.0
TRIM_LEDGER_SECONDS: Final = 15.0
REFUSALS_SECONDS: Final = 20.0
PROCESS_SECONDS: Final = 5.0
LRU_USES_SECONDS: Final = 20.0
EVICTION_SECONDS: Final = 30.0
"""Storing an image evicts too. This finds what has expired, and a bound that was lowered."""
MAX_SWEPT: Final = 500
HEARTBEAT_RETRY_SECONDS: Final = 1.0
"""After an outage of the store, workers send heartbeats before one of them judges the others."""


@dataclass(frozen=True, slots=True)
class Job:
    """A step that a worker repeats, `interval_seconds` after the end of the last one."""

    name: str
    interval_seconds: float
    step: Callable[[], Awaitable[object]]
    start_early: asyncio.Event | None = None
    """If set, the next step starts at once. The step clears it."""
    is_done_at_start: bool = False
    """The first step was made before the first request."""
    retry_seconds: float = math.inf
    """The pause instead, if that is shorter, after a step that found the store unavailable."""


def background_jobs(settings: Settings, gateway: Gateway) -> tuple[Job, ...]:
    """Every background job of a worker; a new job is a new row."""
    heartbeat_seconds = settings.workers.heartbeat_seconds
    retired_entries = gateway.cache.retired_entries
    switches = gateway.services.upstream_switches
    blobs, upstream_health = gateway.cache.blobs, gateway.services.upstream_health
    return (
        Job(
            "heartbeat",
            heartbeat_seconds,
            gateway.recovery.send_heartbeat,
            retry_seconds=HEARTBEAT_RETRY_SECONDS,
        ),
        Job(
            "recovery",
            heartbeat_seconds,
            gateway.recovery.recover_dead,
            gateway.recovery.has_dead,
        ),
        Job("ledger", WRITE_EVERY_SECONDS, gateway.ledger.write),
        Job("ledger_retention", TRIM_LEDGER_SECONDS, lambda: trim_ledger(gateway)),
        Job("refusals", REFUSALS_SECONDS, lambda: append_refusals(gateway)),
        Job("totals", FOLD_EVERY_SECONDS, gateway.totals.fold),
        Job("totals_retention", REMOVE_EVERY_SECONDS, gateway.totals.remove_expired),
        Job("verification", 60.0, lambda: verify(settings, gateway)),
        Job("reload", 1.0, lambda: reload_files(gateway), gateway.reload_requested),
        Job("certificate_expiry", CERTIFICATE_SECONDS, lambda: check_certificate(gateway)),
        Job(
            "takedowns",
            REFRESH_SECONDS,
            lambda: apply_takedowns(gateway),
            gateway.cache.takedowns.changed,
        ),
        Job(
            "taken_down_bytes",
            REFRESH_SECONDS,
            lambda: delete_taken_down(gateway),
            gateway.cache.takedowns.has_undeleted,
        ),
        Job("purges", PURGE_SECONDS, gateway.cache.purges.run),
        Job("lru_uses", LRU_USES_SECONDS, blobs.record_uses),
        Job("thumbnail_processes", 5.0, gateway.cache.thumbnails.end_idle),
        Job("image_hits", HITS_SECONDS, gateway.cache.image_hits.write),
        Job("upstream_health", WRITE_SECONDS, upstream_health.refresh, upstream_health.changed),
        Job("upstream_switches", SWITCHES_SECONDS, switches.refresh, switches.changed),
        Job("eviction", EVICTION_SECONDS, lambda: evict(gateway)),
        Job("untracked_blobs", TRACK_UNTRACKED_SECONDS, lambda: track_untracked(gateway)),
        Job("retired_images", retired_entries.interval_seconds, lambda: keep_retired(gateway)),
        Job("sweep", 60.0, lambda: sweep(gateway)),
        Job("key_labels", 60.0, lambda: label_keys(gateway.services), is_done_at_start=True),
        Job("process", PROCESS_SECONDS, lambda: measure_process(gateway)),
        Job("sessions", 60.0, gateway.services.sessions.refresh),
        Job("declared_keys", RECORD_EVERY_SECONDS, gateway.services.declared_keys.record),
        Job("raises", RAISES_SECONDS, lambda: forget_ended_raises(gateway)),
        Job("alerts", LOOK_EVERY_SECONDS, gateway.services.alert_watch.look),
        Job("alerts_back", LOOK_BACK_EVERY_SECONDS, gateway.services.alert_watch.look_back),
        Job("webhooks", SEND_EVERY_SECONDS, gateway.sender.send),
        Job("alert_claims", ALERT_CLAIMS_SECONDS, lambda: forget_alert_claims(gateway)),
        Job("key_uses", KEY_USES_SECONDS, gateway.services.keys.uses.write),
        Job("revoked_keys", REVOKED_KEYS_SECONDS, lambda: forget_revoked_keys(gateway)),
        Job("audit_retention", AUDIT_RETENTION_SECONDS, lambda: remove_old_events(gateway)),
    )


@asynccontextmanager
async def open_running_gateway(
    settings: Settings,
    source: PolicySource,
    *,
    open_links: OpenLinks = open_link_fetcher,
    inspection: Inspection = NO_INSPECTION,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Gateway]:
    """A gateway with its background jobs. On exit, open purchases are settled first."""
    async with open_gateway(
        settings, source, open_links=open_links, inspection=inspection, clock=clock
    ) as gateway:
        # Before the first request: other workers must know this one, and it the take-downs. A
        # gateway also starts without its store.
        with suppress(StoreUnavailable):
            await execute(gateway.store, Heartbeat(gateway.worker))
            await gateway.cache.takedowns.refresh()
            await gateway.services.upstream_switches.refresh()
            # Until then no key has a label of its own in the metrics.
            await label_keys(gateway.services)
        async with run_jobs(background_jobs(settings, gateway)):
            try:
                yield gateway
            finally:
                # Inside the jobs: without heartbeats, other workers would take over the purchases
                # that drain.
                await close_gateway(gateway, settings.drain_seconds)


async def close_gateway(gateway: Gateway, drain_seconds: float) -> None:
    """Waits until every purchase is settled, then writes the ledger and deregisters the worker.

    Purchases that cannot be settled in time, or without the store, are left to recovery.
    """
    try:
        async with asyncio.timeout(drain_seconds):
            await gateway.tasks.drain()
    except TimeoutError:
        log.error("drain_timeout", purchases=len(gateway.tasks))
    await gateway.flights.close()
    await gateway.account_queue.close()
    await gateway.cache.thumbnails.close()
    try:
        await gateway.ledger.write()
        await gateway.services.keys.uses.write()
        await gateway.cache.image_hits.write()
        # The store refuses this while a journal is open, so that another worker finds and finishes
        # it.
        await execute(gateway.store, Deregister(gateway.worker))
    except StoreUnavailable:
        log.warning(
            "store_unavailable",
            during="close",
            purchases=len(gateway.tasks),
            lost_records=gateway.ledger.waiting,
        )


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
    fault = Condition(log, "job_failed", "job_works", fields={"job": job.name}, level="error")
    if job.is_done_at_start:
        await asyncio.sleep(job.interval_seconds)
    while True:
        pause = job.interval_seconds
        try:
            await job.step()
        except StoreUnavailable:
            pause = min(pause, job.retry_seconds)  # the store logs its outages itself
        except Exception as error:  # noqa: BLE001 - the job continues, whatever fails
            fault.occurs(type(error).__name__, exc_info=error)
            detach(error)
        else:
            fault.ends()
        if job.start_early is None:
            await asyncio.sleep(pause)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await job.start_early.wait()


# ── steps that no room owns ─────────────────────────────────────────────────────────────────


async def reload_files(gateway: Gateway) -> None:
    """Reads policy and certificate again if their files have changed, or on request."""
    is_requested = gateway.reload_requested.is_set()
    # Before reading: a request that comes meanwhile causes another reload.
    gateway.reload_requested.clear()
    configured = [each for each in (gateway.policy, gateway.tls) if each is not None]
    for current in configured:
        reload = current.reload if is_requested else current.reload_if_changed
        await asyncio.to_thread(reload)
    is_faulty = any(current.is_faulty for current in configured)
    gateway.services.metrics.config_faulty.set(is_faulty)


async def check_certificate(gateway: Gateway) -> None:
    """Logs a warning once a day while the certificate is about to expire."""
    if gateway.tls is not None:
        gateway.tls.log_expiry(datetime.now(UTC))


async def measure_process(gateway: Gateway) -> None:
    """Shows the processor time and the memory of this worker."""
    gateway.services.metrics.process.measured(
        cpu_seconds=time.process_time(), memory_bytes=resident_bytes()
    )


async def apply_takedowns(gateway: Gateway) -> None:
    """Removes bytes that another worker took down from this worker's memory."""
    await gateway.cache.takedowns.refresh()
    gateway.cache.blobs.forget(gateway.cache.takedowns.undeleted)


async def delete_taken_down(gateway: Gateway) -> None:
    """Deletes bytes that were taken down from the store.

    Apart from `apply_takedowns`, because a bucket may take half a minute for it.
    """
    takedowns = gateway.cache.takedowns
    takedowns.has_undeleted.clear()
    if digests := takedowns.undeleted:
        await gateway.cache.blobs.delete(digests)
        takedowns.mark_deleted(digests)


async def evict(gateway: Gateway) -> None:
    """Measures the books, and evicts the images that exceed their bound or the books' need."""
    await gateway.books_memory.measure()
    await gateway.cache.blobs.evict_to_bound()


async def track_untracked(gateway: Gateway) -> None:
    """Adds stored bytes that are missing in the LRU index to it, so that they can be evicted."""
    # The scan is expensive, so one worker does it for all.
    seconds = max(TRACK_UNTRACKED_SECONDS, gateway.blob_store.listing_seconds or 0)
    if await has_turn(gateway, "untracked_blobs", seconds) and (
        count := await gateway.cache.blobs.track_untracked()
    ):
        log.info("untracked_blobs_tracked", images=count)


async def keep_retired(gateway: Gateway) -> None:
    """Keeps images of models that were shut down and are served from the cache."""
    catalog = gateway.policy().catalog
    today = utc_date(gateway.services.clock())
    models = {
        name
        for name, model in catalog.models.items()
        if catalog.retirement(model, today) == "serve-cached"
    }
    retired_entries = gateway.cache.retired_entries
    # The scan is expensive, so one worker does it for all.
    if models and await has_turn(gateway, "retired_images", retired_entries.interval_seconds):
        await retired_entries.prolong(models)


async def trim_ledger(gateway: Gateway) -> None:
    """Removes old records of the ledger."""
    # One worker does it for all. Two at a time would only do the same work twice.
    try:
        if not await has_turn(gateway, "ledger_retention", TRIM_LEDGER_SECONDS):
            return
    except StoreFull:
        pass  # the turn cannot be stored; trimming works in a full store, and makes room
    await gateway.ledger.trim()


async def append_refusals(gateway: Gateway) -> None:
    """Appends the refusals of the minute that is over to the ledger."""
    await gateway.ledger.append_refusals()


async def verify(settings: Settings, gateway: Gateway) -> None:
    """Verifies the books once an hour, in one worker for all."""
    if not gateway.verification.has_noted_zone:
        await note_time_zone(gateway.store, settings.billing.time_zone, time.time())
        gateway.verification.has_noted_zone = True
        return  # a worker that has just started has other things to do
    if await has_turn(gateway, "verification", VERIFY_EVERY_SECONDS):
        await gateway.verification.run()


async def forget_revoked_keys(gateway: Gateway) -> None:
    """Deletes the keys that were revoked long ago, and the secrets whose overlap has ended."""
    if not await has_turn(gateway, "revoked_keys", REVOKED_KEYS_SECONDS):
        return
    keys = gateway.services.keys
    if count := await keys.forget_revoked():
        log.info("revoked_keys_deleted", keys=count)
    if count := await keys.forget_ended_secrets():
        log.info("ended_secrets_deleted", secrets=count)


async def remove_old_events(gateway: Gateway) -> None:
    """Removes the events of the audit that are past their retention."""
    if await has_turn(gateway, "audit_retention", AUDIT_RETENTION_SECONDS) and (
        count := await gateway.services.audit.remove_expired()
    ):
        log.info("audit_events_deleted", events=count)


async def forget_ended_raises(gateway: Gateway) -> None:
    """Deletes the raises that ended long ago."""
    if await has_turn(gateway, "raises", RAISES_SECONDS):
        await gateway.services.limit_changes.forget_ended()


async def forget_alert_claims(gateway: Gateway) -> None:
    """Deletes claims of events whose window is over, entries too old to send, and old events."""
    if await has_turn(gateway, "alert_claims", ALERT_CLAIMS_SECONDS):
        await gateway.outbox.forget_claims()
        await gateway.outbox.kept.trim()
        await gateway.outbox.drop_expired()


async def has_turn(gateway: Gateway, job: str, interval_seconds: float) -> bool:
    """Whether this worker does a job that one does for all: the first to take the turn."""
    seconds = interval_seconds * PART_OF_INTERVAL
    return await take_turn(gateway.store, job, gateway.worker, seconds=seconds)


async def sweep(gateway: Gateway) -> None:
    """Removes expired state from stores that do not expire it themselves, until none is left."""
    # Short steps: other commands of the embedded store run in between.
    while await execute(gateway.store, Sweep(MAX_SWEPT)) == MAX_SWEPT:
        continue
    spaces = {"blobs": gateway.blob_store, "ephemeral_blobs": gateway.blob_store.ephemeral()}
    for name, blobs in spaces.items():
        seconds = blobs.listing_seconds
        if seconds is not None and not await has_turn(gateway, f"sweep_{name}", seconds):
            continue
        while await blobs.sweep(MAX_SWEPT) == MAX_SWEPT:
            continue
