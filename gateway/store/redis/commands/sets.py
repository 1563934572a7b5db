"""The commands of `commands.sets` for Redis."""

from __future__ import annotations

from gateway.store import commands
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
def _enlist(command: commands.AddToSet, keys: Keys) -> Call:
    arguments: list[Argument] = [_micros(command.ttl_seconds), *command.members]
    return _call("enlist", [keys.list_of(command.space, command.name)], arguments, read=_nothing)


@call_for.register
def _read_list(command: commands.GetSet, keys: Keys) -> Call:
    return Call(("SMEMBERS", keys.list_of(command.space, command.name)), _read_texts)


@call_for.register
def _strike(command: commands.RemoveFromSet, keys: Keys) -> Call:
    return _call(
        "strike", [keys.list_of(command.space, command.name)], command.members, read=_nothing
    )
