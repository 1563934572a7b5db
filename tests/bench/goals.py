"""Floors and targets, and the figures that are held to them. Without I/O.

A processor time is in milliseconds, for the machine that `docs/performance.md` names. A ratio is to
a server measured in the same cell, so it holds on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tests.bench.cells import (
    ADMITTED,
    BARE,
    BARE_REDIS,
    EMBEDDED,
    GATEWAY,
    HIT_COLD,
    HIT_LARGE,
    HIT_SMALL,
    LATENCY,
    NGINX_CACHE,
    NGINX_STORED,
    NO_MEMORY_CACHE,
    PURCHASE_LARGE,
    PURCHASE_SMALL,
    UPSTREAM,
    Cell,
)
from tests.bench.results import Figure, Measurement, Servers, ratio

MS: Final = "ms"
TIMES: Final = "×"


@dataclass(frozen=True)
class Goal:
    """The bounds of a figure. None: there is none."""

    name: str
    unit: str
    floor: float | None = None
    target: float | None = None
    is_lower_better: bool = True

    def figure(self, value: float | None) -> Figure:
        return Figure(
            self.name,
            value,
            self.unit,
            floor=self.floor,
            target=self.target,
            is_lower_better=self.is_lower_better,
        )


@dataclass(frozen=True)
class TimeGoal:
    """Processor time of a request in one server of a cell, or in that server's Redis."""

    cell: Cell
    server: str
    where: Literal["worker", "Redis"]
    floor: float | None = None
    target: float | None = None

    def figure(self, servers: Servers) -> Figure:
        found = servers.get(self.server, Measurement())
        value = found.worker_ms if self.where == "worker" else found.redis_ms
        name = f"{_name(self.cell, self.server)}: processor time, {self.where}"
        return Goal(name, MS, self.floor, self.target).figure(value)


@dataclass(frozen=True)
class RateGoal:
    """How many times as many answers a second one server of a cell gives as another one."""

    cell: Cell
    server: str
    beside: str
    floor: float | None = None
    target: float | None = None

    def figure(self, servers: Servers) -> Figure:
        rates = [servers.get(each, Measurement()).per_second for each in (self.server, self.beside)]
        name = f"{_name(self.cell, self.server)}: rate beside {self.beside}"
        goal = Goal(name, TIMES, self.floor, self.target, is_lower_better=False)
        return goal.figure(ratio(*rates))


def _name(cell: Cell, server: str) -> str:
    """The cell, and what is special about the server."""
    return cell.name + server.removeprefix(GATEWAY)


CELL_GOALS: Final[Sequence[TimeGoal | RateGoal]] = (
    TimeGoal(HIT_SMALL, GATEWAY, "worker", 0.25, 0.20),
    TimeGoal(HIT_SMALL, GATEWAY, "Redis", 0.01, 0.01),
    RateGoal(HIT_SMALL, GATEWAY, BARE, 1.0, 1.2),
    TimeGoal(HIT_SMALL, ADMITTED, "worker"),
    TimeGoal(HIT_SMALL, ADMITTED, "Redis"),
    RateGoal(HIT_SMALL, ADMITTED, BARE),
    RateGoal(HIT_SMALL, EMBEDDED, GATEWAY, 0.5, 1.0),
    TimeGoal(PURCHASE_SMALL, GATEWAY, "worker", 1.0, 0.80),
    TimeGoal(PURCHASE_SMALL, GATEWAY, "Redis", 0.35, 0.25),
    RateGoal(PURCHASE_SMALL, GATEWAY, "litellm", 15, 25),
    RateGoal(PURCHASE_SMALL, GATEWAY, "portkey", 1.5, 2),
    TimeGoal(HIT_LARGE, GATEWAY, "worker", None, 0.60),
    RateGoal(HIT_LARGE, GATEWAY, NGINX_CACHE, 1.0, 1.2),
    RateGoal(HIT_COLD, NO_MEMORY_CACHE, BARE_REDIS, 0.8, 1.0),
    RateGoal(HIT_LARGE, EMBEDDED, GATEWAY, 0.5, 1.0),
    TimeGoal(PURCHASE_LARGE, GATEWAY, "worker", 5, 4),
    TimeGoal(PURCHASE_LARGE, GATEWAY, "Redis", 1, 0.8),
    RateGoal(PURCHASE_LARGE, GATEWAY, NGINX_STORED, 0.8, 1.0),
)

ADDED_LATENCY: Final = Goal(f"{LATENCY.name}: added latency, p50", MS, 2, 1)
FIRST_PARTIAL: Final = {
    "2 KB": Goal("first partial image 2 KB c=1: added latency, p50", MS),
    "2 MB": Goal("first partial image 2 MB c=1: added latency, p50", MS, 10, 5),
}
SLOW_FOLLOWER: Final = {
    size: Goal(f"50 followers of a stream {size}: time beside one at 1 KB/s", TIMES)
    for size in FIRST_PARTIAL
}
IN_FLIGHT: Final = Goal("9,000 in flight: memory of the worker for each", "KB", 60, 40)
LARGE_MEMORY: Final = Goal("64 × 8 MB: peak memory beside the base64 in flight", TIMES, 4, 3)
LARGE_PAUSE: Final = Goal("64 × 8 MB: the loop is held", MS, 50, 20)
IDENTICAL: Final = Goal("100 identical at once, 4 workers: purchases", "", 1, 1)
SCALE: Final = {
    store: Goal(f"a hit at {{entries:,}} entries beside 1,000, {store}", TIMES, 1.1, 1.1)
    for store in ("Redis", "embedded store")
}
WORKERS: Final = {
    kind: Goal(f"{kind} 2 KB, 4 workers beside 1: processor time", TIMES, None, 1.1)
    for kind in ("hit", "purchase")
}


def cell_figures(cell: Cell, servers: Servers) -> Iterator[Figure]:
    """The figures of a cell, of those servers that are in it."""
    for goal in CELL_GOALS:
        if goal.cell == cell:
            yield goal.figure(servers)
    if cell == LATENCY:
        yield ADDED_LATENCY.figure(added_ms(servers))


def added_ms(servers: Mapping[str, Measurement]) -> float | None:
    """The latency that the gateway adds to that of the upstream."""
    ours, theirs = (servers.get(name, Measurement()).p50_ms for name in (GATEWAY, UPSTREAM))
    return None if ours is None or theirs is None else ours - theirs
