"""The calendar windows that the scripts choose from.

Redis knows no time zones, and its clock decides. So a gateway sends the windows of two days in a
row, and the script chooses between them by its own clock. If it is in neither, it does nothing and
answers with its time, and the gateway sends the command again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from gateway.calendar import Calendar, Day
from gateway.limits import CALENDAR_PERIODS, CalendarPeriod

HALF_A_DAY: Final = 43_200
DAY: Final = 86_400


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, in each look-up of a cache
class Today:
    """The one of the two days that the gateway takes for the server's date."""

    begins: int
    """Unix seconds."""
    ends: int
    windows: tuple[tuple[str, str, int], ...]
    """Period, name and end of each window."""


class CurrentDays(NamedTuple):
    """What the gateway sends of the server's date and the next, or the one before."""

    calendar: str
    """Of two days when the first begins, and the names and ends of the windows of each."""
    ledger: tuple[str, ...]
    """The two UTC days, as the ledger's streams have them."""
    today: Today | None = None


class CurrentWindows:
    """The two days to send, by the server's clock as far as it is known."""

    def __init__(self, calendar: Calendar, clock: Callable[[], float] = time.time) -> None:
        self._calendar = calendar
        self._clock = clock
        self._ahead_seconds = 0.0
        self._valid = (0.0, 0.0)
        self._current = CurrentDays("", ())

    def read(self) -> CurrentDays:
        """The same object for as long as the days are the same."""
        now = self._clock() + self._ahead_seconds
        if not self._valid[0] <= now < self._valid[1]:
            self._current = self._compute(now)
        return self._current

    def use_server_time(self, now: float) -> None:
        """Goes by the time of a script, in Unix seconds, if these are not its days."""
        if not self._valid[0] <= now < self._valid[1]:
            self._ahead_seconds = now - self._clock()
            self._current = self._compute(now)

    def _compute(self, now: float) -> CurrentDays:
        # In the first half of a day the day before is sent too, else the next one: a clock that is
        # wrong by less than half a day needs no second attempt.
        first = self._calendar.day_at(now - HALF_A_DAY)
        second = self._calendar.day_at(first.ends_at)
        # The same of UTC. The days are valid until either pair changes, or today ends.
        of_ledger = [int((now + shift) // DAY) for shift in (-HALF_A_DAY, HALF_A_DAY)]
        changes_at = of_ledger[1] * DAY + HALF_A_DAY
        day = first if now < first.ends_at else second
        self._valid = (
            max(first.starts_at + HALF_A_DAY, changes_at - DAY, day.starts_at),
            min(first.ends_at + HALF_A_DAY, changes_at, day.ends_at),
        )
        return CurrentDays(
            " ".join((str(first.starts_at), *_words(first), *_words(second))),
            tuple(f"{datetime.fromtimestamp(day * DAY, UTC):%Y-%m-%d}" for day in of_ledger),
            Today(
                day.starts_at,
                day.ends_at,
                tuple((period, *_words_of(period, day)) for period in CALENDAR_PERIODS),
            ),
        )


def _words(day: Day) -> list[str]:
    return [str(word) for period in CALENDAR_PERIODS for word in _words_of(period, day)]


def _words_of(period: CalendarPeriod, day: Day) -> tuple[str, int]:
    """The name and the end of a window."""
    window = day.windows[period]
    return window_name(period, window.label), int(window.ends_at)


def window_name(period: str, label: str) -> str:
    """A calendar window in the name of its key."""
    return f"{period}:{label}"
