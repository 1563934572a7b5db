"""The commands of `commands.values` for Redis."""

from __future__ import annotations

from gateway.store import commands as verbs
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
def _note(verb: verbs.Note, keys: Keys) -> Call:
    ends = verb.lifetime_seconds
    lifetime: Argument = "" if ends is None else _micros(ends)
    arguments: list[Argument] = [verb.value, int(verb.is_new), lifetime]
    return _call("note", [keys.note(verb.space, verb.name)], arguments, read=bool)


@call_for.register
def _read_note(verb: verbs.ReadNote, keys: Keys) -> Call:
    return Call(("GET", keys.note(verb.space, verb.name)), _as_is)


@call_for.register
def _drop_note(verb: verbs.DropNote, keys: Keys) -> Call:
    return _call("drop_note", [keys.note(verb.space, verb.name)], (), read=_nothing)
