"""The story of one request: admit → look up → hit, or wait, or buy → answer.

It owns the order of the steps and nothing else. Each step is a room's: what is valid is
`request/`, who may ask is `access/`, what is counted is `billing/`, what is kept and who buys is
`cache/`. One purchase is told in `purchase.py`. HTTP is `api/`, which hands in a `Call` and
renders the `Answer`. The first file to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.access.keys import Key, Keys, Validation
from gateway.access.policy import Policy
from gateway.access.signing import Signing
from gateway.billing import quota
from gateway.billing.ledger import Ledger, Outcome, Record
from gateway.billing.quota import LimitState
from gateway.cache.blobs import Blobs
from gateway.cache.derivation import Derivation, Wanted
from gateway.cache.entries import Entries, Held, fresh_pictures
from gateway.cache.flights import Bought, Flight, Flights, Landing
from gateway.cache.gallery import Gallery, picture_path
from gateway.cache.hot import View
from gateway.cache.previews import Viewer
from gateway.catalog import Model
from gateway.errors import (
    GatewayError,
    IncorrectKey,
    InvalidRequest,
    LimitExceeded,
    StoreUnavailable,
)
from gateway.images import Account, ImageRequest, Picture
from gateway.metrics import Metrics
from gateway.pictures import as_derived_format
from gateway.purchase import Order, Purchases, Tally
from gateway.request.body import parse_body
from gateway.request.fingerprint import fingerprint
from gateway.request.validation import validate
from gateway.store.verbs import Batch, Entry, Store

SCOPE: Final = "global"
"""The name space that every key reads and writes (CONTRACT §6 *Scope*)."""

MAX_USER: Final = 256
"""Characters of `user` that the ledger keeps; upstream gets all of it."""

STALE_KEY_ATTEMPTS: Final = 3
"""How often a request starts over because its key was changed meanwhile."""


@dataclass(slots=True)
class Call:
    """One authenticated request, as it arrives, and what is learnt of it on its way."""

    request_id: str
    time: float
    """Unix seconds at which its head was read."""
    key: Key
    secret: str
    policy: Policy
    content_type: str | None
    read: Callable[[], Awaitable[bytes]]
    """Reads the body; raises the 408 or 413 that a bad one deserves."""
    record: Record
    show: Callable[[Viewer], None] = lambda viewer: None
    """Begins to show a caller who asked for a stream what comes before the answer."""
    tally: Tally = field(default_factory=Tally)
    limits: list[LimitState] = field(default_factory=list)
    is_follower: bool = False
    """It waited for somebody else's purchase and bought nothing itself."""
    outcome: Outcome = "refused"

    @property
    def account(self) -> Account:
        """Who this call is counted for."""
        return self.key.account

    @property
    def latest_limits(self) -> list[LimitState]:
        """The key's limits as they were last seen: a purchase's view replaces the admission's."""
        newer = {state.limit.name: state for state in self.tally.limits}
        return [newer.get(state.limit.name, state) for state in self.limits]


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
    is_derived: bool = False
    """Of a hit: some of it was made from a picture of another format."""


@dataclass(frozen=True, slots=True)
class Question:
    """A valid request, and where its answer would lie."""

    request: ImageRequest
    model: Model
    fingerprint: str
    body: bytes
    """What it was read from."""

    @property
    def view(self) -> View:
        """What is made of each picture's bytes; a link only needs them to be there."""
        return "data" if self.request.response_format == "url" else "base64"


class Service:
    """Answers image requests."""

    def __init__(
        self,
        store: Store,
        *,
        upstream_name: str,
        keys: Keys,
        entries: Entries,
        gallery: Gallery,
        blobs: Blobs,
        flights: Flights,
        purchases: Purchases,
        signing: Signing,
        derivation: Derivation | None,
        ledger: Ledger,
        metrics: Metrics,
        validation: Validation,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._upstream_name = upstream_name
        self._keys = keys
        self._entries = entries
        self._gallery = gallery
        self._blobs = blobs
        self._flights = flights
        self._purchases = purchases
        self._signing = signing
        self._derivation = derivation
        self._ledger = ledger
        self._metrics = metrics
        self._validation = validation
        self._clock = clock

    async def generate(self, call: Call) -> Answer:
        """Answers one call and leaves one ledger record. Raises `GatewayError`."""
        try:
            answer = await self._answer(call)
        except IncorrectKey:
            raise
        except GatewayError as error:
            self._note_error(call, error)
            call.limits = call.limits or await self.limits_of(call.account)
            raise
        except Exception:
            self._note_error(call, GatewayError("The gateway had an error."))
            raise
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

    async def _answer(self, call: Call) -> Answer:
        question = await self._understand_or_confirm(call, await call.read())
        entry = await self._admit_and_look_up(call, question)
        held = fresh_pictures(entry, question.request.slots)
        derived = await self._derive(question, set(question.request.slots) - held.keys())
        held |= derived
        pictures = await self._with_bytes(question, {slot: h.picture for slot, h in held.items()})
        landing = await self._get_missing(call, question, pictures)
        call.is_follower = landing.is_follower
        answer = await self._serve(question, held, pictures, landing)
        return replace(answer, is_derived=bool(derived))

    # ── the steps ───────────────────────────────────────────────────────────────────────────

    async def _understand_or_confirm(self, call: Call, raw: bytes) -> Question:
        """A refusal comes before the admission, so it asks the store what the key may do by now."""
        try:
            return await self._understand(call, raw)
        except InvalidRequest:
            remembered, call.key = call.key, await self._keys.confirm(call.secret)
            if call.key.account.record == remembered.account.record:
                raise
            return await self._understand(call, raw)

    async def _understand(self, call: Call, raw: bytes) -> Question:
        """Validates the body and says where its answer would lie."""
        body = parse_body(raw, call.content_type)
        catalog = call.policy.catalog
        is_lenient = (call.key.validation or self._validation) == "lenient"
        request = validate(body, catalog, allowed_models=call.key.models, is_lenient=is_lenient)
        model = catalog.models[request.model]
        place = self._fingerprint(request, model)
        call.record = call.record.but(
            user=request.user_text[:MAX_USER] or None,
            model=request.model,
            size=_effective(model, request, "size"),
            quality=_effective(model, request, "quality"),
            n=request.n,
            fingerprint=place,
            prompt_hmac=await self._ledger.prompt_hmac(request.prompt),
        )
        return Question(_in_its_form(request), model, place, raw)

    def _fingerprint(self, request: ImageRequest, model: Model) -> str:
        return fingerprint(
            request,
            cache_epoch=model.cache_epoch,
            upstream_name=self._upstream_name,
            scope=SCOPE,
        )

    async def _admit_and_look_up(self, call: Call, question: Question) -> Entry:
        """One round trip: the key is still what we think, it may ask, and what the entry holds."""
        for _ in range(STALE_KEY_ATTEMPTS):
            batch = Batch(self._store)
            admission = quota.admit(batch, call.account)
            entry = self._entries.look_up(batch, question.fingerprint)
            await batch.send()
            if admission.answer.record is None:
                call.limits = quota.admission_states(call.account, admission.answer)
                if admission.answer.refused is not None:
                    raise quota.refuse_admission(call.account, admission.answer)
                return entry.answer
            await self._start_over(call, question, admission.answer.record)
        raise GatewayError("The key is being changed; try again.", status=503)

    async def _start_over(self, call: Call, question: Question, record: bytes) -> None:
        """The key was changed or revoked: from here on its new record holds.

        By that the request may have to be refused; accepted, it means what it meant.
        """
        self._keys.learn(call.secret, record)
        call.key = await self._keys.authenticate(call.secret)
        await self._understand(call, question.body)

    async def _derive(self, question: Question, missing: set[int]) -> Mapping[int, Held]:
        """What need not be bought, because it can be made from the same picture in PNG."""
        if not missing or self._derivation is None:
            return {}
        wanted = self._derivable(question)
        return {} if wanted is None else await self._derivation.fill(wanted, sorted(missing))

    def _derivable(self, question: Question) -> Wanted | None:
        """What would be made; None unless the question asks for another format than PNG."""
        request, model = question.request, question.model
        asked = as_derived_format(request.parameters.get("output_format"))
        if asked is None or model.parameters["output_format"].default != "png":
            return None
        of_format = ("output_format", "output_compression")
        as_png = {name: v for name, v in request.parameters.items() if name not in of_format}
        return Wanted(
            question.fingerprint,
            source=self._fingerprint(replace(request, parameters=as_png), model),
            format=asked,
            compression=int(_effective(model, request, "output_compression") or 100),
        )

    async def _get_missing(
        self, call: Call, question: Question, pictures: Mapping[int, tuple[Picture, bytes]]
    ) -> Landing:
        """Waits for, or buys, what the entry does not hold."""
        missing = [slot for slot in question.request.slots if slot not in pictures]
        saved_micros = sum(picture.cost_micros for picture, _ in pictures.values())

        async def buy(flight: Flight) -> Bought:
            is_whole = len(flight.slots) == question.request.n
            is_first = not call.tally.is_open  # a second purchase of a request saved nothing more
            record = call.record.but(
                outcome="bought" if is_whole else "partial",
                saved_micros=saved_micros if is_first else 0,
            )
            return await self._purchases.buy(self._order(call, question, record), flight)

        with _watching(call, question.request) as viewer:
            return await self._flights.run(question.fingerprint, missing, buy=buy, viewer=viewer)

    async def _serve(
        self,
        question: Question,
        held: Mapping[int, Held],
        pictures: Mapping[int, tuple[Picture, bytes]],
        landing: Landing,
    ) -> Answer:
        """All pictures that there are, in slot order; an error only when there is none."""
        landed = await self._with_bytes(question, landing.pictures, in_memory=landing.data)
        all_pictures = {**pictures, **landed}
        if not all_pictures:
            raise landing.own_error or landing.flight_error or _nothing_came()
        if question.request.response_format == "url":
            all_pictures = await self._as_links(question, all_pictures)
        return Answer(
            question.request,
            outcome=_outcome(landing, count=len(all_pictures)),
            pictures=tuple(all_pictures[slot] for slot in sorted(all_pictures)),
            fingerprint=question.fingerprint,
            ttl_seconds=min((h.ttl_seconds for h in {**held, **landing.held}.values()), default=0),
            saved_micros=sum(
                picture.cost_micros
                for slot, (picture, _) in all_pictures.items()
                if slot not in landing.bought
            ),
        )

    async def _as_links(
        self, question: Question, pictures: Mapping[int, tuple[Picture, bytes]]
    ) -> dict[int, tuple[Picture, bytes]]:
        """A signed link in the place of each picture's bytes."""
        batch = Batch(self._store)
        of_slot = {slot: picture for slot, (picture, _) in pictures.items()}
        self._gallery.hang(batch, question.fingerprint, of_slot)
        await batch.send()
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


def _effective(model: Model, request: ImageRequest, name: str) -> str | None:
    """A parameter's value as it holds: what was asked, or the model's default."""
    if name in request.parameters:
        return str(request.parameters[name])
    spec = model.parameters.get(name)
    return None if spec is None else str(spec.default)


def _outcome(landing: Landing, *, count: int) -> Outcome:
    if landing.bought:
        return "bought" if len(landing.bought) == count else "partial"
    return "collapsed" if landing.followed else "hit"


def _reason(error: GatewayError) -> str:
    return error.reason if isinstance(error, LimitExceeded) else error.code or str(error.status)


def _in_its_form(request: ImageRequest) -> ImageRequest:
    """A stream has no links: its events carry the picture, whatever `response_format` says."""
    return replace(request, response_format="b64_json") if request.stream else request


@contextmanager
def _watching(call: Call, request: ImageRequest) -> Iterator[Viewer | None]:
    """Whoever asked for a stream is shown what comes, for as long as its flight lasts."""
    if not request.stream:
        yield None
        return
    viewer = Viewer(request.partial_images)
    call.show(viewer)
    try:
        yield viewer
    finally:
        viewer.close()


def _nothing_came() -> GatewayError:
    return GatewayError(
        "No picture came of this request.", status=502, code="upstream_error", source="upstream"
    )
