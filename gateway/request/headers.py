"""The request headers that the gateway reads, all but those of authentication.

`Cache-Control` and `Pragma` are parsed in `request.cache_control`. Users read of them in
`docs/reference/headers.md#requests-of-clients`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Final

from gateway.errors import ErrorCode, InvalidRequest, shorten
from gateway.images import MAX_SLOTS, ImageRequest
from gateway.request.cache_control import CacheControl, list_elements, parse_cache_control
from gateway.values import nearest

VARIATION: Final = "X-Gateway-Variation"
TAGS: Final = "X-Gateway-Tags"
MAX_COST: Final = "X-Gateway-Max-Cost-USD"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
RETRY_COUNT: Final = "x-stainless-retry-count"

MAX_COMMAS: Final = 256
"""In a header with all its repetitions: more than any needs. To read thousands of list elements
takes milliseconds of the event loop."""
MAX_RETRY_COUNT: Final = 999
"""A larger number of retries counts as this."""
MAX_TAGS: Final = 16
MAX_TAG_CHARACTERS: Final = 64
MAX_COST_MICROS: Final = 2**52
"""The largest amount: like a key's limits, exact in every store."""

_OWN: Final = {name.lower(): name for name in (VARIATION, TAGS, MAX_COST)}
"""All headers of clients that begin with `_PREFIX`, by their lower-case names."""
_PREFIX: Final = VARIATION.lower().removesuffix("-variation")

_NO_CACHE_CONTROL: Final = CacheControl()

MAX_KEPT_NAMES: Final = 1024
"""Characters of the names of a request's headers."""

_NAMES: Final = {
    name.lower(): name
    for name in ("Cache-Control", "Pragma", "Prefer", IDEMPOTENCY_KEY, VARIATION, TAGS, MAX_COST)
}
_VARIATION: Final = re.compile(r"[0-9]{1,4}")
_TAG: Final = re.compile(rf"[A-Za-z0-9._:/@+-]{{1,{MAX_TAG_CHARACTERS}}}")
_USD: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:[eE]-?[0-9]{1,2})?")
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """The headers of one request; the defaults are those of a request without any."""

    cache_control: CacheControl = _NO_CACHE_CONTROL
    variation: int | None = None
    """The first requested slot, 0 … 63; None if the header was not sent."""
    tags: tuple[str, ...] = ()
    max_cost_micros: int | None = None
    dry_run: bool = False
    idempotency_key: str | None = None


def has_request_headers(headers: Mapping[str, str]) -> bool:
    """Whether a request has any of these headers, also misspelt. `headers` must ignore case."""
    # Nearly all requests of a client have the same names. Longer ones are not kept.
    names = "\n".join(headers)
    is_short = len(names) <= MAX_KEPT_NAMES
    return _has_request_names(names) if is_short else _has_request_names.__wrapped__(names)


@lru_cache(maxsize=1024)
def _has_request_names(names: str) -> bool:
    names = names.lower()
    # An underscore is an error for a hyphen.
    return not _NAMES.keys().isdisjoint(names.split("\n")) or _PREFIX in names.replace("_", "-")


def parse_request_headers(headers: Iterable[tuple[str, str]]) -> RequestHeaders:
    """Reads all headers of a request as they came: in any case, repeated or not.

    Raises `InvalidRequest`, whose `param` is the header's name.
    """
    headers = list(headers)
    _check_names(name for name, _ in headers)
    values = _known_values(headers)
    for name, value in values.items():
        if (commas := value.count(",")) > MAX_COMMAS:
            problem = f"expected at most {MAX_COMMAS} commas, but got {commas}."
            raise _invalid(_NAMES[name], problem)
    return RequestHeaders(
        cache_control=parse_cache_control(values.get("cache-control"), values.get("pragma")),
        variation=_parse_variation(values.get(VARIATION.lower())),
        tags=_parse_tags(values.get(TAGS.lower(), "")),
        max_cost_micros=_parse_max_cost(values.get(MAX_COST.lower())),
        dry_run=_is_dry_run(values.get("prefer", "")),
        idempotency_key=_parse_idempotency_key(values.get(IDEMPOTENCY_KEY.lower())),
    )


def asks_for_dry_run(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request asks for a dry run, also if its other headers are invalid."""
    prefer = _known_values(headers).get("prefer", "")
    return prefer.count(",") <= MAX_COMMAS and _is_dry_run(prefer)


def retry_count(headers: Mapping[str, str]) -> int | None:
    """How often an SDK has retried: `docs/reference/images-api.md#retries-of-sdks`."""
    if RETRY_COUNT not in headers:
        return None
    count = headers[RETRY_COUNT].strip()
    if not (count.isascii() and count.isdecimal()):
        return None
    # Python refuses to convert thousands of digits.
    return MAX_RETRY_COUNT if len(count.lstrip("0")) > 3 else int(count[-3:])


def at_variation(request: ImageRequest, variation: int) -> ImageRequest:
    """The request for the slots from `variation` on. Raises `InvalidRequest` beyond the last."""
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


def _known_values(headers: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """The values by lower-case name; those of a repeated header are joined (RFC 9110 §5.3)."""
    values: dict[str, list[str]] = {}
    for given, value in headers:
        name = given.lower()
        if name in _NAMES:
            values.setdefault(name, []).append(value)
    return {name: ", ".join(repeated) for name, repeated in values.items()}


def _check_names(names: Iterable[str]) -> None:
    """Refuses a header that seems to be meant for the gateway, and that it does not know.

    Ignored, a misspelt `X-Gateway-Max-Cost-USD` would be an unlimited purchase.
    """
    for given in names:
        name = given.lower().replace("_", "-")
        if not name.startswith(_PREFIX) or given.lower() in _OWN:
            continue
        meant = _OWN[nearest(name[:MAX_TAG_CHARACTERS], _OWN) or MAX_COST.lower()]
        raise InvalidRequest(
            f"Unknown header '{shorten(given)}'. Did you mean '{meant}'? The headers for this "
            f"gateway are {', '.join(_OWN.values())}.",
            param=shorten(given),
            code=ErrorCode.UNKNOWN_HEADER,
        )


def _is_dry_run(prefer: str) -> bool:
    # Values and parameters of the preference are ignored: it must not cost anything by mistake.
    names = (element.partition(";")[0].partition("=")[0] for element in list_elements(prefer))
    return any(name.strip().lower() == "dry-run" for name in names)


def _parse_variation(value: str | None) -> int | None:
    if value is None:
        return None
    digits = value.strip()
    if _VARIATION.fullmatch(digits) is None or int(digits) >= MAX_SLOTS:
        last, shown = MAX_SLOTS - 1, shorten(digits)
        raise _invalid(VARIATION, f"expected an integer from 0 to {last}, but got '{shown}'.")
    return int(digits)


def _parse_tags(value: str) -> tuple[str, ...]:
    """Each tag once, in the order of the header."""
    tags = tuple(dict.fromkeys(list_elements(value)))
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
    """Micro-dollars. A fraction of one is refused, not rounded."""
    if value is None:
        return None
    amount = value.strip()
    usd_micros = Decimal(amount) * 1_000_000 if _USD.fullmatch(amount) else Decimal("nan")
    if not usd_micros.is_finite() or usd_micros > MAX_COST_MICROS or usd_micros % 1:
        raise _invalid(
            MAX_COST,
            "expected an amount in US dollars such as 0.10, 0 or more, with at most six decimals, "
            f"but got '{shorten(amount)}'.",
        )
    return int(usd_micros)


def _parse_idempotency_key(value: str | None) -> str | None:
    if value is None:
        return None
    key = value.strip()
    if _IDEMPOTENCY_KEY.fullmatch(key) is None:
        # The key is not repeated in the message: it may be a secret.
        raise _invalid(
            IDEMPOTENCY_KEY, "expected 1 to 255 visible ASCII characters without spaces."
        )
    return key


def _invalid(header: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{header}': {problem}", param=header, code=ErrorCode.INVALID_VALUE
    )
