"""A real HTTP receiver of webhooks, on `127.0.0.1`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.local_server import serve

GIGABYTE = 2**30


@dataclass(frozen=True)
class Received:
    """One request."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers each request as the test says, and keeps all of them."""

    url: str = ""
    behaviour: str = "accept"
    location: str = ""
    """The target of redirects."""
    requests: list[Received] = field(default_factory=list)
    accepted: list[Received] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def hook(self) -> str:
        return f"{self.url}/hook/a-secret-path"

    @property
    def events(self) -> list[Any]:
        """The events of accepted requests by their id: a repetition counts once."""
        found = {r.headers["webhook-id"]: r.json for r in self.requests}
        return list(found.values())

    def kinds(self) -> list[str]:
        return sorted(event["type"] for event in self.events)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(dict(request.headers), await request.read())
        self.requests.append(received)
        if self.behaviour == "accept":
            self.accepted.append(received)
        return await getattr(self, f"do_{self.behaviour}")(request)

    async def do_accept(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def do_fail(self, _request: web.Request) -> web.Response:
        return web.Response(status=500, text="no")

    async def do_go(self, _request: web.Request) -> web.Response:
        return web.Response(status=410)

    async def do_redirect(self, _request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": self.location})

    async def do_hang(self, _request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    async def do_hang_after_head(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        await response.prepare(request)
        await asyncio.sleep(3600)
        return response

    async def do_gigabyte(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        await response.prepare(request)
        with suppress(ConnectionError):
            while self.sent_bytes < GIGABYTE:
                await response.write(bytes(65536))
                self.sent_bytes += 65536
        return response


@asynccontextmanager
async def run_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.add_routes(
        [web.post("/{path:.*}", receiver.handle), web.get("/{path:.*}", receiver.handle)]
    )
    async with serve(app) as receiver.url:
        yield receiver
