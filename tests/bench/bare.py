"""A baseline: an aiohttp handler that does the minimum in the gateway's place.

For a hit it reads the body, makes one pipelined round trip to Redis (key record, admission, entry)
and answers from memory (`round-trip`) or with the value read from Redis (`redis`). As `memory` it
makes no round trip. For a purchase it forwards the body and returns the answer. Runs as its own
process:

    python -m tests.bench.bare PORT memory|round-trip|redis REDIS_URL ANSWER_FILE
    python -m tests.bench.bare PORT pass UPSTREAM_URL
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from aiohttp import ClientSession, web
from redis.asyncio import Redis

REDIS = web.AppKey("redis", Redis)
SESSION = web.AppKey("session", ClientSession)


def create_hits(source: str, redis_url: str, answer_file: str) -> web.Application:
    """Answers every request; `source` is `memory`, `round-trip` or `redis`."""
    answer, is_from_redis = Path(answer_file).read_bytes(), source == "redis"
    stored = f"bench:entry:{source}:{len(answer)}"

    async def connect(app: web.Application) -> AsyncIterator[None]:
        async with Redis.from_url(redis_url) as app[REDIS]:
            await app[REDIS].set(stored, answer if is_from_redis else b"an entry")
            yield

    async def answer_from_memory(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        async with request.app[REDIS].pipeline(transaction=False) as pipeline:
            pipeline.hget("bench:keys", "a key").incr("bench:admitted").get(stored)
            found = (await pipeline.execute())[-1]
        body = found if is_from_redis else answer
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    if source == "memory":
        app.router.add_post("/{any:.*}", answer_from_memory)
    else:
        app.cleanup_ctx.append(connect)
        app.router.add_post("/{any:.*}", handle)
    return app


def create_proxy(_source: str, upstream_url: str) -> web.Application:
    """Forwards every request."""

    async def connect(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession() as app[SESSION]:
            yield

    async def handle(request: web.Request) -> web.Response:
        headers = {"Content-Type": "application/json"}
        sent = request.app[SESSION].post(upstream_url, data=await request.read(), headers=headers)
        async with sent as reply:
            return web.Response(body=await reply.read(), content_type="application/json")

    app = web.Application()
    app.cleanup_ctx.append(connect)
    app.router.add_post("/{any:.*}", handle)
    return app


def main() -> None:
    """Serves until the process is terminated."""
    port, *arguments = sys.argv[1:]
    app = create_proxy(*arguments) if arguments[0] == "pass" else create_hits(*arguments)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
