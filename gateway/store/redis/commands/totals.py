"""Encoders of `commands.totals`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    microseconds,
    pairs,
    read_cursor,
    script_command,
)
from gateway.store.redis.keys import Keys

_SUM: Final = re.compile(r"([a-z_]+)(-?\d+)")


@encode.register
def _fold_totals(command: commands.FoldTotals, keys: Keys) -> RedisCommand:
    periods = list(dict.fromkeys(increment.period for increment in command.increments))
    index = {period: position for position, period in enumerate(periods)}
    arguments: list[Argument] = [command.expected, command.checkpoint, len(periods)]
    for period in periods:
        arguments += (period.kind, period.name, round(period.ends_at * SECOND))
    for one in command.increments:
        sums = "".join(f"{name}{amount}" for name, amount in one.sums.items())
        arguments += (index[one.period], one.slot, one.group, one.row, one.other, sums)
    touched = [keys.totals_checkpoint]
    for period in periods:
        touched += (keys.totals(period.name), keys.full_totals(period.name))
    touched += {keys.totals_periods(period.kind): None for period in periods}
    return script_command("fold_totals", touched, arguments, read=bool)


@encode.register
def _read_totals_state(command: commands.ReadTotalsState, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.TotalsState:
        checkpoint, *groups = reply
        return commands.TotalsState(
            checkpoint.decode(),
            {
                period: frozenset(group.decode() for group in found)
                for period, found in zip(command.periods, groups, strict=True)
            },
        )

    full = (keys.full_totals(period) for period in command.periods)
    touched = [keys.totals_checkpoint, *full]
    return script_command("read_totals_state", touched, command.periods, read=read)


@encode.register
def _read_totals(command: commands.ReadTotals, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.TotalsPage:
        checkpoint, cursor, rows = reply
        return commands.TotalsPage(
            checkpoint.decode(),
            ((row.decode(), _read_slots(slots.decode())) for row, slots in pairs(rows)),
            read_cursor(cursor),
        )

    arguments = (command.period, command.after or "0", command.limit)
    touched = [keys.totals_checkpoint, keys.totals(command.period)]
    return script_command("read_totals", touched, arguments, read=read)


def _read_slots(text: str) -> commands.Slots:
    found = {}
    for part in text.split(";"):
        slot, _, sums = part.partition(" ")
        found[int(slot)] = {name: int(amount) for name, amount in _SUM.findall(sums)}
    return found


@encode.register
def _remove_totals(command: commands.RemoveTotals, keys: Keys) -> RedisCommand:
    # One period: a command's work is then the same for every limit.
    arguments = (command.kind, microseconds(command.keep_seconds))
    touched = [keys.totals_periods(command.kind)]
    return script_command("remove_totals", touched, arguments, read=bool)
