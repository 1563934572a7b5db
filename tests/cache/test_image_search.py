"""The lists of images against a model: whatever happens to an image, a search has what is there."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import image_search
from gateway.cache.image_hits import ImageHits
from gateway.cache.image_index import IMAGES
from gateway.cache.image_search import UNLIST_AFTER_SECONDS, FoundImage, SearchTerms
from gateway.cache.indexed_image import LISTS, ImageOrigin, IndexedImage, list_member
from gateway.errors import GatewayError
from gateway.images import Image
from gateway.metrics import Metrics
from gateway.store.batch import Batch, execute
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.commands import CountOrderedSets, DeleteValue, ReadHits
from gateway.store.protocol import Store
from gateway.wiring.cache import Cache, wire_cache
from tests.conftest import OpenStore
from tests.gateways import make_settings

NOW = time.time()
MODELS = ("m", "n")
SIZES = ("1024x1024", "1536x1024")
TAGS = ("x", "y")
KEYS = ("alice", "bob")


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


def make_cache(folder: Path, store: Store) -> Cache:
    settings = make_settings(folder, "http://127.0.0.1:1/v1")
    return wire_cache(settings, store, FolderBlobs(folder / "blobs"), observer=Metrics().cache)


@dataclass(frozen=True)
class Stored:
    """An image as it was bought."""

    image: Image
    data: bytes
    fingerprint: str
    slot: int
    displaces: bool
    origin: ImageOrigin

    @property
    def indexed(self) -> IndexedImage:
        return IndexedImage.of(self.image, self.fingerprint, self.origin)


def make_image(
    *,
    age: float = 0.0,
    content: int | None = None,
    entry: int = 0,
    slot: int = 0,
    displaces: bool = False,
    model: str = "m",
    size: str = SIZES[0],
    key: str = "alice",
    tags: Sequence[str] = (),
) -> Stored:
    """An image that was received `age` seconds ago; equal `content` means equal bytes."""
    data = secrets.token_bytes(20) if content is None else b"image %d" % content
    image = Image(
        id=secrets.token_hex(12),
        digest=sha256(data).hexdigest(),
        format="png",
        width=1,
        height=1,
        size_bytes=len(data),
        created_at=NOW - age,
        cost_micros=40_000,
        model=model,
    )
    origin = ImageOrigin(f"id-of-{key}", key, size=size, tags=tuple(tags))
    return Stored(image, data, sha256(b"%d" % entry).hexdigest(), slot, displaces, origin)


async def store_image(cache: Cache, store: Store, stored: Stored) -> None:
    """As a settlement does; may be repeated."""
    batch = Batch(store)
    await cache.image_cache.store_bytes(batch, {stored.image.digest: stored.data})
    pending = cache.image_cache.store_images(
        batch,
        stored.fingerprint,
        {stored.slot: stored.image},
        lease="a flight",
        origin=stored.origin,
        displaces=stored.displaces,
    )
    await batch.execute()
    await cache.image_cache.finish(pending)


async def search_all(
    cache: Cache, terms: SearchTerms | None = None, *, limit: int = 100
) -> list[FoundImage]:
    found: list[FoundImage] = []
    after: str | None = ""
    while after is not None:
        page = await cache.image_search.search(terms or SearchTerms(), limit=limit, after=after)
        assert len(page.images) <= limit
        found += page.images
        after = page.after
    return found


async def lengths(store: Store, *names: str) -> list[int]:
    found = await execute(store, CountOrderedSets(LISTS, names))
    return list(found)


# ── the model ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Model:
    """What was bought, which of it is in lists, and the bytes that are there."""

    bought: list[Stored] = field(default_factory=list)
    listed: dict[str, Stored] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    taken_down: set[str] = field(default_factory=set)

    def search(self, terms: SearchTerms) -> list[str]:
        found = [
            stored
            for stored in self.listed.values()
            if stored.image.digest in self.there - self.taken_down
            and terms.model in (None, stored.image.model)
            and terms.size in (None, stored.origin.size)
            and terms.key in (None, stored.origin.key)
            and (terms.tag is None or terms.tag in stored.origin.tags)
            and (terms.since is None or stored.image.created_at >= terms.since)
            and (terms.until is None or stored.image.created_at < terms.until)
        ]
        found.sort(key=lambda stored: (stored.image.created_at, stored.image.id), reverse=True)
        return [stored.image.id for stored in found]

    def lose(self, digest: str, *, min_age: float) -> None:
        """The bytes are gone, and the images of this age leave the lists."""
        self.there.discard(digest)
        for stored in list(self.listed.values()):
            if stored.image.digest == digest and NOW - stored.image.created_at >= min_age:
                del self.listed[stored.image.id]


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


AGES = st.integers(0, 12).map(lambda n: n * 150.0)
"""Some are equal, and some too young to leave a list because of missing bytes."""

PURCHASES = st.fixed_dictionaries(
    {
        "age": AGES,
        "content": st.integers(0, 12),
        "entry": st.integers(0, 3),
        "slot": st.integers(0, 2),
        "displaces": st.booleans(),
        "model": st.sampled_from(MODELS),
        "size": st.sampled_from(SIZES),
        "key": st.sampled_from(KEYS),
        "tags": st.sets(st.sampled_from(TAGS)).map(sorted),
    }
)
SEARCHES = st.builds(
    SearchTerms,
    model=optional(st.sampled_from(MODELS)),
    size=optional(st.sampled_from(SIZES)),
    key=optional(st.sampled_from(KEYS)),
    tag=optional(st.sampled_from(TAGS)),
    since=optional(AGES.map(lambda age: NOW - age)),
    until=optional(AGES.map(lambda age: NOW - age)),
)
ONE = st.integers(0, 100)
STEPS = st.one_of(
    st.tuples(st.just("buy"), PURCHASES),
    st.tuples(st.just("buy"), PURCHASES),
    st.tuples(st.just("repeat"), ONE),
    st.tuples(st.just("purge"), ONE),
    st.tuples(st.just("evict"), ONE),
    st.tuples(st.just("lose"), ONE),
    st.tuples(st.just("take down"), ONE),
    st.tuples(st.just("search"), SEARCHES, st.integers(1, 5)),
)


async def take_step(cache: Cache, store: Store, model: Model, step: Sequence[Any]) -> None:
    kind, given, *rest = step
    if kind == "buy":
        await buy(cache, store, model, make_image(**given))
        return
    if kind == "search":
        await check_search(cache, model, given, limit=rest[0])
        return
    if not model.bought:
        return
    one = model.bought[given % len(model.bought)]
    digest = one.image.digest
    if kind == "repeat":
        await buy(cache, store, model, one)
    elif kind == "purge":
        await cache.invalidation.purge_fingerprint(one.fingerprint)
    elif kind == "take down":
        with suppress(GatewayError):  # it is unknown once its record is gone
            await cache.invalidation.take_down(one.image.id)
            model.taken_down.add(digest)
    elif kind == "evict":
        await cache.blobs.delete([digest])
        await cache.image_cache.remove_evicted([digest], is_full=given % 2 == 0)
        model.lose(digest, min_age=0)
    else:
        await cache.blobs.delete([digest])
        await search_all(cache)  # sees that they are gone
        model.lose(digest, min_age=UNLIST_AFTER_SECONDS)


async def buy(cache: Cache, store: Store, model: Model, stored: Stored) -> None:
    if stored.image.digest in model.taken_down:
        return  # a purchase with these bytes is refused
    await store_image(cache, store, stored)
    model.bought.append(stored)
    model.listed[stored.image.id] = stored
    model.there.add(stored.image.digest)


async def check_search(cache: Cache, model: Model, terms: SearchTerms, *, limit: int) -> None:
    found = await search_all(cache, terms, limit=limit)
    assert [image.id for image in found] == model.search(terms)
    for image in found:
        entry = await cache.image_cache.entry(image.indexed.fingerprint)
        slots = [n for n, slot in entry.slots.items() if slot.image_id == image.id]
        assert ([] if image.slot is None else [image.slot]) == slots
        assert image.state == ("cached" if slots else "purged")


async def test_a_search_has_what_the_cache_has(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_search, "SCAN_PAGE", 3)
    monkeypatch.setattr(image_search, "MAX_SCANNED", 6)
    collected: list[list[Any]] = []

    @given(st.lists(STEPS, max_size=25))
    def collect(steps: list[Any]) -> None:
        collected.append(steps)

    collect()
    for number, steps in enumerate(collected):
        name = f"lists {number}"  # no run sees the images of another
        monkeypatch.setattr(image_search, "LISTS", name)
        monkeypatch.setattr("gateway.cache.image_index.LISTS", name)
        model, cache = Model(), make_cache(tmp_path / str(number), store)
        for step in [*steps, ("search", SearchTerms(), 2), ("search", SearchTerms(), 100)]:
            await take_step(cache, store, model, step)


# ── what a model would not show ─────────────────────────────────────────────────────────────


async def test_what_is_gone_leaves_the_lists(tmp_path: Path, store: Store) -> None:
    """Once it is old enough: bytes of a younger image may be about to be stored."""
    cache = make_cache(tmp_path, store)
    images = [make_image(age=age, slot=n) for n, age in enumerate((10, 1000, 1001, 1002))]
    for stored in images:
        await store_image(cache, store, stored)
    young, lost, unknown, there = images
    await cache.blobs.delete([young.image.digest, lost.image.digest])
    await execute(store, DeleteValue(IMAGES, unknown.image.id))
    assert [image.id for image in await search_all(cache)] == [there.image.id]
    # Without its record nothing says which other lists the one had.
    assert await lengths(store, "all", "key:id-of-alice", "size:1024x1024") == [2, 3, 3]


async def test_no_search_looks_at_more_than_a_bounded_part(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search for what is rare in two long lists ends early, with a cursor."""
    monkeypatch.setattr(image_search, "SCAN_PAGE", 10)
    monkeypatch.setattr(image_search, "MAX_SCANNED", 50)
    cache = make_cache(tmp_path, store)
    for n in range(240):
        model, key = ("m", "bob") if n % 2 else ("n", "alice")
        model = "m" if n == 0 else model
        stored = make_image(age=n, entry=n, model=model, key=key)
        await store_image(cache, store, stored)
    pages = []
    after: str | None = ""
    terms = SearchTerms(model="m", key="alice")
    while after is not None:
        page = await cache.image_search.search(terms, limit=10, after=after)
        pages.append(len(page.images))
        after = page.after
    assert pages == [1, 0, 0]


async def test_a_search_of_one_key_tells_nothing_of_images_of_other_keys(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does its cursor, which names the image where the search goes on."""
    monkeypatch.setattr(image_search, "SCAN_PAGE", 10)
    monkeypatch.setattr(image_search, "MAX_SCANNED", 20)
    cache = make_cache(tmp_path, store)
    own = set()
    for n in range(90):
        key, tags = ("bob", ["secret"]) if n % 3 == 0 else ("alice", [])
        stored = make_image(age=n, entry=n, key=key, tags=tags)
        await store_image(cache, store, stored)
        if key == "alice":
            own.add(stored.image.id)
    after: str | None = ""
    terms = SearchTerms(key_id="id-of-alice", tag="secret")
    while after is not None:
        page = await cache.image_search.search(terms, limit=10, after=after)
        assert page.images == []
        after = page.after
        assert after is None or after[16:] in own


async def test_no_search_reads_many_long_prompts(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_search, "PAGE_BYTES", 45_000)
    monkeypatch.setattr(image_search, "MAX_SCANNED_BYTES", 400_000)
    cache, read = make_cache(tmp_path, store), []
    for n in range(80):
        stored = make_image(age=n, entry=n)
        long = replace(stored, origin=replace(stored.origin, prompt="p" * 10_000))
        await store_image(cache, store, long)
    found = []
    after: str | None = ""
    while after is not None:
        page = await cache.image_search.search(SearchTerms(), limit=100, after=after)
        read.append(len(page.images))
        found += [image.id for image in page.images]
        after = page.after
    # The first page is 25 images, and each further one has four.
    assert read == [41, 39]
    assert len(set(found)) == 80


async def test_a_link_that_was_given_before_the_image_was_stored_keeps_no_origin_away(
    tmp_path: Path, store: Store
) -> None:
    cache, stored = make_cache(tmp_path, store), make_image()
    loaded = {0: (stored.image, stored.data)}

    async def sign(path: str) -> str:
        return path

    await cache.image_cache.link(stored.fingerprint, loaded, sign)
    assert await search_all(cache) == []
    await store_image(cache, store, stored)
    (found,) = await search_all(cache)
    assert found.indexed == stored.indexed
    await cache.image_cache.link(stored.fingerprint, loaded, sign)
    assert (await search_all(cache))[0].indexed == stored.indexed


async def test_a_take_down_leaves_nothing_of_the_origin(tmp_path: Path, store: Store) -> None:
    cache, stored = make_cache(tmp_path, store), make_image(tags=("x",))
    stored = replace(stored, origin=replace(stored.origin, prompt="a secret otter"))
    await store_image(cache, store, stored)
    await ImageHits(store, ttl_seconds=60).write()
    await cache.invalidation.take_down(stored.image.id)
    indexed = await cache.image_index.find(stored.image.id)
    assert indexed == IndexedImage(
        stored.image.digest, "png", stored.fingerprint, is_tombstone=True
    )
    assert not any(await lengths(store, *stored.indexed.lists))


async def test_hits_wait_while_the_store_is_away_and_are_bounded(store: Store) -> None:
    hits = ImageHits(store, ttl_seconds=60)
    hits.note(["a", "b", "a"])
    for n in range(11_000):
        hits.note([f"other {n}"])
    await hits.write()
    hits.note(["a"])
    await hits.write()
    found = await execute(store, ReadHits(("a", "b", "other 1", "other 10500")))
    assert [each.total for each in found] == [3, 1, 1, 0]


def test_the_lists_of_an_image_are_in_the_order_of_time() -> None:
    images = [make_image(age=age).indexed for age in (3.0, 2.5, 0.000_01, 0)]
    members = [list_member("a", indexed) for indexed in images]
    assert members == sorted(members)
    assert images[0].lists == ("all", "model:m", "size:1024x1024", "key:id-of-alice", "name:alice")
