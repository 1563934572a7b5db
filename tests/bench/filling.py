"""Fills a store with entries, keys and ledger records, by the commands that a gateway sends.

The store's gateways may run meanwhile: this is one more process on the same store.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeVar

from gateway.access.audit import Actor
from gateway.access.key_records import KeySpec
from gateway.assembly import Gateway
from gateway.configuration.settings import Settings
from gateway.errors import GatewayError, StoreUnavailable
from gateway.images import Image
from gateway.maintenance import open_running_gateway
from gateway.process.bootstrap import prepare
from gateway.store.batch import Batch
from tests.bench.load import Failed
from tests.gateways import SHIPPED
from tests.month import KEYS, RecordWriter, traffic

BATCH: Final = 100
"""Entries of one call of the store."""
AT_ONCE: Final = 4
"""Calls. While the store executes some, this process encodes others. Concurrent calls share a round
trip or a transaction, which must not take two seconds, on a slow machine either."""
ATTEMPTS: Final = 10
PAUSE_SECONDS: Final = 1.0
KEYS_AT_ONCE: Final = 64
MONTH_SECONDS: Final = 30 * 86_400
T = TypeVar("T")
_ACTOR: Final = Actor(via="cli", by="bench")


def fill_entries(settings: Settings, count: int) -> None:
    """Writes `count` entries of one image each, as a purchase does, but without their bytes.

    No hit reads the bytes of other images.
    """

    async def fill(gateway: Gateway) -> None:
        sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
        await _in_turn(sizes, lambda size: _write_entries(gateway, size), at_once=AT_ONCE)

    _run(settings, fill)


def create_keys(settings: Settings, count: int, limits: Mapping[str, int]) -> list[str]:
    """Creates keys with these limits; returns their secrets."""
    found: list[str] = []

    async def fill(gateway: Gateway) -> None:
        async def create(number: int) -> None:
            spec = KeySpec(name=f"{secrets.token_hex(8)}-{number}", limits=limits)
            _, secret = await gateway.services.keys.create(spec, actor=_ACTOR)
            found.append(secret)

        await _in_turn(range(count), create, at_once=KEYS_AT_ONCE)

    _run(settings, fill)
    return found


def write_records(settings: Settings, count: int) -> None:
    """Writes the records of `count` requests of the last 30 days to the ledger."""

    async def fill(gateway: Gateway) -> None:
        now = time.time()
        since = now - MONTH_SECONDS

        async def write(share: int) -> None:
            # Its own seed, so that no two writers have a purchase of the same id.
            seed = secrets.randbits(63)
            records = traffic(since, now, seed=seed, requests=share, keys=KEYS)
            await RecordWriter(gateway.store).write(records)

        shares = [count // AT_ONCE + (number < count % AT_ONCE) for number in range(AT_ONCE)]
        await asyncio.gather(*map(write, shares))

    _run(settings, fill)


def _run(settings: Settings, fill: Callable[[Gateway], Awaitable[None]]) -> None:
    """Raises `Failed` if the store is not available."""

    async def run() -> None:
        async with open_running_gateway(settings, SHIPPED) as gateway:
            await fill(gateway)

    prepare(settings)
    try:
        asyncio.run(run())
    except GatewayError as error:
        raise Failed(f"the store could not be filled: {error}") from error


async def _in_turn(
    items: Iterable[T], write: Callable[[T], Awaitable[None]], *, at_once: int
) -> None:
    """Writes every item, `at_once` of them at a time."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await _write_patiently(lambda item=item: write(item))

    await asyncio.gather(*(work() for _ in range(at_once)))


async def _write_patiently(write: Callable[[], Awaitable[None]]) -> None:
    """Repeats what timed out, which the store may still have executed: there may be a few more."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await write()
        except StoreUnavailable:
            await asyncio.sleep(PAUSE_SECONDS)
    return await write()


async def _write_entries(gateway: Gateway, count: int) -> None:
    batch = Batch(gateway.store)
    for _ in range(count):
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
