"""What a ledger record adds to the totals: its rows and its amounts. Pure.

A row is a JSON object of dimensions, an amount has a short name in the store. Decoders ignore names
that they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

from gateway.billing.totals_periods import MAX_TIME, Series
from gateway.images import Record

OTHER: Final = "other"
MAX_VALUE: Final = 64
"""Characters of a model, size or quality; a longer one is `other`."""
MAX_NAME: Final = 256
"""Characters of a key, team or user; the rest is cut off."""
MAX_LABELS_BYTES: Final = 1024
MAX_AMOUNT: Final = 2**53
"""Redis counts exactly below it."""
MAX_KINDS: Final = 32
"""Kinds of tokens in one record."""
DEFAULT_OUTCOME: Final = Record._field_defaults["outcome"]
"""Of a record that does not say it: `Record.encode` leaves out what has its default."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What the records of a row add up to. Corrections are in it, so a sum may be negative."""

    requests: int = 0
    hits: int = 0
    images_bought: int = 0
    images_served: int = 0
    """Without a purchase: from the cache or another request's flight."""
    cost_micros: int = 0
    saved_micros: int = 0
    presumed_micros: int = 0
    """The part of the cost that was presumed and not corrected since."""
    tokens: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """By kind."""
    costs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Micro-dollars by kind. Records of older gateways have none."""


# Names in the store. A letter, because there is one for each sum of each row.
_CODES: Final = {
    "requests": "r",
    "hits": "h",
    "images_bought": "b",
    "images_served": "v",
    "cost_micros": "c",
    "saved_micros": "s",
    "presumed_micros": "p",
}
_KIND_CODES: Final = {
    "text_in": "ti",
    "image_in": "ii",
    "text_out": "to",
    "image_out": "io",
    "cached_text_in": "cti",
    "cached_image_in": "cii",
    "estimated": "e",
    "image": "im",
}
_NAMES: Final = {code: name for name, code in _CODES.items()}
_KINDS: Final = {code: kind for kind, code in _KIND_CODES.items()}
_KIND_PREFIX: Final = "t_"
"""Of kinds that this version does not know."""
_COST_PREFIX: Final = "k_"
"""Of the cost of a kind, before the name of the kind's tokens."""


_NEEDED: Final = (
    *("key_id", "key", "team", "user", "model", "size", "quality", "outcome", "count"),
    *("images", "images_served", "cost_micros", "saved_micros", "presumed_micros"),
    *("labels", "flags", "tokens", "costs"),
)
"""All fields of a record that the totals need, besides its time and what it corrects."""
_AMOUNTS: Final = (
    *(("b", "images"), ("v", "images_served"), ("c", "cost_micros")),
    *(("s", "saved_micros"), ("p", "presumed_micros")),
)
"""The fields of a record that are amounts, with their names in the store."""


class RecordRows(NamedTuple):
    """The rows that a record belongs to, as text."""

    row: str
    other: str
    user_row: str
    other_user: str


_NO_ROWS: Final = RecordRows("", "", "", "")


class RecordAmounts(NamedTuple):
    """What of a record the totals need."""

    time: float
    key_id: str
    has_user: bool
    rows: RecordRows
    amounts: Mapping[str, int]
    team: str | None = None
    model: str | None = None
    labels: Mapping[str, str] = MappingProxyType({})


def decode_record(data: bytes) -> RecordAmounts | None:
    """What the totals need of a record; None for one that cannot be read.

    The JSON object itself, not `images.Record`: fields that this version does not know, such as
    kinds of tokens, are counted too.
    """
    try:
        return _decode_record(orjson.loads(data), _rows)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def decode_charge(data: bytes) -> RecordAmounts | None:
    """The same without its rows, which take as long as all the rest."""
    try:
        return _decode_record(orjson.loads(data), lambda *_: _NO_ROWS)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _decode_record(record: dict[str, Any], rows_of: Callable[..., RecordRows]) -> RecordAmounts:
    moment = record["time"]
    if isinstance(moment, bool) or not 0 <= moment < MAX_TIME:
        raise ValueError("no time")
    # `null` is a value in some fields, and absent in others.
    if rows_of is _rows and "corrects" not in record and None not in record.values():
        of_all_like_it = _decode_like(orjson.dumps([*map(record.get, _NEEDED)]))
        return tuple.__new__(RecordAmounts, (float(moment), *of_all_like_it[1:]))
    return _decode_rest(record, float(moment), rows_of)


@lru_cache(maxsize=4096)
def _decode_like(needed: bytes) -> RecordAmounts:
    """A record with these `_NEEDED` fields, at time 0. As JSON, in which `1` is not `true`.

    Most records are like many others: a hit differs in its time, a purchase in its ids and its
    latency besides. So most are decoded once, which is a tenth of the work.
    """
    given = zip(_NEEDED, orjson.loads(needed), strict=True)
    return _decode_rest({name: value for name, value in given if value is not None}, 0.0, _rows)


def _decode_rest(
    record: Mapping[str, Any], moment: float, rows_of: Callable[..., RecordRows]
) -> RecordAmounts:
    user = _cut(record.get("user"))
    key_id, labels = _cut(record["key_id"]) or "", record.get("labels")
    rows = rows_of(
        key_id,
        _cut(record["key"]),
        _cut(record.get("team")),
        _value(record.get("model")),
        _value(record.get("size")),
        _value(record.get("quality")),
        _value(record.get("outcome", DEFAULT_OUTCOME)),
        _labels(labels) if labels else None,
        user,
    )
    return RecordAmounts(
        moment,
        key_id,
        user is not None,
        rows,
        _amounts(record),
        record.get("team"),
        record.get("model"),
        labels or {},
    )


def _amounts(record: Mapping[str, Any]) -> dict[str, int]:
    """The amounts that a record adds, by their names in the store, without zeros."""
    amounts = {code: _whole(record[name]) for code, name in _AMOUNTS if name in record}
    if record.get("corrects") is None:
        amounts["r"] = requests = _whole(record.get("count")) or 1
        if record.get("outcome") == "hit":
            amounts["h"] = requests
        if "presumed" in record.get("flags", ()):
            amounts["p"] = amounts.get("p", 0) + amounts.get("c", 0)
    # A hit has neither.
    if tokens := record.get("tokens"):
        _add_kinds(amounts, tokens, prefix="")
    if costs := record.get("costs"):
        _add_kinds(amounts, costs, prefix=_COST_PREFIX)
    return {code: amount for code, amount in amounts.items() if amount}


def _add_kinds(amounts: dict[str, int], kinds: Mapping[str, object], *, prefix: str) -> None:
    if len(kinds) > MAX_KINDS:
        raise ValueError("too many kinds")
    for kind, amount in kinds.items():
        code = prefix + (_KIND_CODES.get(kind) or _KIND_PREFIX + _plain(kind))
        amounts[code] = amounts.get(code, 0) + _whole(amount)


def _whole(value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or abs(value) > MAX_AMOUNT:
        raise ValueError("no amount")
    return value


def _plain(kind: str) -> str:
    """A kind of tokens as the store's names are: small letters and `_`."""
    is_plain = len(kind) <= MAX_VALUE and all("a" <= c <= "z" or c == "_" for c in kind)
    return kind if kind and is_plain else OTHER


def _cut(value: str | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError("no text")
    return value[:MAX_NAME]


def _value(value: str | None) -> str | None:
    return OTHER if value is not None and len(value) > MAX_VALUE else _cut(value)


def _labels(labels: Mapping[str, str]) -> str:
    """A label set as text: the same set is the same text."""
    encoded = orjson.dumps(labels, option=orjson.OPT_SORT_KEYS)
    return encoded.decode() if len(encoded) <= MAX_LABELS_BYTES else f'"{OTHER}"'


@lru_cache(maxsize=8192)
def _rows(
    key_id: str,
    key: str | None,
    team: str | None,
    model: str | None,
    size: str | None,
    quality: str | None,
    outcome: str | None,
    labels: str | None,
    user: str | None,
) -> RecordRows:
    subject = {"key": key, "key_id": key_id, "team": team}
    query = {"model": model, "size": size, "quality": quality}
    label_set = None if labels is None else orjson.loads(labels)
    others = {name: value and OTHER for name, value in query.items()}
    return RecordRows(
        _encode({**subject, **query, "labels": label_set, "outcome": outcome}),
        _encode({**subject, **others, "labels": label_set and OTHER, "outcome": outcome}),
        _encode({**subject, "user": user}),
        _encode({**subject, "user": user and OTHER}),
    )


def _encode(dimensions: Mapping[str, object]) -> str:
    known = {name: value for name, value in dimensions.items() if value is not None}
    return orjson.dumps(known, option=orjson.OPT_SORT_KEYS).decode()


def row_of(series: Series, record: RecordAmounts) -> tuple[str, str, str]:
    """The group, the row and the other row of a record in a series."""
    rows = record.rows
    if series.kind != "user":
        return record.key_id, rows.row, rows.other
    # Requests without a user do not count towards the bound on users.
    group = record.key_id if record.has_user else f"{record.key_id} -"
    return group, rows.user_row, rows.other_user


def add_amounts(sums: dict[str, int], amounts: Mapping[str, int]) -> None:
    for code, amount in amounts.items():
        sums[code] = sums.get(code, 0) + amount


def charged_amounts(amounts: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Images, tokens, micro-dollars, and micro-dollars by kind together.

    A free record adds 0 to each of them, whatever else it has.
    """
    tokens = by_kind = 0
    for code, amount in amounts.items():
        if code.startswith(_COST_PREFIX):
            by_kind += amount
        elif code not in _NAMES:
            tokens += amount
    return amounts.get("b", 0), tokens, amounts.get("c", 0), by_kind


def decode_sums(sums: Mapping[str, int]) -> Sums:
    """The inverse of the names in the store. Names that this version does not know are ignored."""
    named: dict[str, int] = {}
    tokens: dict[str, int] = {}
    costs: dict[str, int] = {}
    for code, amount in sums.items():
        if (name := _NAMES.get(code)) is not None:
            named[name] = amount
        elif amount and (kind := _kind(code.removeprefix(_COST_PREFIX))):
            (costs if code.startswith(_COST_PREFIX) else tokens)[kind] = amount
    return Sums(**named, tokens=tokens, costs=costs)


def _kind(code: str) -> str:
    if code.startswith(_KIND_PREFIX):
        return code.removeprefix(_KIND_PREFIX)
    return _KINDS.get(code, "")
