"""The commands of `commands.counters` for Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from gateway.store import commands
from gateway.store.commands import Consumption, CounterState
from gateway.store.redis.commands.call import (
    MAX_WRITTEN,
    SECOND,
    Argument,
    Call,
    _call,
    _written,
    call_for,
)
from gateway.store.redis.keys import Keys

# ── the books ───────────────────────────────────────────────────────────────────────────────


def _take_arguments(consumptions: Iterable[Consumption]) -> list[Argument]:
    arguments: list[Argument] = []
    for (scope, unit, period, maximum), amount in consumptions:
        arguments += (scope, unit, period, "" if maximum is None else maximum, amount)
    return arguments


def _read_states(flat: Sequence[int]) -> tuple[CounterState, ...]:
    resets, retries = ([micros / SECOND for micros in flat[place::4]] for place in (2, 3))
    rows = zip(flat[0::4], flat[1::4], resets, retries, strict=True)
    return tuple(map(CounterState._make, rows))


def _index(number: int) -> int | None:
    return None if number < 0 else number


@call_for.register
@lru_cache(maxsize=MAX_WRITTEN)
def _admit(command: commands.Admit, keys: Keys) -> Call:
    """Every request of a key asks this again, and writing forty arguments takes a while."""

    def read(reply: Sequence[Any]) -> commands.Admission:
        is_current, *rest = reply
        if not is_current:
            return commands.Admission(denied=None, record=rest[0], states=())
        refused, states = rest
        return commands.Admission(_index(refused), None, _read_states(states))

    arguments = [command.name, command.expected, *_take_arguments(command.consumptions)]
    return _written(_call("admit", [keys.books, keys.records(command.space)], arguments, read=read))


@call_for.register
def _read_meters(command: commands.PeekCounters, keys: Keys) -> Call:
    looks = _take_arguments(Consumption(counter) for counter in command.counters)
    return _call("read_meters", [keys.books], looks, read=_read_states)
