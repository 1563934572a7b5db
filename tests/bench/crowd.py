"""A client that sends many requests within seconds, each for another image on its own connection.

Runs as its own process: `python -m tests.bench.crowd COUNT URL [HEADER: VALUE …]`. After the last
answer it prints a line of JSON: the number of answers by status, and the size of the smallest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter

import aiohttp
import uvloop

from tests.bench.processes import LOW_PRIORITY, raise_descriptor_limit

TIMEOUT_SECONDS = 300.0
ARRIVALS_PER_SECOND = 2000
"""Faster arrivals would overflow the system's accept queues. Those connections are retried after
seconds, so the benchmark would measure connecting instead of waiting for an image."""

LOST = "lost"
"""The status of a request whose connection ended without an answer."""


async def send_all(count: int, url: str, headers: dict[str, str]) -> dict[str, object]:
    """Sends the requests. Returns the answers by status, and the size of the smallest."""
    statuses: Counter[str] = Counter()
    sizes: list[int] = []
    salt = time.time_ns()

    async def send(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(number / ARRIVALS_PER_SECOND)
        body = {
            "model": "gpt-image-2",
            "quality": "low",
            "prompt": f"Otter {number} of a crowd, {salt}",
        }
        try:
            async with session.post(url, json=body) as response:
                size = 0
                async for chunk in response.content.iter_any():
                    size += len(chunk)
        except (aiohttp.ClientError, OSError) as error:
            statuses[f"{LOST}: {type(error).__name__}"] += 1
            return
        statuses[str(response.status)] += 1
        sizes.append(size)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        await asyncio.gather(*(send(session, number) for number in range(count)))
    return {"statuses": statuses, "least_bytes": min(sizes, default=0)}


def main() -> None:
    """Sends all requests once."""
    count, url, *lines = sys.argv[1:]
    raise_descriptor_limit()
    os.nice(LOW_PRIORITY)
    headers = dict(line.split(": ", 1) for line in lines)
    print(json.dumps(uvloop.run(send_all(int(count), url, headers))))  # noqa: T201


if __name__ == "__main__":
    main()
