"""The result of a request, before `api/` renders it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gateway.images import Image, ImageRequest, Outcome


class Answer(NamedTuple):
    """Images, and how the cache handled the request."""

    request: ImageRequest
    outcome: Outcome
    images: tuple[tuple[Image, bytes], ...] = ()
    """In slot order, each with its base64 or, where links were asked for, its signed path."""
    fingerprint: str | None = None
    """None when the cache was bypassed."""
    ttl_seconds: int = 0
    """Of a hit: until its first image expires."""
    saved_micros: int = 0
    bought: frozenset[str] = frozenset()
    """The ids of the images that this request itself bought. The others cost its client nothing."""
    detail: str | None = None
    """Of a hit: `derived` from another format, or `stale-if-error`."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """The prediction for a request with `Prefer: dry-run`."""

    is_hit: bool
    """Nothing would be bought."""
    estimate_micros: int
    """The upper bound of the charge."""
    remaining_micros: int | None
    """The remainder of the tightest budget; None without a budget."""
