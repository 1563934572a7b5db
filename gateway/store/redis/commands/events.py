"""The commands of `commands.events` for Redis."""

from __future__ import annotations

from gateway.store import commands as verbs
from gateway.store.redis.commands.call import Call, _as_is, _call, _micros, _nothing, call_for
from gateway.store.redis.keys import Keys

# ── flights ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _publish(verb: verbs.Publish, keys: Keys) -> Call:
    both = [keys.events(verb.flight), keys.event_ids(verb.flight)]
    channel = keys.wake(verb.flight)
    arguments = (verb.event_id, verb.event, _micros(verb.lifetime_seconds), channel)
    return _call("publish", both, arguments, read=_nothing)


@call_for.register
def _read_events(verb: verbs.ReadEvents, keys: Keys) -> Call:
    return Call(("LRANGE", keys.events(verb.flight), verb.after, -1), _as_is)
