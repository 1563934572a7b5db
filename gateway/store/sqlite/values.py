"""The commands of `commands.values` in SQL."""

from __future__ import annotations

import math
from typing import cast

from gateway.store import commands as verbs
from gateway.store.sqlite.schema import Transaction

# ── notes and lists ─────────────────────────────────────────────────────────────────────────


def _note(tx: Transaction, verb: verbs.Note) -> bool:
    if verb.is_new and _read_note(tx, verb) is not None:
        return False
    lifetime = math.inf if verb.lifetime_seconds is None else verb.lifetime_seconds
    tx.change(
        "INSERT OR REPLACE INTO notes (space, name, value, gone_at) VALUES (?, ?, ?, ?)",
        *(verb.space, verb.name, verb.value, tx.now + lifetime),
    )
    return True


def _read_note(tx: Transaction, verb: verbs.ReadNote | verbs.Note) -> bytes | None:
    row = tx.one(
        "SELECT value FROM notes WHERE space = ? AND name = ? AND gone_at > ?",
        *(verb.space, verb.name, tx.now),
    )
    return None if row is None else cast(bytes, row[0])


def _drop_note(tx: Transaction, verb: verbs.DropNote) -> None:
    tx.change("DELETE FROM notes WHERE space = ? AND name = ?", verb.space, verb.name)
