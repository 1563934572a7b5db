"""What every store promises of entries beyond the plain claim and keep of `test_contract.py`.

Claims that ignore what a slot holds, images that displace others, and going through all there is.
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
OVER = 0.25
LONG = 60.0


def claim(
    flight: str, slots: Iterable[int] = (0,), *, ignoring: Iterable[str] = ()
) -> commands.AcquireLease:
    return commands.AcquireLease("f", tuple(slots), flight, LONG, tuple(ignoring))


def keep(
    flight: str,
    images: Mapping[int, str],
    *,
    print_: str = "f",
    lifetime: float = LONG,
    displaces: bool = False,
) -> commands.StoreImages:
    slots = {index: Slot(image, 0.0, f"<{image}>".encode()) for index, image in images.items()}
    return commands.StoreImages(print_, flight, slots, lifetime, LONG, displaces)


async def entry(store: Store, print_: str = "f") -> dict[int, str]:
    """Slot → image; that the data are those of the image is checked on the way."""
    slots = (await execute(store, commands.ReadEntry(print_))).slots
    assert all(slot.data == f"<{slot.image_id}>".encode() for slot in slots.values())
    return {index: slot.image_id for index, slot in slots.items()}


async def all_entries(store: Store, *, limit: int) -> dict[str, dict[int, str]]:
    """Every entry, page by page."""
    found: dict[str, dict[int, str]] = {}
    after: str | None = ""
    while after is not None:
        page = await execute(store, commands.ScanEntries(after, limit))
        for print_, slots in page.entries.items():
            found[print_] = {index: slot.image_id for index, slot in slots.items()}
        after = page.after
    return found


class TestIgnoring:
    async def test_a_slot_whose_image_is_ignored_is_empty(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a", 1: "b", 2: "c"}))
        claimed = await execute(store, claim("one", range(4), ignoring=("a", "c", "elsewhere")))
        assert ({i: s.image_id for i, s in claimed.held.items()}, claimed.mine) == (
            {1: "b"},
            (0, 2, 3),
        )

    async def test_for_other_claims_the_image_is_there_all_the_same(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a"}))
        await execute(store, claim("one", ignoring=("a",)))
        assert set((await execute(store, claim("two"))).held) == {0}

    async def test_who_ignores_it_too_finds_the_claim(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a"}))
        await execute(store, claim("one", ignoring=("a",)))
        claimed = await execute(store, claim("two", ignoring=("a",)))
        assert (dict(claimed.held), claimed.mine, dict(claimed.others)) == ({}, (), {0: "one"})


class TestDisplacing:
    async def test_what_was_there_moves_to_the_first_free_slots(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a", 1: "b", 3: "c"}))
        kept = await execute(store, keep("one", {0: "x", 1: "y"}, displaces=True))
        assert kept == {0: 0, 1: 1}
        assert await entry(store) == {0: "x", 1: "y", 2: "a", 3: "c", 4: "b"}

    async def test_it_moves_as_it_is(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a"}, lifetime=1000))
        before = (await execute(store, commands.ReadEntry("f"))).slots[0]
        await execute(store, keep("one", {0: "x"}, displaces=True))
        assert (await execute(store, commands.ReadEntry("f"))).slots[1] == before

    async def test_a_wanted_slot_is_not_free_for_what_was_displaced(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a"}))
        assert await execute(store, keep("one", {0: "x", 1: "y"}, displaces=True)) == {0: 0, 1: 1}
        assert await entry(store) == {0: "x", 1: "y", 2: "a"}

    async def test_doing_it_twice_changes_nothing(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a", 1: "b"}))
        for _ in range(2):
            assert await execute(store, keep("one", {0: "x", 1: "y"}, displaces=True)) == {
                0: 0,
                1: 1,
            }
        assert await entry(store) == {0: "x", 1: "y", 2: "a", 3: "b"}

    async def test_what_the_verb_itself_brings_is_not_displaced(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a", 1: "x"}))
        kept = await execute(store, keep("one", {0: "x", 1: "y"}, displaces=True))
        assert kept == {0: 1, 1: 2}
        assert await entry(store) == {0: "a", 1: "x", 2: "y"}

    async def test_anothers_claim_is_respected(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a", 1: "b"}))
        await execute(store, claim("two", (0, 2), ignoring=("a",)))
        assert await execute(store, keep("one", {0: "x", 1: "y"}, displaces=True)) == {0: 3, 1: 1}
        assert await entry(store) == {0: "a", 1: "y", 3: "x", 4: "b"}

    async def test_its_own_claim_is_given_back(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a"}))
        await execute(store, claim("one", (0, 1), ignoring=("a",)))
        assert await execute(store, keep("one", {0: "x"}, displaces=True)) == {0: 0}
        assert await entry(store) == {0: "x", 1: "a"}
        assert (await execute(store, claim("two", (2,)))).mine == (2,)

    async def test_beyond_slot_63_what_was_displaced_is_dropped(self, store: Store) -> None:
        await execute(store, keep("zero", {index: f"p{index}" for index in range(63)}))
        kept = await execute(store, keep("one", {0: "x", 1: "y"}, displaces=True))
        assert kept == {0: 0, 1: 1}
        found = await entry(store)
        assert (len(found), found[0], found[1], found[63]) == (64, "x", "y", "p0")

    async def test_without_it_nothing_is_displaced(self, store: Store) -> None:
        await execute(store, keep("zero", {0: "a"}))
        assert await execute(store, keep("one", {0: "x"})) == {0: 1}
        assert await entry(store) == {0: "a", 1: "x"}

    @pytest.mark.parametrize("displaces", [True, False])
    async def test_an_expired_image_that_is_overwritten_can_be_kept_again(
        self, store: Store, displaces: bool
    ) -> None:
        await execute(store, keep("zero", {0: "a"}, lifetime=SHORT))
        await asyncio.sleep(OVER)
        kept = await execute(store, keep("one", {0: "x", 1: "a"}, displaces=displaces))
        assert kept == {0: 0, 1: 1}
        assert await entry(store) == {0: "x", 1: "a"}


class TestScan:
    async def test_without_entries_there_is_one_empty_page(self, store: Store) -> None:
        assert await all_entries(store, limit=10) == {}

    @pytest.mark.parametrize("limit", [1, 7, 25, 1000])
    async def test_every_entry_is_on_some_page(self, store: Store, limit: int) -> None:
        wanted = {f"print{i:03}": {0: f"p{i}", i % 5 + 1: f"q{i}"} for i in range(50)}
        await store.execute([keep("one", slots, print_=print_) for print_, slots in wanted.items()])
        assert await all_entries(store, limit=limit) == wanted

    async def test_other_things_are_not_among_them(self, store: Store) -> None:
        await store.execute(
            [
                commands.CompareAndSet((commands.Write("entry", "entry:{x}", b"v", None),)),
                commands.SetValue("entry", "x", b"v", LONG),
                commands.Publish("entry", "e", b"v", LONG),
                claim("one"),
                keep("two", {0: "a"}, print_="only"),
            ]
        )
        assert await all_entries(store, limit=100) == {"only": {0: "a"}}

    async def test_a_page_has_no_more_than_was_asked_for_by_much(self, store: Store) -> None:
        await store.execute([keep("one", {0: "a"}, print_=f"print{i}") for i in range(300)])
        page = await execute(store, commands.ScanEntries(limit=20))
        assert len(page.entries) <= 40
        assert page.after is not None

    async def test_slots_come_as_they_lie_the_expired_ones_too(self, store: Store) -> None:
        await store.execute(
            [keep("one", {0: "a"}, lifetime=SHORT), keep("one", {3: "b"}, lifetime=LONG)]
        )
        await asyncio.sleep(OVER)
        lying = (await execute(store, commands.ReadEntry("f"))).slots
        assert set(lying) == {0, 3}
        page = await execute(store, commands.ScanEntries())
        assert page == commands.EntriesPage({"f": lying}, None)


# ── random stories against a model ──────────────────────────────────────────────────────────


@dataclass
class Model:
    """One entry in which nothing ever expires."""

    held: dict[int, str] = field(default_factory=dict)
    claims: dict[int, str] = field(default_factory=dict)

    def claim(
        self, command: commands.AcquireLease
    ) -> tuple[set[int], tuple[int, ...], dict[int, str]]:
        held = {i for i in command.slots if i in self.held and self.held[i] not in command.ignoring}
        others = {
            i: self.claims[i]
            for i in command.slots
            if i not in held and self.claims.get(i, command.flight) != command.flight
        }
        mine = tuple(i for i in command.slots if i not in held and i not in others)
        self.claims |= dict.fromkeys(mine, command.flight)
        return held, mine, others

    def keep(self, command: commands.StoreImages) -> dict[int, int]:
        self.claims = {i: flight for i, flight in self.claims.items() if flight != command.flight}
        own = {slot.image_id for slot in command.slots.values()}
        homeless = []
        for wanted, slot in sorted(command.slots.items()):
            if slot.image_id in self.held.values():
                continue
            makes_way = command.displaces and wanted not in self.claims
            if makes_way and self.held.get(wanted, slot.image_id) not in own:
                homeless.append(self.held.pop(wanted))
            self.put(wanted, slot.image_id)
        for image in homeless:
            self.put(0, image)
        places = {image: index for index, image in self.held.items()}
        return {w: places[s.image_id] for w, s in command.slots.items() if s.image_id in places}

    def put(self, wanted: int, image: str) -> None:
        free = [i for i in (wanted, *range(64)) if i not in self.held and i not in self.claims]
        if free:
            self.held[free[0]] = image


FLIGHTS = st.sampled_from(["one", "two", "three"])
SLOTS = st.one_of(st.integers(0, 5), st.integers(60, 63))
IMAGES = st.text("abcdefghij", min_size=1, max_size=1)
CLAIMS = st.builds(
    claim,
    FLIGHTS,
    st.lists(SLOTS, unique=True, max_size=4),
    ignoring=st.lists(IMAGES, max_size=3),
)
KEEPS = st.builds(
    keep,
    FLIGHTS,
    st.lists(st.tuples(SLOTS, IMAGES), max_size=4, unique_by=(lambda x: x[0], lambda x: x[1])).map(
        dict
    ),
    displaces=st.booleans(),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(filler=st.sampled_from([0, 54]), story=st.lists(st.one_of(CLAIMS, KEEPS), max_size=15))
def test_any_story_ends_as_the_model_says(
    open_store: OpenStore, filler: int, story: list[commands.AcquireLease | commands.StoreImages]
) -> None:
    """Who gets which slot, who is named for which, and what lies where in the end."""

    async def tell() -> None:
        async with open_store() as store:
            await _clear(store)
            model = Model()
            for command in (keep("filler", {i + 6: f"p{i}" for i in range(filler)}), *story):
                if isinstance(command, commands.StoreImages):
                    assert await execute(store, command) == model.keep(command)
                else:
                    claimed = await execute(store, command)
                    found = (set(claimed.held), claimed.mine, dict(claimed.others))
                    assert found == model.claim(command)
                assert await entry(store) == model.held

    asyncio.run(tell())


async def _clear(store: Store) -> None:
    releases = [commands.ReleaseLease("f", flight) for flight in ("one", "two", "three")]
    await store.execute([commands.EmptySlots("f", await entry(store)), *releases])
