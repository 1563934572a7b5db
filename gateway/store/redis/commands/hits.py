"""Encoders of `commands.hits`."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import Hits
from gateway.store.redis.commands.encoding import (
    SECOND,
    Argument,
    RedisCommand,
    encode,
    microseconds,
    no_result,
    pairs,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _count_hits(command: commands.CountHits, keys: Keys) -> RedisCommand:
    names = [keys.hits(image_id) for image_id, _ in command.hits]
    arguments: list[Argument] = [microseconds(command.ttl_seconds)]
    arguments += (count for _, count in command.hits)
    return script_command("count_hits", names, arguments, read=no_result)


@encode.register
def _read_hits(command: commands.ReadHits, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[bytes]) -> Sequence[Hits]:
        return [Hits(int(count), int(at) / SECOND) for count, at in pairs(reply)]

    names = [keys.hits(image_id) for image_id in command.image_ids]
    return script_command("read_hits", names, (), read=read)


@encode.register
def _delete_hits(command: commands.DeleteHits, keys: Keys) -> RedisCommand:
    names = [keys.hits(image_id) for image_id in command.image_ids]
    return script_command("delete_hits", names, (), read=no_result)
