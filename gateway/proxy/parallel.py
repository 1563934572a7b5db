"""Keys with `parallel: vary`: their identical requests at once get different images.

The store counts, for each key and fingerprint, the slots that requests have taken since the first
one. After `WINDOW_SECONDS` the count starts at 0 again, so all of the requests, repeated later, are
answered from the cache. Described in `docs/reference/cache.md#identical-requests-at-once`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

from gateway.errors import StoreUnavailable
from gateway.images import MAX_SLOTS
from gateway.proxy.context import RequestContext
from gateway.proxy.interpret import ImageQuery
from gateway.request.headers import retry_count
from gateway.store.batch import execute
from gateway.store.commands import AdvanceCounter, GetValue
from gateway.store.protocol import Store

WINDOW_SECONDS: Final = 2.0
"""Identical requests count as one group for so long after its first, by the store's clock."""

TAKEN_SLOTS: Final = "taken_slots"
"""The space of the counters, by key and fingerprint."""


async def take_slots(store: Store, context: RequestContext, query: ImageQuery) -> ImageQuery:
    """The query for the next slots, cached or not, of a key whose requests vary.

    Unchanged, as with `share`, while the store is unavailable.
    """
    if not _varies(context, query):
        return query
    command = AdvanceCounter(
        TAKEN_SLOTS, _name(context, query), query.request.n, MAX_SLOTS, WINDOW_SECONDS
    )
    with suppress(StoreUnavailable):
        return _from_slot(query, await execute(store, command))
    return query


async def peek_slots(store: Store, context: RequestContext, query: ImageQuery) -> ImageQuery:
    """The query for the slots that `take_slots` would take now. Raises `StoreUnavailable`."""
    if not _varies(context, query):
        return query
    taken = await execute(store, GetValue(TAKEN_SLOTS, _name(context, query)))
    return _from_slot(query, int(taken or 0))


def _varies(context: RequestContext, query: ImageQuery) -> bool:
    return (
        # A client that names its slots gets these.
        query.headers.variation is None
        # `no-store` has no slots.
        and not query.cache_policy.no_store
        # A retry must not buy again what the first attempt may have bought.
        and not retry_count(context.headers)
    )


def _name(context: RequestContext, query: ImageQuery) -> str:
    return f"{context.principal.key_id}:{query.fingerprint}"


def _from_slot(query: ImageQuery, slot: int) -> ImageQuery:
    return replace(query, request=replace(query.request, variation=slot))
