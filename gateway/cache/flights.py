"""Flights: identical questions in flight buy once.

A flight is one purchase of some slots of one fingerprint. Whoever's claim wins opens it and buys;
everyone else who wants those slots, in any worker on any machine that shares the store, waits for
its end. Buying runs in a task that no caller owns: when callers leave, it goes on.

Here live claims, waiting and the tasks. What is shown of a purchase before it ends is `previews`.
What a purchase does, what it costs and who pays is
`purchase.py`, which arrives here as the argument `buy`; nothing here knows money. Claiming and
waiting are a conversation with the store, so this room sends its own verbs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import orjson
import structlog

from gateway.cache.entries import (
    CachedImage,
    read_refusal,
    read_slot,
    refusal_of,
)
from gateway.cache.partial_images import (
    EVENT_SECONDS,
    Channel,
    PartialImages,
    Publisher,
    Subscriber,
)
from gateway.errors import GatewayError, StoreUnavailable, UpstreamFailure
from gateway.images import Image, decode_fields
from gateway.store.batch import Batch, Result, execute
from gateway.store.commands import (
    AcquireLease,
    LeaseResult,
    Publish,
    ReadEvents,
    ReleaseLease,
    RenewLease,
)
from gateway.store.protocol import Store, Watch
from gateway.tasks import OwnedTasks

T = TypeVar("T")

log = structlog.get_logger(__name__)

CLAIM_SECONDS: Final = 15.0
"""How long a claim lives until its purchase has reserved: a claimant that dies blocks no longer."""

RECHECK_SECONDS: Final = 1.0
"""How often a waiter looks again although nobody woke it."""

LOOK_AGAIN_SECONDS: Final = 5.0
"""How long a waiter trusts a silent flight before it asks who holds the claim now."""

STORE_PATIENCE: Final = 3
"""Failed look-ups in a row after which a waiter gives up."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A claim that this process holds, and the words to speak of it in a batch."""

    id: str
    fingerprint: str
    slots: tuple[int, ...]
    replacements: int = 0
    """How many buyers of these slots have died before: a dead buyer is replaced once."""
    is_unshared: bool = False
    """It holds no claim and nobody waits for it: its caller wants images of its own."""
    displaces: bool = False
    """Its images take the slots that they were bought for, whatever lies there."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Flight:
        """A flight from the JSON object that orjson makes of one."""
        return decode_fields(Flight, {**data, "slots": tuple(data["slots"])})

    def renew(self, batch: Batch, *, seconds: float) -> Result[bool]:
        """Keeps the claim for so long from now; False when it was lost meanwhile."""
        return batch.add(RenewLease(self.fingerprint, self.id, seconds))

    def complete(self, batch: Batch, images: Mapping[int, Image]) -> None:
        """Tells everyone who waits which images came, by the slot they were bought for."""
        landed = {str(slot): image for slot, image in images.items()}
        self._end(batch, {"end": "completed", "images": landed})

    def fail(self, batch: Batch, failure: UpstreamFailure) -> None:
        """Gives the claim back and tells everyone who waits upstream's final error."""
        batch.add(ReleaseLease(self.fingerprint, self.id))
        self._end(batch, {"end": "failed", "failure": failure.to_dict()})

    def abandon(self, batch: Batch, death: UpstreamFailure) -> None:
        """The buyer is dead: one of those who wait may buy in its place, but only once."""
        if self.replacements:
            self.fail(batch, death)
            return
        batch.add(ReleaseLease(self.fingerprint, self.id))
        self._end(batch, {"end": "abandoned", "failure": death.to_dict()})

    def release(self, batch: Batch) -> None:
        """Gives the claim back without a purchase: those who waited try in turn."""
        batch.add(ReleaseLease(self.fingerprint, self.id))
        self._end(batch, {"end": "released"})

    def _end(self, batch: Batch, event: Mapping[str, Any]) -> None:
        # One event id for every ending: the first one told is the one that holds.
        batch.add(Publish(self.id, "end", orjson.dumps(event, default=dict), EVENT_SECONDS))


@dataclass(frozen=True, slots=True)
class PurchasedImages:
    """What a purchase hands to those who wait for it in this process."""

    images: Mapping[int, Image]
    """Slot that was asked for → the image bought for it."""
    data: Mapping[str, bytes]
    """Digest → bytes, still in memory, so that nobody here reads them back."""


Buy = Callable[[Flight], Awaitable[PurchasedImages]]
"""Buys the slots of a flight.

Once something was sent it tells the store how that ended itself (`Flight.land`, `Flight.fail`) and
returns, or raises `UpstreamFailure`. Any other `GatewayError` means that nothing was sent and that
it concerns this buyer alone: the claim is given back."""


@dataclass(frozen=True, slots=True)
class End:
    """How a flight ended, as a waiter sees it."""

    kind: Literal["completed", "failed", "abandoned", "released", "unknown"]
    bought: PurchasedImages = field(default_factory=lambda: PurchasedImages({}, {}))
    failure: GatewayError | None = None


@dataclass(slots=True)
class FlightResult:
    """What a request got: images by slot, and how it came by them."""

    missing: set[int]
    """Slots still to be had; what is left at the end was not to be had for an error."""
    images: dict[int, Image] = field(default_factory=dict)
    cached: dict[int, CachedImage] = field(default_factory=dict)
    """Those of them that were stored meanwhile."""
    data: dict[str, bytes] = field(default_factory=dict)
    """Digest → bytes of those images that were bought in this process."""
    bought: set[int] = field(default_factory=set)
    followed: set[int] = field(default_factory=set)
    own_error: GatewayError | None = None
    """What this request's own purchase came to, if it came to nothing."""
    flight_error: GatewayError | None = None
    """What the purchase that it waited for came to, if it came to nothing."""
    emptied: set[int] = field(default_factory=set)
    """Slots that somebody else's purchase has left empty once already."""
    orphaned: set[int] = field(default_factory=set)
    """Slots whose buyer has died once already."""

    @property
    def is_follower(self) -> bool:
        """Whether all that was had, or not had, is somebody else's doing."""
        waited = bool(self.followed) or self.flight_error is not None or bool(self.emptied)
        return waited and not self.bought and self.own_error is None

    def hold(self, claimed: LeaseResult) -> None:
        """Takes what was stored between the look-up and the claim."""
        for number, slot in claimed.cached.items():
            self.cached[number] = read_slot(slot, now=claimed.now)
            self.images[number] = self.cached[number].image
        self.missing -= claimed.cached.keys()

    def complete(self, ended: End, slots: Iterable[int]) -> None:
        """The own purchase ended; whatever it left empty stays empty."""
        self._take(ended.bought, slots, self.bought)
        self.own_error = ended.failure or self.own_error
        self.missing -= set(slots)

    def follow(self, ended: End, slots: set[int]) -> None:
        """Somebody else's flight ended; a slot that it left empty is tried once more.

        So is one whose buyer died; a second death ends it.
        """
        is_over = ended.kind == "failed" or (ended.kind == "abandoned" and slots & self.orphaned)
        if is_over:
            self.flight_error = ended.failure
            self.missing -= slots
            return
        if ended.kind == "abandoned":
            self.orphaned |= slots
        self._take(ended.bought, slots, self.followed)
        self.missing -= self.images.keys()
        if ended.kind == "completed":
            left_empty = slots & self.missing
            self.missing -= left_empty & self.emptied
            self.emptied |= left_empty

    def _take(self, bought: PurchasedImages, slots: Iterable[int], how: set[int]) -> None:
        for slot in slots:
            if (image := bought.images.get(slot)) is None:
                continue
            self.images[slot] = image
            how.add(slot)
            if image.digest in bought.data:
                self.data[image.digest] = bought.data[image.digest]


class Flights:
    """Every flight that this process buys or waits for."""

    def __init__(
        self,
        store: Store,
        partial_images: PartialImages,
        tasks: OwnedTasks,
    ) -> None:
        self._store = store
        self._partial_images = partial_images
        self._tasks = tasks
        self._listeners: set[asyncio.Task[None]] = set()
        self._ends: dict[str, asyncio.Future[End]] = {}
        self._offline: dict[tuple[str, tuple[int, ...]], str] = {}

    async def close(self) -> None:
        """Stops following the flights of other workers."""
        for listener in self._listeners:
            listener.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    def publisher(self, flight: Flight, *, max_images: int) -> Publisher:
        """Publishes the partial images of a flight, at most `max_images`."""
        return self._partial_images.publisher(
            flight.id, max_images=max_images, is_shared=not flight.is_unshared
        )

    async def run(
        self,
        fingerprint: str,
        asked: Iterable[int],
        *,
        buy: Buy,
        subscriber: Subscriber | None = None,
        ignoring: tuple[str, ...] = (),
    ) -> FlightResult:
        """Gets images for slots: claims and buys what is free, waits for what others claimed.

        A `viewer` is shown the partial images of every flight that this takes. Images whose ids
        are in `ignoring` do not count: what is bought takes their slots.

        Returns when every slot is filled, or was answered with an error, or came back empty from
        a purchase of one's own or, for the second time, from somebody else's. Errors are in what
        it returns, beside the images that came all the same.
        """
        landing = FlightResult(missing=set(asked))
        while landing.missing:
            flight_id = secrets.token_hex(12)
            wanted = tuple(sorted(landing.missing))
            try:
                claimed = await self._claim(
                    Flight(flight_id, fingerprint, wanted), ignoring=ignoring
                )
            except GatewayError as refusal:
                landing.own_error = landing.own_error or refusal
                break
            landing.hold(claimed)
            self._show(
                subscriber,
                flights=(*claimed.leased.values(), *[flight_id] * bool(claimed.acquired)),
            )
            waits = [self._follow(landing, f, slots) for f, slots in _by_flight(claimed.leased)]
            if claimed.acquired:
                replacements = int(not landing.orphaned.isdisjoint(claimed.acquired))
                flight = Flight(
                    flight_id, fingerprint, claimed.acquired, replacements, displaces=bool(ignoring)
                )
                purchase = self._tasks.start(self._buy(flight, buy), name=f"purchase {flight_id}")
                waits.append(self._land(landing, purchase, flight.slots))
            await _all_of(waits)
        return landing

    async def run_unshared(
        self,
        fingerprint: str,
        slots: tuple[int, ...],
        *,
        buy: Buy,
        subscriber: Subscriber | None = None,
    ) -> FlightResult:
        """Buys images for slots whatever is there, neither waiting for anybody nor waited for."""
        landing = FlightResult(missing=set(slots))
        flight = Flight(secrets.token_hex(12), fingerprint, slots, is_unshared=True, displaces=True)
        self._show(subscriber, flights=(flight.id,))
        purchase = self._tasks.start(self._buy(flight, buy), name=f"purchase {flight.id}")
        await self._land(landing, purchase, slots)
        return landing

    async def run_offline(
        self,
        fingerprint: str,
        slots: tuple[int, ...],
        *,
        buy: Buy,
        subscriber: Subscriber | None = None,
    ) -> FlightResult:
        """Buys while the store is away: those who ask the same in this process wait for one.

        As in `run`, whoever waited for what came to nothing without an error tries in turn.
        """
        landing = FlightResult(missing=set(slots))
        while landing.missing:
            question = (fingerprint, tuple(sorted(landing.missing)))
            if (under_way := self._offline.get(question)) is not None:
                self._show(subscriber, flights=(under_way,))
                await self._follow(landing, under_way, set(landing.missing))
                continue
            flight = Flight(secrets.token_hex(12), *question, is_unshared=True)
            self._offline[question] = flight.id
            self._ends[flight.id] = asyncio.get_running_loop().create_future()
            self._show(subscriber, flights=(flight.id,))
            buying = self._buy_offline(flight, buy)
            purchase = self._tasks.start(buying, name=f"purchase {flight.id}")
            await self._land(landing, purchase, flight.slots)
        return landing

    async def _buy_offline(self, flight: Flight, buy: Buy) -> End:
        """Nobody finds it any more once it has ended: there is no store to ask how."""
        try:
            return await self._buy(flight, buy)
        finally:
            del self._offline[flight.fingerprint, flight.slots]

    async def check_refusal(self, fingerprint: str) -> None:
        """Raises what stands against asking this question at all, if there is anything."""
        batch = Batch(self._store)
        refused = refusal_of(batch, fingerprint)
        await batch.execute()
        if (refusal := read_refusal(refused.value)) is not None:
            raise refusal

    async def _claim(self, flight: Flight, *, ignoring: tuple[str, ...]) -> LeaseResult:
        """Claims what is free; raises what stands against asking this question at all."""
        batch = Batch(self._store)
        claimed = batch.add(
            AcquireLease(flight.fingerprint, flight.slots, flight.id, CLAIM_SECONDS, ignoring)
        )
        refused = refusal_of(batch, flight.fingerprint)
        await batch.execute()
        refusal = read_refusal(refused.value)
        if refusal is None:
            return claimed.value
        if claimed.value.acquired:
            await self._give_back(flight)
        raise refusal

    def _show(self, subscriber: Subscriber | None, *, flights: Iterable[str]) -> None:
        if subscriber is not None:
            for flight in flights:
                subscriber.watch(self._partial_images.of(flight))

    async def _land(
        self, landing: FlightResult, purchase: asyncio.Task[End], slots: tuple[int, ...]
    ) -> None:
        landing.complete(await asyncio.shield(purchase), slots)

    async def _follow(self, landing: FlightResult, flight: str, wanted: set[int]) -> None:
        landing.follow(await self._end_of(flight), wanted)

    async def _buy(self, flight: Flight, buy: Buy) -> End:
        end = self._ends.setdefault(flight.id, asyncio.get_running_loop().create_future())
        ended = End("released", failure=GatewayError("The gateway failed; nothing was stored."))
        try:
            ended = await self._ending(flight, buy)
        except Exception:
            log.exception("purchase_failed", flight=flight.id)
        try:
            if ended.kind == "released" and not flight.is_unshared:
                await self._give_back(flight)
        finally:
            self._announce(flight.id, end, ended)
        return ended

    async def _ending(self, flight: Flight, buy: Buy) -> End:
        try:
            return End("completed", await buy(flight))
        except UpstreamFailure as failure:
            return End("failed", failure=failure)
        except GatewayError as refusal:
            return End("released", failure=refusal)

    async def _give_back(self, flight: Flight) -> None:
        batch = Batch(self._store)
        flight.release(batch)
        try:
            await batch.execute()
        except StoreUnavailable:
            log.warning("claim_not_given_back", flight=flight.id)

    async def _end_of(self, flight: str) -> End:
        """One waiting per flight and process, however many wait here."""
        end = self._ends.get(flight)
        if end is None:
            end = self._ends[flight] = asyncio.get_running_loop().create_future()
            listener = asyncio.create_task(self._listen(flight, end), name=f"follow {flight}")
            self._listeners.add(listener)
            listener.add_done_callback(self._listeners.discard)
        return await asyncio.shield(end)

    async def _listen(self, flight: str, end: asyncio.Future[End]) -> None:
        ended = End("unknown")
        try:
            ended = await self._heard(flight)
        except StoreUnavailable as failure:
            ended = End("failed", failure=failure)
        except Exception:
            log.exception("listening_failed", flight=flight)
            await asyncio.sleep(LOOK_AGAIN_SECONDS)  # else those who wait would ask without end
        finally:
            self._announce(flight, end, ended)

    def _announce(self, flight: str, end: asyncio.Future[End], ended: End) -> None:
        self._ends.pop(flight, None)
        if not end.done():
            end.set_result(ended)

    async def _heard(self, flight: str) -> End:
        """Waits until the flight's end was published; `unknown` when it stays silent."""
        clock = asyncio.get_running_loop().time
        trusted_until = clock() + LOOK_AGAIN_SECONDS
        channel, heard = self._partial_images.of(flight), 0
        async with AsyncExitStack() as stack:
            watch: Watch | None = None
            failures = 0
            while clock() < trusted_until:
                try:
                    watch = watch or await stack.enter_async_context(self._store.watch(flight))
                    events = await execute(self._store, ReadEvents(flight, after=heard))
                    failures, heard = 0, heard + len(events)
                    ended = self._take_in(events, channel)
                except StoreUnavailable:
                    ended, failures = None, failures + 1
                    if failures >= STORE_PATIENCE:
                        raise
                if ended is not None:
                    return ended
                await (watch.wait(RECHECK_SECONDS) if watch else asyncio.sleep(RECHECK_SECONDS))
        return End("unknown")

    def _take_in(self, events: Sequence[bytes], channel: Channel) -> End | None:
        """Shows what is to be shown; answers how the flight ended, if its events say so."""
        for event in events:
            said = orjson.loads(event)
            if (ended := _read_end(said)) is not None:
                return ended
            self._partial_images.hear(channel, said)
        return None


async def _all_of(waits: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits for each; the only one, as it mostly is, needs no task of its own."""
    if len(waits) == 1:
        await waits[0]
    else:
        await asyncio.gather(*waits)


def _by_flight(others: Mapping[int, str]) -> Iterable[tuple[str, set[int]]]:
    wanted: defaultdict[str, set[int]] = defaultdict(set)
    for slot, flight in others.items():
        wanted[flight].add(slot)
    return wanted.items()


def _read_end(said: Mapping[str, Any]) -> End | None:
    """How the flight ended, if this event says so."""
    if (kind := said.get("end")) in ("failed", "abandoned"):
        return End(kind, failure=UpstreamFailure.from_dict(said["failure"]))
    if said.get("end") == "released":
        return End("released")
    if said.get("end") == "completed":
        images = {int(n): Image.from_dict(p) for n, p in said["images"].items()}
        return End("completed", PurchasedImages(images, {}))
    return None
