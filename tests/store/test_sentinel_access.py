"""Sentinels and servers that speak TLS and want users of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.errors import StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.handshake import StoreMisconfigured
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from tests.redis_server import skip_without_tls
from tests.sentinel_servers import AUTHORITY, SentinelServers, run_sentinel_servers
from tests.waiting import eventually

# As `docs/reference/settings.md` says it.
USER = (
    "user watcher on >of/sentinels allchannels +sentinel|get-master-addr-by-name"
    " +sentinel|master +subscribe +ping"
)
CREDENTIALS = "sentinel_username=watcher&sentinel_password=of%2Fsentinels"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    """With a user of the servers, another one of the sentinels, and passwords of both."""
    skip_without_tls()
    with run_sentinel_servers(
        tmp_path_factory.mktemp("sentinel"),
        password="of/default",
        sentinel_password="of/each/other",
        sentinel_lines=[USER],
        is_tls=True,
    ) as started:
        started.restricted()
        started.userinfo = "gateway:right@"
        started.options = f"?ssl=true&ssl_ca_certs={AUTHORITY}&{CREDENTIALS}"
        yield started


async def until_closed() -> None:
    """Waits for the servers, which close a TLS connection too.

    What is still open when the loop ends makes any later test fail: the garbage collector warns.
    """
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    await eventually(lambda: all(each._sock is None for each in transports.values()))


async def can_write(store: Store) -> bool:
    try:
        await execute(store, commands.SetValue("s", "n", b"v", None))
    except StoreUnavailable:
        return False
    return True


async def test_users_and_authority_of_the_url_suffice_before_and_after_a_promotion(
    servers: SentinelServers,
) -> None:
    async with open_redis_store(servers.url) as store, store.watch("flight"):
        await store.check_schema()
        assert await execute(store, commands.Receive("p", b"x")) == "unknown"
        old = servers.master
        servers.fail_over()
        await eventually(lambda: servers.master is not old)
        await eventually(lambda: can_write(store))
        with servers.master.client() as client:
            await eventually(lambda: bool(client.pubsub_channels("igw:events:*")))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("right@", "wrong@", "refuses user or password (WRONGPASS)"),
        ("gateway:right@", "", "put USER:PASSWORD@ into the URL"),
        ("of%2Fsentinels", "wrong", "refuse the password: set sentinel_password"),
        ("watcher", "nobody", "sentinel_username"),
        (f"&{CREDENTIALS}", "", "set sentinel_password"),
        (f"&ssl_ca_certs={AUTHORITY}", "", "ssl_ca_certs=/path/ca.pem"),
        (f"ssl=true&ssl_ca_certs={AUTHORITY}&", "", "speaks TLS: the URL should"),
    ],
    ids=[
        *("password", "no-user", "sentinel-password", "sentinel-user", "no-sentinel-user"),
        *("no-authority", "no-tls"),
    ],
)
async def test_what_is_wrong_in_the_url_is_named(
    servers: SentinelServers, old: str, new: str, named: str
) -> None:
    assert old in servers.url
    async with open_redis_store(servers.url.replace(old, new)) as store:
        with pytest.raises(StoreMisconfigured) as caught:
            await store.check_schema()
    await until_closed()
    text = str(caught.value)
    assert named in text
    for secret in ("right@", "wrong", "of%2F", "of/"):
        assert secret not in text


async def test_a_right_that_the_user_of_the_sentinels_lacks_is_named(
    servers: SentinelServers,
) -> None:
    for each in servers.sentinels:
        with each.client() as client:
            client.execute_command("ACL", "SETUSER", "watcher", "-sentinel|master")
    try:
        async with open_redis_store(servers.url) as store:
            with pytest.raises(StoreMisconfigured, match=r"\+sentinel\|master"):
                await store.check_schema()
    finally:
        for each in servers.sentinels:
            with each.client() as client:
                client.execute_command("ACL", "SETUSER", "watcher", "+sentinel|master")
