"""The results of a run, and their JSON. Without I/O.

A `Measurement` is what one server did in one cell. A `Figure` is a value with a floor that it has
to reach and a target that it should. Floors and targets are rows of `goals`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Verdict = Literal["met", "missed", "n/a", ""]


@dataclass(frozen=True)
class Measurement:
    """What one server did in one cell. None: not measured."""

    per_second: float | None = None
    """Answers."""
    p50_ms: float | None = None
    """Median of the latency."""
    worker_ms: float | None = None
    """Processor time (user and system) of a request in the server, all of its workers together."""
    redis_ms: float | None = None
    """The same in Redis."""
    upstream_ms: float | None = None
    """The same in the upstream."""

    @property
    def processor_ms(self) -> float | None:
        """Processor time of a request in the server and its store; None if unknown."""
        if self.worker_ms is None:
            return None
        return self.worker_ms + (self.redis_ms or 0.0)


def median(measurements: Sequence[Measurement]) -> Measurement:
    """The median of each field, over those that have it."""
    return Measurement(
        **{each.name: _median_of(measurements, each.name) for each in fields(Measurement)}
    )


def _median_of(measurements: Iterable[Measurement], name: str) -> float | None:
    known = [value for each in measurements if (value := getattr(each, name)) is not None]
    return statistics.median(known) if known else None


def ratio(one: float | None, other: float | None) -> float | None:
    """None if either is unknown, or nothing can be divided by the other."""
    if one is None or not other:
        return None
    return one / other


@dataclass(frozen=True)
class Figure:
    """A value beside its floor and its target, both of which are optional."""

    name: str
    value: float | None
    """None: what it needs was not measured, such as a peer that was not chosen."""
    unit: str
    floor: float | None = None
    target: float | None = None
    is_lower_better: bool = True

    @property
    def floor_verdict(self) -> Verdict:
        return self._verdict(self.floor)

    @property
    def target_verdict(self) -> Verdict:
        return self._verdict(self.target)

    def _verdict(self, bound: float | None) -> Verdict:
        if bound is None:
            return ""
        if self.value is None:
            return "n/a"
        is_met = self.value <= bound if self.is_lower_better else self.value >= bound
        return "met" if is_met else "missed"


Servers = Mapping[str, Measurement]
"""Measurements by server."""


@dataclass(frozen=True)
class Part:
    """Results that belong together: cells by name, figures, points of curves, and profiles."""

    cells: Mapping[str, Servers] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    curves: Mapping[str, Sequence[tuple[float, Servers]]] = field(default_factory=dict)
    """What grows → its values, each with the cells measured there."""
    profiles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Cell → part of the gateway or package → milliseconds of a request in the worker."""


@dataclass(frozen=True)
class Run:
    """One run of the benchmark: where, with what, and its results."""

    date: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: int
    """Of each measurement."""
    rounds: int
    """Measurements of each server, of which the median counts."""
    results: Part = field(default_factory=Part)

    def with_part(self, part: Part) -> Run:
        """Adds a part. What it has too is replaced."""
        mine = self.results
        figures = {figure.name: figure for figure in (*mine.figures, *part.figures)}
        return replace(
            self,
            results=Part(
                {**mine.cells, **part.cells},
                tuple(figures.values()),
                {**mine.curves, **part.curves},
                {**mine.profiles, **part.profiles},
            ),
        )

    def figure(self, name: str) -> Figure:
        """Raises `KeyError` if the run has no figure of this name."""
        for figure in self.results.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)


def as_document(run: Run) -> dict[str, Any]:
    """The run as data for JSON, with the verdict of each figure. Unknown values are left out."""
    results = run.results
    return {
        "date": run.date,
        "machine": dict(run.machine),
        "versions": dict(run.versions),
        "seconds": run.seconds,
        "rounds": run.rounds,
        "cells": {name: _servers_document(servers) for name, servers in results.cells.items()},
        "figures": [_figure_document(figure) for figure in results.figures],
        "curves": {
            name: [{"at": at, "servers": _servers_document(servers)} for at, servers in points]
            for name, points in results.curves.items()
        },
        "profiles": {name: dict(places) for name, places in results.profiles.items()},
    }


def parse_document(document: Mapping[str, Any]) -> Run:
    """The opposite of `as_document`. Raises `KeyError` or `TypeError` for other documents."""
    figures = [
        {name: value for name, value in each.items() if not name.endswith("_verdict")}
        for each in document["figures"]
    ]
    return Run(
        document["date"],
        document["machine"],
        document["versions"],
        document["seconds"],
        document["rounds"],
        Part(
            {name: _parse_servers(servers) for name, servers in document["cells"].items()},
            tuple(Figure(**{"value": None, **each}) for each in figures),
            {
                name: [(point["at"], _parse_servers(point["servers"])) for point in points]
                for name, points in document["curves"].items()
            },
            document["profiles"],
        ),
    )


def _servers_document(servers: Servers) -> dict[str, Any]:
    return {name: _known(asdict(each)) for name, each in servers.items()}


def _parse_servers(document: Mapping[str, Any]) -> Servers:
    return {name: Measurement(**each) for name, each in document.items()}


def _figure_document(figure: Figure) -> dict[str, Any]:
    verdicts = {"floor_verdict": figure.floor_verdict, "target_verdict": figure.target_verdict}
    return _known(
        {**asdict(figure), **{name: verdict or None for name, verdict in verdicts.items()}}
    )


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
