"""The events of flights."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction

NOTIFIED_SECONDS: Final = 5.0
"""How long a notification is stored; watches have seen it by then."""


@writes(commands.Publish)
def publish(tx: Transaction, command: commands.Publish) -> None:
    remove_after = tx.steady + command.ttl_seconds
    # An expired row that was not swept yet would make a new event with its id look repeated.
    tx.execute(
        "DELETE FROM events WHERE flight = ? AND remove_after <= ?", (command.flight, tx.steady)
    )
    is_new = tx.execute(
        "INSERT OR IGNORE INTO events (flight, event_id, event, remove_after) VALUES (?, ?, ?, ?)",
        (command.flight, command.event_id, command.event, remove_after),
    )
    if is_new:
        tx.execute(
            "UPDATE events SET remove_after = ? WHERE flight = ?", (remove_after, command.flight)
        )


@writes(commands.Notify)
def notify(tx: Transaction, command: commands.Notify) -> None:
    # A watch sees the new id of the row. It never reads the row, so one is enough.
    tx.execute("DELETE FROM events WHERE flight = ?", (command.flight,))
    tx.execute(
        "INSERT INTO events (flight, event_id, event, remove_after) VALUES (?, '', x'', ?)",
        (command.flight, tx.steady + NOTIFIED_SECONDS),
    )


@reads(commands.ReadEvents)
def read_events(tx: Transaction, command: commands.ReadEvents) -> Sequence[bytes]:
    rows = tx.fetch_all(
        "SELECT event FROM events WHERE flight = ? AND remove_after > ?"
        " ORDER BY id LIMIT -1 OFFSET ?",
        (command.flight, tx.steady, command.after),
    )
    return [event for (event,) in rows]


def newest_events(db: sqlite3.Connection, flights: Sequence[str]) -> Mapping[str, int]:
    """The highest id among the events of each flight that has any.

    Ids grow and are never used again.
    """
    rows = db.execute(
        "SELECT flight, max(id) FROM events"
        " WHERE flight IN (SELECT value FROM json_each(?)) GROUP BY flight",
        (json.dumps(flights),),
    )
    return dict(rows.fetchall())
