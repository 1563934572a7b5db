"""Take-down by one is take-down by all: every worker, every memory, within a second."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from itertools import product
from pathlib import Path

import pytest

from tests.gateways import (
    Client,
    InProcess,
    Processes,
    Reply,
    Upstream,
    open_to_each,
    run_processes,
)
from tests.http.conftest import OpenGateway

MODEL = "dall-e-3"
WORKERS = 4
VARIANTS = list(product(("standard", "hd"), ("vivid", "natural")))
"""As many questions as there are workers; upstream answers all of them with the same bytes."""

TakeDown = Callable[[str], Awaitable[int]]
"""Takes down the image of a link; answers how many went."""


async def show(client: Client, link: str) -> Reply:
    async with client.session.get(link) as response:
        return Reply(response.status, response.headers, await response.read())


async def buy(client: Client, prompt: str, variant: tuple[str, str]) -> Reply:
    quality, style = variant
    return await client.ask(
        f"[[sim:same-bytes]] {prompt}", model=MODEL, quality=quality, style=style
    )


def by_admin(client: Client) -> TakeDown:
    """Through the admin API, of whichever worker takes the call."""

    async def take_down(link: str) -> int:
        reply = await client.admin("POST", "/admin/cache/takedown", {"image": link})
        return int(reply.json["images"])

    return take_down


def by_command(processes: Processes) -> TakeDown:
    """By `gateway cache takedown`, a process that no worker hears of but through the store."""

    async def take_down(link: str) -> int:
        told = await processes.run("cache", "takedown", link)
        assert told.returncode == 0, told.stderr
        return int(told.stdout.split()[0])

    return take_down


@pytest.mark.timed
async def test_a_image_that_was_taken_down_is_gone_from_four_workers_within_a_second(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=WORKERS, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        async with open_to_each(processes, alice, workers=WORKERS) as workers:
            await assert_gone_everywhere(workers, processes, "a pond", by_admin(alice))
            await assert_gone_everywhere(workers, processes, "a lake", by_command(processes))


async def assert_gone_everywhere(
    workers: Mapping[int, Client], processes: Processes, prompt: str, take_down: TakeDown
) -> None:
    """Every worker has the image in its memory, and a second later none has, nor takes it."""
    bought = await buy(next(iter(workers.values())), prompt, VARIANTS[0])
    link = bought.json["data"][0]["url"]
    before = [await show(worker, link) for worker in workers.values()]
    assert await take_down(link) == 1
    await asyncio.sleep(1.0)
    after = [await show(worker, link) for worker in workers.values()]
    again = [
        await buy(worker, prompt, variant)
        for worker, variant in zip(workers.values(), VARIANTS, strict=True)
    ]

    assert [reply.status for reply in before] == [200] * WORKERS
    assert [(reply.status, reply.error["code"]) for reply in after] == [
        (410, "image_gone")
    ] * WORKERS
    assert [(reply.status, reply.error["code"]) for reply in again] == [
        (403, "content_taken_down")
    ] * WORKERS
    assert {reply.headers["x-gateway-cost-usd"] for reply in again} <= {"0.040000", "0.080000"}
    for replies in (before, after, again):
        assert [processes.worker_of(reply) for reply in replies] == list(workers)


@pytest.mark.timed
async def test_it_leaves_the_memory_of_a_gateway_that_was_not_asked(
    open_gateway: OpenGateway,
) -> None:
    """In both views, and without anybody asking for the image again."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        also_alice = Client(there.client.url, there.client.session, alice.secret)
        link = (await buy(alice, "a pond", VARIANTS[0])).json["data"][0]["url"]
        for client in (alice, also_alice):
            await client.ask("[[sim:same-bytes]] a pond", model=MODEL, response_format="b64_json")
        data = (await show(alice, link)).body
        elsewhere = link.replace(here.client.url, there.client.url)
        assert (await show(also_alice, elsewhere)).body == data
        digest = hashlib.sha256(data).hexdigest()
        held_before = [views_of(each, digest) for each in (here, there)]

        await by_admin(alice)(link)
        held_here = views_of(here, digest)
        await asyncio.sleep(1.0)
        held_there = views_of(there, digest)

    assert held_before == [2, 2]
    assert held_here == held_there == 0


def views_of(gateway: InProcess, digest: str) -> int:
    """How many views of an image a gateway has in its memory."""
    memory = gateway.gateway.cache.blobs._memory
    return sum(memory.get(digest, view) is not None for view in ("data", "base64"))
