"""The books as they are at one moment, to compare them with the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from gateway.store.commands.running_totals import RunningTotal
from gateway.store.protocol import Command

MAX_WINDOWS: Final = 500
"""The most windows of one `ReadBooks`, so that it takes a few milliseconds."""


class WindowName(NamedTuple):
    """A window of a limit subject."""

    subject: str
    period: Literal["day", "week", "month", "concurrency"]
    label: str
    """As `calendar.Window` has it; empty for `concurrency`."""


class WindowAmounts(NamedTuple):
    """The counters of a window by unit, without those at zero."""

    spent: Mapping[str, int]
    reserved: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OpenPurchase:
    """An open journal, and where it has reserved."""

    purchase: str
    worker: str
    reserved_at: float
    """The store's time in Unix seconds; 0 if it is not known."""
    reserved: Mapping[WindowName, Mapping[str, int]] | None
    """Unit → amount by window; None if the journal cannot be read."""


@dataclass(frozen=True, slots=True)
class Books:
    """Everything at the same moment."""

    now: float
    """The store's time in Unix seconds."""
    ledger_end: str
    """The position of the last record that the ledger ever had; "" without one."""
    removed_to: str
    """The position of the last charged record that was removed; "" if none was."""
    free_removed_to: str
    """The same of the free records."""
    windows: Sequence[WindowAmounts]
    """In the order of the command; empty ones for windows that are not there."""
    totals: Sequence[RunningTotal]
    purchases: Sequence[OpenPurchase] | None
    """All open ones; None if there are more than `max_purchases`."""


@dataclass(frozen=True, slots=True)
class ReadBooks(Command[Books]):
    """Reads windows, running totals and open purchases in one step, with the end of the ledger.

    A settlement changes all of them in one step too. So the charged records up to `ledger_end` are
    exactly those that `spent` and the running totals have, and the open purchases are those that
    have `reserved`. At most `MAX_WINDOWS` windows.
    """

    windows: tuple[WindowName, ...] = ()
    totals: tuple[str, ...] = ()
    max_purchases: int = 0
