"""Whether a hit takes longer where very many entries are than where a thousand are.

Two gateways are asked in turn for the same thousand images, which they have bought themselves;
one of them has many more entries, as a purchase writes them, in its store. Only the bytes of those
images are left out: no hit looks at the bytes of others.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import aiohttp

from gateway.assembly import Gateway
from gateway.configuration.settings import Settings
from gateway.images import Image
from gateway.maintenance import open_running_gateway
from gateway.process.bootstrap import prepare
from gateway.store.batch import Batch
from tests.bench.cells import Cell, Row, scale_row
from tests.bench.load import AMONG, Failed, Target, ask_for, known_prompt
from tests.bench.servers import Ground, run_gateway
from tests.gateways import SHIPPED, make_settings

A_BATCH = 250
"""Entries that are written in one round trip."""

CELL = Cell("hit", "2 KB", 16)
FEW, MANY = "few", "many"


def scale_rows(folder: Path, ground: Ground, *, entries: int, seconds: int) -> Iterator[Row]:
    """A row for each store; the Redis of `ground` holds both sets in databases of their own."""
    redis = ground.redis_url.rpartition("/")[0]
    urls: dict[str, Sequence[str | None]] = {
        "Redis": (f"{redis}/1", f"{redis}/2"),
        "embedded": (None, None),
    }
    for store, (few, many) in urls.items():
        print(f"{entries:,} entries, {store} …", file=sys.stderr)  # noqa: T201
        place = folder / f"scale-{store}"
        place.mkdir()
        with ExitStack() as stack:
            own = replace(ground, folder=place)
            _fill(make_settings(place / MANY / "data", ground.upstream, many), entries)
            targets = [
                stack.enter_context(run_gateway(own, name, url))
                for name, url in ((FEW, few), (MANY, many))
            ]
            for target in targets:
                asyncio.run(_buy_all(target))
            yield scale_row(store, entries, AMONG, _ratios(targets, seconds))


def _ratios(targets: Sequence[Target], seconds: int) -> list[float]:
    """How much longer a hit takes, a second each, one right after the other."""
    pairs = [
        [ask_for(target, CELL, seconds=1, among=AMONG).per_second for target in targets]
        for _ in range(2 * seconds)
    ]
    return [few / many for few, many in pairs]


# ── what is in the stores ───────────────────────────────────────────────────────────────────


async def _buy_all(target: Target) -> None:
    """The images that are asked for later, bought through the front door."""
    connector = aiohttp.TCPConnector(limit=CELL.connections)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:

        async def buy(number: int) -> None:
            body = {
                "model": "gpt-image-1.5",
                "prompt": known_prompt(number),
                "size": "1024x1024",
                "quality": "high",
            }
            async with session.post(target.url, json=body) as response:
                if response.status != HTTPStatus.OK:
                    raise Failed(f"{target.name} sold no image: {await response.text()}")

        await asyncio.gather(*(buy(number) for number in range(AMONG)))


def _fill(settings: Settings, entries: int) -> None:
    """Writes entries with an image each, as `purchase` does when one was bought."""
    prepare(settings)
    asyncio.run(_write_all(settings, entries - AMONG))


async def _write_all(settings: Settings, entries: int) -> None:
    async with open_running_gateway(settings, SHIPPED) as gateway:
        for start in range(0, entries, A_BATCH):
            await _write(gateway, min(A_BATCH, entries - start))


async def _write(gateway: Gateway, entries: int) -> None:
    batch = Batch(gateway.store)
    for _ in range(entries):
        fingerprint, images = secrets.token_hex(32), {0: _image()}
        gateway.cache.image_cache.store_images(
            batch, fingerprint, images, lease=secrets.token_hex(12)
        )
    await batch.execute()


def _image() -> Image:
    return Image(
        id=secrets.token_hex(12),
        digest=secrets.token_hex(32),
        format="png",
        width=1024,
        height=1024,
        size_bytes=1500,
        created_at=time.time(),
        model="gpt-image-1.5",
        cost_micros=133_000,
    )
