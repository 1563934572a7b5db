"""Counters, and the admission of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from gateway.store.protocol import Command

WINDOW_GRACE_SECONDS: Final = 7 * 86_400
"""How long a calendar window's counters outlive the window, for purchases settled late."""


# ── the books: meters, journals, ledger ─────────────────────────────────────────────────────
#
# Meters, takes and states are tuples: every request makes one of each for every limit there is.


class Counter(NamedTuple):
    """A counter of a scope, with the most it may show.

    `period`:
    `minute` is a token bucket that holds `maximum` and refills `maximum` a minute;
    `day` and `month` are UTC calendar windows with two counters, spent and reserved;
    `open` is a window without end: what is reserved right now.
    `maximum` None counts without a limit (a bucket without a limit is not kept).
    Units are `requests`, `images`, `tokens`, `micros`, `purchases`.
    """

    scope: str
    """Whose counter: `key:<id>`, later `team:<name>` and `everyone`."""
    unit: str
    period: Literal["minute", "day", "month", "concurrency"]
    maximum: int | None = None


class CounterState(NamedTuple):
    """What a meter shows after the verb; for a bucket `used` is what is missing from full."""

    used: int
    reserved: int
    resets_in: float
    """Seconds until the window ends; for a bucket, until it is full; 0 for `open`."""
    retry_in: float = 0.0
    """Only on a refused bucket: seconds until it holds what was asked for."""


class Consumption(NamedTuple):
    """An amount taken from a meter; 0 only looks."""

    counter: Counter
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """`denied` is the index of the first take that would pass its maximum, None if admitted.

    `record` is the key's record as it is now when it differs from the expected one (b"" if it is
    gone); then nothing was taken. `states` has one element a take; it is empty when stale.
    """

    denied: int | None
    record: bytes | None
    states: tuple[CounterState, ...]


@dataclass(frozen=True, slots=True)
class Admit(Command[Admission]):
    """Takes from every bucket or from none, provided the record still equals `expect`."""

    space: str
    name: str
    expected: bytes
    consumptions: tuple[Consumption, ...]


@dataclass(frozen=True, slots=True)
class PeekCounters(Command[Sequence[CounterState]]):
    """What meters show now."""

    counters: tuple[Counter, ...]
