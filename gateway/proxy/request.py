"""One request: interpret → admit → look up → hit, follow or buy → answer.

The first file to read. Here is the order of the steps; each step is in a package. `request/`
validates, `access/` knows the keys, `billing/` counts, `cache/` stores, and `purchasing/` buys.
HTTP is `api/`, which hands in a `RequestContext` and renders the result.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from gateway.access.keys import Keys
from gateway.billing import pricing, quota
from gateway.billing.quota import LimitState
from gateway.cache.image_cache import ImageCache
from gateway.errors import GatewayError, IncorrectKey, InvalidRequest, StoreUnavailable
from gateway.images import LimitSubject
from gateway.proxy.context import RequestContext
from gateway.proxy.idempotency import IdempotentImages
from gateway.proxy.images import Images, usable_images
from gateway.proxy.interpret import ImageQuery, Interpreter
from gateway.proxy.recording import Recorder
from gateway.proxy.result import Answer, DryRun
from gateway.proxy.store_outage import StoreOutage
from gateway.store.batch import Batch
from gateway.store.commands import Entry
from gateway.store.protocol import Store

ADMISSION_ATTEMPTS: Final = 3
"""How often a request starts over because its key was changed meanwhile."""


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
        idempotent_images: IdempotentImages,
        store_outage: StoreOutage,
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._keys = keys
        self._interpreter = interpreter
        self._cache = cache
        self._images = images
        self._idempotent_images = idempotent_images
        self._store_outage = store_outage
        self._recorder = recorder

    async def generate(self, context: RequestContext) -> Answer | DryRun:
        """Answers one request and leaves one ledger record. Raises `GatewayError`."""
        try:
            result = await self._answer(context)
        except IncorrectKey:
            raise
        except GatewayError as error:
            self._recorder.failed(context, error)
            # A request that has waited for the store once does not wait for it again.
            if not isinstance(error, StoreUnavailable):
                context.limits = context.limits or await self.limits_of(context.subject)
            raise
        except Exception:
            self._recorder.failed(context, GatewayError("The gateway had an error."))
            raise
        finally:
            if context.subscriber is not None:
                context.subscriber.close()
        if isinstance(result, Answer):
            self._recorder.answered(context, result)
        return result

    async def _answer(self, context: RequestContext) -> Answer | DryRun:
        query = await self._interpret(context, await context.read_body())
        try:
            query, entry = await self._admit_and_look_up(context, query)
            if query.headers.dry_run:
                return await self._dry_run(context, query, entry)
            if query.headers.idempotency_key is None:
                return await self._images.answer(context, query, entry)
            return await self._idempotent_images.answer(context, query, entry)
        except StoreUnavailable:
            # The key may have been changed since the first interpretation.
            query = await self._interpreter.interpret(context, query.body)
            if not self._store_outage.may_answer(context, query):
                raise
            return await self._store_outage.answer(context, query)

    async def _interpret(self, context: RequestContext, body: bytes) -> ImageQuery:
        """Interprets the body. Raises `InvalidRequest`."""
        try:
            return await self._interpreter.interpret(context, body)
        except InvalidRequest:
            # This worker's key record may be outdated. Another record may allow the request.
            known_record = context.subject.record
            context.use_key(await self._keys.confirm(context.secret))
            if context.subject.record == known_record:
                raise
            return await self._interpreter.interpret(context, body)

    async def _admit_and_look_up(
        self, context: RequestContext, query: ImageQuery
    ) -> tuple[ImageQuery, Entry]:
        """Counts the request and reads its entry, in one round trip.

        The admission also compares the key's record with the store's. If the key was changed
        meanwhile, the request starts over, and its query may be another one.
        """
        for _ in range(ADMISSION_ATTEMPTS):
            batch = Batch(self._store)
            admission = quota.admit(batch, context.subject, peeks=query.headers.dry_run)
            entry = self._cache.look_up(batch, query.fingerprint)
            self._cache.tag(batch, query.fingerprint, query.headers.tags)
            await batch.execute()
            if admission.value.record is not None:
                self._keys.update(context.secret, admission.value.record)
                context.use_key(await self._keys.authenticate(context.secret))
                query = await self._interpreter.interpret(context, query.body)
                continue
            self._keys.mark_confirmed(context.key)
            context.limits = quota.admission_states(context.subject, admission.value)
            if admission.value.denied is not None:
                raise quota.refuse_admission(context.subject, admission.value)
            context.was_looked_up = True
            return query, entry.value
        raise GatewayError("The key is being changed; try again.", status=503)

    async def _dry_run(self, context: RequestContext, query: ImageQuery, entry: Entry) -> DryRun:
        """Predicts the answer; only the admission is counted."""
        images = await self._images.load(query, usable_images(query, entry))
        missing = query.request.n - len(images)
        estimate = pricing.estimate(query.model, query.request, missing) if missing else None
        budgets = [s.remaining for s in context.limits if s.limit.unit == "usd_micros"]
        return DryRun(
            is_hit=not missing,
            estimate_micros=estimate.amounts.usd_micros if estimate else 0,
            remaining_micros=min(budgets, default=None),
        )

    async def limits_of(self, subject: LimitSubject) -> list[LimitState]:
        """The key's limits as they are now; none while the store is unavailable."""
        if not subject.limits:
            return []
        batch = Batch(self._store)
        states = quota.peek(batch, subject)
        with suppress(StoreUnavailable):
            await batch.execute()
            return quota.peeked_states(subject, states.value)
        return []
