"""What the workers of this gateway are doing now, without rendering all metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from prometheus_client import CollectorRegistry

from gateway.metrics.worker_files import read_gauges

_GAUGES: Final = ("inflight_requests", "flights", "queue_length", "workers")


class Live(NamedTuple):
    """Sums over all workers."""

    requests: int
    """Being answered."""
    purchases: int
    """Under way, also after their request."""
    queue: int
    """Of the purchases, those that wait before they may be sent."""
    workers: int
    """That serve."""


def live_of_process(registry: CollectorRegistry) -> Live:
    """What this process is doing."""
    return _live(
        (sample.name, sample.value) for metric in registry.collect() for sample in metric.samples
    )


def live_of_workers(folder: Path) -> Live:
    """What all workers are doing whose files are in this folder. Reads files."""
    return _live(
        (name, value)
        for key, value in read_gauges(folder, "gauge_livesum")
        if (name := _name_of(key)) is not None
    )


def _name_of(key: bytes) -> str | None:
    try:
        return str(orjson.loads(key)[1])
    except (ValueError, IndexError):  # a damaged file; its other samples are shown
        return None


def _live(samples: Iterable[tuple[str, float]]) -> Live:
    sums: dict[str, float] = dict.fromkeys((f"gateway_{name}" for name in _GAUGES), 0.0)
    for name, value in samples:
        if name in sums:
            sums[name] += value
    return Live(*(max(0, round(value)) for value in _in_order(sums)))


def _in_order(sums: Mapping[str, float]) -> Iterable[float]:
    return (sums[f"gateway_{name}"] for name in _GAUGES)
