"""Records: small documents by space and name, without expiry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.store.protocol import Command

# ── records: small documents by space and name, never expiring ──────────────────────────────


@dataclass(frozen=True, slots=True)
class Get(Command[bytes | None]):
    """The record `name` of `space`; None if there is none.

    With `through`, `name` is looked up in that space first and what stands there is the name in
    `space`: one trip from a secret's hash to the key's record.
    """

    space: str
    name: str
    index: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One change of a `Put`: write `value` (None deletes) if the record now equals `expect`.

    `expect` None means: there must be no such record.
    """

    space: str
    name: str
    value: bytes | None
    expected: bytes | None


@dataclass(frozen=True, slots=True)
class CompareAndSet(Command[int | None]):
    """Makes all changes or none. Answers the index of the first whose `expect` did not hold."""

    changes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class ReadRecords(Command[Mapping[str, bytes]]):
    """All records of a space, by name."""

    space: str
