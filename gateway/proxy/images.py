"""Gets the images of one query: from the entry, by transcoding, from a flight, or by buying.

A response contains all images that could be delivered, in slot order, and is an error only when
there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

from gateway.access.keys import Keys
from gateway.billing import limit_refusals, pricing, quota
from gateway.billing.pricing import Estimate
from gateway.cache.entries import CachedImage, fresh_images
from gateway.cache.flight_ends import RECHECK_SECONDS, Patience
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.flight_queues import FollowerLimits
from gateway.cache.flight_result import FlightResult
from gateway.cache.flights import Buy, Flights
from gateway.cache.image_cache import ImageCache, LoadedImages, Sign
from gateway.cache.image_hits import ImageHits
from gateway.cache.tags import MAX_ENTRY_TAGS, MAX_KEY_TAGS
from gateway.cache.takedowns import content_taken_down
from gateway.cache.transcoding import Transcoding
from gateway.cache.unstored_images import UnstoredImage, UnstoredImages
from gateway.catalog.lifecycle import utc_date
from gateway.errors import (
    INVALID_REQUEST,
    Charge,
    ErrorCode,
    GatewayError,
    InvalidRequest,
    StoreUnavailable,
    UpstreamFailure,
)
from gateway.images import (
    MAX_SLOTS,
    Image,
    ImageRequest,
    LimitRefusal,
    Outcome,
    Record,
    with_those_beside,
)
from gateway.proxy.context import RequestContext
from gateway.proxy.interpret import ImageQuery, Interpreter
from gateway.proxy.parallel import take_slots
from gateway.proxy.result import Answer
from gateway.purchasing.purchase import PurchaseOrder, Purchases
from gateway.request.headers import MAX_COST, TAGS
from gateway.request.retirement import refuse_retired, refuse_uncached
from gateway.store.batch import Batch
from gateway.store.commands import Entry
from gateway.store.protocol import Store
from gateway.trace_context import NO_TRACE_CONTEXT
from gateway.tracing import Tracer
from gateway.values import show_usd

OUTAGE_STATUSES: Final = frozenset({500, 502, 503, 504})
"""Statuses of an upstream failure for which a stale image is served."""

TAGS_LOST: Final = f"{TAGS} not stored, because the gateway's store is not available"
"""The notice of a request with images."""


class PriceFactor(Protocol):
    """Finds the largest price factor of the accounts that may be asked."""

    def __call__(self, model: str, request: ImageRequest, *, images: int) -> Decimal: ...


class Images:
    """Answers queries with images."""

    def __init__(
        self,
        interpreter: Interpreter,
        cache: ImageCache,
        flights: Flights,
        purchases: Purchases,
        *,
        keys: Keys,
        store: Store,
        unstored: UnstoredImages,
        hits: ImageHits,
        transcoding: Transcoding | None,
        sign: Sign,
        price_factor: PriceFactor,
        tracer: Tracer,
        clock: Callable[[], float],
    ) -> None:
        self._interpreter = interpreter
        self._cache = cache
        self._flights = flights
        self._purchases = purchases
        self._price_factor = price_factor
        self._keys = keys
        self._store = store
        self._unstored = unstored
        self._hits = hits
        self._transcoding = transcoding
        self._sign = sign
        self._tracer = tracer
        self._clock = clock

    async def answer(self, context: RequestContext, query: ImageQuery, entry: Entry) -> Answer:
        """The images of a query whose entry was read. Raises `GatewayError`."""
        if context.key.parallel == "vary" and query.buys:
            query = await take_slots(self._store, context, query)
        found = context.found_in_memory
        cached = dict(usable_images(query, entry) if found is None else found)
        missing = () if found is not None else missing_from(query, cached)
        if not missing and query.request.unchecked is None:
            # Nothing is transcoded or bought, unless bytes are not in memory, and then are lost.
            loaded = self._cache.load_from_memory(cached, query.representation)
            if loaded is not None:
                answer = await self.serve(
                    query, loaded, cached=cached, has_entry=context.is_from_memory
                )
                await self.tag(context, query)
                return answer
        unstored = await self.checked_unstored(query, missing)
        cached |= {slot: found.cached for slot, found in unstored.items()}
        transcoded = await self._transcode(context, query, cached)
        cached |= transcoded
        images = await self.load(query, cached, unstored=unstored) if cached else {}
        detail = "derived" if transcoded.keys() & images.keys() else None
        missing = missing_from(query, images)
        if not missing:
            answer = await self.serve(
                query, images, cached=cached, detail=detail, has_entry=context.is_from_memory
            )
            await self.tag(context, query)
            return answer

        result = await self._get_missing(context, query, images, missing=missing, entry=entry)
        context.note_flights(result)
        images |= await self.load_result(query, result)
        cached |= result.cached
        if stale := self._stale_images(query, entry, result, found=images):
            stood_in = await self.load(query, stale)
            images |= stood_in
            cached |= stale
            detail = "stale-if-error" if stood_in else detail
        if result.bought:
            detail = None  # the answer is no hit any more
        if not images and any(
            self._cache.is_taken_down(image.digest) for image in result.images.values()
        ):
            charge = Charge.UNDELIVERED if result.bought else Charge.FREE
            raise content_taken_down(charge=charge)
        answer = await self.serve(query, images, cached=cached, result=result, detail=detail)
        await self.tag(context, query)
        return answer

    def usable_unstored(self, query: ImageQuery, slots: Iterable[int]) -> dict[int, UnstoredImage]:
        """The images that this worker has not stored yet, if the query's cache policy accepts them.

        They need no store.
        """
        policy = query.cache_policy
        if policy.no_cache or policy.no_store:
            return {}
        is_unchecked = query.request.unchecked is not None
        found = self._unstored.find(
            query.fingerprint,
            range(MAX_SLOTS) if is_unchecked else slots,
            max_age_seconds=policy.max_age_seconds,
        )
        if not is_unchecked:
            return found
        images = {slot: unstored.cached.image for slot, unstored in found.items()}
        return {slot: found[slot] for slot in with_those_beside(images, set(slots))}

    async def checked_unstored(
        self, query: ImageQuery, slots: Iterable[int]
    ) -> dict[int, UnstoredImage]:
        """The same while the store is there. Raises the refusal of a prompt that was taken down."""
        if found := self.usable_unstored(query, slots):
            await self._flights.check_takedown(query.fingerprint)
        return found

    async def load(
        self,
        query: ImageQuery,
        cached: Mapping[int, CachedImage],
        *,
        unstored: Mapping[int, UnstoredImage] | None = None,
    ) -> dict[int, tuple[Image, bytes]]:
        """Cached images with their bytes, without those whose bytes are lost."""
        images = {slot: found.image for slot, found in cached.items()}
        data = {found.cached.image.digest: found.data for found in (unstored or {}).values()}
        return await self._cache.load(query.fingerprint, images, query.representation, data=data)

    async def load_result(
        self, query: ImageQuery, result: FlightResult
    ) -> dict[int, tuple[Image, bytes]]:
        """The images that a flight brought, with their bytes."""
        patience: Patience | None = None
        try:
            while True:
                try:
                    return await self._cache.load(
                        query.fingerprint, result.images, query.representation, data=result.data
                    )
                except StoreUnavailable:
                    patience = patience or Patience()
                    # The images of others are there, only not now.
                    if not (result.followed and patience.is_left()):
                        raise
                await asyncio.sleep(RECHECK_SECONDS)
        finally:
            # `no-store` leaves no image in memory either, also if loading has failed.
            if query.cache_policy.no_store:
                self._cache.forget(result.data)

    async def serve(
        self,
        query: ImageQuery,
        images: LoadedImages,
        *,
        cached: Mapping[int, CachedImage],
        result: FlightResult | None = None,
        detail: str | None = None,
        has_entry: bool = False,
    ) -> Answer:
        """The answer with these images. Raises the flight's error if there are none.

        `has_entry`: the entry in this worker's memory has them.
        """
        if not images:
            # A copy, because all requests of a flight have the same error.
            error = None if result is None else result.own_error or result.flight_error
            raise (error or _no_image()).copy()
        if query.request.stream:
            # A stream ends with one image, also if others came beside it.
            slot = next((slot for slot in query.request.slots if slot in images), min(images))
            images = {slot: images[slot]}
        if query.request.response_format == "url":
            images = await self._cache.link(
                query.fingerprint, images, self._sign, has_entry=has_entry
            )
        bought = frozenset[int]() if result is None else result.bought
        free = [image for slot, (image, _) in images.items() if slot not in bought]
        self._hits.note([image.id for image in free])
        ttls = [cached[slot].ttl_seconds for slot in images if slot in cached]
        return Answer(
            query.request,
            outcome="hit" if result is None else _outcome(result, count=len(images)),
            images=tuple([images[slot] for slot in sorted(images)]),
            fingerprint=None if query.cache_policy.no_store else query.fingerprint,
            ttl_seconds=min(ttls, default=0),
            saved_micros=sum([image.cost_micros for image in free]),
            bought=frozenset([images[slot][0].id for slot in bought if slot in images]),
            detail=detail,
        )

    def order(
        self,
        context: RequestContext,
        query: ImageQuery,
        record: Record,
        *,
        images: int,
        cached: LoadedImages = MappingProxyType({}),
    ) -> PurchaseOrder:
        """The order for `images` images, of a request that has some already.

        Raises `InvalidRequest` above the client's max cost, and for a model that was shut down
        since the request arrived.
        """
        retired = context.policy.catalog.retirement(query.model, utc_date(self._clock()))
        if retired not in (None, "forward"):
            is_refused = retired == "refuse"
            raise (refuse_retired if is_refused else refuse_uncached)(query.model)
        if query.headers.max_cost_micros is not None:  # the purchase makes an estimate of its own
            _check_max_cost(context, query, self.estimate(query, images))
        request = query.request
        span = self._tracer.purchase(context.trace, request, record, images=images)
        trace = span.inside(context.trace)
        if trace is not NO_TRACE_CONTEXT:
            request = replace(request, trace=trace)
        return PurchaseOrder(
            request,
            query.model,
            context.principal,
            record=record,
            clock=self._clock,
            started_at=context.time,
            summary=context.purchase,
            tags=query.headers.tags,
            idempotent=context.idempotent,
            cached={slot: image for slot, (image, _) in cached.items()},
            span=span,
        )

    async def tag(self, context: RequestContext, query: ImageQuery) -> None:
        """Files the entry under the tags of a request that is about to be answered with its images.

        A purchase has done so already, for a client that leaves; here the request learns of it.
        """
        tags = query.headers.tags
        if not tags or query.cache_policy.no_store:
            return
        try:
            stored = await self._cache.tag(context.principal.key_id, query.fingerprint, tags)
        except StoreUnavailable:
            context.note(TAGS_LOST)
            return
        if refused := [tag for tag in tags if tag not in stored]:
            context.note(
                f"{TAGS} not stored, because this key has {MAX_ENTRY_TAGS} tags for this image or "
                f"{MAX_KEY_TAGS} in all: {', '.join(refused)}"
            )

    def estimate(self, query: ImageQuery, images: int) -> Estimate:
        """The most that a purchase of so many images costs, whichever account takes it."""
        factor = self._price_factor(query.model.id, query.request, images=images)
        return pricing.estimate(query.model, query.request, images, factor)

    # ── images that need not be bought ──────────────────────────────────────────────────────

    async def _transcode(
        self, context: RequestContext, query: ImageQuery, cached: Mapping[int, CachedImage]
    ) -> Mapping[int, CachedImage]:
        if self._transcoding is None or query.cache_policy.requires_fresh:
            return {}
        missing = missing_from(query, cached)
        if not missing:
            return {}
        target = self._interpreter.transcoding_target(context.key, query)
        if target is None:
            return {}
        key_id = context.principal.key_id
        return await self._transcoding.fill(
            target,
            missing,
            key_id=key_id,
            admit=partial(self._count_image, context),
            with_expired=not query.buys,
        )

    async def _count_image(self, context: RequestContext) -> None:
        """Counts an image that is transcoded. Raises `LimitExceeded`."""
        principal = context.principal
        batch = Batch(self._store)
        if (admission := quota.admit_image(batch, principal)) is None:
            return
        await batch.execute()
        # If the key has changed meanwhile, nothing was counted. Its next request is.
        if admission.value.denied is not None:
            raise limit_refusals.refuse_image(principal, admission.value)
        context.note_shadowed(quota.shadowed_by_image(principal, admission.value))

    def _stale_images(
        self, query: ImageQuery, entry: Entry, result: FlightResult, *, found: LoadedImages
    ) -> dict[int, CachedImage]:
        """Expired images for the slots that an outage of upstream left empty."""
        failure = result.own_error or result.flight_error
        if query.cache_policy.requires_fresh or not _is_outage(failure):
            return {}
        missing = missing_from(query, found)
        return self._cache.stale_images(entry, missing)

    # ── images that are bought, here or by another request ──────────────────────────────────

    async def _get_missing(
        self,
        context: RequestContext,
        query: ImageQuery,
        images: LoadedImages,
        *,
        missing: tuple[int, ...],
        entry: Entry,
    ) -> FlightResult:
        policy = query.cache_policy
        if not query.buys:
            if images:
                return FlightResult(missing=set())
            raise refuse_uncached(query.model)
        if policy.only_if_cached:
            raise _not_cached()
        ignored = _ignored_images(query, entry, missing)
        context.is_reload = policy.no_cache or bool(ignored)
        buy = self._purchase_function(context, query, images)
        subscriber = context.subscribe(query.request)
        if policy.no_cache or policy.no_store:
            # `run` reads the refusal together with the lease. Without a lease it has to be read
            # here.
            await self._flights.check_refusal(query.fingerprint)
            return await self._flights.run_unshared(
                query.fingerprint,
                missing,
                buy=buy,
                subscriber=subscriber,
                is_connected=context.is_connected,
            )
        return await self._flights.run(
            query.fingerprint,
            missing,
            buy=buy,
            check_again=partial(self._check_key, context, query),
            limits=_limits_of(context, query, partial(self.estimate, query)),
            subscriber=subscriber,
            ignoring=ignored,
            max_age_seconds=policy.max_age_seconds,
            is_connected=context.is_connected,
        )

    async def _check_key(self, context: RequestContext, query: ImageQuery) -> None:
        """Goes on with the key as it is now. Raises `GatewayError` if it may not buy any more.

        A request may wait for as long as upstream takes, and its key be revoked meanwhile.
        """
        batch = Batch(self._store)
        comparison = quota.compare(batch, context.principal)
        try:
            await batch.execute()
        except StoreUnavailable:
            return  # the reservation needs the store too
        if (changed := comparison.value.changed) is None:
            return
        await self._keys.update(context.credential, context.principal, changed)
        context.use_key(await self._keys.authenticate(context.credential))
        await self._interpreter.interpret(context, query.body)  # the key may have other models

    def _purchase_function(
        self, context: RequestContext, query: ImageQuery, images: LoadedImages
    ) -> Buy:
        """Buys the slots of a flight for this request, which has `images` already."""

        async def buy(flight: Flight) -> PurchasedImages:
            record = purchase_record(context, query, flight, images)
            order = self.order(context, query, record, images=len(flight.slots), cached=images)
            if query.cache_policy.no_store:
                return await self._purchases.buy_unstored(order, flight)
            return await self._purchases.buy(order, flight)

        return buy


def _limits_of(
    context: RequestContext, query: ImageQuery, estimate_of: Callable[[int], Estimate]
) -> FollowerLimits:
    """Refuses this request when another one was refused by the same limit, with its own amounts."""

    def refuse(refusal: LimitRefusal, images: int) -> GatewayError | None:
        estimate = estimate_of(images)
        try:
            _check_max_cost(context, query, estimate)
        except InvalidRequest as too_expensive:
            return too_expensive
        return limit_refusals.refuse_alike(
            context.principal, refusal, estimate.amounts, why=estimate.reason
        )

    principal = context.principal
    return FollowerLimits(principal.key_id, quota.subject_names(principal), refuse)


def purchase_record(
    context: RequestContext, query: ImageQuery, flight: Flight, images: LoadedImages
) -> Record:
    """The record of a purchase for a request, which has `images` already."""
    is_first = not context.purchase.has_begun  # a second purchase saves nothing more
    return context.record.but(
        outcome="bought" if len(flight.slots) == query.request.n else "partial",
        saved_micros=sum(image.cost_micros for image, _ in images.values()) if is_first else 0,
        images_served=(len(images) or None) if is_first else None,
        flags=(*context.record.flags, *pricing.price_flags(query.model)),
        price_date=context.policy.catalog.prices_as_of.isoformat(),
    )


def usable_images(query: ImageQuery, entry: Entry) -> dict[int, CachedImage]:
    """The images of the entry that the query's cache policy accepts."""
    policy = query.cache_policy
    if policy.no_cache or policy.no_store:
        return {}
    # Images of a model that was shut down and is served from the cache do not expire.
    with_expired = not query.buys
    cached = fresh_images(entry, query.request.slots, with_expired=with_expired)
    if query.request.unchecked is not None and len(entry.slots) > len(cached):
        found = fresh_images(entry, range(MAX_SLOTS), with_expired=with_expired)
        images = {slot: other.image for slot, other in found.items()}
        cached = {slot: found[slot] for slot in with_those_beside(images, cached.keys())}
    if policy.max_age_seconds is None:
        return cached
    oldest = entry.now - policy.max_age_seconds
    return {slot: found for slot, found in cached.items() if found.image.created_at >= oldest}


def missing_from(query: ImageQuery, found: Container[int]) -> tuple[int, ...]:
    """The requested slots that are not in `found`."""
    return tuple([slot for slot in query.request.slots if slot not in found])


def _ignored_images(query: ImageQuery, entry: Entry, missing: Iterable[int]) -> tuple[str, ...]:
    """The ids of fresh images that are too old for a `max-age`."""
    if query.cache_policy.max_age_seconds is None:
        return ()
    return tuple(found.image.id for found in fresh_images(entry, missing).values())


def _outcome(result: FlightResult, *, count: int) -> Outcome:
    if result.bought:
        return "bought" if len(result.bought) == count else "partial"
    return "collapsed" if result.followed else "hit"


def _is_outage(error: GatewayError | None) -> bool:
    """Whether upstream failed rather than refused. A refused gateway key is no outage."""
    if error is not None and error.code == ErrorCode.UPSTREAM_UNAVAILABLE:
        return True  # also if no account may be asked at all
    if not isinstance(error, UpstreamFailure) or error.code == ErrorCode.UPSTREAM_AUTH:
        return False
    return error.status in OUTAGE_STATUSES


def _check_max_cost(context: RequestContext, query: ImageQuery, estimate: Estimate) -> None:
    """Holds all purchases of a request below `X-Gateway-Max-Cost-USD`."""
    max_micros = query.headers.max_cost_micros
    if max_micros is None:
        return
    cost_micros = context.purchase.cost_micros + estimate.amounts.usd_micros
    if cost_micros > max_micros:
        because = f" ({estimate.reason})" if estimate.reason else ""
        raise InvalidRequest(
            f"This request may cost up to ${show_usd(cost_micros)}{because}, "
            f"more than the ${show_usd(max_micros)} of {MAX_COST}. Nothing was bought.",
            param=MAX_COST,
            code=ErrorCode.MAX_COST_EXCEEDED,
        )


def _not_cached() -> GatewayError:
    return GatewayError(
        "Not every requested image is in the cache, and 'Cache-Control: only-if-cached' forbids "
        "buying one.",
        type=INVALID_REQUEST,
        code=ErrorCode.ONLY_IF_CACHED,
        headers={"x-should-retry": "false"},
    )


def _no_image() -> GatewayError:
    return GatewayError(
        "This request brought no image.", code=ErrorCode.UPSTREAM_ERROR, source="upstream"
    )
