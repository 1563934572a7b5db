"""The images that a worker bought and the store has not confirmed yet."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from gateway.cache import unstored_images
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.unstored_images import UnstoredImages
from gateway.images import Image
from tests.waiting import eventually

FINGERPRINT = "f" * 64


@dataclass
class Bench:
    """Unstored images of at most 100 bytes, with a clock and take-downs."""

    now: float = 50.0
    taken_down: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unstored = UnstoredImages(
            100, ttl_seconds=1000.0, is_taken_down=self.taken_down.__contains__, clock=self.read
        )

    def read(self) -> float:
        return self.now

    def buy(
        self, slots: Mapping[int, str], *, size: int = 10, displaces: bool = False, f: str = "f"
    ) -> str:
        """Adds a purchase: slot → digest. Returns its flight."""
        flight = Flight(secrets.token_hex(4), f * 64, tuple(slots), displaces=displaces)
        images = {slot: _image(digest) for slot, digest in slots.items()}
        data = {digest: bytes(size) for digest in slots.values()}
        self.unstored.add(flight, PurchasedImages(images, data))
        return flight.id

    def found(
        self, *slots: int, max_age: float | None = None, confirmed: bool = False
    ) -> dict[int, str]:
        found = self.unstored.find(
            FINGERPRINT,
            slots or range(64),
            max_age_seconds=max_age,
            with_confirmed=confirmed,
        )
        return {slot: one.cached.image.digest for slot, one in found.items()}


def _image(digest: str) -> Image:
    return Image(secrets.token_hex(12), digest, "png", 1, 1, 10, 0.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_images_are_found_by_slot_until_they_are_stored(bench: Bench) -> None:
    flight = bench.buy({0: "a", 2: "b"})
    bench.buy({0: "other"}, f="e")
    assert bench.found() == {0: "a", 2: "b"}
    assert bench.found(0, 1) == {0: "a"}
    purchased = bench.unstored.of_flight(flight)
    assert purchased is not None
    assert set(purchased.images) == {0, 2}
    bench.unstored.remove(flight)
    bench.unstored.remove(flight)
    assert bench.found() == {}
    assert bench.unstored.of_flight(flight) is None
    assert len(bench.unstored) == 1


def test_a_second_image_takes_the_first_free_slot(bench: Bench) -> None:
    bench.buy({0: "a"})
    bench.buy({0: "b"})
    assert bench.found() == {0: "a", 1: "b"}


def test_a_displacing_image_takes_its_slot(bench: Bench) -> None:
    bench.buy({0: "a", 1: "b"})
    bench.buy({0: "c"}, displaces=True)
    assert bench.found() == {0: "c", 1: "b", 2: "a"}


def test_age_and_time_to_live_are_those_of_a_hit(bench: Bench) -> None:
    bench.buy({0: "a"})
    bench.now += 90.5
    assert bench.unstored.find(FINGERPRINT, [0])[0].cached.ttl_seconds == 909
    assert bench.found(max_age=91) == {0: "a"}
    assert bench.found(max_age=90) == {}
    bench.now += 1000
    assert bench.found() == {}


def test_images_that_are_taken_down_are_not_found(bench: Bench) -> None:
    bench.buy({0: "a", 1: "b"})
    bench.taken_down.add("a")
    assert bench.found() == {1: "b"}


def test_beyond_the_bound_the_oldest_purchases_are_forgotten(bench: Bench) -> None:
    for name in "abc":
        bench.buy({0: name}, size=40)
    assert bench.found() == {0: "b", 1: "c"}
    bench.buy({0: "larger than the bound"}, size=101)
    assert bench.found() == {0: "b", 1: "c"}


def test_the_number_of_purchases_is_bounded_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unstored_images, "MAX_PURCHASES", 2)
    for name in "abc":
        bench.buy({0: name}, size=1)
    assert (len(bench.unstored), bench.found()) == (2, {0: "b", 1: "c"})


def test_without_a_memory_cache_nothing_is_kept() -> None:
    unstored = UnstoredImages()
    unstored.add(Flight("a", FINGERPRINT, (0,)), PurchasedImages({0: _image("a")}, {"a": b"a"}))
    assert len(unstored) == 0


async def test_confirmed_images_are_found_for_some_seconds_by_requests_without_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unstored_images, "CONFIRMED_SECONDS", 0.05)
    flight = bench.buy({0: "a"})
    bench.buy({1: "b"})
    bench.unstored.confirm(flight)
    bench.unstored.confirm(flight)
    bench.unstored.remove(flight)
    assert (bench.found(), bench.found(confirmed=True)) == ({1: "b"}, {0: "a", 1: "b"})
    assert bench.unstored.of_flight(flight) is None
    assert len(bench.unstored) == 1
    bench.taken_down.add("a")
    assert bench.found(confirmed=True) == {1: "b"}
    bench.taken_down.clear()
    await eventually(lambda: bench.found(confirmed=True) == {1: "b"})


async def test_confirmed_images_make_room_first(bench: Bench) -> None:
    bench.buy({0: "a"}, size=40)
    bench.unstored.confirm(bench.buy({1: "b"}, size=40))
    bench.buy({2: "c"}, size=60)
    assert bench.found(confirmed=True) == {0: "a", 2: "c"}
    bench.buy({3: "d"}, size=40)
    assert bench.found(confirmed=True) == {2: "c", 3: "d"}


async def test_confirmed_images_are_forgotten_when_something_is_purged(bench: Bench) -> None:
    bench.unstored.confirm(bench.buy({0: "a"}))
    bench.unstored.confirm(bench.buy({1: "b"}))
    bench.buy({2: "c"})
    bench.unstored.forget_confirmed()
    assert bench.found(confirmed=True) == {2: "c"}
    bench.buy({3: "d"}, size=90)
    assert bench.found(confirmed=True) == {2: "c", 3: "d"}
