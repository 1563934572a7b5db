"""The arithmetic of counters: token buckets and windows, exact and without I/O.

The Redis store does the same arithmetic in Lua. Everything is an integer: a bucket's level is
counted in units of which one request is 60 million, so that a bucket of `maximum` refills exactly
`maximum` units a microsecond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gateway.calendar import UTC_CALENDAR, Calendar, Window
from gateway.limits import Period
from gateway.store.commands import CounterState

UNITS: Final = 60_000_000
"""Units of one request, and microseconds of a minute."""

BUCKET_SECONDS: Final = 60.0
"""A bucket that nothing was taken from for so long is full, even if its maximum has changed."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: its level in units at a moment in microseconds."""

    level: int
    at: int


def refill(bucket: Bucket | None, maximum: int, *, now: int) -> Bucket:
    """The bucket at `now` (microseconds). None is a new bucket, which is full."""
    capacity = maximum * UNITS
    if bucket is None:
        return Bucket(capacity, now)
    # A clock that was set back refills nothing. A maximum that was lowered cuts the level off.
    elapsed = max(0, now - bucket.at)
    return Bucket(min(capacity, bucket.level + elapsed * maximum), max(now, bucket.at))


def bucket_state(bucket: Bucket, maximum: int, *, denied: int = 0) -> CounterState:
    """The state of a refilled bucket; `denied` is the amount that did not fit, if any.

    `retry_in` is 0 for an amount that does not fit into a full bucket either.
    """
    used = maximum * UNITS - bucket.level
    missing = denied * UNITS - bucket.level if denied <= maximum else 0
    return CounterState(
        used=_ceil_divide(used, UNITS),
        reserved=0,
        resets_in=_seconds_to_refill(used, maximum),
        retry_in=_seconds_to_refill(max(0, missing), maximum),
    )


def _seconds_to_refill(units: int, maximum: int) -> float:
    return _ceil_divide(units, maximum) / 1e6 if maximum else 0.0


def _ceil_divide(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def window_at(period: Period, now: float, calendar: Calendar = UTC_CALENDAR) -> Window:
    """The window of a period at `now` (Unix seconds). Concurrency has one that never ends."""
    match period:
        case "day" | "week" | "month":
            return calendar.day_at(now).windows[period]
        case "minute" | "concurrency":
            return Window("", math.inf)


def window_state(window: Window, spent: int, reserved: int, *, now: float) -> CounterState:
    """The state of a window's counters; a window that never ends never resets."""
    resets_in = 0.0 if math.isinf(window.ends_at) else window.ends_at - now
    return CounterState(spent, reserved, resets_in)
