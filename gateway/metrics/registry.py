"""Everything that a process counts, and the text form of all processes of a gateway.

With several workers each writes its own files in one folder (prometheus_client's multiprocess
mode, switched on by `PROMETHEUS_MULTIPROC_DIR`), and any worker renders the sum.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest, values

from gateway import __version__
from gateway.metrics.admission import Admission
from gateway.metrics.exposition import Exposition
from gateway.metrics.families import (
    CacheMetrics,
    MoneyMetrics,
    ProcessMetrics,
    RequestMetrics,
    UpstreamMetrics,
)
from gateway.metrics.labels import Labels
from gateway.metrics.live import Live, live_of_process, live_of_workers
from gateway.metrics.scraped import BookMetrics, PolicyMetrics
from gateway.metrics.series import Factory
from gateway.metrics.text import Writer
from gateway.metrics.values import FOLDER, Value
from gateway.metrics.worker_files import retire_worker

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


log = structlog.get_logger(__name__)

values.ValueClass = Value


class Metrics:
    """Everything that this process counts, and what it reads for each scrape."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        self._labels = Labels()
        self._prices_as_of: date | None = None
        folder = Path(os.environ[FOLDER]) if FOLDER in os.environ else None
        self._folder = folder
        self._all_workers = None if folder is None else Exposition(folder)
        create = Factory(self._registry, Admission(folder))
        self.requests = RequestMetrics(create, self._labels)
        self.upstream = UpstreamMetrics(create, self._labels)
        self.cache = CacheMetrics(create)
        self.money = MoneyMetrics(create, self._labels)
        self.process = ProcessMetrics(create)
        self.books = BookMetrics(self._registry)
        self.policy = PolicyMetrics(self._registry)
        self.config_reload_failures = create.counter(
            "config_reload_failures_total",
            "Changed policies and certificates that are faulty and were not loaded",
        )
        self.config_faulty = create.gauge(
            "config_faulty",
            "1 while an old policy or certificate is used because the new one is faulty",
            workers="livemax",
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
        retiring_models: Mapping[str, date],
    ) -> None:
        """Gives these values labels of their own, and shows how old the price table is."""
        self._labels.use_values(models=models, sizes=sizes, qualities=qualities)
        self._prices_as_of = prices_as_of
        self.upstream.use_models(models)
        self.policy.shutdown.values = {
            (model,): datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
            for model, day in retiring_models.items()
        }

    def use_keys(self, oldest_active: Iterable[str]) -> None:
        """Gives these keys labels of their own; others get one while there is room."""
        self._labels.use_keys(oldest_active)

    def read_live(self) -> Live:
        """What all workers of this gateway are doing now. Reads files, so it is for a thread."""
        if self._folder is None:
            return live_of_process(self._registry)
        return live_of_workers(self._folder)

    def render(self) -> bytes:
        """The text form, over all workers; not in two threads at once.

        Takes milliseconds for each thousand series.
        """
        if self._prices_as_of is not None:
            since = datetime.combine(self._prices_as_of, datetime.min.time(), tzinfo=UTC)
            age = time.time() - since.timestamp()
            self._price_age.set(max(0.0, age))
        if self._all_workers is None:
            return generate_latest(self._registry)
        writer = Writer()
        self._all_workers.write(writer)
        for metric in (*self.books.all, *self.policy.all):
            metric.write(writer)
        return writer.encode()


def forget_worker(pid: int) -> None:
    """Called by the parent when a worker has ended: drops its gauges and keeps its counters."""
    if FOLDER in os.environ:
        try:
            retire_worker(Path(os.environ[FOLDER]), pid)
        except OSError as error:
            # Its files stay and count: nothing is lost but room.
            log.warning("metrics_not_merged", pid=pid, reason=error.strerror)
