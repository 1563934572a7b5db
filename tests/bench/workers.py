"""Processor time of a request with one, two and four workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench.cells import GATEWAY, Cell
from tests.bench.goals import WORKERS
from tests.bench.load import measure_in_turn
from tests.bench.results import Figure, Part, Servers, ratio
from tests.bench.servers import PURCHASE_LIMITS, Setup, run_gateway, with_limits

COUNTS: Final = (1, 2, 4)
CONNECTIONS: Final = 32
"""Enough for each of four workers to have several."""


def several_workers(folder: Path, setup: Setup, *, seconds: int, rounds: int) -> Iterator[Part]:
    """Hits and purchases of 2 KB. All gateways run at once, and are measured in turn."""
    print("workers …", file=sys.stderr)  # noqa: T201
    own = replace(setup, folder=folder / "workers")
    own.folder.mkdir()
    with ExitStack() as stack:
        running = {
            count: run_gateway(own, _name(count), setup.redis_url, workers=count)
            for count in COUNTS
        }
        targets = [stack.enter_context(gateway) for gateway in running.values()]
        hits = [with_limits(target, setup.size, PURCHASE_LIMITS) for target in targets]
        for kind, chosen in (("hit", hits), ("purchase", targets)):
            cell = Cell("hit" if kind == "hit" else "bought", setup.size, CONNECTIONS)
            servers = measure_in_turn(chosen, cell, seconds=seconds, rounds=rounds)
            yield Part({f"{cell.name}, workers": servers}, (workers_figure(kind, servers),))


def _name(count: int) -> str:
    return f"{GATEWAY}, {count} worker{'s' * (count > 1)}"


def workers_figure(kind: str, servers: Servers) -> Figure:
    """The processor time of a request with the most workers, to that with one."""
    few, many = (servers[_name(count)].processor_ms for count in (COUNTS[0], COUNTS[-1]))
    return WORKERS[kind].figure(ratio(many, few))
