"""Turns of the event loop, and values that are kept for a while."""

from __future__ import annotations

import asyncio

import pytest

from gateway.tasks import Kept, Turns
from tests.waiting import generous


async def count_turns(count: list[int]) -> None:
    while True:
        count[0] += 1
        await asyncio.sleep(0)


async def test_in_one_turn_of_the_loop_one_caller_goes_on() -> None:
    turns, turn = Turns(), [0]
    found: dict[str, list[int]] = {name: [] for name in "abcde"}

    async def work(name: str) -> None:
        for _ in range(20):
            await turns.next()
            found[name].append(turn[0])

    counting = asyncio.create_task(count_turns(turn))
    await asyncio.gather(*map(work, found))
    counting.cancel()

    every = [number for numbers in found.values() for number in numbers]
    assert len(set(every)) == len(every) == 100
    # First come, first served: nobody is ahead of another by more than one part.
    for parts in zip(*found.values(), strict=True):
        assert max(parts) - min(parts) <= 3 * len(found)


async def test_a_cancelled_caller_delays_no_other() -> None:
    turns = Turns()
    leaving = [asyncio.create_task(turns.next()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    async with generous():
        await turns.next()


async def test_a_kept_value_is_read_once_until_it_is_old() -> None:
    now, reads = [0.0], [0]
    kept: Kept[int] = Kept(3.0, clock=lambda: now[0])

    async def work() -> int:
        reads[0] += 1
        await asyncio.sleep(0)
        if reads[0] == 2:
            raise ValueError
        return reads[0]

    async def read() -> int:
        return await kept.read(work, name="value")

    assert await asyncio.gather(read(), read()) == [1, 1]
    now[0] = 2.9
    assert await read() == 1
    now[0] = 3.0
    with pytest.raises(ValueError, match=r"^$"):
        await read()
    # An error is not kept.
    assert await read() == 3
