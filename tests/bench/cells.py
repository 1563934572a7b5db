"""What is measured, what has to be reached, and whether it was. Pure.

The floors are multiples of what ran beside the gateway in the same cell, so that they hold on any
machine. What a cell is measured against without having a floor is shown as a ratio all the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["hit", "bought"]

SIZES = {"2 KB": 2 * 1024, "2 MB": 2 * 1024 * 1024}
"""Of an image's base64, in bytes."""

CONNECTIONS = (1, 16)

GATEWAY = "gateway"
COLD = "cold"
"""A gateway that keeps no image in its memory, on the same Redis."""
EMBEDDED = "embedded"
BESIDE: Mapping[Kind, str] = {"hit": "bare", "bought": "nginx"}
"""What the gateway is compared with where nothing else is said."""

LATENCY_FLOOR_MS = 2.0
SCALE_FLOOR = 1.1
IN_FLIGHT_FLOOR_KB = 60
PEAK_FLOOR = 4.0
"""Of the base64 bytes in flight."""
STANDSTILL_FLOOR_MS = 50.0
FIRST_EVENT_FLOOR_MS = {"2 MB": 10.0}


@dataclass(frozen=True)
class Cell:
    """One thing to measure, with everybody who takes part in it."""

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
COLD_FLOORS: Mapping[Cell, Mapping[str, float]] = {Cell("hit", "2 MB", 16): {"bare": 0.8}}
EMBEDDED_FLOOR = 0.5
"""Of the same hit with Redis."""


def all_cells() -> Iterator[Cell]:
    """Every cell, those of one size together."""
    for size in SIZES:
        for kind in BESIDE:
            for connections in CONNECTIONS:
                yield Cell(kind, size, connections)


@dataclass(frozen=True)
class Row:
    """One line of the table, as it is shown."""

    name: str
    figures: Mapping[str, str] = field(default_factory=dict)
    """By column."""
    ratio: str = ""
    floor: str = ""
    verdict: Literal["ok", "below", "n/a", ""] = ""


def rows_of(cell: Cell, per_second: Mapping[str, float]) -> Iterator[Row]:
    """What a cell shows; `per_second` has an answer rate for everybody who took part."""
    shown = {name: f"{rate:,.0f}" for name, rate in per_second.items()}
    floors = FLOORS.get(cell, {})
    name = f"{cell.name}, hot tier" if COLD in per_second else cell.name
    beside = {each: per_second[each] for each in floors if each in per_second}
    yield _row(name, shown, per_second[GATEWAY], beside or _usual(cell, per_second), floors=floors)
    if COLD in per_second:
        yield _cold_row(cell, per_second)
    if EMBEDDED in per_second:
        yield _embedded_row(cell, per_second)


def _usual(cell: Cell, per_second: Mapping[str, float]) -> Mapping[str, float]:
    return {BESIDE[cell.kind]: per_second[BESIDE[cell.kind]]}


def _cold_row(cell: Cell, per_second: Mapping[str, float]) -> Row:
    rate = per_second[COLD]
    shown = {GATEWAY: f"{rate:,.0f}"}
    beside, floors = _usual(cell, per_second), COLD_FLOORS.get(cell, {})
    return _row(f"{cell.name}, hot tier off", shown, rate, beside, floors=floors)


def _embedded_row(cell: Cell, per_second: Mapping[str, float]) -> Row:
    rate, beside = per_second[EMBEDDED], {"Redis": per_second[GATEWAY]}
    shown = {GATEWAY: f"{rate:,.0f}"}
    return _row(f"{cell.name}, embedded", shown, rate, beside, floors={"Redis": EMBEDDED_FLOOR})


def _row(
    name: str,
    shown: Mapping[str, str],
    rate: float,
    beside: Mapping[str, float],
    *,
    floors: Mapping[str, float],
) -> Row:
    """One rate beside others; whoever has a floor and did not take part makes it `n/a`."""
    ratios = {other: rate / theirs for other, theirs in beside.items()}
    known = {other: least for other, least in floors.items() if other in ratios}
    return Row(
        name,
        shown,
        ratio=_ratios(ratios),
        floor=_ratios(floors),
        verdict=_verdict(ratios, known) if known else "n/a" if floors else "",
    )


def latency_row(p50_ms: Mapping[str, float]) -> Row:
    """What the gateway adds to a small purchase, by the medians of one connection."""
    added = p50_ms[GATEWAY] - p50_ms["upstream"]
    return Row(
        "latency added, bought 2 KB c=1, p50",
        {name: f"{median:.2f} ms" for name, median in p50_ms.items()},
        ratio=f"+{added:.2f} ms",
        floor=f"≤ {LATENCY_FLOOR_MS:g} ms",
        verdict="ok" if added <= LATENCY_FLOOR_MS else "below",
    )


def first_event_row(size: str, first_ms: Mapping[str, float]) -> Row:
    """What the gateway adds to the first partial image, by the medians of one connection."""
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
    """How many events of streams that are bought pass in a second."""
    ratio = per_second[GATEWAY] / per_second["upstream"]
    return Row(
        f"events of streams {size} c={connections}",
        {name: f"{rate:,.0f}" for name, rate in per_second.items()},
        ratio=f"{ratio:.3g} × upstream",
    )


def crowd_row(size: str, readers: int, seconds: Mapping[str, float]) -> Row:
    """How long many readers of one stream take, alone and beside one that hardly reads."""
    ratio = seconds["beside"] / seconds["alone"]
    return Row(
        f"{readers} readers of one stream {size}, beside one at 1 KB/s",
        {GATEWAY: f"{seconds['beside']:.2f} s"},
        ratio=f"{ratio:.3g} × without it",
    )


def purchases_row(purchases: int) -> Row:
    """How many purchases a hundred identical requests have made."""
    return Row(
        "purchases, 100 identical at once, 4 workers",
        {GATEWAY: str(purchases)},
        floor="exactly 1",
        verdict="ok" if purchases == 1 else "below",
    )


def scale_row(store: str, entries: int, few: int, ratios: Sequence[float]) -> Row:
    """How much longer a hit takes where many entries are; the median of what was measured."""
    ratio = statistics.median(ratios)
    return Row(
        f"time of a hit at {entries:,} entries against {few:,}, {store}",
        ratio=f"{ratio:.3g} ×",
        floor=f"≤ {SCALE_FLOOR:g} ×",
        verdict="ok" if ratio <= SCALE_FLOOR else "below",
    )


def in_flight_row(requests: int, bytes_each: float) -> Row:
    """What one of thousands of purchases in flight takes of the worker's memory."""
    kilobytes = bytes_each / 1024
    return Row(
        f"{requests:,} in flight upstream, none lost: memory each",
        {GATEWAY: f"{kilobytes:.1f} KB"},
        floor=f"≤ {IN_FLIGHT_FLOOR_KB} KB",
        verdict="ok" if kilobytes <= IN_FLIGHT_FLOOR_KB else "below",
    )


def peak_row(purchases: int, peak_bytes: int, base64_bytes: int) -> Row:
    """The most memory that large purchases at once take, beyond what the worker has when idle."""
    ratio = peak_bytes / base64_bytes
    return Row(
        f"{purchases} purchases of 8 MB at once: peak memory",
        {GATEWAY: f"{peak_bytes / (1 << 20):,.0f} MB"},
        ratio=f"{ratio:.3g} × base64",
        floor=f"≤ {PEAK_FLOOR:g} × base64",
        verdict="ok" if ratio <= PEAK_FLOOR else "below",
    )


def standstill_row(purchases: int, quiet_ms: float, busy_ms: float) -> Row:
    """How long the event loop answers nobody meanwhile: the longest answer to a cheap request."""
    added = busy_ms - quiet_ms
    return Row(
        f"{purchases} purchases of 8 MB at once: event loop stands still",
        {GATEWAY: f"{busy_ms:.1f} ms"},
        ratio=f"+{added:.1f} ms",
        floor=f"≤ {STANDSTILL_FLOOR_MS:g} ms",
        verdict="ok" if added <= STANDSTILL_FLOOR_MS else "below",
    )


def _ratios(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{ratio:.3g} × {name}" for name, ratio in ratios.items())


def _verdict(ratios: Mapping[str, float], floors: Mapping[str, float]) -> Literal["ok", "below"]:
    return "ok" if all(ratios[name] >= least for name, least in floors.items()) else "below"
