"""What a purchase will change in the books, worked out before its scripts run.

Most of the time of `reserve` and `settle` goes to finding out which windows an amount counts in:
they build names, decode and encode JSON, and walk tables. A gateway knows all of it beforehand, if
the server has the day that the gateway expects, and if nobody has changed the reservation. So it
sends a plan with the command: which of the KEYS change, and by which of the ARGV. The script looks
whether the plan holds, and then only carries it out. If it does not hold, the script works without
it. With plans, Redis needs half the time for a purchase.

A plan is a string of small numbers, one in each byte, because Lua reads these fastest. It depends
on counters and days, not on amounts, so the plans of a key's purchases are made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final

import orjson

from gateway.store import commands
from gateway.store.commands import Counter
from gateway.store.redis.keys import Keys

MAX_NUMBER: Final = 255
"""Of a plan; a purchase that needs more has none."""

MAX_LAYOUTS: Final = 1024

# Where the parts of a plan begin, in KEYS and ARGV of the scripts (from 1).
_RESERVE_KEYS, _RESERVE_ENDS, _RESERVE_UNITS = 5, 11, 14
_SETTLE_KEYS, _SETTLE_ENDS, _SETTLE_TOTALS = 9, 15, 25

_OTHER, _BUCKET, _WINDOW = 0, 1, 2  # a counter without a limit and without a window; the others

_EPOCH: Final = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class _Window:
    key: int
    """The place of its name in `Layout.counter_keys`."""
    end: int
    """The place of its end among those of the day; -1: it has none."""
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity
class Layout:
    """The plan of all purchases that count in the same counters on the same day."""

    counters: tuple[Counter, ...]
    units: tuple[str, ...]
    counter_keys: tuple[str, ...]
    """The buckets and windows."""
    places: tuple[int, ...]
    """Of each counter, where its name is in `counter_keys`; -1: it is not stored."""
    windows: tuple[_Window, ...]
    ends: tuple[int, ...]
    """When the day begins, and when its day, week and month end, in Unix seconds."""
    consumptions: bytes
    scopes: bytes
    """Both as the journal has them, with `%d` for each amount."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one purchase reserves, and so what its settlement releases."""

    layout: Layout
    worker: str
    amounts: Mapping[str, int]
    """By unit."""
    consumptions: bytes
    scopes: bytes


def plan_reservation(command: commands.Reserve, keys: Keys) -> Plan | None:
    """None if the script has to find out by itself what the reservation changes."""
    if keys.today is None or (command.place is not None and command.place.is_limited):
        return None
    amounts = dict(command.amounts)
    for counter, amount, _ in command.consumptions:
        if amounts.setdefault(counter.unit, amount) != amount:
            return None
    counters = tuple([consumption.counter for consumption in command.consumptions])
    layout = _lay_out(counters, tuple(command.subjects), tuple(command.amounts), keys)
    if layout is None:
        return None
    return Plan(
        layout,
        command.worker,
        amounts,
        layout.consumptions % tuple([consumption.amount for consumption in command.consumptions]),
        layout.scopes % tuple(command.amounts.values()),
    )


def reserve_arguments(plan: Plan) -> list[bytes | str | int]:
    """What `shared/planned_reserve.lua` reads after the arguments of `reserve`."""
    layout, amounts = plan.layout, plan.amounts
    arguments: list[bytes | str | int] = [
        _reserve_numbers(layout, _units_of(amounts)),
        *layout.ends,
    ]
    for unit in layout.units:
        arguments += (unit + ":spent", unit + ":reserved", amounts[unit])
    arguments += ["" if c.maximum is None else c.maximum for c in layout.counters]
    return arguments


def settle_keys(plan: Plan, command: commands.Settle, keys: Keys) -> list[str]:
    """All that `shared/planned_settle.lua` touches, in its order."""
    return [
        keys.journal(command.purchase),
        keys.running_totals,
        *keys.ledger[:2],
        *(keys.ledger_stream("charged", day) for day in keys.days),
        keys.open_purchases(plan.worker),
        keys.reserved(plan.worker),
        *plan.layout.counter_keys,
    ]


def settle_arguments(
    plan: Plan, command: commands.Settle, keys: Keys
) -> list[bytes | str | int] | None:
    """What `shared/planned_settle.lua` reads after the arguments of `settle`; None without plan."""
    charge, layout = command.charge, plan.layout
    charged_units = _units_of(charge)
    is_usual = command.record is not None and charged_units and not command.saved_micros
    if not is_usual or command.presumed or charge.get("usd_micros", 0) < 0:
        return None
    cost = charge.get("usd_micros", 0)
    totals = command.totals if cost else ()
    numbers = _settle_numbers(layout, _units_of(plan.amounts), charged_units, len(totals))
    if not numbers:
        return None
    arguments: list[bytes | str | int] = [
        numbers,
        *layout.ends,
        plan.consumptions,
        plan.scopes,
        plan.worker,
        cost,
        _day_number(keys.days[0]),
        *keys.days,
    ]
    for name in totals:
        arguments += (name + ":charged", name + ":first_charge")
    amounts = plan.amounts
    for unit in layout.units:
        arguments += (unit + ":reserved", -amounts[unit], unit + ":spent", charge.get(unit, 0))
    arguments += ["" if c.maximum is None else c.maximum for c in layout.counters]
    return arguments


def _units_of(amounts: Mapping[str, int]) -> tuple[str, ...]:
    """The units of which there is something."""
    return tuple([unit for unit, amount in amounts.items() if amount])


@lru_cache(maxsize=8)
def _day_number(day: str) -> int:
    """The days since 1970."""
    return date.fromisoformat(day).toordinal() - _EPOCH


# ── layouts ─────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=MAX_LAYOUTS)
def _lay_out(
    counters: tuple[Counter, ...],
    subjects: tuple[str, ...],
    units: tuple[str, ...],
    keys: Keys,
) -> Layout | None:
    today = keys.today
    if today is None or len({counter[:3] for counter in counters}) < len(counters):
        return None
    names = {period: (name, end) for period, name, end in today.windows}
    ends: dict[str, int] = {period: i for i, (period, _, _) in enumerate(today.windows)}
    all_units = dict.fromkeys((*units, *(counter.unit for counter in counters)))
    places: dict[str, int] = {}
    found: dict[str, tuple[int, set[str]]] = {}
    of_counters, rows = [], []
    for subject, unit, period, maximum in counters:
        name, end = names.get(period, ("" if period == "minute" else str(period), 0))
        row = orjson.dumps([subject, unit, period, "" if maximum is None else str(maximum)])
        rows.append(_escaped(row[:-1]) + b',"%d",' + _last_of_row(name, end))
        if period == "minute":
            key = keys.bucket(subject, unit) if maximum is not None else ""
        else:
            key = keys.window(subject, name)
            found.setdefault(key, (ends.get(period, -1), set()))[1].add(unit)
        of_counters.append(places.setdefault(key, len(places)) if key else -1)
    for subject in subjects:
        for i, (_, name, _) in enumerate(today.windows):
            key = keys.window(subject, name)
            places.setdefault(key, len(places))
            found.setdefault(key, (i, set()))[1].update(units)
    windows = [
        _Window(places[key], end, tuple(unit for unit in all_units if unit in of_window))
        for key, (end, of_window) in found.items()
    ]
    return Layout(
        counters,
        tuple(all_units),
        tuple(places),
        tuple(of_counters),
        tuple(windows),
        (today.begins, *(end for _, _, end in today.windows)),
        b"[" + b",".join(rows) + b"]",
        _scopes(subjects, units, [(name, f"{end}000000") for name, end in names.values()]),
    )


def _last_of_row(name: str, end: int) -> bytes:
    return _escaped(orjson.dumps([name, f"{end}000000" if end else ""])[1:])


def _scopes(
    subjects: Sequence[str], units: Sequence[str], windows: Sequence[tuple[str, str]]
) -> bytes:
    amounts = b",".join(_escaped(orjson.dumps(unit)) + b':"%d"' for unit in units)
    return b'{"subjects":%b,"amounts":{%b},"windows":%b}' % (
        _escaped(orjson.dumps(subjects)),
        amounts,
        _escaped(orjson.dumps(windows)),
    )


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")


# ── numbers ─────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=MAX_LAYOUTS)
def _reserve_numbers(layout: Layout, reserved: tuple[str, ...]) -> bytes:
    """The counters (kind, key, unit, maximum, end), then groups of windows.

    A group has its fields (an argument, and the amount in the next one) and its windows (key, end).
    """
    unit_at = {unit: _RESERVE_UNITS + 3 * i for i, unit in enumerate(layout.units)}
    maxima_at = _RESERVE_UNITS + 3 * len(layout.units)
    numbers = [len(layout.counters)]
    for i, (counter, place) in enumerate(zip(layout.counters, layout.places, strict=True)):
        numbers += (
            _kind_of(counter),
            _RESERVE_KEYS + place,
            unit_at[counter.unit],
            maxima_at + i,
            _end_of(layout, place, _RESERVE_ENDS),
        )
    fields = {unit: [unit_at[unit] + 1] for unit in reserved}
    for group in _groups(layout):
        of_group = [place for unit in group[0].units for place in fields.get(unit, ())]
        numbers += _group_numbers(group, of_group, _RESERVE_KEYS, _RESERVE_ENDS)
    return _pack(numbers)


@lru_cache(maxsize=MAX_LAYOUTS)
def _settle_numbers(
    layout: Layout, reserved: tuple[str, ...], charged: tuple[str, ...], totals: int
) -> bytes:
    """The same, after the number of totals.

    A counter has two more numbers: which of the changes, in their order, result in its spent and
    its reserved amount; 0 for neither.
    """
    units_at = _SETTLE_TOTALS + 2 * totals
    unit_at = {unit: units_at + 4 * i for i, unit in enumerate(layout.units)}
    maxima_at = units_at + 4 * len(layout.units)
    changes: dict[tuple[int, int], int] = {}
    of_groups: list[int] = []
    for group in _groups(layout):
        fields = []
        for unit in group[0].units:
            if unit in reserved:
                fields.append(unit_at[unit])
            if unit in charged and group[0].end >= 0:
                fields.append(unit_at[unit] + 2)
        of_groups += _group_numbers(group, fields, _SETTLE_KEYS, _SETTLE_ENDS)
        for window in group:
            for field in fields:
                changes[window.key, field] = len(changes) + 1
    numbers = [totals, len(layout.counters)]
    for i, (counter, place) in enumerate(zip(layout.counters, layout.places, strict=True)):
        field = unit_at[counter.unit]
        numbers += (
            _kind_of(counter),
            _SETTLE_KEYS + place,
            field,
            maxima_at + i,
            _end_of(layout, place, _SETTLE_ENDS),
            changes.get((place, field + 2), 0),
            changes.get((place, field), 0),
        )
    return _pack(numbers + of_groups)


def _kind_of(counter: Counter) -> int:
    if counter.period != "minute":
        return _WINDOW
    return _OTHER if counter.maximum is None else _BUCKET


def _end_of(layout: Layout, place: int, ends_at: int) -> int:
    """The argument with the end of the window at this place; 0: it has none."""
    for window in layout.windows:
        if window.key == place and window.end >= 0:
            return ends_at + window.end
    return 0


def _groups(layout: Layout) -> Sequence[Sequence[_Window]]:
    """Windows that change alike."""
    groups: dict[tuple[bool, tuple[str, ...]], list[_Window]] = {}
    for window in layout.windows:
        groups.setdefault((window.end >= 0, window.units), []).append(window)
    return list(groups.values())


def _group_numbers(
    group: Sequence[_Window], fields: Sequence[int], keys_at: int, ends_at: int
) -> list[int]:
    windows = [
        number
        for window in group
        for number in (keys_at + window.key, ends_at + window.end if window.end >= 0 else 0)
    ]
    return [len(fields), *fields, len(group), *windows]


def _pack(numbers: Sequence[int]) -> bytes:
    """Empty if one is too large."""
    return bytes(numbers) if max(numbers) <= MAX_NUMBER else b""
