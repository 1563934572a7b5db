"""The queue of an account: places, turns and the journals that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Consumption, Counter, Place
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.store import open_sqlite_store
from tests.clocked_store import ClockedStore, clocked
from tests.stores import TOPOLOGIES

DAY = Counter("key:k", "images", "day", 10)
MINUTE = Counter("key:k", "images", "minute", 10)
BUDGET = Counter("upstream:b", "usd_micros", "day", 100)


def place(
    images: int = 1,
    *,
    key: str = "k",
    account: str = "a",
    priority: int = 1,
    rate: int | None = 60,
    concurrent: int | None = None,
    max_wait: float | None = None,
) -> Place:
    return Place(account, key, images, priority, rate, concurrent, max_wait)


def reserve(
    purchase: str, at: Place | None, *consumptions: Consumption, worker: str = "w"
) -> commands.Reserve:
    return commands.Reserve(purchase, worker, consumptions, b"payload", place=at)


def reroute(
    purchase: str, at: Place | None, *consumptions: Consumption, worker: str = "w"
) -> commands.Reroute:
    return commands.Reroute(purchase, worker, consumptions, b"rerouted", place=at)


def settle(purchase: str, **charge: int) -> commands.Settle:
    return commands.Settle(purchase, charge, None)


async def peek(store: Store, *counters: Counter) -> list[tuple[int, int]]:
    return [(s.used, s.reserved) for s in await execute(store, commands.PeekCounters(counters))]


async def state(store: Store, purchase: str) -> str:
    return await execute(store, commands.ReadJournalState(purchase))


class TestReserve:
    async def test_a_purchase_takes_the_accounts_tokens_or_waits(self, store: Store) -> None:
        first = await execute(store, reserve("one", place(60), Consumption(DAY, 3)))
        second = await execute(store, reserve("two", place(2), Consumption(DAY, 4)))
        assert first.turn == commands.Turn()
        assert (second.turn.state, second.turn.position) == ("queued", 1)
        assert second.turn.wait_seconds == pytest.approx(2.0, abs=0.5)
        assert [await state(store, name) for name in ("one", "two")] == ["reserved", "queued"]
        assert await peek(store, DAY) == [(0, 7)]
        assert [j.state for j in await execute(store, commands.OpenJournals())] == [
            "reserved",
            "queued",
        ]
        again = await execute(store, reserve("two", place(2), Consumption(DAY, 4)))
        assert (again.turn.state, await peek(store, DAY)) == ("queued", [(0, 7)])

    async def test_concurrency_is_held_until_the_settlement(self, store: Store) -> None:
        at = place(rate=None, concurrent=2)
        turns = [(await execute(store, reserve(f"p{i}", at))).turn.state for i in range(3)]
        assert turns == ["taken", "taken", "queued"]
        await store.execute([settle("p0"), settle("p2")])
        assert (await execute(store, reserve("p3", at))).turn.state == "taken"
        held = Counter("upstream:a", "purchases", "concurrency")
        assert await peek(store, held) == [(0, 2)]
        await store.execute([settle("p1"), settle("p3")])
        assert await peek(store, held) == [(0, 0)]

    async def test_a_wait_that_is_too_long_is_refused_at_once(self, store: Store) -> None:
        await execute(store, reserve("one", place(60)))
        await execute(store, reserve("two", place(30, max_wait=40.0)))
        late = place(20, max_wait=40.0)
        refused = (await execute(store, reserve("three", late, Consumption(DAY, 1)))).turn
        assert (refused.state, refused.position) == ("refused", 2)
        assert refused.wait_seconds == pytest.approx(50.0, abs=0.5)
        assert await state(store, "three") == "unknown"
        assert await peek(store, DAY) == [(0, 0)]

    async def test_keys_take_turns_in_images_by_priority(self, store: Store) -> None:
        """Positions tell the order: a round is one image for `k`, and three for `p`."""
        await execute(store, reserve("full", place(60)))
        positions = {}
        for name, at in {
            **{f"k{i}": place(key="k") for i in range(6)},
            "l0": place(key="l"),
            "l1": place(2, key="l"),
            **{f"p{i}": place(key="p", priority=3) for i in range(4)},
        }.items():
            positions[name] = (await execute(store, reserve(name, at))).turn.position
        assert positions == {
            **{f"k{i}": i + 1 for i in range(6)},
            "l0": 2,  # k0 l0 k1 …
            "l1": 5,  # k0 l0 k1 k2 l1 …
            "p0": 1,
            "p1": 2,
            "p2": 5,
            "p3": 6,  # p0 p1 k0 l0 p2 p3 …
        }

    async def test_one_that_settles_leaves_the_queue(self, store: Store) -> None:
        at = place(max_wait=None)
        await execute(store, reserve("full", place(60)))
        for name in ("one", "two", "three"):
            await execute(store, reserve(name, at))
        await store.execute([settle("one"), settle("two")])
        assert (await execute(store, reserve("four", at))).turn.position == 2
        assert await state(store, "one") == "settled"

    async def test_no_estimate_of_many_keys_is_above_what_waits(self, store: Store) -> None:
        await execute(store, reserve("full", place(60)))
        for i in range(51):
            await execute(store, reserve(f"p{i}", place(key=f"k{i}")))
        for i in range(5):
            turn = (await execute(store, reserve(f"q{i}", place(key="q")))).turn
        assert (turn.state, turn.position) == ("queued", 56)
        assert turn.wait_seconds == pytest.approx(56.0, abs=1.0)
        (read,) = await execute(store, commands.ReadTurns("a", 60, None, ("q4",)))
        assert read.position == 56
        assert read.wait_seconds == pytest.approx(56.0, abs=1.0)


class TestReroute:
    async def test_reservation_and_payload_are_replaced(self, store: Store) -> None:
        await execute(store, reserve("p", None, Consumption(DAY, 8), Consumption(MINUTE, 8)))
        rerouted = await execute(
            store,
            reroute(
                "p", None, Consumption(DAY, 10), Consumption(MINUTE, 10), Consumption(BUDGET, 7)
            ),
        )
        assert (rerouted.denied, rerouted.reserved_at) == (None, rerouted.now)
        assert await peek(store, DAY, MINUTE, BUDGET) == [(0, 10), (10, 0), (0, 7)]
        journal = (await execute(store, commands.OpenJournals("w")))[0]
        assert (journal.state, journal.payload) == ("reserved", b"rerouted")
        assert (journal.reserved["images"], journal.reserved["usd_micros"]) == (10, 7)
        await execute(store, settle("p", images=2, usd_micros=5))
        assert await peek(store, DAY, BUDGET) == [(2, 0), (5, 0)]

    async def test_a_denied_one_changes_nothing(self, store: Store) -> None:
        await execute(store, reserve("p", place(), Consumption(DAY, 4), Consumption(MINUTE, 4)))
        more = (Consumption(DAY, 4), Consumption(MINUTE, 4), Consumption(BUDGET, 101))
        denied = await execute(store, reroute("p", place(account="b"), *more))
        assert denied.denied == 2
        await execute(store, reserve("full", place(60, account="b")))
        late = place(account="b", max_wait=0.5)
        refused = await execute(store, reroute("p", late, Consumption(DAY, 9)))
        assert (refused.denied, refused.turn.state) == (None, "refused")
        assert await peek(store, DAY, MINUTE, BUDGET) == [(0, 4), (4, 0), (0, 0)]
        journal = (await execute(store, commands.OpenJournals("w")))[0]
        assert (journal.state, journal.payload) == ("reserved", b"payload")

    async def test_the_place_is_exchanged(self, store: Store) -> None:
        await execute(store, reserve("full", place(60)))
        await execute(store, reserve("p", place(concurrent=1)))
        other = place(account="b", rate=None, concurrent=1)
        assert (await execute(store, reroute("p", other))).turn.state == "taken"
        assert await state(store, "p") == "reserved"
        assert (await execute(store, reserve("q", other))).turn.state == "queued"
        assert (await execute(store, reroute("p", place()))).turn.position == 1
        assert await state(store, "p") == "queued"
        held = Counter("upstream:b", "purchases", "concurrency")
        assert await peek(store, held) == [(0, 0)]
        assert (await execute(store, reroute("q", None))).turn == commands.Turn()
        await store.execute([settle("p"), settle("q"), settle("full")])
        assert (await execute(store, reserve("r", place(2)))).turn.position == 1

    async def test_only_an_open_journal_is_rerouted(self, store: Store) -> None:
        await store.execute([reserve("r", None), commands.Receive("r", b"received")])
        await store.execute([reserve("s", None), settle("s")])
        for name in ("r", "s", "unknown"):
            found = await execute(store, reroute(name, None, Consumption(DAY, 1)))
            assert (found.denied, found.reserved_at) == (None, 0.0)
        assert await peek(store, DAY) == [(0, 0)]
        assert (await execute(store, commands.OpenJournals("w")))[0].payload == b"received"


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
async def clocked_store(request: pytest.FixtureRequest) -> AsyncIterator[ClockedStore]:
    async with clocked(request) as found:
        yield found


def take(
    worker: str = "w",
    *,
    rate: int | None = 60,
    concurrent: int | None = None,
    account: str = "a",
    seen: tuple[str, ...] = (),
) -> commands.TakeTurns:
    return commands.TakeTurns(account, worker, rate, concurrent, seen)


class TestTakeTurns:
    async def test_turns_come_at_the_accounts_rate(self, clocked_store: ClockedStore) -> None:
        async with clocked_store.open() as store:
            await execute(store, reserve("full", place(60)))
            for i in range(6):
                await execute(store, reserve(f"p{i}", place()))
            turns = await execute(store, take())
            assert (turns.taken, turns.waiting) == ((), 6)
            assert turns.next_in == pytest.approx(1.0)
            await clocked_store.move_to(clocked_store.now + 2.5)
            turns = await execute(store, take())
            assert (turns.taken, turns.waiting) == (("p0", "p1"), 4)
            assert turns.next_in == pytest.approx(0.5)
            assert await state(store, "p1") == "reserved"
            # A reply may be lost: until it has seen them, the worker is told again.
            assert (await execute(store, take())).taken == ("p0", "p1")
            assert (await execute(store, take(seen=("p0",)))).taken == ("p1",)
            queued = commands.ReadTurns("a", 60, None, ("p1", "p2", "p5", "unknown"))
            places = await execute(store, queued)
            assert [(turn.state, turn.position) for turn in places] == [
                ("taken", 0),
                ("queued", 1),
                ("queued", 4),
                ("refused", 0),
            ]
            assert places[2].wait_seconds == pytest.approx(3.5)
            await clocked_store.move_to(clocked_store.now + 10.0)
            turns = await execute(store, take(seen=("p1",)))
            assert (turns.taken, turns.waiting) == (("p2", "p3", "p4", "p5"), 0)

    async def test_a_request_larger_than_the_minute_goes_when_the_bucket_is_full(
        self, clocked_store: ClockedStore
    ) -> None:
        async with clocked_store.open() as store:
            await execute(store, reserve("one", place(1)))
            large = await execute(store, reserve("large", place(90)))
            small = await execute(store, reserve("small", place(1)))
            assert (large.turn.state, large.turn.wait_seconds) == ("queued", 1.0)
            assert small.turn.state == "queued"  # and takes no tokens that the large one needs
            await clocked_store.move_to(clocked_store.now + 1.0)
            turns = await execute(store, take())
            assert turns.taken == ("large",)
            assert turns.next_in == pytest.approx(31.0)  # 30 images are owed
            await clocked_store.move_to(clocked_store.now + 31.0)
            assert (await execute(store, take(seen=("large",)))).taken == ("small",)

    async def test_a_worker_that_does_not_take_its_turns_is_passed_over(
        self, clocked_store: ClockedStore
    ) -> None:
        async with clocked_store.open() as store:
            await execute(store, reserve("full", place(60)))
            for name, worker in (("p0", "dead"), ("p1", "dead"), ("p2", "w"), ("p3", "w")):
                await execute(store, reserve(name, place(), worker=worker))
            await clocked_store.move_to(clocked_store.now + 10.0)
            for step in (0.0, 1.9):
                await clocked_store.move_to(clocked_store.now + step)
                assert (await execute(store, take())).taken == ()
            await clocked_store.move_to(clocked_store.now + 0.2)
            turns = await execute(store, take())
            assert (turns.taken, turns.waiting) == (("p2", "p3"), 2)
            # It keeps its places, and is not slow any more once it asks.
            await execute(store, reserve("p4", place()))
            assert (await execute(store, take("dead"))).taken == ("p0", "p1")
            assert (await execute(store, take(seen=("p2", "p3")))).taken == ("p4",)

    async def test_a_turn_of_before_is_none_for_a_purchase_that_waits_again(
        self, clocked_store: ClockedStore
    ) -> None:
        """After a failover and back; the worker has not told that it has seen its first turn."""
        async with clocked_store.open() as store:
            await execute(store, reserve("full", place(60)))
            await execute(store, reserve("p", place()))
            await clocked_store.move_to(clocked_store.now + 1.0)
            assert (await execute(store, take())).taken == ("p",)
            await execute(store, reroute("p", place(account="b")))
            assert (await execute(store, reroute("p", place()))).turn.state == "queued"
            assert (await execute(store, take())).taken == ()
            await clocked_store.move_to(clocked_store.now + 1.0)
            assert (await execute(store, take())).taken == ("p",)
            await execute(store, settle("p"))
            assert (await execute(store, take())).taken == ()

    async def test_an_account_says_that_it_has_less(self, clocked_store: ClockedStore) -> None:
        def say(remaining: int | None = None, stop: float = 0.0) -> commands.CorrectAccount:
            return commands.CorrectAccount("a", 60, remaining, stop)

        async with clocked_store.open() as store:
            await execute(store, say(remaining=2))
            await execute(store, say(remaining=50))  # never more
            turns = [(await execute(store, reserve(f"p{i}", place()))).turn for i in range(3)]
            assert [turn.state for turn in turns] == ["taken", "taken", "queued"]
            await execute(store, say(remaining=-(10**6), stop=10.0**9))
            await clocked_store.move_to(clocked_store.now + 119.0)
            assert (await execute(store, take())).next_in == pytest.approx(1.0)
            await clocked_store.move_to(clocked_store.now + 1.0)
            assert (await execute(store, take())).taken == ("p2",)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as found:
        yield found


@pytest.fixture
def model_stores(
    runner: asyncio.Runner, sqlite_path: Path, redis_url: str
) -> Iterator[Sequence[Store]]:
    stack = AsyncExitStack()

    async def open_both() -> Sequence[Store]:
        opened = (open_sqlite_store(sqlite_path), open_redis_store(redis_url))
        return [await stack.enter_async_context(one) for one in opened]

    yield runner.run(open_both())
    runner.run(stack.aclose())


@given(
    st.lists(
        st.tuples(st.sampled_from("klm"), st.integers(1, 12), st.integers(1, 10)), max_size=12
    ),
    st.lists(st.integers(0, 11), max_size=4),
    st.integers(0, 10**9),
)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_order_is_that_of_a_small_model(
    model_stores: Sequence[Store],
    runner: asyncio.Runner,
    tickets: list[tuple[str, int, int]],
    leaving: list[int],
    number: int,
) -> None:
    """One at a time goes through, so the order of the turns is the order of the queue."""

    async def order(store: Store) -> list[str]:
        account = f"a{number}-{uuid4().hex}"
        rates: dict[str, Any] = {"account": account, "rate": None, "concurrent": 1}
        at = place(key="first", account=account, rate=None, concurrent=1)
        await execute(store, reserve(f"first-{account}", at))
        for i, (key, images, priority) in enumerate(tickets):
            at = Place(account, key, images, priority, None, 1)
            await execute(store, reserve(f"{i}-{account}", at))
        for i in leaving:
            await execute(store, settle(f"{i}-{account}"))
        found, running = [], f"first-{account}"
        while running:
            await execute(store, settle(running))
            taken = (await execute(store, take(**rates, seen=(running,)))).taken
            running = taken[0] if taken else ""
            found += [name.partition("-")[0] for name in taken]
        return found

    expected = [str(i) for i in _model_order(tickets, leaving)]
    for store in model_stores:
        assert runner.run(order(store)) == expected


def _model_order(tickets: list[tuple[str, int, int]], leaving: list[int]) -> list[int]:
    """Each key is given `priority` images a round; of equal ends the key that came first."""
    waiting: dict[str, list[int]] = {}
    for i, (key, *_) in enumerate(tickets):
        waiting.setdefault(key, []).append(i)
    for i in leaving:
        for queue in waiting.values():
            if i in queue:
                queue.remove(i)
    joined = list(waiting)
    given, found = dict.fromkeys(waiting, Fraction(0)), []
    while any(waiting.values()):
        ends = {
            key: given[key] + Fraction(tickets[queue[0]][1], tickets[queue[0]][2])
            for key, queue in waiting.items()
            if queue
        }
        key = min(ends, key=lambda key: (ends[key], joined.index(key)))
        given[key] = ends[key]
        found.append(waiting[key].pop(0))
    return found
