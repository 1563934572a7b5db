"""Partial images: the ones that each subscriber receives, in any order of events."""

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
from tests.ephemeral import MemoryBlobs
from tests.waiting import generous


def partial_image(index: int) -> SharedPartialImage:
    async def read() -> bytes:
        return b"%d" % index

    return SharedPartialImage(index, {}, read=read)


def drain(subscriber: Subscriber) -> list[SharedPartialImage]:
    """All partial images in a subscriber's queue."""
    received = []
    while (partial_image := subscriber.pop()) is not None:
        received.append(partial_image)
    return received


STEPS = st.lists(
    st.tuples(st.just("publish"), st.integers(0, 1), st.integers(0, 4))
    | st.tuples(st.just("subscribe"), st.integers(0, 1), st.integers(0, 3))
    | st.tuples(st.just("drain"), st.integers(0, 3), st.none()),
    max_size=30,
)


@given(STEPS)
def test_every_subscriber_gets_the_first_images_in_order_and_no_index_twice(steps):
    """Two flights, the second of which replaces the first, and subscribers of 0 to 3 images."""
    channels = [Channel(), Channel()]
    subscribers = [Subscriber(max_images) for max_images in range(4)]
    received: list[list[SharedPartialImage]] = [[] for _ in subscribers]
    published: list[list[SharedPartialImage]] = [[] for _ in subscribers]
    subscribed: list[set[int]] = [set() for _ in subscribers]
    for step, first, second in steps:
        if step == "publish":
            new = partial_image(second)
            if channels[first].publish(new):
                for number in range(4):
                    published[number] += [new] * (first in subscribed[number])
        elif step == "subscribe":
            if first not in subscribed[second]:
                published[second] += channels[first].partial_images
            subscribed[second].add(first)
            subscribers[second].subscribe(channels[first])
        else:
            received[first] += drain(subscribers[first])

    for max_images, subscriber in enumerate(subscribers):
        subscriber.close()
        found = received[max_images] + drain(subscriber)
        first_of_each = {image.index: image for image in reversed(published[max_images])}
        expected = [p for p in published[max_images] if first_of_each[p.index] is p][:max_images]
        assert found == expected


async def test_a_subscriber_waits_and_wakes_once_for_each_change():
    channel, subscriber = Channel(), Subscriber(3)
    subscriber.subscribe(channel)
    waiting = asyncio.create_task(subscriber.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    channel.publish(partial_image(0))
    async with generous():
        await waiting
    channel.publish(partial_image(0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.wait(), 0.02)
    subscriber.close()
    async with generous():
        await subscriber.wait()
    assert subscriber.is_closed


async def test_subscribing_to_the_same_flight_again_does_not_wake_the_subscriber():
    """A follower in another worker does so every few seconds, when it retries the lease."""
    channel, subscriber = Channel(), Subscriber(3)
    subscriber.subscribe(channel)
    channel.open()
    channel.publish(partial_image(0))
    async with generous():
        await subscriber.wait()
    subscriber.subscribe(channel)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.wait(), 0.02)
    assert len(drain(subscriber)) == 1


async def test_a_closed_subscriber_receives_nothing():
    channel, subscriber = Channel(), Subscriber(3)
    subscriber.subscribe(channel)
    subscriber.close()
    channel.publish(partial_image(0))
    channel.open()
    assert (subscriber.pop(), subscriber.is_open) == (None, False)


async def test_subscribers_of_a_worker_share_one_read_and_one_copy():
    ephemeral = MemoryBlobs({"digest": b"otter"})
    partial_images = PartialImages(store=None, ephemeral=ephemeral)
    channel = partial_images.channel("flight")
    event = {"partial": 0, "digest": "digest", "echoed": {"size": "64x64"}}
    partial_images.receive(channel, event)
    (shared,) = channel.partial_images
    first, second = await asyncio.gather(shared.base64(), shared.base64())

    assert first == base64.b64encode(b"otter")
    assert first is second is await shared.base64()
    assert ephemeral.loads == 1


async def test_lost_bytes_are_none_and_an_unavailable_store_is_tried_again():
    ephemeral = MemoryBlobs({"digest": b"otter"}, is_unavailable=True)
    partial_images = PartialImages(store=None, ephemeral=ephemeral)
    channel = partial_images.channel("flight")
    partial_images.receive(channel, {"partial": 0, "digest": "digest", "echoed": {}})
    partial_images.receive(channel, {"partial": 1, "digest": "lost", "echoed": {}})
    stored, lost = channel.partial_images
    assert await stored.base64() is None
    ephemeral.is_unavailable = False
    assert await stored.base64() == base64.b64encode(b"otter")
    assert await lost.base64() is None


async def test_a_flight_has_one_channel_for_as_long_as_it_has_a_subscriber():
    partial_images = PartialImages(store=None, ephemeral=MemoryBlobs())
    subscriber = Subscriber(1)
    subscriber.subscribe(partial_images.channel("flight"))
    gc.collect()
    partial_images.channel("flight").publish(partial_image(0))
    assert subscriber.pop() is not None
    subscriber.close()
    gc.collect()
    assert partial_images.channel("flight").partial_images == []


async def test_another_worker_receives_the_leaders_partial_images(open_store: OpenStore) -> None:
    ephemeral = MemoryBlobs()
    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(open_store()) for _ in range(2)]
        publisher = PartialImages(here, ephemeral).publisher("flight", max_images=2)
        await publisher.open()
        for index in (0, 2, 2, 1):
            await publisher.publish(PartialImage(index, b"%d" % index, {"size": "64x64"}))
        partial_images = PartialImages(there, ephemeral)
        channel = partial_images.channel("flight")
        for event in await execute(there, ReadEvents("flight")):
            partial_images.receive(channel, json.loads(event))

    assert channel.is_open
    assert [shared.index for shared in channel.partial_images] == [0, 2]
    assert [shared.echoed for shared in channel.partial_images] == [{"size": "64x64"}] * 2
    assert [await shared.base64() for shared in channel.partial_images] == [b"MA==", b"Mg=="]


async def test_upstreams_answer_is_read_while_other_workers_learn_that_it_has_begun(
    open_store: OpenStore,
) -> None:
    async with open_store() as store:
        partial_images = PartialImages(store, MemoryBlobs())
        publisher, subscriber = partial_images.publisher("flight", max_images=1), Subscriber(1)
        subscriber.subscribe(partial_images.channel("flight"))
        with pytest.raises(StopIteration):
            publisher.open().send(None)  # it does not wait for the store
        assert subscriber.is_open
        await publisher.close()
        assert len(await execute(store, ReadEvents("flight"))) == 1


async def test_without_the_store_only_other_workers_miss_partial_images(
    open_store: OpenStore,
) -> None:
    ephemeral = MemoryBlobs(is_unavailable=True)
    async with open_store() as store:
        partial_images = PartialImages(store, ephemeral)
        publisher, subscriber = partial_images.publisher("flight", max_images=3), Subscriber(3)
        subscriber.subscribe(partial_images.channel("flight"))
        await publisher.publish(PartialImage(0, b"0"))
        ephemeral.is_unavailable = False
        await publisher.publish(PartialImage(1, b"1"))
        events = await execute(store, ReadEvents("flight"))

    assert [shared.index for shared in drain(subscriber)] == [0, 1]
    assert (events, ephemeral.data) == ([], {})


async def test_a_partial_image_that_was_taken_down_is_not_published(open_store: OpenStore) -> None:
    ephemeral = MemoryBlobs()
    async with open_store() as store:
        publisher = PartialImages(store, ephemeral).publisher("flight", max_images=3)
        await publisher.publish(PartialImage(0, b"otter"))
        ephemeral.taken_down |= ephemeral.data.keys()
        again = PartialImages(store, ephemeral)
        publisher = again.publisher("another flight", max_images=3)
        await publisher.publish(PartialImage(0, b"otter"))

    assert again.channel("another flight").partial_images == []
