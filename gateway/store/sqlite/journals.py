"""The commands of `commands.journals` in SQL."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from gateway.store import commands
from gateway.store.commands import (
    CLOSED_JOURNAL_SECONDS,
    WINDOW_GRACE_SECONDS,
    Consumption,
    Counter,
)
from gateway.store.sqlite import arithmetic as counters
from gateway.store.sqlite.counters import _draw, _first_refused, _name, _show, _show_takes
from gateway.store.sqlite.ledger import _append_record
from gateway.store.sqlite.schema import Transaction
from gateway.store.sqlite.workers import _beat

# ── journals ────────────────────────────────────────────────────────────────────────────────


class _Part(NamedTuple):
    """One take of a reservation as its journal remembers it: with the window it fell into."""

    scope: str
    unit: str
    period: Literal["minute", "day", "month", "concurrency"]
    maximum: int | None
    amount: int
    label: str

    @property
    def counter(self) -> Counter:
        return Counter(self.scope, self.unit, self.period, self.maximum)


@dataclass(frozen=True, slots=True)
class _Closing:
    """What the journal of a purchase says about closing it."""

    is_closed: bool
    parts: tuple[_Part, ...]
    charge: Mapping[str, int]
    presumed: bool

    @property
    def windows(self) -> Iterator[_Part]:
        return (part for part in self.parts if part.period != "minute")


def _reserve(tx: Transaction, command: commands.Reserve) -> commands.Reservation:
    if _closing(tx, command.purchase) is not None:
        return commands.Reservation(None, _show_takes(tx, command.consumptions), tx.now)
    denied = _first_refused(tx, command.consumptions)
    if denied is None:
        _draw(tx, command.consumptions)
        _open_journal(tx, command)
        _beat(tx, command)
    return commands.Reservation(
        denied, _show_takes(tx, command.consumptions, denied=denied), tx.now
    )


def _open_journal(tx: Transaction, command: commands.Reserve) -> None:
    parts = [_reserved_part(tx, take) for take in command.consumptions]
    _write_journal(
        tx,
        command.purchase,
        state="reserved",
        gone_at=math.inf,
        worker=command.worker,
        payload=command.payload,
        consumptions=json.dumps(parts),
    )


def _write_journal(
    tx: Transaction,
    purchase: str,
    *,
    state: str,
    gone_at: float,
    worker: str = "",
    payload: bytes = b"",
    consumptions: str = "[]",
) -> None:
    tx.change(
        "INSERT OR REPLACE INTO journals"
        " (purchase, worker, state, payload, takes, charge, presumed, gone_at)"
        " VALUES (?, ?, ?, ?, ?, '{}', 0, ?)",
        *(purchase, worker, state, payload, consumptions, gone_at),
    )


def _reserved_part(tx: Transaction, take: Consumption) -> _Part:
    """Reserves the take in its window, which is made when it is the first."""
    counter = take.counter
    window = counters.window_at(counter.period, tx.now)
    part = _Part(*_name(counter), counter.period, counter.maximum, take.amount, window.label)
    if counter.period != "minute":
        tx.change(
            "INSERT INTO windows (scope, unit, period, label, spent, reserved, gone_at)"
            " VALUES (?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE"
            " SET reserved = reserved + excluded.reserved",
            *(*_name(counter), counter.period, window.label, take.amount),
            window.ends_at + WINDOW_GRACE_SECONDS,
        )
    return part


def _receive(
    tx: Transaction, command: commands.Receive
) -> Literal["received", "settled", "unknown"]:
    journal = _closing(tx, command.purchase)
    if journal is None:
        return "unknown"
    if journal.is_closed:
        return "settled"
    tx.change(
        "UPDATE journals SET state = 'received', payload = ? WHERE purchase = ?",
        command.payload,
        command.purchase,
    )
    return "received"


def _settle(tx: Transaction, command: commands.Settle) -> commands.Settlement:
    journal = _closing(tx, command.purchase)
    if journal is None:
        _write_journal(
            tx, command.purchase, state="settled", gone_at=tx.now + CLOSED_JOURNAL_SECONDS
        )
        return commands.Settlement("unknown", {}, presumed=False, states=())
    if not journal.is_closed:
        _give_back(tx, journal)
        return _charge(tx, command, journal=journal)
    if command.correct and journal.presumed:
        return _charge(tx, command, journal=journal)
    return _settlement(tx, journal, status="already")


def _give_back(tx: Transaction, journal: _Closing) -> None:
    for part in journal.windows:
        _move_window(tx, part, spent=0, reserved=-part.amount)


def _charge(tx: Transaction, command: commands.Settle, *, journal: _Closing) -> commands.Settlement:
    """Moves the windows from what the journal is charged with now to what the verb says."""
    for part in journal.windows:
        difference = command.charge.get(part.unit, 0) - journal.charge.get(part.unit, 0)
        if part.period != "concurrency":
            _move_window(tx, part, spent=difference, reserved=0)
    if command.record is not None:
        _append_record(tx, command.record)
    presumed = command.presumed and not journal.is_closed
    tx.change(
        "UPDATE journals SET state = 'settled', payload = x'', charge = ?, presumed = ?,"
        " gone_at = ? WHERE purchase = ?",
        *(json.dumps(dict(command.charge)), presumed, tx.now + CLOSED_JOURNAL_SECONDS),
        command.purchase,
    )
    closed = replace(journal, charge=command.charge, presumed=presumed)
    return _settlement(tx, closed, status="corrected" if journal.is_closed else "settled")


def _move_window(tx: Transaction, part: _Part, *, spent: int, reserved: int) -> None:
    """Moves the counters of the window that the take fell into, unless it is swept already."""
    tx.change(
        "UPDATE windows SET spent = spent + ?, reserved = reserved + ?"
        " WHERE scope = ? AND unit = ? AND period = ? AND label = ?",
        *(spent, reserved, part.scope, part.unit, part.period, part.label),
    )


def _settlement(
    tx: Transaction, journal: _Closing, *, status: Literal["settled", "already", "corrected"]
) -> commands.Settlement:
    states = tuple(_show(tx, part.counter) for part in journal.parts)
    return commands.Settlement(status, dict(journal.charge), journal.presumed, states)


def _closing(tx: Transaction, purchase: str) -> _Closing | None:
    row = tx.one(
        "SELECT state, takes, charge, presumed FROM journals WHERE purchase = ? AND gone_at > ?",
        purchase,
        tx.now,
    )
    if row is None:
        return None
    state, consumptions, charge, presumed = row
    parts = tuple(_Part(*part) for part in json.loads(consumptions))
    return _Closing(state == "settled", parts, json.loads(charge), bool(presumed))


def _open_journals(tx: Transaction, command: commands.OpenJournals) -> Sequence[commands.Journal]:
    rows = tx.all(
        "SELECT purchase, worker, state, payload FROM journals"
        " WHERE state != 'settled' AND worker = coalesce(?, worker) ORDER BY rowid",
        command.worker,
    )
    return [commands.Journal(*row) for row in rows]
