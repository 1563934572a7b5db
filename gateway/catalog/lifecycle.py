"""When a model retires, and what happens to its requests then.

A model is shut down at 00:00 UTC of its date. All functions get today's date, or the moment in Unix
seconds, from their caller: the clock is an argument.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final, Literal, TypeAlias

Retired: TypeAlias = Literal["forward", "serve-cached", "refuse"]
"""What happens to requests for a model that was shut down.

`forward`: they are sent as before. `serve-cached`: its images do not expire, and nothing is bought.
`refuse`: they are refused before the cache is asked."""

DAY_SECONDS: Final = 86_400

WARNING_DAYS: Final = 60
"""Days before the shutdown from which answers have the header `x-gateway-model-retires`."""


def utc_date(now: float) -> date:
    """The date of a moment in Unix seconds."""
    return _date_of(int(now // DAY_SECONDS))


@lru_cache(maxsize=16)
def _date_of(day: int) -> date:
    return datetime.fromtimestamp(day * DAY_SECONDS, UTC).date()


def is_shut_down(shutdown: date | None, today: date) -> bool:
    """Whether upstream has shut a model down; never without a date."""
    return shutdown is not None and today >= shutdown


def is_announced(shutdown: date | None, today: date) -> bool:
    """Whether answers name the date: from `WARNING_DAYS` before it, and after it."""
    return shutdown is not None and (shutdown - today).days <= WARNING_DAYS
