"""The ledger as JSON lines, for programs that keep their own copy of it.

A line is a record with its `position`, which is also where a later export continues. So a consumer
that remembers the last position it has stored gets every record at least once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import date
from typing import Final, NamedTuple

import orjson

from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import ReadBooks, ReadLedger
from gateway.store.protocol import Store
from gateway.stored import read_stored

PAGE_RECORDS: Final = 500

_POSITION: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:/(?:\d{15}-\d{6}|\d{16})?)?", re.ASCII)


class ForeignPosition(ValueError):
    """The position is of another store."""


class Page(NamedTuple):
    """Some records."""

    lines: bytes
    position: str
    """Of the last one."""
    unreadable: int
    """How many are left out."""


def parse_position(text: str) -> str:
    """A position of a record, or the start of a day. Raises `ValueError` with what was expected."""
    if not _POSITION.fullmatch(text) or not _is_day(text.partition("/")[0]):
        raise ValueError(
            "expected the position of an exported record, or a day such as 2026-11-28, but got "
            f"'{text[:100]}'"
        )
    return text if "/" in text else f"{text}/"


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


async def check_position(store: Store, after: str) -> str:
    """The position of the last charged record after `after` that was removed; "" if none was.

    Raises `ForeignPosition`, and `StoreUnavailable`.
    """
    books = await execute(store, ReadBooks())
    end, is_whole_day = books.ledger_end, after.endswith("/")
    if after and end and not is_whole_day and len(after) != len(end):
        raise ForeignPosition(
            f"The position '{after}' is of another kind of store; here they look like '{end}'."
        )
    return books.removed_to if books.removed_to > after else ""


async def read_pages(store: Store, after: str) -> AsyncIterator[Page]:
    """All records after a position. Raises `StoreUnavailable`. Memory is that of one page."""
    while found := await execute(store, ReadLedger(after, PAGE_RECORDS)):
        lines = [encode_line(position, data) for position, data in found]
        readable = [line for line in lines if line is not None]
        after = found[-1][0]
        yield Page(b"".join(readable), after, len(lines) - len(readable))
        await asyncio.sleep(0)


def encode_line(position: str, data: bytes) -> bytes | None:
    """A record's line; None for one that cannot be read.

    Fields of a newer gateway are in it too.
    """

    def encode(stored: bytes) -> bytes:
        known = Record.decode(stored).to_dict()
        line = {"position": position, **orjson.loads(stored), **known}
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    return read_stored("record", data, encode, name=position)
