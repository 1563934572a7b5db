"""The limits of limit subjects, as their counters are now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from gateway.billing import quota
from gateway.billing.counted_limits import LimitState
from gateway.images import LimitRule, LimitSubject, Principal
from gateway.limits import LIMITS, Limit
from gateway.store.batch import Batch, execute
from gateway.store.commands import Counter, CounterState, PeekCounters
from gateway.store.protocol import Store

PAGE_SUBJECTS: Final = 50
"""Whose counters are read in one step, of a few milliseconds."""
ALWAYS: Final = "usd_per_month"
"""The limit whose use is shown whether or not it is set: what was spent this month."""


class CounterUse(NamedTuple):
    """What a limit subject has used of a limit, or without one."""

    limit: Limit
    rule: LimitRule | None
    """None: it is counted without a limit."""
    counter: CounterState


async def read_limit_states(store: Store, subject: LimitSubject) -> Sequence[LimitState]:
    """A state for each of its limits. Raises `StoreUnavailable`."""
    if not subject.rules:
        return ()
    # Counters go by the limit subjects alone.
    principal = Principal("", "", team=None, subjects=(subject,), expected=())
    batch = Batch(store)
    states = quota.peek(batch, principal)
    await batch.execute()
    return quota.peeked_states(principal, states.value)


async def read_uses(
    store: Store, subjects: Sequence[LimitSubject]
) -> Mapping[str, Sequence[CounterUse]]:
    """What subjects have used of their limits, by their names. Raises `StoreUnavailable`."""
    uses: dict[str, Sequence[CounterUse]] = {}
    for first in range(0, len(subjects), PAGE_SUBJECTS):
        page = subjects[first : first + PAGE_SUBJECTS]
        asked = [(subject.name, *each) for subject in page for each in _shown(subject)]
        counters = (
            Counter(name, limit.unit, limit.period, None if rule is None else rule.maximum)
            for name, limit, rule in asked
        )
        states = await execute(store, PeekCounters(tuple(counters)))
        found: dict[str, list[CounterUse]] = {}
        for (name, limit, rule), state in zip(asked, states, strict=True):
            found.setdefault(name, []).append(CounterUse(limit, rule, state))
        uses |= found
        await asyncio.sleep(0)
    return uses


def _shown(subject: LimitSubject) -> list[tuple[Limit, LimitRule | None]]:
    rules = subject.rules
    return [
        (limit, rules.get(name))
        for name, limit in LIMITS.items()
        if name in rules or name == ALWAYS
    ]
