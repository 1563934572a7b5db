"""The commands of `commands.events` in SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from gateway.store import commands
from gateway.store.sqlite.schema import Transaction

# ── flights ─────────────────────────────────────────────────────────────────────────────────


def _publish(tx: Transaction, command: commands.Publish) -> None:
    gone_at = tx.now + command.ttl_seconds
    tx.change("DELETE FROM events WHERE flight = ? AND gone_at <= ?", command.flight, tx.now)
    added = tx.change(
        "INSERT OR IGNORE INTO events (flight, event_id, event, gone_at) VALUES (?, ?, ?, ?)",
        command.flight,
        command.event_id,
        command.event,
        gone_at,
    )
    if added:
        tx.change("UPDATE events SET gone_at = ? WHERE flight = ?", gone_at, command.flight)


def _read_events(tx: Transaction, command: commands.ReadEvents) -> Sequence[bytes]:
    rows = tx.all(
        "SELECT event FROM events WHERE flight = ? AND gone_at > ? ORDER BY id LIMIT -1 OFFSET ?",
        command.flight,
        tx.now,
        command.after,
    )
    return [event for (event,) in rows]


def newest_events(db: sqlite3.Connection, flights: Sequence[str]) -> Mapping[str, int]:
    """The highest event id of each flight that has events. Ids grow and are never used again."""
    rows = db.execute(
        "SELECT flight, max(id) FROM events"
        " WHERE flight IN (SELECT value FROM json_each(?)) GROUP BY flight",
        (json.dumps(flights),),
    )
    return dict(rows.fetchall())
