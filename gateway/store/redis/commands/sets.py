"""Encoders of `commands.sets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    Argument,
    RedisCommand,
    encode,
    microseconds,
    milliseconds,
    no_result,
    plain_command,
    read_cursor,
    read_texts,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _add_to_set(command: commands.AddToSet, keys: Keys) -> RedisCommand:
    key = keys.set(command.space, command.name)
    arguments: list[Argument] = [milliseconds(command.ttl_seconds), *command.members]
    return script_command("add_to_set", [key], arguments, read=no_result)


@encode.register
def _scan_set(command: commands.ScanSet, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.MembersPage:
        cursor, members = reply
        return commands.MembersPage(read_texts(members), read_cursor(cursor))

    arguments = (command.after or "0", command.limit)
    return script_command("scan_set", [keys.set(command.space, command.name)], arguments, read=read)


@encode.register
def _has_member(command: commands.HasMember, keys: Keys) -> RedisCommand:
    key = keys.set(command.space, command.name)
    return plain_command("SISMEMBER", key, command.member, read=bool)


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
