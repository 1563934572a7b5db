"""Quota: the limits of requests and of spending, of a key, its team and everyone.

Two steps, each all or nothing over the limit subjects on the store's clock: *admission* of every
valid request, and *reservation* before a purchase, which also opens the purchase's journal. A
reservation is settled exactly once. The journal's payload is opaque here; it is
`purchasing.journal`.

The windows of day, week and month and the open purchases are kept for every key, its team and
everyone, limited or not: a limit that is set tomorrow also counts today's spending.

The table of limits is `limits`. What a principal counts in is `billing.counted_limits`, the errors
are `billing.limit_refusals`, estimates and charges `billing.pricing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

from gateway.billing.counted_limits import (
    Counted,
    CountedLimits,
    LimitState,
    by_unit,
    prepared_limits,
    reserved_amounts,
)
from gateway.billing.running_totals import limit_subjects, running_totals
from gateway.images import Amounts, Principal, Record
from gateway.limits import LIMITS
from gateway.store.batch import Batch, Result
from gateway.store.commands import (
    Admission,
    Admit,
    Consumption,
    Counter,
    CounterState,
    Get,
    LostReservation,
    PeekCounters,
    Place,
    Receive,
    Reroute,
    Reservation,
    Reserve,
    Settle,
    Settlement,
)

UNRESERVED: Final = "unreserved"
"""The flag of a record whose reservation the store had lost."""

_UNRESERVED_START: Final = b'{"flags":["unreserved"],'
"""How a record begins with no other flag. The order of its members means nothing."""

SHADOW_LIMIT: Final = "shadow_limit"
"""The flag of a record that a limit would have refused if it were not in shadow mode."""

_place_of: Final = attrgetter("limit.name", "subject.name")
"""What distinguishes the `LimitState`s of a request."""


class AccountBudget(NamedTuple):
    """What an account at upstream may cost, for all keys together."""

    subject: str
    """`upstream:NAME`. Its windows count also without a maximum."""
    maxima: Mapping[str, int]
    """By the name of a limit of money, in micro-dollars."""

    @property
    def counters(self) -> tuple[Counter, ...]:
        """What may deny a purchase there."""
        return tuple(
            Counter(self.subject, LIMITS[name].unit, LIMITS[name].period, maximum)
            for name, maximum in self.maxima.items()
        )


# ── commands ────────────────────────────────────────────────────────────────────────────────


def admit(batch: Batch, principal: Principal, *, peeks: bool = False) -> Result[Admission]:
    """Counts one valid request, if the records that the principal was made of are still the same.

    With `peeks` the result shows every limit, else those that headers show.
    """
    prepared = prepared_limits(principal)
    return batch.add(prepared.admit_and_peek if peeks else prepared.admit)


def compare(batch: Batch, principal: Principal) -> Result[Admission]:
    """Compares the records that the principal was made of with the stored ones. Counts nothing."""
    return batch.add(Admit(principal.expected, ()))


def compared(principal: Principal) -> Sequence[Get]:
    """The reads of the records that the principal was made of, for `is_unchanged`."""
    return prepared_limits(principal).compared


def is_unchanged(principal: Principal, stored: Sequence[bytes | None]) -> bool:
    """Whether these are still the records that the principal was made of."""
    return [value or b"" for value in stored] == prepared_limits(principal).expected_values


def counts_requests(principal: Principal) -> bool:
    """Whether an admission takes anything from a counter, of a limit in shadow mode too."""
    return prepared_limits(principal).counts_requests


def subject_names(principal: Principal) -> frozenset[str]:
    """The names of those whose limits a request of the principal counts against."""
    return prepared_limits(principal).subject_names


def admit_image(batch: Batch, principal: Principal) -> Result[Admission] | None:
    """Counts one image that is made without a purchase, as `admit` does; None: it has no limit."""
    command = prepared_limits(principal).admit_image
    return None if command is None else batch.add(command)


def peek(batch: Batch, principal: Principal) -> Result[Sequence[CounterState]]:
    """Reads the counters of the limits without counting anything."""
    consumptions = prepared_limits(principal).admit_and_peek.consumptions
    return batch.add(PeekCounters(tuple(consumption.counter for consumption in consumptions)))


def reserve(
    batch: Batch,
    principal: Principal,
    purchase: str,
    *,
    worker: str,
    estimate: Amounts,
    payload: bytes,
    account: AccountBudget | None = None,
    place: Place | None = None,
) -> Result[Reservation]:
    """Reserves a purchase's estimate and opens its journal, or refuses.

    With `account` it counts against the budget of the account at upstream too.
    """
    counted = _counted_at(principal, estimate, account)
    return batch.add(Reserve(purchase, worker, payload=payload, place=place, **counted))


def reroute(
    batch: Batch,
    principal: Principal,
    purchase: str,
    *,
    worker: str,
    estimate: Amounts,
    payload: bytes,
    account: AccountBudget | None = None,
    place: Place | None = None,
) -> Result[Reservation]:
    """Moves an open reservation to another account, or leaves it as it is and refuses."""
    counted = _counted_at(principal, estimate, account)
    return batch.add(Reroute(purchase, worker, payload=payload, place=place, **counted))


def _counted_at(
    principal: Principal, estimate: Amounts, account: AccountBudget | None
) -> dict[str, Any]:
    """What a purchase counts in, besides its principal in the windows of its account."""
    amounts, subjects = by_unit(estimate), prepared_limits(principal).subjects
    consumptions = reserved_amounts(principal, estimate)
    if account is not None:
        subjects = (*subjects, account.subject)
        # After those of the principal, so that its own limits refuse first.
        consumptions += tuple(
            Consumption(counter, amounts[counter.unit]) for counter in account.counters
        )
    return {"consumptions": consumptions, "subjects": subjects, "amounts": amounts}


def is_refused_by_account(principal: Principal, reservation: Reservation) -> bool:
    """Whether the budget of an account at upstream denied it, and not a limit of the principal."""
    denied = reservation.denied
    return denied is not None and denied >= len(prepared_limits(principal).reserved.counted)


def is_refused_for_money(principal: Principal, reservation: Reservation) -> bool:
    """Whether a limit of the principal in dollars denied it: a smaller estimate may fit."""
    denied = reservation.denied
    if denied is None:
        return False
    counted = prepared_limits(principal).reserved.counted
    return denied < len(counted) and counted[denied].limit.is_money


def peek_budget(batch: Batch, account: AccountBudget) -> Result[Sequence[CounterState]]:
    """Reads the counters of an account's budget without counting anything."""
    return batch.add(PeekCounters(account.counters))


def is_over_budget(
    account: AccountBudget, states: Sequence[CounterState], estimate: Amounts
) -> bool:
    """Whether an account's budget, as `peek_budget` read it, would deny a purchase."""
    return any(
        state.used + state.reserved + estimate.usd_micros > maximum
        for maximum, state in zip(account.maxima.values(), states, strict=True)
    )


def receive(
    batch: Batch, purchase: str, payload: bytes
) -> Result[Literal["received", "settled", "unknown"]]:
    """Replaces the journal's payload once the images are stored; the result is its state."""
    return batch.add(Receive(purchase, payload))


def settle(
    batch: Batch,
    purchase: str,
    charge: Amounts,
    *,
    record: Record | None,
    encoded: bytes = b"",
    attempt: str = "",
    presumed: bool = False,
    correct: bool = False,
) -> Result[Settlement]:
    """Closes a journal: counters, ledger record and state in one step, exactly once.

    A record is charged even if the store has lost the journal; it then has the flag `unreserved`.
    Without a record, nothing but an existing journal is settled. `encoded` is `record.encode()` if
    the caller has it.
    """
    if record is None:
        return batch.add(Settle(purchase, by_unit(charge), None, presumed, correct, attempt))
    encoded, subjects = encoded or record.encode(), limit_subjects(record.key_id, record.team)
    return batch.add(
        Settle(
            purchase,
            by_unit(charge),
            encoded,
            presumed=presumed,
            correct=correct,
            attempt=attempt,
            lost=LostReservation(subjects, record.time, _unreserved(record, encoded)),
            totals=running_totals(record),
            saved_micros=record.saved_micros,
        )
    )


def _unreserved(record: Record, encoded: bytes) -> bytes:
    """The record with the flag `unreserved`, encoded; `encoded` is the record without it."""
    if record.flags:
        return record.but(flags=(*record.flags, UNRESERVED)).encode()
    # Nearly every record: it has no such member yet, and is not encoded a second time.
    return _UNRESERVED_START + encoded[1:]


# ── states ──────────────────────────────────────────────────────────────────────────────────


def peeked_states(principal: Principal, states: Sequence[CounterState]) -> list[LimitState]:
    """The limits as `peek` read them."""
    # An admission without `peeks` has the states of the first limits only.
    return prepared_limits(principal).admitted.states(states)


def admission_states(principal: Principal, admission: Admission) -> list[LimitState]:
    """The limits as far as the admission read them."""
    return peeked_states(principal, admission.states)


def reservation_states(principal: Principal, states: Sequence[CounterState]) -> list[LimitState]:
    """The limits as a reservation or a settlement left them."""
    # A settlement of a purchase without a journal has no states.
    return prepared_limits(principal).reserved.states(states)


def latest_states(
    before: Sequence[LimitState], after: Sequence[LimitState]
) -> Sequence[LimitState]:
    """The limits of `before`, each as it is in `after` if that has it."""
    if not after:
        return before
    newer = dict(zip(map(_place_of, after), after, strict=True))
    return list(map(newer.get, map(_place_of, before), before))


def shadowed_by_admission(principal: Principal, admission: Admission) -> list[LimitState]:
    """The limits that would have refused a request if they were not in shadow mode."""
    if not admission.exceeded:  # nearly always
        return []
    return _exceeded(prepared_limits(principal).admitted.counted, admission)


def shadowed_by_reservation(principal: Principal, reservation: Reservation) -> list[LimitState]:
    """The limits that would have refused a purchase if they were not in shadow mode."""
    if not reservation.exceeded:  # nearly always
        return []
    return _exceeded(prepared_limits(principal).reserved.counted, reservation)


def shadowed_by_image(principal: Principal, admission: Admission) -> list[LimitState]:
    """The same for an image that is made without a purchase."""
    return _exceeded(prepared_limits(principal).images, admission)


def flag_shadowed(record: Record, shadowed: Sequence[LimitState]) -> Record:
    """The record with the flag of limits in shadow mode, if there are any."""
    if not shadowed or SHADOW_LIMIT in record.flags:
        return record
    return record.but(flags=(*record.flags, SHADOW_LIMIT))


def _exceeded(counted: Sequence[Counted], result: Admission | Reservation) -> list[LimitState]:
    exceeded = result.exceeded
    limits = CountedLimits.of(counted[i] for i in exceeded)
    return limits.states([result.states[i] for i in exceeded])


def charged(settlement: Settlement) -> Amounts:
    """The charge of a closed journal."""
    return as_amounts(settlement.charged)


def as_amounts(by_unit: Mapping[str, int]) -> Amounts:
    """Amounts as the store's commands have them."""
    return Amounts(**{unit: by_unit.get(unit, 0) for unit in ("images", "tokens", "usd_micros")})
