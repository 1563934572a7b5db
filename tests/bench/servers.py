"""Runs the gateway and the servers beside it."""

from __future__ import annotations

import json
import secrets
import sys
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import redis

from tests.bench import nginx, peers
from tests.bench.cells import (
    ADMITTED,
    BARE,
    BARE_MEMORY,
    BARE_REDIS,
    EMBEDDED,
    GATEWAY,
    NGINX_CACHE,
    NGINX_PROXY,
    NGINX_STORED,
    PEERS,
    SIZES,
    UPSTREAM,
    Kind,
)
from tests.bench.load import Target
from tests.bench.nginx import PATH, Nginx
from tests.bench.processes import run_process
from tests.bench.processor_time import SETTLE_SECONDS, Processes
from tests.gateways import ADMIN_TOKEN, start_processes
from tests.ports import free_port
from tests.redis_server import run_redis_server

LIMITS = {
    "requests_per_minute": 10**8,
    "images_per_minute": 10**8,
    "concurrent_requests": 10**6,
    "images_per_day": 10**9,
    "tokens_per_day": 10**12,
    "usd_per_day": 10**9,
    "usd_per_month": 10**9,
}
"""All limits: each is checked and counted, and none is ever reached."""
PURCHASE_LIMITS = {name: limit for name, limit in LIMITS.items() if name != "requests_per_minute"}
"""All limits but the one that counts each request at the store, so that hits come from memory."""


@dataclass(frozen=True)
class Setup:
    """The servers that all targets of one image size share."""

    folder: Path
    size: str
    upstream: str
    """An OpenAI-compatible base URL."""
    redis_url: str
    upstream_pid: int | None = None
    nginx_upstream: Nginx | None = None
    """The upstream, if nginx can be put in front of it."""


@contextmanager
def open_setups(folder: Path) -> Iterator[dict[str, Setup]]:
    """Runs the upstream and Redis; yields the setup of each size."""
    names = {size: size.replace(" ", "") for size in SIZES}
    answers = {names[size]: nginx.answer_of(length) for size, length in SIZES.items()}
    redis_folder = folder / "redis"
    redis_folder.mkdir()
    with (
        nginx.run_upstream(folder / "upstream", answers) as upstream,
        run_redis_server(redis_folder) as redis_url,
    ):
        yield {
            size: Setup(
                folder / name,
                size,
                f"http://127.0.0.1:{upstream.port}/{name}/v1",
                redis_url,
                upstream_pid=upstream.pid,
                nginx_upstream=upstream,
            )
            for size, name in names.items()
        }


Targets = Mapping[Kind, Mapping[str, Target]]
"""By kind of request and name of the server."""


@contextmanager
def open_targets(setup: Setup, chosen: Collection[str]) -> Iterator[Targets]:
    """Runs those servers for images of one size whose names are chosen."""
    setup.folder.mkdir()
    with ExitStack() as stack:
        found = _Targets(setup, frozenset(chosen), stack)
        found.open_gateways()
        found.open_bare()
        found.open_nginx()
        found.open_peers()
        found.add(
            Target(
                UPSTREAM,
                _generations(setup.upstream),
                processes=Processes(upstream=setup.upstream_pid),
            )
        )
        yield found.by_kind


class _Targets:
    """The servers that run until the stack is closed."""

    def __init__(self, setup: Setup, chosen: frozenset[str], stack: ExitStack) -> None:
        self.by_kind: dict[Kind, dict[str, Target]] = {"hit": {}, "bought": {}}
        self._setup, self._chosen, self._stack = setup, chosen, stack

    def add(self, target: Target, *kinds: Kind) -> None:
        """Adds it for these kinds of requests, or for both."""
        for kind in kinds or ("hit", "bought"):
            self.by_kind[kind][target.name] = target

    def open_gateways(self) -> None:
        """Hits use a key with `PURCHASE_LIMITS`, purchases one with `LIMITS`."""
        for name, redis_url in ((GATEWAY, self._setup.redis_url), (EMBEDDED, None)):
            if name in self._chosen:
                running = run_gateway(self._setup, name, redis_url)
                gateway = self._stack.enter_context(running)
                self.add(gateway, "bought")
                self.add(with_limits(gateway, self._setup.size, PURCHASE_LIMITS), "hit")
                if name == GATEWAY:
                    self.add(replace(gateway, name=ADMITTED), "hit")

    def open_bare(self) -> None:
        """The bare handlers."""
        setup, answer = self._setup, self._setup.folder / "answer.json"
        answer.write_bytes(nginx.answer_of(SIZES[setup.size]))
        hit = (setup.redis_url, str(answer))
        self._bare(BARE, "bought", "pass", _generations(setup.upstream))
        self._bare(BARE, "hit", "round-trip", *hit)
        self._bare(BARE_MEMORY, "hit", "memory", *hit)
        self._bare(BARE_REDIS, "hit", "redis", *hit)

    def _bare(self, name: str, kind: Kind, *arguments: str) -> None:
        if name not in self._chosen:
            return
        port = free_port()
        command = [sys.executable, "-m", "tests.bench.bare", str(port), *arguments]
        running = run_process(_file_name(name), command, port=port, folder=self._setup.folder)
        uses_redis = kind == "hit" and name != BARE_MEMORY
        processes = self._processes(self._stack.enter_context(running), uses_redis=uses_redis)
        self.add(Target(name, f"http://127.0.0.1:{port}/{PATH}", processes=processes), kind)

    def open_nginx(self) -> None:
        """A cache for hits, another one that stores every answer, and a plain proxy."""
        kinds: dict[str, Kind] = {NGINX_CACHE: "hit", NGINX_STORED: "bought", NGINX_PROXY: "bought"}
        upstream = self._setup.nginx_upstream
        for name, kind in kinds.items():
            if upstream is not None and name in self._chosen:
                run = nginx.run_proxy if name == NGINX_PROXY else nginx.run_cache
                folder = self._setup.folder / _file_name(name)
                server = self._stack.enter_context(run(folder, upstream))
                url = self._setup.upstream.replace(str(upstream.port), str(server.port))
                processes = self._processes(server.pid)
                self.add(Target(name, _generations(url), processes=processes), kind)

    def open_peers(self) -> None:
        """The peers that are chosen."""
        for name in PEERS:
            if name in self._chosen:
                running = peers.run_peer(name, self._setup.upstream, self._setup.folder)
                peer = self._stack.enter_context(running)
                processes = self._processes(*peer.processes.workers)
                self.add(replace(peer, processes=processes), "bought")

    def _processes(self, *workers: int, uses_redis: bool = False) -> Processes:
        redis = redis_pid(self._setup.redis_url) if uses_redis else None
        return Processes(workers, redis, self._setup.upstream_pid)


def _generations(base_url: str) -> str:
    return base_url.removesuffix("/v1") + "/" + PATH


@contextmanager
def run_gateway(
    setup: Setup,
    name: str,
    redis_url: str | None,
    *,
    memory_bytes: int | None = None,
    workers: int = 1,
    limits: Mapping[str, int] = LIMITS,
    module: str = "gateway",
    environ: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """A gateway with all features: key, limits, ledger, metrics, and the log in a file."""
    folder = setup.folder / _file_name(name)
    options = {
        "upstream": {"name": setup.size},  # otherwise all sizes would share entries
        "cache": {"memory_bytes": memory_bytes},  # None: the default
    }
    with start_processes(
        folder,
        setup.upstream,
        workers=workers,
        redis_url=redis_url,
        options=options,
        module=module,
        environ=environ,
        may_fork=False,
    ) as running:
        target = with_limits(Target(name, f"{running.url}/{PATH}"), setup.size, limits)
        # A worker has answered, so all of them are there.
        processes = Processes(
            tuple(running.workers()),
            redis_pid(redis_url) if redis_url else None,
            upstream=setup.upstream_pid,
            settle_seconds=SETTLE_SECONDS,
        )
        yield replace(target, processes=processes)


def with_limits(target: Target, size: str, limits: Mapping[str, int]) -> Target:
    """The same gateway, with a new key that has these limits."""
    url = target.url.removesuffix(f"/{PATH}")
    name = f"{_file_name(target.name)} {size} {secrets.token_hex(4)}"
    request = urllib.request.Request(
        f"{url}/admin/keys",
        data=json.dumps({"name": name, "limits": limits}).encode(),
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        key = json.load(response)["key"]
    return replace(target, headers={"Authorization": f"Bearer {key}"})


def _file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def redis_pid(url: str) -> int:
    """The process id of a server on this machine."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])
