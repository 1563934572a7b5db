"""Processor time of servers, from the kernel's clocks of processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.bench.results import Measurement, ratio
from tests.processes import living_children

SETTLE_SECONDS = 1.0
"""After the last answer, a worker of the gateway still writes counts, records and last uses."""
IDLE_SHARE = 0.05
"""Of a processor, that an idle worker and Redis stay below."""
MAX_WAIT_SECONDS = 1200.0
_WHOLE_PROCESS = 2
"""The kind of a clock in Linux' ids of clocks: user and system time of all threads."""


@dataclass(frozen=True)
class Processes:
    """The processes that answer requests, as process ids. None: not known."""

    workers: Sequence[int] = ()
    redis: int | None = None
    upstream: int | None = None
    settle_seconds: float = 0.0
    """How long they write after the last answer."""


@dataclass
class Spent:
    """Seconds of processor time during a block; valid after the block."""

    worker: float | None = None
    redis: float | None = None
    upstream: float | None = None

    def for_each(
        self, requests: int, *, per_second: float | None = None, p50_ms: float | None = None
    ) -> Measurement:
        """The time of one of these requests, with rate and latency that were measured beside it."""
        each = [
            _milliseconds(seconds, requests) for seconds in (self.worker, self.redis, self.upstream)
        ]
        return Measurement(per_second, p50_ms, *each)


def _milliseconds(seconds: float | None, requests: int) -> float | None:
    return ratio(None if seconds is None else seconds * 1e3, requests)


@contextmanager
def spent_by(processes: Processes) -> Iterator[Spent]:
    """Measures while the block runs, and for the time that writing afterwards takes."""
    spent, before = Spent(), _read(processes)
    yield spent
    time.sleep(processes.settle_seconds)
    after = _read(processes)
    spent.worker, spent.redis, spent.upstream = (
        None if start is None or end is None else end - start
        for start, end in zip(before, after, strict=True)
    )


def until_idle(processes: Processes, *, watch_seconds: float = 5.0) -> None:
    """Waits until worker and Redis have worked off what was written before.

    They are watched for `watch_seconds` at a time. Raises `TimeoutError` after twenty minutes.
    """
    until = time.monotonic() + MAX_WAIT_SECONDS
    while time.monotonic() < until:
        with spent_by(processes) as spent:
            time.sleep(watch_seconds)
        if (spent.worker or 0.0) + (spent.redis or 0.0) < IDLE_SHARE * watch_seconds:
            return
    raise TimeoutError("after twenty minutes the gateway is still not idle")


def _read(processes: Processes) -> tuple[float | None, float | None, float | None]:
    workers = [used_seconds(pid) for pid in processes.workers]
    single = (processes.redis, processes.upstream)
    redis, upstream = (None if pid is None else used_seconds(pid) for pid in single)
    return sum(workers) if workers else None, redis, upstream


def used_seconds(pid: int) -> float:
    """User and system time of a process and of its living children. 0 if it has ended."""
    total = 0.0
    with suppress(OSError):
        total = time.clock_gettime(~pid << 3 | _WHOLE_PROCESS)
        total += sum(used_seconds(child) for child in living_children(pid))
    return total
