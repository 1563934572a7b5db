"""Whole sets and spaces, which the store returns in pages."""

from __future__ import annotations

from gateway.store.pages import scan_records, scan_set
from gateway.store.protocol import Store


async def read_set(store: Store, space: str, name: str) -> list[str]:
    """All members of a set."""
    return list({member async for member in scan_set(store, space, name)})


async def read_space(store: Store, space: str) -> dict[str, bytes]:
    """All records of a space."""
    records: dict[str, bytes] = {}
    async for page in scan_records(store, space):
        records |= page
    return records
