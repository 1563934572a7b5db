"""Encoders of `commands.ledger`.

An id of the ledger is `<yyyy-mm-dd>/<milliseconds>-<count>`: the day, and the id in the day's
streams, padded so that ids sort as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    Argument,
    RedisCommand,
    encode,
    microseconds,
    pairs,
    script_command,
    unchanged,
)
from gateway.store.redis.keys import Keys


@encode.register
def _append(command: commands.Append, keys: Keys) -> RedisCommand:
    arguments: list[Argument] = [
        command.writer,
        command.number,
        orjson.dumps(dict(command.saved)),
        len(command.records),
        *command.records,
    ]
    for one in command.refusals:
        arguments += (one.key, one.reason, one.count, one.record, one.other)
    touched = [*keys.writers, keys.running_totals, *keys.refusals, *keys.ledger_end("free")]
    return script_command("append", touched, arguments, read=bool)


@encode.register
def _append_refusals(command: commands.AppendRefusals, keys: Keys) -> RedisCommand:
    arguments = (command.limit, int(command.ends_minute))
    touched = [*keys.refusals, *keys.ledger_end("free")]
    return script_command("append_refusals", touched, arguments, read=unchanged)


@encode.register
def _read_ledger(command: commands.ReadLedger, keys: Keys) -> RedisCommand:
    day, _, position = command.after.partition("/")
    arguments = (day, _range_start(position), command.limit, int(command.charged_only))
    kinds = ["charged"] if command.charged_only else ["charged", "free"]
    days = dict.fromkeys((day, *keys.days) if day else keys.days)
    touched = [keys.ledger_days(kind) for kind in kinds]
    touched += (keys.ledger_stream(kind, each) for each in days for kind in kinds)
    return script_command("read_ledger", touched, arguments, read=_read_records)


@encode.register
def _read_ledger_back(command: commands.ReadLedgerBack, keys: Keys) -> RedisCommand:
    day, _, position = command.before.partition("/")
    end = _range_start(position) if position else ""
    arguments = (day, end, command.limit)
    days = dict.fromkeys((day, *keys.days) if day else keys.days)
    kinds = ("charged", "free")
    touched = [keys.ledger_days(kind) for kind in kinds]
    touched += (keys.ledger_stream(kind, each) for each in days for kind in kinds)
    return script_command("read_ledger_back", touched, arguments, read=_read_records)


def _read_records(reply: Sequence[bytes]) -> Sequence[tuple[str, bytes]]:
    fields = iter(reply)
    triples = zip(*[fields] * 3, strict=True)
    return [(_id_of(day, stream_id), record) for day, stream_id, record in triples]


@encode.register
def _search_ledger(command: commands.SearchLedger, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.LedgerMatches:
        scanned, last_day, last_id, found = reply
        fields = iter(found)
        records = [
            (_id_of(day, stream_id), record)
            for day, stream_id, record in zip(*[fields] * 3, strict=True)
        ]
        return commands.LedgerMatches(records, scanned, _id_of(last_day, last_id))

    first, last = max(0, round(command.begin * 1000)), max(0, round(command.end * 1000))
    day, _, position = command.after.partition("/")
    kind, first_day = "charged" if command.is_charged else "free", day or _day_of(first)
    arguments = (
        kind,
        command.text,
        first_day,
        _day_of(last),
        _range_start(position) if position else first,
        last,
        command.limit,
    )
    days = dict.fromkeys((first_day, *keys.days))
    touched = [keys.ledger_days(kind), *(keys.ledger_stream(kind, each) for each in days)]
    return script_command("search_ledger", touched, arguments, read=read)


@encode.register
def _search_refusals(command: commands.SearchRefusals, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[bytes]) -> Sequence[bytes]:
        return [record + count + b"}" for record, count in pairs(reply)]

    arguments = (command.text, command.limit)
    return script_command("search_refusals", keys.refusals, arguments, read=read)


@encode.register
def _trim_ledger(command: commands.TrimLedger, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[int]) -> commands.Trimmed:
        records, unfolded, has_more, free_bytes = reply
        return commands.Trimmed(records, unfolded, bool(has_more), free_bytes)

    arguments = (
        microseconds(command.keep_charged_seconds),
        microseconds(command.keep_free_seconds),
        command.max_free_bytes,
        command.max_unfolded_bytes,
        command.limit,
        *(() if command.folded_to is None else _stream_id(command.folded_to)),
    )
    touched = [keys.totals_checkpoint, *keys.ledger_end("charged", "free")]
    return script_command("trim_ledger", touched, arguments, read=read, recalls=("trim",))


def _id_of(day: bytes, stream_id: bytes) -> str:
    """The id of the ledger of a day and an id in its stream; "" for none."""
    # As `_ledger_id`; a page has thousands.
    milliseconds, _, count = stream_id.partition(b"-")
    padded = b"%b/%b-%b" % (day, milliseconds.zfill(15), count.zfill(6))
    return padded.decode() if day else ""


def _day_of(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds // 1000, UTC):%Y-%m-%d}"


def _ledger_id(day: str, milliseconds: int, count: int) -> str:
    return f"{day}/{milliseconds:015}-{count:06}"


def ledger_id_of(milliseconds: int, count: int) -> str:
    """The id of the ledger of a stream's id; "" for none."""
    if not milliseconds and not count:
        return ""
    return _ledger_id(_day_of(milliseconds), milliseconds, count)


def _range_start(position: str) -> str:
    """The start for `XRANGE`: just after the position, or the start of the stream."""
    if not position:
        return "-"
    milliseconds, _, count = position.partition("-")
    return f"({int(milliseconds)}-{int(count or 0)}"


def _stream_id(ledger_id: str) -> tuple[int, int]:
    """Milliseconds and count of an id of the ledger; a whole day's are those of its start."""
    day, _, position = ledger_id.partition("/")
    if position:
        milliseconds, _, count = position.partition("-")
        return int(milliseconds), int(count or 0)
    if not day:
        return 0, 0
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1000, 0
