"""Whole sets and spaces, which the store returns in pages."""

from __future__ import annotations

from gateway.store.batch import execute
from gateway.store.commands import ScanRecords, ScanSet
from gateway.store.protocol import Store


async def read_set(store: Store, space: str, name: str) -> list[str]:
    """All members of a set."""
    members: set[str] = set()
    after: str | None = ""
    while after is not None:
        page = await execute(store, ScanSet(space, name, after))
        members.update(page.members)
        after = page.after
    return list(members)


async def read_space(store: Store, space: str) -> dict[str, bytes]:
    """All records of a space."""
    records: dict[str, bytes] = {}
    after: str | None = ""
    while after is not None:
        page = await execute(store, ScanRecords(space, after))
        records |= page.records
        after = page.after
    return records
