"""Encoders of `commands.workers`."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    RedisCommand,
    encode,
    microseconds,
    read_texts,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _heartbeat(command: commands.Heartbeat, keys: Keys) -> RedisCommand:
    after = command.expired_after_seconds
    arguments = [command.worker, "" if after is None else microseconds(after), command.limit]
    touched = [keys.workers, keys.reserved(command.worker)]
    return script_command("heartbeat", touched, arguments, read=read_texts)


@encode.register
def _expired_workers(command: commands.ExpiredWorkers, keys: Keys) -> RedisCommand:
    arguments = [microseconds(command.after_seconds), command.limit]
    return script_command("expired_workers", [keys.workers], arguments, read=read_texts)


@encode.register
def _deregister(command: commands.Deregister, keys: Keys) -> RedisCommand:
    worker = command.worker
    touched = [keys.workers, keys.open_purchases(worker), keys.reserved(worker)]
    return script_command("deregister", touched, [worker], read=bool)
