"""Hits from memory: answers from what a worker has kept, without a round trip to the store.

A worker keeps the records that a key and its limits were made of, the entries of fingerprints, and
the markers of purges, until the store says that they have changed (`store.kept_reads`). A request
that must be recorded before it is answered asks the store, and so does every miss. One that must be
counted asks it only for that.

Described in `docs/reference/cache.md#hits-from-memory`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gateway.billing import limit_headers, quota
from gateway.billing.counted_limits import LimitState
from gateway.cache.entries import CachedImage
from gateway.cache.image_cache import ImageCache
from gateway.images import LimitSubject
from gateway.proxy.context import RequestContext
from gateway.proxy.images import missing_from, usable_images
from gateway.proxy.interpret import ImageQuery
from gateway.store.commands import Entry
from gateway.store.protocol import Command, KeptReads

MAX_SEEN: Final = 8192
"""Fingerprints of recent hits. An entry is kept at its second hit: most entries have none."""

MAX_LIMITS: Final = 10_000
"""Keys whose limits are remembered."""

LIMITS_SECONDS: Final = 60.0
"""How old the limits in an answer may be."""


class Found(NamedTuple):
    """An entry that answers a query alone."""

    entry: Entry
    cached: Mapping[int, CachedImage]
    """The images that the query asks for."""


@dataclass(slots=True)
class _KnownLimits:
    at: float
    subjects: Sequence[LimitSubject]
    """Of the key that `limits` are for."""
    limits: Sequence[LimitState]
    headers: Mapping[str, str] | None = None
    """Those that show the limits, once a hit has made them."""


class Memory:
    """Looks hits up in what this worker has kept."""

    def __init__(
        self,
        kept: KeptReads,
        cache: ImageCache,
        *,
        on_hit: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept = kept
        self._cache = cache
        self._on_hit = on_hit
        self._clock = clock
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._limits: OrderedDict[str, _KnownLimits] = OrderedDict()

    def look_up(self, context: RequestContext, query: ImageQuery) -> Found | None:
        """The entry of a query that it can answer alone, for a key that has not changed.

        None: the store has to be asked.
        """
        if context.is_admitted or not _needs_no_store(context, query):
            return None
        found = self._kept.find(self._reads(context, query))
        if found is None:
            return None
        entry: Entry
        *stored, entry, purges = found
        if purges is not None or not quota.is_unchanged(context.principal, stored):
            return None
        cached = usable_images(query, entry)
        if missing_from(query, cached):
            return None
        self._on_hit()
        return Found(entry, cached)

    def look_up_entry(self, context: RequestContext, query: ImageQuery) -> Found | None:
        """The entry of a query that it can answer alone, for a request that is counted first.

        None: the store has to be asked for it too.
        """
        if not _can_use_memory(context, query):
            return None
        found = self._kept.find(self._cache.reads(query.fingerprint))
        if found is None:
            return None
        entry, purges = found
        if purges is not None:
            return None
        cached = usable_images(query, entry)
        return None if missing_from(query, cached) else Found(entry, cached)

    def learn(self, context: RequestContext, query: ImageQuery) -> None:
        """Keeps what a hit needed of the store, if it is not the first one of its fingerprint."""
        # Of a request that is counted, the entry is all that can be kept.
        is_kept = context.is_from_memory and quota.counts_requests(context.principal)
        if context.needed_no_store or is_kept or not _can_use_memory(context, query):
            return
        fingerprint = query.fingerprint
        if fingerprint in self._seen:
            self._seen.move_to_end(fingerprint)
            self._kept.fill(self._reads(context, query))
            return
        self._seen[fingerprint] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _reads(self, context: RequestContext, query: ImageQuery) -> list[Command[Any]]:
        return [*quota.compared(context.principal), *self._cache.reads(query.fingerprint)]

    def note_limits(self, context: RequestContext) -> None:
        """Remembers the limits of a key as an admission has just read them."""
        if not context.limits:
            return
        key_id = context.principal.key_id
        self._limits[key_id] = _KnownLimits(
            self._clock(), context.principal.subjects, context.limits
        )
        self._limits.move_to_end(key_id)
        if len(self._limits) > MAX_LIMITS:
            self._limits.popitem(last=False)

    def use_known_limits(self, context: RequestContext) -> None:
        """Shows the limits of a key as this worker saw them last; none if that is too long ago."""
        known = self._limits.get(context.principal.key_id)
        if known is None or known.at + LIMITS_SECONDS < self._clock():
            context.limits = []
            return
        subjects = context.principal.subjects
        if known.subjects is not subjects:
            # Of the key as it is now: a limit may have been changed.
            limits = [state for state in known.limits if state.subject in subjects]
            known.subjects, known.limits, known.headers = subjects, limits, None
        if known.headers is None:
            known.headers = limit_headers.rate_headers(known.limits)
        context.limits, context.known_rate_headers = known.limits, known.headers


def _needs_no_store(context: RequestContext, query: ImageQuery) -> bool:
    """Whether a hit has nothing to count, and nothing to write before its answer."""
    return _can_use_memory(context, query) and not quota.counts_requests(context.principal)


def _can_use_memory(context: RequestContext, query: ImageQuery) -> bool:
    """Whether a hit has nothing to write before its answer, besides its count."""
    headers = query.headers
    return not (
        headers.dry_run
        or headers.tags
        or headers.idempotency_key is not None
        or context.key.parallel == "vary"
    )
