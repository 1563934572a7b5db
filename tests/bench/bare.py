"""The least that an aiohttp handler in the gateway's place must do, and nothing else.

It reads the body, makes one pipelined round trip to Redis as a hit does (key record, admission,
entry) and answers: from memory, or with what the trip has brought. Run as a process of its own:

    python -m tests.bench.bare PORT REDIS_URL ANSWER_FILE memory|redis
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from aiohttp import web
from redis.asyncio import Redis

REDIS = web.AppKey("redis", Redis)
ENTRY = "bench:entry:"


def create_app(redis_url: str, answer: bytes, *, is_from_redis: bool) -> web.Application:
    """The handler on every path."""
    stored = ENTRY + str(len(answer))

    async def connect(app: web.Application) -> AsyncIterator[None]:
        async with Redis.from_url(redis_url) as app[REDIS]:
            await app[REDIS].set(stored, answer if is_from_redis else b"an entry")
            yield

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        async with request.app[REDIS].pipeline(transaction=False) as pipeline:
            pipeline.hget("bench:keys", "a key").incr("bench:admitted").get(stored)
            found = (await pipeline.execute())[-1]
        body = found if is_from_redis else answer
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.cleanup_ctx.append(connect)
    app.router.add_post("/{any:.*}", handle)
    return app


def main() -> None:
    """Serves until it is terminated."""
    port, redis_url, answer_file, source = sys.argv[1:]
    answer = Path(answer_file).read_bytes()
    app = create_app(redis_url, answer, is_from_redis=source == "redis")
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
