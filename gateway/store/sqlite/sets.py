"""The commands of `commands.sets` in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands as verbs
from gateway.store.sqlite.schema import Transaction


def _enlist(tx: Transaction, verb: verbs.Enlist) -> None:
    gone_at = tx.now + verb.lifetime_seconds
    number = _list_number(tx, verb)
    if number is None:
        tx.change(
            "INSERT INTO lists (space, name, gone_at) VALUES (?, ?, ?)",
            *(verb.space, verb.name, gone_at),
        )
        number = _list_number(tx, verb)
    tx.change("UPDATE lists SET gone_at = max(gone_at, ?) WHERE id = ?", gone_at, number)
    tx.db.executemany(
        "INSERT OR IGNORE INTO members (list, member) VALUES (?, ?)",
        [(number, member) for member in verb.members],
    )


def _read_list(tx: Transaction, verb: verbs.ReadList) -> Sequence[str]:
    rows = tx.all("SELECT member FROM members WHERE list = ?", _list_number(tx, verb))
    return [member for (member,) in rows]


def _strike(tx: Transaction, verb: verbs.Strike) -> None:
    number = _list_number(tx, verb)
    tx.db.executemany(
        "DELETE FROM members WHERE list = ? AND member = ?",
        [(number, member) for member in verb.members],
    )


def _list_number(tx: Transaction, verb: verbs.Enlist | verbs.ReadList | verbs.Strike) -> int | None:
    row = tx.one(
        "SELECT id FROM lists WHERE space = ? AND name = ? AND gone_at > ?",
        *(verb.space, verb.name, tx.now),
    )
    return None if row is None else int(row[0])
