"""`server.tls`: the listening sockets speak TLS, and follow their files."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from gateway.api.http.handshake import HANDSHAKE_SECONDS
from gateway.api.http.server import ConnectionServer
from gateway.configuration.fields import parse_address
from gateway.configuration.settings import Settings
from gateway.net.server_tls import BadPair, ServerTls, TlsFiles, expiry_of, load_context
from gateway.process.checks import check_own_link, judge_certificate
from tests.forks import run_fork
from tests.gateways import (
    TLS,
    TLS_SETTINGS,
    Client,
    InProcess,
    Processes,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
    trusting_context,
)
from tests.waiting import GENEROUS_SECONDS, eventually, generous, pass_time, until

SERVER, RENEWED = "server", "renewed"
EXPIRES = datetime(2120, 1, 1, tzinfo=UTC)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with the files `cert.pem` and `key.pem`, which a test may replace."""
    folder = tmp_path / "tls"
    folder.mkdir()
    put_pair(folder, SERVER)
    return folder


def put_pair(folder: Path, name: str, *, key: str | None = None) -> None:
    """Replaces both files, each by a rename, as ACME clients do."""
    for source, target in ((f"{name}.pem", "cert.pem"), (f"{key or name}-key.pem", "key.pem")):
        shutil.copy(TLS / source, folder / "new")
        (folder / "new").replace(folder / target)


def files_in(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "cert.pem", folder / "key.pem")


def tls_of(folder: Path) -> dict[str, Any]:
    files = files_in(folder)
    return {"server": {"tls": {"cert": str(files.cert), "key": str(files.key)}}}


def shown_certificate(url: str) -> bytes:
    """The certificate that a server shows to a new connection."""
    host, _, port = url.partition("//")[2].rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))


def certificate(name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((TLS / f"{name}.pem").read_text())


async def shows(url: str, name: str) -> bool:
    return await asyncio.to_thread(shown_certificate, url) == certificate(name)


# ── serving ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def secure(tmp_path: Path, upstream: Upstream) -> AsyncIterator[InProcess]:
    """A gateway with TLS on two addresses."""
    server = {"tls": TLS_SETTINGS, "admin_listen": "127.0.0.1:0"}
    settings = make_settings(tmp_path / "data", upstream.base_url, server=server)
    async with run_gateway(settings) as here:
        yield here


async def test_purchases_hits_streams_and_links_work_over_tls(secure: InProcess) -> None:
    assert secure.client.url.startswith("https://")
    assert secure.client.admin_url.startswith("https://")
    alice = await secure.client.with_key()
    bought, hit = await alice.ask(), await alice.ask()
    stream = await alice.ask("a lake", stream=True, partial_images=2)
    assert (bought.status, hit.status, stream.status) == (200, 200, 200)
    assert hit.cache_status.startswith("hit")
    assert b"image_generation.completed" in stream.body
    linked = await alice.ask("a link", model="dall-e-3")
    link = linked.json["data"][0]["url"]
    assert link.startswith(f"{secure.client.url}/images/")  # the Host of the request
    async with alice.session.get(link) as shown:
        assert shown.status == 200
        assert await shown.read()


@pytest.mark.parametrize(
    ("listen", "tls", "url"),
    [
        ("127.0.0.1:8443", TLS_SETTINGS, "https://127.0.0.1:8443"),
        ("127.0.0.1:8443", {}, "http://127.0.0.1:8443"),
        ("0.0.0.0:8443", TLS_SETTINGS, None),
    ],
)
def test_links_start_with_the_scheme_of_the_server(
    listen: str, tls: dict[str, str], url: str | None
) -> None:
    settings = Settings.model_validate({"server": {"listen": listen, "tls": tls}})
    assert settings.server.link_base_url == url


@pytest.mark.parametrize(
    ("version", "is_accepted"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
async def test_tls_1_2_is_the_oldest_version(
    secure: InProcess, version: ssl.TLSVersion, is_accepted: bool
) -> None:
    context = trusting_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # Python deprecates the old ones
        context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    if not is_accepted:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(secure.client.url, context)
        return
    _, writer = await connect(secure.client.url, context)
    connection = writer.get_extra_info("ssl_object")
    assert connection.version() == version.name.replace("v1_", "v1.")
    assert connection.selected_alpn_protocol() == "http/1.1"
    writer.close()


async def connect(
    url: str, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.partition("//")[2].rpartition(":")
    return await asyncio.open_connection(host, int(port), ssl=context)


@pytest.mark.parametrize(
    "cipher", ["NULL-SHA256", "RC4-SHA", "DES-CBC3-SHA", "ADH-AES128-SHA256", "AES128-SHA"]
)
async def test_weak_ciphers_are_refused(secure: InProcess, cipher: str) -> None:
    context = trusting_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    except ssl.SSLError:
        return  # this OpenSSL does not even have it
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await connect(secure.client.url, context)


# ── hostile handshakes ──────────────────────────────────────────────────────────────────────

HANDSHAKES = {
    "nothing": b"",
    "half a record": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "plain HTTP": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "garbage": bytes(range(256)) * 64,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a long record": b"\x16\x03\x01\xff\xff" + bytes(70_000),
}


@pytest.mark.parametrize("sent", HANDSHAKES)
async def test_a_handshake_that_is_not_finished_in_time_is_cut_and_holds_nobody_up(
    secure: InProcess, sent: str, caplog: pytest.LogCaptureFixture
) -> None:
    connections = [await connect(secure.client.url, None) for _ in range(50)]
    for _, writer in connections:
        writer.write(HANDSHAKES[sent])
    alice = await secure.client.with_key()  # meanwhile
    assert (await alice.ask()).status == 200
    pass_time(HANDSHAKE_SECONDS + 1)
    async with generous():
        for reader, writer in connections:
            with suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
            writer.close()
    assert caplog.records == []


# ── handshakes are connections ──────────────────────────────────────────────────────────────

both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@asynccontextmanager
async def bounded(
    loop: str, folder: Path, upstream: Upstream, /, **server: Any
) -> AsyncIterator[Client]:
    """A gateway with bounds: in this process on asyncio, as a process of its own on uvloop."""
    options = {"server": {"tls": TLS_SETTINGS, "listen": "127.0.0.1:0", **server}}
    if loop == "uvloop":
        folder = folder / "processes"
        async with run_processes(folder, upstream.base_url, workers=1, options=options) as (
            _,
            client,
        ):
            yield client
        return
    async with run_gateway(make_settings(folder / "data", upstream.base_url, **options)) as here:
        yield here.client


@dataclass(frozen=True)
class Silent:
    """A TCP connection that does not begin its handshake."""

    writer: asyncio.StreamWriter
    end: asyncio.Task[bytes]

    @property
    def is_closed(self) -> bool:
        return self.end.done()


@asynccontextmanager
async def silent_connections(
    client: Client, count: int, sent: bytes = b""
) -> AsyncIterator[list[Silent]]:
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            reader, writer = await connect(client.url, None)
            stack.callback(writer.transport.abort)
            writer.write(sent)
            opened.append(Silent(writer, asyncio.create_task(reader.read())))
        yield opened
    await asyncio.gather(*(one.end for one in opened), return_exceptions=True)


async def open_tls(url: str) -> asyncio.StreamWriter | None:
    """A connection after its handshake; None if it was refused."""
    try:
        _, writer = await connect(url, trusting_context())
    except OSError:
        return None
    return writer


async def places(client: Client) -> int:
    """How many connections the gateway takes at the moment."""
    opened = []
    while (writer := await open_tls(client.url)) is not None:
        opened.append(writer)
    for writer in opened:
        writer.transport.abort()
    return len(opened)


async def has_places(client: Client, count: int) -> bool:
    return await places(client) == count


def count_closed(connections: list[Silent]) -> int:
    return sum(one.is_closed for one in connections)


@both_loops
async def test_silent_connections_are_bounded_and_make_room_when_they_leave(
    tmp_path: Path, upstream: Upstream, loop: str
) -> None:
    async with bounded(loop, tmp_path, upstream, max_connections=20) as client:
        async with silent_connections(client, 60) as silent:
            await eventually(lambda: count_closed(silent) == 40)
            assert await open_tls(client.url) is None
            assert count_closed(silent) == 40
            next(one for one in silent if not one.is_closed).writer.transport.abort()
            alice = await eventually(lambda: key_if_there_is_room(client))
            assert (await alice.ask()).status == 200
            metrics = await client.metrics()
            assert metrics['gateway_connections_refused_total{reason="connections"}'] >= 41
        await eventually(lambda: has_places(client, 19))  # and that of the session


async def key_if_there_is_room(client: Client) -> Client | None:
    try:
        return await client.with_key()
    except aiohttp.ClientConnectionError:
        return None


@both_loops
async def test_silent_connections_of_an_address_are_bounded(
    tmp_path: Path, upstream: Upstream, loop: str
) -> None:
    async with bounded(loop, tmp_path, upstream, max_connections_per_address=3) as client:
        host, _, port = client.url.partition("//")[2].rpartition(":")
        async with silent_connections(client, 8) as silent:
            await eventually(lambda: count_closed(silent) == 5)
            _, other = await asyncio.open_connection(
                host, int(port), ssl=trusting_context(), local_addr=("127.0.0.2", 0)
            )
            other.transport.abort()
            assert count_closed(silent) == 5
        await eventually(lambda: has_places(client, 3))
        metrics = await eventually(lambda: metrics_if_there_is_room(client))
        assert metrics['gateway_connections_refused_total{reason="address"}'] >= 6
        assert metrics['gateway_connections_refused_total{reason="connections"}'] == 0


async def metrics_if_there_is_room(client: Client) -> dict[str, float] | None:
    try:
        return await client.metrics()
    except aiohttp.ClientConnectionError:
        return None


@both_loops
async def test_a_handshake_that_fails_or_is_left_gives_its_place_back(
    tmp_path: Path, upstream: Upstream, loop: str
) -> None:
    async with bounded(loop, tmp_path, upstream, max_connections=5) as client:
        for name, sent in HANDSHAKES.items():
            for _ in range(2):  # five places: the first lost one is noticed
                async with silent_connections(client, 5, sent):
                    await places(client)  # handshakes succeed and are refused meanwhile
                assert await eventually(lambda: has_places(client, 5)), name


async def test_a_handshake_that_times_out_gives_its_place_back(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with (
        bounded("asyncio", tmp_path, upstream, max_connections=5) as client,
        silent_connections(client, 5) as silent,
    ):
        await eventually(lambda: has_places(client, 0))
        pass_time(HANDSHAKE_SECONDS + 1)
        await eventually(lambda: count_closed(silent) == 5)
        await eventually(lambda: has_places(client, 5))


async def test_a_gateway_that_ends_closes_its_handshakes(
    tmp_path: Path, upstream: Upstream
) -> None:
    server = {"tls": TLS_SETTINGS, "max_connections_per_address": 9}
    settings = make_settings(tmp_path / "data", upstream.base_url, server=server)
    async with AsyncExitStack() as stack:
        async with run_gateway(settings) as here:
            server, client = here.runner.server, here.client
            assert isinstance(server, ConnectionServer)
            silent = await stack.enter_async_context(silent_connections(client, 5))
            await eventually(lambda: server.shared.open_connections._open == 5)
            assert not server.is_idle
        await eventually(lambda: count_closed(silent) == 5)
        assert (
            server.shared.open_connections._open,
            server.shared.open_connections._by_address,
        ) == (0, {})
        assert server.is_idle


@both_loops
async def test_no_byte_is_lost_around_a_handshake(
    tmp_path: Path, upstream: Upstream, loop: str
) -> None:
    """The first ones come with the connection, and the request with the end of the handshake."""
    async with bounded(loop, tmp_path, upstream, max_connections=50) as client:
        for _ in range(2):
            async with generous():
                answers = await asyncio.gather(
                    *(asyncio.to_thread(ask_with_handshake, client.url) for _ in range(30))
                )
            assert {answer[:13] for answer in answers} == {b"HTTP/1.1 200 "}
        await eventually(lambda: has_places(client, 50))


def ask_with_handshake(url: str) -> bytes:
    """Sends the request in the segment that ends the handshake; returns the answer."""
    host, _, port = url.partition("//")[2].rpartition(":")
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting_context().wrap_bio(received, to_send, server_hostname=host)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    with socket.create_connection((host, int(port)), timeout=GENEROUS_SECONDS) as connection:
        while True:
            connection.sendall(to_send.read())
            received.write(connection.recv(65536))
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
        tls.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        connection.sendall(to_send.read())
        while True:
            with suppress(ssl.SSLWantReadError):
                return tls.read()
            received.write(connection.recv(65536))


# ── the files ───────────────────────────────────────────────────────────────────────────────


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:200])


BROKEN: dict[str, tuple[Callable[[TlsFiles], object], str]] = {
    "no certificate": (lambda f: f.cert.unlink(), "cert.pem cannot be read: No such file"),
    "no key": (lambda f: f.key.unlink(), "key.pem cannot be read: No such file"),
    "another key": (
        lambda f: shutil.copy(TLS / "renewed-key.pem", f.key),
        "key.pem is not the key of",
    ),
    "a cut certificate": (lambda f: cut(f.cert), "cert.pem"),
    "a cut key": (lambda f: cut(f.key), "key.pem"),
    "an empty certificate": (lambda f: f.cert.write_text(""), "contains no certificate"),
    "exchanged": (
        lambda f: shutil.copy(TLS / "server-key.pem", f.cert),
        "contains no certificate in PEM",
    ),
    "not PEM": (lambda f: f.cert.write_bytes(certificate(SERVER)), "contains no certificate"),
    "a folder": (lambda f: (f.key.unlink(), f.key.mkdir()), "key.pem cannot be read: Is a dir"),
    "a passphrase": (lambda f: shutil.copy(TLS / "encrypted-key.pem", f.key), "has a passphrase"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_pair_that_cannot_be_used_is_explained(pair: Path, name: str) -> None:
    break_pair, words = BROKEN[name]
    break_pair(files_in(pair))
    with pytest.raises(BadPair) as raised:
        load_context(files_in(pair))
    message = str(raised.value)
    assert words in message
    assert str(pair) in message
    assert "PRIVATE KEY-----\n" not in message


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_keeps_the_old_one_until_it_is_whole(pair: Path, name: str) -> None:
    failures: list[None] = []
    tls = ServerTls(files_in(pair), on_failure=lambda: failures.append(None))
    before = tls._current
    BROKEN[name][0](files_in(pair))
    for _ in range(4):
        tls.reload_if_changed()
    assert tls._current is before
    assert len(failures) == 1  # once for each change, not at every check
    assert tls.is_faulty
    if (pair / "key.pem").is_dir():
        (pair / "key.pem").rmdir()
    put_pair(pair, RENEWED)
    for _ in range(4):
        tls.reload_if_changed()
    assert tls._current is not before
    assert (len(failures), tls.is_faulty) == (1, False)


def test_a_pair_that_is_half_replaced_is_not_tried(pair: Path) -> None:
    """The state must be the same twice in a row; `reload` tries at once."""
    failures: list[None] = []
    tls = ServerTls(files_in(pair), on_failure=lambda: failures.append(None))
    before = tls._current
    shutil.copy(TLS / "renewed.pem", pair / "cert.pem")
    tls.reload_if_changed()
    shutil.copy(TLS / "renewed-key.pem", pair / "key.pem")
    tls.reload_if_changed()
    assert (tls._current is before, failures) == (True, [])
    tls.reload_if_changed()
    assert (tls._current is before, failures) == (False, [])


def test_only_one_of_the_files_is_refused() -> None:
    for tls in ({"cert": "a.pem"}, {"key": "a.pem"}):
        with pytest.raises(ValueError, match="both cert and key, or neither"):
            Settings.model_validate({"server": {"tls": tls}})


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (-100, "ok", "until 2120-01-01"),
        (-15, "ok", ""),
        (-13, "warning", "expires at 2120-01-01 00:00 UTC"),
        (0.5, "fault", "expired at 2120-01-01 00:00 UTC"),
    ],
)
def test_a_certificate_that_expires_soon_is_told(
    pair: Path, days: float, level: str, words: str
) -> None:
    settings = Settings.model_validate(tls_of(pair))
    (finding,) = judge_certificate(settings, now=EXPIRES + timedelta(days=days))
    assert finding.level == level
    assert words in finding.message
    assert str(pair / "cert.pem") in finding.message


@pytest.mark.parametrize(("days", "count"), [(-15, 0), (-13, 1), (1, 1)])
def test_a_running_gateway_logs_that_its_certificate_expires_soon(
    pair: Path, days: int, count: int
) -> None:
    """That of the current one, also if the files are broken meanwhile."""
    tls = ServerTls(files_in(pair), on_failure=lambda: None)
    (pair / "cert.pem").unlink()
    with structlog.testing.capture_logs() as logged:
        tls.log_expiry(EXPIRES + timedelta(days=days))
    assert [line["event"] for line in logged] == ["certificate_expires_soon"] * count


def test_the_expiry_is_that_of_the_first_certificate(pair: Path) -> None:
    """Behind text, as `openssl x509 -text` writes it, and before the intermediates."""
    chain = "Certificate:\n  Data:\n" + (TLS / "server.pem").read_text()
    (pair / "cert.pem").write_text(chain + (TLS / "authority.pem").read_text())
    load_context(files_in(pair))
    assert expiry_of(pair / "cert.pem") == EXPIRES
    assert expiry_of(TLS / "renewed.pem").year == 2126


def test_without_a_certificate_nothing_is_found() -> None:
    assert judge_certificate(Settings(), now=EXPIRES) == []


@pytest.mark.parametrize(
    ("ca_file", "level", "words"),
    [
        (TLS / "authority.pem", "ok", "fetched from https://127.0.0.1:"),
        (None, "fault", "with a certificate that this machine trusts"),
    ],
)
async def test_the_doctor_fetches_its_link_over_tls(
    tmp_path: Path, upstream: Upstream, ca_file: Path | None, level: str, words: str
) -> None:
    given = {"server": {"tls": TLS_SETTINGS}, "upstream": {"ca_file": ca_file}}
    settings = make_settings(tmp_path / "data", upstream.base_url, **given)
    async with run_gateway(settings) as here:
        listen = parse_address(here.client.url.removeprefix("https://"))
        server = settings.server.model_copy(update={"listen": listen})
        finding = await check_own_link(settings.model_copy(update={"server": server}))
    assert finding.level == level
    assert words in finding.message


# ── processes ───────────────────────────────────────────────────────────────────────────────


async def test_workers_show_a_renewed_certificate_and_keep_it_when_the_files_break(
    tmp_path: Path, upstream: Upstream, pair: Path
) -> None:
    """Open connections go on. SIGHUP reads at once what is there."""
    async with run_processes(tmp_path, upstream.base_url, workers=2, options=tls_of(pair)) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        assert (await alice.ask()).status == 200
        assert await shows(client.url, SERVER)

        put_pair(pair, RENEWED)
        await eventually(lambda: len(processes.log("certificate_loaded")) == 2)
        for _ in range(8):
            assert await shows(client.url, RENEWED)

        put_pair(pair, SERVER, key=RENEWED)
        await eventually(lambda: len(processes.log("certificate_reload_failed")) == 2)
        assert await shows(client.url, RENEWED)
        assert (await alice.ask()).cache_status.startswith("hit")
        samples = await client.metrics()
        assert samples["gateway_config_reload_failures_total"] == 2
        reason = processes.log("certificate_reload_failed")[0]["reason"]
        assert "is not the key of" in reason

        processes.signal_parent(signal.SIGHUP)
        await eventually(lambda: len(processes.log("certificate_reload_failed")) == 4)
        put_pair(pair, SERVER)
        await until_shown(processes, client.url)


async def until_shown(processes: Processes, url: str) -> None:
    await eventually(lambda: len(processes.log("certificate_loaded")) == 4)
    assert await shows(url, SERVER)


async def test_a_rolling_restart_and_a_drain_work_over_tls(
    tmp_path: Path, upstream: Upstream, pair: Path
) -> None:
    options = {"server": {**tls_of(pair)["server"], "admin_listen": "127.0.0.1:0"}}
    async with run_processes(tmp_path, upstream.base_url, workers=2, options=options) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        processes.signal_parent(signal.SIGUSR2)
        statuses = set()
        while len(processes.log("worker_replaced")) < 2:
            statuses.add((await alice.ask()).status)
            statuses.add((await client.admin("GET", "/healthz")).status)
        assert statuses == {200}
        silent = [await connect(client.url, None) for _ in range(5)]  # in their handshake
        async with upstream.hold():
            buying = asyncio.create_task(alice.ask("a lake"))
            await upstream.until_sent(2)
            processes.signal_parent(signal.SIGTERM)
        assert (await buying).status == 200
        assert await processes.wait() == 0
        for _, writer in silent:
            writer.close()


async def test_a_rolling_restart_waits_for_handshakes_in_progress(
    tmp_path: Path, upstream: Upstream, pair: Path
) -> None:
    """As it waits for the first request of a connection without TLS."""
    async with run_processes(tmp_path, upstream.base_url, workers=1, options=tls_of(pair)) as (
        processes,
        client,
    ):
        reader, writer = await connect(client.url, None)
        old = processes.workers()
        processes.signal_parent(signal.SIGUSR2)
        await eventually(lambda: processes.log("worker_replaced"))
        await asyncio.sleep(0.3)  # a worker without a connection has ended by then
        async with generous():
            await writer.start_tls(trusting_context(), server_hostname="127.0.0.1")
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            received = await reader.read()
        assert received.startswith(b"HTTP/1.1 200 ")
        await eventually(lambda: not old & processes.workers())


@pytest.mark.parametrize(
    "name",
    [
        "another key",
        # The messages are those of test_a_pair_that_cannot_be_used_is_explained.
        pytest.param("no certificate", marks=pytest.mark.long),
        pytest.param("a passphrase", marks=pytest.mark.long),
    ],
)
def test_a_gateway_does_not_start_with_a_broken_pair(pair: Path, name: str) -> None:
    break_pair, words = BROKEN[name]
    break_pair(files_in(pair))
    files = files_in(pair)
    environ = {
        **os.environ,
        "UPSTREAM_API_KEY": "sk-x",
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "GATEWAY_TLS_CERT": str(files.cert),
        "GATEWAY_TLS_KEY": str(files.key),
        "GATEWAY_DATA_DIR": str(pair / "data"),
    }
    for command in ("serve", "demo"):
        result = run_fork(command, cwd=pair, env=environ)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: server.tls: ")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (pair / "data").exists()


@pytest.mark.timed
@pytest.mark.long
async def test_stalled_handshakes_cost_a_bounded_time_and_block_no_client(
    tmp_path: Path, upstream: Upstream, pair: Path
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=1, options=tls_of(pair)) as (
        _,
        client,
    ):
        alice = await client.with_key()
        await alice.ask()
        host, _, port = client.url.partition("//")[2].rpartition(":")
        started = time.monotonic()
        stalled = [socket.create_connection((host, int(port))) for _ in range(300)]
        for connection in stalled:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")
        hits = []
        for _ in range(20):
            sent = time.monotonic()
            assert (await alice.ask()).status == 200
            hits.append(time.monotonic() - sent)
        assert sorted(hits)[10] < 0.25
        await asyncio.to_thread(until_closed, stalled)
        assert time.monotonic() - started < HANDSHAKE_SECONDS + 5


def until_closed(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.settimeout(GENEROUS_SECONDS)
        with suppress(ConnectionError):
            until(lambda connection=connection: connection.recv(4096) == b"")
        connection.close()
