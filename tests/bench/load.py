"""Measures one server with wrk, and its processor time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import aiohttp

from tests.bench.cells import CONNECTIONS, SIZES, Cell
from tests.bench.processor_time import SETTLE_SECONDS, Processes, spent_by
from tests.bench.results import Measurement, median

SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT_SECONDS = 30
"""wrk's timeout for one answer. The slowest peer needs half a second."""


class Failed(Exception):
    """A measurement failed; the message gives the reason in one line."""


@dataclass(frozen=True)
class Target:
    """A server to measure: the URL for image requests, and their headers."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    @property
    def worker(self) -> int:
        """The process id of the only worker. Raises `ValueError` if there are several."""
        (worker,) = self.processes.workers
        return worker


@dataclass(frozen=True)
class Speed:
    """The result of wrk."""

    per_second: float
    p50_ms: float
    requests: int = 0
    """The number of answers."""


def run_wrk(
    target: Target,
    cell: Cell,
    *,
    seconds: int,
    keys_file: Path | None = None,
) -> Speed:
    """Measures a cell. Raises `Failed` unless every answer has an image of the cell's size.

    Hits of several images are those that `buy_known` buys. The file has a key in each line, which
    are used in turn in place of the target's.
    """
    headers = [f"-H{name}: {value}" for name, value in target.headers.items()]
    salt = str(time.time_ns()) if cell.kind == "bought" else ""
    arguments = ["known" if cell.images else salt, str(cell.images)]
    if keys_file is not None:
        arguments.append(str(keys_file))
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "--latency"),
            *(f"--timeout={TIMEOUT_SECONDS}s", f"-s{SCRIPT}", *headers, target.url),
            *("--", *arguments),
        ],
        capture_output=True,
        check=False,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Failed(f"wrk could not measure {target.name}: {done.stderr.strip()}")
    result = json.loads(lines[-1])
    _check(target, result, least_bytes=SIZES[cell.size])
    per_second = result["requests"] / result["duration_micros"] * 1e6
    return Speed(per_second, result["p50_micros"] / 1000, result["requests"])


def measure(
    target: Target,
    cell: Cell,
    *,
    seconds: int,
    keys_file: Path | None = None,
) -> Measurement:
    """As `run_wrk`, with processor time."""
    with spent_by(target.processes) as spent:
        speed = run_wrk(target, cell, seconds=seconds, keys_file=keys_file)
    return spent.for_each(speed.requests, per_second=speed.per_second, p50_ms=speed.p50_ms)


def measure_in_turn(
    targets: Sequence[Target], cell: Cell, *, seconds: int, rounds: int
) -> dict[str, Measurement]:
    """Each target of a cell, one right after another, after a second in which caches fill."""
    for target in targets:
        run_wrk(target, cell, seconds=1)
    time.sleep(SETTLE_SECONDS)
    found = [
        {target.name: measure(target, cell, seconds=seconds) for target in targets}
        for _ in range(rounds)
    ]
    return {name: median([each[name] for each in found]) for name in found[0]}


async def buy_known(target: Target, count: int) -> None:
    """Buys the images that hits of `count` images request. Raises `Failed` if one is refused."""
    connector = aiohttp.TCPConnector(limit=CONNECTIONS[-1])
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:

        async def buy(number: int) -> None:
            body = {
                "model": "gpt-image-2",
                "prompt": f"An otter that nobody has seen, known-{number}",  # as in post.lua
                "size": "1024x1024",
                "quality": "high",
            }
            async with session.post(target.url, json=body) as response:
                if response.status != HTTPStatus.OK:
                    raise Failed(f"{target.name} sold no image: {await response.text()}")

        await asyncio.gather(*(buy(number) for number in range(count)))


def _check(target: Target, result: Mapping[str, int], *, least_bytes: int) -> None:
    requests = result["requests"]
    if result["failed"] or not requests:
        raise Failed(f"{target.name}: {result['failed']} of {requests} requests failed")
    if result["bytes"] < requests * least_bytes:
        mean = result["bytes"] // requests
        raise Failed(f"{target.name} answers with {mean} bytes where {least_bytes} are asked for")
