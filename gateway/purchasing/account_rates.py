"""An account's rate without the store, and as upstream's headers report it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from gateway.store.commands import MAX_STOP_SECONDS

REMAINING: Final = "x-ratelimit-remaining-images"
RESETS: Final = ("x-ratelimit-reset-images", "x-ratelimit-reset-requests")

_DURATION: Final = re.compile(
    r"(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m(?!s))?(?:(?P<s>\d{1,6}(?:\.\d{1,9})?)s)?"
    r"(?:(?P<ms>\d{1,9}(?:\.\d{1,9})?)ms)?"
)
"""As Go writes one: `1m30s`, `120ms`."""
_NUMBER: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")


@dataclass(frozen=True, slots=True)
class ReportedRate:
    """The headers of a response about the account's rate."""

    remaining: int | None = None
    """Images that it would still take."""
    stop_seconds: float = 0.0
    """For how long it takes none."""

    def and_then(self, later: ReportedRate) -> ReportedRate:
        """Both, as strict as either."""
        known = [one for one in (self.remaining, later.remaining) if one is not None]
        return ReportedRate(min(known, default=None), max(self.stop_seconds, later.stop_seconds))


def read_reported_rate(status: int, headers: Mapping[str, str]) -> ReportedRate | None:
    """None if no header tells. A value in another format is ignored."""
    remaining = None
    if (text := headers.get(REMAINING, "")).isascii() and text.isdigit() and len(text) < 10:
        remaining = int(text)
    stop = _stop_seconds(headers) if status == 429 else 0.0
    return ReportedRate(remaining, stop) if remaining is not None or stop else None


def _stop_seconds(headers: Mapping[str, str]) -> float:
    """How long a 429 stops the queue: its Retry-After, else the longest reset header, else 1 s.

    A 0 is ignored.
    """
    after = headers.get("Retry-After", "")
    if _NUMBER.fullmatch(after) and float(after):
        return min(float(after), MAX_STOP_SECONDS)
    found = [parse_go_duration(headers.get(name, "")) or 0.0 for name in RESETS]
    return min(max(found) or 1.0, MAX_STOP_SECONDS)


def parse_go_duration(text: str) -> float | None:
    """Seconds of a duration as the headers of the service have it; None for another text."""
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        return None
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(found[unit] or 0) * seconds for unit, seconds in units.items())


class LocalRate:
    """A worker's share of an account's rate, while the store is unavailable.

    `share` workers divide it. A purchase that has to wait takes its tokens at once, so those that
    come later wait for longer.
    """

    def __init__(
        self,
        images_per_minute: int | None,
        concurrent: int | None,
        *,
        share: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._rate = None if images_per_minute is None else images_per_minute / share
        self._open = None if concurrent is None else asyncio.Semaphore(max(1, concurrent // share))
        self._clock = clock
        self._sleep = sleep
        self._level = self._rate or 0.0
        self._at = -math.inf

    def wait_seconds(self, images: int) -> float:
        """How long a purchase would wait for the rate."""
        if self._rate is None:
            return 0.0
        level = min(self._rate, self._level + max(0.0, self._clock() - self._at) * self._rate / 60)
        return max(0.0, (min(images, self._rate) - level) * 60 / self._rate)

    def take(self, images: int, *, max_wait_seconds: float) -> float | None:
        """Takes tokens; returns the wait, or None if it would be too long: then takes nothing."""
        if self._rate is None:
            return 0.0
        wait, now = self.wait_seconds(images), self._clock()
        if wait > max_wait_seconds:
            return None
        elapsed = max(0.0, now - self._at)
        self._level = min(self._rate, self._level + elapsed * self._rate / 60) - images
        self._at = now
        return wait

    @asynccontextmanager
    async def waiting(self, seconds: float) -> AsyncIterator[None]:
        """Waits, and holds one of the open purchases until the block is left."""
        if seconds:
            await self._sleep(seconds)
        if self._open is None:
            yield
            return
        async with self._open:
            yield
