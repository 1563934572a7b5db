"""Heartbeats of the workers."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@writes(commands.Heartbeat)
def heartbeat(tx: Transaction, command: commands.Heartbeat) -> Sequence[str]:
    after = command.expired_after_seconds
    expired = [] if after is None else _expired(tx, after, command.limit)
    # A heartbeat from the future, of a clock that went back, counts as one of now.
    tx.execute("UPDATE workers SET heartbeat_at = ? WHERE heartbeat_at > ?", (tx.steady, tx.steady))
    tx.execute("UPDATE steady_clock SET latest = max(latest, ?)", (tx.steady,))
    record_heartbeat(tx, command.worker)
    return expired


def record_heartbeat(tx: Transaction, worker: str) -> None:
    """Keeps a worker from expiring."""
    tx.execute(
        "INSERT OR REPLACE INTO workers (worker, heartbeat_at) VALUES (?, ?)", (worker, tx.steady)
    )


@reads(commands.ExpiredWorkers)
def expired_workers(tx: Transaction, command: commands.ExpiredWorkers) -> Sequence[str]:
    return _expired(tx, command.after_seconds, command.limit)


def _expired(tx: Transaction, after_seconds: float, limit: int) -> list[str]:
    rows = tx.fetch_all(
        "SELECT worker FROM workers WHERE heartbeat_at <= ? ORDER BY heartbeat_at LIMIT ?",
        (tx.steady - after_seconds, limit),
    )
    return [worker for (worker,) in rows]


@writes(commands.Deregister)
def deregister(tx: Transaction, command: commands.Deregister) -> bool:
    has_open_journals = tx.fetch_one(
        "SELECT 1 FROM journals WHERE worker = ? AND state != 'settled'", (command.worker,)
    )
    if has_open_journals:
        return False
    tx.execute("DELETE FROM workers WHERE worker = ?", (command.worker,))
    tx.execute("DELETE FROM account_slow_workers WHERE worker = ?", (command.worker,))
    return True
