"""An upstream for tests that answers with given bytes, and serves images behind links."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

import redis

from gateway.simulator.drawing import draw_image
from tests.gateways import InProcess
from tests.redis_masters import open_masters
from tests.scripted_upstream import http

PNG = draw_image("an otter", width=16, height=16, format="png", seed=1)


@dataclass
class Hostile:
    """An upstream whose next answers the test chooses; the last one is repeated."""

    root: str = ""
    answers: list[bytes] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the purchases."""
    fetches: list[str] = field(default_factory=list)
    """The paths of the links that were fetched."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, it holds purchases."""
    pauses: bool = False
    """A stream stops after its first event until `resume` is set."""
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    def will_answer(self, document: Any, status: int = 200, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.answers = [http(status, body, **{"Content_Type": "application/json"} | headers)]

    def will_stream(self, *events: tuple[str, Mapping[str, Any]]) -> None:
        frames = [
            f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"
            for name, data in events
        ]
        body = "".join(frames).encode()
        self.answers = [http(200, body, Content_Type="text/event-stream", Connection="close")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                if method == "GET":
                    self.fetches.append(path)
                    writer.write(http(200, PNG, Content_Type="image/png"))
                    continue
                length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                await self.gate.wait()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                first, end, rest = answer.partition(b"\n\n") if self.pauses else (answer, b"", b"")
                writer.write(first + end)
                await writer.drain()
                if rest:
                    await self.resume.wait()
                writer.write(rest)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def stored(gateway: InProcess) -> str:
    """Everything in the store: each value by itself, because dumps and pages divide them."""
    await gateway.gateway.ledger.write()
    url = gateway.settings.store.redis_url
    if url is not None:
        with open_masters(url.get_secret_value()) as masters:
            return "".join(
                f"{key} {_redis_value(master, key)}"
                for master in masters
                for key in master.scan_iter()
            )
    folder = gateway.settings.store.data_dir
    with closing(sqlite3.connect(next(folder.glob("*.sqlite")))) as database:
        tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        rows = [row for (t,) in tables for row in database.execute(f'SELECT * FROM "{t}"')]  # noqa: S608
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return f"{rows}{files}"


def _redis_value(client: redis.Redis, key: bytes) -> Any:
    readers = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"stream": client.xrange,
    }
    kind = client.type(key)
    return "" if kind == b"none" else readers[kind](key)  # it has just expired


@asynccontextmanager
async def run_hostile() -> AsyncIterator[Hostile]:
    hostile = Hostile()
    hostile.gate.set()
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    hostile.root = f"http://{host}:{port}"
    try:
        yield hostile
    finally:
        server.close()
