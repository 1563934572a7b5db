"""Everybody who takes part, each ready to be asked: the gateway and what runs beside it."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import nginx, peers
from tests.bench.cells import COLD, EMBEDDED, GATEWAY, SIZES, Kind
from tests.bench.load import Target
from tests.bench.nginx import PATH
from tests.bench.processes import free_port, run_process
from tests.gateways import ADMIN_TOKEN, start_processes
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
"""Every limit there is, each checked and counted, none ever reached."""


@dataclass(frozen=True)
class Ground:
    """What all servers of one size stand on."""

    folder: Path
    size: str
    upstream: str
    """An OpenAI-compatible base URL."""
    proxy: str
    cache: str
    redis_url: str


@contextmanager
def open_grounds(folder: Path) -> Iterator[dict[str, Ground]]:
    """Runs the upstream, both nginx proxies and Redis; a ground for each size."""
    names = {size: size.replace(" ", "") for size in SIZES}
    answers = {names[size]: nginx.answer_of(length) for size, length in SIZES.items()}
    with ExitStack() as stack:
        upstream = stack.enter_context(nginx.run_upstream(folder / "upstream", answers))
        ports = stack.enter_context(nginx.run_proxies(folder / "nginx", upstream))
        redis_folder = folder / "redis"
        redis_folder.mkdir()
        redis_url = stack.enter_context(run_redis_server(redis_folder))
        yield {
            size: Ground(
                folder / name,
                size,
                *(f"http://127.0.0.1:{port}/{name}/v1" for port in (upstream, *ports)),
                redis_url=redis_url,
            )
            for size, name in names.items()
        }


@contextmanager
def open_targets(
    ground: Ground, chosen_peers: Sequence[str]
) -> Iterator[Mapping[Kind, Sequence[Target]]]:
    """Runs everybody for images of one size; who is asked for hits, and who for purchases."""
    ground.folder.mkdir()
    with ExitStack() as stack:
        upstream = Target("upstream", _generations(ground.upstream))
        gateway = stack.enter_context(run_gateway(ground, GATEWAY, ground.redis_url))
        embedded = stack.enter_context(run_gateway(ground, EMBEDDED, None))
        cold = _open_cold(ground, stack)
        bare_hit = stack.enter_context(_run_bare_hit(ground))
        bare_pass = stack.enter_context(_run_bare(ground, "pass", _generations(ground.upstream)))
        others = [
            stack.enter_context(peers.run_peer(name, ground.upstream, ground.folder))
            for name in chosen_peers
        ]
        cache = Target("nginx", _generations(ground.cache))
        proxy = Target("nginx", _generations(ground.proxy))
        yield {
            "hit": [upstream, cache, bare_hit, gateway, *cold, embedded],
            "bought": [upstream, proxy, bare_pass, gateway, *others],
        }


def _open_cold(ground: Ground, stack: ExitStack) -> Sequence[Target]:
    """A gateway without a hot tier, where images are large: else it is much the same."""
    if ground.size != "2 MB":
        return []
    return [stack.enter_context(run_gateway(ground, COLD, ground.redis_url, memory_bytes=0))]


def _generations(base_url: str) -> str:
    return base_url.removesuffix("/v1") + "/" + PATH


@contextmanager
def run_gateway(
    ground: Ground, name: str, redis_url: str | None, *, memory_bytes: int | None = None
) -> Iterator[Target]:
    """One worker with everything on: key, limits, ledger, metrics, and the log in a file."""
    folder = ground.folder / name
    options = {
        "upstream": {"name": ground.size},  # or one size's hits would be the other's images
        "cache": {"memory_bytes": memory_bytes},  # None: as it comes
    }
    with start_processes(
        folder, ground.upstream, workers=1, redis_url=redis_url, options=options
    ) as processes:
        secret = _create_key(processes.url, f"{name} {ground.size}")
        (worker,) = processes.workers()
        headers = {"Authorization": f"Bearer {secret}"}
        yield Target(name, f"{processes.url}/{PATH}", headers, worker)


def _create_key(url: str, name: str) -> str:
    request = urllib.request.Request(
        f"{url}/admin/keys",
        data=json.dumps({"name": name, "limits": LIMITS}).encode(),
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["key"])


def _run_bare_hit(ground: Ground) -> AbstractContextManager[Target]:
    """Small answers come from memory, large ones from Redis."""
    answer = ground.folder / "answer.json"
    answer.write_bytes(nginx.answer_of(SIZES[ground.size]))
    source = "redis" if ground.size == "2 MB" else "memory"
    return _run_bare(ground, source, ground.redis_url, str(answer))


@contextmanager
def _run_bare(ground: Ground, *what: str) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare", str(port), *what]
    with run_process("bare", command, port=port, folder=ground.folder):
        yield Target("bare", f"http://127.0.0.1:{port}/{PATH}")
