"""The nouns that all rooms share: requests, images, upstream's answers, ledger records.

`Image`, `Usage`, `Amounts` and `Record` are stored as JSON objects. Their fields keep their names;
a new one needs a default (`decode_fields`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, replace
from itertools import compress
from operator import ne
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import orjson

from gateway.frozen import frozen
from gateway.trace_context import NO_TRACE_CONTEXT, TraceContext
from gateway.values import UNIT_SECONDS

MAX_SLOTS: Final = 64
"""Images that one entry can have: slots 0 … 63, see `docs/reference/cache.md#slots`."""

MAX_UNCHECKED_IMAGES: Final = 16
"""Images of one answer that are kept for a model without a row, even if fewer were requested."""

MAX_AGE_SECONDS: Final = 2**31
"""The longest time that a cache counts: RFC 9111 §1.2.2 reads any longer one as this."""

IDENTITIES: Final = ("user", "safety_identifier")
"""The parameters that name a client to upstream. They are forwarded, and are no part of the image:
neither its fingerprint nor what is kept of an answer has them."""

_WITHIN: Final = re.compile(r"within:([0-9]{1,9})(s|m|h|d)")

ParameterValue: TypeAlias = str | int | float | Mapping[str, Any]
"""A checked parameter in its one spelling. A boolean is an `int`, an object has fields of these."""

T = TypeVar("T")


def decode_fields(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from a JSON object in the store.

    Unknown fields are ignored, and missing ones have their defaults, so that gateways of different
    versions can share a store.
    """
    known = {f.name for f in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in data.items() if name in known})


@frozen
class UncheckedBody:
    """The body of a request for a model without a row, which is forwarded as it came."""

    members: Mapping[str, str]
    """JSON text by name, without `model`, `n`, `stream` and `partial_images`."""
    canonical: str
    """All that may change the image, as canonical JSON: equal bodies have the same."""
    n: str | None = None
    """`n` as the client wrote it; None if it was omitted."""


@frozen
class ImageRequest:
    """One valid request, every default resolved, nothing coerced, the prompt verbatim."""

    model: str
    prompt: str
    n: int = 1
    parameters: Mapping[str, ParameterValue] = field(default_factory=lambda: MappingProxyType({}))
    """Those that change the image and differ from their default: size, quality, style, …"""
    response_format: str = "b64_json"
    """`b64_json` or `url`."""
    requested_response_format: str | None = None
    """`response_format` as the client wrote it; None if it was omitted or null."""
    user: object = None
    """As the client sent it: a string or, in lenient mode, any JSON; None if absent."""
    safety_identifier: object = None
    """OpenAI's newer name of `user`."""
    stream: bool = False
    partial_images: int = 0
    variation: int = 0
    """The first requested slot."""
    defaults: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """What omitted parameters of the image mean for the model. Services with other defaults are
    sent these."""
    trace: TraceContext = NO_TRACE_CONTEXT
    """Of the client's request that is bought for. Forwarded, but no part of the fingerprint."""
    asked_model: str | None = None
    """The alias that the client asked for; None if it asked for `model`."""
    unchecked: UncheckedBody | None = None
    """Of a model without a row. Its `parameters` are empty, and `prompt` if that is no text."""

    def max_images(self, requested: int) -> int:
        """How many images of an answer are kept if `requested` were requested.

        A model without a row may bring more than `n` says, by parameters of its own.
        """
        return requested if self.unchecked is None else max(requested, MAX_UNCHECKED_IMAGES)

    @property
    def slots(self) -> Sequence[int]:
        """The requested slots of the entry. Behind the last one comes slot 0."""
        slots = range(self.variation, self.variation + self.n)
        return slots if slots.stop <= MAX_SLOTS else tuple(slot % MAX_SLOTS for slot in slots)

    @property
    def user_names(self) -> tuple[str, ...]:
        """The strings and numbers that name the client or its request.

        Upstream receives them and may quote them.
        """
        if self.user is None and self.safety_identifier is None and self.trace is NO_TRACE_CONTEXT:
            return ()
        named = (text for name in IDENTITIES for text in _leaves(getattr(self, name)))
        return (*named, *self.trace.fields.values())

    @property
    def user_text(self) -> str:
        """`user` for reports: a string as it is, other JSON encoded; "" if absent."""
        if self.user is None or isinstance(self.user, str):
            return self.user or ""
        return json.dumps(self.user, ensure_ascii=False)


def _leaves(value: object) -> Iterator[str]:
    """The strings and numbers of a JSON value, as text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


UNNAMED_MODEL: Final = "unknown"
"""The text model of an `svg_usage` that names none."""


@frozen
class Usage:
    """Tokens of a purchase, or of one image's share of it, by kind."""

    text_in: int = 0
    image_in: int = 0
    image_out: int = 0
    text_out: int = 0
    cached_text_in: int = 0
    """How many of `text_in` upstream had in its own cache, which it charges less for."""
    cached_image_in: int = 0
    """How many of `image_in`."""
    has_output_details: bool = False
    """Upstream split its output tokens. Only then does an answer show the split."""
    has_cached: bool = False
    """Upstream counted cached input tokens. Only then does an answer show them."""
    has_cached_details: bool = False
    """Upstream split its cached tokens. Only then does an answer show the split."""
    svg_model: str = ""
    """The text model that wrote the SVG image, as upstream's `svg_usage` names it."""
    svg_in: int = 0
    svg_out: int = 0
    svg_reasoning: int = 0
    svg_reasoning_apart: bool = False
    """The reasoning tokens are not among `svg_out`, but besides."""

    @property
    def total(self) -> int:
        """All tokens of the image model, in and out."""
        return self.text_in + self.image_in + self.image_out + self.text_out

    @property
    def svg_charged_out(self) -> int:
        """What the text model wrote, with its reasoning."""
        return self.svg_out + (self.svg_reasoning if self.svg_reasoning_apart else 0)

    @property
    def svg_total(self) -> int:
        """All tokens of the text model, in and out."""
        return self.svg_in + self.svg_charged_out

    @property
    def charged(self) -> int:
        """All tokens of both models."""
        return self.total + self.svg_total

    def shares(self, count: int) -> list[Usage]:
        """`count` integer shares, as even as possible, whose sum is this usage."""
        if count == 1:
            return [self]

        def split(tokens: int, index: int) -> int:
            # The first shares get the remainder, so no share has more cached tokens than tokens.
            return tokens // count + (index < tokens % count)

        return [
            replace(
                self,
                text_in=split(self.text_in, i),
                image_in=split(self.image_in, i),
                image_out=split(self.image_out, i),
                text_out=split(self.text_out, i),
                cached_text_in=split(self.cached_text_in, i),
                cached_image_in=split(self.cached_image_in, i),
                svg_in=split(self.svg_in, i),
                svg_out=split(self.svg_out, i),
                svg_reasoning=split(self.svg_reasoning, i),
            )
            for i in range(count)
        ]

    def zeroed(self) -> Usage:
        """A usage of no tokens that is shown in the same shape."""
        return Usage(
            has_output_details=self.has_output_details,
            has_cached=self.has_cached,
            has_cached_details=self.has_cached_details,
            svg_model=self.svg_model,
            svg_reasoning_apart=self.svg_reasoning_apart,
        )

    @staticmethod
    def sum(usages: Iterable[Usage]) -> Usage:
        """The sum of several usages."""
        usages = list(usages)
        if len(usages) == 1:
            return usages[0]
        return Usage(
            text_in=sum(u.text_in for u in usages),
            image_in=sum(u.image_in for u in usages),
            image_out=sum(u.image_out for u in usages),
            text_out=sum(u.text_out for u in usages),
            cached_text_in=sum(u.cached_text_in for u in usages),
            cached_image_in=sum(u.cached_image_in for u in usages),
            has_output_details=any(u.has_output_details for u in usages),
            has_cached=any(u.has_cached for u in usages),
            has_cached_details=any(u.has_cached_details for u in usages),
            svg_model=next((u.svg_model for u in usages if u.svg_model), ""),
            svg_in=sum(u.svg_in for u in usages),
            svg_out=sum(u.svg_out for u in usages),
            svg_reasoning=sum(u.svg_reasoning for u in usages),
            svg_reasoning_apart=any(u.svg_reasoning_apart for u in usages),
        )


@frozen
class Image:
    """A stored image without its bytes, which are stored under `digest`."""

    id: str
    """24 letters and digits, unique; in its link and in `x-gateway-image-ids`."""
    digest: str
    """SHA-256 of the bytes, hex."""
    format: str
    """One of `imagefile.check.MEDIA_TYPES`, read from the bytes."""
    width: int
    """Pixels; 0 for an SVG that has no size of its own, as is the height."""
    height: int
    size_bytes: int
    created_at: float
    """Unix seconds at which it was received."""
    revised_prompt: str | None = None
    usage: Usage | None = None
    """Its share of the purchase's usage; None for models that are billed per image."""
    cost_micros: int = 0
    """Its share of the purchase's cost, in micro-dollars."""
    echoed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`size`, `quality`, `background`, `output_format` where answers have them. The format that is
    shown is `format`."""
    answer_fields: Mapping[str, str | int | float] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Those of the model's `answer_fields` that upstream's answer had. Not named `extra`: under
    that name older gateways stored all further keys, also those that name the buyer."""
    model: str = ""
    beside: str | None = None
    """The id of the requested image beside which it came, beyond `n`. They are served together."""
    transcoded_from: str | None = None
    """The digest of the image that it was transcoded from; None if it was bought."""
    active: tuple[str, ...] = ()
    """Of an SVG: what a browser could run or load, see `docs/security.md`."""

    @property
    def size_text(self) -> str:
        """WIDTHxHEIGHT of the bytes; empty for an SVG without a size."""
        return f"{self.width}x{self.height}" if self.width else ""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Image:
        """An image from its JSON object in the store."""
        usage = decode_fields(Usage, data["usage"]) if data.get("usage") else None
        active = tuple(data.get("active", ()))
        return decode_fields(Image, {**data, "usage": usage, "active": active})


def with_those_beside(images: Mapping[int, Image], slots: Collection[int]) -> list[int]:
    """Those of `slots` that have an image, and the slots of images that came beside one of them."""
    ids = {images[slot].id for slot in slots if slot in images}
    return [slot for slot, image in images.items() if slot in slots or image.beside in ids]


@frozen
class Amounts:
    """The reservation or the charge of a purchase. Limits count these fields."""

    images: int = 0
    tokens: int = 0
    usd_micros: int = 0

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.images - other.images,
            self.tokens - other.tokens,
            self.usd_micros - other.usd_micros,
        )

    def exceeds(self, other: Amounts) -> bool:
        """Whether any of the amounts is larger."""
        return (
            self.images > other.images
            or self.tokens > other.tokens
            or self.usd_micros > other.usd_micros
        )


@frozen
class UpstreamAnswer:
    """Upstream's answer to one purchase, parsed. Its images are not checked yet."""

    images: tuple[UpstreamImage, ...]
    """At most as many as were asked for."""
    usage: Usage | None
    echoed: Mapping[str, str]
    """`size`, `quality`, `background`, `output_format` where upstream echoed them."""
    upstream_request_id: str | None = None
    surplus: int = 0
    """How many more images it has than were asked for. They are neither read nor charged."""
    cost_picos: int | None = None
    """What upstream says that it charged, in millionths of a micro-dollar; None if it does not."""


@frozen
class UpstreamImage:
    """One element of upstream's `data`: bytes, a link, or neither if it was damaged."""

    data: bytes | None = None
    base64: memoryview | None = field(default=None, compare=False, repr=False)
    """Of `data` as it came, if encoding it again would give the same."""
    url: str | None = None
    revised_prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """All further keys. `purchasing.delivery` chooses what is kept of them."""

    @property
    def is_link(self) -> bool:
        """Whether its bytes must still be fetched."""
        return self.data is None and self.url is not None


@frozen
class PartialImage:
    """An unfinished image of a stream. It is not checked, and never part of an entry."""

    index: int
    """From 0; upstream may skip numbers."""
    data: bytes
    echoed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`size`, `quality`, `background`, `output_format` where upstream echoed them."""
    base64: memoryview | None = field(default=None, compare=False, repr=False)
    """As that of `UpstreamImage`."""


@frozen
class Reuse:
    """A key's setting for clients that cannot send Cache-Control; the default is `always`."""

    no_cache: bool = False
    max_age_seconds: int | None = None

    @staticmethod
    def parse(text: str) -> Reuse:
        """Reads `always`, `never`, or `within:D` with D such as `90s`, `10m`, `12h`, `7d`.

        Raises `ValueError`, which names what was expected.
        """
        if text in ("always", "never"):
            return Reuse(no_cache=text == "never")
        match = _WITHIN.fullmatch(text)
        seconds = int(match[1]) * int(UNIT_SECONDS[match[2]]) if match else 0
        if seconds == 0:
            raise ValueError(
                "expected 'always', 'never', or 'within:' and a duration such as 90s, 10m, 12h or "
                f"7d, but got '{text[:100]}'"
            )
        return Reuse(max_age_seconds=min(seconds, MAX_AGE_SECONDS))


LimitSubjectKind: TypeAlias = Literal["key", "team", "everyone"]


@frozen
class LimitRule:
    """What a limit subject is allowed of one limit."""

    maximum: int
    """In the limit's unit (micro-dollars for `usd_…`), with the raises that hold now."""
    mode: Literal["enforce", "shadow"] = "enforce"
    """`shadow` counts and reports, and refuses nothing."""
    warn_at: tuple[float, ...] = (0.5, 0.8, 1.0)
    """The parts of the maximum whose crossing is an event."""


@frozen
class LimitSubject:
    """One whose limits a request counts against: its key, its team, or everyone."""

    name: str
    """Of its counters in the store: `key:<id>`, `team:<name>` or `everyone`."""
    kind: LimitSubjectKind
    shown_as: str
    """The key's or team's name; empty for everyone."""
    rules: Mapping[str, LimitRule]
    """By limit name. Without a rule there is no limit."""

    @property
    def scope(self) -> str:
        """What the API, the command line and the metrics call it: `key:NAME`, `team:NAME`, …"""
        return f"{self.kind}:{self.shown_as}" if self.shown_as else self.kind


class Expected(NamedTuple):
    """A record of the store as it was read. An admission fails if it is another one now."""

    space: str
    name: str
    value: bytes
    """b"" if there is none."""


MAX_PRIORITY: Final = 10
"""Images that a key gets at most in each round of an account's queue."""


@frozen
class Principal:
    """Who sends a request: a gateway key, and whose limits its requests count against."""

    key_id: str
    key_name: str
    team: str | None
    subjects: tuple[LimitSubject, ...]
    """The key, its team if it has one, and everyone: each request counts against all of them."""
    expected: tuple[Expected, ...]
    """The records that this was made of."""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of the team and the key, for the records of its requests."""
    priority: int = 1
    """Images that the key gets in each round of an account's queue."""
    prepared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What modules have worked out of the other fields, by the module's name: `counted_limits` its
    commands, `interpret` a version of the key. A principal sends many requests, so each is worked
    out once."""

    @property
    def has_limits(self) -> bool:
        """Whether anything limits its requests, or would if it were not in shadow mode."""
        return any(subject.rules for subject in self.subjects)

    @property
    def is_limited(self) -> bool:
        """Whether anything limits its requests."""
        rules = (rule for subject in self.subjects for rule in subject.rules.values())
        return any(rule.mode == "enforce" for rule in rules)

    def without_limits(self) -> Principal:
        """The same without rules, for what is counted and must not be refused."""
        subjects = tuple(replace(subject, rules={}) for subject in self.subjects)
        return replace(self, subjects=subjects, prepared={})


@frozen
class LimitRefusal:
    """A limit that refused a purchase, as its counter was then: enough to refuse others alike."""

    key_id: str
    """The key whose limit it is; empty for a limit of a team or of everyone."""
    limit: str
    maximum: int
    amount: int
    """What the purchase needed."""
    used: int
    reserved: int
    resets_in: float
    retry_in: float
    subject: str = ""
    """The name of the limit subject; gateways that only limited keys leave it empty."""

    @property
    def subject_name(self) -> str:
        """The limit subject, also if an older gateway was refused."""
        return self.subject or f"key:{self.key_id}"


Representation: TypeAlias = Literal["raw", "base64"]
"""An image's bytes as they are, or as a JSON answer contains them. A link is made of a path."""

_SCALARS: Final = (int, float, str)

Outcome: TypeAlias = Literal["hit", "bought", "partial", "collapsed", "refused", "failed"]


class Record(NamedTuple):
    """One line of the ledger.

    A tuple, because every request makes three of them: so many fields of a frozen dataclass take
    longer to fill than the request takes to be validated.
    """

    id: str
    """The purchase's, or the request's if it bought nothing."""
    request_id: str
    time: float
    """Unix seconds: of the store at the purchase's reservation, else at the request's admission; of
    the gateway if the store was not asked."""
    key: str
    key_id: str
    team: str | None = None
    user: str | None = None
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    n: int | None = None
    outcome: Outcome = "refused"
    flags: tuple[str, ...] = ()
    error: str | None = None
    status: int = 200
    images: int = 0
    tokens: Mapping[str, int] = MappingProxyType({})
    cost_micros: int = 0
    """Micro-dollars."""
    saved_micros: int = 0
    """The original cost of the served images."""
    latency_ms: int = 0
    upstream_request_id: str | None = None
    prompt_hmac: str | None = None
    fingerprint: str | None = None
    corrects: str | None = None
    """The id of the record whose presumed charge this one corrects by the difference."""
    corrected_at: float | None = None
    """Of a correction: the store's time in Unix seconds. Its `time` is that of the record that it
    corrects."""
    client_address: str | None = None
    """Where the request came from, behind trusted proxies; None in records of older gateways."""
    count: int | None = None  # type: ignore[assignment]  # `tuple.count` is of no use here
    """Of a record of several refusals: how many. The ids are those of the first."""
    images_served: int | None = None
    """Images that were delivered without being bought, if any; `images` are those that were."""
    presumed_micros: int | None = None
    """Of a correction: the presumed charge that it replaces, below zero."""
    labels: Mapping[str, str] = MappingProxyType({})
    """Those of the team and the key."""
    tags: tuple[str, ...] = ()
    """Those of the request."""
    upstream: str | None = None
    """The name of the account at upstream that a purchase was sent to."""
    price_date: str | None = None
    """The date of the prices of a charge, as in `models.yaml`: `2026-11-01`."""
    costs: Mapping[str, int] = MappingProxyType({})
    """Micro-dollars by kind, which add up to `cost_micros`: kinds of tokens, `image` for a price
    per image, or `estimated`."""
    rounding: Mapping[str, int] = MappingProxyType({})
    """How many micro-dollars of `costs` come from rounding up once: by largest remainder."""
    limit: str | None = None
    """Of a refusal: the limit that refused it, if one did."""
    scope: str | None = None
    """Whose limit that is: `key:NAME`, `team:NAME` or `everyone`."""
    followed: str | None = None
    """Of a follower: the id of the purchase that it followed, of several the last one."""
    asked_model: str | None = None
    """The alias that the client asked for, which `model` served; None if it asked for `model`."""

    upstream_model: str | None = None
    """The model's name at that account, if it is another one."""

    def encode(self) -> bytes:
        """The record's bytes in the ledger: JSON without what `decode` adds."""
        # Of a hit a third: millions of records are kept. Compared without Python code, because
        # every hit encodes a record.
        fields = zip(self._fields, self, strict=True)
        stored = dict(compress(fields, map(ne, self, _DEFAULTS)))
        if self.request_id == self.id:
            del stored["request_id"]
        return orjson.dumps(stored)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object without the fields that are None or empty collections."""
        fields = zip(self._fields, self, strict=True)
        return {name: value for name, value in fields if value or isinstance(value, _SCALARS)}

    @staticmethod
    def decode(data: bytes) -> Record:
        """The inverse of `encode`."""
        return Record.from_dict(orjson.loads(data))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`, and of the JSON of `encode`; unknown fields are ignored."""
        known = {name: data[name] for name in Record._fields if name in data}
        lists = {name: tuple(data.get(name, ())) for name in ("flags", "tags")}
        return Record(**{"request_id": data["id"], **known, **lists})

    def but(self, **changes: Any) -> Record:
        """The same record with some fields changed."""
        # A third of the time of `_replace`, which looks every field up.
        fields = list(self)
        for name, value in changes.items():
            fields[_POSITIONS[name]] = value
        return tuple.__new__(Record, fields)


_POSITIONS: Final = {name: position for position, name in enumerate(Record._fields)}

_DEFAULTS: Final = tuple(Record._field_defaults.get(name, ...) for name in Record._fields)
"""`...` for a field without a default."""
