"""The forecast of a window: what it comes to if spending goes on at the pace so far. Pure.

Alerts, the overview and the shipped dashboards have this one idea of it
(`docs/reference/overview.md#forecast`).
"""

from __future__ import annotations

from typing import Final

_DAY_SECONDS: Final = 86_400.0


def forecast(used: int, *, starts_at: float, ends_at: float, now: float) -> int:
    """What a window comes to at its end, in the unit of `used`.

    During the first day, as if that day were over: a purchase in the first minute says little.
    """
    length = ends_at - starts_at
    elapsed = max(min(now, ends_at) - starts_at, min(_DAY_SECONDS, length))
    return int(used * length / elapsed)
