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

from gateway.store import commands as verbs
from gateway.store.batch import ask
from gateway.store.commands import MOST_VICTIMS
from gateway.store.protocol import Store
from tests.conftest import OpenStore

SHORT = 0.15
OVER = 0.25
LONG = 60.0
PLENTY = 1 << 40


def shelve(
    digest: str, size: int = 10, *, most: int = PLENTY, lifetime: float = LONG
) -> verbs.Shelve:
    return verbs.Shelve(digest, size, lifetime, most)


async def order(store: Store) -> Sequence[str]:
    """What lies on the shelf, least recently used first."""
    return await ask(store, verbs.Oldest(PLENTY))


async def shelf(store: Store) -> tuple[int, int]:
    """How many lie there, and their bytes."""
    found = await ask(store, verbs.ReadShelf())
    return found.count, found.size_bytes


class TestShelf:
    async def test_an_empty_shelf_holds_nothing(self, store: Store) -> None:
        assert await shelf(store) == (0, 0)
        assert await order(store) == []
        assert await ask(store, verbs.OnShelf(("a",))) == [False]
        assert await ask(store, verbs.Shrink(0)) == []
        await store.run([verbs.Touch(("a",)), verbs.Unshelve(("a",))])
        assert await shelf(store) == (0, 0)

    async def test_it_counts_what_is_put(self, store: Store) -> None:
        await store.run([shelve("a", 10), shelve("b", 0), shelve("c", 1 << 39)])
        assert await shelf(store) == (3, 10 + (1 << 39))
        assert await ask(store, verbs.OnShelf(("c", "x", "a"))) == [True, False, True]

    async def test_nobody_asks_about_nothing(self, store: Store) -> None:
        assert await store.run([verbs.OnShelf(()), verbs.Touch(()), verbs.Unshelve(())]) == [
            [],
            None,
            None,
        ]

    async def test_what_is_put_again_counts_once_and_as_used_just_now(self, store: Store) -> None:
        await store.run([shelve("a", 10), shelve("b", 10), shelve("a", 12)])
        assert await shelf(store) == (2, 22)
        assert await order(store) == ["b", "a"]

    async def test_a_touch_moves_to_the_end_in_its_order(self, store: Store) -> None:
        await store.run([shelve(digest) for digest in "abcd"])
        await ask(store, verbs.Touch(("c", "x", "a")))
        assert await order(store) == ["b", "d", "c", "a"]
        assert await shelf(store) == (4, 40)

    async def test_the_least_recently_used_go_until_the_bound_holds(self, store: Store) -> None:
        await store.run([shelve(digest) for digest in "abcd"])
        await ask(store, verbs.Touch(("a",)))
        assert await ask(store, shelve("e", 15, most=40)) == ["b", "c"]
        assert await order(store) == ["d", "a", "e"]
        assert await shelf(store) == (3, 35)

    async def test_nothing_goes_while_the_bound_is_just_met(self, store: Store) -> None:
        await ask(store, shelve("a", 10))
        assert await ask(store, shelve("b", 10, most=20)) == []
        assert await ask(store, shelve("b", 11, most=20)) == ["a"]

    async def test_what_is_put_stays_even_if_it_alone_is_over_the_bound(self, store: Store) -> None:
        await store.run([shelve("a"), shelve("b")])
        assert await ask(store, shelve("a", 100, most=5)) == ["b"]
        assert await order(store) == ["a"]
        assert await shelf(store) == (1, 100)

    async def test_shrinking_puts_nothing(self, store: Store) -> None:
        await store.run([shelve(digest) for digest in "abc"])
        assert await ask(store, verbs.Shrink(30)) == []
        assert await ask(store, verbs.Shrink(29)) == ["a"]
        assert await ask(store, verbs.Shrink(0)) == ["b", "c"]
        assert await shelf(store) == (0, 0)

    async def test_what_is_taken_off_is_gone_and_no_longer_counts(self, store: Store) -> None:
        await store.run([shelve(digest) for digest in "abc"])
        await ask(store, verbs.Unshelve(("a", "x", "c", "a")))
        assert await order(store) == ["b"]
        assert await shelf(store) == (1, 10)

    async def test_the_oldest_are_no_more_than_asked_for(self, store: Store) -> None:
        await store.run([shelve(digest) for digest in "abc"])
        assert await ask(store, verbs.Oldest(0)) == []
        assert await ask(store, verbs.Oldest(10)) == ["a"]
        assert await ask(store, verbs.Oldest(11)) == ["a", "b"]
        assert await order(store) == ["a", "b", "c"]

    async def test_no_more_than_a_thousand_go_at_once(self, store: Store) -> None:
        digests = [f"{i:064x}" for i in range(MOST_VICTIMS + 5)]
        for first in range(0, len(digests), 200):
            await store.run([shelve(digest) for digest in digests[first : first + 200]])
        assert await ask(store, verbs.Oldest(PLENTY)) == digests[:MOST_VICTIMS]
        assert await ask(store, shelve("new", most=10)) == digests[:MOST_VICTIMS]
        assert await ask(store, verbs.Shrink(10)) == digests[MOST_VICTIMS:]
        assert await shelf(store) == (1, 10)

    async def test_many_at_once_keep_the_total_right(self, store: Store, other: Store) -> None:
        await asyncio.gather(
            *(
                ask((store, other)[i % 2], shelve(f"d{i % 30}", 10 + i % 30, most=300))
                for i in range(200)
            )
        )
        left = await order(store)
        sizes = [10 + int(digest[1:]) for digest in left]
        assert await shelf(store) == (len(left), sum(sizes))
        assert sum(sizes) <= 300


class TestStay:
    async def test_what_is_past_its_time_is_not_there(self, store: Store) -> None:
        await store.run([shelve("a", lifetime=SHORT), shelve("b")])
        await asyncio.sleep(OVER)
        assert await ask(store, verbs.OnShelf(("a", "b"))) == [False, True]
        assert await shelf(store) == (1, 10)
        assert await order(store) == ["b"]

    async def test_it_makes_room_before_anything_that_lives(self, store: Store) -> None:
        ended = [shelve(f"e{i}", lifetime=SHORT) for i in range(150)]
        await store.run([shelve("old"), *ended, shelve("new")])
        await asyncio.sleep(OVER)
        assert await ask(store, shelve("put", most=30)) == []
        assert await ask(store, shelve("more", most=30)) == ["old"]
        assert await shelf(store) == (3, 30)

    async def test_a_repetition_only_prolongs(self, store: Store) -> None:
        for lifetime in (SHORT, LONG, SHORT):
            await ask(store, shelve("a", lifetime=lifetime))
        await asyncio.sleep(OVER)
        assert await ask(store, verbs.OnShelf(("a",))) == [True]

    async def test_what_was_over_is_put_anew(self, store: Store) -> None:
        await store.run([shelve("a", 10, lifetime=SHORT), shelve("b", 10)])
        await asyncio.sleep(OVER)
        assert await ask(store, shelve("a", 20, most=20)) == ["b"]
        assert await shelf(store) == (1, 20)

    async def test_a_sweep_forgets_it_up_to_its_limit(self, store: Store) -> None:
        await store.run([shelve(f"e{i}", lifetime=SHORT) for i in range(5)])
        await ask(store, shelve("a"))
        await asyncio.sleep(OVER)
        sweeps = [await ask(store, verbs.Sweep(limit=3)) for _ in range(3)]
        assert sweeps == [3, 2, 0]
        assert await shelf(store) == (1, 10)


# ── random stories against a model ──────────────────────────────────────────────────────────


@dataclass
class Model:
    """The shelf as a dictionary in the order of use."""

    sizes: dict[str, int] = field(default_factory=dict)

    def shelve(self, verb: verbs.Shelve) -> list[str]:
        self.sizes.pop(verb.digest, None)
        victims = self.shrink(verb.most_bytes - verb.size_bytes)
        self.sizes[verb.digest] = verb.size_bytes
        return victims

    def shrink(self, most_bytes: int) -> list[str]:
        victims = []
        while self.sizes and sum(self.sizes.values()) > most_bytes:
            victims.append(next(iter(self.sizes)))
            del self.sizes[victims[-1]]
        return victims

    def run(self, verb: verbs.Verb[object]) -> object:
        match verb:
            case verbs.Shelve():
                return self.shelve(verb)
            case verbs.Shrink(most_bytes):
                return self.shrink(most_bytes)
            case verbs.Touch(digests):
                for digest in digests:
                    if digest in self.sizes:
                        self.sizes[digest] = self.sizes.pop(digest)
            case verbs.Unshelve(digests):
                for digest in digests:
                    self.sizes.pop(digest, None)
        return None


DIGESTS = st.sampled_from("abcdefgh")
SIZES = st.integers(0, 40)
BOUNDS = st.integers(0, 150)
GROUPS = st.lists(DIGESTS, max_size=4).map(tuple)
STEPS = st.one_of(
    st.builds(verbs.Shelve, DIGESTS, SIZES, st.just(LONG), BOUNDS),
    st.builds(verbs.Touch, GROUPS),
    st.builds(verbs.Unshelve, GROUPS),
    st.builds(verbs.Shrink, BOUNDS),
)


@asynccontextmanager
async def opened_empty(open_store: OpenStore) -> AsyncIterator[Store]:
    """The test's store, with nothing on its shelf."""
    async with open_store() as store:
        await ask(store, verbs.Shrink(-1))
        yield store


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(story=st.lists(STEPS, max_size=30))
def test_any_story_ends_as_the_model_says(
    open_store: OpenStore, story: list[verbs.Verb[object]]
) -> None:
    """The victims of each step, the order of use, the count, the total and the bound."""

    async def tell() -> None:
        async with opened_empty(open_store) as store:
            model = Model()
            for verb in story:
                assert await ask(store, verb) == model.run(verb)
                assert await order(store) == list(model.sizes)
                assert await shelf(store) == (len(model.sizes), sum(model.sizes.values()))
                if isinstance(verb, verbs.Shelve):
                    assert sum(model.sizes.values()) <= max(verb.most_bytes, verb.size_bytes)

    asyncio.run(tell())
