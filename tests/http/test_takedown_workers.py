"""A take-down in one worker applies in all workers, also in their memory, within a second."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from gateway.images import Representation
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
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually, generous

MODEL = "dall-e-3"
WORKERS = 4
VARIANTS = list(product(("standard", "hd"), ("vivid", "natural")))
"""One for each worker; upstream answers all of them with the same bytes."""

TakeDown = Callable[[str], Awaitable[int]]
"""Takes down the image of a link; returns how many images were taken down."""


async def show(client: Client, link: str) -> Reply:
    async with client.session.get(link) as response:
        return Reply(response.status, response.headers, await response.read())


async def buy(client: Client, prompt: str, variant: tuple[str, str]) -> Reply:
    quality, style = variant
    return await client.ask(
        f"[[sim:same-bytes]] {prompt}", model=MODEL, quality=quality, style=style
    )


def by_admin(client: Client) -> TakeDown:
    """By the admin API of one of the workers."""

    async def take_down(link: str) -> int:
        reply = await client.admin("POST", "/admin/cache/takedown", {"image": link})
        return int(reply.json["images"])

    return take_down


def by_command(processes: Processes) -> TakeDown:
    """By `gateway cache takedown`, which reaches the workers only through the store."""

    async def take_down(link: str) -> int:
        command = await processes.run("cache", "takedown", link)
        assert command.returncode == 0, command.stderr
        return int(command.stdout.split()[0])

    return take_down


@pytest.mark.timed
@usually_on("redis", more=TOPOLOGIES)
async def test_a_take_down_applies_in_four_workers_within_a_second(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=WORKERS, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        async with open_to_each(processes, alice, workers=WORKERS) as workers:
            await assert_taken_down_everywhere(workers, processes, "a pond", by_admin(alice))
            await assert_taken_down_everywhere(workers, processes, "a lake", by_command(processes))


async def assert_taken_down_everywhere(
    workers: Mapping[int, Client], processes: Processes, prompt: str, take_down: TakeDown
) -> None:
    """Every worker has the image in memory; a second later none serves or stores it."""
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
        assert [await processes.worker_of(reply) for reply in replies] == list(workers)


@pytest.mark.timed
async def test_a_take_down_clears_the_memory_of_other_gateways(
    open_gateway: OpenGateway,
) -> None:
    """In both representations, without another request for the image."""
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
        before = [representations_of(each, digest) for each in (here, there)]

        await by_admin(alice)(link)
        here_after = representations_of(here, digest)
        await asyncio.sleep(1.0)
        there_after = representations_of(there, digest)

    assert before == [2, 2]
    assert here_after == there_after == 0


@usually_on("sqlite")
async def test_a_deletion_that_hangs_delays_no_other_take_down(open_gateway: OpenGateway) -> None:
    """A bucket that is away may be waited for half a minute."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        links, digests = [], []
        for prompt in ("a pond", "a lake"):
            reply = await alice.ask(prompt, model=MODEL)
            links.append(reply.json["data"][0]["url"])
            digests.append(hashlib.sha256((await show(alice, links[-1])).body).hexdigest())
        hanging, is_back = asyncio.Event(), asyncio.Event()
        deleting = there.gateway.blob_store.delete

        async def delete(digest: str) -> None:
            hanging.set()
            await is_back.wait()
            await deleting(digest)

        there.gateway.blob_store.delete = delete  # type: ignore[method-assign]
        blobs = there.gateway.cache.blobs
        try:
            await by_admin(alice)(links[0])
            async with generous():
                await hanging.wait()
            await by_admin(alice)(links[1])
            await eventually(lambda: all(map(blobs.is_taken_down, digests)))
        finally:
            is_back.set()


def representations_of(gateway: InProcess, digest: str) -> int:
    """The number of representations of an image in a gateway's memory."""
    memory = gateway.gateway.cache.blobs._memory
    return sum(memory.get(digest, kind) is not None for kind in get_args(Representation))
