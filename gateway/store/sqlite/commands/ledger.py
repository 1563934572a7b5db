"""The ledger: records in the order of their appends, and the refusals of the current minute.

An id of the ledger is `<yyyy-mm-dd>/<microseconds>`: the day, and the record's position.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final

from gateway.store import commands
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.commands.running_totals import add_to_total
from gateway.store.sqlite.commands.totals import read_checkpoint
from gateway.store.sqlite.transaction import Transaction

_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
_END: Final = 2**63 - 1
"""After every position."""
_FIRST_DAY: Final = date(1970, 1, 1).toordinal()

MAX_TRIMMED: Final = 500
"""Records that one trim removes at most: other commands run between two."""

_REMOVED: Final = ("ledger", "removed")
"""Space and name of the record with the id of the last charged record that was removed: what the
ledger cannot prove any more. A record, because the schema has no place for it."""
_FREE_REMOVED: Final = ("ledger", "removed:free")
"""The same of the last free record: what reports cannot read any more."""

_INSERT: Final = {
    True: "INSERT INTO ledger_charged (position, record) VALUES (?, ?)",
    False: "INSERT INTO ledger_free (position, record) VALUES (?, ?)",
}

_SPAN: Final = {
    True: "SELECT position, record FROM ledger_charged WHERE position > ? AND position <= ?"
    " ORDER BY position LIMIT ?",
    False: "SELECT position, record FROM ledger_free WHERE position > ? AND position <= ?"
    " ORDER BY position LIMIT ?",
}


@writes(commands.Append)
def append(tx: Transaction, command: commands.Append) -> bool:
    known = tx.fetch_one(
        "SELECT number FROM writers WHERE writer = ? AND remove_after > ?",
        (command.writer, tx.now),
    )
    if known is None and command.number > 1:
        return False
    if known is not None and command.number <= known[0]:
        return True
    _append_records(tx, command.records, is_charged=False)
    for name, usd_micros in command.saved.items():
        add_to_total(tx, name, saved=usd_micros)
    for refusals in command.refusals:
        _count(tx, refusals)
    tx.execute(
        "INSERT OR REPLACE INTO writers (writer, number, remove_after) VALUES (?, ?, ?)",
        (command.writer, command.number, tx.now + commands.WRITER_SECONDS),
    )
    return True


def append_record(tx: Transaction, record: bytes, *, is_charged: bool) -> None:
    """Adds a record to the ledger."""
    _append_records(tx, [record], is_charged=is_charged)


def _append_records(tx: Transaction, records: Sequence[bytes], *, is_charged: bool) -> None:
    if not records:
        return
    (last,) = tx.fetch_one("SELECT position FROM ledger_end")
    first = max(tx.now_micros, last + 1)
    tx.execute_many(_INSERT[is_charged], enumerate(records, first))
    added_bytes = 0 if is_charged else sum(map(_size, records))
    tx.execute(
        "UPDATE ledger_end SET position = ?, free_bytes = free_bytes + ?",
        (first + len(records) - 1, added_bytes),
    )


def _size(record: bytes) -> int:
    return len(record) + commands.RECORD_OVERHEAD_BYTES


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def _count(tx: Transaction, refusals: commands.Refusals) -> None:
    minute, key = int(tx.now // commands.MINUTE_SECONDS), refusals.key
    if _add_to_count(tx, minute, refusals, reason=refusals.reason):
        return
    (rows,) = tx.fetch_one(
        "SELECT count(*) FROM refusals WHERE minute = ? AND key = ? AND reason != ''", (minute, key)
    )
    reason, record = refusals.reason, refusals.record
    if rows >= commands.MAX_REFUSAL_REASONS:
        reason, record = "", refusals.other
        if _add_to_count(tx, minute, refusals, reason=reason):
            return
    tx.execute(
        "INSERT INTO refusals (minute, key, reason, count, record) VALUES (?, ?, ?, ?, ?)",
        (minute, key, reason, refusals.count, record),
    )


def _add_to_count(
    tx: Transaction, minute: int, refusals: commands.Refusals, *, reason: str
) -> bool:
    """Whether there is a row to which the refusals were added."""
    changed = tx.execute(
        "UPDATE refusals SET count = count + ? WHERE minute = ? AND key = ? AND reason = ?",
        (refusals.count, minute, refusals.key, reason),
    )
    return changed > 0


@writes(commands.AppendRefusals)
def append_refusals(tx: Transaction, command: commands.AppendRefusals) -> int:
    minute = -1 if command.ends_minute else int(tx.now // commands.MINUTE_SECONDS)
    # Also later minutes: a clock that is set back must not keep the counts of its future.
    rows = tx.fetch_all(
        "SELECT id, record, count FROM refusals WHERE minute < ? OR minute > ? ORDER BY id LIMIT ?",
        (minute, minute, command.limit),
    )
    records = [record + f"{count}}}".encode() for _, record, count in rows]
    _append_records(tx, records, is_charged=False)
    tx.execute_many("DELETE FROM refusals WHERE id = ?", [(row_id,) for row_id, _, _ in rows])
    return len(rows)


# ── reading ─────────────────────────────────────────────────────────────────────────────────


@reads(commands.ReadLedger)
def read_ledger(tx: Transaction, command: commands.ReadLedger) -> Sequence[tuple[str, bytes]]:
    after = _position(command.after)
    if command.charged_only:
        query = "SELECT position, record FROM ledger_charged WHERE position > ? ORDER BY position"
        rows = tx.fetch_all(f"{query} LIMIT ?", (after, command.limit))
        return [(ledger_id_of(position), record) for position, record in rows]
    # SQLite merges the tables in the order of their positions and stops at the limit.
    rows = tx.fetch_all(
        "SELECT position, record FROM ledger_charged WHERE position > ?"
        " UNION ALL SELECT position, record FROM ledger_free WHERE position > ?"
        " ORDER BY position LIMIT ?",
        (after, after, command.limit),
    )
    return [(ledger_id_of(position), record) for position, record in rows]


@reads(commands.ReadLedgerBack)
def read_ledger_back(
    tx: Transaction, command: commands.ReadLedgerBack
) -> Sequence[tuple[str, bytes]]:
    day, _, position = command.before.partition("/")
    # The position of a whole day is the one before its first record.
    before = _position(command.before) + (not position) if day else _END
    rows = tx.fetch_all(
        "SELECT position, record FROM ledger_charged WHERE position < ?"
        " UNION ALL SELECT position, record FROM ledger_free WHERE position < ?"
        " ORDER BY position DESC LIMIT ?",
        (before, before, command.limit),
    )
    return [(ledger_id_of(position), record) for position, record in rows]


@reads(commands.SearchLedger)
def search_ledger(tx: Transaction, command: commands.SearchLedger) -> commands.LedgerMatches:
    after = max(round(command.begin * _SECOND) - 1, _position(command.after))
    end = round(command.end * _SECOND)
    rows = tx.fetch_all(_SPAN[command.is_charged], (after, end, command.limit))
    found = [
        (ledger_id_of(position), record) for position, record in rows if command.text in record
    ]
    has_more = len(rows) == command.limit
    return commands.LedgerMatches(found, len(rows), ledger_id_of(rows[-1][0]) if has_more else "")


@reads(commands.SearchRefusals)
def search_refusals(tx: Transaction, command: commands.SearchRefusals) -> Sequence[bytes]:
    rows = tx.fetch_all("SELECT record, count FROM refusals ORDER BY id LIMIT ?", (command.limit,))
    return [record + f"{count}}}".encode() for record, count in rows if command.text in record]


def ledger_id_of(position: int) -> str:
    """The id of a position."""
    return f"{_day(position // _DAY)}/{position:016d}"


def read_ledger_end(tx: Transaction) -> tuple[str, str, str]:
    """The ids of the last record, and of the last charged and free one that was removed; or ""."""
    (last,) = tx.fetch_one("SELECT position FROM ledger_end")
    removed = (
        tx.fetch_one("SELECT value FROM records WHERE space = ? AND name = ?", name)
        for name in (_REMOVED, _FREE_REMOVED)
    )
    charged, free = (found[0].decode() if found else "" for found in removed)
    return ledger_id_of(last) if last else "", charged, free


def _note_removed(tx: Transaction, name: tuple[str, str], position: int) -> None:
    tx.execute(
        "INSERT OR REPLACE INTO records (space, name, value) VALUES (?, ?, ?)",
        (*name, ledger_id_of(position).encode()),
    )


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    """The date of a day, counted from 1970-01-01."""
    return date.fromordinal(_FIRST_DAY + number).isoformat()


def _position(ledger_id: str) -> int:
    """The position of an id of the ledger; of a whole day that before its first record."""
    day, _, position = ledger_id.partition("/")
    # One of Redis, such as an old cursor, has milliseconds and a count.
    milliseconds, dash, _ = position.partition("-")
    if position:
        return int(milliseconds) * 1000 if dash else int(position)
    if not day:
        return 0
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * _SECOND - 1


# ── trimming ────────────────────────────────────────────────────────────────────────────────


@writes(commands.TrimLedger)
def trim_ledger(tx: Transaction, command: commands.TrimLedger) -> commands.Trimmed:
    folded_to = _position(read_checkpoint(tx) if command.folded_to is None else command.folded_to)
    limit = min(command.limit, MAX_TRIMMED)
    expired = min(folded_to, tx.now_micros - round(command.keep_charged_seconds * _SECOND))
    charged = _remove_charged(tx, expired, limit)
    expired = tx.now_micros - round(command.keep_free_seconds * _SECOND)
    (free_bytes,) = tx.fetch_one("SELECT free_bytes FROM ledger_end")
    free, unfolded, last = 0, 0, -1
    # Reads only as far as rows are removed, and one more.
    rows = tx.db.execute(
        "SELECT position, length(record) FROM ledger_free ORDER BY position LIMIT ?",
        (limit - charged,),
    )
    for position, size in rows:
        is_folded = position <= folded_to
        is_expired = is_folded and position <= expired
        maximum = command.max_free_bytes if is_folded else command.max_unfolded_bytes
        if not is_expired and free_bytes <= maximum:
            break
        free, last = free + 1, position
        unfolded += not is_folded
        free_bytes -= size + commands.RECORD_OVERHEAD_BYTES
    if free:
        tx.execute("DELETE FROM ledger_free WHERE position <= ?", (last,))
        tx.execute("UPDATE ledger_end SET free_bytes = ?", (free_bytes,))
        _note_removed(tx, _FREE_REMOVED, last)
    removed = charged + free
    return commands.Trimmed(removed, unfolded, removed >= limit, free_bytes)


def _remove_charged(tx: Transaction, up_to: int, limit: int) -> int:
    position, count = tx.fetch_one(
        "SELECT max(position), count(*) FROM (SELECT position FROM ledger_charged"
        " WHERE position <= ? ORDER BY position LIMIT ?)",
        (up_to, limit),
    )
    if count:
        tx.execute("DELETE FROM ledger_charged WHERE position <= ?", (position,))
        _note_removed(tx, _REMOVED, position)
    return int(count)
