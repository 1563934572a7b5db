"""The commands of `commands.records` for Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.store import commands
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
def _get(command: commands.Get, keys: Keys) -> Call:
    space = keys.records(command.space)
    if command.index is None:
        return Call(("HGET", space, command.name), _as_is)
    return _call("get_through", [keys.records(command.index), space], [command.name], read=_as_is)


@call_for.register
def _put(command: commands.CompareAndSet, keys: Keys) -> Call:
    arguments: list[Argument] = []
    for change in command.changes:
        arguments += [change.name, *_optional(change.expected), *_optional(change.value)]
    spaces = [keys.records(change.space) for change in command.changes]
    return _call("put", spaces, arguments, read=_as_is)


@call_for.register
def _scan(command: commands.ReadRecords, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Mapping[str, bytes]:
        return {name.decode(): value for name, value in _pairs(reply)}

    return Call(("HGETALL", keys.records(command.space)), read)
