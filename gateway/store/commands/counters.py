"""Counters of limits, and the admission of a request.

Counters, consumptions and states are tuples because every request makes one of each for every
limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.frozen import frozen
from gateway.images import Expected
from gateway.limits import Period
from gateway.store.protocol import Command

WINDOW_GRACE_SECONDS: Final = 7 * 86_400
"""How long the counters of a calendar window outlive it, for purchases that are settled late."""


class Counter(NamedTuple):
    """A counter of a limit subject, with its limit.

    `period`: `minute` is a token bucket that holds `maximum` and refills at `maximum` a minute;
    `day`, `week` and `month` are windows of the store's calendar with two counters, spent and
    reserved; `concurrency` is a window without end that only counts reserved amounts.

    `maximum` None counts without a limit (a bucket without a limit is not stored).
    """

    subject: str
    """`key:<id>`, `team:<name>` or `everyone`."""
    unit: str
    """`requests`, `images`, `tokens`, `usd_micros` or `purchases`."""
    period: Period
    maximum: int | None = None


class CounterState(NamedTuple):
    """A counter after the command; for a bucket `used` is the amount missing until full."""

    used: int
    reserved: int
    resets_in: float
    """Seconds until the window ends, or until the bucket is full; 0 for `concurrency`."""
    retry_in: float = 0.0
    """For the bucket that denied: seconds until it holds the amount; 0: it never will."""


class Consumption(NamedTuple):
    """An amount to take from a counter; 0 only reads it."""

    counter: Counter
    amount: int = 0
    shadow: bool = False
    """It is never denied. A window counts it all the same; a bucket without room gives nothing."""


@frozen
class Admission:
    """`denied` is the index of the first consumption that exceeds its limit; None: admitted.

    If any expected record differs, `changed` has all of them as they are stored (b"" for none),
    nothing was consumed and `states` is empty. Otherwise `changed` is None and `states` has one
    element per consumption.
    """

    denied: int | None
    changed: tuple[bytes, ...] | None
    states: tuple[CounterState, ...]
    now: float = 0.0
    """The store's time in Unix seconds; 0 if a record differs."""
    exceeded: tuple[int, ...] = ()
    """The indexes of the shadow consumptions that exceed their limits; none if one was denied."""


@frozen
class Admit(Command[Admission]):
    """Consumes from every bucket or from none, if all records are as `expected`.

    Windows can deny too, but nothing is reserved in them.
    """

    expected: tuple[Expected, ...]
    consumptions: tuple[Consumption, ...]


@frozen
class PeekCounters(Command[Sequence[CounterState]]):
    """The states of counters, in their order. Consumes nothing."""

    counters: tuple[Counter, ...]
