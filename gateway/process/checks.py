"""Checks: what a gateway stands on, looked at one by one, each finding in plain words.

`examine` is what `gateway doctor` shows, `check_before_serving` what the log says once at the
start. A check judges and repairs nothing. How findings are shown is `cli/`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Final, Literal
from zlib import crc32

from gateway.api.http.connection import has_compiled_parser
from gateway.assembly import (
    WILDCARDS,
    Cache,
    client_settings,
    create_signing,
    open_cache,
    open_existing_store,
    open_store,
    public_url,
)
from gateway.cache.blobs import DEFAULT_TOTAL_BYTES
from gateway.cache.image_index import image_path
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.configuration.values import Address
from gateway.errors import GatewayError, StoreUnavailable
from gateway.images import Image
from gateway.net.guard import LinkBlocked
from gateway.store.batch import execute
from gateway.store.blobs.redis import DEFAULT_CAPACITY_BYTES
from gateway.store.commands import Inspect, StoreFacts
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.redis.client import redacted_url
from gateway.upstream.client import open_client
from gateway.upstream.fetch import RehostSettings, open_link_fetcher

Level = Literal["ok", "warning", "fault"]

MAX_CLOCK_SECONDS: Final = 2.0
"""How far the store's clock may be from ours: links and calendar days would disagree."""

OLDEST_PRICES_DAYS: Final = 90

OWN_IMAGE_SECONDS: Final = 60.0
"""How long the image of the own link stays, should nobody be left to remove it."""

OWN_IMAGE_HEAD: Final = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
)
OWN_IMAGE_TAIL: Final = bytes.fromhex(
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)
"""A grey pixel as PNG, without the comment between the two."""

OWN_LINK_SECONDS: Final = 10.0
"""How long its link is waited for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found."""

    name: str
    level: Level
    words: str


async def examine(configuration: Configuration) -> Sequence[Finding]:
    """Every check, in order. Raises `ConfigError`, `CatalogError`: then there is nothing to check.

    Works on the store of a running gateway and never creates one.
    """
    settings, policy = configuration.read_settings(), configuration.read_policy()
    files = configuration.files
    on_store = await _examine_store(settings)
    findings = [
        Finding("configuration", "ok", f"{files.gateway}, {files.models}"),
        *on_store,
        await check_upstream(settings),
        judge_prices(policy.catalog.prices_as_of, today=datetime.now(UTC).date()),
        judge_parser(is_compiled=has_compiled_parser()),
        judge_public_url(settings),
    ]
    if on_store[0].level == "ok":
        findings.append(await check_own_link(settings))
    return findings


async def check_before_serving(settings: Settings) -> Sequence[Finding]:
    """What can be wrong although everything works: the parent looks once, before it serves."""
    findings = [judge_public_url(settings)]
    if settings.store.redis_url is None:  # a database has none of Redis' switches
        return findings
    with suppress(StoreUnavailable):
        async with open_store(settings) as (store, _):
            facts = await execute(store, Inspect())
        findings += _judge_set_up(settings, facts)
    return findings


# ── the store ───────────────────────────────────────────────────────────────────────────────


async def _examine_store(settings: Settings) -> Sequence[Finding]:
    """All that the store says of itself; only one finding when it says nothing."""
    try:
        async with open_existing_store(settings) as store:
            asked_at = time.time()
            facts = await execute(store, Inspect())
            host_now = (asked_at + time.time()) / 2
    except (SchemaMismatch, StoreMissing) as fault:
        return [Finding("store", "fault", str(fault))]
    except GatewayError as fault:
        return [Finding("store", "fault", _unreachable_store(settings, fault))]
    return [
        Finding("store", "ok", f"{store.name}, schema version {SCHEMA_VERSION}"),
        judge_clock(facts, host_now=host_now),
        *_judge_set_up(settings, facts),
    ]


def _unreachable_store(settings: Settings, fault: GatewayError) -> str:
    """A database names itself; of a Redis only its place may be said."""
    url = settings.store.redis_url
    if url is None:
        return fault.message
    return f"{redacted_url(url.get_secret_value())}: {fault.message}"


def _judge_set_up(settings: Settings, facts: StoreFacts) -> Sequence[Finding]:
    return [judge_eviction(facts), judge_persistence(facts), judge_bound(settings, facts)]


def judge_clock(facts: StoreFacts, *, host_now: float) -> Finding:
    """Whether host and store agree on the time; `host_now` is when the store said what it did."""
    apart = abs(facts.now - host_now)
    if apart > MAX_CLOCK_SECONDS:
        words = f"The store's clock is {apart:.1f} s from this machine's: set both by NTP."
        return Finding("clock", "fault", words)
    return Finding("clock", "ok", f"{apart:.1f} s from the store's")


def judge_eviction(facts: StoreFacts) -> Finding:
    """Whether the store may throw away keys, budgets or the ledger."""
    policy = facts.eviction_policy
    if policy in (None, "noeviction"):
        return Finding("eviction policy", "ok", policy or "nothing is evicted but images")
    return Finding(
        "eviction policy",
        "fault",
        f"Redis has maxmemory-policy {policy} and may drop keys, budgets and the ledger: set "
        "noeviction; images may have a Redis of their own (GATEWAY_BLOBS_URL).",
    )


def judge_persistence(facts: StoreFacts) -> Finding:
    """Whether what the store acknowledged survives its restart."""
    if facts.is_durable:
        return Finding("persistence", "ok", "what was acknowledged survives a restart")
    words = "Redis would forget keys, open purchases and ledger in a restart: set appendonly yes."
    return Finding("persistence", "warning", words)


def judge_bound(settings: Settings, facts: StoreFacts) -> Finding:
    """Whether images leave room for the rest, where they share a memory with it."""
    most, total = facts.maxmemory_bytes, settings.cache.total_bytes
    if most is None or total is None or settings.store.blobs_url is not None:
        return Finding("cache bound", "ok", _bound_in_words(settings, facts))
    words = f"cache.total_bytes is {_mebibytes(total)}, Redis' maxmemory {_mebibytes(most)}"
    if total > most:
        return Finding("cache bound", "fault", f"{words}: images will fill it.")
    if total > most // 2:
        words = f"{words}: more than half leaves little room for keys, journals and ledger."
        return Finding("cache bound", "warning", words)
    return Finding("cache bound", "ok", words)


def _bound_in_words(settings: Settings, facts: StoreFacts) -> str:
    if settings.store.blobs_url is not None:
        return "images have a place of their own"
    if settings.cache.total_bytes is None and facts.maxmemory_bytes is not None:
        return f"half of Redis' maxmemory of {_mebibytes(facts.maxmemory_bytes)}"
    default = DEFAULT_CAPACITY_BYTES if facts.kind == "redis" else DEFAULT_TOTAL_BYTES
    return f"{_mebibytes(settings.cache.total_bytes or default)}, where the store has no limit"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"


# ── upstream, prices, parser ────────────────────────────────────────────────────────────────


async def check_upstream(settings: Settings) -> Finding:
    """Whether the paid service answers, and takes the key."""
    if settings.upstream.api_key is None:
        words = "UPSTREAM_API_KEY is not set; without it `gateway serve` does not start."
        return Finding("upstream", "fault", words)
    async with open_client(client_settings(settings)) as client:
        return judge_upstream(await client.probe(), place=settings.upstream.base_url)


def judge_upstream(status: int | None, *, place: str) -> Finding:
    """What the answer to a list of models says; not every service has such a list."""
    if status is None:
        return Finding("upstream", "fault", f"{place} does not answer.")
    if status in (401, 403):
        words = f"{place} refuses the key with {status}: look at UPSTREAM_API_KEY."
        return Finding("upstream", "fault", words)
    if 300 <= status < 400 or status >= 500:
        words = f"{place} answers {status}: is that the right UPSTREAM_BASE_URL?"
        return Finding("upstream", "warning", words)
    return Finding("upstream", "ok", f"{place} answers")


def judge_prices(as_of: date, *, today: date) -> Finding:
    """Whether the price table may be out of date."""
    days = (today - as_of).days
    if days > OLDEST_PRICES_DAYS:
        words = f"as of {as_of}, {days} days ago: compare them and set prices_as_of in models.yaml."
        return Finding("prices", "warning", words)
    return Finding("prices", "ok", f"as of {as_of}")


def judge_parser(*, is_compiled: bool) -> Finding:
    """Whether HTTP is read by compiled code; Redis always is."""
    if is_compiled:
        return Finding("parser", "ok", "HTTP and Redis are read by compiled code")
    words = "aiohttp runs without its compiled parser and is several times slower: install a wheel."
    return Finding("parser", "warning", words)


# ── links ───────────────────────────────────────────────────────────────────────────────────


def judge_public_url(settings: Settings) -> Finding:
    """Whether links lead to where clients reach the gateway."""
    url = public_url(settings)
    if url is not None:
        return Finding("public URL", "ok", url)
    words = (
        f"The gateway listens on {settings.server.listen}, so links start with whatever host a "
        "client has named: set GATEWAY_PUBLIC_URL."
    )
    return Finding("public URL", "warning", words)


async def check_own_link(settings: Settings) -> Finding:
    """Whether an image of the store can be fetched by its link, from where links lead."""
    url = _own_url(settings)
    if url is None:
        words = "The port is only chosen at the start: set GATEWAY_PUBLIC_URL to have links tried."
        return Finding("own link", "warning", words)
    try:
        async with (
            open_cache(settings, ttl_seconds=OWN_IMAGE_SECONDS) as (store, cache),
            _own_stored_image(cache) as (image, data),
        ):
            path = await create_signing(settings, store).sign(image_path(image))
            return await _try_own_link(settings, url, path, data=data)
    except GatewayError as fault:
        return Finding("own link", "fault", fault.message)


def _own_url(settings: Settings) -> str | None:
    """Where the gateway is reached from this machine."""
    listen = settings.server.listen
    url = public_url(settings)
    if url is not None or listen.port == 0:
        return url
    loopback = "::1" if ":" in listen.host else "127.0.0.1"
    return f"http://{Address(loopback, listen.port) if listen.host in WILDCARDS else listen}"


def _own_image() -> bytes:
    """A PNG of one pixel. Its comment differs each time, so that two runs share no blob."""
    comment = b"tEXtComment\0" + secrets.token_hex(8).encode()
    length, checksum = len(comment) - 4, crc32(comment)
    chunk = length.to_bytes(4, "big") + comment + checksum.to_bytes(4, "big")
    return OWN_IMAGE_HEAD + chunk + OWN_IMAGE_TAIL


@asynccontextmanager
async def _own_stored_image(cache: Cache) -> AsyncIterator[tuple[Image, bytes]]:
    """A small image in the store, which only its link finds; removed afterwards."""
    data = _own_image()
    digest = sha256(data).hexdigest()
    image = Image(secrets.token_hex(12), digest, "png", 1, 1, len(data), time.time())
    try:
        await cache.image_cache.store(None, {0: image}, {digest: data}, lease="")
        yield image, data
    finally:
        await cache.image_cache.remove(image)


async def _try_own_link(settings: Settings, url: str, path: str, *, data: bytes) -> Finding:
    """Fetches as images are fetched, from this one place."""
    fetching = RehostSettings(
        upstream_url=url,
        max_bytes=settings.cache.max_image_bytes,
        timeout_seconds=OWN_LINK_SECONDS,
        ca_file=settings.upstream.ca_file,
    )
    async with open_link_fetcher(fetching) as links:
        try:
            fetched = await links.fetch(url + path)
        except LinkBlocked as refused:
            return Finding("own link", "fault", _own_link_refused(url, refused))
    if fetched != data:
        return Finding("own link", "fault", f"{url} answers with another image than the store's.")
    return Finding("own link", "ok", f"an image was fetched from {url}")


def _own_link_refused(url: str, refused: LinkBlocked) -> str:
    if refused.reason in ("unreachable", "timeout"):
        return (
            f"No gateway answers at {url}: start it, or set GATEWAY_PUBLIC_URL to where clients "
            "reach it."
        )
    return (
        f"{url} answers, but not with an image of this store ({refused.reason}): it is another "
        "service, or a gateway with another store or other signing keys."
    )
