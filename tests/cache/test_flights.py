"""Flights without HTTP: one request leads and buys, the others follow.

A purchase is a plain coroutine that publishes its end, as `purchasing/` does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.cache import flight_ends
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.flight_result import FlightResult
from gateway.cache.flights import Flights
from gateway.errors import Charge, LimitExceeded, StoreUnavailable, UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import AcquireLease, LeaseResult, ReleaseLease
from gateway.store.protocol import Command, Store
from tests.conftest import OpenStore
from tests.ephemeral import make_flights
from tests.gates import LeaseCounter
from tests.waiting import eventually, generous

FINGERPRINT = "f" * 64
LEASE_SECONDS = 30.0


@dataclass
class FakePurchases:
    """A fake of upstream and `purchasing/`, whose purchases wait for `may_finish`."""

    store: Store
    slots_bought: list[tuple[int, ...]] = field(default_factory=list)
    """The slots of each purchase."""
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def buy(self, flight: Flight) -> PurchasedImages:
        """Fills all slots."""
        return await self.fill(flight, flight.slots)

    async def fill(self, flight: Flight, slots: tuple[int, ...]) -> PurchasedImages:
        """Fills only `slots`."""
        self.started.set()
        await self.may_finish.wait()
        self.slots_bought.append(flight.slots)
        images = {slot: image() for slot in slots}
        batch = Batch(self.store)
        Entries(EntriesSettings()).store(batch, flight.fingerprint, flight.id, images=images)
        flight.complete(batch, images)
        await batch.execute()
        return PurchasedImages(images, {i.digest: b"bytes" for i in images.values()})

    async def fail(self, flight: Flight) -> PurchasedImages:
        """Fails with upstream's error."""
        self.started.set()
        await self.may_finish.wait()
        self.slots_bought.append(())
        failure = UpstreamFailure("The oven broke.", charge=Charge.FREE, status=500)
        batch = Batch(self.store)
        flight.fail(batch, failure)
        await batch.execute()
        raise failure


Workers = tuple[Flights, Flights, FakePurchases]


def image() -> Image:
    return Image(
        id=secrets.token_hex(12),
        digest=secrets.token_hex(32),
        format="png",
        width=64,
        height=64,
        size_bytes=5,
        created_at=0.0,
    )


def refuse(name: str) -> LimitExceeded:
    return LimitExceeded(f"{name} has no money", reason=name)


@asynccontextmanager
async def opened_flights(store: Store) -> AsyncIterator[Flights]:
    flights = make_flights(store)
    try:
        yield flights
    finally:
        async with generous():
            await flights._tasks.drain()
        await flights.close()


@pytest.fixture
async def workers(open_store: OpenStore) -> AsyncIterator[tuple[Flights, Flights, FakePurchases]]:
    """The flights of two workers on one store, and purchases that may not finish yet."""
    async with AsyncExitStack() as stack:
        stores = [ObservedStore(await stack.enter_async_context(open_store())) for _ in range(2)]
        purchases = FakePurchases(stores[0])
        workers = [await stack.enter_async_context(opened_flights(s)) for s in stores]
        stack.callback(purchases.may_finish.set)
        yield workers[0], workers[1], purchases


class ObservedStore(LeaseCounter):
    """A store that counts lease requests and can be unavailable."""

    is_unavailable = False

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if self.is_unavailable:
            raise StoreUnavailable
        return await super().execute(commands)


async def until_leased(workers: Workers, count: int) -> None:
    """Waits until so many requests lead or follow."""
    await eventually(lambda: sum(f._store.count for f in workers[:2]) >= count)


@contextmanager
def impatient(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Followers try to acquire the lease of a silent flight after 0.2 s."""
    with patch.context() as patched:
        patched.setattr(flight_ends, "MAX_SILENCE_SECONDS", 0.2)
        patched.setattr(flight_ends, "RECHECK_SECONDS", 0.1)
        yield


async def acquire(store: Store, *slots: int, flight: str, seconds: float) -> LeaseResult:
    """Acquires a lease as a worker that dies afterwards."""
    return await execute(store, AcquireLease(FINGERPRINT, slots, flight, seconds))


async def is_free(store: Store, *slots: int) -> bool:
    """Whether these slots have neither a lease nor an image."""
    lease = await acquire(store, *slots, flight=secrets.token_hex(4), seconds=0.001)
    return lease.acquired == slots


def ids(result: FlightResult) -> dict[int, str]:
    return {slot: image.id for slot, image in result.images.items()}


async def run_all(*runs: Coroutine[Any, Any, FlightResult]) -> list[FlightResult]:
    async with generous():
        return list(await asyncio.gather(*runs))


# ── one purchase for all requests ───────────────────────────────────────────────────────────


async def test_two_workers_buy_once_and_all_requests_get_the_same_images(workers: Workers) -> None:
    here, there, purchases = workers
    runs = [
        asyncio.create_task(f.run(FINGERPRINT, [0, 1], buy=purchases.buy))
        for f in [here, there] * 5
    ]
    await until_leased(workers, 10)
    purchases.may_finish.set()
    results = await asyncio.gather(*runs)

    assert purchases.slots_bought == [(0, 1)]
    assert len({tuple(sorted(ids(result).items())) for result in results}) == 1
    assert sum(result.bought == {0, 1} for result in results) == 1
    assert sum(result.followed == {0, 1} for result in results) == 9


async def test_a_larger_concurrent_request_buys_only_the_remaining_slots(workers: Workers) -> None:
    here, there, purchases = workers
    two = asyncio.create_task(here.run(FINGERPRINT, [0, 1], buy=purchases.buy))
    await purchases.started.wait()
    purchases.started.clear()
    four = asyncio.create_task(there.run(FINGERPRINT, range(4), buy=purchases.buy))
    await purchases.started.wait()
    purchases.may_finish.set()
    result_of_two, result_of_four = await two, await four

    assert sorted(purchases.slots_bought) == [(0, 1), (2, 3)]
    assert (result_of_four.bought, result_of_four.followed) == ({2, 3}, {0, 1})
    assert ids(result_of_two).items() <= ids(result_of_four).items()


async def test_an_image_stored_before_the_lease_is_a_hit(workers: Workers) -> None:
    here, there, purchases = workers
    purchases.may_finish.set()
    first = await here.run(FINGERPRINT, [0], buy=purchases.buy)
    second = await there.run(FINGERPRINT, [0], buy=purchases.buy)

    assert len(purchases.slots_bought) == 1
    assert ids(second) == ids(first)
    assert second.cached.keys() == {0}
    assert not second.bought | second.followed


async def test_followers_in_the_leaders_worker_get_the_bytes_from_memory(workers: Workers) -> None:
    here, there, purchases = workers
    runs = [asyncio.create_task(here.run(FINGERPRINT, [0], buy=purchases.buy))]
    await purchases.started.wait()
    runs += [asyncio.create_task(f.run(FINGERPRINT, [0], buy=purchases.buy)) for f in (here, there)]
    await until_leased(workers, 3)
    purchases.may_finish.set()
    first, second, elsewhere = await asyncio.gather(*runs)

    assert list(first.data.values()) == list(second.data.values()) == [b"bytes"]
    assert elsewhere.data == {}


# ── purchases without an image ──────────────────────────────────────────────────────────────


async def test_a_refused_reservation_concerns_only_its_own_request(workers: Workers) -> None:
    """The lease is released, the followers try in turn, and each gets its own refusal."""
    here, there, purchases = workers
    may_refuse = asyncio.Event()

    def without_money(name: str) -> Callable[[Flight], Awaitable[PurchasedImages]]:
        async def buy(_flight: Flight) -> PurchasedImages:
            await may_refuse.wait()
            raise refuse(name)

        return buy

    poor = [
        asyncio.create_task(flights.run(FINGERPRINT, [0], buy=without_money(f"poor {i}")))
        for i, flights in enumerate([here, there] * 2)
    ]
    await until_leased(workers, 4)
    rich = asyncio.create_task(there.run(FINGERPRINT, [0], buy=purchases.buy))
    await until_leased(workers, 5)
    purchases.may_finish.set()
    may_refuse.set()
    bought = await rich
    refused = await asyncio.gather(*poor)

    assert len(purchases.slots_bought) == 1
    assert bought.bought == {0}
    for i, result in enumerate(refused):
        own = result.own_error
        assert result.flight_error is None
        assert own is None or (isinstance(own, LimitExceeded) and own.reason == f"poor {i}")
        assert (own is None) == (ids(result) == ids(bought))
    assert any(result.own_error for result in refused)


async def test_a_refused_flight_keeps_no_lease_that_another_gives_it_too_late(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two flights are refused at once; the one gives its lease to the other, which has ended."""
    here, _, purchases = workers
    store, may_release = purchases.store, asyncio.Event()
    execute_now, releases = store.execute, 0

    async def execute_first_release_last(commands: Sequence[Command[Any]]) -> list[Any]:
        nonlocal releases
        is_release = isinstance(commands[0], ReleaseLease)
        releases += is_release
        if is_release and releases == 1:
            await may_release.wait()
        return await execute_now(commands)

    monkeypatch.setattr(store, "execute", execute_first_release_last)
    may_refuse = [asyncio.Event(), asyncio.Event()]
    started = []

    async def buy(flight: Flight) -> PurchasedImages:
        started.append(flight)
        (slot,) = flight.slots
        await may_refuse[slot].wait()
        raise refuse("poor")

    asking = []
    for slot in (0, 1):
        asking.append(asyncio.create_task(here.run(FINGERPRINT, [slot], buy=buy)))
        await eventually(lambda slot=slot: len(started) == slot + 1)
    may_refuse[1].set()
    await eventually(lambda: releases == 1)
    may_refuse[0].set()
    await asking[0]
    may_release.set()
    await asyncio.gather(*asking)
    await here._tasks.drain()

    lease = await execute(store, AcquireLease(FINGERPRINT, (0, 1), "afterwards", LEASE_SECONDS))
    assert lease.acquired == (0, 1)


async def test_each_refused_request_gets_a_refusal_of_its_own(workers: Workers) -> None:
    here, there, purchases = workers
    tried: list[str] = []

    def without_money(name: str) -> Callable[[Flight], Awaitable[PurchasedImages]]:
        async def buy(_flight: Flight) -> PurchasedImages:
            tried.append(name)
            raise refuse(name)

        return buy

    results = await run_all(
        *(
            f.run(FINGERPRINT, [0], buy=without_money(str(i)))
            for i, f in enumerate([here, there] * 3)
        )
    )

    assert sorted(tried) == [str(i) for i in range(6)]
    errors = [result.own_error for result in results]
    assert [isinstance(e, LimitExceeded) and e.reason for e in errors] == list("012345")
    assert await is_free(purchases.store, 0)


async def test_leader_and_followers_get_the_error_of_a_failed_purchase(workers: Workers) -> None:
    here, there, purchases = workers
    runs = [
        asyncio.create_task(f.run(FINGERPRINT, [0], buy=purchases.fail)) for f in [here, there] * 3
    ]
    await until_leased(workers, 6)
    purchases.may_finish.set()
    results = await asyncio.gather(*runs)

    assert len(purchases.slots_bought) == 1
    errors = [result.own_error or result.flight_error for result in results]
    assert {(e.message, e.status) for e in errors if e is not None} == {("The oven broke.", 500)}
    assert sum(result.own_error is not None for result in results) == 1
    assert not any(result.images or result.missing for result in results)
    assert await is_free(purchases.store, 0)


async def test_a_slot_left_empty_is_bought_once_by_a_follower(workers: Workers) -> None:
    """If the follower's own purchase leaves it empty too, the slot is given up."""
    here, there, purchases = workers

    async def buy_first_only(flight: Flight) -> PurchasedImages:
        return await purchases.fill(flight, tuple(slot for slot in flight.slots if slot == 0))

    leader = asyncio.create_task(here.run(FINGERPRINT, [0, 1], buy=buy_first_only))
    await purchases.started.wait()
    follower = asyncio.create_task(there.run(FINGERPRINT, [0, 1], buy=buy_first_only))
    await until_leased(workers, 2)
    purchases.may_finish.set()
    bought, followed = await run_all(wait_for(leader), wait_for(follower))

    assert purchases.slots_bought == [(0, 1), (1,)]
    assert ids(bought).keys() == ids(followed).keys() == {0}
    assert bought.own_error is followed.own_error is followed.flight_error is None


async def test_a_slot_that_others_leave_empty_twice_is_given_up(workers: Workers) -> None:
    here, there, purchases = workers

    async def buy_nothing(flight: Flight) -> PurchasedImages:
        return await purchases.fill(flight, ())

    purchases.may_finish.set()
    results = await run_all(
        *(f.run(FINGERPRINT, [0], buy=buy_nothing) for f in [here, there] * 4),
    )

    assert not any(result.images or result.missing for result in results)
    assert len(purchases.slots_bought) <= len(results)


async def test_a_follower_fills_the_slot_that_was_left_empty(workers: Workers) -> None:
    here, there, purchases = workers

    async def buy_first_only(flight: Flight) -> PurchasedImages:
        return await purchases.fill(flight, (0,))

    leader = asyncio.create_task(here.run(FINGERPRINT, [0, 1], buy=buy_first_only))
    await purchases.started.wait()
    follower = asyncio.create_task(there.run(FINGERPRINT, [0, 1], buy=purchases.buy))
    await until_leased(workers, 2)
    purchases.may_finish.set()
    bought, followed = await run_all(wait_for(leader), wait_for(follower))

    assert purchases.slots_bought == [(0, 1), (1,)]
    assert (followed.followed, followed.bought) == ({0}, {1})
    assert ids(bought).items() < ids(followed).items()


async def wait_for(task: asyncio.Task[FlightResult]) -> FlightResult:
    return await task


# ── clients that disconnect, leaders that die, bugs ─────────────────────────────────────────


async def test_a_purchase_goes_on_when_its_client_has_disconnected(workers: Workers) -> None:
    here, there, purchases = workers
    client = asyncio.create_task(here.run(FINGERPRINT, [0], buy=purchases.buy))
    await purchases.started.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    assert len(here._tasks) == 1
    purchases.may_finish.set()
    await here._tasks.drain()

    assert (len(here._tasks), len(purchases.slots_bought)) == (0, 1)
    assert (await there.run(FINGERPRINT, [0], buy=purchases.buy)).cached.keys() == {0}
    assert len(purchases.slots_bought) == 1


async def test_a_follower_that_disconnects_does_not_end_the_wait_of_others(
    workers: Workers,
) -> None:
    here, there, purchases = workers
    leader = asyncio.create_task(here.run(FINGERPRINT, [0], buy=purchases.buy))
    await purchases.started.wait()
    disconnected, other = (
        asyncio.create_task(there.run(FINGERPRINT, [0], buy=purchases.buy)) for _ in range(2)
    )
    await until_leased(workers, 2)
    disconnected.cancel()
    await asyncio.sleep(0)
    purchases.may_finish.set()

    assert ids(await other) == ids(await leader)
    assert disconnected.cancelled()


async def test_the_lease_of_a_dead_leader_expires(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, purchases = workers
    await acquire(purchases.store, 0, flight="dead", seconds=0.5)
    purchases.may_finish.set()
    with impatient(monkeypatch):
        results = await run_all(
            here.run(FINGERPRINT, [0], buy=purchases.buy),
            there.run(FINGERPRINT, [0], buy=purchases.buy),
        )

    assert purchases.slots_bought == [(0,)]
    assert ids(results[0]) == ids(results[1])


async def test_a_slot_with_an_active_lease_is_not_bought_again(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _, purchases = workers
    await acquire(purchases.store, 0, flight="silent", seconds=LEASE_SECONDS)
    purchases.may_finish.set()
    with impatient(monkeypatch):
        follower = asyncio.create_task(here.run(FINGERPRINT, [0], buy=purchases.buy))
        await asyncio.wait({follower}, timeout=0.7)
        assert not follower.done()
        batch = Batch(purchases.store)
        Flight("silent", FINGERPRINT, (0,)).release(batch)
        await batch.execute()
        result = await follower

    assert purchases.slots_bought == [(0,)]
    assert result.bought == {0}


async def test_after_a_bug_in_a_purchase_followers_buy_and_no_lease_remains(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, purchases = workers

    async def crash(_flight: Flight) -> PurchasedImages:
        purchases.started.set()
        await purchases.may_finish.wait()
        raise ZeroDivisionError

    leader = asyncio.create_task(here.run(FINGERPRINT, [0], buy=crash))
    await purchases.started.wait()
    followers = [
        asyncio.create_task(f.run(FINGERPRINT, [0], buy=purchases.buy)) for f in (here, there)
    ]
    await until_leased(workers, 3)
    purchases.may_finish.set()
    crashed, first, second = await run_all(*map(wait_for, [leader, *followers]))

    assert crashed.own_error is not None
    assert crashed.own_error.status == 500
    assert "ZeroDivision" not in crashed.own_error.message
    assert (len(purchases.slots_bought), ids(first)) == (1, ids(second))
    assert (len(here._ends), len(there._ends), len(here._tasks)) == (0, 0, 0)


async def test_an_unavailable_store_ends_the_wait_of_a_follower_with_an_error(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, purchases = workers
    leader = asyncio.create_task(here.run(FINGERPRINT, [0], buy=purchases.buy))
    await purchases.started.wait()
    follower = asyncio.create_task(there.run(FINGERPRINT, [0], buy=purchases.buy))
    await until_leased(workers, 2)
    await eventually(lambda: len(there._ends))  # the follower listens
    with impatient(monkeypatch):
        there._store.is_unavailable = True
        result = await follower
    purchases.may_finish.set()

    assert isinstance(result.flight_error, StoreUnavailable)
    assert (await leader).bought == {0}


# ── without the store ───────────────────────────────────────────────────────────────────────


async def test_without_the_store_a_refusal_concerns_only_its_own_request(workers: Workers) -> None:
    """One of the followers leads instead."""
    here, _, purchases = workers
    purchases.may_finish.set()

    async def refused(_flight: Flight) -> PurchasedImages:
        raise refuse("alice")

    runs = [
        here.run_offline(FINGERPRINT, (0, 1), buy=buy)
        for buy in (refused, purchases.buy, purchases.buy)
    ]
    first, second, third = await run_all(*runs)

    assert isinstance(first.own_error, LimitExceeded)
    assert purchases.slots_bought == [(0, 1)]
    assert (second.bought, third.followed) == ({0, 1}, {0, 1})
    assert ids(second) == ids(third)


async def test_without_the_store_what_was_bought_is_kept_if_the_rest_finds_no_place(
    workers: Workers,
) -> None:
    """The purchase that had the other slot is refused when no more may be opened."""
    here, _, _ = workers
    may_refuse, has_bought = asyncio.Event(), asyncio.Event()

    async def refused(_flight: Flight) -> PurchasedImages:
        await may_refuse.wait()
        raise refuse("poor")

    async def buy(flight: Flight) -> PurchasedImages:
        has_bought.set()
        return PurchasedImages({slot: image() for slot in flight.slots}, {})

    leader = asyncio.create_task(here.run_offline(FINGERPRINT, (0,), buy=refused))
    await asyncio.sleep(0)
    both = asyncio.create_task(here.run_offline(FINGERPRINT, (0, 1), buy=buy))
    await has_bought.wait()
    here._purchases_open._maximum = 0
    may_refuse.set()
    result = await both
    await leader

    assert result.bought == {1}
    assert result.own_error is not None
    assert result.own_error.status == 503


async def test_a_request_just_after_an_offline_purchase_does_not_wait_for_the_store(
    workers: Workers,
) -> None:
    """It buys: only the unavailable store has the result of the ended flight."""
    here, _, _ = workers
    here._store.is_unavailable = True
    late: list[asyncio.Task[FlightResult]] = []

    async def buy(_flight: Flight) -> PurchasedImages:
        if not late:  # its first step comes when this purchase has just ended
            late.append(asyncio.create_task(here.run_offline(FINGERPRINT, (0,), buy=buy)))
        return PurchasedImages({0: image()}, {})

    first = await here.run_offline(FINGERPRINT, (0,), buy=buy)
    second = await late[0]

    assert (first.bought, second.bought) == ({0}, {0})
    assert (len(here._ends), here._offline) == (0, {})


async def test_concurrent_offline_requests_wait_for_the_purchase_and_not_for_the_store(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _, _ = workers
    here._store.is_unavailable = True

    async def buy(_flight: Flight) -> PurchasedImages:
        await asyncio.sleep(0.6)  # longer than a follower tries an unavailable store
        return PurchasedImages({0: image()}, {})

    with impatient(monkeypatch):
        first, second = await run_all(
            *(here.run_offline(FINGERPRINT, (0,), buy=buy) for _ in range(2)),
        )

    assert second.flight_error is None
    assert ids(first) == ids(second)
    assert here._ends._listeners == set()
