"""What a purchase's journal says in each of its states.

The store keeps these as bytes that it does not read; whoever finds an open journal can go on from
what stands there. What going on means is `purchase.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.billing.ledger import Record, record_from_dict
from gateway.cache.entries import picture_from_dict
from gateway.cache.flights import Flight
from gateway.images import Amounts, Picture


@dataclass(frozen=True, slots=True)
class Reserved:
    """The journal's payload before anything came: enough to presume and to let go."""

    purchase: str
    flight: Flight | None
    """None for a purchase that nobody shares and nothing stores."""
    most: Amounts
    record: Record

    def encode(self) -> bytes:
        """The payload's bytes."""
        return orjson.dumps({"reserved": self}, default=_as_dict)


@dataclass(frozen=True, slots=True)
class Received:
    """The journal's payload once the bytes are stored: all that entry and ledger need."""

    reserved: Reserved
    pictures: Mapping[int, Picture]
    """Slot that was asked for → picture."""
    charge: Amounts
    record: Record

    def encode(self) -> bytes:
        """The payload's bytes."""
        said = {
            "reserved": self.reserved,
            "pictures": {str(slot): picture for slot, picture in self.pictures.items()},
            "charge": self.charge,
            "record": self.record,
        }
        return orjson.dumps(said, default=_as_dict)


def decode_payload(payload: bytes) -> Reserved | Received:
    """What a journal's payload says."""
    said = orjson.loads(payload)
    reserved = _reserved_from_dict(said["reserved"])
    if "record" not in said:
        return reserved
    return Received(
        reserved,
        pictures={int(n): picture_from_dict(p) for n, p in said["pictures"].items()},
        charge=Amounts(**said["charge"]),
        record=record_from_dict(said["record"]),
    )


def _as_dict(value: Record | Mapping[str, Any]) -> dict[str, Any]:
    """What orjson does not know."""
    return value.to_dict() if isinstance(value, Record) else dict(value)


def _reserved_from_dict(data: Mapping[str, Any]) -> Reserved:
    flight = data["flight"]
    return Reserved(
        purchase=data["purchase"],
        flight=Flight(**{**flight, "slots": tuple(flight["slots"])}) if flight else None,
        most=Amounts(**data["most"]),
        record=record_from_dict(data["record"]),
    )
