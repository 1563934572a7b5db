"""Many purchases at once: memory for thousands in flight, memory and event loop for large ones.

The upstream (`holding`) holds the requests and answers them all at once; the client is `crowd`.
Each runs in its own process. Memory is read from the worker's `/proc/PID/status`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import goals, nginx
from tests.bench.cells import GATEWAY, SIZES
from tests.bench.load import Failed, Target
from tests.bench.processes import raise_descriptor_limit, run_process
from tests.bench.processor_time import SETTLE_SECONDS, spent_by
from tests.bench.results import Measurement, Part
from tests.bench.servers import Setup, run_gateway
from tests.ports import free_port

IN_FLIGHT = 9_000
"""Each has two connections: more would not fit into 20,000 descriptors."""
SPARE_FILES = 200

LARGE = 64
LARGE_BYTES = 8 * 1024 * 1024
"""The size of a large image. Its base64 is a third larger."""

WARM_UP = 100
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Upstream:
    """An upstream that holds requests until they are released."""

    port: int
    folder: Path
    """Its gateway's log is below this folder."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def held(self) -> int:
        """How many requests it holds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/held") as response:
            return int(response.read())

    def release(self) -> None:
        """Answers all requests that it holds."""
        url = f"http://127.0.0.1:{self.port}/release"
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
            pass


@dataclass(frozen=True)
class InFlight:
    """What purchases in flight take."""

    idle_bytes: int
    """Memory of the worker before them."""
    held_bytes: int
    """Memory of the worker with them."""
    each: Measurement
    """Processor time of a purchase, with a connection of its own."""


def in_flight(folder: Path, redis_url: str) -> Iterator[Part]:
    """Memory of the worker while thousands of purchases are in flight, minus that when idle.

    Raises `Failed` if this user may not open enough files.
    """
    print("in flight …", file=sys.stderr)  # noqa: T201
    if (limit := raise_descriptor_limit()) < 2 * IN_FLIGHT + SPARE_FILES:
        raise Failed(
            f"{IN_FLIGHT:,} in flight need ulimit -n {2 * IN_FLIGHT + SPARE_FILES}: {limit}"
        )
    found = measure_in_flight(folder, redis_url, IN_FLIGHT)
    each_kilobytes = (found.held_bytes - found.idle_bytes) / IN_FLIGHT / 1024
    yield Part(
        {f"{IN_FLIGHT:,} purchases in flight": {GATEWAY: found.each}},
        (goals.IN_FLIGHT.figure(each_kilobytes),),
    )


def measure_in_flight(folder: Path, redis_url: str, count: int) -> InFlight:
    """`count` purchases in flight."""
    with _run(folder, redis_url, size_bytes=SIZES["2 KB"]) as (upstream, gateway):
        with _crowd(gateway, upstream, WARM_UP, least_bytes=SIZES["2 KB"]):
            pass
        idle = _memory(gateway.worker, "VmRSS")
        with (
            spent_by(gateway.processes) as spent,
            _crowd(gateway, upstream, count, least_bytes=SIZES["2 KB"]),
        ):
            held = _memory(gateway.worker, "VmRSS")
    return InFlight(idle, held, spent.for_each(count))


def large(folder: Path, redis_url: str) -> Iterator[Part]:
    """Peak memory of the worker minus that when idle, and the longest block of its event loop."""
    print("large …", file=sys.stderr)  # noqa: T201
    base64_bytes = LARGE_BYTES * 4 // 3
    with _run(folder, redis_url, size_bytes=base64_bytes) as (upstream, gateway):
        with _crowd(gateway, upstream, 2, least_bytes=base64_bytes):
            pass
        with _prober(gateway) as quiet:
            time.sleep(SETTLE_SECONDS)
        idle = _memory(gateway.worker, "VmRSS")
        with (
            spent_by(gateway.processes) as spent,
            _prober(gateway) as busy,
            _crowd(gateway, upstream, LARGE, least_bytes=base64_bytes),
        ):
            _forget_peak(gateway.worker)
        peak = _memory(gateway.worker, "VmHWM")
    yield Part(
        {f"{LARGE} purchases of 8 MB at once": {GATEWAY: spent.for_each(LARGE)}},
        (
            goals.LARGE_MEMORY.figure((peak - idle) / (base64_bytes * LARGE)),
            goals.LARGE_PAUSE.figure(busy["milliseconds"] - quiet["milliseconds"]),
        ),
    )


@contextmanager
def _run(folder: Path, redis_url: str, *, size_bytes: int) -> Iterator[tuple[Upstream, Target]]:
    """A gateway in front of a `holding` upstream; each image has about `size_bytes` of base64."""
    folder.mkdir()
    answer, port = folder / "answer.json", free_port()
    answer.write_bytes(nginx.answer_of(size_bytes))
    upstream = Upstream(port, folder)
    command = [sys.executable, "-m", "tests.bench.holding", str(port), str(answer)]
    with run_process("holding", command, port=port, folder=folder) as pid:
        setup = Setup(folder, folder.name, upstream.base_url, redis_url, upstream_pid=pid)
        with run_gateway(setup, GATEWAY, redis_url) as gateway:
            yield upstream, gateway


@contextmanager
def _crowd(gateway: Target, upstream: Upstream, count: int, *, least_bytes: int) -> Iterator[None]:
    """Sends `count` requests, which are held while the block runs and answered at its end.

    Raises `Failed` unless each request gets its image.
    """
    headers = [f"{name}: {value}" for name, value in gateway.headers.items()]
    command = [sys.executable, "-m", "tests.bench.crowd", str(count), gateway.url, *headers]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as crowd:
        try:
            _wait_until_held(crowd, upstream, count)
            yield
            upstream.release()
            output, _ = crowd.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            crowd.kill()
    result = json.loads(output)
    if result["statuses"] != {"200": count} or result["least_bytes"] < least_bytes:
        raise Failed(f"of {count} requests at once not every one got its image: {result}")
    time.sleep(SETTLE_SECONDS)


def _wait_until_held(crowd: subprocess.Popen[bytes], upstream: Upstream, count: int) -> None:
    held, deadline = 0, time.monotonic() + TIMEOUT_SECONDS
    while crowd.poll() is None and time.monotonic() < deadline:
        if (held := upstream.held()) == count:
            return
        time.sleep(0.2)
    answers = f"meanwhile the gateway answered {_answers(upstream.folder)}"
    raise Failed(f"of {count} requests at once only {held} reached upstream; {answers}")


def _answers(folder: Path) -> dict[str, int]:
    """The number of answers by status, from the log."""
    logs = "".join(path.read_text() for path in folder.glob("*/log-*"))
    return Counter(re.findall(r'"status":(\d+)', logs))


@contextmanager
def _prober(gateway: Target) -> Iterator[dict[str, float]]:
    """Probes `/healthz` of the worker while the block runs; fills the dict when it ends."""
    url = gateway.url.removesuffix(nginx.PATH) + "healthz"
    command = [sys.executable, "-m", "tests.bench.prober", url, str(gateway.worker)]
    result: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as prober:
        try:
            yield result
        finally:
            prober.terminate()
            output, _ = prober.communicate()
    result |= json.loads(output)


def _memory(pid: int, name: str) -> int:
    """The memory of a process in bytes: `VmRSS` is the current value, `VmHWM` the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _forget_peak(pid: int) -> None:
    """Resets `VmHWM`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
