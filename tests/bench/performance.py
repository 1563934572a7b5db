"""The tables of `docs/performance.md`, from the results that `make performance` has stored.

    python -m tests.bench.performance

The sizing guide follows from the figures of `make scale`, so that both pages agree.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench import pages
from tests.bench.cells import BARE
from tests.bench.pages import GB, byte_size, milliseconds, number, percent, table
from tests.bench.results import Figure, Measurement, Run, parse_document, ratio
from tests.bench.sizing.arithmetic import GIVEN, Plan
from tests.bench.sizing.figures import Figures, load_figures
from tests.bench.table import UNKNOWN, amount, bound, profile_rows, times

FILE: Final = Path(__file__).with_name("performance.json")
PAGE: Final = Path(__file__).parents[2] / "docs" / "performance.md"

MACHINES: Final = (2, 4, 8, 16)
"""Processors."""
PROCESSOR_BYTES: Final = 4 * GB
"""Memory of a machine for each of its processors."""
REDIS_SHARE: Final = 0.5
"""The part of a machine's memory that Redis may have."""
HIT_SHARES: Final = (0.5, 0.9)
DAY_MINUTES: Final = 24 * 60


def load_run(file: Path = FILE) -> Run:
    """Reads the committed results."""
    return parse_document(json.loads(file.read_text(encoding="utf-8")))


def rendered(text: str, run: Run, figures: Figures) -> str:
    """The page with its tables made from this run and, for the sizing guide, these figures."""
    blocks = {
        "machine": _machine(run),
        "goals": _goals(run),
        "cells": _cells(run),
        "profiles": _profiles(run),
        "curves": _curves(run),
        "sizing": _sizing(figures),
    }
    return pages.rendered(text, blocks, page=PAGE.name)


def main() -> int:
    """Writes the page."""
    text = rendered(PAGE.read_text(encoding="utf-8"), load_run(), load_figures())
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}", file=sys.stderr)  # noqa: T201
    return 0


def _machine(run: Run) -> Iterable[str]:
    machine = run.machine
    versions = ", ".join(
        f"{name} {version}" if name != "store" else version
        for name, version in run.versions.items()
        if version
    )
    yield (
        f"Measured on {run.date}: {machine['processor']}, {machine['processors']} processors, which"
        f" the client and upstream share, {byte_size(machine['memory_bytes'])} of memory. Each"
        f" figure is the median of {run.rounds} × {run.seconds} s. {versions}."
    )


# ── floors and targets ──────────────────────────────────────────────────────────────────────

_VERDICTS: Final = {"met": "met", "missed": "**missed**", "n/a": "not measured", "": UNKNOWN}


def _goals(run: Run) -> Iterable[str]:
    rows = [
        [
            figure.name,
            amount(figure.value, figure.unit),
            *_bound(figure, figure.floor, figure.floor_verdict),
            *_bound(figure, figure.target, figure.target_verdict),
        ]
        for figure in run.results.figures
        if figure.floor is not None or figure.target is not None
    ]
    yield from table(["figure", "measured", "floor", "", "target", ""], rows)


def _bound(figure: Figure, value: float | None, verdict: str) -> Sequence[str]:
    return bound(figure, value), _VERDICTS[verdict]


# ── cells ───────────────────────────────────────────────────────────────────────────────────


def _cells(run: Run) -> Iterable[str]:
    rows = []
    for cell, servers in run.results.cells.items():
        bare = servers.get(BARE, Measurement())
        for position, (name, each) in enumerate(servers.items()):
            rows.append(
                [
                    "" if position else cell,
                    name,
                    *map(_ms, (each.worker_ms, each.redis_ms, each.upstream_ms)),
                    times(ratio(each.processor_ms, bare.processor_ms)),
                    UNKNOWN if each.per_second is None else number(each.per_second),
                    _ms(each.p50_ms),
                ]
            )
    header = ["cell", "server", "worker", "Redis", "upstream", "beside bare", "a second", "p50"]
    yield from table(header, rows)


def _ms(value: float | None) -> str:
    return UNKNOWN if value is None else milliseconds(value)


# ── profiles ────────────────────────────────────────────────────────────────────────────────


def _profiles(run: Run) -> Iterable[str]:
    rows = [[place, *map(_ms, values)] for place, values in profile_rows(run)]
    yield from table(["in", *run.results.profiles], rows)


# ── curves ──────────────────────────────────────────────────────────────────────────────────


def _curves(run: Run) -> Iterable[str]:
    for position, (name, points) in enumerate(run.results.curves.items()):
        if position:
            yield ""
        rows = []
        for at, servers in points:
            hit, purchase = (servers.get(each, Measurement()) for each in ("hit", "purchase"))
            times = (hit.worker_ms, hit.redis_ms, purchase.worker_ms, purchase.redis_ms)
            rows.append([f"{at:,}", *map(_ms, times)])
        header = [name, "hit: worker", "Redis", "purchase: worker", "Redis"]
        yield from table(header, rows)


# ── sizing ──────────────────────────────────────────────────────────────────────────────────


def _sizing(figures: Figures) -> Iterable[str]:
    header = ["machine", "hits", "processors", "network", "Redis' memory", "images a day"]
    rows = [_machine_row(figures, count, share) for count in MACHINES for share in HIT_SHARES]
    yield from table(header, rows)


def _machine_row(figures: Figures, processors: int, hit_share: float) -> list[str]:
    bounds = daily_bounds(figures, processors, hit_share)
    memory = byte_size(processors * PROCESSOR_BYTES)
    name = f"{processors} processors, {memory}"
    most_images = min(bounds)
    return [name, percent(hit_share), *map(number, bounds), number(most_images)]


def daily_bounds(figures: Figures, processors: int, hit_share: float) -> tuple[float, float, float]:
    """Images a day at which one machine, with workers and Redis on it, uses what is planned for:

    its processors (of which Redis uses at most one), its network, and the memory of Redis with
    records for 30 days.
    """
    given = replace(GIVEN, hit_share=hit_share, machine_processors=processors)
    one = Plan(figures, 1.0, given)
    return (
        DAY_MINUTES
        * given.busy
        * min(processors / (one.worker_busy + one.redis_busy), 1 / one.redis_busy),
        DAY_MINUTES * given.busy * given.machine_bits / one.network_bits,
        DAY_MINUTES
        * REDIS_SHARE
        * processors
        * PROCESSOR_BYTES
        / one.redis_bytes(given.short_records_seconds),
    )


if __name__ == "__main__":
    sys.exit(main())
