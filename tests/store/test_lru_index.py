"""What every store promises of the shelf: `verbs.Shelve` and its kin, on each adapter.

Single sentences first; then random stories, held against a model that fits on half a page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import MAX_EVICTIONS
from gateway.store.protocol import Command, Store
from tests.conftest import OpenStore

SHORT = 0.15
OVER = 0.25
LONG = 60.0
PLENTY = 1 << 40


def track(
    digest: str, size: int = 10, *, most: int = PLENTY, lifetime: float = LONG
) -> commands.Track:
    return commands.Track(digest, size, lifetime, most)


async def order(store: Store) -> Sequence[str]:
    """What lies on the shelf, least recently used first."""
    return await execute(store, commands.EvictionCandidates(PLENTY))


async def lru_totals(store: Store) -> tuple[int, int]:
    """How many lie there, and their bytes."""
    found = await execute(store, commands.ReadLruTotals())
    return found.count, found.size_bytes


class TestShelf:
    async def test_an_empty_shelf_holds_nothing(self, store: Store) -> None:
        assert await lru_totals(store) == (0, 0)
        assert await order(store) == []
        assert await execute(store, commands.AreTracked(("a",))) == [False]
        assert await execute(store, commands.EvictTo(0)) == []
        await store.execute([commands.Touch(("a",)), commands.Untrack(("a",))])
        assert await lru_totals(store) == (0, 0)

    async def test_it_counts_what_is_put(self, store: Store) -> None:
        await store.execute([track("a", 10), track("b", 0), track("c", 1 << 39)])
        assert await lru_totals(store) == (3, 10 + (1 << 39))
        assert await execute(store, commands.AreTracked(("c", "x", "a"))) == [True, False, True]

    async def test_nobody_asks_about_nothing(self, store: Store) -> None:
        assert await store.execute(
            [commands.AreTracked(()), commands.Touch(()), commands.Untrack(())]
        ) == [
            [],
            None,
            None,
        ]

    async def test_what_is_put_again_counts_once_and_as_used_just_now(self, store: Store) -> None:
        await store.execute([track("a", 10), track("b", 10), track("a", 12)])
        assert await lru_totals(store) == (2, 22)
        assert await order(store) == ["b", "a"]

    async def test_a_touch_moves_to_the_end_in_its_order(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abcd"])
        await execute(store, commands.Touch(("c", "x", "a")))
        assert await order(store) == ["b", "d", "c", "a"]
        assert await lru_totals(store) == (4, 40)

    async def test_the_least_recently_used_go_until_the_bound_holds(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abcd"])
        await execute(store, commands.Touch(("a",)))
        assert await execute(store, track("e", 15, most=40)) == ["b", "c"]
        assert await order(store) == ["d", "a", "e"]
        assert await lru_totals(store) == (3, 35)

    async def test_nothing_goes_while_the_bound_is_just_met(self, store: Store) -> None:
        await execute(store, track("a", 10))
        assert await execute(store, track("b", 10, most=20)) == []
        assert await execute(store, track("b", 11, most=20)) == ["a"]

    async def test_what_is_put_stays_even_if_it_alone_is_over_the_bound(self, store: Store) -> None:
        await store.execute([track("a"), track("b")])
        assert await execute(store, track("a", 100, most=5)) == ["b"]
        assert await order(store) == ["a"]
        assert await lru_totals(store) == (1, 100)

    async def test_shrinking_puts_nothing(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abc"])
        assert await execute(store, commands.EvictTo(30)) == []
        assert await execute(store, commands.EvictTo(29)) == ["a"]
        assert await execute(store, commands.EvictTo(0)) == ["b", "c"]
        assert await lru_totals(store) == (0, 0)

    async def test_what_is_taken_off_is_gone_and_no_longer_counts(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abc"])
        await execute(store, commands.Untrack(("a", "x", "c", "a")))
        assert await order(store) == ["b"]
        assert await lru_totals(store) == (1, 10)

    async def test_the_oldest_are_no_more_than_asked_for(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abc"])
        assert await execute(store, commands.EvictionCandidates(0)) == []
        assert await execute(store, commands.EvictionCandidates(10)) == ["a"]
        assert await execute(store, commands.EvictionCandidates(11)) == ["a", "b"]
        assert await order(store) == ["a", "b", "c"]

    async def test_no_more_than_a_thousand_go_at_once(self, store: Store) -> None:
        digests = [f"{i:064x}" for i in range(MAX_EVICTIONS + 5)]
        for first in range(0, len(digests), 200):
            await store.execute([track(digest) for digest in digests[first : first + 200]])
        assert await execute(store, commands.EvictionCandidates(PLENTY)) == digests[:MAX_EVICTIONS]
        assert await execute(store, track("new", most=10)) == digests[:MAX_EVICTIONS]
        assert await execute(store, commands.EvictTo(10)) == digests[MAX_EVICTIONS:]
        assert await lru_totals(store) == (1, 10)

    async def test_many_at_once_keep_the_total_right(self, store: Store, other: Store) -> None:
        await asyncio.gather(
            *(
                execute((store, other)[i % 2], track(f"d{i % 30}", 10 + i % 30, most=300))
                for i in range(200)
            )
        )
        left = await order(store)
        sizes = [10 + int(digest[1:]) for digest in left]
        assert await lru_totals(store) == (len(left), sum(sizes))
        assert sum(sizes) <= 300


class TestStay:
    async def test_what_is_past_its_time_is_not_there(self, store: Store) -> None:
        await store.execute([track("a", lifetime=SHORT), track("b")])
        await asyncio.sleep(OVER)
        assert await execute(store, commands.AreTracked(("a", "b"))) == [False, True]
        assert await lru_totals(store) == (1, 10)
        assert await order(store) == ["b"]

    async def test_it_makes_room_before_anything_that_lives(self, store: Store) -> None:
        ended = [track(f"e{i}", lifetime=SHORT) for i in range(150)]
        await store.execute([track("old"), *ended, track("new")])
        await asyncio.sleep(OVER)
        assert await execute(store, track("put", most=30)) == []
        assert await execute(store, track("more", most=30)) == ["old"]
        assert await lru_totals(store) == (3, 30)

    async def test_a_repetition_only_prolongs(self, store: Store) -> None:
        for lifetime in (SHORT, LONG, SHORT):
            await execute(store, track("a", lifetime=lifetime))
        await asyncio.sleep(OVER)
        assert await execute(store, commands.AreTracked(("a",))) == [True]

    async def test_what_was_over_is_put_anew(self, store: Store) -> None:
        await store.execute([track("a", 10, lifetime=SHORT), track("b", 10)])
        await asyncio.sleep(OVER)
        assert await execute(store, track("a", 20, most=20)) == ["b"]
        assert await lru_totals(store) == (1, 20)

    async def test_a_sweep_forgets_it_up_to_its_limit(self, store: Store) -> None:
        await store.execute([track(f"e{i}", lifetime=SHORT) for i in range(5)])
        await execute(store, track("a"))
        await asyncio.sleep(OVER)
        sweeps = [await execute(store, commands.Sweep(limit=3)) for _ in range(3)]
        assert sweeps == [3, 2, 0]
        assert await lru_totals(store) == (1, 10)


# ── random stories against a model ──────────────────────────────────────────────────────────


@dataclass
class Model:
    """The shelf as a dictionary in the order of use."""

    sizes: dict[str, int] = field(default_factory=dict)

    def track(self, command: commands.Track) -> list[str]:
        self.sizes.pop(command.digest, None)
        victims = self.shrink(command.max_bytes - command.size_bytes)
        self.sizes[command.digest] = command.size_bytes
        return victims

    def shrink(self, max_bytes: int) -> list[str]:
        victims = []
        while self.sizes and sum(self.sizes.values()) > max_bytes:
            victims.append(next(iter(self.sizes)))
            del self.sizes[victims[-1]]
        return victims

    def run(self, command: Command[object]) -> object:
        match command:
            case commands.Track():
                return self.track(command)
            case commands.EvictTo(max_bytes):
                return self.shrink(max_bytes)
            case commands.Touch(digests):
                for digest in digests:
                    if digest in self.sizes:
                        self.sizes[digest] = self.sizes.pop(digest)
            case commands.Untrack(digests):
                for digest in digests:
                    self.sizes.pop(digest, None)
        return None


DIGESTS = st.sampled_from("abcdefgh")
SIZES = st.integers(0, 40)
BOUNDS = st.integers(0, 150)
GROUPS = st.lists(DIGESTS, max_size=4).map(tuple)
STEPS = st.one_of(
    st.builds(commands.Track, DIGESTS, SIZES, st.just(LONG), BOUNDS),
    st.builds(commands.Touch, GROUPS),
    st.builds(commands.Untrack, GROUPS),
    st.builds(commands.EvictTo, BOUNDS),
)


@asynccontextmanager
async def opened_empty(open_store: OpenStore) -> AsyncIterator[Store]:
    """The test's store, with nothing on its shelf."""
    async with open_store() as store:
        await execute(store, commands.EvictTo(-1))
        yield store


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(story=st.lists(STEPS, max_size=30))
def test_any_story_ends_as_the_model_says(
    open_store: OpenStore, story: list[Command[object]]
) -> None:
    """The victims of each step, the order of use, the count, the total and the bound."""

    async def tell() -> None:
        async with opened_empty(open_store) as store:
            model = Model()
            for command in story:
                assert await execute(store, command) == model.run(command)
                assert await order(store) == list(model.sizes)
                assert await lru_totals(store) == (len(model.sizes), sum(model.sizes.values()))
                if isinstance(command, commands.Track):
                    assert sum(model.sizes.values()) <= max(command.max_bytes, command.size_bytes)

    asyncio.run(tell())
