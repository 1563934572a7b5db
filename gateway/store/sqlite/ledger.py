"""The commands of `commands.ledger` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.sqlite import arithmetic as counters
from gateway.store.sqlite.schema import Transaction

# ── ledger ──────────────────────────────────────────────────────────────────────────────────


def _append(tx: Transaction, command: commands.Append) -> None:
    only_if_absent = tx.change(
        "INSERT OR IGNORE INTO appends (batch_id, gone_at) VALUES (?, ?)",
        command.batch_id,
        tx.now + commands.APPENDED_SECONDS,
    )
    for record in command.records if only_if_absent else ():
        _append_record(tx, record)


def _append_record(tx: Transaction, record: bytes) -> None:
    """Under the day of now, or the last one if the clock went back: ids only grow."""
    today = counters.window_at("day", tx.now).label
    tx.change(
        "INSERT INTO ledger (day, record) VALUES"
        " (max(?, coalesce((SELECT day FROM ledger ORDER BY position DESC LIMIT 1), '')), ?)",
        today,
        record,
    )


def _read_ledger(tx: Transaction, command: commands.ReadLedger) -> Sequence[tuple[str, bytes]]:
    day, _, position = command.after.partition("/")
    rows = tx.all(
        "SELECT day, position, record FROM ledger WHERE (day, position) > (?, ?)"
        " ORDER BY day, position LIMIT ?",
        *(day, int(position or 0), command.limit),
    )
    return [(f"{day}/{position:016d}", record) for day, position, record in rows]
