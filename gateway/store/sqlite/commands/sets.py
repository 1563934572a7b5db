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


@writes(commands.AddToBoundedSets)
def add_to_bounded_sets(tx: Transaction, command: commands.AddToBoundedSets) -> Sequence[str]:
    sets = [(f"bounded {space} {name}", most) for space, name, most in command.sets]
    for space, _ in sets:
        # The plus sign keeps SQLite from reading the whole set: few rows have expired.
        tx.execute(
            "DELETE FROM expiring_values WHERE remove_after <= ? AND +space = ?", (tx.steady, space)
        )
    room: dict[str, int] = {}  # of the sets that were counted
    added = []
    for member in command.members:
        new_to = [(space, most) for space, most in sets if not _has_member(tx, space, member)]
        for space, most in new_to:
            # At most once a command, because counting reads the whole set.
            if space not in room:
                room[space] = most - _count_members(tx, space)
        if any(room[space] <= 0 for space, _ in new_to):
            continue
        for space, _ in new_to:
            room[space] -= 1
        tx.execute_many(
            "INSERT OR REPLACE INTO expiring_values (space, name, value, remove_after)"
            " VALUES (?, ?, x'', ?)",
            [(space, member, tx.steady + command.ttl_seconds) for space, _ in sets],
        )
        added.append(member)
    return added


def _has_member(tx: Transaction, space: str, member: str) -> bool:
    query = "SELECT 1 FROM expiring_values WHERE space = ? AND name = ?"
    return tx.fetch_one(query, (space, member)) is not None


def _count_members(tx: Transaction, space: str) -> int:
    (count,) = tx.fetch_one("SELECT count(*) FROM expiring_values WHERE space = ?", (space,))
    return int(count)


def _find_set(tx: Transaction, space: str, name: str) -> int | None:
    row = tx.fetch_one(
        "SELECT id FROM sets WHERE space = ? AND name = ? AND remove_after > ?",
        (space, name, tx.now),
    )
    return None if row is None else int(row[0])
