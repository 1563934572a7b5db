"""Runs the gateway and its baselines."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import nginx, peers
from tests.bench.cells import EMBEDDED, GATEWAY, NO_MEMORY_CACHE, SIZES, Kind
from tests.bench.load import Target
from tests.bench.nginx import PATH
from tests.bench.processes import run_process
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


@dataclass(frozen=True)
class Setup:
    """The servers that all targets of one image size share."""

    folder: Path
    size: str
    upstream: str
    """An OpenAI-compatible base URL."""
    proxy: str
    cache: str
    redis_url: str


@contextmanager
def open_setups(folder: Path) -> Iterator[dict[str, Setup]]:
    """Runs the upstream, both nginx proxies and Redis; yields the setup of each size."""
    names = {size: size.replace(" ", "") for size in SIZES}
    answers = {names[size]: nginx.answer_of(length) for size, length in SIZES.items()}
    with ExitStack() as stack:
        upstream = stack.enter_context(nginx.run_upstream(folder / "upstream", answers))
        ports = stack.enter_context(nginx.run_proxies(folder / "nginx", upstream))
        redis_folder = folder / "redis"
        redis_folder.mkdir()
        redis_url = stack.enter_context(run_redis_server(redis_folder))
        yield {
            size: Setup(
                folder / name,
                size,
                *(f"http://127.0.0.1:{port}/{name}/v1" for port in (upstream, *ports)),
                redis_url=redis_url,
            )
            for size, name in names.items()
        }


@contextmanager
def open_targets(
    setup: Setup, chosen_peers: Sequence[str]
) -> Iterator[Mapping[Kind, Sequence[Target]]]:
    """Runs all servers for images of one size; yields the targets for hits and for purchases."""
    setup.folder.mkdir()
    with ExitStack() as stack:
        upstream = Target("upstream", _generations(setup.upstream))
        gateway = stack.enter_context(run_gateway(setup, GATEWAY, setup.redis_url))
        embedded = stack.enter_context(run_gateway(setup, EMBEDDED, None))
        no_memory_cache = _open_no_memory_cache(setup, stack)
        bare_hit = stack.enter_context(_run_bare_hit(setup))
        bare_pass = stack.enter_context(_run_bare(setup, "pass", _generations(setup.upstream)))
        others = [
            stack.enter_context(peers.run_peer(name, setup.upstream, setup.folder))
            for name in chosen_peers
        ]
        cache = Target("nginx", _generations(setup.cache))
        proxy = Target("nginx", _generations(setup.proxy))
        yield {
            "hit": [upstream, cache, bare_hit, gateway, *no_memory_cache, embedded],
            "bought": [upstream, proxy, bare_pass, gateway, *others],
        }


def _open_no_memory_cache(setup: Setup, stack: ExitStack) -> Sequence[Target]:
    """A gateway without a memory cache, only for large images: small ones hardly differ."""
    if setup.size != "2 MB":
        return []
    return [
        stack.enter_context(run_gateway(setup, NO_MEMORY_CACHE, setup.redis_url, memory_bytes=0))
    ]


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
) -> Iterator[Target]:
    """A gateway with all features: key, limits, ledger, metrics, and the log in a file."""
    folder = setup.folder / name
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
        may_fork=False,
    ) as processes:
        secret = _create_key(processes.url, f"{name} {setup.size}", limits)
        worker, *_ = processes.workers()
        headers = {"Authorization": f"Bearer {secret}"}
        yield Target(name, f"{processes.url}/{PATH}", headers, worker)


def _create_key(url: str, name: str, limits: Mapping[str, int]) -> str:
    request = urllib.request.Request(
        f"{url}/admin/keys",
        data=json.dumps({"name": name, "limits": limits}).encode(),
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["key"])


def _run_bare_hit(setup: Setup) -> AbstractContextManager[Target]:
    """Small answers come from memory, large ones from Redis."""
    answer = setup.folder / "answer.json"
    answer.write_bytes(nginx.answer_of(SIZES[setup.size]))
    source = "redis" if setup.size == "2 MB" else "memory"
    return _run_bare(setup, source, setup.redis_url, str(answer))


@contextmanager
def _run_bare(setup: Setup, *arguments: str) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare", str(port), *arguments]
    with run_process("bare", command, port=port, folder=setup.folder):
        yield Target("bare", f"http://127.0.0.1:{port}/{PATH}")
