"""The turnstile: so many in a turn of the loop, everybody in the end, in order."""

from __future__ import annotations

import asyncio

from gateway.turnstile import Turnstile


async def test_so_many_pass_in_one_turn_and_all_in_order() -> None:
    turnstile, passed = Turnstile(3), []

    async def go(number: int) -> None:
        await turnstile.enter()
        passed.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(go(number))
        counts = []
        while len(passed) < 10:
            await asyncio.sleep(0)
            counts.append(len(passed))
    assert passed == list(range(10))
    assert max(later - sooner for sooner, later in zip([0, *counts], counts, strict=False)) == 3


async def test_who_comes_now_does_not_overtake_who_stands_in_line() -> None:
    turnstile, passed = Turnstile(1), []

    async def go(name: str) -> None:
        await turnstile.enter()
        passed.append(name)
        if name == "first":
            late.append(asyncio.create_task(go("late")))

    late: list[asyncio.Task[None]] = []
    await asyncio.gather(*(go(name) for name in ("first", "second", "third")))
    await asyncio.gather(*late)
    assert passed == ["first", "second", "third", "late"]


async def test_one_who_leaves_the_line_holds_up_nobody() -> None:
    turnstile = Turnstile(1)
    await turnstile.enter()
    leaving = [asyncio.create_task(turnstile.enter()) for _ in range(3)]
    staying = asyncio.create_task(turnstile.enter())
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    async with asyncio.timeout(1):
        await staying
    assert all(task.cancelled() or not task.exception() for task in leaving)


async def test_it_is_free_again_after_a_while() -> None:
    turnstile = Turnstile(1)
    for _ in range(3):
        async with asyncio.timeout(1):
            await turnstile.enter()
            await turnstile.enter()
        await asyncio.sleep(0.01)
