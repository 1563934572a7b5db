"""What every store promises of notes and lists: small things with a life of their own."""

from __future__ import annotations

import asyncio

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.protocol import Store

SHORT = 0.15
OVER = 0.25
LONG = 60.0
BINARY = bytes(range(256)) + b"\r\n\x00"


def note(
    name: str, value: bytes, *, lifetime: float | None = LONG, only_if_absent: bool = False
) -> commands.SetValue:
    return commands.SetValue("s", name, value, lifetime, only_if_absent)


def enlist(*members: str, name: str = "l", lifetime: float = LONG) -> commands.AddToSet:
    return commands.AddToSet("s", name, members, lifetime)


async def read(store: Store, name: str) -> bytes | None:
    return await execute(store, commands.GetValue("s", name))


async def members(store: Store, name: str = "l") -> list[str]:
    return sorted(await execute(store, commands.GetSet("s", name)))


class TestNotes:
    async def test_an_unknown_note_is_none(self, store: Store) -> None:
        assert await read(store, "unknown") is None

    async def test_a_value_comes_back_byte_for_byte(self, store: Store) -> None:
        assert await execute(store, note("näme:with {odd} \x00 signs", BINARY)) is True
        assert await read(store, "näme:with {odd} \x00 signs") == BINARY
        assert await execute(store, note("empty", b"")) is True
        assert await read(store, "empty") == b""

    async def test_spaces_do_not_share_names(self, store: Store) -> None:
        await execute(store, note("n", b"v"))
        assert await execute(store, commands.GetValue("other", "n")) is None

    async def test_a_note_is_overwritten(self, store: Store) -> None:
        await store.execute([note("n", b"1"), note("n", b"2")])
        assert await read(store, "n") == b"2"

    async def test_a_new_one_is_not_written_over_one_that_lives(self, store: Store) -> None:
        assert await execute(store, note("n", b"1", only_if_absent=True)) is True
        assert await execute(store, note("n", b"2", only_if_absent=True)) is False
        assert await read(store, "n") == b"1"

    async def test_a_refused_one_does_not_prolong(self, store: Store) -> None:
        await store.execute([note("n", b"1", lifetime=SHORT), note("n", b"2", only_if_absent=True)])
        await asyncio.sleep(OVER)
        assert await read(store, "n") is None
        assert await execute(store, note("n", b"3", only_if_absent=True)) is True

    async def test_it_lives_as_long_as_was_said_last(self, store: Store) -> None:
        await store.execute(
            [
                note("short", b"v"),
                note("short", b"v", lifetime=SHORT),
                note("long", b"v", lifetime=SHORT),
                note("long", b"v"),
                note("ever", b"v", lifetime=SHORT),
                note("ever", b"v", lifetime=None),
                note("over", b"v", lifetime=0),
            ]
        )
        await asyncio.sleep(OVER)
        assert await read(store, "over") is None
        assert await read(store, "short") is None
        assert await read(store, "long") == b"v"
        assert await read(store, "ever") == b"v"

    async def test_a_dropped_note_is_gone(self, store: Store) -> None:
        await store.execute(
            [note("n", b"v"), commands.DeleteValue("s", "n"), commands.DeleteValue("s", "n")]
        )
        assert await read(store, "n") is None

    async def test_of_many_that_write_a_new_one_exactly_one_does(
        self, store: Store, other: Store
    ) -> None:
        answers = await asyncio.gather(
            *(
                execute((store, other)[i % 2], note("n", str(i).encode(), only_if_absent=True))
                for i in range(40)
            )
        )
        assert answers.count(True) == 1
        assert await read(store, "n") == str(answers.index(True)).encode()


class TestLists:
    async def test_an_unknown_list_has_no_members(self, store: Store) -> None:
        assert await members(store) == []
        await execute(store, commands.RemoveFromSet("s", "l", ("a",)))
        assert await members(store) == []

    async def test_it_is_a_set(self, store: Store) -> None:
        await store.execute([enlist("a", "ü {b}"), enlist("c", "a", "a"), enlist()])
        assert await members(store) == ["a", "c", "ü {b}"]

    async def test_lists_do_not_share_members(self, store: Store) -> None:
        await store.execute(
            [enlist("a"), enlist("b", name="other"), commands.RemoveFromSet("s", "l", ("b",))]
        )
        assert await members(store) == ["a"]
        assert await members(store, "other") == ["b"]
        assert await execute(store, commands.GetSet("x", "l")) == []

    async def test_what_is_struck_is_off(self, store: Store) -> None:
        await store.execute(
            [enlist("a", "b", "c"), commands.RemoveFromSet("s", "l", ("a", "x", "c"))]
        )
        assert await members(store) == ["b"]
        await execute(store, commands.RemoveFromSet("s", "l", ("b",)))
        assert await members(store) == []
        await execute(store, enlist("d"))
        assert await members(store) == ["d"]

    async def test_enlisting_only_prolongs_and_the_whole_list(self, store: Store) -> None:
        lifetimes = {"a": SHORT, "b": LONG, "c": SHORT}
        await store.execute([enlist(member, lifetime=given) for member, given in lifetimes.items()])
        await asyncio.sleep(OVER)
        assert await members(store) == ["a", "b", "c"]

    async def test_after_its_time_a_list_starts_anew(self, store: Store) -> None:
        await execute(store, enlist("a", "b", lifetime=SHORT))
        await asyncio.sleep(OVER)
        assert await members(store) == []
        await execute(store, enlist("b", "c"))
        assert await members(store) == ["b", "c"]
        await execute(store, commands.Sweep())
        assert await members(store) == ["b", "c"]

    async def test_many_members_come_back(self, store: Store) -> None:
        wanted = [f"{i:064x}" for i in range(20_000)]
        await execute(store, enlist(*wanted))
        assert await members(store) == wanted
        await execute(store, commands.RemoveFromSet("s", "l", tuple(wanted[:19_999])))
        assert await members(store) == wanted[19_999:]

    async def test_members_from_everywhere_are_all_on_it(self, store: Store, other: Store) -> None:
        await asyncio.gather(
            *(execute((store, other)[i % 2], enlist(f"m{i:02}")) for i in range(50))
        )
        assert await members(store) == [f"m{i:02}" for i in range(50)]
