"""Metrics of money that are read from the books: no process counts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
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
