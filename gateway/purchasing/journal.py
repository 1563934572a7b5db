"""The payloads of a purchase's journal, one for each open state.

The store keeps them as bytes that it does not read. Each holds all that another worker needs to
finish the purchase (`recovery`). A decoder ignores fields that it does not know, so that gateways
of two versions can share a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson

from gateway.billing.pricing import UNKNOWN_PRICE
from gateway.cache.flight_events import Flight
from gateway.cache.idempotency_results import IdempotentRequest
from gateway.images import Amounts, Image, Record, decode_fields
from gateway.stored import UNREADABLE

RECORD_TEXTS: Final = (
    *("request_id", "key", "key_id", "team", "user", "model", "size", "quality"),
    *("prompt_hmac", "fingerprint", "client_address", "upstream", "price_date"),
)
"""The fields of a record that are text."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reserved:
    """Nothing was received yet: enough to settle the purchase at its estimate, or to cancel it."""

    purchase: str
    flight: Flight | None
    """None for a purchase that is neither shared nor stored."""
    estimate: Amounts
    record: Record
    tags: tuple[str, ...] = ()
    """Of the request, for the entry once it has the images."""
    idempotent: IdempotentRequest | None = None
    """The idempotency key of the request, which gets the purchase's result."""
    cached: tuple[tuple[int, Image], ...] = ()
    """The images that such a request had already, with their slots: they are in its result too."""
    prompt: str | None = None
    """Of the request, for the image index; only with `cache.store_prompts`."""
    _encoded: bytes = field(default=b"", init=False, repr=False, compare=False)

    def encode(self) -> bytes:
        """The payload's bytes."""
        return b'{"reserved":%b}' % self.encoded

    @property
    def encoded(self) -> bytes:
        """Its JSON object. Both payloads of a purchase have it, so it is encoded once."""
        if not self._encoded:
            # orjson leaves out the fields that begin with an underscore. Copied, because its bytes
            # keep the buffer that they were written to: 4 KB and more, while upstream works.
            encoded = bytes(memoryview(orjson.dumps(self, default=_as_json)))
            object.__setattr__(self, "_encoded", encoded)
        return self._encoded


@dataclass(frozen=True, slots=True)
class Received:
    """The bytes are stored: all that entry, index and ledger need."""

    reserved: Reserved
    images: Mapping[int, Image]
    """By the slot that they were bought for."""
    charge: Amounts
    record: Record
    _encoded_record: bytes = field(default=b"", init=False, repr=False, compare=False)

    def encode(self) -> bytes:
        """The payload's bytes."""
        encoded = {
            "reserved": orjson.Fragment(self.reserved.encoded),
            "record": orjson.Fragment(self.encoded_record),
        }
        members = {name: getattr(self, name) for name in self.__match_args__} | encoded
        return orjson.dumps(members, default=_as_json, option=orjson.OPT_NON_STR_KEYS)

    @property
    def encoded_record(self) -> bytes:
        """The record as the ledger has it. The payload has the same bytes."""
        if not self._encoded_record:
            object.__setattr__(self, "_encoded_record", self.record.encode())
        return self._encoded_record


class UnreadableJournal(Exception):
    """The payload is no JSON, or not of this shape."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What can be read of a payload that cannot be read as a whole."""

    flight: Flight | None = None
    idempotent: IdempotentRequest | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the ledger record that have the right type."""
    price_flags: tuple[str, ...] = ()
    """Those of its flags that its price gave."""


def decode_payload(payload: bytes) -> Reserved | Received:
    """The inverse of `encode`. Raises `UnreadableJournal` for other bytes."""
    try:
        return _decode_payload(payload)
    except UNREADABLE as fault:
        raise UnreadableJournal(type(fault).__name__) from None


def decode_remains(payload: bytes) -> Remains:
    """The parts of a payload that can still be read; never raises."""
    with suppress(*UNREADABLE):
        data = orjson.loads(payload)["reserved"]
        flight = idempotent = None
        with suppress(*UNREADABLE):
            flight = _checked(Flight.from_dict(data["flight"]), "id", "fingerprint")
        with suppress(*UNREADABLE):
            idempotent = _checked(IdempotentRequest.from_dict(data["idempotent"]), "name", "lock")
        record = data.get("record")
        flags = record.get("flags") if isinstance(record, dict) else None
        is_unknown = isinstance(flags, list) and UNKNOWN_PRICE in flags
        return Remains(
            flight,
            idempotent,
            _decode_record_fields(record),
            price_flags=(UNKNOWN_PRICE,) if is_unknown else (),
        )
    return Remains()


def _checked(found: T, *texts: str) -> T:
    if not all(isinstance(getattr(found, name), str) for name in texts):
        raise TypeError
    return found


def _decode_record_fields(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        return {}
    texts = {n: data[n] for n in RECORD_TEXTS if isinstance(data.get(n), str)}
    time = data.get("time")
    return texts | ({"time": time} if isinstance(time, float) else {})


def _decode_payload(payload: bytes) -> Reserved | Received:
    data = orjson.loads(payload)
    reserved = _decode_reserved(data["reserved"])
    if "record" not in data:
        return reserved
    decoded = {
        "reserved": reserved,
        "images": _decode_images(data["images"]),
        "charge": decode_fields(Amounts, data["charge"]),
        "record": Record.from_dict(data["record"]),
    }
    return decode_fields(Received, {**data, **decoded})


def _decode_reserved(data: Mapping[str, Any]) -> Reserved:
    flight, idempotent = data["flight"], data.get("idempotent")
    decoded = {
        "flight": Flight.from_dict(flight) if flight else None,
        "estimate": decode_fields(Amounts, data["estimate"]),
        "record": Record.from_dict(data["record"]),
        "tags": tuple(data.get("tags", ())),
        "idempotent": IdempotentRequest.from_dict(idempotent) if idempotent else None,
        "cached": tuple((slot, Image.from_dict(image)) for slot, image in data.get("cached", ())),
    }
    return decode_fields(Reserved, {**data, **decoded})


def _decode_images(data: Mapping[str, Any]) -> dict[int, Image]:
    return {int(slot): Image.from_dict(image) for slot, image in data.items()}


def _as_json(value: Record | Mapping[str, Any]) -> Any:
    """Encodes the types that orjson does not know."""
    return orjson.Fragment(value.encode()) if isinstance(value, Record) else dict(value)
