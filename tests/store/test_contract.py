"""What every store promises: each sentence of `gateway/store/verbs.py`, on each adapter.

Meters are held against a model of their arithmetic in `test_meters.py`, blobs are in
`test_blobs.py`; what only one adapter has is in `test_sqlite.py` and `test_redis.py`.
"""

from __future__ import annotations

import asyncio
import calendar
import os
import time
from collections.abc import Iterable

import pytest

from gateway.store import commands
from gateway.store.batch import Batch, execute
from gateway.store.commands import Consumption, Counter, Slot, Write
from gateway.store.protocol import Store

SHORT = 0.15
"""A lifetime that a test can wait for."""
OVER = 0.25
"""Long enough for `SHORT` to be over."""
LONG = 60.0

BINARY = bytes(range(256)) + b"\r\n\x00" + "otter 🦦".encode()


def slot(image: str, data: bytes = b"data") -> Slot:
    return Slot(image_id=image, expires_at=0.0, data=data)


def write(
    space: str, name: str, value: bytes | None, *, expected: bytes | None = None
) -> commands.CompareAndSet:
    return commands.CompareAndSet((Write(space, name, value, expected),))


def claim(
    flight: str, slots: Iterable[int] = (0,), *, print_: str = "f", lease: float = LONG
) -> commands.AcquireLease:
    return commands.AcquireLease(print_, tuple(slots), flight, lease)


def keep(
    flight: str,
    slots: dict[int, Slot],
    *,
    print_: str = "f",
    lifetime: float = LONG,
    linger: float = LONG,
) -> commands.StoreImages:
    return commands.StoreImages(print_, flight, slots, lifetime, linger)


def publish(
    flight: str, event_id: str, event: bytes, *, lifetime: float = LONG
) -> commands.Publish:
    return commands.Publish(flight, event_id, event, lifetime)


def day(maximum: int | None = None, *, unit: str = "images", scope: str = "key:k") -> Counter:
    return Counter(scope, unit, "day", maximum)


def month(maximum: int | None = None, *, unit: str = "usd_micros", scope: str = "key:k") -> Counter:
    return Counter(scope, unit, "month", maximum)


def bucket(maximum: int | None, *, unit: str = "requests", scope: str = "key:k") -> Counter:
    return Counter(scope, unit, "minute", maximum)


def open_now(maximum: int | None = None, *, scope: str = "key:k") -> Counter:
    return Counter(scope, "purchases", "concurrency", maximum)


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


async def shown(store: Store, *counters: Counter) -> list[tuple[int, int]]:
    """(used, reserved) of each meter."""
    return [(s.used, s.reserved) for s in await execute(store, commands.PeekCounters(counters))]


async def ledger(store: Store) -> list[bytes]:
    return [record for _, record in await execute(store, commands.ReadLedger())]


class TestRun:
    async def test_answers_come_in_the_order_of_the_verbs(self, store: Store) -> None:
        answers = await store.execute(
            [
                write("s", "a", b"1"),
                commands.Get("s", "a"),
                write("s", "a", b"2", expected=b"1"),
                commands.Get("s", "a"),
                write("s", "a", b"3", expected=b"1"),
                commands.Get("s", "missing"),
            ]
        )
        assert answers == [None, b"1", None, b"2", 0, None]

    async def test_verbs_of_different_kinds_travel_together_in_order(self, store: Store) -> None:
        batch = Batch(store)
        first = batch.add(claim("one"))
        kept = batch.add(keep("one", {0: slot("p")}))
        entry = batch.add(commands.ReadEntry("f"))
        second = batch.add(claim("two", (0, 1)))
        await batch.execute()
        assert first.value.mine == (0,)
        assert kept.value == {0: 0}
        assert entry.value.slots[0].image_id == "p"
        assert (set(second.value.held), second.value.mine) == ({0}, (1,))

    async def test_no_verbs_have_no_answers(self, store: Store) -> None:
        assert await store.execute([]) == []

    async def test_many_batches_at_once_each_get_their_own_answers(self, store: Store) -> None:
        async def round_trip(number: int) -> bytes | None:
            value = str(number).encode()
            return (
                await store.execute(
                    [write("s", f"n{number}", value), commands.Get("s", f"n{number}")]
                )
            )[1]

        found = await asyncio.gather(*(round_trip(number) for number in range(200)))
        assert found == [str(number).encode() for number in range(200)]

    async def test_a_second_opening_sees_what_the_first_wrote(
        self, store: Store, other: Store
    ) -> None:
        await execute(store, write("s", "a", BINARY))
        assert await execute(other, commands.Get("s", "a")) == BINARY

    async def test_a_store_says_where_it_is(self, store: Store) -> None:
        assert store.name

    async def test_a_caller_that_gives_up_does_not_disturb_the_others(self, store: Store) -> None:
        tasks = [asyncio.create_task(execute(store, write("s", str(i), b"v"))) for i in range(20)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for i, r in enumerate(results) if i != 3] == [None] * 19
        assert await execute(store, commands.Get("s", "19")) == b"v"


class TestRecords:
    async def test_an_unknown_record_is_none(self, store: Store) -> None:
        assert await execute(store, commands.Get("keys", "unknown")) is None

    async def test_a_value_comes_back_byte_for_byte(self, store: Store) -> None:
        await execute(store, write("keys", "näme:with {odd} \x00 signs", BINARY))
        assert await execute(store, commands.Get("keys", "näme:with {odd} \x00 signs")) == BINARY

    async def test_an_empty_value_is_a_record(self, store: Store) -> None:
        await execute(store, write("keys", "k", b""))
        assert await execute(store, commands.Get("keys", "k")) == b""

    async def test_a_large_value_comes_back_whole(self, store: Store) -> None:
        value = os.urandom(2 * 1024 * 1024)
        await execute(store, write("keys", "big", value))
        assert await execute(store, commands.Get("keys", "big")) == value

    async def test_spaces_do_not_share_names(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"v"))
        assert await execute(store, commands.Get("names", "k")) is None

    async def test_through_another_space_a_name_leads_to_the_record(self, store: Store) -> None:
        changes = (
            Write("hashes", "h", "id-ü".encode(), None),
            Write("keys", "id-ü", b"v", None),
        )
        await execute(store, commands.CompareAndSet(changes))
        assert await execute(store, commands.Get("keys", "h", index="hashes")) == b"v"

    async def test_a_broken_way_through_is_none(self, store: Store) -> None:
        await execute(store, write("hashes", "h", b"gone"))
        assert await execute(store, commands.Get("keys", "h", index="hashes")) is None
        assert await execute(store, commands.Get("keys", "other", index="hashes")) is None

    async def test_a_put_happens_only_where_the_record_is_as_expected(self, store: Store) -> None:
        assert await execute(store, write("keys", "k", b"1", expected=b"0")) == 0
        assert await execute(store, write("keys", "k", b"1")) is None
        assert await execute(store, write("keys", "k", b"2")) == 0
        assert await execute(store, write("keys", "k", b"2", expected=b"1")) is None
        assert await execute(store, commands.Get("keys", "k")) == b"2"

    async def test_a_put_makes_all_changes_or_none_and_names_the_first_that_failed(
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

    async def test_a_put_of_none_deletes(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"1"))
        assert await execute(store, write("keys", "k", None, expected=b"1")) is None
        assert await execute(store, commands.Get("keys", "k")) is None
        assert await execute(store, commands.ReadRecords("keys")) == {}

    async def test_of_many_that_create_one_record_exactly_one_wins(
        self, store: Store, other: Store
    ) -> None:
        answers = await asyncio.gather(
            *(
                execute((store, other)[i % 2], write("names", "n", str(i).encode()))
                for i in range(40)
            )
        )
        winners = [i for i, answer in enumerate(answers) if answer is None]
        assert len(winners) == 1
        assert await execute(store, commands.Get("names", "n")) == str(winners[0]).encode()

    async def test_a_scan_has_all_records_of_its_space(self, store: Store) -> None:
        records = {f"k{i}": str(i).encode() for i in range(300)} | {"binary": BINARY}
        changes = [Write("keys", name, value, None) for name, value in records.items()]
        await execute(store, commands.CompareAndSet((*changes, Write("names", "n", b"v", None))))
        assert await execute(store, commands.ReadRecords("keys")) == records
        assert await execute(store, commands.ReadRecords("empty")) == {}


class TestClaims:
    async def test_an_unknown_fingerprint_has_no_slots(self, store: Store) -> None:
        entry = await execute(store, commands.ReadEntry("unknown"))
        assert entry.slots == {}
        assert entry.now == pytest.approx(time.time(), abs=5)

    async def test_reading_an_entry_claims_nothing(self, store: Store) -> None:
        await execute(store, commands.ReadEntry("f"))
        assert (await execute(store, claim("one"))).acquired == (0,)

    async def test_free_slots_are_claimed(self, store: Store) -> None:
        claimed = await execute(store, claim("one", (0, 1, 63)))
        assert (dict(claimed.cached), claimed.acquired, dict(claimed.leased)) == (
            {},
            (0, 1, 63),
            {},
        )
        assert claimed.now == pytest.approx(time.time(), abs=5)

    async def test_a_repeated_claim_is_still_mine(self, store: Store) -> None:
        await execute(store, claim("one", (0, 1)))
        claimed = await execute(store, claim("one", (1, 2)))
        assert (claimed.acquired, dict(claimed.leased)) == ((1, 2), {})

    async def test_another_flights_claim_is_named(self, store: Store) -> None:
        await execute(store, claim("one", (0, 1)))
        claimed = await execute(store, claim("two", (1, 2)))
        assert (claimed.acquired, dict(claimed.leased)) == ((2,), {1: "one"})

    async def test_every_asked_slot_is_held_mine_or_anothers(self, store: Store) -> None:
        await execute(store, keep("zero", {0: slot("p", BINARY)}))
        await execute(store, claim("one", (1,)))
        claimed = await execute(store, claim("two", (0, 1, 2)))
        assert {i: (s.image_id, s.data) for i, s in claimed.cached.items()} == {0: ("p", BINARY)}
        assert dict(claimed.leased) == {1: "one"}
        assert claimed.acquired == (2,)

    async def test_fingerprints_do_not_share_claims(self, store: Store) -> None:
        await execute(store, claim("one"))
        assert (await execute(store, claim("two", print_="g"))).acquired == (0,)

    async def test_an_expired_claim_is_free(self, store: Store) -> None:
        await execute(store, claim("one", lease=SHORT))
        await asyncio.sleep(OVER)
        assert (await execute(store, claim("two"))).acquired == (0,)

    async def test_a_slot_whose_image_has_expired_is_free(self, store: Store) -> None:
        await execute(store, keep("one", {0: slot("p")}, lifetime=SHORT))
        await asyncio.sleep(OVER)
        claimed = await execute(store, claim("two"))
        assert (dict(claimed.cached), claimed.acquired) == ({}, (0,))

    async def test_one_claim_outlives_another_of_the_same_entry(self, store: Store) -> None:
        await execute(store, claim("short", (0,), lease=SHORT))
        await execute(store, claim("long", (1,)))
        await asyncio.sleep(OVER)
        claimed = await execute(store, claim("new", (0, 1)))
        assert (claimed.acquired, dict(claimed.leased)) == ((0,), {1: "long"})

    async def test_of_many_flights_each_slot_has_exactly_one_owner(
        self, store: Store, other: Store
    ) -> None:
        answers = await asyncio.gather(
            *(execute((store, other)[i % 2], claim(f"flight{i}", range(4))) for i in range(100))
        )
        owners = [(index, i) for i, claimed in enumerate(answers) for index in claimed.acquired]
        assert sorted(index for index, _ in owners) == [0, 1, 2, 3]
        winner = {index: f"flight{i}" for index, i in owners}
        assert all(dict(c.others).items() <= winner.items() for c in answers)

    async def test_extending_keeps_a_claim_alive(self, store: Store) -> None:
        await execute(store, claim("one", (0, 1), lease=SHORT))
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is True
        await asyncio.sleep(OVER)
        assert dict((await execute(store, claim("two", (0, 1)))).leased) == {0: "one", 1: "one"}

    async def test_an_extension_can_shorten_a_lease(self, store: Store) -> None:
        await execute(store, claim("one"))
        assert await execute(store, commands.RenewLease("f", "one", SHORT)) is True
        await asyncio.sleep(OVER)
        assert (await execute(store, claim("two"))).acquired == (0,)

    async def test_a_lost_claim_cannot_be_extended(self, store: Store) -> None:
        await execute(store, claim("one", lease=SHORT))
        await asyncio.sleep(OVER)
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is False
        assert (await execute(store, claim("two"))).acquired == (0,)
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is False
        assert await execute(store, commands.RenewLease("f", "never", LONG)) is False

    async def test_extending_leaves_other_flights_alone(self, store: Store) -> None:
        await execute(store, claim("short", (0,), lease=SHORT))
        await execute(store, claim("one", (1,)))
        assert await execute(store, commands.RenewLease("f", "one", LONG)) is True
        await asyncio.sleep(OVER)
        assert (await execute(store, claim("two", (0,)))).acquired == (0,)

    async def test_releasing_gives_back_only_the_flights_own_claims(self, store: Store) -> None:
        await execute(store, claim("one", (0, 1)))
        await execute(store, claim("two", (2,)))
        for _ in range(2):
            assert await execute(store, commands.ReleaseLease("f", "one")) is None
        claimed = await execute(store, claim("three", (0, 1, 2)))
        assert (claimed.acquired, dict(claimed.leased)) == ((0, 1), {2: "two"})


class TestKeep:
    async def test_images_lie_in_their_slots_and_the_claims_are_given_back(
        self, store: Store
    ) -> None:
        await execute(store, claim("one", (0, 1, 2)))
        kept = await execute(store, keep("one", {0: slot("a", BINARY), 1: slot("b")}))
        assert kept == {0: 0, 1: 1}
        claimed = await execute(store, claim("two", (0, 1, 2)))
        assert {i: s.image_id for i, s in claimed.cached.items()} == {0: "a", 1: "b"}
        assert claimed.cached[0].data == BINARY
        assert claimed.acquired == (2,)

    async def test_freshness_is_counted_on_the_stores_clock(self, store: Store) -> None:
        wanted = Slot("p", expires_at=123.0, data=b"d")
        await execute(store, keep("one", {0: wanted}, lifetime=50))
        entry = await execute(store, commands.ReadEntry("f"))
        assert entry.slots[0].expires_at == pytest.approx(entry.now + 50, abs=5)
        claimed = await execute(store, claim("two"))
        assert claimed.cached[0].expires_at == entry.slots[0].expires_at

    async def test_keeping_twice_changes_nothing(self, store: Store) -> None:
        await execute(store, keep("one", {0: slot("a", b"first"), 2: slot("b")}, lifetime=50))
        before = (await execute(store, commands.ReadEntry("f"))).slots
        kept = await execute(
            store, keep("one", {0: slot("a", b"again"), 2: slot("b")}, lifetime=90)
        )
        assert kept == {0: 0, 2: 2}
        assert (await execute(store, commands.ReadEntry("f"))).slots == before

    async def test_a_image_that_lies_in_another_slot_stays_there(self, store: Store) -> None:
        await execute(store, keep("one", {3: slot("a")}))
        assert await execute(store, keep("two", {0: slot("a"), 1: slot("b")})) == {0: 3, 1: 1}
        entry = await execute(store, commands.ReadEntry("f"))
        assert {i: s.image_id for i, s in entry.slots.items()} == {1: "b", 3: "a"}

    async def test_an_occupied_slot_sends_the_image_to_the_lowest_free_one(
        self, store: Store
    ) -> None:
        await execute(store, keep("one", {0: slot("a"), 1: slot("b")}))
        assert await execute(store, keep("late", {0: slot("c")})) == {0: 2}
        assert await execute(store, keep("late", {0: slot("c")})) == {0: 2}
        entry = await execute(store, commands.ReadEntry("f"))
        assert {i: s.image_id for i, s in entry.slots.items()} == {0: "a", 1: "b", 2: "c"}

    async def test_wanted_slots_are_served_in_ascending_order(self, store: Store) -> None:
        await execute(store, keep("one", {0: slot("a")}))
        assert await execute(store, keep("late", {1: slot("c"), 0: slot("b")})) == {0: 1, 1: 2}

    async def test_anothers_claim_is_respected(self, store: Store) -> None:
        await execute(store, claim("owner", (0, 1)))
        assert await execute(store, keep("late", {0: slot("a")})) == {0: 2}
        claimed = await execute(store, claim("third", (0, 1)))
        assert dict(claimed.leased) == {0: "owner", 1: "owner"}

    async def test_the_flights_own_claims_are_free_for_its_images(self, store: Store) -> None:
        await execute(store, keep("zero", {0: slot("x")}))
        await execute(store, claim("one", (1, 2)))
        assert await execute(store, keep("one", {0: slot("a"), 2: slot("b")})) == {0: 1, 2: 2}

    async def test_an_expired_claim_is_not_respected(self, store: Store) -> None:
        await execute(store, claim("dead", lease=SHORT))
        await asyncio.sleep(OVER)
        assert await execute(store, keep("late", {0: slot("a")})) == {0: 0}

    async def test_a_image_takes_the_slot_of_an_expired_one(self, store: Store) -> None:
        await execute(store, keep("one", {0: slot("old")}, lifetime=SHORT))
        await asyncio.sleep(OVER)
        assert await execute(store, keep("two", {0: slot("new")})) == {0: 0}
        assert (await execute(store, commands.ReadEntry("f"))).slots[0].image_id == "new"

    async def test_beyond_slot_63_a_image_is_dropped(self, store: Store) -> None:
        await execute(store, keep("full", {i: slot(f"p{i}") for i in range(63)}))
        assert await execute(store, keep("late", {0: slot("a"), 1: slot("b")})) == {0: 63}
        entry = await execute(store, commands.ReadEntry("f"))
        assert sorted(entry.slots) == list(range(64))
        assert entry.slots[63].image_id == "a"

    async def test_an_expired_image_can_still_be_read_while_its_entry_lingers(
        self, store: Store
    ) -> None:
        await execute(store, keep("one", {0: slot("p")}, lifetime=SHORT))
        await asyncio.sleep(OVER)
        entry = await execute(store, commands.ReadEntry("f"))
        assert entry.slots[0].image_id == "p"
        assert entry.slots[0].expires_at < entry.now

    async def test_the_whole_entry_lives_beyond_its_last_expiry(self, store: Store) -> None:
        await execute(store, keep("one", {0: slot("a")}, lifetime=LONG, linger=LONG))
        await execute(store, keep("two", {1: slot("b")}, lifetime=SHORT, linger=0.0))
        await asyncio.sleep(OVER)
        assert sorted((await execute(store, commands.ReadEntry("f"))).slots) == [0, 1]

    async def test_keeping_nothing_gives_the_claims_back(self, store: Store) -> None:
        await execute(store, claim("one"))
        assert await execute(store, keep("one", {})) == {}
        assert (await execute(store, claim("two"))).acquired == (0,)

    async def test_clearing_empties_only_the_slot_that_holds_the_image_meant(
        self, store: Store
    ) -> None:
        await execute(store, keep("one", {0: slot("a"), 1: slot("b"), 2: slot("c")}))
        for _ in range(2):
            assert (
                await execute(store, commands.EmptySlots("f", {0: "a", 1: "other", 9: "a"})) is None
            )
        entry = await execute(store, commands.ReadEntry("f"))
        assert {i: s.image_id for i, s in entry.slots.items()} == {1: "b", 2: "c"}
        assert (await execute(store, claim("two"))).acquired == (0,)


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

    async def test_a_second_event_of_the_same_id_is_dropped(self, store: Store) -> None:
        await execute(store, publish("a", "e", b"first"))
        await execute(store, publish("a", "e", b"second"))
        await execute(store, publish("b", "e", b"elsewhere"))
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"first"]
        assert list(await execute(store, commands.ReadEvents("b"))) == [b"elsewhere"]

    async def test_events_live_from_the_last_one(self, store: Store) -> None:
        await execute(store, publish("a", "e1", b"1", lifetime=0.3))
        await asyncio.sleep(0.2)
        await execute(store, publish("a", "e2", b"2", lifetime=0.3))
        await asyncio.sleep(0.2)
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"1", b"2"]
        await asyncio.sleep(0.2)
        assert list(await execute(store, commands.ReadEvents("a"))) == []

    async def test_after_their_time_a_flight_starts_anew(self, store: Store) -> None:
        await execute(store, publish("a", "e", b"old", lifetime=SHORT))
        await asyncio.sleep(OVER)
        await execute(store, publish("a", "e", b"new"))
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"new"]

    async def test_an_event_may_be_large(self, store: Store) -> None:
        event = os.urandom(1024 * 1024)
        await execute(store, publish("a", "e", event))
        assert list(await execute(store, commands.ReadEvents("a"))) == [event]


@pytest.mark.timed
class TestWatch:
    async def test_a_publication_wakes_who_waits(self, store: Store, other: Store) -> None:
        async with store.watch("a") as watch:
            waiting = asyncio.create_task(watch.wait(10))
            await asyncio.sleep(0.05)
            started = time.monotonic()
            await execute(other, publish("a", "e", b"event"))
            await waiting
        assert time.monotonic() - started < 0.2

    async def test_a_publication_from_the_same_opening_wakes_too(self, store: Store) -> None:
        async with store.watch("a") as watch:
            started = time.monotonic()
            await execute(store, publish("a", "e", b"event"))
            await watch.wait(10)
        assert time.monotonic() - started < 0.2

    async def test_what_is_published_between_entering_and_waiting_is_not_lost(
        self, store: Store, other: Store
    ) -> None:
        for i in range(10):
            async with store.watch(f"a{i}") as watch:
                assert list(await execute(store, commands.ReadEvents(f"a{i}"))) == []
                await execute(other, publish(f"a{i}", "e", b"event"))
                started = time.monotonic()
                await watch.wait(10)
                assert time.monotonic() - started < 0.2

    async def test_without_a_publication_the_wait_ends_after_its_time(self, store: Store) -> None:
        await execute(store, publish("a", "before", b"event"))
        async with store.watch("a") as watch:
            started = time.monotonic()
            await watch.wait(0.2)
        assert 0.15 < time.monotonic() - started < 1

    async def test_another_flights_events_wake_nobody(self, store: Store, other: Store) -> None:
        async with store.watch("a") as watch:
            waiting = asyncio.create_task(watch.wait(0.3))
            for i in range(5):
                await execute(other, publish("b", f"e{i}", b"event"))
                await asyncio.sleep(0.03)
            assert not waiting.done()
            await waiting

    async def test_each_wait_is_woken_once(self, store: Store, other: Store) -> None:
        async with store.watch("a") as watch:
            for i in range(3):
                await execute(other, publish("a", f"e{i}", b"event"))
                started = time.monotonic()
                await watch.wait(10)
                assert time.monotonic() - started < 0.2
            started = time.monotonic()
            await watch.wait(0.1)
            assert time.monotonic() - started > 0.08

    async def test_everyone_who_watches_a_flight_is_woken(self, store: Store, other: Store) -> None:
        async def follow(follower: Store) -> float:
            async with follower.watch("a") as watch:
                ready.release()
                await watch.wait(10)
                return time.monotonic()

        ready = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(follow((store, other)[i % 2])) for i in range(30)]
        for _ in tasks:
            await ready.acquire()
        started = time.monotonic()
        await execute(other, publish("a", "e", b"event"))
        assert max(await asyncio.gather(*tasks)) - started < 0.3

    async def test_a_watch_can_be_left_while_others_stay(self, store: Store, other: Store) -> None:
        async with store.watch("a") as stays:
            async with store.watch("a"):
                pass
            started = time.monotonic()
            await execute(other, publish("a", "e", b"event"))
            await stays.wait(10)
        assert time.monotonic() - started < 0.2


class TestWorkers:
    async def test_a_worker_that_beats_is_alive(self, store: Store) -> None:
        await execute(store, commands.Heartbeat("w"))
        assert list(await execute(store, commands.ExpiredWorkers(LONG))) == []

    async def test_a_silent_worker_is_dead_until_it_beats_again(self, store: Store) -> None:
        await execute(store, commands.Heartbeat("w"))
        await execute(store, commands.Heartbeat("v"))
        await asyncio.sleep(OVER)
        await execute(store, commands.Heartbeat("v"))
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == ["w"]
        await execute(store, commands.Heartbeat("w"))
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == []

    async def test_a_worker_that_reserves_lives_though_it_never_beat(self, store: Store) -> None:
        await execute(store, reserve("p", worker="ghost"))
        assert list(await execute(store, commands.ExpiredWorkers(LONG))) == []
        await asyncio.sleep(OVER)
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == ["ghost"]
        await execute(store, commands.Heartbeat("ghost"))
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == []

    async def test_closed_journals_do_not_count(self, store: Store) -> None:
        await store.execute([reserve("p", worker="ghost"), settle("p")])
        assert list(await execute(store, commands.ExpiredWorkers(LONG))) == []

    async def test_a_retired_worker_is_forgotten(self, store: Store) -> None:
        await execute(store, commands.Heartbeat("w"))
        assert await execute(store, commands.Deregister("w")) is True
        assert await execute(store, commands.Deregister("w")) is True
        assert list(await execute(store, commands.ExpiredWorkers(0.0))) == []

    async def test_a_worker_with_open_journals_is_not_retired(self, store: Store) -> None:
        await store.execute([commands.Heartbeat("w"), reserve("p", worker="w")])
        assert await execute(store, commands.Deregister("w")) is False
        await asyncio.sleep(OVER)
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == ["w"]
        await execute(store, commands.Receive("p", b"received"))
        assert await execute(store, commands.Deregister("w")) is False
        await execute(store, settle("p"))
        assert await execute(store, commands.Deregister("w")) is True
        assert list(await execute(store, commands.ExpiredWorkers(SHORT))) == []


class TestAdmit:
    @staticmethod
    def admit(*consumptions: Consumption, expected: bytes = b"record") -> commands.Admit:
        return commands.Admit("keys", "k", expected, consumptions)

    async def test_what_fits_is_taken(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(5), 2)))
        assert (admission.denied, admission.record) == (None, None)
        (state,) = admission.states
        assert (state.used, state.reserved, state.retry_in) == (2, 0, 0.0)
        assert state.resets_in == pytest.approx(24, abs=1)

    async def test_what_does_not_fit_is_refused_and_nothing_is_taken(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, self.admit(Consumption(bucket(5), 4)))
        mine, teams = (
            Consumption(bucket(9, unit="images"), 1),
            Consumption(bucket(9, scope="team:t"), 1),
        )
        refused = await execute(store, self.admit(teams, Consumption(bucket(5), 3), mine))
        assert refused.denied == 1
        assert [state.used for state in refused.states] == [0, 4, 0]
        assert refused.states[1].retry_in == pytest.approx(24, abs=1)
        assert [refused.states[0].retry_in, refused.states[2].retry_in] == [0.0, 0.0]
        assert await shown(store, teams.counter, bucket(5)) == [(0, 0), (4, 0)]

    async def test_a_stale_record_changes_nothing_and_is_answered(self, store: Store) -> None:
        await execute(store, write("keys", "k", BINARY))
        admission = await execute(store, self.admit(Consumption(bucket(5), 1)))
        assert (admission.denied, admission.record, admission.states) == (None, BINARY, ())
        assert await shown(store, bucket(5)) == [(0, 0)]

    async def test_a_record_that_is_gone_is_answered_as_empty(self, store: Store) -> None:
        admission = await execute(store, self.admit(Consumption(bucket(5), 1)))
        assert (admission.denied, admission.record, admission.states) == (None, b"", ())

    async def test_a_maximum_of_nothing_refuses_everything_for_ever(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(0), 1)))
        assert admission.denied == 0
        assert (admission.states[0].used, admission.states[0].retry_in) == (0, 0.0)

    async def test_more_than_a_bucket_holds_is_refused_for_ever(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(5), 6)))
        assert (admission.denied, admission.states[0].retry_in) == (0, 0.0)

    async def test_a_look_takes_nothing_and_is_never_refused(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, self.admit(Consumption(bucket(2), 2)))
        looks = (
            Consumption(bucket(2)),
            Consumption(bucket(0, scope="team:t")),
            Consumption(day(0)),
        )
        admission = await execute(store, self.admit(*looks))
        assert admission.denied is None
        assert [state.used for state in admission.states] == [2, 0, 0]

    async def test_without_takes_only_the_record_counts(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit())
        assert (admission.denied, admission.record, admission.states) == (None, None, ())

    async def test_a_bucket_without_a_limit_is_not_kept(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        admission = await execute(store, self.admit(Consumption(bucket(None), 1000)))
        assert admission.denied is None
        assert admission.states == (commands.CounterState(0, 0, 0.0),)
        assert await shown(store, bucket(10)) == [(0, 0)]

    async def test_a_bucket_refills_while_time_passes(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        assert (await execute(store, self.admit(Consumption(bucket(600), 600)))).denied is None
        refused = await execute(store, self.admit(Consumption(bucket(600), 2)))
        assert refused.denied == 0
        assert 0 < refused.states[0].retry_in <= 0.2
        await asyncio.sleep(refused.states[0].retry_in + 0.01)
        assert (await execute(store, self.admit(Consumption(bucket(600), 2)))).denied is None

    async def test_a_smaller_maximum_holds_from_the_next_request_on(self, store: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        await execute(store, self.admit(Consumption(bucket(100), 1)))
        admission = await execute(store, self.admit(Consumption(bucket(5), 5)))
        assert (admission.denied, admission.states[0].used) == (None, 5)
        assert (await execute(store, self.admit(Consumption(bucket(5), 1)))).denied == 0

    async def test_many_at_once_never_pass_the_maximum(self, store: Store, other: Store) -> None:
        await execute(store, write("keys", "k", b"record"))
        answers = await asyncio.gather(
            *(
                execute((store, other)[i % 2], self.admit(Consumption(bucket(5), 1)))
                for i in range(60)
            )
        )
        assert [answer.denied for answer in answers].count(None) == 5


class TestReserve:
    async def test_a_reservation_counts_and_opens_a_journal(self, store: Store) -> None:
        consumptions = (
            Consumption(day(10), 2),
            Consumption(month(1000), 70),
            Consumption(open_now(3), 1),
        )
        reservation = await execute(store, reserve("p", *consumptions, payload=BINARY))
        assert reservation.denied is None
        assert [(s.used, s.reserved) for s in reservation.states] == [(0, 2), (0, 70), (0, 1)]
        assert reservation.now == pytest.approx(time.time(), abs=5)
        journals = list(await execute(store, commands.OpenJournals()))
        assert journals == [commands.Journal("p", "w", "reserved", BINARY)]

    async def test_windows_end_with_the_utc_day_and_month(self, store: Store) -> None:
        counters = (day(10), month(10), open_now(10))
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

    async def test_a_refused_reservation_reserves_nothing_and_has_no_journal(
        self, store: Store
    ) -> None:
        await execute(store, reserve("one", Consumption(day(10), 8)))
        consumptions = (
            Consumption(bucket(9), 1),
            Consumption(month(1000), 70),
            Consumption(day(10), 3),
            Consumption(open_now(9), 1),
        )
        refused = await execute(store, reserve("two", *consumptions))
        assert refused.denied == 2
        assert [(s.used, s.reserved) for s in refused.states] == [(0, 0), (0, 0), (0, 8), (0, 0)]
        assert [j.purchase for j in await execute(store, commands.OpenJournals())] == ["one"]
        assert await execute(store, commands.Receive("two", b"")) == "unknown"

    async def test_the_last_unit_of_a_budget_can_be_reserved(self, store: Store) -> None:
        assert (await execute(store, reserve("one", Consumption(day(10), 10)))).denied is None
        assert (await execute(store, reserve("two", Consumption(day(10), 1)))).denied == 0

    async def test_a_meter_without_a_maximum_counts(self, store: Store) -> None:
        await execute(store, reserve("one", Consumption(day(), 10**9)))
        assert await shown(store, day()) == [(0, 10**9)]

    async def test_a_maximum_of_nothing_refuses_everything(self, store: Store) -> None:
        for i, counter in enumerate((day(0), month(0), open_now(0))):
            assert (await execute(store, reserve(f"p{i}", Consumption(counter, 1)))).denied == 0

    async def test_a_look_is_never_refused(self, store: Store) -> None:
        await execute(store, reserve("one", Consumption(day(10), 10)))
        assert (await execute(store, reserve("two", Consumption(day(5))))).denied is None

    async def test_scopes_units_and_periods_count_apart(self, store: Store) -> None:
        counters = (
            day(),
            day(unit="tokens"),
            day(scope="team:t"),
            Counter("key:k", "images", "month"),
        )
        await execute(
            store,
            reserve("p", *(Consumption(counter, i + 1) for i, counter in enumerate(counters))),
        )
        assert await shown(store, *counters) == [(0, 1), (0, 2), (0, 3), (0, 4)]

    async def test_a_bucket_is_taken_from_once_and_never_given_back(self, store: Store) -> None:
        take = Consumption(bucket(10, unit="images"), 4)
        for _ in range(2):
            assert (await execute(store, reserve("p", take))).denied is None
        assert await shown(store, take.counter) == [(4, 0)]
        await execute(store, settle("p", images=1))
        assert await shown(store, take.counter) == [(4, 0)]

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
        assert await shown(store, day()) == [(3, 0)]
        assert list(await execute(store, commands.OpenJournals())) == []

    async def test_many_at_once_never_pass_a_budget(self, store: Store, other: Store) -> None:
        answers = await asyncio.gather(
            *(
                execute(
                    (store, other)[i % 2],
                    reserve(f"p{i}", Consumption(month(100), 7), Consumption(day(99), 1)),
                )
                for i in range(60)
            )
        )
        assert [answer.denied for answer in answers].count(None) == 14
        assert await shown(store, month(), day()) == [(0, 98), (0, 14)]


class TestJournals:
    async def test_receiving_replaces_the_payload(self, store: Store) -> None:
        await execute(store, reserve("p"))
        for _ in range(2):
            assert await execute(store, commands.Receive("p", BINARY)) == "received"
        assert list(await execute(store, commands.OpenJournals("w"))) == [
            commands.Journal("p", "w", "received", BINARY)
        ]

    async def test_receiving_for_an_unknown_purchase_says_so(self, store: Store) -> None:
        assert await execute(store, commands.Receive("unknown", b"")) == "unknown"

    async def test_receiving_after_somebody_closed_it_changes_nothing(self, store: Store) -> None:
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


class TestSettle:
    async def test_settling_gives_back_the_reserved_and_charges_the_real(
        self, store: Store
    ) -> None:
        consumptions = (
            Consumption(day(10), 4),
            Consumption(month(1000), 500),
            Consumption(open_now(5), 1),
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
            Consumption(day(scope="team:t"), 2),
            Consumption(Counter("key:k", "images", "month"), 2),
        )
        await store.execute([reserve("p", *consumptions), settle("p", images=1)])
        assert await shown(store, *(take.counter for take in consumptions)) == [(1, 0)] * 3

    async def test_a_unit_that_is_not_charged_is_given_back(self, store: Store) -> None:
        await store.execute([reserve("p", Consumption(day(10), 4)), settle("p")])
        assert await shown(store, day()) == [(0, 0)]

    async def test_a_charge_above_the_maximum_is_charged_and_the_next_reservation_sees_it(
        self, store: Store
    ) -> None:
        await store.execute([reserve("p", Consumption(day(10), 4)), settle("p", images=12)])
        assert await shown(store, day()) == [(12, 0)]
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
        assert await shown(store, day(10)) == [(0, 0)]
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

    async def test_a_presumed_charge_is_corrected_once_by_a_late_answer(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4), Consumption(month(1000), 500)))
        presumed = await execute(
            store, settle("p", images=4, usd_micros=500, record=b"presumed", presumed=True)
        )
        assert (presumed.status, presumed.presumed) == ("settled", True)
        plain = await execute(store, settle("p", images=1, record=b"not this"))
        assert (plain.status, plain.presumed) == ("already", True)
        assert await shown(store, day(), month()) == [(4, 0), (500, 0)]

        corrected = await execute(
            store, settle("p", images=2, usd_micros=600, tokens=9, record=b"late", correct=True)
        )
        assert (corrected.status, corrected.presumed) == ("corrected", False)
        assert dict(corrected.charged) == {"images": 2, "usd_micros": 600, "tokens": 9}
        assert [(s.used, s.reserved) for s in corrected.states] == [(2, 0), (600, 0)]

        third = await execute(store, settle("p", images=1, record=b"third", correct=True))
        assert (third.status, dict(third.charged)) == ("already", corrected.charged)
        assert await shown(store, day(), month()) == [(2, 0), (600, 0)]
        assert await ledger(store) == [b"presumed", b"late"]

    async def test_a_unit_that_the_correction_does_not_charge_is_given_back(
        self, store: Store
    ) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4)))
        await store.execute([settle("p", images=4, presumed=True), settle("p", correct=True)])
        assert await shown(store, day()) == [(0, 0)]

    async def test_correcting_an_open_journal_simply_settles_it(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4)))
        settled = await execute(store, settle("p", images=2, correct=True))
        assert (settled.status, settled.presumed) == ("settled", False)
        assert await shown(store, day()) == [(2, 0)]

    async def test_of_many_that_settle_one_purchase_exactly_one_does(
        self, store: Store, other: Store
    ) -> None:
        await execute(store, reserve("p", Consumption(day(), 4)))
        answers = await asyncio.gather(
            *(execute((store, other)[i % 2], settle("p", images=3, record=b"r")) for i in range(30))
        )
        statuses = [answer.status for answer in answers]
        assert (statuses.count("settled"), statuses.count("already")) == (1, 29)
        assert await shown(store, day()) == [(3, 0)]
        assert await ledger(store) == [b"r"]


class TestReadMeters:
    async def test_untouched_meters_show_nothing(self, store: Store) -> None:
        counters = (bucket(5), bucket(None), bucket(0), day(10), month(), open_now(3))
        assert await shown(store, *counters) == [(0, 0)] * 6

    async def test_reading_takes_nothing(self, store: Store) -> None:
        await execute(store, reserve("p", Consumption(day(10), 4), Consumption(bucket(10), 4)))
        for _ in range(3):
            assert await shown(store, day(10), bucket(10)) == [(0, 4), (4, 0)]

    async def test_no_meters_no_states(self, store: Store) -> None:
        assert list(await execute(store, commands.PeekCounters(()))) == []

    async def test_large_amounts_are_exact(self, store: Store) -> None:
        amount = 2**53 - 3
        await store.execute(
            [reserve("p", Consumption(month(), amount)), settle("p", usd_micros=amount)]
        )
        await execute(store, reserve("q", Consumption(month(), 2)))
        assert await shown(store, month()) == [(amount, 2)]


class TestLedger:
    async def test_an_empty_ledger_has_no_records(self, store: Store) -> None:
        assert list(await execute(store, commands.ReadLedger())) == []

    async def test_records_come_in_the_order_they_were_added(self, store: Store) -> None:
        records = [f"{i}".encode() for i in range(25)] + [BINARY, b""]
        await execute(store, commands.Append(tuple(records[:20])))
        await execute(store, commands.Append(tuple(records[20:])))
        await execute(store, commands.Append(()))
        assert await ledger(store) == records

    async def test_an_append_that_is_repeated_adds_nothing(self, store: Store) -> None:
        append = commands.Append((b"1", b"2"))
        await execute(store, append)
        await execute(store, append)
        await execute(store, commands.Append((b"3",), batch_id="another"))
        assert await ledger(store) == [b"1", b"2", b"3"]

    async def test_ids_begin_with_the_day_and_grow_as_strings(self, store: Store) -> None:
        before = time.strftime("%Y-%m-%d", time.gmtime())
        await execute(store, commands.Append(tuple(b"r" for _ in range(120))))
        after = time.strftime("%Y-%m-%d", time.gmtime())
        ids = [id_ for id_, _ in await execute(store, commands.ReadLedger())]
        assert ids == sorted(set(ids))
        assert len(ids) == 120
        assert {id_.split("/")[0] for id_ in ids} <= {before, after}

    async def test_reading_goes_on_after_any_id(self, store: Store) -> None:
        await execute(store, commands.Append(tuple(str(i).encode() for i in range(25))))
        found: list[bytes] = []
        after = ""
        while page := await execute(store, commands.ReadLedger(after, limit=10)):
            assert len(page) <= 10
            found += [record for _, record in page]
            after = page[-1][0]
        assert found == [str(i).encode() for i in range(25)]

    async def test_a_day_alone_is_a_place_to_read_from(self, store: Store) -> None:
        await execute(store, commands.Append((b"r",)))
        tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 2 * 86_400))
        assert [r for _, r in await execute(store, commands.ReadLedger("2020-01-01/"))] == [b"r"]
        assert list(await execute(store, commands.ReadLedger(f"{tomorrow}/"))) == []

    async def test_nothing_is_lost_when_many_append_at_once(
        self, store: Store, other: Store
    ) -> None:
        records = [str(i).encode() for i in range(100)]
        await asyncio.gather(
            *(execute((store, other)[i % 2], commands.Append((r,))) for i, r in enumerate(records))
        )
        assert sorted(await ledger(store)) == sorted(records)


class TestSweep:
    async def test_what_lives_is_not_swept(self, store: Store) -> None:
        await store.execute(
            [
                write("s", "a", b"1"),
                keep("zero", {0: slot("p")}),
                claim("one", (1,)),
                publish("a", "e", b"event"),
                commands.Heartbeat("w"),
                reserve("p", Consumption(day(10), 4), Consumption(bucket(10), 3)),
                commands.Append((b"r",)),
            ]
        )
        assert await execute(store, commands.Sweep()) == 0
        assert await execute(store, commands.Get("s", "a")) == b"1"
        assert set((await execute(store, commands.ReadEntry("f"))).slots) == {0}
        assert dict((await execute(store, claim("two", (1,)))).leased) == {1: "one"}
        assert list(await execute(store, commands.ReadEvents("a"))) == [b"event"]
        assert await shown(store, day(10), bucket(10)) == [(0, 4), (3, 0)]
        assert len(await execute(store, commands.OpenJournals("w"))) == 1
        assert await ledger(store) == [b"r"]
