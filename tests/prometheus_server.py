"""A real Prometheus for tests, which scrapes a gateway and evaluates rules.

It starts empty on a free port, or with series that a test writes by hand (`write_series`). Its
programs are `prometheus` and `promtool`, both in Debian's package `prometheus`.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from tests.gateways import ADMIN_TOKEN
from tests.ports import free_port
from tests.waiting import GENEROUS_SECONDS, eventually, until

MISSING = "prometheus is not installed: apt-get install prometheus"
STAMP_TOLERANCE_SECONDS = 0.01
"""Prometheus moves the time of a sample by up to 2 ms, so that its distances are equal."""

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Series:
    """A series of a result. An instant query gives it one sample."""

    labels: Labels
    samples: Sequence[tuple[float, float]]
    """Unix times and values."""

    @property
    def value(self) -> float:
        """The latest value."""
        return self.samples[-1][1]


@dataclass(frozen=True)
class Alert:
    """An alert of one rule for one set of labels."""

    name: str
    state: str
    """`pending` or `firing`."""
    labels: Labels
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str
    config_file: Path
    config: Mapping[str, Any]
    session: aiohttp.ClientSession

    async def query(self, expression: str, *, at: float | None = None) -> list[Series]:
        """The result at a Unix time, or now. A scalar is a series without labels."""
        given = {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"})
        data = await self._read("query", given)
        if data["resultType"] == "scalar":
            return [Series({}, [_sample(data["result"])])]
        assert data["resultType"] == "vector", data["resultType"]
        return [Series(one["metric"], [_sample(one["value"])]) for one in data["result"]]

    async def value(self, expression: str, *, at: float | None = None) -> float | None:
        """The value of the only series; None if there is no series."""
        found = await self.query(expression, at=at)
        assert len(found) <= 1, (expression, found)
        return found[0].value if found else None

    async def query_range(
        self, expression: str, *, start: float, end: float, step_seconds: float
    ) -> list[Series]:
        """The result at each step from `start` to `end`, as a panel asks for it."""
        given = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}"}
        data = await self._read("query_range", given | {"step": f"{step_seconds:g}"})
        return [
            Series(one["metric"], [_sample(each) for each in one["values"]])
            for one in data["result"]
        ]

    async def rules(self) -> list[dict[str, Any]]:
        """The groups of rules, each rule with its `health` and `lastError`."""
        groups: list[dict[str, Any]] = (await self._read("rules"))["groups"]
        return groups

    async def alerts(self) -> list[Alert]:
        """The alerts that are pending or firing."""
        found = (await self._read("alerts"))["alerts"]
        return [
            Alert(
                one["labels"]["alertname"],
                one["state"],
                {name: text for name, text in one["labels"].items() if name != "alertname"},
                one["annotations"],
            )
            for one in found
        ]

    async def until_firing(self, name: str, /, **labels: str) -> Alert:
        """Waits until an alert with this name and these labels fires."""

        async def look() -> Alert | None:
            for alert in await self.alerts():
                is_firing = alert.name == name and alert.state == "firing"
                if is_firing and alert.labels.items() >= labels.items():
                    return alert
            return None

        found: Alert = await eventually(look)
        return found

    async def until_silent(self, name: str) -> None:
        """Waits until no alert with this name is pending or firing."""

        async def is_silent() -> bool:
            return all(alert.name != name for alert in await self.alerts())

        await eventually(is_silent)

    async def until_scraped(self, *, after: float | None = None, targets: int = 1) -> None:
        """Waits until every target was scraped once more, beginning after a Unix time, or now.

        The samples can be queried then. A target that does not answer counts as scraped.
        """
        moment = (time.time() if after is None else after) + STAMP_TOLERANCE_SECONDS

        async def were_scraped() -> bool:
            scraped = [one.value for one in await self.query("timestamp(up)")]
            return len(scraped) >= targets and min(scraped) > moment

        await eventually(were_scraped)

    async def until_scraped_times(self, count: int, *, targets: int = 1) -> None:
        """Waits until every target was scraped `count` times since the start."""

        async def were_scraped() -> bool:
            scraped = [one.value for one in await self.query("count_over_time(up[1h])")]
            return len(scraped) >= targets and min(scraped) >= count

        await eventually(were_scraped)

    async def until_evaluated(self, *, after: float | None = None) -> None:
        """Waits until every group of rules was evaluated once more, after a Unix time, or now."""
        moment = (time.time() if after is None else after) + STAMP_TOLERANCE_SECONDS
        own = "prometheus_rule_group_last_evaluation_timestamp_seconds"

        async def were_evaluated() -> bool:
            async with self.session.get(f"{self.url}/metrics") as response:
                lines = (await response.text()).splitlines()
            stamps = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(own)]
            # These are whole seconds, of the beginning.
            return bool(stamps) and min(stamps) > moment

        await eventually(were_evaluated)

    async def reload(self, **changed: Any) -> None:
        """Reads configuration and rules again, with other values for top-level keys."""
        self.config_file.write_text(yaml.safe_dump({**self.config, **changed}))
        async with self.session.post(f"{self.url}/-/reload") as response:
            assert response.status == 200, await response.text()

    async def _read(self, name: str, given: Mapping[str, str] | None = None) -> Any:
        async with (
            self.session.post(f"{self.url}/api/v1/{name}", data=given)
            if given
            else (self.session.get(f"{self.url}/api/v1/{name}")) as response
        ):
            answer = await response.json()
        assert answer["status"] == "success", (given, answer)
        assert not answer.get("warnings"), (given, answer)
        return answer["data"]


def _sample(pair: tuple[float, str]) -> tuple[float, float]:
    """The API writes values as strings, because JSON has no NaN."""
    return float(pair[0]), float(pair[1])


def scrape(
    *urls: str, job: str = "image-gateway", token: str = ADMIN_TOKEN, **more: Any
) -> dict[str, Any]:
    """A scrape configuration of gateways at these URLs; `more` is added to it."""
    targets = [urlsplit(url).netloc for url in urls]
    return {
        "job_name": job,
        "authorization": {"credentials": token},
        "static_configs": [{"targets": targets}],
        **more,
    }


@asynccontextmanager
async def run_prometheus(
    folder: Path,
    *scrapes: Mapping[str, Any],
    rules: Sequence[Path] = (),
    interval: str = "500ms",
    evaluation: str = "500ms",
) -> AsyncIterator[Prometheus]:
    """Runs a server with its data in `folder`, which may have series from `write_series`.

    It scrapes and evaluates so often. If the binary is missing, the test is skipped. With
    `CI=true` it fails.
    """
    with _running(folder, scrapes, rules, interval=interval, evaluation=evaluation) as started:
        url, config_file, config = started
        timeout = aiohttp.ClientTimeout(total=GENEROUS_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Prometheus(url, config_file, config, session)


def write_series(folder: Path, openmetrics: str) -> None:
    """Writes samples with Unix times into the data of a server that does not run.

    `openmetrics` is text such as `gateway_spend_usd{scope="everyone"} 1.5 1764300000`, the samples
    of a series in the order of time, families together; the line `# EOF` is added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "series.txt"
    given.write_text(f"{openmetrics.rstrip()}\n# EOF\n")
    # A month in one block takes half a second; in blocks of two hours, the default, it takes 30.
    blocks = ("create-blocks-from", "--max-block-duration=744h", "openmetrics", "--quiet")
    promtool("tsdb", *blocks, str(given), _data(folder))


def promtool(*words: str) -> str:
    """Runs a command of promtool; returns what it printed. Fails if it fails."""
    done = subprocess.run(
        [_find("promtool"), *words],
        capture_output=True,
        text=True,
        timeout=4 * GENEROUS_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _find(program: str) -> str:
    binary = shutil.which(program)
    if binary is None:
        pytest.skip(MISSING)
    return binary


def _data(folder: Path) -> str:
    return str(folder / "data")


@contextmanager
def _running(
    folder: Path,
    scrapes: Sequence[Mapping[str, Any]],
    rules: Sequence[Path],
    *,
    interval: str,
    evaluation: str,
) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    program = _find("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    # A scrape must not take longer than the pause between two.
    pauses = {"scrape_interval": interval, "scrape_timeout": interval}
    config = {
        "global": {**pauses, "evaluation_interval": evaluation},
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [dict(one) for one in scrapes],
    }
    config_file = folder / "prometheus.yml"
    config_file.write_text(yaml.safe_dump(config))
    process, url = _start(program, folder, config_file)
    try:
        yield url, config_file, config
    finally:
        process.kill()
        process.wait()


def _start(program: str, folder: Path, config_file: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Tries three times, because another process may take a free port before the server does."""
    log_file = folder / "prometheus.log"
    for _ in range(3):
        port = free_port()
        command = [
            *(program, f"--config.file={config_file}", f"--web.listen-address=127.0.0.1:{port}"),
            *(f"--storage.tsdb.path={_data(folder)}", "--web.enable-lifecycle"),
            # Or it would delete what a test wrote about last month.
            "--storage.tsdb.retention.time=10y",
        ]
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        if _is_ready(process, port):
            return process, f"http://127.0.0.1:{port}"
        process.kill()
        process.wait()
    pytest.fail(f"prometheus did not start:\n{log_file.read_text()}")


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether this process answers queries; False if it ended."""

    def look() -> bool:
        if process.poll() is not None:
            return True
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=GENEROUS_SECONDS)
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    until(look)
    return process.poll() is None
