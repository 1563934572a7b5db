"""Raw HTTP for tests: bytes on a connection of their own, and the responses to them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.gateways import Client, Reply
from tests.waiting import generous


@dataclass(frozen=True)
class Raw:
    """The responses on one connection, and whether the gateway closed it."""

    replies: Sequence[Reply]
    was_closed: bool

    @property
    def reply(self) -> Reply:
        assert len(self.replies) == 1, self.replies
        return self.replies[0]


async def talk(client: Client, *parts: bytes, listen_seconds: float | None = None) -> Raw:
    """Sends bytes on a connection of its own, part by part, and reads until it is closed.

    With `listen_seconds`, it stops reading that long after the first complete response.
    """
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received, was_closed = bytearray(), False
    try:
        async with generous() as patience:
            for number, part in enumerate(parts):
                await asyncio.sleep(0.05 if number else 0)
                writer.write(part)
            while chunk := await reader.read(65_536):
                received += chunk
                if listen_seconds is not None and _is_complete(received):
                    patience.reschedule(asyncio.get_running_loop().time() + listen_seconds)
                    listen_seconds = None
            was_closed = True
    except TimeoutError:
        pass
    except ConnectionError:
        was_closed = True
    writer.transport.abort()
    return Raw(split_replies(bytes(received)), was_closed)


def _is_complete(data: bytes | bytearray) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def split_replies(data: bytes) -> list[Reply]:
    """The responses in the bytes of one connection; each has its length."""
    replies = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        length = int(fields.get("content-length", 0))
        headers = {**fields, **{n.title(): v for n, v in fields.items()}}
        replies.append(Reply(int(first.split()[1]), headers, rest[:length]))
        data = rest[length:]
    return replies
