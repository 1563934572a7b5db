"""The commands of `commands.lru_index` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import MAX_EVICTIONS
from gateway.store.sqlite.schema import Transaction

# ── the shelf ───────────────────────────────────────────────────────────────────────────────


def _shelve(tx: Transaction, command: commands.Track) -> Sequence[str]:
    gone_at = tx.now + command.ttl_seconds
    before = tx.one("SELECT gone_at FROM shelf WHERE digest = ?", command.digest)
    tx.change("DELETE FROM shelf WHERE digest = ?", command.digest)
    victims = _make_room(tx, command.max_bytes - command.size_bytes)
    tx.change(
        "INSERT INTO shelf (digest, size_bytes, used_at, gone_at) VALUES (?, ?, ?, ?)",
        *(command.digest, command.size_bytes, _next_use(tx)),
        gone_at if before is None else max(gone_at, before[0]),
    )
    return victims


def _shrink(tx: Transaction, command: commands.EvictTo) -> Sequence[str]:
    return _make_room(tx, command.max_bytes)


def _make_room(tx: Transaction, max_bytes: int) -> list[str]:
    """Forgets what is over, then as many of the least recently used as it takes."""
    _forget_ended(tx)
    while (over := _shelf_total(tx).size_bytes - max_bytes) > 0 and _forget_ended(tx):
        pass
    victims = _least_used(tx, over)
    _take_off(tx, victims)
    return victims


def _forget_ended(tx: Transaction) -> int:
    """Takes a hundred off that are past their time; answers how many there were."""
    return tx.change(
        "DELETE FROM shelf WHERE rowid IN (SELECT rowid FROM shelf WHERE gone_at <= ? LIMIT 100)",
        tx.now,
    )


def _least_used(tx: Transaction, size_bytes: int) -> list[str]:
    """Those that together have so many bytes, oldest first."""
    rows = tx.db.execute(
        "SELECT digest, size_bytes FROM shelf WHERE +gone_at > ? ORDER BY used_at LIMIT ?",
        (tx.now, MAX_EVICTIONS),
    )
    found: list[str] = []
    while size_bytes > 0 and (row := rows.fetchone()):
        found.append(row[0])
        size_bytes -= row[1]
    return found


def _take_off(tx: Transaction, digests: Sequence[str]) -> None:
    tx.db.executemany("DELETE FROM shelf WHERE digest = ?", [(digest,) for digest in digests])


def _touch(tx: Transaction, command: commands.Touch) -> None:
    moment = _next_use(tx)
    tx.db.executemany(
        "UPDATE shelf SET used_at = ? WHERE digest = ?",
        [(moment + offset, digest) for offset, digest in enumerate(command.digests)],
    )


def _next_use(tx: Transaction) -> int:
    """Now in microseconds, but later than any use before: no two are ever the same moment."""
    (latest,) = tx.one("SELECT coalesce(max(used_at), 0) FROM shelf")
    return max(tx.now_micros, int(latest) + 1)


def _unshelve(tx: Transaction, command: commands.Untrack) -> None:
    _take_off(tx, command.digests)


def _oldest(tx: Transaction, command: commands.EvictionCandidates) -> Sequence[str]:
    return _least_used(tx, command.size_bytes)


def _read_shelf(tx: Transaction, command: commands.ReadLruTotals) -> commands.LruTotals:
    total = _shelf_total(tx)
    ended, ended_bytes = tx.one(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM shelf WHERE gone_at <= ?", tx.now
    )
    return commands.LruTotals(total.count - ended, total.size_bytes - ended_bytes)


def _shelf_total(tx: Transaction) -> commands.LruTotals:
    """All that lies there, also what is past its time."""
    return commands.LruTotals(*tx.one("SELECT count, size_bytes FROM shelf_total"))


def _on_shelf(tx: Transaction, command: commands.AreTracked) -> Sequence[bool]:
    there = "SELECT 1 FROM shelf WHERE digest = ? AND gone_at > ?"
    return [tx.one(there, digest, tx.now) is not None for digest in command.digests]
