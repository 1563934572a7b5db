"""The headers of an answer that show what is left of its limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from gateway.billing.counted_limits import SHOWN, LimitState


def rate_headers(states: Iterable[LimitState]) -> Mapping[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,images,tokens}`, the tightest of each unit.

    A limit in shadow mode is not shown, because it refuses nothing.
    """
    tightest: dict[str, tuple[int, LimitState]] = {}
    for state in states:
        # Without the properties of `LimitState`: nearly every answer shows up to seven limits.
        limit, _, rule, counter = state
        if rule.mode != "enforce" or (unit := limit.unit) not in SHOWN:
            continue
        remaining = max(0, rule.maximum - counter.used - counter.reserved)
        if unit not in tightest or remaining <= tightest[unit][0]:
            tightest[unit] = remaining, state
    headers: dict[str, str] = {}
    for shown, (remaining, (_, _, rule, counter)) in tightest.items():
        headers["x-ratelimit-limit-" + shown] = str(rule.maximum)
        headers["x-ratelimit-remaining-" + shown] = str(remaining)
        headers["x-ratelimit-reset-" + shown] = go_duration(counter.resets_in)
    return headers


def go_duration(seconds: float) -> str:
    """As Go's `time.Duration.String()` shows it, to the millisecond: `1m30s`, `120ms`, `0s`.

    The grammar of the `x-ratelimit-reset-…` headers, see
    `docs/reference/images-api.md#headers-of-the-service`.
    """
    millis = max(0, math.ceil(seconds * 1000))
    if millis == 0:
        return "0s"
    if millis < 1000:
        return f"{millis}ms"
    minutes, millis = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{millis / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
