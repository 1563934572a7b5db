"""The books, as SQL: the workers that write them, meters, journals, the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from gateway.store import meters, verbs
from gateway.store.sqlite_tables import Performers, Transaction
from gateway.store.verbs import (
    CLOSED_JOURNAL_SECONDS,
    WINDOW_GRACE_SECONDS,
    Meter,
    MeterState,
    Take,
)

# ── workers ─────────────────────────────────────────────────────────────────────────────────


def _beat(tx: Transaction, verb: verbs.Beat | verbs.Reserve) -> None:
    tx.change("INSERT OR REPLACE INTO workers (worker, beat_at) VALUES (?, ?)", verb.worker, tx.now)


def _dead_workers(tx: Transaction, verb: verbs.DeadWorkers) -> Sequence[str]:
    rows = tx.all(
        "SELECT worker FROM workers WHERE beat_at <= ? ORDER BY worker", tx.now - verb.after_seconds
    )
    return [worker for (worker,) in rows]


def _retire(tx: Transaction, verb: verbs.Retire) -> bool:
    if tx.one("SELECT 1 FROM journals WHERE worker = ? AND state != 'settled'", verb.worker):
        return False
    tx.change("DELETE FROM workers WHERE worker = ?", verb.worker)
    return True


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


# ── journals ────────────────────────────────────────────────────────────────────────────────


class _Part(NamedTuple):
    """One take of a reservation as its journal remembers it: with the window it fell into."""

    scope: str
    unit: str
    period: Literal["minute", "day", "month", "open"]
    maximum: int | None
    amount: int
    label: str

    @property
    def meter(self) -> Meter:
        return Meter(self.scope, self.unit, self.period, self.maximum)


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


def _reserve(tx: Transaction, verb: verbs.Reserve) -> verbs.Reservation:
    if _closing(tx, verb.purchase) is not None:
        return verbs.Reservation(None, _show_takes(tx, verb.takes), tx.now)
    refused = _first_refused(tx, verb.takes)
    if refused is None:
        _draw(tx, verb.takes)
        _open_journal(tx, verb)
        _beat(tx, verb)
    return verbs.Reservation(refused, _show_takes(tx, verb.takes, refused=refused), tx.now)


def _open_journal(tx: Transaction, verb: verbs.Reserve) -> None:
    parts = [_reserved_part(tx, take) for take in verb.takes]
    _write_journal(
        tx,
        verb.purchase,
        state="reserved",
        gone_at=math.inf,
        worker=verb.worker,
        payload=verb.payload,
        takes=json.dumps(parts),
    )


def _write_journal(
    tx: Transaction,
    purchase: str,
    *,
    state: str,
    gone_at: float,
    worker: str = "",
    payload: bytes = b"",
    takes: str = "[]",
) -> None:
    tx.change(
        "INSERT OR REPLACE INTO journals"
        " (purchase, worker, state, payload, takes, charge, presumed, gone_at)"
        " VALUES (?, ?, ?, ?, ?, '{}', 0, ?)",
        *(purchase, worker, state, payload, takes, gone_at),
    )


def _reserved_part(tx: Transaction, take: Take) -> _Part:
    """Reserves the take in its window, which is made when it is the first."""
    meter = take.meter
    window = meters.window_at(meter.period, tx.now)
    part = _Part(*_name(meter), meter.period, meter.maximum, take.amount, window.label)
    if meter.period != "minute":
        tx.change(
            "INSERT INTO windows (scope, unit, period, label, spent, reserved, gone_at)"
            " VALUES (?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE"
            " SET reserved = reserved + excluded.reserved",
            *(*_name(meter), meter.period, window.label, take.amount),
            window.ends_at + WINDOW_GRACE_SECONDS,
        )
    return part


def _receive(tx: Transaction, verb: verbs.Receive) -> Literal["received", "settled", "unknown"]:
    journal = _closing(tx, verb.purchase)
    if journal is None:
        return "unknown"
    if journal.is_closed:
        return "settled"
    tx.change(
        "UPDATE journals SET state = 'received', payload = ? WHERE purchase = ?",
        verb.payload,
        verb.purchase,
    )
    return "received"


def _settle(tx: Transaction, verb: verbs.Settle) -> verbs.Settlement:
    journal = _closing(tx, verb.purchase)
    if journal is None:
        _write_journal(tx, verb.purchase, state="settled", gone_at=tx.now + CLOSED_JOURNAL_SECONDS)
        return verbs.Settlement("unknown", {}, presumed=False, states=())
    if not journal.is_closed:
        _give_back(tx, journal)
        return _charge(tx, verb, journal=journal)
    if verb.correct and journal.presumed:
        return _charge(tx, verb, journal=journal)
    return _settlement(tx, journal, status="already")


def _give_back(tx: Transaction, journal: _Closing) -> None:
    for part in journal.windows:
        _move_window(tx, part, spent=0, reserved=-part.amount)


def _charge(tx: Transaction, verb: verbs.Settle, *, journal: _Closing) -> verbs.Settlement:
    """Moves the windows from what the journal is charged with now to what the verb says."""
    for part in journal.windows:
        difference = verb.charge.get(part.unit, 0) - journal.charge.get(part.unit, 0)
        if part.period != "open":
            _move_window(tx, part, spent=difference, reserved=0)
    if verb.record is not None:
        _append_record(tx, verb.record)
    presumed = verb.presumed and not journal.is_closed
    tx.change(
        "UPDATE journals SET state = 'settled', payload = x'', charge = ?, presumed = ?,"
        " gone_at = ? WHERE purchase = ?",
        *(json.dumps(dict(verb.charge)), presumed, tx.now + CLOSED_JOURNAL_SECONDS),
        verb.purchase,
    )
    closed = replace(journal, charge=verb.charge, presumed=presumed)
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
) -> verbs.Settlement:
    states = tuple(_show(tx, part.meter) for part in journal.parts)
    return verbs.Settlement(status, dict(journal.charge), journal.presumed, states)


def _closing(tx: Transaction, purchase: str) -> _Closing | None:
    row = tx.one(
        "SELECT state, takes, charge, presumed FROM journals WHERE purchase = ? AND gone_at > ?",
        purchase,
        tx.now,
    )
    if row is None:
        return None
    state, takes, charge, presumed = row
    parts = tuple(_Part(*part) for part in json.loads(takes))
    return _Closing(state == "settled", parts, json.loads(charge), bool(presumed))


def _open_journals(tx: Transaction, verb: verbs.OpenJournals) -> Sequence[verbs.Journal]:
    rows = tx.all(
        "SELECT purchase, worker, state, payload FROM journals"
        " WHERE state != 'settled' AND worker = coalesce(?, worker) ORDER BY rowid",
        verb.worker,
    )
    return [verbs.Journal(*row) for row in rows]


# ── ledger ──────────────────────────────────────────────────────────────────────────────────


def _append(tx: Transaction, verb: verbs.Append) -> None:
    is_new = tx.change(
        "INSERT OR IGNORE INTO appends (batch_id, gone_at) VALUES (?, ?)",
        verb.batch_id,
        tx.now + verbs.APPENDED_SECONDS,
    )
    for record in verb.records if is_new else ():
        _append_record(tx, record)


def _append_record(tx: Transaction, record: bytes) -> None:
    """Under the day of now, or the last one if the clock went back: ids only grow."""
    today = meters.window_at("day", tx.now).label
    tx.change(
        "INSERT INTO ledger (day, record) VALUES"
        " (max(?, coalesce((SELECT day FROM ledger ORDER BY position DESC LIMIT 1), '')), ?)",
        today,
        record,
    )


def _read_ledger(tx: Transaction, verb: verbs.ReadLedger) -> Sequence[tuple[str, bytes]]:
    day, _, position = verb.after.partition("/")
    rows = tx.all(
        "SELECT day, position, record FROM ledger WHERE (day, position) > (?, ?)"
        " ORDER BY day, position LIMIT ?",
        *(day, int(position or 0), verb.limit),
    )
    return [(f"{day}/{position:016d}", record) for day, position, record in rows]


BOOKS: Final[Performers] = {
    verbs.Beat: _beat,
    verbs.DeadWorkers: _dead_workers,
    verbs.Retire: _retire,
    verbs.ReadMeters: _read_meters,
    verbs.Admit: _admit,
    verbs.Reserve: _reserve,
    verbs.Receive: _receive,
    verbs.Settle: _settle,
    verbs.OpenJournals: _open_journals,
    verbs.Append: _append,
    verbs.ReadLedger: _read_ledger,
}
