"""Tasks that outlive their callers, shared work, turns on the event loop, and capacity.

A request's task ends when its client can no longer be written to, or when the server stops. Paid
work must not end with it, so it runs in a task of `OwnedTasks`, which a draining worker waits for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

import structlog

from gateway.errors import ErrorCode, GatewayError, detach

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

RETRY_SECONDS: Final = 2
"""When a client that was refused for want of capacity may try again."""

log = structlog.get_logger(__name__)


class OwnedTasks:
    """Tasks that no caller owns.

    `on_change` is called with the number of tasks, once for all changes in a turn of the loop.
    """

    def __init__(self, on_change: Callable[[int], None] = lambda count: None) -> None:
        self._on_change = on_change
        self._is_changed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Starts `work`. Logs a failure that is not a `GatewayError`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        # The event loop has only a weak reference to a task.
        self._tasks.add(task)
        self._note_change()
        task.add_done_callback(self._end)
        return task

    async def run(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Awaits `work`, which goes on when this call is cancelled."""
        return await asyncio.shield(self.start(work, name=name))

    async def drain(self) -> None:
        """Returns when no task is left, including those started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _note_change(self) -> None:
        if not self._is_changed:
            asyncio.get_running_loop().call_soon(self._tell_change)
            self._is_changed = True

    def _tell_change(self) -> None:
        self._is_changed = False
        self._on_change(len(self._tasks))

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._note_change()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, GatewayError):
            log.error("owned_task_failed", task=task.get_name(), exc_info=error)
        if error is not None:
            detach(error)


async def wait_for_end(task: asyncio.Task[Any], *, seconds: float) -> None:
    """Waits until a task has ended, at most for so long; the task goes on."""
    # As `asyncio.wait({task}, timeout=seconds)` in two thirds of the time: every purchase waits so.
    ended = asyncio.get_running_loop().create_future()

    def end(_: object = None) -> None:
        if not ended.done():
            ended.set_result(None)

    timer = ended.get_loop().call_later(seconds, end)
    task.add_done_callback(end)
    try:
        await ended
    finally:
        timer.cancel()
        task.remove_done_callback(end)


class SerialThread:
    """A thread that runs functions one after the other, off the event loop.

    Several threads that hold the GIL would take turns with each other, and the event loop would
    wait for all of them. The pool's own thread also keeps the default executor free, which reads
    and writes images.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, function: Callable[[], T]) -> T:
        """The result of `function`. If the caller is cancelled before its turn, it never runs."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)


class Turns:
    """Lets one caller at a time go on, each in its own iteration of the event loop.

    With `sleep(0)` alone, all callers would run in the same iteration, and every other request
    would wait for all of them.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Returns in a later iteration of the loop, in which no other caller returns."""
        async with self._lock:
            await asyncio.sleep(0)


class SingleFlight(Generic[K, T]):
    """Callers that want the same thing at the same time share the work and its result.

    The work runs in a task of its own: a caller that is cancelled does not end it for the others.
    """

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[T]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._running

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
        """The result of `work`, which is called only if none of the same `key` is running."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work(), name=name)
            task.add_done_callback(lambda ended: self._end(key, ended))
        return await asyncio.shield(task)

    def _end(self, key: K, task: asyncio.Task[T]) -> None:
        del self._running[key]
        # Retrieved, or asyncio logs it when every caller has gone.
        error = None if task.cancelled() else task.exception()
        if isinstance(error, GatewayError):
            detach(error)  # any other is a fault, which a caller logs with its traceback


class Capacity:
    """How many of one kind of work this worker has open at most.

    `of` and `setting` name the work and its bound in the refusal.
    """

    def __init__(self, maximum: int = sys.maxsize, *, of: str = "", setting: str = "") -> None:
        self._maximum = maximum
        self._of = of
        self._setting = setting
        self.used = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may be opened."""
        return self.used >= self._maximum

    def check(self) -> None:
        """Raises 503 if no more may be opened."""
        if self.is_full:
            raise self.refusal()

    def refusal(self) -> GatewayError:
        """The error of a request beyond the bound."""
        return GatewayError(
            f"This worker has {self._maximum:,} {self._of}, as many as {self._setting} allows. "
            f"Please try again in {RETRY_SECONDS}s.",
            code=ErrorCode.OVERLOADED,
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Opens one until the block is left. Raises 503 beyond the bound."""
        self.check()
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1


class Kept(Generic[T]):
    """A value that is read again after some seconds. Callers at the same time share the read."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._value: tuple[float, T] | None = None
        self._reads: SingleFlight[None, T] = SingleFlight()

    async def read(self, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
        """The value of `work`, at most `seconds` old. An error is not kept."""
        if self._value is not None and self._clock() - self._value[0] < self._seconds:
            return self._value[1]
        return await self._reads.run(None, lambda: self._read(work), name=name)

    async def _read(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        value = await work()
        self._value = self._clock(), value
        return value
