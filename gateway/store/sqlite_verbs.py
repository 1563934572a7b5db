"""Each verb as SQL: one function a verb, run inside a transaction that the caller owns.

Here are the records and the upkeep; the cache's verbs are `sqlite_cache`'s, those of the books
`sqlite_books`'. Connections, threads, locks and transactions are `sqlite`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.store import verbs
from gateway.store.sqlite_books import BOOKS
from gateway.store.sqlite_cache import CACHE
from gateway.store.sqlite_tables import OVER, Performers, Transaction
from gateway.store.verbs import Verb


def perform(tx: Transaction, verb: Verb[Any]) -> Any:
    """Runs one verb and answers what it promises."""
    return _PERFORMERS[type(verb)](tx, verb)


def is_reading(batch: Sequence[Verb[Any]]) -> bool:
    """Whether no verb of the batch writes."""
    return all(type(verb) in _READING for verb in batch)


# ── records ─────────────────────────────────────────────────────────────────────────────────


def _get(tx: Transaction, verb: verbs.Get) -> bytes | None:
    if verb.through is None:
        return tx.record(verb.space, verb.name)
    name = tx.record(verb.through, verb.name)
    return None if name is None else tx.record(verb.space, name.decode())


def _put(tx: Transaction, verb: verbs.Put) -> int | None:
    for index, change in enumerate(verb.changes):
        if tx.record(change.space, change.name) != change.expect:
            return index
    for change in verb.changes:
        _write(tx, change)
    return None


def _write(tx: Transaction, change: verbs.Change) -> None:
    if change.value is None:
        tx.change("DELETE FROM records WHERE space = ? AND name = ?", change.space, change.name)
        return
    tx.change(
        "INSERT OR REPLACE INTO records (space, name, value) VALUES (?, ?, ?)",
        change.space,
        change.name,
        change.value,
    )


def _scan(tx: Transaction, verb: verbs.Scan) -> Mapping[str, bytes]:
    return dict(tx.all("SELECT name, value FROM records WHERE space = ?", verb.space))


# ── sweeping ────────────────────────────────────────────────────────────────────────────────


def _sweep(tx: Transaction, verb: verbs.Sweep) -> int:
    swept = 0
    for table, over in OVER.items():
        swept += tx.change(
            f"DELETE FROM {table} WHERE rowid IN ({over} LIMIT ?)",  # noqa: S608 - from above
            tx.now,
            verb.limit - swept,
        )
    return swept


def _inspect(tx: Transaction, _verb: verbs.Inspect) -> verbs.StoreFacts:
    return verbs.StoreFacts(
        "sqlite", tx.now, eviction_policy=None, maxmemory_bytes=None, is_durable=True
    )


_PERFORMERS: Final[Performers] = {
    verbs.Get: _get,
    verbs.Put: _put,
    verbs.Scan: _scan,
    verbs.Sweep: _sweep,
    verbs.Inspect: _inspect,
    **CACHE,
    **BOOKS,
}

_READING: Final = frozenset(
    {
        verbs.Get,
        verbs.Scan,
        verbs.ReadEntry,
        verbs.ScanEntries,
        verbs.ReadNote,
        verbs.ReadList,
        verbs.Oldest,
        verbs.ReadShelf,
        verbs.OnShelf,
        verbs.ReadEvents,
        verbs.DeadWorkers,
        verbs.ReadMeters,
        verbs.OpenJournals,
        verbs.ReadLedger,
        verbs.Inspect,
    }
)
