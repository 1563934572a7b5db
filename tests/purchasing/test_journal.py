"""Journal payloads can get new fields: gateways of two versions read each other's payloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from gateway.cache.flight_events import Flight
from gateway.images import Amounts, Image, Record
from gateway.purchasing import journal
from gateway.purchasing.journal import Received, Reserved, decode_payload, decode_remains

RECORD = Record("p", "r", 1.0, "alice", "key_1")
RESERVED = Reserved("p", Flight("p", "f", (0, 2)), Amounts(1, 2, 3), RECORD)
IMAGE = Image("a", "0" * 64, "png", 1, 1, 1, 0.0)
RECEIVED = Received(RESERVED, {0: IMAGE, 2: IMAGE}, Amounts(1, 2, 3), RECORD)
UNSTORED = Reserved("p", None, Amounts(1, 2, 3), RECORD)
TAGGED = Reserved("p", Flight("p", "f", (0, 2)), Amounts(1, 2, 3), RECORD, ("spring", "sale"))


@dataclass(frozen=True, slots=True)
class NewerReserved(Reserved):
    reserved_at: float = 0.0


@dataclass(frozen=True, slots=True)
class NewerReceived(Received):
    received_at: float = 0.0


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal module of a gateway whose payloads have a further field each."""
    monkeypatch.setattr(journal, "Reserved", NewerReserved)
    monkeypatch.setattr(journal, "Received", NewerReceived)


@pytest.mark.parametrize("payload", [RESERVED, UNSTORED, RECEIVED, TAGGED])
def test_a_payload_is_read_as_it_was_written(payload: Reserved | Received) -> None:
    assert decode_payload(payload.encode()) == payload


def test_the_second_payload_has_the_bytes_of_the_first_and_of_the_ledger() -> None:
    begin = RESERVED.encode().removesuffix(b"}")
    assert RECEIVED.encode().startswith(begin + b",")
    assert RECORD.encode() in RECEIVED.encode().removeprefix(begin)


@pytest.mark.parametrize("payload", [RESERVED, RECEIVED])
def test_a_payload_of_an_older_gateway_has_all_fields_of_its_record(
    payload: Reserved | Received,
) -> None:
    data = orjson.loads(payload.encode())
    data["reserved"]["record"] = RECORD.to_dict()
    if "record" in data:
        data["record"] = RECORD.to_dict()
    assert decode_payload(orjson.dumps(data)) == payload


@pytest.mark.usefixtures("newer")
def test_a_new_field_needs_no_other_code() -> None:
    reserved = NewerReserved("p", None, Amounts(1, 2, 3), RECORD, reserved_at=1.5)
    received = NewerReceived(reserved, {0: IMAGE}, Amounts(1, 2, 3), RECORD, received_at=2.5)
    assert decode_payload(reserved.encode()) == reserved
    assert decode_payload(received.encode()) == received


@pytest.mark.usefixtures("newer")
def test_a_newer_gateway_reads_an_older_one_with_defaults() -> None:
    read = decode_payload(RECEIVED.encode())
    assert isinstance(read, NewerReceived)
    assert isinstance(read.reserved, NewerReserved)
    assert (read.received_at, read.reserved.reserved_at) == (0.0, 0.0)


@pytest.mark.parametrize("payload", [RESERVED, RECEIVED])
def test_an_older_gateway_ignores_the_fields_of_a_newer_one(payload: Reserved | Received) -> None:
    def add_field(value: Any) -> Any:
        if isinstance(value, list):
            return [add_field(item) for item in value]
        if not isinstance(value, dict):
            return value
        grown = {name: add_field(item) for name, item in value.items()}
        by_slot = all(name.isdecimal() for name in grown)  # a mapping, not a record
        return grown if by_slot else grown | {"of_a_newer_gateway": 1}

    written = orjson.dumps(add_field(orjson.loads(payload.encode())))
    assert b"of_a_newer_gateway" in written
    assert decode_payload(written) == payload


def test_the_price_of_a_purchase_is_read_of_a_payload_that_cannot_be_read_as_a_whole() -> None:
    record = RECORD.but(upstream="east", price_date="2026-11-01", flags=("unknown_price", "x"))
    data = orjson.loads(Reserved("p", None, Amounts(1, 2, 3), record).encode())
    del data["reserved"]["estimate"]
    remains = decode_remains(orjson.dumps(data))
    assert (remains.record["upstream"], remains.record["price_date"]) == ("east", "2026-11-01")
    assert remains.price_flags == ("unknown_price",)


@pytest.mark.parametrize("flags", [None, [], ["presumed"], "unknown_price", 7])
def test_other_flags_are_none_of_the_price(flags: object) -> None:
    data = orjson.loads(RESERVED.encode())
    data["reserved"]["record"]["flags"] = flags
    assert decode_remains(orjson.dumps(data)).price_flags == ()
