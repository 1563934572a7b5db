"""The commands of `commands.lru_index` for Redis."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands as verbs
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
def _shelve(verb: verbs.Shelve, keys: Keys) -> Call:
    lifetime = _micros(verb.lifetime_seconds)
    arguments = (verb.digest, verb.size_bytes, lifetime, verb.most_bytes)
    return _call("shelve", [keys.shelf], arguments, read=_read_texts)


@call_for.register
def _shrink(verb: verbs.Shrink, keys: Keys) -> Call:
    return _call("shrink", [keys.shelf], [verb.most_bytes], read=_read_texts)


@call_for.register
def _touch(verb: verbs.Touch, keys: Keys) -> Call:
    return _call("touch", [keys.shelf], verb.digests, read=_nothing)


@call_for.register
def _unshelve(verb: verbs.Unshelve, keys: Keys) -> Call:
    return _call("unshelve", [keys.shelf], verb.digests, read=_nothing)


@call_for.register
def _oldest(verb: verbs.Oldest, keys: Keys) -> Call:
    return _call("oldest", [keys.shelf], [verb.size_bytes], read=_read_texts)


@call_for.register
def _read_shelf(verb: verbs.ReadShelf, keys: Keys) -> Call:
    return _call("read_shelf", [keys.shelf], (), read=lambda reply: verbs.Shelf(*reply))


@call_for.register
def _on_shelf(verb: verbs.OnShelf, keys: Keys) -> Call:
    def read(reply: Sequence[int]) -> Sequence[bool]:
        return [bool(found) for found in reply]

    return _call("on_shelf", [keys.shelf], verb.digests, read=read)


@call_for.register
def _sweep(verb: verbs.Sweep, keys: Keys) -> Call:
    """Every key that ends has a time to live; only what lies on the shelf has none."""
    return _call("sweep", [keys.shelf], [verb.limit], read=_as_is)
