"""Accounts of the simulated service: a key each, with a rate of images and failures of its own."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.simulator.refusals import rate_limited, wrong_key

_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Bucket:
    """Images that an account may make now, at most a minute's worth; below 0 after a large call."""

    images: float
    at: float


class Accounts:
    """Which keys are accepted, and how fast each makes images."""

    def __init__(
        self,
        keys: Collection[str],
        *,
        images_per_minute: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._per_minute = images_per_minute
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    @property
    def needs_key(self) -> bool:
        """Whether only some keys are accepted."""
        return bool(self._keys)

    def check(self, key: str) -> None:
        """Raises `Refusal` for a key that is none of the accounts'."""
        found = [secrets.compare_digest(key.encode(), known.encode()) for known in self._keys]
        if not any(found):
            raise wrong_key(key)

    def take(self, key: str, *, images: int, model: str) -> Mapping[str, str]:
        """Takes images from the account's minute, and returns the headers that say what is left.

        More images than a minute has go when the minute is full. Raises `Refusal` 429.
        """
        if self._per_minute is None:
            return {}
        bucket = self._filled(key)
        missing = min(images, self._per_minute) - bucket.images
        if missing > 1e-9:
            seconds = missing * _SECONDS / self._per_minute
            refusal = rate_limited(model, limit=self._per_minute, requested=images, seconds=seconds)
            refusal.headers.update(self._headers(bucket))
            raise refusal
        bucket.images -= images
        return self._headers(bucket)

    def _filled(self, key: str) -> _Bucket:
        per_minute, now = float(self._per_minute or 0), self._clock()
        bucket = self._buckets.setdefault(key, _Bucket(per_minute, now))
        gained = (now - bucket.at) * per_minute / _SECONDS
        bucket.images, bucket.at = min(per_minute, bucket.images + gained), now
        return bucket

    def _headers(self, bucket: _Bucket) -> Mapping[str, str]:
        per_minute = self._per_minute or 1
        milliseconds = math.ceil((per_minute - bucket.images) * 60_000 / per_minute)
        return {
            "x-ratelimit-limit-images": str(per_minute),
            "x-ratelimit-remaining-images": str(max(0, math.floor(bucket.images + 1e-9))),
            "x-ratelimit-reset-images": f"{milliseconds}ms",
        }
