"""Which period and slot of the totals a moment belongs to, and when a slot begins. Pure.

Quarter hours are those of UTC. Days are those of a time zone, so they may have 23 or 25 hours, and
begin at any quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from gateway.calendar import Calendar, next_month
from gateway.store.commands import Period, TotalsKind

QUARTER_SECONDS: Final = 900
DAY_SECONDS: Final = 86_400
MAX_TIME: Final = datetime(9998, 1, 1, tzinfo=UTC).timestamp()
"""A day and a month after it are still in Python's calendar."""


@dataclass(frozen=True, slots=True)
class Series:
    """Rows of one kind, in one time zone."""

    kind: TotalsKind
    zone: str

    @property
    def has_months(self) -> bool:
        """Whether a period is a month of days; else it is a day."""
        return self.kind == "day"

    def place(self, time: float) -> tuple[Period, int]:
        """The period and the slot of a moment, in Unix seconds from 0 to `MAX_TIME`."""
        # All time zones change their offset at a quarter hour of UTC, by quarters of an hour.
        return _place(self, int(time // QUARTER_SECONDS))

    def periods(self, since: float, until: float) -> list[str]:
        """The names of all periods with a moment from `since` to before `until`."""
        if until <= since:
            return []
        first, last = self._date(since), self._date(until - 1e-6)
        return list(dict.fromkeys(self.period_of(day) for day in _days(first, last)))

    def period_of(self, day: date) -> str:
        """The name of the period of a day."""
        label = f"{day:%Y-%m}" if self.has_months else f"{day:%Y-%m-%d}"
        return f"{self.kind}:{self.zone}:{label}"

    def starts_at(self, period: str, slot: int) -> float:
        """When a slot begins, in Unix seconds."""
        label = period.rpartition(":")[2]
        if self.has_months:
            return self._midnight(date.fromisoformat(f"{label}-{slot:02}"))
        midnight = self._midnight(date.fromisoformat(label))
        return midnight + slot * QUARTER_SECONDS if self.kind == "quarter" else midnight

    def _date(self, time: float) -> date:
        return _calendar(self.zone).date_at(time)

    def _midnight(self, day: date) -> float:
        return _calendar(self.zone).start_of(day)


@lru_cache
def _calendar(zone: str) -> Calendar:
    return Calendar(ZoneInfo(zone))


@lru_cache(maxsize=4096)
def _place(series: Series, quarter: int) -> tuple[Period, int]:
    time = quarter * QUARTER_SECONDS
    day = series._date(time)  # noqa: SLF001 - of this module
    end = next_month(day) if series.has_months else day + timedelta(days=1)
    period = Period(series.kind, series.period_of(day), series._midnight(end))  # noqa: SLF001
    if series.kind == "quarter":
        return period, time % DAY_SECONDS // QUARTER_SECONDS
    return period, day.day if series.has_months else 0


def _days(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += timedelta(days=1)
