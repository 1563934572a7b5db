"""`LimitedStore`: the limit, the order of the queues, outages, and cancelled batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.errors import StoreFull, StoreUnavailable
from gateway.images import Expected
from gateway.store.batch import execute
from gateway.store.commands import Admit, CompareAndSet, Get, Heartbeat, Write
from gateway.store.protocol import Command, KeptReads, Store, Watch
from gateway.store.wrappers import MAX_CONCURRENT_BATCHES, LimitedStore
from tests.nothing_kept import NothingKept
from tests.waiting import turns


@dataclass(frozen=True)
class NamedWatch:
    """A watch that only knows its flight."""

    flight: str

    async def wait(self, timeout_seconds: float) -> None:
        await asyncio.sleep(timeout_seconds)


@dataclass
class SlowStore:
    """A store whose batches run until the test ends them."""

    name: str = "slow"
    kept: KeptReads = field(default_factory=NothingKept)
    started: list[Command[Any]] = field(default_factory=list)
    running: list[asyncio.Future[list[Any]]] = field(default_factory=list)

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        self.started += commands
        self.running.append(asyncio.get_running_loop().create_future())
        return await self.running[-1]

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        return nullcontext(NamedWatch(flight))

    async def finish(self, count: int = 1) -> None:
        """Ends the oldest batches and lets the next ones start."""
        for batch in self.running[:count]:
            batch.set_result([None])
        del self.running[:count]
        await turns()

    async def fail(self, error: Exception) -> None:
        self.running.pop(0).set_exception(error)
        await turns()


@dataclass
class Queue:
    """A store at its limit, and the tasks of all batches."""

    slow: SlowStore
    tasks: list[asyncio.Task[Any]]


async def queue_up(*commands: Command[Any]) -> Queue:
    """Starts as many batches as the limit allows, then these in order."""
    slow = SlowStore()
    store = LimitedStore(slow)
    first = [Get("running", str(number)) for number in range(MAX_CONCURRENT_BATCHES)]
    tasks = [asyncio.create_task(execute(store, command)) for command in (*first, *commands)]
    await turns()
    assert slow.started == first
    slow.started.clear()
    return Queue(slow, tasks)


A, B = Get("queued", "a"), Get("queued", "b")


async def test_queued_batches_start_in_order_when_others_end() -> None:
    queue = await queue_up(A, B)
    await queue.slow.finish()
    assert queue.slow.started == [A]
    await queue.slow.finish()
    assert queue.slow.started == [A, B]
    await queue.slow.finish(MAX_CONCURRENT_BATCHES)
    await asyncio.gather(*queue.tasks)


async def test_a_watch_is_the_stores_own_and_does_not_queue() -> None:
    async with LimitedStore(SlowStore()).watch("a") as watch:
        assert watch == NamedWatch("a")


async def test_admissions_start_after_all_other_batches() -> None:
    admission, heartbeat = Admit((Expected("keys", "key", b""),), ()), Heartbeat("worker")
    queue = await queue_up(admission, A, heartbeat)
    await queue.slow.finish(3)
    assert queue.slow.started == [A, heartbeat, admission]


async def test_an_outage_fails_all_queued_batches_at_once() -> None:
    queue = await queue_up(A, Admit((Expected("keys", "key", b""),), ()))
    await queue.slow.fail(StoreUnavailable())
    for task in queue.tasks[-2:]:
        with pytest.raises(StoreUnavailable):
            await task
    assert queue.slow.started == []


async def test_a_full_store_executes_the_next_batch() -> None:
    queue = await queue_up(A)
    await queue.slow.fail(StoreFull())
    assert queue.slow.started == [A]
    with pytest.raises(StoreFull):
        await queue.tasks[0]


@pytest.mark.parametrize("is_its_turn", [False, True], ids=["before its turn", "in its turn"])
async def test_a_cancelled_batch_takes_no_turn(is_its_turn: bool) -> None:
    queue = await queue_up(A, B)
    if is_its_turn:
        queue.slow.running.pop(0).set_result([None])
        await asyncio.sleep(0)  # the first batch ends, and it is the turn of the next
    queue.tasks[-2].cancel()
    await turns()
    await queue.slow.finish(0 if is_its_turn else 1)
    assert B in queue.slow.started


async def test_the_limit_is_free_again_after_many_concurrent_batches(store: Store) -> None:
    """On a real store: three times as many batches as the limit, and every one is executed."""
    limited = LimitedStore(store)
    write = Write("things", "one", b"value", None)
    assert await execute(limited, CompareAndSet((write,))) is None
    for _ in range(2):
        found = await asyncio.gather(
            *(execute(limited, Get("things", "one")) for _ in range(3 * MAX_CONCURRENT_BATCHES))
        )
        assert found == [b"value"] * len(found)
