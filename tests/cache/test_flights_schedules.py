"""Flights under random schedules of join, leave, finish, fail, crash and expire, on both stores.

Three invariants hold in every order of these events: a slot is never bought twice at a time unless
its leader has died or its lease has expired; every follower gets a result; and afterwards every
slot has an image or is free.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache import flight_ends, flights
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.flight_result import FlightResult
from gateway.cache.flights import Flights
from gateway.errors import Charge, StoreUnavailable, UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import AcquireLease
from gateway.store.protocol import Store
from gateway.store.sqlite.store import open_sqlite_store
from tests.conftest import OpenStore
from tests.ephemeral import make_flights
from tests.waiting import generous

LEASE_SECONDS = 600.0
FIRST_LEASE_SECONDS = 1.0
STEP_SECONDS = 0.012
"""The pause between two steps: long enough for a few round trips, so that the steps interleave."""


@dataclass
class Worker:
    """One worker: its flights, its requests, and its open purchases."""

    flights: Flights
    requests: list[asyncio.Task[FlightResult]] = field(default_factory=list)
    buying: dict[str, tuple[Flight, asyncio.Future[bool]]] = field(default_factory=dict)


@dataclass
class World:
    """Two workers on one store, and an upstream that responds when the schedule says so."""

    store: Store
    fingerprint: str
    workers: list[Worker]
    leaders: dict[int, str] = field(default_factory=dict)
    """Slot → the flight of the running leader whose lease has not expired."""
    abandoned: list[Flight] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    age: int = 0
    """How often all leases have expired."""

    def join(self, index: int, count: int) -> None:
        worker = self.workers[index]
        run = worker.flights.run(self.fingerprint, range(count), buy=lambda f: self.buy(worker, f))
        worker.requests.append(asyncio.create_task(run))

    def leave(self, index: int) -> None:
        if running := [run for run in self.workers[index].requests if not run.done()]:
            running[0].cancel()

    def finish_one(self, index: int, *, is_good: bool) -> None:
        for _, decision in list(self.workers[index].buying.values())[:1]:
            if not decision.done():
                decision.set_result(is_good)

    def expire(self) -> None:
        """Every lease expires: the next request may buy."""
        self.age += 1
        self.leaders.clear()

    async def crash(self, index: int) -> None:
        """A worker dies with all its requests; a new one replaces it."""
        worker = self.workers[index]
        listeners = worker.flights._ends._listeners
        dead = [*worker.requests, *worker.flights._tasks._tasks, *listeners]
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)
        for flight, _ in worker.buying.values():
            self.abandoned.append(flight)
            self.forget(flight)
        self.workers[index] = Worker(make_flights(self.store))

    async def recover(self) -> None:
        """Abandons the flights of dead workers, as `purchasing/recovery.py` does."""
        for flight in self.abandoned:
            batch = Batch(self.store)
            flight.abandon(batch, UpstreamFailure("The leader died.", charge=Charge.PRESUMED))
            await batch.execute()
        self.abandoned.clear()

    async def buy(self, worker: Worker, flight: Flight) -> PurchasedImages:
        """A purchase that lasts until the schedule ends it."""
        batch, age = Batch(self.store), self.age
        decision = asyncio.get_running_loop().create_future()
        worker.buying[flight.id] = flight, decision  # the journal: written before the lease
        is_renewed = flight.renew(batch, seconds=LEASE_SECONDS)
        await batch.execute()
        if not is_renewed.value:
            del worker.buying[flight.id]
            raise StoreUnavailable  # as a purchase without its lease does: nothing is sent
        if doubled := self.leaders.keys() & set(flight.slots):
            self.faults.append(f"slots {doubled} are bought twice at a time")
        if age == self.age:  # else the lease has expired while it was renewed
            self.leaders |= dict.fromkeys(flight.slots, flight.id)
        is_good = await decision
        outcome = await self._finish(flight, is_good=is_good)
        self.forget(flight)
        del worker.buying[flight.id]
        return outcome.end()

    async def _finish(self, flight: Flight, *, is_good: bool) -> PurchaseOutcome:
        batch, outcome = Batch(self.store), PurchaseOutcome(flight, is_good=is_good)
        if is_good:
            entries = Entries(EntriesSettings())
            entries.store(batch, flight.fingerprint, flight.id, images=outcome.images)
            self.forget(flight)  # storing releases the lease: from then on others may buy
            flight.complete(batch, outcome.images)
        else:
            self.forget(flight)
            flight.fail(batch, outcome.failure)
        await batch.execute()
        return outcome

    def forget(self, flight: Flight) -> None:
        for slot in [slot for slot, leader in self.leaders.items() if leader == flight.id]:
            del self.leaders[slot]


class PurchaseOutcome:
    """The end of a purchase: images or a failure."""

    def __init__(self, flight: Flight, *, is_good: bool) -> None:
        self.is_good = is_good
        self.images = {slot: _image() for slot in flight.slots}
        self.failure = UpstreamFailure("Sold out.", charge=Charge.FREE, status=500)

    def end(self) -> PurchasedImages:
        if not self.is_good:
            raise self.failure
        return PurchasedImages(self.images, {})


def _image() -> Image:
    unique = secrets.token_hex(32)
    return Image(unique[:24], unique, "png", 1, 1, size_bytes=1, created_at=0.0)


workers = st.integers(0, 1)
joins = st.tuples(st.just("join"), workers, st.integers(1, 3))
others = st.tuples(st.sampled_from(["leave", "finish", "fail", "crash", "recover"]), workers)
expires = st.tuples(st.just("expire"), workers)
schedules = st.lists(st.one_of(joins, joins, others), min_size=3, max_size=14)
timed_schedules = st.lists(st.one_of(joins, joins, others, expires), min_size=3, max_size=14)

few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
many = settings(few, max_examples=400)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers soon retry a silent flight; a leader that dies early blocks for a second."""
    monkeypatch.setattr(flights, "LEASE_SECONDS", FIRST_LEASE_SECONDS)
    monkeypatch.setattr(flight_ends, "MAX_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(flight_ends, "RECHECK_SECONDS", 0.1)


@dataclass
class Clock:
    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@asynccontextmanager
async def opened_world(store: Store) -> AsyncIterator[World]:
    workers = [Worker(make_flights(store)), Worker(make_flights(store))]
    yield World(store, secrets.token_hex(32), workers)


async def play(world: World, schedule: list[tuple], clock: Clock | None = None) -> None:
    """Plays a schedule to its end, and then lets every open purchase succeed."""
    for step, index, *more in schedule:
        if step == "join":
            world.join(index, *more)
        elif step == "leave":
            world.leave(index)
        elif step in ("finish", "fail"):
            world.finish_one(index, is_good=step == "finish")
        elif step == "crash":
            await world.crash(index)
        elif step == "recover":
            await world.recover()
        elif clock is not None:
            clock.ahead += LEASE_SECONDS + 60
            world.expire()
        await asyncio.sleep(STEP_SECONDS)
    await _finish_all(world)
    assert world.faults == []
    await _check_slots(world)


async def _finish_all(world: World) -> None:
    """Every request ends once dead workers are recovered and upstream responds."""
    await world.recover()
    requests = [request for worker in world.workers for request in worker.requests]
    async with generous():
        while any(not one.done() for one in requests) or any(w.buying for w in world.workers):
            for index in (0, 1):
                world.finish_one(index, is_good=True)
            await asyncio.sleep(STEP_SECONDS)
    for worker in world.workers:
        await worker.flights._tasks.drain()
        await worker.flights.close()
    for request in requests:
        if not request.cancelled():
            result = request.result()
            assert result.images or result.flight_error or result.own_error


async def _check_slots(world: World) -> None:
    """Leases of workers that died before they reserved expire by themselves."""
    acquire = AcquireLease(world.fingerprint, tuple(range(3)), "afterwards", LEASE_SECONDS)
    lease = await execute(world.store, acquire)
    async with generous():
        while lease.leased:
            await asyncio.sleep(0.05)
            lease = await execute(world.store, acquire)
    assert set(lease.cached) | set(lease.acquired) == set(acquire.slots)


@few
@given(schedule=schedules)
async def test_no_schedule_breaks_an_invariant(
    open_store: OpenStore, schedule: list[tuple]
) -> None:
    async with open_store() as store, opened_world(store) as world:
        await play(world, schedule)


@few
@given(schedule=timed_schedules)
async def test_no_schedule_with_leases_that_expire_breaks_an_invariant(
    sqlite_path: Path, schedule: list[tuple]
) -> None:
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as store, opened_world(store) as world:
        await play(world, schedule, clock)


@pytest.mark.long
@pytest.mark.timeout(900)
@many
@given(schedule=schedules)
async def test_no_schedule_of_many_breaks_an_invariant(
    open_store: OpenStore, schedule: list[tuple]
) -> None:
    async with open_store() as store, opened_world(store) as world:
        await play(world, schedule)
