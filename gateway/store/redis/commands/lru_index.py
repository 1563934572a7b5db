"""The commands of `commands.lru_index` for Redis."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.redis.commands.call import (
    Call,
    _as_is,
    _call,
    _micros,
    _nothing,
    _read_texts,
    call_for,
)
from gateway.store.redis.keys import Keys

# ── the shelf ───────────────────────────────────────────────────────────────────────────────


@call_for.register
def _shelve(command: commands.Track, keys: Keys) -> Call:
    lifetime = _micros(command.ttl_seconds)
    arguments = (command.digest, command.size_bytes, lifetime, command.max_bytes)
    return _call("shelve", [keys.lru_totals], arguments, read=_read_texts)


@call_for.register
def _shrink(command: commands.EvictTo, keys: Keys) -> Call:
    return _call("shrink", [keys.lru_totals], [command.max_bytes], read=_read_texts)


@call_for.register
def _touch(command: commands.Touch, keys: Keys) -> Call:
    return _call("touch", [keys.lru_totals], command.digests, read=_nothing)


@call_for.register
def _unshelve(command: commands.Untrack, keys: Keys) -> Call:
    return _call("unshelve", [keys.lru_totals], command.digests, read=_nothing)


@call_for.register
def _oldest(command: commands.EvictionCandidates, keys: Keys) -> Call:
    return _call("oldest", [keys.lru_totals], [command.size_bytes], read=_read_texts)


@call_for.register
def _read_shelf(command: commands.ReadLruTotals, keys: Keys) -> Call:
    return _call("read_shelf", [keys.lru_totals], (), read=lambda reply: commands.LruTotals(*reply))


@call_for.register
def _on_shelf(command: commands.AreTracked, keys: Keys) -> Call:
    def read(reply: Sequence[int]) -> Sequence[bool]:
        return [bool(found) for found in reply]

    return _call("on_shelf", [keys.lru_totals], command.digests, read=read)


@call_for.register
def _sweep(command: commands.Sweep, keys: Keys) -> Call:
    """Every key that ends has a time to live; only what lies on the shelf has none."""
    return _call("sweep", [keys.lru_totals], [command.limit], read=_as_is)
