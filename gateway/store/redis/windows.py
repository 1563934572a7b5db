"""The calendar windows that the scripts choose from.

Redis knows no time zones, and its clock decides. So a gateway sends the windows of two days in a
row, and the script chooses between them by its own clock. If it is in neither, it does nothing and
answers with its time, and the gateway sends the command again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from redis.exceptions import ResponseError

from gateway.calendar import Calendar, Day
from gateway.limits import CALENDAR_PERIODS

HALF_A_DAY: Final = 43_200
WRONG_CALENDAR: Final = "CALENDAR "
"""The start of the error reply, before the server's time in microseconds."""


class CurrentWindows:
    """The two days to send, by the server's clock as far as it is known."""

    def __init__(self, calendar: Calendar, clock: Callable[[], float] = time.time) -> None:
        self._calendar = calendar
        self._clock = clock
        self._ahead_seconds = 0.0
        self._valid = (0.0, 0.0)
        self._text = ""

    def read(self) -> str:
        """Of two days when the first begins, and the names and ends of the windows of each."""
        now = self._clock() + self._ahead_seconds
        if not self._valid[0] <= now < self._valid[1]:
            self._text = self._compute(now)
        return self._text

    def use_server_time(self, error: ResponseError) -> None:
        """Goes by the time of a script that found itself in neither day."""
        now = int(str(error).removeprefix(WRONG_CALENDAR)) / 1e6
        self._ahead_seconds = now - self._clock()
        self._text = self._compute(now)

    def _compute(self, now: float) -> str:
        # In the first half of a day the day before is sent too, else the next one: a clock that is
        # wrong by less than half a day needs no second attempt.
        first = self._calendar.day_at(now - HALF_A_DAY)
        second = self._calendar.day_at(first.ends_at)
        self._valid = (first.starts_at + HALF_A_DAY, first.ends_at + HALF_A_DAY)
        return " ".join((str(first.starts_at), *_words(first), *_words(second)))


def _words(day: Day) -> list[str]:
    windows = [(period, day.windows[period]) for period in CALENDAR_PERIODS]
    return [word for period, window in windows for word in (window_name(period, window.label),
            str(int(window.ends_at)))]  # fmt: skip


def window_name(period: str, label: str) -> str:
    """A calendar window in the name of its key."""
    return f"{period}:{label}"


def is_wrong_calendar(reply: object) -> bool:
    """Whether a script did nothing because its clock is in neither day."""
    return isinstance(reply, ResponseError) and str(reply).startswith(WRONG_CALENDAR)
