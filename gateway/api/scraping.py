"""The answer to a scrape of `/metrics`."""

from __future__ import annotations

import asyncio
import gzip
from typing import Final

from gateway.api.key_labels import label_keys
from gateway.api.services import Services
from gateway.billing.limit_gauges import GaugeValues
from gateway.errors import StoreUnavailable

BOOKS_SECONDS: Final = 3.0
"""Reading the books takes several calls of the store, of two seconds at most. By default Prometheus
waits for ten."""

GZIP_LEVEL: Final = 1
"""A sixteenth of the size. Level 6 takes three times as long for a twentieth."""


async def scrape(services: Services, *, compressed: bool) -> bytes:
    """The metrics in text form. Concurrent scrapes share the work."""
    if not compressed:
        return await services.scrapes.run("text", lambda: _render(services), name="scrape")
    return await services.scrapes.run("gzip", lambda: _compress(services), name="scrape_gzip")


async def _compress(services: Services) -> bytes:
    text = await scrape(services, compressed=False)
    return await asyncio.to_thread(gzip.compress, text, GZIP_LEVEL)


async def _render(services: Services) -> bytes:
    try:
        async with asyncio.timeout(BOOKS_SECONDS):
            await _show_books(services)
    except (StoreUnavailable, TimeoutError):
        _hide_books(services)
    metrics, now = services.metrics, services.clock()
    starts, windows = services.calendar.starts_at(now), services.calendar.day_at(now).windows
    metrics.policy.show_windows(
        {name: (starts[name], window.ends_at) for name, window in windows.items()}
    )
    # In a thread: a thousand series take milliseconds.
    return await asyncio.to_thread(metrics.render)


async def _show_books(services: Services) -> None:
    """Reads the metrics of money from the books. Raises `StoreUnavailable`."""
    # So a new key has its series at once. Listing many keys would stop the event loop.
    if services.running_totals.are_keys_few:
        await label_keys(services, with_revoked=services.running_totals.are_revoked_few)
    totals = await services.running_totals.read(services.policy().catalog.models)
    values = await services.limit_gauges.read()
    results = await services.limit_gauges.read_verified()
    books = services.metrics.books
    books.show_totals(*totals)
    books.show_values(values)
    books.show_verified({one.time: one.is_balanced for one in results})


def _hide_books(services: Services) -> None:
    """Leaves them out while the store is unavailable, instead of showing old values."""
    books = services.metrics.books
    books.show_totals({}, {})
    books.show_values(GaugeValues())
    books.show_verified({})
