"""From a purchase order to checked images: send, fetch links, check.

Nothing is stored or settled here. Upstream's own wire format is `upstream/`.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from gateway.cache.blobs import INLINE_BYTES, hash_bytes
from gateway.cache.flight_events import Flight
from gateway.cache.flights import Flights
from gateway.cache.image_cache import ImageCache
from gateway.cache.partial_images import Publisher
from gateway.cache.takedowns import content_taken_down
from gateway.catalog import SIZE, Model
from gateway.errors import Charge, UpstreamFailure
from gateway.failure_report import MAX_REPORT_MESSAGE, FailureReport, Reason
from gateway.frozen import frozen
from gateway.imagefile.check import DOCUMENTS, MEDIA_TYPES, check_image, detect_format, is_quick
from gateway.imagefile.facts import BadImage, ImageFacts
from gateway.images import Image, ImageRequest, PartialImage, UpstreamAnswer, UpstreamImage
from gateway.net.guard import LinkBlocked
from gateway.redaction import MAX_NAMES, Identity
from gateway.trace_context import TraceContext
from gateway.upstream.accounts import Account
from gateway.upstream.attempts import Rerouting, StreamHandlers

MAX_ANSWER_FIELD: Final = 128
"""Characters of a text among the model's `answer_fields`. A longer one is not kept."""

UNNAMED: Final = Identity(())
"""The identity of a request that names no user."""

_RASTER: Final = frozenset({*MEDIA_TYPES, "jpg"} - DOCUMENTS)

log = structlog.get_logger(__name__)


class Upstream(Protocol):
    """The accounts that images are bought from."""

    async def buy(
        self,
        request: ImageRequest,
        accounts: Sequence[Account],
        *,
        images: int,
        stream: StreamHandlers | None = None,
        rerouting: Rerouting | None = None,
    ) -> UpstreamAnswer:
        """Buys `images` images from the first account that takes the purchase, and no more.

        With `stream` as a stream, where the account streams. Raises `UpstreamFailure`.
        """


class Links(Protocol):
    """Fetches the images that upstream answered as links."""

    async def fetch(self, url: str, *, trace: TraceContext) -> bytes:
        """The bytes behind a link. Raises `LinkBlocked`."""


class Route(Rerouting, Protocol):
    """The way of a purchase from account to account, see `routing`."""

    @property
    def accounts(self) -> Sequence[Account]:
        """Those that may be asked, in their order."""

    def is_answered(self) -> None:
        """The account that is asked has begun to answer."""


class DeliverySettings(BaseModel):
    """How images are bought, and the bounds of an image that is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_image_bytes: int = Field(gt=0)
    max_pixels: int = Field(gt=0)


@frozen
class Delivered:
    """Upstream's answer, and those of its images that may be stored, with their bytes."""

    answer: UpstreamAnswer
    images: list[tuple[Image, bytes]]
    echoed: Mapping[str, str]
    """What is kept of the parameters that the answer echoes."""
    base64: Mapping[str, memoryview]
    """By digest, of those that came in a form which answers may have."""


class Delivery:
    """Buys images from upstream, and checks them."""

    def __init__(
        self,
        settings: DeliverySettings,
        upstream: Upstream,
        links: Links,
        *,
        flights: Flights,
        cache: ImageCache,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._links = links
        self._flights = flights
        self._cache = cache

    async def deliver(
        self,
        request: ImageRequest,
        model: Model,
        flight: Flight,
        route: Route,
        *,
        clock: Callable[[], float],
    ) -> Delivered:
        """Buys the slots of a flight. Raises `UpstreamFailure` if no image may be stored."""
        is_streamed = request.stream and any(account.streams for account in route.accounts)
        publisher = stream = None
        if is_streamed:
            publisher = self._flights.publisher(flight, max_images=request.partial_images)
            stream = _stream_handlers(publisher, model, route)
        try:
            answer = await self._upstream.buy(
                request, route.accounts, images=len(flight.slots), stream=stream, rerouting=route
            )
            return await self._accept(answer, request, model, flight, clock=clock)
        except UpstreamFailure as failure:
            failure.buyer = request.user_names
            if is_streamed:
                # Some services have bought the image although they answer a stream with an error.
                failure.forbid_retry()
            raise
        finally:
            if publisher is not None:
                await publisher.close()

    async def _accept(
        self,
        answer: UpstreamAnswer,
        request: ImageRequest,
        model: Model,
        flight: Flight,
        *,
        clock: Callable[[], float],
    ) -> Delivered:
        """The images of an answer that may be stored. Raises `UpstreamFailure` if there is none."""
        # Apart from the wait for upstream: the variables of the comprehensions below take half a
        # kilobyte.
        buyer = _buyer_beside_prompt(request)
        answer = _without_empty_ones(answer, requested=len(flight.slots))
        if answer.surplus:
            named = {"purchase": flight.id, **request.trace.fields}
            log.warning("surplus_images", **named, images=answer.surplus)
        # Upstream's links expire within the hour, so they are fetched now.
        faults: list[str] = []
        if any(image.is_link for image in answer.images):
            fetching = (self._fetch(image, faults, request.trace) for image in answer.images)
            answer = replace(answer, images=tuple(await asyncio.gather(*fetching)))
        complete = [
            (_image(sent, *found, buyer=buyer, model=model, now=clock()), sent.data, sent.base64)
            for sent in answer.images
            if sent.data is not None
            and (found := await self._check(sent.data, faults, request, model)) is not None
        ]
        allowed = [each for each in complete if not self._cache.is_taken_down(each[0].digest)]
        images = [(image, data) for image, data, _ in allowed]
        if not images:
            raise _nothing_to_store(answer, faults, is_taken_down=bool(complete))
        if faults:
            named = {"purchase": flight.id, **request.trace.fields}
            log.warning("images_undelivered", **named, reasons=sorted(set(faults)))
        first, _ = images[0]
        echoed = _kept_echoes(answer.echoed, model, image_format=first.format)
        if "size" in echoed and SIZE.fullmatch(echoed["size"]) is None:  # such as `auto`
            del echoed["size"]
            echoed |= {"size": first.size_text} if first.size_text else {}
        base64 = {image.digest: text for image, _, text in allowed if text is not None}
        return Delivered(answer, images, MappingProxyType(echoed), base64)

    def keep_base64(self, request: ImageRequest, delivered: Delivered) -> None:
        """Has answers use the base64 as it came. Not for images that may not be stored."""
        if request.response_format != "url":
            self._cache.keep_base64(delivered.base64)

    async def _fetch(
        self, image: UpstreamImage, faults: list[str], trace: TraceContext
    ) -> UpstreamImage:
        """The image with its bytes; unchanged if its link cannot be fetched, with the reason."""
        if not image.is_link:
            return image
        try:
            return replace(image, data=await self._links.fetch(image.url or "", trace=trace))
        except LinkBlocked as blocked:
            faults.append(f"link {blocked.reason}, host {blocked.host or 'unknown'}")
            return image

    async def _check(
        self, data: bytes, faults: list[str], request: ImageRequest, model: Model
    ) -> tuple[ImageFacts, str] | None:
        """The facts of a complete image, and its digest; None for any other bytes."""
        is_document = detect_format(data) in DOCUMENTS
        if is_document and not _may_be_svg(request, model):
            faults.append("an SVG that was not asked for")
            return None
        check = partial(
            check_image,
            data,
            max_bytes=self._settings.max_image_bytes,
            max_pixels=self._settings.max_pixels,
        )
        is_small = len(data) <= INLINE_BYTES and not is_document
        try:
            if is_small or is_quick(data):
                return check(), await hash_bytes(data)
            return await asyncio.to_thread(lambda: (check(), hashlib.sha256(data).hexdigest()))
        except BadImage as bad:
            faults.append(str(bad))
            return None


def _stream_handlers(publisher: Publisher, model: Model, route: Route) -> StreamHandlers:
    async def publish(image: PartialImage) -> None:
        found = detect_format(image.data)
        echoed = _kept_echoes(image.echoed, model, image_format=found)
        await publisher.publish(replace(image, echoed=echoed))

    async def open_stream() -> None:
        route.is_answered()
        await publisher.open()

    return StreamHandlers(publish, open_stream)


def _may_be_svg(request: ImageRequest, model: Model) -> bool:
    """Whether the client expects an SVG: it asked for one, or the model makes them by default.

    A client that shows what it takes for a raster image need not guard against a document. What a
    model without a row makes by default is not known, nor what its formats are called.
    """
    if request.unchecked is not None:
        written = request.unchecked.members.get("output_format", "")
        return written.strip('"').lower() not in _RASTER
    spec = model.parameters.get("output_format")
    default = None if spec is None else spec.default
    return request.parameters.get("output_format", default) == "svg"


def _buyer_beside_prompt(request: ImageRequest) -> Identity:
    """The names of the buyer that the prompt does not have.

    A name that the prompt has too is no secret: other keys have sent the same prompt.
    """
    names = set(request.user_names)
    if not names:
        return UNNAMED
    if len(names) <= MAX_NAMES:
        names = {name for name in names if not Identity((name,)).is_in(request.prompt)}
    return Identity(names)


def _without_empty_ones(answer: UpstreamAnswer, *, requested: int) -> UpstreamAnswer:
    """The answer without elements beyond `requested` that have no image: nothing was bought."""
    images = answer.images
    kept = [i for n, i in enumerate(images) if n < requested or i.is_link or i.data is not None]
    return answer if len(kept) == len(images) else replace(answer, images=tuple(kept))


# ── what is kept of an answer ───────────────────────────────────────────────────────────────
#
# Other keys get it too, so it is an allow-list: what is not chosen here reaches neither the store
# nor any client. See `docs/reference/cache.md#what-is-kept-of-an-answer`.


def _kept_echoes(
    echoed: Mapping[str, str], model: Model, *, image_format: str | None
) -> dict[str, str]:
    """The echoed parameters whose values the model has, and the format that the bytes are in."""
    kept = {name: v for name, v in echoed.items() if _is_value(model, name, v)}
    has_format = "output_format" in model.parameters or "output_format" in echoed
    return kept | {"output_format": image_format} if has_format and image_format else kept


def _is_value(model: Model, name: str, value: str) -> bool:
    """Whether the model has this value of the parameter."""
    if name == "size" and SIZE.fullmatch(value) is not None:
        return True
    return value in getattr(model.parameters.get(name), "values", ())


def _kept_fields(
    sent: UpstreamImage, buyer: Identity, model: Model
) -> Mapping[str, str | int | float]:
    """Those of the model's `answer_fields` that are a number, a boolean or a short text.

    Without those in which the buyer is named.
    """
    kept: dict[str, str | int | float] = {}
    for name in model.answer_fields:
        value = sent.extra.get(name)
        if not isinstance(value, str | int | float) or buyer.is_in(value):
            continue
        if len(str(value)) <= MAX_ANSWER_FIELD:
            kept[name] = value
    return MappingProxyType(kept)


def _image(
    sent: UpstreamImage,
    facts: ImageFacts,
    digest: str,
    *,
    buyer: Identity,
    model: Model,
    now: float,
) -> Image:
    return Image(
        id=secrets.token_hex(12),
        digest=digest,
        format=facts.format,
        width=facts.width,
        height=facts.height,
        size_bytes=len(sent.data or b""),
        created_at=now,
        model=model.id,
        revised_prompt=sent.revised_prompt and buyer.redact_words(sent.revised_prompt),
        answer_fields=_kept_fields(sent, buyer, model),
        active=facts.active,
    )


def _nothing_to_store(
    answer: UpstreamAnswer, faults: Sequence[str], *, is_taken_down: bool
) -> UpstreamFailure:
    if is_taken_down:
        return content_taken_down(
            charge=Charge.UNDELIVERED,
            usage=answer.usage,
            upstream_request_id=answer.upstream_request_id,
        )
    if any(image.is_link for image in answer.images):
        problem, reason = "its links could not be fetched", Reason.LINK_FAILED
    else:
        problem, reason = "its answer contains no complete image", Reason.IMAGE_REJECTED
    why = "; ".join(sorted(set(faults))) or "the base64 of its images is damaged or missing"
    return UpstreamFailure(
        f"Upstream charged for this request, but {problem}.",
        charge=Charge.UNDELIVERED,
        usage=answer.usage,
        images=len(answer.images),
        upstream_request_id=answer.upstream_request_id,
        report=FailureReport(reason, why[:MAX_REPORT_MESSAGE], status=200),
    )
