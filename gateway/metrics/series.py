"""Series of prometheus_client, and how amounts reach them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias, TypeVar, cast

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


class Uncounted:
    """A series for which the disk has no room. It is looked up again for the next amount."""

    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, amount: float) -> None: ...


class Count(Counter):
    """A counter without the library's checks, which take longer than to add an amount.

    Amounts must not be below zero.
    """

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._value.inc(amount)


class Level(Gauge):
    """A gauge without the library's checks of what is added."""

    def inc(self, amount: float = 1) -> None:
        self._value.inc(amount)


class Observations(Histogram):
    """A histogram that rounds to `DECIMALS`, and finds its bucket by bisection."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        amount = round(amount, DECIMALS)
        self._sum.inc(amount)
        # One bucket only: the text form makes them cumulative.
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


K = TypeVar("K")
V = TypeVar("V")
M = TypeVar("M", Count, Level, Observations)


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


class Bounded(Labelled[Count]):
    """Counters of a family with more combinations of labels than it may have series.

    Beyond the bound an amount is counted with `other` for some of its labels, so sums stay right.
    """

    def __init__(
        self,
        metric: Count,
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

    def __missing__(self, labels: tuple[str, ...]) -> Count:
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

    def counter(self, name: str, text: str) -> Count:
        return Count(f"gateway_{name}", text, registry=self._registry)

    def counters(self, name: str, text: str, labels: Iterable[str]) -> Labelled[Count]:
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
    ) -> Observations:
        return Observations(f"gateway_{name}", text, registry=self._registry, buckets=buckets)

    def histograms(self, name: str, text: str, labels: Sequence[str]) -> Labelled[Observations]:
        full = f"gateway_{name}"
        return Labelled(Observations(full, text, labels, registry=self._registry, buckets=SECONDS))

    def gauge(
        self,
        name: str,
        text: str,
        *,
        labels: Sequence[str] = (),
        workers: OverWorkers = "livesum",
    ) -> Level:
        """`workers` says how the values of several workers become one."""
        return Level(
            f"gateway_{name}", text, labels, registry=self._registry, multiprocess_mode=workers
        )

    def gauges(
        self, name: str, text: str, labels: Sequence[str], *, workers: OverWorkers = "livesum"
    ) -> Labelled[Level]:
        return Labelled(self.gauge(name, text, labels=labels, workers=workers))

    def _labelled_counter(self, name: str, text: str, labels: Sequence[str]) -> Count:
        return Count(f"gateway_{name}", text, labels, registry=self._registry)
