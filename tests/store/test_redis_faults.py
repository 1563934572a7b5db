"""Redis servers that cannot be used: each is told in one line, with the fault and its fix.

The servers are real. Only a server that refuses other machines, and one that speaks another
protocol, are played.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.blobs.redis import open_redis_blobs
from gateway.store.handshake import StoreMisconfigured, StoreReadOnly
from gateway.store.redis.client import PROBE_SECONDS
from gateway.store.redis.faults import code_of, find_fault
from gateway.store.redis.rights import BLOB_COMMANDS, STORE_COMMANDS, acl_rule
from gateway.store.redis.store import open_redis_store
from gateway.store.redis.topology.addresses import Address
from tests.failover import run_redis_pair
from tests.ports import free_port
from tests.redis_server import binary, restricted, run_redis_server, skip_without_tls
from tests.waiting import eventually, pass_time, until

TLS = Path(__file__).parent.parent / "tls"
Check = Callable[[str], Awaitable[str]]


async def check_store(url: str) -> str:
    """The message of a store that cannot be used."""
    async with open_redis_store(url) as store:
        with pytest.raises((StoreMisconfigured, StoreUnavailable)) as caught:
            await store.check_schema()
    return _line(caught.value)


async def check_blobs(url: str) -> str:
    async with open_redis_blobs(url) as blobs:
        with pytest.raises((StoreMisconfigured, StoreUnavailable)) as caught:
            await blobs.check_schema()
    return _line(caught.value)


def _line(error: BaseException) -> str:
    line = str(getattr(error, "reason", None) or error)
    assert "\n" not in line
    assert line.startswith("The Redis at ")
    return line


@pytest.fixture(params=[check_store, check_blobs])
def check(request: pytest.FixtureRequest) -> Check:
    return request.param  # type: ignore[no-any-return]


def user(url: str, *rules: str) -> str:
    """The URL for a user with these rules."""
    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "gateway", "reset", "on", ">right", *rules)
    return url.replace("redis://", "redis://gateway:right@")


ALL = ("~*", "&*", "+@all")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((*ALL, "-eval"), ["command EVAL", "ACL SETUSER gateway +eval"]),
        ((*ALL, "-@scripting"), ["EVAL", "+eval"]),
        ((*ALL, "-get"), ["command GET", "ACL SETUSER gateway +get"]),
        ((*ALL, "-set", "-del", "-scan"), ["DEL", "+del"]),
        ((*ALL, "-set", "-scan"), ["commands SCAN, SET", "+scan +set"]),
        ((*ALL, "-@write"), ["DEL", "+del"]),
        (("~other:*", "&*", "+@all"), ["keys igw:*", "ACL SETUSER gateway ~igw:*"]),
        (("~igw:schema", "~igw:probe", "&*", "+@all"), ["keys igw:*", "~igw:*"]),
        (("%R~*", "&*", "+@all"), ["keys igw:*", "~igw:*"]),
        (("~*", "&*", "-@all"), ["+eval"]),
    ],
)
async def test_a_right_that_is_missing_is_named_with_its_rule(
    redis_url: str, check: Check, rules: tuple[str, ...], words: list[str]
) -> None:
    line = await check(user(redis_url, *rules))
    assert [word for word in words if word not in line] == []
    assert "right@" not in line


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("~*", "resetchannels", "+@all"), ["channels igw:events:*", "&igw:events:*"]),
        (("~*", "resetchannels", "&other:*", "+@all"), ["channels igw:events:*"]),
        ((*ALL, "-subscribe"), ["SUBSCRIBE", "+subscribe"]),
        ((*ALL, "-script"), ["SCRIPT|LOAD", "+script|load"]),
        ((*ALL, "-evalsha"), ["EVALSHA", "+evalsha"]),
        ((*ALL, "-xadd", "-hset", "-publish"), ["HSET, PUBLISH, XADD", "+hset +publish +xadd"]),
        ((*ALL, "-time"), ["TIME", "+time"]),
        (("~*", "resetchannels", "+@all", "-xadd"), ["XADD and the channels", "+xadd &igw:"]),
    ],
)
async def test_so_is_a_right_that_only_the_books_need(
    redis_url: str, rules: tuple[str, ...], words: list[str]
) -> None:
    line = await check_store(user(redis_url, *rules))
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize("name", sorted({*STORE_COMMANDS}))
async def test_each_command_of_the_rule_is_needed_and_named(redis_url: str, name: str) -> None:
    restricted(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "gateway", f"-{name.lower()}")
    line = await check_store(redis_url.replace("redis://", "redis://gateway:right@"))
    assert f"ACL SETUSER gateway +{name.lower()}" in line


async def test_the_check_leaves_nothing_behind(redis_url: str) -> None:
    url = restricted(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
    async with open_redis_store(url) as store, open_redis_blobs(url) as blobs:
        await store.check_schema()
        await blobs.check_schema()
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == [b"igw:schema"]
        assert client.info("commandstats")["cmdstat_eval"]["failed_calls"] == 0


async def test_commands_that_are_dangerous_are_not_needed(redis_url: str) -> None:
    """`INFO` is one of them: without it the store works, and says what it does not know."""
    url = user(redis_url, *ALL, "-@dangerous")
    async with open_redis_store(url) as store, open_redis_blobs(url) as blobs:
        await store.check_schema()
        await blobs.check_schema()
        facts = await execute(store, commands.Inspect())
        assert await blobs.capacity_bytes() == 1 << 30
    assert (facts.is_known, facts.eviction_policy) == (False, None)


def test_the_rule_names_commands_only() -> None:
    """No category, which another version of Redis may fill with other commands."""
    assert "@" not in acl_rule()
    assert set(BLOB_COMMANDS) <= set(STORE_COMMANDS)


@pytest.mark.parametrize(
    ("password", "url", "words"),
    [
        ("right", "redis://127.0.0.1:{}/0", "needs a password (NOAUTH)"),
        ("right", "redis://127.0.0.1:{}/1", "needs a password (NOAUTH)"),
        ("right", "redis://:hunter2@127.0.0.1:{}/0", "(WRONGPASS)"),
        ("right", "redis://hunter2:right@127.0.0.1:{}/0", "(WRONGPASS)"),
        ("", "redis://:hunter2@127.0.0.1:{}/0", "so the URL needs none"),
        ("", "redis://127.0.0.1:{}/99", "no database of this number"),
    ],
)
async def test_passwords_and_databases(
    tmp_path: Path, check: Check, password: str, url: str, words: str
) -> None:
    with run_redis_server(tmp_path) as server:
        with redis.Redis.from_url(server) as client:
            client.config_set("requirepass", password)
        port = server.rpartition(":")[2].partition("/")[0]
        line = await check(url.format(port))
    assert words in line
    assert "hunter2" not in line


@contextmanager
def run_with(folder: Path, *options: str) -> Iterator[int]:
    """A server with options of its own; yields its port."""
    port = free_port()
    command = [binary(), "--port", str(port), "--dir", str(folder), "--save", "", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: _accepts(port))
        yield port
    finally:
        process.kill()
        process.wait()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", ["EVAL", "PEXPIRETIME", "XADD", "HSET"])
async def test_a_server_without_a_command_is_too_old(tmp_path: Path, name: str) -> None:
    with run_with(tmp_path, "--rename-command", name, "") as port:
        line = await check_store(f"redis://127.0.0.1:{port}/0")
    assert f"does not know {name}" in line
    assert "needs Redis 7 or newer" in line


async def test_a_node_of_a_cluster_is_not_supported(tmp_path: Path, check: Check) -> None:
    bus = str(free_port())  # by default ten thousand above the port, which may be too high
    with run_with(tmp_path, "--cluster-enabled", "yes", "--cluster-port", bus) as port:
        assert "cluster that is down" in await check(f"redis://127.0.0.1:{port}/0")
        other_database = await check(f"redis://127.0.0.1:{port}/1")
        # Valkey 9 may have several databases in a cluster.
        assert "Redis Cluster" in other_database or "no database of this number" in other_database


@asynccontextmanager
async def run_answering(greeting: bytes, answer: bytes = b"") -> AsyncIterator[int]:
    """A server that says `greeting`, reads, answers and closes; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if answer:
            await reader.read(100)
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("greeting", "answer", "words"),
    [
        (b"-DENIED Redis is running in protected mode\r\n", b"", "protected mode"),
        (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak Redis' protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "does not speak Redis' protocol"),
        (b"-ERR max number of clients reached\r\n", b"", "maxclients"),
    ],
)
async def test_a_server_that_refuses_or_is_no_redis(
    check: Check, greeting: bytes, answer: bytes, words: str
) -> None:
    async with run_answering(greeting, answer) as port:
        assert words in await check(f"redis://127.0.0.1:{port}/0")


class TestTls:
    @contextmanager
    def run(self, folder: Path, *, clients: str = "no") -> Iterator[tuple[int, int]]:
        skip_without_tls()
        tls_port = free_port()
        pair = ["--tls-cert-file", f"{TLS}/server.pem", "--tls-key-file", f"{TLS}/server-key.pem"]
        trusted = folder / "trusted.pem"
        trusted.write_text((TLS / "authority.pem").read_text() + (TLS / "client.pem").read_text())
        trust = ["--tls-ca-cert-file", str(trusted), "--tls-auth-clients", clients]
        with run_with(folder, "--tls-port", str(tls_port), *pair, *trust) as port:
            yield port, tls_port

    @pytest.mark.timed
    async def test_a_scheme_that_does_not_fit_the_port(self, tmp_path: Path, check: Check) -> None:
        with self.run(tmp_path) as (plain, tls):
            assert "begin with rediss://" in await check(f"redis://127.0.0.1:{tls}/0")
            assert "begin with redis://" in await check(f"rediss://127.0.0.1:{plain}/0")

    async def test_a_certificate_that_is_not_trusted(self, tmp_path: Path, check: Check) -> None:
        with self.run(tmp_path) as (_, tls):
            line = await check(f"rediss://127.0.0.1:{tls}/0")
        assert "not trusted" in line
        assert "ssl_ca_certs" in line

    async def test_a_certificate_of_the_client_is_sent(self, tmp_path: Path, check: Check) -> None:
        ours = f"ssl_certfile={TLS}/client.pem&ssl_keyfile={TLS}/client-key.pem"
        with self.run(tmp_path, clients="yes") as (_, tls):
            url = f"rediss://127.0.0.1:{tls}/0?ssl_ca_certs={TLS}/authority.pem"
            assert "ssl_certfile" in await check(url)
            async with open_redis_store(f"{url}&{ours}") as store:
                await store.check_schema()
                async with store.watch("a"):
                    await execute(store, commands.Heartbeat("w"))


class TestServersWithoutWrites:
    async def test_a_replica_is_told_at_the_check_and_never_written(self, tmp_path: Path) -> None:
        async with run_redis_pair(tmp_path) as pair:
            for open_it in (open_redis_store, open_redis_blobs):
                async with open_it(pair.urls[1]) as opened:
                    with pytest.raises(StoreReadOnly, match="is a read-only replica"):
                        await opened.check_schema()

    async def test_reads_too_leave_a_master_that_was_demoted(self, tmp_path: Path) -> None:
        """They would be answered with what it had then."""
        async with (
            run_redis_pair(tmp_path) as pair,
            open_redis_store(pair.address.url) as store,
            open_redis_blobs(pair.address.url) as blobs,
            open_redis_store(pair.urls[1]) as new,
            open_redis_blobs(pair.urls[1]) as new_blobs,
        ):
            await execute(store, commands.SetValue("s", "n", b"old", None))
            assert await blobs.get("0" * 64) is None
            pair.until_in_sync()
            with pair.new as client:
                client.replicaof("NO", "ONE")
            with pair.old as client:  # of nobody: it keeps what it had
                client.replicaof("127.0.0.1", 1)
            pair.move()
            await execute(new, commands.SetValue("s", "n", b"new", None))
            await new_blobs.put("0" * 64, b"data", 60)
            pass_time(PROBE_SECONDS)
            assert await execute(store, commands.GetValue("s", "n")) == b"new"
            assert await blobs.get("0" * 64) == b"data"

    async def test_a_master_without_enough_replicas_is_left(self, tmp_path: Path) -> None:
        """As a master is that a partition has cut off."""
        async with run_redis_pair(tmp_path) as pair, open_redis_store(pair.address.url) as store:
            await execute(store, commands.Heartbeat("w"))
            with pair.new as new, pair.old as old:
                new.replicaof("NO", "ONE")
                old.config_set("min-replicas-to-write", 1)
            pair.move()
            await execute(store, commands.SetValue("s", "n", b"v", None))
            with pair.new as new:
                assert new.get("igw:value:s:n") == b"v"

    async def test_of_several_addresses_the_one_that_takes_writes_is_used(
        self, tmp_path: Path
    ) -> None:
        """A name may have the addresses of a master and of its replicas."""
        async with run_redis_pair(tmp_path) as pair, open_redis_store(pair.urls[0]) as store:
            addresses = store._client.addresses
            replica, master = (
                Address("127.0.0.1", urlsplit(url).port or 0) for url in pair.urls[::-1]
            )

            async def resolve() -> list[Address | None]:
                return [replica, master]

            addresses.resolve = resolve  # type: ignore[method-assign]
            await execute(store, commands.Heartbeat("w"))
            assert addresses.current == master

    async def test_what_fails_together_is_tried_once(self, tmp_path: Path) -> None:
        """A hundred requests to a replica share one attempt, and its reason is logged once."""
        async with run_redis_pair(tmp_path) as pair, open_redis_store(pair.address.url) as store:
            await execute(store, commands.Heartbeat("w"))
            pair.demote()
            connections = pair.address.connections
            with capture_logs() as logs:
                results = await asyncio.gather(
                    *(execute(store, commands.Heartbeat("w")) for _ in range(100)),
                    return_exceptions=True,
                )
            assert {type(result) for result in results} == {StoreUnavailable}
            assert pair.address.connections - connections <= 2
            (reason,) = [line["reason"] for line in logs if "reason" in line]
            assert reason.startswith("The Redis is a read-only replica")


async def test_a_policy_that_changed_is_logged_at_the_next_connect(tmp_path: Path) -> None:
    with (
        run_redis_server(tmp_path) as url,
        redis.Redis.from_url(url) as client,
        capture_logs() as logs,
    ):
        async with open_redis_store(url) as store:
            for policy in ("noeviction", "allkeys-lru", "allkeys-lru", "volatile-ttl"):
                client.config_set("maxmemory-policy", policy)
                client.client_kill_filter(_type="normal", skipme=True)
                await eventually(lambda: _beats(store))
    found = [line["policy"] for line in logs if line["event"] == "store_may_evict"]
    assert found == ["allkeys-lru", "volatile-ttl"]


async def _beats(store: object) -> bool:
    try:
        await execute(store, commands.Heartbeat("w"))  # type: ignore[arg-type]
    except StoreUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("READONLY You can't write against a read only replica.", "READONLY"),
        ("ERR Error running script (call to f_1): @user_script: 1: -READONLY You", "READONLY"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "UNBLOCKED"),
        ("ERR unknown command", "ERR"),
        ("NOREPLICAS Not enough good replicas to write. script: abc", "NOREPLICAS"),
    ],
)
def test_the_code_of_an_error_is_found_in_a_script_too(text: str, code: str) -> None:
    assert code_of(redis.exceptions.ResponseError(text)) == code


@pytest.mark.parametrize(
    ("reply", "is_elected", "to_do"),
    [
        ("READONLY You can't write against a read only replica.", False, "REPLICAOF NO ONE"),
        ("READONLY You can't write against a read only replica.", True, "looks for the master"),
        ("MASTERDOWN Link with MASTER is down", False, "start that master"),
        ("MASTERDOWN Link with MASTER is down", True, "looks for the next one"),
        ("NOREPLICAS Not enough good replicas to write.", False, "start a replica, or give"),
        ("NOREPLICAS Not enough good replicas to write.", True, "start a replica. If it was"),
        ("LOADING Redis is loading the dataset in memory", False, "takes commands once it has"),
        ("LOADING Redis is loading the dataset in memory", True, "takes commands once it has"),
        ("UNBLOCKED force unblock from blocking operation", False, "address of its master"),
        ("CLUSTERDOWN The cluster is down", True, "CLUSTER NODES"),
    ],
)
def test_the_error_of_a_server_that_refuses_writes_says_what_to_do(
    reply: str, is_elected: bool, to_do: str
) -> None:
    error = redis.ResponseError(reply)
    fault = find_fault(error, user="u", prefix="igw:", is_tls=False, is_elected=is_elected)
    assert fault is not None
    assert to_do in fault.text
    assert not fault.lasts
