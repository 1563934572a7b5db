"""Every command of the store as a command of Redis, by aggregate.

Importing an aggregate registers its commands with `call_for`.
"""

from gateway.store.redis.commands import (
    blobs,
    counters,
    entries,
    events,
    journals,
    ledger,
    lru_index,
    records,
    server,
    sets,
    values,
    workers,
)
from gateway.store.redis.commands.call import Call, call_for, read_cursor

__all__ = [
    "Call",
    "blobs",
    "call_for",
    "counters",
    "entries",
    "events",
    "journals",
    "ledger",
    "lru_index",
    "read_cursor",
    "records",
    "server",
    "sets",
    "values",
    "workers",
]
