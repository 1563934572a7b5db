"""The commands of `commands.sets` for Redis."""

from __future__ import annotations

from gateway.store import commands as verbs
from gateway.store.redis.commands.call import (
    Argument,
    Call,
    _call,
    _micros,
    _nothing,
    _read_texts,
    call_for,
)
from gateway.store.redis.keys import Keys


@call_for.register
def _enlist(verb: verbs.Enlist, keys: Keys) -> Call:
    arguments: list[Argument] = [_micros(verb.lifetime_seconds), *verb.members]
    return _call("enlist", [keys.list_of(verb.space, verb.name)], arguments, read=_nothing)


@call_for.register
def _read_list(verb: verbs.ReadList, keys: Keys) -> Call:
    return Call(("SMEMBERS", keys.list_of(verb.space, verb.name)), _read_texts)


@call_for.register
def _strike(verb: verbs.Strike, keys: Keys) -> Call:
    return _call("strike", [keys.list_of(verb.space, verb.name)], verb.members, read=_nothing)
