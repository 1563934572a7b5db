"""The measurements, their floors, and the verdicts. Without I/O.

A floor is a multiple of a baseline measured in the same cell, so that it holds on any machine. A
cell without a floor still shows the ratio to its baseline.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["hit", "bought"]

SIZES = {"2 KB": 2 * 1024, "2 MB": 2 * 1024 * 1024}
"""Bytes of an image's base64."""

CONNECTIONS = (1, 16)

GATEWAY = "gateway"
NO_MEMORY_CACHE = "cold"
"""A gateway without a memory cache, on the same Redis."""
EMBEDDED = "embedded"
BASELINES: Mapping[Kind, str] = {"hit": "bare", "bought": "nginx"}
"""The baseline of a cell that has no floor."""

LATENCY_FLOOR_MS = 2.0
SCALE_FLOOR = 1.1
IN_FLIGHT_FLOOR_KB = 60
PEAK_FLOOR = 4.0
"""A multiple of the base64 bytes in flight."""
STANDSTILL_FLOOR_MS = 50.0
FIRST_EVENT_FLOOR_MS = {"2 MB": 10.0}


@dataclass(frozen=True)
class Cell:
    """One measurement of several targets."""

    kind: Kind
    size: str
    connections: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.size} c={self.connections}"


FLOORS: Mapping[Cell, Mapping[str, float]] = {
    Cell("hit", "2 KB", 16): {"bare": 0.6},
    Cell("hit", "2 MB", 16): {"nginx": 1.0},
    Cell("bought", "2 KB", 16): {"litellm": 15, "portkey": 1.5},
    Cell("bought", "2 MB", 16): {"nginx": 0.8},
}
NO_MEMORY_CACHE_FLOORS: Mapping[Cell, Mapping[str, float]] = {
    Cell("hit", "2 MB", 16): {"bare": 0.8}
}
EMBEDDED_FLOOR = 0.5
"""A multiple of the rate of the same hit with Redis."""


def all_cells() -> Iterator[Cell]:
    """Every cell, grouped by size."""
    for size in SIZES:
        for kind in BASELINES:
            for connections in CONNECTIONS:
                yield Cell(kind, size, connections)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    figures: Mapping[str, str] = field(default_factory=dict)
    """By column."""
    ratio: str = ""
    floor: str = ""
    verdict: Literal["ok", "below", "n/a", ""] = ""


def rows_of(cell: Cell, per_second: Mapping[str, float]) -> Iterator[Row]:
    """The rows of a cell; `per_second` has the answer rate of each target."""
    shown = {name: f"{rate:,.0f}" for name, rate in per_second.items()}
    floors = FLOORS.get(cell, {})
    name = f"{cell.name}, memory cache" if NO_MEMORY_CACHE in per_second else cell.name
    baselines = {each: per_second[each] for each in floors if each in per_second}
    yield _row(
        name,
        shown,
        per_second[GATEWAY],
        baselines or _default_baseline(cell, per_second),
        floors=floors,
    )
    if NO_MEMORY_CACHE in per_second:
        yield _no_memory_cache_row(cell, per_second)
    if EMBEDDED in per_second:
        yield _embedded_row(cell, per_second)


def _default_baseline(cell: Cell, per_second: Mapping[str, float]) -> Mapping[str, float]:
    return {BASELINES[cell.kind]: per_second[BASELINES[cell.kind]]}


def _no_memory_cache_row(cell: Cell, per_second: Mapping[str, float]) -> Row:
    rate = per_second[NO_MEMORY_CACHE]
    shown = {GATEWAY: f"{rate:,.0f}"}
    baselines, floors = _default_baseline(cell, per_second), NO_MEMORY_CACHE_FLOORS.get(cell, {})
    return _row(f"{cell.name}, without memory cache", shown, rate, baselines, floors=floors)


def _embedded_row(cell: Cell, per_second: Mapping[str, float]) -> Row:
    rate, baselines = per_second[EMBEDDED], {"Redis": per_second[GATEWAY]}
    shown = {GATEWAY: f"{rate:,.0f}"}
    return _row(f"{cell.name}, embedded", shown, rate, baselines, floors={"Redis": EMBEDDED_FLOOR})


def _row(
    name: str,
    shown: Mapping[str, str],
    rate: float,
    baselines: Mapping[str, float],
    *,
    floors: Mapping[str, float],
) -> Row:
    """One rate compared with baselines. If no baseline with a floor ran, the verdict is `n/a`."""
    ratios = {other: rate / baseline for other, baseline in baselines.items()}
    known = {other: least for other, least in floors.items() if other in ratios}
    return Row(
        name,
        shown,
        ratio=_ratios(ratios),
        floor=_ratios(floors),
        verdict=_verdict(ratios, known) if known else "n/a" if floors else "",
    )


def latency_row(p50_ms: Mapping[str, float]) -> Row:
    """The latency that the gateway adds to a small purchase: medians over one connection."""
    added = p50_ms[GATEWAY] - p50_ms["upstream"]
    return Row(
        "latency added, bought 2 KB c=1, p50",
        {name: f"{median:.2f} ms" for name, median in p50_ms.items()},
        ratio=f"+{added:.2f} ms",
        floor=f"≤ {LATENCY_FLOOR_MS:g} ms",
        verdict="ok" if added <= LATENCY_FLOOR_MS else "below",
    )


def first_event_row(size: str, first_ms: Mapping[str, float]) -> Row:
    """The latency that the gateway adds to the first partial image, as in `latency_row`."""
    added = first_ms[GATEWAY] - first_ms["upstream"]
    floor = FIRST_EVENT_FLOOR_MS.get(size)
    return Row(
        f"latency added, first partial image {size} c=1, p50",
        {name: f"{median:.2f} ms" for name, median in first_ms.items()},
        ratio=f"+{added:.2f} ms",
        floor="" if floor is None else f"≤ {floor:g} ms",
        verdict="" if floor is None else "ok" if added <= floor else "below",
    )


def events_row(size: str, connections: int, per_second: Mapping[str, float]) -> Row:
    """Events a second of streams that are bought."""
    ratio = per_second[GATEWAY] / per_second["upstream"]
    return Row(
        f"events of streams {size} c={connections}",
        {name: f"{rate:,.0f}" for name, rate in per_second.items()},
        ratio=f"{ratio:.3g} × upstream",
    )


def crowd_row(size: str, clients: int, seconds: Mapping[str, float]) -> Row:
    """How long many clients take for one stream, without and with a slow client beside them."""
    ratio = seconds["beside"] / seconds["alone"]
    return Row(
        f"{clients} followers of one stream {size}, beside one at 1 KB/s",
        {GATEWAY: f"{seconds['beside']:.2f} s"},
        ratio=f"{ratio:.3g} × without it",
    )


def purchases_row(purchases: int) -> Row:
    """The number of purchases for a hundred identical requests."""
    return Row(
        "purchases, 100 identical at once, 4 workers",
        {GATEWAY: str(purchases)},
        floor="exactly 1",
        verdict="ok" if purchases == 1 else "below",
    )


def scale_row(store: str, entries: int, few: int, ratios: Sequence[float]) -> Row:
    """How much longer a hit takes in a store with many entries: the median of `ratios`."""
    ratio = statistics.median(ratios)
    return Row(
        f"time of a hit at {entries:,} entries against {few:,}, {store}",
        ratio=f"{ratio:.3g} ×",
        floor=f"≤ {SCALE_FLOOR:g} ×",
        verdict="ok" if ratio <= SCALE_FLOOR else "below",
    )


def in_flight_row(requests: int, bytes_each: float) -> Row:
    """The worker's memory for each of thousands of purchases in flight."""
    kilobytes = bytes_each / 1024
    return Row(
        f"{requests:,} in flight upstream, none lost: memory each",
        {GATEWAY: f"{kilobytes:.1f} KB"},
        floor=f"≤ {IN_FLIGHT_FLOOR_KB} KB",
        verdict="ok" if kilobytes <= IN_FLIGHT_FLOOR_KB else "below",
    )


def peak_row(purchases: int, peak_bytes: int, base64_bytes: int) -> Row:
    """The peak memory of large purchases at once, minus the worker's memory when idle."""
    ratio = peak_bytes / base64_bytes
    return Row(
        f"{purchases} purchases of 8 MB at once: peak memory",
        {GATEWAY: f"{peak_bytes / (1 << 20):,.0f} MB"},
        ratio=f"{ratio:.3g} × base64",
        floor=f"≤ {PEAK_FLOOR:g} × base64",
        verdict="ok" if ratio <= PEAK_FLOOR else "below",
    )


def standstill_row(purchases: int, quiet_ms: float, busy_ms: float) -> Row:
    """The longest block of the event loop: the slowest answer to a cheap request."""
    added = busy_ms - quiet_ms
    return Row(
        f"{purchases} purchases of 8 MB at once: event loop is blocked",
        {GATEWAY: f"{busy_ms:.1f} ms"},
        ratio=f"+{added:.1f} ms",
        floor=f"≤ {STANDSTILL_FLOOR_MS:g} ms",
        verdict="ok" if added <= STANDSTILL_FLOOR_MS else "below",
    )


def _ratios(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{ratio:.3g} × {name}" for name, ratio in ratios.items())


def _verdict(ratios: Mapping[str, float], floors: Mapping[str, float]) -> Literal["ok", "below"]:
    return "ok" if all(ratios[name] >= least for name, least in floors.items()) else "below"
