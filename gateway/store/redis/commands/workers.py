"""The commands of `commands.workers` for Redis."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.call import Call, _call, _micros, _nothing, _read_texts, call_for
from gateway.store.redis.keys import Keys

# ── workers ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _beat(command: commands.Heartbeat, keys: Keys) -> Call:
    return _call("beat", [keys.books], [command.worker], read=_nothing)


@call_for.register
def _dead_workers(command: commands.ExpiredWorkers, keys: Keys) -> Call:
    return _call("dead_workers", [keys.books], [_micros(command.after_seconds)], read=_read_texts)


@call_for.register
def _retire(command: commands.Deregister, keys: Keys) -> Call:
    return _call("retire", [keys.books], [command.worker], read=bool)
