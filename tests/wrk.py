"""A flood of one request over several connections at once, by wrk, and what went wrong in it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import Client

MISSING = "wrk is not installed: apt-get install wrk"
SCRIPT = Path(__file__).with_name("flood.lua")
CONNECTIONS = 8
FAULTS = ("Socket errors", "Non-2xx")
"""How the lines begin that wrk prints only when it has something to complain about."""


@dataclass(frozen=True)
class Flood:
    """What wrk counted."""

    requests: int
    seconds: float
    faults: Sequence[str]

    def __str__(self) -> str:
        speed = f"{self.requests / self.seconds:,.0f}/s"
        return " · ".join(
            [f"{self.requests} requests in {self.seconds:.1f} s, {speed}", *self.faults]
        )


def find_wrk() -> str:
    """The binary; without it the test is skipped, and fails in continuous integration."""
    binary = shutil.which("wrk")
    if binary is None:
        pytest.skip(MISSING)
    return binary


async def flood(
    wrk: str, client: Client, body: Mapping[str, Any], *, seconds: int, keep_alive: bool
) -> Flood:
    """Asks for the same image over and over."""
    headers = [f"Authorization: Bearer {client.secret}", "Content-Type: application/json"]
    if not keep_alive:
        headers.append("Connection: close")
    process = await asyncio.create_subprocess_exec(
        *(wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"-s{SCRIPT}"),
        *(f"-H{header}" for header in headers),
        f"{client.url}/v1/images/generations",
        *("--", json.dumps(body)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _read(said.decode())


def _read(said: str) -> Flood:
    total = re.search(r"(\d+) requests in ([\d.]+)s", said)
    assert total is not None, said
    lines = [line.strip() for line in said.splitlines()]
    faults = [line for line in lines if line.startswith(FAULTS)]
    return Flood(int(total[1]), float(total[2]), faults)
