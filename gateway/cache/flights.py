"""Flights: identical requests buy an image once.

The request that acquires the lease of a slot leads a flight and buys. Every other request for that
slot, in any worker on the same store, follows it and waits for its end. The purchase runs in a task
of its own, which goes on when clients disconnect.

A flight's events and its result are `flight_events` and `flight_result`; waiting is `flight_ends`.
How images are bought is the argument `buy`: this room knows neither upstream nor money.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog

from gateway.cache.entries import decode_refusal, look_up_refusal
from gateway.cache.flight_ends import FlightEnds
from gateway.cache.flight_events import Flight, FlightEnd, PurchasedImages
from gateway.cache.flight_queues import FollowerLimits, Turn
from gateway.cache.flight_result import FlightResult
from gateway.cache.partial_images import PartialImages, Publisher, Subscriber
from gateway.errors import (
    GatewayError,
    LimitExceeded,
    StoreUnavailable,
    UpstreamFailure,
    detach,
)
from gateway.store.batch import Batch
from gateway.store.commands import AcquireLease, LeaseResult
from gateway.store.protocol import Store
from gateway.tasks import Capacity, OwnedTasks

LEASE_SECONDS: Final = 15.0
"""The lease until the purchase has reserved: a leader that dies before blocks no longer."""

RELEASED: Final = FlightEnd("released")

Buy = Callable[[Flight], Awaitable[PurchasedImages]]
"""Buys the slots of a flight.

Once something was sent to upstream, it publishes the end itself (`Flight.complete`, `Flight.fail`)
and returns, or raises `UpstreamFailure`. Any other `GatewayError` means that nothing was sent, and
that the reason concerns this request alone: the lease is released."""

log = structlog.get_logger(__name__)


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
    ) -> None:
        self._store = store
        self._partial_images = partial_images
        self._tasks = tasks
        self._purchases_open = purchases_open or Capacity()
        self._waiting = waiting or Capacity()
        self._led: Counter[str] = Counter()
        """This worker's purchases and requests for leases, by fingerprint."""
        self._ends = FlightEnds(store, partial_images)
        self._offline: dict[tuple[str, tuple[int, ...]], str] = {}
        """Flights of `run_offline` by fingerprint and slots."""

    async def close(self) -> None:
        """Stops following the flights of other workers."""
        await self._ends.close()

    def publisher(self, flight: Flight, *, max_images: int) -> Publisher:
        """Publishes the partial images of a flight, at most `max_images`."""
        return self._partial_images.publisher(
            flight.id, max_images=max_images, is_shared=not flight.is_unshared
        )

    async def run(
        self,
        fingerprint: str,
        slots: Iterable[int],
        *,
        buy: Buy,
        limits: FollowerLimits | None = None,
        subscriber: Subscriber | None = None,
        ignoring: tuple[str, ...] = (),
    ) -> FlightResult:
        """Gets images for slots: buys those without a lease, and follows the flights of the others.

        `limits` are those that `buy` counts against: if another request of the same key is refused,
        this one need not try. `subscriber` receives the partial images of all these flights. Images
        with an id in `ignoring` count as missing, and the bought images take their slots.

        Returns when every slot has an image or an error, or was left empty by this request's own
        purchase or by two others. The errors are in the result, beside the images.
        """
        result = FlightResult(missing=set(slots))
        turn: Turn | None = None
        try:
            while result.missing:
                flight = Flight(
                    secrets.token_hex(12),
                    fingerprint,
                    tuple(sorted(result.missing)),
                    displaces=bool(ignoring),
                )
                try:
                    lease = await self._acquire(flight, ignoring=ignoring)
                except GatewayError as refusal:
                    # Not raised: earlier flights of this request may have brought images.
                    result.own_error = result.own_error or detach(refusal)
                    _hand_over(turn, ())
                    break
                result.add_cached(lease)
                if lease.leased and self._waiting.is_full:
                    result.own_error = result.own_error or self._waiting.refusal()
                    if lease.acquired:
                        await self._release(flight)
                    break
                leaders = _by_flight(lease.leased)
                purchase = None
                if lease.acquired:
                    is_replacement = not result.abandoned.isdisjoint(lease.acquired)
                    flight = replace(flight, slots=lease.acquired, replacements=int(is_replacement))
                    purchase = self._start(flight, self._buy(flight, buy), subscriber=subscriber)
                found = [*leaders, *([flight.id] if purchase is not None else [])]
                _hand_over(turn, () if lease.cached else found)
                follow = partial(
                    self._follow,
                    result=result,
                    limits=limits,
                    subscriber=subscriber,
                    in_turn=len(found) == 1,
                )
                waits = [follow(leader, followed) for leader, followed in leaders.items()]
                if purchase is not None:
                    waits.append(self._lead(flight, purchase, result=result))
                with self._waiting.taken() if lease.leased else nullcontext():
                    turn = await _wait_for_all(waits)
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
    ) -> FlightResult:
        """Buys images for slots even if the entry has some, without a lease or followers."""
        self._purchases_open.check()
        result = FlightResult(missing=set(slots))
        flight = Flight(secrets.token_hex(12), fingerprint, slots, is_unshared=True, displaces=True)
        purchase = self._start(flight, self._buy(flight, buy), subscriber=subscriber)
        await self._lead(flight, purchase, result=result)
        return result

    async def run_offline(
        self,
        fingerprint: str,
        slots: tuple[int, ...],
        *,
        buy: Buy,
        subscriber: Subscriber | None = None,
    ) -> FlightResult:
        """Buys while the store is unavailable. Identical requests to this worker share a flight.

        As in `run`, the followers of a leader that was refused try in turn.
        """
        result = FlightResult(missing=set(slots))
        while result.missing:
            wanted = (fingerprint, tuple(sorted(result.missing)))
            if (leader := self._offline.get(wanted)) is not None:
                missing = set(result.missing)
                with self._waiting.taken():
                    await self._follow(
                        leader, missing, result=result, limits=None, subscriber=subscriber
                    )
                continue
            self._purchases_open.check()
            flight = Flight(secrets.token_hex(12), *wanted, is_unshared=True)
            self._offline[wanted] = flight.id
            purchase = self._start(flight, self._buy_offline(flight, buy), subscriber=subscriber)
            await self._lead(flight, purchase, result=result)
        return result

    async def check_refusal(self, fingerprint: str) -> None:
        """Raises the refusal of a fingerprint in the negative cache, if there is one."""
        batch = Batch(self._store)
        refusal = look_up_refusal(batch, fingerprint)
        await batch.execute()
        if (failure := decode_refusal(refusal.value)) is not None:
            raise failure

    # ── leading ─────────────────────────────────────────────────────────────────────────────

    async def _acquire(self, flight: Flight, *, ignoring: tuple[str, ...]) -> LeaseResult:
        """Acquires the lease of the flight's free slots.

        Raises as `check_refusal`, and 503 if this worker may not open another purchase.
        """
        # A request beside an identical one would follow it. Any other may open a purchase, and has
        # its place meanwhile, so that many at once cannot exceed the bound.
        is_first = not self._led[flight.fingerprint]
        if is_first:
            self._purchases_open.check()
        batch = Batch(self._store)
        acquire = AcquireLease(flight.fingerprint, flight.slots, flight.id, LEASE_SECONDS, ignoring)
        lease = batch.add(acquire)
        # Read after the lease is acquired: a leader stores its refusal before it releases the
        # lease, so the next leader finds it.
        refusal = look_up_refusal(batch, flight.fingerprint)
        with self._leading(flight.fingerprint, places=int(is_first)):
            await batch.execute()
        failure: GatewayError | None = decode_refusal(refusal.value)
        if failure is None and lease.value.acquired and self._purchases_open.is_full:
            failure = self._purchases_open.refusal()
        if failure is None:
            return lease.value
        if lease.value.acquired:
            await self._release(flight)
        raise failure

    def _start(
        self,
        flight: Flight,
        purchase: Coroutine[Any, Any, FlightEnd],
        *,
        subscriber: Subscriber | None,
    ) -> asyncio.Task[FlightEnd]:
        """Starts a purchase in a task that no client owns."""
        # Requests that come before its first step already follow it without the store.
        self._ends.expect(flight.id)
        if subscriber is not None:
            subscriber.subscribe(self._partial_images.channel(flight.id))
        task = self._tasks.start(purchase, name=f"purchase {flight.id}")
        # With the task, and not with the request, whose client may leave.
        leading = ExitStack()
        leading.enter_context(self._leading(flight.fingerprint, places=1))
        task.add_done_callback(lambda _: leading.close())
        return task

    @contextmanager
    def _leading(self, fingerprint: str, *, places: int) -> Iterator[None]:
        """Counts an open purchase, or a request that may open one, until the block is left."""
        self._purchases_open.used += places
        self._led[fingerprint] += 1
        try:
            yield
        finally:
            self._purchases_open.used -= places
            self._led[fingerprint] -= 1
            if not self._led[fingerprint]:
                del self._led[fingerprint]

    async def _buy(self, flight: Flight, buy: Buy) -> FlightEnd:
        """Buys, and announces the end to the followers of this worker, whatever happens."""
        # The end of a flight that a fault of the gateway interrupts: followers then try in turn.
        end = FlightEnd("released", failure=GatewayError("The gateway failed; nothing was stored."))
        try:
            try:
                end = FlightEnd("completed", await buy(flight))
            except UpstreamFailure as failure:
                end = FlightEnd("failed", failure=failure)
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
            if end.kind == "released" and not flight.is_unshared:
                await self._release(flight, end)
        finally:  # also if this task is cancelled
            self._ends.announce(flight.id, end.shared())
        return end

    async def _buy_offline(self, flight: Flight, buy: Buy) -> FlightEnd:
        try:
            return await self._buy(flight, buy)
        finally:
            # In the same step as the announcement: a request that found the flight later would
            # have to ask the store how it ended.
            del self._offline[flight.fingerprint, flight.slots]

    async def _release(self, flight: Flight, end: FlightEnd = RELEASED) -> None:
        batch = Batch(self._store)
        flight.release(batch, in_turn=end.in_turn, refusal=end.refusal)
        try:
            await batch.execute()
        except StoreUnavailable:
            # The lease expires by itself.
            log.warning("store_unavailable", during="lease_release", flight=flight.id)

    async def _lead(
        self, flight: Flight, purchase: asyncio.Task[FlightEnd], *, result: FlightResult
    ) -> None:
        # Shielded: the purchase goes on if the client disconnects.
        result.complete(await asyncio.shield(purchase), flight.slots)

    # ── following ───────────────────────────────────────────────────────────────────────────

    async def _follow(
        self,
        flight: str,
        slots: set[int],
        *,
        result: FlightResult,
        limits: FollowerLimits | None,
        subscriber: Subscriber | None,
        in_turn: bool = False,
    ) -> Turn | None:
        if subscriber is not None:
            subscriber.subscribe(self._partial_images.channel(flight))
        end, turn = await self._ends.wait(
            flight, slots, limits=limits, subscriber=subscriber, in_turn=in_turn
        )
        result.follow(end, slots)
        return turn


def _hand_over(turn: Turn | None, flights: Sequence[str]) -> None:
    """Those behind a follower need the same slots, so they follow the flight that has them all."""
    if turn is None:
        return
    if len(flights) == 1:
        turn.follow(flights[0])
    else:
        turn.wake_all()


def _by_flight(others: Mapping[int, str]) -> Mapping[str, set[int]]:
    slots: defaultdict[str, set[int]] = defaultdict(set)
    for slot, flight in others.items():
        slots[flight].add(slot)
    return slots


async def _wait_for_all(waits: Sequence[Coroutine[Any, Any, Turn | None]]) -> Turn | None:
    """Waits for each. There is mostly one, which needs no task of its own, and may get a turn."""
    if len(waits) == 1:
        return await waits[0]
    await asyncio.gather(*waits)
    return None
