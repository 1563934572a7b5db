"""How often each image was a hit."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.commands import NO_HITS, Hits
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@writes(commands.CountHits)
def count_hits(tx: Transaction, command: commands.CountHits) -> None:
    tx.execute_many(
        "DELETE FROM hits WHERE image_id = ? AND remove_after <= ?",
        [(image_id, tx.now) for image_id, _ in command.hits],
    )
    tx.execute_many(
        "INSERT INTO hits (image_id, count, last_at, remove_after) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (image_id) DO UPDATE SET count = count + excluded.count,"
        " last_at = excluded.last_at, remove_after = excluded.remove_after",
        [(image_id, n, tx.now, tx.now + command.ttl_seconds) for image_id, n in command.hits],
    )


@reads(commands.ReadHits)
def read_hits(tx: Transaction, command: commands.ReadHits) -> Sequence[Hits]:
    query = "SELECT count, last_at FROM hits WHERE image_id = ? AND remove_after > ?"
    rows = [tx.fetch_one(query, (image_id, tx.now)) for image_id in command.image_ids]
    return [NO_HITS if row is None else Hits(*row) for row in rows]


@writes(commands.DeleteHits)
def delete_hits(tx: Transaction, command: commands.DeleteHits) -> None:
    tx.execute_many(
        "DELETE FROM hits WHERE image_id = ?", [(image_id,) for image_id in command.image_ids]
    )
