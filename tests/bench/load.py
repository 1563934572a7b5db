"""Asks one server for a while with wrk, and says how often it answered."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
PATIENCE_SECONDS = 30
"""How long wrk waits for one answer; the slowest peer needs half a second."""


class Failed(Exception):
    """The benchmark cannot go on; the message says why in one line."""


@dataclass(frozen=True)
class Target:
    """Where a server is asked for pictures, and what it wants to see."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """What wrk measured."""

    per_second: float
    p50_ms: float


def ask_for(target: Target, *, connections: int, seconds: int, has_distinct_prompts: bool) -> Speed:
    """Keeps `connections` busy for `seconds`. Raises `Failed` when any answer is not a 2xx."""
    headers = [f"-H{name}: {value}" for name, value in target.headers.items()]
    salt = [str(time.time_ns())] if has_distinct_prompts else []
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"),
            *(f"--timeout={PATIENCE_SECONDS}s", f"-s{SCRIPT}", *headers, target.url, "--", *salt),
        ],
        capture_output=True,
        check=False,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Failed(f"wrk could not ask {target.name}: {done.stderr.strip()}")
    return _speed(target, json.loads(lines[-1]))


def _speed(target: Target, said: Mapping[str, int]) -> Speed:
    if said["failed"] or not said["requests"]:
        raise Failed(
            f"{target.name}: {said['failed']} of {said['requests']} requests failed at {target.url}"
        )
    return Speed(said["requests"] / said["micros"] * 1e6, said["p50_micros"] / 1000)
