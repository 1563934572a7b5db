"""Previews: the partial images of a flight, on their way to everyone who watches it.

The buyer shows them on a `Screen`: at once to those who watch in its own process, from memory, and
through the store to every other process. There the bytes are read once, when somebody needs them,
and shared. A `Broadcast` is one flight as one process sees it, a `Viewer` one caller who watches;
what is shared is what came, so that a slow viewer holds nothing but references, and holds up
nobody. When a flight ends, and how, is `flights`; how an event looks is `api/streaming`.

A preview is a courtesy: what keeps one from being shown ends no purchase.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import orjson
import structlog

from gateway.cache.blobs import encode_bytes
from gateway.errors import StoreUnavailable
from gateway.images import PartialImage
from gateway.store.batch import execute
from gateway.store.commands import Publish
from gateway.store.protocol import Store

EVENT_SECONDS: Final = 600.0
"""How long a flight's events can be read after the last one."""

log = structlog.get_logger(__name__)


class EphemeralBlobs(Protocol):
    """Where the bytes of partial images lie for a while; `blobs.Blobs` is one."""

    async def are_taken_down(self, data: bytes) -> bool: ...
    async def put_ephemeral(self, data: bytes) -> str: ...
    async def read_ephemeral(self, digest: str) -> bytes | None: ...


class SharedPartialImage:
    """One partial image; everyone who shows it in this process shares its base64."""

    def __init__(
        self, index: int, shown: Mapping[str, str], *, read: Callable[[], Awaitable[bytes | None]]
    ) -> None:
        self.index = index
        self.echoed = shown
        """`size`, `quality`, `background`, `output_format` where upstream echoed them."""
        self._read: Callable[[], Awaitable[bytes | None]] | None = read
        self._base64: bytes | None = None
        self._turn = asyncio.Lock()

    async def base64(self) -> bytes | None:
        """Read and encoded for the first who asks; None when the bytes are not to be had."""
        async with self._turn:
            if self._read is None:
                return self._base64
            try:
                data = await self._read()
            except StoreUnavailable:
                return None  # who comes later may be luckier
            self._base64 = None if data is None else await encode_bytes(data)
            self._read = None
        return self._base64


class Channel:
    """One flight, as this process sees it before its end."""

    def __init__(self) -> None:
        self.is_open = False
        """Upstream has begun to answer."""
        self.partial_images: list[SharedPartialImage] = []
        """In the order in which they came, no index twice."""
        self._viewers: set[Subscriber] = set()

    def open(self) -> None:
        """Upstream has begun to answer."""
        self.is_open = True
        for subscriber in self._viewers:
            subscriber.open()

    def add(self, partial_image: SharedPartialImage) -> bool:
        """Shows it to everyone who watches; False for an index that was here before."""
        if any(known.index == partial_image.index for known in self.partial_images):
            return False
        self.partial_images.append(partial_image)
        for subscriber in self._viewers:
            subscriber.offer(partial_image)
        return True

    def join(self, subscriber: Subscriber) -> None:
        """Who comes late is shown what came so far, then follows."""
        self._viewers.add(subscriber)
        if self.is_open:
            subscriber.open()
        for partial_image in self.partial_images:
            subscriber.offer(partial_image)

    def leave(self, subscriber: Subscriber) -> None:
        """It is shown nothing more."""
        self._viewers.discard(subscriber)


class Subscriber:
    """A caller who watches: is shown at most `max_images` partial images, the first that come.

    It may watch several flights, one after the other, when a buyer dies and is replaced, or when
    the store goes away: an index that it has been shown is not shown again.
    """

    def __init__(self, max_images: int) -> None:
        self.is_open = False
        """Upstream has begun to answer."""
        self.is_over = False
        """Nothing more will come than what waits to be taken."""
        self._max_images = max_images
        self._offered: set[int] = set()
        self._waiting: deque[SharedPartialImage] = deque()
        self._watched: set[Channel] = set()
        self._news = asyncio.Event()

    def watch(self, channel: Channel) -> None:
        """Is shown what came of a flight and what will come."""
        self._watched.add(channel)
        channel.join(self)

    def open(self) -> None:
        """Called by the broadcast; no news to who knows it already."""
        if not self.is_open:
            self.is_open = True
            self._news.set()

    def offer(self, partial_image: SharedPartialImage) -> None:
        """Called by the broadcast."""
        if partial_image.index in self._offered or len(self._offered) >= self._max_images:
            return
        self._offered.add(partial_image.index)
        self._waiting.append(partial_image)
        self._news.set()

    def close(self) -> None:
        """Its caller has an answer, one way or another."""
        self.is_over = True
        for channel in self._watched:
            channel.leave(self)
        self._watched.clear()
        self._news.set()

    async def wait(self) -> None:
        """Returns when something has happened since it last returned."""
        await self._news.wait()
        self._news.clear()

    def take(self) -> SharedPartialImage | None:
        """The next partial image to show; None when there is none now."""
        return self._waiting.popleft() if self._waiting else None


class PartialImages:
    """The broadcasts of this process."""

    def __init__(self, store: Store, ephemeral: EphemeralBlobs) -> None:
        self._store = store
        self._passing = ephemeral
        self._broadcasts: WeakValueDictionary[str, Channel] = WeakValueDictionary()
        """They live as long as somebody buys, listens or watches."""

    def of(self, flight: str) -> Channel:
        """The one broadcast of a flight."""
        channel = self._broadcasts.get(flight)
        if channel is None:
            channel = self._broadcasts[flight] = Channel()
        return channel

    def publisher(self, flight: str, *, max_images: int, is_shared: bool = True) -> Publisher:
        """For the buyer of a flight, who has asked for `max_images` partial images.

        Of a flight that is not shared nothing is told to other processes.
        """
        return Publisher(
            flight,
            self.of(flight),
            self._store,
            ephemeral=self._passing,
            max_images=max_images,
            is_shared=is_shared,
        )

    def hear(self, channel: Channel, said: Mapping[str, Any]) -> None:
        """Takes what another process has published of a flight; ends are not for here."""
        if "open" in said:
            channel.open()
        elif "partial" in said:
            read = partial(self._passing.read_ephemeral, said["digest"])
            channel.add(SharedPartialImage(said["partial"], said["shown"], read=read))


class Publisher:
    """Where the buyer of a flight shows what comes."""

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
        self._broadcast = channel
        self._store = store
        self._passing = ephemeral
        self._max_images = max_images
        self._is_told_elsewhere = is_shared

    async def open(self) -> None:
        """Upstream has begun to answer."""
        self._broadcast.open()
        await self._tell_elsewhere(partial(self._publish, "open", {"open": True}))

    async def publish(self, shown: PartialImage) -> None:
        """Shows a partial image: here at once, elsewhere as soon as the store has it."""
        data = shown.data
        if len(
            self._broadcast.partial_images
        ) >= self._max_images or await self._passing.are_taken_down(data):
            return

        async def read() -> bytes:
            return data

        if self._broadcast.add(SharedPartialImage(shown.index, shown.echoed, read=read)):
            await asyncio.sleep(0)  # who watches here has it before a hash and the store take time
            await self._tell_elsewhere(partial(self._store_and_publish, shown))

    async def _store_and_publish(self, shown: PartialImage) -> None:
        digest = await self._passing.put_ephemeral(shown.data)
        said = {"partial": shown.index, "digest": digest, "shown": shown.echoed}
        await self._publish(f"partial-{shown.index}", said)

    async def _publish(self, event_id: str, said: Mapping[str, Any]) -> None:
        event = orjson.dumps(said, default=dict)
        await execute(self._store, Publish(self._flight, event_id, event, EVENT_SECONDS))

    async def _tell_elsewhere(self, tell: Callable[[], Awaitable[None]]) -> None:
        """A store that fails is told no more of this flight: it would keep upstream waiting."""
        if not self._is_told_elsewhere:
            return
        try:
            await tell()
        except StoreUnavailable:
            self._is_told_elsewhere = False
            log.warning("previews_not_shared", flight=self._flight)
        except Exception:
            self._is_told_elsewhere = False
            log.exception("previews_failed", flight=self._flight)
