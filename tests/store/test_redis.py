"""Tests of the Redis store only: keys, times to live, pipelining, outages, full servers.

A test that stops or reconfigures its server has a server of its own, on a unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest
import redis
import uvloop
from structlog.testing import capture_logs

from gateway.errors import StoreFull, StoreUnavailable
from gateway.images import Expected
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.blobs.redis import SMALL_BYTES, open_redis_blobs
from gateway.store.commands import Consumption, Counter, Slot, Write
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.protocol import Command, Store
from gateway.store.redis.commands import encode
from gateway.store.redis.connection import PipelinedConnection
from gateway.store.redis.scripts import SCRIPTS
from gateway.store.redis.store import RedisStore, open_redis_store
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.urls import TIMEOUT_SECONDS, redacted_url
from gateway.store.wrappers import InstrumentedStore
from tests.redis_server import binary, skip_without_tls
from tests.store.pages import read_set
from tests.waiting import GENEROUS_SECONDS, eventually, generous, until

TLS = Path(__file__).parent.parent / "tls"
README = Path(__file__).parent.parent.parent / "README.md"
DAY = 86_400
BOOKS = "igw:{books}:"


class Server:
    """A durable redis-server that can be killed, stopped and restarted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/s"

    def start(self, *options: str) -> None:
        command = [binary(), "--port", "0", "--unixsocket", "s", "--dir", str(self._folder)]
        persistence = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(
            [*command, *persistence, *options], stdout=subprocess.DEVNULL
        )
        self._wait_until_available()

    def _wait_until_available(self) -> None:
        until(self._responds)

    def _responds(self) -> bool:
        with contextlib.suppress(redis.ConnectionError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills the server, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self._folder / "s").unlink(missing_ok=True)


@pytest.fixture
def stopped() -> Iterator[Server]:
    """A server that is not running yet. (The paths of pytest are too long for a socket.)"""
    with tempfile.TemporaryDirectory(prefix="igw") as folder:
        server = Server(Path(folder))
        yield server
        server.kill()


@pytest.fixture
def server(stopped: Server) -> Server:
    """A running server that the test may stop or reconfigure."""
    stopped.start()
    return stopped


def write(name: str, value: bytes, *, expected: bytes | None = None) -> commands.CompareAndSet:
    return commands.CompareAndSet((Write("s", name, value, expected),))


def read(name: str) -> commands.Get:
    return commands.Get("s", name)


async def until_available(store: Store, command: Command[bytes | None]) -> bytes | None:
    async with generous():
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await execute(store, command)
            await asyncio.sleep(0.02)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("redis://localhost", "redis://localhost"),
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://:hunter2@cache.example:6380/1", "redis://cache.example:6380/1"),
            ("rediss://team:hunter2@[::1]:6379?ssl_cert_reqs=none", "rediss://[::1]:6379"),
            ("redis://team:p%40ss@hunter2@cache.example/0", "redis://cache.example/0"),
            ("unix:///run/redis.sock?password=hunter2&db=2", "unix:///run/redis.sock"),
            (
                "redis+cluster://team:hunter2@a:6380,[::1]?ssl=true",
                "redis+cluster://a:6380,[::1]/0",
            ),
        ],
    )
    async def test_the_name_is_the_url_without_secrets(self, url: str, name: str) -> None:
        async with open_redis_store(url) as store:
            assert store.name == name

    @pytest.mark.parametrize(
        "url",
        [
            "http://:hunter2@host",
            "hunter2",
            "redis://:hunter2/x@host:1/0",
            "redis://:1/hunter2@host:1/0",
            "redis://:1#hunter2@host:1/0",
            "redis://:1?hunter2@host:1/0",
            "redis://host/hunter2",
            "unix://",
            "redis://host:hunter2/0",
            "redis://:hunter2@host/0?socket_timeout=hunter2",
        ],
    )
    async def test_an_invalid_url_is_refused_without_quoting_its_password(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"Redis URL") as caught:
            async with open_redis_store(url):
                pass
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    async def test_a_wrong_password_is_in_no_error_and_no_log(self, server: Server) -> None:
        with server.client() as client:
            client.config_set("requirepass", "right")
        with capture_logs() as logs:
            async with open_redis_store(f"{server.url}?password=hunter2") as store:
                with pytest.raises(StoreUnavailable) as caught:
                    await execute(store, read("a"))
        shown = f"{caught.value.message} {caught.value.__cause__!r} {logs}"
        assert "hunter2" not in shown
        assert "invalid username-password pair" in shown


class TestSchema:
    async def test_an_empty_server_gets_the_schema_version_at_the_first_contact(
        self, server: Server
    ) -> None:
        async with open_redis_store(server.url) as store:
            with server.client() as client:
                assert client.keys() == []
                await store.check_schema()
                assert client.get("igw:schema") == str(SCHEMA_VERSION).encode()
                assert client.keys() == [b"igw:schema"]

    async def test_another_schema_version_is_refused_and_left_untouched(
        self, server: Server
    ) -> None:
        with server.client() as client:
            client.set("igw:schema", "99")
            async with (
                open_redis_store(server.url) as store,
                open_redis_blobs(server.url, shares_server=True) as blobs,
            ):
                message = (
                    rf"{server.url} has schema version 99; .* version {SCHEMA_VERSION}\."
                    " Use an empty store"
                )
                with pytest.raises(SchemaMismatch, match=message):
                    await store.check_schema()
                with capture_logs() as logs:
                    for _ in range(3):
                        with pytest.raises(StoreUnavailable, match="schema version 99"):
                            await execute(store, write("a", b"v"))
                    with pytest.raises(StoreUnavailable, match="schema version 99"):
                        await blobs.put("0" * 64, b"data", 60)
            assert client.keys() == [b"igw:schema"]
        reasons = [line["reason"] for line in logs]
        assert len(reasons) == 2, "once for the store, once for the blobs"

    @pytest.mark.parametrize("may_create", [True, False])
    @pytest.mark.parametrize("version", ["0", "1", "10", "two", "", "-1", "1.5"])
    async def test_no_schema_version_is_ever_overwritten(
        self, server: Server, version: str, may_create: bool
    ) -> None:
        with server.client() as client:
            client.set("igw:schema", version)
            async with (
                open_redis_store(server.url, may_create=may_create) as store,
                open_redis_blobs(server.url, may_create=may_create) as blobs,
            ):
                for opened in (store, blobs):
                    with pytest.raises(SchemaMismatch):
                        await opened.check_schema()
            assert client.get("igw:schema") == version.encode()

    async def test_an_unavailable_server_has_no_schema_version(self, stopped: Server) -> None:
        async with open_redis_store(stopped.url) as store:
            with pytest.raises(StoreUnavailable):
                await store.check_schema()

    async def test_each_prefix_is_a_store_of_its_own(self, redis_url: str) -> None:
        async with (
            open_redis_store(redis_url) as one,
            open_redis_store(redis_url, prefix="two:") as two,
        ):
            await execute(one, write("a", b"1"))
            await execute(two, write("a", b"2"))
            assert [await execute(store, read("a")) for store in (one, two)] == [b"1", b"2"]


class TestKeys:
    async def test_every_key_has_the_time_to_live_of_the_table(self, redis_url: str) -> None:
        """The table of `gateway/store/redis/keys.py`: key → seconds to live; None: for ever."""
        async with open_redis_store(redis_url) as store:
            await _make_every_kind_of_key(store, redis_url)
        with redis.Redis.from_url(redis_url) as client:
            ttls = {key.decode(): client.pttl(key) / 1000 for key in client.scan_iter()}
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        today = (midnight + timedelta(days=1) - now).total_seconds()
        this_month = (next_month - now).total_seconds()
        expected = {
            "igw:schema": None,
            f"{BOOKS}records:keys": None,
            f"{BOOKS}bucket:key:k:requests": 120,
            f"{BOOKS}window:key:k:day:{now:%Y-%m-%d}": today + 7 * DAY,
            f"{BOOKS}window:key:k:month:{now:%Y-%m}": this_month + 7 * DAY,
            f"{BOOKS}window:key:k:concurrency": None,
            f"{BOOKS}journal:open": None,
            f"{BOOKS}journal:closed": 7 * DAY,
            f"{BOOKS}open:w": None,
            f"{BOOKS}workers": None,
            f"{BOOKS}ledger:charged:{now:%Y-%m-%d}": None,
            f"{BOOKS}ledger:free:{now:%Y-%m-%d}": None,
            f"{BOOKS}ledger-days:charged": None,
            f"{BOOKS}ledger-days:free": None,
            f"{BOOKS}reserved:w": 7 * DAY,
            f"{BOOKS}ledger": None,
            f"{BOOKS}writers": None,
            f"{BOOKS}writer-numbers": None,
            f"{BOOKS}refusals": None,
            f"{BOOKS}refusal-rows": None,
            f"{BOOKS}running-totals": None,
            "igw:value:s:n": 80,
            "igw:value:s:ever": None,
            "igw:set:s:l": 700,
            "igw:{bounded}:s:b": 300,
            "igw:{bounded}:s:c": 300,
            "igw:{ordered}:s:o": 400,
            "igw:{hits}:i": 500,
            "igw:{lru}:used": None,
            "igw:{lru}:expires": None,
            "igw:{lru}:sizes": None,
            "igw:{lru}:total": None,
            "igw:entry:{f}": 1000 + 500,
            "igw:leases:{f}": 90,
            "igw:flight:{a}": 70,
            "igw:flight-ids:{a}": 70,
            f"igw:blob:{hashlib.sha256(b'data').hexdigest()}": 600,
        }
        assert ttls.keys() == expected.keys()
        for key, seconds in expected.items():
            assert ttls[key] == pytest.approx(-0.001 if seconds is None else seconds, abs=30), key

    async def test_the_table_in_the_module_names_every_key(self) -> None:
        documented = resources.files("gateway.store.redis").joinpath("keys.py").read_text("utf-8")
        for start in ("schema", "{books}:records:", "{books}:bucket:", "{books}:window:",
                      "{books}:journal:", "{books}:open:", "{books}:workers",
                      "{books}:ledger:charged:", "{books}:ledger-days:charged", "{books}:ledger`",
                      "{books}:writers", "{books}:writer-numbers",
                      "{books}:refusals", "{books}:refusal-rows",
                      "{books}:running-totals",
                      "value:", "set:", "{bounded}:",
                      "{lru}:used", "{lru}:expires", "{lru}:sizes", "{lru}:total",
                      "entry:{", "leases:{",
                      "flight:{", "flight-ids:{", "blob:", "ephemeral:", "events:"):  # fmt: skip
            assert f"`igw:{start}" in documented

    async def test_each_script_stays_in_one_hash_slot(self, redis_url: str) -> None:
        """All keys of a script have the same hash tag, so the scripts work in a cluster."""
        async with open_redis_store(redis_url) as store:
            with redis.Redis.from_url(redis_url) as client, client.monitor() as monitor:
                await _make_every_kind_of_key(store, redis_url)
                client.echo("the end")
                tags = _tags_by_script(monitor)
        assert len(tags) > 10
        assert all(len(found) == 1 for found in tags), tags

    async def test_counters_at_zero_leave_no_keys(self, redis_url: str) -> None:
        open_now = Consumption(Counter("key:k", "purchases", "concurrency", 5), 1)
        async with open_redis_store(redis_url) as store:
            reserve = commands.Reserve("p", "w", (open_now,), b"payload")
            await store.execute([reserve, commands.Settle("p", {}, None)])
        with redis.Redis.from_url(redis_url) as client:
            left = [b"igw:schema", f"{BOOKS}journal:p".encode(), f"{BOOKS}workers".encode()]
            assert sorted(client.keys()) == sorted(left)
            assert client.hget(f"{BOOKS}journal:p", "payload") is None

    async def test_an_empty_lru_index_leaves_no_keys(self, redis_url: str) -> None:
        async with open_redis_store(redis_url) as store:
            await store.execute([commands.Track(digest, 10, 60, 15) for digest in "abc"])
            await execute(store, commands.Untrack(("c",)))
        with redis.Redis.from_url(redis_url) as client:
            assert client.keys() == [b"igw:schema"]

    async def test_a_blob_has_the_longest_time_to_live_that_was_requested(
        self, redis_url: str
    ) -> None:
        async with open_redis_blobs(redis_url) as blobs:
            with redis.Redis.from_url(redis_url) as client:
                for requested, expected in ((60, 60), (600, 600), (60, 600)):
                    await blobs.put("a" * 64, b"data", requested)
                    assert client.ttl("igw:blob:" + "a" * 64) == pytest.approx(
                        expected, abs=GENEROUS_SECONDS
                    )


async def _make_every_kind_of_key(store: RedisStore, redis_url: str) -> None:
    consumptions = tuple(
        Consumption(Counter("key:k", unit, period, 100), 1)
        for unit, period in [
            ("requests", "minute"),
            ("images", "day"),
            ("usd_micros", "month"),
            ("purchases", "concurrency"),
        ]
    )
    await store.execute(
        [
            commands.CompareAndSet((Write("keys", "k", b"record", None),)),
            commands.Get("keys", "k", index="keys"),
            commands.Admit((Expected("keys", "k", b"record"),), consumptions[:1]),
            commands.AcquireLease("f", (0, 1), "a", 90),
            commands.AcquireLease("f", (2,), "b", 30),
            commands.StoreImages("f", "c", {5: Slot("image", 0, b"data")}, 1000, 500),
            commands.StoreImages("f", "c", {6: Slot("another", 0, b"data")}, 10, 5),
            commands.EmptySlots("f", {6: "another"}),
            commands.ProlongSlots("f", {5: "image"}, 1000, 500),
            commands.SetValue("s", "n", b"value", 80),
            commands.SetValue("s", "ever", b"value", None),
            commands.SetValue("s", "dropped", b"value", None),
            commands.DeleteValue("s", "dropped"),
            commands.AddToSet("s", "l", ("a", "b"), 700),
            commands.AddToSet("s", "l", ("c",), 7),
            commands.RemoveFromSet("s", "l", ("b",)),
            commands.AddToOrderedSets("s", ("o",), "m", 400, 10),
            commands.CountHits((("i", 1),), 500),
            commands.AddToBoundedSets(
                (commands.BoundedSet("s", "b", 2), commands.BoundedSet("s", "c", 2)), ("m",), 300
            ),
            *(commands.Track(digest, 10, 60, 25) for digest in "abc"),
            commands.EvictTo(25),
            commands.Touch(("b",)),
            commands.Untrack(("c",)),
            commands.EvictionCandidates(10),
            commands.ReadLruTotals(),
            commands.AreTracked(("b",)),
            commands.Sweep(),
            commands.Publish("a", "event", b"event", 70),
            commands.Reserve("open", "w", consumptions, b"payload"),
            commands.Heartbeat("w"),
            commands.Reserve("closed", "w", consumptions, b"payload"),
            commands.Receive("closed", b"payload"),
            commands.Settle(
                "closed", {"images": 1, "usd_micros": 5}, b"record", totals=("everyone",)
            ),
            commands.ReadRunningTotals(("everyone",)),
            commands.ReadFirstCharges(("everyone",)),
            commands.OpenJournals(),
            commands.Append((b"record",), (commands.Refusals("k", "r", 1, b"{", b"{"),)),
            commands.AppendRefusals(10),
            commands.ReadLedger(),
            commands.ReadBooks((commands.WindowName("key:k", "concurrency", ""),), ("k",), 10),
            commands.TrimLedger(60, 60, 1000, 1000, commands.LEDGER_END),
        ]
    )
    async with open_redis_blobs(redis_url, shares_server=True) as blobs:
        await blobs.put(hashlib.sha256(b"data").hexdigest(), b"data", 600)


def _tags_by_script(monitor: redis.client.Monitor) -> list[set[str]]:
    """The hash tags of the keys of each script that ran until an ECHO."""
    scripts: list[set[str]] = []
    for event in monitor.listen():
        command = str(event["command"])
        if command.startswith("ECHO"):
            break
        if command.startswith("EVAL"):
            scripts.append(set())
        if scripts and event["client_type"] == "lua" and "PUBLISH" not in command:
            keys = re.findall(r"igw:[^ ]+", command)
            scripts[-1] |= {re.sub(r".*(\{\w+\}).*", r"\1", key) for key in keys}
    return scripts


class TestRoundTrips:
    async def test_a_hundred_concurrent_batches_share_a_few_round_trips(
        self, server: Server
    ) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, write("a", b"v"))
            with server.client() as client:
                before = _reads(client)
                await asyncio.gather(*(execute(store, read("a")) for _ in range(100)))
                assert _reads(client) - before < 10

    async def test_a_batch_is_one_round_trip(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, write("a", b"v"))
            with server.client() as client:
                before = _reads(client)
                await store.execute([read("a"), commands.ReadEntry("f"), commands.Heartbeat("w")])
                assert _reads(client) - before == 2  # one of them is the INFO itself

    async def test_scripts_that_the_server_has_lost_are_loaded_again(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, commands.Append((b"0",)))
            with server.client() as client:
                client.script_flush()
            results = await store.execute(
                [
                    read("a"),
                    write("a", b"1"),
                    read("a"),
                    write("a", b"2", expected=b"1"),
                    commands.Append((b"1",)),
                    read("a"),
                    commands.ReadLedger(),
                ]
            )
        assert results[:-1] == [None, None, b"1", None, True, b"2"]
        assert [record for _, record in results[-1]] == [b"0", b"1"]

    async def test_concurrent_batches_survive_lost_scripts(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, commands.Heartbeat("w"))
            with server.client() as client:
                client.script_flush()
            await asyncio.gather(*(execute(store, commands.Append((b"r",))) for _ in range(50)))
            assert len(await execute(store, commands.ReadLedger())) == 50


@pytest.mark.skipif(
    "CI" not in os.environ and "REDIS_SERVER" not in os.environ,
    reason="at home, any server may be installed",
)
def test_the_readme_names_the_version_of_this_server(server: Server) -> None:
    with server.client() as client:
        info = client.info("server")
    version = info.get("valkey_version") or info["redis_version"]
    name = "Valkey" if "valkey_version" in info else "Redis"
    tested = re.findall(r"(?m)^\| ((?:Redis|Valkey) \d+\.\d+) \|", README.read_text())
    assert f"{name} {'.'.join(version.split('.')[:2])}" in tested


def _reads(client: redis.Redis) -> int:
    return int(client.info("stats")["total_reads_processed"])


class TestTls:
    async def test_commands_and_blobs_are_sent_over_tls_with_a_password(
        self, stopped: Server
    ) -> None:
        skip_without_tls()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        certificate = ["--tls-cert-file", f"{TLS}/server.pem", "--tls-key-file"]
        trust = ["--tls-ca-cert-file", f"{TLS}/authority.pem", "--tls-auth-clients", "no"]
        stopped.start("--tls-port", str(port), *certificate, f"{TLS}/server-key.pem", *trust)
        with stopped.client() as client:
            client.config_set("requirepass", "right")
        image = bytes(3 << 20)
        url = f"rediss://:right@127.0.0.1:{port}/0?ssl_ca_certs={TLS}/authority.pem"
        async with (
            open_redis_store(url) as store,
            open_redis_blobs(url, shares_server=True) as blobs,
        ):
            await execute(store, write("a", b"v"))
            await blobs.put("0" * 64, image, 60)
            assert (
                await asyncio.gather(*(execute(store, read("a")) for _ in range(50))) == [b"v"] * 50
            )
            assert await blobs.get("0" * 64) == image


class TestOutages:
    async def test_a_store_opens_while_redis_is_down_and_connects_when_it_is_up(
        self, stopped: Server
    ) -> None:
        async with (
            open_redis_store(stopped.url) as store,
            open_redis_blobs(stopped.url, shares_server=True) as blobs,
        ):
            for call in (execute(store, read("a")), blobs.get("0" * 64)):
                with pytest.raises(StoreUnavailable):
                    await call
            stopped.start()
            assert await execute(store, write("a", b"v")) is None
            assert await execute(store, read("a")) == b"v"

    async def test_an_outage_and_its_end_are_logged_once(self, stopped: Server) -> None:
        with capture_logs() as logs:
            async with open_redis_store(stopped.url) as store:
                for _ in range(3):
                    with pytest.raises(StoreUnavailable):
                        await execute(store, read("a"))
                stopped.start()
                await execute(store, read("a"))
        assert [line["event"] for line in logs] == ["store_unavailable", "store_available"]

    async def test_its_end_is_logged_without_a_further_call(self, stopped: Server) -> None:
        with capture_logs() as logs:
            async with open_redis_blobs(stopped.url) as blobs:
                with pytest.raises(StoreUnavailable):
                    await blobs.get("0" * 64)
                stopped.start()
                await eventually(lambda: logs[-1]["event"] == "store_available")
        assert [line["event"] for line in logs] == ["store_unavailable", "store_available"]

    async def test_it_reconnects_by_itself_and_keeps_acknowledged_writes(
        self, server: Server
    ) -> None:
        async with open_redis_store(server.url) as store:
            await _make_every_kind_of_key(store, server.url)
            server.kill()
            with pytest.raises(StoreUnavailable):
                await execute(store, commands.Get("keys", "k"))
            server.start()
            assert await until_available(store, commands.Get("keys", "k")) == b"record"
            (journal,) = await execute(store, commands.OpenJournals("w"))
            assert (journal.purchase, journal.state) == ("open", "reserved")
            assert (await execute(store, commands.ReadEntry("f"))).slots[5].data == b"data"
            assert len(await execute(store, commands.ReadLedger())) == 2

    @pytest.mark.timed
    async def test_a_hung_server_times_out_after_two_seconds(self, server: Server) -> None:
        async with (
            open_redis_store(server.url) as store,
            open_redis_blobs(server.url, shares_server=True) as blobs,
        ):
            await store.execute([write("a", b"v"), commands.Heartbeat("w")])
            server.send(signal.SIGSTOP)
            started = time.monotonic()
            cancelled = asyncio.create_task(execute(store, read("a")))
            others = [asyncio.create_task(execute(store, read("a"))) for _ in range(10)]
            bytes_ = asyncio.create_task(blobs.get("0" * 64))
            await asyncio.sleep(0.1)
            cancelled.cancel()
            late = asyncio.create_task(execute(store, read("a")))
            results = await asyncio.gather(*others, bytes_, return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            assert 1.8 < time.monotonic() - started < 3.5
            with pytest.raises(StoreUnavailable):
                await late
            assert time.monotonic() - started < 3.8
            server.send(signal.SIGCONT)
            assert await until_available(store, read("a")) == b"v"

    @pytest.mark.timed
    async def test_each_batch_has_a_timeout_of_its_own(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await store.execute([write("a", b"v")])
            await asyncio.sleep(0.7)
            server.send(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await execute(store, read("a"))
            assert 1.8 < time.monotonic() - started < 3.5

    async def test_a_request_sent_just_before_its_deadline_ends_no_other(
        self, redis_url: str
    ) -> None:
        """As the last stages of a batch in a cluster, of which another node was slow."""
        server = SingleServer(redis_url)
        pipeline = PipelinedConnection(await server.connect((await server.resolve())[0]))
        loop = asyncio.get_running_loop()
        try:
            with redis.Redis.from_url(redis_url) as client:
                client.client_pause(300)
            patient = asyncio.create_task(pipeline.execute([(b"PING",)], deadline=loop.time() + 2))
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                await pipeline.execute([(b"PING",)], deadline=loop.time() + 0.02)
            assert await patient == [b"PONG"]
            assert await pipeline.execute([(b"ECHO", b"a")], deadline=loop.time() + 2) == [b"a"]
        finally:
            pipeline.abort(redis.ConnectionError("the test has ended"))

    async def test_a_late_reply_is_never_the_reply_to_another_batch(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await store.execute([write("a", b"a"), write("b", b"b")])
            server.send(signal.SIGSTOP)
            with pytest.raises(StoreUnavailable):
                await execute(store, read("a"))
            server.send(signal.SIGCONT)
            assert await until_available(store, read("b")) == b"b"
            assert await asyncio.gather(*(execute(store, read(n)) for n in "abab")) == [
                b"a", b"b", b"a", b"b",
            ]  # fmt: skip

    async def test_a_full_server_is_unavailable_for_writing_only(self, server: Server) -> None:
        async with (
            open_redis_store(server.url) as store,
            open_redis_blobs(server.url, shares_server=True) as blobs,
        ):
            await execute(store, write("a", b"v"))
            with server.client() as client:
                client.config_set("maxmemory", 1)
                for call in (
                    execute(store, write("b", b"v")),
                    execute(store, commands.Reserve("p", "w", (), b"payload")),
                    blobs.put("0" * 64, b"data", 60),
                ):
                    with pytest.raises(StoreFull):
                        await call
                assert await execute(store, read("a")) == b"v"
                client.config_set("maxmemory", 0)
            assert await execute(store, write("b", b"v")) is None

    async def test_a_read_only_replica_is_unavailable_for_writing(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, write("a", b"v"))
            with server.client() as client:
                client.replicaof("127.0.0.1", 1)
                with pytest.raises(StoreUnavailable):
                    await execute(store, write("a", b"w", expected=b"v"))
                client.replicaof("NO", "ONE")
            assert await execute(store, write("a", b"w", expected=b"v")) is None

    async def test_a_refused_command_raises_in_its_own_batch_only(self, redis_url: str) -> None:
        async with open_redis_store(redis_url) as store:
            await execute(store, commands.CompareAndSet((Write("good", "k", b"v", None),)))
            with redis.Redis.from_url(redis_url) as client:
                client.set(f"{BOOKS}records:bad", "not a hash")
            failed, *unaffected = await asyncio.gather(
                store.execute([commands.Get("bad", "k"), commands.Get("good", "k")]),
                *(execute(store, commands.Get("good", "k")) for _ in range(5)),
                return_exceptions=True,
            )
        assert unaffected == [b"v"] * 5
        assert isinstance(failed, RuntimeError)
        assert "Redis refused Get: WRONGTYPE" in str(failed)

    async def test_text_that_cannot_be_encoded_fails_only_its_own_batch(
        self, redis_url: str
    ) -> None:
        async with open_redis_store(redis_url) as store:
            failed, *unaffected = await asyncio.gather(
                execute(store, read("\ud800")),
                *(execute(store, read("a")) for _ in range(5)),
                return_exceptions=True,
            )
        assert isinstance(failed, UnicodeEncodeError)
        assert unaffected == [None] * 5

    @pytest.mark.timed
    async def test_batches_that_are_pending_at_close_fail(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, read("a"))
            server.send(signal.SIGSTOP)
            waiting = []
            for _ in range(4):
                waiting.append(asyncio.create_task(execute(store, read("a"))))
                await asyncio.sleep(0.02)
            started = time.monotonic()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - started < 1
        server.send(signal.SIGCONT)
        assert {type(result) for result in results} == {StoreUnavailable}


class TestFull:
    """A server with `noeviction` that has reached its `maxmemory`."""

    async def test_a_new_connection_can_still_read(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await execute(store, write("a", b"v"))
        with server.client() as client:
            client.config_set("maxmemory", 1)
        async with open_redis_store(server.url) as store:
            await store.check_schema()
            assert await execute(store, read("a")) == b"v"

    async def test_the_lru_index_can_be_read_and_digests_removed(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await store.execute([commands.Track(digest, 10, 60, 100) for digest in "abcd"])
            with server.client() as client:
                client.config_set("maxmemory", 1)
            assert await execute(store, commands.EvictionCandidates(15)) == {
                "a": 10,
                "b": 10,
            }
            assert await execute(store, commands.AreTracked(("a", "x"))) == [True, False]
            await execute(store, commands.Touch(("a", "b")))
            await execute(store, commands.Untrack(("c",)))
            assert await execute(store, commands.EvictTo(20)) == ["d"]
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(2, 20)
            assert await execute(store, commands.EvictionCandidates(20)) == {
                "a": 10,
                "b": 10,
            }

    async def test_a_digest_that_replaces_another_needs_no_room(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await store.execute([commands.Track(digest, 10, 60, 100) for digest in "ab"])
            with server.client() as client:
                client.config_set("maxmemory", 1)
            with pytest.raises(StoreFull):
                await execute(store, commands.Track("c", 10, 60, 100))
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(2, 20)
            assert await execute(store, commands.Track("a", 10, 60, 100)) == []
            assert await execute(store, commands.Track("c", 10, 60, 20)) == ["b"]
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(2, 20)

    async def test_deleting_eviction_candidates_makes_room_for_new_blobs(
        self, server: Server
    ) -> None:
        async with (
            open_redis_store(server.url) as store,
            open_redis_blobs(server.url, shares_server=True) as blobs,
        ):
            images = {hashlib.sha256(b"%d" % i).hexdigest(): b"%d" % i * 500_000 for i in range(9)}
            last = images.popitem()
            with server.client() as client:
                for digest, data in images.items():
                    await execute(store, commands.Track(digest, len(data), 60, 1 << 30))
                    await blobs.put(digest, data, 60)
                client.config_set("maxmemory", client.info("memory")["used_memory"])
            with pytest.raises(StoreFull):
                await blobs.put(*last, 60)
            candidates = await execute(store, commands.EvictionCandidates(1_500_000))
            assert candidates == dict.fromkeys(list(images)[:3], 500_000)
            for digest in candidates:
                await blobs.delete(digest)
            await execute(store, commands.Untrack(tuple(candidates)))
            await blobs.put(*last, 60)
            assert await blobs.get(last[0]) == last[1]
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(
                5, 2_500_000
            )

    async def test_a_full_server_counts_as_available(self, stopped: Server) -> None:
        availability: list[bool] = []
        async with open_redis_store(stopped.url) as opened:
            store = InstrumentedStore(opened, availability.append)
            with pytest.raises(StoreUnavailable):
                await execute(store, write("a", b"v"))
            stopped.start()
            await until_available(store, read("a"))
            with stopped.client() as client:
                client.config_set("maxmemory", 1)
            with pytest.raises(StoreFull):
                await execute(store, write("a", b"v"))
        assert (availability[0], availability[-1]) == (False, True)

    async def test_after_a_failure_only_a_write_shows_that_the_store_is_available(
        self, stopped: Server
    ) -> None:
        """SQLite can often be read although it cannot be written."""
        availability: list[bool] = []
        async with open_redis_store(stopped.url) as opened:
            store = InstrumentedStore(opened, availability.append)
            with pytest.raises(StoreUnavailable):
                await execute(store, read("a"))
            stopped.start()
            await until_available(opened, read("a"))
            await execute(store, read("a"))
            assert availability == [False]
            await execute(store, commands.Heartbeat("worker"))
            await execute(store, read("a"))
        assert availability == [False, True, True]

    async def test_values_and_sets_raise_store_full(self, server: Server) -> None:
        async with open_redis_store(server.url) as store:
            await store.execute(
                [commands.SetValue("s", "n", b"v", 60), commands.AddToSet("s", "l", ("a",), 60)]
            )
            with server.client() as client:
                client.config_set("maxmemory", 1)
            for command in (
                commands.SetValue("s", "m", b"v", 60),
                commands.AddToSet("s", "l", ("b",), 60),
            ):
                with pytest.raises(StoreFull):
                    await execute(store, command)
            await store.execute(
                [commands.DeleteValue("s", "n"), commands.RemoveFromSet("s", "l", ("a",))]
            )
            assert await execute(store, commands.GetValue("s", "n")) is None
            assert await read_set(store, "s", "l") == []

    async def test_no_command_after_a_blob_is_executed_without_it(self, server: Server) -> None:
        """With any amount of free memory: the bytes also take memory before they are stored."""
        async with (
            open_redis_store(server.url) as store,
            open_redis_blobs(server.url, shares_server=True) as blobs,
        ):
            await store.check_schema()
            for free_bytes in range(-SMALL_BYTES, 4 * SMALL_BYTES, SMALL_BYTES // 8):
                digest = f"{free_bytes + SMALL_BYTES:064x}"
                after = commands.SetValue("s", digest, b"v", 60)
                with server.client() as client:
                    used = client.info("memory")["used_memory"]
                    client.config_set("maxmemory", used + free_bytes)
                with contextlib.suppress(StoreFull):
                    await store.execute([commands.PutBlob(digest, bytes(SMALL_BYTES), 60), after])
                assert await blobs.get(digest) == bytes(SMALL_BYTES)
            found = [commands.GetValue("s", f"{0:064x}"), commands.GetValue("s", digest)]
            assert await store.execute(found) == [None, b"v"]  # full at first, no longer at the end


class TestBlobServer:
    """A second server that has only blobs."""

    @pytest.mark.parametrize(("maxmemory", "capacity"), [(0, 1 << 30), (100 << 20, 50 << 20)])
    async def test_its_capacity_is_half_of_its_memory(
        self, server: Server, maxmemory: int, capacity: int
    ) -> None:
        with server.client() as client:
            client.config_set("maxmemory", maxmemory)
        async with open_redis_blobs(server.url) as blobs:
            assert await blobs.capacity_bytes() == capacity

    @pytest.mark.parametrize(
        "policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"]
    )
    async def test_it_may_evict_any_key(self, server: Server, policy: str) -> None:
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)
            client.config_set("maxmemory-policy", policy)
            digests = [f"{i:064x}" for i in range(100)]
            for group in (digests[:50], digests[50:]):
                async with open_redis_blobs(server.url) as blobs:
                    for digest in group:
                        await blobs.put(digest, b"x" * 50_000, 600)
                    assert await blobs.get(group[-1]) in (b"x" * 50_000, None)
                client.delete("igw:schema")  # as an eviction might
            assert client.info("stats")["evicted_keys"] > 50

    async def test_another_schema_version_is_refused(self, server: Server) -> None:
        with server.client() as client:
            client.set("igw:schema", "99")
        async with open_redis_blobs(server.url) as blobs:
            with pytest.raises(SchemaMismatch):
                await blobs.check_schema()
            with pytest.raises(StoreUnavailable, match="schema version 99"):
                await blobs.scan("", 10)

    async def test_an_empty_server_stays_empty_unless_it_may_become_a_store(
        self, server: Server
    ) -> None:
        async with open_redis_blobs(server.url, may_create=False) as blobs:
            with pytest.raises(StoreMissing):
                await blobs.check_schema()
        with server.client() as client:
            assert client.keys() == []

    async def test_a_scan_finds_only_blobs_under_its_own_prefix(self, redis_url: str) -> None:
        odd = "[a]?*\\:"
        async with (
            open_redis_store(redis_url) as store,
            open_redis_blobs(redis_url, shares_server=True) as blobs,
            open_redis_blobs(redis_url, prefix="a:") as other,
            open_redis_store(redis_url, prefix=odd) as oddly_named,
            open_redis_blobs(redis_url, prefix=odd) as odd_blobs,
        ):
            await _make_every_kind_of_key(store, redis_url)
            await other.put("0" * 64, b"other", 60)
            await odd_blobs.put("1" * 64, b"odd", 60)
            await execute(
                oddly_named, commands.StoreImages("f", "a", {0: Slot("p", 0, b"d")}, 60, 60)
            )
            cursor, found = await blobs.scan("", 1000)
            assert (cursor, found) == (None, {hashlib.sha256(b"data").hexdigest(): 4})
            assert await odd_blobs.scan("", 1000) == (None, {"1" * 64: 3})
            assert set((await execute(oddly_named, commands.ScanEntries(limit=1000))).entries) == {
                "f"
            }


@pytest.mark.timed
class TestNotifications:
    async def test_watches_are_notified_when_the_connection_is_lost_and_when_it_is_back(
        self, server: Server
    ) -> None:
        async with open_redis_store(server.url) as store, store.watch("a") as watch:
            server.kill()
            started = time.monotonic()
            await watch.wait(10)  # lost
            assert time.monotonic() - started < 1
            server.start()
            await watch.wait(10)  # back
            started = time.monotonic()
            await until_available(store, read("a"))
            await execute(store, commands.Publish("a", "e", b"event", 60))
            await watch.wait(10)
            assert time.monotonic() - started < 1

    async def test_a_watch_can_be_entered_while_the_store_is_unavailable(
        self, stopped: Server
    ) -> None:
        async with open_redis_store(stopped.url) as store:
            started = time.monotonic()
            async with store.watch("a") as watch:
                await watch.wait(0.05)
                assert time.monotonic() - started < 1
                stopped.start()
                await watch.wait(10)
                await asyncio.sleep(0.1)
                async with open_redis_store(stopped.url) as other:
                    await execute(other, commands.Publish("a", "e", b"event", 60))
                await watch.wait(10)
            assert time.monotonic() - started < 5

    async def test_entering_and_leaving_repeatedly_loses_no_notification(
        self, redis_url: str
    ) -> None:
        async with open_redis_store(redis_url) as store, open_redis_store(redis_url) as other:
            for i in range(50):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0):  # cancelled while entering
                        async with store.watch("a"):
                            pass
                async with store.watch("a") as watch:
                    await execute(other, commands.Publish("a", f"e{i}", b"event", 60))
                    started = time.monotonic()
                    await watch.wait(5)
                    assert time.monotonic() - started < 1

    async def test_all_watches_share_one_connection(self, server: Server) -> None:
        async with open_redis_store(server.url) as store, contextlib.AsyncExitStack() as stack:
            for i in range(20):
                await stack.enter_async_context(store.watch(f"a{i % 10}"))
            with server.client() as client:
                assert len(client.client_list(_type="pubsub")) == 1
                assert len(client.pubsub_channels("igw:events:*")) == 10


LUA = resources.files("gateway.store.redis") / "lua"


class TestScripts:
    def test_every_script_file_belongs_to_a_command(self) -> None:
        aggregates = [item for item in LUA.iterdir() if item.name != "shared"]
        files = [file.name for aggregate in aggregates for file in aggregate.iterdir()]
        assert sorted(files) == sorted(f"{name}.lua" for name in SCRIPTS)

    def test_a_command_without_an_encoder_is_refused(self) -> None:
        class Unknown(Command[None]):
            pass

        with pytest.raises(TypeError, match="no encoder for the command Unknown"):
            encode(Unknown(), None)  # type: ignore[arg-type]

    def test_every_command_has_an_encoder(self) -> None:
        kinds = {
            kind
            for kind in vars(commands).values()
            if isinstance(kind, type) and issubclass(kind, Command)
        }
        assert len(kinds) > 20
        assert kinds <= set(encode.registry)

    def test_the_scripts_compute_the_day_as_python_does(self, redis_url: str) -> None:
        parts = ("clock", "calendar")
        script = (
            "".join((LUA / "shared" / f"{part}.lua").read_text() for part in parts)
            + """
            local found = {}
            for _, time in ipairs(ARGV) do
              table.insert(found, (day_of(tonumber(time))))
            end
            return found
        """
        )
        days = [*range(0, 30_000, 97), *range(20_400, 21_900)]
        moments = [day * DAY + offset for day in days for offset in (0, DAY - 1)]
        with redis.Redis.from_url(redis_url) as client:
            found = client.eval(script, 0, *(moment * 1_000_000 for moment in moments))
        assert [item.decode() for item in found] == [
            f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}" for moment in moments
        ]


def test_redacted_url_refuses_other_schemes() -> None:
    with pytest.raises(ValueError, match="begins with redis://"):
        redacted_url("memcached://host")


def test_a_stalled_event_loop_does_not_time_out_commands(
    redis_url: str,
) -> None:
    """As if other tasks ran for long before the commands are sent; on the gateway's event loop."""

    async def execute_and_stall() -> None:
        async with open_redis_store(redis_url) as store:
            await execute(store, commands.Heartbeat("worker"))
            pending = asyncio.ensure_future(execute(store, commands.Heartbeat("worker")))
            await asyncio.sleep(0)  # sent in the next turn of the loop
            time.sleep(TIMEOUT_SECONDS + 0.3)  # noqa: ASYNC251 - stalls the loop
            await pending

    uvloop.run(execute_and_stall())


async def test_a_scan_begins_anew_after_the_server_was_replaced(server: Server) -> None:
    """Its cursor means nothing to another process, which has its hash tables in another order."""
    names = [f"{n:064x}" for n in range(3000)]
    slots = {0: commands.Slot("i", 0.0, b"image")}
    async with open_redis_store(server.url) as store:
        for first in range(0, len(names), 500):
            page = names[first : first + 500]
            stored = [commands.StoreImages(name, "f", slots, 3600, 3600) for name in page]
            await store.execute([*stored, commands.AddToSet("tags", "sale", tuple(page), 3600)])

        async def scan_entries(after: str) -> tuple[Iterable[str], str | None]:
            page = await execute(store, commands.ScanEntries(after))
            return page.entries, page.after

        async def scan_set(after: str) -> tuple[Iterable[str], str | None]:
            page = await execute(store, commands.ScanSet("tags", "sale", after))
            return page.members, page.after

        found: dict[str, set[str]] = {}
        cursors: dict[str, str | None] = {}
        scans = {"entries": scan_entries, "members": scan_set}
        for name, scan in scans.items():
            cursors[name] = ""
            for _ in range(2):
                seen, cursors[name] = await scan(cursors[name] or "")
                found.setdefault(name, set()).update(seen)
        server.kill()
        server.start()
        await until_available(store, read("any"))
        for name, scan in scans.items():
            while (after := cursors[name]) is not None:
                seen, cursors[name] = await scan(after)
                found[name].update(seen)
    assert {name: len(seen) for name, seen in found.items()} == {"entries": 3000, "members": 3000}
