"""What limit subjects have spent and reserved, and how near they are to their limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from gateway.billing.verification import Verified, read_verified
from gateway.images import LimitSubject
from gateway.limits import CALENDAR_PERIODS, LIMITS, MICROS_PER_USD
from gateway.store.batch import execute
from gateway.store.commands import Counter, CounterState, PeekCounters
from gateway.store.protocol import Store

PAGE_SUBJECTS: Final = 50
"""Whose counters are read in one step, of a few milliseconds."""


@dataclass(slots=True)
class GaugeValues:
    """By scope and name, and by window or limit."""

    spend_usd: dict[tuple[str, ...], float] = field(default_factory=dict)
    reserved_usd: dict[tuple[str, ...], float] = field(default_factory=dict)
    limit_max: dict[tuple[str, ...], float] = field(default_factory=dict)
    limit_used_ratio: dict[tuple[str, ...], float] = field(default_factory=dict)
    limit_shadow: dict[tuple[str, ...], float] = field(default_factory=dict)


class LimitGauges:
    """Reads the counters of limit subjects."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.subjects: Sequence[LimitSubject] = ()
        """Those that `read` shows. `api.key_labels` sets and bounds them."""
        self.former_teams: Sequence[LimitSubject] = ()
        """Teams of revoked keys, which it shows too."""

    async def read(self) -> GaugeValues:
        """The windows and limits of now. Raises `StoreUnavailable`."""
        named = {subject.name for subject in self.subjects}
        former = (team for team in self.former_teams if team.name not in named)
        values, subjects = GaugeValues(), iter((*self.subjects, *former))
        while page := list(islice(subjects, PAGE_SUBJECTS)):
            asked = tuple(counter for subject in page for counter in _counters(subject))
            states = await execute(self._store, PeekCounters(asked))
            found = dict(zip(asked, states, strict=True))
            for subject in page:
                _add(values, subject, found)
        return values

    async def read_reserved(self, subject: LimitSubject) -> int:
        """Micro-dollars that open purchases of a subject have reserved in this month."""
        counter = Counter(subject.name, "usd_micros", "month")
        return (await execute(self._store, PeekCounters((counter,))))[0].reserved

    async def read_verified(self) -> list[Verified]:
        """The last verifications. Raises `StoreUnavailable`."""
        return await read_verified(self._store)


def _counters(subject: LimitSubject) -> Sequence[Counter]:
    money = (Counter(subject.name, "usd_micros", period) for period in CALENDAR_PERIODS)
    limited = (
        Counter(subject.name, LIMITS[name].unit, LIMITS[name].period, rule.maximum)
        for name, rule in subject.rules.items()
        if name in LIMITS
    )
    return tuple(dict.fromkeys((*money, *limited)))


def _add(
    values: GaugeValues, subject: LimitSubject, states: Mapping[Counter, CounterState]
) -> None:
    labels = subject.kind, subject.shown_as
    for period in CALENDAR_PERIODS:
        state = states[Counter(subject.name, "usd_micros", period)]
        # An expired key and its successor may have one name.
        _add_to(values.spend_usd, (*labels, period), state.used)
        if period == "month":  # the longest window: every open purchase is in it
            _add_to(values.reserved_usd, labels, state.reserved)
    for name, rule in subject.rules.items():
        if (limit := LIMITS.get(name)) is None:
            continue
        state = states[Counter(subject.name, limit.unit, limit.period, rule.maximum)]
        scale = MICROS_PER_USD if limit.unit == "usd_micros" else 1
        values.limit_max[*labels, name] = rule.maximum / scale
        used = state.used + state.reserved
        values.limit_used_ratio[*labels, name] = used / rule.maximum if rule.maximum else 1.0
        if rule.mode == "shadow":
            values.limit_shadow[*labels, name] = 1.0


def _add_to(values: dict[tuple[str, ...], float], labels: tuple[str, ...], micros: int) -> None:
    # In whole micro-dollars: dollars added up as floats are not the sum of any book.
    before = round(values.get(labels, 0.0) * MICROS_PER_USD)
    values[labels] = (before + micros) / MICROS_PER_USD


def distinct(subjects: Iterable[LimitSubject]) -> list[LimitSubject]:
    """Each limit subject once: many keys have one team."""
    return list({subject.name: subject for subject in subjects}.values())
