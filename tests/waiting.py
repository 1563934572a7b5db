"""Waits for a state instead of a duration.

No number here decides a test: the bound only ends a test that hangs.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

GENEROUS_SECONDS: Final = 30.0
"""Longer than any step takes, also on a loaded machine."""

DEADLINE_SECONDS: Final = 20.0
"""A deadline that only expires because a test moves the clock."""

_LOOK_SECONDS: Final = 0.02

T = TypeVar("T")


async def eventually(look: Callable[[], Any], *, seconds: float = GENEROUS_SECONDS) -> Any:
    """Waits for a true value of `look`, which may be async, and returns that."""
    started = time.monotonic()
    while True:
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        _check(started, found, seconds=seconds)
        await asyncio.sleep(_LOOK_SECONDS)


def until(look: Callable[[], Any]) -> Any:
    """As `eventually`, for a test without an event loop."""
    started = time.monotonic()
    while not (found := look()):
        _check(started, found)
        time.sleep(_LOOK_SECONDS)
    return found


def _check(started: float, found: object, *, seconds: float = GENEROUS_SECONDS) -> None:
    is_late = time.monotonic() - started > seconds
    assert not is_late, f"nothing within {seconds:g} s, but {found!r}"


def generous() -> asyncio.Timeout:
    """Ends a block that hangs."""
    return asyncio.timeout(GENEROUS_SECONDS)


async def turns(count: int = 20) -> None:
    """Lets all tasks of this loop run until they wait for something outside of it."""
    for _ in range(count):
        await asyncio.sleep(0)


def pass_time(seconds: float) -> None:
    """Moves the running loop's clock forward, so that a timeout expires.

    It stays ahead, because a loop's time never goes back. uvloop's clock cannot be moved.
    """
    loop = asyncio.get_running_loop()
    ahead = loop.time() + seconds - time.monotonic()
    loop.time = lambda: time.monotonic() + ahead  # type: ignore[method-assign]


async def run_out_of_time(work: Coroutine[Any, Any, T], *, once: Callable[[], Any]) -> T:
    """Runs `work` with a deadline of `DEADLINE_SECONDS`, which expires once `once` is true."""
    task = asyncio.create_task(work)
    try:
        await eventually(once)
        pass_time(DEADLINE_SECONDS)
        return await task
    finally:
        task.cancel()
