"""The commands of `commands.records` for Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.store import commands as verbs
from gateway.store.redis.commands.call import (
    Argument,
    Call,
    _as_is,
    _call,
    _optional,
    _pairs,
    call_for,
)
from gateway.store.redis.keys import Keys

# ── records ─────────────────────────────────────────────────────────────────────────────────


@call_for.register
def _get(verb: verbs.Get, keys: Keys) -> Call:
    space = keys.records(verb.space)
    if verb.through is None:
        return Call(("HGET", space, verb.name), _as_is)
    return _call("get_through", [keys.records(verb.through), space], [verb.name], read=_as_is)


@call_for.register
def _put(verb: verbs.Put, keys: Keys) -> Call:
    arguments: list[Argument] = []
    for change in verb.changes:
        arguments += [change.name, *_optional(change.expect), *_optional(change.value)]
    spaces = [keys.records(change.space) for change in verb.changes]
    return _call("put", spaces, arguments, read=_as_is)


@call_for.register
def _scan(verb: verbs.Scan, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Mapping[str, bytes]:
        return {name.decode(): value for name, value in _pairs(reply)}

    return Call(("HGETALL", keys.records(verb.space)), read)
