"""Signed links: only a link of the gateway is valid, until it expires, also across rotations."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.access.audit import Actor
from gateway.access.signing import (
    META,
    RECORD,
    Signing,
    SigningKeys,
    StoredKey,
    decode_keys,
    expiry,
    make_key,
    rotate_in,
)
from gateway.errors import GatewayError, StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get
from gateway.store.protocol import Command, Store
from tests.conftest import OpenStore
from tests.rows import each_row

ADMIN = Actor("api", "admin")
PATH = "/images/img-abcdefghijABCDEFGHIJ1234.png"
DAY = 86_400.0
NOON = 1_800_000_000.0
KEYS = SigningKeys([("new", b"a secret of some length"), ("old", b"another secret, an older one")])
LINK = KEYS.sign(PATH, expires_at=int(NOON) + 3600)

characters = st.one_of(
    st.sampled_from("/?&=#%+.-_ \t\n\r\x00AZaz09é\udc80"), st.characters(codec=None)
)


def refused(link: str, *, by: SigningKeys = KEYS, now: float = NOON) -> str:
    """The code with which a link is refused."""
    with pytest.raises(GatewayError) as error:
        by.verify(link, now=now)
    assert error.value.status == 403
    return error.value.code or ""


def test_a_link_ends_in_the_images_name_and_is_safe_in_any_url():
    folder, _, name = LINK.rpartition("/")
    assert f"/images/{name}" == PATH
    images, _, signed = folder.rpartition("/")
    assert images == "/images"
    assert signed.split(".")[:2] == ["new", str(int(NOON) + 3600)]
    # Nothing that a client escapes, unescapes, or cuts off.
    assert set(LINK) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./")


def test_a_link_is_valid_until_the_second_at_which_it_expires():
    expires_at = int(NOON) + 3600
    assert KEYS.verify(LINK, now=NOON) == expires_at
    assert KEYS.verify(LINK, now=expires_at - 0.001) == expires_at
    assert refused(LINK, now=expires_at) == "link_expired"


@given(position=st.integers(0, len(LINK) - 1), character=characters)
@example(position=len(LINK) - 1, character="A")  # bits of base64 that decode to nothing
def test_a_link_with_any_one_character_changed_is_refused(position, character):
    changed = LINK[:position] + character + LINK[position + 1 :]
    if changed != LINK:
        assert refused(changed) == "link_invalid"


def test_every_other_last_character_is_refused():
    for character in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=":
        assert character == LINK[-1] or refused(LINK[:-1] + character) == "link_invalid"


@given(position=st.integers(0, len(LINK)), character=characters)
def test_a_link_with_any_character_more_is_refused(position, character):
    assert refused(LINK[:position] + character + LINK[position:]) == "link_invalid"


@given(position=st.integers(0, len(LINK) - 1), length=st.integers(1, len(LINK)))
def test_a_link_with_anything_missing_is_refused(position, length):
    assert refused(LINK[:position] + LINK[position + length :]) == "link_invalid"


@given(st.text())
def test_any_other_text_is_refused(text):
    assert refused(text) == "link_invalid"


FOLDER, _, NAME = LINK.removeprefix("/images/").partition("/")
KID, EXPIRY, SIGNATURE = FOLDER.split(".")


@each_row(
    "folder",
    [
        *(".".join(order) for order in itertools.permutations((KID, EXPIRY, SIGNATURE))),
        f"{FOLDER}.{SIGNATURE}",
        f"{EXPIRY}.{FOLDER}",
        f"{FOLDER}.x",
        f"x.{FOLDER}",
        f"{FOLDER}.",
        f".{FOLDER}",
        f"{FOLDER}/",
        f"{FOLDER}/{FOLDER}",
        f"{KID}/{EXPIRY}/{SIGNATURE}",
        f"{KID}..{EXPIRY}.{SIGNATURE}",
        f"{KID}.0{EXPIRY}.{SIGNATURE}",
        f"{KID}.+{EXPIRY}.{SIGNATURE}",
        f"{KID}.%31{EXPIRY[1:]}.{SIGNATURE}",
        f"{KID}%2E{EXPIRY}.{SIGNATURE}",
        f"%6eew.{EXPIRY}.{SIGNATURE}",
        f"old.{EXPIRY}.{SIGNATURE}",
        f"unknown.{EXPIRY}.{SIGNATURE}",
        f"{KID.upper()}.{EXPIRY}.{SIGNATURE}",
        f"{KID}.{EXPIRY}.{SIGNATURE.lower()}",
        f"{FOLDER}=",
        f"{KID}.{EXPIRY}",
        f"{KID}.{EXPIRY}.",
        SIGNATURE,
        "",
    ],
)
def test_another_spelling_of_the_signature_is_refused(folder):
    if folder == FOLDER:
        assert KEYS.verify(f"/images/{folder}/{NAME}", now=NOON)
    else:
        assert refused(f"/images/{folder}/{NAME}") == "link_invalid"


@each_row(
    "link",
    [
        LINK.replace("img-", "%69mg-"),
        LINK.replace("/images", "//images"),
        LINK.replace("/images", "/./images"),
        LINK.replace("/img-", "//img-"),
        LINK.replace("/img-", "/x/img-"),
        LINK.replace(".png", ".webp"),
        LINK.upper(),
        "http://127.0.0.1" + LINK,
        LINK + "/",
        f"/{FOLDER}/images/{NAME}",
        f"/images/{NAME}/{FOLDER}",
        f"{PATH}?exp={EXPIRY}&kid={KID}&sig={SIGNATURE}",  # the form of earlier versions
        PATH,
    ],
)
def test_another_spelling_of_the_path_is_refused(link):
    assert refused(link) == "link_invalid"


def test_a_signature_belongs_to_one_place_of_its_path():
    """No part of a path can pass for a part of another one."""
    deep = KEYS.sign("/a/new.1/b", expires_at=1_900_000_000)
    assert KEYS.verify(deep, now=NOON)
    signature = deep.split("/")[-2]
    for link in (f"/a/{signature}/new.1/b", f"/{signature}/a/new.1/b", f"/a/{signature}/b"):
        assert refused(link) == "link_invalid"


def test_a_forged_link_is_invalid_even_if_it_has_expired():
    assert refused(LINK[:-1] + "~", now=NOON + DAY) == "link_invalid"
    assert refused(LINK.replace(SIGNATURE, "A" * 43), now=NOON + DAY) == "link_invalid"


def test_a_refusal_does_not_repeat_the_link():
    for link, now in ((LINK[:-2], NOON), (LINK, NOON + DAY)):
        with pytest.raises(GatewayError) as error:
            KEYS.verify(link, now=now)
        assert error.value.headers == {}
        shown = str(error.value.body)
        assert not [part for part in (SIGNATURE, EXPIRY, "img-") if part in shown]


def test_an_ambiguous_path_is_not_signed():
    for path in (
        "images/img.png",
        "/images?x",
        "/images#x",
        "/ima ges",
        "/imäges",
        "",
        "/a\n",
        "/a/",
        "/",
    ):
        with pytest.raises(ValueError, match="cannot sign"):
            KEYS.sign(path, expires_at=1)


def test_all_keys_verify_and_the_first_signs():
    old = SigningKeys([("old", b"another secret, an older one")])
    assert KEYS.verify(old.sign(PATH, expires_at=int(NOON) + 1), now=NOON)
    assert refused(LINK, by=old) == "link_invalid"
    assert "/new." in LINK


@given(
    now=st.floats(0, 4e9, allow_nan=False),
    ttl=st.one_of(st.floats(1, 1e7), st.sampled_from([DAY, 3600.0, 60.0, 1.0])),
)
def test_a_link_is_valid_for_its_lifetime_and_hardly_longer(now, ttl):
    expires_at = expiry(now, ttl)
    assert expires_at >= now + ttl
    assert expires_at <= now + ttl + max(1, ttl / 24) + 2
    assert expires_at % max(1, round(ttl / 24)) == 0


def test_links_that_are_signed_within_an_hour_expire_at_the_same_time():
    start = expiry(NOON, DAY) - DAY  # the last second of one step of the grid
    assert expiry(start - 3599, DAY) == expiry(start, DAY)
    assert expiry(start + 1, DAY) == expiry(start, DAY) + 3600


# ── keys in the store ───────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class CountingStore:
    """A real store that counts commands and can be unavailable."""

    def __init__(self, store: Store) -> None:
        self.name = store.name
        self.watch = store.watch
        self.commands: list[Command[object]] = []
        self.is_unavailable = False
        self._store = store

    async def execute(self, commands):
        self.commands += commands
        if self.is_unavailable:
            raise StoreUnavailable
        return await self._store.execute(commands)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def signing(store: Store, clock: Callable[[], float], **given) -> Signing:
    return Signing(store, **{"keys": None, "url_ttl_seconds": DAY, "clock": clock, **given})


async def refusal(link: str, by: Signing) -> tuple[int, str | None]:
    with pytest.raises(GatewayError) as error:
        await by.verify(link)
    return error.value.status, error.value.code


def kid_of(link: str) -> str:
    """The id of the key that signed a link."""
    return link.removeprefix("/images/").partition(".")[0]


async def kids(store: Store) -> list[str]:
    record = await execute(store, Get(META, RECORD))
    assert record is not None
    return [key.kid for key in decode_keys(record)]


async def test_two_workers_that_start_at_once_sign_with_one_key(open_store: OpenStore, clock):
    async with open_store() as one, open_store() as other:
        workers = [signing(store, clock) for store in (one, other, one, other)]
        links = await asyncio.gather(*(worker.sign(PATH) for worker in workers))
        assert len(set(links)) == 1
        assert await workers[1].verify(links[0]) == expiry(NOON, DAY)
        assert len(await kids(one)) == 1


async def test_a_link_of_another_installation_is_refused(open_store: OpenStore, clock):
    async with open_store() as store:
        worker = signing(store, clock)
        own, foreign = await worker.sign(PATH), KEYS.sign(PATH, expires_at=int(NOON) + 60)
        assert await refusal(foreign, worker) == (403, "link_invalid")
        under_own_kid = foreign.replace("/new.", f"/{kid_of(own)}.")
        assert await refusal(under_own_kid, worker) == (403, "link_invalid")


async def test_a_rotation_reaches_other_workers_and_keeps_links_valid(open_store: OpenStore, clock):
    async with open_store() as one, open_store() as other:
        rotating, reading = signing(one, clock), signing(other, clock)
        before = await reading.sign(PATH)
        kid = await rotating.rotate(actor=ADMIN)
        clock.now += 5
        after = await rotating.sign(PATH)
        assert kid_of(after) == kid
        assert kid_of(before) != kid
        for worker in (rotating, reading):
            assert await worker.verify(before)
            assert await worker.verify(after)
        assert await signing(one, clock).verify(before)


@pytest.mark.parametrize("skew", [-1.5, 0.0, 1.5])
async def test_the_first_links_after_a_rotation_work_at_workers_that_just_read_the_store(
    open_store: OpenStore, clock, skew: float
):
    async with open_store() as one, open_store() as other, open_store() as third:
        rotating, reading = signing(one, clock), signing(other, clock)
        late = signing(third, lambda: clock.now + skew)
        foreign = KEYS.sign(PATH, expires_at=int(NOON) + 600)
        await rotating.sign(PATH)
        await refusal(foreign, reading)  # reads the store, as anyone can make it do
        kid = await rotating.rotate(actor=ADMIN)
        for _ in range(24):
            for worker in (rotating, late):
                assert await reading.verify(await worker.sign(PATH))
            clock.now += 0.25
            await refusal(foreign, reading)
        assert kid_of(await rotating.sign(PATH)) == kid


async def test_a_worker_signs_with_a_new_key_within_a_minute(open_store: OpenStore, clock):
    async with open_store() as store:
        stale, rotating = signing(store, clock), signing(store, clock)
        await stale.sign(PATH)
        kid = await rotating.rotate(actor=ADMIN)
        clock.now += 61
        assert kid_of(await stale.sign(PATH)) == kid


async def test_a_link_stays_valid_across_rotations_until_it_expires(open_store: OpenStore, clock):
    async with open_store() as store:
        stale, rotating = signing(store, clock), signing(store, clock)
        await stale.sign(PATH)
        await rotating.rotate(actor=ADMIN)
        clock.now += 59  # the last second in which a worker may sign with the old key
        link = await stale.sign(PATH)
        assert kid_of(link) == (await kids(store))[1]
        clock.now = expiry(clock.now, DAY) - 1
        await rotating.rotate(actor=ADMIN)
        assert await signing(store, clock).verify(link)
        clock.now += 1
        assert await refusal(link, signing(store, clock)) == (403, "link_expired")


async def test_a_rotation_drops_keys_whose_last_link_has_expired(open_store: OpenStore, clock):
    async with open_store() as store:
        worker = signing(store, clock)
        await worker.sign(PATH)
        first = await kids(store)
        second = await worker.rotate(actor=ADMIN)
        clock.now += 2 * DAY
        third = await worker.rotate(actor=ADMIN)
        assert await kids(store) == [third, second]
        assert first[0] not in (second, third)


async def test_concurrent_rotations_all_add_a_key(open_store: OpenStore, clock):
    async with open_store() as one, open_store() as other:
        made = await asyncio.gather(
            signing(one, clock).rotate(actor=ADMIN), signing(other, clock).rotate(actor=ADMIN)
        )
        assert set(made) == set((await kids(one))[:2])


async def test_unknown_keys_make_a_worker_read_the_store_once_a_second(
    open_store: OpenStore, clock
):
    async with open_store() as opened:
        store = CountingStore(opened)
        worker = signing(store, clock)
        await worker.sign(PATH)
        foreign = KEYS.sign(PATH, expires_at=int(NOON) + 60)
        clock.now += 1
        store.commands.clear()
        for _ in range(3):
            results = await asyncio.gather(*(refusal(foreign, worker) for _ in range(20)))
            assert set(results) == {(403, "link_invalid")}
        assert len(store.commands) == 1
        clock.now += 1
        await refusal(foreign, worker)
        assert len(store.commands) == 2
        clock.now -= 1000  # a clock that was set back does not stop the reads
        await refusal(foreign, worker)
        assert len(store.commands) == 3


async def test_a_malformed_link_does_not_read_the_store(open_store: OpenStore, clock):
    async with open_store() as opened:
        store = CountingStore(opened)
        assert await refusal("/images/img-x.png?sig=1", signing(store, clock)) == (
            403,
            "link_invalid",
        )
        assert store.commands == []


async def test_while_the_store_is_unavailable_known_keys_sign_and_verify(
    open_store: OpenStore, clock
):
    async with open_store() as opened:
        store = CountingStore(opened)
        worker = signing(store, clock)
        link = await worker.sign(PATH)
        store.is_unavailable = True
        clock.now += 120
        assert await worker.verify(await worker.sign(PATH))
        assert await worker.verify(link)
        foreign = KEYS.sign(PATH, expires_at=int(NOON) + 600)
        assert await refusal(foreign, worker) == (503, "store_unavailable")
        for command in (worker.rotate(actor=ADMIN), signing(store, clock).sign(PATH)):
            with pytest.raises(StoreUnavailable):
                await command
        store.is_unavailable = False
        assert await refusal(foreign, worker) == (403, "link_invalid")


async def test_keys_of_the_settings_never_read_the_store(open_store: OpenStore, clock):
    configured = [("b", SecretStr("a configured secret")), ("a", SecretStr("an older secret!"))]
    async with open_store() as opened:
        store = CountingStore(opened)
        worker = signing(store, clock, keys=configured)
        link = await worker.sign(PATH)
        assert kid_of(link) == "b"
        clock.now += 3600
        assert await worker.verify(link)
        assert await signing(store, clock, keys=configured[:1]).verify(link)
        assert await refusal(link, signing(store, clock, keys=configured[1:])) == (
            403,
            "link_invalid",
        )
        with pytest.raises(GatewayError, match="GATEWAY_SIGNING_KEYS") as error:
            await worker.rotate(actor=ADMIN)
        assert error.value.status == 409
        assert store.commands == []


async def test_a_rotation_that_always_conflicts_gives_up(open_store: OpenStore, clock):
    class Contested(CountingStore):
        async def execute(self, commands):
            if any(isinstance(command, CompareAndSet) for command in commands):
                await signing(self._store, clock).rotate(actor=ADMIN)
            return await super().execute(commands)

    async with open_store() as store:
        await signing(store, clock).sign(PATH)
        with pytest.raises(GatewayError, match="try again") as error:
            await signing(Contested(store), clock).rotate(actor=ADMIN)
        assert error.value.status == 503


def test_new_keys_have_256_random_bits():
    first, second = (make_key(NOON, secrets.token_bytes) for _ in range(2))
    assert first.kid != second.kid
    assert len(bytes.fromhex(first.secret)) == 32
    assert first.secret != second.secret


def test_a_replaced_key_is_kept_for_the_lifetime_of_its_last_link():
    keys = [StoredKey(f"k{i}", "00" * 32, NOON - i * DAY / 2) for i in range(6)]
    kept = rotate_in(keys[0], keys[1:], url_ttl_seconds=DAY)
    assert [key.kid for key in kept] == ["k0", "k1", "k2", "k3"]
