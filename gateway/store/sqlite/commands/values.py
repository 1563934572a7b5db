"""Values with a time to live."""

from __future__ import annotations

import math
from typing import cast

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@writes(commands.SetValue)
def set_value(tx: Transaction, command: commands.SetValue) -> bool:
    if command.only_if_absent or command.expected:
        value = _read_value(tx, command.space, command.name)
        is_met = command.only_if_absent if value is None else value in command.expected
        if not is_met:
            return False
    ttl_seconds = math.inf if command.ttl_seconds is None else command.ttl_seconds
    tx.execute(
        "INSERT OR REPLACE INTO expiring_values (space, name, value, remove_after)"
        " VALUES (?, ?, ?, ?)",
        (command.space, command.name, command.value, tx.steady + ttl_seconds),
    )
    return True


@reads(commands.GetValue)
def get_value(tx: Transaction, command: commands.GetValue) -> bytes | None:
    return _read_value(tx, command.space, command.name)


@writes(commands.AdvanceCounter)
def advance_counter(tx: Transaction, command: commands.AdvanceCounter) -> int:
    stored = _read_value(tx, command.space, command.name)
    count = int(stored or 0)
    advanced = b"%d" % ((count + command.amount) % command.modulus)
    if stored is None:
        tx.execute(
            "INSERT OR REPLACE INTO expiring_values (space, name, value, remove_after)"
            " VALUES (?, ?, ?, ?)",
            (command.space, command.name, advanced, tx.steady + command.ttl_seconds),
        )
    else:
        tx.execute(
            "UPDATE expiring_values SET value = ? WHERE space = ? AND name = ?",
            (advanced, command.space, command.name),
        )
    return count


@writes(commands.DeleteValue)
def delete_value(tx: Transaction, command: commands.DeleteValue) -> None:
    tx.execute(
        "DELETE FROM expiring_values WHERE space = ? AND name = ? AND value = coalesce(?, value)",
        (command.space, command.name, command.expected),
    )


def _read_value(tx: Transaction, space: str, name: str) -> bytes | None:
    row = tx.fetch_one(
        "SELECT value FROM expiring_values WHERE space = ? AND name = ? AND remove_after > ?",
        (space, name, tx.steady),
    )
    return None if row is None else cast(bytes, row[0])
