"""Real gateways for tests, with real sockets and stores, in front of a simulated upstream.

`run_gateway` runs one in this process, on its event loop; `run_processes` runs `gateway serve`
with its supervisor and workers, as an operator does.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web, web_app
from yarl import URL

from gateway.access.policy import Policy, PolicySource, parse_policy
from gateway.assembly import Gateway, OpenLinks
from gateway.billing.ledger import Ledger
from gateway.catalog import Catalog
from gateway.configuration.fields import parse_address
from gateway.configuration.files import read_config
from gateway.configuration.settings import Settings
from gateway.images import Record
from gateway.maintenance import open_running_gateway
from gateway.process.bootstrap import prepare
from gateway.process.listener import bind_listeners
from gateway.process.worker import open_sites
from gateway.simulator import SimulatorSettings, create_simulator
from gateway.simulator.profiles import PROFILES
from gateway.store.batch import execute
from gateway.store.commands import Counter, OpenJournals, PeekCounters
from gateway.upstream.fetch import open_link_fetcher
from gateway.upstream.observer import Pace
from gateway.wiring.stores import DATABASE, open_store
from tests.empty_store import place_empty_store
from tests.forks import Fork, run_fork
from tests.gates import Gate, LeaseCounter, Leases
from tests.processes import kill_group, living_children, serving
from tests.scripted_upstream import Clock
from tests.waiting import GENEROUS_SECONDS, eventually

needs_asyncio_that_pauses = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2),
    reason="this Python's asyncio never pauses a writer after writelines (CPython issue 127655)",
)
"""For tests that fill a connection of an in-process gateway; `gateway serve` runs on uvloop."""

ADMIN_TOKEN = "an-admin-token-of-tests"
CONFIG = Path(__file__).parent.parent / "config"
TLS = Path(__file__).parent / "tls"
TLS_SETTINGS = {"cert": str(TLS / "server.pem"), "key": str(TLS / "server-key.pem")}
MODEL = "gpt-image-2"
USUAL = {"model": MODEL, "size": "1024x1024", "quality": "low"}
"""The image that `ask` asks for, unless a test names another model."""
FORKED = {"gateway", "tests.failing_gateway", "tests.quick_gateway"}
"""Modules whose processes may have imported more than they would by themselves."""


@dataclass(frozen=True)
class Reply:
    """A complete HTTP response."""

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
    """A simulated upstream."""

    base_url: str
    session: aiohttp.ClientSession
    gate: Gate = field(default_factory=Gate)

    @property
    def root(self) -> str:
        return str(URL(self.base_url).origin())

    async def calls(self) -> list[dict[str, Any]]:
        """The requests received since the start or the last `forget`, oldest first."""
        async with self.session.get(f"{self.root}/_sim/calls") as response:
            return await response.json()

    async def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the image requests among them."""
        return [call["body"] for call in await self.calls() if call["method"] == "POST"]

    async def forget(self) -> None:
        async with self.session.delete(f"{self.root}/_sim/calls"):
            pass

    def hold(self) -> AbstractAsyncContextManager[Gate]:
        """Holds image requests until the block is left."""
        return self.gate.shut()

    async def until_sent(self, count: int = 1) -> None:
        """Waits until upstream has received `count` image requests."""
        await eventually(lambda: self.has_received(count))

    async def has_received(self, count: int) -> bool:
        return len(await self.bodies()) >= count

    async def play(self, *faults: str) -> None:
        """Sets one fault for each of the next requests."""
        async with self.session.put(f"{self.root}/_sim/faults", json=list(faults)):
            pass


@dataclass
class Client:
    """A client of one gateway, with one key."""

    url: str
    session: aiohttp.ClientSession
    secret: str = ""
    key_id: str = ""
    admin_url: str = ""
    """The admin API, if it has an address of its own."""

    async def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **given: Any
    ) -> Reply:
        """Sends a request, with this client's key unless `headers` override it."""
        given_headers = {"Authorization": f"Bearer {self.secret}", **(headers or {})}
        async with self.session.request(
            method, self.url + path, headers=given_headers, **given
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def ask(self, prompt: str = "an otter", **body: Any) -> Reply:
        """Sends an image request with `body`, except `headers`. `model=None` omits the model."""
        headers = body.pop("headers", None)
        whole = {**({} if "model" in body else USUAL), "prompt": prompt, **body}
        sent = {name: value for name, value in whole.items() if (name, value) != ("model", None)}
        return await self.send("POST", "/v1/images/generations", headers=headers, json=sent)

    async def admin(self, method: str, path: str, body: Any = None) -> Reply:
        """Sends a request with the admin token."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        given = {} if body is None else {"json": body}
        there = replace(self, url=self.admin_url or self.url)
        return await there.send(method, path, headers=headers, **given)

    async def with_key(self, name: str = "alice", **spec: Any) -> Client:
        """A client of the same gateway, with a new key."""
        reply = await self.admin("POST", "/admin/keys", {"name": name, **spec})
        assert reply.status == 201, reply.body
        return replace(self, secret=reply.json["key"], key_id=reply.json["id"])

    async def metrics(self) -> dict[str, float]:
        """The samples of `/metrics`, by name and labels."""
        reply = await self.admin("GET", "/metrics")
        assert reply.status == 200, reply.body
        text = reply.body.decode()
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


def without_minutes(found: Sequence[tuple[str, Record]]) -> list[Record]:
    """The records of a ledger; those of refusals that a minute's end has split are one."""
    merged: dict[object, Record] = {}
    for position, record in found:
        reason: object = position
        if record.count is not None:
            reason = (record.key_id, record.model, record.error, record.status)
        first = merged.setdefault(reason, record)
        if first is not record:
            merged[reason] = first.but(count=(first.count or 0) + (record.count or 0))
    return list(merged.values())


@dataclass
class InProcess:
    """A gateway on this process's event loop."""

    client: Client
    gateway: Gateway
    settings: Settings
    runner: web.AppRunner
    leases: LeaseCounter

    async def ledger(self) -> list[Record]:
        """All records, including those that were not written yet. No minute splits refusals."""
        return without_minutes(await self.ledger_lines())

    async def ledger_lines(self) -> list[tuple[str, Record]]:
        """The same as they are stored, with positions. Each call ends the minute of refusals."""
        await self.gateway.ledger.write()
        await self.gateway.ledger.append_refusals(ends_minute=True)
        return await self.gateway.ledger.read(limit=100_000)

    async def until_leased(self, count: int) -> None:
        """Waits until `count` requests since the start lead or follow a flight."""
        await eventually(lambda: self.leases.count >= count)

    def set_pace(self, pace: Pace) -> None:
        """Replaces the clock and the randomness of retries and of the circuit breaker."""
        self.gateway.services.proxy._images._purchases._delivery._upstream.use_pace(pace)

    def stop_time(self) -> Clock:
        """Retries and the circuit breaker get a clock that only the test moves."""
        clock = Clock()
        self.set_pace(clock.pace)
        return clock

    async def recover_expired(self) -> int:
        """Recovers the open purchases of all other workers; each counts as expired at once."""
        recovery = self.gateway.recovery
        recovery._expires_after_seconds = 0.0
        for _ in range(2):  # workers expire with the second missed check
            await recovery.send_heartbeat()
        return await recovery.recover_dead()


def leases_at(*gateways: InProcess) -> Leases:
    """The leases of these gateways from now on."""
    return Leases(*(gateway.leases for gateway in gateways))


def make_settings(
    folder: Path, upstream: str, redis_url: str | None = None, /, **given: Any
) -> Settings:
    """Settings of a test gateway; `given` is merged into the sections.

    `upstreams` are the entries of that list, in place of the one upstream.
    """
    sections: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "admin_token": ADMIN_TOKEN},
        "store": {"data_dir": str(folder), "redis_url": redis_url},
        "upstream": {"base_url": upstream, "api_key": "sk-upstream-secret"},
        "workers": {},
        "cache": {},
        "billing": {},
        "rehost": {},
    }
    if accounts := given.pop("upstreams", None):
        del sections["upstream"]
        sections["upstreams"] = [{"api_key": "sk-upstream-secret", **one} for one in accounts]
    for name, section in given.items():
        sections[name] = sections.get(name, {}) | section
    return Settings.model_validate(sections)


@dataclass(frozen=True)
class PolicyFile:
    """The policy of a `models.yaml`."""

    models: Path

    def read_policy(self) -> Policy:
        stat = self.models.stat()
        return _read_policy(self.models, stat.st_mtime_ns, stat.st_size)

    def policy_state(self) -> object:
        return None


@cache
def _read_policy(models: Path, *_state: int) -> Policy:
    """Reads a file once for all gateways, because that takes longer than the rest of a start.

    `_state` differs when the file has changed.
    """
    return parse_policy(read_config(models, {}), file=models.name)


SHIPPED = PolicyFile(CONFIG / "models.yaml")


@dataclass
class GivenPolicy:
    """A policy that a test gives, and may change while the gateway runs."""

    models: Mapping[str, Any]
    """As in `models.yaml`."""
    access: Mapping[str, Any] = field(default_factory=dict)

    def read_policy(self) -> Policy:
        return parse_policy(self.models, self.access, file="models.yaml", access_file="access.yaml")

    def policy_state(self) -> object:
        return id(self.models), id(self.access)


@asynccontextmanager
async def run_gateway(
    settings: Settings,
    *,
    policy: PolicySource = SHIPPED,
    open_links: OpenLinks = open_link_fetcher,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[InProcess]:
    """Runs a gateway in this process, on a free port for each of its addresses."""
    if settings.store.redis_url is None:
        place_empty_store(settings.store.data_dir / DATABASE)
    prepare(settings)
    free = parse_address("127.0.0.1:0")
    with (
        bind_listeners(free, settings.server.admin_listen and free) as listeners,
        forgotten_applications(),
    ):
        async with (
            aiohttp.ClientSession(connector=_trusting_connector()) as session,
            open_running_gateway(settings, policy, open_links=open_links, clock=clock) as gateway,
            open_sites(settings, gateway, listeners) as sites,
        ):
            for site in sites:
                await site.start()
            urls = [site.name for site in sites]
            client = Client(urls[0], session, admin_url="" if len(urls) == 1 else urls[1])
            leases = gateway.flights._store = LeaseCounter(gateway.flights._store)
            yield InProcess(client, gateway, settings, sites[0]._runner, leases)


@contextmanager
def forgotten_applications() -> Iterator[None]:
    """Makes aiohttp forget its applications at the end of the block.

    It remembers the middlewares of the last 1024, and so all that these applications have. The
    garbage collector would walk through the gateways of all earlier tests, again and again.
    """
    try:
        yield
    finally:
        web_app._cached_build_middleware.cache_clear()


def _trusting_connector() -> aiohttp.TCPConnector:
    """Trusts the certificate of `tests/tls`, which is valid for 127.0.0.1."""
    return aiohttp.TCPConnector(ssl=trusting_context())


def trusting_context() -> ssl.SSLContext:
    """Of a client that trusts the authority of `tests/tls`."""
    return ssl.create_default_context(cafile=TLS / "authority.pem")


@asynccontextmanager
async def run_upstream(catalog: Catalog | None = None, /, **given: Any) -> AsyncIterator[Upstream]:
    """A simulated upstream without latency whose images are small, for the shipped models."""
    catalog = catalog or SHIPPED.read_policy().catalog
    settings = SimulatorSettings(**{"latency_scale": 0, "small_images": True, **given})
    app, gate = create_simulator(catalog, settings), Gate()
    app.middlewares.append(gate.admit)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            base_path = PROFILES[settings.profile].base_path
            base_url = f"http://127.0.0.1:{runner.addresses[0][1]}{base_path}"
            yield Upstream(base_url, session, gate)
    finally:
        await runner.cleanup()


# ── gateways as processes ───────────────────────────────────────────────────────────────────


@dataclass
class Processes:
    """`gateway serve`: a supervisor and its workers."""

    process: subprocess.Popen[bytes] | Fork
    url: str
    log_file: Path
    settings: Settings
    environ: Mapping[str, str]
    """The environment of the processes, and of `run`."""
    ended: list[int] = field(default_factory=list)
    admin_url: str = ""
    """The admin API, if it has an address of its own."""

    def log(self, about: str = "") -> list[dict[str, Any]]:
        """The complete log lines that contain `about`."""
        lines = self.log_file.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and about in line]

    def answers_by_worker(self) -> dict[int, int]:
        """The number of image requests that each worker logged, by process id.

        A worker logs an answer after sending it, so the newest ones may not be logged yet.
        """
        counted: dict[int, int] = {}
        for line in self.log():
            if line["event"] == "request_answered" and line["endpoint"] == "generations":
                counted[line["pid"]] = counted.get(line["pid"], 0) + 1
        return counted

    async def logged(self, reply: Reply) -> dict[str, Any]:
        """The log line of an answer, which a worker writes after sending it."""
        request_id = reply.headers["x-request-id"]

        def look() -> list[dict[str, Any]]:
            return [line for line in self.log(request_id) if line["event"] == "request_answered"]

        (line,) = await eventually(look)
        return line

    async def worker_of(self, reply: Reply) -> int:
        """The process id of the worker that answered."""
        return (await self.logged(reply))["pid"]

    def serving(self) -> list[set[int]]:
        """The sets of workers that accepted connections, one after each change, from the log."""
        return serving(self.log("worker_"))

    def workers(self) -> set[int]:
        """The running workers, including draining ones."""
        return living_children(self.process.pid)

    def signal_parent(self, number: int) -> None:
        """As an operator does; the parent forwards signals to the workers."""
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill_all(self) -> None:
        """`kill -9` of the whole process group."""
        kill_group(self.process.pid)
        self.process.wait()

    async def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs another command with the same configuration."""
        folder = self.log_file.parent
        words = (*words, "--config", "gateway.yaml")
        if isinstance(self.process, Fork):
            return await asyncio.to_thread(run_fork, *words, cwd=folder, env=self.environ)
        command = [sys.executable, "-m", "gateway", *words]
        return await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=GENEROUS_SECONDS,
            check=False,
        )

    async def wait(self) -> int:
        """Waits for the exit status."""
        return await asyncio.to_thread(self.process.wait, GENEROUS_SECONDS)

    async def ledger(self) -> list[Record]:
        """The ledger, read from its store."""
        async with open_store(self.settings) as (store, _):
            ledger = Ledger(store)
            await ledger.append_refusals(ends_minute=True)
            return without_minutes(await ledger.read(limit=100_000))

    async def recover(self, pid: int) -> None:
        """Recovers the open purchases of a killed worker, before its heartbeat expires."""
        async with run_gateway(self.settings) as other:
            journals = await execute(other.gateway.store, OpenJournals())
            (worker,) = {j.worker for j in journals if f"-{pid}-" in j.worker}
            await other.gateway.recovery.recover(worker)

    async def records(self, count: int) -> list[Record]:
        """The ledger once it has `count` records; records without a cost are written later."""

        async def look() -> list[Record]:
            found = await self.ledger()
            return found if len(found) >= count else []

        return await eventually(look)


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
    may_fork: bool = True,
) -> Iterator[Processes]:
    """Runs `gateway serve` in `folder` on a free port; on exit, kills all processes.

    Runs `module` instead of `gateway`, and adds `environ` to the usual environment. If it
    may not fork, it is a new interpreter, with memory and hashes of its own.
    """
    folder.mkdir(exist_ok=True)
    settings = make_settings(folder / data, upstream, redis_url, **(options or {}))
    config = folder / "gateway.yaml"
    config.write_text(_as_yaml(settings, options or {}, workers))
    environment = {
        **os.environ,
        "PYTHONPATH": str(CONFIG.parent),  # `module` may be one of the tests
        "UPSTREAM_API_KEY": "sk-upstream-secret",
        "GATEWAY_DATA_DIR": str(folder / data),
        "GATEWAY_REDIS_URL": redis_url or "",
        "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "UPSTREAM_BASE_URL": upstream,
        # Each process reads the trusted authorities, and a system's hundreds take 50 ms.
        "SSL_CERT_FILE": str(TLS / "authority.pem"),
        **(environ or {}),
    }
    log_file = folder / f"log-{time.monotonic_ns()}"
    process: subprocess.Popen[bytes] | Fork
    with log_file.open("wb") as log:
        is_fork = may_fork and module in FORKED
        if is_fork and not any(name.startswith("PYTHON") for name in environ or {}):
            words = ("serve", "--config", str(config))
            process = Fork(*words, cwd=folder, env=environment, stderr=log, module=module)
        else:
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
        url, admin_url = line.removeprefix("Listening on "), ""
        if settings.server.admin_listen is not None:
            line = process.stdout.readline().decode().strip()
            assert line.startswith("Admin API on "), line
            admin_url = line.removeprefix("Admin API on ")
        yield Processes(process, url, log_file, settings, environment, admin_url=admin_url)
    finally:
        kill_group(process.pid)
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
    options = dict(options)
    if accounts := options.pop("upstreams", None):
        del sections["upstream"]
        sections["upstreams"] = [{"api_key": "${UPSTREAM_API_KEY}", **one} for one in accounts]
    for name, section in options.items():
        sections[name] = {**sections.get(name, {}), **section}
    return yaml.safe_dump(sections)


@asynccontextmanager
async def run_processes(*given: Any, **more: Any) -> AsyncIterator[tuple[Processes, Client]]:
    """As `start_processes`, but yields once every worker serves, and with a client."""
    async with aiohttp.ClientSession(connector=_trusting_connector()) as session:
        with start_processes(*given, **more) as processes:
            client = Client(processes.url, session, admin_url=processes.admin_url)
            await _until_ready(client, processes)
            yield processes, client


async def _until_ready(client: Client, processes: Processes) -> None:
    """Returns once every worker has logged that it is ready."""
    wanted = yaml.safe_load((processes.log_file.parent / "gateway.yaml").read_text())

    def are_serving() -> bool:
        serving = sum(line["event"] == "worker_ready" for line in processes.log())
        return serving >= wanted["workers"]["count"]

    await eventually(are_serving)


async def each_connection(
    client: Client, count: int, *, bodies: Sequence[Mapping[str, Any]]
) -> list[Reply]:
    """Sends `count` requests at once, each on its own connection."""

    async def one(body: Mapping[str, Any]) -> Reply:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await Client(client.url, session, client.secret).ask(**body)

    return await asyncio.gather(*(one(bodies[i % len(bodies)]) for i in range(count)))


@asynccontextmanager
async def open_connections(client: Client, count: int) -> AsyncIterator[list[Client]]:
    """Yields `count` copies of the client, each with its own open connection."""
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
    """Yields an open connection to each of `workers` workers, by process id."""
    for _ in range(10):
        async with open_connections(client, 10 * workers) as connections:
            checked = await asyncio.gather(*(c.send("GET", "/healthz") for c in connections))
            found = [await processes.worker_of(reply) for reply in checked]
            by_worker = dict(zip(found, connections, strict=True))
            if len(by_worker) == workers:
                yield by_worker
                return
    raise AssertionError("a worker takes no connection")


async def let_pass(client: Client, *, workers: int) -> None:
    """Waits until every worker has processed its earlier requests as far as it can.

    A worker starts requests in the order of their arrival. Each of the ten later requests waits
    for the store, so an earlier request has done its few store commands by then.
    """
    async with open_connections(client, 10 * workers) as connections:
        for _ in range(10):
            await asyncio.gather(*(each.send("GET", "/v1/models") for each in connections))


def open_to_both(
    processes: Processes, client: Client
) -> AbstractAsyncContextManager[dict[int, Client]]:
    """Yields an open connection to each of two workers, by process id."""
    return open_to_each(processes, client, workers=2)


@dataclass(frozen=True)
class Spent:
    """A key's counters: micro-dollars this month, images today."""

    usd_micros: int
    images: int
    reserved_micros: int
    reserved_images: int


async def read_spent(settings: Settings, key_id: str) -> Spent:
    """The counters of a key, read from the store."""
    scope = f"key:{key_id}"
    async with open_store(settings) as (store, _):
        money, images = await execute(
            store,
            PeekCounters((Counter(scope, "usd_micros", "month"), Counter(scope, "images", "day"))),
        )
    return Spent(money.used, images.used, money.reserved, images.reserved)
