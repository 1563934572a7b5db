"""The arithmetic of meters, exact and without I/O: token buckets and UTC calendar windows.

`sqlite` keeps its books with it; `redis` does the same arithmetic in Lua, on its server's clock.
All in integers: a bucket's level is counted in units of which one request is 60 million, so that
a bucket of `maximum` refills exactly `maximum` units a microsecond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from gateway.store.commands import CounterState

UNITS: Final = 60_000_000
"""Units of one request, and microseconds of a minute."""

BUCKET_SECONDS: Final = 60.0
"""After a minute without a take every bucket is full, whatever its maximum was meanwhile."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: its level in units at a moment in microseconds."""

    level: int
    at: int


def refill(bucket: Bucket | None, maximum: int, *, now: int) -> Bucket:
    """The bucket at `now` (microseconds); None is a new one, which is full.

    A level above the capacity of a maximum that was lowered is cut off. A clock that went
    backwards refills nothing.
    """
    capacity = maximum * UNITS
    if bucket is None:
        return Bucket(capacity, now)
    elapsed = max(0, now - bucket.at)
    return Bucket(min(capacity, bucket.level + elapsed * maximum), max(now, bucket.at))


def show_bucket(bucket: Bucket, maximum: int, *, denied: int = 0) -> CounterState:
    """What a refilled bucket shows; `denied` is the amount that it could not give, if any.

    `retry_in` stays 0 for an amount that no wait would make fit.
    """
    missing = maximum * UNITS - bucket.level
    lacking = denied * UNITS - bucket.level if denied <= maximum else 0
    return CounterState(
        used=_ceil_divide(missing, UNITS),
        reserved=0,
        resets_in=_seconds_to_refill(missing, maximum),
        retry_in=_seconds_to_refill(max(0, lacking), maximum),
    )


def _seconds_to_refill(units: int, maximum: int) -> float:
    return _ceil_divide(units, maximum) / 1e6 if maximum else 0.0


def _ceil_divide(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the UTC calendar: its name, and when it ends in Unix seconds."""

    label: str
    ends_at: float


def window_at(period: Literal["minute", "day", "month", "concurrency"], now: float) -> Window:
    """The window of a period that `now` lies in; `open` has one without end."""
    moment = datetime.fromtimestamp(now, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return Window(f"{midnight:%Y-%m-%d}", (midnight + timedelta(days=1)).timestamp())
    if period == "month":
        first = midnight.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
        return Window(f"{first:%Y-%m}", following.timestamp())
    return Window("", math.inf)


def show_window(spent: int, reserved: int, *, resets_in: float) -> CounterState:
    """What a window shows; one without end never resets."""
    return CounterState(spent, reserved, 0.0 if math.isinf(resets_in) else resets_in)
