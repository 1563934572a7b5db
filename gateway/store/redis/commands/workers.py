"""The commands of `commands.workers` for Redis."""

from __future__ import annotations

from gateway.store import commands as verbs
from gateway.store.redis.commands.call import Call, _call, _micros, _nothing, _read_texts, call_for
from gateway.store.redis.keys import Keys

# ── workers ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _beat(verb: verbs.Beat, keys: Keys) -> Call:
    return _call("beat", [keys.books], [verb.worker], read=_nothing)


@call_for.register
def _dead_workers(verb: verbs.DeadWorkers, keys: Keys) -> Call:
    return _call("dead_workers", [keys.books], [_micros(verb.after_seconds)], read=_read_texts)


@call_for.register
def _retire(verb: verbs.Retire, keys: Keys) -> Call:
    return _call("retire", [keys.books], [verb.worker], read=bool)
