"""The limits that a request or a purchase counts in, prepared once for a principal.

A principal sends many requests. Which counters they count in, and the commands of an admission,
follow from its limits alone, so they are kept with it. `quota` takes its commands and states from
here, `limit_refusals` the limit that refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, repeat
from typing import Final, NamedTuple

from gateway.images import Amounts, LimitRule, LimitSubject, Principal
from gateway.limits import LIMITS, Limit
from gateway.store.commands import Admit, Consumption, Counter, CounterState, Get

SHOWN: Final = frozenset({"requests", "images", "tokens"})
"""The units whose limits show in headers."""

_new_tuple: Final = tuple.__new__  # half the time of the class of a named tuple

_IMAGE_RATES: Final = [
    limit for limit in LIMITS.values() if limit.unit == "images" and limit.period == "minute"
]


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


class Counted(NamedTuple):
    """What a request or a purchase counts in: one limit of one limit subject."""

    limit: Limit
    subject: LimitSubject
    rule: LimitRule | None
    """None: it is counted without a limit."""
    counter: Counter
    is_shadow: bool
    """The limit is in shadow mode."""

    @staticmethod
    def of(limit: Limit, subject: LimitSubject, rule: LimitRule | None) -> Counted:
        maximum = rule.maximum if rule is not None else None
        counter = Counter(subject.name, limit.unit, limit.period, maximum)
        return Counted(limit, subject, rule, counter, rule is not None and rule.mode == "shadow")

    def consumption(self, amount: int) -> Consumption:
        return Consumption(self.counter, amount, self.is_shadow)


class CountedLimits(NamedTuple):
    """Limits in the order of a command's counters, and what is made of them by columns.

    Every purchase makes two lists of states and one of consumptions: built by columns, without
    Python code, they take a fifth of the time.
    """

    counted: tuple[Counted, ...]
    counters: tuple[Counter, ...]
    units: tuple[str, ...]
    are_shadows: tuple[bool, ...]
    have_rules: tuple[bool, ...]
    """Which of them limit anything. Only those have states, in which come the next three."""
    limits: tuple[Limit, ...]
    subjects: tuple[LimitSubject, ...]
    rules: tuple[LimitRule, ...]

    @staticmethod
    def of(counted: Iterable[Counted]) -> CountedLimits:
        counted = tuple(counted)
        return CountedLimits(
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


class PreparedLimits(NamedTuple):
    """The commands of a principal and what they count in. Both last until its key changes."""

    admit: Admit
    """Counts a request, and peeks at the limits that headers show."""
    admit_and_peek: Admit
    """The same, and peeks at the other limits too; those come last."""
    admit_image: Admit | None
    """Counts an image that is made without a purchase; None if no limit counts it."""
    admitted: CountedLimits
    """In the order of the consumptions of `admit_and_peek`."""
    images: tuple[Counted, ...]
    """In the order of the consumptions of `admit_image`."""
    reserved: CountedLimits
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


def prepared_limits(principal: Principal) -> PreparedLimits:
    """What was prepared of the principal's limits, and prepares it the first time."""
    known: PreparedLimits | None = principal.prepared.get("counted_limits")
    if known is None:
        known = principal.prepared["counted_limits"] = _prepare(principal)
    return known


def _prepare(principal: Principal) -> PreparedLimits:
    admitted = [
        Counted.of(limit, subject, subject.rules[limit.name])
        for subject in principal.subjects
        for limit in LIMITS.values()
        if limit.name in subject.rules
    ]
    # Shown limits first, so that the states of `admit` are the first ones of `admitted`.
    admitted.sort(key=lambda counted: counted.limit.unit not in SHOWN)
    # An amount of 0 only peeks: an admission takes its one request from the buckets of requests.
    consumptions = tuple(counted.consumption(admitted_amount(counted)) for counted in admitted)
    shown = tuple(c for c in consumptions if c.counter.unit in SHOWN)
    images = tuple(counted for counted in admitted if counted.limit in _IMAGE_RATES)
    of_image = tuple(counted.consumption(1) for counted in images)
    expected = principal.expected
    return PreparedLimits(
        Admit(expected, shown),
        Admit(expected, consumptions),
        Admit(expected, of_image) if images else None,
        admitted=CountedLimits.of(admitted),
        images=images,
        reserved=CountedLimits.of(_reserved(principal)),
        subjects=tuple(subject.name for subject in principal.subjects),
        subject_names=frozenset(subject.name for subject in principal.subjects),
        compared=tuple(Get(record.space, record.name) for record in expected),
        expected_values=[record.value for record in expected],
        counts_requests=any(consumption.amount for consumption in consumptions),
    )


def _reserved(principal: Principal) -> Iterable[Counted]:
    # Calendar windows count without a limit too, by subject. A bucket without one is not stored.
    for subject in principal.subjects:
        for limit in LIMITS.values():
            rule = subject.rules.get(limit.name)
            if not limit.at_admission and (limit.period == "concurrency" or rule is not None):
                yield Counted.of(limit, subject, rule)


def admitted_amount(counted: Counted) -> int:
    """What an admission takes from the counter: its one request, or 0 where it only peeks."""
    return int(counted.limit.at_admission and counted.limit.period == "minute")


def reserved_amounts(principal: Principal, estimate: Amounts) -> tuple[Consumption, ...]:
    """What a purchase takes from the counters, in the order of `PreparedLimits.reserved`."""
    return prepared_limits(principal).reserved.consumptions({**by_unit(estimate), "purchases": 1})


def by_unit(amounts: Amounts) -> dict[str, int]:
    """Amounts as the store's commands have them; `quota.as_amounts` is the inverse."""
    return {"images": amounts.images, "tokens": amounts.tokens, "usd_micros": amounts.usd_micros}
