"""Purchases in bulk: the memory that thousands in flight take, and the time that large ones take.

The upstream (`holding`) lets them wait and answers all at once; who asks is `crowd`. Both run in
processes of their own, and memory is what Linux says of the worker.
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

from tests.bench import nginx
from tests.bench.cells import GATEWAY, SIZES, Row, in_flight_row, peak_row, standstill_row
from tests.bench.load import Failed, Target
from tests.bench.processes import free_port, raise_descriptor_limit, run_process
from tests.bench.servers import Ground, run_gateway

IN_FLIGHT = 9_000
"""Two connections each: more would not fit into 20,000 descriptors."""

LARGE = 64
LARGE_BYTES = 8 * 1024 * 1024
"""Of a large image; its base64 has a third more."""

WARM_UP = 100
SETTLE_SECONDS = 1.5
"""After the last answer, the worker still writes its ledger and its books."""

PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Upstream:
    """An upstream that holds requests back."""

    port: int
    folder: Path
    """In which the gateway before it has its log."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def held(self) -> int:
        """How many requests wait."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/held") as response:
            return int(response.read())

    def release(self) -> None:
        """Answers them all."""
        url = f"http://127.0.0.1:{self.port}/release"
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
            pass


def in_flight_rows(folder: Path, redis_url: str) -> Iterator[Row]:
    """What the worker takes more while thousands wait than when it was idle."""
    print("in flight …", file=sys.stderr)  # noqa: T201
    count = min(IN_FLIGHT, (raise_descriptor_limit() - 200) // 2)
    with _run(folder, redis_url, size_bytes=SIZES["2 KB"]) as (upstream, gateway):
        with _crowd(gateway, upstream, WARM_UP, least_bytes=SIZES["2 KB"]):
            pass
        idle = _memory(gateway.worker, "VmRSS")
        with _crowd(gateway, upstream, count, least_bytes=SIZES["2 KB"]):
            held = _memory(gateway.worker, "VmRSS")
    yield in_flight_row(count, (held - idle) / count)


def large_rows(folder: Path, redis_url: str) -> Iterator[Row]:
    """The most that the worker takes more than idle, and how long it answers nobody."""
    print("large …", file=sys.stderr)  # noqa: T201
    base64_bytes = LARGE_BYTES * 4 // 3
    with _run(folder, redis_url, size_bytes=base64_bytes) as (upstream, gateway):
        with _crowd(gateway, upstream, 2, least_bytes=base64_bytes):
            pass
        with _prober(gateway) as quiet:
            time.sleep(SETTLE_SECONDS)
        idle = _memory(gateway.worker, "VmRSS")
        with _prober(gateway) as busy, _crowd(gateway, upstream, LARGE, least_bytes=base64_bytes):
            _forget_peak(gateway.worker)
        peak = _memory(gateway.worker, "VmHWM")
    yield peak_row(LARGE, peak - idle, base64_bytes * LARGE)
    yield standstill_row(LARGE, quiet["milliseconds"], busy["milliseconds"])


@contextmanager
def _run(folder: Path, redis_url: str, *, size_bytes: int) -> Iterator[tuple[Upstream, Target]]:
    """A gateway before an upstream that holds requests, with images of about this much base64."""
    folder.mkdir()
    answer, port = folder / "answer.json", free_port()
    answer.write_bytes(nginx.answer_of(size_bytes))
    upstream = Upstream(port, folder)
    ground = Ground(folder, folder.name, upstream.base_url, "", "", redis_url=redis_url)
    command = [sys.executable, "-m", "tests.bench.holding", str(port), str(answer)]
    with (
        run_process("holding", command, port=port, folder=folder),
        run_gateway(ground, GATEWAY, redis_url) as gateway,
    ):
        yield upstream, gateway


@contextmanager
def _crowd(gateway: Target, upstream: Upstream, count: int, *, least_bytes: int) -> Iterator[None]:
    """So many requests, held back while the block runs and answered at its end.

    Raises `Failed` unless every one of them gets its image.
    """
    headers = [f"{name}: {value}" for name, value in gateway.headers.items()]
    command = [sys.executable, "-m", "tests.bench.crowd", str(count), gateway.url, *headers]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as crowd:
        try:
            _wait_until_held(crowd, upstream, count)
            yield
            upstream.release()
            said, _ = crowd.communicate(timeout=PATIENCE_SECONDS)
        finally:
            crowd.kill()
    ended = json.loads(said)
    if ended["statuses"] != {"200": count} or ended["least_bytes"] < least_bytes:
        raise Failed(f"of {count} requests at once not every one got its image: {ended}")
    time.sleep(SETTLE_SECONDS)


def _wait_until_held(crowd: subprocess.Popen[bytes], upstream: Upstream, count: int) -> None:
    held, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while crowd.poll() is None and time.monotonic() < deadline:
        if (held := upstream.held()) == count:
            return
        time.sleep(0.2)
    told = f"meanwhile the gateway answered {_answers(upstream.folder)}"
    raise Failed(f"of {count} requests at once only {held} reached upstream; {told}")


def _answers(folder: Path) -> dict[str, int]:
    """How many answers of each status the log tells of."""
    logs = "".join(path.read_text() for path in folder.glob("*/log-*"))
    return Counter(re.findall(r'"status":(\d+)', logs))


@contextmanager
def _prober(gateway: Target) -> Iterator[dict[str, float]]:
    """Asks for the worker's health while the block runs; what it says is there at the end."""
    url = gateway.url.removesuffix(nginx.PATH) + "healthz"
    command = [sys.executable, "-m", "tests.bench.prober", url, str(gateway.worker)]
    said: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as prober:
        try:
            yield said
        finally:
            prober.terminate()
            told, _ = prober.communicate()
    said |= json.loads(told)


def _memory(pid: int, name: str) -> int:
    """Bytes that a process has in memory: `VmRSS` now, `VmHWM` at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _forget_peak(pid: int) -> None:
    """From now on `VmHWM` is counted anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
