"""Previews: who is shown which partial images, however callers and images come and go."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.partial_images import Broadcast, Preview, Previews, Viewer
from gateway.images import PartialImage
from gateway.store.batch import ask
from gateway.store.commands import ReadEvents
from tests.conftest import OpenStore
from tests.passing import Memory


def preview(index: int) -> Preview:
    async def read() -> bytes:
        return b"%d" % index

    return Preview(index, {}, read=read)


def taken(viewer: Viewer) -> list[Preview]:
    found = []
    while (preview := viewer.take()) is not None:
        found.append(preview)
    return found


STEPS = st.lists(
    st.tuples(st.just("show"), st.integers(0, 1), st.integers(0, 4))
    | st.tuples(st.just("watch"), st.integers(0, 1), st.integers(0, 3))
    | st.tuples(st.just("take"), st.integers(0, 3), st.none()),
    max_size=30,
)


@given(STEPS)
def test_everyone_sees_the_first_that_come_in_their_order_and_no_index_twice(steps):
    """Two flights, the second of which replaces the first, and viewers that want 0 to 3."""
    broadcasts = [Broadcast(), Broadcast()]
    viewers = [Viewer(most) for most in range(4)]
    seen: list[list[Preview]] = [[] for _ in viewers]
    came: list[list[Preview]] = [[] for _ in viewers]
    watched: list[set[int]] = [set() for _ in viewers]
    for what, first, second in steps:
        if what == "show":
            new = preview(second)
            if broadcasts[first].add(new):
                for number in range(4):
                    came[number] += [new] * (first in watched[number])
        elif what == "watch":
            if first not in watched[second]:
                came[second] += broadcasts[first].previews
            watched[second].add(first)
            viewers[second].watch(broadcasts[first])
        else:
            seen[first] += taken(viewers[first])

    for most, viewer in enumerate(viewers):
        viewer.close()
        found = seen[most] + taken(viewer)
        first_of_each = {shown.index: shown for shown in reversed(came[most])}
        expected = [p for p in came[most] if first_of_each[p.index] is p][:most]
        assert found == expected


async def test_a_viewer_waits_for_news_and_is_told_of_each_once():
    broadcast, viewer = Broadcast(), Viewer(3)
    viewer.watch(broadcast)
    waiting = asyncio.create_task(viewer.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    broadcast.add(preview(0))
    await asyncio.wait_for(waiting, 1)
    broadcast.add(preview(0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(viewer.wait(), 0.02)
    viewer.close()
    await asyncio.wait_for(viewer.wait(), 1)
    assert viewer.is_over


async def test_to_look_at_the_same_flight_again_is_no_news():
    """Who waits elsewhere asks every few seconds who holds the claim, and begins to watch anew."""
    broadcast, viewer = Broadcast(), Viewer(3)
    viewer.watch(broadcast)
    broadcast.open()
    broadcast.add(preview(0))
    await asyncio.wait_for(viewer.wait(), 1)
    viewer.watch(broadcast)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(viewer.wait(), 0.02)
    assert len(taken(viewer)) == 1


async def test_who_has_left_is_shown_nothing_more():
    broadcast, viewer = Broadcast(), Viewer(3)
    viewer.watch(broadcast)
    viewer.close()
    broadcast.add(preview(0))
    broadcast.open()
    assert (viewer.take(), viewer.is_open) == (None, False)


async def test_all_readers_of_a_process_share_one_reading_and_one_copy():
    memory = Memory({"digest": b"otter"})
    previews = Previews(store=None, passing=memory)
    broadcast = previews.of("flight")
    previews.hear(broadcast, {"partial": 0, "digest": "digest", "shown": {"size": "64x64"}})
    (shown,) = broadcast.previews
    first, second = await asyncio.gather(shown.base64(), shown.base64())

    assert first == base64.b64encode(b"otter")
    assert first is second is await shown.base64()
    assert memory.reads == 1


async def test_bytes_that_are_gone_are_none_and_a_store_that_is_away_may_come_back():
    memory = Memory({"digest": b"otter"}, is_away=True)
    previews = Previews(store=None, passing=memory)
    broadcast = previews.of("flight")
    previews.hear(broadcast, {"partial": 0, "digest": "digest", "shown": {}})
    previews.hear(broadcast, {"partial": 1, "digest": "gone", "shown": {}})
    here, gone = broadcast.previews
    assert await here.base64() is None
    memory.is_away = False
    assert await here.base64() == base64.b64encode(b"otter")
    assert await gone.base64() is None


async def test_a_flight_is_one_broadcast_for_as_long_as_somebody_watches():
    previews = Previews(store=None, passing=Memory())
    viewer = Viewer(1)
    viewer.watch(previews.of("flight"))
    gc.collect()
    previews.of("flight").add(preview(0))
    assert viewer.take() is not None
    viewer.close()
    gc.collect()
    assert previews.of("flight").previews == []


async def test_what_a_buyer_shows_is_heard_in_another_process(open_store: OpenStore) -> None:
    memory = Memory()
    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(open_store()) for _ in range(2)]
        screen = Previews(here, memory).screen("flight", most=2)
        await screen.open()
        for index in (0, 2, 2, 1):
            await screen.show(PartialImage(index, b"%d" % index, {"size": "64x64"}))
        heard = Previews(there, memory)
        broadcast = heard.of("flight")
        for event in await ask(there, ReadEvents("flight")):
            heard.hear(broadcast, json.loads(event))

    assert broadcast.is_open
    assert [shown.index for shown in broadcast.previews] == [0, 2]
    assert [shown.shown for shown in broadcast.previews] == [{"size": "64x64"}] * 2
    assert [await shown.base64() for shown in broadcast.previews] == [b"MA==", b"Mg=="]


async def test_a_store_that_fails_costs_the_others_their_previews_and_the_buyer_nothing(
    open_store: OpenStore,
) -> None:
    memory = Memory(is_away=True)
    async with open_store() as store:
        previews = Previews(store, memory)
        screen, viewer = previews.screen("flight", most=3), Viewer(3)
        viewer.watch(previews.of("flight"))
        await screen.show(PartialImage(0, b"0"))
        memory.is_away = False
        await screen.show(PartialImage(1, b"1"))
        events = await ask(store, ReadEvents("flight"))

    assert [shown.index for shown in taken(viewer)] == [0, 1]
    assert (events, memory.data) == ([], {})


async def test_what_was_taken_down_is_shown_to_nobody(open_store: OpenStore) -> None:
    memory = Memory()
    async with open_store() as store:
        screen = Previews(store, memory).screen("flight", most=3)
        await screen.show(PartialImage(0, b"otter"))
        memory.taken_down |= memory.data.keys()
        again = Previews(store, memory)
        screen = again.screen("another flight", most=3)
        await screen.show(PartialImage(0, b"otter"))

    assert again.of("another flight").previews == []
