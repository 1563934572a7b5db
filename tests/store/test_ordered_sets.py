"""The contract of ordered sets and hits, on each adapter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import MAX_TRIMMED, NO_HITS
from gateway.store.protocol import Store
from tests.waiting import eventually

SHORT = 0.15
LONG = 60.0


def add(member: str, *names: str, ttl: float = LONG, most: int = 100, oldest: str = "") -> Any:
    return commands.AddToOrderedSets("s", names or ("l",), member, ttl, most, oldest)


def remove(member: str, *names: str) -> Any:
    return commands.RemoveFromOrderedSets("s", names or ("l",), member)


async def read(store: Store, name: str = "l", *, before: str = "", limit: int = 1000) -> list[str]:
    found = await execute(store, commands.ReadOrderedSet("s", name, limit, before))
    return list(found)


async def count(store: Store, *names: str) -> list[int]:
    found = await execute(store, commands.CountOrderedSets("s", names or ("l",)))
    return list(found)


async def is_empty(store: Store) -> bool:
    return await read(store) == []


class TestOrderedSets:
    async def test_an_unknown_set_has_no_members(self, store: Store) -> None:
        assert await read(store) == []
        await execute(store, remove("a", "l", "other"))
        assert await count(store, "l", "other") == [0, 0]

    async def test_members_are_read_last_first_in_pages(self, store: Store) -> None:
        await store.execute([add(member) for member in ("b", "ü {x}", "a", "c", "B", "b")])
        assert await read(store) == ["ü {x}", "c", "b", "a", "B"]
        assert await read(store, limit=2) == ["ü {x}", "c"]
        assert await read(store, before="c", limit=2) == ["b", "a"]
        assert await read(store, before="bb") == ["b", "a", "B"]
        assert await read(store, before="B") == []

    async def test_a_member_is_added_to_and_removed_from_several_sets(self, store: Store) -> None:
        await store.execute([add("a", "x", "y"), add("b", "y", "z"), add("b", "y", "z")])
        assert await count(store, "z", "x", "none", "y") == [1, 1, 0, 2]
        await store.execute([remove("b", "y", "x"), remove("b", "y", "x"), remove("c", "y")])
        assert [await read(store, name) for name in "xyz"] == [["a"], ["a"], ["b"]]
        assert await count(store, "x", "y", "z") == [1, 1, 1]

    async def test_spaces_do_not_share_names(self, store: Store) -> None:
        await execute(store, add("a"))
        assert await execute(store, commands.ReadOrderedSet("other", "l", 10)) == []

    async def test_adding_trims_the_first_members_beyond_the_bound(self, store: Store) -> None:
        await store.execute([add(f"{i:03}") for i in range(50)])
        await execute(store, add("900", most=20))
        assert await count(store) == [51 - MAX_TRIMMED]
        await store.execute([add("900", most=20)] * 4)
        assert await read(store) == ["900", *(f"{i:03}" for i in range(49, 30, -1))]

    async def test_adding_removes_what_is_too_old(self, store: Store) -> None:
        await store.execute([add(f"{i:03}") for i in range(30)])
        await execute(store, add("900", oldest="020"))
        assert (await read(store))[-1] == f"{MAX_TRIMMED:03}"
        await store.execute([add("900", oldest="020")] * 2)
        assert (await read(store))[-1] == "020"
        assert await count(store) == [11]

    async def test_adding_never_shortens_the_time_to_live_of_the_set(self, store: Store) -> None:
        await store.execute([add("a", ttl=SHORT), add("b"), add("c", ttl=SHORT)])
        await asyncio.sleep(2 * SHORT)
        assert await read(store) == ["c", "b", "a"]

    async def test_an_expired_set_starts_empty(self, store: Store) -> None:
        await store.execute([add(member, ttl=SHORT) for member in "abc"])
        await eventually(lambda: is_empty(store))
        await execute(store, add("b"))
        for _ in range(2):
            assert (await read(store), await count(store)) == (["b"], [1])
            while await execute(store, commands.Sweep()):
                continue

    async def test_concurrent_additions_lose_nothing(self, store: Store, other: Store) -> None:
        stores = (store, other)
        await asyncio.gather(*(execute(stores[i % 2], add(f"{i:02}")) for i in range(50)))
        assert await count(store) == [50]


class TestHits:
    async def test_hits_add_up_and_have_the_time_of_the_last(self, store: Store) -> None:
        began_at = time.time()
        await execute(store, commands.CountHits((("a", 2), ("ü {b}", 1)), LONG))
        await execute(store, commands.CountHits((("a", 40),), LONG))
        a, none, b = await execute(store, commands.ReadHits(("a", "none", "ü {b}")))
        assert (a.total, b.total, none) == (42, 1, NO_HITS)
        assert began_at - 1 <= b.last_at <= a.last_at <= time.time() + 1

    async def test_hits_expire_after_the_last_one(self, store: Store) -> None:
        async def are_gone() -> bool:
            found = await execute(store, commands.ReadHits(("a",)))
            return list(found) == [NO_HITS]

        await store.execute([commands.CountHits((("a", 2),), ttl) for ttl in (LONG, SHORT)])
        await eventually(are_gone)
        await execute(store, commands.CountHits((("a", 3),), LONG))
        assert [hits.total for hits in await execute(store, commands.ReadHits(("a",)))] == [3]

    async def test_deleted_hits_are_none(self, store: Store) -> None:
        await execute(store, commands.CountHits((("a", 2), ("b", 1)), LONG))
        await store.execute([commands.DeleteHits(("a", "c")), commands.DeleteHits(("a",))])
        found = await execute(store, commands.ReadHits(("a", "b")))
        assert [hits.total for hits in found] == [0, 1]


MEMBERS = st.text("ab0é{", min_size=1, max_size=3)
NAMES = st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=3, unique=True)
STEPS = st.one_of(
    st.tuples(st.just("add"), NAMES, MEMBERS, st.integers(1, 6), st.one_of(st.just(""), MEMBERS)),
    st.tuples(st.just("remove"), NAMES, MEMBERS),
    st.tuples(st.just("read"), st.sampled_from("xyz"), st.one_of(st.just(""), MEMBERS)),
)


async def _run(store: Store, space: str, steps: Sequence[Any]) -> list[Any]:
    made: list[Any] = []
    for kind, names, *rest in steps:
        if kind == "add":
            member, most, oldest = rest
            add = commands.AddToOrderedSets(space, tuple(names), member, LONG, most, oldest)
            made.append(add)
        elif kind == "remove":
            made.append(commands.RemoveFromOrderedSets(space, tuple(names), *rest))
        else:
            made.append(commands.ReadOrderedSet(space, names, 4, *rest))
        made.append(commands.CountOrderedSets(space, ("x", "y", "z")))
    return [None if found is None else list(found) for found in await store.execute(made)]


def _model(steps: Sequence[Any]) -> list[Any]:
    """The same on sorted lists, in the order of UTF-8."""
    sets: dict[str, list[str]] = {"x": [], "y": [], "z": []}
    results: list[Any] = []
    for kind, names, *rest in steps:
        result = None
        if kind == "read":
            below = [m for m in sets[names] if not rest[0] or m.encode() < rest[0].encode()]
            result = below[::-1][:4]
        for name in names if kind != "read" else ():
            kept = set(sets[name]) - {rest[0]} | ({rest[0]} if kind == "add" else set())
            sets[name] = sorted(kept, key=str.encode)
            if kind == "add":
                _, most, oldest = rest
                old = [m for m in sets[name] if m.encode() < oldest.encode()][:MAX_TRIMMED]
                sets[name] = sets[name][len(old) :]
                excess = min(len(sets[name]) - most, MAX_TRIMMED)
                sets[name] = sets[name][max(0, excess) :]
        results += [result, [len(sets[name]) for name in "xyz"]]
    return results


async def test_every_sequence_of_commands_is_that_of_sorted_lists(store: Store) -> None:
    runs = 0

    @given(st.lists(STEPS, max_size=30))
    def check(steps: list[Any]) -> None:
        nonlocal runs
        runs += 1
        collected.append((f"run{runs}", steps))

    # Hypothesis calls a plain function, so it only makes the sequences; the store runs them after.
    collected: list[tuple[str, list[Any]]] = []
    check()
    for space, steps in collected:
        assert await _run(store, space, steps) == _model(steps), steps
