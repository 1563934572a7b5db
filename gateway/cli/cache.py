"""`gateway cache`: statistics and invalidation of a running gateway's cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click

from gateway.access.audit import Audit
from gateway.cache.invalidation import Invalidation, shown_image
from gateway.cache.purges import Purge
from gateway.cli.options import (
    command_actor,
    config_option,
    find_configuration,
    format_option,
)
from gateway.cli.output import errors_as_messages, show
from gateway.cli.store import print_name
from gateway.configuration.files import Configuration
from gateway.store.protocol import Store
from gateway.wiring.cache import Cache, open_cache

PROGRESS_PAGES: Final = 50
PROGRESS_SECONDS: Final = 1.0
"""How often a purge that takes long says how far it is."""

COLUMNS: Final = ("images", "bytes", "total_bytes")


@click.group()
def cache() -> None:
    """Cached images: how many, and how to remove them."""


@cache.command("stats")
@config_option
@format_option
def show_stats(config: Path | None, output_format: str) -> None:
    """Shows the number of cached images, their bytes, and the bound."""
    show([asyncio.run(_read_stats(config))], output_format, columns=COLUMNS)


@cache.command("purge")
@click.option("--fingerprint", help="The key in Cache-Status.")
@click.option("--tag", help="A tag of X-Gateway-Tags.")
@click.option("--model", help="All images of this model.")
@click.option("--all", "is_all", is_flag=True, help="All images.")
@config_option
def purge(
    fingerprint: str | None,
    tag: str | None,
    model: str | None,
    is_all: bool,
    config: Path | None,
) -> None:
    """Purges images: the next request buys again. Links to purged images continue to work."""
    options = {"fingerprint": fingerprint, "tag": tag, "model": model}
    named = {name: value for name, value in options.items() if value is not None}
    if len(named) + is_all != 1:
        raise click.UsageError("Name exactly one of --fingerprint, --tag, --model, --all.")

    def remove(invalidation: Invalidation) -> Awaitable[Purge]:
        if fingerprint is not None:
            return invalidation.purge_fingerprint(fingerprint)
        if tag is not None:
            return invalidation.purge_tag(tag)
        if model is not None:
            return invalidation.purge_model(model)
        return invalidation.purge_all()

    kind, value = next(iter(named.items()), ("all", ""))
    purged_object = f"{kind}:{value}" if value else kind
    count = asyncio.run(_invalidate(config, remove, action="cache.purge", named=purged_object))
    click.echo(f"{count} images are no longer in the cache.")


@cache.command("takedown")
@click.argument("image", metavar="LINK|ID|FINGERPRINT/SLOT")
@click.option("--prompt", is_flag=True, help="Also refuse the request that it answered.")
@config_option
def take_down(image: str, prompt: bool, config: Path | None) -> None:
    """Removes an image everywhere and permanently; its links answer 410."""

    def remove(invalidation: Invalidation) -> Awaitable[Purge]:
        return invalidation.take_down(image, with_prompt=prompt)

    taken_down = f"image:{shown_image(image)}"
    count = asyncio.run(
        _invalidate(config, remove, action="cache.takedown", named=taken_down, prompt=prompt)
    )
    click.echo(f"{count} images are taken down.")


async def _invalidate(
    config: Path | None,
    remove: Callable[[Invalidation], Awaitable[Purge]],
    *,
    action: str,
    named: str,
    **more: bool,
) -> int:
    """How many images were removed. A long purge is finished here or by a running gateway."""
    async with _open_cache(find_configuration(config)) as (store, cache):
        purge = await remove(cache.invalidation)
        after = {"purge": purge.id, "images": purge.images, **more}
        await Audit(store).note(command_actor(), action, named, after)
        while not purge.done:
            click.echo(f"{purge.images:,} images so far …", err=True)
            if not await cache.purges.run(max_pages=PROGRESS_PAGES):
                await asyncio.sleep(PROGRESS_SECONDS)  # a gateway has the turn
            purge = await cache.purges.find(purge.id)
        return purge.images


async def _read_stats(config: Path | None) -> dict[str, Any]:
    async with _open_cache(find_configuration(config)) as (_, cache):
        totals = await cache.blobs.totals()
        bound_bytes = await cache.blobs.bound_bytes()
        return {"images": totals.count, "bytes": totals.size_bytes, "total_bytes": bound_bytes}


@asynccontextmanager
async def _open_cache(configuration: Configuration) -> AsyncIterator[tuple[Store, Cache]]:
    """The store and the cache on it, as `cli.store` opens a store."""
    with errors_as_messages():
        async with open_cache(configuration.read_settings()) as (store, cache):
            print_name(store)
            yield store, cache
