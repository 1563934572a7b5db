"""Running totals of money."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import RunningTotal
from gateway.store.sqlite.commands.registry import reads
from gateway.store.sqlite.transaction import Transaction


def add_to_total(
    tx: Transaction, name: str, *, charged: int = 0, corrected: int = 0, saved: int = 0
) -> None:
    if charged or corrected or saved:
        tx.execute(
            "INSERT INTO running_totals (name, charged, corrected, saved) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET charged = charged + excluded.charged,"
            " corrected = corrected + excluded.corrected, saved = saved + excluded.saved",
            (name, charged, corrected, saved),
        )


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
