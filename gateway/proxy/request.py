"""The story of one request: understand → admit → look up → hit, or wait, or buy → answer.

It owns the order of the steps and nothing else. Each step is a room's: what is valid is
`request/`, who may ask is `access/`, what is counted is `billing/`, what is kept and who buys is
`cache/`. One purchase is told in `purchase.py`. HTTP is `api/`, which hands in a `Call` and
renders the `Answer`. The first file to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from gateway.access.keys import Key, Keys
from gateway.access.signing import Signing
from gateway.billing import pricing, quota
from gateway.billing.ledger import Ledger, Outcome, Record
from gateway.billing.quota import LimitState
from gateway.cache.blobs import Blobs
from gateway.cache.entries import Entries, Held, fresh_pictures, read_slot
from gateway.cache.flights import Bought, Buy, Flight, Flights, Landing
from gateway.cache.idempotency_keys import Asked, Remembered, Replays, asked_by
from gateway.cache.image_index import Gallery, picture_path
from gateway.cache.partial_images import Viewer
from gateway.cache.takedowns import content_taken_down
from gateway.cache.transcoding import Derivation
from gateway.errors import (
    INVALID_REQUEST,
    Charge,
    GatewayError,
    IncorrectKey,
    InvalidRequest,
    LimitExceeded,
    StoreUnavailable,
    UpstreamFailure,
)
from gateway.images import Account, ImageRequest, Picture
from gateway.metrics import Metrics
from gateway.proxy.interpret import Call, Question, Questions
from gateway.purchasing.purchase import Order, Purchases
from gateway.request.headers import IDEMPOTENCY_KEY, MAX_COST, asks_for_dry_run
from gateway.store.batch import Batch
from gateway.store.commands import Entry
from gateway.store.protocol import Store

UPSTREAM_AUTH: Final = "upstream_auth"
OUTAGES: Final = frozenset({500, 502, 503, 504})
"""Statuses of upstream's for which an older picture stands in."""

STALE_KEY_ATTEMPTS: Final = 3
"""How often a request starts over because its key was changed meanwhile."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with, before it is rendered."""

    request: ImageRequest
    outcome: Outcome
    pictures: tuple[tuple[Picture, bytes], ...] = ()
    """In slot order, each as base64, or as the path of its signed link where that was asked for."""
    fingerprint: str | None = None
    """None when the cache was bypassed."""
    ttl_seconds: int = 0
    """Of a hit: until its first picture expires."""
    saved_micros: int = 0
    detail: str | None = None
    """Of a hit: `derived` from another format, or `stale-if-error`."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would come of a request (`Prefer: dry-run`)."""

    is_hit: bool
    """Nothing would be bought."""
    estimate_micros: int
    """The most that would be charged."""
    remaining_micros: int | None
    """What is left in the tightest budget; None without one."""


class Service:
    """Answers image requests."""

    def __init__(
        self,
        store: Store,
        *,
        questions: Questions,
        keys: Keys,
        entries: Entries,
        gallery: Gallery,
        blobs: Blobs,
        flights: Flights,
        purchases: Purchases,
        replays: Replays,
        signing: Signing,
        derivation: Derivation | None,
        ledger: Ledger,
        metrics: Metrics,
        serves_limits_unchecked: bool,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._questions = questions
        self._keys = keys
        self._entries = entries
        self._gallery = gallery
        self._blobs = blobs
        self._flights = flights
        self._purchases = purchases
        self._replays = replays
        self._signing = signing
        self._derivation = derivation
        self._ledger = ledger
        self._metrics = metrics
        self._serves_limits_unchecked = serves_limits_unchecked
        self._clock = clock

    async def generate(self, call: Call) -> Answer | DryRun:
        """Answers one call and leaves one ledger record. Raises `GatewayError`."""
        try:
            answer = await self._answer(call)
        except IncorrectKey:
            raise
        except GatewayError as error:
            self._note_error(call, error)
            if not isinstance(error, StoreUnavailable):  # who waited for it once need not again
                call.limits = call.limits or await self.limits_of(call.account)
            raise
        except Exception:
            self._note_error(call, GatewayError("The gateway had an error."))
            raise
        finally:
            if call.viewer is not None:
                call.viewer.close()
        if isinstance(answer, Answer):
            self._note_answer(call, answer)
        return answer

    async def limits_of(self, account: Account) -> list[LimitState]:
        """The key's limits as they show now; none while the store is away."""
        if not account.limits:
            return []
        batch = Batch(self._store)
        states = quota.look(batch, account)
        with suppress(StoreUnavailable):
            await batch.send()
            return quota.looked_states(account, states.answer)
        return []

    async def _answer(self, call: Call) -> Answer | DryRun:
        question = await self._understand_or_confirm(call, await call.read())
        try:
            question, entry = await self._admit_and_look_up(call, question)
            if question.directives.dry_run:
                return await self._estimate(call, question, entry)
            if question.directives.idempotency_key is None:
                return await self._answer_from(call, question, entry)
            return await self._answer_once(call, question, entry)
        except StoreUnavailable:
            question = await self._questions.understand(call, question.body)  # by the key as known
            if not self._may_do_without_store(call, question):
                raise
            return await self._answer_without_store(call, question)

    async def _answer_from(self, call: Call, question: Question, entry: Entry) -> Answer:
        """From what the entry holds and may be used, from what comes, and else from what was."""
        held = self._usable(question, entry)
        derived: Mapping[int, Held] = {}
        if len(held) < question.request.n:
            derived = await self._derive(call.key, question, held)
            held |= derived
        pictures = await self._with_bytes(question, {slot: h.picture for slot, h in held.items()})
        detail = "derived" if derived.keys() & pictures.keys() else None
        if len(pictures) == question.request.n:
            return await self._serve(question, held, pictures, detail=detail)
        landing = await self._get_missing(call, question, pictures, entry=entry)
        call.is_follower = landing.is_follower
        landed = await self._with_bytes(question, landing.pictures, in_memory=landing.data)
        found, held = {**pictures, **landed}, {**held, **landing.held}
        if stale := self._stale(question, entry, landing, found=found):
            stood_in = await self._with_bytes(question, {n: h.picture for n, h in stale.items()})
            found, held = {**found, **stood_in}, {**held, **stale}
            detail = "stale-if-error" if stood_in else detail
        if landing.bought:
            detail = None  # it is a hit no more
        if not found:
            self._check_taken_down(landing)
        return await self._serve(question, held, found, landing=landing, detail=detail)

    def _check_taken_down(self, landing: Landing) -> None:
        """What came may have been taken down the moment before it was to be shown."""
        if any(self._blobs.is_taken_down(p.digest) for p in landing.pictures.values()):
            charge = Charge.UNDELIVERED if landing.bought else Charge.FREE
            raise content_taken_down(charge=charge)

    # ── the steps ───────────────────────────────────────────────────────────────────────────

    async def _understand_or_confirm(self, call: Call, raw: bytes) -> Question:
        """A refusal comes before the admission, so it asks the store what the key may do by now."""
        try:
            return await self._questions.understand(call, raw)
        except InvalidRequest:
            remembered = call.key.account.record
            call.take_key(await self._keys.confirm(call.secret))
            if call.key.account.record == remembered:
                raise
            return await self._questions.understand(call, raw)

    async def _admit_and_look_up(self, call: Call, question: Question) -> tuple[Question, Entry]:
        """One round trip: the key is still what we think, it may ask, and what the entry holds.

        The question is another one when the key was changed meanwhile.
        """
        for _ in range(STALE_KEY_ATTEMPTS):
            batch = Batch(self._store)
            admission = quota.admit(batch, call.account, surveys=question.directives.dry_run)
            entry = self._entries.look_up(batch, question.fingerprint)
            self._entries.tag(batch, question.fingerprint, question.directives.tags)
            await batch.send()
            if admission.answer.record is None:
                self._keys.was_confirmed(call.key)
                call.limits = quota.admission_states(call.account, admission.answer)
                if admission.answer.refused is not None:
                    raise quota.refuse_admission(call.account, admission.answer)
                call.was_looked_up = True
                return question, entry.answer
            question = await self._start_over(call, question, admission.answer.record)
        raise GatewayError("The key is being changed; try again.", status=503)

    async def _start_over(self, call: Call, question: Question, record: bytes) -> Question:
        """The key was changed or revoked: from here on its new record holds."""
        self._keys.learn(call.secret, record)
        call.take_key(await self._keys.authenticate(call.secret))
        return await self._questions.understand(call, question.body)

    def _usable(self, question: Question, entry: Entry) -> dict[int, Held]:
        """The pictures of the entry that may answer this question."""
        reading = question.reading
        if reading.no_cache or reading.no_store:
            return {}
        held = fresh_pictures(entry, question.request.slots)
        if reading.max_age_seconds is None:
            return held
        youngest = entry.now - reading.max_age_seconds
        return {slot: h for slot, h in held.items() if h.picture.created >= youngest}

    async def _derive(
        self, key: Key, question: Question, held: Mapping[int, Held]
    ) -> Mapping[int, Held]:
        """What need not be bought, because it can be made from the same picture in PNG."""
        if self._derivation is None or question.reading.asks_anew:
            return {}
        missing = [slot for slot in question.request.slots if slot not in held]
        wanted = self._questions.derivable(key, question)
        return {} if wanted is None else await self._derivation.fill(wanted, missing)

    async def _get_missing(
        self,
        call: Call,
        question: Question,
        pictures: Mapping[int, tuple[Picture, bytes]],
        *,
        entry: Entry,
    ) -> Landing:
        """Waits for, or buys, what cannot be taken from the entry."""
        missing = tuple(slot for slot in question.request.slots if slot not in pictures)
        reading, place = question.reading, question.fingerprint
        if reading.only_if_cached:
            raise _not_cached()
        ignoring = _passed_over(question, entry, missing)
        call.is_reload = reading.no_cache or bool(ignoring)
        buy = self._buyer(call, question, pictures)
        viewer = _viewer(call, question.request)
        if reading.no_cache or reading.no_store:
            await self._flights.check_refusal(place)
            return await self._flights.run_alone(place, missing, buy=buy, viewer=viewer)
        return await self._flights.run(place, missing, buy=buy, viewer=viewer, ignoring=ignoring)

    def _buyer(
        self, call: Call, question: Question, pictures: Mapping[int, tuple[Picture, bytes]]
    ) -> Buy:
        """Buys the slots of a flight for this call; `pictures` it has already."""
        saved_micros = sum(picture.cost_micros for picture, _ in pictures.values())

        async def buy(flight: Flight) -> Bought:
            _check_cost(call, question, len(flight.slots))
            is_whole = len(flight.slots) == question.request.n
            is_first = not call.tally.is_open  # a second purchase of a request saved nothing more
            record = call.record.but(
                outcome="bought" if is_whole else "partial",
                saved_micros=saved_micros if is_first else 0,
            )
            order = self._order(call, question, record)
            if question.reading.no_store:
                return await self._purchases.buy_unshared(order, flight)
            return await self._purchases.buy(order, flight)

        return buy

    def _stale(
        self,
        question: Question,
        entry: Entry,
        landing: Landing,
        *,
        found: Mapping[int, object],
    ) -> dict[int, Held]:
        """When upstream fails, what it made earlier is better than nothing (CONTRACT §6)."""
        failure = landing.own_error or landing.flight_error
        if question.reading.asks_anew or not _is_outage(failure):
            return {}
        lacking = [slot for slot in question.request.slots if slot not in found]
        return self._entries.stale_pictures(entry, lacking)

    async def _serve(
        self,
        question: Question,
        held: Mapping[int, Held],
        found: Mapping[int, tuple[Picture, bytes]],
        *,
        landing: Landing | None = None,
        detail: str | None = None,
    ) -> Answer:
        """All pictures that there are, in slot order; an error only when there is none."""
        landing = landing or Landing(missing=set())
        if not found:
            raise landing.own_error or landing.flight_error or _nothing_came()
        if question.request.response_format == "url":
            found = await self._as_links(question, found)
        return Answer(
            question.request,
            outcome=_outcome(landing, count=len(found)),
            pictures=tuple(found[slot] for slot in sorted(found)),
            fingerprint=None if question.reading.no_store else question.fingerprint,
            ttl_seconds=min((held[slot].ttl_seconds for slot in found if slot in held), default=0),
            saved_micros=sum(
                picture.cost_micros
                for slot, (picture, _) in found.items()
                if slot not in landing.bought
            ),
            detail=detail,
        )

    async def _as_links(
        self, question: Question, pictures: Mapping[int, tuple[Picture, bytes]]
    ) -> dict[int, tuple[Picture, bytes]]:
        """A signed link in the place of each picture's bytes, which all workers can follow.

        Bytes may lie in this worker's memory alone, evicted from the store a moment ago.
        """
        batch = Batch(self._store)
        of_slot = {slot: picture for slot, (picture, _) in pictures.items()}
        self._gallery.hang(batch, question.fingerprint, of_slot)
        stored = self._blobs.look_for(batch, (picture.digest for picture in of_slot.values()))
        await batch.send()
        for (picture, data), is_stored in zip(pictures.values(), stored.answer, strict=True):
            if not is_stored:
                await self._blobs.put_back(picture, data)
        links = {slot: await self._signing.sign(picture_path(p)) for slot, p in of_slot.items()}
        return {slot: (picture, links[slot].encode()) for slot, picture in of_slot.items()}

    async def _with_bytes(
        self,
        question: Question,
        pictures: Mapping[int, Picture],
        *,
        in_memory: Mapping[str, bytes] | None = None,
    ) -> dict[int, tuple[Picture, bytes]]:
        """Each picture with its bytes; slots whose bytes are gone or damaged are emptied."""
        memory = in_memory or {}

        async def read(picture: Picture) -> bytes | None:
            digest = picture.digest
            return await self._blobs.view(digest, question.view, data=memory.get(digest))

        reads = [read(picture) for picture in pictures.values()]
        data = await asyncio.gather(*reads) if len(reads) > 1 else [await one for one in reads]
        if question.reading.no_store:
            self._blobs.forget(memory)
        found = {
            slot: (picture, read_bytes)
            for (slot, picture), read_bytes in zip(pictures.items(), data, strict=True)
            if read_bytes is not None
        }
        if lost := {slot: p for slot, p in pictures.items() if slot not in found}:
            batch = Batch(self._store)
            self._entries.empty(batch, question.fingerprint, {n: p.id for n, p in lost.items()})
            await batch.send()
        return found

    # ── other ways through the story ────────────────────────────────────────────────────────

    async def _estimate(self, call: Call, question: Question, entry: Entry) -> DryRun:
        """Nothing is bought, and nothing but the admission is counted."""
        held = self._usable(question, entry)
        found = await self._with_bytes(question, {slot: h.picture for slot, h in held.items()})
        missing = question.request.n - len(found)
        most = pricing.estimate(question.model, question.request, missing) if missing else None
        budgets = [s.remaining for s in call.limits if s.limit.unit == "micros"]
        return DryRun(
            is_hit=not missing,
            estimate_micros=most.amounts.micros if most else 0,
            remaining_micros=min(budgets, default=None),
        )

    async def _answer_once(self, call: Call, question: Question, entry: Entry) -> Answer:
        """Answers a question with an `Idempotency-Key`: as before, if it was asked before.

        In a task of its own: also an answer that nobody waits for any more is remembered.
        """
        request = question.request
        asked = asked_by(
            call.account.key_id,
            question.directives.idempotency_key or "",
            question=(question.fingerprint, request.n, request.stream, request.response_format),
        )
        _viewer(call, request)  # it may wait for another's answer as long as for a purchase
        while (remembered := await self._replays.begin(asked)) is not None:
            if remembered.question != asked.question:
                raise _idempotency_key_reused()
            if (answer := await self._replayed(call, question, remembered)) is not None:
                return answer
            await self._replays.forget(asked)
        work = self._answer_and_remember(call, question, entry, asked=asked)
        return await self._flights.own_shielded(work, name=f"answer once {call.request_id}")

    async def _replayed(
        self, call: Call, question: Question, remembered: Remembered
    ) -> Answer | None:
        """The same answer once more, for nothing; None when its pictures are no longer kept.

        They are kept as long as the entry holds all of them, in whatever slots.
        """
        if remembered.failure is not None:
            call.is_replay = True
            raise remembered.failure
        held = await self._held(question.fingerprint, remembered.pictures)
        found = await self._with_bytes(question, {slot: h.picture for slot, h in held.items()})
        if len(found) < len(remembered.pictures):
            return None
        call.is_replay = True
        # In the order of the first answer: the slots may have changed since.
        order = {picture.id: place for place, picture in remembered.pictures.items()}
        held = {order[h.picture.id]: h for h in held.values()}
        found = {order[picture.id]: (picture, data) for picture, data in found.values()}
        return await self._serve(question, held, found)

    async def _held(self, place: str, pictures: Mapping[int, Picture]) -> dict[int, Held]:
        """Those of the pictures that the entry still holds, by the slot that they are in now."""
        batch = Batch(self._store)
        looked_up = self._entries.look_up(batch, place)
        await batch.send()
        entry = looked_up.answer
        wanted = {picture.id for picture in pictures.values()}
        return {
            n: read_slot(slot, now=entry.now)
            for n, slot in entry.slots.items()
            if slot.picture in wanted
        }

    async def _answer_and_remember(
        self, call: Call, question: Question, entry: Entry, *, asked: Asked
    ) -> Answer:
        try:
            async with self._replays.answering(asked):
                answer = await self._answer_from(call, question, entry)
        except UpstreamFailure as failure:
            if failure.is_charged and call.tally.is_open:  # a follower has paid nothing
                await self._replays.remember_failure(asked, failure)
            else:
                await self._replays.forget(asked)
            raise
        except BaseException:
            await self._replays.forget(asked)
            raise
        pictures = {slot: picture for slot, (picture, _) in enumerate(answer.pictures)}
        await self._replays.remember(asked, pictures)
        return answer

    def _may_do_without_store(self, call: Call, question: Question) -> bool:
        """Whether a picture may be bought although the store is away (CONTRACT §6 *Store down*).

        Not if something was sent already, nor for a key whose limits nobody can check, and not
        for what only a store can give: a link, an answer from the cache, the same answer twice.
        """
        needs_store = (
            question.request.response_format == "url"
            or question.reading.only_if_cached
            or question.directives.dry_run
            or question.directives.idempotency_key is not None
        )
        is_limited = bool(call.account.limits) and not self._serves_limits_unchecked
        may_buy = self._keys.may_go_on_alone(call.key) and not is_limited
        return may_buy and not needs_store and not call.tally.is_open

    async def _answer_without_store(self, call: Call, question: Question) -> Answer:
        """Buys; those who ask the same of this worker at the same time share it."""
        reading, place = question.reading, question.fingerprint
        call.is_reload = reading.no_cache

        async def buy(flight: Flight) -> Bought:
            _check_cost(call, question, len(flight.slots))
            order = self._order(call, question, call.record.but(outcome="bought"))
            return await self._purchases.buy_without_store(
                order, flight, is_stored=not reading.no_store
            )

        is_alone = reading.no_cache or reading.no_store
        run = self._flights.run_alone if is_alone else self._flights.run_offline
        slots = tuple(question.request.slots)
        landing = await run(place, slots, buy=buy, viewer=_viewer(call, question.request))
        call.is_follower = landing.is_follower
        found = await self._with_bytes(question, landing.pictures, in_memory=landing.data)
        return await self._serve(question, {}, found, landing=landing)

    def _order(self, call: Call, question: Question, record: Record) -> Order:
        return Order(
            question.request,
            question.model,
            call.account,
            record=record,
            clock=self._clock,
            tally=call.tally,
        )

    # ── the books ───────────────────────────────────────────────────────────────────────────

    def _note_answer(self, call: Call, answer: Answer) -> None:
        """A request that opened a purchase left its record with that."""
        call.outcome = answer.outcome
        if call.tally.is_open:
            return
        shown = answer.pictures[0][0].shown if answer.pictures else {}
        record = call.record.but(
            size=shown.get("size", call.record.size),
            quality=shown.get("quality", call.record.quality),
            outcome=answer.outcome,
            saved_micros=answer.saved_micros,
            latency_ms=self._latency_ms(call),
        )
        self._ledger.note(record)
        self._metrics.served(record, len(answer.pictures))

    def _note_error(self, call: Call, error: GatewayError) -> None:
        if asks_for_dry_run(call.headers.items()):
            return
        if call.tally.is_open:
            call.outcome = "failed"
            return
        call.outcome = "collapsed" if call.is_follower else "refused"
        record = call.record.but(
            outcome=call.outcome,
            flags=("flight_failed",) if call.is_follower else (),
            error=error.code,
            status=error.status,
            latency_ms=self._latency_ms(call),
        )
        self._ledger.note(record)
        if not call.is_follower:
            self._metrics.refused(call.account.key_name, _reason(error))

    def _latency_ms(self, call: Call) -> int:
        return int((self._clock() - call.time) * 1000)


def _outcome(landing: Landing, *, count: int) -> Outcome:
    if landing.bought:
        return "bought" if len(landing.bought) == count else "partial"
    return "collapsed" if landing.followed else "hit"


def _reason(error: GatewayError) -> str:
    return error.reason if isinstance(error, LimitExceeded) else error.code or str(error.status)


def _check_cost(call: Call, question: Question, pictures: int) -> None:
    """The caller's own bound of what this request may be charged, in all its purchases."""
    most = question.directives.max_cost_micros
    if most is None:
        return
    estimate = pricing.estimate(question.model, question.request, pictures)
    cost_micros = call.tally.cost_micros + estimate.amounts.micros
    if cost_micros > most:
        because = f" ({estimate.reason})" if estimate.reason else ""
        raise InvalidRequest(
            f"This request may cost up to ${quota.show_usd(cost_micros)}{because}, "
            f"more than the ${quota.show_usd(most)} of {MAX_COST}. Nothing was bought.",
            param=MAX_COST,
            code="max_cost_exceeded",
        )


def _is_outage(error: GatewayError | None) -> bool:
    """Whether upstream failed, rather than refused (CONTRACT §6 *Stale*).

    That it refused the gateway's own key is shown as a 502 too, and is no outage.
    """
    if not isinstance(error, UpstreamFailure) or error.code == UPSTREAM_AUTH:
        return False
    return error.status in OUTAGES


def _passed_over(question: Question, entry: Entry, missing: Iterable[int]) -> tuple[str, ...]:
    """The ids of fresh pictures that are too old for a `max-age`."""
    if question.reading.max_age_seconds is None:
        return ()
    return tuple(held.picture.id for held in fresh_pictures(entry, missing).values())


def _not_cached() -> GatewayError:
    return GatewayError(
        "Not every picture that was asked for is in the cache, and 'Cache-Control: only-if-cached' "
        "forbids to buy one.",
        status=504,
        type=INVALID_REQUEST,
        code="only_if_cached",
        headers={"x-should-retry": "false"},
    )


def _idempotency_key_reused() -> InvalidRequest:
    return InvalidRequest(
        "This Idempotency-Key was sent before with another request. Use a new one for each "
        "question.",
        param=IDEMPOTENCY_KEY,
        code="idempotency_key_reused",
    )


def _viewer(call: Call, request: ImageRequest) -> Viewer | None:
    """Whoever asked for a stream is shown what comes from now on."""
    if request.stream and call.viewer is None:
        call.viewer = Viewer(request.partial_images)
        call.show(call, call.viewer)
    return call.viewer


def _nothing_came() -> GatewayError:
    return GatewayError(
        "No picture came of this request.", status=502, code="upstream_error", source="upstream"
    )
