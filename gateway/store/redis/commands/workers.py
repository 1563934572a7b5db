"""Encoders of `commands.workers`."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    RedisCommand,
    encode,
    microseconds,
    no_result,
    read_texts,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _heartbeat(command: commands.Heartbeat, keys: Keys) -> RedisCommand:
    return script_command("heartbeat", [keys.books], [command.worker], read=no_result)


@encode.register
def _expired_workers(command: commands.ExpiredWorkers, keys: Keys) -> RedisCommand:
    arguments = [microseconds(command.after_seconds), command.limit]
    return script_command("expired_workers", [keys.books], arguments, read=read_texts)


@encode.register
def _deregister(command: commands.Deregister, keys: Keys) -> RedisCommand:
    return script_command("deregister", [keys.books], [command.worker], read=bool)
