"""The LRU index: size and last use of every blob."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.store import commands
from gateway.store.commands import MAX_EVICTIONS
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

MAX_EXPIRED: Final = 100
"""Expired rows that are deleted at once."""


@writes(commands.Track)
def track(tx: Transaction, command: commands.Track) -> Sequence[str]:
    remove_after = tx.now + command.ttl_seconds
    tracked = tx.fetch_one("SELECT remove_after FROM lru WHERE digest = ?", (command.digest,))
    if tracked is not None:
        remove_after = max(remove_after, tracked[0])
        # The row is inserted again, so eviction cannot choose it.
        _delete(tx, [command.digest])
    evicted = _evict_to(tx, command.max_bytes - command.size_bytes)
    tx.execute(
        "INSERT INTO lru (digest, size_bytes, used_at, remove_after) VALUES (?, ?, ?, ?)",
        (command.digest, command.size_bytes, _next_use(tx), remove_after),
    )
    return evicted


@writes(commands.EvictTo)
def evict_to(tx: Transaction, command: commands.EvictTo) -> Sequence[str]:
    return _evict_to(tx, command.max_bytes)


@writes(commands.Touch)
def touch(tx: Transaction, command: commands.Touch) -> None:
    first = _next_use(tx)
    tx.execute_many(
        "UPDATE lru SET used_at = ? WHERE digest = ?",
        [(used_at, digest) for used_at, digest in enumerate(command.digests, first)],
    )


@writes(commands.Untrack)
def untrack(tx: Transaction, command: commands.Untrack) -> None:
    _delete(tx, command.digests)


@reads(commands.EvictionCandidates)
def eviction_candidates(tx: Transaction, command: commands.EvictionCandidates) -> Sequence[str]:
    return _least_recently_used(tx, command.size_bytes)


@reads(commands.ReadLruTotals)
def read_lru_totals(tx: Transaction, command: commands.ReadLruTotals) -> commands.LruTotals:
    count, size_bytes = tx.fetch_one("SELECT count, size_bytes FROM lru_totals")
    expired, expired_bytes = tx.fetch_one(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM lru WHERE remove_after <= ?",
        (tx.now,),
    )
    return commands.LruTotals(count - expired, size_bytes - expired_bytes)


@reads(commands.AreTracked)
def are_tracked(tx: Transaction, command: commands.AreTracked) -> Sequence[bool]:
    query = "SELECT 1 FROM lru WHERE digest = ? AND remove_after > ?"
    return [tx.fetch_one(query, (digest, tx.now)) is not None for digest in command.digests]


def _evict_to(tx: Transaction, max_bytes: int) -> list[str]:
    """Deletes expired rows, then as many of the least recently used as exceed the bound."""
    while _delete_expired(tx) and _total_bytes(tx) > max_bytes:
        continue
    evicted = _least_recently_used(tx, _total_bytes(tx) - max_bytes)
    _delete(tx, evicted)
    return evicted


def _total_bytes(tx: Transaction) -> int:
    """The size of all rows, expired ones included."""
    (size_bytes,) = tx.fetch_one("SELECT size_bytes FROM lru_totals")
    return int(size_bytes)


def _delete_expired(tx: Transaction) -> int:
    """Deletes some expired rows. Returns how many."""
    return tx.execute(
        "DELETE FROM lru WHERE rowid IN (SELECT rowid FROM lru WHERE remove_after <= ? LIMIT ?)",
        (tx.now, MAX_EXPIRED),
    )


def _least_recently_used(tx: Transaction, size_bytes: int) -> list[str]:
    """As many digests as together have at least `size_bytes`, least recently used first."""
    # The plus sign keeps SQLite from the index on remove_after: the one on used_at sorts.
    rows = tx.db.execute(
        "SELECT digest, size_bytes FROM lru WHERE +remove_after > ? ORDER BY used_at LIMIT ?",
        (tx.now, MAX_EVICTIONS),
    )
    digests: list[str] = []
    while size_bytes > 0 and (row := rows.fetchone()):
        digests.append(row[0])
        size_bytes -= row[1]
    return digests


def _delete(tx: Transaction, digests: Sequence[str]) -> None:
    tx.execute_many("DELETE FROM lru WHERE digest = ?", [(digest,) for digest in digests])


def _next_use(tx: Transaction) -> int:
    """Now in microseconds, but later than every use so far, so that uses have an order."""
    (latest,) = tx.fetch_one("SELECT coalesce(max(used_at), 0) FROM lru")
    return max(tx.now_micros, int(latest) + 1)
