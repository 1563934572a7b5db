"""Calendar windows: the days, weeks and months of a time zone. Pure.

Both stores count in these windows (`docs/reference/billing.md#calendar`), and totals have rows of
their days. A window begins and ends at the start of a day, so days determine all windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from types import MappingProxyType
from typing import Final, NamedTuple

_DAY: Final = timedelta(days=1)


class Window(NamedTuple):
    """A day, week or month. Its label identifies it, even if another time zone moves its end."""

    label: str
    ends_at: float
    """Unix seconds."""


class Day(NamedTuple):
    """A calendar day, and the windows that contain it."""

    starts_at: int
    """Unix seconds."""
    ends_at: int
    windows: Mapping[str, Window]
    """By period: `day`, `week` from Monday, `month`."""


class Calendar:
    """The calendar of a time zone. It keeps the latest day, so that most calls compute nothing."""

    def __init__(self, zone: tzinfo = UTC) -> None:
        self._zone = zone
        self._latest: Day | None = None

    @property
    def time_zone(self) -> str:
        """The name of the zone, such as `Europe/Berlin`."""
        return str(self._zone)

    def day_at(self, now: float) -> Day:
        """The day that contains `now` (Unix seconds)."""
        day = self._latest
        # Threads may compute the same day at once; the last assignment wins.
        if day is None or not day.starts_at <= now < day.ends_at:
            day = self._latest = self._compute(now)
        return day

    def date_at(self, now: float) -> date:
        """The date of `now` (Unix seconds)."""
        # In whole seconds: `fromtimestamp` would round the last moment of a day to the next day.
        today = datetime.fromtimestamp(math.floor(now), self._zone).date()
        # After midnight a clock may be set back to the day before. That day does not come back: its
        # windows have ended, and a limit must not reset twice.
        while self.start_of(today + _DAY) <= now:
            today += _DAY
        return today

    def _compute(self, now: float) -> Day:
        today = self.date_at(now)
        monday = today - timedelta(days=today.weekday())
        first = today.replace(day=1)
        tomorrow = self.start_of(today + _DAY)
        windows = {
            "day": Window(f"{today:%Y-%m-%d}", tomorrow),
            # ISO 8601: the week belongs to the year that most of its days are in.
            "week": Window(f"{monday:%G-W%V}", self.start_of(monday + 7 * _DAY)),
            "month": Window(f"{first:%Y-%m}", self.start_of(next_month(today))),
        }
        return Day(self.start_of(today), tomorrow, MappingProxyType(windows))

    def starts_at(self, now: float) -> Mapping[str, int]:
        """When each window that contains `now` began, by period."""
        today = self.date_at(now)
        return {
            "day": self.start_of(today),
            "week": self.start_of(today - timedelta(days=today.weekday())),
            "month": self.start_of(today.replace(day=1)),
        }

    def start_of(self, day: date) -> int:
        """The first instant whose local date is `day` or a later one."""
        midnight = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        # Of a midnight that a clock shows twice, `fold` 0 is the first one. A midnight that it
        # skips is between the two readings (PEP 495), and so is the skip.
        latest, earliest = midnight.timestamp(), midnight.replace(fold=1).timestamp()
        if earliest >= latest:
            return int(latest)
        before, after = int(earliest), int(latest)
        while after - before > 1:
            middle = (before + after) // 2
            if datetime.fromtimestamp(middle, self._zone).date() < day:
                before = middle
            else:
                after = middle
        return after


def next_month(day: date) -> date:
    """The first day of the month after that of `day`."""
    # 32 days after the first of a month is always in the next one.
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


UTC_CALENDAR: Final = Calendar()
