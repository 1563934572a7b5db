"""Flights: identical requests buy an image once.

The request that acquires the lease of a slot leads a flight and buys. Every other request for that
slot, in any worker on the same store, follows it and waits for its end. The purchase runs in a task
of its own, which goes on when clients disconnect.

A flight's events and its result are `flight_events` and `flight_result`; waiting is `flight_ends`.
How images are bought is the argument `buy`: this room knows neither upstream nor money.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Final

import structlog

from gateway.cache.entries import decode_refusal, look_up_refusal
from gateway.cache.flight_ends import FlightEnds, Patience
from gateway.cache.flight_events import Flight, FlightEnd, PurchasedImages, completed
from gateway.cache.flight_queues import FollowerLimits, Turn
from gateway.cache.flight_result import FlightResult
from gateway.cache.partial_images import PartialImages, Publisher, Subscriber
from gateway.cache.running_flights import RunningFlights
from gateway.cache.takedowns import is_taken_down
from gateway.cache.unstored_images import UnstoredImages
from gateway.errors import (
    GatewayError,
    LimitExceeded,
    StoreUnavailable,
    UpstreamFailure,
    detach,
)
from gateway.frozen import replace
from gateway.ids import new_purchase_id
from gateway.store.batch import Batch
from gateway.store.commands import LeaseResult
from gateway.store.protocol import Store
from gateway.tasks import Capacity, OwnedTasks

LEASE_SECONDS: Final = 15.0
"""The lease until the purchase has reserved: a leader that dies before blocks no longer."""

RELEASED: Final = FlightEnd("released")

HANDED_OVER_SECONDS: Final = 45.0
"""The lease that a running purchase gets from another flight, until it renews it itself."""

RELEASE_PAUSES: Final = (0.1, *([1.0] * 60))
"""Pauses before attempts to release a lease without the store. It has expired after the last.

The first one also leaves the request time to begin a purchase without the store, which then gets
the lease: followers elsewhere that are released before would buy as well."""

Buy = Callable[[Flight], Awaitable[PurchasedImages]]
"""Buys the slots of a flight.

Once something was sent to upstream, it publishes the end itself (`Flight.complete`, `Flight.fail`)
and returns, or raises `UpstreamFailure`. Any other `GatewayError` means that nothing was sent, and
that the reason concerns this request alone: the lease is released."""

log = structlog.get_logger(__name__)


async def _nothing() -> None:
    pass


class Flights:
    """The flights that requests of this worker lead or follow.

    `purchases_open` and `waiting` (for the purchases of others) are bounded; None: not.
    """

    def __init__(
        self,
        store: Store,
        partial_images: PartialImages,
        tasks: OwnedTasks,
        *,
        purchases_open: Capacity | None = None,
        waiting: Capacity | None = None,
        unstored: UnstoredImages | None = None,
    ) -> None:
        self._store = store
        self._partial_images = partial_images
        self._tasks = tasks
        self._purchases_open = purchases_open or Capacity()
        self._waiting = waiting or Capacity()
        self._led: dict[str, int] = {}
        """This worker's purchases and requests for leases, by fingerprint."""
        self._ends = FlightEnds(store, partial_images)
        self._leaders: dict[str, Callable[[], bool]] = {}
        """Whether the client of a flight's leader is connected, by flight."""
        self._unstored = UnstoredImages() if unstored is None else unstored
        self._online, self._offline = RunningFlights(), RunningFlights()
        self._handed_over: Counter[str] = Counter()
        """Flights that are being given the lease of another one, by id."""
        self._ended_meanwhile: set[str] = set()
        """Those of them that have ended without images, and may be given it after their end."""

    async def close(self) -> None:
        """Stops following the flights of other workers."""
        await self._ends.close()

    def publisher(self, flight: Flight, *, max_images: int) -> Publisher:
        """Publishes the partial images of a flight, at most `max_images`."""
        return self._partial_images.publisher(
            flight.id,
            max_images=max_images,
            is_shared=not (flight.is_unshared or flight.is_offline),
        )

    async def run(
        self,
        fingerprint: str,
        slots: Iterable[int],
        *,
        buy: Buy,
        check_again: Callable[[], Awaitable[None]] = _nothing,
        limits: FollowerLimits | None = None,
        subscriber: Subscriber | None = None,
        ignoring: tuple[str, ...] = (),
        max_age_seconds: float | None = None,
        is_connected: Callable[[], bool] = lambda: True,
    ) -> FlightResult:
        """Gets images for slots: buys those without a lease, and follows the flights of the others.

        `check_again` runs before `buy` if the request has waited for another one: it raises if the
        request may not buy any more. `limits` are those that `buy` counts against: if another
        request of the same key is refused, this one need not try. `subscriber` receives the partial
        images of all these flights. Images with an id in `ignoring`, and unstored ones older than
        `max_age_seconds`, count as missing, and the bought images take their slots.

        Returns when every slot has an image or an error, or was left empty by this request's own
        purchase or by two others. The errors are in the result, beside the images.
        """
        result, patience = FlightResult(missing=set(slots)), Patience()
        turn: Turn | None = None
        has_waited = False
        try:
            while self._add_unstored(result, fingerprint, max_age_seconds=max_age_seconds):
                # The store may not know yet of a flight that began without it.
                offline = self._offline.leaders(fingerprint, result.missing)
                flight = Flight(
                    new_purchase_id(),
                    fingerprint,
                    tuple(sorted(result.missing - offline.keys())),
                    displaces=bool(ignoring),
                    ignoring=ignoring,
                )
                cached_before = len(result.cached)
                try:
                    acquired, leased = await self._lease(flight, result=result, patience=patience)
                    if acquired and has_waited:
                        await self._check_leased(flight, check_again)
                except GatewayError as refusal:
                    # Not raised: earlier flights of this request may have brought images.
                    result.own_error = result.own_error or detach(refusal)
                    _hand_over(turn, ())
                    break
                leased |= offline
                if leased and self._waiting.is_full:
                    result.own_error = result.own_error or self._waiting.refusal()
                    if acquired:
                        await self._release(flight)
                    break
                leaders = _by_flight(leased)
                purchase = None
                if acquired:
                    flight = _with_slots(flight, acquired, abandoned=result.abandoned)
                    purchase = self._start(flight, buy, subscriber=subscriber)
                found = [*leaders, *([flight.id] if purchase is not None else [])]
                _hand_over(turn, () if len(result.cached) > cached_before else found)
                waits = self._follow_all(
                    leaders,
                    result=result,
                    limits=limits,
                    subscriber=subscriber,
                    in_turn=len(found) == 1,
                    is_connected=is_connected,
                )
                if purchase is not None:
                    waits.append(
                        self._lead(flight, purchase, result=result, is_connected=is_connected)
                    )
                with self._waiting.taken() if leased else nullcontext():
                    turn = await _wait_for_all(waits)
                has_waited = True
        finally:
            if turn is not None:
                turn.pass_on()
        return result

    async def run_unshared(
        self,
        fingerprint: str,
        slots: tuple[int, ...],
        *,
        buy: Buy,
        subscriber: Subscriber | None = None,
        is_connected: Callable[[], bool] = lambda: True,
    ) -> FlightResult:
        """Buys images for slots even if the entry has some, without a lease or followers."""
        self._purchases_open.check()
        result = FlightResult(missing=set(slots))
        flight = Flight(new_purchase_id(), fingerprint, slots, is_unshared=True, displaces=True)
        purchase = self._start(flight, buy, subscriber=subscriber)
        await self._lead(flight, purchase, result=result, is_connected=is_connected)
        return result

    async def run_offline(
        self,
        fingerprint: str,
        slots: tuple[int, ...],
        *,
        buy: Buy,
        subscriber: Subscriber | None = None,
        max_age_seconds: float | None = None,
    ) -> FlightResult:
        """Buys while the store is unavailable. Identical requests to this worker share a flight.

        As in `run`, the followers of a leader that was refused try in turn.
        """
        result = FlightResult(missing=set(slots))
        # With confirmed images: this request may have lost the store just when the purchase that it
        # would have followed was committed.
        while self._add_unstored(
            result, fingerprint, max_age_seconds=max_age_seconds, with_confirmed=True
        ):
            led_here = self._online.leaders(fingerprint, result.missing)
            led_here |= self._offline.leaders(fingerprint, result.missing)
            missing = tuple(sorted(result.missing - led_here.keys()))
            full = [self._purchases_open] if missing and self._purchases_open.is_full else []
            full += [self._waiting] if led_here and self._waiting.is_full else []
            if full:
                # Not raised: earlier flights of this request may have brought images.
                result.own_error = result.own_error or full[0].refusal()
                break
            waits = [
                self._follow(leader, followed, result=result, limits=None, subscriber=subscriber)
                for leader, followed in _by_flight(led_here).items()
            ]
            if missing:
                flight = Flight(
                    new_purchase_id(),
                    fingerprint,
                    missing,
                    is_offline=True,
                )
                purchase = self._start(flight, buy, subscriber=subscriber)
                waits.append(self._lead(flight, purchase, result=result))
            with self._waiting.taken() if led_here else nullcontext():
                await _wait_for_all(waits)
        return result

    async def check_refusal(self, fingerprint: str) -> None:
        """Raises the refusal of a fingerprint in the negative cache, if there is one."""
        if (failure := await self._look_up_refusal(fingerprint)) is not None:
            raise failure

    async def check_takedown(self, fingerprint: str) -> None:
        """Raises the refusal of a prompt that was taken down.

        For images that the store does not have yet: a take-down cannot empty their slots.
        """
        failure = await self._look_up_refusal(fingerprint)
        if failure is not None and is_taken_down(failure):
            raise failure

    async def _look_up_refusal(self, fingerprint: str) -> UpstreamFailure | None:
        batch = Batch(self._store)
        refusal = look_up_refusal(batch, fingerprint)
        await batch.execute()
        return decode_refusal(refusal.value)

    # ── leading ─────────────────────────────────────────────────────────────────────────────

    def _add_unstored(
        self,
        result: FlightResult,
        fingerprint: str,
        *,
        max_age_seconds: float | None,
        with_confirmed: bool = False,
    ) -> bool:
        """Adds images that this worker has not stored yet. Returns whether slots are missing."""
        if not result.missing:
            return False
        found = self._unstored.find(
            fingerprint,
            result.missing,
            max_age_seconds=max_age_seconds,
            with_confirmed=with_confirmed,
        )
        if found:
            result.add_unstored(found)
        return bool(result.missing)

    async def _lease(
        self, flight: Flight, *, result: FlightResult, patience: Patience
    ) -> tuple[tuple[int, ...], dict[int, str]]:
        """The slots that the flight leases now, and those of other flights, with their ids.

        Adds the cached images to the result. Raises as `_acquire`. While the store is unavailable,
        a flight that this request has followed, and that was silent, goes on.
        """
        silent, result.silent = result.silent, {}
        if not flight.slots:
            return (), {}
        # After an outage this acquires nothing: the flight that it follows may have lost its lease,
        # and has the usual time to acquire it again.
        seconds = 0.0 if patience.is_lost else LEASE_SECONDS
        try:
            lease = await self._acquire(flight, seconds=seconds)
        except StoreUnavailable:
            followed = {slot: silent[slot] for slot in flight.slots if slot in silent}
            if not (followed and patience.is_left()):
                raise
            return (), followed
        result.add_cached(lease)
        if patience.restore():
            free = {slot: silent[slot] for slot in lease.acquired if slot in silent}
            return (), free | dict(lease.leased)
        # A purchase of this worker has lost its lease, for example because a clock was set.
        if unleased := self._online.leaders(flight.fingerprint, lease.acquired):
            await self._release(flight)  # to that purchase
            return (), unleased | dict(lease.leased)
        return lease.acquired, dict(lease.leased)

    async def _check_leased(self, flight: Flight, check: Callable[[], Awaitable[None]]) -> None:
        """Releases the lease if the request may not buy any more, and raises why not."""
        try:
            await check()
        except BaseException:
            await self._release(flight)
            raise

    async def _acquire(self, flight: Flight, *, seconds: float) -> LeaseResult:
        """Acquires the lease of the flight's free slots, for so long.

        Raises as `check_refusal`, and 503 if this worker may not open another purchase.
        """
        # A request beside an identical one would follow it. Any other may open a purchase, and has
        # its place meanwhile, so that many at once cannot exceed the bound.
        is_first = flight.fingerprint not in self._led
        if is_first:
            self._purchases_open.check()
        batch = Batch(self._store)
        lease = flight.acquire(batch, seconds=seconds)
        # Read after the lease is acquired: a leader stores its refusal before it releases the
        # lease, so the next leader finds it.
        refusal = look_up_refusal(batch, flight.fingerprint)
        self._begin_leading(flight.fingerprint, places=int(is_first))
        try:
            await batch.execute()
        except StoreUnavailable:
            if seconds:
                self._release_later(flight)  # it may have been leased all the same
            raise
        finally:
            self._end_leading(flight.fingerprint, places=int(is_first))
        failure: GatewayError | None = decode_refusal(refusal.value)
        if failure is None and lease.value.acquired and self._purchases_open.is_full:
            failure = self._purchases_open.refusal()
        if failure is None:
            return lease.value
        if lease.value.acquired:
            await self._release(flight)
        raise failure

    def _start(
        self, flight: Flight, buy: Buy, *, subscriber: Subscriber | None
    ) -> asyncio.Future[FlightEnd]:
        """Starts a purchase in a task that no client owns, and so goes on if its client leaves."""
        # Requests that come before its first step already follow it without the store.
        self._ends.expect(flight.id)
        if subscriber is not None:
            subscriber.subscribe(self._partial_images.channel(flight.id))
        task = self._tasks.start(self._buy(flight, buy), name=f"purchase {flight.id}")
        self._begin_leading(flight.fingerprint, places=1)
        if not flight.is_unshared:
            (self._offline if flight.is_offline else self._online).add(flight)
        # As `asyncio.shield(task)`, which takes two more turns of the event loop.
        ended: asyncio.Future[FlightEnd] = asyncio.get_running_loop().create_future()
        task.add_done_callback(partial(self._end_purchase, flight, ended))
        return ended

    def _end_purchase(
        self, flight: Flight, ended: asyncio.Future[FlightEnd], task: asyncio.Task[FlightEnd]
    ) -> None:
        self._end_leading(flight.fingerprint, places=1)
        if ended.done():  # its client has left
            return
        if task.cancelled():
            ended.cancel()
        elif (fault := task.exception()) is not None:
            ended.set_exception(fault)
        else:
            ended.set_result(task.result())

    def _begin_leading(self, fingerprint: str, *, places: int) -> None:
        """Counts an open purchase, or a request that may open one, until `_end_leading`."""
        self._purchases_open.used += places
        self._led[fingerprint] = self._led.get(fingerprint, 0) + 1

    def _end_leading(self, fingerprint: str, *, places: int) -> None:
        self._purchases_open.used -= places
        left = self._led[fingerprint] - 1
        if left:
            self._led[fingerprint] = left
        else:
            del self._led[fingerprint]

    async def _buy(self, flight: Flight, buy: Buy) -> FlightEnd:
        """Buys, and announces the end to the followers of this worker, whatever happens."""
        end: FlightEnd | None = None
        try:
            try:
                end = completed(await buy(flight))
            except UpstreamFailure as failure:
                # A refused `user` is that of the leader alone: the followers have others.
                concerns_leader = failure.concerns_buyer
                end = FlightEnd(
                    "released" if concerns_leader else "failed",
                    failure=failure,
                    in_turn=concerns_leader,
                    trace=failure.trace,
                )
            except GatewayError as refusal:
                end = FlightEnd(
                    "released",
                    failure=refusal,
                    # A fault of ours or of the store concerns the followers too.
                    in_turn=refusal.status < 500,
                    refusal=refusal.refusal if isinstance(refusal, LimitExceeded) else None,
                )
            except Exception as fault:
                log.exception("purchase_failed", purchase=flight.id)
                detach(fault)
                end = _interrupted()
            if end.kind == "released" and not (flight.is_unshared or flight.is_offline):
                if isinstance(end.failure, StoreUnavailable):
                    self._release_later(flight)
                else:
                    await self._release(flight, end)
        finally:  # also if this task is cancelled
            if end is None:
                end = _interrupted()
            # In one step: a request that found the flight after its end would have to ask the
            # store how it ended.
            (self._offline if flight.is_offline else self._online).forget(flight)
            if end.kind != "completed" and self._handed_over[flight.id]:
                self._ended_meanwhile.add(flight.id)
            self._ends.announce(flight.id, end.shared())
        return end

    async def _release(self, flight: Flight, end: FlightEnd = RELEASED) -> None:
        try:
            await self._try_release(flight, end)
        except StoreUnavailable:
            self._release_later(flight, end)

    async def _try_release(self, flight: Flight, end: FlightEnd) -> None:
        """Releases a lease, to the other running flights of this worker that want it."""
        fingerprint, batch = flight.fingerprint, Batch(self._store)
        running = [*self._online.of(fingerprint), *self._offline.of(fingerprint)]
        others = [one for one in running if one.id != flight.id]
        flight.release(
            batch,
            in_turn=end.in_turn,
            refusal=end.refusal,
            to=others,
            lease_seconds=HANDED_OVER_SECONDS,
        )
        self._handed_over.update(other.id for other in others)
        try:
            await batch.execute()
        finally:
            for other in others:
                self._end_hand_over(other)

    def _end_hand_over(self, flight: Flight) -> None:
        """Releases the lease that a flight was given after its end, because no purchase will."""
        self._handed_over[flight.id] -= 1
        if self._handed_over[flight.id] > 0:
            return
        del self._handed_over[flight.id]
        if flight.id in self._ended_meanwhile:
            self._ended_meanwhile.discard(flight.id)
            self._release_later(flight)

    def _release_later(self, flight: Flight, end: FlightEnd = RELEASED) -> None:
        """Releases a lease as soon as the store is available; after a minute it has expired."""

        async def release() -> None:
            for pause in RELEASE_PAUSES:
                await asyncio.sleep(pause)
                with suppress(StoreUnavailable):
                    await self._try_release(flight, end)
                    return

        self._tasks.start(release(), name=f"release lease {flight.id}")

    async def _lead(
        self,
        flight: Flight,
        purchase: asyncio.Future[FlightEnd],
        *,
        result: FlightResult,
        is_connected: Callable[[], bool] = lambda: True,
    ) -> None:
        self._leaders[flight.id] = is_connected
        try:
            result.complete(await purchase, flight.slots)
        finally:
            del self._leaders[flight.id]

    def is_wanted(self, flight: str) -> bool:
        """Whether a client of this worker still waits for a flight of this worker.

        Those of other workers are not known. They get a turn of their own if it is released.
        """
        is_connected = self._leaders.get(flight)
        return (is_connected is not None and is_connected()) or self._ends.has_clients(flight)

    # ── following ───────────────────────────────────────────────────────────────────────────

    def _follow_all(
        self,
        leaders: Mapping[str, set[int]],
        *,
        result: FlightResult,
        limits: FollowerLimits | None,
        subscriber: Subscriber | None,
        in_turn: bool,
        is_connected: Callable[[], bool],
    ) -> list[Coroutine[Any, Any, Turn | None]]:
        """What waits for the slots of each flight."""
        # Not in `run`, whose frame would hold the variables of a comprehension while upstream
        # works: 300 bytes for each request.
        return [
            self._follow(
                flight,
                slots,
                result=result,
                limits=limits,
                subscriber=subscriber,
                in_turn=in_turn,
                is_connected=is_connected,
            )
            for flight, slots in leaders.items()
        ]

    async def _follow(
        self,
        flight: str,
        slots: set[int],
        *,
        result: FlightResult,
        limits: FollowerLimits | None,
        subscriber: Subscriber | None,
        in_turn: bool = False,
        is_connected: Callable[[], bool] = lambda: True,
    ) -> Turn | None:
        # The flight has ended in this worker, and its images are not stored yet.
        if (purchased := self._unstored.of_flight(flight)) is not None:
            result.follow(completed(purchased), slots)
            result.last_followed = flight
            return None
        if subscriber is not None:
            subscriber.subscribe(self._partial_images.channel(flight))
        end, turn = await self._ends.wait(
            flight,
            slots,
            limits=limits,
            subscriber=subscriber,
            in_turn=in_turn,
            is_connected=is_connected,
        )
        if end.kind == "unknown":
            result.silent |= dict.fromkeys(slots, flight)
        if end.kind in ("completed", "failed", "abandoned"):
            result.last_followed = flight
        result.follow(end, slots)
        return turn


def _interrupted() -> FlightEnd:
    """The end of a flight that a fault of the gateway interrupts: followers then try in turn."""
    return FlightEnd("released", failure=GatewayError("The gateway failed; nothing was stored."))


def _with_slots(flight: Flight, acquired: tuple[int, ...], *, abandoned: frozenset[int]) -> Flight:
    """The flight of the slots that it leased. It replaces one that was abandoned there."""
    is_replacement = not abandoned.isdisjoint(acquired)
    if acquired == flight.slots and not is_replacement:
        return flight
    return replace(flight, slots=acquired, replacements=int(is_replacement))


def _hand_over(turn: Turn | None, flights: Sequence[str]) -> None:
    """Those behind a follower need the same slots, so they follow the flight that has them all."""
    if turn is None:
        return
    if len(flights) == 1:
        turn.follow(flights[0])
    else:
        turn.wake_all()


def _by_flight(others: Mapping[int, str]) -> Mapping[str, set[int]]:
    if not others:
        return {}
    slots: defaultdict[str, set[int]] = defaultdict(set)
    for slot, flight in others.items():
        slots[flight].add(slot)
    return slots


def _wait_for_all(waits: Sequence[Coroutine[Any, Any, Turn | None]]) -> Awaitable[Turn | None]:
    """Waits for each. There is mostly one, which needs no task of its own, and may get a turn."""
    return waits[0] if len(waits) == 1 else _gather(waits)


async def _gather(waits: Iterable[Coroutine[Any, Any, Turn | None]]) -> None:
    await asyncio.gather(*waits)
