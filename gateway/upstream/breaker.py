"""The circuit breaker: when to stop asking a service that fails, and when to ask again.

    closed ── so many failures in a row ──▶ open ── after so many seconds ──▶ one request tries
       ▲                                     ▲                                     │
       │                                     └──────────── it fails ───────────────┤
       └──────────────── anything that shows that the service is there ────────────┘

Pure: no `async`, no I/O, and time is an argument, in seconds of a clock that only goes forward.
What counts as a failure is for the client to say, and what a refused caller is told for `wire`.
Each worker has one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TRIAL_SECONDS: Final = 60.0
"""How long others wait for the one that tries, before the next one may.

An image may take longer; a request whose connection was lost unnoticed takes until its deadline,
and would keep everybody out of a service that has long been back.
"""


@dataclass(frozen=True, slots=True)
class Pass:
    """One request may go; it says afterwards how it ended, with this in hand."""

    trial: int | None = None
    """Which trial of an open breaker it is; None for an ordinary request."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is to be sent now."""

    seconds: float
    """How long until it may be worth another try; above zero."""


class Breaker:
    """Closed until `failures` requests in a row have failed; 0 is a breaker that never opens."""

    def __init__(self, *, failures: int, open_seconds: float) -> None:
        self._failures = failures
        self._open_seconds = open_seconds
        self._row = 0
        self._next_try_at: float | None = None
        """None while it is closed."""
        self._trials = 0
        self._trial: int | None = None
        """The trial whose end decides; None while nobody tries."""

    @property
    def is_open(self) -> bool:
        """Also while one tries: everybody else is refused."""
        return self._next_try_at is not None

    def enter(self, now: float) -> Pass | Refused:
        """Asks whether one request may go. Each `Pass` must end in exactly one of the three below.

        Also a request that went while the breaker was closed, and ends when it no longer is.
        """
        if self._next_try_at is None:
            return Pass()
        if now < self._next_try_at:
            return Refused(min(self._next_try_at - now, self._open_seconds))
        self._trials += 1
        self._trial = self._trials
        self._next_try_at = now + max(TRIAL_SECONDS, self._open_seconds)
        return Pass(self._trial)

    def succeed(self) -> None:
        """The service is there: whoever saw that, whenever they were sent."""
        self._row = 0
        self._next_try_at = self._trial = None

    def fail(self, entered: Pass, now: float) -> None:
        """The service is not there. Of an open breaker only the trial says something new."""
        if self._next_try_at is None:
            self._row += 1
            if 0 < self._failures <= self._row:
                self._open(now)
        elif self._is_trial(entered):
            self._open(now)

    def abandon(self, entered: Pass, now: float) -> None:
        """It ended without a word about the service: another one may try in its stead."""
        if self._is_trial(entered):
            self._next_try_at, self._trial = now, None

    def _is_trial(self, entered: Pass) -> bool:
        return entered.trial is not None and entered.trial == self._trial

    def _open(self, now: float) -> None:
        self._next_try_at, self._trial = now + self._open_seconds, None
