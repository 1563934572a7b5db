"""The table of charges, row by row with its neighbours: what upstream answered, and what it cost.

One upstream plays all cases at once, by prompt. The amounts are computed by hand from
`docs/reference/images-api.md`.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import Counter, PeekCounters
from gateway.values import show_usd
from tests.catalogs import shipped_catalog
from tests.gateways import Client, InProcess, Reply
from tests.http.plays import (
    CUT,
    STALL,
    Play,
    completed,
    doc,
    events,
    failed,
    house,
    html,
    partial,
)
from tests.pngs import write_png
from tests.stores import usual_store

store_url = usual_store("redis")

GPT = {"model": "gpt-image-2", "quality": "low", "size": "1024x1024"}
DALLE = {"model": "dall-e-2", "size": "1024x1024", "response_format": "b64_json"}
TEXT, CACHED, IMAGE = 5, 1.25, 30
"""Micro-dollars a token of gpt-image-2."""

PRICE_DATE = shipped_catalog().prices_as_of.isoformat()

PNG = base64.b64encode(write_png(64, 64, b"pixels")).decode()
GOOD = {"b64_json": PNG}
BAD = {"b64_json": base64.b64encode(b"no image").decode()}
LINK = {"url": "https://127.0.0.1:1/unreachable.png"}
USAGE = {"input_tokens": 9, "output_tokens": 50, "total_tokens": 59}
HUGE = {"input_tokens": 9, "output_tokens": 100_000}
INPUT_ONLY = {"input_tokens": 9, "output_tokens": 0}
ZERO = {"input_tokens": 0, "output_tokens": 0}
SERVER_ERROR = {"message": "Broken.", "type": "server_error", "param": None, "code": None}
RATE = {"message": "Slower.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
BLOCKED = {"message": "No.", "type": "image_generation_user_error", "code": "moderation_blocked"}
OVERLOADED = {"message": "Later.", "type": "service_unavailable_error"}


@dataclass(frozen=True)
class Case:
    plays: tuple[Play, ...]
    status: int
    flags: tuple[str, ...] = ()
    charged: int | str = 0
    """Micro-dollars, or `estimate`."""
    images: int | None = None
    tokens: Mapping[str, int] | None = None
    """None: those of the charge are not checked."""
    code: str | None = "-"
    body: Mapping[str, Any] = field(default_factory=lambda: GPT)


def case(*plays: Play, **expected: Any) -> Case:
    return Case(plays, **expected)


def free(*plays: Play, status: int, **expected: Any) -> Case:
    return Case(plays, status, tokens={}, images=0, **expected)


def assumed(*plays: Play, status: int, **expected: Any) -> Case:
    return free(*plays, status=status, flags=("assumed_free",), **expected)


def presumed(*plays: Play, status: int = 502, **expected: Any) -> Case:
    return Case(plays, status, ("presumed",), "estimate", 1, **expected)


def undelivered(*plays: Play, **expected: Any) -> Case:
    given = {"status": 502, "flags": ("undelivered",), "charged": "estimate", **expected}
    return Case(plays, **given)


def by_usage(*plays: Play, status: int = 502, **expected: Any) -> Case:
    given: dict[str, Any] = {
        "flags": ("undelivered",),
        "charged": 9 * TEXT + 50 * IMAGE,
        "tokens": {"text_in": 9, "image_out": 50},
        **expected,
    }
    return Case(plays, status, **given)


INPUT = {"charged": 9 * TEXT, "tokens": {"text_in": 9}, "images": 0}
STREAM = {**GPT, "stream": True, "partial_images": 1}
PLAIN_STREAM = {**GPT, "stream": True}

FREE_STATUSES = (400, 404, 408, 409, 413, 421, 422, 425, 429, 499, 503)
EDGE_STATUSES = (502, 504, *range(520, 528), 530)


def attempts(status: int, end: str) -> int:
    """One that stalls lasts until the deadline, so nothing is retried."""
    return 3 if status in (429, 503) and end != STALL else 1


CASES: dict[str, Case] = {
    # ── the status is known, whatever comes of the body ──
    **{
        f"{status} whose body {end}s": free(
            *[Play(status, b'{"error": {"mess', end=end)] * attempts(status, end),
            status=status,
        )
        for status in FREE_STATUSES
        for end in (CUT, STALL)
    },
    **{
        f"{status} without a type whose body stalls": free(
            Play(status, b"", kind="", end=STALL), status=status
        )
        for status in (400, 429)
    },
    **{
        f"{status} with a complete error whose body {end}s": free(
            *[doc(status, error=RATE, end=end)] * attempts(status, end),
            status=status,
            code="rate_limit_exceeded",
        )
        for status in (400, 429)
        for end in (CUT, STALL)
    },
    "401 whose body stalls": free(Play(401, b"{", end=STALL), status=502, code="upstream_auth"),
    "400 with HTML that stalls": free(html(400, end=STALL), status=502),
    "301 whose body stalls": free(html(301, end=STALL), status=502),
    "302": free(html(302), status=502),
    "304": free(Play(304, b"", kind=""), status=502),
    "a broken chunk after 400": free(
        Play(400, b"zz\r\n", length=-1, kind="application/json\r\nTransfer-Encoding: chunked"),
        status=400,
    ),
    "500 with a complete error whose body stalls": assumed(
        doc(500, error=SERVER_ERROR, end=STALL), status=500
    ),
    "500 with a complete error that is cut": assumed(
        doc(500, error=SERVER_ERROR, end=CUT), status=500
    ),
    "500 whose error is cut": presumed(doc(500, error=SERVER_ERROR, cut=9, end=CUT)),
    "500 whose error stalls": presumed(doc(500, error=SERVER_ERROR, cut=9, end=STALL)),
    "500 with a page": presumed(html(500)),
    "500 without a body": presumed(Play(500, b"")),
    "501 with an error": assumed(doc(501, error=SERVER_ERROR), status=501),
    **{
        f"an edge's {status}": presumed(html(status), status=504 if status in (504, 524) else 502)
        for status in EDGE_STATUSES
    },
    **{
        f"the API's own {status}": assumed(doc(status, error=SERVER_ERROR), status=status)
        for status in (502, 504, 520)
    },
    # ── retries ──
    "429, then 503, then 400": free(
        doc(429, error=RATE), doc(503, error=OVERLOADED), doc(400, error=BLOCKED), status=400
    ),
    "429 that stalls, then images": case(
        Play(429, b"{", end=CUT),
        doc(data=[GOOD], usage=USAGE),
        status=200,
        charged=9 * TEXT + 50 * IMAGE,
    ),
    "503, then cut after sending": presumed(doc(503, error=OVERLOADED), Play(200, b"{", end=CUT)),
    "429, then 500": assumed(doc(429, error=RATE), doc(500, error=SERVER_ERROR), status=500),
    # ── images ──
    "images with usage": case(
        doc(data=[GOOD], usage=USAGE), status=200, charged=9 * TEXT + 50 * IMAGE, images=1
    ),
    "images without usage": case(
        doc(data=[GOOD]), status=200, flags=("no_usage",), charged="estimate", images=1
    ),
    "images with a usage without output": case(
        doc(data=[GOOD], usage=INPUT_ONLY), status=200, flags=("no_usage",), charged="estimate"
    ),
    "images with a usage above the estimate": case(
        doc(data=[GOOD], usage=HUGE),
        status=200,
        flags=("over_estimate",),
        charged=9 * TEXT + 100_000 * IMAGE,
    ),
    "images beside an error": case(
        doc(data=[GOOD], usage=USAGE, error=SERVER_ERROR),
        status=200,
        charged=9 * TEXT + 50 * IMAGE,
    ),
    "an image of a model with a price for each": case(
        doc(data=[GOOD]), status=200, charged=20_000, body=DALLE
    ),
    # ── 200 without images ──
    "no images": undelivered(doc(data=[])),
    "no images, usage of the input": by_usage(doc(data=[], usage=INPUT_ONLY), **INPUT),
    "no images, usage of zero": undelivered(
        doc(data=[], usage=ZERO), charged=0, tokens={}, images=0
    ),
    "no images, usage above the estimate": by_usage(
        doc(data=[], usage=HUGE),
        flags=("undelivered", "over_estimate"),
        charged=9 * TEXT + 100_000 * IMAGE,
        tokens={"text_in": 9, "image_out": 100_000},
    ),
    "bad images with usage": by_usage(doc(data=[BAD], usage=USAGE), images=1),
    "bad images with usage above the estimate": by_usage(
        doc(data=[BAD], usage=HUGE),
        flags=("undelivered", "over_estimate"),
        charged=9 * TEXT + 100_000 * IMAGE,
        tokens={"text_in": 9, "image_out": 100_000},
    ),
    "bad images without usage": undelivered(doc(data=[BAD]), images=1),
    "bad images with a usage without output": undelivered(doc(data=[BAD], usage=INPUT_ONLY)),
    "a bad image of a model with a price for each": undelivered(
        doc(data=[BAD]), charged=20_000, body=DALLE
    ),
    "links that cannot be fetched, with usage": by_usage(doc(data=[LINK], usage=USAGE), images=1),
    "links that cannot be fetched": undelivered(doc(data=[LINK])),
    "200 with a page": undelivered(html(200)),
    "200 that is no object": undelivered(Play(200, b"[]")),
    "204": undelivered(Play(204, b"", kind="", length=-1)),
    "200 that is cut": presumed(doc(data=[GOOD], usage=USAGE, cut=9, end=CUT)),
    "200 that stalls": presumed(doc(data=[GOOD], cut=9, end=STALL), status=504),
    # ── 200 with an error and nothing else ──
    "an error with 200": assumed(doc(error=SERVER_ERROR), status=500, code=None),
    "an error with 200 and other keys": assumed(
        doc(error=SERVER_ERROR, created=1, data=None, id="x"), status=500
    ),
    "an error with 200 and no images": assumed(doc(error=SERVER_ERROR, data=[]), status=500),
    "an error with 200 and an image without bytes": assumed(
        doc(error=SERVER_ERROR, data=[{"b64_json": None}]), status=500
    ),
    "a text as error with 200": assumed(doc(error="out of order"), status=500),
    "a rate limit with 200": assumed(doc(error=RATE), status=429, code="rate_limit_exceeded"),
    "a refusal with 200": assumed(doc(error=BLOCKED), status=400, code="moderation_blocked"),
    "an overload with 200": assumed(doc(error=OVERLOADED), status=503),
    "a status as code with 200": assumed(doc(error={"message": "x", "code": 429}), status=429),
    "a wrong key with 200": assumed(
        doc(error={"message": "x", "code": "invalid_api_key"}), status=502, code="upstream_auth"
    ),
    "an error with 200 and usage": by_usage(
        doc(error=SERVER_ERROR, usage=USAGE), status=500, images=0
    ),
    "an error with 200 and usage of the input": by_usage(
        doc(error=SERVER_ERROR, usage=INPUT_ONLY), status=500, **INPUT
    ),
    "an error with 200 and usage of zero": assumed(doc(error=SERVER_ERROR, usage=ZERO), status=500),
    "an error with 200 of a model with a price for each": assumed(
        doc(error=SERVER_ERROR), status=500, body=DALLE
    ),
    # ── streams: status 200 by now, errors are events ──
    "a stream": case(
        events(partial(b64_json=PNG), completed(b64_json=PNG, usage=USAGE)),
        status=200,
        charged=9 * TEXT + 50 * IMAGE,
        body=STREAM,
    ),
    "a stream whose image comes beside an error": case(
        events(completed(b64_json=PNG, usage=USAGE, error=SERVER_ERROR)),
        status=200,
        charged=9 * TEXT + 50 * IMAGE,
        body=PLAIN_STREAM,
    ),
    "a stream that stalls after its image": case(
        events(completed(b64_json=PNG, usage=USAGE), end=STALL),
        status=200,
        charged=9 * TEXT + 50 * IMAGE,
        body=PLAIN_STREAM,
    ),
    "a stream that has only an error": assumed(
        events(failed(SERVER_ERROR)), status=200, body=PLAIN_STREAM
    ),
    "a stream that has only a refusal": assumed(
        events(failed(BLOCKED)), status=200, body=PLAIN_STREAM, code="moderation_blocked"
    ),
    "a stream that has only an error, with usage": by_usage(
        events(failed(SERVER_ERROR, usage=USAGE)), status=200, body=PLAIN_STREAM, images=0
    ),
    "a stream with an error after a partial image": presumed(
        events(partial(b64_json=PNG), failed(SERVER_ERROR)), status=200, body=STREAM
    ),
    "a stream with an error and usage after a partial image": by_usage(
        events(partial(b64_json=PNG), failed(SERVER_ERROR, usage=USAGE)), status=200, body=STREAM
    ),
    "a stream that ends after a partial image": presumed(
        events(partial(b64_json=PNG)), status=200, body=STREAM
    ),
    "a stream without events": presumed(events(), status=200, body=STREAM),
    "a stream whose image is damaged, with usage": by_usage(
        events(completed(b64_json="###", usage=USAGE)), status=200, body=PLAIN_STREAM
    ),
    "a stream whose image is damaged": undelivered(
        events(completed(b64_json="###")), status=200, body=PLAIN_STREAM
    ),
    "a stream's answer as JSON that has only an error": assumed(
        doc(error=SERVER_ERROR), status=200, body=PLAIN_STREAM
    ),
}


def error_of(reply: Reply) -> Mapping[str, Any] | None:
    if reply.headers["Content-Type"].startswith("text/event-stream"):
        last = reply.body.decode().strip().split("\n\n")[-1]
        return json.loads(last.partition("data: ")[2]).get("error")
    return reply.json.get("error")


def estimate_of(prompt: str, body: Mapping[str, Any]) -> tuple[int, int]:
    """Micro-dollars and tokens of one image."""
    if body["model"] == "dall-e-2":
        return 20_000, 0
    text, more = len(prompt.encode()) + 16, 100 * body.get("partial_images", 0)
    return 6_000 + TEXT * text + IMAGE * more, 196 + text + more


async def faults_of(
    name: str, case: Case, *, client: Client, reply: Reply, record: Record, gateway: InProcess
) -> list[str]:
    """What differs from the table; empty if nothing does."""
    estimated, estimated_tokens = estimate_of(name, case.body)
    charged = estimated if case.charged == "estimate" else case.charged
    tokens = record.tokens
    error = error_of(reply)
    found = {
        "status": reply.status,
        "flags": record.flags,
        "charged": record.cost_micros,
        "outcome": record.outcome,
        "retry": "-",
    }
    expected = {
        "status": case.status,
        "flags": case.flags,
        "charged": charged,
        "outcome": "failed" if error else "bought",
        "retry": "-",
    }
    if not case.body.get("stream"):
        found["header"] = reply.headers["x-gateway-cost-usd"]
        expected["header"] = show_usd(int(charged))
        if charged and error:
            found["retry"], expected["retry"] = reply.headers.get("x-should-retry"), "false"
    if case.code != "-":
        found["code"], expected["code"] = (error or {}).get("code"), case.code
    if case.tokens is not None:
        found["tokens"], expected["tokens"] = dict(tokens), dict(case.tokens)
    elif case.charged == "estimate":
        found["tokens"], expected["tokens"] = sum(tokens.values()), estimated_tokens
    if case.images is not None:
        found["images"], expected["images"] = record.images, case.images
    # The cost by kind adds up, and an estimate is of no other kind.
    kinds = ["estimated"] if case.charged == "estimate" else None
    found["costs"] = sum(record.costs.values()), record.price_date, record.upstream
    expected["costs"] = record.cost_micros, PRICE_DATE, "default"
    found["kinds"] = list(record.costs) if kinds else None
    expected["kinds"] = kinds
    # The counters agree with the record, in money, images and tokens.
    scope = f"key:{client.key_id}"
    units = ("usd_micros", "images", "tokens")
    states = await execute(
        gateway.gateway.store,
        PeekCounters(tuple(Counter(scope, unit, "day", None) for unit in units)),
    )
    found["counted"] = [(state.used, state.reserved) for state in states]
    expected["counted"] = [
        (record.cost_micros, 0),
        (record.images, 0),
        (sum(tokens.values()), 0),
    ]
    return [
        f"{name}: {k} {found[k]!r}, not {expected[k]!r}" for k in found if found[k] != expected[k]
    ]


async def test_the_table_of_charges_holds(tmp_path: Path, store_url: str | None) -> None:
    async with house(tmp_path / "data", store_url) as (gateway, script):
        clients = {name: await gateway.client.with_key(f"k{i}") for i, name in enumerate(CASES)}
        script.plays = {name: list(case.plays) for name, case in CASES.items()}
        replies = await asyncio.gather(
            *(clients[name].ask(name, **case.body) for name, case in CASES.items())
        )
        records = {record.key_id: record for record in await gateway.ledger()}
        faults = [
            fault
            for (name, case), reply in zip(CASES.items(), replies, strict=True)
            for fault in await faults_of(
                name,
                case,
                client=clients[name],
                reply=reply,
                record=records[clients[name].key_id],
                gateway=gateway,
            )
        ]
    assert faults == []
    assert not any(script.plays.values())


# ── cached input tokens ─────────────────────────────────────────────────────────────────────


def cached_usage(details: Mapping[str, Any], **fields: int) -> dict[str, Any]:
    return {
        "input_tokens": 101,
        "output_tokens": 50,
        "total_tokens": 151,
        "input_tokens_details": {"text_tokens": 101, "image_tokens": 0, **details},
        **fields,
    }


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"cached_tokens": 64}, 64),
        ({"cached_tokens": 64, "cached_tokens_details": {"text_tokens": 64}}, 64),
        ({"cached_tokens_details": {"text_tokens": 60, "image_tokens": 0}}, 60),
        ({"cached_tokens": 101}, 101),
        ({"cached_tokens": 0}, 0),
        ({}, None),
        ({"cached_tokens": 102}, None),
        ({"cached_tokens": -1}, None),
        ({"cached_tokens": True}, None),
        ({"cached_tokens": "64"}, None),
    ],
    ids=str,
)
async def test_cached_input_is_charged_at_its_own_price_and_shown(
    tmp_path: Path, store_url: str | None, details: Mapping[str, Any], cached: int | None
) -> None:
    async with house(tmp_path / "data", store_url) as (gateway, script):
        alice = await gateway.client.with_key()
        script.plays = {"two": [doc(data=[GOOD, GOOD], usage=cached_usage(details))]}
        both = await alice.ask("two", n=2, **GPT)
        again = await alice.ask("two", n=2, **GPT)
        one = await alice.ask("two", n=1, **GPT)
        two = await alice.ask("two", headers={"X-Gateway-Variation": "1"}, **GPT)
        records = await gateway.ledger()

    hits = [again, one, two]
    shown = cached or 0
    micros = -(-int(100 * ((101 - shown) * TEXT + shown * CACHED + 50 * IMAGE)) // 100)
    tokens = {"text_in": 101 - shown, "cached_text_in": shown, "image_out": 50}
    assert records[0].cost_micros == micros
    assert records[0].tokens == {kind: count for kind, count in tokens.items() if count}
    exact = {"text_in": TEXT, "cached_text_in": CACHED, "image_out": IMAGE}
    whole = {kind: int(count * exact[kind]) for kind, count in records[0].tokens.items()}
    assert sum(records[0].rounding.values()) == micros - sum(whole.values())
    assert records[0].costs == {
        kind: count + records[0].rounding.get(kind, 0) for kind, count in whole.items()
    }
    assert [(record.costs, record.price_date) for record in records[1:]] == [({}, None)] * 3
    assert [hit.cache_status[:3] for hit in hits] == ["hit"] * 3
    assert both.json["usage"] == again.json["usage"]
    assert both.json["usage"]["input_tokens"] == 101
    assert both.json["usage"]["input_tokens_details"].get("cached_tokens") == cached
    shares = [hit.json["usage"]["input_tokens_details"].get("cached_tokens") for hit in hits[1:]]
    assert (None if None in shares else sum(shares)) == cached
    inputs = [hit.json["usage"]["input_tokens_details"]["text_tokens"] for hit in hits[1:]]
    assert sum(inputs) == 101


async def test_cached_tokens_of_both_kinds_keep_their_split(
    tmp_path: Path, store_url: str | None
) -> None:
    details = {
        "text_tokens": 41,
        "image_tokens": 60,
        "cached_tokens": 53,
        "cached_tokens_details": {"text_tokens": 21, "image_tokens": 32},
    }
    async with house(tmp_path / "data", store_url) as (gateway, script):
        alice = await gateway.client.with_key()
        script.plays = {"one": [doc(data=[GOOD], usage=cached_usage(details))]}
        bought = await alice.ask("one", **GPT)
        hit = await alice.ask("one", **GPT)
        record = (await gateway.ledger())[0]

    assert bought.json["usage"]["input_tokens_details"] == details
    assert hit.json["usage"] == bought.json["usage"]
    # 20 × 5 + 21 × 1.25 + 28 × 8 + 32 × 2 + 50 × 30, rounded up
    assert record.cost_micros == 1915
    assert record.tokens == {
        "text_in": 20,
        "cached_text_in": 21,
        "image_in": 28,
        "cached_image_in": 32,
        "image_out": 50,
    }


async def test_cached_tokens_of_a_stream_are_charged_and_passed_on(
    tmp_path: Path, store_url: str | None
) -> None:
    async with house(tmp_path / "data", store_url) as (gateway, script):
        alice = await gateway.client.with_key()
        script.plays = {
            "s": [events(completed(b64_json=PNG, usage=cached_usage({"cached_tokens": 100})))]
        }
        streamed = await alice.ask("s", **PLAIN_STREAM)
        hit = await alice.ask("s", **GPT)
        record = (await gateway.ledger())[0]

    assert b'"cached_tokens":100' in streamed.body
    assert hit.json["usage"]["input_tokens_details"]["cached_tokens"] == 100
    assert record.cost_micros == 5 + 125 + 50 * IMAGE
