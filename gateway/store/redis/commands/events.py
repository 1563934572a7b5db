"""Encoders of `commands.events`."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    RedisCommand,
    encode,
    milliseconds,
    no_result,
    plain_command,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys


@encode.register
def _publish(command: commands.Publish, keys: Keys) -> RedisCommand:
    both = [keys.events(command.flight), keys.event_ids(command.flight)]
    channel = keys.channel(command.flight)
    arguments = (command.event_id, command.event, milliseconds(command.ttl_seconds), channel)
    return script_command("publish", both, arguments, read=no_result)


@encode.register
def _notify(command: commands.Notify, keys: Keys) -> RedisCommand:
    # A channel is no key: every node notifies the subscribers of all.
    return RedisCommand(("PUBLISH", keys.channel(command.flight), ""), no_result, name="PUBLISH")


@encode.register
def _read_events(command: commands.ReadEvents, keys: Keys) -> RedisCommand:
    return plain_command("LRANGE", keys.events(command.flight), command.after, -1, read=unchanged)
