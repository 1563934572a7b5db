"""The commands of `commands.entries` for Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from gateway.store import commands
from gateway.store.commands import Slot
from gateway.store.redis.commands.call import (
    MAX_READ,
    MAX_WRITTEN,
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


@lru_cache(maxsize=MAX_READ)
def _read_slot(value: bytes) -> Slot:
    """Reads `<expires> <length of id> <id><data>`, as `shared/slots.lua` writes it."""
    expires, length, rest = value.split(b" ", 2)
    end = int(length)
    return Slot(rest[:end].decode(), int(expires) / SECOND, rest[end:])


@call_for.register
@lru_cache(maxsize=MAX_WRITTEN)
def _read_entry(command: commands.ReadEntry, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> commands.Entry:
        now, slots = reply
        return commands.Entry(now / SECOND, _read_slots(slots))

    return _written(_call("read_entry", [keys.entry(command.fingerprint)], (), read=read))


@call_for.register
def _claim(command: commands.AcquireLease, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> commands.LeaseResult:
        now, held, mine, others = reply
        return commands.LeaseResult(
            now=now / SECOND,
            held=_read_slots(held),
            mine=tuple(mine),
            others={slot: flight.decode() for slot, flight in _pairs(others)},
        )

    arguments: list[Argument] = [command.flight, _micros(command.lease_seconds), len(command.slots)]
    arguments += [*command.slots, *command.ignoring]
    return _entry_call("claim", command.fingerprint, keys, arguments, read)


@call_for.register
def _extend(command: commands.RenewLease, keys: Keys) -> Call:
    arguments = (command.flight, _micros(command.lease_seconds))
    return _entry_call("extend", command.fingerprint, keys, arguments, bool)


@call_for.register
def _release(command: commands.ReleaseLease, keys: Keys) -> Call:
    return _entry_call("release", command.fingerprint, keys, (command.flight,), _nothing)


@call_for.register
def _keep(command: commands.StoreImages, keys: Keys) -> Call:
    arguments: list[Argument] = [
        command.flight,
        _micros(command.ttl_seconds),
        _micros(command.stale_if_error_seconds),
        int(command.displaces),
    ]
    for wanted, slot in sorted(command.slots.items()):
        arguments += [wanted, slot.image_id, slot.data]
    return _entry_call(
        "keep", command.fingerprint, keys, arguments, lambda reply: dict(_pairs(reply))
    )


@call_for.register
def _clear(command: commands.EmptySlots, keys: Keys) -> Call:
    arguments = _flat(command.images.items())
    return _entry_call("clear", command.fingerprint, keys, arguments, _nothing)


@call_for.register
def _scan_entries(command: commands.ScanEntries, keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> commands.EntriesPage:
        cursor, found = reply
        entries = {
            keys.fingerprint(key.decode()): _read_slots(slots)
            for key, slots in _pairs(found)
            if slots  # else it ended between the two looks
        }
        return commands.EntriesPage(entries, read_cursor(cursor))

    arguments = (command.after or "0", pattern_of(keys.entry("*")), command.limit)
    return _call("scan_entries", (), arguments, read=read)
