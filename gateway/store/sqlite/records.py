"""The commands of `commands.records` in SQL."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.store import commands as verbs
from gateway.store.sqlite.schema import Transaction

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
