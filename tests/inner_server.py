"""Test data of the SSRF guard: a blocked server, an allowed server, host names and bad links.

Both servers are real. Host names are resolved from a table, and no packet leaves the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

TLS = Path(__file__).parent / "tls"
IMAGE = b"\x89PNG and so on"


# ── servers and names ───────────────────────────────────────────────────────────────────────


@dataclass
class Inner:
    """A server that must not be reached. Counts all connections on 127.0.0.1 and ::1."""

    port: int = 0
    connections: int = 0

    def accept(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.transport.abort()


@contextlib.asynccontextmanager
async def run_inner() -> AsyncIterator[Inner]:
    inner = Inner()
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(inner.accept, "127.0.0.1", 0)
        await stack.enter_async_context(server)
        inner.port = server.sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):  # no IPv6, or the port is taken there
            await stack.enter_async_context(
                await asyncio.start_server(inner.accept, "::1", inner.port)
            )
        yield inner


@dataclass
class Outer:
    """A server that a test allows. The path selects the answer. Requests are recorded."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    """Paths and queries of the requests, as received."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    location: str = ""
    """The target of `/redirect`."""
    body: bytes = IMAGE
    """The body of `/body`."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.raw_path)
        self.headers.append(dict(request.headers))
        name = request.match_info["name"].replace("-", "_")
        return await getattr(self, f"do_{name}")(request)

    async def do_image(self, _request: web.Request) -> web.Response:
        return web.Response(body=IMAGE, content_type="image/png")

    async def do_body(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.body, content_type="image/png")

    async def do_redirect(self, _request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": self.location})

    async def do_hop(self, request: web.Request) -> web.Response:
        """Redirects `left` times, at last to the image."""
        left = int(request.query["left"])
        location = f"hop?left={left - 1}" if left > 1 else "/image"
        return web.Response(status=307, headers={"Location": location, "Connection": "close"})

    async def do_slow_hop(self, request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        left = int(request.query["left"])
        return web.Response(status=308, headers={"Location": f"?left={left - 1}"})

    async def do_nowhere(self, _request: web.Request) -> web.Response:
        return web.Response(status=302)

    async def do_missing(self, _request: web.Request) -> web.Response:
        return web.Response(status=404, body=IMAGE, content_type="image/png")

    async def do_part(self, _request: web.Request) -> web.Response:
        return web.Response(status=206, body=IMAGE, content_type="image/png")

    async def do_typed(self, request: web.Request) -> web.Response:
        return web.Response(body=IMAGE, headers={"Content-Type": request.query["type"]})

    async def do_packed(self, _request: web.Request) -> web.Response:
        packed = zlib.compress(bytes(2**20))
        return web.Response(body=packed, headers={"Content-Encoding": "deflate"})

    async def do_gigabyte(self, request: web.Request) -> web.StreamResponse:
        """Sends a gigabyte, with a length or in chunks, until the client closes the connection."""
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        if "declared" in request.query:
            response.content_length = 2**30
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while self.sent_bytes < 2**30:
                await response.write(bytes(65536))
                self.sent_bytes += 65536
        return response

    async def do_drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b".")
                await asyncio.sleep(0.02)
        return response

    async def do_silent(self, _request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def do_cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        response.content_length = 100
        await response.prepare(request)
        await response.write(IMAGE)
        assert request.transport is not None
        request.transport.close()
        return response


@contextlib.asynccontextmanager
async def run_outer(
    host: str = "127.0.0.1", *, name: str | None = None, port: int = 0, tls: bool = False
) -> AsyncIterator[Outer]:
    """Serves on an address of this machine. The URL has `name` instead of the address."""
    outer = Outer()
    app = web.Application()
    app.add_routes([web.get("/{name}", outer.handle)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(TLS / "server.pem", TLS / "server-key.pem")
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        port = runner.addresses[0][1]
        outer.url = f"http{'s' * tls}://{name or host}:{port}"
        yield outer
    finally:
        await runner.cleanup()


class Names(AbstractResolver):
    """Resolves names from a table. Each look-up gets the next answer; the last one repeats."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]] | None = None) -> None:
        self.answers = {name: list(given) for name, given in (answers or {}).items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError(None, "no such name")
        left = self.answers[host]
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in addresses
        ]

    async def close(self) -> None:
        """Has nothing to close."""


def names_that_lead_inside() -> Names:
    return Names(
        {
            "inside.example": [["127.0.0.1"]],
            "mixed.example": [["10.0.0.1", "::1", "127.0.0.1"]],
            "mapped.example": [["::ffff:127.0.0.1"]],
            "odd.example": [["0177.0.0.1", "127.1"]],
            "scoped.example": [["fe80::1%lo"]],
        }
    )


# ── links that lead inside ──────────────────────────────────────────────────────────────────

# `{port}` is the port of `Inner`, on 127.0.0.1 and ::1.
INSIDE = [
    ("https://127.0.0.1:{port}/", "address"),
    ("https://127.0.0.1:{port}", "address"),
    ("https://127.0.0.1:{port}?a=b", "address"),
    ("HTTPS://127.0.0.1:{port}/", "address"),
    ("https://127.8.8.8:{port}/", "address"),
    ("https://0.0.0.0:{port}/", "address"),
    ("https://10.0.0.1/", "address"),
    ("https://172.16.0.1/", "address"),
    ("https://192.168.1.1/", "address"),
    ("https://100.64.0.1/", "address"),
    ("https://100.100.100.200/", "address"),
    ("https://169.254.169.254/latest/meta-data/", "address"),
    ("https://168.63.129.16/", "address"),
    ("https://192.0.0.192/", "address"),
    ("https://198.18.0.1/", "address"),
    ("https://203.0.113.7/", "address"),
    ("https://224.0.0.1/", "address"),
    ("https://240.0.0.1/", "address"),
    ("https://255.255.255.255/", "address"),
    # one address in other spellings
    ("https://2130706433:{port}/", "address"),
    ("https://017700000001:{port}/", "address"),
    ("https://0177.0.0.1:{port}/", "address"),
    ("https://0x7f.0.0.1:{port}/", "address"),
    ("https://0x7f.1:{port}/", "address"),
    ("https://0x7F000001:{port}/", "address"),
    ("https://127.1:{port}/", "address"),
    ("https://127.0.1:{port}/", "address"),
    ("https://127.000.000.001:{port}/", "address"),
    ("https://127.0.0.1.:{port}/", "address"),
    ("https://127.0.0.1..:{port}/", "address"),
    ("https://256.0.0.1:{port}/", "address"),
    ("https://localhost.:{port}/", "malformed"),
    ("https://１２７.0.0.1:{port}/", "malformed"),
    ("https://127。0。0。1:{port}/", "malformed"),
    ("https://ⓛocalhost:{port}/", "malformed"),
    ("https://%31%32%37.0.0.1:{port}/", "malformed"),
    ("https://127.0.0.1%00.example:{port}/", "malformed"),
    ("https://127.0.0.1:{port}\\@good.example/", "malformed"),
    ("https://good.example\\@127.0.0.1:{port}/", "malformed"),
    ("https:\\\\127.0.0.1:{port}/", "scheme"),
    ("https://127.0.0.1\t:{port}/", "malformed"),
    ("https://127.0.0.1:{port}/ HTTP/1.1\r\nX: y", "malformed"),
    ("https://good.example:80:{port}/", "malformed"),
    ("https://127.0.0.1:0/", "malformed"),
    ("https://127.0.0.1:99999/", "malformed"),
    ("https://:{port}/", "malformed"),
    ("https:///127.0.0.1:{port}/", "malformed"),
    ("https://", "malformed"),
    ("https://a..example/", "malformed"),
    (f"https://{'a' * 64}.example/", "malformed"),
    (f"https://good.example/{'a' * 9000}", "malformed"),
    # IPv6, also with embedded IPv4 addresses
    ("https://[::1]:{port}/", "address"),
    ("https://[0:0:0:0:0:0:0:1]:{port}/", "address"),
    ("https://[::]:{port}/", "address"),
    ("https://[::ffff:127.0.0.1]:{port}/", "address"),
    ("https://[::ffff:7f00:1]:{port}/", "address"),
    ("https://[::127.0.0.1]:{port}/", "address"),
    ("https://[::ffff:0:127.0.0.1]:{port}/", "address"),
    ("https://[64:ff9b::127.0.0.1]:{port}/", "address"),
    ("https://[64:ff9b::a9fe:a9fe]/", "address"),
    ("https://[64:ff9b:1::127.0.0.1]:{port}/", "address"),
    ("https://[64:ff9b:1:7f00:0:100:808:808]/", "address"),
    ("https://[2002:7f00:1::]:{port}/", "address"),
    ("https://[2001:0:808:808:0:0:80ff:fffe]/", "address"),
    ("https://[fe80::1]/", "address"),
    ("https://[fe80::1%25eth0]/", "malformed"),
    ("https://[fd00:ec2::254]/", "address"),
    ("https://[fec0::1]/", "address"),
    ("https://[ff02::1]/", "address"),
    ("https://[2001:db8::1]/", "address"),
    ("https://[::1/", "malformed"),
    ("https://::1:{port}/", "malformed"),
    ("https://[127.0.0.1]:{port}/", "malformed"),
    # credentials, on either side of which the host may be
    ("https://good.example@127.0.0.1:{port}/", "credentials"),
    ("https://user:secret@127.0.0.1:{port}/", "credentials"),
    ("https://127.0.0.1:{port}@good.example/", "credentials"),
    ("https://good.example%40@127.0.0.1:{port}/", "credentials"),
    ("https://@127.0.0.1:{port}/", "credentials"),
    ("https://127.0.0.1:{port}#@good.example/", "address"),
    # other schemes
    ("http://127.0.0.1:{port}/", "scheme"),
    ("http://8.8.8.8/", "scheme"),
    ("http://inside.example:{port}/", "scheme"),
    ("http://169.254.169.254/latest/meta-data/", "scheme"),
    ("file:///etc/passwd", "scheme"),
    ("ftp://127.0.0.1:{port}/", "scheme"),
    ("gopher://127.0.0.1:{port}/_GET", "scheme"),
    ("unix://127.0.0.1:{port}/", "scheme"),
    ("data:image/png;base64,iVBORw0KGgo=", "scheme"),
    ("javascript:alert(1)", "scheme"),
    ("//127.0.0.1:{port}/", "scheme"),
    ("/image.png", "scheme"),
    ("127.0.0.1:{port}", "scheme"),
    (" https://127.0.0.1:{port}/", "scheme"),
    ("", "scheme"),
    # names that lead inside
    ("https://inside.example:{port}/", "address"),
    ("https://mixed.example:{port}/", "address"),
    ("https://mapped.example:{port}/", "address"),
    ("https://odd.example:{port}/", "address"),
    ("https://scoped.example/", "address"),
    ("https://INSIDE.EXAMPLE:{port}/", "address"),
    ("https://unknown.example:{port}/", "unreachable"),
]

# A relative link is left out: as a redirect it is allowed, and leads to the server that sent it.
REDIRECTED = [
    (link, reason)
    for link, reason in INSIDE
    if re.match("[a-z]+:", link, re.IGNORECASE) and re.fullmatch("[ -~]{,8000}", link)
]
