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
    return script_command("fold_totals", [keys.books], arguments, read=bool)


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

    return script_command("read_totals_state", [keys.books], command.periods, read=read)


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
    return script_command("read_totals", [keys.books], arguments, read=read)


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
    return script_command("remove_totals", [keys.books], arguments, read=bool)
