"""The queue of an account: places, turns and the journals that wait."""

from __future__ import annotations

import pytest

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Consumption, Counter, Place
from gateway.store.protocol import Store

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
