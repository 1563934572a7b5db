"""Totals, and the checkpoint of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from gateway.store import commands
from gateway.store.commands import MAX_GROUP_ROWS, Increment, Period
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

_DELETIONS: Final = (
    """DELETE FROM totals WHERE (row_id, slot) IN (
        SELECT row_id, slot FROM totals_rows JOIN totals ON row_id = totals_rows.id
        WHERE period_id = ? LIMIT ?)""",
    """DELETE FROM totals_rows WHERE id IN (
        SELECT id FROM totals_rows WHERE period_id = ? LIMIT ?)""",
    """DELETE FROM totals_groups WHERE rowid IN (
        SELECT rowid FROM totals_groups WHERE period_id = ? LIMIT ?)""",
)


@writes(commands.FoldTotals)
def fold_totals(tx: Transaction, command: commands.FoldTotals) -> bool:
    if read_checkpoint(tx) != command.expected:
        return False
    tx.execute("UPDATE totals_checkpoint SET position = ?", (command.checkpoint,))
    period_ids: dict[Period, int] = {}
    for increment in command.increments:
        if increment.period not in period_ids:
            period_ids[increment.period] = _add_period(tx, increment.period)
        row_id = _choose_row(tx, period_ids[increment.period], increment)
        _add_to_slot(tx, row_id, increment.slot, increment.sums)
    return True


@reads(commands.ReadTotalsState)
def read_totals_state(tx: Transaction, command: commands.ReadTotalsState) -> commands.TotalsState:
    query = (
        "SELECT group_name FROM totals_periods JOIN totals_groups ON period_id = totals_periods.id"
        " WHERE name = ? AND row_count >= ?"
    )
    full_groups = {
        period: frozenset(group for (group,) in tx.fetch_all(query, (period, MAX_GROUP_ROWS)))
        for period in command.periods
    }
    return commands.TotalsState(read_checkpoint(tx), full_groups)


@reads(commands.ReadTotals)
def read_totals(tx: Transaction, command: commands.ReadTotals) -> commands.TotalsPage:
    rows = tx.fetch_all(
        "SELECT totals_rows.id, dimensions"
        " FROM totals_periods JOIN totals_rows ON period_id = totals_periods.id"
        " WHERE name = ? AND totals_rows.id > ? ORDER BY totals_rows.id LIMIT ?",
        (command.period, int(command.after or 0), command.limit),
    )
    found = []
    for row_id, dimensions in rows:
        slots = tx.fetch_all("SELECT slot, sums FROM totals WHERE row_id = ?", (row_id,))
        found.append((dimensions, {slot: orjson.loads(sums) for slot, sums in slots}))
    after = str(rows[-1][0]) if len(rows) == command.limit else None
    return commands.TotalsPage(read_checkpoint(tx), found, after)


@writes(commands.RemoveTotals)
def remove_totals(tx: Transaction, command: commands.RemoveTotals) -> bool:
    period = tx.fetch_one(
        "SELECT id FROM totals_periods WHERE kind = ? AND ends_at <= ? ORDER BY ends_at LIMIT 1",
        (command.kind, tx.now - command.keep_seconds),
    )
    if period is None:
        return False
    # Slots, then rows, then groups, then the period: no row is left that refers to a deleted one.
    for deletion in _DELETIONS:
        if tx.execute(deletion, (*period, command.limit)):
            return True
    tx.execute("DELETE FROM totals_periods WHERE id = ?", period)
    return True


def read_checkpoint(tx: Transaction) -> str:
    """The position of the last record that is folded; "" if none is."""
    (position,) = tx.fetch_one("SELECT position FROM totals_checkpoint")
    return str(position)


def _add_period(tx: Transaction, period: Period) -> int:
    tx.execute(
        "INSERT OR IGNORE INTO totals_periods (kind, name, ends_at) VALUES (?, ?, ?)",
        (period.kind, period.name, period.ends_at),
    )
    (period_id,) = tx.fetch_one("SELECT id FROM totals_periods WHERE name = ?", (period.name,))
    return int(period_id)


def _choose_row(tx: Transaction, period_id: int, increment: Increment) -> int:
    """The row of an increment: a new one only if its group has room."""
    query = "SELECT id FROM totals_rows WHERE period_id = ? AND dimensions = ?"
    if (found := tx.fetch_one(query, (period_id, increment.row))) is not None:
        return int(found[0])
    is_counted = tx.execute(
        "INSERT INTO totals_groups (period_id, group_name, row_count) VALUES (?, ?, 1)"
        " ON CONFLICT DO UPDATE SET row_count = row_count + 1 WHERE row_count < ?",
        (period_id, increment.group, MAX_GROUP_ROWS),
    )
    dimensions = increment.row if is_counted else increment.other
    tx.execute(
        "INSERT OR IGNORE INTO totals_rows (period_id, dimensions) VALUES (?, ?)",
        (period_id, dimensions),
    )
    (row_id,) = tx.fetch_one(query, (period_id, dimensions))
    return int(row_id)


def _add_to_slot(tx: Transaction, row_id: int, slot: int, added: Mapping[str, int]) -> None:
    before = tx.fetch_one("SELECT sums FROM totals WHERE row_id = ? AND slot = ?", (row_id, slot))
    sums = orjson.loads(before[0]) if before is not None else {}
    for name, amount in added.items():
        sums[name] = sums.get(name, 0) + amount
    tx.execute(
        "INSERT OR REPLACE INTO totals (row_id, slot, sums) VALUES (?, ?, ?)",
        (row_id, slot, orjson.dumps(sums).decode()),
    )
