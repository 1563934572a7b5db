"""The metrics of `docs/reference/metrics.md`, one class per family, and their text form.

With several workers each writes its own files in one folder (prometheus_client's multiprocess
mode, switched on by `PROMETHEUS_MULTIPROC_DIR` before this module is imported), and any worker
renders the sum. The number of series is bounded: a model, size, quality or key without a label of
its own is counted as `other`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Final, Literal, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from gateway import __version__
from gateway.book_metrics import BookGauges, RunningTotalMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

MAX_KEYS: Final = 500
"""Keys that have a label of their own: the oldest active ones."""

OTHER: Final = "other"

SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600)
OVERHEAD_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)


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


# ── series ──────────────────────────────────────────────────────────────────────────────────


class Series(Protocol):
    """A series that an amount can be added to."""

    def inc(self, amount: float) -> None: ...


class _Histogram(Histogram):
    """A histogram whose observations can be added up before they are written."""

    def parts(self, amount: float) -> Iterable[tuple[Series, float]]:
        """The series that `observe` would add to, and how much."""
        # As in `observe`: prometheus_client adds to one bucket and makes them cumulative in the
        # text form.
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        return (self._sum, amount), (bucket, 1)


class PendingAmounts:
    """Amounts of one turn of the event loop, written when it ends.

    prometheus_client writes each amount into a shared file, behind a lock and a check of the
    process id. All requests of a turn add to the same few series.
    """

    def __init__(self) -> None:
        self._amounts: dict[Series, float] = {}

    def add(self, series: Series, amount: float = 1) -> None:
        """Adds an amount; a gauge's may be below zero."""
        if not self._amounts:
            asyncio.get_running_loop().call_soon(self._write)
        self._amounts[series] = self._amounts.get(series, 0) + amount

    def observe(self, histogram: _Histogram, amount: float) -> None:
        """Adds an observation."""
        for part, more in histogram.parts(amount):
            self.add(part, more)

    def _write(self) -> None:
        amounts, self._amounts = self._amounts, {}
        for series, amount in amounts.items():
            series.inc(amount)


M = TypeVar("M", Counter, _Histogram)


class Labelled(dict[tuple[str, ...], M]):
    """A metric's series by their labels, each looked up in prometheus_client only once.

    As bounded as the labels are: see `Labels`.
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        series: M = self._metric.labels(*labels)
        self[labels] = series
        return series


class Labels:
    """The values that have a label of their own."""

    def __init__(self) -> None:
        self.models: Collection[str] = ()
        self.sizes: Collection[str] = ()
        self.qualities: Collection[str] = ()
        self.keys: set[str] = set()

    def key(self, name: str) -> str:
        """A key's label. A key that is not known yet gets one while there is room."""
        if name not in self.keys and len(self.keys) < MAX_KEYS:
            self.keys.add(name)
        return name if name in self.keys else OTHER

    def model(self, name: str | None) -> str:
        """A model's label; empty without a model."""
        return "" if name is None else _known(name, self.models)

    def size(self, value: str | None) -> str:
        """A size's label."""
        return _known(value, self.sizes)

    def quality(self, value: str | None) -> str:
        """A quality's label."""
        return _known(value, self.qualities)


def _known(value: str | None, values: Collection[str]) -> str:
    return value if value is not None and value in values else OTHER


class _Factory:
    """Creates metrics in a registry, under the gateway's prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str) -> Counter:
        return Counter(f"gateway_{name}", text, registry=self._registry)

    def counters(self, name: str, text: str, labels: Iterable[str]) -> Labelled[Counter]:
        return Labelled(Counter(f"gateway_{name}", text, tuple(labels), registry=self._registry))

    def histogram(self, name: str, text: str, *, buckets: Sequence[float] = SECONDS) -> _Histogram:
        return _Histogram(f"gateway_{name}", text, registry=self._registry, buckets=buckets)

    def histograms(self, name: str, text: str, label: str) -> Labelled[_Histogram]:
        full = f"gateway_{name}"
        return Labelled(_Histogram(full, text, (label,), registry=self._registry, buckets=SECONDS))

    def gauge(
        self,
        name: str,
        text: str,
        *,
        labels: Sequence[str] = (),
        workers: Literal["livesum", "livemin", "livemax", "livemostrecent"] = "livesum",
    ) -> Gauge:
        """`workers` says how the values of several workers become one."""
        return Gauge(
            f"gateway_{name}", text, labels, registry=self._registry, multiprocess_mode=workers
        )


# ── families ────────────────────────────────────────────────────────────────────────────────


class RequestMetrics:
    """Requests of clients, their answers and refusals."""

    def __init__(self, create: _Factory, labels: Labels, pending: PendingAmounts) -> None:
        self._labels = labels
        self._pending = pending
        self._total = create.counters(
            "requests_total", "Answered requests", ("endpoint", "model", "status", "outcome")
        )
        self._duration = create.histograms(
            "request_duration_seconds", "Time from the head of a request to its answer", "outcome"
        )
        self._overhead = create.histogram(
            "overhead_seconds", "Time to answer a hit", buckets=OVERHEAD_SECONDS
        )
        self._inflight = create.gauge("inflight_requests", "Requests being answered")
        self._first_event = create.histogram(
            "stream_first_event_seconds", "Time from the head of a request to its first event"
        )
        self._refusals = create.counters("refusals_total", "Requests refused", ("key", "reason"))
        self._shadowed = create.counters(
            "shadow_refusals_total", "Requests over a limit in shadow mode", ("key", "reason")
        )
        self._refused_connections = create.counters(
            "connections_refused_total", "Connections refused, by the bound", ("reason",)
        )

    def started(self) -> None:
        """A request is in flight."""
        self._pending.add(self._inflight)

    def finished(self) -> None:
        """A request is in flight no longer."""
        self._pending.add(self._inflight, -1)

    def answered(
        self, *, endpoint: str, model: str | None, status: int, outcome: str, seconds: float
    ) -> None:
        """Counts one answer."""
        labels = endpoint, self._labels.model(model), str(status), outcome
        self._pending.add(self._total[labels])
        self._pending.observe(self._duration[(outcome,)], seconds)
        if outcome == "hit":
            self._pending.observe(self._overhead, seconds)

    def refused_connection(self, reason: str) -> None:
        """Counts a connection beyond a bound: of this worker, or of the client's address."""
        self._pending.add(self._refused_connections[(reason,)])

    def streamed(self, seconds: float) -> None:
        """Records the time to the first event of a stream."""
        self._first_event.observe(seconds)

    def refused(self, key: str, reason: str) -> None:
        """Counts one refusal."""
        self._refusals[self._labels.key(key), reason].inc()

    def shadowed(self, key: str, limit: str) -> None:
        """Counts one refusal that a limit in shadow mode did not make."""
        self._shadowed[self._labels.key(key), limit].inc()


class UpstreamMetrics:
    """Purchases at upstream, and the links that it answered."""

    def __init__(self, create: _Factory, labels: Labels) -> None:
        self._labels = labels
        self.flights = create.gauge(
            "flights", "Work under way that outlives its request, such as purchases"
        )
        self._requests = create.counters(
            "upstream_requests_total", "Attempts to buy", ("model", "status")
        )
        self._duration = create.histograms(
            "upstream_duration_seconds", "Duration of an attempt to buy", "model"
        )
        self._retries = create.counter(
            "upstream_retries_total", "Attempts to buy after the first of a purchase"
        )
        self._breaker_open = create.gauge(
            "upstream_breaker_open", "Workers whose circuit breaker is open"
        )
        self._fetches = create.counters(
            "rehost_total", "Image links of upstream, by how their fetch ended", ("outcome",)
        )

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """Counts one attempt to buy."""
        label = self._labels.model(model)
        self._requests[label, str(status)].inc()
        self._duration[(label,)].observe(seconds)

    def retried(self) -> None:
        """Counts one attempt after the first."""
        self._retries.inc()

    def breaker_turned(self, *, is_open: bool) -> None:
        """Shows whether this worker's circuit breaker is open."""
        self._breaker_open.set(is_open)

    def fetched(self, outcome: str) -> None:
        """Counts one link: `fetched`, or the reason why it was not."""
        self._fetches[(outcome,)].inc()


class CacheMetrics:
    """The cache, and the store that it lives in."""

    def __init__(self, create: _Factory) -> None:
        self._evictions = create.counter(
            "cache_evictions_total", "Images evicted to keep within the bound"
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
            "store_up", "1 if the store answered its latest batch of commands", workers="livemin"
        )
        self.store_errors = create.counter(
            "store_errors_total", "Batches of commands that the store did not answer"
        )

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

    def lru_measured(self, lru_totals: CacheTotals) -> None:
        """Shows how much the cache holds."""
        self._images.set(lru_totals.count)
        self._bytes.set(lru_totals.size_bytes)


class MoneyMetrics:
    """Images, tokens and dollars by key, team and model."""

    def __init__(self, create: _Factory, labels: Labels, pending: PendingAmounts) -> None:
        self._labels = labels
        self._pending = pending
        account = ("key", "team", "model")
        self._tokens = create.counters("tokens_total", "Tokens charged", (*account, "kind"))
        self._images = create.counters(
            "images_total", "Images bought or served", (*account, "size", "quality", "outcome")
        )
        self._cost = create.counters("cost_usd_total", "US dollars charged", account)
        self._unreadable = create.counter(
            "ledger_unreadable_total", "Ledger records left out of the totals"
        )

    def purchased(self, billed: Billed) -> None:
        """Counts a settled purchase, once."""
        account = self._account(billed)
        for kind, count in billed.tokens.items():
            self._tokens[(*account, kind)].inc(count)
        self._cost[account].inc(billed.cost_micros / 1e6)
        self._images_of(billed, account).inc(billed.images)

    def corrected(self, difference: Billed) -> None:
        """Counts a correction of a presumed charge upwards; a counter cannot fall.

        The presumed charge was counted when it was settled. Its tokens were `estimated`, and so is
        what is added to them here.
        """
        account = self._account(difference)
        self._cost[account].inc(max(0, difference.cost_micros) / 1e6)
        self._images_of(difference, account).inc(max(0, difference.images))
        if (tokens := sum(difference.tokens.values())) > 0:
            self._tokens[(*account, "estimated")].inc(tokens)

    def unreadable(self, records: int) -> None:
        """Counts ledger records that are left out of the totals."""
        self._unreadable.inc(records)

    def served(self, billed: Billed, images: int) -> None:
        """Counts images that were served without a purchase."""
        self._pending.add(self._images_of(billed, self._account(billed)), images)

    def _account(self, billed: Billed) -> tuple[str, str, str]:
        key = self._labels.key(billed.key)
        # Every key may have its own team, so teams are bounded by the keys.
        team = OTHER if key == OTHER else billed.team or ""
        return key, team, self._labels.model(billed.model)

    def _images_of(self, billed: Billed, account: tuple[str, str, str]) -> Counter:
        size, quality = self._labels.size(billed.size), self._labels.quality(billed.quality)
        return self._images[(*account, size, quality, billed.outcome)]


class Metrics:
    """Everything that this process counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        self._labels, pending = Labels(), PendingAmounts()
        self._prices_as_of: date | None = None
        create = _Factory(self._registry)
        self.requests = RequestMetrics(create, self._labels, pending)
        self.upstream = UpstreamMetrics(create, self._labels)
        self.cache = CacheMetrics(create)
        self.money = MoneyMetrics(create, self._labels, pending)
        self.running_totals = RunningTotalMetrics(self._registry)
        self.books = BookGauges(self._registry)
        self.config_reload_failures = create.counter(
            "config_reload_failures_total",
            "Policies and certificates not adopted because of a fault",
        )
        self._price_age = create.gauge(
            "price_table_age_seconds",
            "Time since the price table was last compared with the price list",
            workers="livemax",
        )
        build = create.gauge(
            "build_info",
            "Always 1; the labels name the build",
            labels=("version", "python"),
            workers="livemax",
        )
        build.labels(__version__, platform.python_version()).set(1)

    def use_policy(
        self,
        *,
        models: Collection[str],
        sizes: Collection[str],
        qualities: Collection[str],
        prices_as_of: date,
    ) -> None:
        """Gives these values labels of their own, and shows how old the price table is."""
        self._labels.models = models
        self._labels.sizes = sizes
        self._labels.qualities = qualities
        self._prices_as_of = prices_as_of

    def use_keys(self, oldest_active: Iterable[str]) -> None:
        """Gives these keys labels of their own; others get one while there is room."""
        self._labels.keys = set(list(oldest_active)[:MAX_KEYS])

    def render(self) -> bytes:
        """The text form, over all workers. Takes milliseconds for each thousand series."""
        if self._prices_as_of is not None:
            age = time.time() - time.mktime(self._prices_as_of.timetuple())
            self._price_age.set(max(0.0, age))
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        all_workers = CollectorRegistry()
        multiprocess.MultiProcessCollector(all_workers)  # type: ignore[no-untyped-call]
        self.running_totals.register(all_workers)
        self.books.register(all_workers)
        return generate_latest(all_workers)


def forget_worker(pid: int) -> None:
    """Called by the parent when a worker has ended: drops its gauges and keeps its counters."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
