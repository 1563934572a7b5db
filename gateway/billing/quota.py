"""Quota: the limits of requests and of spending, of a key, its team and everyone.

Two steps, each all or nothing over the limit subjects on the store's clock: *admission* of every
valid request, and *reservation* before a purchase, which also opens the purchase's journal. A
reservation is settled exactly once. The journal's payload is opaque here; it is
`purchasing.journal`.

The windows of day, week and month and the open purchases are kept for every key, its team and
everyone, limited or not: a limit that is set tomorrow also counts today's spending.

The table of limits is `limits`; estimates and charges are `billing.pricing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress, repeat
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

from gateway.billing.running_totals import limit_subjects, running_totals
from gateway.errors import ErrorCode, LimitExceeded
from gateway.images import Amounts, LimitRefusal, LimitRule, LimitSubject, Principal, Record
from gateway.limits import LIMITS, Limit
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

_SHOWN: Final = frozenset({"requests", "images", "tokens"})
"""The units whose limits show in headers."""

_new_tuple: Final = tuple.__new__  # half the time of the class of a named tuple

_IMAGE_RATES: Final = [
    limit for limit in LIMITS.values() if limit.unit == "images" and limit.period == "minute"
]


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


class LimitState(NamedTuple):
    """One limit of one limit subject, as its counter was last seen."""

    limit: Limit
    subject: LimitSubject
    rule: LimitRule
    counter: CounterState

    @property
    def scope(self) -> str:
        """Whose limit it is: `key:NAME`, `team:NAME` or `everyone`."""
        return self.subject.scope

    @property
    def maximum(self) -> int:
        """How much the limit allows."""
        return self.rule.maximum

    @property
    def is_enforced(self) -> bool:
        """Whether it refuses; a limit in shadow mode only counts."""
        return self.rule.mode == "enforce"

    @property
    def remaining(self) -> int:
        """How much the counter still allows; never below 0."""
        return max(0, self.maximum - self.counter.used - self.counter.reserved)


_place_of: Final = attrgetter("limit.name", "subject.name")
"""What distinguishes the `LimitState`s of a request."""


class _Counted(NamedTuple):
    """What a request or a purchase counts in: one limit of one limit subject."""

    limit: Limit
    subject: LimitSubject
    rule: LimitRule | None
    """None: it is counted without a limit."""
    counter: Counter
    is_shadow: bool
    """The limit is in shadow mode."""

    @staticmethod
    def of(limit: Limit, subject: LimitSubject, rule: LimitRule | None) -> _Counted:
        maximum = rule.maximum if rule is not None else None
        counter = Counter(subject.name, limit.unit, limit.period, maximum)
        return _Counted(limit, subject, rule, counter, rule is not None and rule.mode == "shadow")

    def consumption(self, amount: int) -> Consumption:
        return Consumption(self.counter, amount, self.is_shadow)


class _CountedLimits(NamedTuple):
    """Limits in the order of a command's counters, and what is made of them by columns.

    Every purchase makes two lists of states and one of consumptions: built by columns, without
    Python code, they take a fifth of the time.
    """

    counted: tuple[_Counted, ...]
    counters: tuple[Counter, ...]
    units: tuple[str, ...]
    are_shadows: tuple[bool, ...]
    have_rules: tuple[bool, ...]
    """Which of them limit anything. Only those have states, in which come the next three."""
    limits: tuple[Limit, ...]
    subjects: tuple[LimitSubject, ...]
    rules: tuple[LimitRule, ...]

    @staticmethod
    def of(counted: Iterable[_Counted]) -> _CountedLimits:
        counted = tuple(counted)
        return _CountedLimits(
            counted,
            tuple(one.counter for one in counted),
            tuple(one.counter.unit for one in counted),
            tuple(one.is_shadow for one in counted),
            tuple(one.rule is not None for one in counted),
            tuple(one.limit for one in counted if one.rule is not None),
            tuple(one.subject for one in counted if one.rule is not None),
            tuple(one.rule for one in counted if one.rule is not None),
        )

    def consumptions(self, amounts: Mapping[str, int]) -> tuple[Consumption, ...]:
        """Takes the amount of its unit from each counter."""
        taken = zip(
            self.counters, map(amounts.__getitem__, self.units), self.are_shadows, strict=True
        )
        return tuple(map(_new_tuple, repeat(Consumption), taken))

    def states(self, states: Sequence[CounterState]) -> list[LimitState]:
        """The limits as their counters were; of the first ones, if there are no more states."""
        limited = compress(states, self.have_rules)
        fields = zip(self.limits, self.subjects, self.rules, limited, strict=False)
        return list(map(_new_tuple, repeat(LimitState), fields))


class _Prepared(NamedTuple):
    """The commands of a principal. They stay the same until its key changes."""

    admit: Admit
    """Counts a request, and peeks at the limits that headers show."""
    admit_and_peek: Admit
    """The same, and peeks at the other limits too; those come last."""
    admit_image: Admit | None
    """Counts an image that is made without a purchase; None if no limit counts it."""
    admitted: _CountedLimits
    """In the order of the consumptions of `admit_and_peek`."""
    images: tuple[_Counted, ...]
    """In the order of the consumptions of `admit_image`."""
    reserved: _CountedLimits
    """The counters that may deny a purchase, and the numbers of open ones."""
    subjects: tuple[str, ...]
    """The names of those in whose windows a purchase counts, with or without a limit."""
    subject_names: frozenset[str]
    compared: tuple[Get, ...]
    """The reads of the records that an admission compares."""
    expected_values: list[bytes]
    """What these reads return while the records are the same; b"" for one that is not there."""
    counts_requests: bool
    """Whether `admit` takes anything from a counter."""


# ── commands ────────────────────────────────────────────────────────────────────────────────


def admit(batch: Batch, principal: Principal, *, peeks: bool = False) -> Result[Admission]:
    """Counts one valid request, if the records that the principal was made of are still the same.

    With `peeks` the result shows every limit, else those that headers show.
    """
    prepared = _prepared(principal)
    return batch.add(prepared.admit_and_peek if peeks else prepared.admit)


def compare(batch: Batch, principal: Principal) -> Result[Admission]:
    """Compares the records that the principal was made of with the stored ones. Counts nothing."""
    return batch.add(Admit(principal.expected, ()))


def compared(principal: Principal) -> Sequence[Get]:
    """The reads of the records that the principal was made of, for `is_unchanged`."""
    return _prepared(principal).compared


def is_unchanged(principal: Principal, stored: Sequence[bytes | None]) -> bool:
    """Whether these are still the records that the principal was made of."""
    return [value or b"" for value in stored] == _prepared(principal).expected_values


def counts_requests(principal: Principal) -> bool:
    """Whether an admission takes anything from a counter, of a limit in shadow mode too."""
    return _prepared(principal).counts_requests


def subject_names(principal: Principal) -> frozenset[str]:
    """The names of those whose limits a request of the principal counts against."""
    return _prepared(principal).subject_names


def admit_image(batch: Batch, principal: Principal) -> Result[Admission] | None:
    """Counts one image that is made without a purchase, as `admit` does; None: it has no limit."""
    command = _prepared(principal).admit_image
    return None if command is None else batch.add(command)


def peek(batch: Batch, principal: Principal) -> Result[Sequence[CounterState]]:
    """Reads the counters of the limits without counting anything."""
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
    amounts, subjects = _by_unit(estimate), _prepared(principal).subjects
    consumptions = _reserved_amounts(principal, estimate)
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
    return denied is not None and denied >= len(_prepared(principal).reserved.counted)


def is_refused_for_money(principal: Principal, reservation: Reservation) -> bool:
    """Whether a limit of the principal in dollars denied it: a smaller estimate may fit."""
    denied = reservation.denied
    if denied is None:
        return False
    counted = _prepared(principal).reserved.counted
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
        return batch.add(Settle(purchase, _by_unit(charge), None, presumed, correct, attempt))
    encoded, subjects = encoded or record.encode(), limit_subjects(record.key_id, record.team)
    return batch.add(
        Settle(
            purchase,
            _by_unit(charge),
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


def _by_unit(amounts: Amounts) -> dict[str, int]:
    return {"images": amounts.images, "tokens": amounts.tokens, "usd_micros": amounts.usd_micros}


def _prepared(principal: Principal) -> _Prepared:
    known: _Prepared | None = principal.prepared.get("quota")
    if known is None:
        known = principal.prepared["quota"] = _prepare(principal)
    return known


def _prepare(principal: Principal) -> _Prepared:
    admitted = [
        _Counted.of(limit, subject, subject.rules[limit.name])
        for subject in principal.subjects
        for limit in LIMITS.values()
        if limit.name in subject.rules
    ]
    # Shown limits first, so that the states of `admit` are the first ones of `admitted`.
    admitted.sort(key=lambda counted: counted.limit.unit not in _SHOWN)
    # An amount of 0 only peeks: an admission takes its one request from the buckets of requests.
    consumptions = tuple(counted.consumption(_admitted_amount(counted)) for counted in admitted)
    shown = tuple(c for c in consumptions if c.counter.unit in _SHOWN)
    images = tuple(counted for counted in admitted if counted.limit in _IMAGE_RATES)
    of_image = tuple(counted.consumption(1) for counted in images)
    expected = principal.expected
    return _Prepared(
        Admit(expected, shown),
        Admit(expected, consumptions),
        Admit(expected, of_image) if images else None,
        admitted=_CountedLimits.of(admitted),
        images=images,
        reserved=_CountedLimits.of(_reserved(principal)),
        subjects=tuple(subject.name for subject in principal.subjects),
        subject_names=frozenset(subject.name for subject in principal.subjects),
        compared=tuple(Get(record.space, record.name) for record in expected),
        expected_values=[record.value for record in expected],
        counts_requests=any(consumption.amount for consumption in consumptions),
    )


def _reserved(principal: Principal) -> Iterable[_Counted]:
    # Calendar windows count without a limit too, by subject. A bucket without one is not stored.
    for subject in principal.subjects:
        for limit in LIMITS.values():
            rule = subject.rules.get(limit.name)
            if not limit.at_admission and (limit.period == "concurrency" or rule is not None):
                yield _Counted.of(limit, subject, rule)


def _admitted_amount(counted: _Counted) -> int:
    return int(counted.limit.at_admission and counted.limit.period == "minute")


def _reserved_amounts(principal: Principal, estimate: Amounts) -> tuple[Consumption, ...]:
    return _prepared(principal).reserved.consumptions({**_by_unit(estimate), "purchases": 1})


# ── states ──────────────────────────────────────────────────────────────────────────────────


def peeked_states(principal: Principal, states: Sequence[CounterState]) -> list[LimitState]:
    """The limits as `peek` read them."""
    # An admission without `peeks` has the states of the first limits only.
    return _prepared(principal).admitted.states(states)


def admission_states(principal: Principal, admission: Admission) -> list[LimitState]:
    """The limits as far as the admission read them."""
    return peeked_states(principal, admission.states)


def reservation_states(principal: Principal, states: Sequence[CounterState]) -> list[LimitState]:
    """The limits as a reservation or a settlement left them."""
    # A settlement of a purchase without a journal has no states.
    return _prepared(principal).reserved.states(states)


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
    return _exceeded(_prepared(principal).admitted.counted, admission)


def shadowed_by_reservation(principal: Principal, reservation: Reservation) -> list[LimitState]:
    """The limits that would have refused a purchase if they were not in shadow mode."""
    if not reservation.exceeded:  # nearly always
        return []
    return _exceeded(_prepared(principal).reserved.counted, reservation)


def shadowed_by_image(principal: Principal, admission: Admission) -> list[LimitState]:
    """The same for an image that is made without a purchase."""
    return _exceeded(_prepared(principal).images, admission)


def flag_shadowed(record: Record, shadowed: Sequence[LimitState]) -> Record:
    """The record with the flag of limits in shadow mode, if there are any."""
    if not shadowed or SHADOW_LIMIT in record.flags:
        return record
    return record.but(flags=(*record.flags, SHADOW_LIMIT))


def _exceeded(counted: Sequence[_Counted], result: Admission | Reservation) -> list[LimitState]:
    exceeded = result.exceeded
    limits = _CountedLimits.of(counted[i] for i in exceeded)
    return limits.states([result.states[i] for i in exceeded])


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
    counted = prepared.admitted.counted[index]
    return _refusal(counted, _admitted_amount(counted), state=admission.states[index])


def refuse_image(principal: Principal, admission: Admission) -> LimitExceeded:
    """The error of an image that was not admitted."""
    index = admission.denied or 0
    return _refusal(_prepared(principal).images[index], 1, state=admission.states[index])


def refuse_reservation(
    principal: Principal,
    reservation: Reservation,
    estimate: Amounts,
    *,
    why: str | None,
    first_estimate: Amounts | None = None,
) -> LimitExceeded:
    """The error of a purchase that was not reserved; `why` explains a high estimate.

    `first_estimate` is that of all accounts, if some were left out since. Followers compare
    theirs with it, because they have not left out any.
    """
    index = reservation.denied or 0
    counted = _prepared(principal).reserved.counted[index]
    amount = _reserved_amounts(principal, estimate)[index].amount
    state = reservation.states[index]
    refused = _refusal(counted, amount, state=state, why=why)
    refused.refusal = LimitRefusal(
        principal.key_id if counted.subject.kind == "key" else "",
        counted.limit.name,
        counted.counter.maximum or 0,
        amount=_reserved_amounts(principal, first_estimate or estimate)[index].amount,
        used=state.used,
        reserved=state.reserved,
        resets_in=state.resets_in,
        retry_in=state.retry_in,
        subject=counted.subject.name,
    )
    return refused


def refuse_alike(
    principal: Principal, refusal: LimitRefusal, estimate: Amounts, *, why: str | None
) -> LimitExceeded | None:
    """The error of a purchase that waited for another, which was refused; None if it may fit.

    It does not fit either if the same limit of the same subject would have to hold as much.
    """
    counted = _refused_alike(principal, refusal)
    if counted is None:
        return None
    amounts = _reserved_amounts(principal, estimate)
    amount = amounts[_prepared(principal).reserved.counted.index(counted)].amount
    # When to come back depends on the amount, so a rate is the same for the same amount only.
    is_covered = amount == refusal.amount or (not counted.limit.is_rate and amount > refusal.amount)
    if not is_covered:
        return None
    state = CounterState(refusal.used, refusal.reserved, refusal.resets_in, refusal.retry_in)
    return _refusal(counted, amount, state=state, why=why)


def _refused_alike(principal: Principal, refusal: LimitRefusal) -> _Counted | None:
    """The limit of a refusal, if it limits this principal too, and to the same maximum."""
    limit = LIMITS.get(refusal.limit)
    for counted in _prepared(principal).reserved.counted:
        if counted.limit == limit and counted.subject.name == refusal.subject_name:
            rule = counted.rule
            is_current = rule is not None and (rule.mode, rule.maximum) == (
                "enforce",
                refusal.maximum,
            )
            return counted if is_current else None
    return None


def _refusal(
    counted: _Counted, amount: int, *, state: CounterState, why: str | None = None
) -> LimitExceeded:
    limit, maximum = counted.limit, counted.counter.maximum or 0
    message = (
        f"Limit {limit.name} of {_named(counted.subject)} reached: "
        f"limit {_show(limit, maximum)}, used {_show(limit, state.used)}, "
        f"reserved {_show(limit, state.reserved)}."
    )
    if amount:
        because = f" ({why})" if why else ""
        message += f" This request needs up to {_show(limit, amount)}{because}."
    # SDKs retry every 429 twice unless a header forbids it. A retry before the reset cannot help.
    if not limit.is_rate:
        return LimitExceeded(
            f"{message} It resets in {go_duration(state.resets_in)}.",
            reason=limit.name,
            scope=counted.subject.scope,
            type=ErrorCode.INSUFFICIENT_QUOTA,
            code=ErrorCode.INSUFFICIENT_QUOTA,
            headers={"x-should-retry": "false"},
        )
    if amount > maximum:
        return LimitExceeded(
            f"{message} The request exceeds the limit; retrying cannot help.",
            reason=limit.name,
            scope=counted.subject.scope,
            type=limit.unit,
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            headers={"x-should-retry": "false"},
        )
    # A concurrency limit does not know when a purchase will end.
    wait = state.retry_in or 1.0
    return LimitExceeded(
        f"{message} Please try again in {go_duration(wait)}.",
        reason=limit.name,
        scope=counted.subject.scope,
        type=limit.unit,
        code=ErrorCode.RATE_LIMIT_EXCEEDED,
        headers={
            "Retry-After": str(math.ceil(wait)),
            "retry-after-ms": str(math.ceil(wait * 1000)),
        },
    )


def _named(subject: LimitSubject) -> str:
    return f"{subject.kind} '{subject.shown_as}'" if subject.shown_as else subject.kind


def _show(limit: Limit, amount: int) -> str:
    return f"${show_usd(amount)}" if limit.unit == "usd_micros" else f"{amount:,}"


# ── headers ─────────────────────────────────────────────────────────────────────────────────


def rate_headers(states: Iterable[LimitState]) -> Mapping[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,images,tokens}`, the tightest of each unit.

    A limit in shadow mode is not shown, because it refuses nothing.
    """
    tightest: dict[str, tuple[int, LimitState]] = {}
    for state in states:
        # Without the properties of `LimitState`: nearly every answer shows up to seven limits.
        limit, _, rule, counter = state
        if rule.mode != "enforce" or (unit := limit.unit) not in _SHOWN:
            continue
        remaining = max(0, rule.maximum - counter.used - counter.reserved)
        if unit not in tightest or remaining <= tightest[unit][0]:
            tightest[unit] = remaining, state
    headers: dict[str, str] = {}
    for shown, (remaining, (_, _, rule, counter)) in tightest.items():
        headers["x-ratelimit-limit-" + shown] = str(rule.maximum)
        headers["x-ratelimit-remaining-" + shown] = str(remaining)
        headers["x-ratelimit-reset-" + shown] = go_duration(counter.resets_in)
    return headers


@lru_cache(maxsize=4096)  # most answers cost nothing, and save what many others save
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
