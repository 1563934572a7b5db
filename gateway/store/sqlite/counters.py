"""The commands of `commands.counters` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import (
    Consumption,
    Counter,
    CounterState,
)
from gateway.store.sqlite import arithmetic as counters
from gateway.store.sqlite.schema import Transaction

# ── meters ──────────────────────────────────────────────────────────────────────────────────


def _read_meters(tx: Transaction, command: commands.PeekCounters) -> Sequence[CounterState]:
    return tuple(_show(tx, counter) for counter in command.counters)


def _admit(tx: Transaction, command: commands.Admit) -> commands.Admission:
    record = tx.record(command.space, command.name) or b""
    if record != command.expected:
        return commands.Admission(None, record, ())
    denied = _first_refused(tx, command.consumptions)
    if denied is None:
        _draw(tx, command.consumptions)
    return commands.Admission(denied, None, _show_takes(tx, command.consumptions, denied=denied))


def _first_refused(tx: Transaction, consumptions: Sequence[Consumption]) -> int | None:
    return next((index for index, take in enumerate(consumptions) if not _fits(tx, take)), None)


def _fits(tx: Transaction, take: Consumption) -> bool:
    counter = take.counter
    if counter.maximum is None or take.amount == 0:
        return True
    if counter.period == "minute":
        return take.amount * counters.UNITS <= _bucket(tx, counter, counter.maximum).level
    spent, reserved = _window(tx, counter)
    return spent + reserved + take.amount <= counter.maximum


def _draw(tx: Transaction, consumptions: Sequence[Consumption]) -> None:
    """Takes from the buckets; windows are not drawn from but reserved in."""
    for take in consumptions:
        counter = take.counter
        if counter.period != "minute" or counter.maximum is None or take.amount == 0:
            continue
        bucket = _bucket(tx, counter, counter.maximum)
        tx.change(
            "INSERT OR REPLACE INTO buckets (scope, unit, level, at, gone_at)"
            " VALUES (?, ?, ?, ?, ?)",
            *(
                counter.subject,
                counter.unit,
                bucket.level - take.amount * counters.UNITS,
                bucket.at,
            ),
            bucket.at / 1e6 + counters.BUCKET_SECONDS,
        )


def _show_takes(
    tx: Transaction, consumptions: Sequence[Consumption], *, denied: int | None = None
) -> tuple[CounterState, ...]:
    return tuple(
        _show(tx, take.counter, denied=take.amount if index == denied else 0)
        for index, take in enumerate(consumptions)
    )


def _show(tx: Transaction, counter: Counter, *, denied: int = 0) -> CounterState:
    """What a meter shows now; `refused` is the amount that its bucket just could not give."""
    if counter.period != "minute":
        spent, reserved = _window(tx, counter)
        ends_at = counters.window_at(counter.period, tx.now).ends_at
        return counters.show_window(spent, reserved, resets_in=ends_at - tx.now)
    if counter.maximum is None:
        return CounterState(used=0, reserved=0, resets_in=0.0)
    bucket = _bucket(tx, counter, counter.maximum)
    return counters.show_bucket(bucket, counter.maximum, denied=denied)


def _bucket(tx: Transaction, counter: Counter, maximum: int) -> counters.Bucket:
    row = tx.one("SELECT level, at FROM buckets WHERE scope = ? AND unit = ?", *_name(counter))
    bucket = None if row is None else counters.Bucket(*row)
    return counters.refill(bucket, maximum, now=tx.now_micros)


def _window(tx: Transaction, counter: Counter) -> tuple[int, int]:
    """What is spent and reserved in the meter's window of now."""
    row = tx.one(
        "SELECT spent, reserved FROM windows"
        " WHERE scope = ? AND unit = ? AND period = ? AND label = ?",
        *(*_name(counter), counter.period, counters.window_at(counter.period, tx.now).label),
    )
    return (0, 0) if row is None else (row[0], row[1])


def _name(counter: Counter) -> tuple[str, str]:
    return counter.subject, counter.unit
