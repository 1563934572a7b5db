"""The store itself: its facts, and the sweep of expired rows."""

from __future__ import annotations

import os
from typing import Final

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

_EXPIRED_ROWS: Final = {
    table: f"SELECT rowid FROM {table} WHERE remove_after <= ?"  # noqa: S608 - a name from below
    for table in (
        *("slots", "leases", "events", "buckets", "windows", "journals", "writers"),
        *("expiring_values", "lru"),
    )
} | {
    "set_members": "SELECT set_members.rowid FROM sets JOIN set_members ON set_id = sets.id"
    " WHERE sets.remove_after <= ?",
    # A set goes after its members: its row says that they are expired.
    "sets": "SELECT rowid FROM sets WHERE remove_after <= ?"
    " AND NOT EXISTS (SELECT 1 FROM set_members WHERE set_id = sets.id)",
}
"""Table → the query that finds its expired rows."""


@writes(commands.Sweep)
def sweep(tx: Transaction, command: commands.Sweep) -> int:
    deleted = 0
    for table, expired_rows in _EXPIRED_ROWS.items():
        deleted += tx.execute(
            f"DELETE FROM {table} WHERE rowid IN ({expired_rows} LIMIT ?)",  # noqa: S608 - from above
            (tx.now, command.limit - deleted),
        )
    return deleted


@reads(commands.Inspect)
def inspect(tx: Transaction, command: commands.Inspect) -> commands.StoreFacts:
    return commands.StoreFacts(
        "sqlite", tx.now, eviction_policy=None, maxmemory_bytes=None, is_durable=True
    )


@reads(commands.MeasureStore)
def measure_store(tx: Transaction, command: commands.MeasureStore) -> commands.StoreUse:
    pages, page_bytes = (tx.fetch_one(f"PRAGMA {name}")[0] for name in ("page_count", "page_size"))
    file = tx.fetch_one("PRAGMA database_list")[2]
    disk = os.statvfs(file)
    used = int(pages) * int(page_bytes)
    return commands.StoreUse("disk", used, used + disk.f_bavail * disk.f_frsize)
