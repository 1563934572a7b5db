"""The LRU indexes: size and last use of every blob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.store import commands
from gateway.store.commands import MAX_EVICTIONS, LruIndex
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

EXPIRED_STEP: Final = 100
"""Expired rows that are deleted before the bound is checked again."""


@writes(commands.Track)
def track(tx: Transaction, command: commands.Track) -> Sequence[str]:
    index, digest = command.index, command.digest
    remove_after = tx.now + command.ttl_seconds
    tracked = tx.fetch_one(
        "SELECT remove_after FROM lru WHERE kind = ? AND digest = ?", (index, digest)
    )
    if tracked is not None:
        remove_after = max(remove_after, tracked[0])
        # The row is inserted again, so eviction cannot choose it.
        _delete(tx, index, [digest])
    evicted = _evict_to(tx, index, max_bytes=command.max_bytes - command.size_bytes)
    tx.execute(
        "INSERT INTO lru (kind, digest, size_bytes, used_at, remove_after) VALUES (?, ?, ?, ?, ?)",
        (index, digest, command.size_bytes, _next_use(tx, index), remove_after),
    )
    return evicted


@writes(commands.EvictTo)
def evict_to(tx: Transaction, command: commands.EvictTo) -> Sequence[str]:
    return _evict_to(tx, command.index, max_bytes=command.max_bytes)


@writes(commands.Touch)
def touch(tx: Transaction, command: commands.Touch) -> None:
    first = _next_use(tx, "images")
    tx.execute_many(
        "UPDATE lru SET used_at = ? WHERE kind = 'images' AND digest = ?",
        [(used_at, digest) for used_at, digest in enumerate(command.digests, first)],
    )


@writes(commands.Untrack)
def untrack(tx: Transaction, command: commands.Untrack) -> None:
    _delete(tx, "images", command.digests)


@reads(commands.EvictionCandidates)
def eviction_candidates(tx: Transaction, command: commands.EvictionCandidates) -> Mapping[str, int]:
    return _least_recently_used(tx, "images", size_bytes=command.size_bytes, skip=command.skip)


@reads(commands.ReadLruTotals)
def read_lru_totals(tx: Transaction, command: commands.ReadLruTotals) -> commands.LruTotals:
    totals = tx.fetch_one("SELECT count, size_bytes FROM lru_totals WHERE kind = 'images'")
    return commands.LruTotals(*totals)


@reads(commands.AreTracked)
def are_tracked(tx: Transaction, command: commands.AreTracked) -> Sequence[bool]:
    query = "SELECT 1 FROM lru WHERE kind = 'images' AND digest = ? AND remove_after > ?"
    return [tx.fetch_one(query, (digest, tx.now)) is not None for digest in command.digests]


def _evict_to(tx: Transaction, index: LruIndex, *, max_bytes: int) -> list[str]:
    """Deletes expired rows, then as many of the least recently used as exceed the bound."""
    for _ in range(0, MAX_EVICTIONS, EXPIRED_STEP):
        if _delete_expired(tx) < EXPIRED_STEP or _total_bytes(tx, index) <= max_bytes:
            break
    evicted = list(_least_recently_used(tx, index, size_bytes=_total_bytes(tx, index) - max_bytes))
    _delete(tx, index, evicted)
    return evicted


def _total_bytes(tx: Transaction, index: LruIndex) -> int:
    """The size of all rows, expired ones included."""
    (size_bytes,) = tx.fetch_one("SELECT size_bytes FROM lru_totals WHERE kind = ?", (index,))
    return int(size_bytes)


def _delete_expired(tx: Transaction) -> int:
    """Deletes some expired rows, of either index. Returns how many."""
    return tx.execute(
        "DELETE FROM lru WHERE rowid IN (SELECT rowid FROM lru WHERE remove_after <= ? LIMIT ?)",
        (tx.now, EXPIRED_STEP),
    )


def _least_recently_used(
    tx: Transaction, index: LruIndex, *, size_bytes: int, skip: int = 0
) -> dict[str, int]:
    """As many digests as together have at least `size_bytes`, least recently used first.

    Each with its bytes. Expired ones are among them: they have bytes too, and passing over them
    would take as long as there are many.
    """
    rows = tx.db.execute(
        "SELECT digest, size_bytes FROM lru WHERE kind = ? ORDER BY used_at LIMIT ? OFFSET ?",
        (index, MAX_EVICTIONS, skip),
    )
    found: dict[str, int] = {}
    while size_bytes > 0 and (row := rows.fetchone()):
        found[row[0]] = row[1]
        size_bytes -= row[1]
    return found


def _delete(tx: Transaction, index: LruIndex, digests: Sequence[str]) -> None:
    rows = [(index, digest) for digest in digests]
    tx.execute_many("DELETE FROM lru WHERE kind = ? AND digest = ?", rows)


def _next_use(tx: Transaction, index: LruIndex) -> int:
    """Now in microseconds, but later than every use so far, so that uses have an order."""
    query = "SELECT coalesce(max(used_at), 0) FROM lru WHERE kind = ?"
    (latest,) = tx.fetch_one(query, (index,))
    return max(tx.now_micros, int(latest) + 1)
