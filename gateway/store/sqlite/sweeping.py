"""Removes expired rows."""

from __future__ import annotations

from gateway.store import commands as verbs
from gateway.store.sqlite.schema import OVER, Transaction

# ── sweeping ────────────────────────────────────────────────────────────────────────────────


def _sweep(tx: Transaction, verb: verbs.Sweep) -> int:
    swept = 0
    for table, over in OVER.items():
        swept += tx.change(
            f"DELETE FROM {table} WHERE rowid IN ({over} LIMIT ?)",  # noqa: S608 - from above
            tx.now,
            verb.limit - swept,
        )
    return swept


def _inspect(tx: Transaction, _verb: verbs.Inspect) -> verbs.StoreFacts:
    return verbs.StoreFacts(
        "sqlite", tx.now, eviction_policy=None, maxmemory_bytes=None, is_durable=True
    )
