"""Every command of the store in SQL, by aggregate.

Importing an aggregate registers its commands. Connections, threads and the begin and commit of
transactions are elsewhere.
"""

from gateway.store.sqlite.commands import (
    books,
    counters,
    entries,
    events,
    hits,
    journals,
    ledger,
    lru_index,
    ordered_sets,
    records,
    running_totals,
    server,
    sets,
    totals,
    values,
    workers,
)
from gateway.store.sqlite.commands.registry import execute, is_read_only

__all__ = [
    "books",
    "counters",
    "entries",
    "events",
    "execute",
    "hits",
    "is_read_only",
    "journals",
    "ledger",
    "lru_index",
    "ordered_sets",
    "records",
    "running_totals",
    "server",
    "sets",
    "totals",
    "values",
    "workers",
]
