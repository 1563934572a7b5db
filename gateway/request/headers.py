"""The request headers that the gateway reads."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from gateway.errors import InvalidRequest
from gateway.images import MAX_SLOTS, ImageRequest
from gateway.request.body import shorten
from gateway.request.cache_control import (
    CacheControl,
    _list_elements,
    _parse_cache_control,
    _parse_seconds,
)

VARIATION: Final = "X-Gateway-Variation"
TAGS: Final = "X-Gateway-Tags"
MAX_COST: Final = "X-Gateway-Max-Cost-USD"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"

MAX_TAGS: Final = 16
MAX_TAG_CHARACTERS: Final = 64
MAX_COST_MICROS: Final = 2**52
"""The largest amount: as of a key's limits, exact in every store."""

_NAMES: Final = frozenset(
    {
        *("cache-control", "pragma", "prefer", IDEMPOTENCY_KEY.lower()),
        *(VARIATION.lower(), TAGS.lower(), MAX_COST.lower()),
    }
)
_VARIATION: Final = re.compile(r"[0-9]{1,4}")
_TAG: Final = re.compile(rf"[A-Za-z0-9._:/@+-]{{1,{MAX_TAG_CHARACTERS}}}")
_USD: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:[eE]-?[0-9]{1,2})?")
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}")


# ── what the request says ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RequestHeaders(CacheControl):
    """What one request's headers say; the defaults are those of a request without any."""

    variation: int = 0
    """The first slot that is asked for, 0 … 63."""
    tags: tuple[str, ...] = ()
    max_cost_micros: int | None = None
    dry_run: bool = False
    idempotency_key: str | None = None


def has_request_headers(headers: Container[str]) -> bool:
    """Whether any header is there that is read here; asked in the case of this module."""
    return any(map(headers.__contains__, _NAMES))


def parse_request_headers(headers: Iterable[tuple[str, str]]) -> RequestHeaders:
    """Reads all headers of a request, as they came: any case, a name as often as it likes.

    Raises `InvalidRequest`, whose `param` is the header's name.
    """
    own = _combine(headers)
    if not own:
        return RequestHeaders()
    cache_control = list(_parse_cache_control(own))
    names = {name for name, _ in cache_control}
    ages = [_parse_seconds(argument) for name, argument in cache_control if name == "max-age"]
    no_cache = "no-cache" in names or 0 in ages
    return RequestHeaders(
        no_cache=no_cache,
        no_store="no-store" in names,
        only_if_cached="only-if-cached" in names,
        max_age_seconds=None if no_cache else min(ages, default=None),
        variation=_parse_variation(own.get(VARIATION.lower())),
        tags=_parse_tags(own.get(TAGS.lower(), "")),
        max_cost_micros=_parse_max_cost(own.get(MAX_COST.lower())),
        dry_run=_asks_for_dry_run(own.get("prefer", "")),
        idempotency_key=_parse_idempotency_key(own.get(IDEMPOTENCY_KEY.lower())),
    )


def asks_for_dry_run(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request prefers not to be carried out, whatever else is wrong with it."""
    return _asks_for_dry_run(_combine(headers).get("prefer", ""))


def at_variation(request: ImageRequest, variation: int) -> ImageRequest:
    """The request for the slots `variation … variation + n - 1`; 400 beyond the last slot."""
    last = variation + request.n - 1
    if last < MAX_SLOTS:
        is_there = request.variation == variation
        return request if is_there else replace(request, variation=variation)
    raise _invalid(
        VARIATION,
        f"{variation} with n={request.n} asks for the variations {variation} to {last}, "
        f"but the last one is {MAX_SLOTS - 1}. "
        f"Use a variation of at most {MAX_SLOTS - request.n}, or a smaller 'n'.",
    )


def _combine(headers: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """The headers that are read here, by lower-case name; repeated ones joined (RFC 9110 §5.3)."""
    own: dict[str, str] = {}
    for given, value in headers:
        name = given.lower()
        if name in _NAMES:
            own[name] = f"{own[name]}, {value}" if name in own else value
    return own


# ── Prefer ──────────────────────────────────────────────────────────────────────────────────


def _asks_for_dry_run(value: str) -> bool:
    """Whatever its value and parameters: who writes `dry-run` does not mean to pay."""
    names = (re.split("[;=]", element, maxsplit=1)[0] for element in _list_elements(value))
    return any(name.strip().lower() == "dry-run" for name in names)


# ── headers that must make sense ────────────────────────────────────────────────────────────


def _parse_variation(value: str | None) -> int:
    if value is None:
        return 0
    digits = value.strip()
    if _VARIATION.fullmatch(digits) is None or int(digits) >= MAX_SLOTS:
        most, shown = MAX_SLOTS - 1, shorten(digits)
        raise _invalid(VARIATION, f"expected an integer from 0 to {most}, but got '{shown}'.")
    return int(digits)


def _parse_tags(value: str) -> tuple[str, ...]:
    """Each tag once, in the order of the header."""
    tags = tuple(dict.fromkeys(_list_elements(value)))
    if len(tags) > MAX_TAGS:
        raise _invalid(TAGS, f"expected at most {MAX_TAGS} tags, but got {len(tags)}.")
    for tag in tags:
        if _TAG.fullmatch(tag) is None:
            raise _invalid(
                TAGS,
                f"a tag has 1 to {MAX_TAG_CHARACTERS} of the characters A-Z a-z 0-9 . _ : / @ + -, "
                f"but got '{shorten(tag)}'.",
            )
    return tags


def _parse_max_cost(value: str | None) -> int | None:
    """Micro-dollars; an amount that is no whole number of them is refused, not rounded."""
    if value is None:
        return None
    amount = value.strip()
    micros = Decimal(amount) * 1_000_000 if _USD.fullmatch(amount) else Decimal("nan")
    if not micros.is_finite() or micros > MAX_COST_MICROS or micros % 1:
        raise _invalid(
            MAX_COST,
            "expected an amount in US dollars such as 0.10, 0 or more, with at most six decimals, "
            f"but got '{shorten(amount)}'.",
        )
    return int(micros)


def _parse_idempotency_key(value: str | None) -> str | None:
    if value is None:
        return None
    key = value.strip()
    if _IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise _invalid(
            IDEMPOTENCY_KEY, "expected 1 to 255 visible ASCII characters without spaces."
        )
    return key


def _invalid(header: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{header}': {problem}", param=header, code="invalid_value")
