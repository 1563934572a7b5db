"""Checks of everything a gateway depends on, each with a finding in plain English.

`examine` is `gateway doctor`; `check_before_serving` is what the parent logs once at its start. A
check reports and repairs nothing. How findings are shown is `cli/`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Final
from zlib import crc32

from gateway.api.http.connection import has_compiled_parser
from gateway.cache.blobs import DEFAULT_TOTAL_BYTES
from gateway.cache.books_memory import BooksUse, measure_books
from gateway.cache.image_index import image_path
from gateway.catalog import Catalog
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.errors import GatewayError, StoreUnavailable
from gateway.images import Image
from gateway.net.guard import LinkBlocked
from gateway.net.server_tls import EXPIRES_SOON_DAYS, BadPair, expiry_of, load_context
from gateway.process.bootstrap import find_shared_files
from gateway.process.bucket_check import bucket_of, examine_bucket
from gateway.process.findings import Finding
from gateway.process.open_purchases import check_open_purchases
from gateway.process.plaintext import judge_plaintext
from gateway.process.upstream_check import check_upstreams, judge_failures
from gateway.purchasing.upstream_health import read_states
from gateway.purchasing.upstream_switches import UpstreamSwitches
from gateway.room_settings import read_admin_token, tls_files
from gateway.store.batch import execute
from gateway.store.blobs.redis import DEFAULT_CAPACITY_BYTES, RedisBlobs, open_redis_blobs
from gateway.store.commands import Inspect, MeasureStore, ReadLruTotals, StoreFacts
from gateway.store.handshake import (
    SCHEMA_VERSION,
    SchemaMismatch,
    StoreMisconfigured,
    StoreMissing,
)
from gateway.store.protocol import Store
from gateway.store.redis.store import RedisStore, open_redis_store
from gateway.store.redis.urls import is_multi_host_url, is_redis_url
from gateway.upstream.accounts import different_names
from gateway.upstream.fetch import FetchSettings, open_link_fetcher
from gateway.wiring.accounts import create_accounts
from gateway.wiring.cache import Cache, open_cache
from gateway.wiring.policy import served_policy
from gateway.wiring.signing import create_signing
from gateway.wiring.stores import open_existing_store

MAX_CLOCK_DIFFERENCE_SECONDS: Final = 2.0
"""Between the store and this machine. With more, links and calendar days would disagree."""

MAX_PRICE_AGE_DAYS: Final = 90

MIN_PROXY_PREFIX: Final = 7
"""Of a network of proxies: no private one is larger than fc00::/7."""

TEST_IMAGE_SECONDS: Final = 60.0
"""How long the store keeps the image of `check_own_link` if it cannot be removed."""

TEST_LINK_TIMEOUT_SECONDS: Final = 10.0

TEST_IMAGE_HEAD: Final = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
)
TEST_IMAGE_TAIL: Final = bytes.fromhex(
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)
"""A grey pixel as PNG. A comment is inserted between the two parts."""


async def examine(configuration: Configuration) -> Sequence[Finding]:
    """Every check, in order. Raises `ConfigError`, `CatalogError`.

    Uses the store of a running gateway and never creates one.
    """
    settings = configuration.read_settings()
    policy = served_policy(configuration.read_policy(), settings)
    files = configuration.files
    return [
        Finding("configuration", "ok", f"{files.gateway}, {files.models}"),
        *await examine_settings(settings, policy.catalog),
    ]


async def examine_settings(settings: Settings, catalog: Catalog | None) -> Sequence[Finding]:
    """Every check but that of the files. Without a catalog, prices are not checked."""
    on_store = await _examine_store(settings)
    findings = [
        *on_store,
        *await _examine_images(settings),
        *await check_upstreams(settings, catalog),
        *(() if catalog is None else judge_catalog(catalog)),
        judge_parser(is_compiled=has_compiled_parser()),
        *judge_settings(settings),
        *judge_admin_token(settings),
        judge_files(settings),
    ]
    if on_store[0].level == "ok":
        findings.append(await check_own_link(settings))
    return findings


def judge_catalog(catalog: Catalog) -> Sequence[Finding]:
    """Whether prices are known, and not too old."""
    today = datetime.now(UTC).date()
    return [judge_prices(catalog.prices_as_of, today=today), *judge_unknown_prices(catalog)]


async def check_before_serving(settings: Settings) -> Sequence[Finding]:
    """Faults and warnings that do not keep a gateway from serving."""
    findings = [*judge_settings(settings)]
    if settings.store.redis_url is not None:  # only Redis can be misconfigured
        with suppress(StoreUnavailable):
            # Not the store of image bytes: the workers are forked from this process, and the
            # threads in which a bucket is used do not survive that.
            url = settings.store.redis_url.get_secret_value()
            async with open_redis_store(url) as store:
                findings += _judge_configuration(settings, await execute(store, Inspect()))
                findings += await check_wait(store)
    return [finding for finding in findings if finding.level != "ok"]


def judge_settings(settings: Settings) -> Sequence[Finding]:
    """What the settings and the certificate show, without the store and upstream."""
    return [
        judge_public_url(settings),
        *judge_trusted_proxies(settings),
        *judge_plaintext(settings),
        *judge_upstream_names(settings),
        *judge_certificate(settings, now=datetime.now(UTC)),
    ]


def judge_upstream_names(settings: Settings) -> Sequence[Finding]:
    """Models that accounts of one group know by different names."""
    accounts = create_accounts(settings)
    return [
        Finding(
            "upstreams",
            "warning",
            f"The model {model} is {' and '.join(names)} at different upstreams of the group "
            f"{accounts.group_of(model)}: their images count as the same. If they are not, give "
            "the upstreams groups and models of their own.",
        )
        for model, names in different_names(accounts, ()).items()
    ]


async def check_switches(settings: Settings, store: Store) -> Sequence[Finding]:
    """The accounts that the operator has taken out of service. Raises `StoreUnavailable`."""
    names = [account.name for account in settings.accounts]
    switches = UpstreamSwitches(store, names)
    await switches.refresh()
    found = [(name, switch) for name in names if (switch := switches.switch_of(name)) is not None]
    return [
        Finding(
            "upstreams",
            "warning",
            f"{name} is out of service: {switch.reason or 'no reason was given'} ({switch.by}). "
            f"`gateway upstreams enable {name}` puts it back.",
        )
        for name, switch in found
    ]


# ── the store ───────────────────────────────────────────────────────────────────────────────


async def _examine_store(settings: Settings) -> Sequence[Finding]:
    """All checks of the store; a single finding if it cannot be read."""
    try:
        async with open_existing_store(settings) as store:
            sent_at = time.time()
            facts = await execute(store, Inspect())
            # The store reads its clock during the round trip, so its middle is the best estimate.
            host_now = (sent_at + time.time()) / 2
            books = measure_books(
                await execute(store, MeasureStore()),
                await execute(store, ReadLruTotals()),
                bound_bytes=_bound_bytes(settings, facts),
                shares_bytes=settings.store.blobs_url is None,
            )
            open_purchases = await check_open_purchases(settings, store)
            upstreams = await read_states(store, time.time())
            disabled = await check_switches(settings, store)
            refusal = await store.kept.find_refusal()
            unconfirmed = await check_wait(store)
    except (SchemaMismatch, StoreMisconfigured, StoreMissing) as error:
        return [Finding("store", "fault", str(error))]
    except StoreUnavailable as error:
        # The reason names a Redis without its password. The message names an embedded store.
        is_redis = settings.store.redis_url is not None
        return [Finding("store", "fault", (is_redis and error.reason) or error.message)]
    return [
        Finding("store", "ok", f"{store.name}, schema version {SCHEMA_VERSION}"),
        judge_clock(facts, host_now=host_now),
        *_judge_configuration(settings, facts),
        *judge_books(books),
        open_purchases,
        *judge_failures(upstreams, now=time.time()),
        *disabled,
        *judge_tracking(refusal),
        *unconfirmed,
    ]


async def _examine_images(settings: Settings) -> Sequence[Finding]:
    """Whether a bucket or a Redis of the images' own can be used."""
    if (bucket := bucket_of(settings)) is not None:
        return await examine_bucket(bucket, signs=settings.cache.links == "redirect")
    url = settings.store.plain_blobs_url
    if not is_redis_url(url):
        return []
    try:
        async with open_redis_blobs(url, may_create=False) as blobs:
            await blobs.check_schema()
            return await check_wait(blobs)
    except (SchemaMismatch, StoreMisconfigured) as error:
        return [Finding("images", "fault", str(error))]
    except StoreMissing:
        return []  # the first image creates it
    except StoreUnavailable as error:
        return [Finding("images", "fault", error.reason or error.message)]


async def check_wait(store: Store | RedisBlobs) -> Sequence[Finding]:
    """Whether purchases can wait for replicas (docs/reference/settings.md#replicas).

    Raises `StoreUnavailable`.
    """
    if not isinstance(store, (RedisStore, RedisBlobs)):
        return []
    if (refusal := await store.find_wait_refusal()) is None:
        return []
    message = f"Purchases do not wait for replicas, so a promotion may lose them. {refusal}"
    return [Finding("wait for replicas", "warning", message)]


def _judge_configuration(settings: Settings, facts: StoreFacts) -> Sequence[Finding]:
    if not facts.is_known:
        message = (
            "Redis' ACL forbids INFO, so eviction policy, persistence and maxmemory cannot be "
            "checked: allow it (+info), or make sure of noeviction and appendonly yes."
        )
        return [Finding("eviction policy", "warning", message)]
    return [
        judge_eviction(settings, facts),
        judge_persistence(facts),
        judge_bound(settings, facts),
        *judge_replicas(settings, facts),
    ]


def judge_tracking(refusal: str | None) -> Sequence[Finding]:
    """Whether workers can keep what they have read (docs/reference/cache.md#hits-from-memory)."""
    if refusal is None:
        return []
    message = (
        f"Redis refuses CLIENT TRACKING ({refusal}), so every hit asks it: allow it "
        "(+client|tracking), or connect without the proxy that refuses it."
    )
    return [Finding("hits from memory", "warning", message)]


def judge_clock(facts: StoreFacts, *, host_now: float) -> Finding:
    """Whether host and store agree on the time; `host_now` is the host's at that of `facts`."""
    difference = abs(facts.now - host_now)
    if difference > MAX_CLOCK_DIFFERENCE_SECONDS:
        message = (
            f"The store's clock differs from this machine's by {difference:.1f} s: "
            "synchronize both by NTP."
        )
        return Finding("clock", "fault", message)
    return Finding("clock", "ok", f"{difference:.1f} s from the store's")


def judge_eviction(settings: Settings, facts: StoreFacts) -> Finding:
    """Whether the store may evict keys, budgets or the ledger."""
    policy = facts.eviction_policy
    if policy in (None, "noeviction"):
        return Finding("eviction policy", "ok", policy or "only images are evicted")
    message = f"Redis has maxmemory-policy {policy} and may evict keys, budgets and the ledger"
    if facts.maxmemory_bytes is None:
        message = f"{message} once maxmemory is set"
    if settings.store.allow_eviction:
        message = f"{message}; store.allow_eviction accepts that."
        return Finding("eviction policy", "warning", message)
    message = (
        f"{message}, so no gateway starts: set noeviction. Only a separate Redis for images "
        "(GATEWAY_BLOBS_URL) may evict."
    )
    return Finding("eviction policy", "fault", message)


def judge_persistence(facts: StoreFacts) -> Finding:
    """Whether acknowledged writes survive a restart of the store."""
    if facts.kind == "sqlite":
        message = (
            "acknowledged writes survive a crash; a power cut loses no reservation and no change "
            "of keys, but may lose the last other writes"
        )
        return Finding("persistence", "ok", message)
    if facts.is_durable:
        message = (
            "acknowledged writes survive a restart; a power cut loses up to a second of them, or "
            "none with appendfsync always"
        )
        return Finding("persistence", "ok", message)
    message = "A restart of Redis loses keys, open purchases and the ledger: set appendonly yes."
    return Finding("persistence", "warning", message)


def judge_replicas(settings: Settings, facts: StoreFacts) -> Sequence[Finding]:
    """Whether a master that was replaced stops taking writes.

    Nothing for a single Redis, which neither sentinels nor a cluster replace.
    """
    url = settings.store.redis_url
    if url is None or not is_multi_host_url(url.get_secret_value()):
        return []
    if facts.needs_replica:
        message = (
            "a master refuses writes without a replica; make sure that min-replicas-max-lag, "
            "which INFO does not show, is at most 10"
        )
        return [Finding("replicas", "ok", message)]
    message = (
        "A master that was cut off and replaced goes on taking writes, which are lost: set "
        "min-replicas-to-write 1 and min-replicas-max-lag 2 on every Redis that may be master."
    )
    return [Finding("replicas", "warning", message)]


def judge_bound(settings: Settings, facts: StoreFacts) -> Finding:
    """Whether images that share a Redis with everything else leave enough of its memory."""
    maxmemory, bound = facts.maxmemory_bytes, settings.cache.total_bytes
    if settings.store.blobs_url is not None:
        return Finding("cache bound", "ok", "images have a store of their own")
    if maxmemory is None:
        default = DEFAULT_CAPACITY_BYTES if facts.kind == "redis" else DEFAULT_TOTAL_BYTES
        message = f"{_mebibytes(bound or default)}; the store itself has no limit"
        return Finding("cache bound", "ok", message)
    if bound is None:
        return Finding("cache bound", "ok", f"half of Redis' maxmemory of {_mebibytes(maxmemory)}")
    message = f"cache.total_bytes is {_mebibytes(bound)}, Redis' maxmemory {_mebibytes(maxmemory)}"
    if bound > maxmemory:
        return Finding("cache bound", "fault", f"{message}: images will fill it.")
    if bound > maxmemory // 2:
        message = f"{message}: more than half leaves little room for keys, journals and ledger."
        return Finding("cache bound", "warning", message)
    return Finding("cache bound", "ok", message)


def _bound_bytes(settings: Settings, facts: StoreFacts) -> int:
    """The bound of images, as the gateway has it."""
    if settings.cache.total_bytes is not None:
        return settings.cache.total_bytes
    if facts.kind == "sqlite":
        return DEFAULT_TOTAL_BYTES
    return facts.maxmemory_bytes // 2 if facts.maxmemory_bytes else DEFAULT_CAPACITY_BYTES


def judge_books(use: BooksUse) -> Sequence[Finding]:
    """Whether the books use most of their memory or disk; nothing if not."""
    if not use.is_low:
        return []
    message = (
        f"Keys, counters, journals, ledger and totals use {_mebibytes(use.books_bytes)} of their "
        f"{_mebibytes(use.limit_bytes)}. When they have used all, keys with limits are refused: "
        "raise Redis' maxmemory or free disk space, or shorten billing.keep_records."
    )
    return [Finding("books memory", "warning", message)]


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"


# ── prices, parser ──────────────────────────────────────────────────────────────────────────


def judge_prices(as_of: date, *, today: date) -> Finding:
    """Whether the price table may be out of date."""
    days = (today - as_of).days
    if days > MAX_PRICE_AGE_DAYS:
        message = (
            f"as of {as_of}, {days} days ago: compare them with upstream's, and set prices_as_of "
            "in models.yaml."
        )
        return Finding("prices", "warning", message)
    return Finding("prices", "ok", f"as of {as_of}")


def judge_unknown_prices(catalog: Catalog) -> Sequence[Finding]:
    """Whether models have no price, also those without a row."""
    unknown = [name for name, model in catalog.models.items() if model.billing is None]
    if catalog.unknown_models == "passthrough":
        unknown.append("models without a row")
    if not unknown:
        return []
    assumed = catalog.unknown_price
    consequence = (
        "they are refused. Add `billing` to their rows of models.yaml, or set `unknown_price`."
        if assumed is None
        else f"each of their images is charged ${assumed.usd_per_image}, the worst case of "
        "`unknown_price` in models.yaml."
    )
    return [Finding("prices", "warning", f"not known of {', '.join(unknown)}: {consequence}")]


def judge_parser(*, is_compiled: bool) -> Finding:
    """Whether HTTP is parsed by compiled code; Redis always is."""
    if is_compiled:
        return Finding("parser", "ok", "HTTP and Redis are parsed by compiled code")
    message = (
        "aiohttp runs without its compiled parser and is several times slower: install a wheel."
    )
    return Finding("parser", "warning", message)


# ── the certificate and the data folder ─────────────────────────────────────────────────────


def judge_certificate(settings: Settings, *, now: datetime) -> Sequence[Finding]:
    """Whether the server's certificate can be used, and until when; nothing without one."""
    files = tls_files(settings)
    if files is None:
        return []
    try:
        load_context(files)
        expires_at = expiry_of(files.cert)
    except BadPair as fault:
        return [Finding("certificate", "fault", str(fault))]
    days = (expires_at - now).days
    if days < 0:
        message = f"{files.cert} expired at {expires_at:%Y-%m-%d %H:%M} UTC: renew it."
        return [Finding("certificate", "fault", message)]
    if days < EXPIRES_SOON_DAYS:
        message = (
            f"{files.cert} expires at {expires_at:%Y-%m-%d %H:%M} UTC: renew it; the gateway reads "
            "it again by itself."
        )
        return [Finding("certificate", "warning", message)]
    return [Finding("certificate", "ok", f"{files.cert}, until {expires_at:%Y-%m-%d}")]


def judge_admin_token(settings: Settings) -> Sequence[Finding]:
    """Whether a gateway starts with the token in the data folder; nothing if it does."""
    try:
        read_admin_token(settings)
    except FileNotFoundError:
        return []  # a start makes one
    except OSError as error:
        return [Finding("admin token", "warning", f"{error.filename}: {error.strerror}.")]
    except ConfigError as error:
        return [Finding("admin token", "fault", str(error))]
    return []


def judge_files(settings: Settings) -> Finding:
    """Whether other users of this machine have rights on files of the gateway."""
    folder = settings.store.data_dir
    try:
        count, example = 0, folder
        for path in find_shared_files(settings):
            count, example = count + 1, path
    except OSError as error:
        return Finding("private files", "warning", f"{error.filename}: {error.strerror}.")
    if count:
        message = (
            f"Other users have rights on {count} of the gateway's files and folders, such as "
            f"{example}. A start of the gateway makes its own files private."
        )
        return Finding("private files", "warning", message)
    return Finding("private files", "ok", f"no other user has rights in {folder}")


# ── links ───────────────────────────────────────────────────────────────────────────────────


def judge_public_url(settings: Settings) -> Finding:
    """Whether links lead to an address at which clients reach the gateway."""
    url = settings.server.link_base_url
    if url is not None:
        return Finding("public URL", "ok", url)
    message = (
        f"The gateway listens on {settings.server.listen}, so links start with the Host header of "
        "each request: set GATEWAY_PUBLIC_URL."
    )
    return Finding("public URL", "warning", message)


def judge_trusted_proxies(settings: Settings) -> Sequence[Finding]:
    """Whether clients can pass for proxies, and so choose their address; nothing if not."""
    networks = settings.server.trusted_proxies
    too_large = [str(network) for network in networks if network.prefixlen < MIN_PROXY_PREFIX]
    if not too_large:
        return []
    message = (
        f"{', '.join(too_large)} contains clients too: each can choose the address by which log, "
        "ledger and bounds know it. Name only the networks of your proxies in "
        "GATEWAY_TRUSTED_PROXIES."
    )
    return [Finding("trusted proxies", "warning", message)]


async def check_own_link(settings: Settings) -> Finding:
    """Whether the running gateway serves an image of this store by its link."""
    listen = settings.server.listen
    url = settings.server.link_base_url or f"{settings.server.scheme}://{listen.on_this_machine}"
    if settings.server.public_url is None and listen.port == 0:
        message = "The port is chosen at the start: set GATEWAY_PUBLIC_URL to have links tested."
        return Finding("own link", "warning", message)
    try:
        async with (
            open_cache(settings, ttl_seconds=TEST_IMAGE_SECONDS) as (store, cache),
            _stored_test_image(cache) as (image, data),
        ):
            path = await create_signing(settings, store).sign(image_path(image))
            return await _fetch_own_link(settings, url, path, data=data)
    except GatewayError as error:
        return Finding("own link", "fault", error.message)


@asynccontextmanager
async def _stored_test_image(cache: Cache) -> AsyncIterator[tuple[Image, bytes]]:
    """Stores an image of one pixel that no fingerprint leads to, and removes it."""
    # Its comment is random, so that of two runs at once neither removes the other's bytes.
    comment = b"tEXtComment\0" + secrets.token_hex(8).encode()
    length, checksum = len(comment) - 4, crc32(comment)
    chunk = length.to_bytes(4, "big") + comment + checksum.to_bytes(4, "big")
    data = TEST_IMAGE_HEAD + chunk + TEST_IMAGE_TAIL
    digest = sha256(data).hexdigest()
    image = Image(secrets.token_hex(12), digest, "png", 1, 1, len(data), time.time())
    try:
        await cache.image_cache.store(None, {0: image}, {digest: data}, lease="")
        yield image, data
    finally:
        await cache.image_cache.remove(image)


async def _fetch_own_link(settings: Settings, url: str, path: str, *, data: bytes) -> Finding:
    """Fetches the link as upstream's links are fetched, from this one host."""
    fetch_settings = FetchSettings(
        upstream_url=url,
        max_bytes=settings.cache.max_image_bytes,
        timeout_seconds=TEST_LINK_TIMEOUT_SECONDS,
        more_ca_files=settings.ca_files,
    )
    async with open_link_fetcher(fetch_settings) as links:
        try:
            fetched = await links.fetch(url + path)
        except LinkBlocked as blocked:
            return Finding("own link", "fault", _explain_blocked(url, blocked))
    if fetched != data:
        return Finding("own link", "fault", f"{url} responds with another image than the store's.")
    return Finding("own link", "ok", f"an image was fetched from {url}")


def _explain_blocked(url: str, blocked: LinkBlocked) -> str:
    if blocked.reason == "unreachable" and url.startswith("https:"):
        return (
            f"No gateway responds at {url} with a certificate that this machine trusts for that "
            "name: start it, set GATEWAY_PUBLIC_URL to the address at which clients reach it, or "
            "name its authority in upstream.ca_file."
        )
    if blocked.reason in ("unreachable", "timeout"):
        return (
            f"No gateway responds at {url}: start it, or set GATEWAY_PUBLIC_URL to the address at "
            "which clients reach it."
        )
    return (
        f"{url} responds, but not with an image of this store ({blocked.reason}): it is another "
        "service, or a gateway with another store or other signing keys."
    )
