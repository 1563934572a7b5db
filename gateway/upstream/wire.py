"""OpenAI's image JSON and our nouns: what goes out, what comes back, and foreign errors.

Pure: no `async`, no HTTP library. Here a foreign answer becomes an `Answered` or an
`UpstreamFailure` that says what was presumably charged (CONTRACT §8, §9). Sending, deadlines and
retries are `client`; whether the bytes are pictures is `gateway.pictures`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import orjson
import pybase64

from gateway.errors import INVALID_REQUEST, SERVER_ERROR, Charge, UpstreamFailure
from gateway.images import Answered, ImageRequest, PartialImage, UpstreamPicture, Usage
from gateway.sse import Event

MAX_REQUEST_ID: Final = 128

MAX_RETRY_AFTER_SECONDS: Final = 120
"""The longest `Retry-After` that is relayed (CONTRACT §9): no SDK waits longer."""

_BASE64_KEY: Final = re.compile(rb'"b64_json"\s*:\s*"')
_LONG_BASE64: Final = 64 * 1024
"""Characters from which on base64 is cut out of the JSON around it before that is read."""

_MAX_TOKENS: Final = 10**9
"""More than this is not a count of tokens; it would drown every budget and every total."""

_ECHOED: Final = ("size", "quality", "background", "output_format")
_PICTURE_KEYS: Final = frozenset({"b64_json", "url", "revised_prompt"})
_ERROR_KEYS: Final = frozenset({"message", "type", "param", "code"})

_PARTIAL: Final = "image_generation.partial_image"
_COMPLETED: Final = "image_generation.completed"
_ERROR: Final = "error"
_EVENT_KEYS: Final = frozenset(
    {"type", "created_at", "usage", "partial_image_index", "error", *_ECHOED}
)
"""What an event says beside its picture (WIRE §4.1)."""

_USAGE_SPELLINGS: Final = (
    ("input_tokens", "output_tokens"),
    ("prompt_tokens", "completion_tokens"),  # some clones, WIRE §5.4
)

_QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
"""WIRE §2 row 25; whatever starts with `billing` counts as well (row 29)."""

_AUTH_CODES: Final = frozenset({"invalid_api_key", "authentication_error"})
"""Clones send these with other statuses than 401 too."""

_EDGE_STATUSES: Final = frozenset({502, 504, *range(520, 531)})
"""What proxies and content networks answer in the API's stead."""

_REFUSING_CODES: Final = frozenset({"moderation_blocked", "content_policy_violation"})
_RATE_CODES: Final = frozenset({"rate_limit_exceeded", "slow_down"})

_SECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,12}")


# ── out ─────────────────────────────────────────────────────────────────────────────────────


def forwarded_body(request: ImageRequest, *, pictures: int, stream: bool = False) -> bytes:
    """The JSON that asks upstream for `pictures` pictures of `request` (CONTRACT §5, Forwarded).

    Whether they come as a stream is the purchase's matter and not the request's. Written anew and
    never the caller's own bytes, so nothing else can pass (WIRE §8 rows 23, 24).
    """
    body: dict[str, Any] = {"model": request.model, "prompt": request.prompt}
    if pictures != 1:
        body["n"] = pictures
    body |= request.parameters
    if request.asked_response_format is not None:
        body["response_format"] = request.asked_response_format
    if request.user is not None:
        # Written by the standard library, which has no largest integer.
        body["user"] = orjson.Fragment(json.dumps(request.user))
    if stream:
        body["stream"] = True
        if request.partial_images:
            body["partial_images"] = request.partial_images
    return orjson.dumps(body)


# ── pictures back ───────────────────────────────────────────────────────────────────────────


def parse_answer(body: bytes | bytearray, *, upstream_request_id: str | None) -> Answered:
    """Reads the body of a 2xx answer (WIRE §5.5); the pictures are decoded but not checked.

    An element that is damaged stays in its place as an empty `UpstreamPicture`. Raises
    `UpstreamFailure` (502, `undelivered`, with the usage if there is one) when there is no
    element at all: upstream said 200, so it was paid.
    """
    shortened, decoded = _cut_out(body)
    document = _load_object(shortened)
    pictures = _parse_pictures(document, decoded)
    if decoded:  # something was cut out that is no picture: it is all read as it came
        document = _load_object(body)
        pictures = _parse_pictures(document, {})
    usage = _parse_usage(document.get("usage"))
    if not pictures:
        raise _without_pictures(document, usage, upstream_request_id=upstream_request_id)
    return Answered(
        pictures=pictures,
        usage=usage,
        shown=_echoes(document),
        upstream_request_id=upstream_request_id,
    )


def _echoes(document: Mapping[str, Any]) -> Mapping[str, str]:
    return MappingProxyType(
        {key: document[key] for key in _ECHOED if isinstance(document.get(key), str)}
    )


def _without_pictures(
    document: Mapping[str, Any], usage: Usage | None, *, upstream_request_id: str | None
) -> UpstreamFailure:
    if document.get("error"):
        message = "Upstream answered with an error where it had announced pictures."
    elif "data" in document:
        message = "Upstream's answer has no pictures in it."
    else:
        message = "Upstream's answer could not be read."
    return UpstreamFailure(
        message,
        charge=Charge.UNDELIVERED,
        usage=usage,
        upstream_request_id=upstream_request_id,
    )


def _cut_out(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, bytes]]:
    """The JSON with a mark in the place of each long base64, and what that is, decoded, by mark.

    Nothing in base64 has a meaning in JSON, so what is left is read as before, without its being
    checked for UTF-8, copied into text and back. With anything odd in it nothing is cut out.
    """
    pieces: list[bytes | bytearray] = []
    decoded: dict[str, bytes] = {}
    place = 0
    while (key := _BASE64_KEY.search(body, place)) is not None:
        end = body.find(b'"', key.end())
        if end - key.end() < _LONG_BASE64:
            break
        mark = f"#{len(decoded)}"
        try:
            decoded[mark] = pybase64.b64decode(memoryview(body)[key.end() : end], validate=True)
        except ValueError:
            return body, {}
        pieces += [body[place : key.end()], mark.encode()]
        place = end
    return b"".join([*pieces, body[place:]]) if decoded else body, decoded


def _parse_pictures(
    document: Mapping[str, Any], decoded: dict[str, bytes]
) -> tuple[UpstreamPicture, ...]:
    """The elements of `data`, none when it is no list; takes out of `decoded` what it has used."""
    data = document.get("data")
    if not isinstance(data, list):
        return ()
    return tuple(_parse_picture(element, decoded) for element in data)


def _parse_picture(element: Any, decoded: dict[str, bytes]) -> UpstreamPicture:
    if not isinstance(element, dict):
        return UpstreamPicture()
    # Popped, so that the text of one picture is free before the next is decoded.
    encoded = element.pop("b64_json", None)
    return UpstreamPicture(
        data=_bytes_of(encoded, decoded),
        url=_text(element.get("url")) or None,
        revised_prompt=_text(element.get("revised_prompt")),
        extra=MappingProxyType(_further_keys(element, known=_PICTURE_KEYS)),
    )


def _bytes_of(encoded: Any, decoded: dict[str, bytes]) -> bytes | None:
    """What was cut out and decoded before, or else strict base64: a stray character is damage."""
    if not isinstance(encoded, str) or not encoded:
        return None
    if decoded and encoded in decoded:
        return decoded.pop(encoded)
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        return None


def _parse_usage(usage: Any) -> Usage | None:
    """Usage as WIRE §5.4 has it, in either spelling; None when it cannot be billed by."""
    if not isinstance(usage, dict):
        return None
    for input_name, output_name in _USAGE_SPELLINGS:
        tokens_in, tokens_out = _count(usage.get(input_name)), _count(usage.get(output_name))
        if tokens_in is not None and tokens_out is not None:
            return _split_usage(
                tokens_in,
                tokens_out,
                input_details=usage.get(f"{input_name}_details"),
                output_details=usage.get(f"{output_name}_details"),
            )
    return None


def _split_usage(
    tokens_in: int, tokens_out: int, *, input_details: Any, output_details: Any
) -> Usage | None:
    if not tokens_out:
        return None  # a picture costs tokens: a clone's row of zeros is not a usage
    text_in, image_in = _kinds(input_details, total=tokens_in) or (tokens_in, 0)
    output = _kinds(output_details, total=tokens_out)
    text_out, image_out = output or (0, tokens_out)
    return Usage(
        text_in=text_in,
        image_in=image_in,
        image_out=image_out,
        text_out=text_out,
        has_output_details=output is not None,
    )


def _kinds(details: Any, *, total: int) -> tuple[int, int] | None:
    """Text and image tokens; None when they are missing or do not add up to the total."""
    if not isinstance(details, dict):
        return None
    text, image = _count(details.get("text_tokens", 0)), _count(details.get("image_tokens", 0))
    if text is None or image is None or text + image != total:
        return None
    return text, image


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none (`True` is an int in Python)."""
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        return None
    return value


# ── streams back ────────────────────────────────────────────────────────────────────────────

News: TypeAlias = PartialImage | Answered | UpstreamFailure
"""What an event of a stream may tell: a preview, the picture, or that there will be none."""


def parse_event(
    event: Event, *, upstream_request_id: str | None, unspoken: Sequence[bytes] = ()
) -> News | None:
    """Reads an event of a stream (WIRE §4.1); None for one that may be passed over.

    Those are unknown kinds, `[DONE]`, and partial images that are damaged: a preview is no reason
    to give a purchase up. A failure is returned, not raised. `unspoken` are secrets that an error
    must not quote.
    """
    shortened, decoded = _cut_out(event.data)
    news = _parse_news(
        event, _load_object(shortened), decoded, unspoken, upstream_request_id=upstream_request_id
    )
    if not decoded:
        return news
    # Something was cut out that is no picture: it is all read as it came.
    return _parse_news(
        event, _load_object(event.data), {}, unspoken, upstream_request_id=upstream_request_id
    )


def _parse_news(
    event: Event,
    document: Mapping[str, Any],
    decoded: dict[str, bytes],
    unspoken: Sequence[bytes],
    *,
    upstream_request_id: str | None,
) -> News | None:
    """What the event's document tells; takes out of `decoded` what it has used."""
    kind = document.get("type")
    if kind not in (_PARTIAL, _COMPLETED, _ERROR):
        kind = event.name
    if kind == _ERROR or document.get("error"):
        return _parse_error_event(event.data, unspoken, upstream_request_id=upstream_request_id)
    if kind == _PARTIAL:
        return _parse_partial(document, decoded)
    if kind == _COMPLETED:
        return _parse_completed(document, decoded, upstream_request_id=upstream_request_id)
    return None


def _parse_partial(document: Mapping[str, Any], decoded: dict[str, bytes]) -> PartialImage | None:
    index = _count(document.get("partial_image_index"))
    data = _bytes_of(document.get("b64_json"), decoded)
    if index is None or data is None:
        return None
    return PartialImage(index, data, _echoes(document))


def _parse_completed(
    document: Mapping[str, Any], decoded: dict[str, bytes], *, upstream_request_id: str | None
) -> News:
    """One picture with its usage; damaged it is an empty `UpstreamPicture`, as in an answer."""
    if not document:
        return _without_pictures(document, None, upstream_request_id=upstream_request_id)
    element = {key: value for key, value in document.items() if key not in _EVENT_KEYS}
    return Answered(
        pictures=(_parse_picture(element, decoded),),
        usage=_parse_usage(document.get("usage")),
        shown=_echoes(document),
        upstream_request_id=upstream_request_id,
    )


def _parse_error_event(
    data: bytes, unspoken: Sequence[bytes], *, upstream_request_id: str | None
) -> UpstreamFailure:
    """An error in a stream that had begun: presumed to have been paid (CONTRACT §8).

    Relayed like an answer of the status that such an error has outside a stream.
    """
    for secret in unspoken:
        data = data.replace(secret, b"***")
    error = _error_in(_load_object(data))
    fields: dict[str, Any] = {
        "charge": Charge.PRESUMED,
        "headers": {},
        "upstream_request_id": upstream_request_id,
    }
    if _names(error) & _AUTH_CODES:
        return _refused_key(fields)
    return _relayed(_usual_status(error), error, fields)


def _error_in(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error object; clones also send its text alone, or its keys without the object."""
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return {key: value for key, value in document.items() if key not in ("type", "error")}


def _usual_status(error: Mapping[str, Any]) -> int:
    names = _names(error)
    is_about_the_request = any(name.endswith("user_error") for name in names)
    if is_about_the_request or INVALID_REQUEST in names or names & _REFUSING_CODES:
        return 400
    return 429 if _is_quota(error) or names & _RATE_CODES else 500


# ── errors back ─────────────────────────────────────────────────────────────────────────────


def parse_error(
    status: int, headers: Mapping[str, str], body: bytes | bytearray
) -> UpstreamFailure:
    """What an answer that is not 2xx means for the caller and for the bill (CONTRACT §8, §9).

    The API's own error is relayed with its status and extra keys; a refused key becomes 502
    `upstream_auth` without a word of the original; anything that is not JSON was written by an
    edge and is wrapped.
    """
    received = {name.lower(): value for name, value in headers.items()}
    error = _find_error(status, body)
    charge = _charge_of(status, is_own_error=error is not None)
    fields: dict[str, Any] = {
        "charge": charge,
        "headers": _relayed_headers(received, is_quota=_is_quota(error)),
        "upstream_request_id": request_id(received),
    }
    if status in (401, 403) or _names(error) & _AUTH_CODES:
        return _refused_key(fields)
    if error is not None:
        return _relayed(status, error, fields)
    return _wrapped(status, fields)


def request_id(headers: Mapping[str, str]) -> str | None:
    """Upstream's own id of a request, as it can stand in a log and in a JSON record."""
    given = headers.get("x-request-id", "")[:MAX_REQUEST_ID]
    return "".join(c if "!" <= c <= "~" else "?" for c in given) or None


def is_retryable(failure: UpstreamFailure, *, upstream_status: int | None) -> bool:
    """Whether the same purchase may be sent again (CONTRACT §9).

    It may when it was never sent (no `upstream_status`), at 503, and at a 429 that is no quota.
    """
    if upstream_status is None:
        return failure.charge is Charge.FREE
    return upstream_status in (429, 503) and failure.headers.get("x-should-retry") != "false"


def retry_after_seconds(failure: UpstreamFailure) -> float | None:
    """How long upstream asked to wait; None when it did not say."""
    milliseconds = failure.headers.get("retry-after-ms")
    if milliseconds is not None:
        return int(milliseconds) / 1000
    seconds = failure.headers.get("Retry-After")
    return None if seconds is None else float(seconds)


def _find_error(status: int, body: bytes | bytearray) -> Mapping[str, Any] | None:
    """The error object, or what clones send for one; None if the API did not write this.

    Proxies also write `{"message": …}`. Where a proxy is likely to have answered, only the full
    form counts, for only the API can say that nothing was made.
    """
    if status < 400:
        return None  # a redirect is not an error of the API, and is not followed
    document = _load_object(body)
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if status in _EDGE_STATUSES:
        return None
    if isinstance(error, str) and error:
        return {"message": error}
    if isinstance(document.get("message"), str):
        return document
    detail = document.get("detail")
    return {"message": detail} if isinstance(detail, str) else None


def _charge_of(status: int, *, is_own_error: bool) -> Charge:
    if 300 <= status < 500 or status == 503:
        return Charge.FREE
    return Charge.ASSUMED_FREE if is_own_error else Charge.PRESUMED


def _refused_key(fields: dict[str, Any]) -> UpstreamFailure:
    message = "Upstream refused the gateway's access. The gateway's operator can mend this."
    headers = {**fields.pop("headers"), "x-should-retry": "false"}  # no retry mends a key
    return UpstreamFailure(message, code="upstream_auth", headers=headers, **fields)


def _relayed(status: int, error: Mapping[str, Any], fields: dict[str, Any]) -> UpstreamFailure:
    return UpstreamFailure(
        _text(error.get("message")) or f"Upstream answered {status}.",
        status=status if status < 600 else 502,
        type=_text(error.get("type")) or (INVALID_REQUEST if status < 500 else SERVER_ERROR),
        param=_text(error.get("param")),
        code=_text(error.get("code")),
        details=_further_keys(error, known=_ERROR_KEYS),
        **fields,
    )


def _wrapped(status: int, fields: dict[str, Any]) -> UpstreamFailure:
    if status == 429:
        message = "Upstream's rate limit is reached."
        return UpstreamFailure(
            message, status=429, type="requests", code="rate_limit_exceeded", **fields
        )
    message = f"Upstream answered {status} without an error that could be read."
    return UpstreamFailure(message, status=504 if status in (504, 524) else 502, **fields)


def _names(error: Mapping[str, Any] | None) -> frozenset[str]:
    """The two words that say what kind of error it is."""
    named = (error.get("code"), error.get("type")) if error else ()
    return frozenset(name for name in named if isinstance(name, str))


def _is_quota(error: Mapping[str, Any] | None) -> bool:
    names = _names(error)
    return bool(names & _QUOTA_CODES) or any(name.startswith("billing") for name in names)


def _relayed_headers(received: Mapping[str, str], *, is_quota: bool) -> dict[str, str]:
    """The few headers that pass: when to come back, and whether to (WIRE §8 rows 1, 16, 17)."""
    headers: dict[str, str] = {}
    should_retry = received.get("x-should-retry", "").strip().lower()
    if should_retry in ("true", "false"):
        headers["x-should-retry"] = should_retry
    milliseconds = received.get("retry-after-ms", "").strip()
    if _MILLISECONDS.fullmatch(milliseconds) and _is_wait(int(milliseconds) / 1000):
        headers["retry-after-ms"] = milliseconds
    seconds = received.get("retry-after", "").strip()
    if _SECONDS.fullmatch(seconds) and float(seconds) > 0:
        headers["Retry-After"] = str(min(math.ceil(float(seconds)), MAX_RETRY_AFTER_SECONDS))
        if not _is_wait(float(seconds)):
            headers.setdefault("x-should-retry", "false")  # it will not be over by then
    if is_quota:
        headers["x-should-retry"] = "false"
    return headers


def _is_wait(seconds: float) -> bool:
    return 0 < seconds <= MAX_RETRY_AFTER_SECONDS


# ── no answer at all ────────────────────────────────────────────────────────────────────────


def unreachable() -> UpstreamFailure:
    """No connection: DNS, refused, TLS. Nothing was sent."""
    return UpstreamFailure("Upstream could not be reached.", charge=Charge.FREE)


def cut_off() -> UpstreamFailure:
    """The connection ended after the request had left and before the answer was complete."""
    return UpstreamFailure("Upstream's answer was cut off.", charge=Charge.PRESUMED)


def oversized() -> UpstreamFailure:
    """A 200 whose body is larger than the pictures that were asked for can be."""
    return UpstreamFailure("Upstream's answer is too large.", charge=Charge.UNDELIVERED)


def timed_out(*, was_sent: bool) -> UpstreamFailure:
    """Our own deadline passed, while a request was out or between two attempts."""
    charge = Charge.PRESUMED if was_sent else Charge.FREE
    return UpstreamFailure("Upstream did not answer in time.", status=504, charge=charge)


def breaker_open(*, wait_seconds: float) -> UpstreamFailure:
    """Too many purchases in a row have failed: nothing is sent before the next try."""
    retry_after = min(max(1, math.ceil(wait_seconds)), MAX_RETRY_AFTER_SECONDS)
    return UpstreamFailure(
        "Upstream has failed several times in a row and is given a rest. Try again later.",
        status=503,
        code="upstream_unavailable",
        charge=Charge.FREE,
        headers={"Retry-After": str(retry_after)},
    )


# ── reading foreign JSON ────────────────────────────────────────────────────────────────────


def _load_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`; an empty one if it is anything else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _load_tolerantly(body)
    return document if isinstance(document, dict) else {}


def _load_tolerantly(body: bytes | bytearray) -> Any:
    """Reads what orjson will not: a byte order mark, NaN, half a surrogate pair.

    A paid picture is not thrown away because its revised prompt was cut inside an emoji. What
    cannot be written as UTF-8 becomes `?`, and NaN null, so that it can be written again.
    """
    try:
        document = json.loads(body, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> str | None:
    """A string as it is, a number as digits (clones send numeric codes), else None."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def _further_keys(document: Mapping[str, Any], *, known: frozenset[str]) -> dict[str, Any]:
    """The keys that are not ours to know, verbatim, provided they can be written again."""
    further = {key: value for key, value in document.items() if key not in known}
    try:
        orjson.dumps(further)
    except orjson.JSONEncodeError:  # nested deeper than orjson writes
        return {}
    return further
