"""One month of generated traffic, in the ledger of a store: the same for the same seed.

The month is the last complete one, so that it is in every report's reach. Its traffic begins before
it and ends after it, so that the months of all time zones are different.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice

from gateway.billing import quota
from gateway.billing.running_totals import running_totals
from gateway.calendar import next_month
from gateway.images import Amounts, Record
from gateway.store.batch import Batch, execute
from gateway.store.commands import Append
from gateway.store.protocol import Store

SEED = 15
EDGE_SECONDS = 36 * 3600.0
"""How much longer than the month of UTC the traffic is."""
COLLECTED = 100
"""Records that are written at once."""


@dataclass(frozen=True)
class TrafficKey:
    """A key that sends requests."""

    name: str
    team: str | None
    labels: Mapping[str, str]
    key_id: str = ""


KEYS = (
    TrafficKey("alice", "art", {"cost_center": "4711", "project": "otter"}),
    TrafficKey("bob", "art", {"cost_center": "4711"}),
    TrafficKey("carol", "design", {"cost_center": "0815"}),
    TrafficKey("dave", None, {}),
)
USERS = (None, None, "ann@example.com", "@ben", "-1", "=1+1")
TOKEN_PRICES = {"text_in": 5, "cached_text_in": 1, "image_in": 10, "image_out": 40}
"""Micro-dollars."""
IMAGE_PRICE = 40_000


def last_month(now: float) -> date:
    """The first day of the month before that of `now`, in UTC."""
    first = datetime.fromtimestamp(now - EDGE_SECONDS, UTC).date().replace(day=1)
    return (first - timedelta(days=1)).replace(day=1)


@dataclass(frozen=True)
class Month:
    """The records of some traffic, in the order of the ledger."""

    first: date
    records: tuple[Record, ...]

    @property
    def cost_micros(self) -> int:
        return sum(record.cost_micros for record in self.records)

    async def write(self, store: Store) -> None:
        """Writes the records as a gateway does."""
        await RecordWriter(store).write(self.records)


class RecordWriter:
    """Writes records as a gateway does: charged ones by settlements, others in batches."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._presumed: dict[str, Amounts] = {}

    async def write(self, records: Iterable[Record]) -> None:
        """A correction comes after the record that it corrects, if not in the same call."""
        left = iter(records)
        while some := list(islice(left, COLLECTED)):
            free = [record for record in some if not _is_charged(record)]
            saved: dict[str, int] = {}
            for record in free:
                for total in running_totals(record) if record.saved_micros else ():
                    saved[total] = saved.get(total, 0) + record.saved_micros
            await execute(self._store, Append(tuple(r.encode() for r in free), saved=saved))
            batch = Batch(self._store)
            for record in some:
                if _is_charged(record):
                    self._settle(batch, record)
            await batch.execute()

    def _settle(self, batch: Batch, record: Record) -> None:
        purchase, charge = record.corrects or record.id, _amounts(record)
        is_correction = record.corrects is not None
        is_presumed = "presumed" in record.flags and not is_correction
        if is_presumed:
            self._presumed[purchase] = charge
        if is_correction:
            charge = _sum(charge, self._presumed.pop(purchase))
        quota.settle(
            batch, purchase, charge, record=record, presumed=is_presumed, correct=is_correction
        )


def month_of_traffic(
    now: float, *, seed: int = SEED, requests: int = 2000, keys: Sequence[TrafficKey] = KEYS
) -> Month:
    """`requests` requests of the last month, and the corrections of some."""
    first = last_month(now)
    begin, end = (datetime(d.year, d.month, 1, tzinfo=UTC) for d in (first, next_month(first)))
    since, until = begin.timestamp() - EDGE_SECONDS, end.timestamp() + EDGE_SECONDS
    return Month(first, tuple(traffic(since, until, seed=seed, requests=requests, keys=keys)))


def traffic(
    since: float, until: float, *, seed: int, requests: int, keys: Sequence[TrafficKey]
) -> Iterator[Record]:
    """The records of requests in the order of their times, in Unix seconds."""
    chance = random.Random(seed)
    times = sorted(chance.uniform(since, until) for _ in range(requests))
    for number, time in enumerate(times):
        yield from _records(f"p{seed}-{number}", time, chance.choice(keys), chance)


def _records(
    purchase: str, time: float, key: TrafficKey, chance: random.Random
) -> Iterator[Record]:
    """One request's record, and perhaps its correction."""
    asked = Record(
        purchase,
        purchase,
        time,
        key=key.name,
        key_id=key.key_id or f"key_{key.name}",
        team=key.team,
        labels=key.labels,
        user=chance.choice(USERS),
        model=chance.choice(["gpt-image-2", "gpt-image-1-mini", "dall-e-3"]),
        size=chance.choice(["1024x1024", "1024x1536"]),
        quality=chance.choice(["low", "high"]),
        n=1,
    )
    outcome = chance.choices(["bought", "hit", "refused", "presumed"], [50, 35, 10, 5])[0]
    if outcome == "hit":
        saved = chance.randrange(90_000)
        yield asked.but(outcome="hit", images_served=1, saved_micros=saved)
    elif outcome == "refused":
        yield asked.but(user=None, size=None, quality=None, n=None, count=chance.randrange(1, 9))
    elif outcome == "bought":
        yield _bought(asked, chance)
    else:
        yield from _presumed(asked, chance)


def _bought(asked: Record, chance: random.Random) -> Record:
    if asked.model == "dall-e-3":
        paid = asked.but(costs={"image": IMAGE_PRICE}, cost_micros=IMAGE_PRICE)
    else:
        tokens = {kind: chance.randrange(1, 2000) for kind in TOKEN_PRICES}
        costs = {kind: count * TOKEN_PRICES[kind] for kind, count in tokens.items()}
        paid = asked.but(tokens=tokens, costs=costs, cost_micros=sum(costs.values()))
    return paid.but(outcome="bought", images=1, upstream="default", price_date="2026-01-01")


def _presumed(asked: Record, chance: random.Random) -> Iterator[Record]:
    """A purchase without an answer; of every second one, the answer came late."""
    estimate = chance.randrange(100_000, 200_000)
    yield asked.but(
        outcome="failed",
        flags=("presumed",),
        tokens={"estimated": 5000},
        costs={"estimated": estimate},
        cost_micros=estimate,
        images=1,
    )
    if chance.random() < 0.5:
        return
    real = _bought(asked, chance)
    yield real.but(
        id=f"{asked.id}-late",
        corrects=asked.id,
        corrected_at=asked.time + 900,
        images=0,
        tokens={**real.tokens, "estimated": -5000},
        costs={**real.costs, "estimated": -estimate},
        cost_micros=real.cost_micros - estimate,
        presumed_micros=-estimate,
    )


def _is_charged(record: Record) -> bool:
    return _amounts(record) != Amounts()


def _amounts(record: Record) -> Amounts:
    return Amounts(record.images, sum(record.tokens.values()), record.cost_micros)


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return one - (Amounts() - other)


def total(records: Sequence[Record], name: str) -> int:
    """The sum of a field."""
    return sum(getattr(record, name) or 0 for record in records)
