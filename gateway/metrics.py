"""Metrics: the counters and histograms of CONTRACT §11, and their text form.

With several workers each writes its own files in one folder (prometheus_client's multiprocess
mode, switched on by `PROMETHEUS_MULTIPROC_DIR` before this module is imported), and any worker
renders the sum. Labels are bounded: a model, size or key that is not on the list is `other`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Final, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from gateway import __version__

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

MAX_KEYS: Final = 500
"""Keys that have a label of their own: the oldest live ones."""

OTHER: Final = "other"

SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600)
OVERHEAD_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)


class Billed(Protocol):
    """What the money counters read from a ledger record."""

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
    @property
    def saved_micros(self) -> int: ...


class Shelved(Protocol):
    """What the cache's gauges read."""

    @property
    def count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


class Adds(Protocol):
    """Something that is counted."""

    def inc(self, amount: float) -> None: ...


class _Histogram(Histogram):
    """A histogram that says what an observation adds, and to what."""

    def parts(self, amount: float) -> Iterable[tuple[Adds, float]]:
        """All that `observe` would write."""
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        return (self._sum, amount), (bucket, 1)


class Gathered:
    """What was counted in one turn of the event loop, written when it ends.

    prometheus_client writes each amount into a shared file, behind a lock and a look at the
    process's id. What every request counts is the same few series for all requests of a turn.
    """

    def __init__(self) -> None:
        self._amounts: dict[Adds, float] = {}

    def add(self, series: Adds, amount: float = 1) -> None:
        """Counts an amount; a gauge's may be below zero."""
        if not self._amounts:
            asyncio.get_running_loop().call_soon(self._write)
        self._amounts[series] = self._amounts.get(series, 0) + amount

    def observe(self, histogram: _Histogram, amount: float) -> None:
        """Counts an observation."""
        for part, more in histogram.parts(amount):
            self.add(part, more)

    def _write(self) -> None:
        amounts, self._amounts = self._amounts, {}
        for series, amount in amounts.items():
            series.inc(amount)


M = TypeVar("M", Counter, _Histogram)


class Labelled(dict[tuple[str, ...], M]):
    """A metric's series by their labels, each looked up in prometheus_client only once.

    As bounded as the labels are: see `Metrics.know`.
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        series: M = self._metric.labels(*labels)
        self[labels] = series
        return series


class Metrics:
    """Everything that this process counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry = registry or CollectorRegistry()
        self._gathered = Gathered()
        self._keys: set[str] = set()
        self._models: Collection[str] = ()
        self._sizes: Collection[str] = ()
        self._qualities: Collection[str] = ()
        self._prices_as_of: date | None = None

        def counter(name: str, said: str) -> Counter:
            return Counter(f"gateway_{name}", said, registry=registry)

        def counters(name: str, said: str, labels: Iterable[str]) -> Labelled[Counter]:
            return Labelled(Counter(f"gateway_{name}", said, tuple(labels), registry=registry))

        def gauge(name: str, said: str) -> Gauge:
            return Gauge(f"gateway_{name}", said, registry=registry, multiprocess_mode="livesum")

        def shared(name: str, said: str) -> Gauge:
            """Of what is one and the same for all workers: whoever looked last is right."""
            return Gauge(
                f"gateway_{name}", said, registry=registry, multiprocess_mode="livemostrecent"
            )

        def histogram(name: str, said: str, *, buckets: Sequence[float] = SECONDS) -> _Histogram:
            return _Histogram(f"gateway_{name}", said, registry=registry, buckets=buckets)

        def histograms(name: str, said: str, label: str) -> Labelled[_Histogram]:
            full = f"gateway_{name}"
            return Labelled(_Histogram(full, said, (label,), registry=registry, buckets=SECONDS))

        who = ("key", "team", "model")
        self.requests = counters(
            "requests_total", "Answers", ("endpoint", "model", "status", "outcome")
        )
        self.duration = histograms(
            "request_duration_seconds", "From the head of a request to its answer", "outcome"
        )
        self.overhead = histogram(
            "overhead_seconds", "Time to answer a hit", buckets=OVERHEAD_SECONDS
        )
        self.inflight = gauge("inflight_requests", "Requests being answered")
        self.flights = gauge("flights", "Paid work under way")
        self.upstream_requests = counters(
            "upstream_requests_total", "Attempts to buy", ("model", "status")
        )
        self.upstream_duration = histograms(
            "upstream_duration_seconds", "Length of an attempt to buy", "model"
        )
        self.upstream_retries = counter("upstream_retries_total", "Attempts after the first")
        self.breaker_open = gauge(
            "upstream_breaker_open", "Workers whose circuit breaker lets nothing through"
        )
        self.stream_first_event = histogram(
            "stream_first_event_seconds", "From the head of a request to its first event"
        )
        self.tokens = counters("tokens_total", "Tokens charged", (*who, "kind"))
        self.images = counters("images_total", "Images", (*who, "size", "quality", "outcome"))
        self.cost = counters("cost_usd_total", "US dollars charged", who)
        self.saved = counters("saved_usd_total", "What images that were not bought had cost", who)
        self.rehosts = counters(
            "rehost_total", "Links of upstream's that were fetched, or why not", ("outcome",)
        )
        self.cache_evictions = counter(
            "cache_evictions_total", "Images that had to go to keep within the bound"
        )
        self.cache_damaged = counter(
            "cache_damaged_total", "Images whose bytes were damaged in the store"
        )
        self.cache_entries = shared("cache_entries", "Distinct images in the cache")
        self.cache_bytes = shared("cache_bytes", "Bytes of all images in the cache")
        self.refusals = counters("refusals_total", "Requests refused", ("key", "reason"))
        self.store_up = Gauge(
            "gateway_store_up",
            "Whether the store answered last time",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_reload_failures = counter(
            "config_reload_failures_total", "Policies that were not taken for a fault in them"
        )
        self.store_errors = counter("store_errors_total", "Batches that the store did not answer")
        self._price_age = Gauge(
            "gateway_price_table_age_seconds",
            "Time since the price table was last compared with the price list",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._build = Gauge(
            "gateway_build_info",
            "Always 1; says which build this is",
            ("version", "python"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._build.labels(__version__, platform.python_version()).set(1)

    def know(
        self,
        *,
        models: Collection[str],
        sizes: Collection[str],
        qualities: Collection[str],
        prices_as_of: date,
    ) -> None:
        """Which values have labels of their own, and how old the price table is."""
        self._models, self._sizes, self._qualities = models, sizes, qualities
        self._prices_as_of = prices_as_of

    def know_keys(self, oldest_live: Iterable[str]) -> None:
        """Which keys have labels of their own; keys not named here follow while there is room."""
        self._keys = set(list(oldest_live)[:MAX_KEYS])

    def began(self) -> None:
        """A request is being answered from now on."""
        self._gathered.add(self.inflight)

    def ended(self) -> None:
        """It is no longer."""
        self._gathered.add(self.inflight, -1)

    def answered(
        self, *, endpoint: str, model: str | None, status: int, outcome: str, seconds: float
    ) -> None:
        """Counts one answer."""
        self._gathered.add(self.requests[endpoint, self._model(model), str(status), outcome])
        self._gathered.observe(self.duration[(outcome,)], seconds)
        if outcome == "hit":
            self._gathered.observe(self.overhead, seconds)

    def attempted(self, model: str, status: int | str, seconds: float) -> None:
        """Counts one attempt to buy."""
        self.upstream_requests[self._model(model), str(status)].inc()
        self.upstream_duration[(self._model(model),)].observe(seconds)

    def retried(self) -> None:
        """Counts one attempt after the first."""
        self.upstream_retries.inc()

    def breaker_turned(self, *, is_open: bool) -> None:
        """Notes that this worker's circuit breaker has opened or closed."""
        self.breaker_open.set(is_open)

    def purchased(self, billed: Billed) -> None:
        """Counts a settled purchase, once."""
        who = self._who(billed)
        for kind, count in billed.tokens.items():
            self.tokens[(*who, kind)].inc(max(0, count))
        self.cost[who].inc(max(0, billed.cost_micros) / 1e6)
        self.saved[who].inc(billed.saved_micros / 1e6)
        self._images_of(billed, who).inc(max(0, billed.images))

    def served(self, billed: Billed, images: int) -> None:
        """Counts images that were answered without a purchase, and what that saved."""
        who = self._who(billed)
        self._gathered.add(self.saved[who], billed.saved_micros / 1e6)
        self._gathered.add(self._images_of(billed, who), images)

    def fetched(self, outcome: str) -> None:
        """Counts one link of upstream's: `fetched`, or why it was not."""
        self.rehosts[(outcome,)].inc()

    def evicted(self, images: int) -> None:
        """Counts images that went to keep within the bound."""
        self.cache_evictions.inc(images)

    def damaged(self) -> None:
        """Counts an image whose bytes were damaged in the store."""
        self.cache_damaged.inc()

    def lru_measured(self, lru_totals: Shelved) -> None:
        """Notes how much the cache holds."""
        self.cache_entries.set(lru_totals.count)
        self.cache_bytes.set(lru_totals.size_bytes)

    def refused(self, key: str, reason: str) -> None:
        """Counts one refusal."""
        self.refusals[self._key(key), reason].inc()

    def _images_of(self, billed: Billed, who: tuple[str, str, str]) -> Counter:
        size = _listed(billed.size, self._sizes)
        quality = _listed(billed.quality, self._qualities)
        return self.images[(*who, size, quality, billed.outcome)]

    def _who(self, billed: Billed) -> tuple[str, str, str]:
        key = self._key(billed.key)
        team = OTHER if key == OTHER else billed.team or ""
        return key, team, self._model(billed.model)

    def _key(self, name: str) -> str:
        if name not in self._keys and len(self._keys) < MAX_KEYS:
            self._keys.add(name)
        return name if name in self._keys else OTHER

    def _model(self, model: str | None) -> str:
        return "" if model is None else _listed(model, self._models)

    def render(self) -> bytes:
        """The text form, over all workers. Takes milliseconds for each thousand series."""
        if self._prices_as_of is not None:
            age = time.time() - time.mktime(self._prices_as_of.timetuple())
            self._price_age.set(max(0.0, age))
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        list_keys = CollectorRegistry()
        multiprocess.MultiProcessCollector(list_keys)  # type: ignore[no-untyped-call]
        return generate_latest(list_keys)


def _listed(value: str | None, values: Collection[str]) -> str:
    return value if value is not None and value in values else OTHER


def forget_worker(pid: int) -> None:
    """Called by the parent: a dead worker's gauges count no longer, its counters still do."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
