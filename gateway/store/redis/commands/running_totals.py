"""Encoders of `commands.running_totals`."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import RunningTotal
from gateway.store.redis.commands.encoding import RedisCommand, encode, plain_command
from gateway.store.redis.keys import Keys


@encode.register
def _read_running_totals(command: commands.ReadRunningTotals, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[bytes | None]) -> Sequence[RunningTotal]:
        amounts = iter([int(amount or 0) for amount in reply])
        return [RunningTotal(*three) for three in zip(*[amounts] * 3, strict=True)]

    # Redis refuses an HMGET without fields.
    fields = [f"{name}:{kind}" for name in command.names or ("",) for kind in RunningTotal._fields]
    read_all = read if command.names else _read_nothing
    return plain_command("HMGET", keys.running_totals, *fields, read=read_all)


@encode.register
def _read_first_charges(command: commands.ReadFirstCharges, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[bytes | None]) -> Sequence[float | None]:
        times = [None if micros is None else int(micros) / 1e6 for micros in reply]
        return times[: len(command.names)]

    fields = [f"{name}:first_charge" for name in command.names or ("",)]
    return plain_command("HMGET", keys.running_totals, *fields, read=read)


def _read_nothing(_reply: Sequence[bytes | None]) -> Sequence[RunningTotal]:
    return []
