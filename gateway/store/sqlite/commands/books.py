"""The books at one moment."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import OpenPurchase, WindowAmounts, WindowName
from gateway.store.sqlite.commands.journals import read_windows
from gateway.store.sqlite.commands.ledger import read_ledger_end
from gateway.store.sqlite.commands.registry import reads
from gateway.store.sqlite.commands.running_totals import read_total
from gateway.store.sqlite.transaction import Transaction


@reads(commands.ReadBooks)
def read_books(tx: Transaction, command: commands.ReadBooks) -> commands.Books:
    last, removed, free_removed = read_ledger_end(tx)
    return commands.Books(
        now=tx.now,
        ledger_end=last,
        removed_to=removed,
        free_removed_to=free_removed,
        windows=[_read_window(tx, window) for window in command.windows],
        totals=[read_total(tx, name) for name in command.totals],
        purchases=_read_purchases(tx, command.max_purchases),
    )


def _read_window(tx: Transaction, window: WindowName) -> WindowAmounts:
    rows = tx.fetch_all(
        "SELECT unit, spent, reserved FROM windows"
        " WHERE subject = ? AND period = ? AND label = ? AND remove_after > ?",
        (window.subject, window.period, window.label, tx.now),
    )
    return WindowAmounts(
        spent={unit: spent for unit, spent, _ in rows if spent},
        reserved={unit: reserved for unit, _, reserved in rows if reserved},
    )


def _read_purchases(tx: Transaction, most: int) -> Sequence[OpenPurchase] | None:
    rows = tx.fetch_all(
        "SELECT purchase, worker, coalesce(reserved_at, 0), consumptions,"
        " windows"
        " FROM journals WHERE state != 'settled' LIMIT ?",
        (most + 1,),
    )
    if len(rows) > most:
        return None
    return [
        OpenPurchase(purchase, worker, at, read_windows(packed, scopes))
        for purchase, worker, at, packed, scopes in rows
    ]
