"""Flights: who buys, who waits, and what becomes of both, over both stores and without HTTP.

A purchase is a plain coroutine here that tells the store its end, as `purchase.py` does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.cache import flights as room
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.flights import Flight, FlightResult, Flights, PurchasedImages
from gateway.errors import Charge, LimitExceeded, StoreUnavailable, UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import AcquireLease, LeaseResult
from gateway.store.protocol import Command, Store
from tests.conftest import OpenStore
from tests.ephemeral import make_flights
from tests.gates import ClaimCounter
from tests.waiting import eventually, generous

PLACE = "f" * 64
LEASE_SECONDS = 30.0


@dataclass
class Shop:
    """Sells images for the entry of one store, and remembers what it sold."""

    store: Store
    sold: list[tuple[int, ...]] = field(default_factory=list)
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def buy(self, flight: Flight) -> PurchasedImages:
        """A purchase that ends well, once the shop is open."""
        return await self.sell(flight, flight.slots)

    async def sell(self, flight: Flight, slots: tuple[int, ...]) -> PurchasedImages:
        """Brings images for some of the flight's slots only."""
        self.entered.set()
        await self.is_open.wait()
        self.sold.append(flight.slots)
        images = {slot: image() for slot in slots}
        batch = Batch(self.store)
        Entries(EntriesSettings()).store(batch, flight.fingerprint, flight.id, images=images)
        flight.complete(batch, images)
        await batch.execute()
        return PurchasedImages(images, {p.digest: b"bytes" for p in images.values()})

    async def fail(self, flight: Flight) -> PurchasedImages:
        """A purchase that ends with upstream's error, once the shop is open."""
        self.entered.set()
        await self.is_open.wait()
        self.sold.append(())
        failure = UpstreamFailure("The oven broke.", charge=Charge.FREE, status=500)
        batch = Batch(self.store)
        flight.fail(batch, failure)
        await batch.execute()
        raise failure


Rooms = tuple[Flights, Flights, Shop]


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
async def rooms(open_store: OpenStore) -> AsyncIterator[tuple[Flights, Flights, Shop]]:
    """Two processes' flights over two connections to one store, and a shop that is closed."""
    async with AsyncExitStack() as stack:
        stores = [Watched(await stack.enter_async_context(open_store())) for _ in range(2)]
        shop = Shop(stores[0])
        rooms = [await stack.enter_async_context(opened_flights(s)) for s in stores]
        stack.callback(shop.is_open.set)
        yield rooms[0], rooms[1], shop


class Watched(ClaimCounter):
    """A store that says how many claims it has answered, and that can be away."""

    is_away = False

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if self.is_away:
            raise StoreUnavailable
        return await super().execute(commands)


async def until_claimed(rooms: Rooms, count: int) -> None:
    """Until so many asks know whether they buy or wait."""
    await eventually(lambda: sum(f._store.count for f in rooms[:2]) >= count)


@contextmanager
def impatient(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waiters that ask soon who holds a silent claim."""
    with patch.context() as patched:
        patched.setattr(room, "LOOK_AGAIN_SECONDS", 0.2)
        patched.setattr(room, "RECHECK_SECONDS", 0.1)
        yield


async def claim(store: Store, *slots: int, flight: str, seconds: float) -> LeaseResult:
    """What a process does that then dies."""
    return await execute(store, AcquireLease(PLACE, slots, flight, seconds))


async def is_free(store: Store, *slots: int) -> bool:
    """Whether nobody holds these slots and nothing lies in them."""
    return (
        await claim(store, *slots, flight=secrets.token_hex(4), seconds=0.001)
    ).acquired == slots


def ids(landing: FlightResult) -> dict[int, str]:
    return {slot: found.id for slot, found in landing.images.items()}


async def settled(*runs: Coroutine[Any, Any, FlightResult]) -> list[FlightResult]:
    async with generous():
        return list(await asyncio.gather(*runs))


# ── one purchase for everyone ───────────────────────────────────────────────────────────────


async def test_two_processes_buy_once_and_all_see_the_same_images(rooms: Rooms) -> None:
    here, there, shop = rooms
    runs = [asyncio.create_task(f.run(PLACE, [0, 1], buy=shop.buy)) for f in [here, there] * 5]
    await until_claimed(rooms, 10)
    shop.is_open.set()
    landings = await asyncio.gather(*runs)

    assert shop.sold == [(0, 1)]
    assert len({tuple(sorted(ids(landing).items())) for landing in landings}) == 1
    assert sum(landing.bought == {0, 1} for landing in landings) == 1
    assert sum(landing.followed == {0, 1} for landing in landings) == 9


async def test_a_larger_ask_buys_only_the_rest_at_the_same_time(rooms: Rooms) -> None:
    here, there, shop = rooms
    two = asyncio.create_task(here.run(PLACE, [0, 1], buy=shop.buy))
    await shop.entered.wait()
    shop.entered.clear()
    four = asyncio.create_task(there.run(PLACE, range(4), buy=shop.buy))
    await shop.entered.wait()
    shop.is_open.set()
    landed_two, landed_four = await two, await four

    assert sorted(shop.sold) == [(0, 1), (2, 3)]
    assert (landed_four.bought, landed_four.followed) == ({2, 3}, {0, 1})
    assert ids(landed_two).items() <= ids(landed_four).items()


async def test_what_was_stored_before_the_claim_is_a_hit(rooms: Rooms) -> None:
    here, there, shop = rooms
    shop.is_open.set()
    first = await here.run(PLACE, [0], buy=shop.buy)
    second = await there.run(PLACE, [0], buy=shop.buy)

    assert len(shop.sold) == 1
    assert ids(second) == ids(first)
    assert second.cached.keys() == {0}
    assert not second.bought | second.followed


async def test_bytes_bought_here_stay_in_memory_for_those_who_wait_here(rooms: Rooms) -> None:
    here, there, shop = rooms
    runs = [asyncio.create_task(here.run(PLACE, [0], buy=shop.buy))]
    await shop.entered.wait()
    runs += [asyncio.create_task(f.run(PLACE, [0], buy=shop.buy)) for f in (here, there)]
    await until_claimed(rooms, 3)
    shop.is_open.set()
    first, second, elsewhere = await asyncio.gather(*runs)

    assert list(first.data.values()) == list(second.data.values()) == [b"bytes"]
    assert elsewhere.data == {}


# ── purchases that bring nothing ────────────────────────────────────────────────────────────


async def test_a_refused_reservation_concerns_nobody_else(rooms: Rooms) -> None:
    """The claim goes back, those who waited try in turn, and each gets its own refusal."""
    here, there, shop = rooms
    may_refuse = asyncio.Event()

    def without_money(name: str) -> Callable[[Flight], Awaitable[PurchasedImages]]:
        async def buy(_flight: Flight) -> PurchasedImages:
            await may_refuse.wait()
            raise refuse(name)

        return buy

    poor = [
        asyncio.create_task(flights.run(PLACE, [0], buy=without_money(f"poor {i}")))
        for i, flights in enumerate([here, there] * 2)
    ]
    await until_claimed(rooms, 4)
    rich = asyncio.create_task(there.run(PLACE, [0], buy=shop.buy))
    await until_claimed(rooms, 5)
    shop.is_open.set()
    may_refuse.set()
    landed = await rich
    refused = await asyncio.gather(*poor)

    assert len(shop.sold) == 1
    assert landed.bought == {0}
    for i, landing in enumerate(refused):
        own = landing.own_error
        assert landing.flight_error is None
        assert own is None or (isinstance(own, LimitExceeded) and own.reason == f"poor {i}")
        assert (own is None) == (ids(landing) == ids(landed))
    assert any(landing.own_error for landing in refused)


async def test_everyone_refused_gets_a_refusal_of_its_own(rooms: Rooms) -> None:
    here, there, shop = rooms
    tried: list[str] = []

    def without_money(name: str) -> Callable[[Flight], Awaitable[PurchasedImages]]:
        async def buy(_flight: Flight) -> PurchasedImages:
            tried.append(name)
            raise refuse(name)

        return buy

    landings = await settled(
        *(f.run(PLACE, [0], buy=without_money(str(i))) for i, f in enumerate([here, there] * 3))
    )

    assert sorted(tried) == [str(i) for i in range(6)]
    errors = [landing.own_error for landing in landings]
    assert [isinstance(e, LimitExceeded) and e.reason for e in errors] == list("012345")
    assert await is_free(shop.store, 0)


async def test_a_failed_purchase_is_everyones_error(rooms: Rooms) -> None:
    here, there, shop = rooms
    runs = [asyncio.create_task(f.run(PLACE, [0], buy=shop.fail)) for f in [here, there] * 3]
    await until_claimed(rooms, 6)
    shop.is_open.set()
    landings = await asyncio.gather(*runs)

    assert len(shop.sold) == 1
    said = [landing.own_error or landing.flight_error for landing in landings]
    assert {(e.message, e.status) for e in said if e is not None} == {("The oven broke.", 500)}
    assert sum(landing.own_error is not None for landing in landings) == 1
    assert not any(landing.images or landing.missing for landing in landings)
    assert await is_free(shop.store, 0)


async def test_a_slot_left_empty_is_claimed_once_by_a_follower(rooms: Rooms) -> None:
    """It is tried by the follower itself; what that purchase leaves empty stays empty."""
    here, there, shop = rooms

    async def buy_first_only(flight: Flight) -> PurchasedImages:
        return await shop.sell(flight, tuple(slot for slot in flight.slots if slot == 0))

    buyer = asyncio.create_task(here.run(PLACE, [0, 1], buy=buy_first_only))
    await shop.entered.wait()
    follower = asyncio.create_task(there.run(PLACE, [0, 1], buy=buy_first_only))
    await until_claimed(rooms, 2)
    shop.is_open.set()
    bought, followed = await settled(wait_for(buyer), wait_for(follower))

    assert shop.sold == [(0, 1), (1,)]
    assert ids(bought).keys() == ids(followed).keys() == {0}
    assert bought.own_error is followed.own_error is followed.flight_error is None


async def test_a_slot_that_others_leave_empty_twice_is_given_up(rooms: Rooms) -> None:
    here, there, shop = rooms

    async def buy_nothing(flight: Flight) -> PurchasedImages:
        return await shop.sell(flight, ())

    shop.is_open.set()
    landings = await settled(
        *(f.run(PLACE, [0], buy=buy_nothing) for f in [here, there] * 4),
    )

    assert not any(landing.images or landing.missing for landing in landings)
    assert len(shop.sold) <= len(landings)


async def test_a_follower_fills_the_slot_that_was_left_empty(rooms: Rooms) -> None:
    here, there, shop = rooms

    async def buy_first_only(flight: Flight) -> PurchasedImages:
        return await shop.sell(flight, (0,))

    buyer = asyncio.create_task(here.run(PLACE, [0, 1], buy=buy_first_only))
    await shop.entered.wait()
    follower = asyncio.create_task(there.run(PLACE, [0, 1], buy=shop.buy))
    await until_claimed(rooms, 2)
    shop.is_open.set()
    bought, followed = await settled(wait_for(buyer), wait_for(follower))

    assert shop.sold == [(0, 1), (1,)]
    assert (followed.followed, followed.bought) == ({0}, {1})
    assert ids(bought).items() < ids(followed).items()


async def wait_for(task: asyncio.Task[FlightResult]) -> FlightResult:
    return await task


# ── callers that leave, buyers that die, bugs ───────────────────────────────────────────────


async def test_a_purchase_goes_on_when_its_caller_has_left(rooms: Rooms) -> None:
    here, there, shop = rooms
    caller = asyncio.create_task(here.run(PLACE, [0], buy=shop.buy))
    await shop.entered.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(here._tasks) == 1
    shop.is_open.set()
    await here._tasks.drain()

    assert (len(here._tasks), len(shop.sold)) == (0, 1)
    assert (await there.run(PLACE, [0], buy=shop.buy)).cached.keys() == {0}
    assert len(shop.sold) == 1


async def test_a_follower_that_leaves_takes_nobody_along(rooms: Rooms) -> None:
    here, there, shop = rooms
    buyer = asyncio.create_task(here.run(PLACE, [0], buy=shop.buy))
    await shop.entered.wait()
    leaver, stayer = (asyncio.create_task(there.run(PLACE, [0], buy=shop.buy)) for _ in range(2))
    await until_claimed(rooms, 2)
    leaver.cancel()
    await asyncio.sleep(0)
    shop.is_open.set()

    assert ids(await stayer) == ids(await buyer)
    assert leaver.cancelled()


async def test_a_claim_whose_holder_died_ends_with_its_lease(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, shop = rooms
    await claim(shop.store, 0, flight="dead", seconds=0.5)
    shop.is_open.set()
    with impatient(monkeypatch):
        landings = await settled(
            here.run(PLACE, [0], buy=shop.buy), there.run(PLACE, [0], buy=shop.buy)
        )

    assert shop.sold == [(0,)]
    assert ids(landings[0]) == ids(landings[1])


async def test_a_claim_that_lives_is_not_bought_over(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _, shop = rooms
    await claim(shop.store, 0, flight="silent", seconds=LEASE_SECONDS)
    shop.is_open.set()
    with impatient(monkeypatch):
        waiter = asyncio.create_task(here.run(PLACE, [0], buy=shop.buy))
        await asyncio.wait({waiter}, timeout=0.7)
        assert not waiter.done()
        batch = Batch(shop.store)
        Flight("silent", PLACE, (0,)).release(batch)
        await batch.execute()
        landing = await waiter

    assert shop.sold == [(0,)]
    assert landing.bought == {0}


async def test_a_bug_in_a_purchase_leaves_no_claim_and_no_waiter_behind(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, shop = rooms

    async def crash(_flight: Flight) -> PurchasedImages:
        shop.entered.set()
        await shop.is_open.wait()
        raise ZeroDivisionError

    buyer = asyncio.create_task(here.run(PLACE, [0], buy=crash))
    await shop.entered.wait()
    waiters = [asyncio.create_task(f.run(PLACE, [0], buy=shop.buy)) for f in (here, there)]
    await until_claimed(rooms, 3)
    shop.is_open.set()
    crashed, first, second = await settled(*map(wait_for, [buyer, *waiters]))

    assert crashed.own_error is not None
    assert crashed.own_error.status == 500
    assert "ZeroDivision" not in crashed.own_error.message
    assert (len(shop.sold), ids(first)) == (1, ids(second))
    assert (here._ends, there._ends, len(here._tasks)) == ({}, {}, 0)


async def test_a_store_that_is_away_is_the_waiters_error_and_ends_the_wait(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, shop = rooms
    buyer = asyncio.create_task(here.run(PLACE, [0], buy=shop.buy))
    await shop.entered.wait()
    follower = asyncio.create_task(there.run(PLACE, [0], buy=shop.buy))
    await until_claimed(rooms, 2)
    await eventually(lambda: there._ends)  # it listens
    with impatient(monkeypatch):
        there._store.is_away = True
        landing = await follower
    shop.is_open.set()

    assert isinstance(landing.flight_error, StoreUnavailable)
    assert (await buyer).bought == {0}


# ── without the store ───────────────────────────────────────────────────────────────────────


async def test_a_refusal_of_the_first_concerns_nobody_who_asked_with_it(rooms: Rooms) -> None:
    """Whoever waited for it while the store is away buys in its place."""
    here, _, shop = rooms
    shop.is_open.set()

    async def refused(_flight: Flight) -> PurchasedImages:
        raise refuse("alice")

    runs = [here.run_offline(PLACE, (0, 1), buy=buy) for buy in (refused, shop.buy, shop.buy)]
    first, second, third = await settled(*runs)

    assert isinstance(first.own_error, LimitExceeded)
    assert shop.sold == [(0, 1)]
    assert (second.bought, third.followed) == ({0, 1}, {0, 1})
    assert ids(second) == ids(third)


async def test_who_comes_as_a_purchase_ends_waits_for_no_store(rooms: Rooms) -> None:
    """It buys anew: of what has ended only the store could tell, and that is away."""
    here, _, _ = rooms
    here._store.is_away = True
    late: list[asyncio.Task[FlightResult]] = []

    async def buy(_flight: Flight) -> PurchasedImages:
        if not late:  # it takes its first step when this purchase has just ended
            late.append(asyncio.create_task(here.run_offline(PLACE, (0,), buy=buy)))
        return PurchasedImages({0: image()}, {})

    first = await here.run_offline(PLACE, (0,), buy=buy)
    second = await late[0]

    assert (first.bought, second.bought) == ({0}, {0})
    assert (here._ends, here._offline) == ({}, {})


async def test_who_asks_at_the_same_moment_waits_for_the_purchase_and_not_for_the_store(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _, _ = rooms
    here._store.is_away = True

    async def buy(_flight: Flight) -> PurchasedImages:
        await asyncio.sleep(0.6)  # longer than a store that is away is asked
        return PurchasedImages({0: image()}, {})

    with impatient(monkeypatch):
        first, second = await settled(
            *(here.run_offline(PLACE, (0,), buy=buy) for _ in range(2)),
        )

    assert second.flight_error is None
    assert ids(first) == ids(second)
    assert here._listeners == set()
