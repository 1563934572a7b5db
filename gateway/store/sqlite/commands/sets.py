"""Sets of names with a time to live."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@writes(commands.AddToSet)
def add_to_set(tx: Transaction, command: commands.AddToSet) -> None:
    remove_after = tx.now + command.ttl_seconds
    set_id = _find_set(tx, command.space, command.name)
    if set_id is None:
        tx.execute(
            "INSERT INTO sets (space, name, remove_after) VALUES (?, ?, ?)",
            (command.space, command.name, remove_after),
        )
        set_id = _find_set(tx, command.space, command.name)
    tx.execute(
        "UPDATE sets SET remove_after = max(remove_after, ?) WHERE id = ?", (remove_after, set_id)
    )
    tx.execute_many(
        "INSERT OR IGNORE INTO set_members (set_id, member) VALUES (?, ?)",
        [(set_id, member) for member in command.members],
    )


@reads(commands.GetSet)
def get_set(tx: Transaction, command: commands.GetSet) -> Sequence[str]:
    set_id = _find_set(tx, command.space, command.name)
    rows = tx.fetch_all("SELECT member FROM set_members WHERE set_id = ?", (set_id,))
    return [member for (member,) in rows]


@writes(commands.RemoveFromSet)
def remove_from_set(tx: Transaction, command: commands.RemoveFromSet) -> None:
    set_id = _find_set(tx, command.space, command.name)
    tx.execute_many(
        "DELETE FROM set_members WHERE set_id = ? AND member = ?",
        [(set_id, member) for member in command.members],
    )


def _find_set(tx: Transaction, space: str, name: str) -> int | None:
    row = tx.fetch_one(
        "SELECT id FROM sets WHERE space = ? AND name = ? AND remove_after > ?",
        (space, name, tx.now),
    )
    return None if row is None else int(row[0])
