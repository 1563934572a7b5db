"""Encoders of `commands.entries`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from gateway.store import commands
from gateway.store.commands import Slot
from gateway.store.redis.commands.encoding import (
    MAX_PACKED,
    SECOND,
    Argument,
    RedisCommand,
    encode,
    flatten,
    microseconds,
    no_result,
    packed,
    pairs,
    plain_command,
    read_cursor,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys, match_pattern

MAX_DECODED: Final = 1024
"""How many decoded slots are cached: a popular image is read again and again."""


def _read_slots(flat: Sequence[Any]) -> dict[int, Slot]:
    return {int(slot): _read_slot(value) for slot, value in pairs(flat)}


@lru_cache(maxsize=MAX_DECODED)
def _read_slot(value: bytes) -> Slot:
    """Reads `<expires> <stored> <length of id> <id><data>`, as `shared/slots.lua` writes it."""
    expires, stored, length, rest = value.split(b" ", 3)
    end = int(length)
    return Slot(rest[:end].decode(), int(expires) / SECOND, rest[end:], int(stored) / SECOND)


def _entry_command(
    name: str,
    fingerprint: str,
    keys: Keys,
    *,
    arguments: Iterable[Argument],
    read: Callable[[Any], Any],
) -> RedisCommand:
    both = [keys.entry(fingerprint), keys.leases(fingerprint)]
    return script_command(name, both, arguments, read=read)


# Cached: popular entries are read again and again.
@encode.register
@lru_cache(maxsize=MAX_PACKED)
def _read_entry(command: commands.ReadEntry, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.Entry:
        now, slots = reply
        return commands.Entry(now / SECOND, _read_slots(slots))

    return packed(script_command("read_entry", [keys.entry(command.fingerprint)], (), read=read))


@encode.register
def _acquire_lease(command: commands.AcquireLease, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.LeaseResult:
        now, cached, acquired, leased = reply
        return commands.LeaseResult(
            now=now / SECOND,
            cached=_read_slots(cached),
            acquired=tuple(map(int, acquired)),
            leased={int(slot): flight.decode() for slot, flight in pairs(leased)},
        )

    arguments: list[Argument] = [
        command.flight,
        microseconds(command.lease_seconds),
        len(command.slots),
    ]
    arguments += [*command.slots, *command.ignoring]
    return _entry_command(
        "acquire_lease", command.fingerprint, keys, arguments=arguments, read=read
    )


@encode.register
def _renew_lease(command: commands.RenewLease, keys: Keys) -> RedisCommand:
    arguments = (command.flight, microseconds(command.lease_seconds))
    return _entry_command("renew_lease", command.fingerprint, keys, arguments=arguments, read=bool)


@encode.register
def _release_lease(command: commands.ReleaseLease, keys: Keys) -> RedisCommand:
    return _entry_command(
        "release_lease", command.fingerprint, keys, arguments=(command.flight,), read=no_result
    )


@encode.register
def _store_images(command: commands.StoreImages, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[bytes]) -> dict[int, int]:
        return dict(pairs([int(slot) for slot in reply]))

    arguments: list[Argument] = [
        command.flight,
        microseconds(command.ttl_seconds),
        microseconds(command.stale_if_error_seconds),
        int(command.displaces),
    ]
    for wanted, slot in sorted(command.slots.items()):
        arguments += [wanted, slot.image_id, slot.data]
    return _entry_command("store_images", command.fingerprint, keys, arguments=arguments, read=read)


@encode.register
def _empty_slots(command: commands.EmptySlots, keys: Keys) -> RedisCommand:
    arguments = flatten(command.images.items())
    return _entry_command(
        "empty_slots", command.fingerprint, keys, arguments=arguments, read=no_result
    )


@encode.register
def _prolong_slots(command: commands.ProlongSlots, keys: Keys) -> RedisCommand:
    arguments: list[Argument] = [
        microseconds(command.ttl_seconds),
        microseconds(command.stale_if_error_seconds),
        *flatten(command.images.items()),
    ]
    return _entry_command(
        "prolong_slots", command.fingerprint, keys, arguments=arguments, read=no_result
    )


@encode.register
def _scan_entries(command: commands.ScanEntries, keys: Keys) -> RedisCommand:
    # In a cluster the entries of a node are in many slots, and one may move before it is read.
    def read_each(page: Sequence[Any]) -> Sequence[RedisCommand]:
        return [plain_command("HGETALL", key.decode(), read=unchanged) for key in page[1]]

    def read(replies: Sequence[Any]) -> commands.EntriesPage:
        (cursor, found), *slots = replies
        entries = {
            keys.fingerprint(key.decode()): _read_slots(each)
            for key, each in zip(found, slots, strict=True)
            if each  # else it expired between SCAN and HGETALL
        }
        return commands.EntriesPage(entries, read_cursor(cursor))

    arguments = (command.after or "0", match_pattern(keys.entry("*")), command.limit)
    return script_command(
        "scan_entries", (), arguments, read=read, follow_up=read_each, cursor_at=3
    )
