"""What the store has under an idempotency key: a lock, or the result of its request.

A request that acquires the key has a lock, which lasts for seconds and is renewed. From its
reservation to its settlement the key belongs to its purchase: that lock lasts as long as a result,
because the purchase's journal outlives the worker. Closing the journal ends the lock.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import Charge, UpstreamFailure
from gateway.images import Image, decode_fields
from gateway.stored import read_stored


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """An idempotency key of one client, and a request that was sent with it."""

    name: str
    request: str
    """A hash of the request: equal for equal requests, however they are spelled."""
    key_id: str
    lock: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)
    """Names this request's lock, so that no other request renews, releases or replaces it."""

    @staticmethod
    def of(key_id: str, idempotency_key: str, *, request: tuple[object, ...]) -> IdempotentRequest:
        """The same idempotency key of another gateway key is another one."""
        # As JSON, because two different pairs could be equal once they are joined.
        name = hashlib.sha256(orjson.dumps([key_id, idempotency_key])).hexdigest()
        return IdempotentRequest(name, hashlib.sha256(orjson.dumps(request)).hexdigest(), key_id)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> IdempotentRequest:
        """A request from the JSON object that orjson makes of one."""
        return decode_fields(IdempotentRequest, data)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The request that an idempotency key was first sent with, and its result."""

    request: str
    images: Mapping[int, Image] = field(default_factory=dict)
    """In the order of the answer."""
    failure: UpstreamFailure | None = None
    lock: str | None = None
    """The lock of the request that has, or had, the key."""
    purchase: str | None = None
    """The purchase that the key belongs to; only of a lock."""
    encoded: bytes | None = None
    """As the store has it; None for a lock, and for a result that is not stored yet."""


def encode_lock(idempotent: IdempotentRequest, *, purchase: str | None = None) -> bytes:
    """The lock of a request, or of its purchase."""
    lock = {"request": idempotent.request, "lock": idempotent.lock}
    return orjson.dumps(lock if purchase is None else lock | {"purchase": purchase})


def encode_images(idempotent: IdempotentRequest, images: Sequence[Image]) -> bytes:
    """The result of a request that was answered with images."""
    by_position = {str(position): image for position, image in enumerate(images)}
    return _encode_result(idempotent, {"images": by_position})


def encode_failure(idempotent: IdempotentRequest, failure: UpstreamFailure) -> bytes:
    """The result of a request whose purchase failed."""
    return _encode_result(idempotent, {"images": {}, "failure": failure.to_dict()})


def _encode_result(idempotent: IdempotentRequest, result: Mapping[str, Any]) -> bytes:
    whole = {"request": idempotent.request, "lock": idempotent.lock, **result}
    return orjson.dumps(whole, default=dict)


def decode_result(value: bytes) -> StoredResult | None:
    """A lock or a result; None for other bytes."""
    return read_stored("idempotency_result", value, _decode_result)


def _decode_result(value: bytes) -> StoredResult:
    data = orjson.loads(value)
    lock = data.get("lock")
    if "images" not in data:
        return StoredResult(data["request"], lock=lock, purchase=data.get("purchase"))
    failure = data.get("failure")
    return StoredResult(
        data["request"],
        images={int(n): Image.from_dict(image) for n, image in data["images"].items()},
        failure=UpstreamFailure.from_dict(failure) if failure else None,
        lock=lock,
        encoded=value,
    )


def worker_died() -> UpstreamFailure:
    """The failure of a purchase whose worker died: it may have been charged."""
    return UpstreamFailure(
        "The gateway's worker died while it was waiting for this image.", charge=Charge.PRESUMED
    )
