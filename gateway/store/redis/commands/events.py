"""The commands of `commands.events` for Redis."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.call import Call, _as_is, _call, _micros, _nothing, call_for
from gateway.store.redis.keys import Keys

# ── flights ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _publish(command: commands.Publish, keys: Keys) -> Call:
    both = [keys.events(command.flight), keys.event_ids(command.flight)]
    channel = keys.wake(command.flight)
    arguments = (command.event_id, command.event, _micros(command.ttl_seconds), channel)
    return _call("publish", both, arguments, read=_nothing)


@call_for.register
def _read_events(command: commands.ReadEvents, keys: Keys) -> Call:
    return Call(("LRANGE", keys.events(command.flight), command.after, -1), _as_is)
