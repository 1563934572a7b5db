"""A request reaches the same handler, behind the same middlewares, as by aiohttp's router."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from gateway.api.http.server import Runner
from tests.waiting import generous

PASSED = web.RequestKey("passed", list[str])

TARGETS = {
    "GET /plain": "outer inner plain",
    "HEAD /plain": "",
    "POST /plain": "outer inner plain.post",
    "GET /plain?with=query": "outer inner plain",
    "GET http://here/plain": "outer inner plain",
    "GET /plain/": "outer inner any",
    "GET //plain": "outer inner any",
    "GET /plai%6E": "outer inner plain",
    "GET /Plain": "outer inner any",
    "DELETE /plain": "outer inner 405",
    "GET /first": "outer inner first",
}


def create_app() -> web.Application:
    """Routes with and without a pattern. Each answers with the names of what it passed."""

    def middleware(name: str) -> object:
        @web.middleware
        async def call(request: web.Request, handler: object) -> web.StreamResponse:
            request.setdefault(PASSED, []).append(name)
            try:
                return await handler(request)
            except web.HTTPException as error:
                passed = " ".join([*request[PASSED], str(error.status)])
                return web.Response(text=passed)

        return call

    async def answer(request: web.Request) -> web.Response:
        assert request.app is app
        name = request.match_info.route.name
        return web.Response(text=" ".join([*request[PASSED], name]))

    app = web.Application(middlewares=[middleware("outer"), middleware("inner")])
    app.add_routes(
        [
            web.get("/first", answer, name="first"),
            web.get("/plain", answer, name="plain"),
            web.post("/plain", answer, name="plain.post"),
            web.get("/{any:.*}", answer, name="any"),
        ]
    )
    return app


@pytest.mark.parametrize("expects", [False, True], ids=["usual", "with Expect"])
@pytest.mark.parametrize("target", TARGETS)
async def test_a_request_reaches_the_handler_of_its_route(target: str, expects: bool) -> None:
    runner = Runner(create_app(), head_seconds=60)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        more = "Expect: 100-continue\r\n" if expects else ""
        request = f"{target} HTTP/1.1\r\nHost: here\r\n{more}Connection: close\r\n\r\n"
        writer.write(request.encode())
        async with generous():
            received = (await reader.read()).decode()
        writer.close()
    finally:
        await runner.cleanup()
    assert ("100 Continue" in received) == expects
    assert received.rpartition("\r\n\r\n")[2] == TARGETS[target]
