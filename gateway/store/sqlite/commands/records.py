"""Records, and compare-and-set."""

from __future__ import annotations

from typing import cast

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


def read_record(tx: Transaction, space: str, name: str) -> bytes | None:
    """The value of a record; None if there is none."""
    row = tx.fetch_one("SELECT value FROM records WHERE space = ? AND name = ?", (space, name))
    return None if row is None else cast(bytes, row[0])


@reads(commands.Get)
def get(tx: Transaction, command: commands.Get) -> bytes | None:
    if command.index is None:
        return read_record(tx, command.space, command.name)
    name = read_record(tx, command.index, command.name)
    return None if name is None else read_record(tx, command.space, name.decode())


@writes(commands.CompareAndSet)
def compare_and_set(tx: Transaction, command: commands.CompareAndSet) -> int | None:
    for index, write in enumerate(command.changes):
        if read_record(tx, write.space, write.name) != write.expected:
            return index
    for write in command.changes:
        if write.value is None:
            tx.execute(
                "DELETE FROM records WHERE space = ? AND name = ?", (write.space, write.name)
            )
        else:
            tx.execute(
                "INSERT OR REPLACE INTO records (space, name, value) VALUES (?, ?, ?)",
                (write.space, write.name, write.value),
            )
    return None


@reads(commands.ScanRecords)
def scan_records(tx: Transaction, command: commands.ScanRecords) -> commands.RecordsPage:
    records = dict(
        tx.fetch_all(
            "SELECT name, value FROM records WHERE space = ? AND name > ? ORDER BY name LIMIT ?",
            (command.space, command.after, command.limit),
        )
    )
    return commands.RecordsPage(records, max(records) if len(records) == command.limit else None)
