"""The store itself: its facts, and the sweep of expired rows."""

from __future__ import annotations

from typing import Final

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

_EXPIRED_ROWS: Final = {
    table: f"SELECT rowid FROM {table} WHERE remove_after <= ?"  # noqa: S608 - a name from below
    for table in (
        *("slots", "leases", "events", "buckets", "windows", "journals", "appends"),
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

_STEADY_TABLES: Final = frozenset({"leases", "events", "buckets", "expiring_values"})
"""Those whose times are on the steady clock."""


@writes(commands.Sweep)
def sweep(tx: Transaction, command: commands.Sweep) -> int:
    deleted = 0
    for table, expired_rows in _EXPIRED_ROWS.items():
        deleted += tx.execute(
            f"DELETE FROM {table} WHERE rowid IN ({expired_rows} LIMIT ?)",  # noqa: S608 - from above
            (tx.steady if table in _STEADY_TABLES else tx.now, command.limit - deleted),
        )
    return deleted


@reads(commands.Inspect)
def inspect(tx: Transaction, command: commands.Inspect) -> commands.StoreFacts:
    return commands.StoreFacts(
        "sqlite", tx.now, eviction_policy=None, maxmemory_bytes=None, is_durable=True
    )
