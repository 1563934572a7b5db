"""The table of limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Limit:
    """A row of the limit table: what is counted, over which period, and when."""

    name: str
    unit: str
    """`requests`, `images`, `tokens` or `micros`; `purchases` for what is open right now."""
    period: Literal["minute", "day", "month", "concurrency"]
    """`minute` (token bucket), `day`, `month` (UTC calendar windows) or `open` (right now)."""
    at_admission: bool = False
    """Counted for every valid request; otherwise only before a purchase."""

    @property
    def is_rate(self) -> bool:
        """Rates ask the caller to come back; budgets do not."""
        return self.period in ("minute", "concurrency")


LIMITS: Final[Mapping[str, Limit]] = MappingProxyType(
    {
        limit.name: limit
        for limit in (
            Limit("requests_per_minute", "requests", "minute", at_admission=True),
            Limit("images_per_minute", "images", "minute"),
            Limit("concurrent_requests", "purchases", "concurrency"),
            Limit("images_per_day", "images", "day"),
            Limit("tokens_per_day", "tokens", "day"),
            Limit("usd_per_day", "usd_micros", "day"),
            Limit("usd_per_month", "usd_micros", "month"),
        )
    }
)
"""Every limit of CONTRACT §8. A new limit is a new row."""
