"""The contract of values and sets, on each adapter."""

from __future__ import annotations

import asyncio

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.protocol import Store
from tests.store.pages import read_set
from tests.waiting import eventually

SHORT = 0.15
PAST_SHORT = 0.25
LONG = 60.0
BINARY = bytes(range(256)) + b"\r\n\x00"


def set_value(
    name: str, value: bytes, *, ttl: float | None = LONG, only_if_absent: bool = False
) -> commands.SetValue:
    return commands.SetValue("s", name, value, ttl, only_if_absent)


def add(*members: str, name: str = "l", ttl: float = LONG) -> commands.AddToSet:
    return commands.AddToSet("s", name, members, ttl)


def advance(amount: int, *, name: str = "n", ttl: float = LONG) -> commands.AdvanceCounter:
    return commands.AdvanceCounter("s", name, amount, 64, ttl)


async def starts_anew(store: Store) -> bool:
    return await read(store, "n") is None


async def read(store: Store, name: str) -> bytes | None:
    return await execute(store, commands.GetValue("s", name))


async def members(store: Store, name: str = "l") -> list[str]:
    return sorted(await read_set(store, "s", name))


class TestValues:
    async def test_an_unknown_value_is_none(self, store: Store) -> None:
        assert await read(store, "unknown") is None

    async def test_a_value_is_returned_byte_for_byte(self, store: Store) -> None:
        assert await execute(store, set_value("näme:with {odd} \x00 signs", BINARY)) is True
        assert await read(store, "näme:with {odd} \x00 signs") == BINARY
        assert await execute(store, set_value("empty", b"")) is True
        assert await read(store, "empty") == b""

    async def test_a_counter_counts_from_zero_modulo_its_modulus(self, store: Store) -> None:
        found = await store.execute([advance(2), advance(61), advance(4), advance(1, name="other")])
        assert [*found, await execute(store, advance(1))] == [0, 2, 63, 0, 3]
        assert await read(store, "n") == b"4"

    async def test_a_counter_expires_after_its_first_addition(self, store: Store) -> None:
        """A later addition does not prolong it."""
        # In one batch, which the embedded store executes at one moment.
        assert await store.execute([advance(1, ttl=SHORT), advance(1, ttl=LONG)]) == [0, 1]
        await eventually(lambda: starts_anew(store))

    async def test_additions_at_once_each_count(self, store: Store) -> None:
        found = await asyncio.gather(*(execute(store, advance(3)) for _ in range(20)))
        assert sorted(found) == sorted(3 * n % 64 for n in range(20))

    async def test_spaces_do_not_share_names(self, store: Store) -> None:
        await execute(store, set_value("n", b"v"))
        assert await execute(store, commands.GetValue("other", "n")) is None

    async def test_a_value_is_overwritten(self, store: Store) -> None:
        await store.execute([set_value("n", b"1"), set_value("n", b"2")])
        assert await read(store, "n") == b"2"

    async def test_only_if_absent_does_not_overwrite(self, store: Store) -> None:
        assert await execute(store, set_value("n", b"1", only_if_absent=True)) is True
        assert await execute(store, set_value("n", b"2", only_if_absent=True)) is False
        assert await read(store, "n") == b"1"

    async def test_a_value_is_set_only_in_place_of_an_expected_one(self, store: Store) -> None:
        def replace(value: bytes, *expected: bytes, if_absent: bool = False) -> commands.SetValue:
            return commands.SetValue("s", "n", value, LONG, if_absent, expected)

        assert await execute(store, replace(b"1", b"", b"0")) is False
        assert await read(store, "n") is None
        assert await execute(store, replace(b"1", b"0", if_absent=True)) is True
        assert await execute(store, replace(b"2", b"0", if_absent=True)) is False
        assert await execute(store, replace(BINARY, b"0", b"1")) is True
        assert await execute(store, replace(BINARY, BINARY)) is True
        assert await execute(store, replace(b"3", BINARY[:-1])) is False
        assert await read(store, "n") == BINARY

    async def test_an_expired_value_is_in_nobodys_place(self, store: Store) -> None:
        await execute(store, set_value("n", b"1", ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        expected = commands.SetValue("s", "n", b"2", LONG, expected=(b"1",))
        assert await execute(store, expected) is False
        assert await read(store, "n") is None

    async def test_a_value_that_was_not_set_does_not_extend_the_time_to_live(
        self, store: Store
    ) -> None:
        await store.execute(
            [set_value("n", b"1", ttl=SHORT), set_value("n", b"2", only_if_absent=True)]
        )
        await asyncio.sleep(PAST_SHORT)
        assert await read(store, "n") is None
        assert await execute(store, set_value("n", b"3", only_if_absent=True)) is True

    async def test_the_last_time_to_live_applies(self, store: Store) -> None:
        await store.execute(
            [
                set_value("short", b"v"),
                set_value("short", b"v", ttl=SHORT),
                set_value("long", b"v", ttl=SHORT),
                set_value("long", b"v"),
                set_value("ever", b"v", ttl=SHORT),
                set_value("ever", b"v", ttl=None),
                set_value("over", b"v", ttl=0),
            ]
        )
        await asyncio.sleep(PAST_SHORT)
        assert await read(store, "over") is None
        assert await read(store, "short") is None
        assert await read(store, "long") == b"v"
        assert await read(store, "ever") == b"v"

    async def test_a_deleted_value_is_none(self, store: Store) -> None:
        await store.execute(
            [set_value("n", b"v"), commands.DeleteValue("s", "n"), commands.DeleteValue("s", "n")]
        )
        assert await read(store, "n") is None

    async def test_a_value_is_deleted_only_if_it_is_the_expected_one(self, store: Store) -> None:
        await execute(store, set_value("n", BINARY))
        await execute(store, commands.DeleteValue("s", "n", b"other"))
        assert await read(store, "n") == BINARY
        await execute(store, commands.DeleteValue("s", "n", BINARY))
        assert await read(store, "n") is None
        await execute(store, commands.DeleteValue("s", "n", BINARY))

    async def test_of_many_concurrent_commands_exactly_one_sets_an_absent_value(
        self, store: Store, other: Store
    ) -> None:
        results = await asyncio.gather(
            *(
                execute((store, other)[i % 2], set_value("n", str(i).encode(), only_if_absent=True))
                for i in range(40)
            )
        )
        assert results.count(True) == 1
        assert await read(store, "n") == str(results.index(True)).encode()


class TestSets:
    async def test_an_unknown_set_has_no_members(self, store: Store) -> None:
        assert await members(store) == []
        await execute(store, commands.RemoveFromSet("s", "l", ("a",)))
        assert await members(store) == []

    async def test_a_member_is_added_once(self, store: Store) -> None:
        await store.execute([add("a", "ü {b}"), add("c", "a", "a"), add()])
        assert await members(store) == ["a", "c", "ü {b}"]

    async def test_sets_do_not_share_members(self, store: Store) -> None:
        await store.execute(
            [add("a"), add("b", name="other"), commands.RemoveFromSet("s", "l", ("b",))]
        )
        assert await members(store) == ["a"]
        assert await members(store, "other") == ["b"]
        assert await read_set(store, "x", "l") == []

    async def test_removed_members_are_not_in_the_set(self, store: Store) -> None:
        await store.execute([add("a", "b", "c"), commands.RemoveFromSet("s", "l", ("a", "x", "c"))])
        assert await members(store) == ["b"]
        await execute(store, commands.RemoveFromSet("s", "l", ("b",)))
        assert await members(store) == []
        await execute(store, add("d"))
        assert await members(store) == ["d"]

    async def test_adding_never_shortens_the_time_to_live_of_the_set(self, store: Store) -> None:
        ttls = {"a": SHORT, "b": LONG, "c": SHORT}
        await store.execute([add(member, ttl=ttl) for member, ttl in ttls.items()])
        await asyncio.sleep(PAST_SHORT)
        assert await members(store) == ["a", "b", "c"]

    async def test_an_expired_set_starts_empty(self, store: Store) -> None:
        await execute(store, add("a", "b", ttl=SHORT))
        await asyncio.sleep(PAST_SHORT)
        assert await members(store) == []
        await execute(store, add("b", "c"))
        assert await members(store) == ["b", "c"]
        await execute(store, commands.Sweep())
        assert await members(store) == ["b", "c"]

    async def test_a_set_may_have_many_members(self, store: Store) -> None:
        wanted = [f"{i:064x}" for i in range(20_000)]
        await execute(store, add(*wanted))
        assert await members(store) == wanted
        await execute(store, commands.RemoveFromSet("s", "l", tuple(wanted[:19_999])))
        assert await members(store) == wanted[19_999:]

    async def test_concurrent_additions_lose_nothing(self, store: Store, other: Store) -> None:
        await asyncio.gather(*(execute((store, other)[i % 2], add(f"m{i:02}")) for i in range(50)))
        assert await members(store) == [f"m{i:02}" for i in range(50)]


def add_bounded(*members: str, ttl: float = LONG, **bounds: int) -> commands.AddToBoundedSets:
    """Adds to sets whose names and bounds are given."""
    sets = tuple(commands.BoundedSet("s", name, bound) for name, bound in bounds.items())
    return commands.AddToBoundedSets(sets, members, ttl)


class TestBoundedSets:
    async def test_members_are_added_up_to_the_bound(self, store: Store) -> None:
        assert await execute(store, add_bounded("a", "b", "c", x=2)) == ["a", "b"]
        assert await execute(store, add_bounded("c", "b", x=2)) == ["b"]
        assert await execute(store, add_bounded("c", x=3)) == ["c"]
        assert await execute(store, add_bounded("a", "d", x=0)) == ["a"]

    async def test_a_member_is_added_to_all_sets_or_to_none(self, store: Store) -> None:
        assert await execute(store, add_bounded("a", x=1, y=5)) == ["a"]
        assert await execute(store, add_bounded("b", "c", x=1, y=5)) == []
        assert await execute(store, add_bounded("b", "c", y=2)) == ["b"]

    async def test_an_expired_member_makes_room(self, store: Store) -> None:
        added = [add_bounded("a", x=2, ttl=SHORT), add_bounded("b", x=2), add_bounded("c", x=2)]
        assert await store.execute(added) == [["a"], ["b"], []]
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, add_bounded("c", "d", x=2)) == ["c"]

    async def test_adding_a_member_again_extends_its_time_to_live(self, store: Store) -> None:
        await store.execute([add_bounded("a", x=1, ttl=SHORT), add_bounded("a", x=1)])
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, add_bounded("b", x=1)) == []

    async def test_the_bound_holds_for_concurrent_commands(
        self, store: Store, other: Store
    ) -> None:
        results = await asyncio.gather(
            *(execute((store, other)[i % 2], add_bounded(str(i), x=7)) for i in range(40))
        )
        assert sum(map(len, results)) == 7

    async def test_sets_do_not_share_members(self, store: Store) -> None:
        assert await execute(store, add_bounded("a", x=1)) == ["a"]
        assert await execute(store, add_bounded("b", y=1)) == ["b"]
        assert await members(store, "x") == []
        assert await read(store, "a") is None
