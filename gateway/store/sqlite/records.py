"""The commands of `commands.records` in SQL."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.store import commands
from gateway.store.sqlite.schema import Transaction

# ── records ─────────────────────────────────────────────────────────────────────────────────


def _get(tx: Transaction, command: commands.Get) -> bytes | None:
    if command.index is None:
        return tx.record(command.space, command.name)
    name = tx.record(command.index, command.name)
    return None if name is None else tx.record(command.space, name.decode())


def _put(tx: Transaction, command: commands.CompareAndSet) -> int | None:
    for index, change in enumerate(command.changes):
        if tx.record(change.space, change.name) != change.expected:
            return index
    for change in command.changes:
        _write(tx, change)
    return None


def _write(tx: Transaction, change: commands.Write) -> None:
    if change.value is None:
        tx.change("DELETE FROM records WHERE space = ? AND name = ?", change.space, change.name)
        return
    tx.change(
        "INSERT OR REPLACE INTO records (space, name, value) VALUES (?, ?, ?)",
        change.space,
        change.name,
        change.value,
    )


def _scan(tx: Transaction, command: commands.ReadRecords) -> Mapping[str, bytes]:
    return dict(tx.all("SELECT name, value FROM records WHERE space = ?", command.space))
