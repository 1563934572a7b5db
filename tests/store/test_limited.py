"""The line before a store: how many ask at once, who goes first, and what happens in an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import Admit, CompareAndSet, Get, Heartbeat, Write
from gateway.store.protocol import Command, Store, Watch
from gateway.store.wrappers import MAX_CONCURRENT_BATCHES, LimitedStore


@dataclass(frozen=True)
class NamedWatch:
    """A watch of which only the flight is known."""

    flight: str

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class SlowStore:
    """A store that answers nobody before it is told to."""

    name: str = "slow"
    asked: list[Command[Any]] = field(default_factory=list)
    waiting: list[asyncio.Future[list[Any]]] = field(default_factory=list)

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        self.asked += commands
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        return nullcontext(NamedWatch(flight))

    async def answer(self, count: int = 1) -> None:
        """Answers those who have waited longest; whoever is let in then has asked."""
        for answered in self.waiting[:count]:
            answered.set_result([None])
        del self.waiting[:count]
        await asyncio.sleep(0.01)

    async def fail(self, error: Exception) -> None:
        self.waiting.pop(0).set_exception(error)
        await asyncio.sleep(0.01)


@dataclass
class Line:
    """A full store, and those who stand before it."""

    slow: SlowStore
    tasks: list[asyncio.Task[Any]]


async def stand_in_line(*commands: Command[Any]) -> Line:
    """As many ask as may; then these, one after the other."""
    slow = SlowStore()
    store = LimitedStore(slow)
    taking = [Get("taken", str(number)) for number in range(MAX_CONCURRENT_BATCHES)]
    tasks = [asyncio.create_task(execute(store, command)) for command in (*taking, *commands)]
    await asyncio.sleep(0.01)
    assert slow.asked == taking
    slow.asked.clear()
    return Line(slow, tasks)


A, B = Get("in line", "a"), Get("in line", "b")


async def test_the_rest_go_when_a_place_is_free_in_the_order_in_which_they_came() -> None:
    line = await stand_in_line(A, B)
    await line.slow.answer()
    assert line.slow.asked == [A]
    await line.slow.answer()
    assert line.slow.asked == [A, B]
    await line.slow.answer(MAX_CONCURRENT_BATCHES)
    await asyncio.gather(*line.tasks)


async def test_a_watch_is_the_stores_own_and_stands_in_no_line() -> None:
    async with LimitedStore(SlowStore()).watch("a") as watch:
        assert watch == NamedWatch("a")


async def test_who_is_not_yet_admitted_waits_for_all_others() -> None:
    newcomer, beat = Admit("keys", "key", b"", ()), Heartbeat("worker")
    line = await stand_in_line(newcomer, A, beat)
    await line.slow.answer(3)
    assert line.slow.asked == [A, beat, newcomer]


async def test_an_outage_ends_the_waiting_at_once() -> None:
    line = await stand_in_line(A, Admit("keys", "key", b"", ()))
    await line.slow.fail(StoreUnavailable())
    for task in line.tasks[-2:]:
        with pytest.raises(StoreUnavailable):
            await task
    assert line.slow.asked == []


async def test_a_store_that_says_it_is_full_answers_the_next() -> None:
    line = await stand_in_line(A)
    await line.slow.fail(StoreFull())
    assert line.slow.asked == [A]
    with pytest.raises(StoreFull):
        await line.tasks[0]


@pytest.mark.parametrize("is_called", [False, True], ids=["before its turn", "in its turn"])
async def test_one_who_leaves_the_line_takes_no_place(is_called: bool) -> None:
    line = await stand_in_line(A, B)
    if is_called:
        line.slow.waiting.pop(0).set_result([None])
        await asyncio.sleep(0)  # the first is answered, and calls who is next
    line.tasks[-2].cancel()
    await asyncio.sleep(0.01)
    await line.slow.answer(0 if is_called else 1)
    assert B in line.slow.asked


async def test_places_are_free_again_after_a_crowd(store: Store) -> None:
    """Over a real store: all are answered, many times as many as may ask at once."""
    queued = LimitedStore(store)
    change = Write("things", "one", b"value", None)
    assert await execute(queued, CompareAndSet((change,))) is None
    for _ in range(2):
        found = await asyncio.gather(
            *(execute(queued, Get("things", "one")) for _ in range(3 * MAX_CONCURRENT_BATCHES))
        )
        assert found == [b"value"] * len(found)
