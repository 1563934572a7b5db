"""Journals: a purchase is reserved, received and settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.store.commands.counters import Consumption, CounterState
from gateway.store.protocol import Command

CLOSED_JOURNAL_SECONDS: Final = 7 * 86_400
"""How long a settled journal stays, so that a repeated settlement finds it."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """`denied` as in `Admission`; then nothing was reserved and there is no journal."""

    denied: int | None
    states: tuple[CounterState, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Reserve(Command[Reservation]):
    """Reserves every amount or none, and opens the purchase's journal in state `reserved`.

    A window refuses when spent + reserved + amount > maximum. Windows are those of this moment;
    the journal remembers them. A journal that exists already is left as it is and answered as
    reserved. `payload` is what the purchase needs to be finished by somebody else. A worker that
    reserves lives, whether it has ever beaten or not.
    """

    purchase: str
    worker: str
    consumptions: tuple[Consumption, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Receive(Command[Literal["received", "settled", "unknown"]]):
    """Moves a journal from `reserved` to `received` and replaces its payload.

    Answers the state the journal is in afterwards: `settled` (nothing changed) when somebody
    closed it meanwhile.
    """

    purchase: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """`settled`: by this verb. `already`: by an earlier one. `corrected`: see `Settle`."""

    status: Literal["settled", "already", "corrected", "unknown"]
    charged: Mapping[str, int]
    """Unit → what the journal stands charged with now."""
    presumed: bool
    """The charge is a presumption that a late answer may still correct."""
    states: tuple[CounterState, ...]
    """One for each take of the reservation, as it shows now (empty when unknown)."""


@dataclass(frozen=True, slots=True)
class Settle(Command[Settlement]):
    """Closes a journal: counters, ledger record and state in one step, exactly once.

    Reserved amounts are given back, `charge` (unit → amount) is added to spent in the windows
    of the reservation, `record` (None: no record) is appended to the ledger. On a journal that is
    closed nothing happens, except with `correct=True` on one closed as `presumed`: then the
    windows move by the difference, `record` is appended, and the charge is no longer presumed.
    Buckets are never given back. A purchase without a journal is closed all the same (`unknown`):
    a reservation that nobody waits for any more and that runs late then reserves nothing.
    """

    purchase: str
    charge: Mapping[str, int]
    record: bytes | None
    presumed: bool = False
    correct: bool = False


@dataclass(frozen=True, slots=True)
class Journal:
    """An open purchase."""

    purchase: str
    worker: str
    state: Literal["reserved", "received"]
    payload: bytes


@dataclass(frozen=True, slots=True)
class OpenJournals(Command[Sequence[Journal]]):
    """The open journals of a worker, or of all."""

    worker: str | None = None
