"""The nouns that all rooms share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import orjson

from gateway.values import UNIT_SECONDS

MAX_SLOTS: Final = 64
"""Images that one entry can hold: slots 0…63 (CONTRACT §6)."""

MAX_AGE_SECONDS: Final = 2**31
"""What RFC 9111 §1.2.2 has a cache read for any longer time."""

_WITHIN: Final = re.compile(r"within:([0-9]{1,9})(s|m|h|d)")


T = TypeVar("T")


def decode_fields(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from a JSON object in the store.

    Fields that `kind` does not know are ignored, and fields that are missing have their defaults.
    A gateway can therefore share a store with a newer or older one.
    """
    known = {f.name for f in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in data.items() if name in known})


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One valid request, every default resolved, nothing coerced, the prompt verbatim."""

    model: str
    prompt: str
    n: int = 1
    parameters: Mapping[str, str | int] = field(default_factory=lambda: MappingProxyType({}))
    """What changes the image and is off its default: size, quality, style, background, …"""
    response_format: str = "b64_json"
    """`b64_json` or `url`: how the caller wants the images."""
    asked_response_format: str | None = None
    """`response_format` as the caller wrote it; None when it was omitted or null."""
    user: object = None
    """As the caller gave it: a string or, where validation is lenient, any JSON; None if absent."""
    stream: bool = False
    partial_images: int = 0
    variation: int = 0
    """The first slot that is asked for; the request asks for `variation … variation + n − 1`."""

    @property
    def slots(self) -> range:
        """The slots of the entry that this request asks for."""
        return range(self.variation, self.variation + self.n)

    @property
    def user_text(self) -> str:
        """`user` as a line of a report: a string as it is, other JSON written out; "" if absent."""
        if self.user is None or isinstance(self.user, str):
            return self.user or ""
        return json.dumps(self.user, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a purchase, or of one image's share of it, by kind."""

    text_in: int = 0
    image_in: int = 0
    image_out: int = 0
    text_out: int = 0
    has_output_details: bool = False
    """Whether upstream split its output tokens; only then does an answer show the split."""

    @property
    def total(self) -> int:
        """All tokens, in and out."""
        return self.text_in + self.image_in + self.image_out + self.text_out

    def shares(self, count: int) -> list[Usage]:
        """`count` integer shares, as even as can be, whose sum is this usage."""

        def split(tokens: int, index: int) -> int:
            return tokens // count + (index < tokens % count)

        return [
            Usage(
                text_in=split(self.text_in, i),
                image_in=split(self.image_in, i),
                image_out=split(self.image_out, i),
                text_out=split(self.text_out, i),
                has_output_details=self.has_output_details,
            )
            for i in range(count)
        ]

    @staticmethod
    def sum(usages: Iterable[Usage]) -> Usage:
        """The usage of several images together."""
        usages = list(usages)
        if len(usages) == 1:
            return usages[0]
        return Usage(
            text_in=sum(u.text_in for u in usages),
            image_in=sum(u.image_in for u in usages),
            image_out=sum(u.image_out for u in usages),
            text_out=sum(u.text_out for u in usages),
            has_output_details=any(u.has_output_details for u in usages),
        )


@dataclass(frozen=True, slots=True)
class Image:
    """One stored image: what an entry's slot holds. The bytes lie apart, under `digest`."""

    id: str
    """24 letters and digits, unique; what its link and `x-gateway-image-ids` show."""
    digest: str
    """SHA-256 of the bytes, hex."""
    format: str
    """`png`, `jpeg` or `webp`, as found in the bytes."""
    width: int
    height: int
    size_bytes: int
    created_at: float
    """Unix seconds at which it was received."""
    revised_prompt: str | None = None
    usage: Usage | None = None
    """This image's share; None for models that are billed per image."""
    cost_micros: int = 0
    """This image's share of what its purchase cost, in micro-dollars."""
    echoed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`size`, `quality`, `background`, `output_format` as upstream echoed them."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Further keys that upstream gave this image; relayed untouched (WIRE §8 row 19)."""
    model: str = ""
    """The model that made it."""
    transcoded_from: str | None = None
    """The digest of the image that it was made from, where it was not bought."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Image:
        """An image from the JSON object that orjson makes of one."""
        usage = data.get("usage")
        return decode_fields(
            Image, {**data, "usage": decode_fields(Usage, usage) if usage else None}
        )


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a purchase reserves or is charged; every limit counts one of these fields."""

    images: int = 0
    tokens: int = 0
    usd_micros: int = 0

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.images - other.images,
            self.tokens - other.tokens,
            self.usd_micros - other.usd_micros,
        )


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """What upstream sent for one purchase, parsed but not yet checked as images."""

    images: tuple[UpstreamImage, ...]
    usage: Usage | None
    echoed: Mapping[str, str]
    """`size`, `quality`, `background`, `output_format` where upstream echoed them."""
    upstream_request_id: str | None = None


@dataclass(frozen=True, slots=True)
class UpstreamImage:
    """One element of upstream's `data`: bytes, or a link, or neither when it was damaged."""

    data: bytes | None = None
    url: str | None = None
    revised_prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_link(self) -> bool:
        """Whether its bytes are still to be fetched."""
        return self.data is None and self.url is not None


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An image under way, as upstream streams it: a preview, not checked, never in an entry."""

    index: int
    """Counts from 0; upstream may leave numbers out."""
    data: bytes
    echoed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`size`, `quality`, `background`, `output_format` where upstream echoed them."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a key says for clients that cannot send Cache-Control; the default is `always`."""

    no_cache: bool = False
    max_age_seconds: int | None = None

    @staticmethod
    def parse(text: str) -> Reuse:
        """`always`, `never`, or `within:D` with D such as `90s`, `10m`, `12h`, `7d`.

        Raises `ValueError`, which says what was expected.
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


@dataclass(frozen=True, slots=True)
class LimitSubject:
    """Who a request is counted for: a gateway key, as the rooms that count know it."""

    key_id: str
    key_name: str
    team: str | None
    limits: Mapping[str, int]
    """Limit name → the most it may show, in the limit's unit (micro-dollars for `usd_…`)."""
    record: bytes
    """The key's record as read from the store; an admission holds only while it is current."""
    prepared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a room has made of the limits once, under the room's name: an account lives long."""


Representation: TypeAlias = Literal["raw", "base64"]
"""The bytes of an image as they are, or as a JSON answer contains them. A link is a path."""

Outcome: TypeAlias = Literal["hit", "bought", "partial", "collapsed", "refused", "failed"]

_PLAIN: Final = (int, float, str)


class Record(NamedTuple):
    """One line of the ledger. `id` is the request's, or the purchase's where something was bought.

    Money in micro-dollars, time in Unix seconds. `saved_micros` is what images that were not
    bought had cost when they were.

    A tuple, because every request makes three of them: so many fields of a frozen dataclass take
    longer to fill than the request takes to be validated.
    """

    id: str
    request_id: str
    time: float
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
    saved_micros: int = 0
    latency_ms: int = 0
    upstream_request_id: str | None = None
    prompt_hmac: str | None = None
    fingerprint: str | None = None
    corrects: str | None = None
    """The record whose presumed charge this one corrects by the difference."""

    def encode(self) -> bytes:
        """JSON without what is absent."""
        return orjson.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """A JSON object without the fields that are empty or None; 0 and "" stay."""
        fields = zip(self._fields, self, strict=True)
        return {name: value for name, value in fields if value or isinstance(value, _PLAIN)}

    @staticmethod
    def decode(data: bytes) -> Record:
        """The inverse of `encode`."""
        return Record.from_dict(orjson.loads(data))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`; unknown fields are ignored."""
        known = {name: data[name] for name in Record._fields if name in data}
        return Record(**{**known, "flags": tuple(data.get("flags", ()))})

    def but(self, **changes: Any) -> Record:
        """The same record with some fields changed."""
        return self._replace(**changes)
