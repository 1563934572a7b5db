"""A Redis that cannot be used ends `serve`, `keys` and `doctor` with one line and exit status 1."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from gateway.cli.main import cli
from gateway.process.bootstrap import check_store
from tests.failover import run_redis_pair
from tests.forks import run_fork
from tests.gateways import ADMIN_TOKEN, make_settings, run_processes, run_upstream
from tests.ports import closed_port, free_port
from tests.redis_server import restricted, run_redis_server
from tests.waiting import eventually

USER = "redis://gateway:right@"


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str

    @property
    def message(self) -> str:
        """The one line that is no log line."""
        (line,) = [line for line in self.stderr.splitlines() if not line.startswith("{")]
        return line


def environment(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "UPSTREAM_API_KEY": "sk-upstream-secret",
        "UPSTREAM_BASE_URL": "http://127.0.0.1:9/v1",
        "GATEWAY_LISTEN": f"127.0.0.1:{free_port()}",
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "GATEWAY_LOG_FORMAT": "json",
        **environ,
    }


async def run_here(folder: Path, *words: str, **environ: str) -> Result:
    """Runs a command in this process, because another one takes a second to start."""
    runner = CliRunner(env=environment(folder, environ))
    done = await asyncio.to_thread(runner.invoke, cli, words)
    assert isinstance(done.exception, SystemExit | None), done.exc_info
    return Result(done.exit_code, done.stdout, done.stderr)


async def run(folder: Path, *words: str, **environ: str) -> Result:
    env = environment(folder, environ)
    done = await asyncio.to_thread(run_fork, *words, cwd=folder, env=env)
    return Result(done.returncode, done.stdout, done.stderr)


async def assert_all_say(folder: Path, *words: str, **environ: str) -> None:
    """Each of the three commands ends with one line that has all the words."""
    served = await run(folder, "serve", **environ)
    listed = await run_here(folder, "keys", "list", **environ)
    examined = await run_here(folder, "doctor", "--format", "json", **environ)
    assert (served.code, listed.code, examined.code) == (1, 1, 1)
    rows = json.loads(examined.stdout)
    found = {row["check"]: row["finding"] for row in rows}
    finding = found.get("store") or found["configuration"]
    for line in (served.message, listed.message, finding):
        assert [word for word in words if word not in line] == [], line
    for result in (served, listed, examined):
        assert "Traceback" not in result.stderr + result.stdout
        assert "right@" not in result.stderr + result.stdout


@pytest.fixture
def url(redis_url: str) -> str:
    """A user who has all rights, and a replica's and a database's worth of trouble to come."""
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "gateway", "reset", "on", ">right", "~*", "&*",
                               "+@all")  # fmt: skip
    return redis_url.replace("redis://", USER)


def restrict(redis_url: str, *rules: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "gateway", *rules)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("-@dangerous", "-xadd"), ("XADD", "ACL SETUSER gateway +xadd")),
        (("resetkeys", "~other:*"), ("keys igw:*", "~igw:*")),
        pytest.param(
            ("resetchannels",), ("channels igw:events:*", "&igw:events:*"), marks=pytest.mark.long
        ),
        pytest.param(("off",), ("WRONGPASS",), marks=pytest.mark.long),
    ],
)
async def test_a_user_without_the_rights(
    tmp_path: Path, redis_url: str, url: str, rules: tuple[str, ...], words: tuple[str, ...]
) -> None:
    restrict(redis_url, *rules)
    await assert_all_say(tmp_path, *words, GATEWAY_REDIS_URL=url)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: f"{url[:-1]}99", ("database",)),
        (lambda url: url.replace("right", "wrong"), ("WRONGPASS",)),
        (lambda url: url.replace("right", "ri/ght"), ("store.redis_url", "written as %2F")),
        pytest.param(
            lambda url: url.replace("right", "12#right"),
            ("store.redis_url", "%23"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda url: f"{url}?ssl_ca_cert=x",
            ("store.redis_url", "ssl_ca_certs"),
            marks=pytest.mark.long,
        ),
    ],
)
async def test_a_url_that_leads_nowhere(
    tmp_path: Path, url: str, change: object, words: tuple[str, ...]
) -> None:
    assert callable(change)
    await assert_all_say(tmp_path, *words, GATEWAY_REDIS_URL=change(url))


async def test_a_server_that_is_no_redis(tmp_path: Path) -> None:
    async with run_upstream() as http:
        port = http.root.rpartition(":")[2]
        words = ("does not speak Redis' protocol",)
        await assert_all_say(tmp_path, *words, GATEWAY_REDIS_URL=f"redis://127.0.0.1:{port}/0")


@pytest.mark.timed
@pytest.mark.long
async def test_a_replica_that_nobody_promotes(tmp_path: Path) -> None:
    async with run_redis_pair(tmp_path / "redis") as pair:
        with pair.old as client:
            client.set("igw:schema", "2")
        pair.until_in_sync()
        words = ("read-only replica", "REPLICAOF NO ONE")
        await assert_all_say(tmp_path, *words, GATEWAY_REDIS_URL=pair.urls[1])


@pytest.mark.timed
async def test_a_start_during_a_failover_waits_for_the_new_master(tmp_path: Path) -> None:
    """The address leads to a replica for a moment."""
    async with run_redis_pair(tmp_path / "redis") as pair:
        settings = make_settings(tmp_path, "http://127.0.0.1:9/v1", pair.address.url)
        pair.demote()
        checking = asyncio.create_task(check_store(settings))
        connections = pair.address.connections
        await eventually(lambda: pair.address.connections > connections + 2)
        pair.move()
        await checking
        with pair.new as new:
            assert new.get("igw:schema") is not None


async def test_what_passes_by_itself_is_waited_for_with_its_reason(tmp_path: Path) -> None:
    with closed_port() as port:
        async with (
            run_upstream() as upstream,
            run_processes(
                tmp_path / "gateway",
                upstream.base_url,
                workers=1,
                redis_url=f"redis://127.0.0.1:{port}/0",
            ) as (processes, client),
        ):
            ready = await client.send("GET", "/readyz")
            (line,) = [line for line in processes.log("during") if line.get("during") == "start"]
            assert (ready.status, ready.json["status"]) == (503, "starting")
            assert "cannot be reached" in line["reason"]
            assert "cannot be reached" in ready.json["reasons"]["store"]


# ── eviction ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def evicting(tmp_path: Path) -> AsyncIterator[str]:
    with run_redis_server(tmp_path) as started:
        yield started


def set_policy(url: str, policy: str, *, maxmemory: int = 100 << 20) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", maxmemory)
        client.config_set("maxmemory-policy", policy)


@pytest.mark.parametrize(
    "policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl", "volatile-lfu"]
)
async def test_serve_refuses_books_that_may_be_evicted(
    tmp_path: Path, evicting: str, policy: str
) -> None:
    set_policy(evicting, policy)
    served = await run(tmp_path, "serve", GATEWAY_REDIS_URL=evicting)
    assert served.code == 1
    for word in (policy, "noeviction", "GATEWAY_BLOBS_URL", "store.allow_eviction"):
        assert word in served.message
    with redis.Redis.from_url(evicting) as client:
        assert client.info("stats")["evicted_keys"] == 0


async def test_serve_refuses_it_although_images_have_a_redis_of_their_own(
    tmp_path: Path, evicting: str, redis_url: str
) -> None:
    set_policy(evicting, "allkeys-lru")
    served = await run(tmp_path, "serve", GATEWAY_REDIS_URL=evicting, GATEWAY_BLOBS_URL=redis_url)
    assert (served.code, "allkeys-lru" in served.message) == (1, True)


@pytest.mark.parametrize("means_it", [True, False])
async def test_serve_starts_if_eviction_is_meant_or_only_images_are_evicted(
    tmp_path: Path, evicting: str, redis_url: str, means_it: bool
) -> None:
    set_policy(evicting, "allkeys-lru")
    books, store = (evicting, {"allow_eviction": True}) if means_it else (
        redis_url, {"blobs_url": evicting})  # fmt: skip
    async with run_upstream() as upstream:
        given = (tmp_path / "gateway", upstream.base_url)
        options = {"store": store}
        async with run_processes(*given, workers=1, redis_url=books, options=options) as (
            processes,
            client,
        ):
            alice = await client.with_key()
            assert (await alice.ask()).status == 200

            checks = [line["check"] for line in processes.log("self_check")]
            assert ("eviction policy" in checks) == means_it


async def test_a_policy_that_cannot_be_read_is_a_warning(
    tmp_path: Path, redis_url: str, url: str
) -> None:
    restrict(redis_url, "-@dangerous")
    async with run_upstream() as upstream:
        given = (tmp_path / "gateway", upstream.base_url)
        async with run_processes(*given, workers=1, redis_url=url) as (processes, client):
            alice = await client.with_key()
            assert (await alice.ask()).status == 200
            (line,) = [
                line for line in processes.log("self_check") if line["check"] == "eviction policy"
            ]
            assert "+info" in line["finding"]


# ── images ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["-set", "resetkeys", "wrong password"])
async def test_the_redis_of_the_images_is_checked_too(
    tmp_path: Path, evicting: str, redis_url: str, fault: str
) -> None:
    images = restricted(evicting)
    if fault == "wrong password":
        images = images.replace("right", "wrong")
    else:
        with redis.Redis.from_url(evicting) as client:
            client.execute_command("ACL", "SETUSER", "gateway", fault)
    environ = {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_BLOBS_URL": images}
    served = await run(tmp_path, "serve", **environ)
    examined = await run_here(tmp_path, "doctor", "--format", "json", **environ)
    words = {"-set": "+set", "resetkeys": "~igw:*", "wrong password": "WRONGPASS"}[fault]
    assert served.code == 1
    assert words in served.message
    assert words in examined.stdout


async def test_a_story_over_a_unix_socket(tmp_path: Path) -> None:
    """With the books and the images behind the same socket."""
    with ExitStack() as stack:
        tcp = stack.enter_context(run_redis_server(tmp_path, "--unixsocket", "s"))
        with redis.Redis.from_url(tcp) as client:
            client.execute_command("ACL", "SETUSER", "default", ">right")
        short = f"/tmp/igw-{os.getpid()}"  # noqa: S108 - pytest's paths are too long
        os.symlink(tmp_path / "s", short)  # noqa: PTH211 - in a coroutine
        stack.callback(os.unlink, short)
        url = f"unix://{short}?password=right&db=1"
        async with run_upstream() as upstream:
            options = {"store": {"blobs_url": url}}
            given = (tmp_path / "gateway", upstream.base_url)
            async with run_processes(*given, workers=1, redis_url=url, options=options) as (
                processes,
                client,
            ):
                alice = await client.with_key(limits={"usd_per_day": 5})
                first, second = await alice.ask(), await alice.ask()
                examined = await processes.run("doctor", "--format", "json")
    assert (first.status, second.cache_status.partition(";")[0]) == (200, "hit")
    (store,) = [row for row in json.loads(examined.stdout) if row["check"] == "store"]
    assert store["level"] == "ok"
    assert "right" not in store["finding"]
