"""The ledger: records in the order of their appends, by UTC day."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.sqlite.arithmetic import window_at
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.commands.running_totals import add_to_total
from gateway.store.sqlite.transaction import Transaction


@writes(commands.Append)
def append(tx: Transaction, command: commands.Append) -> None:
    is_new = tx.execute(
        "INSERT OR IGNORE INTO appends (batch_id, remove_after) VALUES (?, ?)",
        (command.batch_id, tx.now + commands.APPENDED_SECONDS),
    )
    if is_new:
        for name, usd_micros in command.saved.items():
            add_to_total(tx, name, saved=usd_micros)
        for record in command.records:
            append_record(tx, record)


def append_record(tx: Transaction, record: bytes) -> None:
    """Adds a record to the ledger of today."""
    # If the clock was set back, the last day goes on: ids have to grow.
    tx.execute(
        "INSERT INTO ledger (day, record) VALUES"
        " (max(?, coalesce((SELECT day FROM ledger ORDER BY position DESC LIMIT 1), '')), ?)",
        (window_at("day", tx.now).label, record),
    )


@reads(commands.ReadLedger)
def read_ledger(tx: Transaction, command: commands.ReadLedger) -> Sequence[tuple[str, bytes]]:
    day, _, position = command.after.partition("/")
    rows = tx.fetch_all(
        "SELECT day, position, record FROM ledger WHERE (day, position) > (?, ?)"
        " ORDER BY day, position LIMIT ?",
        (day, int(position or 0), command.limit),
    )
    return [(f"{day}/{position:016d}", record) for day, position, record in rows]
