"""Running totals of money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.store import commands
from gateway.store.commands import RunningTotal
from gateway.store.sqlite.commands.registry import reads
from gateway.store.sqlite.transaction import Transaction

_FIRST_CHARGES: Final = "first-charges"
"""The space of records that note when a total was first charged, for which the schema has no
column."""


def add_to_total(
    tx: Transaction, name: str, *, charged: int = 0, corrected: int = 0, saved: int = 0
) -> None:
    if charged or corrected or saved:
        row = tx.fetch_one(
            "INSERT INTO running_totals (name, charged, corrected, saved) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET charged = charged + excluded.charged,"
            " corrected = corrected + excluded.corrected, saved = saved + excluded.saved"
            " RETURNING charged",
            (name, charged, corrected, saved),
        )
        if charged and row == (charged,):
            tx.execute(
                "INSERT OR IGNORE INTO records (space, name, value) VALUES (?, ?, ?)",
                (_FIRST_CHARGES, name, repr(tx.now).encode()),
            )


@reads(commands.ReadFirstCharges)
def read_first_charges(
    tx: Transaction, command: commands.ReadFirstCharges
) -> Sequence[float | None]:
    rows = (
        tx.fetch_one(
            "SELECT value FROM records WHERE space = ? AND name = ?", (_FIRST_CHARGES, name)
        )
        for name in command.names
    )
    return [None if row is None else float(row[0]) for row in rows]


@reads(commands.ReadRunningTotals)
def read_running_totals(
    tx: Transaction, command: commands.ReadRunningTotals
) -> Sequence[RunningTotal]:
    return [read_total(tx, name) for name in command.names]


def read_total(tx: Transaction, name: str) -> RunningTotal:
    row = tx.fetch_one(
        "SELECT charged, corrected, saved FROM running_totals WHERE name = ?", (name,)
    )
    return RunningTotal() if row is None else RunningTotal(*row)
