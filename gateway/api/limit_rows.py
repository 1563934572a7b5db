"""Limits as the API and the command line show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gateway.access.limit_changes import ScopeLimits
from gateway.access.limit_values import from_units, in_units
from gateway.billing.counted_limits import LimitState
from gateway.billing.limit_states import CounterUse
from gateway.limits import CALENDAR_PERIODS, Limit
from gateway.store.commands import CounterState


def limits_object(
    found: ScopeLimits, states: Sequence[LimitState], *, time_zone: str, now: float
) -> dict[str, Any]:
    """All limits of a scope, with what is used of them."""
    shown = {
        "scope": found.subject.scope,
        "time_zone": time_zone,
        "data": [_row(found, state, now) for state in states],
    }
    return shown if found.declared_in is None else {**shown, "declared_in": found.declared_in}


def _row(found: ScopeLimits, state: LimitState, now: float) -> dict[str, Any]:
    name = state.limit.name
    set_to = in_units(name, found.values[name].maximum)
    return {
        "limit": name,
        **use_of_limit(state, now),
        "raised": from_units(name, state.maximum - set_to),
        "mode": state.rule.mode,
        "warn_at": list(state.rule.warn_at),
        "raises": [raised.public() for raised in found.raises if raised.limit == name],
    }


def use_of_limit(state: LimitState, now: float) -> dict[str, Any]:
    """The maximum, with raises; what is used and reserved of it; and when that resets."""
    return _use(state.limit, state.maximum, state.counter, now)


def used_rows(kind: str, uses: Sequence[CounterUse], now: float) -> list[dict[str, Any]]:
    """What a key or a team has used of each of its limits, for the bars of a list."""
    return [
        {
            "limit": use.limit.name,
            "scope": kind,
            **_use(use.limit, None if use.rule is None else use.rule.maximum, use.counter, now),
            "mode": None if use.rule is None else use.rule.mode,
        }
        for use in uses
    ]


def _use(limit: Limit, maximum: int | None, counter: CounterState, now: float) -> dict[str, Any]:
    name = limit.name
    return {
        "max": None if maximum is None else from_units(name, maximum),
        "used": from_units(name, counter.used),
        "reserved": from_units(name, counter.reserved),
        "resets_at": _resets_at(limit, counter, now),
    }


def _resets_at(limit: Limit, counter: CounterState, now: float) -> int | None:
    if limit.period == "concurrency":
        return None  # it has no window
    resets_at = now + counter.resets_in
    # A window ends with a whole second, and the clocks of worker and store differ by less.
    is_window = limit.period in CALENDAR_PERIODS
    return round(resets_at) if is_window else math.ceil(resets_at)
