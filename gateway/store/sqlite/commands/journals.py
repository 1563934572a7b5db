"""Journals: a purchase is reserved, received and settled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from gateway.images import decode_fields
from gateway.limits import Period
from gateway.store import commands
from gateway.store.commands import (
    CLOSED_JOURNAL_SECONDS,
    WINDOW_GRACE_SECONDS,
    Consumption,
    Counter,
)
from gateway.store.sqlite.arithmetic import window_at
from gateway.store.sqlite.commands.counters import (
    consume_from_buckets,
    find_denied,
    read_consumed,
    read_counter,
)
from gateway.store.sqlite.commands.ledger import append_record
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.commands.workers import record_heartbeat
from gateway.store.sqlite.transaction import Transaction


@dataclass(frozen=True, slots=True)
class _Reserved:
    """One consumption of a reservation, with the window that it was reserved in."""

    subject: str
    unit: str
    period: Period
    amount: int
    maximum: int | None = None
    window: str = ""

    @property
    def counter(self) -> Counter:
        return Counter(self.subject, self.unit, self.period, self.maximum)


@dataclass(frozen=True, slots=True)
class _Journal:
    """A journal, as far as settling it needs it."""

    is_settled: bool
    consumptions: tuple[_Reserved, ...]
    charge: Mapping[str, int]
    presumed: bool


@writes(commands.Reserve)
def reserve(tx: Transaction, command: commands.Reserve) -> commands.Reservation:
    consumptions = command.consumptions
    if _read_journal(tx, command.purchase) is not None:
        return commands.Reservation(None, read_consumed(tx, consumptions), tx.now)
    denied = find_denied(tx, consumptions)
    if denied is None:
        consume_from_buckets(tx, consumptions)
        tx.execute(
            "INSERT OR REPLACE INTO journals"
            " (purchase, worker, state, payload, consumptions, charge, presumed, remove_after)"
            " VALUES (?, ?, 'reserved', ?, ?, '{}', 0, ?)",
            (
                command.purchase,
                command.worker,
                command.payload,
                orjson.dumps([_reserve(tx, one) for one in consumptions]).decode(),
                math.inf,
            ),
        )
        # A worker with an open journal is always registered, so that others can find it.
        record_heartbeat(tx, command.worker)
    states = read_consumed(tx, consumptions, denied=denied)
    return commands.Reservation(denied, states, tx.now)


def _reserve(tx: Transaction, consumption: Consumption) -> _Reserved:
    """Reserves an amount in the window of now, unless it was taken from a bucket."""
    counter, amount = consumption
    window = window_at(counter.period, tx.now)
    if counter.period != "minute":
        tx.execute(
            "INSERT INTO windows (subject, unit, period, label, spent, reserved, remove_after)"
            " VALUES (?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE"
            " SET reserved = reserved + excluded.reserved",
            (
                counter.subject,
                counter.unit,
                counter.period,
                window.label,
                amount,
                window.ends_at + WINDOW_GRACE_SECONDS,
            ),
        )
    return _Reserved(
        counter.subject,
        counter.unit,
        counter.period,
        amount=amount,
        maximum=counter.maximum,
        window=window.label,
    )


@writes(commands.Receive)
def receive(
    tx: Transaction, command: commands.Receive
) -> Literal["received", "settled", "unknown"]:
    journal = _read_journal(tx, command.purchase)
    if journal is None:
        return "unknown"
    if journal.is_settled:
        return "settled"
    tx.execute(
        "UPDATE journals SET state = 'received', payload = ? WHERE purchase = ?",
        (command.payload, command.purchase),
    )
    return "received"


@writes(commands.Settle)
def settle(tx: Transaction, command: commands.Settle) -> commands.Settlement:
    remove_after = tx.now + CLOSED_JOURNAL_SECONDS
    journal = _read_journal(tx, command.purchase)
    if journal is None:
        # A reservation of this purchase that runs late finds a settled journal.
        tx.execute(
            "INSERT OR REPLACE INTO journals"
            " (purchase, worker, state, payload, consumptions, charge, presumed, remove_after)"
            " VALUES (?, '', 'settled', x'', '[]', '{}', 0, ?)",
            (command.purchase, remove_after),
        )
        return commands.Settlement("unknown", {}, presumed=False, states=())
    if journal.is_settled and not (command.correct and journal.presumed):
        return _settlement(tx, journal, status="already")
    _move_windows(tx, journal, command.charge)
    if command.record is not None:
        append_record(tx, command.record)
    presumed = command.presumed and not journal.is_settled
    tx.execute(
        "UPDATE journals SET state = 'settled', payload = x'', charge = ?, presumed = ?,"
        " remove_after = ? WHERE purchase = ?",
        (orjson.dumps(dict(command.charge)).decode(), presumed, remove_after, command.purchase),
    )
    settled = replace(journal, charge=command.charge, presumed=presumed)
    return _settlement(tx, settled, status="corrected" if journal.is_settled else "settled")


def _move_windows(tx: Transaction, journal: _Journal, charge: Mapping[str, int]) -> None:
    """Releases the reserved amounts, and moves the spent ones to a new charge."""
    for reserved in journal.consumptions:
        if reserved.period == "minute":
            continue
        spent = charge.get(reserved.unit, 0) - journal.charge.get(reserved.unit, 0)
        # A window that has been swept is not made again.
        tx.execute(
            "UPDATE windows SET spent = spent + ?, reserved = reserved - ?"
            " WHERE subject = ? AND unit = ? AND period = ? AND label = ?",
            (
                0 if reserved.period == "concurrency" else spent,
                0 if journal.is_settled else reserved.amount,
                reserved.subject,
                reserved.unit,
                reserved.period,
                reserved.window,
            ),
        )


def _settlement(
    tx: Transaction, journal: _Journal, *, status: Literal["settled", "already", "corrected"]
) -> commands.Settlement:
    states = tuple(read_counter(tx, reserved.counter) for reserved in journal.consumptions)
    return commands.Settlement(status, dict(journal.charge), journal.presumed, states)


def _read_journal(tx: Transaction, purchase: str) -> _Journal | None:
    row = tx.fetch_one(
        "SELECT state, consumptions, charge, presumed FROM journals"
        " WHERE purchase = ? AND remove_after > ?",
        (purchase, tx.now),
    )
    if row is None:
        return None
    state, consumptions, charge, presumed = row
    reserved = tuple(decode_fields(_Reserved, one) for one in orjson.loads(consumptions))
    return _Journal(state == "settled", reserved, orjson.loads(charge), bool(presumed))


@reads(commands.OpenJournals)
def open_journals(tx: Transaction, command: commands.OpenJournals) -> Sequence[commands.Journal]:
    rows = tx.fetch_all(
        "SELECT purchase, worker, state, payload, consumptions FROM journals"
        " WHERE state != 'settled' AND worker = coalesce(?, worker) ORDER BY rowid",
        (command.worker,),
    )
    return [commands.Journal(*row, **_reserved(packed)) for *row, packed in rows]


def _reserved(packed: str) -> dict[str, Any]:
    """The reserved amounts and their subjects, from packed consumptions."""
    with suppress(ValueError, TypeError, KeyError):
        consumptions = [
            (one["subject"], one["unit"], one["amount"]) for one in orjson.loads(packed)
        ]
        return commands.reserved_by_unit(consumptions)
    return {}


@reads(commands.ReadJournalState)
def read_journal_state(
    tx: Transaction, command: commands.ReadJournalState
) -> Literal["reserved", "received", "settled", "unknown"]:
    row = tx.fetch_one(
        "SELECT state FROM journals WHERE purchase = ? AND remove_after > ?",
        (command.purchase, tx.now),
    )
    return "unknown" if row is None else row[0]
