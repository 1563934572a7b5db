"""A calendar whose edges a test can put seconds ahead of it."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

from gateway.calendar import Calendar, Day

MID_JULY: Final = date(2026, 7, 15)
"""A Wednesday: the third day of its week, and one in the middle of its month."""


class MovedCalendar(Calendar):
    """The calendar as it would be, were it `moved_by` seconds later."""

    def __init__(self, moved_by: float, zone: tzinfo = UTC) -> None:
        super().__init__(zone)
        self._moved_by = round(moved_by)

    def day_at(self, now: float) -> Day:
        day = super().day_at(now + self._moved_by)
        windows = {
            period: window._replace(ends_at=window.ends_at - self._moved_by)
            for period, window in day.windows.items()
        }
        return Day(day.starts_at - self._moved_by, day.ends_at - self._moved_by, windows)


def before_new_year(now: float, seconds: float) -> float:
    """By how much to move a calendar so that 2027 begins `seconds` after `now`."""
    return datetime(2027, 1, 1, tzinfo=UTC).timestamp() - seconds - now


class OtherDates(Calendar):
    """The calendar as it would be `days` later. Its days begin and end when they do."""

    def __init__(self, days: int, zone: tzinfo = UTC) -> None:
        super().__init__(zone)
        self._days = timedelta(days)
        self._real = Calendar(zone)

    def date_at(self, now: float) -> date:
        return self._real.date_at(now) + self._days

    def start_of(self, day: date) -> int:
        return self._real.start_of(day - self._days)


def in_mid_july(zone: tzinfo = UTC) -> Calendar:
    """A calendar whose today is `MID_JULY`."""
    return OtherDates((MID_JULY - Calendar(zone).date_at(time.time())).days, zone)
