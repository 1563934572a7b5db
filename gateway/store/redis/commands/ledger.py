"""Encoders of `commands.ledger`.

An id of the ledger is `<yyyy-mm-dd>/<milliseconds>-<count>`: the day, and the id in the day's
stream, padded so that ids sort as text.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    Argument,
    RedisCommand,
    encode,
    no_result,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _append(command: commands.Append, keys: Keys) -> RedisCommand:
    arguments: list[Argument] = [
        command.batch_id,
        orjson.dumps(dict(command.saved)),
        *command.records,
    ]
    return script_command("append", [keys.books], arguments, read=no_result)


@encode.register
def _read_ledger(command: commands.ReadLedger, keys: Keys) -> RedisCommand:
    def read(reply: Sequence[bytes]) -> Sequence[tuple[str, bytes]]:
        fields = iter(reply)
        triples = zip(*[fields] * 3, strict=True)
        return [(_ledger_id(day, stream_id), record) for day, stream_id, record in triples]

    day, _, position = command.after.partition("/")
    arguments = (day, _range_start(position), command.limit)
    return script_command("read_ledger", [keys.books], arguments, read=read)


def _ledger_id(day: bytes, stream_id: bytes) -> str:
    milliseconds, count = stream_id.split(b"-")
    return f"{day.decode()}/{int(milliseconds):015}-{int(count):06}"


def _range_start(position: str) -> str:
    """The start for `XRANGE`: just after the position, or the start of the stream."""
    if not position:
        return "-"
    milliseconds, _, count = position.partition("-")
    return f"({int(milliseconds)}-{int(count or 0)}"
