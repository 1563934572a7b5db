"""Gateways for tests: real ones, on real sockets, over real stores, before a simulated upstream.

`run_gateway` runs one in this process, on its event loop; `run_processes` runs `gateway serve`
with its supervisor and workers, as an operator would.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from gateway.access.policy import Policy, parse_policy
from gateway.assembly import Gateway, OpenLinks, open_store
from gateway.billing.ledger import Ledger
from gateway.catalog import Catalog
from gateway.configuration.files import read_config
from gateway.configuration.settings import Settings
from gateway.images import Record
from gateway.maintenance import open_running_gateway
from gateway.process.bootstrap import prepare
from gateway.process.worker import open_runner
from gateway.simulator import SimulatorSettings, open_simulator
from gateway.store.batch import execute
from gateway.store.commands import Counter, PeekCounters
from gateway.upstream.fetch import open_link_fetcher
from tests.processes import living_children

needs_asyncio_that_pauses = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2),
    reason="this Python's asyncio never pauses a writer after writelines (CPython issue 127655)",
)
"""For tests that fill a connection of a gateway in this process; `gateway serve` runs on uvloop."""

ADMIN_TOKEN = "an-admin-token"
CONFIG = Path(__file__).parent.parent / "config"
MODEL = "gpt-image-1.5"
START_SECONDS = 20.0


@dataclass(frozen=True)
class Reply:
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def images(self) -> list[str]:
        """The base64 of every image."""
        return [item["b64_json"] for item in self.json["data"]]

    @property
    def cache_status(self) -> str:
        return self.headers["Cache-Status"].partition("; key=")[0].removeprefix("image-gateway; ")


@dataclass(frozen=True)
class Upstream:
    """A simulated upstream, as the gateway and the test reach it."""

    base_url: str
    session: aiohttp.ClientSession

    @property
    def root(self) -> str:
        return self.base_url.removesuffix("/v1")

    async def calls(self) -> list[dict[str, Any]]:
        """The calls received since the start or the last `forget`, oldest first."""
        async with self.session.get(f"{self.root}/_sim/calls") as response:
            return await response.json()

    async def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the image requests among them."""
        return [call["body"] for call in await self.calls() if call["method"] == "POST"]

    async def forget(self) -> None:
        async with self.session.delete(f"{self.root}/_sim/calls"):
            pass

    async def play(self, *faults: str) -> None:
        """The faults of the next calls, one each."""
        async with self.session.put(f"{self.root}/_sim/faults", json=list(faults)):
            pass


@dataclass
class Client:
    """Asks one gateway, as one key."""

    url: str
    session: aiohttp.ClientSession
    secret: str = ""
    key_id: str = ""

    async def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **given: Any
    ) -> Reply:
        """Any request; with this client's key unless `headers` say otherwise."""
        given_headers = {"Authorization": f"Bearer {self.secret}", **(headers or {})}
        async with self.session.request(
            method, self.url + path, headers=given_headers, **given
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def ask(self, prompt: str = "an otter", **body: Any) -> Reply:
        """An image request; `headers=` goes beside the body, `model=None` leaves the model out."""
        headers = body.pop("headers", None)
        whole = {"model": MODEL, "prompt": prompt, **body}
        sent = {name: value for name, value in whole.items() if (name, value) != ("model", None)}
        return await self.send("POST", "/v1/images/generations", headers=headers, json=sent)

    async def admin(self, method: str, path: str, body: Any = None) -> Reply:
        """A request with the admin token."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        given = {} if body is None else {"json": body}
        return await self.send(method, path, headers=headers, **given)

    async def with_key(self, name: str = "alice", **spec: Any) -> Client:
        """A client of the same gateway with a key of its own."""
        reply = await self.admin("POST", "/admin/keys", {"name": name, **spec})
        assert reply.status == 201, reply.body
        return Client(self.url, self.session, reply.json["key"], reply.json["id"])

    async def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, by its name and labels."""
        text = (await self.admin("GET", "/metrics")).body.decode()
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


@dataclass
class InProcess:
    """A gateway on this process's event loop."""

    client: Client
    gateway: Gateway
    settings: Settings
    runner: web.AppRunner

    async def ledger(self) -> list[Record]:
        """All records, those that are still waiting to be written among them."""
        await self.gateway.ledger.write()
        return [record for _, record in await self.gateway.ledger.read(limit=100_000)]


def make_settings(
    folder: Path, upstream: str, redis_url: str | None = None, /, **given: Any
) -> Settings:
    """Settings for a test gateway; `given` merges into their sections."""
    sections: dict[str, dict[str, Any]] = {
        "server": {"listen": "127.0.0.1:0", "admin_token": ADMIN_TOKEN},
        "store": {"data_dir": str(folder), "redis_url": redis_url},
        "upstream": {"base_url": upstream, "api_key": "sk-upstream-secret"},
        "workers": {},
        "cache": {},
        "rehost": {},
    }
    for name, section in given.items():
        sections[name] |= section
    return Settings.model_validate(sections)


@dataclass(frozen=True)
class PolicyFile:
    """The policy of a `models.yaml`."""

    models: Path

    def read_policy(self) -> Policy:
        return parse_policy(read_config(self.models, {}), file=self.models.name)

    def policy_state(self) -> object:
        return None


SHIPPED = PolicyFile(CONFIG / "models.yaml")


@asynccontextmanager
async def run_gateway(
    settings: Settings, *, policy: PolicyFile = SHIPPED, open_links: OpenLinks = open_link_fetcher
) -> AsyncIterator[InProcess]:
    """Runs a gateway in this process on a free port."""
    prepare(settings)
    async with (
        aiohttp.ClientSession() as session,
        open_running_gateway(settings, policy, open_links=open_links) as gateway,
        open_runner(settings, gateway) as runner,
    ):
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        client = Client(f"http://{host}:{port}", session)
        yield InProcess(client, gateway, settings, runner)


@asynccontextmanager
async def run_upstream(catalog: Catalog | None = None, /, **given: Any) -> AsyncIterator[Upstream]:
    """A simulated upstream without latency whose images are small, for the shipped models."""
    catalog = catalog or SHIPPED.read_policy().catalog
    settings = SimulatorSettings(**{"latency_scale": 0, "small_images": True, **given})
    async with (
        open_simulator("127.0.0.1", 0, catalog=catalog, settings=settings) as base_url,
        aiohttp.ClientSession() as session,
    ):
        yield Upstream(base_url, session)


# ── gateways as processes ───────────────────────────────────────────────────────────────────


@dataclass
class Processes:
    """`gateway serve`: a supervisor and its workers."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path
    settings: Settings
    environ: Mapping[str, str]
    """Of the processes, and of commands beside them."""
    ended: list[int] = field(default_factory=list)

    def log(self, about: str = "") -> list[dict[str, Any]]:
        """The lines of its log that contain a text; one that is still being written is left out."""
        lines = self.log_file.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and about in line]

    def answers_by_worker(self) -> dict[int, int]:
        """How many image requests each worker answered, by process id."""
        counted: dict[int, int] = {}
        for line in self.log():
            if line["event"] == "request_answered" and line["endpoint"] == "generations":
                counted[line["pid"]] = counted.get(line["pid"], 0) + 1
        return counted

    def worker_of(self, reply: Reply) -> int:
        """The process id of the worker that gave this answer."""
        request_id = reply.headers["x-request-id"]
        return next(line["pid"] for line in self.log() if line.get("request_id") == request_id)

    def workers(self) -> set[int]:
        """Its workers that live, draining ones too."""
        return living_children(self.process.pid)

    def signal_parent(self, number: int) -> None:
        """As an operator would: the parent passes on what is for the workers."""
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill_all(self) -> None:
        """`kill -9` of everything, at once."""
        self.signal_group(signal.SIGKILL)
        self.process.wait()

    async def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same configuration, to its end."""
        folder = self.log_file.parent
        command = [sys.executable, "-m", "gateway", *words, "--config", "gateway.yaml"]
        return await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    async def wait(self, seconds: float = 20) -> int:
        """Its exit status."""
        return await asyncio.to_thread(self.process.wait, seconds)

    async def ledger(self) -> list[Record]:
        """What stands in its store, read from outside."""
        async with open_store(self.settings) as (store, _):
            return [record for _, record in await Ledger(store).read(limit=100_000)]

    async def records(self, count: int) -> list[Record]:
        """The ledger once it has `count` records: those without a cost follow within a second."""
        for _ in range(40):
            found = await self.ledger()
            if len(found) >= count:
                break
            await asyncio.sleep(0.1)
        return found


@contextmanager
def start_processes(
    folder: Path,
    upstream: str,
    *,
    workers: int = 4,
    redis_url: str | None = None,
    data: str = "data",
    options: Mapping[str, Any] | None = None,
    module: str = "gateway",
    environ: Mapping[str, str] | None = None,
) -> Iterator[Processes]:
    """Runs `gateway serve` in `folder` on a free port; whatever is left at the end is killed.

    `module` is run in the place of the command line, with `environ` beside the usual environment.
    """
    folder.mkdir(exist_ok=True)
    settings = make_settings(folder / data, upstream, redis_url, **(options or {}))
    config = folder / "gateway.yaml"
    config.write_text(_as_yaml(settings, options or {}, workers))
    environment = {
        **os.environ,
        "UPSTREAM_API_KEY": "sk-upstream-secret",
        "GATEWAY_DATA_DIR": str(folder / data),
        "GATEWAY_REDIS_URL": redis_url or "",
        "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "UPSTREAM_BASE_URL": upstream,
        **(environ or {}),
    }
    log_file = folder / f"log-{time.monotonic_ns()}"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--config", str(config)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode().strip()
        assert line.startswith("Listening on "), (line, log_file.read_text())
        url = line.removeprefix("Listening on ")
        yield Processes(process, url, log_file, settings, environment)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _as_yaml(settings: Settings, options: Mapping[str, Any], workers: int) -> str:
    sections: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "admin_token": "${GATEWAY_ADMIN_TOKEN}"},
        "store": {"data_dir": "${GATEWAY_DATA_DIR}", "redis_url": "${GATEWAY_REDIS_URL:-}"},
        "upstream": {"base_url": "${UPSTREAM_BASE_URL}", "api_key": "${UPSTREAM_API_KEY}"},
        "workers": {"count": workers},
        "log_format": "json",
    }
    for name, section in options.items():
        sections[name] = {**sections.get(name, {}), **section}
    return yaml.safe_dump(sections)


@asynccontextmanager
async def run_processes(*given: Any, **more: Any) -> AsyncIterator[tuple[Processes, Client]]:
    """`start_processes`, serving, with a client of its own."""
    async with aiohttp.ClientSession() as session:
        with start_processes(*given, **more) as processes:
            client = Client(processes.url, session)
            await _until_ready(client, processes)
            yield processes, client


async def _until_ready(client: Client, processes: Processes) -> None:
    """Every worker says so in the log."""
    wanted = yaml.safe_load((processes.log_file.parent / "gateway.yaml").read_text())
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        serving = sum("serves" in line["event"] for line in processes.log())
        if serving >= wanted["workers"]["count"]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(processes.log_file.read_text())


async def each_connection(
    client: Client, count: int, *, bodies: Sequence[Mapping[str, Any]]
) -> list[Reply]:
    """Sends `count` requests at once, each on a connection of its own."""

    async def one(body: Mapping[str, Any]) -> Reply:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await Client(client.url, session, client.secret).ask(**body)

    return await asyncio.gather(*(one(bodies[i % len(bodies)]) for i in range(count)))


@asynccontextmanager
async def open_connections(client: Client, count: int) -> AsyncIterator[list[Client]]:
    """The same client `count` times, each with a connection of its own that is open already."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            clients.append(Client(client.url, session, client.secret, client.key_id))
        await asyncio.gather(*(opened.send("GET", "/healthz") for opened in clients))
        yield clients


@asynccontextmanager
async def open_to_each(
    processes: Processes, client: Client, *, workers: int
) -> AsyncIterator[dict[int, Client]]:
    """An open connection to each of so many workers, by process id."""
    for _ in range(10):
        async with open_connections(client, 10 * workers) as connections:
            checked = await asyncio.gather(*(c.send("GET", "/healthz") for c in connections))
            found = map(processes.worker_of, checked)
            by_worker = dict(zip(found, connections, strict=True))
            if len(by_worker) == workers:
                yield by_worker
                return
    raise AssertionError("some worker takes no connection")


def open_to_both(
    processes: Processes, client: Client
) -> AbstractAsyncContextManager[dict[int, Client]]:
    """An open connection to each of two workers, by process id."""
    return open_to_each(processes, client, workers=2)


@dataclass(frozen=True)
class Spent:
    """What a key's counters show: of the month in micro-dollars, of the day in images."""

    usd_micros: int
    images: int
    reserved_micros: int
    reserved_images: int


async def read_spent(settings: Settings, key_id: str) -> Spent:
    """The counters of a key, read from the store itself."""
    scope = f"key:{key_id}"
    async with open_store(settings) as (store, _):
        money, images = await execute(
            store,
            PeekCounters((Counter(scope, "usd_micros", "month"), Counter(scope, "images", "day"))),
        )
    return Spent(money.used, images.used, money.reserved, images.reserved)
