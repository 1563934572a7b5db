"""Flights under random schedules of join, leave, finish, fail, crash and expire, over both stores.

Three promises hold whatever happens in whatever order: a slot is never bought twice at a time
unless its buyer has died or its claim has run out; everyone who waits gets an end; and afterwards
every slot holds an image or is free.
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

from gateway.cache import flights as room
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.flights import Flight, FlightResult, Flights, PurchasedImages
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
CLAIM_SECONDS = 1.0
STEP_SECONDS = 0.012
"""Between two steps: time enough for a few round trips, so that what happens interleaves."""


@dataclass
class Process:
    """One process: its flights, who asks in it, and what it is buying."""

    flights: Flights
    asks: list[asyncio.Task[FlightResult]] = field(default_factory=list)
    buying: dict[str, tuple[Flight, asyncio.Future[bool]]] = field(default_factory=dict)


@dataclass
class World:
    """Two processes on one store, and an upstream that sells when the schedule says so."""

    store: Store
    place: str
    processes: list[Process]
    buyers: dict[int, str] = field(default_factory=dict)
    """Slot → the flight of the living buyer whose claim has not run out."""
    orphans: list[Flight] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    age: int = 0
    """How often all claims have run out."""

    def join(self, index: int, count: int) -> None:
        process = self.processes[index]
        asking = process.flights.run(self.place, range(count), buy=lambda f: self.buy(process, f))
        process.asks.append(asyncio.create_task(asking))

    def leave(self, index: int) -> None:
        if asks := [ask for ask in self.processes[index].asks if not ask.done()]:
            asks[0].cancel()

    def end_one(self, index: int, *, is_good: bool) -> None:
        for _, decision in list(self.processes[index].buying.values())[:1]:
            if not decision.done():
                decision.set_result(is_good)

    def expire(self) -> None:
        """Every claim has run out: whoever asks next may buy."""
        self.age += 1
        self.buyers.clear()

    async def crash(self, index: int) -> None:
        """The process is gone, with everyone who asked in it; another takes its place."""
        process = self.processes[index]
        gone = [*process.asks, *process.flights._tasks._tasks, *process.flights._listeners]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        for flight, _ in process.buying.values():
            self.orphans.append(flight)
            self.forget(flight)
        self.processes[index] = Process(make_flights(self.store))

    async def recover(self) -> None:
        """What somebody else does about the purchases of the dead (`purchase.py`)."""
        for flight in self.orphans:
            batch = Batch(self.store)
            flight.abandon(batch, UpstreamFailure("The buyer died.", charge=Charge.PRESUMED))
            await batch.execute()
        self.orphans.clear()

    async def buy(self, process: Process, flight: Flight) -> PurchasedImages:
        """A purchase, up to the moment at which the schedule ends it."""
        batch, age = Batch(self.store), self.age
        decision = asyncio.get_running_loop().create_future()
        process.buying[flight.id] = flight, decision  # the journal: written before the claim holds
        is_held = flight.renew(batch, seconds=LEASE_SECONDS)
        await batch.execute()
        if not is_held.value:
            del process.buying[flight.id]
            raise StoreUnavailable  # as a purchase does whose claim was lost: nothing is sent
        if doubled := self.buyers.keys() & set(flight.slots):
            self.faults.append(f"slots {doubled} are bought twice at a time")
        if age == self.age:  # else the claim has run out again while its answer was on its way
            self.buyers |= dict.fromkeys(flight.slots, flight.id)
        is_good = await decision
        bought = await self._told(flight, is_good)
        self.forget(flight)
        del process.buying[flight.id]
        return bought()

    async def _told(self, flight: Flight, is_good: bool) -> Sale:
        batch, sale = Batch(self.store), Sale(flight, is_good)
        if is_good:
            entries = Entries(EntriesSettings())
            entries.store(batch, flight.fingerprint, flight.id, images=sale.images)
            self.forget(flight)  # keeping gives the claim back: from then on others may buy
            flight.complete(batch, sale.images)
        else:
            self.forget(flight)
            flight.fail(batch, sale.failure)
        await batch.execute()
        return sale

    def forget(self, flight: Flight) -> None:
        for slot in [slot for slot, buyer in self.buyers.items() if buyer == flight.id]:
            del self.buyers[slot]


class Sale:
    """How a purchase ends."""

    def __init__(self, flight: Flight, is_good: bool) -> None:
        self.is_good = is_good
        self.images = {slot: _image() for slot in flight.slots}
        self.failure = UpstreamFailure("Sold out.", charge=Charge.FREE, status=500)

    def __call__(self) -> PurchasedImages:
        if not self.is_good:
            raise self.failure
        return PurchasedImages(self.images, {})


def _image() -> Image:
    unique = secrets.token_hex(32)
    return Image(unique[:24], unique, "png", 1, 1, size_bytes=1, created_at=0.0)


processes = st.integers(0, 1)
joins = st.tuples(st.just("join"), processes, st.integers(1, 3))
others = st.tuples(st.sampled_from(["leave", "finish", "fail", "crash", "recover"]), processes)
expires = st.tuples(st.just("expire"), processes)
schedules = st.lists(st.one_of(joins, joins, others), min_size=3, max_size=14)
timed_schedules = st.lists(st.one_of(joins, joins, others, expires), min_size=3, max_size=14)

few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
many = settings(few, max_examples=400)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters that soon ask who holds a silent claim; a claimant that dies blocks for a second."""
    monkeypatch.setattr(room, "CLAIM_SECONDS", CLAIM_SECONDS)
    monkeypatch.setattr(room, "LOOK_AGAIN_SECONDS", 0.3)
    monkeypatch.setattr(room, "RECHECK_SECONDS", 0.1)


@dataclass
class Clock:
    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@asynccontextmanager
async def opened_world(store: Store) -> AsyncIterator[World]:
    place = secrets.token_hex(32)
    yield World(store, place, [Process(make_flights(store)), Process(make_flights(store))])


async def play(world: World, schedule: list[tuple], clock: Clock | None = None) -> None:
    """Plays a schedule to its end, and then lets everything that is open end well."""
    for what, index, *more in schedule:
        if what == "join":
            world.join(index, *more)
        elif what == "leave":
            world.leave(index)
        elif what in ("finish", "fail"):
            world.end_one(index, is_good=what == "finish")
        elif what == "crash":
            await world.crash(index)
        elif what == "recover":
            await world.recover()
        elif clock is not None:
            clock.ahead += LEASE_SECONDS + 60
            world.expire()
        await asyncio.sleep(STEP_SECONDS)
    await _let_all_end(world)
    assert world.faults == []
    await _check_slots(world)


async def _let_all_end(world: World) -> None:
    """Nobody is left waiting once the dead are dealt with and upstream sells."""
    await world.recover()
    asks = [ask for process in world.processes for ask in process.asks]
    async with generous():
        while any(not ask.done() for ask in asks) or any(p.buying for p in world.processes):
            for index in (0, 1):
                world.end_one(index, is_good=True)
            await asyncio.sleep(STEP_SECONDS)
    for process in world.processes:
        await process.flights._tasks.drain()
        await process.flights.close()
    for ask_ in asks:
        if not ask_.cancelled():
            landing = ask_.result()
            assert landing.images or landing.flight_error or landing.own_error


async def _check_slots(world: World) -> None:
    """Claims of those who died before they reserved run out by themselves."""
    claim = AcquireLease(world.place, tuple(range(3)), "afterwards", LEASE_SECONDS)
    slots, claimed = claim.slots, await execute(world.store, claim)
    async with generous():
        while claimed.leased:
            await asyncio.sleep(0.05)
            claimed = await execute(world.store, claim)
    assert set(claimed.cached) | set(claimed.acquired) == set(slots)


@few
@given(schedule=schedules)
async def test_no_schedule_breaks_a_promise(open_store: OpenStore, schedule: list[tuple]) -> None:
    async with open_store() as store, opened_world(store) as world:
        await play(world, schedule)


@few
@given(schedule=timed_schedules)
async def test_no_schedule_with_claims_that_run_out_breaks_a_promise(
    sqlite_path: Path, schedule: list[tuple]
) -> None:
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as store, opened_world(store) as world:
        await play(world, schedule, clock)


@pytest.mark.long
@pytest.mark.timeout(900)
@many
@given(schedule=schedules)
async def test_no_schedule_of_many_breaks_a_promise(
    open_store: OpenStore, schedule: list[tuple]
) -> None:
    async with open_store() as store, opened_world(store) as world:
        await play(world, schedule)
