"""Floods a gateway with one request over several connections, with wrk, and reports failures."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import Client

MISSING = "wrk is not installed: apt-get install wrk"
SCRIPT = Path(__file__).with_name("flood.lua")
PACED_SCRIPT = Path(__file__).with_name("paced.lua")
CONNECTIONS = 8
PACED_CONNECTIONS = 24
"""Pauses are long beside what a request takes, and few requests arrive at the same moment."""
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
MAX_SECONDS = 600
"""The test stops it long before."""
FAULTS = ("Socket errors", "Non-2xx")
"""The beginnings of lines that wrk prints only after failures."""


@dataclass(frozen=True)
class Flood:
    """The result of wrk."""

    requests: int
    seconds: float
    faults: Sequence[str]

    def __str__(self) -> str:
        speed = f"{self.requests / self.seconds:,.0f}/s"
        return " · ".join(
            [f"{self.requests} requests in {self.seconds:.1f} s, {speed}", *self.faults]
        )


def find_wrk() -> str:
    """The binary. If it is missing, the test is skipped, or fails in continuous integration."""
    binary = shutil.which("wrk")
    if binary is None:
        pytest.skip(MISSING)
    return binary


@asynccontextmanager
async def flood(
    wrk: str, client: Client, body: Mapping[str, Any], *, keep_alive: bool
) -> AsyncIterator[Callable[[], Awaitable[Flood]]]:
    """Sends the same image request repeatedly; yields the function that stops it."""
    more = () if keep_alive else ("Connection: close",)
    async with _run(wrk, client, SCRIPT, json.dumps(body), headers=more) as stop:
        yield stop


@asynccontextmanager
async def paced_flood(
    wrk: str, client: Client, bodies: Sequence[Mapping[str, Any]], *, a_second: int
) -> AsyncIterator[Callable[[], Awaitable[Flood]]]:
    """Sends the requests in turn, at most so many a second."""
    pause_ms = round(1000 * PACED_CONNECTIONS / a_second)
    arguments = (str(pause_ms), *map(json.dumps, bodies))
    async with _run(wrk, client, PACED_SCRIPT, *arguments, connections=PACED_CONNECTIONS) as stop:
        yield stop


@asynccontextmanager
async def _run(
    wrk: str,
    client: Client,
    script: Path,
    *arguments: str,
    headers: Sequence[str] = (),
    connections: int = CONNECTIONS,
) -> AsyncIterator[Callable[[], Awaitable[Flood]]]:
    sent = (
        f"Authorization: Bearer {client.secret}",
        "Content-Type: application/json",
        *headers,
    )
    process = await asyncio.create_subprocess_exec(
        *(wrk, "-t1", f"-c{connections}", f"-d{MAX_SECONDS}s", f"-s{script}"),
        *(f"-H{header}" for header in sent),
        f"{client.url}/v1/images/generations",
        *("--", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )

    async def stop() -> Flood:
        assert process.returncode is None, "it has ended by itself"
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
        return _read(output.decode())

    try:
        yield stop
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _read(output: str) -> Flood:
    total = re.search(r"(\d+) requests in ([\d.]+)([smh])", output)
    assert total is not None, output
    lines = [line.strip() for line in output.splitlines()]
    faults = [line for line in lines if line.startswith(FAULTS)]
    return Flood(int(total[1]), float(total[2]) * UNIT_SECONDS[total[3]], faults)
