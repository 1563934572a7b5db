"""At most the requested number of an answer's images is read, fetched, stored and charged."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from tests.gateways import Client, InProcess, make_settings, run_gateway
from tests.http.hostile import PNG, Hostile, run_hostile
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("sqlite")

B64 = base64.b64encode(PNG).decode()
GOOD = {"b64_json": B64}

BY_IMAGE = {"model": "dall-e-2", "size": "1024x1024"}
IMAGE_MICROS = 20_000
"""Of one image of dall-e-2 in 1024x1024."""

BY_TOKEN = {"model": "gpt-image-2", "quality": "low", "size": "1024x1024"}
USAGE = {"input_tokens": 10, "output_tokens": 196}
USAGE_MICROS = 10 * 5 + 196 * 30

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
MEBIBYTE = 1024 * 1024


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    async with run_hostile() as opened:
        yield opened


@asynccontextmanager
async def gateway_of(
    hostile: Hostile, folder: Path, store_url: str | None
) -> AsyncIterator[InProcess]:
    settings = make_settings(
        folder / "data", hostile.base_url, store_url, upstream={"breaker": {"failures": 0}}
    )
    async with run_gateway(settings) as gateway:
        yield gateway


@pytest.fixture
async def gateway(
    hostile: Hostile, tmp_path: Path, store_url: str | None
) -> AsyncIterator[InProcess]:
    async with gateway_of(hostile, tmp_path, store_url) as opened:
        yield opened


@pytest.fixture
async def embedded(hostile: Hostile, tmp_path: Path) -> AsyncIterator[InProcess]:
    async with gateway_of(hostile, tmp_path, None) as opened:
        yield opened


@pytest.fixture
async def alice(gateway: InProcess) -> Client:
    return await gateway.client.with_key("alice", limits={"usd_per_day": 1})


# ── whole answers ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2])
async def test_of_three_thousand_links_the_requested_ones_are_fetched_and_charged(
    gateway: InProcess, alice: Client, hostile: Hostile, n: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.will_answer({"data": [{"url": f"{hostile.root}/i/{i}"} for i in range(3000)]})
    reply = await alice.ask(**BY_IMAGE, n=n, response_format="url")
    (record,) = await gateway.ledger()

    assert (reply.status, len(reply.json["data"])) == (200, n)
    assert sorted(hostile.fetches) == [f"/i/{i}" for i in range(n)]
    assert reply.headers["x-gateway-cost-usd"] == f"{n * IMAGE_MICROS / 1e6:.6f}"
    assert (record.images, record.cost_micros) == (n, n * IMAGE_MICROS)
    assert record.flags == ("undelivered",)
    assert f"images={3000 - n}" in capsys.readouterr().out


SURPLUS: dict[str, list[Any]] = {
    "good images": [GOOD] * 7,
    "empty objects": [{}] * 7,
    "links": [{"url": "https://images.example/1.png"}] * 7,
    "numbers": [1] * 10_000,
    "nested lists": [[[[]]]] * 1000,
    "large images": [{"b64_json": "A" * MEBIBYTE}] * 20,
    "large invalid base64": [{"b64_json": "!" * MEBIBYTE}] * 20,
    "long prompts": [{"revised_prompt": "x" * MEBIBYTE}] * 2,
}


@pytest.mark.parametrize("surplus", SURPLUS.values(), ids=list(SURPLUS))
async def test_the_requested_image_is_served_whatever_follows_it(
    embedded: InProcess, hostile: Hostile, surplus: list[Any]
) -> None:
    hostile.will_answer({"data": [GOOD, *surplus]})
    alice = await embedded.client.with_key()
    reply = await alice.ask(**BY_IMAGE, response_format="b64_json")
    hit = await alice.ask(**BY_IMAGE, response_format="b64_json")
    bought, _ = await embedded.ledger()

    assert (reply.status, reply.images) == (200, [B64])
    assert hit.cache_status.startswith("hit")
    assert (bought.images, bought.cost_micros, bought.flags) == (
        1,
        IMAGE_MICROS,
        ("undelivered",),
    )


async def test_damaged_images_among_the_requested_ones_are_not_replaced_by_later_ones(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """Which of an answer's images were made for the request is known by their position only."""
    hostile.will_answer({"data": [{}, GOOD, GOOD]})
    reply = await alice.ask(**BY_IMAGE, n=2, response_format="b64_json")
    (record,) = await gateway.ledger()
    assert (reply.status, reply.images) == (200, [B64])
    assert (record.images, record.flags) == (2, ("undelivered",))


async def test_the_usage_of_surplus_images_is_charged_as_upstream_bills_it(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    bill = {"input_tokens": 10, "output_tokens": 8 * 196}
    hostile.will_answer({"data": [GOOD] * 8, "usage": bill})
    reply = await alice.ask(**BY_TOKEN)
    (record,) = await gateway.ledger()
    assert (reply.status, reply.images) == (200, [B64])
    assert (record.images, record.cost_micros) == (1, 10 * 5 + 8 * 196 * 30)
    assert set(record.flags) == {"over_estimate", "undelivered"}


# ── JSON that is larger in memory than in bytes ─────────────────────────────────────────────

HUGE = {
    "empty objects": b'{"data":[%s{}]}' % (b"{}," * (8 * MEBIBYTE // 3)),
    "empty lists": b'{"data":[%s[]]}' % (b"[]," * (8 * MEBIBYTE // 3)),
    "empty texts": b'{"data":[%s""]}' % (b'"",' * (8 * MEBIBYTE // 3)),
    "empty images": b'{"data":[%s{}]}' % (b'{"b64_json":""},' * (8 * MEBIBYTE // 16)),
    "further keys": b'{"data":[{%s"z":0}]}'
    % b"".join(b'"%07d":0,' % i for i in range(8 * MEBIBYTE // 12)),
    "usage": b'{"usage":{"input_tokens_details":[%s0]}}' % (b"0," * (4 * MEBIBYTE)),
    "depth": b'{"data":%s' % (b"[" * (8 * MEBIBYTE)),
    "a number": b'{"data":%s}' % (b"9" * (8 * MEBIBYTE)),
}


def bodies_and_statuses() -> Iterator[ParameterSet]:
    """Each body as an answer, and the first one as an error too; the other errors are long."""
    for name, body in HUGE.items():
        for status in (200, 400, 500):
            is_long = status != 200 and body is not HUGE["empty objects"]
            marks = [pytest.mark.long] if is_long else []
            yield pytest.param(body, status, id=f"{name}-{status}", marks=marks)


@pytest.mark.timed
@pytest.mark.parametrize(("body", "status"), [*bodies_and_statuses()])
async def test_megabytes_of_tiny_values_cost_neither_time_nor_memory(
    embedded: InProcess, hostile: Hostile, body: bytes, status: int
) -> None:
    """8 MB of `{}` took 933 MB and 12.6 s."""
    hostile.will_answer(body if status == 200 else body[:MEBIBYTE], status)
    alice = await embedded.client.with_key()
    before = _peak_megabytes(is_reset=True)
    started = time.monotonic()
    reply = await alice.ask(**BY_TOKEN)
    seconds = time.monotonic() - started
    (record,) = await embedded.ledger()

    assert reply.status == 502
    assert seconds < 5
    assert _peak_megabytes() - before < 64
    assert record.flags == {200: ("undelivered",), 400: (), 500: ("presumed",)}[status]
    assert record.cost_micros < 10_000


@pytest.mark.timed
@pytest.mark.parametrize("tail", ["]}", '],"usage":{"input_tokens":1}}', ""])
@pytest.mark.parametrize("surplus", ["{}", "[]", '{"b64_json":""}', '{"url":"https://a.example/"}'])
async def test_the_requested_images_are_kept_before_megabytes_of_others(
    embedded: InProcess, hostile: Hostile, surplus: str, tail: str
) -> None:
    """The usage of an answer that is not read to its end is not known."""
    good = json.dumps({**GOOD, "revised_prompt": 'a "quoted" ]}, {['})
    count = 8 * MEBIBYTE // (len(surplus) + 1)
    body = f'{{"created": 1, "data": [{good}, {good}, {f"{surplus}," * count}{surplus}{tail}'
    alice = await embedded.client.with_key()
    hostile.will_answer(body.encode())
    started = time.monotonic()
    reply = await alice.ask(**BY_TOKEN, n=2)
    seconds = time.monotonic() - started
    (record,) = await embedded.ledger()
    assert (reply.status, reply.images) == (200, [B64] * 2)
    assert seconds < 5
    assert (record.images, record.flags) == (2, ("no_usage", "undelivered"))


def _peak_megabytes(*, is_reset: bool = False) -> int:
    """The most memory that this process has had since the last reset."""
    if is_reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


# ── streams ─────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_ends_with_its_first_completed_event(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    hostile.will_stream(*[(COMPLETED, {**GOOD, "usage": USAGE})] * 3)
    reply = await alice.ask(**BY_TOKEN, stream=True)
    (record,) = await gateway.ledger()
    assert reply.body.count(b"event: " + COMPLETED.encode()) == 1
    assert (record.images, record.cost_micros, record.flags) == (1, USAGE_MICROS, ())


async def test_an_event_with_several_images_is_that_image_alone(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """`data` belongs to answers. Its images are neither relayed nor stored."""
    hostile.will_stream((COMPLETED, {**GOOD, "usage": USAGE, "data": [GOOD] * 200}))
    reply = await alice.ask(**BY_TOKEN, stream=True)
    hit = await alice.ask(**BY_TOKEN)
    bought, _ = await gateway.ledger()
    assert reply.body.count(B64.encode()) == 1
    assert hit.images == [B64]
    assert list(hit.json["data"][0]) == ["b64_json"]
    assert (bought.images, bought.cost_micros) == (1, USAGE_MICROS)


async def test_no_more_partial_images_than_requested_are_relayed(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    """Nor one twice, nor one with an index that is no number from 0."""
    indices = [-1, 0, 0, 2**40, 2**63, 1.5, True, "1", None, 1, 2, 3, *range(4, 200)]
    partials = [(PARTIAL, {**GOOD, "partial_image_index": index}) for index in indices]
    hostile.will_stream(*partials, (COMPLETED, {**GOOD, "usage": USAGE}))
    reply = await alice.ask(**BY_TOKEN, stream=True, partial_images=2)
    (record,) = await gateway.ledger()
    assert reply.body.count(b"event: " + PARTIAL.encode()) == 2
    assert b'"partial_image_index":0,' in reply.body
    assert b'"partial_image_index":1,' in reply.body
    assert reply.body.count(b"event: " + COMPLETED.encode()) == 1
    assert (record.images, record.cost_micros) == (1, USAGE_MICROS)


async def test_an_answer_of_many_images_to_a_stream_is_its_first_one(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    hostile.will_answer({"data": [GOOD] * 8, "usage": USAGE})
    reply = await alice.ask(**BY_TOKEN, stream=True)
    (record,) = await gateway.ledger()
    assert reply.body.count(b"event: ") == 1
    assert (record.images, record.flags) == (1, ("undelivered",))


# ── long texts ──────────────────────────────────────────────────────────────────────────────


async def test_a_long_revised_prompt_is_cut_and_further_keys_are_dropped(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    image = {**GOOD, "revised_prompt": "ä" * 100_000, "seed": 7, "trace": ["x" * 100] * 2000}
    hostile.will_answer({"data": [image], "size": "9" * 10_000})
    replies = [await alice.ask(**BY_IMAGE, response_format="b64_json") for _ in range(2)]
    bought, hit = await gateway.ledger()
    for reply in replies:
        (item,) = reply.json["data"]
        assert item["revised_prompt"] == "ä" * 31_999 + "…"
        assert set(item) == {"b64_json", "revised_prompt"}
        assert len(reply.body) < 100_000
    assert bought.size == hit.size == "1024x1024"


async def test_an_error_of_a_megabyte_is_cut(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    error = dict.fromkeys(("message", "type", "param", "code", "trace"), "x" * 200_000)
    hostile.will_answer({"error": {**error, "hint": "h"}}, 400, X_Request_Id="r" * 2000)
    reply = await alice.ask(**BY_IMAGE)
    (record,) = await gateway.ledger()
    lengths = {key: len(value) for key, value in reply.error.items()}
    assert lengths == {"message": 4000, "type": 128, "param": 128, "code": 128, "hint": 1}
    assert len(record.error or "") == len(record.upstream_request_id or "") == 128


# ── usage ───────────────────────────────────────────────────────────────────────────────────

COUNTS = [
    -1,
    1.5,
    196.0,
    1e308,
    math.inf,
    "196",
    True,
    None,
    [],
    {},
    10**9 + 1,
    2**53,
    2**63,
    2**64,
    10**400,
]


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: f"{count!r:.24}")
@pytest.mark.parametrize("kind", ["input_tokens", "output_tokens"])
async def test_a_usage_that_is_no_number_of_tokens_is_charged_like_none(
    embedded: InProcess, hostile: Hostile, kind: str, count: object
) -> None:
    hostile.will_answer({"data": [GOOD], "usage": {**USAGE, kind: count}})
    alice = await embedded.client.with_key()
    reply = await alice.ask(**BY_TOKEN)
    (record,) = await embedded.ledger()
    assert reply.status == 200
    assert (record.flags, record.cost_micros) == (("no_usage",), 6_000 + 5 * (8 + 16))


@pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)
async def test_the_largest_usage_is_charged_exactly_in_both_stores(
    gateway: InProcess, alice: Client, hostile: Hostile
) -> None:
    hostile.will_answer({"data": [GOOD], "usage": dict.fromkeys(USAGE, 10**9)})
    hostile.gate.clear()
    asked = [asyncio.create_task(alice.ask(f"otter {i}", **BY_TOKEN)) for i in range(3)]
    await eventually(lambda: len(hostile.bodies) == 3)  # all reserved before the first is charged
    hostile.gate.set()
    replies = await asyncio.gather(*asked)
    records = await gateway.ledger()
    states = await alice.send("GET", "/v1/usage")
    micros = 10**9 * (5 + 30)
    assert {reply.status for reply in replies} == {200}
    assert [record.cost_micros for record in records] == [micros] * 3
    assert states.status in (200, 404)
    refused = await alice.ask("one more", **BY_TOKEN)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert f"{3 * micros / 1e6:.2f}" in refused.error["message"].replace(",", "")
