"""The contract of `gateway/store/commands`, on each adapter.

The arithmetic of counters is compared with a model in `test_counters.py`; values and sets, the LRU
index and blobs have files of their own. Tests of one adapter are in `test_sqlite.py` and
`test_redis.py`.
"""

from __future__ import annotations

import asyncio
import calendar
import os
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from gateway.images import Expected
from gateway.store import commands
from gateway.store.batch import Batch, execute
from gateway.store.commands import Consumption, Counter, Slot, Write
from gateway.store.protocol import Store
from tests.store.pages import read_space
from tests.waiting import GENEROUS_SECONDS

SHORT = 0.15
"""A time to live that a test can wait for."""
PAST_SHORT = 0.25
"""Long enough for `SHORT` to pass."""
LONG = 60.0

BINARY = bytes(range(256)) + b"\r\n\x00" + "otter 🦦".encode()


def slot(image: str, data: bytes = b"data") -> Slot:
    return Slot(image_id=image, expires_at=0.0, data=data)


def write(
    space: str, name: str, value: bytes | None, *, expected: bytes | None = None
) -> commands.CompareAndSet:
    return commands.CompareAndSet((Write(space, name, value, expected),))


def acquire(
    flight: str, slots: Iterable[int] = (0,), *, fingerprint: str = "f", lease: float = LONG
) -> commands.AcquireLease:
    return commands.AcquireLease(fingerprint, tuple(slots), flight, lease)


def store_images(
    flight: str,
    slots: dict[int, Slot],
    *,
    fingerprint: str = "f",
    ttl: float = LONG,
    stale_if_error: float = LONG,
) -> commands.StoreImages:
    return commands.StoreImages(fingerprint, flight, slots, ttl, stale_if_error)


def publish(flight: str, event_id: str, event: bytes, *, ttl: float = LONG) -> commands.Publish:
    return commands.Publish(flight, event_id, event, ttl)


def day(maximum: int | None = None, *, unit: str = "images", subject: str = "key:k") -> Counter:
    return Counter(subject, unit, "day", maximum)


def month(
    maximum: int | None = None, *, unit: str = "usd_micros", subject: str = "key:k"
) -> Counter:
    return Counter(subject, unit, "month", maximum)


def bucket(maximum: int | None, *, unit: str = "requests", subject: str = "key:k") -> Counter:
    return Counter(subject, unit, "minute", maximum)


def concurrent(maximum: int | None = None, *, subject: str = "key:k") -> Counter:
    return Counter(subject, "purchases", "concurrency", maximum)


def reserve(
    purchase: str, *consumptions: Consumption, worker: str = "w", payload: bytes = b"payload"
) -> commands.Reserve:
    return commands.Reserve(purchase, worker, consumptions, payload)


def settle(
    purchase: str,
    *,
    record: bytes | None = None,
    presumed: bool = False,
    correct: bool = False,
    **charge: int,
) -> commands.Settle:
    return commands.Settle(purchase, charge, record, presumed, correct)


async def peek(store: Store, *counters: Counter) -> list[tuple[int, int]]:
    """(used, reserved) of each counter."""
    return [(s.used, s.reserved) for s in await execute(store, commands.PeekCounters(counters))]


async def ledger(store: Store) -> list[bytes]:
    return [record for _, record in await execute(store, commands.ReadLedger())]


class TestExecute:
    async def test_results_come_in_the_order_of_the_commands(self, store: Store) -> None:
        results = await store.execute(
            [
                write("s", "a", b"1"),
                commands.Get("s", "a"),
                write("s", "a", b"2", expected=b"1"),
                commands.Get("s", "a"),
                write("s", "a", b"3", expected=b"1"),
                commands.Get("s", "missing"),
            ]
        )
        assert results == [None, b"1", None, b"2", 0, None]

    async def test_commands_of_different_aggregates_share_a_batch_in_order(
        self, store: Store
    ) -> None:
        batch = Batch(store)
        first = batch.add(acquire("one"))
        stored = batch.add(store_images("one", {0: slot("p")}))
        entry = batch.add(commands.ReadEntry("f"))
        second = batch.add(acquire("two", (0, 1)))
        await batch.execute()
        assert first.value.acquired == (0,)
        assert stored.value == {0: 0}
        assert entry.value.slots[0].image_id == "p"
        assert (set(second.value.cached), second.value.acquired) == ({0}, (1,))

    async def test_no_commands_have_no_results(self, store: Store) -> None:
        assert await store.execute([]) == []

    async def test_concurrent_batches_each_get_their_own_results(self, store: Store) -> None:
        async def round_trip(number: int) -> bytes | None:
            value = str(number).encode()
            return (
                await store.execute(
                    [write("s", f"n{number}", value), commands.Get("s", f"n{number}")]
                )
            )[1]

        found = await asyncio.gather(*(round_trip(number) for number in range(200)))
        assert found == [str(number).encode() for number in range(200)]

    async def test_a_second_connection_reads_the_writes_of_the_first(
        self, store: Store, other: Store
    ) -> None:
        await execute(store, write("s", "a", BINARY))
        assert await execute(other, commands.Get("s", "a")) == BINARY

    async def test_a_store_has_a_name(self, store: Store) -> None:
        assert store.name

    async def test_a_cancelled_batch_does_not_disturb_the_others(self, store: Store) -> None:
        tasks = [asyncio.create_task(execute(store, write("s", str(i), b"v"))) for i in range(20)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for i, r in enumerate(results) if i != 3] == [None] * 19
        assert await execute(store, commands.Get("s", "19")) == b"v"


class TestRecords:
    async def test_an_unknown_record_is_none(self, store: Store) -> None:
        assert await execute(store, commands.Get("keys", "unknown")) is None

    async def test_a_value_is_returned_byte_for_byte(self, store: Store) -> None:
        await execute(store, write("keys", "näme:with {odd} \x00 signs", BINARY))
        assert await execute(store, commands.Get("keys", "näme:with {odd} \x00 signs")) == BINARY

    async def test_an_empty_value_is_a_record(self, store: Store) -> None:
        await execute(store, write("keys", "k", b""))
        assert await execute(store, commands.Get("keys", "k")) == b""

    async def test_a_large_value_is_returned_completely(self, store: Store) -> None:
        value = os.urandom(2 * 1024 * 1024)
        await execute(store, write("keys", "big", value))
        assert await execute(store, commands.Get("keys", "big")) == value

    async def test_spaces_do_not_share_names(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"v"))
        assert await execute(store, commands.Get("names", "k")) is None

    async def test_an_index_leads_to_the_record(self, store: Store) -> None:
        changes = (
            Write("hashes", "h", "id-ü".encode(), None),
            Write("keys", "id-ü", b"v", None),
        )
        await execute(store, commands.CompareAndSet(changes))
        assert await execute(store, commands.Get("keys", "h", index="hashes")) == b"v"

    async def test_an_index_to_a_missing_record_is_none(self, store: Store) -> None:
        await execute(store, write("hashes", "h", b"gone"))
        assert await execute(store, commands.Get("keys", "h", index="hashes")) is None
        assert await execute(store, commands.Get("keys", "other", index="hashes")) is None

    async def test_a_write_happens_only_if_the_record_is_as_expected(self, store: Store) -> None:
        assert await execute(store, write("keys", "k", b"1", expected=b"0")) == 0
        assert await execute(store, write("keys", "k", b"1")) is None
        assert await execute(store, write("keys", "k", b"2")) == 0
        assert await execute(store, write("keys", "k", b"2", expected=b"1")) is None
        assert await execute(store, commands.Get("keys", "k")) == b"2"

    async def test_all_writes_happen_or_none_and_the_first_conflict_is_returned(
        self, store: Store
    ) -> None:
        await execute(store, write("keys", "taken", b"v"))
        changes = (
            Write("keys", "new", b"v", None),
            Write("names", "n", b"v", None),
            Write("keys", "taken", b"v", None),
            Write("keys", "taken", b"v", b"other"),
        )
        assert await execute(store, commands.CompareAndSet(changes)) == 2
        assert await execute(store, commands.Get("keys", "new")) is None
        assert await execute(store, commands.Get("names", "n")) is None

    async def test_writing_none_deletes(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"1"))
        assert await execute(store, write("keys", "k", None, expected=b"1")) is None
        assert await execute(store, commands.Get("keys", "k")) is None
        assert await read_space(store, "keys") == {}

    async def test_of_many_concurrent_writes_exactly_one_creates_a_record(
        self, store: Store, other: Store
    ) -> None:
        results = await asyncio.gather(
            *(
                execute((store, other)[i % 2], write("names", "n", str(i).encode()))
                for i in range(40)
            )
        )
        winners = [i for i, result in enumerate(results) if result is None]
        assert len(winners) == 1
        assert await execute(store, commands.Get("names", "n")) == str(winners[0]).encode()

    async def test_reading_a_space_returns_all_its_records(self, store: Store) -> None:
        records = {f"k{i}": str(i).encode() for i in range(300)} | {"binary": BINARY}
        changes = [Write("keys", name, value, None) for name, value in records.items()]
        await execute(store, commands.CompareAndSet((*changes, Write("names", "n", b"v", None))))
        assert await read_space(store, "keys") == records
        assert await read_space(store, "empty") == {}


class TestLeases:
    async def test_an_unknown_fingerprint_has_no_slots(self, store: Store) -> None:
        entry = await execute(store, commands.ReadEntry("unknown"))
        assert entry.slots == {}
        assert entry.now == pytest.approx(time.time(), abs=GENEROUS_SECONDS)

    async def test_reading_an_entry_leases_nothing(self, store: Store) -> None:
        await execute(store, commands.ReadEntry("f"))
        assert (await execute(store, acquire("one"))).acquired == (0,)

    async def test_empty_slots_are_leased(self, store: Store) -> None:
        result = await execute(store, acquire("one", (0, 1, 63)))
        assert (dict(result.cached), result.acquired, dict(result.leased)) == (
            {},
            (0, 1, 63),
            {},
        )
        assert result.now == pytest.approx(time.time(), abs=GENEROUS_SECONDS)

    async def test_a_flight_that_leases_again_still_has_its_lease(self, store: Store) -> None:
        await execute(store, acquire("one", (0, 1)))
        result = await execute(store, acquire("one", (1, 2)))
        assert (result.acquired, dict(result.leased)) == ((1, 2), {})

    async def test_another_flights_lease_is_named(self, store: Store) -> None:
        await execute(store, acquire("one", (0, 1)))
        result = await execute(store, acquire("two", (1, 2)))
        assert (result.acquired, dict(result.leased)) == ((2,), {1: "one"})

    async def test_every_requested_slot_is_cached_acquired_or_leased(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: slot("p", BINARY)}))
        await execute(store, acquire("one", (1,)))
        result = await execute(store, acquire("two", (0, 1, 2)))
        assert {i: (s.image_id, s.data) for i, s in result.cached.items()} == {0: ("p", BINARY)}
        assert dict(result.leased) == {1: "one"}
        assert result.acquired == (2,)

    async def test_fingerprints_do_not_share_leases(self, store: Store) -> None:
        await execute(store, acquire("one"))
        assert (await execute(store, acquire("two", fingerprint="g"))).acquired == (0,)

    async def test_an_expired_lease_can_be_acquired(self, store: Store) -> None:
        await execute(store, acquire("one", lease=SHORT))
        await asyncio.sleep(PAST_SHORT)
        assert (await execute(store, acquire("two"))).acquired == (0,)

    async def test_a_lease_of_no_time_never_holds_a_slot(self, store: Store) -> None:
        """Those who wait after an outage ask like this, beside one that leases."""
        for n in range(20):
            batch = Batch(store)
            batch.add(commands.AcquireLease(f"no time {n}", (0,), "waits", 0.0))
            leased = batch.add(commands.AcquireLease(f"no time {n}", (0,), "leases", 60.0))
            await batch.execute()
            assert leased.value.acquired == (0,)

    async def test_a_slot_with_an_expired_image_can_be_leased(self, store: Store) -> None:
        await execute(store, store_images("one", {0: slot("p")}, ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        result = await execute(store, acquire("two"))
        assert (dict(result.cached), result.acquired) == ({}, (0,))

    async def test_one_lease_outlives_another_of_the_same_entry(self, store: Store) -> None:
        await execute(store, acquire("short", (0,), lease=SHORT))
        await execute(store, acquire("long", (1,)))
        await asyncio.sleep(PAST_SHORT)
        result = await execute(store, acquire("new", (0, 1)))
        assert (result.acquired, dict(result.leased)) == ((0,), {1: "long"})

    async def test_of_many_flights_exactly_one_leases_each_slot(
        self, store: Store, other: Store
    ) -> None:
        results = await asyncio.gather(
            *(execute((store, other)[i % 2], acquire(f"flight{i}", range(4))) for i in range(100))
        )
        acquired = [(slot, i) for i, result in enumerate(results) for slot in result.acquired]
        assert sorted(slot for slot, _ in acquired) == [0, 1, 2, 3]
        winner = {slot: f"flight{i}" for slot, i in acquired}
        assert all(dict(r.leased).items() <= winner.items() for r in results)

    async def test_renewing_extends_a_lease(self, store: Store) -> None:
        _, is_renewed = await store.execute(
            [acquire("one", (0, 1), lease=SHORT), commands.RenewLease("f", "one", LONG)]
        )
        assert is_renewed is True
        await asyncio.sleep(PAST_SHORT)
        assert dict((await execute(store, acquire("two", (0, 1)))).leased) == {0: "one", 1: "one"}

    async def test_renewing_can_shorten_a_lease(self, store: Store) -> None:
        await execute(store, acquire("one"))
        assert await execute(store, commands.RenewLease("f", "one", SHORT)) is True
        await asyncio.sleep(PAST_SHORT)
        assert (await execute(store, acquire("two"))).acquired == (0,)

    async def test_an_expired_lease_cannot_be_renewed(self, store: Store) -> None:
        await execute(store, acquire("one", lease=SHORT))
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is False
        assert (await execute(store, acquire("two"))).acquired == (0,)
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is False
        assert await execute(store, commands.RenewLease("f", "never", LONG)) is False

    async def test_renewing_leaves_other_flights_alone(self, store: Store) -> None:
        await execute(store, acquire("short", (0,), lease=SHORT))
        await execute(store, acquire("one", (1,)))
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is True
        await asyncio.sleep(PAST_SHORT)
        assert (await execute(store, acquire("two", (0,)))).acquired == (0,)

    async def test_releasing_ends_only_the_flights_own_leases(self, store: Store) -> None:
        await execute(store, acquire("one", (0, 1)))
        await execute(store, acquire("two", (2,)))
        for _ in range(2):
            assert await execute(store, commands.ReleaseLease("f", "one")) is None
        result = await execute(store, acquire("three", (0, 1, 2)))
        assert (result.acquired, dict(result.leased)) == ((0, 1), {2: "two"})


class TestStoreImages:
    async def test_images_are_in_their_slots_and_the_leases_end(self, store: Store) -> None:
        await execute(store, acquire("one", (0, 1, 2)))
        stored = await execute(store, store_images("one", {0: slot("a", BINARY), 1: slot("b")}))
        assert stored == {0: 0, 1: 1}
        result = await execute(store, acquire("two", (0, 1, 2)))
        assert {i: s.image_id for i, s in result.cached.items()} == {0: "a", 1: "b"}
        assert result.cached[0].data == BINARY
        assert result.acquired == (2,)

    async def test_images_expire_on_the_stores_clock(self, store: Store) -> None:
        wanted = Slot("p", expires_at=123.0, data=b"d")
        await execute(store, store_images("one", {0: wanted}, ttl=50))
        entry = await execute(store, commands.ReadEntry("f"))
        assert entry.slots[0].expires_at == pytest.approx(entry.now + 50, abs=GENEROUS_SECONDS)
        result = await execute(store, acquire("two"))
        assert result.cached[0].expires_at == entry.slots[0].expires_at

    async def test_storing_twice_changes_nothing(self, store: Store) -> None:
        await execute(store, store_images("one", {0: slot("a", b"first"), 2: slot("b")}, ttl=50))
        before = (await execute(store, commands.ReadEntry("f"))).slots
        stored = await execute(
            store, store_images("one", {0: slot("a", b"again"), 2: slot("b")}, ttl=90)
        )
        assert stored == {0: 0, 2: 2}
        assert (await execute(store, commands.ReadEntry("f"))).slots == before

    async def test_an_image_that_is_in_another_slot_stays_there(self, store: Store) -> None:
        await execute(store, store_images("one", {3: slot("a")}))
        assert await execute(store, store_images("two", {0: slot("a"), 1: slot("b")})) == {
            0: 3,
            1: 1,
        }
        entry = await execute(store, commands.ReadEntry("f"))
        assert {i: s.image_id for i, s in entry.slots.items()} == {1: "b", 3: "a"}

    async def test_if_the_slot_is_occupied_the_image_goes_to_the_lowest_empty_one(
        self, store: Store
    ) -> None:
        await execute(store, store_images("one", {0: slot("a"), 1: slot("b")}))
        assert await execute(store, store_images("late", {0: slot("c")})) == {0: 2}
        assert await execute(store, store_images("late", {0: slot("c")})) == {0: 2}
        entry = await execute(store, commands.ReadEntry("f"))
        assert {i: s.image_id for i, s in entry.slots.items()} == {0: "a", 1: "b", 2: "c"}

    async def test_wanted_slots_are_filled_in_ascending_order(self, store: Store) -> None:
        await execute(store, store_images("one", {0: slot("a")}))
        assert await execute(store, store_images("late", {1: slot("c"), 0: slot("b")})) == {
            0: 1,
            1: 2,
        }

    async def test_an_empty_wanted_slot_is_filled_although_another_flight_leases_it(
        self, store: Store
    ) -> None:
        """Or a request that asks for the slot would buy the image again."""
        await execute(store, acquire("owner", (0, 1)))
        assert await execute(store, store_images("late", {0: slot("a")})) == {0: 0}
        result = await execute(store, acquire("third", (0, 1)))
        assert (set(result.cached), dict(result.leased)) == ({0}, {1: "owner"})
        stored = await execute(store, store_images("owner", {0: slot("b"), 1: slot("c")}))
        assert set(stored.values()) == {1, 2}

    async def test_no_other_slot_that_another_flight_leases_is_filled(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: slot("x")}))
        await execute(store, acquire("owner", (1, 2)))
        assert await execute(store, store_images("late", {0: slot("a")})) == {0: 3}

    async def test_the_flights_own_leases_are_free_for_its_images(self, store: Store) -> None:
        await execute(store, store_images("zero", {0: slot("x")}))
        await execute(store, acquire("one", (1, 2)))
        assert await execute(store, store_images("one", {0: slot("a"), 2: slot("b")})) == {
            0: 1,
            2: 2,
        }

    async def test_an_expired_lease_is_not_respected(self, store: Store) -> None:
        await execute(store, acquire("expired", lease=SHORT))
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, store_images("late", {0: slot("a")})) == {0: 0}

    async def test_an_image_takes_the_slot_of_an_expired_one(self, store: Store) -> None:
        await execute(store, store_images("one", {0: slot("old")}, ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, store_images("two", {0: slot("new")})) == {0: 0}
        assert (await execute(store, commands.ReadEntry("f"))).slots[0].image_id == "new"

    async def test_beyond_slot_63_an_image_is_dropped(self, store: Store) -> None:
        await execute(store, store_images("full", {i: slot(f"p{i}") for i in range(63)}))
        assert await execute(store, store_images("late", {0: slot("a"), 1: slot("b")})) == {0: 63}
        entry = await execute(store, commands.ReadEntry("f"))
        assert sorted(entry.slots) == list(range(64))
        assert entry.slots[63].image_id == "a"

    async def test_an_expired_image_can_be_read_within_the_stale_if_error_window(
        self, store: Store
    ) -> None:
        await execute(store, store_images("one", {0: slot("p")}, ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        entry = await execute(store, commands.ReadEntry("f"))
        assert entry.slots[0].image_id == "p"
        assert entry.slots[0].expires_at < entry.now

    async def test_the_whole_entry_outlives_its_last_image(self, store: Store) -> None:
        await execute(store, store_images("one", {0: slot("a")}, ttl=LONG, stale_if_error=LONG))
        await execute(store, store_images("two", {1: slot("b")}, ttl=SHORT, stale_if_error=0.0))
        await asyncio.sleep(PAST_SHORT)
        assert sorted((await execute(store, commands.ReadEntry("f"))).slots) == [0, 1]

    async def test_storing_no_image_ends_the_leases(self, store: Store) -> None:
        await execute(store, acquire("one"))
        assert await execute(store, store_images("one", {})) == {}
        assert (await execute(store, acquire("two"))).acquired == (0,)

    async def test_emptying_removes_only_the_given_images(self, store: Store) -> None:
        await execute(store, store_images("one", {0: slot("a"), 1: slot("b"), 2: slot("c")}))
        for _ in range(2):
            assert (
                await execute(store, commands.EmptySlots("f", {0: "a", 1: "other", 9: "a"})) is None
            )
        entry = await execute(store, commands.ReadEntry("f"))
        assert {i: s.image_id for i, s in entry.slots.items()} == {1: "b", 2: "c"}
        assert (await execute(store, acquire("two"))).acquired == (0,)

    async def test_prolonging_lets_the_given_images_expire_later(self, store: Store) -> None:
        data = slot("b", b"x 1 \x00\n")
        await execute(store, store_images("one", {0: slot("a"), 1: data, 2: slot("c")}))
        before = (await execute(store, commands.ReadEntry("f"))).slots
        prolonged = commands.ProlongSlots("f", {0: "other", 1: "b", 9: "c"}, 10**6, 10**6)
        await execute(store, prolonged)
        # Never shortened, and nothing comes into being.
        await execute(store, replace(prolonged, ttl_seconds=1.0))
        await execute(store, replace(prolonged, fingerprint="g"))
        entry = await execute(store, commands.ReadEntry("f"))
        assert entry.slots.keys() == before.keys()
        for index in (0, 2):
            assert entry.slots[index] == before[index]
        assert entry.slots[1].expires_at == pytest.approx(entry.now + 10**6, abs=60)
        assert replace(entry.slots[1], expires_at=0.0) == replace(before[1], expires_at=0.0)
        assert entry.slots[1].stored_at == before[1].stored_at
        assert not (await execute(store, commands.ReadEntry("g"))).slots


class TestEvents:
    async def test_an_unknown_flight_has_no_events(self, store: Store) -> None:
        assert list(await execute(store, commands.ReadEvents("unknown"))) == []

    async def test_events_come_in_order_from_any_index(self, store: Store) -> None:
        events = [BINARY, b"", b"three"]
        for i, event in enumerate(events):
            assert await execute(store, publish("a", f"e{i}", event)) is None
        assert list(await execute(store, commands.ReadEvents("a"))) == events
        assert list(await execute(store, commands.ReadEvents("a", after=1))) == events[1:]
        assert list(await execute(store, commands.ReadEvents("a", after=3))) == []

    async def test_a_second_event_with_the_same_id_is_dropped(self, store: Store) -> None:
        await execute(store, publish("a", "e", b"first"))
        await execute(store, publish("a", "e", b"second"))
        await execute(store, publish("b", "e", b"elsewhere"))
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"first"]
        assert list(await execute(store, commands.ReadEvents("b"))) == [b"elsewhere"]

    async def test_the_time_to_live_starts_with_the_last_event(self, store: Store) -> None:
        await store.execute(
            [
                publish("long", "e1", b"1", ttl=SHORT),
                publish("long", "e2", b"2"),
                publish("short", "e1", b"1"),
                publish("short", "e2", b"2", ttl=SHORT),
            ]
        )
        await asyncio.sleep(PAST_SHORT)
        assert list(await execute(store, commands.ReadEvents("long"))) == [b"1", b"2"]
        assert list(await execute(store, commands.ReadEvents("short"))) == []

    async def test_a_flight_whose_events_expired_starts_empty(self, store: Store) -> None:
        await execute(store, publish("a", "e", b"old", ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        await execute(store, publish("a", "e", b"new"))
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"new"]

    async def test_an_event_may_be_large(self, store: Store) -> None:
        event = os.urandom(1024 * 1024)
        await execute(store, publish("a", "e", event))
        assert list(await execute(store, commands.ReadEvents("a"))) == [event]


@pytest.mark.timed
class TestWatch:
    async def test_an_event_ends_a_wait(self, store: Store, other: Store) -> None:
        async with store.watch("a") as watch:
            waiting = asyncio.create_task(watch.wait(60))
            await asyncio.sleep(0.05)
            started = time.monotonic()
            await execute(other, publish("a", "e", b"event"))
            await waiting
        assert time.monotonic() - started < 1

    async def test_an_event_of_the_same_process_ends_a_wait(self, store: Store) -> None:
        async with store.watch("a") as watch:
            started = time.monotonic()
            await execute(store, publish("a", "e", b"event"))
            await watch.wait(60)
        assert time.monotonic() - started < 1

    async def test_an_event_between_entering_and_waiting_is_not_lost(
        self, store: Store, other: Store
    ) -> None:
        for i in range(10):
            async with store.watch(f"a{i}") as watch:
                assert list(await execute(store, commands.ReadEvents(f"a{i}"))) == []
                await execute(other, publish(f"a{i}", "e", b"event"))
                started = time.monotonic()
                await watch.wait(60)
                assert time.monotonic() - started < 1

    async def test_without_an_event_a_wait_times_out(self, store: Store) -> None:
        await execute(store, publish("a", "before", b"event"))
        async with store.watch("a") as watch:
            started = time.monotonic()
            await watch.wait(0.2)
        assert 0.15 < time.monotonic() - started < 1

    async def test_events_of_another_flight_do_not_end_a_wait(
        self, store: Store, other: Store
    ) -> None:
        async with store.watch("a") as watch:
            waiting = asyncio.create_task(watch.wait(600))
            for i in range(5):
                await execute(other, publish("b", f"e{i}", b"event"))
                await asyncio.sleep(0.03)
            assert not waiting.done()
            await execute(other, publish("a", "e", b"event"))
            await waiting

    async def test_an_event_ends_one_wait(self, store: Store, other: Store) -> None:
        async with store.watch("a") as watch:
            for i in range(3):
                await execute(other, publish("a", f"e{i}", b"event"))
                started = time.monotonic()
                await watch.wait(60)
                assert time.monotonic() - started < 1
            started = time.monotonic()
            await watch.wait(0.1)
            assert time.monotonic() - started > 0.08

    async def test_an_event_ends_the_waits_of_all_watches(self, store: Store, other: Store) -> None:
        async def follow(follower: Store) -> float:
            async with follower.watch("a") as watch:
                ready.release()
                await watch.wait(60)
                return time.monotonic()

        ready = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(follow((store, other)[i % 2])) for i in range(30)]
        for _ in tasks:
            await ready.acquire()
        started = time.monotonic()
        await execute(other, publish("a", "e", b"event"))
        assert max(await asyncio.gather(*tasks)) - started < 1

    async def test_exiting_a_watch_does_not_affect_the_others(
        self, store: Store, other: Store
    ) -> None:
        async with store.watch("a") as remaining:
            async with store.watch("a"):
                pass
            started = time.monotonic()
            await execute(other, publish("a", "e", b"event"))
            await remaining.wait(10)
        assert time.monotonic() - started < 1


class TestWorkers:
    async def test_a_worker_with_a_heartbeat_is_alive(self, store: Store) -> None:
        await execute(store, commands.Heartbeat("w"))
        assert list(await execute(store, commands.ExpiredWorkers(LONG))) == []

    async def test_a_silent_worker_has_expired_until_its_next_heartbeat(self, store: Store) -> None:
        await execute(store, commands.Heartbeat("w"))
        await execute(store, commands.Heartbeat("v"))
        await asyncio.sleep(PAST_SHORT)
        heartbeat, expired = commands.Heartbeat("v"), commands.ExpiredWorkers(SHORT)
        assert await store.execute([heartbeat, expired]) == [[], ["w"]]
        assert await store.execute([heartbeat, commands.Heartbeat("w"), expired]) == [[], [], []]

    async def test_a_reservation_counts_as_a_heartbeat(self, store: Store) -> None:
        await execute(store, reserve("p", worker="ghost"))
        assert list(await execute(store, commands.ExpiredWorkers(LONG))) == []
        await asyncio.sleep(PAST_SHORT)
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == ["ghost"]
        assert await store.execute(
            [commands.Heartbeat("ghost"), commands.ExpiredWorkers(SHORT)]
        ) == [[], []]

    async def test_a_worker_with_closed_journals_is_alive(self, store: Store) -> None:
        await store.execute([reserve("p", worker="ghost"), settle("p")])
        assert list(await execute(store, commands.ExpiredWorkers(LONG))) == []

    async def test_a_deregistered_worker_is_removed(self, store: Store) -> None:
        await execute(store, commands.Heartbeat("w"))
        assert await execute(store, commands.Deregister("w")) is True
        assert await execute(store, commands.Deregister("w")) is True
        assert list(await execute(store, commands.ExpiredWorkers(0.0))) == []

    async def test_a_worker_with_open_journals_cannot_be_deregistered(self, store: Store) -> None:
        await store.execute([commands.Heartbeat("w"), reserve("p", worker="w")])
        assert await execute(store, commands.Deregister("w")) is False
        await asyncio.sleep(PAST_SHORT)
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == ["w"]
        await execute(store, commands.Receive("p", b"received"))
        assert await execute(store, commands.Deregister("w")) is False
        await execute(store, settle("p"))
        assert await execute(store, commands.Deregister("w")) is True
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == []


class TestAdmit:
    @staticmethod
    def admit(*consumptions: Consumption, expected: bytes = b"record") -> commands.Admit:
        return commands.Admit((Expected("keys", "k", expected),), consumptions)

    async def test_amounts_that_fit_are_consumed(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(5), 2)))
        assert (admission.denied, admission.changed) == (None, None)
        (state,) = admission.states
        assert (state.used, state.reserved, state.retry_in) == (2, 0, 0.0)
        assert state.resets_in == pytest.approx(24, abs=1)

    async def test_an_amount_that_does_not_fit_is_denied_and_nothing_is_consumed(
        self, store: Store
    ) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, self.admit(Consumption(bucket(5), 4)))
        mine, teams = (
            Consumption(bucket(9, unit="images"), 1),
            Consumption(bucket(9, subject="team:t"), 1),
        )
        over_limit = await execute(store, self.admit(teams, Consumption(bucket(5), 3), mine))
        assert over_limit.denied == 1
        assert [state.used for state in over_limit.states] == [0, 4, 0]
        assert over_limit.states[1].retry_in == pytest.approx(24, abs=1)
        assert [over_limit.states[0].retry_in, over_limit.states[2].retry_in] == [0.0, 0.0]
        assert await peek(store, teams.counter, bucket(5)) == [(0, 0), (4, 0)]

    async def test_another_record_is_returned_and_nothing_is_consumed(self, store: Store) -> None:
        await execute(store, write("keys", "k", BINARY))
        admission = await execute(store, self.admit(Consumption(bucket(5), 1)))
        assert (admission.denied, admission.changed, admission.states) == (None, (BINARY,), ())
        assert await peek(store, bucket(5)) == [(0, 0)]

    async def test_a_missing_record_is_returned_as_empty(self, store: Store) -> None:
        admission = await execute(store, self.admit(Consumption(bucket(5), 1)))
        assert (admission.denied, admission.changed, admission.states) == (None, (b"",), ())

    async def test_all_expected_records_are_compared_and_returned(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, write("access", "generation", BINARY))
        key = Expected("keys", "k", b"record")
        outdated = Expected("access", "generation", b"older")
        take = (Consumption(bucket(5), 1),)

        admission = await execute(store, commands.Admit((key, outdated), take))
        assert admission.changed == (b"record", BINARY)
        assert await peek(store, bucket(5)) == [(0, 0)]
        current = outdated._replace(value=BINARY)
        absent = Expected("access", "everyone", b"")
        admission = await execute(store, commands.Admit((key, current, absent), take))
        assert (admission.changed, admission.states[0].used) == (None, 1)

    async def test_without_expected_records_nothing_has_changed(self, store: Store) -> None:
        admission = await execute(store, commands.Admit((), (Consumption(bucket(5), 1),)))
        assert (admission.changed, admission.states[0].used) == (None, 1)

    async def test_a_shadow_bucket_never_denies_and_gives_only_what_it_holds(
        self, store: Store
    ) -> None:
        shadow = Consumption(bucket(5, subject="team:t"), 3, shadow=True)
        enforced = Consumption(bucket(50), 3)
        first = await execute(store, commands.Admit((), (enforced, shadow)))
        second = await execute(store, commands.Admit((), (enforced, shadow)))
        assert [(one.denied, one.exceeded) for one in (first, second)] == [(None, ()), (None, (1,))]
        assert await peek(store, enforced.counter, shadow.counter) == [(6, 0), (3, 0)]

    async def test_a_shadow_bucket_that_gave_nothing_stays_as_it_was(self, store: Store) -> None:
        for maximum, exceeded in ((1, (0,)), (3, ())):
            shadow = Consumption(bucket(maximum), 3, shadow=True)
            admission = await execute(store, commands.Admit((), (shadow,)))
            assert (admission.denied, admission.exceeded) == (None, exceeded)

    async def test_a_denied_admission_takes_nothing_from_a_shadow_bucket(
        self, store: Store
    ) -> None:
        shadow = Consumption(bucket(5), 3, shadow=True)
        denied = Consumption(bucket(2, subject="team:t"), 3)
        admission = await execute(store, commands.Admit((), (shadow, denied)))
        assert (admission.denied, admission.exceeded) == (1, ())
        assert await peek(store, shadow.counter) == [(0, 0)]

    async def test_a_maximum_of_zero_denies_everything_for_ever(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(0), 1)))
        assert admission.denied == 0
        assert (admission.states[0].used, admission.states[0].retry_in) == (0, 0.0)

    async def test_more_than_a_bucket_holds_is_denied_for_ever(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(5), 6)))
        assert (admission.denied, admission.states[0].retry_in) == (0, 0.0)

    async def test_an_amount_of_zero_consumes_nothing_and_is_never_denied(
        self, store: Store
    ) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, self.admit(Consumption(bucket(2), 2)))
        peeks = (
            Consumption(bucket(2)),
            Consumption(bucket(0, subject="team:t")),
            Consumption(day(0)),
        )
        admission = await execute(store, self.admit(*peeks))
        assert admission.denied is None
        assert [state.used for state in admission.states] == [2, 0, 0]

    async def test_without_consumptions_only_the_record_counts(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit())
        assert (admission.denied, admission.changed, admission.states) == (None, None, ())

    async def test_a_bucket_without_a_limit_is_not_stored(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(None), 1000)))
        assert admission.denied is None
        assert admission.states == (commands.CounterState(0, 0, 0.0),)
        assert await peek(store, bucket(10)) == [(0, 0)]

    async def test_a_bucket_refills_over_time(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admitted, over_limit = await store.execute(
            [self.admit(Consumption(bucket(600), 600)), self.admit(Consumption(bucket(600), 2))]
        )
        assert (admitted.denied, over_limit.denied) == (None, 0)
        assert 0 < over_limit.states[0].retry_in <= 0.2
        await asyncio.sleep(over_limit.states[0].retry_in + 0.01)
        assert (await execute(store, self.admit(Consumption(bucket(600), 2)))).denied is None

    async def test_a_smaller_maximum_applies_from_the_next_request_on(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, self.admit(Consumption(bucket(100), 1)))
        admission = await execute(store, self.admit(Consumption(bucket(5), 5)))
        assert (admission.denied, admission.states[0].used) == (None, 5)
        assert (await execute(store, self.admit(Consumption(bucket(5), 1)))).denied == 0

    async def test_concurrent_admissions_never_exceed_the_maximum(
        self, store: Store, other: Store
    ) -> None:
        await execute(store, write("keys", "k", b"record"))
        results = await asyncio.gather(
            *(
                execute((store, other)[i % 2], self.admit(Consumption(bucket(5), 1)))
                for i in range(60)
            )
        )
        assert [result.denied for result in results].count(None) == 5


class TestReserve:
    async def test_a_reservation_counts_and_opens_a_journal(self, store: Store) -> None:
        consumptions = (
            Consumption(day(10), 2),
            Consumption(month(1000), 70),
            Consumption(concurrent(3), 1),
        )
        reservation = await execute(store, reserve("p", *consumptions, payload=BINARY))
        assert reservation.denied is None
        assert [(s.used, s.reserved) for s in reservation.states] == [(0, 2), (0, 70), (0, 1)]
        assert reservation.now == pytest.approx(time.time(), abs=GENEROUS_SECONDS)
        journals = list(await execute(store, commands.OpenJournals()))
        assert journals == [commands.Journal("p", "w", "reserved", BINARY)]

    async def test_windows_end_with_the_utc_day_and_month(self, store: Store) -> None:
        counters = (day(10), month(10), concurrent(10))
        reservation = await execute(
            store, reserve("p", *(Consumption(counter, 1) for counter in counters))
        )
        today = time.gmtime(reservation.now)
        next_month = (today.tm_year + today.tm_mon // 12, today.tm_mon % 12 + 1)
        ends = [
            (reservation.now // 86_400 + 1) * 86_400,
            calendar.timegm((*next_month, 1, 0, 0, 0)),
        ]
        assert [s.resets_in for s in reservation.states] == pytest.approx(
            [ends[0] - reservation.now, ends[1] - reservation.now, 0.0], abs=0.01
        )

    async def test_a_denied_reservation_reserves_nothing_and_has_no_journal(
        self, store: Store
    ) -> None:
        await execute(store, reserve("one", Consumption(day(10), 8)))
        consumptions = (
            Consumption(bucket(9), 1),
            Consumption(month(1000), 70),
            Consumption(day(10), 3),
            Consumption(concurrent(9), 1),
        )
        over_limit = await execute(store, reserve("two", *consumptions))
        assert over_limit.denied == 2
        assert [(s.used, s.reserved) for s in over_limit.states] == [(0, 0), (0, 0), (0, 8), (0, 0)]
        assert [j.purchase for j in await execute(store, commands.OpenJournals())] == ["one"]
        assert await execute(store, commands.Receive("two", b"")) == "unknown"

    async def test_the_last_unit_of_a_budget_can_be_reserved(self, store: Store) -> None:
        assert (await execute(store, reserve("one", Consumption(day(10), 10)))).denied is None
        assert (await execute(store, reserve("two", Consumption(day(10), 1)))).denied == 0

    async def test_a_counter_without_a_maximum_counts(self, store: Store) -> None:
        await execute(store, reserve("one", Consumption(day(), 10**9)))
        assert await peek(store, day()) == [(0, 10**9)]

    async def test_a_maximum_of_zero_denies_everything(self, store: Store) -> None:
        for i, counter in enumerate((day(0), month(0), concurrent(0))):
            assert (await execute(store, reserve(f"p{i}", Consumption(counter, 1)))).denied == 0

    async def test_an_amount_of_zero_is_never_denied(self, store: Store) -> None:
        await execute(store, reserve("one", Consumption(day(10), 10)))
        assert (await execute(store, reserve("two", Consumption(day(5))))).denied is None

    async def test_subjects_units_and_periods_are_counted_separately(self, store: Store) -> None:
        counters = (
            day(),
            day(unit="tokens"),
            day(subject="team:t"),
            Counter("key:k", "images", "month"),
        )
        await execute(
            store,
            reserve("p", *(Consumption(counter, i + 1) for i, counter in enumerate(counters))),
        )
        assert await peek(store, *counters) == [(0, 1), (0, 2), (0, 3), (0, 4)]

    async def test_a_bucket_is_consumed_once_and_never_refilled_by_a_settlement(
        self, store: Store
    ) -> None:
        consumption = Consumption(bucket(10, unit="images"), 4)
        for _ in range(2):
            assert (await execute(store, reserve("p", consumption))).denied is None
        assert await peek(store, consumption.counter) == [(4, 0)]
        await execute(store, settle("p", images=1))
        assert await peek(store, consumption.counter) == [(4, 0)]

    async def test_reserving_again_leaves_the_journal_as_it_is(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 8), payload=b"first"))
        again = await execute(
            store, reserve("p", Consumption(day(10), 8), worker="v", payload=b"second")
        )
        assert again.denied is None
        assert [(s.used, s.reserved) for s in again.states] == [(0, 8)]
        assert list(await execute(store, commands.OpenJournals())) == [
            commands.Journal("p", "w", "reserved", b"first")
        ]

    async def test_reserving_a_settled_purchase_again_reserves_nothing(self, store: Store) -> None:
        await store.execute([reserve("p", Consumption(day(10), 8)), settle("p", images=3)])
        assert (await execute(store, reserve("p", Consumption(day(10), 8)))).denied is None
        assert await peek(store, day()) == [(3, 0)]
        assert list(await execute(store, commands.OpenJournals())) == []

    async def test_a_shadow_limit_counts_all_and_denies_nothing(self, store: Store) -> None:
        shadows = (
            Consumption(day(10), 8, shadow=True),
            Consumption(concurrent(1), 1, shadow=True),
            Consumption(bucket(3, unit="images"), 2, shadow=True),
        )
        first = await execute(store, reserve("one", *shadows))
        second = await execute(store, reserve("two", *shadows))
        assert (first.denied, first.exceeded) == (None, ())
        assert (second.denied, second.exceeded) == (None, (0, 1, 2))
        counters = [shadow.counter for shadow in shadows]
        assert await peek(store, *counters) == [(0, 16), (0, 2), (2, 0)]

        await execute(store, settle("two", images=8))
        assert await peek(store, *counters) == [(8, 8), (0, 1), (2, 0)]

    async def test_an_enforced_limit_beside_a_shadow_still_denies(self, store: Store) -> None:
        shadow = Consumption(day(1), 8, shadow=True)
        denied = await execute(store, reserve("p", shadow, Consumption(month(7), 8)))
        assert (denied.denied, denied.exceeded) == (1, ())
        assert await peek(store, day(), month()) == [(0, 0), (0, 0)]

    async def test_concurrent_reservations_never_exceed_a_budget(
        self, store: Store, other: Store
    ) -> None:
        results = await asyncio.gather(
            *(
                execute(
                    (store, other)[i % 2],
                    reserve(f"p{i}", Consumption(month(100), 7), Consumption(day(99), 1)),
                )
                for i in range(60)
            )
        )
        assert [result.denied for result in results].count(None) == 14
        assert await peek(store, month(), day()) == [(0, 98), (0, 14)]


class TestJournals:
    async def test_receiving_replaces_the_payload(self, store: Store) -> None:
        await execute(store, reserve("p"))
        for _ in range(2):
            assert await execute(store, commands.Receive("p", BINARY)) == "received"
        assert list(await execute(store, commands.OpenJournals("w"))) == [
            commands.Journal("p", "w", "received", BINARY)
        ]

    async def test_receiving_for_an_unknown_purchase_returns_unknown(self, store: Store) -> None:
        assert await execute(store, commands.Receive("unknown", b"")) == "unknown"

    async def test_receiving_after_the_settlement_changes_nothing(self, store: Store) -> None:
        await store.execute([reserve("p"), settle("p", images=2, presumed=True)])
        assert await execute(store, commands.Receive("p", b"late")) == "settled"
        assert list(await execute(store, commands.OpenJournals())) == []

    async def test_open_journals_of_one_worker_or_of_all(self, store: Store) -> None:
        await store.execute([reserve("a"), reserve("b", worker="v"), reserve("c"), settle("c")])
        assert [j.purchase for j in await execute(store, commands.OpenJournals("w"))] == ["a"]
        assert {j.purchase for j in await execute(store, commands.OpenJournals())} == {"a", "b"}
        assert list(await execute(store, commands.OpenJournals("unknown"))) == []

    async def test_a_payload_may_be_large(self, store: Store) -> None:
        payload = os.urandom(1024 * 1024)
        await store.execute([reserve("p"), commands.Receive("p", payload)])
        assert (await execute(store, commands.OpenJournals("w")))[0].payload == payload

    async def test_an_open_journal_tells_what_it_has_reserved_and_from_whom(
        self, store: Store
    ) -> None:
        amounts = (
            Consumption(day(), 3),
            Consumption(month(), 2**52),
            Consumption(day(unit="usd_micros"), 2**52),
            Consumption(bucket(9, unit="images"), 3),
            Consumption(concurrent(), 1),
        )
        await store.execute([reserve("one", *amounts), reserve("two")])
        one, two = await execute(store, commands.OpenJournals("w"))

        assert one.reserved == {"images": 3, "usd_micros": 2**52, "purchases": 1}
        assert one.subjects == ("key:k",)
        assert (two.reserved, two.subjects) == ({}, ())

    async def test_the_state_of_a_journal(self, store: Store) -> None:
        async def state() -> str:
            return await execute(store, commands.ReadJournalState("one"))

        states = [await state()]
        for command in (reserve("one"), commands.Receive("one", b"images"), settle("one")):
            await store.execute([command])
            states.append(await state())
        assert states == ["unknown", "reserved", "received", "settled"]


class TestSettle:
    async def test_settling_releases_the_reserved_and_charges_the_actual_amount(
        self, store: Store
    ) -> None:
        consumptions = (
            Consumption(day(10), 4),
            Consumption(month(1000), 500),
            Consumption(concurrent(5), 1),
        )
        await execute(store, reserve("p", *consumptions))
        settled = await execute(
            store, settle("p", images=3, usd_micros=420, tokens=77, record=BINARY)
        )
        assert settled.status == "settled"
        assert dict(settled.charged) == {"images": 3, "usd_micros": 420, "tokens": 77}
        assert settled.presumed is False
        assert [(s.used, s.reserved) for s in settled.states] == [(3, 0), (420, 0), (0, 0)]
        assert await ledger(store) == [BINARY]
        assert list(await execute(store, commands.OpenJournals())) == []

    async def test_every_window_of_a_unit_is_charged(self, store: Store) -> None:
        consumptions = (
            Consumption(day(), 2),
            Consumption(day(subject="team:t"), 2),
            Consumption(Counter("key:k", "images", "month"), 2),
        )
        await store.execute([reserve("p", *consumptions), settle("p", images=1)])
        assert (
            await peek(store, *(consumption.counter for consumption in consumptions))
            == [(1, 0)] * 3
        )

    async def test_a_unit_without_a_charge_is_released(self, store: Store) -> None:
        await store.execute([reserve("p", Consumption(day(10), 4)), settle("p")])
        assert await peek(store, day()) == [(0, 0)]

    async def test_a_charge_above_the_maximum_is_charged_and_counts_for_the_next_reservation(
        self, store: Store
    ) -> None:
        await store.execute([reserve("p", Consumption(day(10), 4)), settle("p", images=12)])
        assert await peek(store, day()) == [(12, 0)]
        assert (await execute(store, reserve("q", Consumption(day(10), 1)))).denied == 0

    async def test_settling_again_does_nothing(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4)))
        await execute(store, settle("p", images=3, record=b"first"))
        for correct in (False, True):
            again = await execute(
                store, settle("p", images=1, record=b"again", presumed=True, correct=correct)
            )
            assert (again.status, dict(again.charged)) == ("already", {"images": 3})
            assert again.presumed is False
            assert [(s.used, s.reserved) for s in again.states] == [(3, 0)]
        assert await ledger(store) == [b"first"]

    async def test_a_reservation_that_runs_after_its_settlement_reserves_nothing(
        self, store: Store
    ) -> None:
        await execute(store, settle("late"))
        await execute(store, reserve("late", Consumption(day(10), 4)))
        assert await peek(store, day(10)) == [(0, 0)]
        assert list(await execute(store, commands.OpenJournals())) == []
        assert (await execute(store, settle("late"))).status == "already"

    async def test_an_unknown_purchase_is_not_settled(self, store: Store) -> None:
        settled = await execute(store, settle("unknown", images=3, record=b"record"))
        assert (settled.status, dict(settled.charged), settled.states) == ("unknown", {}, ())
        assert settled.presumed is False
        assert await ledger(store) == []

    async def test_without_a_record_the_ledger_stays_as_it_is(self, store: Store) -> None:
        await store.execute([reserve("p"), settle("p", images=1)])
        assert await ledger(store) == []

    async def test_a_late_response_corrects_a_presumed_charge_once(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4), Consumption(month(1000), 500)))
        presumed = await execute(
            store, settle("p", images=4, usd_micros=500, record=b"presumed", presumed=True)
        )
        assert (presumed.status, presumed.presumed) == ("settled", True)
        plain = await execute(store, settle("p", images=1, record=b"not this"))
        assert (plain.status, plain.presumed) == ("already", True)
        assert await peek(store, day(), month()) == [(4, 0), (500, 0)]

        corrected = await execute(
            store, settle("p", images=2, usd_micros=600, tokens=9, record=b"late", correct=True)
        )
        assert (corrected.status, corrected.presumed) == ("corrected", False)
        assert dict(corrected.charged) == {"images": 2, "usd_micros": 600, "tokens": 9}
        assert [(s.used, s.reserved) for s in corrected.states] == [(2, 0), (600, 0)]

        third = await execute(store, settle("p", images=1, record=b"third", correct=True))
        assert (third.status, dict(third.charged)) == ("already", corrected.charged)
        assert await peek(store, day(), month()) == [(2, 0), (600, 0)]
        assert await ledger(store) == [b"presumed", b"late"]

    async def test_a_unit_without_a_corrected_charge_is_released(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4)))
        await store.execute([settle("p", images=4, presumed=True), settle("p", correct=True)])
        assert await peek(store, day()) == [(0, 0)]

    async def test_correcting_an_open_journal_simply_settles_it(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4)))
        settled = await execute(store, settle("p", images=2, correct=True))
        assert (settled.status, settled.presumed) == ("settled", False)
        assert await peek(store, day()) == [(2, 0)]

    async def test_of_many_concurrent_settlements_exactly_one_settles_a_purchase(
        self, store: Store, other: Store
    ) -> None:
        await execute(store, reserve("p", Consumption(day(), 4)))
        results = await asyncio.gather(
            *(execute((store, other)[i % 2], settle("p", images=3, record=b"r")) for i in range(30))
        )
        statuses = [result.status for result in results]
        assert (statuses.count("settled"), statuses.count("already")) == (1, 29)
        assert await peek(store, day()) == [(3, 0)]
        assert await ledger(store) == [b"r"]


class TestPeekCounters:
    async def test_untouched_counters_are_zero(self, store: Store) -> None:
        counters = (bucket(5), bucket(None), bucket(0), day(10), month(), concurrent(3))
        assert await peek(store, *counters) == [(0, 0)] * 6

    async def test_peeking_consumes_nothing(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4), Consumption(bucket(10), 4)))
        for _ in range(3):
            assert await peek(store, day(10), bucket(10)) == [(0, 4), (4, 0)]

    async def test_no_counters_have_no_states(self, store: Store) -> None:
        assert list(await execute(store, commands.PeekCounters(()))) == []

    async def test_large_amounts_are_exact(self, store: Store) -> None:
        amount = 2**53 - 3
        await store.execute(
            [reserve("p", Consumption(month(), amount)), settle("p", usd_micros=amount)]
        )
        await execute(store, reserve("q", Consumption(month(), 2)))
        assert await peek(store, month()) == [(amount, 2)]


class TestLedger:
    async def test_an_empty_ledger_has_no_records(self, store: Store) -> None:
        assert list(await execute(store, commands.ReadLedger())) == []

    async def test_records_come_in_the_order_they_were_added(self, store: Store) -> None:
        records = [f"{i}".encode() for i in range(25)] + [BINARY, b""]
        await execute(store, commands.Append(tuple(records[:20])))
        await execute(store, commands.Append(tuple(records[20:])))
        await execute(store, commands.Append(()))
        assert await ledger(store) == records

    async def test_a_repeated_append_adds_nothing(self, store: Store) -> None:
        append = commands.Append((b"1", b"2"))
        await execute(store, append)
        await execute(store, append)
        await execute(store, commands.Append((b"3",)))
        assert await ledger(store) == [b"1", b"2", b"3"]

    async def test_ids_begin_with_the_day_and_grow_as_strings(self, store: Store) -> None:
        before = time.strftime("%Y-%m-%d", time.gmtime())
        await execute(store, commands.Append(tuple(b"r" for _ in range(120))))
        after = time.strftime("%Y-%m-%d", time.gmtime())
        ids = [id_ for id_, _ in await execute(store, commands.ReadLedger())]
        assert ids == sorted(set(ids))
        assert len(ids) == 120
        assert {id_.split("/")[0] for id_ in ids} <= {before, after}

    async def test_reading_continues_after_any_id(self, store: Store) -> None:
        await execute(store, commands.Append(tuple(str(i).encode() for i in range(25))))
        found: list[bytes] = []
        after = ""
        while page := await execute(store, commands.ReadLedger(after, limit=10)):
            assert len(page) <= 10
            found += [record for _, record in page]
            after = page[-1][0]
        assert found == [str(i).encode() for i in range(25)]

    async def test_reading_can_start_with_a_day(self, store: Store) -> None:
        await execute(store, commands.Append((b"r",)))
        tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 2 * 86_400))
        assert [r for _, r in await execute(store, commands.ReadLedger("2020-01-01/"))] == [b"r"]
        assert list(await execute(store, commands.ReadLedger(f"{tomorrow}/"))) == []

    async def test_concurrent_appends_lose_nothing(self, store: Store, other: Store) -> None:
        records = [str(i).encode() for i in range(100)]
        await asyncio.gather(
            *(execute((store, other)[i % 2], commands.Append((r,))) for i, r in enumerate(records))
        )
        assert sorted(await ledger(store)) == sorted(records)


class TestSweep:
    async def test_unexpired_data_is_not_swept(self, store: Store) -> None:
        await store.execute(
            [
                write("s", "a", b"1"),
                store_images("zero", {0: slot("p")}),
                acquire("one", (1,)),
                publish("a", "e", b"event"),
                commands.Heartbeat("w"),
                reserve("p", Consumption(day(10), 4), Consumption(bucket(10), 3)),
                commands.Append((b"r",)),
            ]
        )
        assert await execute(store, commands.Sweep()) == 0
        assert await execute(store, commands.Get("s", "a")) == b"1"
        assert set((await execute(store, commands.ReadEntry("f"))).slots) == {0}
        assert dict((await execute(store, acquire("two", (1,)))).leased) == {1: "one"}
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"event"]
        assert await peek(store, day(10), bucket(10)) == [(0, 4), (3, 0)]
        assert len(await execute(store, commands.OpenJournals("w"))) == 1
        assert await ledger(store) == [b"r"]
