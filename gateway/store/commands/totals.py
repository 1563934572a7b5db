"""Totals: sums of ledger records, and how far the ledger is folded into them.

A *period* is a stretch of the calendar whose rows are stored, read and removed together: a day of
rows of quarter hours, a month of rows of days. A *row* is a set of dimensions, as text that the
store does not read; it has sums for each *slot* of its period that has any. What the dimensions
are, and which calendar, is `billing.totals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from gateway.store.protocol import Command

MAX_INCREMENTS: Final = 250
"""The most increments of one `FoldTotals`, so that it takes a few milliseconds."""

MAX_GROUP_ROWS: Final = 1000
"""The most rows of one group in one period; the increments of further ones go to `other`."""

TotalsKind = Literal["quarter", "day", "user"]
"""Rows of quarter hours, of days, and of users by day. Each kind has its own time to live."""


Slots = Mapping[int, Mapping[str, int]]
"""Sums of a row by slot."""


class Period(NamedTuple):
    """A period, by the name that the store gives its rows."""

    kind: TotalsKind
    name: str
    """Unique over all kinds."""
    ends_at: float
    """Unix seconds; the period is kept for some time after it."""


@dataclass(frozen=True, slots=True)
class Increment:
    """Amounts to add to one slot of a row. A period has one `Period`, whatever the increment."""

    period: Period
    slot: int
    group: str
    """Whose rows are bounded together: a key."""
    row: str
    other: str
    """The row to add to instead if `row` is new and its group has `MAX_GROUP_ROWS`."""
    sums: Mapping[str, int]
    """Names of small letters and `_`."""


@dataclass(frozen=True, slots=True)
class FoldTotals(Command[bool]):
    """Adds increments and moves the checkpoint, in one step. At most `MAX_INCREMENTS`.

    False, and no change, if the checkpoint is not `expected`. So a command that is repeated, or
    that two workers send for the same records, adds them once.
    """

    expected: str
    """The position of the last record in the totals; "" at first."""
    checkpoint: str
    increments: tuple[Increment, ...]


@dataclass(frozen=True, slots=True)
class TotalsState:
    """The checkpoint, and the groups that have `MAX_GROUP_ROWS`, by the period's name."""

    checkpoint: str
    full_groups: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class ReadTotalsState(Command[TotalsState]):
    """Reads the checkpoint and the full groups of some periods. A group stays full."""

    periods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TotalsPage:
    """Some rows of a period. They contain the records up to `checkpoint`, and no others."""

    checkpoint: str
    rows: Iterable[tuple[str, Slots]]
    """A row may be on several pages. Can be read once: a row may be decoded while it is read,
    because a whole page would block the event loop for too long."""
    after: str | None
    """The next page; None on the last one."""


@dataclass(frozen=True, slots=True)
class ReadTotals(Command[TotalsPage]):
    """About `limit` rows of a period, from the page `after` ("": the first).

    A row that exists from the first page to the last is on at least one of them.
    """

    period: str
    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class RemoveTotals(Command[bool]):
    """Removes some of the oldest rows of a kind whose period ended `keep_seconds` ago.

    Whether there may be more. `limit` bounds the work: rows, or periods where the store frees a
    period at once.
    """

    kind: TotalsKind
    keep_seconds: float
    limit: int = 1000
