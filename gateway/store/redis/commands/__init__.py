"""The commands of the store as commands of Redis, by aggregate.

Importing an aggregate registers its encoders with `encode`.
"""

from gateway.store.redis.commands import (
    blobs,
    books,
    counters,
    entries,
    events,
    hits,
    journals,
    ledger,
    lru_index,
    ordered_sets,
    queues,
    records,
    running_totals,
    server,
    sets,
    totals,
    values,
    workers,
)
from gateway.store.redis.commands.encoding import RedisCommand, encode, read_cursor

__all__ = [
    "RedisCommand",
    "blobs",
    "books",
    "counters",
    "encode",
    "entries",
    "events",
    "hits",
    "journals",
    "ledger",
    "lru_index",
    "ordered_sets",
    "queues",
    "read_cursor",
    "records",
    "running_totals",
    "server",
    "sets",
    "totals",
    "values",
    "workers",
]
