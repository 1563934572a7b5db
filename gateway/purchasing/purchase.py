"""One purchase: reserve → deliver → receive → store → settle.

A purchase has a journal in the store. `reserved` holds the estimate and is written before anything
is sent, or later if the store is unavailable. `received` holds the images and the charge. Settling
closes the journal, exactly once. If a worker dies, another one (`recovery`) stores the images that
were received, or charges the estimate if none were.

`proxy/` answers requests and orders the missing images. `cache.flights` lets only one of several
identical requests buy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from gateway.billing import limit_refusals, quota
from gateway.billing.counted_limits import LimitState
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.idempotency_results import IdempotentRequest
from gateway.cache.idempotent_purchases import keep_for_purchase, release_cancelled
from gateway.cache.unstored_images import UnstoredImages
from gateway.catalog import Model
from gateway.catalog.lifecycle import is_shut_down, utc_date
from gateway.errors import CUT, ErrorCode, GatewayError, UpstreamFailure
from gateway.failure_report import Advice, Reason
from gateway.frozen import frozen
from gateway.images import MAX_SLOTS, Amounts, Image, ImageRequest, Principal, Record
from gateway.purchasing import lease as leases
from gateway.purchasing.account_queue import AccountQueue, LocalTurn, QueueWait
from gateway.purchasing.charges import charge_answer, charge_failure, share_cost
from gateway.purchasing.delivery import Delivered, Delivery
from gateway.purchasing.journal import Received, Reserved
from gateway.purchasing.lease import LeaseKeeper, LeaseTimes
from gateway.purchasing.routing import (
    Candidates,
    Route,
    budget_of,
    estimates,
    named_record,
)
from gateway.purchasing.settlement import Settlements, gateway_failure, retry_until_stored
from gateway.purchasing.upstream_health import UpstreamHealth
from gateway.request.retirement import name_successor
from gateway.store.batch import Batch, Result
from gateway.store.commands import Reservation, Settlement, Turn
from gateway.store.protocol import Store
from gateway.tasks import OwnedTasks, wait_for_end
from gateway.tracing import NO_SPAN, PurchaseSpan
from gateway.upstream import failures

RESERVED_LEASE_FACTOR: Final = 3
"""The lease after the reservation, in multiples of `dead_after_seconds`.

If the worker dies with an open journal, another worker finishes the purchase and releases the lease
before it expires. A denied reservation renews the lease too. If the worker dies right then, there
is no journal, and followers wait until the lease expires."""

LEASE_MARGIN_SECONDS: Final = 120.0
"""How much longer than upstream's deadline a lease lasts: time to fetch links, store and settle."""

COMMIT_WAIT_SECONDS: Final = 2.0
"""How long this worker's clients wait at most for storing and settling."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class PurchaseSettings(BaseModel):
    """The worker that buys, and the times that its leases depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker: str
    timeout_seconds: float = Field(gt=0)
    """The longest deadline of an account at upstream."""
    dead_after_seconds: float = Field(default=15.0, gt=0)
    stores_prompts: bool = False
    """Whether the image index gets the prompts of the images."""


@dataclass(slots=True)
class PurchaseSummary:
    """The outcome of a request's purchases, for the headers of its answer."""

    has_begun: bool = False
    """A purchase was reserved, or is sent without the store. It writes the request's record."""
    reserved_micros: int = 0
    """The latest purchase's estimate; 0 before the first."""
    upstream: str | None = None
    """The name of the account that the latest purchase was sent to."""
    is_answering: bool = False
    """That account has begun to answer, so no other one will be asked."""
    upstream_seconds: float = 0.0
    """How long its purchases took at upstream, with all attempts and the download of links."""
    cost_micros: int = 0
    waiting: QueueWait = field(default_factory=QueueWait)
    """How its purchases wait for their turn at an account."""
    limits: list[LimitState] = field(default_factory=list)
    """The limits after the settlement; empty before."""
    shadowed: list[LimitState] = field(default_factory=list)
    """The limits in shadow mode that its purchases exceeded."""
    settling: list[asyncio.Task[Any]] = field(default_factory=list)
    """The tasks that settle or cancel its purchases; they may end after the answer."""
    stored: int = 0
    """Purchases whose images the store has confirmed."""
    unstored: int = 0
    """Purchases whose images it has not confirmed, yet or for good."""

    @property
    def is_stored(self) -> bool:
        """Whether the store has confirmed all images that were bought."""
        return self.stored > 0 and not self.unstored


@frozen
class PurchaseOrder:
    """The request to buy images for, and the limits that the purchase counts against.

    The flight says how many images are bought.
    """

    request: ImageRequest
    model: Model
    principal: Principal
    record: Record
    """The request's ledger record as far as it is known."""
    clock: Callable[[], float]
    """Unix seconds."""
    started_at: float
    """When the request arrived, by that clock. The record's time is the store's."""
    summary: PurchaseSummary = field(default_factory=PurchaseSummary)
    """Filled in by the purchase; the request's context has it too."""
    tags: tuple[str, ...] = ()
    """The request's, for the entry that gets the images."""
    idempotent: IdempotentRequest | None = None
    """The idempotency key that the request has locked."""
    cached: Mapping[int, Image] = field(default_factory=dict)
    """The images that the request has already, by slot."""
    span: PurchaseSpan = NO_SPAN

    def traced(self, flight: Flight) -> Flight:
        """The flight with the ids of the purchase's span, for followers and recovery."""
        trace = self.span.traceparent
        return flight if trace is None else replace(flight, trace=trace)


class Purchases:
    """Buys images."""

    def __init__(
        self,
        settings: PurchaseSettings,
        store: Store,
        delivery: Delivery,
        *,
        settlements: Settlements,
        candidates: Candidates,
        health: Mapping[str, UpstreamHealth],
        unstored: UnstoredImages,
        tasks: OwnedTasks,
        queue: AccountQueue,
    ) -> None:
        self._settings = settings
        self._candidates = candidates
        self._health = health
        self._store = store
        self._delivery = delivery
        self._settlements = settlements
        self._unstored = unstored
        self._tasks = tasks
        self._queue = queue
        self._lease_times = LeaseTimes(
            reserved=RESERVED_LEASE_FACTOR * settings.dead_after_seconds,
            whole=settings.timeout_seconds + LEASE_MARGIN_SECONDS,
            check=min(leases.CHECK_SECONDS, settings.dead_after_seconds),
        )

    async def buy(self, order: PurchaseOrder, flight: Flight) -> PurchasedImages:
        """Buys the slots of a flight; runs in a task that no client owns.

        Before anything is sent to upstream, raises `LimitExceeded`, `StoreUnavailable`, or
        `GatewayError` if the lease was lost. Raises `UpstreamFailure` once the failed purchase is
        settled, at most `COMMIT_WAIT_SECONDS` later.
        """
        flight = order.traced(flight)
        route = await self._reserve(order, flight, is_stored=True)
        keeper = self._keep_lease(flight)
        if route.must_wait:
            with keeper:
                await self._take_turn(order, route)
        delivered, received = await self._receive(order, flight, route, keeper)
        self._delivery.keep_base64(order.request, delivered)
        purchased = PurchasedImages(received.images, _bytes_of(delivered), flight.trace)
        commit = self._commit_images(order, received, purchased, keeper=keeper)
        await self._wait_for_limits(order, commit)
        return purchased

    async def buy_unstored(self, order: PurchaseOrder, flight: Flight) -> PurchasedImages:
        """Buys images for `no-store`, which are not stored. Raises as `buy`."""
        route = await self._reserve(order, flight, is_stored=False)
        if route.must_wait:
            await self._take_turn(order, route)
        keeper = self._keep_lease(flight)
        delivered, received = await self._receive(order, flight, route, keeper)
        order.summary.cost_micros += received.charge.usd_micros
        commit = self._tasks.start(
            self._settlements.commit(received, {}), name=f"commit {flight.id}"
        )
        await self._wait_for_limits(order, commit)
        return PurchasedImages(received.images, _bytes_of(delivered))

    async def buy_without_store(
        self, order: PurchaseOrder, flight: Flight, *, is_stored: bool = True
    ) -> PurchasedImages:
        """Buys while the store is unavailable, without checking limits.

        `proxy.store_outage` decides which keys may. Journal and counters are written when the store
        is back; if this worker dies first, they never are. Raises `UpstreamFailure`.
        """
        flight = order.traced(flight)
        route = self._route(order, flight, is_stored=is_stored)
        turn = LocalTurn(self._queue, order.summary.waiting, images=len(flight.slots))
        async with aclosing(turn):
            await turn.take(route.account.name)
            route.local_turn = turn
            return await self._buy_without_store(order, flight, route, is_stored=is_stored)

    async def _buy_without_store(
        self, order: PurchaseOrder, flight: Flight, route: Route, *, is_stored: bool
    ) -> PurchasedImages:
        order.summary.has_begun = True
        order.summary.reserved_micros = route.bound.amounts.usd_micros
        opening = route.opening = self._tasks.start(
            retry_until_stored(partial(self._open_late, order, route)),
            name=f"open journal {flight.id}",
        )
        keeper = self._keep_lease(flight, opening=opening if is_stored else None)
        delivered, received = await self._receive(order, flight, route, keeper)
        purchased = PurchasedImages(received.images, _bytes_of(delivered), flight.trace)
        if is_stored:
            self._delivery.keep_base64(order.request, delivered)
            self._commit_images(order, received, purchased, keeper=keeper, opening=opening)
        else:
            order.summary.cost_micros += received.charge.usd_micros
            commit = self._commit_dated(received, {}, opening=opening)
            self._tasks.start(commit, name=f"commit {flight.id}")
        return purchased

    def _stored_prompt(self, order: PurchaseOrder) -> str | None:
        return order.request.prompt if self._settings.stores_prompts else None

    # ── before anything is sent ─────────────────────────────────────────────────────────────

    def _route(self, order: PurchaseOrder, flight: Flight, *, is_stored: bool) -> Route:
        """The accounts that the purchase may ask; its payload names the first one.

        Raises `GatewayError` if none is in service.
        """
        images = len(flight.slots)
        accounts = self._candidates.candidates(order.model.id, order.request, images=images)
        first = accounts[0]
        estimate, bound = estimates(accounts, order.model, order.request, images)
        reserved = Reserved(
            flight.id,
            flight if is_stored else None,
            estimate=estimate.amounts,
            record=named_record(order.record, first, order.model, id=flight.id),
            tags=order.tags,
            prompt=self._stored_prompt(order),
            idempotent=order.idempotent,
            cached=tuple(order.cached.items()) if order.idempotent is not None else (),
        )
        return Route(
            accounts,
            first,
            reserved,
            bound,
            store=self._store,
            worker=self._settings.worker,
            principal=order.principal,
            request=order.request,
            model=order.model,
            summary=order.summary,
            health=self._health,
            queue=self._queue,
            # Candidates of which the first cannot make it are candidates of which none can.
            is_made=self._candidates.can_make(first, order.request, images=images),
        )

    async def _reserve(self, order: PurchaseOrder, flight: Flight, *, is_stored: bool) -> Route:
        """Reserves the estimate, opens the journal and renews the lease, if the flight has one.

        An account whose budget is used up, or whose queue is too long, is passed over. The key is
        not refused for the price of an account whose budget is used up.
        """
        route, queued_at = self._route(order, flight, is_stored=is_stored), list[Turn]()
        first_bound = route.bound
        while True:
            reservation = await self._open_journal(order, flight, route)
            if reservation.turn.state == "refused":
                queued_at.append(reservation.turn)
            elif quota.is_refused_for_money(order.principal, reservation):
                if not await route.leave_out_unaffordable():
                    break
                continue
            elif not quota.is_refused_by_account(order.principal, reservation):
                break
            if route.pass_over():
                continue
            if queued_at:
                shortest = min(queued_at, key=lambda turn: turn.wait_seconds)
                raise self._queue.refusal(shortest, order.summary.waiting)
            raise failures.over_budget(order.model.id)
        if reservation.denied is not None:
            raise limit_refusals.refuse_reservation(
                order.principal,
                reservation,
                route.bound.amounts,
                why=route.bound.reason,
                first_estimate=first_bound.amounts,
            )
        order.summary.has_begun = True
        order.summary.reserved_micros = route.bound.amounts.usd_micros
        shadowed = quota.shadowed_by_reservation(order.principal, reservation)
        order.summary.shadowed += shadowed
        if shadowed:
            record = quota.flag_shadowed(route.reserved.record, shadowed)
            route.reserved = replace(route.reserved, record=record)
        route.reserved_at = reservation.reserved_at
        return route

    async def _open_journal(
        self, order: PurchaseOrder, flight: Flight, route: Route
    ) -> Reservation:
        """Reserves at the first account of the route. A denied reservation opens no journal."""
        reserved = route.reserved
        batch = Batch(self._store)
        place = route.place(route.account)
        reservation = quota.reserve(
            batch,
            order.principal,
            flight.id,
            worker=self._settings.worker,
            estimate=route.bound.amounts,
            payload=reserved.encode(),
            account=budget_of(route.account),
            place=place,
        )
        lease = None
        if reserved.flight is not None and not flight.is_unshared:
            lease = flight.renew(batch, seconds=self._lease_times.reserved)
        try:
            await batch.execute()
            turn = reservation.value.turn
            if reservation.value.denied is None and turn.state != "refused":
                if lease is not None and not lease.value:
                    raise _lease_lost()
                # After the reservation: from now on the key depends on the journal alone.
                if order.idempotent is not None and not await keep_for_purchase(
                    self._store, order.idempotent, flight.id
                ):
                    raise _lease_lost()
        except GatewayError:
            # If the lease was lost, the reservation exists; if the reply was lost, it may exist.
            # Until it is cancelled it counts against the limits: recovery skips live workers.
            cancelling = self._tasks.start(
                retry_until_stored(partial(self._cancel, reserved)), name=f"cancel {flight.id}"
            )
            order.summary.settling.append(cancelling)
            raise
        route.turn = turn
        return reservation.value

    async def _take_turn(self, order: PurchaseOrder, route: Route) -> None:
        """Waits for the account. If the turn does not come, the purchase is released at 0."""
        summary, reserved = order.summary, route.reserved
        try:
            await route.wait_for_turn()
        except GatewayError:
            # Nothing was bought: the request writes the record itself.
            summary.has_begun, summary.reserved_micros = False, 0
            cancelling = self._tasks.start(
                retry_until_stored(partial(self._cancel, reserved)),
                name=f"cancel {reserved.purchase}",
            )
            summary.settling.append(cancelling)
            raise

    async def _cancel(self, reserved: Reserved) -> None:
        batch = Batch(self._store)
        if reserved.idempotent is not None:
            release_cancelled(batch, reserved.idempotent, reserved.purchase)
        # Settling at zero leaves a closed journal, also if there was none. A reservation that runs
        # late finds it and reserves nothing.
        quota.settle(batch, reserved.purchase, Amounts(), record=None)
        await batch.execute()  # `cache.flights` releases the lease

    async def _open_late(self, order: PurchaseOrder, route: Route) -> float:
        """Opens the journal of a running or finished purchase, without checking limits.

        Returns the store's time of the reservation: the purchase belongs to its windows.
        """
        reserved_at = await self._write_late(quota.reserve, order, route)
        # A journal that exists is unchanged by that, and the purchase may have moved meanwhile.
        while not route.is_certain:
            account = route.account
            reserved_at = await self._write_late(quota.reroute, order, route) or reserved_at
            route.is_certain = account is route.account
        return reserved_at

    async def _write_late(
        self, write: Callable[..., Result[Reservation]], order: PurchaseOrder, route: Route
    ) -> float:
        """Reserves at the account that is asked now. Its budget is no limit for that either."""
        batch, budget = Batch(self._store), budget_of(route.account)
        reservation = write(
            batch,
            order.principal.without_limits(),
            route.reserved.purchase,
            worker=self._settings.worker,
            estimate=route.bound.amounts,
            payload=route.reserved.encode(),
            account=None if budget is None else budget._replace(maxima={}),
        )
        await batch.execute()
        return reservation.value.reserved_at

    # ── while upstream works ────────────────────────────────────────────────────────────────

    async def _deliver(self, order: PurchaseOrder, flight: Flight, route: Route) -> Delivered:
        began_at = time.monotonic()
        order.summary.upstream = route.account.name
        try:
            delivered = await self._delivery.deliver(
                order.request, order.model, flight, route, clock=order.clock
            )
        finally:
            order.summary.upstream_seconds += time.monotonic() - began_at
        route.succeeded()
        return delivered

    def _keep_lease(
        self, flight: Flight, *, opening: asyncio.Task[float] | None = None
    ) -> LeaseKeeper:
        """Keeps the flight's lease, if it has one or is to get one."""
        keeper = LeaseKeeper(self._store, flight, self._lease_times, opening=opening)
        if not flight.is_unshared:
            keeper.start()
        return keeper

    async def _receive(
        self, order: PurchaseOrder, flight: Flight, route: Route, keeper: LeaseKeeper
    ) -> tuple[Delivered, Received]:
        """The images that upstream delivers, and their charge.

        Settles the purchase if anything fails between its reservation and its commit.
        """
        try:
            with keeper:
                delivered = await self._deliver(order, flight, route)
                received = _charge_delivery(order, route, delivered, slots=flight.slots)
            keeper.note_delivered()
            return delivered, received
        except UpstreamFailure as met:
            route.report(met)
            failure = _with_successor(met, order)
            await self._settle_failure(order, route, failure)
            raise failure from None
        except Exception as fault:
            # Not `BaseException`: a cancelled purchase leaves its journal open for recovery.
            log.exception(
                "purchase_failed", purchase=route.reserved.purchase, **order.request.trace.fields
            )
            presumed = gateway_failure()
            await self._settle_failure(order, route, presumed)
            raise presumed from fault

    # ── after upstream answered ─────────────────────────────────────────────────────────────

    def _commit_images(
        self,
        order: PurchaseOrder,
        received: Received,
        purchased: PurchasedImages,
        *,
        keeper: LeaseKeeper,
        opening: asyncio.Task[float] | None = None,
    ) -> asyncio.Task[Settlement]:
        """Starts to store the images. Until then this worker serves them from memory."""
        summary, flight = order.summary, received.reserved.flight
        summary.cost_micros += received.charge.usd_micros
        summary.unstored += 1

        def on_stored() -> None:
            summary.unstored -= 1
            summary.stored += 1
            if flight is not None:
                self._unstored.confirm(flight.id)

        commit = self._commit_dated(received, purchased.data, opening=opening, on_stored=on_stored)
        task = self._tasks.start(commit, name=f"commit {received.reserved.purchase}")
        if flight is not None:
            self._unstored.add(flight, purchased)

        def end(task: asyncio.Task[Settlement]) -> None:
            if flight is not None:
                self._unstored.remove(flight.id)
            keeper.stop()

        task.add_done_callback(end)
        return task

    def _commit_dated(
        self,
        received: Received,
        data: Mapping[str, bytes],
        *,
        opening: asyncio.Task[float] | None,
        on_stored: Callable[[], None] = lambda: None,
    ) -> Coroutine[Any, Any, Settlement]:
        if opening is None:
            return self._settlements.commit(received, data, on_stored=on_stored)

        async def commit() -> Settlement:
            dated = replace(received, record=await _dated(received.record, opening))
            return await self._settlements.commit(dated, data, on_stored=on_stored)

        return commit()

    async def _wait_for_limits(self, order: PurchaseOrder, task: asyncio.Task[Settlement]) -> None:
        """Waits for a settlement, at most `COMMIT_WAIT_SECONDS`; the task goes on."""
        order.summary.settling.append(task)
        await wait_for_end(task, seconds=COMMIT_WAIT_SECONDS)
        if task.done():
            order.summary.limits = quota.reservation_states(order.principal, task.result().states)

    async def _settle_failure(
        self, order: PurchaseOrder, route: Route, failure: UpstreamFailure
    ) -> None:
        reserved, opening = route.reserved, route.opening
        charged = charge_failure(
            order.model,
            order.request,
            failure,
            estimate=reserved.estimate,
            factor=route.account.price_factor,
        )
        charge = charged.amounts
        order.summary.cost_micros += charge.usd_micros
        named = route.failed_record(failure)
        order.summary.upstream = named.upstream
        record = named.but(
            outcome="failed",
            flags=(*named.flags, *charged.flags),
            error=failure.code,
            status=failure.status,
            **charged.recorded,
            latency_ms=_latency_ms(order),
            upstream_request_id=failure.upstream_request_id,
        )
        order.span.settled(record, failure.usage, error=failure.report.reason)
        failure.trace = order.span.traceparent
        name = f"settle {reserved.purchase}"

        async def settle() -> Settlement:
            dated = record if opening is None else await _dated(record, opening)
            return await self._settlements.settle_failure(reserved, failure, charge, record=dated)

        if opening is not None:  # the store is unavailable, so no client waits for it
            self._tasks.start(settle(), name=name)
            return
        await self._wait_for_limits(order, self._tasks.start(settle(), name=name))


def _with_successor(failure: UpstreamFailure, order: PurchaseOrder) -> UpstreamFailure:
    """The failure, which names the successor of a model that was shut down and does not exist."""
    if failure.report.reason is not Reason.MODEL_UNKNOWN or failure.message.endswith(CUT):
        return failure
    if not is_shut_down(order.model.shutdown, utc_date(order.clock())):
        return failure
    named = failure.with_sentence(name_successor(order.model))
    named.advice = Advice.NONE  # the message tells the client which model to use
    return named


def _charge_delivery(
    order: PurchaseOrder, route: Route, delivered: Delivered, *, slots: tuple[int, ...]
) -> Received:
    """Computes the charge and the ledger record; splits usage and cost among the images.

    Both are known now, so the purchase's span ends here, and not when the store has them too.
    """
    answer, echoed, reserved = delivered.answer, delivered.echoed, route.reserved
    charged = charge_answer(
        order.model,
        order.request,
        answer,
        estimate=reserved.estimate,
        factor=route.account.price_factor,
    )
    charge, flags = charged.amounts, charged.flags
    images = [image for image, _ in delivered.images]
    if len(images) < len(answer.images) or answer.surplus:
        flags = (*flags, "undelivered")
    if any(image.active for image in images):
        flags = (*flags, "active_svg")
    record = reserved.record.but(
        time=route.reserved_at or reserved.record.time,
        flags=(*reserved.record.flags, *flags),
        size=echoed.get("size", reserved.record.size),
        quality=echoed.get("quality", reserved.record.quality),
        **charged.recorded,
        latency_ms=_latency_ms(order),
        upstream_request_id=answer.upstream_request_id,
    )
    order.span.settled(record, answer.usage)
    shared = share_cost(images, answer.usage, charge.usd_micros, echoed=echoed)
    return Received(reserved, _in_slots(shared, slots), charge, record)


def _in_slots(images: Sequence[Image], slots: tuple[int, ...]) -> dict[int, Image]:
    """The images in the slots that they were bought for, and those beyond in the last others."""
    # Not strict: if fewer images were delivered, the last slots stay empty.
    by_slot = dict(zip(slots, images, strict=False))
    if further := images[len(slots) :]:
        free = [slot for slot in range(MAX_SLOTS) if slot not in slots][-len(further) :]
        beside = (replace(image, beside=images[0].id) for image in further)
        by_slot |= zip(free, beside, strict=False)
    return by_slot


def _bytes_of(delivered: Delivered) -> dict[str, bytes]:
    """The bytes of the received images by digest."""
    return {image.digest: data for image, data in delivered.images}


def _latency_ms(order: PurchaseOrder) -> int:
    # The clock may be set back.
    return max(0, int((order.clock() - order.started_at) * 1000))


def _lease_lost() -> GatewayError:
    """The error for a lease or an idempotency key that was lost before anything was sent.

    Another worker may be buying these images by now. Not `StoreUnavailable`, for which the proxy
    would buy without the store.
    """
    return GatewayError(
        "The gateway's store was too slow, so nothing was bought. Retry in 2 seconds.",
        code=ErrorCode.STORE_UNAVAILABLE,
        headers={"Retry-After": "2"},
    )


async def _dated(record: Record, opening: asyncio.Task[float]) -> Record:
    """The record with the time of the late reservation, once `opening` has ended.

    If that failed, the settlement finds no reservation and goes by the record's own time.
    """
    await asyncio.wait({opening})
    is_open = not opening.cancelled() and opening.exception() is None
    return record.but(time=opening.result()) if is_open else record
