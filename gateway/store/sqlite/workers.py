"""The commands of `commands.workers` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.sqlite.schema import Transaction

# ── workers ─────────────────────────────────────────────────────────────────────────────────


def _beat(tx: Transaction, command: commands.Heartbeat | commands.Reserve) -> None:
    tx.change(
        "INSERT OR REPLACE INTO workers (worker, beat_at) VALUES (?, ?)", command.worker, tx.now
    )


def _dead_workers(tx: Transaction, command: commands.ExpiredWorkers) -> Sequence[str]:
    rows = tx.all(
        "SELECT worker FROM workers WHERE beat_at <= ? ORDER BY worker",
        tx.now - command.after_seconds,
    )
    return [worker for (worker,) in rows]


def _retire(tx: Transaction, command: commands.Deregister) -> bool:
    if tx.one("SELECT 1 FROM journals WHERE worker = ? AND state != 'settled'", command.worker):
        return False
    tx.change("DELETE FROM workers WHERE worker = ?", command.worker)
    return True
