"""A calendar whose edges a test can put seconds ahead of it."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from gateway.calendar import Calendar, Day


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
