"""Records: small documents by space and name, without expiry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.store.protocol import Command


@dataclass(frozen=True, slots=True)
class Get(Command[bytes | None]):
    """The record `name` of `space`; None if there is none.

    With `index`, a space whose values are names, `name` is first looked up there and its value is
    the name in `space`: one round trip from a secret's hash to the key's record.
    """

    space: str
    name: str
    index: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a `CompareAndSet`: sets `value` (None deletes) if the record is `expected`.

    `expected` None: there must be no such record.
    """

    space: str
    name: str
    value: bytes | None
    expected: bytes | None


@dataclass(frozen=True, slots=True)
class CompareAndSet(Command[int | None]):
    """Makes all writes or none. Returns the index of the first one whose `expected` differs."""

    changes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class RecordsPage:
    """Some records of a space, by name."""

    records: Mapping[str, bytes]
    after: str | None
    """The cursor for the next `ScanRecords`; None on the last page."""


@dataclass(frozen=True, slots=True)
class ScanRecords(Command[RecordsPage]):
    """About `limit` records of a space from the cursor `after` ("": the start), in any order.

    Records that exist from the first page to the last are on at least one page.
    """

    space: str
    after: str = ""
    limit: int = 200
