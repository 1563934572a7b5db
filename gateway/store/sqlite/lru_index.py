"""The commands of `commands.lru_index` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands as verbs
from gateway.store.commands import MOST_VICTIMS
from gateway.store.sqlite.schema import Transaction

# ── the shelf ───────────────────────────────────────────────────────────────────────────────


def _shelve(tx: Transaction, verb: verbs.Shelve) -> Sequence[str]:
    gone_at = tx.now + verb.lifetime_seconds
    before = tx.one("SELECT gone_at FROM shelf WHERE digest = ?", verb.digest)
    tx.change("DELETE FROM shelf WHERE digest = ?", verb.digest)
    victims = _make_room(tx, verb.most_bytes - verb.size_bytes)
    tx.change(
        "INSERT INTO shelf (digest, size_bytes, used_at, gone_at) VALUES (?, ?, ?, ?)",
        *(verb.digest, verb.size_bytes, _next_use(tx)),
        gone_at if before is None else max(gone_at, before[0]),
    )
    return victims


def _shrink(tx: Transaction, verb: verbs.Shrink) -> Sequence[str]:
    return _make_room(tx, verb.most_bytes)


def _make_room(tx: Transaction, most_bytes: int) -> list[str]:
    """Forgets what is over, then as many of the least recently used as it takes."""
    _forget_ended(tx)
    while (over := _shelf_total(tx).size_bytes - most_bytes) > 0 and _forget_ended(tx):
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
        (tx.now, MOST_VICTIMS),
    )
    found: list[str] = []
    while size_bytes > 0 and (row := rows.fetchone()):
        found.append(row[0])
        size_bytes -= row[1]
    return found


def _take_off(tx: Transaction, digests: Sequence[str]) -> None:
    tx.db.executemany("DELETE FROM shelf WHERE digest = ?", [(digest,) for digest in digests])


def _touch(tx: Transaction, verb: verbs.Touch) -> None:
    moment = _next_use(tx)
    tx.db.executemany(
        "UPDATE shelf SET used_at = ? WHERE digest = ?",
        [(moment + offset, digest) for offset, digest in enumerate(verb.digests)],
    )


def _next_use(tx: Transaction) -> int:
    """Now in microseconds, but later than any use before: no two are ever the same moment."""
    (latest,) = tx.one("SELECT coalesce(max(used_at), 0) FROM shelf")
    return max(tx.now_micros, int(latest) + 1)


def _unshelve(tx: Transaction, verb: verbs.Unshelve) -> None:
    _take_off(tx, verb.digests)


def _oldest(tx: Transaction, verb: verbs.Oldest) -> Sequence[str]:
    return _least_used(tx, verb.size_bytes)


def _read_shelf(tx: Transaction, verb: verbs.ReadShelf) -> verbs.Shelf:
    total = _shelf_total(tx)
    ended, ended_bytes = tx.one(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM shelf WHERE gone_at <= ?", tx.now
    )
    return verbs.Shelf(total.count - ended, total.size_bytes - ended_bytes)


def _shelf_total(tx: Transaction) -> verbs.Shelf:
    """All that lies there, also what is past its time."""
    return verbs.Shelf(*tx.one("SELECT count, size_bytes FROM shelf_total"))


def _on_shelf(tx: Transaction, verb: verbs.OnShelf) -> Sequence[bool]:
    there = "SELECT 1 FROM shelf WHERE digest = ? AND gone_at > ?"
    return [tx.one(there, digest, tx.now) is not None for digest in verb.digests]
