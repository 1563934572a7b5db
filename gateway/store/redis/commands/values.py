"""The commands of `commands.values` for Redis."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.call import (
    Argument,
    Call,
    _as_is,
    _call,
    _micros,
    _nothing,
    call_for,
)
from gateway.store.redis.keys import Keys

# ── notes and lists ─────────────────────────────────────────────────────────────────────────


@call_for.register
def _note(command: commands.SetValue, keys: Keys) -> Call:
    ends = command.ttl_seconds
    lifetime: Argument = "" if ends is None else _micros(ends)
    arguments: list[Argument] = [command.value, int(command.only_if_absent), lifetime]
    return _call("note", [keys.note(command.space, command.name)], arguments, read=bool)


@call_for.register
def _read_note(command: commands.GetValue, keys: Keys) -> Call:
    return Call(("GET", keys.note(command.space, command.name)), _as_is)


@call_for.register
def _drop_note(command: commands.DeleteValue, keys: Keys) -> Call:
    return _call("drop_note", [keys.note(command.space, command.name)], (), read=_nothing)
