"""Purchases: the flights that requests share, the accounts, and what is left after a crash."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from gateway.cache.ephemeral_blobs import EphemeralBlobs
from gateway.cache.flights import Flights
from gateway.cache.partial_images import PartialImages
from gateway.cache.unstored_images import UnstoredImages
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.purchasing.account_queue import AccountQueue
from gateway.purchasing.delivery import Delivery
from gateway.purchasing.purchase import Purchases
from gateway.purchasing.recovery import Recovery
from gateway.purchasing.settlement import Settlements
from gateway.purchasing.upstream_health import AccountsHealth, UpstreamHealth
from gateway.purchasing.upstream_switches import UpstreamSwitches
from gateway.room_settings import (
    account_rates,
    capacities,
    delivery_settings,
    purchase_settings,
)
from gateway.serving.resources import Resources
from gateway.tasks import Capacity, OwnedTasks
from gateway.upstream.pool import Pool
from gateway.wiring.cache import Cache


@dataclass(frozen=True, slots=True)
class Purchasing:
    """The components that buy images."""

    tasks: OwnedTasks
    waiting: Capacity
    """Of all requests that wait for another one's purchase, in a flight or by idempotency key."""
    unstored: UnstoredImages
    flights: Flights
    account_queue: AccountQueue
    upstream_health: AccountsHealth
    upstream_switches: UpstreamSwitches
    purchases: Purchases
    recovery: Recovery


def wire_purchasing(
    settings: Settings, resources: Resources, cache: Cache, *, metrics: Metrics, worker: str
) -> Purchasing:
    """Constructs the components of `Purchasing`, and has the pool and the cache call them."""
    store, pool = resources.store, resources.pool
    tasks = OwnedTasks(metrics.upstream.flights.set)
    purchases_open, waiting = capacities(settings)
    unstored = create_unstored(settings, cache)
    ephemeral = EphemeralBlobs(
        store, resources.blob_store, cache.takedowns, bound_bytes=cache.blobs.bound_bytes
    )
    flights = Flights(
        store,
        PartialImages(store, ephemeral),
        tasks,
        purchases_open=purchases_open,
        waiting=waiting,
        unstored=unstored,
    )
    settlements = Settlements(store, cache.image_cache, metrics.money)
    upstream_health = create_health(resources, worker=worker)
    account_queue = create_queue(settings, resources, flights, worker=worker)
    upstream_switches = UpstreamSwitches(store, [account.name for account in pool.accounts])
    pool.is_disabled = upstream_switches.is_disabled
    purchases = Purchases(
        purchase_settings(settings, worker),
        store,
        Delivery(
            delivery_settings(settings),
            pool,
            resources.links,
            flights=flights,
            cache=cache.image_cache,
        ),
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
        tracer=resources.tracer,
    )
    return Purchasing(
        tasks,
        waiting,
        unstored,
        flights,
        account_queue,
        upstream_health,
        upstream_switches,
        purchases,
        recovery,
    )


def create_unstored(settings: Settings, cache: Cache) -> UnstoredImages:
    """What remembers images that the store does not have yet. The cache's purges reach it."""
    unstored = UnstoredImages(
        settings.cache.memory_bytes,
        ttl_seconds=settings.cache.ttl_seconds,
        is_taken_down=cache.image_cache.is_taken_down,
    )
    cache.invalidation.on_purge = unstored.forget_confirmed
    return unstored


def create_health(resources: Resources, *, worker: str) -> AccountsHealth:
    """The health of each account of the pool."""
    store, pool = resources.store, resources.pool
    changed = asyncio.Event()
    by_name = {
        account.name: UpstreamHealth(
            store,
            name=account.name,
            worker=worker,
            is_breaker_open=partial(is_breaker_open, pool, account.name),
            observer=resources.observers[account.name],
            changed=changed,
        )
        for account in pool.accounts
    }
    return AccountsHealth(store, by_name, changed=changed)


def is_breaker_open(pool: Pool, account: str) -> bool:
    """Whether the circuit breaker of an account is open in this worker."""
    return pool.client(account).is_breaker_open


def create_queue(
    settings: Settings, resources: Resources, flights: Flights, *, worker: str
) -> AccountQueue:
    """The queue for the accounts of the pool, whose clients tell it the headers of upstream."""
    pool = resources.pool
    queue = AccountQueue(
        resources.store,
        account_rates(settings),
        worker=worker,
        workers=settings.workers.count,
        max_wait_seconds=min(settings.queue.max_wait_seconds, settings.timeout_seconds),
        observers=resources.observers,
        is_wanted=flights.is_wanted,
    )
    for account in pool.accounts:
        pool.client(account.name).on_headers = partial(queue.note, account.name)
    return queue
