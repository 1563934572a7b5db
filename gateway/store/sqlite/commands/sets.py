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


@reads(commands.ScanSet)
def scan_set(tx: Transaction, command: commands.ScanSet) -> commands.MembersPage:
    set_id = _find_set(tx, command.space, command.name)
    rows = tx.fetch_all(
        "SELECT member FROM set_members WHERE set_id = ? AND member > ? ORDER BY member LIMIT ?",
        (set_id, command.after, command.limit),
    )
    members = [member for (member,) in rows]
    return commands.MembersPage(members, members[-1] if len(members) == command.limit else None)


@reads(commands.HasMember)
def has_member(tx: Transaction, command: commands.HasMember) -> bool:
    set_id = _find_set(tx, command.space, command.name)
    query = "SELECT 1 FROM set_members WHERE set_id = ? AND member = ?"
    return tx.fetch_one(query, (set_id, command.member)) is not None


@writes(commands.RemoveFromSet)
def remove_from_set(tx: Transaction, command: commands.RemoveFromSet) -> None:
    set_id = _find_set(tx, command.space, command.name)
    tx.execute_many(
        "DELETE FROM set_members WHERE set_id = ? AND member = ?",
        [(set_id, member) for member in command.members],
    )


@writes(commands.AddToBoundedSets)
def add_to_bounded_sets(tx: Transaction, command: commands.AddToBoundedSets) -> Sequence[str]:
    sets = [(f"{space} {name}", most) for space, name, most in command.sets]
    room: dict[str, int] = {}  # of the sets that were counted
    added = []
    for member in command.members:
        new_to = [(name, most) for name, most in sets if not _is_bounded_member(tx, name, member)]
        for name, most in new_to:
            # At most once a command, because counting reads the whole set.
            if name not in room:
                room[name] = most - _count_members(tx, name, most=most)
        if any(room[name] <= 0 for name, _ in new_to):
            continue
        for name, _ in new_to:
            room[name] -= 1
        tx.execute_many(
            "INSERT OR REPLACE INTO bounded_members (name, member, remove_after) VALUES (?, ?, ?)",
            [(name, member, tx.now + command.ttl_seconds) for name, _ in sets],
        )
        added.append(member)
    return added


def _is_bounded_member(tx: Transaction, name: str, member: str) -> bool:
    query = "SELECT 1 FROM bounded_members WHERE name = ? AND member = ? AND remove_after > ?"
    return tx.fetch_one(query, (name, member, tx.now)) is not None


def _count_members(tx: Transaction, name: str, *, most: int) -> int:
    """How many there are, as far as `most`."""
    (count,) = tx.fetch_one(
        "SELECT count(*) FROM"
        " (SELECT 1 FROM bounded_members WHERE name = ? AND remove_after > ? LIMIT ?)",
        (name, tx.now, most),
    )
    return int(count)


def _find_set(tx: Transaction, space: str, name: str) -> int | None:
    row = tx.fetch_one(
        "SELECT id FROM sets WHERE space = ? AND name = ? AND remove_after > ?",
        (space, name, tx.now),
    )
    return None if row is None else int(row[0])
