"""The rest of the contract of entries; the basics are in `test_contract.py`.

Leases that ignore images, images that displace others, scans, and random sequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Slot
from gateway.store.protocol import Store
from tests.conftest import OpenStore

SHORT = 0.15
PAST_SHORT = 0.25
LONG = 60.0


def acquire(
    flight: str, slots: Iterable[int] = (0,), *, ignoring: Iterable[str] = ()
) -> commands.AcquireLease:
    return commands.AcquireLease("f", tuple(slots), flight, LONG, tuple(ignoring))


def store_images(
    flight: str,
    images: Mapping[int, str],
    *,
    fingerprint: str = "f",
    ttl: float = LONG,
    displaces: bool = False,
) -> commands.StoreImages:
    slots = {index: Slot(image, 0.0, f"<{image}>".encode()) for index, image in images.items()}
    return commands.StoreImages(fingerprint, flight, slots, ttl, LONG, displaces)


async def entry(store: Store, fingerprint: str = "f") -> dict[int, str]:
    """Slot → image id. Also checks that each slot has the data of its image."""
    slots = (await execute(store, commands.ReadEntry(fingerprint))).slots
    assert all(slot.data == f"<{slot.image_id}>".encode() for slot in slots.values())
    return {index: slot.image_id for index, slot in slots.items()}


async def all_entries(store: Store, *, limit: int) -> dict[str, dict[int, str]]:
    """Every entry, page by page."""
    found: dict[str, dict[int, str]] = {}
    after: str | None = ""
    while after is not None:
        page = await execute(store, commands.ScanEntries(after, limit))
        for fingerprint, slots in page.entries.items():
            found[fingerprint] = {index: slot.image_id for index, slot in slots.items()}
        after = page.after
    return found


class TestIgnoring:
    async def test_a_slot_with_an_ignored_image_is_empty(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a", 1: "b", 2: "c"}))
        result = await execute(store, acquire("one", range(4), ignoring=("a", "c", "elsewhere")))
        assert ({i: s.image_id for i, s in result.cached.items()}, result.acquired) == (
            {1: "b"},
            (0, 2, 3),
        )

    async def test_other_flights_still_find_the_image(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a"}))
        await execute(store, acquire("one", ignoring=("a",)))
        assert set((await execute(store, acquire("two"))).cached) == {0}

    async def test_a_flight_that_ignores_it_too_finds_the_lease(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a"}))
        await execute(store, acquire("one", ignoring=("a",)))
        result = await execute(store, acquire("two", ignoring=("a",)))
        assert (dict(result.cached), result.acquired, dict(result.leased)) == ({}, (), {0: "one"})


class TestDisplacing:
    async def test_displaced_images_move_to_the_first_empty_slots(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a", 1: "b", 3: "c"}))
        stored = await execute(store, store_images("one", {0: "x", 1: "y"}, displaces=True))
        assert stored == {0: 0, 1: 1}
        assert await entry(store) == {0: "x", 1: "y", 2: "a", 3: "c", 4: "b"}

    async def test_a_displaced_image_is_unchanged(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a"}, ttl=1000))
        before = (await execute(store, commands.ReadEntry("f"))).slots[0]
        await execute(store, store_images("one", {0: "x"}, displaces=True))
        assert (await execute(store, commands.ReadEntry("f"))).slots[1] == before

    async def test_a_displaced_image_does_not_take_a_wanted_slot(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a"}))
        assert await execute(store, store_images("one", {0: "x", 1: "y"}, displaces=True)) == {
            0: 0,
            1: 1,
        }
        assert await entry(store) == {0: "x", 1: "y", 2: "a"}

    async def test_displacing_twice_changes_nothing(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a", 1: "b"}))
        for _ in range(2):
            assert await execute(store, store_images("one", {0: "x", 1: "y"}, displaces=True)) == {
                0: 0,
                1: 1,
            }
        assert await entry(store) == {0: "x", 1: "y", 2: "a", 3: "b"}

    async def test_the_images_of_the_command_are_not_displaced(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a", 1: "x"}))
        stored = await execute(store, store_images("one", {0: "x", 1: "y"}, displaces=True))
        assert stored == {0: 1, 1: 2}
        assert await entry(store) == {0: "a", 1: "x", 2: "y"}

    async def test_the_lease_of_another_flight_is_respected(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a", 1: "b"}))
        await execute(store, acquire("two", (0, 2), ignoring=("a",)))
        assert await execute(store, store_images("one", {0: "x", 1: "y"}, displaces=True)) == {
            0: 3,
            1: 1,
        }
        assert await entry(store) == {0: "a", 1: "y", 3: "x", 4: "b"}

    async def test_the_flights_own_leases_end(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a"}))
        await execute(store, acquire("one", (0, 1), ignoring=("a",)))
        assert await execute(store, store_images("one", {0: "x"}, displaces=True)) == {0: 0}
        assert await entry(store) == {0: "x", 1: "a"}
        assert (await execute(store, acquire("two", (2,)))).acquired == (2,)

    async def test_beyond_slot_63_a_displaced_image_is_dropped(self, store: Store) -> None:
        await execute(store, store_images("zero", {index: f"p{index}" for index in range(63)}))
        stored = await execute(store, store_images("one", {0: "x", 1: "y"}, displaces=True))
        assert stored == {0: 0, 1: 1}
        found = await entry(store)
        assert (len(found), found[0], found[1], found[63]) == (64, "x", "y", "p0")

    async def test_without_displaces_nothing_is_displaced(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: "a"}))
        assert await execute(store, store_images("one", {0: "x"})) == {0: 1}
        assert await entry(store) == {0: "a", 1: "x"}

    @pytest.mark.parametrize("displaces", [True, False])
    async def test_an_expired_image_that_is_overwritten_can_be_stored_again(
        self, store: Store, displaces: bool
    ) -> None:
        await execute(store, store_images("zero", {0: "a"}, ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        stored = await execute(store, store_images("one", {0: "x", 1: "a"}, displaces=displaces))
        assert stored == {0: 0, 1: 1}
        assert await entry(store) == {0: "x", 1: "a"}


class TestScan:
    async def test_without_entries_there_is_one_empty_page(self, store: Store) -> None:
        assert await all_entries(store, limit=10) == {}

    @pytest.mark.parametrize("limit", [1, 7, 25, 1000])
    async def test_every_entry_is_on_some_page(self, store: Store, limit: int) -> None:
        wanted = {f"print{i:03}": {0: f"p{i}", i % 5 + 1: f"q{i}"} for i in range(50)}
        await store.execute(
            [
                store_images("one", slots, fingerprint=fingerprint)
                for fingerprint, slots in wanted.items()
            ]
        )
        assert await all_entries(store, limit=limit) == wanted

    async def test_a_scan_finds_only_entries(self, store: Store) -> None:
        await store.execute(
            [
                commands.CompareAndSet((commands.Write("entry", "entry:{x}", b"v", None),)),
                commands.SetValue("entry", "x", b"v", LONG),
                commands.Publish("entry", "e", b"v", LONG),
                acquire("one"),
                store_images("two", {0: "a"}, fingerprint="only"),
            ]
        )
        assert await all_entries(store, limit=100) == {"only": {0: "a"}}

    async def test_a_page_is_not_much_larger_than_its_limit(self, store: Store) -> None:
        await store.execute(
            [store_images("one", {0: "a"}, fingerprint=f"print{i}") for i in range(300)]
        )
        page = await execute(store, commands.ScanEntries(limit=20))
        assert len(page.entries) <= 40
        assert page.after is not None

    async def test_a_scan_returns_expired_images_too(self, store: Store) -> None:
        await store.execute(
            [store_images("one", {0: "a"}, ttl=SHORT), store_images("one", {3: "b"}, ttl=LONG)]
        )
        await asyncio.sleep(PAST_SHORT)
        slots = (await execute(store, commands.ReadEntry("f"))).slots
        assert set(slots) == {0, 3}
        assert await all_entries(store, limit=100) == {"f": {0: "a", 3: "b"}}


# ── random sequences, compared with a model ─────────────────────────────────────────────────


@dataclass
class Model:
    """One entry; nothing expires."""

    cached: dict[int, str] = field(default_factory=dict)
    leases: dict[int, str] = field(default_factory=dict)

    def acquire(
        self, command: commands.AcquireLease
    ) -> tuple[set[int], tuple[int, ...], dict[int, str]]:
        cached = {
            i for i in command.slots if i in self.cached and self.cached[i] not in command.ignoring
        }
        leased = {
            i: self.leases[i]
            for i in command.slots
            if i not in cached and self.leases.get(i, command.flight) != command.flight
        }
        acquired = tuple(i for i in command.slots if i not in cached and i not in leased)
        self.leases |= dict.fromkeys(acquired, command.flight)
        return cached, acquired, leased

    def store_images(self, command: commands.StoreImages) -> dict[int, int]:
        self.leases = {i: flight for i, flight in self.leases.items() if flight != command.flight}
        own = {slot.image_id for slot in command.slots.values()}
        displaced = []
        for wanted, slot in sorted(command.slots.items()):
            if slot.image_id in self.cached.values():
                continue
            is_taken = command.displaces and wanted not in self.leases
            if is_taken and self.cached.get(wanted, slot.image_id) not in own:
                displaced.append(self.cached.pop(wanted))
            if wanted in self.leases and wanted not in self.cached:
                self.cached[wanted] = slot.image_id
            else:
                self.put(wanted, slot.image_id)
        for image in displaced:
            self.put(0, image)
        slot_of = {image: index for index, image in self.cached.items()}
        return {w: slot_of[s.image_id] for w, s in command.slots.items() if s.image_id in slot_of}

    def put(self, wanted: int, image: str) -> None:
        free = [i for i in (wanted, *range(64)) if i not in self.cached and i not in self.leases]
        if free:
            self.cached[free[0]] = image


FLIGHTS = st.sampled_from(["one", "two", "three"])
SLOTS = st.one_of(st.integers(0, 5), st.integers(60, 63))
IMAGES = st.text("abcdefghij", min_size=1, max_size=1)
ACQUIRES = st.builds(
    acquire,
    FLIGHTS,
    st.lists(SLOTS, unique=True, max_size=4),
    ignoring=st.lists(IMAGES, max_size=3),
)
STORES = st.builds(
    store_images,
    FLIGHTS,
    st.lists(st.tuples(SLOTS, IMAGES), max_size=4, unique_by=(lambda x: x[0], lambda x: x[1])).map(
        dict
    ),
    displaces=st.booleans(),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(filler=st.sampled_from([0, 54]), steps=st.lists(st.one_of(ACQUIRES, STORES), max_size=15))
def test_any_sequence_agrees_with_the_model(
    open_store: OpenStore, filler: int, steps: list[commands.AcquireLease | commands.StoreImages]
) -> None:
    """The leases of each flight, the slots of each image, and the final entry."""

    async def run() -> None:
        async with open_store() as store:
            await _clear(store)
            model = Model()
            for command in (
                store_images("filler", {i + 6: f"p{i}" for i in range(filler)}),
                *steps,
            ):
                if isinstance(command, commands.StoreImages):
                    assert await execute(store, command) == model.store_images(command)
                else:
                    result = await execute(store, command)
                    found = (set(result.cached), result.acquired, dict(result.leased))
                    assert found == model.acquire(command)
                assert await entry(store) == model.cached

    asyncio.run(run())


async def _clear(store: Store) -> None:
    releases = [commands.ReleaseLease("f", flight) for flight in ("one", "two", "three")]
    await store.execute([commands.EmptySlots("f", await entry(store)), *releases])
