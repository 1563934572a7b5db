"""A token bucket: how much may happen at once, and how often in the long run. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Holds up to `capacity` tokens and gets `per_second` new ones. Times are on one clock."""

    capacity: float
    per_second: float
    updated_at: float
    level: float

    @staticmethod
    def full(capacity: float, *, per_second: float, now: float) -> TokenBucket:
        """A bucket from which nothing was taken yet."""
        return TokenBucket(capacity, per_second, updated_at=now, level=capacity)

    def take(self, now: float) -> bool:
        """Takes a token; False, and nothing is taken, if there is none."""
        self._refill(now)
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def give_back(self) -> None:
        """Returns a token that was taken."""
        self.level = min(self.capacity, self.level + 1)

    def seconds_until_next(self, now: float) -> float:
        """The time until `take` succeeds, unless another caller takes a token first."""
        self._refill(now)
        return max(0.0, (1 - self.level) / self.per_second)

    def _refill(self, now: float) -> None:
        passed_seconds = max(0.0, now - self.updated_at)
        self.level = min(self.capacity, self.level + passed_seconds * self.per_second)
        self.updated_at = max(self.updated_at, now)
