"""The contract of the LRU index on each adapter: single rules, then random sequences."""

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
PAST_SHORT = 0.25
LONG = 60.0
PLENTY = 1 << 40


def track(
    digest: str, size: int = 10, *, max_bytes: int = PLENTY, ttl: float = LONG
) -> commands.Track:
    return commands.Track(digest, size, ttl, max_bytes)


async def by_last_use(store: Store) -> Sequence[str]:
    """All digests, least recently used first."""
    return list(await execute(store, commands.EvictionCandidates(PLENTY)))


async def lru_totals(store: Store) -> tuple[int, int]:
    """The number of digests, and their bytes."""
    found = await execute(store, commands.ReadLruTotals())
    return found.count, found.size_bytes


class TestLruIndex:
    async def test_an_empty_index_has_no_digests(self, store: Store) -> None:
        assert await lru_totals(store) == (0, 0)
        assert await by_last_use(store) == []
        assert await execute(store, commands.AreTracked(("a",))) == [False]
        assert await execute(store, commands.EvictTo(0)) == []
        await store.execute([commands.Touch(("a",)), commands.Untrack(("a",))])
        assert await lru_totals(store) == (0, 0)

    async def test_it_counts_digests_and_their_bytes(self, store: Store) -> None:
        await store.execute([track("a", 10), track("b", 0), track("c", 1 << 39)])
        assert await lru_totals(store) == (3, 10 + (1 << 39))
        assert await execute(store, commands.AreTracked(("c", "x", "a"))) == [True, False, True]

    async def test_commands_without_digests_do_nothing(self, store: Store) -> None:
        assert await store.execute(
            [commands.AreTracked(()), commands.Touch(()), commands.Untrack(())]
        ) == [
            [],
            None,
            None,
        ]

    async def test_a_digest_that_is_tracked_again_counts_once_and_as_used_just_now(
        self, store: Store
    ) -> None:
        await store.execute([track("a", 10), track("b", 10), track("a", 12)])
        assert await lru_totals(store) == (2, 22)
        assert await by_last_use(store) == ["b", "a"]

    async def test_touched_digests_move_to_the_end_in_their_order(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abcd"])
        await execute(store, commands.Touch(("c", "x", "a")))
        assert await by_last_use(store) == ["b", "d", "c", "a"]
        assert await lru_totals(store) == (4, 40)

    async def test_the_least_recently_used_are_evicted_until_the_bound_holds(
        self, store: Store
    ) -> None:
        await store.execute([track(digest) for digest in "abcd"])
        await execute(store, commands.Touch(("a",)))
        assert await execute(store, track("e", 15, max_bytes=40)) == ["b", "c"]
        assert await by_last_use(store) == ["d", "a", "e"]
        assert await lru_totals(store) == (3, 35)

    async def test_nothing_is_evicted_at_the_bound(self, store: Store) -> None:
        await execute(store, track("a", 10))
        assert await execute(store, track("b", 10, max_bytes=20)) == []
        assert await execute(store, track("b", 11, max_bytes=20)) == ["a"]

    async def test_a_new_digest_stays_even_if_it_alone_exceeds_the_bound(
        self, store: Store
    ) -> None:
        await store.execute([track("a"), track("b")])
        assert await execute(store, track("a", 100, max_bytes=5)) == ["b"]
        assert await by_last_use(store) == ["a"]
        assert await lru_totals(store) == (1, 100)

    async def test_evict_to_tracks_nothing(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abc"])
        assert await execute(store, commands.EvictTo(30)) == []
        assert await execute(store, commands.EvictTo(29)) == ["a"]
        assert await execute(store, commands.EvictTo(0)) == ["b", "c"]
        assert await lru_totals(store) == (0, 0)

    async def test_an_untracked_digest_does_not_count(self, store: Store) -> None:
        await store.execute([track(digest) for digest in "abc"])
        await execute(store, commands.Untrack(("a", "x", "c", "a")))
        assert await by_last_use(store) == ["b"]
        assert await lru_totals(store) == (1, 10)

    async def test_there_are_only_as_many_candidates_as_necessary(self, store: Store) -> None:
        await store.execute([track("a"), track("b", 20), track("c", 30)])
        assert await execute(store, commands.EvictionCandidates(0)) == {}
        assert await execute(store, commands.EvictionCandidates(10)) == {"a": 10}
        assert await execute(store, commands.EvictionCandidates(11)) == {"a": 10, "b": 20}
        assert await execute(store, commands.EvictionCandidates(11, skip=1)) == {"b": 20}
        assert await execute(store, commands.EvictionCandidates(21, skip=1)) == {"b": 20, "c": 30}
        assert await execute(store, commands.EvictionCandidates(PLENTY, skip=3)) == {}
        assert await by_last_use(store) == ["a", "b", "c"]

    async def test_a_command_evicts_at_most_a_thousand(self, store: Store) -> None:
        digests = [f"{i:064x}" for i in range(MAX_EVICTIONS + 5)]
        for first in range(0, len(digests), 200):
            await store.execute([track(digest) for digest in digests[first : first + 200]])
        candidates = await execute(store, commands.EvictionCandidates(PLENTY))
        assert list(candidates) == digests[:MAX_EVICTIONS]
        rest = await execute(store, commands.EvictionCandidates(PLENTY, skip=MAX_EVICTIONS))
        assert list(rest) == digests[MAX_EVICTIONS:]
        assert await execute(store, track("new", max_bytes=10)) == digests[:MAX_EVICTIONS]
        assert await execute(store, commands.EvictTo(10)) == digests[MAX_EVICTIONS:]
        assert await lru_totals(store) == (1, 10)

    async def test_the_total_is_right_after_concurrent_commands(
        self, store: Store, other: Store
    ) -> None:
        await asyncio.gather(
            *(
                execute((store, other)[i % 2], track(f"d{i % 30}", 10 + i % 30, max_bytes=300))
                for i in range(200)
            )
        )
        left = await by_last_use(store)
        sizes = [10 + int(digest[1:]) for digest in left]
        assert await lru_totals(store) == (len(left), sum(sizes))
        assert sum(sizes) <= 300


class TestExpiry:
    async def test_an_expired_digest_is_untracked(self, store: Store) -> None:
        await store.execute([track("a", ttl=SHORT), track("b")])
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, commands.AreTracked(("a", "b"))) == [False, True]
        await execute(store, commands.Sweep())
        assert await lru_totals(store) == (1, 10)
        assert await by_last_use(store) == ["b"]

    async def test_an_expired_digest_counts_until_it_is_removed(self, store: Store) -> None:
        await store.execute([track("a", ttl=SHORT), track("b")])
        await asyncio.sleep(PAST_SHORT)
        assert await lru_totals(store) == (2, 20)
        assert await execute(store, commands.EvictTo(PLENTY)) == []
        assert await lru_totals(store) == (1, 10)

    async def test_expired_digests_make_room_before_others_are_evicted(self, store: Store) -> None:
        expired = [track(f"e{i}", ttl=SHORT) for i in range(150)]
        await store.execute([track("old"), *expired, track("new")])
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, track("put", max_bytes=30)) == []
        assert await execute(store, track("more", max_bytes=30)) == ["old"]
        assert await lru_totals(store) == (3, 30)

    async def test_tracking_again_never_shortens_the_time_to_live(self, store: Store) -> None:
        for ttl in (SHORT, LONG, SHORT):
            await execute(store, track("a", ttl=ttl))
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, commands.AreTracked(("a",))) == [True]

    async def test_an_expired_digest_can_be_tracked_again(self, store: Store) -> None:
        await store.execute([track("a", 10, ttl=SHORT), track("b", 10)])
        await asyncio.sleep(PAST_SHORT)
        assert await execute(store, track("a", 20, max_bytes=20)) == ["b"]
        assert await lru_totals(store) == (1, 20)

    async def test_a_sweep_removes_expired_digests_up_to_its_limit(self, store: Store) -> None:
        await store.execute([track(f"e{i}", ttl=SHORT) for i in range(5)])
        await execute(store, track("a"))
        await asyncio.sleep(PAST_SHORT)
        sweeps = [await execute(store, commands.Sweep(limit=3)) for _ in range(3)]
        assert sweeps == [3, 2, 0]
        assert await lru_totals(store) == (1, 10)


# ── random sequences, compared with a model ─────────────────────────────────────────────────


@dataclass
class Model:
    """The index as a dictionary in the order of use."""

    sizes: dict[str, int] = field(default_factory=dict)

    def track(self, command: commands.Track) -> list[str]:
        self.sizes.pop(command.digest, None)
        evicted = self.evict_to(command.max_bytes - command.size_bytes)
        self.sizes[command.digest] = command.size_bytes
        return evicted

    def evict_to(self, max_bytes: int) -> list[str]:
        evicted = []
        while self.sizes and sum(self.sizes.values()) > max_bytes:
            evicted.append(next(iter(self.sizes)))
            del self.sizes[evicted[-1]]
        return evicted

    def run(self, command: Command[object]) -> object:
        match command:
            case commands.Track():
                return self.track(command)
            case commands.EvictTo(max_bytes):
                return self.evict_to(max_bytes)
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
    """The test's store, with an empty index."""
    async with open_store() as store:
        await execute(store, commands.EvictTo(-1))
        yield store


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, max_size=30))
def test_any_sequence_agrees_with_the_model(
    open_store: OpenStore, steps: list[Command[object]]
) -> None:
    """The evictions of each step, the order of use, the count, the total and the bound."""

    async def run_steps() -> None:
        async with opened_empty(open_store) as store:
            model = Model()
            for command in steps:
                assert await execute(store, command) == model.run(command)
                assert await by_last_use(store) == list(model.sizes)
                assert await lru_totals(store) == (len(model.sizes), sum(model.sizes.values()))
                if isinstance(command, commands.Track):
                    assert sum(model.sizes.values()) <= max(command.max_bytes, command.size_bytes)

    asyncio.run(run_steps())
