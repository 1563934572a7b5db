"""The commands of `commands.ledger` for Redis."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store import commands
from gateway.store.redis.commands.call import Call, _call, _nothing, call_for
from gateway.store.redis.keys import Keys


@call_for.register
def _append(command: commands.Append, keys: Keys) -> Call:
    return _call("append", [keys.books], [command.batch_id, *command.records], read=_nothing)


@call_for.register
def _read_ledger(command: commands.ReadLedger, keys: Keys) -> Call:
    def read(reply: Sequence[bytes]) -> Sequence[tuple[str, bytes]]:
        fields = iter(reply)
        triples = zip(*[fields] * 3, strict=True)
        return [(_ledger_id(day, place), record) for day, place, record in triples]

    day, _, position = command.after.partition("/")
    arguments = (day, _stream_place(position), command.limit)
    return _call("read_ledger", [keys.books], arguments, read=read)


def _ledger_id(day: bytes, place: bytes) -> str:
    """`<yyyy-mm-dd>/<milliseconds>-<count>`, the count padded so that ids sort as text."""
    milliseconds, count = place.split(b"-")
    return f"{day.decode()}/{int(milliseconds):015}-{int(count):06}"


def _stream_place(position: str) -> str:
    """Where a day's stream is read from: behind that position, or from its start."""
    if not position:
        return "-"
    milliseconds, _, count = position.partition("-")
    return f"({int(milliseconds)}-{int(count or 0)}"
