"""The errors of requests and purchases that a limit refused.

The message is for the person at the client, the headers are for its SDK: they say when a retry can
help, or that none can.
"""

from __future__ import annotations

import math

from gateway.billing.counted_limits import (
    Counted,
    admitted_amount,
    prepared_limits,
    reserved_amounts,
)
from gateway.billing.limit_headers import go_duration
from gateway.errors import ErrorCode, LimitExceeded
from gateway.images import Amounts, LimitRefusal, LimitSubject, Principal
from gateway.limits import LIMITS, Limit
from gateway.store.commands import Admission, CounterState, Reservation
from gateway.values import show_usd


def refuse_admission(principal: Principal, admission: Admission) -> LimitExceeded:
    """The error of a request that was not admitted."""
    index, prepared = admission.denied or 0, prepared_limits(principal)
    counted = prepared.admitted.counted[index]
    return _refusal(counted, admitted_amount(counted), state=admission.states[index])


def refuse_image(principal: Principal, admission: Admission) -> LimitExceeded:
    """The error of an image that was not admitted."""
    index = admission.denied or 0
    return _refusal(prepared_limits(principal).images[index], 1, state=admission.states[index])


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
    counted = prepared_limits(principal).reserved.counted[index]
    amount = reserved_amounts(principal, estimate)[index].amount
    state = reservation.states[index]
    refused = _refusal(counted, amount, state=state, why=why)
    refused.refusal = LimitRefusal(
        principal.key_id if counted.subject.kind == "key" else "",
        counted.limit.name,
        counted.counter.maximum or 0,
        amount=reserved_amounts(principal, first_estimate or estimate)[index].amount,
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
    amounts = reserved_amounts(principal, estimate)
    amount = amounts[prepared_limits(principal).reserved.counted.index(counted)].amount
    # When to come back depends on the amount, so a rate is the same for the same amount only.
    is_covered = amount == refusal.amount or (not counted.limit.is_rate and amount > refusal.amount)
    if not is_covered:
        return None
    state = CounterState(refusal.used, refusal.reserved, refusal.resets_in, refusal.retry_in)
    return _refusal(counted, amount, state=state, why=why)


def _refused_alike(principal: Principal, refusal: LimitRefusal) -> Counted | None:
    """The limit of a refusal, if it limits this principal too, and to the same maximum."""
    limit = LIMITS.get(refusal.limit)
    for counted in prepared_limits(principal).reserved.counted:
        if counted.limit == limit and counted.subject.name == refusal.subject_name:
            rule = counted.rule
            is_current = rule is not None and (rule.mode, rule.maximum) == (
                "enforce",
                refusal.maximum,
            )
            return counted if is_current else None
    return None


def _refusal(
    counted: Counted, amount: int, *, state: CounterState, why: str | None = None
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
