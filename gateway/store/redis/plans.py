"""What a purchase will change in the books, worked out before its scripts run.

Without plans, `reserve` and `settle` spend most of their time on finding out which windows an
amount counts in: they build names, decode and encode JSON, and walk tables. A gateway can work all
of it out beforehand, as long as the server has the same day and the reservation is unchanged. So it
sends a plan with the command: which of the KEYS change, and by which of the ARGV. The script looks
whether the plan holds, and then only carries it out. If it does not hold, the script works without
it. With plans, Redis needs half the time for a purchase.

A plan is a string of small numbers, one in each byte, because Lua reads these fastest. It depends
on counters and days, not on amounts, so the plans of a key's purchases are made once. The numbers
that the script computes with are one argument too, of doubles: to read them from text takes seven
times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import count
from struct import pack
from typing import Final

from gateway.frozen import frozen
from gateway.store import commands
from gateway.store.commands import Consumption, CounterState
from gateway.store.redis.keys import Keys
from gateway.store.redis.layouts import MAX_LAYOUTS, Layout, Window, lay_out

PLANNED: Final = -2
"""Begins the reply of a script that has carried out its plan."""

MAX_NUMBER: Final = 255
"""Of a plan; a purchase that needs more has none."""

MAX_PLANS: Final = 1024
"""Of purchases with different amounts, which are kept for the next one with the same."""

SECOND: Final = 1_000_000

# Where the parts of a plan begin, in KEYS and ARGV of the scripts (from 1).
_RESERVE_KEYS, _RESERVE_ENDS, _RESERVE_UNITS = 5, 11, 14
_SETTLE_KEYS, _SETTLE_ENDS, _SETTLE_TOTALS = 9, 15, 23

# Where those of the counters begin among the doubles (from 1).
_RESERVE_AMOUNTS, _ADMIT_AMOUNTS, _SETTLE_MAXIMA = 3, 3, 5

_EPOCH: Final = date(1970, 1, 1).toordinal()


@frozen
class Plan:
    """What a purchase reserves, and so what its settlement releases."""

    layout: Layout
    worker: str
    amounts: Mapping[str, int]
    """By unit."""
    consumptions: bytes
    scopes: bytes


@dataclass(slots=True)
class Planned:
    """A purchase that reserves by a plan, which its settlement will need."""

    plan: Plan
    at: int | None = None
    """When it has reserved, in Unix microseconds; None: it has not, or not by the plan."""


def plan_reservation(command: commands.Reserve, keys: Keys) -> Plan | None:
    """None if the script has to find out by itself what the reservation changes."""
    if keys.today is None or (command.place is not None and command.place.is_limited):
        return None
    by_unit, counters = dict(command.amounts), []
    for counter, amount, _ in command.consumptions:
        if by_unit.setdefault(counter.unit, amount) != amount:
            return None
        counters.append(counter)
    layout = lay_out(tuple(counters), command.subjects, tuple(command.amounts), keys)
    if layout is None:
        return None
    return _plan(layout, command.worker, tuple(by_unit.items()), len(command.amounts))


@lru_cache(maxsize=MAX_PLANS)
def _plan(layout: Layout, worker: str, amounts: tuple[tuple[str, int], ...], scoped: int) -> Plan:
    """The plan of all purchases with these amounts, of which the first `scoped` have scopes.

    A plan of its own for each would take a kilobyte until the settlement.
    """
    by_unit = dict(amounts)
    return Plan(
        layout,
        worker,
        by_unit,
        layout.consumptions % tuple([by_unit[counter.unit] for counter in layout.counters]),
        layout.scopes % tuple([amount for _, amount in amounts[:scoped]]),
    )


def reserve_arguments(plan: Plan) -> list[bytes | str | int]:
    """What `shared/planned_reserve.lua` reads after the arguments of `reserve`."""
    layout, by_unit = plan.layout, plan.amounts
    fields: list[bytes | str | int] = []
    amounts = []
    for unit, spent, reserved in layout.fields:
        amount = by_unit[unit]
        amounts.append(amount)
        fields += (spent, reserved, amount)
    return [
        _reserve_numbers(layout, _units_of(by_unit)),
        _pack_doubles(*layout.ends[:2], *amounts, *layout.maxima),
        *layout.ends[1:],
        *fields,
    ]


def admit_arguments(
    layout: Layout, consumptions: Sequence[Consumption], expected: int
) -> list[bytes | str | int]:
    """What `shared/planned_admit.lua` reads after the arguments of `admit`.

    `expected` is the number of records, whose keys come before those of the counters.
    """
    # After the calendar, the number of records, the records, two arguments and two of these.
    fields_at = 7 + 2 * expected
    counters = [
        (
            fields_at + 2 * layout.units.index(counter.unit),
            _ADMIT_AMOUNTS + 2 * i,
            _ADMIT_AMOUNTS + 2 * i + 1,
        )
        for i, counter in enumerate(layout.counters)
    ]
    numbers = _pack(_counter_numbers(layout, counters, expected + 1))
    amounts = [amount for _, amount, _ in consumptions]
    pairs = zip(amounts, layout.maxima, strict=True)
    doubles = _pack_doubles(*layout.ends[:2], *(number for pair in pairs for number in pair))
    arguments: list[bytes | str | int] = [numbers, doubles]
    for _, spent, reserved in layout.fields:
        arguments += (spent, reserved)
    return arguments


def settle_keys(plan: Plan, command: commands.Settle, keys: Keys) -> list[str]:
    """All that `shared/planned_settle.lua` touches, in its order."""
    return [keys.journal(command.purchase), *_shared_keys(plan.layout, plan.worker, keys)]


@lru_cache(maxsize=MAX_LAYOUTS)
def _shared_keys(layout: Layout, worker: str, keys: Keys) -> Sequence[str]:
    """Those that are the same for all purchases of a layout."""
    return (
        keys.running_totals,
        *keys.ledger[:2],
        *(keys.ledger_stream("charged", day) for day in keys.days),
        keys.open_purchases(worker),
        keys.reserved(worker),
        *layout.counter_keys,
    )


def settle_arguments(
    planned: Planned, command: commands.Settle, keys: Keys
) -> list[bytes | str | int] | None:
    """What `shared/planned_settle.lua` reads after the arguments of `settle`; None without plan."""
    if planned.at is None:
        return None
    plan = planned.plan
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
        _pack_doubles(
            *layout.ends[:2],
            cost,
            _day_number(keys.days[0]),
            *[layout.maxima[i] for i in layout.buckets],
        ),
        *layout.ends[1:],
        planned.at,
        plan.worker,
        cost,
        *keys.days,
    ]
    arguments += totals
    amounts = plan.amounts
    for unit, spent, reserved in layout.fields:
        arguments += (reserved, -amounts[unit], spent, charge.get(unit, 0))
    return arguments


def read_planned_states(
    layout: Layout, numbers: Sequence[int], now: int
) -> tuple[CounterState, ...]:
    """The states of the counters in their order. `numbers` are two of each, in that of the plan."""
    places, buckets = _places_of(layout)
    numbers = [*numbers, 0]
    # Not by the class itself, whose call takes as long as the rest: a purchase reads twenty.
    create = tuple.__new__
    states = [
        create(
            CounterState,
            (numbers[used], numbers[reserved], (end - now) / SECOND if end else 0.0, 0.0),
        )
        for used, reserved, end in places
    ]
    for i, resets_in in buckets:
        states[i] = states[i]._replace(resets_in=numbers[resets_in] / SECOND)
    return tuple(states)


@lru_cache(maxsize=MAX_LAYOUTS)
def _places_of(
    layout: Layout,
) -> tuple[Sequence[tuple[int, int, int]], Sequence[tuple[int, int]]]:
    """Where the numbers of the counters are in a reply: spent, reserved, and the window's end.

    Then which counters are buckets, and where the time until each is full is. A number that a
    counter does not have is the last one, 0. Ends are Unix microseconds; 0: the window has none.
    """
    at = count(0, 2)
    places = [(-1, -1, 0)] * len(layout.counters)
    buckets = []
    for i, used in zip(layout.buckets, at, strict=False):
        places[i] = (used, -1, 0)
        buckets.append((i, used + 1))
    for window, counters in layout.counted:
        end = layout.ends[window.end + 1] * SECOND if window.end >= 0 else 0
        for i, used in zip(counters, at, strict=False):
            places[i] = (used, used + 1, end)
    return places, buckets


def _units_of(amounts: Mapping[str, int]) -> tuple[str, ...]:
    """The units of which there is something."""
    return tuple([unit for unit, amount in amounts.items() if amount])


@lru_cache(maxsize=8)
def _day_number(day: str) -> int:
    """The days since 1970."""
    return date.fromisoformat(day).toordinal() - _EPOCH


# ── numbers ─────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=MAX_LAYOUTS)
def _reserve_numbers(layout: Layout, reserved: tuple[str, ...]) -> bytes:
    """The counters, then groups of windows.

    A group has its fields (an argument, and the amount in the next one) and its windows (key, end).
    """
    unit_at = {unit: _RESERVE_UNITS + 3 * i for i, unit in enumerate(layout.units)}
    units = layout.units
    maxima_at = _RESERVE_AMOUNTS + len(units)
    counters = [
        (unit_at[counter.unit], _RESERVE_AMOUNTS + units.index(counter.unit), maxima_at + i)
        for i, counter in enumerate(layout.counters)
    ]
    numbers = _counter_numbers(layout, counters, _RESERVE_KEYS)
    for group in _groups(layout):
        fields = [unit_at[unit] + 1 for unit in group[0].units if unit in reserved]
        numbers += _group_numbers(group, fields, _RESERVE_KEYS, _RESERVE_ENDS)
    return _pack(numbers)


def _counter_numbers(
    layout: Layout, counters: Sequence[tuple[int, int, int]], keys_at: int
) -> list[int]:
    """How many buckets and windows with counters there are, and these.

    A bucket has its key, amount and maximum; a window its key, whether it is one of the calendar,
    and its counters. `counters` are, of each, the argument with its fields, and where its amount
    and maximum are among the doubles.
    """
    numbers = [len(layout.buckets), len(layout.counted)]
    for i in layout.buckets:
        numbers += (keys_at + layout.places[i], *counters[i][1:])
    for window, of_window in layout.counted:
        numbers += (keys_at + window.key, int(window.end >= 0), len(of_window))
        numbers += (number for i in of_window for number in counters[i])
    return numbers


@lru_cache(maxsize=MAX_LAYOUTS)
def _settle_numbers(
    layout: Layout, reserved: tuple[str, ...], charged: tuple[str, ...], totals: int
) -> bytes:
    """How many totals, buckets and counters of windows there are, and these, then the groups.

    A counter has the key of its window, whether that is one of the calendar, its unit, and which
    of the changes, in their order, result in its spent and its reserved amount; 0 for none.
    """
    units_at = _SETTLE_TOTALS + totals
    unit_at = {unit: units_at + 4 * i for i, unit in enumerate(layout.units)}
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
    counters = [(window, i) for window, of_window in layout.counted for i in of_window]
    numbers = [totals, len(layout.buckets), len(counters)]
    for n, i in enumerate(layout.buckets):
        numbers += (_SETTLE_KEYS + layout.places[i], _SETTLE_MAXIMA + n)
    for window, i in counters:
        field = unit_at[layout.counters[i].unit]
        numbers += (_SETTLE_KEYS + window.key, int(window.end >= 0), field)
        numbers += (changes.get((window.key, field + 2), 0), changes.get((window.key, field), 0))
    return _pack(numbers + of_groups)


def _groups(layout: Layout) -> Sequence[Sequence[Window]]:
    """Windows that change alike."""
    groups: dict[tuple[bool, tuple[str, ...]], list[Window]] = {}
    for window in layout.windows:
        groups.setdefault((window.end >= 0, window.units), []).append(window)
    return list(groups.values())


def _group_numbers(
    group: Sequence[Window], fields: Sequence[int], keys_at: int, ends_at: int
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


def _pack_doubles(*numbers: float) -> bytes:
    """For `unpack_numbers` of `shared/plans.lua`."""
    return pack(f"<{len(numbers)}d", *numbers)
