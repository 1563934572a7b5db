"""The ledger: records in the order in which they were appended, by UTC day.

A record is charged or free. A charged one belongs to a settlement or a correction that moved money,
images or tokens; all others are free. Both kinds are read as one ledger, and each has its own
retention.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.store.protocol import Command

WRITER_SECONDS: Final = 86_400
"""How long the store knows a writer after its last append."""

RECORD_OVERHEAD_BYTES: Final = 64
"""What a free record counts beyond its own bytes. Measured: what both stores need at most for a
record of 200 bytes or more."""

MAX_REFUSAL_REASONS: Final = 20
"""Of a key in a minute; further reasons share one record. A client chooses its errors."""

MINUTE_SECONDS: Final = 60
"""How long refusals share a record. By the store's clock, so it is the same minute for all."""

LEDGER_END: Final = "9999-12-31/"
"""A position after all others."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """How many refusals of a key had one reason since the writer's last append."""

    key: str
    reason: str
    count: int
    record: bytes
    """The record of the first one up to its count: the store adds the digits and `}`."""
    other: bytes
    """The same without a reason, in case the key has too many reasons in this minute."""


@dataclass(frozen=True, slots=True)
class Append(Command[bool]):
    """Appends free records, and adds refusals to the counts of the current minute.

    Exactly once, however late it is repeated: a writer numbers its appends from 1, repeats each
    until its result is known, and only then executes the next. The store knows the last number of
    each writer, and ignores a number that is not higher.

    Number 1 makes the writer known. False, and nothing was appended: a higher number of a writer
    that the store does not know, because its last append is more than `WRITER_SECONDS` ago.
    """

    records: tuple[bytes, ...]
    refusals: tuple[Refusals, ...] = ()
    writer: str = field(default_factory=lambda: secrets.token_hex(12))
    number: int = 1
    saved: Mapping[str, int] = field(default_factory=dict)
    """Running total → micro-dollars that the records' images had cost, added in the same step."""


@dataclass(frozen=True, slots=True)
class AppendRefusals(Command[int]):
    """Appends a record for each count of refusals whose minute is over, up to `limit` of them.

    Returns how many. The counts are gone in the same step. `ends_minute`: the current minute counts
    as over too.
    """

    limit: int
    ends_minute: bool = False


@dataclass(frozen=True, slots=True)
class ReadLedger(Command[Sequence[tuple[str, bytes]]]):
    """Up to `limit` pairs of id and record after the id `after` ("": from the start).

    Oldest first. Ids, `<yyyy-mm-dd>/<position>`, grow as strings; `<yyyy-mm-dd>/` comes before all
    ids of its day. The record of an id may be gone. `charged_only` leaves out the free records.
    """

    after: str = ""
    limit: int = 1000
    charged_only: bool = False


@dataclass(frozen=True, slots=True)
class ReadLedgerBack(Command[Sequence[tuple[str, bytes]]]):
    """Up to `limit` pairs of id and record before the id `before` ("": from the end).

    The newest first. As for `ReadLedger`, `<yyyy-mm-dd>/` comes before all ids of its day.
    """

    before: str = ""
    limit: int = 200


@dataclass(frozen=True, slots=True)
class LedgerMatches:
    """What a `SearchLedger` found."""

    records: Sequence[tuple[str, bytes]]
    """Pairs of id and record."""
    scanned: int
    next: str
    """The id after which to go on; "" at the end of the span."""


@dataclass(frozen=True, slots=True)
class SearchLedger(Command[LedgerMatches]):
    """The records of one kind that contain a text, among the next `limit` of a span of time.

    The span has the records that were appended from `begin` to `end` (the store's Unix seconds),
    and of them those after the id `after`. Oldest first.
    """

    text: bytes
    begin: float
    end: float
    is_charged: bool
    after: str = ""
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class SearchRefusals(Command[Sequence[bytes]]):
    """The records, with their counts, of refusals of minutes that are not over, with a text.

    Of `limit` kinds of refusals at most, which are those of all keys in a minute.
    """

    text: bytes
    limit: int = 10_000


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a `TrimLedger` removed."""

    records: int
    unfolded: int
    """Of the records: those after `folded_to`."""
    has_more: bool
    """The limit was reached; there may be more to remove."""
    free_bytes: int
    """Of the free records that are left, each with `RECORD_OVERHEAD_BYTES`."""


@dataclass(frozen=True, slots=True)
class TrimLedger(Command[Trimmed]):
    """Removes up to `limit` records that are past their retention, the oldest first.

    Charged records go after `keep_charged_seconds`. Free ones go after `keep_free_seconds`, and
    while all of them together have more than `max_free_bytes`. A record after `folded_to` is only
    removed if it is free and the free ones have more than `max_unfolded_bytes`. The
    default of `folded_to` is the checkpoint of the totals.

    A day whose records are all to be removed may go at once, beyond the limit, if that takes no
    longer. Works in a full store.
    """

    keep_charged_seconds: float
    keep_free_seconds: float
    max_free_bytes: int
    max_unfolded_bytes: int
    folded_to: str | None = None
    limit: int = 1000
