"""The table of limits: which units of a key are limited, over which period, and when they count.

A row is data. It is enforced by `billing.quota` and the stores' counters. `check_limits` refuses a
row that those would not enforce, so no key can have a limit that limits nothing. Users read of the
limits in `docs/reference/billing.md#limits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

MICROS_PER_USD: Final = 1_000_000
"""Money is counted in micro-dollars."""

Unit: TypeAlias = Literal["requests", "images", "tokens", "usd_micros", "purchases"]
"""An admission counts one of `requests`. A purchase reserves one of `purchases`, and it reserves
and is charged the others (`images.Amounts`)."""

CalendarPeriod: TypeAlias = Literal["day", "week", "month"]
"""The windows of `calendar.Calendar`."""

Period: TypeAlias = Literal["minute", "day", "week", "month", "concurrency"]
"""`minute` is a token bucket, `day`, `week` and `month` are calendar windows, and `concurrency`
counts the reservations of open purchases."""

CALENDAR_PERIODS: Final[tuple[CalendarPeriod, ...]] = get_args(CalendarPeriod)


@dataclass(frozen=True, slots=True)
class Limit:
    """A row of the table."""

    name: str
    unit: Unit
    period: Period
    at_admission: bool = False
    """It counts each valid request; otherwise only purchases."""

    @property
    def words(self) -> str:
        """The name as people read it: `dollars per month`."""
        return self.name.replace("usd", "dollars").replace("_", " ")

    @property
    def is_money(self) -> bool:
        """It limits dollars."""
        return self.unit == "usd_micros"

    @property
    def is_rate(self) -> bool:
        """A refusal asks the client to come back soon. The other limits are budgets."""
        return self.period in ("minute", "concurrency")


def check_limits(rows: Sequence[Limit]) -> None:
    """Refuses a table with a row that would not be enforced.

    Raises `ValueError`, which names the row and says why.
    """
    names: set[str] = set()
    counters: dict[tuple[str, str], str] = {}
    for row in rows:
        if (problem := _problem(row)) is not None:
            raise ValueError(f"limit '{row.name}': {problem}")
        if row.name in names:
            raise ValueError(f"limit '{row.name}': another row has this name")
        names.add(row.name)
        # Two rows of one counter would each take from it: it would count everything twice.
        counter = row.unit, row.period
        if counter in counters:
            raise ValueError(
                f"limit '{row.name}': '{counters[counter]}' limits {row.unit} by {row.period} too"
            )
        counters[counter] = row.name


def _problem(row: Limit) -> str | None:
    """Why neither store would enforce a row; None if both do."""
    if row.unit not in get_args(Unit):
        return f"unknown unit '{row.unit}'; use one of {', '.join(get_args(Unit))}"
    if row.period not in get_args(Period):
        return f"unknown period '{row.period}'; use one of {', '.join(get_args(Period))}"
    if row.at_admission and row.unit != "requests":
        return f"an admission counts requests, not {row.unit}; set at_admission to False"
    if row.unit == "requests" and not row.at_admission:
        return "a purchase reserves no requests; set at_admission to True"
    if row.at_admission and row.period != "minute":
        return (
            f"an admission takes from token buckets only; use period 'minute', not '{row.period}'"
        )
    if row.unit == "purchases" and row.period in CALENDAR_PERIODS:
        return (
            "a settled purchase is charged images, tokens and money, so purchases are counted "
            "only while they are open; use period 'minute' or 'concurrency'"
        )
    return None


_ROWS: Final = (
    Limit("requests_per_minute", "requests", "minute", at_admission=True),
    Limit("images_per_minute", "images", "minute"),
    Limit("concurrent_requests", "purchases", "concurrency"),
    Limit("images_per_day", "images", "day"),
    Limit("tokens_per_day", "tokens", "day"),
    Limit("usd_per_day", "usd_micros", "day"),
    Limit("usd_per_week", "usd_micros", "week"),
    Limit("usd_per_month", "usd_micros", "month"),
)

check_limits(_ROWS)

LIMITS: Final[Mapping[str, Limit]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every limit by its name. A new limit is a new row."""
