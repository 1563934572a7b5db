"""Purges of more entries than one request may walk over."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from gateway.cache import transcoding
from gateway.cache.entries import encode_image
from gateway.cache.purges import MAX_FIRST_ENTRIES, TURNS, Purges
from gateway.errors import GatewayError
from gateway.imagefile.convert import transcode_image
from gateway.images import Image
from gateway.store.batch import execute
from gateway.store.commands import AddToSet, DeleteValue, ReadEntry, Slot, StoreImages
from tests.gateways import Client, InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway
from tests.waiting import eventually

MODEL = "gpt-image-1-mini"
MANY = MAX_FIRST_ENTRIES + 1500
HOUR = 3600.0

NAMED = [{"tag": "sale"}, {"model": MODEL}, {"all": True}]


async def fill(gateway: InProcess, count: int = MANY, *, model: str = MODEL) -> list[str]:
    """So many entries with an image of a model and the tag `sale`. Returns their fingerprints."""
    fingerprints = [f"{n:064x}" for n in range(count)]
    image = encode_image(Image("i", "0" * 64, "png", 1, 1, 1, 0.0, model=model))
    for first in range(0, count, 500):
        page = fingerprints[first : first + 500]
        slots = {0: Slot("i", 0.0, image)}
        await gateway.gateway.store.execute(
            [
                *(StoreImages(name, "flight", slots, HOUR, HOUR) for name in page),
                AddToSet("tags", "sale", tuple(page), HOUR),
            ]
        )
    return fingerprints


async def ask(client: Client, prompt: str) -> Reply:
    headers = {"X-Gateway-Tags": "sale"}
    return await client.ask(prompt, model=MODEL, headers=headers)


async def until_done(client: Client, purge: Reply) -> Reply:
    """The progress of a purge when it is done."""

    async def look() -> Reply | None:
        reply = await client.admin("GET", f"/admin/cache/purges/{purge.json['id']}")
        return reply if reply.json["done"] else None

    return await eventually(look)


@pytest.mark.parametrize("named", NAMED, ids=lambda named: next(iter(named)))
async def test_a_large_purge_holds_on_every_worker_when_it_is_answered(
    named: dict[str, object], gateway: InProcess, alice: Client, open_gateway: OpenGateway
) -> None:
    await fill(gateway)
    async with open_gateway() as other:
        client, there = alice, replace(alice, url=other.client.url)
        first = await ask(client, "a pond")
        assert (await ask(client, "a pond")).cache_status.startswith("hit")
        purge = await client.admin("POST", "/admin/cache/purge", named)
        again = await ask(there, "a pond")
        done = await until_done(client, purge)
        kept = await ask(client, "a pond")

    assert (purge.status, purge.json["done"]) == (202, False)
    assert again.cache_status == "fwd=miss; stored"
    assert again.images != first.images
    assert done.status == 200
    assert done.json["images"] in (MANY, MANY + 1)  # the request may have emptied its slot itself
    assert kept.cache_status.startswith("hit")
    assert kept.images == again.images


async def test_a_purchase_under_way_stores_after_a_large_purge(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    await fill(gateway)
    async with upstream.hold() as gate:
        asking = asyncio.create_task(ask(alice, "a pond"))
        await upstream.until_sent()
        purge = await alice.admin("POST", "/admin/cache/purge", {"all": True})
        gate.open()
        bought = await asking
    await until_done(alice, purge)
    again = await ask(alice, "a pond")

    assert again.cache_status.startswith("hit")
    assert again.images == bought.images


async def test_a_large_purge_of_a_tag_or_model_leaves_the_others(
    gateway: InProcess, alice: Client
) -> None:
    await fill(gateway)
    other = await alice.ask("a lake", model="gpt-image-2")
    for named in ({"tag": "sale"}, {"model": MODEL}):
        purge = await alice.admin("POST", "/admin/cache/purge", named)
        meanwhile = await alice.ask("a lake", model="gpt-image-2")
        await until_done(alice, purge)
        assert meanwhile.cache_status.startswith("hit")
        assert meanwhile.images == other.images


async def test_another_worker_continues_the_purge_of_one_that_died(
    gateway: InProcess, alice: Client
) -> None:
    fingerprints = await fill(gateway, 3000)
    store, cache = gateway.gateway.store, gateway.gateway.cache
    dead = Purges(store, cache.image_cache, cache.purges._markers)
    marker = await dead._markers.add("purge_of_the_dead", "tag", "sale")
    progress = await dead.walk(marker)
    assert progress is not None
    assert not progress.done
    assert await cache.purges.walk(marker) is None  # while the turn of the dead worker lasts
    await execute(store, DeleteValue(TURNS, marker.id))  # as when it has expired
    await eventually(lambda: _is_over(gateway, marker.id))

    entries = await store.execute([ReadEntry(name) for name in fingerprints])
    assert not any(entry.slots for entry in entries)
    assert (await cache.purges.find(marker.id)).images == 3000


async def test_the_job_of_the_same_worker_does_not_walk_beside_the_request(
    gateway: InProcess,
) -> None:
    """Both would count a page, and the one that found it empty could be saved last."""
    await fill(gateway)
    purges = gateway.gateway.cache.purges
    starting = asyncio.create_task(purges.start("tag", "sale"))
    while not starting.done():
        await purges.run(max_pages=1)
        await asyncio.sleep(0)  # without a marker it asks the store nothing
    purge_id = (await starting).id
    await execute(gateway.gateway.store, DeleteValue(TURNS, purge_id))  # as when it has expired
    await eventually(lambda: _is_over(gateway, purge_id))

    assert (await purges.find(purge_id)).images == MANY


async def _is_over(gateway: InProcess, purge_id: str) -> bool:
    purges = gateway.gateway.cache.purges
    return (await purges.find(purge_id)).done and not await purges._markers.running()


async def test_a_small_purge_is_done_when_it_is_answered_and_its_progress_can_be_read(
    alice: Client,
) -> None:
    bought = await ask(alice, "a pond")
    fingerprint = bought.cache_status and bought.headers["Cache-Status"].partition('key="')[2][:-1]
    for named in (*NAMED, {"fingerprint": fingerprint}):
        purge = await alice.admin("POST", "/admin/cache/purge", named)
        found = await alice.admin("GET", f"/admin/cache/purges/{purge.json['id']}")
        assert (purge.status, purge.json["images"], purge.json["done"]) == (200, 1, True)
        assert (found.status, found.json) == (200, purge.json)
        assert (await ask(alice, "a pond")).cache_status == "fwd=miss; stored"


async def test_an_unknown_purge_is_not_found(alice: Client) -> None:
    reply = await alice.admin("GET", "/admin/cache/purges/purge_x")
    assert (reply.status, reply.error["code"]) == (404, "purge_not_found")


async def test_purges_under_way_are_bounded(gateway: InProcess, alice: Client) -> None:
    """They are read by every look-up. Those beyond are refused, and leave nothing."""
    markers = gateway.gateway.cache.purges._markers
    outcomes = await asyncio.gather(
        *(markers.add(f"purge_{n}", "tag", "none") for n in range(12)), return_exceptions=True
    )
    refused = [outcome.status for outcome in outcomes if isinstance(outcome, GatewayError)]
    assert refused == [503] * 4


@pytest.mark.parametrize("named", [{"model": "gpt-image-2"}, {"all": True}])
async def test_an_image_that_is_transcoded_meanwhile_is_purged_with_its_source(
    named: dict[str, object], open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody pays for it while the purge runs: it is the old image in another format."""
    begun, gate = threading.Event(), threading.Event()

    def convert(png: bytes, **options: Any) -> bytes | None:
        begun.set()
        gate.wait()
        return transcode_image(png, **options)

    monkeypatch.setattr(transcoding, "transcode_in_process", convert)
    async with open_gateway(cache={"derive_formats": True}) as gateway:
        alice = await gateway.client.with_key("alice")
        await alice.ask("a pond")
        asking = asyncio.create_task(alice.ask("a pond", output_format="jpeg"))
        await eventually(begun.is_set)
        purge = await alice.admin("POST", "/admin/cache/purge", named)
        gate.set()
        transcoded = await asking
        again = await alice.ask("a pond", output_format="jpeg")

    assert purge.json["done"]
    assert transcoded.status == 200
    assert again.cache_status == "fwd=miss; stored"
