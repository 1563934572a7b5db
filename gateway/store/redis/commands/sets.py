"""Encoders of `commands.sets`."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    Argument,
    RedisCommand,
    encode,
    microseconds,
    no_result,
    read_texts,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _add_to_set(command: commands.AddToSet, keys: Keys) -> RedisCommand:
    key = keys.set(command.space, command.name)
    arguments: list[Argument] = [microseconds(command.ttl_seconds), *command.members]
    return script_command("add_to_set", [key], arguments, read=no_result)


@encode.register
def _get_set(command: commands.GetSet, keys: Keys) -> RedisCommand:
    return RedisCommand(("SMEMBERS", keys.set(command.space, command.name)), read_texts)


@encode.register
def _add_to_bounded_sets(command: commands.AddToBoundedSets, keys: Keys) -> RedisCommand:
    names = [keys.bounded_set(bounded.space, bounded.name) for bounded in command.sets]
    most = [bounded.max_members for bounded in command.sets]
    arguments: list[Argument] = [microseconds(command.ttl_seconds), *most, *command.members]
    return script_command("add_to_bounded_sets", names, arguments, read=read_texts)


@encode.register
def _remove_from_set(command: commands.RemoveFromSet, keys: Keys) -> RedisCommand:
    key = keys.set(command.space, command.name)
    return script_command("remove_from_set", [key], command.members, read=no_result)
