"""The commands of `commands.events` in SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from gateway.store import commands as verbs
from gateway.store.sqlite.schema import Transaction

# ── flights ─────────────────────────────────────────────────────────────────────────────────


def _publish(tx: Transaction, verb: verbs.Publish) -> None:
    gone_at = tx.now + verb.lifetime_seconds
    tx.change("DELETE FROM events WHERE flight = ? AND gone_at <= ?", verb.flight, tx.now)
    added = tx.change(
        "INSERT OR IGNORE INTO events (flight, event_id, event, gone_at) VALUES (?, ?, ?, ?)",
        verb.flight,
        verb.event_id,
        verb.event,
        gone_at,
    )
    if added:
        tx.change("UPDATE events SET gone_at = ? WHERE flight = ?", gone_at, verb.flight)


def _read_events(tx: Transaction, verb: verbs.ReadEvents) -> Sequence[bytes]:
    rows = tx.all(
        "SELECT event FROM events WHERE flight = ? AND gone_at > ? ORDER BY id LIMIT -1 OFFSET ?",
        verb.flight,
        tx.now,
        verb.after,
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
