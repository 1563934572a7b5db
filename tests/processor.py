"""Processor time, scaled to the speed of one machine, so that a bound holds on slower ones too."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

_YARDSTICK_SECONDS: Final = 0.002
"""What the yardstick takes on the reference machine, for which the bounds of the tests are."""


def processor_seconds(work: Callable[[], object], *, best_of: int = 5) -> float:
    """The least processor time that `work` takes in this thread.

    It is divided by the slowness of this machine: how much longer than on the reference machine a
    fixed piece of work takes just after. A faster machine counts as the reference machine.
    """
    return min(_seconds(work) / _slowness() for _ in range(best_of))


def _slowness() -> float:
    return max(1.0, min(_seconds(_yardstick) for _ in range(3)) / _YARDSTICK_SECONDS)


def _yardstick() -> None:
    text = ""
    for number in range(9_000):
        text = f"{text[-8:]}{number % 7}"


async def longest_pause_seconds(work: Awaitable[object]) -> float:
    """The most processor time that other tasks of the event loop wait for.

    It is divided by the slowness of this machine, as that of `processor_seconds` is.
    """
    longest, task = 0.0, asyncio.ensure_future(work)
    gc.disable()  # a collection takes as long as this process has objects
    try:
        while not task.done():
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)
    finally:
        gc.enable()
    await task
    return longest / _slowness()


@dataclass
class Held:
    """For how long the event loop was held at most."""

    seconds: float = 0.0


@asynccontextmanager
async def watching_loop() -> AsyncIterator[Held]:
    """Watches how long this process holds the event loop, also from its other threads.

    Each turn of the loop counts for at most the processor time that the process took meanwhile, so
    that the time that other programs take from it does not count.
    """
    held = Held()

    async def watch() -> None:
        last = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter(), time.process_time()
            turn = min(after - before for before, after in zip(last, now, strict=True))
            held.seconds, last = max(held.seconds, turn), now

    watching = asyncio.create_task(watch())
    try:
        yield held
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
