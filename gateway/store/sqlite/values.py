"""The commands of `commands.values` in SQL."""

from __future__ import annotations

import math
from typing import cast

from gateway.store import commands
from gateway.store.sqlite.schema import Transaction

# ── notes and lists ─────────────────────────────────────────────────────────────────────────


def _note(tx: Transaction, command: commands.SetValue) -> bool:
    if command.only_if_absent and _read_note(tx, command) is not None:
        return False
    lifetime = math.inf if command.ttl_seconds is None else command.ttl_seconds
    tx.change(
        "INSERT OR REPLACE INTO notes (space, name, value, gone_at) VALUES (?, ?, ?, ?)",
        *(command.space, command.name, command.value, tx.now + lifetime),
    )
    return True


def _read_note(tx: Transaction, command: commands.GetValue | commands.SetValue) -> bytes | None:
    row = tx.one(
        "SELECT value FROM notes WHERE space = ? AND name = ? AND gone_at > ?",
        *(command.space, command.name, tx.now),
    )
    return None if row is None else cast(bytes, row[0])


def _drop_note(tx: Transaction, command: commands.DeleteValue) -> None:
    tx.change("DELETE FROM notes WHERE space = ? AND name = ?", command.space, command.name)
