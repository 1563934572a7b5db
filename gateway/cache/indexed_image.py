"""The record of an image in the image index, and the lists that the image is in.

The lists are ordered sets: one of all images, and one of each key, model, size and tag. Their
members begin with the time at which the image was received, so they are in the order of time. What
changes after the purchase is in no record: slot and expiry are the entry's, hits are `image_hits`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import compress
from operator import ne
from typing import Any, Final, NamedTuple

import orjson

from gateway.catalog import SIZE
from gateway.frozen import frozen
from gateway.images import Image, Record

LISTS: Final = "images"
"""The space of the ordered sets."""

ALL: Final = "all"
"""The list of all images."""

MAX_LISTED: Final = 100_000
"""The most images of one list. The oldest leave it first; they stay in the cache."""

MEMBER: Final = re.compile(r"[0-9a-f]{16}(?P<id>[A-Za-z0-9]{1,64})")


@frozen
class ImageOrigin:
    """Who bought an image, and with what request."""

    key_id: str = ""
    key: str = ""
    """The key's name at the time of the purchase."""
    team: str | None = None
    size: str | None = None
    quality: str | None = None
    tags: tuple[str, ...] = ()
    """Those of the request that are stored."""
    prompt: str | None = None
    """Only with `cache.store_prompts`, as is the revised one."""

    @staticmethod
    def of(record: Record, tags: Sequence[str], prompt: str | None) -> ImageOrigin:
        """The origin of the images of a purchase."""
        return ImageOrigin(
            key_id=record.key_id,
            key=record.key,
            team=record.team,
            size=record.size,
            quality=record.quality,
            tags=tuple(tags),
            prompt=prompt,
        )


class IndexedImage(NamedTuple):
    """The record of an image.

    A tuple, because every purchase makes several: it is made and encoded without Python code.
    """

    digest: str
    format: str
    fingerprint: str
    is_tombstone: bool = False
    """The image was taken down."""
    created_at: float = 0.0
    """Unix seconds at which it was received, or its source if it was transcoded."""
    model: str = ""
    size: str = ""
    """`1024x1024`, as requested; empty for an SVG without a size."""
    quality: str | None = None
    width: int = 0
    height: int = 0
    size_bytes: int = 0
    cost_micros: int = 0
    """What it, or its source, cost: a hit saves as much."""
    is_transcoded: bool = False
    key_id: str = ""
    """The key that bought it; empty if that is not known."""
    key: str = ""
    team: str | None = None
    tags: tuple[str, ...] = ()
    prompt: str | None = None
    revised_prompt: str | None = None
    active: tuple[str, ...] = ()
    """Of an SVG: what a browser could run or load."""

    @staticmethod
    def of(image: Image, fingerprint: str, origin: ImageOrigin | None = None) -> IndexedImage:
        """The record of an image of an entry; without an origin what the image itself says."""
        bare = IndexedImage(
            image.digest,
            image.format,
            fingerprint,
            created_at=image.created_at,
            model=image.model,
            size=image.echoed.get("size") or image.size_text,
            quality=image.echoed.get("quality"),
            width=image.width,
            height=image.height,
            size_bytes=image.size_bytes,
            cost_micros=image.cost_micros,
            is_transcoded=image.transcoded_from is not None,
            active=image.active,
        )
        return bare if origin is None else bare.but_bought(image, origin)

    def but_bought(self, image: Image, origin: ImageOrigin) -> IndexedImage:
        """The record of the image itself, `of` which this is, with its origin."""
        asked = image.echoed.get("size") or origin.size or ""
        return self._replace(
            size=asked if SIZE.fullmatch(asked) else self.size,
            quality=self.quality or origin.quality,
            key_id=origin.key_id,
            key=origin.key,
            team=origin.team,
            tags=origin.tags,
            prompt=origin.prompt,
            revised_prompt=None if origin.prompt is None else image.revised_prompt,
        )

    @property
    def origin(self) -> ImageOrigin:
        """For an image that is transcoded from this one. Its entry has none of the tags."""
        return ImageOrigin(
            self.key_id,
            self.key,
            team=self.team,
            size=self.size,
            quality=self.quality,
            prompt=self.prompt,
        )

    @property
    def lists(self) -> tuple[str, ...]:
        """The names of the lists that the image is in."""
        named = {"model": self.model, "size": self.size, "key": self.key_id, "name": self.key}
        lists = [ALL, *[list_name(kind, value) for kind, value in named.items() if value]]
        return (*lists, *[list_name("tag", tag) for tag in self.tags])

    def but_evicted(self) -> IndexedImage:
        """The record that stays of an image that was evicted, while a link to it may be open."""
        return IndexedImage(self.digest, self.format, self.fingerprint)

    def but_tombstone(self) -> IndexedImage:
        """The record that stays of an image that was taken down: nothing of its origin."""
        return IndexedImage(self.digest, self.format, self.fingerprint, is_tombstone=True)

    def encode(self) -> bytes:
        """The record's bytes: JSON without what `decode` adds."""
        members = zip(self._fields, self, strict=True)
        return orjson.dumps(dict(compress(members, map(ne, self, _DEFAULTS))))

    def encode_evicted(self) -> bytes:
        """As `but_evicted().encode()`, in a tenth of the time: every purchase expects one."""
        names = {"digest": self.digest, "format": self.format, "fingerprint": self.fingerprint}
        return orjson.dumps(names)

    @staticmethod
    def decode(encoded: bytes) -> IndexedImage:
        """The inverse of `encode`. Raises one of `stored.UNREADABLE` for other bytes."""
        data: dict[str, Any] = orjson.loads(encoded)
        known = {name: data[name] for name in IndexedImage._fields if name in data}
        lists = {name: tuple(data.get(name, ())) for name in ("tags", "active")}
        return IndexedImage(**{**known, **lists})


_DEFAULTS: Final = tuple(IndexedImage._field_defaults.get(name) for name in IndexedImage._fields)
"""None for a field without a default: no text is that."""


def list_name(kind: str, value: str) -> str:
    """The name of the list of a `key` (its id), `name` (a key's), `model`, `size` or `tag`."""
    return f"{kind}:{value}"


def list_time(at: float) -> str:
    """The start of the members of a time in Unix seconds, to the microsecond."""
    return f"{max(0, round(at * 1e6)):016x}"


def list_member(image_id: str, indexed: IndexedImage) -> str:
    """The image in the lists."""
    return list_time(indexed.created_at) + image_id
