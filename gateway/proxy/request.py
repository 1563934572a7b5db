"""One request: interpret → admit → look up → hit, follow or buy → answer.

The first file to read: it has the order of the steps. Next to it, `interpret` reads the request,
`memory` finds hits that need no store, `images` decides between hit, following and buying, and
`store_outage` answers while the store is unavailable. The work is in the packages below: `request/`
validates, `access/` knows the keys, `billing/` counts, `cache/` stores, and `purchasing/` buys.
HTTP is `api/`, which passes a `RequestContext` in and renders the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from gateway.access.keys import Keys
from gateway.billing import limit_refusals, quota
from gateway.billing.counted_limits import LimitState
from gateway.cache.image_cache import ImageCache
from gateway.cache.unstored_images import UnstoredImage
from gateway.errors import (
    GatewayError,
    IncorrectKey,
    InternalError,
    StoreUnavailable,
    UpstreamFailure,
)
from gateway.images import Principal
from gateway.proxy.context import RequestContext
from gateway.proxy.idempotency import IdempotentImages
from gateway.proxy.images import Images, missing_from, usable_images
from gateway.proxy.interpret import ImageQuery, Interpreter
from gateway.proxy.memory import Found, Memory
from gateway.proxy.parallel import peek_slots
from gateway.proxy.recording import Recorder
from gateway.proxy.result import Answer, DryRun
from gateway.proxy.store_outage import StoreOutage
from gateway.request.retirement import refuse_uncached
from gateway.store.batch import Batch
from gateway.store.commands import Admission, Entry
from gateway.store.protocol import Store

ADMISSION_ATTEMPTS: Final = 20
"""How often a request tries to be admitted while its key or any limits keep changing.

A change of another team counts too, so a script that sets up many would otherwise fail requests.
"""

MAX_BODY_BEFORE_ADMISSION: Final = 64 * 1024
"""Bytes of a body that is parsed before its request is admitted."""


class Proxy:
    """Answers image requests."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        interpreter: Interpreter,
        cache: ImageCache,
        images: Images,
        *,
        memory: Memory,
        idempotent_images: IdempotentImages,
        store_outage: StoreOutage,
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._keys = keys
        self._interpreter = interpreter
        self._cache = cache
        self._images = images
        self._memory = memory
        self._idempotent_images = idempotent_images
        self._store_outage = store_outage
        self._recorder = recorder

    async def generate(self, context: RequestContext) -> Answer | DryRun:
        """Answers one request. Raises `GatewayError`.

        A purchase writes its own ledger record. Every other answer and error is recorded here,
        except for dry runs and incorrect keys.
        """
        try:
            result = await self._answer(context)
        except IncorrectKey:
            # The key was revoked or has expired meanwhile. Like any other request with an incorrect
            # key, this one leaves no record.
            raise
        except GatewayError as error:
            self._recorder.failed(context, error)
            raise
        except Exception:
            self._recorder.failed(context, InternalError())
            raise
        finally:
            if context.subscriber is not None:
                context.subscriber.close()
        if isinstance(result, Answer):
            self._recorder.answered(context, result)
        return result

    async def _answer(self, context: RequestContext) -> Answer | DryRun:
        body = await self._read_body(context)
        query = await self._interpret(context, body)
        try:
            query, entry = await self._admit_and_look_up(context, query)
            if query.headers.dry_run:
                return await self._dry_run(context, query, entry)
            self._interpreter.remember(context)
            if query.headers.idempotency_key is None:
                answer = await self._images.answer(context, query, entry)
                if answer.outcome == "hit":
                    self._memory.learn(context, query)
                return answer
            return await self._idempotent_images.answer(context, query, entry)
        except StoreUnavailable:
            # The admission may have replaced the key before the store failed. The query for that
            # key is lost with the exception.
            query = await self._interpreter.interpret(context, query.body)
            if not self._store_outage.may_answer(context, query):
                raise
            return await self._store_outage.answer(context, query)

    # ── admission ───────────────────────────────────────────────────────────────────────────

    async def _read_body(self, context: RequestContext) -> bytes:
        """The body. A large one is admitted before it is parsed, a refused one too."""
        try:
            body = await context.read_body()
        except GatewayError:
            await self._admit_refused(context)
            raise
        if len(body) > MAX_BODY_BEFORE_ADMISSION:
            # Parsing takes longer than the additional round trip, and a key over its rate must not
            # make this worker parse. While the store is unavailable, `_answer` decides.
            with suppress(StoreUnavailable):
                await self._admit(context)
        return body

    async def _interpret(self, context: RequestContext, body: bytes) -> ImageQuery:
        """Interprets the request. An invalid one is admitted too, and its error raised."""
        try:
            return await self._interpreter.interpret(context, body)
        except StoreUnavailable:
            raise
        except GatewayError:
            # This worker's copy of the key may have been outdated.
            if not await self._admit_refused(context):
                raise
        return await self._interpreter.interpret(context, body)

    async def _admit_refused(self, context: RequestContext) -> bool:
        """Counts a request that is refused; returns whether its key or its limits have changed.

        Raises `LimitExceeded`. While the store is unavailable, nothing is counted.
        """
        expected = context.principal.expected
        if not context.is_admitted:
            with suppress(StoreUnavailable):
                await self._admit(context)
        return context.principal.expected != expected

    async def _admit(self, context: RequestContext) -> None:
        """Counts a request in a round trip of its own. Raises `LimitExceeded`."""
        for _ in range(ADMISSION_ATTEMPTS):
            batch = Batch(self._store)
            admission = quota.admit(batch, context.principal, peeks=True)
            await batch.execute()
            if await self._use_admission(context, admission.value):
                return
        raise self._changed_too_often(context)

    async def _use_admission(self, context: RequestContext, admission: Admission) -> bool:
        """Whether the request is admitted. False: its key or its limits were changed, and the new
        ones are used from now on.

        Raises `LimitExceeded`.
        """
        if admission.changed is not None:
            await self._keys.update(context.credential, context.principal, admission.changed)
            context.use_key(await self._keys.authenticate(context.credential))
            return False
        self._keys.mark_confirmed(context.key)
        context.record = context.record.but(time=admission.now)
        context.limits = quota.admission_states(context.principal, admission)
        self._memory.note_limits(context)
        if admission.denied is not None:
            raise limit_refusals.refuse_admission(context.principal, admission)
        context.note_shadowed(quota.shadowed_by_admission(context.principal, admission))
        context.is_admitted = True
        return True

    async def _admit_and_look_up(
        self, context: RequestContext, query: ImageQuery
    ) -> tuple[ImageQuery, Entry]:
        """Counts the request and reads its entry, in one round trip.

        A hit that has nothing to count, and whose key and entry this worker has kept, needs none.
        One that is counted only needs the admission if the entry is kept.

        The admission also compares the records that the key and its limits were read from with the
        store's. If one was changed, the
        request is interpreted again with the new key, and the returned query may differ from the
        given one. Raises `LimitExceeded`.
        """
        for _ in range(ADMISSION_ATTEMPTS):
            if (found := self._memory.look_up(context, query)) is not None:
                self._use_memory(context, found)
                return query, found.entry
            batch = Batch(self._store)
            admission = None
            if not context.is_admitted:
                admission = quota.admit(batch, context.principal, peeks=query.headers.dry_run)
            look_up = None
            if admission is None or self._memory.look_up_entry(context, query) is None:
                look_up = self._cache.look_up(batch, query.fingerprint)
            await batch.execute()
            if admission is None or await self._use_admission(context, admission.value):
                context.was_looked_up = True
                if look_up is not None:
                    return query, await self._cache.looked_up(look_up)
                # Again, because it may have changed meanwhile.
                if (found := self._memory.look_up_entry(context, query)) is not None:
                    context.found_in_memory = found.cached
                    return query, found.entry
                return query, await self._cache.entry(query.fingerprint)
            query = await self._interpret(context, query.body)
        raise self._changed_too_often(context)

    def _use_memory(self, context: RequestContext, found: Found) -> None:
        """Admits a request by what this worker has kept."""
        self._keys.mark_confirmed(context.key)
        context.record = context.record.but(time=found.entry.now)
        context.found_in_memory = found.cached
        self._memory.use_known_limits(context)
        context.is_admitted = context.was_looked_up = context.needed_no_store = True

    def _changed_too_often(self, context: RequestContext) -> GatewayError:
        return GatewayError(
            f"Key '{context.principal.key_name}', a team or a limit was changed "
            f"{ADMISSION_ATTEMPTS} times while this request was admitted. Try again.",
            status=503,
        )

    async def _dry_run(self, context: RequestContext, query: ImageQuery, entry: Entry) -> DryRun:
        """Predicts a hit or a purchase from cached images alone. It counts as one request."""
        if context.key.parallel == "vary" and query.buys:
            query = await peek_slots(self._store, context, query)
        # Loads the bytes too, because an image whose bytes are lost would be bought.
        cached = usable_images(query, entry)
        unstored: Mapping[int, UnstoredImage] = {}
        with suppress(UpstreamFailure):  # the prompt was taken down
            unstored = await self._images.checked_unstored(query, missing_from(query, cached))
        cached |= {slot: found.cached for slot, found in unstored.items()}
        images = await self._images.load(query, cached, unstored=unstored)
        if not query.buys and not images:
            raise refuse_uncached(query.model)
        missing = len(missing_from(query, images)) if query.buys else 0
        estimate = self._images.estimate(query, missing) if missing else None
        remaining_budgets = [
            state.remaining
            for state in context.limits
            if state.limit.unit == "usd_micros" and state.is_enforced
        ]
        return DryRun(
            is_hit=not missing,
            estimate_micros=estimate.amounts.usd_micros if estimate else 0,
            remaining_micros=min(remaining_budgets, default=None),
        )

    async def read_limits(self, principal: Principal) -> list[LimitState]:
        """The limits of a request as they are now; an empty list while the store is unavailable."""
        if not principal.has_limits:
            return []
        batch = Batch(self._store)
        states = quota.peek(batch, principal)
        with suppress(StoreUnavailable):
            await batch.execute()
            return quota.peeked_states(principal, states.value)
        return []
