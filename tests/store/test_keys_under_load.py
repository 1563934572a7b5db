"""Scripts find their keys while others change them: queues of many keys, and books that move."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest
import redis

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Consumption, Place, ReadBooks, Reserve, WindowName
from gateway.store.commands import Counter as Limit
from gateway.store.protocol import Command, Store
from gateway.store.redis.store import MAX_ASKED, open_redis_store
from tests.waiting import eventually

OPEN: Final = WindowName("key:k", "concurrency", "")
LIMIT: Final = Consumption(Limit("key:k", "purchases", "concurrency", 1000), 1)


def waits(purchase: str, key: str, *, worker: str = "w") -> Reserve:
    """A purchase that waits while the account `a` has images to make."""
    return Reserve(purchase, worker, (), b"{}", place=Place("a", key, 1, 1, 60, 100))


@asynccontextmanager
async def stores(url: str, count: int) -> AsyncIterator[list[Store]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_redis_store(url)) for _ in range(count)]


def count_rounds(store: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By script, how often it is sent for one command at most."""
    run, execute_all, most, sent = store._client.run, store.execute, Counter[str](), Counter[str]()

    async def counted(encoded: Any, mark: Any = None) -> Any:
        sent.update(each.name for each in encoded)
        return await run(encoded, mark)

    async def counting(commands: Any) -> Any:
        sent.clear()
        try:
            return await execute_all(commands)
        finally:
            for name, count in sent.items():
                most[name] = max(most[name], count)

    monkeypatch.setattr(store._client, "run", counted)
    monkeypatch.setattr(store, "execute", counting)
    return most


# ── reading the books ───────────────────────────────────────────────────────────────────────


async def test_the_books_are_read_at_one_moment_while_purchases_go_on(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each purchase counts 1, so a consistent reading has as many purchases as the window says."""
    async with stores(redis_url, 3) as (one, other, reader):
        ends, bought = False, Counter[str]()

        async def buy(store: Store, worker: str, buyer: int) -> None:
            while not ends:
                purchase = f"{worker}-{buyer}-{bought[worker]}"
                bought[worker] += 1
                reserve = Reserve(purchase, worker, (LIMIT,), b"{}", ("key:k",), {"images": 1})
                await execute(store, reserve)
                await execute(store, commands.Settle(purchase, {"images": 1}, b"{}"))

        workers = ((one, "one"), (other, "other"))
        async with asyncio.TaskGroup() as buyers:
            for store, worker in workers:
                for buyer in range(10):
                    buyers.create_task(buy(store, worker, buyer))
            await eventually(lambda: min(bought[worker] for _, worker in workers) > 20)
            rounds, readings = count_rounds(reader, monkeypatch), list[int]()
            while len(readings) < 20 or max(readings) < 2:
                books = await execute(reader, ReadBooks((OPEN,), max_purchases=1000))
                assert books.purchases is not None
                reserved = books.windows[0].reserved.get("purchases", 0)
                held = [
                    each.reserved[OPEN]["purchases"] for each in books.purchases if each.reserved
                ]
                assert len(held) == len(books.purchases)
                assert sum(held) == reserved
                readings.append(reserved)
                await asyncio.sleep(0.01)
            ends = True
        # The workers are found with the first reading, and nothing is looked up after it.
        assert rounds["read_books"] <= 2


async def test_a_worker_settles_purchases_whose_keys_it_does_not_know(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker died with purchases of many keys. One batch settles them, and charges each once."""
    async with stores(redis_url, 2) as (dead, worker):
        names = [f"p{i}" for i in range(100)]
        reserves = [
            Reserve(name, "dead", (LIMIT,), b"{}", ("key:k", f"team:{name}"), {"usd_micros": 9})
            for name in names
        ]
        await dead.execute(reserves)
        rounds = count_rounds(worker, monkeypatch)
        settle = [
            commands.Settle(name, {"usd_micros": 7}, b"{}", totals=("all",)) for name in names
        ]
        first = await worker.execute(settle)
        again = await worker.execute(settle)
        assert {reply.status for reply in first} == {"settled"}
        assert {reply.status for reply in again} == {"already"}
        (total,) = await execute(worker, commands.ReadRunningTotals(("all",)))
        assert total.charged == 700
        assert len(await execute(worker, commands.ReadLedger())) == 100
        books = await execute(worker, ReadBooks((OPEN,), max_purchases=10))
        assert books.purchases == []
        assert books.windows[0].reserved == {}
        assert rounds["settle"] == 2 * len(names)  # each once, and once more with further keys


# ── queues ──────────────────────────────────────────────────────────────────────────────────


async def test_purchases_of_many_keys_all_get_their_turn(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More keys than a script reads, while purchases of two workers join and leave."""
    async with stores(redis_url, 2) as workers:
        rounds = [count_rounds(store, monkeypatch) for store in workers]
        keys, seen, settled = 60, set[str](), set[str]()
        for i in range(2 * keys):
            place = Place("a", f"k{i % keys}", 1, 1, None, 10)
            worker = i % 2
            reply = await execute(
                workers[worker], Reserve(f"p{i}", f"w{worker}", (), b"{}", place=place)
            )
            assert reply.turn.state == ("taken" if i < 10 else "queued")
            if i < 10:
                seen.add(f"p{i}")
        for _ in range(200):
            for purchase in sorted(seen - settled):
                await execute(workers[0], commands.Settle(purchase, {}, None))
                settled.add(purchase)
            for worker, store in enumerate(workers):
                told = tuple(seen)[:50]
                turns = await execute(
                    store, commands.TakeTurns("a", f"w{worker}", None, 10, seen=told)
                )
                seen.update(turns.taken)
            if len(settled) == 2 * keys:
                break
        assert len(settled) == 2 * keys
        assert turns.waiting == 0
        for most in rounds:
            assert max(most.values()) <= MAX_ASKED + 1


@asynccontextmanager
async def while_keys_join(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Store, Store, list[str]]]:
    """A store that has learned no keys. Before each of its round trips a new key joins the queue.

    Yields another store, this one, and the keys that have joined.
    """
    async with stores(url, 2) as (worker, other):
        await execute(worker, commands.CorrectAccount("a", 60, remaining=0))
        for i in range(12):
            reply = await execute(worker, waits(f"p{i}", f"k{i % 6}"))
            assert reply.turn.state == "queued"
        joined: list[str] = []
        client: Any = other
        run = client._client.run

        async def join_and_run(encoded: Any, mark: Any = None) -> Any:
            joined.append(f"joined{len(joined)}")
            await execute(worker, waits(joined[-1], joined[-1]))
            return await run(encoded, mark)

        monkeypatch.setattr(client._client, "run", join_and_run)
        yield worker, other, joined


@pytest.mark.parametrize("kind", ["read", "reserve"])
async def test_a_position_is_estimated_while_keys_join_all_the_time(
    kind: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with while_keys_join(redis_url, monkeypatch) as (worker, other, joined):
        read: Command[Any] = commands.ReadTurns("a", 60, 100, ("p0", "p11"))
        ask = read if kind == "read" else waits("new", "new")
        found = await execute(other, ask)
        assert len(joined) == MAX_ASKED + 1
        if kind == "read":
            exact = await execute(worker, read)
            assert [turn.state for turn in found] == ["queued", "queued"]
            assert found[0].position == exact[0].position == 1
        else:
            exact = await execute(worker, commands.ReadTurns("a", 60, 100, ("new",)))
            found = [found.turn]
            assert found[0].state == "queued"
        # Only the key that joined last is unknown. It has one purchase.
        assert abs(found[-1].position - exact[-1].position) <= 1
        assert abs(found[-1].wait_seconds - exact[-1].wait_seconds) <= 2.0


async def test_turns_are_taken_while_keys_join_all_the_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with while_keys_join(redis_url, monkeypatch) as (_, other, joined):
        with redis.Redis.from_url(redis_url) as client:  # the account may make images again
            client.hset("igw:{books}:queue:account:a", mapping={"level": 60 * 60_000_000})
        taken, calls = set[str](), 0
        while len(taken) < 12:
            calls += 1
            assert calls < 10
            before = len(joined)
            turns = await execute(other, commands.TakeTurns("a", "w", 60, 100))
            assert len(joined) - before <= MAX_ASKED + 1
            taken.update(name for name in turns.taken if name.startswith("p"))
