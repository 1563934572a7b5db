"""The commands of `commands.counters` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands as verbs
from gateway.store.commands import (
    Meter,
    MeterState,
    Take,
)
from gateway.store.sqlite import arithmetic as meters
from gateway.store.sqlite.schema import Transaction

# ── meters ──────────────────────────────────────────────────────────────────────────────────


def _read_meters(tx: Transaction, verb: verbs.ReadMeters) -> Sequence[MeterState]:
    return tuple(_show(tx, meter) for meter in verb.meters)


def _admit(tx: Transaction, verb: verbs.Admit) -> verbs.Admission:
    record = tx.record(verb.space, verb.name) or b""
    if record != verb.expect:
        return verbs.Admission(None, record, ())
    refused = _first_refused(tx, verb.takes)
    if refused is None:
        _draw(tx, verb.takes)
    return verbs.Admission(refused, None, _show_takes(tx, verb.takes, refused=refused))


def _first_refused(tx: Transaction, takes: Sequence[Take]) -> int | None:
    return next((index for index, take in enumerate(takes) if not _fits(tx, take)), None)


def _fits(tx: Transaction, take: Take) -> bool:
    meter = take.meter
    if meter.maximum is None or take.amount == 0:
        return True
    if meter.period == "minute":
        return take.amount * meters.UNITS <= _bucket(tx, meter, meter.maximum).level
    spent, reserved = _window(tx, meter)
    return spent + reserved + take.amount <= meter.maximum


def _draw(tx: Transaction, takes: Sequence[Take]) -> None:
    """Takes from the buckets; windows are not drawn from but reserved in."""
    for take in takes:
        meter = take.meter
        if meter.period != "minute" or meter.maximum is None or take.amount == 0:
            continue
        bucket = _bucket(tx, meter, meter.maximum)
        tx.change(
            "INSERT OR REPLACE INTO buckets (scope, unit, level, at, gone_at)"
            " VALUES (?, ?, ?, ?, ?)",
            *(meter.scope, meter.unit, bucket.level - take.amount * meters.UNITS, bucket.at),
            bucket.at / 1e6 + meters.BUCKET_SECONDS,
        )


def _show_takes(
    tx: Transaction, takes: Sequence[Take], *, refused: int | None = None
) -> tuple[MeterState, ...]:
    return tuple(
        _show(tx, take.meter, refused=take.amount if index == refused else 0)
        for index, take in enumerate(takes)
    )


def _show(tx: Transaction, meter: Meter, *, refused: int = 0) -> MeterState:
    """What a meter shows now; `refused` is the amount that its bucket just could not give."""
    if meter.period != "minute":
        spent, reserved = _window(tx, meter)
        ends_at = meters.window_at(meter.period, tx.now).ends_at
        return meters.show_window(spent, reserved, resets_in=ends_at - tx.now)
    if meter.maximum is None:
        return MeterState(used=0, reserved=0, resets_in=0.0)
    bucket = _bucket(tx, meter, meter.maximum)
    return meters.show_bucket(bucket, meter.maximum, refused=refused)


def _bucket(tx: Transaction, meter: Meter, maximum: int) -> meters.Bucket:
    row = tx.one("SELECT level, at FROM buckets WHERE scope = ? AND unit = ?", *_name(meter))
    bucket = None if row is None else meters.Bucket(*row)
    return meters.refill(bucket, maximum, now=tx.now_micros)


def _window(tx: Transaction, meter: Meter) -> tuple[int, int]:
    """What is spent and reserved in the meter's window of now."""
    row = tx.one(
        "SELECT spent, reserved FROM windows"
        " WHERE scope = ? AND unit = ? AND period = ? AND label = ?",
        *(*_name(meter), meter.period, meters.window_at(meter.period, tx.now).label),
    )
    return (0, 0) if row is None else (row[0], row[1])


def _name(meter: Meter) -> tuple[str, str]:
    return meter.scope, meter.unit
