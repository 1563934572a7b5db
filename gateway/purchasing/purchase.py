"""The story of one purchase: reserve → send → fetch → receive → keep → settle.

A purchase is a journal in the store. `reserved` is written before anything is sent and says what
it may cost; `received` is written after the bytes and says what came; settling closes it, exactly
once. Each state carries all that the rest of the story needs (`journal.py`), so that
somebody else can finish it when the worker that began it is dead: `recover` enters the same tail.

Who asks and what is answered is `service.py`; that only one of many buys is `cache/flights`.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from gateway.billing import pricing, quota
from gateway.billing.ledger import Record, tokens_by_kind
from gateway.cache.blobs import INLINE_BYTES, Blobs
from gateway.cache.entries import Entries, look_for_refusal, read_refusal
from gateway.cache.flights import Bought, Flight, Flights
from gateway.cache.image_index import Gallery
from gateway.cache.takedowns import content_taken_down, is_taken_down
from gateway.catalog import Model
from gateway.errors import Charge, GatewayError, StoreUnavailable, UpstreamFailure
from gateway.imagefile.check import BadPicture, PictureFacts, check_picture
from gateway.images import (
    Account,
    Amounts,
    Answered,
    ImageRequest,
    PartialImage,
    Picture,
    UpstreamPicture,
    Usage,
)
from gateway.metrics import Metrics
from gateway.net.guard import LinkRefused
from gateway.purchasing.journal import Received, Reserved, decode_payload
from gateway.store.batch import Batch, Handle, ask
from gateway.store.commands import DeadWorkers, Journal, OpenJournals, Retire, Settlement
from gateway.store.protocol import Store

LEASE_MARGIN_SECONDS: Final = 120.0
"""How much longer than upstream's deadline a claim holds: time to fetch links, keep and settle."""

FIRST_LEASE: Final = 3
"""How long a claim holds at first, as a multiple of the time after which a worker counts as dead.

Should its buyer die, others have finished the journal, and given the claim back, before it ends:
they need two of these. Should it be refused and die, nobody waits longer than that."""

TAIL_PATIENCE_SECONDS: Final = 2.0
"""How long the callers wait for the store to take a picture before they get it from memory."""

RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses while the store is away; the last one repeats until it is back."""

ESTIMATED: Final = "estimated"
"""The kind of tokens in the ledger that were charged without being known."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Upstream(Protocol):
    """Where pictures are bought."""

    async def generate(self, request: ImageRequest, *, pictures: int) -> Answered:
        """Buys pictures; raises `UpstreamFailure`."""

    async def stream(
        self,
        request: ImageRequest,
        *,
        on_partial: Callable[[PartialImage], Awaitable[None]],
        on_open: Callable[[], Awaitable[None]],
    ) -> Answered:
        """Buys one picture and reports what comes before it; raises as `generate`."""


class Links(Protocol):
    """Where the pictures behind upstream's links are fetched."""

    async def fetch(self, url: str) -> bytes:
        """What is behind a link; raises `LinkRefused`."""


class PurchaseSettings(BaseModel):
    """What a purchase must know of its surroundings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker: str
    timeout_seconds: float = Field(gt=0)
    max_picture_bytes: int = Field(gt=0)
    max_pixels: int = Field(gt=0)
    dead_after_seconds: float = Field(default=15.0, gt=0)


@dataclass(slots=True)
class Tally:
    """What a request learns of its own purchase, for the headers of its answer."""

    is_open: bool = False
    """A journal was opened: from now on the purchase leaves the request's ledger record."""
    reserved_micros: int = 0
    """What it may cost at most; 0 until the journal was opened."""
    cost_micros: int = 0
    limits: list[quota.LimitState] = field(default_factory=list)
    """The limits as the settlement left them; empty while nothing is settled."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to buy, and for whom."""

    request: ImageRequest
    model: Model
    account: Account
    record: Record
    """The request's ledger record as far as it is known."""
    clock: Callable[[], float]
    """Unix seconds."""
    tally: Tally = field(default_factory=Tally)


class Purchases:
    """Buys pictures, and finishes what dead workers have begun."""

    def __init__(
        self,
        settings: PurchaseSettings,
        store: Store,
        upstream: Upstream,
        *,
        links: Links,
        entries: Entries,
        gallery: Gallery,
        blobs: Blobs,
        flights: Flights,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._upstream = upstream
        self._links = links
        self._entries = entries
        self._gallery = gallery
        self._blobs = blobs
        self._flights = flights
        self._metrics = metrics
        self._suspects: frozenset[str] = frozenset()

    # ── the story ───────────────────────────────────────────────────────────────────────────

    async def buy(self, order: Order, flight: Flight) -> Bought:
        """Buys the slots of a flight; runs in a task that no caller owns.

        Raises what `flights.Buy` says: `LimitExceeded` and `StoreUnavailable` before anything
        was sent, `UpstreamFailure` after it was settled.
        """
        reserved = await self._reserve(order, flight.id, flight, pictures=len(flight.slots))
        async with self._settling_failures(order, reserved):
            with self._holding(flight):
                received, data = await self._bring(order, reserved, flight)
        await self._persist(order, received, data)
        return Bought(received.pictures, data)

    async def buy_unshared(self, order: Order, flight: Flight) -> Bought:
        """Buys pictures that are neither shared nor stored: they end with their caller.

        The books are as of any other purchase, but name no entry. Raises as `buy`.
        """
        reserved = await self._reserve(order, flight.id, None, pictures=len(flight.slots))
        async with self._settling_failures(order, reserved):
            received, data = await self._bring(order, reserved, flight)
        await self._persist(order, received, {})
        return Bought(received.pictures, data)

    async def buy_without_store(
        self, order: Order, flight: Flight, *, is_stored: bool = True
    ) -> Bought:
        """Buys while the store is away: what it should know is told as soon as it is back.

        Only for whom nothing limits: there is nobody to ask what may still be spent. Should this
        worker die before, the purchase is in no book (CONTRACT §6 *Store down*).
        """
        most = pricing.estimate(order.model, order.request, len(flight.slots)).amounts
        shared = flight if is_stored else None
        reserved = Reserved(flight.id, shared, most, order.record.but(id=flight.id))
        order.tally.is_open, order.tally.reserved_micros = True, most.micros
        opening = _insist(partial(self._open_late, order, reserved))
        opened = self._flights.own(opening, name=f"open late {flight.id}")
        async with self._settling_failures(order, reserved, opened=opened):
            received, data = await self._bring(order, reserved, flight)
        order.tally.cost_micros += received.charge.micros
        tail = self._tail(received, data if is_stored else {})
        self._flights.own(_after(opened, tail), name=f"keep {flight.id}")
        return Bought(received.pictures, data)

    async def _open_late(self, order: Order, reserved: Reserved) -> None:
        """The journal of a purchase that is under way or over; nothing limits it."""
        batch = Batch(self._store)
        quota.reserve(
            batch,
            replace(order.account, limits={}, prepared={}),
            reserved.purchase,
            worker=self._settings.worker,
            most=reserved.most,
            payload=reserved.encode(),
        )
        await batch.send()

    async def _reserve(
        self, order: Order, purchase: str, flight: Flight | None, *, pictures: int
    ) -> Reserved:
        estimate = pricing.estimate(order.model, order.request, pictures)
        record = order.record.but(id=purchase)
        reserved = Reserved(purchase, flight, estimate.amounts, record)
        batch = Batch(self._store)
        reservation = quota.reserve(
            batch,
            order.account,
            purchase,
            worker=self._settings.worker,
            most=estimate.amounts,
            payload=reserved.encode(),
        )
        is_held = self._hold_at_first(batch, flight)
        try:
            await batch.send()
            if reservation.answer.refused is None and is_held is not None and not is_held.answer:
                raise _claim_lost()
        except GatewayError:
            self._let_go(reserved)
            raise
        if reservation.answer.refused is not None:
            raise quota.refuse_reservation(
                order.account, reservation.answer, estimate.amounts, why=estimate.reason
            )
        order.tally.is_open, order.tally.reserved_micros = True, estimate.amounts.micros
        return reserved

    def _hold_at_first(self, batch: Batch, flight: Flight | None) -> Handle[bool] | None:
        """Asks whether the claim is still held, and keeps it for a while; None: there is none."""
        if flight is None or flight.is_alone:
            return None
        return flight.extend(batch, seconds=FIRST_LEASE * self._settings.dead_after_seconds)

    @contextmanager
    def _holding(self, flight: Flight) -> Iterator[None]:
        """Keeps the claim of a purchase that outlasts the first third of its first lease."""
        loop, wait = asyncio.get_running_loop(), self._settings.dead_after_seconds
        timer = loop.call_later(wait, self._hold_on, flight)
        try:
            yield
        finally:
            timer.cancel()

    def _hold_on(self, flight: Flight) -> None:
        """For the length of a purchase, as soon as the store takes it.

        Whether it is held by then changes nothing any more: what is bought is kept.
        """
        self._flights.own(_insist(partial(self._extend, flight)), name=f"hold {flight.id}")

    async def _extend(self, flight: Flight) -> None:
        batch = Batch(self._store)
        flight.extend(batch, seconds=self._settings.timeout_seconds + LEASE_MARGIN_SECONDS)
        await batch.send()

    def _let_go(self, reserved: Reserved) -> None:
        """Undoes a reservation that nothing will follow, as soon as the store takes it.

        Also one that the store did not answer: it may have been made, or be made yet, and would
        else count as charged and hold its slots for as long as this worker lives.
        """
        self._flights.own(
            _insist(partial(self._undo, reserved)), name=f"let go {reserved.purchase}"
        )

    async def _undo(self, reserved: Reserved) -> None:
        """Nothing was sent and nothing is owed."""
        batch = Batch(self._store)
        quota.settle(batch, reserved.purchase, Amounts(), record=None)
        if reserved.flight is not None:
            reserved.flight.give_back(batch)
        await batch.send()

    @asynccontextmanager
    async def _settling_failures(
        self, order: Order, reserved: Reserved, *, opened: asyncio.Task[None] | None = None
    ) -> AsyncIterator[None]:
        """Whatever goes wrong once something may have been sent, the journal is closed.

        `opened` is the opening of a journal that may still be to come.
        """
        try:
            yield
        except UpstreamFailure as failure:
            await self._finish_failure(order, reserved, failure, opened=opened)
            raise
        except Exception as bug:
            log.exception("purchase_failed", purchase=reserved.purchase)
            presumed = _our_fault()
            await self._finish_failure(order, reserved, presumed, opened=opened)
            raise presumed from bug

    async def _bring(
        self, order: Order, reserved: Reserved, flight: Flight
    ) -> tuple[Received, dict[str, bytes]]:
        """From the order to checked pictures, their bill, and their bytes by digest."""
        answered = await self._fetch_links(await self._send(order, flight))
        good = await self._check(order, answered)
        return self._receive(order, reserved, answered, good, slots=flight.slots)

    async def _send(self, order: Order, flight: Flight) -> Answered:
        """Buys in the way that the buyer asked for; all that follows is the same for both."""
        if not order.request.stream:
            return await self._upstream.generate(order.request, pictures=len(flight.slots))
        screen = self._flights.screen(flight, most=order.request.partial_images)
        return await self._upstream.stream(
            order.request, on_partial=screen.show, on_open=screen.open
        )

    async def _fetch_links(self, answered: Answered) -> Answered:
        """Upstream's links end within the hour: what is behind them is fetched at once."""
        if not any(picture.is_link for picture in answered.pictures):
            return answered
        pictures = await asyncio.gather(*(self._fetched(p) for p in answered.pictures))
        return replace(answered, pictures=tuple(pictures))

    async def _fetched(self, picture: UpstreamPicture) -> UpstreamPicture:
        """The picture with its bytes; as it was when they are not to be had."""
        if not picture.is_link:
            return picture
        try:
            return replace(picture, data=await self._links.fetch(picture.url or ""))
        except LinkRefused as refused:
            log.warning("link_not_fetched", reason=refused.reason)
            return picture

    async def _check(
        self, order: Order, answered: Answered
    ) -> list[tuple[UpstreamPicture, Picture]]:
        """The pictures that are complete and may be kept, in order.

        Raises `UpstreamFailure` if there is none.
        """
        complete = []
        for picture in answered.pictures:
            found = await self._examine(picture.data)
            if found is not None:
                complete.append((picture, _stored_picture(picture, *found, order=order)))
        good = [(sent, p) for sent, p in complete if not self._blobs.is_taken_down(p.digest)]
        if not good:
            raise _nothing_to_keep(answered, is_taken_down=bool(complete))
        return good

    async def _examine(self, data: bytes | None) -> tuple[PictureFacts, str] | None:
        """What a picture says of itself, and its hash; None when it is not complete."""
        if data is None:
            return None
        examine = partial(
            _examined,
            data,
            max_bytes=self._settings.max_picture_bytes,
            max_pixels=self._settings.max_pixels,
        )
        try:
            return examine() if len(data) <= INLINE_BYTES else await asyncio.to_thread(examine)
        except BadPicture as bad:
            log.warning("bad_picture", reason=str(bad))
            return None

    def _receive(
        self,
        order: Order,
        reserved: Reserved,
        answered: Answered,
        good: Sequence[tuple[UpstreamPicture, Picture]],
        *,
        slots: tuple[int, ...],
    ) -> tuple[Received, dict[str, bytes]]:
        """Shares usage and cost out among the pictures, and writes the bill."""
        charge, flags = _bill(order, answered, most=reserved.most)
        good = good[: len(slots)]
        if slots and len(good) < len(answered.pictures):
            flags = (*flags, "undelivered")
        pictures = _shared_out([picture for _, picture in good], answered, charge.micros)
        record = reserved.record.but(
            flags=(*reserved.record.flags, *flags),
            size=answered.shown.get("size", reserved.record.size),
            quality=answered.shown.get("quality", reserved.record.quality),
            images=charge.images,
            tokens=_tokens(answered.usage, charge),
            cost_micros=charge.micros,
            latency_ms=_latency_ms(order),
            upstream_request_id=answered.upstream_request_id,
        )
        data = {stored.digest: sent.data for sent, stored in good if sent.data is not None}
        received = Received(reserved, dict(zip(slots, pictures, strict=False)), charge, record)
        return received, data

    async def _persist(self, order: Order, received: Received, data: Mapping[str, bytes]) -> None:
        """Keeps and settles; when the store is away the callers do not wait, but this goes on."""
        order.tally.cost_micros += received.charge.micros
        settlement = await self._in_time(
            self._tail(received, data), name=f"keep {received.reserved.purchase}"
        )
        if settlement is not None:
            order.tally.limits = quota.reservation_states(order.account, settlement.states)

    async def _in_time(
        self, tail: Coroutine[Any, Any, Settlement], *, name: str
    ) -> Settlement | None:
        """What a tail came to; None when it goes on without those who wait for it."""
        task = self._flights.own(tail, name=name)
        await asyncio.wait({task}, timeout=TAIL_PATIENCE_SECONDS)
        return task.result() if task.done() else None

    async def _tail(self, received: Received, data: Mapping[str, bytes]) -> Settlement:
        """Keeps and settles until it succeeded, whatever the store does meanwhile."""
        try:
            return await self._keep_and_count(received, data)
        except Exception:
            log.exception("keeping_failed", purchase=received.reserved.purchase)
            return await self._close_unkept(received)

    async def _keep_and_count(self, received: Received, data: Mapping[str, bytes]) -> Settlement:
        """Counts what this worker settled: once, however many attempts that took.

        One that was not answered may have settled it, or one of which a full store refused the
        rest. Who finds it settled by others, at the estimate, has corrected it and counted that.
        """
        settlement = await _insist(partial(self._keep, received, data))
        if settlement.status in ("settled", "already"):
            self._metrics.purchased(received.record)
        return settlement

    async def _close_unkept(self, received: Received) -> Settlement:
        """A fault of ours kept a picture from being stored: the books are right all the same."""
        record = received.record.but(outcome="failed", flags=("unkept",))
        settle = partial(
            self._settle_failure, received.reserved, _our_fault(), received.charge, record=record
        )
        return await _insist(settle)

    async def _keep(self, received: Received, data: Mapping[str, bytes]) -> Settlement:
        """Bytes first; then, in one batch, the journal, the entry and the settlement.

        Small bytes lead that batch. It runs in order, so whatever interrupts it, what is done of
        it is enough for somebody else to do the rest.
        """
        batch = Batch(self._store)
        for digest, picture in self._blobs.put_along(batch, data).items():
            await self._blobs.put(digest, picture)
        quota.receive(batch, received.reserved.purchase, received.encode())
        settlement = await self._finish(received, batch)
        await self._blobs.withdraw(data)
        return settlement

    # ── the tail, also entered by recovery ──────────────────────────────────────────────────

    async def _finish(self, received: Received, batch: Batch) -> Settlement:
        """Entry before settlement, both repeatable; then everyone who waits is told."""
        reserved, flight = received.reserved, received.reserved.flight
        if flight is not None:
            self._entries.keep(
                batch,
                flight.fingerprint,
                flight.id,
                pictures=received.pictures,
                displaces=flight.displaces,
            )
            self._gallery.hang(batch, flight.fingerprint, received.pictures)
            refusal = look_for_refusal(batch, flight.fingerprint)
        stored = received.pictures.values() if flight is not None else ()
        shelved = self._blobs.shelve(batch, stored)
        settled = quota.settle(
            batch, reserved.purchase, received.charge, record=received.record.encode()
        )
        if flight is not None:
            flight.land(batch, received.pictures)
        await batch.send()
        if flight is not None and is_taken_down(read_refusal(refusal.answer)):
            await self._empty(flight.fingerprint, received.pictures)
        await self._evict(shelved)
        if settled.answer.status == "already" and settled.answer.presumed:
            return await self._correct(
                reserved.purchase, received.charge, settled.answer, record=received.record
            )
        return settled.answer

    async def _empty(self, fingerprint: str, pictures: Mapping[int, Picture]) -> None:
        """The question was taken down while it was being answered: its entry stays empty.

        Whoever takes down refuses first and empties then; here the pictures come first, so one of
        the two sees the other.
        """
        batch = Batch(self._store)
        entry = self._entries.look_up(batch, fingerprint)
        await batch.send()
        bought = {picture.id for picture in pictures.values()}
        slots = {n: s.picture for n, s in entry.answer.slots.items() if s.picture in bought}
        self._entries.empty(batch, fingerprint, slots)
        await batch.send()

    async def _evict(self, shelved: Iterable[Handle[Sequence[str]]]) -> None:
        """What had to go; should the store be away now, the orphans' sweep finds it."""
        with suppress(StoreUnavailable):
            await self._blobs.evict(shelved)

    async def _correct(
        self, purchase: str, charge: Amounts, presumed: Settlement, *, record: Record
    ) -> Settlement:
        """A late answer to a purchase that was presumed: a second record with the difference."""
        difference = charge - quota.charged(presumed)
        record = record.but(
            id=f"{record.id}-late",
            corrects=record.id,
            images=difference.images,
            tokens=_without_zeros({**record.tokens, ESTIMATED: -quota.charged(presumed).tokens}),
            cost_micros=difference.micros,
            saved_micros=0,
            flags=(*record.flags, "late"),
        )
        batch = Batch(self._store)
        corrected = quota.settle(batch, purchase, charge, record=record.encode(), correct=True)
        await batch.send()
        if corrected.answer.status == "corrected":
            self._metrics.purchased(record)
        return corrected.answer

    async def _finish_failure(
        self,
        order: Order,
        reserved: Reserved,
        failure: UpstreamFailure,
        *,
        opened: asyncio.Task[None] | None,
    ) -> None:
        charge = _failure_charge(order, reserved, failure)
        order.tally.cost_micros += charge.micros
        record = reserved.record.but(
            outcome="failed",
            flags=(*reserved.record.flags, *_failure_flags(failure)),
            error=failure.code,
            status=failure.status,
            images=charge.images,
            tokens=_tokens(failure.usage, charge),
            cost_micros=charge.micros,
            latency_ms=_latency_ms(order),
            upstream_request_id=failure.upstream_request_id,
        )
        settle = partial(self._settle_failure, reserved, failure, charge, record=record)
        name = f"settle {reserved.purchase}"
        if opened is not None:  # the store is away: nobody waits for it
            self._flights.own(_after(opened, _insist(settle)), name=name)
            return
        settlement = await self._in_time(_insist(settle), name=name)
        if settlement is not None:
            order.tally.limits = quota.reservation_states(order.account, settlement.states)

    async def _settle_failure(
        self,
        reserved: Reserved,
        failure: UpstreamFailure,
        charge: Amounts,
        *,
        record: Record,
        tell: Callable[[Flight, Batch, UpstreamFailure], None] = Flight.fail,
    ) -> Settlement:
        """Waiters first: should this worker die in between, the open journal says so."""
        batch = Batch(self._store)
        if reserved.flight is not None:
            self._entries.remember(batch, reserved.flight.fingerprint, failure)
            tell(reserved.flight, batch, failure)
        settled = quota.settle(
            batch,
            reserved.purchase,
            charge,
            record=record.encode(),
            presumed=failure.charge is Charge.PRESUMED,
        )
        await batch.send()
        is_known = failure.charge is not Charge.PRESUMED
        if settled.answer.status == "already" and settled.answer.presumed and is_known:
            return await self._correct(reserved.purchase, charge, settled.answer, record=record)
        if settled.answer.status == "settled":
            self._metrics.purchased(record)
        return settled.answer

    # ── recovery ────────────────────────────────────────────────────────────────────────────

    async def recover_dead(self) -> int:
        """Finishes the purchases of every dead worker; answers how many it closed.

        A worker is dead when two looks in a row find it silent. After an outage of the store
        everybody seems silent to the first who looks; those who live beat before the second look.
        """
        suspects, self._suspects = self._suspects, frozenset()
        dead = await ask(self._store, DeadWorkers(self._settings.dead_after_seconds))
        self._suspects = frozenset(dead) - {self._settings.worker}
        return sum([await self.recover(worker) for worker in suspects & self._suspects])

    async def recover(self, worker: str) -> int:
        """Finishes the open journals of a worker that is dead, and forgets it.

        What was received is stored and settled as usual. What was only reserved may have been
        bought: it is settled at the estimate, flag `presumed` (CONTRACT §8).
        """
        journals = await ask(self._store, OpenJournals(worker))
        closed = sum([await self._try_resume(journal) for journal in journals])
        await ask(self._store, Retire(worker))
        return closed

    async def _try_resume(self, journal: Journal) -> bool:
        """A journal that cannot be read stays open, and holds up no other."""
        try:
            await self._resume(journal)
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("recovery_failed", purchase=journal.purchase, worker=journal.worker)
            return False
        log.info("purchase_recovered", purchase=journal.purchase, state=journal.state)
        return True

    async def _resume(self, journal: Journal) -> None:
        payload = decode_payload(journal.payload)
        if isinstance(payload, Received):
            settlement = await self._finish(payload, Batch(self._store))
            if settlement.status == "settled":
                self._metrics.purchased(payload.record)
            return
        death = UpstreamFailure(
            "The gateway's worker died while it was waiting for this picture.",
            charge=Charge.PRESUMED,
        )
        record = payload.record.but(
            outcome="failed",
            flags=(*payload.record.flags, "presumed"),
            error=death.code,
            status=death.status,
            images=payload.most.images,
            tokens=_tokens(None, payload.most),
            cost_micros=payload.most.micros,
        )
        await self._settle_failure(payload, death, payload.most, record=record, tell=Flight.die)


# ── bills ───────────────────────────────────────────────────────────────────────────────────


def _bill(order: Order, answered: Answered, *, most: Amounts) -> tuple[Amounts, tuple[str, ...]]:
    """What pictures that came are charged, with the flags of CONTRACT §8."""
    charge = pricing.charge(
        order.model,
        order.request,
        usage=answered.usage,
        pictures=len(answered.pictures),
        estimated=most,
    )
    flags = []
    if pricing.is_billed_by_tokens(order.model) and answered.usage is None:
        flags.append("no_usage")
    if charge.images > most.images or charge.tokens > most.tokens or charge.micros > most.micros:
        flags.append("over_estimate")
    return charge, tuple(flags)


def _failure_charge(order: Order, reserved: Reserved, failure: UpstreamFailure) -> Amounts:
    """The table of CONTRACT §8, for purchases that brought no picture."""
    if failure.charge in (Charge.FREE, Charge.ASSUMED_FREE):
        return Amounts()
    if failure.usage is None or not pricing.is_billed_by_tokens(order.model):
        return reserved.most
    return pricing.charge(
        order.model,
        order.request,
        usage=failure.usage,
        pictures=reserved.most.images,
        estimated=reserved.most,
    )


def _tokens(usage: Usage | None, charge: Amounts) -> Mapping[str, int]:
    """The tokens of a charge by kind; those of an estimate have a kind of their own."""
    if not charge.tokens:
        return {}
    return tokens_by_kind(usage) if usage is not None else {ESTIMATED: charge.tokens}


def _without_zeros(tokens: Mapping[str, int]) -> Mapping[str, int]:
    return {kind: count for kind, count in tokens.items() if count}


def _our_fault() -> UpstreamFailure:
    return UpstreamFailure(
        "The gateway failed while it was waiting for this picture.", charge=Charge.PRESUMED
    )


def _failure_flags(failure: UpstreamFailure) -> tuple[str, ...]:
    return () if failure.charge is Charge.FREE else (failure.charge.value,)


def _claim_lost() -> GatewayError:
    """The store is there, so nobody may go on without it: somebody else may be buying by now."""
    return GatewayError(
        "The gateway's store was too slow; nothing was bought.",
        status=503,
        code="store_unavailable",
        headers={"Retry-After": "2"},
    )


def _nothing_to_keep(answered: Answered, *, is_taken_down: bool) -> UpstreamFailure:
    if is_taken_down:
        return content_taken_down(
            charge=Charge.UNDELIVERED,
            usage=answered.usage,
            upstream_request_id=answered.upstream_request_id,
        )
    is_unreachable = any(picture.is_link for picture in answered.pictures)
    what = (
        "its links could not be fetched"
        if is_unreachable
        else "no complete picture came with its answer"
    )
    return UpstreamFailure(
        f"Upstream charged for this request, but {what}.",
        charge=Charge.UNDELIVERED,
        usage=answered.usage,
        upstream_request_id=answered.upstream_request_id,
    )


def _shared_out(pictures: Sequence[Picture], answered: Answered, cost_micros: int) -> list[Picture]:
    """Gives each picture its integer share of usage and cost; the shares add up."""
    if not pictures:
        return []
    count = len(pictures)
    usages: Sequence[Usage | None] = (
        answered.usage.shares(count) if answered.usage is not None else [None] * count
    )
    return [
        replace(
            picture,
            usage=usage,
            cost_micros=cost_micros // count + (i < cost_micros % count),
            shown=answered.shown,
        )
        for i, (picture, usage) in enumerate(zip(pictures, usages, strict=True))
    ]


def _examined(data: bytes, *, max_bytes: int, max_pixels: int) -> tuple[PictureFacts, str]:
    """Takes two milliseconds a megabyte. Raises `BadPicture`."""
    facts = check_picture(data, max_bytes=max_bytes, max_pixels=max_pixels)
    return facts, hashlib.sha256(data).hexdigest()


def _stored_picture(
    picture: UpstreamPicture, facts: PictureFacts, digest: str, *, order: Order
) -> Picture:
    return Picture(
        id=secrets.token_hex(12),
        digest=digest,
        format=facts.format,
        width=facts.width,
        height=facts.height,
        size_bytes=len(picture.data or b""),
        created=order.clock(),
        model=order.model.id,
        revised_prompt=picture.revised_prompt,
        extra=picture.extra,
    )


def _latency_ms(order: Order) -> int:
    return int((order.clock() - order.record.time) * 1000)


async def _after(first: asyncio.Task[None], then: Coroutine[Any, Any, T]) -> T:
    """Whatever became of the first: a picture is kept also where its journal was not opened."""
    await asyncio.wait({first})
    return await then


async def _insist(step: Callable[[], Awaitable[T]]) -> T:
    """Repeats a repeatable step until the store takes it: what was paid for is not given up."""
    attempt = 0
    while True:
        try:
            return await step()
        except StoreUnavailable:
            pause = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            log.warning("store_away", attempt=attempt, pause_seconds=pause)
            attempt += 1
            await asyncio.sleep(pause)
