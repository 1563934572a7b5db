"""`make bench`: runs the servers, measures each of them and prints the table.

    python -m tests.bench [--seconds 5] [--rounds 1] [--peers litellm,portkey] [--only TEXT]
        [--entries 50000]

The targets of a cell are measured one right after another. With several rounds the median counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

from tests.bench.bulk import in_flight_rows, large_rows
from tests.bench.cells import CONNECTIONS, Cell, Row, all_cells, latency_row, purchases_row, rows_of
from tests.bench.load import Failed, Speed, Target, run_wrk
from tests.bench.peers import check_peers
from tests.bench.processes import check_tools
from tests.bench.scale import scale_rows
from tests.bench.servers import Setup, open_setups, open_targets
from tests.bench.streams import stream_rows
from tests.bench.table import print_table
from tests.gateways import each_connection, run_processes, run_upstream

IDENTICAL = 100
ENTRIES = 50_000
"""The floor is meant for a million, but writing those takes minutes."""
WORKERS = 4


def main() -> int:
    """Returns the exit status."""
    options = _options()
    peers = [name for name in options.peers.split(",") if name]
    try:
        check_tools()
        check_peers(peers)
    except Failed as failed:
        print(failed, file=sys.stderr)  # noqa: T201
        return 1
    faults: list[str] = []
    rows = list(_measure(options, peers, faults))
    title = f"{options.seconds} s × {options.rounds} a cell, {os.cpu_count()} cores, one worker"
    print_table(title, rows, peers=peers)
    for fault in faults:
        print(fault, file=sys.stderr)  # noqa: T201
    return 1 if faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measures the gateway.")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="measurements, of which the median")
    parser.add_argument("--peers", default="", help="litellm, portkey, or both with a comma")
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parser.add_argument("--entries", type=int, default=ENTRIES, help="in the store that is full")
    return parser.parse_args()


def _measure(options: argparse.Namespace, peers: Sequence[str], faults: list[str]) -> Iterator[Row]:
    """If a part fails, its message goes to `faults` and the other parts are still measured."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        folder = Path(name)
        with open_setups(folder) as setups:
            for part in _parts(folder, setups, options, peers=peers):
                try:
                    yield from part
                except Failed as failed:
                    faults.append(str(failed))


def _parts(
    folder: Path,
    setups: Mapping[str, Setup],
    options: argparse.Namespace,
    *,
    peers: Sequence[str],
) -> Iterator[Iterable[Row]]:
    cells = [cell for cell in all_cells() if options.only in cell.name]
    for size, setup in setups.items():
        yield _size_rows(setup, [c for c in cells if c.size == size], options, peers=peers)
    setup = next(iter(setups.values()))
    if options.only in "streams":
        yield stream_rows(folder, setup.redis_url, seconds=options.seconds)
    if options.only in "entries":
        yield scale_rows(folder, setup, entries=options.entries, seconds=options.seconds)
    if options.only in "in flight":
        yield in_flight_rows(folder / "in-flight", setup.redis_url)
    if options.only in "large":
        yield large_rows(folder / "large", setup.redis_url)
    if options.only in "purchases":
        yield _purchases_rows(folder, setup.redis_url)


def _purchases_rows(folder: Path, redis_url: str) -> Iterator[Row]:
    yield purchases_row(asyncio.run(_count_purchases(folder, redis_url)))


def _size_rows(
    setup: Setup, cells: Sequence[Cell], options: argparse.Namespace, *, peers: Sequence[str]
) -> Iterator[Row]:
    """The rows of one size. Its servers run only while its cells are measured."""
    if not cells:
        return
    with open_targets(setup, peers) as targets:
        for cell in cells:
            print(f"{cell.name} …", file=sys.stderr)  # noqa: T201
            yield from _cell_rows(cell, _cell_speeds(cell, targets[cell.kind], options))


def _cell_rows(cell: Cell, speeds: Mapping[str, Speed]) -> Iterator[Row]:
    yield from rows_of(cell, {name: speed.per_second for name, speed in speeds.items()})
    if cell == Cell("bought", "2 KB", CONNECTIONS[0]):
        yield latency_row({name: speed.p50_ms for name, speed in speeds.items()})


def _cell_speeds(
    cell: Cell, targets: Sequence[Target], options: argparse.Namespace
) -> dict[str, Speed]:
    """The speed of each target, after a second in which caches and pools fill."""
    for target in targets:
        run_wrk(target, cell, seconds=1)
    rounds = [
        {target.name: run_wrk(target, cell, seconds=options.seconds) for target in targets}
        for _ in range(options.rounds)
    ]
    return {name: _median([speeds[name] for speeds in rounds]) for name in rounds[0]}


def _median(speeds: Sequence[Speed]) -> Speed:
    return Speed(
        statistics.median(speed.per_second for speed in speeds),
        statistics.median(speed.p50_ms for speed in speeds),
    )


async def _count_purchases(folder: Path, redis_url: str) -> int:
    """How many requests upstream received for identical ones sent to all workers at once."""
    async with (
        run_upstream() as upstream,
        run_processes(
            folder / "workers", upstream.base_url, workers=WORKERS, redis_url=redis_url
        ) as (_, client),
    ):
        alice = await client.with_key("alice")
        bodies = [{"prompt": "An otter that everybody wants at once"}]
        replies = await each_connection(alice, IDENTICAL, bodies=bodies)
        if any(reply.status != HTTPStatus.OK for reply in replies):
            raise Failed("not every one of the identical requests was answered")
        return len(await upstream.bodies())


if __name__ == "__main__":
    sys.exit(main())
