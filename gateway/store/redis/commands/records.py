"""Encoders of `commands.records`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    MAX_PACKED,
    Argument,
    RedisCommand,
    encode,
    optional,
    packed,
    pairs,
    plain_command,
    read_cursor,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys


# Cached: every look-up reads the same record.
@encode.register
@lru_cache(maxsize=MAX_PACKED)
def _get(command: commands.Get, keys: Keys) -> RedisCommand:
    space = keys.records(command.space)
    if command.index is None:
        return packed(plain_command("HGET", space, command.name, read=unchanged))
    both = [keys.records(command.index), space]
    return script_command("get_by_index", both, [command.name], read=unchanged)


@encode.register
def _compare_and_set(command: commands.CompareAndSet, keys: Keys) -> RedisCommand:
    arguments: list[Argument] = []
    for write in command.changes:
        arguments += [write.name, *optional(write.expected), *optional(write.value)]
    spaces = [keys.records(write.space) for write in command.changes]
    return script_command("compare_and_set", spaces, arguments, read=unchanged)


@encode.register
def _scan_records(command: commands.ScanRecords, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.RecordsPage:
        cursor, found = reply
        records = {name.decode(): value for name, value in pairs(found)}
        return commands.RecordsPage(records, read_cursor(cursor))

    key, cursor = keys.records(command.space), command.after or "0"
    return plain_command("HSCAN", key, cursor, "COUNT", command.limit, read=read)
