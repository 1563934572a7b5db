"""Partial images: from the leader of a flight to every client that streams its image.

The leader has a `Publisher`. Each worker has one `Channel` for a flight, and each client a
`Subscriber` of it. Subscribers in the leader's worker get a partial image from memory. For the
other workers it goes through the store: its bytes as an ephemeral blob, and an event with their
digest. A slow subscriber costs only references, and never delays the others.

Partial images are optional: if one cannot be published, the purchase goes on. How flights end is
`flight_events`; how a partial image looks to clients is `api/`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import orjson
import structlog

from gateway.cache.blobs import encode_bytes
from gateway.cache.ephemeral_blobs import EphemeralBlobs
from gateway.cache.flight_events import EVENT_SECONDS
from gateway.errors import StoreUnavailable
from gateway.images import PartialImage
from gateway.store.batch import execute
from gateway.store.commands import Publish
from gateway.store.protocol import Store

log = structlog.get_logger(__name__)


class SharedPartialImage:
    """A partial image whose base64 all subscribers of this worker share."""

    def __init__(
        self,
        index: int,
        echoed: Mapping[str, str],
        *,
        read: Callable[[], Awaitable[bytes | None]],
        base64: memoryview | None = None,
    ) -> None:
        """With `base64`, if it is known, the bytes are not read."""
        self.index = index
        self.echoed = echoed
        """`size`, `quality`, `background`, `output_format` where upstream echoed them."""
        self._read = read if base64 is None else None
        """None once the bytes were read, so that they are not kept beside their base64."""
        self._base64: bytes | memoryview | None = base64
        self._lock = asyncio.Lock()

    async def base64(self) -> bytes | memoryview | None:
        """The base64, made by the first call; None if the bytes cannot be read."""
        # A lock and no task: `Publisher.publish` lets subscribers run once before it stores the
        # image, and a task would begin only after that.
        async with self._lock:
            if self._read is None:
                return self._base64
            try:
                data = await self._read()
            except StoreUnavailable:
                return None  # a later call tries again
            self._base64 = None if data is None else await encode_bytes(data)
            self._read = None
            return self._base64


class Channel:
    """The partial images of one flight, in this worker."""

    def __init__(self) -> None:
        self.is_open = False
        """Upstream has begun to answer."""
        self.partial_images: list[SharedPartialImage] = []
        """In the order of their arrival, no index twice."""
        self._subscribers: set[Subscriber] = set()

    def open(self) -> None:
        """Upstream has begun to answer."""
        self.is_open = True
        for subscriber in self._subscribers:
            subscriber.open()

    def publish(self, partial_image: SharedPartialImage) -> bool:
        """Sends a partial image to all subscribers; False if its index was published before."""
        if any(known.index == partial_image.index for known in self.partial_images):
            return False
        self.partial_images.append(partial_image)
        for subscriber in self._subscribers:
            subscriber.receive(partial_image)
        return True

    def add(self, subscriber: Subscriber) -> None:
        """Sends a subscriber all partial images so far, and from now on each new one."""
        self._subscribers.add(subscriber)
        if self.is_open:
            subscriber.open()
        for partial_image in self.partial_images:
            subscriber.receive(partial_image)

    def remove(self, subscriber: Subscriber) -> None:
        """Sends it nothing more."""
        self._subscribers.discard(subscriber)


class Subscriber:
    """A client that streams: it gets the first `max_images` partial images.

    It may subscribe to several flights in turn, when a leader dies and is replaced, or when the
    store becomes unavailable. It gets no index twice.
    """

    def __init__(self, max_images: int) -> None:
        self.is_open = False
        """Upstream has begun to answer."""
        self.is_closed = False
        """No more partial images arrive; some may still be queued."""
        self._max_images = max_images
        self._received: set[int] = set()
        self._queue: deque[SharedPartialImage] = deque()
        self._channels: set[Channel] = set()
        self._changed = asyncio.Event()

    def subscribe(self, channel: Channel) -> None:
        """Receives all partial images of a flight, those before and those to come."""
        self._channels.add(channel)
        channel.add(self)

    def open(self) -> None:
        """Called by the channel when upstream has begun to answer."""
        if not self.is_open:
            self.is_open = True
            self._changed.set()

    def receive(self, partial_image: SharedPartialImage) -> None:
        """Called by the channel with each partial image."""
        if partial_image.index in self._received or len(self._received) >= self._max_images:
            return
        self._received.add(partial_image.index)
        self._queue.append(partial_image)
        self._changed.set()

    def close(self) -> None:
        """Leaves all channels: the request has its answer."""
        self.is_closed = True
        for channel in self._channels:
            channel.remove(self)
        self._channels.clear()
        self._changed.set()

    async def wait(self) -> None:
        """Returns when something has changed since it last returned."""
        await self._changed.wait()
        self._changed.clear()

    def pop(self) -> SharedPartialImage | None:
        """The next partial image in the queue; None if it is empty."""
        return self._queue.popleft() if self._queue else None


class PartialImages:
    """The channels of this worker."""

    def __init__(self, store: Store, ephemeral: EphemeralBlobs) -> None:
        self._store = store
        self._ephemeral = ephemeral
        # A channel exists for as long as a publisher, a listener or a subscriber refers to it.
        self._channels: WeakValueDictionary[str, Channel] = WeakValueDictionary()

    def channel(self, flight: str) -> Channel:
        """The channel of a flight."""
        channel = self._channels.get(flight)
        if channel is None:
            channel = self._channels[flight] = Channel()
        return channel

    def publisher(self, flight: str, *, max_images: int, is_shared: bool = True) -> Publisher:
        """The publisher of a flight whose leader asked upstream for `max_images` partial images.

        If the flight is not shared, other workers get none of them.
        """
        return Publisher(
            flight,
            self.channel(flight),
            self._store,
            ephemeral=self._ephemeral,
            max_images=max_images,
            is_shared=is_shared,
        )

    def receive(self, channel: Channel, event: Mapping[str, Any]) -> None:
        """Publishes an event of another worker in this one; ignores other kinds of events."""
        if "open" in event:
            channel.open()
        elif "partial" in event:
            read = partial(self._ephemeral.load, event["digest"])
            echoed = event.get("echoed", {})
            channel.publish(SharedPartialImage(event["partial"], echoed, read=read))


class Publisher:
    """Publishes the partial images of one flight. To be closed before the flight ends."""

    def __init__(
        self,
        flight: str,
        channel: Channel,
        store: Store,
        *,
        ephemeral: EphemeralBlobs,
        max_images: int,
        is_shared: bool,
    ) -> None:
        self._flight = flight
        self._channel = channel
        self._store = store
        self._ephemeral = ephemeral
        self._max_images = max_images
        self._is_shared = is_shared
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Upstream has begun to answer: here at once, and through the store in the background."""
        self._channel.open()
        await self.close()  # of an attempt that failed after its head
        # The answer is read meanwhile: otherwise the first partial image would come a trip to the
        # store later, about a millisecond.
        self._opening = asyncio.create_task(
            self._share("open", {"open": True}), name=f"open {self._flight}"
        )

    async def publish(self, partial_image: PartialImage) -> None:
        """Publishes a partial image: in this worker at once, then through the store."""
        data = partial_image.data
        is_full = len(self._channel.partial_images) >= self._max_images
        if is_full or await self._ephemeral.are_taken_down(data):
            return

        async def read() -> bytes:
            return data

        shared = SharedPartialImage(
            partial_image.index, partial_image.echoed, read=read, base64=partial_image.base64
        )
        if self._channel.publish(shared):
            # Subscribers in this worker get it before it is hashed and stored.
            await asyncio.sleep(0)
            await self.close()
            event = {"partial": partial_image.index, "echoed": partial_image.echoed}
            await self._share(f"partial-{partial_image.index}", event, data=data)

    async def close(self) -> None:
        """Returns when other workers have everything that was published so far."""
        if self._opening is not None:
            # The task goes on if the purchase's deadline passes meanwhile.
            await asyncio.wait({self._opening})
            self._opening = None

    async def _share(
        self, event_id: str, event: Mapping[str, Any], *, data: bytes | None = None
    ) -> None:
        """Publishes an event to the other workers, with the digest of `data`, which it stores.

        After a failure it does so no more.
        """
        if not self._is_shared:
            return
        try:
            if data is not None:
                digest = await self._ephemeral.put(data)
                if digest is None:
                    return  # too large: followers in other workers get the image without it
                event = {**event, "digest": digest}
            encoded = orjson.dumps(event, default=dict)
            await execute(self._store, Publish(self._flight, event_id, encoded, EVENT_SECONDS))
        except StoreUnavailable:
            # Not tried again: reading from upstream waits for each attempt.
            self._is_shared = False
        except Exception:
            self._is_shared = False
            log.exception("partial_images_failed", flight=self._flight)
