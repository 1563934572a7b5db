"""Many who ask within seconds, each on a connection of its own and for an image of its own.

Run as a process of its own: `python -m tests.bench.crowd COUNT URL [HEADER: VALUE …]`. Prints a
line of JSON when everybody has an answer: how many came with which status, and how many bytes.
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

PATIENCE_SECONDS = 300.0
ARRIVALS_PER_SECOND = 2000
"""It is to be measured who waits for an image, not who waits to be connected: what does not fit
into the system's queues comes again after seconds, and then after a minute."""

LOST = "lost"
"""The status of a request whose connection ended without an answer."""


async def ask_at_once(count: int, url: str, headers: dict[str, str]) -> dict[str, object]:
    """How everybody's requests ended: by status, and the fewest bytes of an answer."""
    statuses: Counter[str] = Counter()
    sizes: list[int] = []
    salt = time.time_ns()

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(number / ARRIVALS_PER_SECOND)
        body = {"model": "gpt-image-1.5", "prompt": f"Otter {number} of a crowd, {salt}"}
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

    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        await asyncio.gather(*(ask(session, number) for number in range(count)))
    return {"statuses": statuses, "least_bytes": min(sizes, default=0)}


def main() -> None:
    """Asks once."""
    count, url, *lines = sys.argv[1:]
    raise_descriptor_limit()
    os.nice(LOW_PRIORITY)
    headers = dict(line.split(": ", 1) for line in lines)
    print(json.dumps(uvloop.run(ask_at_once(int(count), url, headers))))  # noqa: T201


if __name__ == "__main__":
    main()
