"""The metrics that processes count, one class per family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, get_args

from gateway.metrics.labels import OTHER, Labels
from gateway.metrics.series import (
    DECIMALS,
    Count,
    Factory,
    Observations,
    remember,
)
from gateway.net.guard import Reason

OVERHEAD_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)

SEEDED_STATUSES: Final = ("200", "429", "500", "502", "503", "timeout", "unreachable", "cut")
"""Of attempts to buy: their series are there from the start, so `increase` shows the first one."""

FETCH_OUTCOMES: Final = ("fetched", *get_args(Reason))

# The series that a family may have. `docs/reference/metrics.md#bounds` has them too.
MAX_REQUESTS: Final = 2_000
MAX_REFUSALS: Final = 2_500
MAX_UPSTREAM: Final = 2_000
MAX_TOKENS: Final = 5_000
MAX_IMAGES: Final = 5_000
MAX_COSTS: Final = 2_500


class Billed(Protocol):
    """The fields of a ledger record that the money counters need."""

    @property
    def key(self) -> str: ...
    @property
    def team(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def size(self) -> str | None: ...
    @property
    def quality(self) -> str | None: ...
    @property
    def outcome(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def tokens(self) -> Mapping[str, int]: ...
    @property
    def cost_micros(self) -> int: ...


class CacheTotals(Protocol):
    """The totals that the cache's gauges show."""

    @property
    def count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


class RequestMetrics:
    """Requests of clients, their answers and refusals."""

    def __init__(self, create: Factory, labels: Labels) -> None:
        self._labels = labels
        self._total = create.bounded(
            "requests_total",
            "Answered requests",
            ("endpoint", "model", "status", "outcome"),
            most=MAX_REQUESTS,
            folds=(["model"],),
        )
        self._duration = create.histograms(
            "request_duration_seconds",
            "Time from the head of a request to the end of its handler",
            ("outcome",),
        )
        self._overhead = create.histogram(
            "overhead_seconds", "Time to answer a hit", buckets=OVERHEAD_SECONDS
        )
        self._inflight = create.gauge("inflight_requests", "Requests being answered")
        self._first_event = create.histogram(
            "stream_first_event_seconds", "Time from the head of a request to its first event"
        )
        self._refusals = create.bounded(
            "refusals_total",
            "Requests refused",
            ("key", "reason"),
            most=MAX_REFUSALS,
            # A reason may be a code of upstream or of `models.yaml`.
            folds=(["key"], ["reason"]),
        )
        self._shadowed = create.bounded(
            "shadow_refusals_total",
            "Requests that a limit in shadow mode would have refused",
            ("key", "reason"),
            most=MAX_REFUSALS,
            folds=(["key"],),
        )
        self._refused_connections = create.counters(
            "connections_refused_total", "Connections refused, by the bound", ("reason",)
        )
        for reason in ("connections", "address"):
            self._refused_connections[(reason,)]
        self._known: dict[tuple[str, str | None, int, str], tuple[Count, Observations]] = {}
        """The series of answers, by their values before they become labels."""
        labels.on_change(self._known.clear)

    def started(self) -> None:
        """A request is in flight."""
        self._inflight.inc()

    def finished(self) -> None:
        """A request is in flight no longer."""
        self._inflight.inc(-1)

    def answered(
        self, *, endpoint: str, model: str | None, status: int, outcome: str, seconds: float
    ) -> None:
        """Counts one answer."""
        key = endpoint, model, status, outcome
        if (found := self._known.get(key)) is None:
            labels = endpoint, self._labels.model(model), str(status), outcome
            found = self._total[labels], self._duration[(outcome,)]
            remember(self._known, key, found, *found)
        total, duration = found
        total.inc()
        duration.observe(seconds)
        if outcome == "hit":
            self._overhead.observe(seconds)

    def refused_connection(self, reason: str) -> None:
        """Counts a connection beyond a bound: of this worker, or of the client's address."""
        self._refused_connections[(reason,)].inc()

    def streamed(self, seconds: float) -> None:
        """Records the time to the first event of a stream."""
        self._first_event.observe(seconds)

    def refused(self, key: str, reason: str) -> None:
        """Counts one refusal."""
        self._refusals[self._labels.key(key), reason].inc()

    def shadowed(self, key: str, limit: str) -> None:
        """Counts one request that a limit in shadow mode would have refused."""
        self._shadowed[self._labels.key(key), limit].inc()


class PurchaseMetrics:
    """Purchases from one upstream: the observer of its client and of its health."""

    def __init__(self, family: UpstreamMetrics, name: str) -> None:
        self._family = family
        self._name = name
        family.retries[(name,)]
        family.failovers[(name,)]
        family.waiting[(name,)]
        family.breaker_open[(name,)]
        # It counts as working until the store says otherwise.
        family.up[(name,)].set(1)

    def seed(self, models: Iterable[str]) -> None:
        """Creates the series of these models."""
        for model in models:
            self._family.durations[self._name, model]
            for status in SEEDED_STATUSES:
                self._family.requests[self._name, model, status]

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """Counts one attempt to buy."""
        label = self._family.labels.model(model)
        self._family.requests[self._name, label, str(status)].inc()
        self._family.durations[self._name, label].observe(seconds)

    def retried(self) -> None:
        """Counts one attempt after the first."""
        self._family.retries[(self._name,)].inc()

    def failed_over(self) -> None:
        """Counts a purchase that went on to another account."""
        self._family.failovers[(self._name,)].inc()

    def waits(self, more: int) -> None:
        """A purchase begins (1) or stops (−1) to wait before it may be sent."""
        self._family.waiting[(self._name,)].inc(more)

    def waited(self, seconds: float) -> None:
        """Records how long a purchase waited in all before its last attempt."""
        self._family.wait.observe(seconds)

    def breaker_turned(self, *, is_open: bool) -> None:
        """Shows whether this worker's circuit breaker is open."""
        self._family.breaker_open[(self._name,)].set(is_open)

    def judged(self, *, is_failing: bool, last_success_at: float | None) -> None:
        """Shows how purchases go, as all workers know it."""
        self._family.up[(self._name,)].set(not is_failing)
        if last_success_at is not None:
            self._family.last_success[(self._name,)].set(last_success_at)


class UpstreamMetrics:
    """Purchases by upstream, and the links that it answered."""

    def __init__(self, create: Factory, labels: Labels) -> None:
        self.labels = labels
        self._purchases: list[PurchaseMetrics] = []
        upstream = ("upstream",)
        self.flights = create.gauge(
            "flights", "Purchases and settlements under way, also after their request"
        )
        self.requests = create.bounded(
            "upstream_requests_total",
            "Attempts to buy",
            ("upstream", "model", "status"),
            most=MAX_UPSTREAM,
            folds=(["model"], ["status"]),
        )
        self.durations = create.histograms(
            "upstream_duration_seconds", "Duration of an attempt to buy", ("upstream", "model")
        )
        self.retries = create.counters(
            "upstream_retries_total", "Attempts to buy after the first of a purchase", upstream
        )
        self.failovers = create.counters(
            "upstream_failovers_total",
            "Purchases that an account did not take and that went on to another one",
            upstream,
        )
        self.breaker_open = create.gauges(
            "upstream_breaker_open", "Workers whose circuit breaker is open", upstream
        )
        self.up = create.gauges(
            "upstream_up", "0 while purchases fail, else 1", upstream, workers="livemin"
        )
        self.last_success = create.gauges(
            "upstream_last_success_timestamp_seconds",
            "When a purchase last succeeded",
            upstream,
            workers="livemax",
        )
        self.waiting = create.gauges(
            "queue_length", "Purchases that wait before they may be sent", upstream
        )
        self.wait = create.histogram(
            "queue_wait_seconds", "Time that a purchase waited before its last attempt"
        )
        self._fetches = create.counters(
            "rehost_total", "Image links of upstream that were fetched, or why not", ("outcome",)
        )
        for outcome in FETCH_OUTCOMES:
            self._fetches[(outcome,)]

    def purchases_from(self, name: str) -> PurchaseMetrics:
        """The metrics of purchases from the upstream of this name."""
        purchases = PurchaseMetrics(self, name)
        self._purchases.append(purchases)
        purchases.seed(self.labels.models)
        return purchases

    def use_models(self, models: Iterable[str]) -> None:
        """Creates the series of these models for every upstream."""
        for purchases in self._purchases:
            purchases.seed(models)

    def fetched(self, outcome: str) -> None:
        """Counts one link: `fetched`, or the reason why it was not."""
        self._fetches[(outcome,)].inc()


class CacheMetrics:
    """The cache, and the store that it lives in."""

    def __init__(self, create: Factory) -> None:
        self._evictions = create.counter(
            "cache_evictions_total", "Images evicted to keep within the bound"
        )
        self._hits_from_memory = create.counter(
            "memory_hits_total", "Requests whose key and entry this worker had in memory"
        )
        self._damaged = create.counter(
            "cache_damaged_total", "Images whose bytes were damaged in the store"
        )
        # All workers share one cache, so the latest measurement is right.
        self._images = create.gauge(
            "cache_entries", "Distinct images in the cache", workers="livemostrecent"
        )
        self._bytes = create.gauge(
            "cache_bytes", "Bytes of all images in the cache", workers="livemostrecent"
        )
        self._limit = create.gauge(
            "cache_limit_bytes", "The bound of cache_bytes", workers="livemostrecent"
        )
        # Several gateways may measure one store, so the latest is right.
        self._books = create.gauge(
            "books_bytes",
            "Memory or disk that keys, counters, journals, ledger and totals use",
            workers="livemostrecent",
        )
        self._books_limit = create.gauge(
            "books_limit_bytes",
            "Memory or disk that images never take from the books",
            workers="livemostrecent",
        )
        self.store_up = create.gauge(
            "store_up", "1 if the store answered the last call, else 0", workers="livemin"
        )
        self.store_errors = create.counter(
            "store_errors_total", "Calls that the store did not answer"
        )

    def found_in_memory(self) -> None:
        """Counts a request whose key and entry were in memory."""
        self._hits_from_memory.inc()

    def evicted(self, images: int) -> None:
        """Counts evicted images."""
        self._evictions.inc(images)

    def damaged(self) -> None:
        """Counts an image whose bytes were damaged in the store."""
        self._damaged.inc()

    def books_measured(self, used_bytes: int, limit_bytes: int) -> None:
        """Shows how much of their share the books use."""
        self._books.set(used_bytes)
        self._books_limit.set(limit_bytes)

    def lru_measured(self, lru_totals: CacheTotals, *, max_bytes: int) -> None:
        """Shows how much the cache holds, and may hold."""
        self._images.set(lru_totals.count)
        self._bytes.set(lru_totals.size_bytes)
        self._limit.set(max_bytes)


class MoneyMetrics:
    """Images, tokens and dollars by key, team and model."""

    def __init__(self, create: Factory, labels: Labels) -> None:
        self._labels = labels
        shared = ("key", "team", "model")
        self._tokens = create.bounded(
            "tokens_total",
            "Tokens charged",
            (*shared, "kind"),
            most=MAX_TOKENS,
            folds=(["key", "team"], ["model"]),
        )
        self._images = create.bounded(
            "images_total",
            "Images delivered: bought, or served without a purchase",
            (*shared, "size", "quality", "outcome"),
            most=MAX_IMAGES,
            folds=(["key", "team"], ["model", "size", "quality"]),
        )
        self._cost = create.bounded(
            "cost_usd_total",
            "US dollars charged",
            shared,
            most=MAX_COSTS,
            folds=(["key", "team"], ["model"]),
        )
        self._unreadable = create.counter(
            "ledger_unreadable_total", "Ledger records left out of the totals"
        )
        self._known: dict[tuple[str | None, ...], Count] = {}
        """The series of images, by their values before they become labels."""
        labels.on_change(self._known.clear)

    def purchased(self, billed: Billed) -> None:
        """Counts a settled purchase, once."""
        shared = self._shared_labels(billed)
        for kind, count in billed.tokens.items():
            self._tokens[(*shared, kind)].inc(count)
        self._cost[shared].inc(billed.cost_micros / 1e6)
        self._images_of(billed, shared).inc(billed.images)

    def corrected(self, difference: Billed) -> None:
        """Counts a correction of a presumed charge upwards; a counter cannot fall.

        The presumed charge was counted when it was settled. Its tokens were `estimated`, and so is
        what is added to them here.
        """
        shared = self._shared_labels(difference)
        self._cost[shared].inc(max(0, difference.cost_micros) / 1e6)
        self._images_of(difference, shared).inc(max(0, difference.images))
        if (tokens := sum(difference.tokens.values())) > 0:
            self._tokens[(*shared, "estimated")].inc(tokens)

    def unreadable(self, records: int) -> None:
        """Counts ledger records that are left out of the totals."""
        self._unreadable.inc(records)

    def served(self, billed: Billed, images: int) -> None:
        """Counts images that were served without a purchase."""
        key = billed.key, billed.team, billed.model, billed.size, billed.quality, billed.outcome
        if (series := self._known.get(key)) is None:
            series = self._images_of(billed, self._shared_labels(billed))
            remember(self._known, key, series, series)
        series.inc(images)

    def _shared_labels(self, billed: Billed) -> tuple[str, str, str]:
        key = self._labels.key(billed.key)
        # Every key may have its own team, so teams are bounded by the keys.
        team = OTHER if key == OTHER else billed.team or ""
        return key, team, self._labels.model(billed.model)

    def _images_of(self, billed: Billed, shared: tuple[str, str, str]) -> Count:
        size, quality = self._labels.size(billed.size), self._labels.quality(billed.quality)
        return self._images[(*shared, size, quality, billed.outcome)]


class ProcessMetrics:
    """The workers, and the processor time and memory that they use."""

    def __init__(self, create: Factory) -> None:
        self.workers = create.gauge("workers", "Workers that serve")
        self.configured = create.gauge(
            "workers_configured", "Workers that should serve", workers="livemax"
        )
        self._memory = create.gauge("worker_memory_bytes", "Resident memory of all workers")
        self._cpu = create.counter(
            "worker_cpu_seconds_total", "Processor time of all workers, with those that ended"
        )
        self._cpu_seconds = 0.0

    def measured(self, *, cpu_seconds: float, memory_bytes: int | None) -> None:
        """Shows what this worker uses: processor time since its start, resident memory."""
        cpu_seconds = round(cpu_seconds, DECIMALS)
        self._cpu.inc(max(0.0, cpu_seconds - self._cpu_seconds))
        self._cpu_seconds = cpu_seconds
        if memory_bytes is not None:
            self._memory.set(memory_bytes)
