"""The commands of `commands.entries` for Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from gateway.store import commands as verbs
from gateway.store.commands import Slot
from gateway.store.redis.commands.call import (
    MOST_READ,
    MOST_WRITTEN,
    SECOND,
    Argument,
    Call,
    _call,
    _flat,
    _micros,
    _nothing,
    _pairs,
    _written,
    call_for,
    read_cursor,
)
from gateway.store.redis.keys import Keys, pattern_of

# ── entries ─────────────────────────────────────────────────────────────────────────────────


def _entry_call(
    name: str, fingerprint: str, keys: Keys, arguments: Iterable[Argument], read: Callable[..., Any]
) -> Call:
    both = [keys.entry(fingerprint), keys.claims(fingerprint)]
    return _call(name, both, arguments, read=read)


def _read_slots(flat: Sequence[Any]) -> dict[int, Slot]:
    return {int(slot): _read_slot(value) for slot, value in _pairs(flat)}


@lru_cache(maxsize=MOST_READ)
def _read_slot(value: bytes) -> Slot:
    """Reads `<expires> <length of id> <id><data>`, as `shared/slots.lua` writes it."""
    expires, length, rest = value.split(b" ", 2)
    end = int(length)
    return Slot(rest[:end].decode(), int(expires) / SECOND, rest[end:])


@call_for.register
@lru_cache(maxsize=MOST_WRITTEN)
def _read_entry(verb: verbs.ReadEntry, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Entry:
        now, slots = reply
        return verbs.Entry(now / SECOND, _read_slots(slots))

    return _written(_call("read_entry", [keys.entry(verb.fingerprint)], (), read=read))


@call_for.register
def _claim(verb: verbs.Claim, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.Claimed:
        now, held, mine, others = reply
        return verbs.Claimed(
            now=now / SECOND,
            held=_read_slots(held),
            mine=tuple(mine),
            others={slot: flight.decode() for slot, flight in _pairs(others)},
        )

    arguments: list[Argument] = [verb.flight, _micros(verb.lease_seconds), len(verb.slots)]
    arguments += [*verb.slots, *verb.ignoring]
    return _entry_call("claim", verb.fingerprint, keys, arguments, read)


@call_for.register
def _extend(verb: verbs.Extend, keys: Keys) -> Call:
    arguments = (verb.flight, _micros(verb.lease_seconds))
    return _entry_call("extend", verb.fingerprint, keys, arguments, bool)


@call_for.register
def _release(verb: verbs.Release, keys: Keys) -> Call:
    return _entry_call("release", verb.fingerprint, keys, (verb.flight,), _nothing)


@call_for.register
def _keep(verb: verbs.Keep, keys: Keys) -> Call:
    arguments: list[Argument] = [
        verb.flight,
        _micros(verb.lifetime_seconds),
        _micros(verb.linger_seconds),
        int(verb.displaces),
    ]
    for wanted, slot in sorted(verb.slots.items()):
        arguments += [wanted, slot.picture, slot.data]
    return _entry_call("keep", verb.fingerprint, keys, arguments, lambda reply: dict(_pairs(reply)))


@call_for.register
def _clear(verb: verbs.Clear, keys: Keys) -> Call:
    arguments = _flat(verb.pictures.items())
    return _entry_call("clear", verb.fingerprint, keys, arguments, _nothing)


@call_for.register
def _scan_entries(verb: verbs.ScanEntries, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> verbs.EntriesPage:
        cursor, found = reply
        entries = {
            keys.fingerprint(key.decode()): _read_slots(slots)
            for key, slots in _pairs(found)
            if slots  # else it ended between the two looks
        }
        return verbs.EntriesPage(entries, read_cursor(cursor))

    arguments = (verb.after or "0", pattern_of(keys.entry("*")), verb.limit)
    return _call("scan_entries", (), arguments, read=read)
