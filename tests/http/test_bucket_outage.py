"""An unavailable bucket while images are bought: no answered purchase is lost."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.store.batch import execute
from gateway.store.commands import OpenJournals
from tests.bucket_servers import CREDENTIALS, run_bucket_server
from tests.gateways import Client, InProcess, Reply, make_settings, read_spent, run_gateway
from tests.local_server import serve
from tests.pngs import write_png
from tests.waiting import eventually

MODEL = "dall-e-2"
MICROS = 20_000
"""What an image of `MODEL` costs."""


@dataclass(frozen=True)
class Load:
    """The purchases, and how long the bucket is unavailable meanwhile."""

    purchases: int
    image_bytes: int
    outage_seconds: float
    clients: int


SMALL = Load(purchases=24, image_bytes=200_000, outage_seconds=1.0, clients=8)
LARGE = Load(purchases=500, image_bytes=2_000_000, outage_seconds=30.0, clients=16)


def upstream_of(size_bytes: int) -> web.Application:
    """An upstream whose every answer is another image of this size."""

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        image = await asyncio.to_thread(
            lambda: base64.b64encode(write_png(1024, 1024, os.urandom(size_bytes))).decode()
        )
        return web.json_response({"created": int(time.time()), "data": [{"b64_json": image}]})

    app = web.Application()
    app.router.add_post("/v1/images/generations", answer)
    return app


async def buy(client: Client, number: int, **body: Any) -> Reply:
    return await client.ask(f"image {number}", model=MODEL, size="1024x1024", **body)


def digests_of(reply: Reply) -> str:
    return hashlib.sha256(base64.b64decode(reply.images[0])).hexdigest()


@pytest.mark.parametrize("load", [SMALL, pytest.param(LARGE, marks=pytest.mark.long)])
@pytest.mark.timed
@pytest.mark.timeout(600)
async def test_no_answered_purchase_is_lost_while_the_bucket_is_unavailable(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Purchases are answered meanwhile, without `stored`, and settled when the bucket is back."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    replies: dict[int, Reply] = {}
    bought_while_away: list[Reply] = []
    is_away, outage = False, asyncio.Event()
    (tmp_path / "buckets").mkdir()
    with run_bucket_server(tmp_path / "buckets") as server, capture_logs() as logs:
        async with serve(upstream_of(load.image_bytes)) as upstream:
            settings = make_settings(
                tmp_path / "data",
                f"{upstream}/v1",
                store={"blobs_url": server.url("images")},
                cache={"links": "redirect"},
            )
            async with run_gateway(settings) as here:
                alice = await here.client.with_key()
                numbers = iter(range(load.purchases))

                async def client() -> None:
                    for number in numbers:
                        if number >= load.purchases // 2:
                            await outage.wait()
                        began_away = is_away
                        replies[number] = await buy(alice, number, response_format="b64_json")
                        if began_away and is_away:
                            bought_while_away.append(replies[number])

                clients = asyncio.gather(*(client() for _ in range(load.clients)))
                await eventually(lambda: len(replies) >= load.purchases // 5, seconds=120)
                server.stop()
                is_away = True
                outage.set()
                await asyncio.sleep(load.outage_seconds)
                await eventually(lambda: bought_while_away, seconds=60)
                hits = [
                    await buy(alice, n, response_format="b64_json") for n in sorted(replies)[-3:]
                ]
                is_away = False
                await asyncio.to_thread(server.start)
                await clients
                await _until_settled(here)

                records = await here.ledger()
                links = [await buy(alice, n, response_format="url") for n in range(load.purchases)]
                shown = [await _follow(alice, link) for link in links]
            spent = await read_spent(settings, alice.key_id)

    assert {reply.status for reply in replies.values()} == {200}
    assert len(replies) == load.purchases
    assert not any("stored" in reply.cache_status for reply in bought_while_away)
    assert {hit.cache_status.partition(";")[0] for hit in hits} == {"hit"}
    # Every image is in the bucket, behind a redirect, with the bytes of its first answer.
    assert {reply.cache_status.partition(";")[0] for reply in links} == {"hit"}
    assert [hashlib.sha256(data).hexdigest() for data in shown] == [
        digests_of(replies[number]) for number in range(load.purchases)
    ]
    # Each was bought once and charged once.
    assert sum(record.outcome == "bought" for record in records) == load.purchases
    assert (spent.usd_micros, spent.images) == (load.purchases * MICROS, load.purchases)
    assert (spent.reserved_micros, spent.reserved_images) == (0, 0)
    events = [line["event"] for line in logs if line.get("holds") == "bytes"]
    assert events[0] == "store_unavailable"
    assert len(events) < 12


async def _until_settled(here: InProcess) -> None:
    async def has_none_open() -> bool:
        return not await execute(here.gateway.store, OpenJournals())

    await eventually(has_none_open, seconds=120)


async def _follow(alice: Client, reply: Reply) -> bytes:
    """The bytes of a link, from the bucket."""
    link = reply.json["data"][0]["url"]
    async with alice.session.get(link) as shown:
        assert [each.status for each in shown.history] == [302]
        assert shown.status == 200
        return await shown.read()
