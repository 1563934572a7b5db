"""The store itself: its facts, and the sweep of expired rows."""

from __future__ import annotations

import os
from typing import Final

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

_TABLES: Final = (
    *("slots", "leases", "events", "buckets", "windows", "journals", "writers"),
    *("expiring_values", "bounded_members", "lru", "hits"),
)
"""The tables whose rows expire one by one. Each has an index on `remove_after`."""

_SETS: Final = (("sets", "set_members"), ("ordered_sets", "ordered_members"))
"""The tables of sets, each with that of their members."""

_STEADY_TABLES: Final = frozenset({"leases", "events", "buckets", "expiring_values"})
"""Those whose times are on the steady clock."""


@writes(commands.Sweep)
def sweep(tx: Transaction, command: commands.Sweep) -> int:
    deleted = 0
    for sets, members in _SETS:
        deleted += _sweep_sets(tx, sets, members, limit=command.limit - deleted)
    for table in _TABLES:
        deleted += tx.execute(
            f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608 - a name from above
            f" (SELECT rowid FROM {table} WHERE remove_after <= ? LIMIT ?)",
            (tx.steady if table in _STEADY_TABLES else tx.now, command.limit - deleted),
        )
    return deleted


def _sweep_sets(tx: Transaction, sets: str, members: str, *, limit: int) -> int:
    """Deletes expired sets, and their members before them. Returns how many rows."""
    # The names are those of `_SETS`.
    oldest = f"SELECT id FROM {sets} WHERE remove_after <= ? ORDER BY remove_after LIMIT 1"  # noqa: S608
    some = f"SELECT rowid FROM {members} WHERE set_id = ? LIMIT ?"  # noqa: S608
    deleted = 0
    while deleted < limit:
        expired = tx.fetch_one(oldest, (tx.now,))
        if expired is None:
            break
        deleted += tx.execute(
            f"DELETE FROM {members} WHERE rowid IN ({some})",  # noqa: S608
            (*expired, limit - deleted),
        )
        if deleted < limit:  # else the next sweep finds the set again, by its row
            deleted += tx.execute(f"DELETE FROM {sets} WHERE id = ?", expired)  # noqa: S608
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
