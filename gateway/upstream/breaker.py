"""The circuit breaker in front of upstream: stops sending while upstream fails.

    closed ── `failures` failures in succession ──▶ open ── after `open_seconds` ──▶ half-open
      ▲                                              ▲                                   │
      │                                              └────────── the probe fails ────────┤
      └────────────────────── any response that shows that upstream is up ───────────────┘

Pure: no `async`, no I/O. Time is an argument, in seconds of a monotonic clock. The client decides
which outcomes are failures, and `failures` words the 503 of a rejected purchase. Each worker
has its own breaker. See `docs/reference/billing.md#retries-and-the-circuit-breaker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROBE_SECONDS: Final = 60.0
"""How long a half-open breaker waits for its probe before it permits another one.

A probe whose connection was lost unnoticed lasts until the client's deadline. Without this bound
it would block all purchases from an upstream that has long recovered.
"""


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission to send one purchase. Its holder reports the outcome with it."""

    probe: int | None = None
    """The number of the probe; None for a purchase that was permitted while closed."""


_WHILE_CLOSED: Final = Permit()


@dataclass(frozen=True, slots=True)
class Rejected:
    """The breaker is open: the purchase must not be sent."""

    retry_after_seconds: float
    """Until the next probe may be permitted; above zero."""


class Breaker:
    """Opens after `failures` failures in succession; with 0 it never opens."""

    def __init__(self, *, failures: int, open_seconds: float) -> None:
        self._max_failures = failures
        self._open_seconds = open_seconds
        self._failures = 0
        self._next_probe_at: float | None = None  # None while closed
        self._probes = 0
        self._probe: int | None = None  # the probe whose outcome decides; None unless half-open

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self._next_probe_at is not None

    def admits(self, now: float) -> bool:
        """Whether `acquire` would give permission now."""
        return self._next_probe_at is None or now >= self._next_probe_at

    def acquire(self, now: float) -> Permit | Rejected:
        """Asks for permission to send one purchase.

        Each `Permit` must end in exactly one call of `succeed`, `fail` or `abandon`, also if the
        breaker has changed its state meanwhile.
        """
        if self._next_probe_at is None:
            return _WHILE_CLOSED
        if now < self._next_probe_at:
            # At most `open_seconds`: a probe under way may close the breaker before the next one is
            # due.
            return Rejected(min(self._next_probe_at - now, self._open_seconds))
        self._probes += 1
        self._probe = self._probes
        self._next_probe_at = now + max(PROBE_SECONDS, self._open_seconds)
        return Permit(self._probe)

    def succeed(self) -> None:
        """Closes the breaker: upstream responded, to a probe or to any earlier purchase."""
        self._failures = 0
        self._next_probe_at = self._probe = None

    def fail(self, permit: Permit, now: float) -> None:
        """Counts a failure while closed. Otherwise only the failure of the probe reopens."""
        if self._next_probe_at is None:
            self._failures += 1
            if 0 < self._max_failures <= self._failures:
                self._open(now)
        # Purchases that were sent before it opened may still fail; they say nothing new.
        elif self._is_current_probe(permit):
            self._open(now)

    def abandon(self, permit: Permit, now: float) -> None:
        """The purchase was cancelled and says nothing about upstream: permits another probe."""
        if self._is_current_probe(permit):
            self._next_probe_at, self._probe = now, None

    def _is_current_probe(self, permit: Permit) -> bool:
        return permit.probe is not None and permit.probe == self._probe

    def _open(self, now: float) -> None:
        self._next_probe_at, self._probe = now + self._open_seconds, None
