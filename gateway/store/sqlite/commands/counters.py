"""Counters, and the admission of a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gateway.calendar import Window
from gateway.store import commands
from gateway.store.commands import Consumption, Counter, CounterState
from gateway.store.sqlite.arithmetic import (
    BUCKET_SECONDS,
    UNITS,
    Bucket,
    bucket_state,
    refill,
    window_at,
    window_state,
)
from gateway.store.sqlite.commands.records import read_record
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@reads(commands.PeekCounters)
def peek_counters(tx: Transaction, command: commands.PeekCounters) -> Sequence[CounterState]:
    return tuple(read_counter(tx, counter) for counter in command.counters)


@writes(commands.Admit)
def admit(tx: Transaction, command: commands.Admit) -> commands.Admission:
    stored = tuple(read_record(tx, one.space, one.name) or b"" for one in command.expected)
    if stored != tuple(one.value for one in command.expected):
        return commands.Admission(None, stored, ())
    denied, exceeded = judge(tx, command.consumptions)
    if denied is None:
        consume_from_buckets(tx, command.consumptions, exceeded)
    else:
        end_future_buckets(tx, command.consumptions)
    states = read_consumed(tx, command.consumptions, denied=denied)
    return commands.Admission(denied, None, states, tx.now, exceeded)


class Verdict(NamedTuple):
    """The index of the denied consumption, or those of the ones that exceed a shadow limit."""

    denied: int | None
    exceeded: tuple[int, ...] = ()


def judge(tx: Transaction, consumptions: Sequence[Consumption]) -> Verdict:
    """Denies the first consumption that its counter has no room for, unless it is a shadow."""
    exceeded = []
    for index, (counter, amount, shadow) in enumerate(consumptions):
        if not _has_room(tx, counter, amount):
            if not shadow:
                return Verdict(index)
            exceeded.append(index)
    return Verdict(None, tuple(exceeded))


def _has_room(tx: Transaction, counter: Counter, amount: int) -> bool:
    if counter.maximum is None or amount == 0:
        return True
    if counter.period == "minute":
        return amount * UNITS <= _read_bucket(tx, counter, counter.maximum).level
    window = window_at(counter.period, tx.now, tx.calendar)
    spent, reserved = _read_window(tx, counter, window)
    return spent + reserved + amount <= counter.maximum


def consume_from_buckets(
    tx: Transaction, consumptions: Sequence[Consumption], exceeded: Sequence[int]
) -> None:
    """Takes from the token buckets; windows are reserved in instead, with a purchase.

    A shadow bucket that was `exceeded` gives nothing.
    """
    for index, (counter, amount, _) in enumerate(consumptions):
        if index in exceeded:
            continue
        if counter.period != "minute" or counter.maximum is None or amount == 0:
            continue
        bucket = _read_bucket(tx, counter, counter.maximum)
        tx.execute(
            "INSERT OR REPLACE INTO buckets (subject, unit, level, updated_at, remove_after)"
            " VALUES (?, ?, ?, ?, ?)",
            (
                counter.subject,
                counter.unit,
                bucket.level - amount * UNITS,
                bucket.at,
                bucket.at / 1e6 + BUCKET_SECONDS,
            ),
        )


def end_future_buckets(tx: Transaction, consumptions: Iterable[Consumption]) -> None:
    """Buckets from the future, of a clock that went back, refill from now on.

    Called for a denied request too: it takes nothing, and the bucket would stay as it is.
    """
    for counter, *_ in consumptions:
        if counter.period == "minute":
            tx.execute(
                "UPDATE buckets SET updated_at = ? WHERE subject = ? AND unit = ?"
                " AND updated_at > ?",
                (tx.steady_micros, counter.subject, counter.unit, tx.steady_micros),
            )


def read_consumed(
    tx: Transaction, consumptions: Sequence[Consumption], *, denied: int | None = None
) -> tuple[CounterState, ...]:
    """The state of each consumption's counter; `denied` is the index of the one that failed."""
    return tuple(
        read_counter(tx, counter, denied=amount if index == denied else 0)
        for index, (counter, amount, _) in enumerate(consumptions)
    )


def read_counter(tx: Transaction, counter: Counter, *, denied: int = 0) -> CounterState:
    """The state of a counter; `denied` is the amount that its bucket could not give, if any."""
    if counter.period != "minute":
        window = window_at(counter.period, tx.now, tx.calendar)
        spent, reserved = _read_window(tx, counter, window)
        return window_state(window, spent, reserved, now=tx.now)
    if counter.maximum is None:
        return CounterState(used=0, reserved=0, resets_in=0.0)
    bucket = _read_bucket(tx, counter, counter.maximum)
    return bucket_state(bucket, counter.maximum, denied=denied)


def _read_bucket(tx: Transaction, counter: Counter, maximum: int) -> Bucket:
    row = tx.fetch_one(
        "SELECT level, updated_at FROM buckets WHERE subject = ? AND unit = ?",
        (counter.subject, counter.unit),
    )
    now = tx.steady_micros
    # A bucket from the future has the level that it had, and refills from now on.
    bucket = None if row is None else Bucket(row[0], min(row[1], now))
    return refill(bucket, maximum, now=now)


def _read_window(tx: Transaction, counter: Counter, window: Window) -> tuple[int, int]:
    """The amounts spent and reserved."""
    row = tx.fetch_one(
        "SELECT spent, reserved FROM windows"
        " WHERE subject = ? AND unit = ? AND period = ? AND label = ?",
        (counter.subject, counter.unit, counter.period, window.label),
    )
    return (0, 0) if row is None else (row[0], row[1])
