"""Series of prometheus_client, and how amounts reach them."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Sequence
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from gateway.metrics.admission import Admission
from gateway.metrics.labels import OTHER

SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600)

OverWorkers: TypeAlias = Literal["livesum", "livemin", "livemax", "livemostrecent"]

DECIMALS: Final = 6
"""Of what is counted: micro-dollars and microseconds, so sums can be rounded."""

MAX_REMEMBERED: Final = 4096
"""Combinations of values whose series is remembered, for each of two families."""

FOLDED_SHARE: Final = 4
"""The series of a family that have `other` for room come on top of its bound: at most this part."""

# Of one process; those of several have none. A gateway shows the same either way.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Series(Protocol):
    """A series that an amount can be added to."""

    def inc(self, amount: float) -> None: ...


class Uncounted:
    """A series for which the disk has no room. It is looked up again for the next amount."""

    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, amount: float) -> None: ...

    def observe_all(self, amounts: Sequence[float]) -> None: ...


class SummedHistogram(Histogram):
    """A histogram whose observations can be added up before they are written."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        super().observe(round(amount, DECIMALS), exemplar)

    def observe_all(self, amounts: Sequence[float]) -> None:
        """As `observe` with each of them, but adds to each series only once."""
        self._sum.inc(sum(round(amount, DECIMALS) for amount in amounts))
        # As in `observe`: prometheus_client adds to one bucket and makes them cumulative in the
        # text form.
        counts = Counts(bisect_left(self._upper_bounds, amount) for amount in amounts)
        for index, count in counts.items():
            self._buckets[index].inc(count)


class PendingAmounts:
    """Amounts of one turn of the event loop, written together when it ends.

    prometheus_client writes each amount into a shared file, behind a lock and a check of the
    process id: 1 µs, and a hit adds to seven series. All requests of a turn add to the same few.
    To collect them for longer would save little, and lose those of a worker that is killed, whose
    answers have left.
    """

    def __init__(self) -> None:
        self._amounts: dict[Series, float] = {}
        self._observed: dict[SummedHistogram, list[float]] = {}
        self._is_empty = True

    def add(self, series: Series, amount: float = 1) -> None:
        """Adds an amount; a gauge's may be below zero."""
        if self._is_empty:
            self._write_later()
        self._amounts[series] = self._amounts.get(series, 0) + amount

    def observe(self, histogram: SummedHistogram, amount: float) -> None:
        """Adds an observation."""
        if self._is_empty:
            self._write_later()
        if (observed := self._observed.get(histogram)) is None:
            observed = self._observed[histogram] = []
        observed.append(amount)

    def _write_later(self) -> None:
        asyncio.get_running_loop().call_soon(self._write)
        self._is_empty = False

    def _write(self) -> None:
        amounts, self._amounts = self._amounts, {}
        observed, self._observed = self._observed, {}
        self._is_empty = True
        for series, amount in amounts.items():
            if amount:  # a request that has begun and ended changes no gauge
                series.inc(amount)
        for histogram, all_amounts in observed.items():
            histogram.observe_all(all_amounts)


K = TypeVar("K")
V = TypeVar("V")
M = TypeVar("M", Counter, Gauge, SummedHistogram)


class Labelled(dict[tuple[str, ...], M]):
    """A metric's series by their labels, each looked up in prometheus_client only once.

    As bounded as the labels are: see `Labels`.
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        try:
            series: M = self._metric.labels(*labels)
        except OSError:  # a full disk: no reason to fail a request
            return cast(M, Uncounted())
        self[labels] = series
        return series


class Bounded(Labelled[Counter]):
    """Counters of a family with more combinations of labels than it may have series.

    Beyond the bound an amount is counted with `other` for some of its labels, so sums stay right.
    """

    def __init__(
        self,
        metric: Counter,
        admission: Admission,
        *,
        name: str,
        most: int,
        folds: Sequence[Sequence[int]],
    ) -> None:
        """`folds` are the positions of the labels that become `other`, in steps.

        The labels that are left at the last step must be bounded by the code.
        """
        super().__init__(metric)
        self._admission = admission
        self._steps = [(f"{name}/{number}", fold) for number, fold in enumerate(folds)]
        for number, (family, _) in enumerate(self._steps):
            admission.bound(family, most if number == 0 else most // FOLDED_SHARE)

    def __missing__(self, labels: tuple[str, ...]) -> Counter:
        admitted = labels
        for family, fold in self._steps:
            if self._admission.admits(family, admitted):
                break
            admitted = tuple(
                OTHER if number in fold else label for number, label in enumerate(admitted)
            )
        # Refused labels are not kept: there may be hundreds of thousands.
        return self.get(admitted) or super().__missing__(admitted)


def remember(known: dict[K, V], values: K, found: V, *series: object) -> None:
    """Keeps what was found for some values. A client may have chosen them, so it keeps few.

    `series` are those that were found.
    """
    if any(isinstance(one, Uncounted) for one in series):
        return
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known[values] = found


class Factory:
    """Creates metrics in a registry, under the gateway's prefix."""

    def __init__(self, registry: CollectorRegistry, admission: Admission) -> None:
        self._registry = registry
        self._admission = admission

    def counter(self, name: str, text: str) -> Counter:
        return Counter(f"gateway_{name}", text, registry=self._registry)

    def counters(self, name: str, text: str, labels: Iterable[str]) -> Labelled[Counter]:
        return Labelled(self._labelled_counter(name, text, tuple(labels)))

    def bounded(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        *,
        most: int,
        folds: Sequence[Sequence[str]],
    ) -> Bounded:
        """`folds` are the labels that become `other` beyond the bound, in steps."""
        return Bounded(
            self._labelled_counter(name, text, labels),
            self._admission,
            name=name,
            most=most,
            folds=[[labels.index(label) for label in fold] for fold in folds],
        )

    def histogram(
        self, name: str, text: str, *, buckets: Sequence[float] = SECONDS
    ) -> SummedHistogram:
        return SummedHistogram(f"gateway_{name}", text, registry=self._registry, buckets=buckets)

    def histograms(self, name: str, text: str, labels: Sequence[str]) -> Labelled[SummedHistogram]:
        full = f"gateway_{name}"
        return Labelled(
            SummedHistogram(full, text, labels, registry=self._registry, buckets=SECONDS)
        )

    def gauge(
        self,
        name: str,
        text: str,
        *,
        labels: Sequence[str] = (),
        workers: OverWorkers = "livesum",
    ) -> Gauge:
        """`workers` says how the values of several workers become one."""
        return Gauge(
            f"gateway_{name}", text, labels, registry=self._registry, multiprocess_mode=workers
        )

    def gauges(
        self, name: str, text: str, labels: Sequence[str], *, workers: OverWorkers = "livesum"
    ) -> Labelled[Gauge]:
        return Labelled(self.gauge(name, text, labels=labels, workers=workers))

    def _labelled_counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"gateway_{name}", text, labels, registry=self._registry)
