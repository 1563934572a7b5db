"""The commands of `commands.sets` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.sqlite.schema import Transaction


def _enlist(tx: Transaction, command: commands.AddToSet) -> None:
    gone_at = tx.now + command.ttl_seconds
    number = _list_number(tx, command)
    if number is None:
        tx.change(
            "INSERT INTO lists (space, name, gone_at) VALUES (?, ?, ?)",
            *(command.space, command.name, gone_at),
        )
        number = _list_number(tx, command)
    tx.change("UPDATE lists SET gone_at = max(gone_at, ?) WHERE id = ?", gone_at, number)
    tx.db.executemany(
        "INSERT OR IGNORE INTO members (list, member) VALUES (?, ?)",
        [(number, member) for member in command.members],
    )


def _read_list(tx: Transaction, command: commands.GetSet) -> Sequence[str]:
    rows = tx.all("SELECT member FROM members WHERE list = ?", _list_number(tx, command))
    return [member for (member,) in rows]


def _strike(tx: Transaction, command: commands.RemoveFromSet) -> None:
    number = _list_number(tx, command)
    tx.db.executemany(
        "DELETE FROM members WHERE list = ? AND member = ?",
        [(number, member) for member in command.members],
    )


def _list_number(
    tx: Transaction, command: commands.AddToSet | commands.GetSet | commands.RemoveFromSet
) -> int | None:
    row = tx.one(
        "SELECT id FROM lists WHERE space = ? AND name = ? AND gone_at > ?",
        *(command.space, command.name, tx.now),
    )
    return None if row is None else int(row[0])
