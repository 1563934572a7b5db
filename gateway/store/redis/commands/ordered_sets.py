"""Encoders of `commands.ordered_sets`."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    RedisCommand,
    encode,
    milliseconds,
    no_result,
    plain_command,
    read_texts,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys


@encode.register
def _add_to_ordered_sets(command: commands.AddToOrderedSets, keys: Keys) -> RedisCommand:
    sets = _sets(keys, command.space, command.names)
    ttl = milliseconds(command.ttl_seconds)
    arguments = (command.member, ttl, command.max_members, command.oldest)
    return script_command("add_to_ordered_sets", sets, arguments, read=no_result)


@encode.register
def _remove_from_ordered_sets(command: commands.RemoveFromOrderedSets, keys: Keys) -> RedisCommand:
    sets = _sets(keys, command.space, command.names)
    return script_command("remove_from_ordered_sets", sets, [command.member], read=no_result)


@encode.register
def _read_ordered_set(command: commands.ReadOrderedSet, keys: Keys) -> RedisCommand:
    key = keys.ordered_set(command.space, command.name)
    before = f"({command.before}" if command.before else "+"
    return plain_command(
        "ZRANGE", key, before, "-", "BYLEX", "REV", "LIMIT", 0, command.limit, read=read_texts
    )


@encode.register
def _count_ordered_sets(command: commands.CountOrderedSets, keys: Keys) -> RedisCommand:
    sets = _sets(keys, command.space, command.names)
    return script_command("count_ordered_sets", sets, (), read=unchanged)


def _sets(keys: Keys, space: str, names: Sequence[str]) -> list[str]:
    return [keys.ordered_set(space, name) for name in names]
