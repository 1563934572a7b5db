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
class ReadRecords(Command[Mapping[str, bytes]]):
    """All records of a space, by name."""

    space: str
