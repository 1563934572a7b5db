"""The commands of `commands.workers` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands as verbs
from gateway.store.sqlite.schema import Transaction

# ── workers ─────────────────────────────────────────────────────────────────────────────────


def _beat(tx: Transaction, verb: verbs.Beat | verbs.Reserve) -> None:
    tx.change("INSERT OR REPLACE INTO workers (worker, beat_at) VALUES (?, ?)", verb.worker, tx.now)


def _dead_workers(tx: Transaction, verb: verbs.DeadWorkers) -> Sequence[str]:
    rows = tx.all(
        "SELECT worker FROM workers WHERE beat_at <= ? ORDER BY worker", tx.now - verb.after_seconds
    )
    return [worker for (worker,) in rows]


def _retire(tx: Transaction, verb: verbs.Retire) -> bool:
    if tx.one("SELECT 1 FROM journals WHERE worker = ? AND state != 'settled'", verb.worker):
        return False
    tx.change("DELETE FROM workers WHERE worker = ?", verb.worker)
    return True
