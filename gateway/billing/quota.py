"""Quota: what a key may ask, and what it may spend.

Two steps, each all or nothing on the store's clock: *admission* of every valid request, and
*reservation* before a purchase, which also opens the purchase's journal. What was reserved is
settled exactly once. The journal carries a payload that is opaque here; it is `purchase.py`'s.

Counters of days and months are kept for every key, limited or not, so that a limit that is set
tomorrow knows what was spent today.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from gateway.errors import LimitExceeded
from gateway.images import Amounts, LimitSubject
from gateway.limits import LIMITS, Limit
from gateway.store.batch import Batch, Result
from gateway.store.commands import (
    Admission,
    Admit,
    Consumption,
    Counter,
    CounterState,
    PeekCounters,
    Receive,
    Reservation,
    Reserve,
    Settle,
    Settlement,
)

SPACE: Final = "keys"
"""The store's space of key records, which an admission compares."""

RATE_LIMIT: Final = "rate_limit_exceeded"
BUDGET: Final = "insufficient_quota"

_SHOWN: Final = frozenset({"requests", "images", "tokens"})
"""The units whose limits show in headers."""

_LIMIT_OF: Final = {(limit.unit, limit.period): limit for limit in LIMITS.values()}


class LimitState(NamedTuple):
    """One limit of one scope, as it showed when it was last looked at."""

    limit: Limit
    scope: str
    maximum: int
    counter: CounterState

    @property
    def remaining(self) -> int:
        """What could still be taken; never below 0."""
        return max(0, self.maximum - self.counter.used - self.counter.reserved)


class _Prepared(NamedTuple):
    """What every request of an account asks, made once: it is the same until its key changes."""

    admit: Admit
    """Counts a request, and looks at the limits that headers show."""
    peek: Admit
    """The same, and looks at the others as well; they come last."""
    limits: tuple[tuple[Limit, int], ...]
    """With their maxima, in the order of the survey's takes."""
    reserved: tuple[tuple[Limit, Counter], ...]
    """What a purchase reserves from: also windows without a limit."""


def admit(batch: Batch, subject: LimitSubject, *, peeks: bool = False) -> Result[Admission]:
    """Counts one valid request, if the key's record is still the one it was read from.

    With `surveys` its answer shows every limit of the key, else those that headers show.
    """
    prepared = _prepared(subject)
    return batch.add(prepared.peek if peeks else prepared.admit)


def peek(batch: Batch, subject: LimitSubject) -> Result[Sequence[CounterState]]:
    """What the key's limits show, counting nothing: for answers that come before an admission."""
    return batch.add(
        PeekCounters(tuple(take.counter for take in _prepared(subject).peek.consumptions))
    )


def peeked_states(subject: LimitSubject, states: Sequence[CounterState]) -> list[LimitState]:
    """The key's limits as a look saw them, or the first of them as an admission did."""
    return [
        LimitState(limit, "key", maximum, state)
        for (limit, maximum), state in zip(_prepared(subject).limits, states, strict=False)
    ]


def reserve(
    batch: Batch,
    subject: LimitSubject,
    purchase: str,
    *,
    worker: str,
    estimate: Amounts,
    payload: bytes,
) -> Result[Reservation]:
    """Reserves the most that a purchase can cost and opens its journal, or refuses."""
    return batch.add(Reserve(purchase, worker, _reservation_takes(subject, estimate), payload))


def receive(
    batch: Batch, purchase: str, payload: bytes
) -> Result[Literal["received", "settled", "unknown"]]:
    """Notes in the journal what arrived; answers the state the journal is in."""
    return batch.add(Receive(purchase, payload))


def settle(
    batch: Batch,
    purchase: str,
    charge: Amounts,
    *,
    record: bytes | None,
    presumed: bool = False,
    correct: bool = False,
) -> Result[Settlement]:
    """Closes a journal: counters, ledger record and state in one step, exactly once."""
    amounts = {"images": charge.images, "tokens": charge.tokens, "usd_micros": charge.usd_micros}
    return batch.add(Settle(purchase, amounts, record, presumed=presumed, correct=correct))


def charged(settlement: Settlement) -> Amounts:
    """What a journal stands charged with."""
    return Amounts(
        **{unit: settlement.charged.get(unit, 0) for unit in ("images", "tokens", "usd_micros")}
    )


def admission_states(subject: LimitSubject, admission: Admission) -> list[LimitState]:
    """The key's limits as far as the admission saw them."""
    return peeked_states(subject, admission.states)


def reservation_states(subject: LimitSubject, states: Sequence[CounterState]) -> list[LimitState]:
    """The key's limits as a reservation or a settlement left them."""
    return [
        LimitState(limit, "key", counter.maximum, state)
        for (limit, counter), state in zip(_prepared(subject).reserved, states, strict=False)
        if counter.maximum is not None
    ]


def refuse_admission(subject: LimitSubject, admission: Admission) -> LimitExceeded:
    """The answer to a request that was not admitted."""
    take = _prepared(subject).peek.consumptions[admission.denied or 0]
    return _refusal(subject, take, admission.states[admission.denied or 0], why=None)


def refuse_reservation(
    subject: LimitSubject, reservation: Reservation, estimate: Amounts, *, why: str | None
) -> LimitExceeded:
    """The answer to a purchase that was not reserved; `why` says what made it dear."""
    index = reservation.denied or 0
    return _refusal(
        subject, _reservation_takes(subject, estimate)[index], reservation.states[index], why=why
    )


def _scope(subject: LimitSubject) -> str:
    return f"key:{subject.key_id}"


def _meter(subject: LimitSubject, limit: Limit) -> Counter:
    return Counter(_scope(subject), limit.unit, limit.period, subject.limits.get(limit.name))


def _prepared(subject: LimitSubject) -> _Prepared:
    known: _Prepared | None = subject.prepared.get("quota")
    if known is None:
        known = subject.prepared["quota"] = _prepare(subject)
    return known


def _prepare(subject: LimitSubject) -> _Prepared:
    """An admission takes one request from the buckets, and looks at the other limits there are.

    A purchase reserves from all windows, and from the other buckets that are limited.
    """
    limits = [limit for limit in LIMITS.values() if limit.name in subject.limits]
    limits.sort(key=lambda limit: limit.unit not in _SHOWN)
    consumptions = tuple(
        Consumption(_meter(subject, limit), int(limit.at_admission)) for limit in limits
    )
    shown = tuple(take for take in consumptions if take.counter.unit in _SHOWN)
    reserved = [
        limit
        for limit in LIMITS.values()
        if not limit.at_admission and (limit.period != "minute" or limit in limits)
    ]
    return _Prepared(
        Admit(SPACE, subject.key_id, subject.record, shown),
        Admit(SPACE, subject.key_id, subject.record, consumptions),
        limits=tuple((limit, subject.limits[limit.name]) for limit in limits),
        reserved=tuple((limit, _meter(subject, limit)) for limit in reserved),
    )


def _reservation_takes(subject: LimitSubject, estimate: Amounts) -> tuple[Consumption, ...]:
    amounts = {
        "images": estimate.images,
        "tokens": estimate.tokens,
        "usd_micros": estimate.usd_micros,
        "purchases": 1,
    }
    return tuple(
        Consumption(counter, amounts[counter.unit]) for _, counter in _prepared(subject).reserved
    )


def _refusal(
    subject: LimitSubject, take: Consumption, state: CounterState, *, why: str | None
) -> LimitExceeded:
    limit = _LIMIT_OF[take.counter.unit, take.counter.period]
    maximum = take.counter.maximum or 0
    asked = f" This request needs up to {_show(limit, take.amount)}" if take.amount else ""
    because = f" ({why})." if asked and why else "." if asked else ""
    message = (
        f"Limit {limit.name} of key '{subject.key_name}' reached: limit {_show(limit, maximum)}, "
        f"used {_show(limit, state.used)}, reserved {_show(limit, state.reserved)}."
        f"{asked}{because}"
    )
    if limit.is_rate:
        return _rate_refusal(limit, message, state, is_hopeless=take.amount > maximum)
    return LimitExceeded(
        f"{message} It resets in {go_duration(state.resets_in)}.",
        reason=limit.name,
        type=BUDGET,
        code=BUDGET,
        headers={"x-should-retry": "false"},
    )


def _rate_refusal(
    limit: Limit, message: str, state: CounterState, *, is_hopeless: bool
) -> LimitExceeded:
    """A rate asks to come back, unless the request is larger than the limit will ever hold."""
    if is_hopeless:
        return LimitExceeded(
            f"{message} It can never hold that much.",
            reason=limit.name,
            type=limit.unit,
            code=RATE_LIMIT,
            headers={"x-should-retry": "false"},
        )
    wait = state.retry_in or 1.0
    return LimitExceeded(
        f"{message} Please try again in {go_duration(wait)}.",
        reason=limit.name,
        type=limit.unit,
        code=RATE_LIMIT,
        headers={
            "Retry-After": str(math.ceil(wait)),
            "retry-after-ms": str(math.ceil(wait * 1000)),
        },
    )


def _show(limit: Limit, amount: int) -> str:
    return f"${show_usd(amount)}" if limit.unit == "usd_micros" else f"{amount:,}"


def rate_headers(states: Iterable[LimitState]) -> Mapping[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,images,tokens}`, the tightest of each unit."""
    tightest: dict[str, tuple[int, LimitState]] = {}
    for state in states:
        unit, remaining = state.limit.unit, state.remaining
        if unit in _SHOWN and (unit not in tightest or remaining <= tightest[unit][0]):
            tightest[unit] = remaining, state
    headers: dict[str, str] = {}
    for unit, (remaining, state) in tightest.items():
        headers[f"x-ratelimit-limit-{unit}"] = str(state.maximum)
        headers[f"x-ratelimit-remaining-{unit}"] = str(remaining)
        headers[f"x-ratelimit-reset-{unit}"] = go_duration(state.counter.resets_in)
    return headers


def show_usd(micros: int) -> str:
    """Micro-dollars as dollars with six decimals, exactly: `0.166000`, `-0.000001`."""
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    return f"{sign}{micros // 1_000_000}.{micros % 1_000_000:06d}"


def go_duration(seconds: float) -> str:
    """As Go's `time.Duration.String()` shows it, to the millisecond: `1m30s`, `120ms`, `0s`.

    WIRE §3: the grammar of the `x-ratelimit-reset-…` headers.
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
