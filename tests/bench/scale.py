"""Whether a hit takes longer in a store with very many entries than in one with a thousand.

Two gateways buy the same thousand images, and are then measured in turn with hits on them. The
store of one has many more entries, written as a purchase writes them. The bytes of those images
are left out, because no hit reads the bytes of others.
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
from tests.bench.load import KNOWN_IMAGES, Failed, Target, known_prompt, run_wrk
from tests.bench.servers import Setup, run_gateway
from tests.gateways import SHIPPED, make_settings

BATCH_SIZE = 250
"""The number of entries written in one round trip."""

CELL = Cell("hit", "2 KB", 16)
FEW, MANY = "few", "many"


def scale_rows(folder: Path, setup: Setup, *, entries: int, seconds: int) -> Iterator[Row]:
    """A row for each store. In the Redis of `setup`, each gateway has its own database."""
    redis = setup.redis_url.rpartition("/")[0]
    urls: dict[str, Sequence[str | None]] = {
        "Redis": (f"{redis}/1", f"{redis}/2"),
        "embedded": (None, None),
    }
    for store, (few, many) in urls.items():
        print(f"{entries:,} entries, {store} …", file=sys.stderr)  # noqa: T201
        own_folder = folder / f"scale-{store}"
        own_folder.mkdir()
        with ExitStack() as stack:
            own_setup = replace(setup, folder=own_folder)
            _fill(make_settings(own_folder / MANY / "data", setup.upstream, many), entries)
            targets = [
                stack.enter_context(run_gateway(own_setup, name, url))
                for name, url in ((FEW, few), (MANY, many))
            ]
            for target in targets:
                asyncio.run(_buy_all(target))
            yield scale_row(store, entries, KNOWN_IMAGES, _ratios(targets, seconds))


def _ratios(targets: Sequence[Target], seconds: int) -> list[float]:
    """Ratios of hit rates, measured for a second each, one right after the other."""
    pairs = [
        [
            run_wrk(target, CELL, seconds=1, known_images=KNOWN_IMAGES).per_second
            for target in targets
        ]
        for _ in range(2 * seconds)
    ]
    return [few / many for few, many in pairs]


# ── filling the stores ──────────────────────────────────────────────────────────────────────


async def _buy_all(target: Target) -> None:
    """Buys the images that are requested later, over HTTP."""
    connector = aiohttp.TCPConnector(limit=CELL.connections)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:

        async def buy(number: int) -> None:
            body = {
                "model": "gpt-image-2",
                "prompt": known_prompt(number),
                "size": "1024x1024",
                "quality": "high",
            }
            async with session.post(target.url, json=body) as response:
                if response.status != HTTPStatus.OK:
                    raise Failed(f"{target.name} sold no image: {await response.text()}")

        await asyncio.gather(*(buy(number) for number in range(KNOWN_IMAGES)))


def _fill(settings: Settings, entries: int) -> None:
    """Writes entries with an image each, as `purchase` stores a bought image."""
    prepare(settings)
    asyncio.run(_write_all(settings, entries - KNOWN_IMAGES))


async def _write_all(settings: Settings, entries: int) -> None:
    async with open_running_gateway(settings, SHIPPED) as gateway:
        for start in range(0, entries, BATCH_SIZE):
            await _write(gateway, min(BATCH_SIZE, entries - start))


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
        model="gpt-image-2",
        cost_micros=211_000,
    )
