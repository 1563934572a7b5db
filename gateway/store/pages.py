"""Sets and spaces that are read whole, in pages: no command is longer than one page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from gateway.store.batch import execute
from gateway.store.commands import ScanRecords, ScanSet
from gateway.store.protocol import Store


async def scan_set(store: Store, space: str, name: str) -> AsyncIterator[str]:
    """The members of a set. One that is added meanwhile may be missing; some may come twice."""
    after: str | None = ""
    while after is not None:
        page = await execute(store, ScanSet(space, name, after))
        for member in page.members:
            yield member
        after = page.after


async def scan_records(store: Store, space: str) -> AsyncIterator[Mapping[str, bytes]]:
    """The records of a space by name, page by page; as for `scan_set`."""
    after: str | None = ""
    while after is not None:
        page = await execute(store, ScanRecords(space, after))
        yield page.records
        after = page.after
