"""Metrics of money that are read from the books: no process counts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class BookTotal(Protocol):
    """A running total of the books, in micro-dollars."""

    @property
    def charged(self) -> int: ...
    @property
    def corrected(self) -> int: ...
    @property
    def saved(self) -> int: ...


class _BookCounter(Collector):
    """A counter that no process counts: its values are read from the books for each scrape."""

    _type = "counter"
    _labelnames = ("scope", "name")
    _multiprocess_mode = "livemax"  # every worker, and every gateway, shows the same

    def __init__(self, name: str, text: str) -> None:
        self._name = f"gateway_{name}"
        self._text = text
        self.usd_micros: Mapping[tuple[str, str], int] = {}

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, usd_micros in self.usd_micros.items():
            family.add_metric(labels, usd_micros / 1e6)
        yield family


class _BookGauge(Collector):
    """A gauge with the values of the books, read for each scrape."""

    _type = "gauge"
    _multiprocess_mode = "livemax"  # every worker, and every gateway, shows the same

    def __init__(self, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name = f"gateway_{name}"
        self._text = text
        self._labelnames = labels
        self.values: Mapping[tuple[str, ...], float] = {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        yield family


class BookValues(Protocol):
    """Values of the gauges of money and limits, by their labels."""

    @property
    def spend_usd(self) -> Mapping[tuple[str, ...], float]: ...
    @property
    def reserved_usd(self) -> Mapping[tuple[str, ...], float]: ...
    @property
    def limit_max(self) -> Mapping[tuple[str, ...], float]: ...
    @property
    def limit_used_ratio(self) -> Mapping[tuple[str, ...], float]: ...
    @property
    def limit_shadow(self) -> Mapping[tuple[str, ...], float]: ...


class BookGauges:
    """Windows and limits of keys, teams and everyone, and the last verification of the books."""

    def __init__(self, registry: CollectorRegistry) -> None:
        subject = ("scope", "name")
        self._spend = _BookGauge(
            "spend_usd", "US dollars spent in the window of now", (*subject, "window")
        )
        self._reserved = _BookGauge(
            "reserved_usd", "US dollars that open purchases have reserved", subject
        )
        self._max = _BookGauge("limit_max", "The maximum of a limit", (*subject, "limit"))
        self._used = _BookGauge(
            "limit_used_ratio",
            "The part of a limit that is used or reserved",
            (*subject, "limit"),
        )
        self._shadow = _BookGauge(
            "limit_shadow", "1 for a limit that refuses nothing", (*subject, "limit")
        )
        self._balanced = _BookGauge(
            "ledger_balanced", "1 if the books agreed when they were last verified, else 0"
        )
        self._verified_at = _BookGauge(
            "ledger_verified_timestamp_seconds", "When the books were last verified"
        )
        self.register(registry)

    def register(self, registry: CollectorRegistry) -> None:
        """Shows the gauges in a registry."""
        for gauge in (self._spend, self._reserved, self._max, self._used, self._shadow):
            registry.register(gauge)
        registry.register(self._balanced)
        registry.register(self._verified_at)

    def show(self, values: BookValues) -> None:
        """Shows these values until the next call."""
        self._spend.values = values.spend_usd
        self._reserved.values = values.reserved_usd
        self._max.values = values.limit_max
        self._used.values = values.limit_used_ratio
        self._shadow.values = values.limit_shadow

    def show_verified(self, results: Mapping[float, bool]) -> None:
        """Shows the last verifications: whether the books agreed, by time. None: nothing."""
        self._balanced.values = {(): float(all(results.values()))} if results else {}
        self._verified_at.values = {(): max(results)} if results else {}


class RunningTotalMetrics:
    """Money by key, team, everyone and model, as the books have it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._charged = _BookCounter("charged_usd", "US dollars charged")
        self._corrected = _BookCounter("corrected_usd", "US dollars taken back by corrections")
        self._saved = _BookCounter("saved_usd", "US dollars that served images had cost")
        self.register(registry)

    def register(self, registry: CollectorRegistry) -> None:
        """Shows the counters in a registry."""
        for counter in (self._charged, self._corrected, self._saved):
            registry.register(counter)

    def show(self, totals: Mapping[tuple[str, str], BookTotal]) -> None:
        """Shows these totals, by scope and name, until the next call."""
        self._charged.usd_micros = {labels: total.charged for labels, total in totals.items()}
        self._corrected.usd_micros = {labels: total.corrected for labels, total in totals.items()}
        self._saved.usd_micros = {labels: total.saved for labels, total in totals.items()}
