"""Asks one server for a while with wrk, and says how often it answered."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cells import SIZES, Cell

SCRIPT = Path(__file__).with_name("post.lua")
PATIENCE_SECONDS = 30
"""How long wrk waits for one answer; the slowest peer needs half a second."""


AMONG = 1000
"""How many images are asked for in turn where it is not always the same."""


class Failed(Exception):
    """The benchmark cannot go on; the message says why in one line."""


@dataclass(frozen=True)
class Target:
    """Where a server is asked for images, and what it wants to see."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    worker: int = 0
    """The process that answers, where that is known."""


@dataclass(frozen=True)
class Speed:
    """What wrk measured."""

    per_second: float
    p50_ms: float


def known_prompt(number: int) -> str:
    """One of the prompts that `ask_for` asks among, as `post.lua` writes it."""
    return f"An otter that nobody has seen, known-{number}"


def ask_for(target: Target, cell: Cell, *, seconds: int, among: int = 1) -> Speed:
    """Asks as the cell says. Raises `Failed` unless every answer is an image of its size.

    Hits are asked for `among` so many images in turn.
    """
    headers = [f"-H{name}: {value}" for name, value in target.headers.items()]
    salt = [str(time.time_ns())] if cell.kind == "bought" else []
    if among > 1:
        salt = ["known", str(among)]
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "--latency"),
            *(f"--timeout={PATIENCE_SECONDS}s", f"-s{SCRIPT}", *headers, target.url, "--", *salt),
        ],
        capture_output=True,
        check=False,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Failed(f"wrk could not ask {target.name}: {done.stderr.strip()}")
    said = json.loads(lines[-1])
    _check(target, said, least_bytes=SIZES[cell.size])
    return Speed(said["requests"] / said["usd_micros"] * 1e6, said["p50_micros"] / 1000)


def _check(target: Target, said: Mapping[str, int], *, least_bytes: int) -> None:
    requests = said["requests"]
    if said["failed"] or not requests:
        raise Failed(f"{target.name}: {said['failed']} of {requests} requests failed")
    if said["bytes"] < requests * least_bytes:
        mean = said["bytes"] // requests
        raise Failed(f"{target.name} answers with {mean} bytes where {least_bytes} are asked for")
