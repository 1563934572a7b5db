"""Prints the results as two tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.bench.cells import BARE
from tests.bench.results import Figure, Measurement, Run, Servers, ratio

WIDTH = 150
"""Fixed, so that output into a file is as wide."""
UNKNOWN = "–"
LEAST_SHARE = 0.005
"""Of a request."""


def print_run(run: Run) -> None:
    """Prints the cells, then the figures that have a floor or a target."""
    console = Console(width=WIDTH)
    if run.results.cells:
        console.print(_cells_table(run))
    for name, points in run.results.curves.items():
        cells = {f"{at:,} {name}": servers for at, servers in points}
        console.print(_servers_table(f"curve: {name}", cells))
    if run.results.profiles:
        console.print(_profiles_table(run))
    if run.results.figures:
        console.print(_figures_table(run))


def _cells_table(run: Run) -> Table:
    title = (
        f"{run.seconds} s × {run.rounds} a cell, {run.machine['processors']} processors; processor"
        " time (user and system) of a request; bare: that of the bare handler in the same cell"
    )
    return _servers_table(title, run.results.cells)


def _servers_table(title: str, cells: dict[str, Servers]) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("cell")
    table.add_column("server")
    for name in ("a second", "p50", "worker", "Redis", "upstream", "time ÷ bare", "rate ÷ bare"):
        table.add_column(name, justify="right")
    for cell, servers in cells.items():
        for number, row in enumerate(_rows(servers)):
            table.add_row("" if number else cell, *row)
        table.add_section()
    return table


def _rows(servers: Servers) -> Iterator[list[str]]:
    bare = servers.get(BARE, Measurement())
    for name, each in servers.items():
        yield [
            name,
            UNKNOWN if each.per_second is None else f"{each.per_second:,.0f}",
            _ms(each.p50_ms, digits=2),
            *(_ms(ms, digits=3) for ms in (each.worker_ms, each.redis_ms, each.upstream_ms)),
            times(ratio(each.processor_ms, bare.processor_ms)),
            times(ratio(each.per_second, bare.per_second)),
        ]


def _ms(value: float | None, *, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f} ms"


def times(value: float | None) -> str:
    """A ratio, or `UNKNOWN`."""
    return UNKNOWN if value is None else f"{value:.2f} ×"


def _profiles_table(run: Run) -> Table:
    title = "profile: processor time of a request in the worker"
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("in")
    for name in run.results.profiles:
        table.add_column(name, justify="right")
    for place, values in profile_rows(run):
        table.add_row(place, *(_ms(value, digits=3) for value in values))
    return table


def profile_rows(run: Run) -> Iterator[tuple[str, list[float | None]]]:
    """Parts of the gateway and packages, with their milliseconds in each profile.

    The one that takes most of a request, on average, comes first. Those below `LEAST_SHARE` are
    left out.
    """
    profiles = run.results.profiles
    shares = Counter[str]()
    for places in profiles.values():
        whole = sum(places.values()) * len(profiles)
        shares.update({place: ms / whole for place, ms in places.items()})
    for place, share in shares.most_common():
        if share >= LEAST_SHARE:
            yield place, [places.get(place) for places in profiles.values()]


def _figures_table(run: Run) -> Table:
    table = Table(title="floors and targets", title_justify="left", title_style="")
    table.add_column("figure")
    for name in ("measured", "floor", "", "target", ""):
        table.add_column(name, justify="right")
    for figure in run.results.figures:
        table.add_row(
            figure.name,
            amount(figure.value, figure.unit),
            bound(figure, figure.floor),
            figure.floor_verdict,
            bound(figure, figure.target),
            figure.target_verdict,
        )
    return table


def amount(value: float | None, unit: str) -> str:
    """A value with its unit, with three digits that count."""
    if value is None:
        return UNKNOWN
    digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{digits} {unit}".strip()


def bound(figure: Figure, value: float | None) -> str:
    """A floor or a target, with the direction in which it holds."""
    if value is None:
        return UNKNOWN
    return f"{'≤' if figure.is_lower_better else '≥'} {amount(value, figure.unit)}"
