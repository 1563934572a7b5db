"""The limits of key, team and everyone in plain Python, for comparison with the stores.

It knows nothing of journals, scripts or tables: a purchase is an object, a window is a number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway.images import LimitRule
from gateway.limits import CALENDAR_PERIODS, LIMITS, Limit

UNITS = ("images", "tokens", "usd_micros")
TOKEN = 60_000_000
"""Parts of one request or image in a bucket."""

Amount = tuple[int, int, int]
"""Images, tokens and micro-dollars."""

Window = tuple[str, str, str]
"""Subject, unit, and the label of a day, week or month."""


@dataclass
class Bought:
    """A purchase that was reserved."""

    subjects: tuple[str, ...]
    labels: tuple[str, ...]
    """The day, week and month of its reservation."""
    estimate: Amount
    state: Literal["reserved", "received", "settled"] = "reserved"
    will_cost: Amount = (0, 0, 0)
    """Once it is received."""
    charge: Amount = (0, 0, 0)
    is_presumed: bool = False

    @property
    def is_open(self) -> bool:
        return self.state != "settled"


@dataclass
class Verdict:
    """What happens to a request or a purchase."""

    denied: tuple[str, str] | None = None
    """Subject and limit that refuse it."""
    shadowed: list[tuple[str, str]] = field(default_factory=list)
    """Those that would, were they not in shadow mode."""


@dataclass
class Oracle:
    """All limits, and all purchases."""

    rules: dict[tuple[str, str], LimitRule] = field(default_factory=dict)
    """By subject and limit name, without raises."""
    raises: list[tuple[str, str, int]] = field(default_factory=list)
    """Subject, limit name and how much."""
    purchases: dict[str, Bought] = field(default_factory=dict)
    buckets: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """By subject and unit: level, and when it had it, in microseconds."""

    def rules_of(self, subject: str) -> Mapping[str, LimitRule]:
        """What a subject may do now, with its raises."""
        found = {}
        for (owner, limit), rule in self.rules.items():
            if owner == subject:
                more = sum(n for s, name, n in self.raises if (s, name) == (subject, limit))
                found[limit] = LimitRule(rule.maximum + more, rule.mode)
        return found

    # ── windows ─────────────────────────────────────────────────────────────────────────────

    def windows(self) -> tuple[Mapping[Window, int], Mapping[Window, int]]:
        """What is spent and what is reserved, added up from the purchases."""
        spent: dict[Window, int] = defaultdict(int)
        reserved: dict[Window, int] = defaultdict(int)
        for bought in self.purchases.values():
            for subject in bought.subjects:
                for label in bought.labels:
                    for i, unit in enumerate(UNITS):
                        window = subject, unit, label
                        spent[window] += bought.charge[i]
                        reserved[window] += bought.estimate[i] if bought.is_open else 0
        return spent, reserved

    def open_purchases(self, subject: str) -> int:
        return sum(b.is_open and subject in b.subjects for b in self.purchases.values())

    # ── the two steps ───────────────────────────────────────────────────────────────────────

    def admit(self, subjects: Sequence[str], now: int) -> Verdict:
        """One request, at a time in microseconds."""
        return self._take(subjects, {"requests": 1}, (), now=now, at_admission=True)

    def reserve(
        self,
        purchase: str,
        subjects: Sequence[str],
        estimate: Amount,
        labels: tuple[str, ...],
        *,
        now: int,
    ) -> Verdict:
        """One purchase; a repetition changes nothing."""
        if purchase in self.purchases:
            return Verdict()
        amounts = {**dict(zip(UNITS, estimate, strict=True)), "purchases": 1}
        verdict = self._take(subjects, amounts, labels, now=now, at_admission=False)
        if verdict.denied is None:
            self.purchases[purchase] = Bought(tuple(subjects), labels, estimate)
        return verdict

    def _take(
        self,
        subjects: Sequence[str],
        amounts: Mapping[str, int],
        labels: tuple[str, ...],
        *,
        now: int,
        at_admission: bool,
    ) -> Verdict:
        verdict, taken = Verdict(), []
        for subject, limit, rule in self._limits(subjects, at_admission=at_admission):
            amount = amounts[limit.unit]
            if amount <= self._room(subject, limit, rule.maximum, labels, now=now) or amount == 0:
                taken.append((subject, limit, rule.maximum, amount))
            elif rule.mode == "enforce":
                return Verdict(denied=(subject, limit.name))
            else:
                verdict.shadowed.append((subject, limit.name))
        for subject, limit, maximum, amount in taken:
            if limit.period == "minute" and amount:
                level = self._level(subject, limit, maximum, now=now) - amount * TOKEN
                self.buckets[subject, limit.unit] = level, now
        return verdict

    def _limits(
        self, subjects: Sequence[str], *, at_admission: bool
    ) -> Iterator[tuple[str, Limit, LimitRule]]:
        """Those that apply, in the order in which they refuse."""
        for subject in subjects:
            rules = self.rules_of(subject)
            for limit in LIMITS.values():
                if limit.name in rules and limit.at_admission == at_admission:
                    yield subject, limit, rules[limit.name]

    def _room(
        self, subject: str, limit: Limit, maximum: int, labels: tuple[str, ...], *, now: int
    ) -> int:
        if limit.period == "minute":
            return self._level(subject, limit, maximum, now=now) // TOKEN
        if limit.period == "concurrency":
            return maximum - self.open_purchases(subject)
        label = labels[CALENDAR_PERIODS.index(limit.period)]
        spent, reserved = self.windows()
        window = subject, limit.unit, label
        return maximum - spent.get(window, 0) - reserved.get(window, 0)

    def _level(self, subject: str, limit: Limit, maximum: int, *, now: int) -> int:
        capacity = maximum * TOKEN
        level, at = self.buckets.get((subject, limit.unit), (capacity, now))
        return min(capacity, level + (now - at) * maximum)

    def missing(self, subject: str, unit: str, maximum: int, *, now: int) -> int:
        """How many requests or images a bucket of this size is short of, in whole ones."""
        level, at = self.buckets[subject, unit]
        capacity = maximum * TOKEN
        return -(-(capacity - min(capacity, level + (now - at) * maximum)) // TOKEN)

    # ── afterwards ──────────────────────────────────────────────────────────────────────────

    def receive(self, purchase: str, cost: Amount) -> None:
        """Its images are stored: whoever settles it knows what it cost."""
        bought = self.purchases[purchase]
        bought.state, bought.will_cost = "received", cost

    def settle(self, purchase: str, charge: Amount, *, presumed: bool = False) -> None:
        """It is charged, once; a presumed charge may be corrected."""
        bought = self.purchases[purchase]
        if bought.is_open:
            bought.state, bought.charge, bought.is_presumed = "settled", charge, presumed

    def correct(self, purchase: str, charge: Amount) -> None:
        """A late answer."""
        bought = self.purchases[purchase]
        if bought.is_presumed:
            bought.charge, bought.is_presumed = charge, False
