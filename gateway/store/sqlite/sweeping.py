"""Removes expired rows."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.sqlite.schema import OVER, Transaction

# ── sweeping ────────────────────────────────────────────────────────────────────────────────


def _sweep(tx: Transaction, command: commands.Sweep) -> int:
    swept = 0
    for table, over in OVER.items():
        swept += tx.change(
            f"DELETE FROM {table} WHERE rowid IN ({over} LIMIT ?)",  # noqa: S608 - from above
            tx.now,
            command.limit - swept,
        )
    return swept


def _inspect(tx: Transaction, _verb: commands.Inspect) -> commands.StoreFacts:
    return commands.StoreFacts(
        "sqlite", tx.now, eviction_policy=None, maxmemory_bytes=None, is_durable=True
    )
