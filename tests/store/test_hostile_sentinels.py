"""Sentinels that disagree, are cut off, or are no sentinels. They are fakes; the Redis is real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import redis
import structlog.testing

from gateway.errors import StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.handshake import StoreMisconfigured
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.topology.sentinel import SentinelMaster
from gateway.store.redis.topology.sentinels import PROMOTES
from tests.ports import closed_port
from tests.redis_server import run_redis_server
from tests.waiting import eventually

REFUSED, RECEIVED = "sentinel_events_refused", "sentinel_events_received"


@dataclass
class PlayedSentinel:
    """Names a master. `is_silent` accepts connections and never answers."""

    master: int
    epoch: int = 1
    is_silent: bool = False
    refuses: bytes = b""
    """A command that is answered NOPERM."""
    reply: bytes = b""
    """The reply to every question, instead of the address."""
    port: int = 0
    asked: int = 0
    _subscribers: set[asyncio.StreamWriter] = field(default_factory=set)

    def announce(self, channel: bytes, text: bytes) -> None:
        for writer in self._subscribers:
            writer.write(_array(b"message", channel, text))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while words := await _read_command(reader):
                if not self.is_silent:
                    writer.write(self._answer(words, writer))
        writer.close()

    def _answer(self, words: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        name = words[0].upper()
        if name == self.refuses:
            return (
                b"-NOPERM this user has no permissions to run the '%s' command\r\n" % name.lower()
            )
        if name == b"SUBSCRIBE":
            self._subscribers.add(writer)
            return b"".join(
                b"*3\r\n$9\r\nsubscribe\r\n" + _bulk(channel) + b":1\r\n" for channel in words[1:]
            )
        if name != b"SENTINEL":
            return b"+OK\r\n"
        self.asked += 1
        if self.reply:
            return self.reply
        if words[1].upper() == b"MASTER":
            return _array(b"name", b"images", b"config-epoch", b"%d" % self.epoch)
        return _array(b"127.0.0.1", b"%d" % self.master)


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)


def _array(*values: bytes) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(map(_bulk, values))


async def _read_command(reader: asyncio.StreamReader) -> list[bytes]:
    line = await reader.readline()
    words = []
    for _ in range(int(line[1:] or 0)):
        length = int((await reader.readline())[1:])
        words.append((await reader.readexactly(length + 2))[:-2])
    return words


@dataclass
class Scene:
    """Two Redis servers, and three sentinels that name the first."""

    one: int
    two: int
    sentinels: list[PlayedSentinel]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://:hunter2@{hosts}/images/0"

    def all_name(self, master: int, *, epoch: int) -> None:
        for each in self.sentinels:
            each.master, each.epoch = master, epoch


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    found = []
    with ExitStack() as stack:
        for name in ("one", "two"):
            url = stack.enter_context(run_redis_server(tmp_path_factory.mktemp(name)))
            with redis.Redis.from_url(url) as client:
                client.config_set("requirepass", "hunter2")
            found.append(int(urlsplit(url).port or 0))
        yield found[0], found[1]


@pytest.fixture
async def scene(ports: tuple[int, int]) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        sentinels = [PlayedSentinel(ports[0]) for _ in range(3)]
        for each in sentinels:
            server = await asyncio.start_server(each.serve, "127.0.0.1", 0)
            stack.callback(server.close)
            each.port = server.sockets[0].getsockname()[1]
        yield Scene(*ports, sentinels)


@asynccontextmanager
async def following(scene: Scene) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    master = SentinelMaster(scene.url)
    async with master.open():

        async def port() -> int:
            (address,) = await master.resolve()
            assert isinstance(address, Address)
            return address.port

        yield port


async def test_the_latest_election_counts_although_most_do_not_know_of_it(scene: Scene) -> None:
    scene.all_name(scene.one, epoch=1)
    async with following(scene) as port:
        assert await port() == scene.one
        scene.sentinels[2].master, scene.sentinels[2].epoch = scene.two, 2
        await eventually(lambda: bool(scene.sentinels[2]._subscribers))
        scene.sentinels[2].announce(b"+switch-master", b"images 127.0.0.1 1 127.0.0.1 2")

        async def has_moved() -> bool:
            return await port() == scene.two

        await eventually(has_moved)


async def test_a_promotion_is_noticed_without_an_announcement(scene: Scene) -> None:
    master, was_replaced = SentinelMaster(scene.url), asyncio.Event()
    master.on_replaced.append(was_replaced.set)
    async with master.open():
        await master.resolve()
        scene.all_name(scene.two, epoch=2)
        await eventually(was_replaced.is_set)


@pytest.mark.parametrize("text", [b":1\r\n", b"*0\r\n", b"$-1\r\n"])
async def test_after_malformed_announcements_others_are_still_followed(
    scene: Scene, text: bytes
) -> None:
    master, was_replaced = SentinelMaster(scene.url), asyncio.Event()
    master.on_replaced.append(was_replaced.set)
    sentinel = scene.sentinels[0]
    async with master.open():
        await master.resolve()
        await eventually(lambda: bool(sentinel._subscribers))
        subscribed = set(sentinel._subscribers)
        for writer in subscribed:
            writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n" + text)
        await eventually(lambda: bool(sentinel._subscribers - subscribed))
        sentinel.announce(PROMOTES, b"slave r 127.0.0.1 2 @ images 127.0.0.1 1")
        await eventually(was_replaced.is_set)


async def test_a_sentinel_that_is_cut_off_does_not_lead_back_to_an_old_master(scene: Scene) -> None:
    """If only one answers, with an earlier election, it may be cut off with the old master."""
    scene.all_name(scene.two, epoch=2)
    async with following(scene) as port:
        assert await port() == scene.two
        for each in scene.sentinels[:2]:
            each.is_silent = True
        scene.sentinels[2].master, scene.sentinels[2].epoch = scene.one, 1
        for _ in range(3):
            assert await port() == scene.two


async def test_sentinels_that_were_set_up_again_are_followed(scene: Scene) -> None:
    """They number their elections from 0 again."""
    scene.all_name(scene.two, epoch=7)
    async with following(scene) as port:
        assert await port() == scene.two
        scene.all_name(scene.one, epoch=0)
        assert await port() == scene.one


@pytest.mark.parametrize(
    "reply", [b"*1\r\n$1\r\na\r\n", b":7\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"+OK\r\n"]
)
async def test_malformed_replies_of_one_sentinel_are_ignored(scene: Scene, reply: bytes) -> None:
    scene.sentinels[0].reply = reply
    async with following(scene) as port:
        assert await port() == scene.one
        scene.all_name(scene.two, epoch=2)

        async def has_moved() -> bool:
            return await port() == scene.two

        await eventually(has_moved)


async def test_a_redis_in_the_place_of_a_sentinel_is_reported(scene: Scene) -> None:
    url = f"redis+sentinel://127.0.0.1:{scene.one}/images/0?sentinel_password=hunter2"
    async with open_redis_store(url) as store:
        with pytest.raises(StoreMisconfigured, match="is no sentinel but a Redis") as caught:
            await store.check_schema()
    assert "hunter2" not in str(caught.value)


async def test_a_master_that_cannot_be_reached_is_named_with_its_address(scene: Scene) -> None:
    with closed_port() as port:
        scene.all_name(port, epoch=1)
        async with open_redis_store(scene.url) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.check_schema()
    assert f"cannot be reached at 127.0.0.1:{port}" in (caught.value.reason or "")
    assert "replica-announce-ip" in (caught.value.reason or "")


async def test_sentinels_get_no_password_of_the_redis(scene: Scene) -> None:
    heard: list[list[bytes]] = []
    answer = scene.sentinels[0]._answer

    def listen(words: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        heard.append(words)
        return answer(words, writer)

    scene.sentinels[0]._answer = listen  # type: ignore[method-assign]
    async with following(scene) as port:
        await port()
        await eventually(lambda: any(words[0] == b"SUBSCRIBE" for words in heard))
    assert b"hunter2" not in b" ".join(word for words in heard for word in words)


async def test_a_refused_subscription_is_logged(scene: Scene) -> None:
    """The gateway notices the next promotion a second later."""
    scene.sentinels[1].refuses = b"SUBSCRIBE"
    with structlog.testing.capture_logs() as logs:
        async with following(scene) as port:
            await port()
            await eventually(lambda: any(each["event"] == REFUSED for each in logs))
            scene.sentinels[1].refuses = b""
            await eventually(lambda: any(each["event"] == RECEIVED for each in logs))
    (refused,) = (each for each in logs if each["event"] == REFUSED)
    assert refused["sentinel"] == f"127.0.0.1:{scene.sentinels[1].port}"


async def test_a_new_master_without_the_store_is_not_used(scene: Scene) -> None:
    """It is another Redis, or was restarted without its data. No store is created there."""
    async with open_redis_store(scene.url) as store:
        await execute(store, commands.SetValue("s", "n", b"v", None))
        scene.all_name(scene.two, epoch=2)
        reasons: set[str] = set()
        await eventually(lambda: _says(store, reasons, "has no store"))
        scene.all_name(scene.one, epoch=3)
        await eventually(lambda: _reads(store))


async def _says(store: Store, reasons: set[str], words: str) -> bool:
    try:
        await execute(store, commands.GetValue("s", "n"))
    except StoreUnavailable as error:
        reasons.add(error.reason or "")
    return any(words in each for each in reasons)


async def _reads(store: Store) -> bool:
    try:
        return await execute(store, commands.GetValue("s", "n")) == b"v"
    except StoreUnavailable:
        return False
