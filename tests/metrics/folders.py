"""Folders of metrics as several processes write them, in prometheus_client's own format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.metrics.exposition import Exposition
from gateway.metrics.text import Writer

Labels = Mapping[str, str]


class Process:
    """What one process counts; a stand-in for prometheus_client, which allows one per process."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder = folder
        self._pid = pid
        self._files: dict[str, MmapedDict] = {}

    def count(self, name: str, value: float, **labels: str) -> None:
        self._set("counter", name, f"{name}_total", labels, value)

    def gauge(self, name: str, mode: str, value: float, *, at: float = 0.0, **labels: str) -> None:
        self._set(f"gauge_{mode}", name, name, labels, value, at=at)

    def observe(self, name: str, buckets: Mapping[str, float], total: float, **labels: str) -> None:
        self._set("histogram", name, f"{name}_sum", labels, total)
        for bound, value in buckets.items():
            self._set("histogram", name, f"{name}_bucket", {**labels, "le": bound}, value)

    def end(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _set(
        self, kind: str, name: str, sample: str, labels: Labels, value: float, *, at: float = 0.0
    ) -> None:
        if kind not in self._files:
            self._files[kind] = MmapedDict(str(self._folder / f"{kind}_{self._pid}.db"))
        key = mmap_key(name, sample, [*labels], [*labels.values()], f"About {name}")
        self._files[kind].write_value(key, value, at)


def samples(text: bytes) -> dict[str, float]:
    """The samples of a text, by name and labels."""
    lines = (line for line in text.decode().split("\n") if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def rendered(exposition: Exposition) -> bytes:
    writer = Writer()
    exposition.write(writer)
    return writer.encode()


def rendered_by_library(folder: Path) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
