"""A store behind sentinels: discovery, promotion, and a demoted master that goes on answering."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.handshake import StoreMisconfigured
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.redis.topology.opening import check_redis_url
from gateway.store.redis.topology.sentinel_url import parse_sentinel_url
from tests.ports import closed_port
from tests.sentinel_servers import SentinelServers, run_sentinel_servers
from tests.waiting import eventually, generous


class TestUrls:
    def test_a_url_names_sentinels_service_and_database(self) -> None:
        url = "redis+sentinel://u:p%2F@a:1,[::1],b/images/3?ssl=true&sentinel_password=hunter2"
        parsed = parse_sentinel_url(url)
        assert [(each.host, each.port) for each in parsed.sentinels] == [
            ("a", 1),
            ("::1", 26379),
            ("b", 26379),
        ]
        assert parsed.service == "images"
        assert parsed.location == "redis+sentinel://a:1,[::1],b/images/3"
        assert parsed.master_url.startswith("rediss://u:p%2F@master/3")
        assert "hunter2" not in repr(parsed) + parsed.master_url
        assert "p%2F" not in repr(parsed) + parsed.sentinel_url

    @pytest.mark.parametrize(
        ("rest", "named"),
        [
            ("a,b", "service"),
            ("a,b/", "service"),
            ("/images", "hosts of all sentinels"),
            ("a,,b/images", "hosts of all sentinels"),
            ("a:99999/images", "hosts of all sentinels"),
            ("hunter2/x@a/images", "%2F"),
            ("a/images/x", "%2F"),
            ("a/images?ssl=maybe", "ssl=true or ssl=false"),
            ("a/images?ssl_ca_certs=x", "ssl=true beside ssl_ca_certs"),
            ("a/images?sentinel_username=u", "sentinel_password"),
            ("a/images?hunter2=1", "only options that redis-py knows"),
        ],
    )
    def test_a_url_that_cannot_be_used_is_explained(self, rest: str, named: str) -> None:
        with pytest.raises(ValueError, match=named) as caught:
            check_redis_url(f"redis+sentinel://{rest}")
        assert "hunter2" not in str(caught.value)


async def test_sentinels_that_cannot_be_reached_are_named() -> None:
    with closed_port() as port:
        url = f"redis+sentinel://127.0.0.1:{port}/images"
        async with open_redis_store(url) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await execute(store, commands.Heartbeat("w"))
    assert f"none of its sentinels 127.0.0.1:{port} answers" in (caught.value.reason or "")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    """With passwords, a different one for the sentinels."""
    with run_sentinel_servers(
        tmp_path_factory.mktemp("sentinel"), password="of/redis", sentinel_password="of/sentinels"
    ) as started:
        started.userinfo = ":of%2Fredis@"
        started.options = "?sentinel_password=of%2Fsentinels"
        yield started


async def write(store: Store, name: str) -> bool:
    try:
        await execute(store, commands.SetValue("s", name, b"v", None))
    except StoreUnavailable:
        return False
    return True


async def test_what_a_master_acknowledged_survives_its_replacement(
    servers: SentinelServers,
) -> None:
    """The old master keeps its sockets open, and answers for seconds after the promotion."""
    async with open_redis_store(servers.url) as store, store.watch("flight"):
        old, acknowledged = servers.master, []
        servers.fail_over()
        async with generous():
            number = 0
            while servers.master is old or number < 50:
                number += 1
                if await write(store, f"n{number}"):
                    acknowledged.append(f"n{number}")
                await asyncio.sleep(0.005)
        assert await write(store, "last")
        with servers.master.client() as client:
            assert all(client.exists(f"igw:value:s:{name}") for name in [*acknowledged, "last"])

            # The watch has moved to the new master too.
            async def is_subscribed() -> bool:
                return bool(client.pubsub_channels("igw:events:*"))

            await eventually(is_subscribed)


async def test_an_unknown_service_is_named(servers: SentinelServers) -> None:
    async with open_redis_store(servers.url.replace("/images/", "/pictures/")) as store:
        with pytest.raises(StoreMisconfigured, match="no service pictures"):
            await store.check_schema()


async def test_sentinels_that_refuse_the_password_say_so(servers: SentinelServers) -> None:
    async with open_redis_store(servers.url.partition("?")[0]) as store:
        with pytest.raises(StoreMisconfigured, match="sentinel_password"):
            await store.check_schema()


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_a_master_that_dies_or_sleeps_is_replaced_within_five_seconds(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_sentinel_servers(tmp_path) as servers:
        async with open_redis_store(servers.url) as store:
            assert await write(store, "first")
            old, acknowledged = servers.master, ["first"]
            (old.kill if fault == "killed" else old.stop)()
            loop = asyncio.get_running_loop()
            began, failed = loop.time(), 0
            while not await write(store, "back"):
                failed += 1
                await asyncio.sleep(0.005)
            recovery = loop.time() - began
            old.go_on() if fault == "paused" else None
            for number in range(200):
                if await write(store, f"n{number}"):
                    acknowledged.append(f"n{number}")
                await asyncio.sleep(0.005)
            with servers.master.client() as client:
                lost = [name for name in acknowledged if not client.exists(f"igw:value:s:{name}")]
            with capsys.disabled():
                print(f"\n{fault}: {recovery:.2f} s, {failed} failed, {len(lost)} lost")  # noqa: T201
            assert servers.master is not old
            assert not lost
            assert recovery < 5


async def test_without_sentinels_the_master_is_used_on(tmp_path: Path) -> None:
    with run_sentinel_servers(tmp_path) as servers:
        async with open_redis_store(servers.url) as store:
            assert await write(store, "a")
            for sentinel in servers.sentinels:
                sentinel.kill()
            assert await write(store, "b")
            with servers.servers[0].client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            await eventually(lambda: write(store, "c"))
