"""Encoders of `commands.counters`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import orjson

from gateway.limits import CALENDAR_PERIODS
from gateway.store import commands
from gateway.store.commands import Consumption, Counter, CounterState
from gateway.store.redis.commands.encoding import (
    MAX_PACKED,
    SECOND,
    Argument,
    RedisCommand,
    encode,
    packed,
    script_command,
)
from gateway.store.redis.keys import Keys
from gateway.store.redis.layouts import lay_out
from gateway.store.redis.plans import PLANNED, admit_arguments, read_planned_states


def consumption_arguments(consumptions: Iterable[Consumption]) -> Sequence[Argument]:
    """Consumptions as `shared/counters.lua` reads them: six arguments each."""
    return _consumption_arguments(tuple(consumptions))


# Both are cached: the purchases of a key count in the same limits, mostly by the same amounts. To
# make the arguments took 4 µs, the names 5.
@lru_cache(maxsize=MAX_PACKED)
def _consumption_arguments(consumptions: tuple[Consumption, ...]) -> Sequence[Argument]:
    arguments: list[Argument] = []
    for (subject, unit, period, maximum), amount, shadow in consumptions:
        most = "" if maximum is None else str(maximum)
        arguments += (subject, unit, period, most, str(amount), "1" if shadow else "0")
    return tuple(arguments)


def packed_consumptions(consumptions: Iterable[Consumption]) -> bytes:
    """Consumptions as JSON, for scripts that read them only if there is no plan."""
    return orjson.dumps(
        [
            (subject, unit, period, "" if maximum is None else str(maximum), str(amount))
            for (subject, unit, period, maximum), amount, _ in consumptions
        ]
    )


def shadows_argument(consumptions: Iterable[Consumption]) -> str:
    """For each consumption, whether its limit is a shadow."""
    return "".join(["1" if consumption.shadow else "0" for consumption in consumptions])


def counter_keys(counters: Iterable[Counter], keys: Keys) -> Sequence[str]:
    """The buckets and windows of counters; a bucket without a limit is not stored."""
    return _counter_keys(tuple(counters), keys)


@lru_cache(maxsize=MAX_PACKED)
def _counter_keys(counters: tuple[Counter, ...], keys: Keys) -> Sequence[str]:
    names: dict[str, None] = {}
    for subject, unit, period, maximum in counters:
        if period == "concurrency":
            names[keys.window(subject, period)] = None
        elif period != "minute":
            names |= dict.fromkeys(keys.calendar_windows(subject, period))
        elif maximum is not None:
            names[keys.bucket(subject, unit)] = None
    return tuple(names)


def calendar_argument(counters: Iterable[Counter], keys: Keys) -> str:
    """The calendar windows, if a counter needs them."""
    return keys.calendar if any(c.period in CALENDAR_PERIODS for c in counters) else ""


def read_states(flat: Sequence[int]) -> tuple[CounterState, ...]:
    """Counter states as `shared/counters.lua` returns them: four numbers each."""
    rows = zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    # Not by the class itself, whose call takes as long as the rest: a purchase reads twenty states.
    create = tuple.__new__
    return tuple(
        [
            create(CounterState, (used, reserved, resets_in / SECOND, retry_in / SECOND))
            for used, reserved, resets_in, retry_in in rows
        ]
    )


def read_index(number: int) -> int | None:
    """The index of the denied consumption; the scripts return -1 for none."""
    return None if number < 0 else number


# Cached: every request of a key sends the same command, and packing forty arguments takes a while.
@encode.register
@lru_cache(maxsize=MAX_PACKED)
def _admit(command: commands.Admit, keys: Keys) -> RedisCommand:
    consumptions, expected = command.consumptions, command.expected
    counters = tuple(consumption.counter for consumption in consumptions)
    layout = lay_out(counters, (), (), keys)

    def read(reply: Sequence[Any]) -> commands.Admission:
        is_expected, *rest = reply
        if is_expected == PLANNED and layout is not None:
            now, *numbers = rest
            states = read_planned_states(layout, numbers, now)
            return commands.Admission(None, None, states, now / SECOND)
        if not is_expected:
            return commands.Admission(denied=None, changed=tuple(rest), states=())
        denied, states, now, exceeded = rest
        return commands.Admission(
            read_index(denied), None, read_states(states), now / SECOND, tuple(exceeded)
        )

    touched = [keys.records(record.space) for record in expected]
    # On another day than that of the layout, the script asks for the windows of that one.
    touched += counter_keys(counters, keys) if layout is None else layout.counter_keys
    arguments: list[Argument] = [calendar_argument(counters, keys), len(expected)]
    for record in expected:
        arguments += (record.name, record.value)
    arguments += (packed_consumptions(consumptions), shadows_argument(consumptions))
    arguments += [""] if layout is None else admit_arguments(layout, consumptions, len(expected))
    return packed(script_command("admit", touched, arguments, read=read))


@encode.register
def _peek_counters(command: commands.PeekCounters, keys: Keys) -> RedisCommand:
    arguments = [
        calendar_argument(command.counters, keys),
        *consumption_arguments(Consumption(counter) for counter in command.counters),
    ]
    touched = counter_keys(command.counters, keys)
    return script_command("peek_counters", touched, arguments, read=read_states)
