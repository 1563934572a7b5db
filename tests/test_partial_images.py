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

from gateway.cache.partial_images import Channel, PartialImages, SharedPartialImage, Subscriber
from gateway.images import PartialImage
from gateway.store.batch import execute
from gateway.store.commands import ReadEvents
from tests.conftest import OpenStore
from tests.ephemeral import Memory
from tests.waiting import generous


def partial_image(index: int) -> SharedPartialImage:
    async def read() -> bytes:
        return b"%d" % index

    return SharedPartialImage(index, {}, read=read)


def taken(subscriber: Subscriber) -> list[SharedPartialImage]:
    found = []
    while (partial_image := subscriber.take()) is not None:
        found.append(partial_image)
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
    broadcasts = [Channel(), Channel()]
    viewers = [Subscriber(most) for most in range(4)]
    seen: list[list[SharedPartialImage]] = [[] for _ in viewers]
    came: list[list[SharedPartialImage]] = [[] for _ in viewers]
    watched: list[set[int]] = [set() for _ in viewers]
    for what, first, second in steps:
        if what == "show":
            new = partial_image(second)
            if broadcasts[first].add(new):
                for number in range(4):
                    came[number] += [new] * (first in watched[number])
        elif what == "watch":
            if first not in watched[second]:
                came[second] += broadcasts[first].partial_images
            watched[second].add(first)
            viewers[second].watch(broadcasts[first])
        else:
            seen[first] += taken(viewers[first])

    for most, subscriber in enumerate(viewers):
        subscriber.close()
        found = seen[most] + taken(subscriber)
        first_of_each = {shown.index: shown for shown in reversed(came[most])}
        expected = [p for p in came[most] if first_of_each[p.index] is p][:most]
        assert found == expected


async def test_a_viewer_waits_for_news_and_is_told_of_each_once():
    channel, subscriber = Channel(), Subscriber(3)
    subscriber.watch(channel)
    waiting = asyncio.create_task(subscriber.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    channel.add(partial_image(0))
    async with generous():
        await waiting
    channel.add(partial_image(0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.wait(), 0.02)
    subscriber.close()
    async with generous():
        await subscriber.wait()
    assert subscriber.is_over


async def test_to_look_at_the_same_flight_again_is_no_news():
    """Who waits elsewhere asks every few seconds who holds the claim, and begins to watch anew."""
    channel, subscriber = Channel(), Subscriber(3)
    subscriber.watch(channel)
    channel.open()
    channel.add(partial_image(0))
    async with generous():
        await subscriber.wait()
    subscriber.watch(channel)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.wait(), 0.02)
    assert len(taken(subscriber)) == 1


async def test_who_has_left_is_shown_nothing_more():
    channel, subscriber = Channel(), Subscriber(3)
    subscriber.watch(channel)
    subscriber.close()
    channel.add(partial_image(0))
    channel.open()
    assert (subscriber.take(), subscriber.is_open) == (None, False)


async def test_all_readers_of_a_process_share_one_reading_and_one_copy():
    memory = Memory({"digest": b"otter"})
    partial_images = PartialImages(store=None, ephemeral=memory)
    channel = partial_images.of("flight")
    partial_images.hear(channel, {"partial": 0, "digest": "digest", "shown": {"size": "64x64"}})
    (shown,) = channel.partial_images
    first, second = await asyncio.gather(shown.base64(), shown.base64())

    assert first == base64.b64encode(b"otter")
    assert first is second is await shown.base64()
    assert memory.reads == 1


async def test_bytes_that_are_gone_are_none_and_a_store_that_is_away_may_come_back():
    memory = Memory({"digest": b"otter"}, is_away=True)
    partial_images = PartialImages(store=None, ephemeral=memory)
    channel = partial_images.of("flight")
    partial_images.hear(channel, {"partial": 0, "digest": "digest", "shown": {}})
    partial_images.hear(channel, {"partial": 1, "digest": "gone", "shown": {}})
    here, gone = channel.partial_images
    assert await here.base64() is None
    memory.is_away = False
    assert await here.base64() == base64.b64encode(b"otter")
    assert await gone.base64() is None


async def test_a_flight_is_one_broadcast_for_as_long_as_somebody_watches():
    partial_images = PartialImages(store=None, ephemeral=Memory())
    subscriber = Subscriber(1)
    subscriber.watch(partial_images.of("flight"))
    gc.collect()
    partial_images.of("flight").add(partial_image(0))
    assert subscriber.take() is not None
    subscriber.close()
    gc.collect()
    assert partial_images.of("flight").partial_images == []


async def test_what_a_buyer_shows_is_heard_in_another_process(open_store: OpenStore) -> None:
    memory = Memory()
    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(open_store()) for _ in range(2)]
        publisher = PartialImages(here, memory).publisher("flight", max_images=2)
        await publisher.open()
        for index in (0, 2, 2, 1):
            await publisher.publish(PartialImage(index, b"%d" % index, {"size": "64x64"}))
        heard = PartialImages(there, memory)
        channel = heard.of("flight")
        for event in await execute(there, ReadEvents("flight")):
            heard.hear(channel, json.loads(event))

    assert channel.is_open
    assert [shown.index for shown in channel.partial_images] == [0, 2]
    assert [shown.echoed for shown in channel.partial_images] == [{"size": "64x64"}] * 2
    assert [await shown.base64() for shown in channel.partial_images] == [b"MA==", b"Mg=="]


async def test_a_store_that_fails_costs_the_others_their_previews_and_the_buyer_nothing(
    open_store: OpenStore,
) -> None:
    memory = Memory(is_away=True)
    async with open_store() as store:
        partial_images = PartialImages(store, memory)
        publisher, subscriber = partial_images.publisher("flight", max_images=3), Subscriber(3)
        subscriber.watch(partial_images.of("flight"))
        await publisher.publish(PartialImage(0, b"0"))
        memory.is_away = False
        await publisher.publish(PartialImage(1, b"1"))
        events = await execute(store, ReadEvents("flight"))

    assert [shown.index for shown in taken(subscriber)] == [0, 1]
    assert (events, memory.data) == ([], {})


async def test_what_was_taken_down_is_shown_to_nobody(open_store: OpenStore) -> None:
    memory = Memory()
    async with open_store() as store:
        publisher = PartialImages(store, memory).publisher("flight", max_images=3)
        await publisher.publish(PartialImage(0, b"otter"))
        memory.taken_down |= memory.data.keys()
        again = PartialImages(store, memory)
        publisher = again.publisher("another flight", max_images=3)
        await publisher.publish(PartialImage(0, b"otter"))

    assert again.of("another flight").partial_images == []
