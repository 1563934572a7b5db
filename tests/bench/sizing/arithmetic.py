"""What a deployment needs for a number of images a minute, from the figures of one worker.

Nothing here is measured. Everything follows from `Figures` and `Assumptions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.configuration.settings import BillingSettings, CacheSettings
from gateway.store.commands.journals import CLOSED_JOURNAL_SECONDS
from tests.bench.pages import GB, TB
from tests.bench.sizing.figures import Figures

RATES = (10, 1_000, 100_000)
"""Images a minute that clients request."""

MONTH_SECONDS = 30 * 86_400
DAY_SECONDS = 86_400
FLIGHT_SECONDS = 120
"""How long Redis keeps the events of a purchase for its followers."""

ONE_SLOT = {
    "books": ("journal", "record", "other books"),
    "lists of images": ("lists of images",),
    "LRU index": ("LRU index",),
}
"""The kinds of keys that a cluster does not spread: each group is on one node."""


@dataclass(frozen=True)
class Assumptions:
    """What the arithmetic takes as given. Prices are rounded list prices, in US dollars a month."""

    hit_share: float = 0.5
    purchase_seconds: float = 30.0
    """That upstream takes for an image."""
    busy: float = 0.6
    """The share of a processor or of a network card that is planned for."""
    machine_processors: int = 8
    machine_bits: float = 10e9
    """Of its network card, a second."""
    node_bytes: int = 64 * GB
    """Of Redis on one machine. Its replica needs the same."""
    short_records_seconds: float = 30 * DAY_SECONDS
    """`billing.keep_records` of a team that exports its ledger."""
    processor_usd: float = 30.0
    memory_gb_usd: float = 4.0
    storage_tb_usd: float = 23.0
    storage_writes_usd: float = 5.0
    """A million."""
    storage_reads_usd: float = 0.4
    """A million."""
    storage_lists_usd: float = 1.8
    """A month for a million images in the bucket, which is listed every six hours."""
    traffic_tb_usd: float = 50.0
    """Answers to clients, if they are outside of the cloud."""
    image_usd: float = 0.05
    """At upstream, for comparison."""


GIVEN = Assumptions()


@dataclass(frozen=True)
class Plan:
    """What a rate needs. Images are large, and their bytes are in object storage."""

    figures: Figures
    images_per_minute: float
    given: Assumptions = GIVEN

    # ── the load ─────────────────────────────────────────────────────────────────────────

    @property
    def hits(self) -> float:
        """A second."""
        return self.images_per_minute / 60 * self.given.hit_share

    @property
    def purchases(self) -> float:
        """A second."""
        return self.images_per_minute / 60 - self.hits

    @property
    def in_flight(self) -> float:
        """Purchases that wait for upstream at the same time."""
        return self.purchases * self.given.purchase_seconds

    # ── the gateways ─────────────────────────────────────────────────────────────────────

    @property
    def worker_busy(self) -> float:
        """Processors that the workers use."""
        hit, purchase = self.figures.hit_large, self.figures.purchase_large
        return (self.hits * hit.worker_ms + self.purchases * purchase.worker_ms) / 1e3

    @property
    def network_bits(self) -> float:
        """Answers to clients, answers of upstream and writes of bytes, a second."""
        answers = self.hits + 2 * self.purchases
        return 8 * self.figures.image_bytes * (answers + self.purchases * 3 / 4)

    @property
    def workers(self) -> int:
        return max(2, math.ceil(self.worker_busy / self.given.busy))

    @property
    def machines(self) -> int:
        """By processors or by network, whichever is full first; two, so that one may fail."""
        by_network = self.network_bits / (self.given.machine_bits * self.given.busy)
        return max(
            2, math.ceil(by_network), math.ceil(self.workers / self.given.machine_processors)
        )

    @property
    def gateway_bytes(self) -> float:
        """Memory of all workers, with full memory caches."""
        each = self.figures.idle_bytes + (CacheSettings().memory_bytes or 0)
        return self.workers * each + self.in_flight * self.figures.in_flight_bytes

    # ── Redis ────────────────────────────────────────────────────────────────────────────

    @property
    def redis_busy(self) -> float:
        """Processors that Redis uses, without the bytes of images."""
        hit, purchase = self.figures.hit_small, self.figures.purchase_small
        return (self.hits * hit.redis_ms + self.purchases * purchase.redis_ms) / 1e3

    @property
    def books_busy(self) -> float:
        """The part of it that cannot be spread over a cluster."""
        hit, purchase = self.figures.hit_books_ms, self.figures.purchase_books_ms
        return (self.hits * hit + self.purchases * purchase) / 1e3

    def redis_bytes(self, keep_records_seconds: float | None = None) -> float:
        """Memory once everything is as old as it gets."""
        return sum(self._bytes_by_kind(keep_records_seconds).values())

    def slot_bytes(self, group: str, keep_records_seconds: float | None = None) -> float:
        """The part of it in one slot of `ONE_SLOT`."""
        found = self._bytes_by_kind(keep_records_seconds)
        return sum(found.get(kind, 0) for kind in ONE_SLOT[group])

    def _bytes_by_kind(self, keep_records_seconds: float | None) -> Mapping[str, float]:
        keep = keep_records_seconds or BillingSettings().keep_records_seconds
        cache = CacheSettings()
        lifetimes = {
            "journal": CLOSED_JOURNAL_SECONDS,
            "record": keep,
            "flight": FLIGHT_SECONDS,
            "other books": 0,  # as many as there are keys and days, not purchases
            "others": 0,
        }
        entry = cache.ttl_seconds + cache.stale_if_error_seconds
        return {
            kind: each * self.purchases * lifetimes.get(kind, entry)
            for kind, each in self.figures.purchase_memory.items()
        }

    # ── storage and money ────────────────────────────────────────────────────────────────

    @property
    def storage_bytes(self) -> float:
        """Images of their whole lifetime, as bytes and not as base64."""
        cache = CacheSettings()
        lifetime = cache.ttl_seconds + cache.stale_if_error_seconds
        return self.purchases * self.figures.image_bytes * 3 / 4 * lifetime

    def costs(self) -> dict[str, float]:
        """US dollars a month."""
        given = self.given
        processors = self.workers + 2 * max(1, math.ceil(self.redis_busy / given.busy))
        memory = self.gateway_bytes + 2 * self.redis_bytes(given.short_records_seconds)
        millions = MONTH_SECONDS / 1e6
        writes = self.purchases * given.storage_writes_usd * millions
        reads = self.hits * given.storage_reads_usd * millions
        image_bytes = self.figures.image_bytes * 3 / 4
        lists = self.storage_bytes / image_bytes / 1e6 * given.storage_lists_usd
        traffic = (self.hits + self.purchases) * self.figures.image_bytes * MONTH_SECONDS
        return {
            "processors": processors * given.processor_usd,
            "memory": memory / GB * given.memory_gb_usd,
            "object storage": self.storage_bytes / TB * given.storage_tb_usd
            + writes
            + reads
            + lists,
            "traffic to clients": traffic / TB * given.traffic_tb_usd,
        }

    def upstream_usd(self) -> float:
        """What the purchases cost, a month."""
        return self.purchases * MONTH_SECONDS * self.given.image_usd

    def saved_usd(self) -> float:
        """What the hits would have cost, a month."""
        return self.hits * MONTH_SECONDS * self.given.image_usd

    # ── what is full first ───────────────────────────────────────────────────────────────

    def shares(self) -> dict[str, float]:
        """Of what cannot be multiplied: the part of one node that is used."""
        given, short = self.given, self.given.short_records_seconds
        return {
            "processor of the books": self.books_busy / given.busy,
            **{
                f"memory of the {group}": self.slot_bytes(group, short) / given.node_bytes
                for group in ONE_SLOT
            },
        }

    @property
    def installations(self) -> int:
        """Each with its own Redis and keys, so that no slot is too large for its node."""
        return math.ceil(max(self.shares().values()))

    def bottleneck(self) -> str:
        """What has to grow next."""
        name, share = max(self.shares().items(), key=lambda item: item[1])
        if share > 1:
            return name
        if self.redis_busy > self.given.busy:
            return "processor of one Redis: a cluster"
        if self.redis_bytes(self.given.short_records_seconds) > self.given.node_bytes:
            return "memory of one Redis: a cluster"
        if self.machines > 2:
            return "network of the machines"
        return "none"


def most(figures: Figures, used: Callable[[Plan], float], limit: float) -> float:
    """The images a minute at which `used`, which grows with the rate, reaches `limit`."""
    return limit / used(Plan(figures, 1.0))
