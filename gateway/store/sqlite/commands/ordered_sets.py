"""Ordered sets of strings with a time to live."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import MAX_TRIMMED
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@writes(commands.AddToOrderedSets)
def add_to_ordered_sets(tx: Transaction, command: commands.AddToOrderedSets) -> None:
    remove_after = tx.now + command.ttl_seconds
    for name in command.names:
        set_id = _find_set(tx, command.space, name)
        if set_id is None:
            tx.execute(
                "INSERT INTO ordered_sets (space, name, remove_after) VALUES (?, ?, ?)",
                (command.space, name, remove_after),
            )
            set_id = _find_set(tx, command.space, name)
        tx.execute(
            "UPDATE ordered_sets SET remove_after = max(remove_after, ?) WHERE id = ?",
            (remove_after, set_id),
        )
        tx.execute(
            "INSERT OR IGNORE INTO ordered_members (set_id, member) VALUES (?, ?)",
            (set_id, command.member),
        )
        _trim(tx, set_id, command)


@writes(commands.RemoveFromOrderedSets)
def remove_from_ordered_sets(tx: Transaction, command: commands.RemoveFromOrderedSets) -> None:
    tx.execute_many(
        "DELETE FROM ordered_members WHERE set_id = ? AND member = ?",
        [(_find_set(tx, command.space, name), command.member) for name in command.names],
    )


@reads(commands.ReadOrderedSet)
def read_ordered_set(tx: Transaction, command: commands.ReadOrderedSet) -> Sequence[str]:
    is_before = " AND member < ?" if command.before else ""
    before = (command.before,) if command.before else ()
    rows = tx.fetch_all(
        f"SELECT member FROM ordered_members WHERE set_id = ?{is_before}"  # noqa: S608
        " ORDER BY member DESC LIMIT ?",
        (_find_set(tx, command.space, command.name), *before, command.limit),
    )
    return [member for (member,) in rows]


@reads(commands.CountOrderedSets)
def count_ordered_sets(tx: Transaction, command: commands.CountOrderedSets) -> Sequence[int]:
    query = "SELECT count FROM ordered_sets WHERE space = ? AND name = ? AND remove_after > ?"
    rows = [tx.fetch_one(query, (command.space, name, tx.now)) for name in command.names]
    return [0 if row is None else int(row[0]) for row in rows]


def _trim(tx: Transaction, set_id: int | None, command: commands.AddToOrderedSets) -> None:
    """Removes some of the members that are too old, and of those beyond the bound."""
    first = "SELECT rowid FROM ordered_members WHERE set_id = ?"
    if command.oldest:
        tx.execute(
            f"DELETE FROM ordered_members WHERE rowid IN"  # noqa: S608
            f" ({first} AND member < ? ORDER BY member LIMIT ?)",
            (set_id, command.oldest, MAX_TRIMMED),
        )
    (count,) = tx.fetch_one("SELECT count FROM ordered_sets WHERE id = ?", (set_id,))
    if (excess := min(count - command.max_members, MAX_TRIMMED)) > 0:
        tx.execute(
            f"DELETE FROM ordered_members WHERE rowid IN"  # noqa: S608
            f" ({first} ORDER BY member LIMIT ?)",
            (set_id, excess),
        )


def _find_set(tx: Transaction, space: str, name: str) -> int | None:
    row = tx.fetch_one(
        "SELECT id FROM ordered_sets WHERE space = ? AND name = ? AND remove_after > ?",
        (space, name, tx.now),
    )
    return None if row is None else int(row[0])
