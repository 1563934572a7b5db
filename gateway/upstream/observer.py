"""What observes the attempts of purchases, and the clock and randomness that they go by."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


class Observer(Protocol):
    """Receives the outcome of every attempt at one account; the metrics implement it."""

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """An attempt ended with a status, or with `unreachable`, `cut`, `rejected` or `timeout`."""

    def retried(self) -> None:
        """Another attempt will follow."""

    def failed_over(self) -> None:
        """A purchase that this account did not take goes on to another one."""

    def waits(self, more: int) -> None:
        """A purchase begins (1) or stops (−1) to wait before it may be sent."""

    def waited(self, seconds: float) -> None:
        """How long a purchase waited in all before its last attempt."""

    def breaker_turned(self, *, is_open: bool) -> None:
        """The circuit breaker has opened or closed."""


class Unobserved:
    """An observer that records nothing."""

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """Nothing."""

    def retried(self) -> None:
        """Nothing."""

    def failed_over(self) -> None:
        """Nothing."""

    def waits(self, more: int) -> None:
        """Nothing."""

    def waited(self, seconds: float) -> None:
        """Nothing."""

    def breaker_turned(self, *, is_open: bool) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The clock and the randomness of retries, routing and breaker, which tests replace."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random
    """Uniform in [0, 1)."""
    wall_clock: Callable[[], float] = time.time
    """Unix seconds."""
