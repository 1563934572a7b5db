"""The parts of a run, one after another. Each runs its own servers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from tests.bench.bulk import in_flight, large
from tests.bench.cells import PEERS, SIZES, Cell, chosen_cells
from tests.bench.curves import measure_curves
from tests.bench.distinct import distinct, not_in_memory
from tests.bench.goals import IDENTICAL, cell_figures
from tests.bench.load import Failed, measure_in_turn
from tests.bench.profile import profile
from tests.bench.results import Part
from tests.bench.scale import scale
from tests.bench.servers import Setup, open_targets
from tests.bench.streams import streams
from tests.bench.workers import several_workers
from tests.gateways import each_connection, run_processes, run_upstream

IDENTICAL_REQUESTS: Final = 100
WORKERS: Final = 4
CURVES: Final = "curves"
PARTS: Final = (
    "not in memory",
    "streams",
    "identical",
    "distinct",
    "workers",
    "in flight",
    "large",
    "profile",
    "entries",
    CURVES,
)
SHORT_PARTS: Final = ("not in memory", "streams", "identical")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    seconds: int
    """Of each measurement."""
    rounds: int
    """Measurements of each server, of which the median counts."""
    peers: Sequence[str] = ()
    only: str = ""
    """A text that is in the names of the cells or parts that are measured."""
    entries: int = 1_000_000
    """In the store that is full; as many are the ledger records at the end of their curve."""
    is_short: bool = False
    has_curves: bool = False

    @property
    def parts(self) -> Sequence[str]:
        """The parts beside the cells of wrk."""
        if self.is_short:
            names = SHORT_PARTS
        else:
            names = PARTS if self.has_curves or self.only == CURVES else PARTS[:-1]
        return [name for name in names if self.only in name]

    def check(self) -> None:
        """Raises `Failed` if nothing would be measured."""
        if not self.parts and not chosen_cells(self.only, is_short=self.is_short):
            cells = [cell.name for cell in chosen_cells("", is_short=self.is_short)]
            names = ", ".join((*cells, *(SHORT_PARTS if self.is_short else PARTS)))
            raise Failed(f"'{self.only}' is in the name of no cell and no part; there are {names}")

    @property
    def stream_sizes(self) -> Sequence[str]:
        return ["2 MB"] if self.is_short else list(SIZES)


def run_parts(
    folder: Path, setups: Mapping[str, Setup], options: Options, faults: list[str]
) -> Iterator[Part]:
    """If a part fails, its message goes to `faults` and the other parts are still measured."""
    for part in _parts(folder, setups, options):
        try:
            yield from part()
        except Failed as failed:
            faults.append(str(failed))
        except (AssertionError, OSError) as error:  # a server did not start, or died
            faults.append(f"{type(error).__name__}: {error}")


def _parts(
    folder: Path, setups: Mapping[str, Setup], options: Options
) -> Iterator[Callable[[], Iterator[Part]]]:
    cells = chosen_cells(options.only, is_short=options.is_short)
    for size, setup in setups.items():
        own = {cell: servers for cell, servers in cells.items() if cell.size == size}
        if own:
            yield lambda setup=setup, own=own: _measure_size(setup, own, options)
    setup = setups["2 KB"]
    redis_url, seconds, rounds = setup.redis_url, options.seconds, options.rounds
    parts: dict[str, Callable[[], Iterator[Part]]] = {
        "not in memory": lambda: not_in_memory(folder, redis_url, seconds=seconds, rounds=rounds),
        "streams": lambda: streams(folder, redis_url, options.stream_sizes, seconds=seconds),
        "identical": lambda: _identical(folder, redis_url),
        "distinct": lambda: distinct(folder, redis_url, seconds=seconds, rounds=rounds),
        "workers": lambda: several_workers(folder, setup, seconds=seconds, rounds=rounds),
        "in flight": lambda: in_flight(folder / "in-flight", redis_url),
        "large": lambda: large(folder / "large", redis_url),
        "profile": lambda: profile(folder, setups, seconds=2 * seconds),
        "entries": lambda: scale(folder, setup, entries=options.entries, rounds=rounds + 2),
        CURVES: lambda: measure_curves(folder, setup, records=options.entries, seconds=seconds),
    }
    for name in options.parts:
        yield parts[name]


def _measure_size(
    setup: Setup, cells: Mapping[Cell, Sequence[str]], options: Options
) -> Iterator[Part]:
    """The cells of one size. Its servers run only while these are measured."""
    chosen = {name for servers in cells.values() for name in servers}
    with open_targets(setup, chosen - (set(PEERS) - set(options.peers))) as targets:
        for cell, names in cells.items():
            print(f"{cell.name} …", file=sys.stderr)  # noqa: T201
            found = [targets[cell.kind][name] for name in names if name in targets[cell.kind]]
            servers = measure_in_turn(found, cell, seconds=options.seconds, rounds=options.rounds)
            yield Part({cell.name: servers}, tuple(cell_figures(cell, servers)))


def _identical(folder: Path, redis_url: str) -> Iterator[Part]:
    print("identical …", file=sys.stderr)  # noqa: T201
    purchases = asyncio.run(_count_purchases(folder, redis_url))
    yield Part(figures=(IDENTICAL.figure(purchases),))


async def _count_purchases(folder: Path, redis_url: str) -> int:
    """How many requests upstream received for identical ones sent to all workers at once."""
    async with (
        run_upstream() as upstream,
        run_processes(
            folder / "identical", upstream.base_url, workers=WORKERS, redis_url=redis_url
        ) as (_, client),
    ):
        alice = await client.with_key("alice")
        bodies = [{"prompt": "An otter that everybody wants at once"}]
        replies = await each_connection(alice, IDENTICAL_REQUESTS, bodies=bodies)
        if any(reply.status != HTTPStatus.OK for reply in replies):
            raise Failed("not every one of the identical requests was answered")
        return len(await upstream.bodies())
