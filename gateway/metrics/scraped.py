"""Metrics that are read for each scrape, such as money in the books, instead of being counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.metrics.text import Writer, sample_start

SUBJECT = ("scope", "name")


class BookTotal(Protocol):
    """A running total of the books, in micro-dollars."""

    @property
    def charged(self) -> int: ...
    @property
    def corrected(self) -> int: ...
    @property
    def saved(self) -> int: ...


class _BookCounter(Collector):
    """A counter with the values of the books, in micro-dollars."""

    _type = "counter"
    _labelnames = SUBJECT
    _multiprocess_mode = "livemax"  # every worker, and every gateway, shows the same

    def __init__(self, name: str, text: str) -> None:
        self._name = f"gateway_{name}"
        self._text = text
        self.usd_micros: Mapping[tuple[str, str], int] = {}

    def write(self, writer: Writer) -> None:
        name = f"{self._name}_total"
        if self.usd_micros:
            writer.family(name, kind=self._type, text=self._text)
        for labels, usd_micros in self.usd_micros.items():
            writer.sample(sample_start(name, self._labelnames, labels), usd_micros / 1e6)

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, usd_micros in self.usd_micros.items():
            family.add_metric(labels, usd_micros / 1e6)
        yield family


class ScrapedGauge(Collector):
    """A gauge whose values are set for a scrape."""

    _type = "gauge"
    _multiprocess_mode = "livemax"  # every worker, and every gateway, shows the same

    def __init__(self, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name = f"gateway_{name}"
        self._text = text
        self._labelnames = labels
        self.values: Mapping[tuple[str, ...], float] = {}

    def write(self, writer: Writer) -> None:
        if self.values:
            writer.family(self._name, kind=self._type, text=self._text)
        for labels, value in self.values.items():
            writer.sample(sample_start(self._name, self._labelnames, labels), value)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        yield family


class PolicyMetrics:
    """What the policy and the calendar say, whether or not the store is available."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.shutdown = ScrapedGauge(
            "model_shutdown_timestamp_seconds", "When upstream shuts a model down", ("model",)
        )
        self.window_start = ScrapedGauge(
            "window_start_timestamp_seconds", "When the current window began", ("window",)
        )
        self.window_end = ScrapedGauge(
            "window_end_timestamp_seconds", "When the next window begins", ("window",)
        )
        self.all = (self.shutdown, self.window_start, self.window_end)
        for gauge in self.all:
            registry.register(gauge)

    def show_windows(self, windows: Mapping[str, tuple[float, float]]) -> None:
        """Shows when each current window began, and when the next one begins."""
        self.window_start.values = {(name,): start for name, (start, _) in windows.items()}
        self.window_end.values = {(name,): end for name, (_, end) in windows.items()}


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


class BookMetrics:
    """Money, windows and limits as the books have them, and the last verification of the books."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._charged = _BookCounter("charged_usd", "US dollars charged")
        self._corrected = _BookCounter("corrected_usd", "US dollars taken back by corrections")
        self._saved = _BookCounter(
            "saved_usd", "Original cost of images served without a purchase, in US dollars"
        )
        self._first_charge = ScrapedGauge(
            "first_charge_timestamp_seconds", "When charged_usd_total first grew", SUBJECT
        )
        self._spend = ScrapedGauge(
            "spend_usd", "US dollars spent in the current window", (*SUBJECT, "window")
        )
        self._reserved = ScrapedGauge(
            "reserved_usd", "US dollars that open purchases have reserved", SUBJECT
        )
        self._max = ScrapedGauge("limit_max", "The maximum of a limit", (*SUBJECT, "limit"))
        self._used = ScrapedGauge(
            "limit_used_ratio",
            "The part of a limit that is used or reserved",
            (*SUBJECT, "limit"),
        )
        self._shadow = ScrapedGauge(
            "limit_shadow", "1 for a limit in shadow mode", (*SUBJECT, "limit")
        )
        self._balanced = ScrapedGauge(
            "ledger_balanced", "1 if the books agreed when they were last verified, else 0"
        )
        self._verified_at = ScrapedGauge(
            "ledger_verified_timestamp_seconds", "When the books were last verified"
        )
        self.all = (
            *(self._charged, self._corrected, self._saved, self._first_charge),
            *(self._spend, self._reserved, self._max, self._used, self._shadow),
            *(self._balanced, self._verified_at),
        )
        for metric in self.all:
            registry.register(metric)

    def show_totals(
        self,
        totals: Mapping[tuple[str, str], BookTotal],
        first_charges: Mapping[tuple[str, ...], float],
    ) -> None:
        """Shows these running totals, by scope and name, until the next call."""
        self._charged.usd_micros = {labels: total.charged for labels, total in totals.items()}
        self._corrected.usd_micros = {labels: total.corrected for labels, total in totals.items()}
        self._saved.usd_micros = {labels: total.saved for labels, total in totals.items()}
        self._first_charge.values = first_charges

    def show_values(self, values: BookValues) -> None:
        """Shows these windows and limits until the next call."""
        self._spend.values = values.spend_usd
        self._reserved.values = values.reserved_usd
        self._max.values = values.limit_max
        self._used.values = values.limit_used_ratio
        self._shadow.values = values.limit_shadow

    def show_verified(self, results: Mapping[float, bool]) -> None:
        """Shows the last verifications: whether the books agreed, by time. Empty: no series."""
        self._balanced.values = {(): float(all(results.values()))} if results else {}
        self._verified_at.values = {(): max(results)} if results else {}
