"""Measures one server with wrk."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cells import SIZES, Cell

SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT_SECONDS = 30
"""wrk's timeout for one answer. The slowest peer needs half a second."""


KNOWN_IMAGES = 1000
"""The number of images that `scale` requests in turn."""


class Failed(Exception):
    """A measurement failed; the message gives the reason in one line."""


@dataclass(frozen=True)
class Target:
    """A server to measure: the URL for image requests, and their headers."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    worker: int = 0
    """The process id of the server, if known."""


@dataclass(frozen=True)
class Speed:
    """The result of wrk."""

    per_second: float
    p50_ms: float
    requests: int = 0
    """The number of answers."""


def known_prompt(number: int) -> str:
    """A prompt of `run_wrk` with `known_images`, as `post.lua` writes it."""
    return f"An otter that nobody has seen, known-{number}"


def run_wrk(target: Target, cell: Cell, *, seconds: int, known_images: int = 1) -> Speed:
    """Measures a cell. Raises `Failed` unless every answer has an image of the cell's size.

    Above 1, `known_images` is the number of different images that are requested in turn.
    """
    headers = [f"-H{name}: {value}" for name, value in target.headers.items()]
    salt = [str(time.time_ns())] if cell.kind == "bought" else []
    if known_images > 1:
        salt = ["known", str(known_images)]
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "--latency"),
            *(f"--timeout={TIMEOUT_SECONDS}s", f"-s{SCRIPT}", *headers, target.url, "--", *salt),
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


def _check(target: Target, result: Mapping[str, int], *, least_bytes: int) -> None:
    requests = result["requests"]
    if result["failed"] or not requests:
        raise Failed(f"{target.name}: {result['failed']} of {requests} requests failed")
    if result["bytes"] < requests * least_bytes:
        mean = result["bytes"] // requests
        raise Failed(f"{target.name} answers with {mean} bytes where {least_bytes} are asked for")
