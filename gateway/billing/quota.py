"""Quota: the limits of a key's requests and of its spending.

Two steps, each all or nothing on the store's clock: *admission* of every valid request, and
*reservation* before a purchase, which also opens the purchase's journal. A reservation is settled
exactly once. The journal's payload is opaque here; it is `purchasing.journal`.

The windows of day, week and month are kept for every key, its team and everyone, limited or not: a
limit that is set tomorrow also counts today's spending. The table of limits is `limits`; estimates
and charges are `billing.pricing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from gateway.billing.scopes import limit_subjects, running_totals
from gateway.errors import ErrorCode, LimitExceeded
from gateway.images import Amounts, LimitRefusal, Principal, Record
from gateway.limits import LIMITS, Limit
from gateway.store.batch import Batch, Result
from gateway.store.commands import (
    Admission,
    Admit,
    Consumption,
    Counter,
    CounterState,
    LostReservation,
    PeekCounters,
    Receive,
    Reservation,
    Reserve,
    Settle,
    Settlement,
)

SPACE: Final = "keys"
"""The store's space of key records, which an admission compares."""

UNRESERVED: Final = "unreserved"
"""The flag of a record whose reservation the store had lost."""

_SHOWN: Final = frozenset({"requests", "images", "tokens"})
"""The units whose limits show in headers."""


_IMAGE_RATES: Final = [
    limit for limit in LIMITS.values() if limit.unit == "images" and limit.period == "minute"
]


class LimitState(NamedTuple):
    """One limit of one scope, as its counter was last seen."""

    limit: Limit
    scope: str
    maximum: int
    counter: CounterState

    @property
    def remaining(self) -> int:
        """How much the counter still allows; never below 0."""
        return max(0, self.maximum - self.counter.used - self.counter.reserved)


class _Prepared(NamedTuple):
    """The commands of a principal. They stay the same until its key changes."""

    admit: Admit
    """Counts a request, and peeks at the limits that headers show."""
    admit_and_peek: Admit
    """The same, and peeks at the other limits too; those come last."""
    limits: tuple[tuple[Limit, int], ...]
    """With their maxima, in the order of the consumptions of `admit_and_peek`."""
    reserved: tuple[tuple[Limit, Counter], ...]
    """The counters that may deny a purchase, and the number of open ones."""
    subjects: tuple[str, ...]
    """Those in whose windows a purchase counts, with or without a limit."""


# ── commands ────────────────────────────────────────────────────────────────────────────────


def admit(batch: Batch, principal: Principal, *, peeks: bool = False) -> Result[Admission]:
    """Counts one valid request, if the key's record is still the one it was read from.

    With `peeks` the result shows every limit of the key, else those that headers show.
    """
    prepared = _prepared(principal)
    return batch.add(prepared.admit_and_peek if peeks else prepared.admit)


def image_rate(principal: Principal) -> Limit | None:
    """The limit that counts an image made without a purchase; None if the key does not have it."""
    return next((limit for limit in _IMAGE_RATES if limit.name in principal.limits), None)


def admit_image(batch: Batch, principal: Principal, limit: Limit) -> Result[Admission]:
    """Counts one image that is made without a purchase, if the key's record is still the same."""
    consumption = Consumption(_counter(principal, limit), 1)
    return batch.add(Admit(SPACE, principal.key_id, principal.record, (consumption,)))


def peek(batch: Batch, principal: Principal) -> Result[Sequence[CounterState]]:
    """Reads the counters of the key's limits without counting anything."""
    consumptions = _prepared(principal).admit_and_peek.consumptions
    return batch.add(PeekCounters(tuple(consumption.counter for consumption in consumptions)))


def reserve(
    batch: Batch,
    principal: Principal,
    purchase: str,
    *,
    worker: str,
    estimate: Amounts,
    payload: bytes,
) -> Result[Reservation]:
    """Reserves a purchase's estimate and opens its journal, or refuses."""
    return batch.add(
        Reserve(
            purchase,
            worker,
            _reserved_amounts(principal, estimate),
            payload,
            subjects=_prepared(principal).subjects,
            amounts=_by_unit(estimate),
        )
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
    attempt: str = "",
    presumed: bool = False,
    correct: bool = False,
) -> Result[Settlement]:
    """Closes a journal: counters, ledger record and state in one step, exactly once.

    A record is charged even if the store has lost the journal; it then has the flag `unreserved`.
    Without a record, nothing but an existing journal is settled.
    """
    if record is None:
        return batch.add(Settle(purchase, _by_unit(charge), None, presumed, correct, attempt))
    unreserved = record.but(flags=(*record.flags, UNRESERVED))
    subjects = limit_subjects(record.key_id, record.team)
    return batch.add(
        Settle(
            purchase,
            _by_unit(charge),
            record.encode(),
            presumed=presumed,
            correct=correct,
            attempt=attempt,
            lost=LostReservation(subjects, record.time, unreserved.encode()),
            totals=running_totals(record),
            saved_micros=record.saved_micros,
        )
    )


def _by_unit(amounts: Amounts) -> dict[str, int]:
    return {"images": amounts.images, "tokens": amounts.tokens, "usd_micros": amounts.usd_micros}


def _prepared(principal: Principal) -> _Prepared:
    known: _Prepared | None = principal.prepared.get("quota")
    if known is None:
        known = principal.prepared["quota"] = _prepare(principal)
    return known


def _prepare(principal: Principal) -> _Prepared:
    limits = [limit for limit in LIMITS.values() if limit.name in principal.limits]
    # Shown limits first, so that the states of `admit` are the first ones of `limits`.
    limits.sort(key=lambda limit: limit.unit not in _SHOWN)
    # An amount of 0 only peeks: an admission takes its one request from the buckets of requests.
    consumptions = tuple(
        Consumption(
            _counter(principal, limit), int(limit.at_admission and limit.period == "minute")
        )
        for limit in limits
    )
    shown = tuple(c for c in consumptions if c.counter.unit in _SHOWN)
    # Calendar windows count without a limit too, by subject. A bucket without one is not stored.
    reserved = [
        limit
        for limit in LIMITS.values()
        if not limit.at_admission and (limit.period == "concurrency" or limit in limits)
    ]
    return _Prepared(
        Admit(SPACE, principal.key_id, principal.record, shown),
        Admit(SPACE, principal.key_id, principal.record, consumptions),
        limits=tuple((limit, principal.limits[limit.name]) for limit in limits),
        reserved=tuple((limit, _counter(principal, limit)) for limit in reserved),
        subjects=limit_subjects(principal.key_id, principal.team),
    )


def _counter(principal: Principal, limit: Limit) -> Counter:
    maximum = principal.limits.get(limit.name)
    return Counter(f"key:{principal.key_id}", limit.unit, limit.period, maximum)


def _reserved_amounts(principal: Principal, estimate: Amounts) -> tuple[Consumption, ...]:
    amounts = {**_by_unit(estimate), "purchases": 1}
    return tuple(
        Consumption(counter, amounts[counter.unit]) for _, counter in _prepared(principal).reserved
    )


# ── states ──────────────────────────────────────────────────────────────────────────────────


def peeked_states(principal: Principal, states: Sequence[CounterState]) -> list[LimitState]:
    """The key's limits as `peek` read them."""
    return [
        LimitState(limit, "key", maximum, state)
        # An admission without `peeks` has the states of the first limits only.
        for (limit, maximum), state in zip(_prepared(principal).limits, states, strict=False)
    ]


def admission_states(principal: Principal, admission: Admission) -> list[LimitState]:
    """The key's limits as far as the admission read them."""
    return peeked_states(principal, admission.states)


def reservation_states(principal: Principal, states: Sequence[CounterState]) -> list[LimitState]:
    """The key's limits as a reservation or a settlement left them."""
    return [
        LimitState(limit, "key", counter.maximum, state)
        # A settlement of a purchase without a journal has no states.
        for (limit, counter), state in zip(_prepared(principal).reserved, states, strict=False)
        if counter.maximum is not None
    ]


def charged(settlement: Settlement) -> Amounts:
    """The charge of a closed journal."""
    return as_amounts(settlement.charged)


def as_amounts(by_unit: Mapping[str, int]) -> Amounts:
    """Amounts as the store's commands have them."""
    return Amounts(**{unit: by_unit.get(unit, 0) for unit in ("images", "tokens", "usd_micros")})


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def refuse_admission(principal: Principal, admission: Admission) -> LimitExceeded:
    """The error of a request that was not admitted."""
    index, prepared = admission.denied or 0, _prepared(principal)
    limit, _ = prepared.limits[index]
    consumption = prepared.admit_and_peek.consumptions[index]
    return _refusal(principal, limit, consumption, state=admission.states[index])


def refuse_image(principal: Principal, limit: Limit, admission: Admission) -> LimitExceeded:
    """The error of an image that was not admitted."""
    consumption = Consumption(_counter(principal, limit), 1)
    return _refusal(principal, limit, consumption, state=admission.states[0])


def refuse_reservation(
    principal: Principal, reservation: Reservation, estimate: Amounts, *, why: str | None
) -> LimitExceeded:
    """The error of a purchase that was not reserved; `why` explains a high estimate."""
    index = reservation.denied or 0
    limit, counter = _prepared(principal).reserved[index]
    consumption = _reserved_amounts(principal, estimate)[index]
    state = reservation.states[index]
    refused = _refusal(principal, limit, consumption, state=state, why=why)
    refused.refusal = LimitRefusal(
        principal.key_id,
        limit.name,
        counter.maximum or 0,
        amount=consumption.amount,
        used=state.used,
        reserved=state.reserved,
        resets_in=state.resets_in,
        retry_in=state.retry_in,
    )
    return refused


def refuse_alike(
    principal: Principal, refusal: LimitRefusal, estimate: Amounts, *, why: str | None
) -> LimitExceeded | None:
    """The error of a purchase that waited for another, which was refused; None if it may fit.

    It does not fit either if the same limit of the same key would have to hold as much.
    """
    limit = LIMITS.get(refusal.limit)
    is_current = principal.limits.get(refusal.limit) == refusal.maximum
    if limit is None or not is_current or principal.key_id != refusal.key_id:
        return None
    consumption = next(
        c
        for c, (row, _) in zip(
            _reserved_amounts(principal, estimate), _prepared(principal).reserved, strict=True
        )
        if row == limit
    )
    # When to come back depends on the amount, so a rate is the same for the same amount only.
    is_covered = consumption.amount == refusal.amount or (
        not limit.is_rate and consumption.amount > refusal.amount
    )
    if not is_covered:
        return None
    state = CounterState(refusal.used, refusal.reserved, refusal.resets_in, refusal.retry_in)
    return _refusal(principal, limit, consumption, state=state, why=why)


def _refusal(
    principal: Principal,
    limit: Limit,
    consumption: Consumption,
    *,
    state: CounterState,
    why: str | None = None,
) -> LimitExceeded:
    amount, maximum = consumption.amount, consumption.counter.maximum or 0
    message = (
        f"Limit {limit.name} of key '{principal.key_name}' reached: limit {_show(limit, maximum)}, "
        f"used {_show(limit, state.used)}, reserved {_show(limit, state.reserved)}."
    )
    if amount:
        because = f" ({why})" if why else ""
        message += f" This request needs up to {_show(limit, amount)}{because}."
    # SDKs retry every 429 twice unless a header forbids it. A retry before the reset cannot help.
    if not limit.is_rate:
        return LimitExceeded(
            f"{message} It resets in {go_duration(state.resets_in)}.",
            reason=limit.name,
            type=ErrorCode.INSUFFICIENT_QUOTA,
            code=ErrorCode.INSUFFICIENT_QUOTA,
            headers={"x-should-retry": "false"},
        )
    if amount > maximum:
        return LimitExceeded(
            f"{message} The request exceeds the limit; retrying cannot help.",
            reason=limit.name,
            type=limit.unit,
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            headers={"x-should-retry": "false"},
        )
    # A concurrency limit does not know when a purchase will end.
    wait = state.retry_in or 1.0
    return LimitExceeded(
        f"{message} Please try again in {go_duration(wait)}.",
        reason=limit.name,
        type=limit.unit,
        code=ErrorCode.RATE_LIMIT_EXCEEDED,
        headers={
            "Retry-After": str(math.ceil(wait)),
            "retry-after-ms": str(math.ceil(wait * 1000)),
        },
    )


def _show(limit: Limit, amount: int) -> str:
    return f"${show_usd(amount)}" if limit.unit == "usd_micros" else f"{amount:,}"


# ── headers ─────────────────────────────────────────────────────────────────────────────────


def rate_headers(states: Iterable[LimitState]) -> Mapping[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,images,tokens}`, the tightest of each unit."""
    tightest: dict[str, tuple[int, LimitState]] = {}
    for state in states:
        unit, remaining = state.limit.unit, state.remaining
        if unit in _SHOWN and (unit not in tightest or remaining <= tightest[unit][0]):
            tightest[unit] = remaining, state
    headers: dict[str, str] = {}
    for shown, (remaining, state) in tightest.items():
        headers[f"x-ratelimit-limit-{shown}"] = str(state.maximum)
        headers[f"x-ratelimit-remaining-{shown}"] = str(remaining)
        headers[f"x-ratelimit-reset-{shown}"] = go_duration(state.counter.resets_in)
    return headers


def show_usd(usd_micros: int) -> str:
    """Micro-dollars as dollars with six decimals, exactly: `0.166000`, `-0.000001`."""
    sign, amount = ("-", -usd_micros) if usd_micros < 0 else ("", usd_micros)
    return f"{sign}{amount // 1_000_000}.{amount % 1_000_000:06d}"


def go_duration(seconds: float) -> str:
    """As Go's `time.Duration.String()` shows it, to the millisecond: `1m30s`, `120ms`, `0s`.

    The grammar of the `x-ratelimit-reset-…` headers, see
    `docs/reference/images-api.md#headers-of-the-service`.
    """
    millis = max(0, math.ceil(seconds * 1000))
    if millis == 0:
        return "0s"
    if millis < 1000:
        return f"{millis}ms"
    minutes, millis = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{millis / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
