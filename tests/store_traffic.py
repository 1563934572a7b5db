"""Hits by wrk and purchases by clients while the servers of Redis change, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.gateways import Client, Processes, Upstream, run_processes, run_upstream
from tests.waiting import eventually
from tests.wrk import Flood, find_wrk, flood


@dataclass
class Buyers:
    """Clients that buy one distinct image after the other."""

    client: Client
    replies: list[tuple[float, float, str, int]] = field(default_factory=list)
    """When each was sent and answered, its prompt, and the status."""
    _count: int = 0

    async def buy(self) -> None:
        while True:
            self._count += 1
            prompt, began = f"otter {self._count}", time.monotonic()
            reply = await self.client.ask(prompt)
            self.replies.append((began, time.monotonic(), prompt, reply.status))
            await asyncio.sleep(0.02)

    def first_after(self, moment: float) -> float:
        """Seconds until the first answer with an image to a request that was sent after it."""
        answered = [
            end for began, end, _, status in self.replies if began > moment and status == 200
        ]
        return min(answered, default=float("inf")) - moment

    def longest_gap(self, since: float) -> float:
        """The longest time, in seconds, in which no purchase was answered with an image."""
        ends = sorted(end for _, end, _, status in self.replies if end > since and status == 200)
        return max((after - before for before, after in pairwise([since, *ends])), default=0.0)

    @property
    def acknowledged(self) -> set[str]:
        return {prompt for _, _, prompt, status in self.replies if status == 200}

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for *_, status in self.replies)


@dataclass
class Traffic:
    """Gateways of two workers under hits by wrk and purchases by eight clients."""

    processes: Processes
    client: Client
    upstream: Upstream
    buyers: Buyers
    tasks: list[asyncio.Task[None]]
    stop_hits: Callable[[], Awaitable[Flood]]

    async def settle(self) -> str:
        """Ends the traffic, and checks that nothing was lost or doubled; returns a summary."""
        hits = await self.stop_hits()
        for task in self.tasks:
            task.cancel()
        bought = self.buyers.acknowledged
        await eventually(self._has_settled)
        calls = Counter(body["prompt"] for body in await self.upstream.bodies())
        records = [r for r in await self.processes.ledger() if r.outcome == "bought"]
        again = [await self.client.ask(prompt) for prompt in sorted(bought)]
        kept = sum("hit" in reply.cache_status for reply in again)
        verified = await self.processes.run("ledger", "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert kept == len(bought)
        assert all(calls[prompt] == 1 for prompt in bought)
        assert len(records) == len({record.id for record in records}) >= len(bought)
        return f"hits: {hits}; purchases by status: {dict(self.buyers.statuses)}"

    async def _has_settled(self) -> bool:
        records = [r for r in await self.processes.ledger() if r.outcome == "bought"]
        return len(records) >= len(self.buyers.acknowledged)


@asynccontextmanager
async def traffic(folder: Path, redis_url: str) -> AsyncIterator[Traffic]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(run_upstream())
        processes, client = await stack.enter_async_context(
            run_processes(folder, upstream.base_url, workers=2, redis_url=redis_url)
        )
        # With a budget no request is answered without the store.
        keyed = await client.with_key(limits={"usd_per_day": 1000})
        await keyed.ask("a cached otter")
        hits = flood(find_wrk(), keyed, {"model": "gpt-image-1", "prompt": "a cached otter"},
                     keep_alive=True)  # fmt: skip
        stop_hits = await stack.enter_async_context(hits)
        buyers = Buyers(keyed)
        tasks = [asyncio.create_task(buyers.buy()) for _ in range(8)]
        await asyncio.sleep(1)
        try:
            yield Traffic(processes, keyed, upstream, buyers, tasks, stop_hits)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def show(text: str) -> None:
    print(f"\n{text}")  # noqa: T201 - the figures of this test
