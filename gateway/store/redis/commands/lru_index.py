"""Encoders of `commands.lru_index`, and of `Sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    RedisCommand,
    encode,
    microseconds,
    no_result,
    pairs,
    read_texts,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys


@encode.register
def _track(command: commands.Track, keys: Keys) -> RedisCommand:
    ttl = microseconds(command.ttl_seconds)
    arguments = (command.digest, command.size_bytes, ttl, command.max_bytes)
    index = keys.lru_index(command.index)
    return script_command("track", index, arguments, read=read_texts)


@encode.register
def _evict_to(command: commands.EvictTo, keys: Keys) -> RedisCommand:
    index = keys.lru_index(command.index)
    return script_command("evict_to", index, [command.max_bytes], read=read_texts)


@encode.register
def _touch(command: commands.Touch, keys: Keys) -> RedisCommand:
    return script_command("touch", keys.lru_index(), command.digests, read=no_result)


@encode.register
def _untrack(command: commands.Untrack, keys: Keys) -> RedisCommand:
    return script_command("untrack", keys.lru_index(), command.digests, read=no_result)


@encode.register
def _eviction_candidates(command: commands.EvictionCandidates, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> dict[str, int]:
        return {digest.decode(): int(size) for digest, size in pairs(reply)}

    arguments = (command.size_bytes, command.skip)
    return script_command("eviction_candidates", keys.lru_index(), arguments, read=read)


@encode.register
def _read_lru_totals(command: commands.ReadLruTotals, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[int]) -> commands.LruTotals:
        return commands.LruTotals(*reply)

    return script_command("read_lru_totals", keys.lru_index(), (), read=read)


@encode.register
def _are_tracked(command: commands.AreTracked, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[int]) -> Sequence[bool]:
        return [bool(found) for found in reply]

    return script_command("are_tracked", keys.lru_index(), command.digests, read=read)


@encode.register
def _sweep(command: commands.Sweep, keys: Keys) -> RedisCommand:
    # Redis expires keys itself; only the members of the LRU index have no time to live.
    return script_command("sweep", keys.lru_index(), [command.limit], read=unchanged)
