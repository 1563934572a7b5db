"""The transaction that a command runs in."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gateway.calendar import UTC_CALENDAR, Calendar


class Transaction(NamedTuple):
    """An open transaction and its times, which are the same for all of a batch's commands."""

    db: sqlite3.Connection
    now: float
    """Unix seconds on the machine's clock, which can be set: for the calendar."""
    steady: float
    """Unix seconds on the steady clock (`steady_clock`): for leases, buckets and the like."""
    calendar: Calendar = UTC_CALENDAR
    """Of the windows of limits."""

    @property
    def now_micros(self) -> int:
        return round(self.now * 1e6)

    @property
    def steady_micros(self) -> int:
        return round(self.steady * 1e6)

    def fetch_one(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        """The first row of a query, or None."""
        return self.db.execute(sql, parameters).fetchone()

    def fetch_all(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return self.db.execute(sql, parameters).fetchall()

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Runs a statement that writes. Returns the number of rows it changed."""
        return self.db.execute(sql, parameters).rowcount

    def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Runs a statement that writes once for each row of parameters."""
        self.db.executemany(sql, rows)
