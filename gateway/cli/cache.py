"""`gateway cache`: what a running gateway keeps, and how to get rid of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click

from gateway.assembly import Cache, open_cache
from gateway.cache.invalidation import Invalidation
from gateway.cli.output import config_option, faults_in_words, format_option, show
from gateway.cli.serving import find_configuration

COLUMNS: Final = ("images", "bytes", "total_bytes")


@click.group()
def cache() -> None:
    """Images that are kept: how many, and how to remove them."""


@cache.command("stats")
@config_option
@format_option
def show_stats(config: Path | None, form: str) -> None:
    """How many images there are, and how many bytes they take and may take."""
    show([asyncio.run(_stats(config))], form, columns=COLUMNS)


@cache.command("purge")
@click.option("--fingerprint", help="The key in Cache-Status.")
@click.option("--tag", help="What X-Gateway-Tags said.")
@click.option("--model", help="Everything that this model has made.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@config_option
def purge(
    fingerprint: str | None,
    tag: str | None,
    model: str | None,
    everything: bool,
    config: Path | None,
) -> None:
    """Forgets images: the next request buys anew. Links that were given away go on working."""
    named = {"fingerprint": fingerprint, "tag": tag, "model": model}
    chosen = {what: value for what, value in named.items() if value is not None}
    if len(chosen) + everything != 1:
        raise click.UsageError("Name exactly one of --fingerprint, --tag, --model, --all.")
    count = asyncio.run(_remove(config, _purge(chosen)))
    click.echo(f"{count} images are no longer in the cache.")


@cache.command("takedown")
@click.argument("image", metavar="LINK|ID|FINGERPRINT/SLOT")
@click.option("--prompt", is_flag=True, help="Also refuse the question that it answered.")
@config_option
def take_down(image: str, prompt: bool, config: Path | None) -> None:
    """Removes an image everywhere and for good; its links answer 410."""

    def remove(invalidation: Invalidation) -> Awaitable[int]:
        return invalidation.take_down(image, with_prompt=prompt)

    click.echo(f"{asyncio.run(_remove(config, remove))} images are taken down.")


def _purge(chosen: Mapping[str, str]) -> Callable[[Invalidation], Awaitable[int]]:
    def remove(invalidation: Invalidation) -> Awaitable[int]:
        if not chosen:
            return invalidation.purge_all()
        ((what, value),) = chosen.items()
        purges = {
            "fingerprint": invalidation.purge_fingerprint,
            "tag": invalidation.purge_tag,
            "model": invalidation.purge_model,
        }
        return purges[what](value)

    return remove


async def _remove(config: Path | None, remove: Callable[[Invalidation], Awaitable[int]]) -> int:
    async with _open(config) as cache:
        return await remove(cache.invalidation)


async def _stats(config: Path | None) -> dict[str, Any]:
    async with _open(config) as cache:
        totals = await cache.blobs.totals()
        bound_bytes = await cache.blobs.bound_bytes()
        return {"images": totals.count, "bytes": totals.size_bytes, "total_bytes": bound_bytes}


@asynccontextmanager
async def _open(config: Path | None) -> AsyncIterator[Cache]:
    """The cache of the gateway that `config` describes; says which store that is."""
    settings = find_configuration(config).read_settings()
    with faults_in_words():
        async with open_cache(settings) as (store, cache):
            click.echo(f"Store: {store.name}", err=True)
            yield cache
