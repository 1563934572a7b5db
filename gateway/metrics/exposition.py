"""The text form of what the workers of a gateway have counted.

prometheus_client's own reader parses every key of every file for each scrape: a second for 20,000
series of four workers. This one parses a key once, so a scrape only adds doubles up. The tests
compare the two.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from gateway.metrics.series import DECIMALS
from gateway.metrics.text import Writer, sample_start
from gateway.metrics.worker_files import HEADER_BYTES, CountedFile, read_files


@dataclass(slots=True)
class _Histogram:
    """The samples of one histogram."""

    buckets: list[tuple[float, str, int]] = field(default_factory=list)
    """Upper bound, start of the line, and slot."""
    total: tuple[str, int] | None = None
    count: str = ""


@dataclass(slots=True)
class _Family:
    kind: str
    text: str
    samples: list[tuple[str, int]] = field(default_factory=list)
    """Start of the line, and slot."""
    histograms: dict[str, _Histogram] = field(default_factory=dict)
    """By their labels."""


@dataclass(slots=True)
class _Layout:
    """Where the values of a file are. Entries are added at its end and never moved."""

    inode: int
    slots: array[int] = field(default_factory=lambda: array("I"))
    values: array[int] = field(default_factory=lambda: array("I"))
    end: int = HEADER_BYTES
    last_key: bytes = b""

    def is_of(self, file: CountedFile) -> bool:
        """Whether it is the same file; process ids and inodes are used again."""
        if self.inode != file.inode or self.end > len(file.data):
            return False
        return self.last_key in file.data[self.end - len(self.last_key) - 24 : self.end]


MERGED: Final[Mapping[str, Callable[[float, float], float]]] = {
    "gauge_livesum": lambda one, other: one + other,
    "gauge_livemin": min,
    "gauge_livemax": max,
}
"""How the gauges of workers become one; of `gauge_livemostrecent` the latest counts."""


class Exposition:
    """Renders the files of a folder. It keeps their layout, so not in two threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slots: dict[bytes, int] = {}
        self._families: dict[str, _Family] = {}
        self._layouts: dict[str, _Layout] = {}

    def write(self, writer: Writer) -> None:
        """Adds the families of all workers, in the order of their names."""
        values = self._read()
        for name in sorted(self._families):
            family = self._families[name]
            writer.family(name, kind=family.kind, text=family.text)
            for start, slot in family.samples:
                if (value := values[slot]) is not None:
                    writer.sample(start, _rounded(value))
            for histogram in family.histograms.values():
                _write_histogram(writer, histogram, values)

    def _read(self) -> Sequence[float | None]:
        """The value of each slot; None without one, as of a gauge whose worker has ended."""
        files = read_files(self._folder)
        self._layouts = {
            name: self._layout(self._layouts.get(name), file) for name, file in files.items()
        }
        values: list[float | None] = [None] * len(self._slots)
        latest: dict[int, float] = {}
        for name, file in files.items():
            layout, doubles = self._layouts[name], file.doubles
            if file.kind == "gauge_livemostrecent":
                for slot, at in zip(layout.slots, layout.values, strict=True):
                    # No time: never set.
                    if doubles[at + 1] > latest.get(slot, 0.0):
                        latest[slot], values[slot] = doubles[at + 1], doubles[at]
                continue
            merge = MERGED.get(file.kind, MERGED["gauge_livesum"])
            for slot, at in zip(layout.slots, layout.values, strict=True):
                before = values[slot]
                values[slot] = doubles[at] if before is None else merge(before, doubles[at])
        return values

    def _layout(self, known: _Layout | None, file: CountedFile) -> _Layout:
        layout = known if known is not None and known.is_of(file) else _Layout(file.inode)
        for key, value, end in file.entries(layout.end):
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = len(self._slots)
                self._add(file.kind, key, slot)
            layout.slots.append(slot)
            layout.values.append(value)
            layout.end, layout.last_key = end, key
        return layout

    def _add(self, kind: str, key: bytes, slot: int) -> None:
        try:
            name, sample, labels, text = orjson.loads(key)
        except ValueError:  # a damaged file; its other samples are shown
            return
        kind = kind.partition("_")[0]
        shown = f"{name}_total" if kind == "counter" else name
        family = self._families.setdefault(shown, _Family(kind, text))
        start = sample_start(sample, labels, labels.values())
        if kind != "histogram":
            family.samples.append((start, slot))
            return
        bound = labels.pop("le", None)
        histogram = family.histograms.setdefault(
            sample_start("", labels, labels.values()), _Histogram()
        )
        if bound is None:
            histogram.total = start, slot
            histogram.count = sample_start(f"{name}_count", labels, labels.values())
        else:
            insort(histogram.buckets, (float(bound), start, slot))


def _write_histogram(writer: Writer, histogram: _Histogram, values: Sequence[float | None]) -> None:
    count = 0.0
    for _, start, slot in histogram.buckets:
        count += values[slot] or 0.0
        writer.sample(start, count)
    if histogram.total is not None:
        start, slot = histogram.total
        writer.sample(histogram.count, count)
        writer.sample(start, _rounded(values[slot] or 0.0))


def _rounded(value: float) -> float:
    # Sums of floats in another order, as after a worker's end, may differ in their last digits. A
    # counter that falls by one of these would count as reset.
    return value if value.is_integer() else round(value, DECIMALS)
