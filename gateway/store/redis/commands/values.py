"""Encoders of `commands.values`."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    Argument,
    RedisCommand,
    encode,
    microseconds,
    milliseconds,
    no_result,
    plain_command,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys


@encode.register
def _set_value(command: commands.SetValue, keys: Keys) -> RedisCommand:
    key = keys.value(command.space, command.name)
    ttl: Argument = "" if command.ttl_seconds is None else milliseconds(command.ttl_seconds)
    arguments: list[Argument] = [
        command.value,
        int(command.only_if_absent),
        ttl,
        *command.expected,
    ]
    return script_command("set_value", [key], arguments, read=bool)


@encode.register
def _get_value(command: commands.GetValue, keys: Keys) -> RedisCommand:
    return plain_command("GET", keys.value(command.space, command.name), read=unchanged)


@encode.register
def _advance_counter(command: commands.AdvanceCounter, keys: Keys) -> RedisCommand:
    key = keys.value(command.space, command.name)
    arguments = [command.amount, command.modulus, microseconds(command.ttl_seconds)]
    return script_command("advance_counter", [key], arguments, read=int)


@encode.register
def _delete_value(command: commands.DeleteValue, keys: Keys) -> RedisCommand:
    key = keys.value(command.space, command.name)
    expected = () if command.expected is None else (command.expected,)
    return script_command("delete_value", [key], expected, read=no_result)
